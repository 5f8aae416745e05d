/* Neurons between sparse layers, on blocks of 16 images (see sparse.h): current in, sets of spikes out, and back.
 *
 * A run is a row of pixels of one channel (two rows where pooled), over all steps.
 */
#include <stddef.h>
#include <string.h>

#include "lanes.h"
#include "sparse.h"

enum { TASKS = 64, TOGETHER = 8 };

typedef struct {
    const regraft_blocked *s;
    const vec *y[2];
    const uint16_t *added; /* spikes in the place of the second term */
    const real *scale[2], *shift[2], *mean[2];
    uint16_t *bits;
    const vec *grad; /* NULL: forward */
    vec *gx;
    double *partial; /* [TASKS, 3, C] and [TASKS] */
} run;

/* Where row h of channel c begins, in block b of step t. */
INLINE int64_t place(const regraft_blocked *s, int64_t t, int64_t b, int64_t h, int64_t c) {
    return (((t * s->per_step + b) * s->height + h) * s->channels + c) * s->width;
}

INLINE int64_t place_bits(const regraft_blocked *s, int64_t t, int64_t b, int64_t h, int64_t c, int64_t high, int64_t wide) {
    const int64_t q = s->halo;
    return (((t * s->per_step + b) * (high + 2 * q) + h + q) * s->channels + c) * (wide + 2 * q) + q;
}

/* The numbers of a neuron and of a channel, in registers: what is read through a pointer would be read again after
 * every store. */
typedef struct {
    vec decay, gain, hard, amount, through, sharp, at;
    real threshold;
    int surrogate;
} numbers;

INLINE numbers numbers_of(const regraft_blocked *s) {
    const real narrow = (real)(s->surrogate == TRIANGLE || s->surrogate == RECTANGLE ? 1 / s->shape : s->shape);
    return (numbers){.decay = splat((real)s->decay), .gain = splat((real)s->gain), .hard = splat(s->hard ? 1 : 0),
                     .amount = splat(s->hard ? 0 : (real)s->amount), .through = splat(s->detach ? 0 : 1),
                     .sharp = splat(narrow), .at = splat((real)s->threshold), .threshold = (real)s->threshold,
                     .surrogate = s->surrogate};
}

typedef struct {
    vec scale[2], shift[2], mean[2];
} channel;

INLINE channel channel_of(const run *r, int64_t c) {
    channel k;
    for (int i = 0; i < 2; i++) {
        k.scale[i] = splat(r->scale[i] ? r->scale[i][c] : 1);
        k.shift[i] = splat(r->shift[i] ? r->shift[i][c] : 0);
        k.mean[i] = splat(r->mean[i] ? r->mean[i][c] : 0);
    }
    return k;
}

/* One term at one pixel, of the images from `lane` on. */
INLINE vec term(const run *r, int i, int64_t at, int lane) {
    const vec y = r->y[i][at];
    return lane ? turned(y, lane) : y;
}

/* The sum of terms at one pixel. */
INLINE vec current(const run *r, const channel *k, const int terms, int64_t at, int64_t at_bits, int lane) {
    vec x = term(r, 0, at, lane) * k->scale[0] + k->shift[0];
    if (terms == 2) x += term(r, 1, at, lane) * k->scale[1] + k->shift[1];
    if (terms == 3) x = add_where(x, (uint16_t)(r->added[at_bits] >> lane), splat(1));
    return x;
}

/* u = decay v + gain x; v after the reset, which takes `hard * u + amount` from those that fired: these are returned. */
INLINE uint16_t charge(const numbers *n, vec x, vec *v, vec *u) {
    const vec now = n->decay * *v + n->gain * x;
    const uint16_t set = at_least(now, n->threshold);
    *u = now;
    *v = now - only(n->hard * now + n->amount, set);
    return set;
}

INLINE vec exp_negative(vec x) { /* of -87 to 0; as in segment.c */
#if STORE == F64
    for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
    return x;
#else
    const vec n = x * 1.44269504f - 0.5f;
    const ivec whole = __builtin_convertvector(n, ivec);
    const vec f = __builtin_convertvector(whole, vec);
    const vec r = x - f * 0.693359375f + f * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((whole + 127) << 23);
#endif
}

INLINE vec sigmoid_slope(vec x, vec sharp) {
    x = positive(87 - magnitude(x) * sharp) - 87; /* not below -87 */
    const vec e = exp_negative(x);
    return sharp * e / ((1 + e) * (1 + e));
}

