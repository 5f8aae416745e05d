/* Neurons between sparse layers, on blocks of 16 images (see sparse.h): current in, sets of spikes out, and back.
 *
 * A run is a row of pixels of one channel (two rows where pooled), over all steps.
 */
#include <stddef.h>
#include <string.h>

#include "lanes.h"
#include "sparse.h"

enum { TASKS = 64, TOGETHER = 8, AHEAD = 8 };

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

/* Usual neurons charge with all of their input, and their reset lets no gradient through: these have formulas of their
 * own, of half the instructions. */
typedef enum { HARD, SOFT, OTHER } reset_kind;

static reset_kind reset_of(const regraft_blocked *s) { return !s->detach || s->gain != 1 ? OTHER : s->hard ? HARD : SOFT; }

/* The numbers of a neuron and of a channel, in registers: what is read through a pointer would be read again after
 * every store. */
typedef struct {
    reset_kind reset;
    part decay, gain, hard, amount, through, sharp, at;
    int surrogate;
} numbers;

INLINE numbers numbers_of(const regraft_blocked *s, const reset_kind reset) {
    const real narrow = (real)(s->surrogate == TRIANGLE || s->surrogate == RECTANGLE ? 1 / s->shape : s->shape);
    return (numbers){.reset = reset, .surrogate = s->surrogate, .decay = splat((real)s->decay),
                     .gain = splat((real)s->gain), .hard = splat(s->hard ? 1 : 0),
                     .amount = splat(s->hard ? 0 : (real)s->amount), .through = splat(s->detach ? 0 : 1),
                     .sharp = splat(narrow), .at = splat((real)s->threshold)};
}