/* The surrogate's slope at u. */
INLINE vec slope(const numbers *n, vec u) {
    const vec over = u - n->at;
    if (n->surrogate == TRIANGLE) return positive(1 - magnitude(over) * n->sharp) * n->sharp;
    if (n->surrogate == RECTANGLE) return (vec)((ivec)n->sharp & (magnitude(over) * n->sharp < splat((real)0.5)));
    if (n->surrogate == ATAN) {
        const vec arc = (real)1.57079632679489662 * n->sharp * over;
        return n->sharp * (real)0.5 / (1 + arc * arc);
    }
    return sigmoid_slope(over, n->sharp);
}

/* Which lanes give the gradient of the largest of four to the p-th: where it is the first that fired, or where none
 * did and it is the first of all. `fired`: four sets, `apart` from each other. */
INLINE uint16_t taken(const uint16_t *fired, const int64_t apart, int p) {
    uint16_t before = 0, all = 0;
    for (int k = 0; k < 4; k++) {
        if (k < p) before |= fired[k * apart];
        all |= fired[k * apart];
    }
    return (uint16_t)((fired[p * apart] & ~before) | (p == 0 ? ~all : 0));
}

INLINE uint16_t present(const regraft_blocked *s, int64_t b) {
    return (uint16_t)(b == s->per_step - 1 && s->lanes < LANES ? (1u << s->lanes) - 1 : 0xffffu);
}

/* Where step t begins in the block that it shares with others; 0 where each has its own. */
INLINE int lane_of(const regraft_blocked *s, const int share, int64_t t) {
    return share ? (int)(t & ((1 << share) - 1)) * (int)s->lanes : 0;
}

/* Where a run lies: its first pixel, and the way to the next row and to the next step's block. */
typedef struct {
    int64_t at, row, step;
} course;

INLINE course course_of(const regraft_blocked *s, int64_t b, int64_t h, int64_t c) {
    return (course){place(s, 0, b, h, c), s->channels * s->width, s->repeat ? 0 : place(s, 1, 0, 0, 0)};
}

INLINE course course_of_bits(const regraft_blocked *s, int64_t b, int64_t h, int64_t c, int64_t high, int64_t wide) {
    const int64_t at = place_bits(s, 0, b, h, c, high, wide);
    return (course){at, s->channels * (wide + 2 * s->halo), place_bits(s, 1, b, h, c, high, wide) - at};
}

/* Windows are pixels one by one, or the four of a pool: `p` is in the upper or lower row, left or right. */
#define WITHIN(course, t, p, w) ((course).at + ((t) >> share) * (course).step + (high == 1 ? (w) : (p) / 2 * (course).row + 2 * (w) + (p) % 2))

INLINE void fire_run(const run *r, const int high, const int terms, const int share, int64_t b, int64_t h, int64_t c) {
    const regraft_blocked *s = r->s;
    const int64_t wide = s->width / high, steps = s->steps;
    const uint16_t there = present(s, b);
    const numbers n = numbers_of(s);
    const channel k = channel_of(r, c);
    const course in = course_of(s, b, h, c), added = course_of_bits(s, b, h, c, s->height, s->width);
    const course out = course_of_bits(s, b, h / high, c, s->height / high, wide);
    for (int64_t w = 0; w < wide; w++) {
        vec v[4] = {splat(0), splat(0), splat(0), splat(0)}, u;
        for (int64_t t = 0; t < steps; t++) {
            const int lane = lane_of(s, share, t);
            const int64_t read = s->repeat ? 0 : t;
            uint16_t any = 0;
            for (int p = 0; p < high * high; p++) {
                const int64_t at = WITHIN(in, read, p, w), at_bits = WITHIN(added, read, p, w);
                any |= charge(&n, current(r, &k, terms, at, at_bits, s->repeat ? 0 : lane), v + p, &u);
            }
            uint16_t *set = r->bits + out.at + (t >> share) * out.step + w;
            *set = (uint16_t)((lane ? *set : 0) | (any & there) << lane);
        }
    }
}

typedef struct {
    vec g, gy[2], decay;
} run_sums;

INLINE void add_to(run_sums *sums, const run *r, const channel *k, const int terms, int64_t at, int lane, vec gx) {
    sums->g += gx;
    sums->gy[0] += gx * (term(r, 0, at, lane) - k->mean[0]);
    if (terms == 2) sums->gy[1] += gx * (term(r, 1, at, lane) - k->mean[1]);
}

/* Membranes of some windows over all steps, then back through them. `u`, `f`: `[steps, high * high, together]`. */
INLINE void unfire_run(const run *r, const int64_t steps, const int together, const int high, const int terms,
                       const int share, const int repeat, const int learn, int64_t b, int64_t h, int64_t c, vec *restrict u,
                       uint16_t *restrict f, run_sums *to) {
    const regraft_blocked *s = r->s;
    const int64_t wide = s->width / high, lines = s->height / high;
    const int pixels = high * high;
    const numbers n = numbers_of(s);
    const channel k = channel_of(r, c);
    const course in = course_of(s, b, h, c), added = course_of_bits(s, b, h, c, s->height, s->width);
    const vec *grad = r->grad + ((b * lines + h / high) * s->channels + c) * wide;
    const int64_t later = s->per_step * lines * s->channels * wide;
    const int leaks = learn && s->gain != 1;
    const uint16_t there = present(s, b);
    run_sums sums = *to;
    for (int64_t from = 0; from < wide; from += together) {
        const int here = wide - from < together ? (int)(wide - from) : together;
        vec v[4 * TOGETHER], all[4 * TOGETHER];
        for (int i = 0; i < pixels * here; i++) v[i] = splat(0);
        for (int64_t t = 0; t < steps; t++)
            for (int p = 0; p < pixels; p++)
                for (int j = 0; j < here; j++) {
                    const int64_t w = from + j, i = (t * pixels + p) * together + j;
                    const int64_t at = WITHIN(in, t, p, w), at_bits = WITHIN(added, repeat ? 0 : t, p, w);
                    const vec x = current(r, &k, terms, at, at_bits, repeat ? 0 : lane_of(s, share, t));
                    f[i] = charge(&n, x, v + p * here + j, u + i);
                }
        for (int i = 0; i < pixels * here; i++) v[i] = all[i] = splat(0);
        for (int64_t t = steps - 1; t >= 0; t--)
            for (int p = 0; p < pixels; p++)
                for (int j = 0; j < here; j++) {
                    const int64_t w = from + j, i = (t * pixels + p) * together + j, at = WITHIN(in, t, p, w);
                    const int lane = lane_of(s, share, t), lane_in = repeat ? 0 : lane;
                    vec *const back = v + p * here + j;
                    vec onto = grad[(t >> share) * later + w];
                    if (lane) onto = turned(onto, lane);
                    if (high == 2) onto = only(onto, taken(f + t * pixels * together + j, together, p));
                    onto -= n.through * (n.hard * u[i] + n.amount) * *back;
                    vec gu = onto * slope(&n, u[i]) + (*back - only(n.hard * *back, f[i]));
                    if (share) gu = only(gu, there); /* other steps' images are in the other lanes */
                    const vec gx = n.gain * gu;
                    *back = n.decay * gu;
                    if (learn && t > 0) {
                        const int64_t before = i - pixels * together;
                        sums.decay += gu * (u[before] - only(n.hard * u[before] + n.amount, f[before]));
                    }
                    if (leaks) /* the current, of which the decay leaves 1 - decay */
                        sums.decay -= gu * current(r, &k, terms, at, WITHIN(added, repeat ? 0 : t, p, w), lane_in);
                    if (repeat) {
                        all[p * here + j] += gx;
                        continue;
                    }
                    add_to(&sums, r, &k, terms, at, lane, gx);
                    const int opens = t == steps - 1 || !((t + 1) & ((1 << share) - 1)); /* its block, seen from behind */
                    if (!share) stream(r->gx + at, gx);
                    else if (opens) r->gx[at] = turned(gx, -lane);
                    else r->gx[at] += turned(gx, -lane);
                }
        for (int i = 0; i < pixels * here && repeat; i++) {
            const int64_t at = WITHIN(in, 0, i / here, from + i % here);
            r->gx[at] = all[i];
            add_to(&sums, r, &k, terms, at, 0, all[i]);
        }
    }
    *to = sums;
}

/* Few steps: one window at a time, in registers. Many: several, as their steps may lie a power of two apart, and what
 * lies beside what was read would be pushed out of the caches before its turn. */
INLINE void unfire(const run *r, const int high, int64_t b, int64_t h, int64_t c, void *scratch, run_sums *sums) {
    const regraft_blocked *s = r->s;
    vec *u = scratch;
    uint16_t *f = (uint16_t *)(u + s->steps * high * high * TOGETHER);
    const int usual = s->terms == 1 && !s->repeat && !s->learn;
    if (usual && !s->share && s->steps == 2) {
        vec few[2 * 4];
        uint16_t fired[2 * 4];
        unfire_run(r, 2, 1, high, 1, 0, 0, 0, b, h, c, few, fired, sums);
    } else if (usual && !s->share && s->steps == 4) {
        vec few[4 * 4];
        uint16_t fired[4 * 4];
        unfire_run(r, 4, 1, high, 1, 0, 0, 0, b, h, c, few, fired, sums);
    } else if (usual && !s->share) {
        unfire_run(r, s->steps, TOGETHER, high, 1, 0, 0, 0, b, h, c, u, f, sums);
    } else if (usual) {
        unfire_run(r, s->steps, TOGETHER, high, 1, s->share, 0, 0, b, h, c, u, f, sums);
    } else {
        unfire_run(r, s->steps, TOGETHER, high, s->terms, s->share, s->repeat, s->learn, b, h, c, u, f, sums);
    }
}