typedef struct {
    part scale[2], shift[2], mean[2];
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

/* The sum of terms at one pixel. */
INLINE part current(const run *r, const channel *k, const int terms, int64_t at, int64_t at_bits, int q) {
    part x = multiply_add(r->y[0][at].part[q], k->scale[0], k->shift[0]);
    if (terms == 2) x += multiply_add(r->y[1][at].part[q], k->scale[1], k->shift[1]);
    if (terms == 3) x = add_where_at(x, r->added + at_bits, q, splat(1));
    return x;
}

/* u = decay v + gain x; v after the reset, which takes `hard * u + amount` from those that fired: these are returned. */
INLINE mask charge(const numbers *n, part x, part *v, part *u) {
    if (n->reset == OTHER) x *= n->gain;
    const part now = multiply_add(n->decay, *v, x);
    const mask fired = at_least(now, n->at);
    *u = now;
    if (n->reset == HARD) *v = now - only(now, fired);
    if (n->reset == SOFT) *v = now - only(n->amount, fired);
    if (n->reset == OTHER) *v = now - only(n->hard * now + n->amount, fired);
    return fired;
}

INLINE part exp_negative(part x) { /* of -87 to 0; as in segment.c */
#if STORE == F64
    for (int i = 0; i < PART; i++) x[i] = exp(x[i]);
    return x;
#else
    const part n = x * 1.44269504f - 0.5f;
    const ipart whole = __builtin_convertvector(n, ipart);
    const part f = __builtin_convertvector(whole, part);
    const part r = x - f * 0.693359375f + f * 2.12194440e-4f;
    part p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (part)((whole + 127) << 23);
#endif
}

INLINE part sigmoid_slope(part x, part sharp) {
    x = positive(multiply_add(negative(x), sharp, splat(87))) - 87; /* not below -87 */
    const part e = exp_negative(x);
    return sharp * e / ((1 + e) * (1 + e));
}

/* The surrogate's slope at u. */
INLINE part slope(const numbers *n, part u) {
    const part over = u - n->at;
    if (n->surrogate == TRIANGLE) return positive(multiply_add(negative(over), n->sharp, splat(1))) * n->sharp;
    if (n->surrogate == RECTANGLE) return only(n->sharp, under(magnitude(over) * n->sharp, splat((real)0.5)));
    if (n->surrogate == ATAN) {
        const part arc = (real)1.57079632679489662 * n->sharp * over;
        return n->sharp * (real)0.5 / (1 + arc * arc);
    }
    return sigmoid_slope(over, n->sharp);
}

/* Of the sets that fired at four pixels, `apart` from each other, those that give the gradient of the largest: the first
 * that fired, or, where none did, the first of all. */
INLINE void keep_first(uint16_t *fired, const int64_t apart) {
    const uint16_t a = fired[0], b = fired[apart], c = fired[2 * apart], d = fired[3 * apart];
    fired[0] = (uint16_t)(a | ~(b | c | d));
    fired[apart] = (uint16_t)(b & ~a);
    fired[2 * apart] = (uint16_t)(c & ~(a | b));
    fired[3 * apart] = (uint16_t)(d & ~(a | b | c));
}

INLINE uint16_t present(const regraft_blocked *s, int64_t b) {
    return (uint16_t)(b == s->per_step - 1 && s->lanes < LANES ? (1u << s->lanes) - 1 : 0xffffu);
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
#define WITHIN(course, block, p, w) \
    ((course).at + (block) * (course).step + (high == 1 ? (w) : (p) / 2 * (course).row + 2 * (w) + (p) % 2))

/* Sets of images of each step, from those of windows (see `regroup`), or back. */
INLINE void regroup_sets(const int share, const uint16_t *from, uint16_t *to) {
    const int together = 1 << share, each = LANES >> share;
    for (int j = 0; j < together; j++) {
        uint32_t set = 0;
        for (int i = 0; i < together; i++)
            set |= (uint32_t)(from[i] >> j * each & ((1u << each) - 1)) << i * each;
        to[j] = (uint16_t)set;
    }
}

/* Of windows `w` and behind it, up to `wide`, in the steps of a block. */
INLINE void currents(const run *r, const channel *k, const int high, const int terms, const int share, course in,
                     course added, int64_t block, int p, int64_t w, int64_t wide, vec *x) {
    for (int j = 0; j < 1 << share && share; j++) __builtin_prefetch(r->y[0] + WITHIN(in, block, p, w + j + AHEAD));
    for (int j = 0; j < 1 << share; j++)
        for (int q = 0; q < PARTS; q++)
            x[j].part[q] = w + j < wide ? current(r, k, terms, WITHIN(in, block, p, w + j), WITHIN(added, block, p, w + j), q)
                                        : splat(0);
    regroup(share, x);
}

INLINE void fire_run(const run *r, const reset_kind reset, const int high, const int terms, const int share, int64_t b,
                     int64_t h, int64_t c) {
    const regraft_blocked *s = r->s;
    const int64_t wide = s->width / high, steps = s->steps;
    const int together = 1 << share;
    const uint16_t there = share ? 0xffff : present(s, b);
    const numbers n = numbers_of(s, reset);
    const channel k = channel_of(r, c);
    const course in = course_of(s, b, h, c), added = course_of_bits(s, b, h, c, s->height, s->width);
    const course out = course_of_bits(s, b, h / high, c, s->height / high, wide);
    for (int64_t w = 0; w < wide; w += together) {
        vec v[4] = {0}, x[4][LANES];
        for (int64_t block = 0; block << share < steps; block++) {
            uint16_t any[LANES] = {0}, sets[LANES];
            for (int p = 0; p < high * high; p++)
                currents(r, &k, high, terms, share, in, added, s->repeat ? 0 : block, p, w, wide, x[p]);
            for (int i = 0; i < together && (block << share) + i < steps; i++) {
                for (int q = 0; q < PARTS; q++) {
                    mask fired = (mask){0};
                    part u;
                    for (int p = 0; p < high * high; p++)
                        fired |= charge(&n, x[p][s->repeat ? 0 : i].part[q], v[p].part + q, &u);
                    any[i] |= set_of(fired, q);
                }
                any[i] &= there;
            }
            regroup_sets(share, any, sets);
            for (int j = 0; j < together && w + j < wide; j++) r->bits[out.at + block * out.step + w + j] = sets[j];
        }
    }
}

typedef struct {
    vec g, gy[2], decay;
} run_sums;

/* Gradients of the currents of windows in a block, out to where they belong. */
INLINE void give(const run *r, const channel *k, const int high, const int terms, const int share, course in, int64_t block,
                 int p, int64_t w, int64_t wide, vec *gx, run_sums *sums) {
    regroup(share, gx);
    for (int j = 0; j < 1 << share && w + j < wide; j++) {
        const int64_t at = WITHIN(in, block, p, w + j);
        for (int q = 0; q < PARTS; q++) {
            const part g = gx[j].part[q];
            stream(r->gx + at, q, g);
            sums->g.part[q] += g;
            for (int i = 0; i < (terms == 2 ? 2 : 1); i++)
                sums->gy[i].part[q] = multiply_add(g, r->y[i][at].part[q] - k->mean[i], sums->gy[i].part[q]);
        }
    }
}

/* The gradient of a membrane u before its reset, from that of its spike and of what it leaves, `back`. */
INLINE part through_reset(const numbers *n, part u, part onto, part back) {
    if (n->reset == HARD) return multiply_add(onto, slope(n, u), only(back, under(u, n->at)));
    if (n->reset == SOFT) return multiply_add(onto, slope(n, u), back);
    onto -= n->through * (n->hard * u + n->amount) * back;
    return multiply_add(onto, slope(n, u), back - only(n->hard * back, at_least(u, n->at)));
}

/* Membranes of some groups of windows over all steps, then back through them. `u`, `f` (of a pool, who gets its
 * gradient): `[steps, high * high, groups]`. */
INLINE void unfire_run(const run *r, const reset_kind reset, const int64_t steps, const int groups, const int high, const int terms,
                       const int share, const int repeat, const int learn, int64_t b, int64_t h, int64_t c, vec *restrict u,
                       uint16_t *restrict f, run_sums *to) {
    const regraft_blocked *s = r->s;
    const int64_t wide = s->width / high, lines = s->height / high, blocks = (steps + (1 << share) - 1) >> share;
    const int pixels = high * high, together = 1 << share;
    const numbers n = numbers_of(s, reset);
    const channel k = channel_of(r, c);
    const course in = course_of(s, b, h, c), added = course_of_bits(s, b, h, c, s->height, s->width);
    const vec *grad = r->grad + ((b * lines + h / high) * s->channels + c) * wide;
    const int64_t later = s->per_step * lines * s->channels * wide;
    const int leaks = learn && s->gain != 1;
    run_sums sums = *to;
    for (int64_t from = 0; from < wide; from += groups * together) {
        const int64_t left = (wide - from + together - 1) >> share;
        const int here = left < groups ? (int)left : groups;
        vec v[4 * TOGETHER], all[4 * TOGETHER], x[LANES], g[LANES], gx[LANES];
        for (int i = 0; i < pixels * here; i++) v[i] = (vec){0};
        for (int64_t block = 0; block < blocks; block++)
            for (int p = 0; p < pixels; p++)
                for (int j = 0; j < here; j++) {
                    const int64_t w = from + j * together;
                    currents(r, &k, high, terms, share, in, added, repeat ? 0 : block, p, w, wide, x);
                    for (int64_t i = 0; i < together && (block << share) + i < steps; i++) {
                        const int64_t at = (((block << share) + i) * pixels + p) * groups + j;
                        uint16_t fired = 0;
                        for (int q = 0; q < PARTS; q++)
                            fired |= set_of(charge(&n, x[repeat ? 0 : i].part[q], v[p * here + j].part + q, u[at].part + q), q);
                        if (high == 2) f[at] = fired;
                    }
                }
        for (int64_t t = 0; t < steps && high == 2; t++)
            for (int j = 0; j < here; j++) keep_first(f + t * pixels * groups + j, groups);
        for (int i = 0; i < pixels * here; i++) v[i] = all[i] = (vec){0};
        for (int64_t block = blocks - 1; block >= 0; block--)
            for (int p = 0; p < pixels; p++)
                for (int j = 0; j < here; j++) {
                    const int64_t w = from + j * together;
                    for (int i = 0; i < together; i++) g[i] = w + i < wide ? grad[block * later + w + i] : (vec){0};
                    regroup(share, g);
                    if (leaks) currents(r, &k, high, terms, share, in, added, repeat ? 0 : block, p, w, wide, x);
                    for (int64_t i = together - 1; i >= 0; i--) {
                        const int64_t t = (block << share) + i, at = (t * pixels + p) * groups + j;
                        if (t >= steps) {
                            gx[i] = (vec){0};
                            continue;
                        }
                        for (int q = 0; q < PARTS; q++) {
                            part *const back = v[p * here + j].part + q;
                            const part onto = high == 2 ? only(g[i].part[q], members(f[at], q)) : g[i].part[q];
                            const part gu = through_reset(&n, u[at].part[q], onto, *back);
                            gx[i].part[q] = gu;
                            if (reset == OTHER) gx[i].part[q] *= n.gain;
                            *back = n.decay * gu;
                            if (learn && t > 0) {
                                const part before = u[at - pixels * groups].part[q];
                                const part kept = before - only(n.hard * before + n.amount, at_least(before, n.at));
                                sums.decay.part[q] += gu * kept;
                            }
                            /* the current, of which the decay leaves 1 - decay */
                            if (leaks) sums.decay.part[q] -= gu * x[repeat ? 0 : i].part[q];
                            if (repeat) all[p * here + j].part[q] += gx[i].part[q];
                        }
                    }
                    if (!repeat) give(r, &k, high, terms, share, in, block, p, w, wide, gx, &sums);
                }
        for (int i = 0; i < pixels * here && repeat; i++) {
            for (int j = 1; j < together; j++) gx[j] = (vec){0};
            gx[0] = all[i];
            give(r, &k, high, terms, share, in, 0, i / here, from + i % here * together, wide, gx, &sums);
        }
    }
    *to = sums;
}

/* Few steps: one window at a time, in registers. Many: several, as their steps may lie a power of two apart, and what
 * lies beside what was read would be pushed out of the caches before its turn. */
INLINE void unfire_usual(const run *r, const reset_kind reset, const int high, int64_t b, int64_t h, int64_t c, vec *u, uint16_t *f,
                         run_sums *sums) {
    const regraft_blocked *s = r->s;
    vec few[4 * 4];
    uint16_t fired[4 * 4];
    if (s->share == 2) unfire_run(r, reset, s->steps, TOGETHER / 4, high, 1, 2, 0, 0, b, h, c, u, f, sums);
    else if (s->share == 1) unfire_run(r, reset, s->steps, TOGETHER / 2, high, 1, 1, 0, 0, b, h, c, u, f, sums);
    else if (s->steps == 2) unfire_run(r, reset, 2, 1, high, 1, 0, 0, 0, b, h, c, few, fired, sums);
    else if (s->steps == 4) unfire_run(r, reset, 4, 1, high, 1, 0, 0, 0, b, h, c, few, fired, sums);
    else unfire_run(r, reset, s->steps, TOGETHER, high, 1, 0, 0, 0, b, h, c, u, f, sums);
}

INLINE void unfire(const run *r, const int high, int64_t b, int64_t h, int64_t c, void *scratch, run_sums *sums) {
    const regraft_blocked *s = r->s;
    vec *u = scratch;
    uint16_t *f = (uint16_t *)(u + s->steps * high * high * TOGETHER);
    const int usual = s->terms == 1 && !s->repeat && !s->learn && s->share < 3, groups = s->share > 3 ? 1 : TOGETHER >> s->share;
    const reset_kind reset = reset_of(s);
    if (usual && reset == HARD) unfire_usual(r, HARD, high, b, h, c, u, f, sums);
    else if (usual && reset == SOFT) unfire_usual(r, SOFT, high, b, h, c, u, f, sums);
    else if (usual) unfire_usual(r, OTHER, high, b, h, c, u, f, sums);
    else unfire_run(r, OTHER, s->steps, groups, high, s->terms, s->share, s->repeat, s->learn, b, h, c, u, f, sums);
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
                const reset_kind reset = reset_of(s);
                if (s->terms == 1 && !s->share && reset == HARD) fire_run(r, HARD, high, 1, 0, b, h, c);
                else if (s->terms == 1 && !s->share) fire_run(r, reset, high, 1, 0, b, h, c);
                else if (s->terms == 1 && s->share == 1) fire_run(r, reset, high, 1, 1, b, h, c);
                else fire_run(r, reset, high, s->terms, s->share, b, h, c);
                continue;
            }
            run_sums sums = {0};
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
        for (int64_t i = 0; i < LANES; i++) ((real *)(to + j))[i] = t[i][j];
}

INLINE void tile_out(const vec *from, int64_t image, int64_t along, int64_t images, int64_t n, real *restrict plain) {
    real t[LANES][LANES];
    for (int64_t j = 0; j < LANES; j++)
        for (int64_t i = 0; i < LANES; i++) t[i][j] = ((const real *)(from + j))[i];
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
            uint16_t set = 0;
            for (int q = 0; q < PARTS; q++) set |= set_of(at_least(magnitude(lanes[j].part[q]), splat((real)1e-30)), q);
            if (reals) reals[j * apart] = lanes[j];
            else sets[j * apart] = set;
        }
        return;
    }
    for (int64_t j = 0; j < LANES; j++) {
        lanes[j] = j < n && reals ? reals[j * apart] : (vec){0};
        for (int q = 0; q < PARTS && j < n && !reals; q++) lanes[j].part[q] = only(splat(1), members(sets[j * apart], q));
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