INLINE int64_t units_of(const regraft_blocked *s) { return s->per_step * (s->height / (s->pool ? 2 : 1)); }

INLINE void task_of(const run *r, const int high, void *scratch, int64_t task) {
    const regraft_blocked *s = r->s;
    const int64_t units = units_of(s), tasks = units < TASKS ? units : TASKS, lines = s->height / high, C = s->channels;
    double decay = 0, *to = r->partial + task * 3 * C;
    for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++)
        for (int64_t c = 0; c < C; c++) {
            const int64_t b = unit / lines, h = unit % lines * high;
            if (!r->grad) {
                if (s->terms == 1 && !s->share) fire_run(r, high, 1, 0, b, h, c);
                else fire_run(r, high, s->terms, s->share, b, h, c);
                continue;
            }
            run_sums sums = {splat(0), {splat(0), splat(0)}, splat(0)};
            unfire(r, high, b, h, c, scratch, &sums);
            to[c] += total(sums.g);
            to[C + c] += total(sums.gy[0]);
            if (s->terms == 2) to[2 * C + c] += total(sums.gy[1]);
            if (s->learn) decay += total(sums.decay);
        }
    if (r->grad) r->partial[TASKS * 3 * C + task] = decay;
    streamed();
}

static void run_task(void *context, void *scratch, int64_t task) {
    const run *r = context;
    if (r->s->pool) task_of(r, 2, scratch, task);
    else task_of(r, 1, scratch, task);
}

/* Spikes of all steps. What lies in the halo is not touched. */
EXPORT int PUBLIC(blocked_fire)(const regraft_blocked *s, const real *y0, const real *scale0, const real *shift0,
                                const real *y1, const real *scale1, const real *shift1, const uint16_t *added,
                                uint16_t *bits) {
    run r = {.s = s, .y = {(const vec *)y0, (const vec *)y1}, .added = added, .scale = {scale0, scale1},
             .shift = {shift0, shift1}, .bits = bits};
    const int64_t units = units_of(s);
    return units ? regraft_each(units < TASKS ? units : TASKS, s->threads, 0, run_task, &r) : 0;
}

/* Gradient of the sum of terms, shaped as y0; `out`: [3, C] its sums, by itself and times each centred term, and the
 * decay's gradient. `partial`: 64 * (3 C + 1) doubles. */
EXPORT int PUBLIC(blocked_unfire)(const regraft_blocked *s, const real *y0, const real *scale0, const real *shift0,
                                  const real *mean0, const real *y1, const real *scale1, const real *shift1,
                                  const real *mean1, const uint16_t *added, const real *grad, real *gx, real *out,
                                  double *partial) {
    run r = {.s = s, .y = {(const vec *)y0, (const vec *)y1}, .added = added, .scale = {scale0, scale1},
             .shift = {shift0, shift1}, .mean = {mean0, mean1}, .grad = (const vec *)grad, .gx = (vec *)gx,
             .partial = partial};
    const int64_t units = units_of(s), tasks = units < TASKS ? units : TASKS, each = 3 * s->channels;
    const size_t scratch = (size_t)(s->steps * (s->pool ? 4 : 1) * TOGETHER) * (sizeof(vec) + sizeof(uint16_t));
    memset(partial, 0, sizeof(double) * (size_t)(TASKS * (each + 1)));
    const int failed = units ? regraft_each(tasks, s->threads, scratch, run_task, &r) : 0;
    for (int64_t j = 0; j < each; j++) {
        double sum = 0;
        for (int64_t task = 0; task < tasks; task++) sum += partial[task * each + j];
        out[j] = (real)sum;
    }
    double decay = 0;
    for (int64_t task = 0; task < tasks; task++) decay += partial[TASKS * each + task];
    out[each] = (real)decay;
    return failed;
}

/* ---- in and out of blocks -------------------------------------------------------------------------------------- */

typedef struct {
    const regraft_exchange *s;
    real *plain, *blocked;
    uint16_t *bits;
    int into;
} exchange;

/* `n` neighbours along one axis, for up to 16 images: from images to lanes, or back. */
INLINE void tile_in(const real *plain, int64_t image, int64_t along, int64_t images, int64_t n, vec *restrict to) {
    real t[LANES][LANES];
    memset(t, 0, sizeof t);
    for (int64_t i = 0; i < images; i++)
        for (int64_t j = 0; j < n; j++) t[i][j] = plain[i * image + j * along];
    for (int64_t j = 0; j < LANES; j++)
        for (int64_t i = 0; i < LANES; i++) to[j][i] = t[i][j];
}

INLINE void tile_out(const vec *from, int64_t image, int64_t along, int64_t images, int64_t n, real *restrict plain) {
    real t[LANES][LANES];
    for (int64_t j = 0; j < LANES; j++)
        for (int64_t i = 0; i < LANES; i++) t[i][j] = from[j][i];
    for (int64_t i = 0; i < images; i++)
        for (int64_t j = 0; j < n; j++) plain[i * image + j * along] = t[i][j];
}

INLINE void exchange_tile(const exchange *e, const int64_t along, int64_t images, int64_t n, real *plain, vec *reals,
                          uint16_t *sets, int64_t apart) {
    const int64_t image = e->s->strides[0];
    vec lanes[LANES];
    if (e->into) {
        tile_in(plain, image, along, images, n, lanes);
        for (int64_t j = 0; j < n; j++) {
            if (reals) reals[j * apart] = lanes[j];
            else sets[j * apart] = at_least(magnitude(lanes[j]), (real)1e-30);
        }
        return;
    }
    for (int64_t j = 0; j < LANES; j++) {
        if (j >= n) lanes[j] = splat(0);
        else lanes[j] = reals ? reals[j * apart] : only(splat(1), sets[j * apart]);
    }
    tile_out(lanes, image, along, images, n, plain);
}

/* A row of a block, in tiles along the axis whose neighbours lie together in the plain array. */
static void exchange_task(void *context, void *scratch, int64_t task) {
    (void)scratch;
    const exchange *e = context;
    const regraft_exchange *s = e->s;
    const int64_t b = task / s->height, h = task % s->height, C = s->channels, W = s->width, q = s->halo;
    const int64_t first = b / s->per_step * s->images + b % s->per_step * LANES;
    const int64_t left = s->images - b % s->per_step * LANES, here = left < LANES ? left : LANES;
    const int64_t across = W + 2 * q;
    vec *row = e->blocked ? (vec *)e->blocked + (b * s->height + h) * C * W : NULL;
    uint16_t *sets = e->bits ? e->bits + ((b * (s->height + 2 * q) + h + q) * C) * across + q : NULL;
    real *plain = e->plain + first * s->strides[0] + h * s->strides[2];
    const int by_channel = s->strides[1] < s->strides[3];
    const int64_t outer = by_channel ? W : C, inner = by_channel ? C : W;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i += LANES) {
            const int64_t c = by_channel ? i : o, w = by_channel ? o : i, n = inner - i < LANES ? inner - i : LANES;
            real *at = plain + c * s->strides[1] + w * s->strides[3];
            vec *reals = row ? row + c * W + w : NULL;
            uint16_t *set = sets ? sets + c * across + w : NULL;
            const int64_t along = by_channel ? s->strides[1] : s->strides[3];
            const int64_t apart = by_channel ? (row ? W : across) : 1;
            if (along == 1) exchange_tile(e, 1, here, n, at, reals, set, apart);
            else exchange_tile(e, along, here, n, at, reals, set, apart);
        }
}

static int swap(const regraft_exchange *s, real *plain, real *blocked, uint16_t *bits, int into) {
    exchange e = {s, plain, blocked, bits, into};
    const int64_t tasks = s->blocks * s->height;
    return tasks ? regraft_each(tasks, s->threads, 0, exchange_task, &e) : 0;
}

EXPORT int PUBLIC(block_reals)(const regraft_exchange *s, real *plain, real *blocked) { return swap(s, plain, blocked, NULL, 1); }
EXPORT int PUBLIC(unblock_reals)(const regraft_exchange *s, real *plain, real *blocked) { return swap(s, plain, blocked, NULL, 0); }
/* What is not 0 counts as a spike. */
EXPORT int PUBLIC(block_spikes)(const regraft_exchange *s, real *plain, uint16_t *bits) { return swap(s, plain, NULL, bits, 1); }
EXPORT int PUBLIC(unblock_spikes)(const regraft_exchange *s, real *plain, uint16_t *bits) { return swap(s, plain, NULL, bits, 0); }
