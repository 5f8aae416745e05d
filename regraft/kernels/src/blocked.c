/* Neurons between sparse layers, on blocks of 16 images (see sparse.h): current in, sets of spikes out, and back.
 *
 * A run is a row of pixels of one channel (two rows where pooled), over all steps.
 */
#include <stddef.h>
#include <string.h>

#include "lanes.h"
#include "sparse.h"

enum { TASKS = 64 };

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

INLINE int64_t step_of(const regraft_blocked *s, int64_t t) { return s->repeat ? 0 : t; }

/* Where row h of channel c begins, in block b of step t. */
INLINE int64_t place(const regraft_blocked *s, int64_t t, int64_t b, int64_t h, int64_t c) {
    return (((t * s->per_step + b) * s->height + h) * s->channels + c) * s->width;
}

INLINE int64_t place_bits(const regraft_blocked *s, int64_t t, int64_t b, int64_t h, int64_t c, int64_t high, int64_t wide) {
    const int64_t q = s->halo;
    return (((t * s->per_step + b) * (high + 2 * q) + h + q) * s->channels + c) * (wide + 2 * q) + q;
}

/* The sum of terms along a row. */
INLINE void current(const run *r, int64_t t, int64_t b, int64_t h, int64_t c, vec *restrict x) {
    const regraft_blocked *s = r->s;
    const int64_t from = place(s, step_of(s, t), b, h, c), W = s->width;
    const vec a0 = splat(r->scale[0] ? r->scale[0][c] : 1), b0 = splat(r->shift[0] ? r->shift[0][c] : 0);
    const vec *y0 = r->y[0] + from;
    for (int64_t w = 0; w < W; w++) x[w] = y0[w] * a0 + b0;
    if (s->terms == 2) {
        const vec a1 = splat(r->scale[1] ? r->scale[1][c] : 1), b1 = splat(r->shift[1] ? r->shift[1][c] : 0);
        const vec *y1 = r->y[1] + from;
        for (int64_t w = 0; w < W; w++) x[w] += y1[w] * a1 + b1;
    }
    if (s->terms == 3) {
        const uint16_t *set = r->added + place_bits(s, step_of(s, t), b, h, c, s->height, W);
        for (int64_t w = 0; w < W; w++) x[w] = add_where(x[w], set[w], splat(1));
    }
}

/* u = decay v + gain x; v after the reset, which takes `hard * u + amount` from those that fired. */
INLINE void charge(const regraft_blocked *s, const vec *x, vec *restrict v, vec *restrict u, uint16_t *restrict fired,
                   int64_t n) {
    const vec decay = splat((real)s->decay), gain = splat((real)s->gain);
    const vec hard = splat(s->hard ? 1 : 0), amount = splat(s->hard ? 0 : (real)s->amount);
    for (int64_t w = 0; w < n; w++) {
        const vec now = decay * v[w] + gain * x[w];
        const uint16_t set = at_least(now, (real)s->threshold);
        u[w] = now;
        fired[w] = set;
        v[w] = now - only(hard * now + amount, set);
    }
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

/* The surrogate's slope along a row. */
static __attribute__((noinline)) void slopes(const regraft_blocked *s, const vec *u, vec *restrict to, int64_t n) {
    const real a = (real)(s->surrogate == TRIANGLE || s->surrogate == RECTANGLE ? 1 / s->shape : s->shape);
    const vec th = splat((real)s->threshold), sharp = splat(a);
    switch (s->surrogate) {
    case TRIANGLE:
        for (int64_t w = 0; w < n; w++) to[w] = positive(1 - magnitude(u[w] - th) * sharp) * sharp;
        break;
    case RECTANGLE:
        for (int64_t w = 0; w < n; w++)
            to[w] = (vec)((ivec)sharp & (magnitude(u[w] - th) * sharp < splat((real)0.5)));
        break;
    case ATAN:
        for (int64_t w = 0; w < n; w++) {
            const vec arc = (real)1.57079632679489662 * sharp * (u[w] - th);
            to[w] = sharp * (real)0.5 / (1 + arc * arc);
        }
        break;
    default:
        for (int64_t w = 0; w < n; w++) {
            vec x = -magnitude(u[w] - th) * sharp;
            x = positive(x + 87) - 87; /* not below -87 */
            const vec e = exp_negative(x);
            to[w] = sharp * e / ((1 + e) * (1 + e));
        }
    }
}

/* Which sets take the gradient of the largest of four: the first that fired, or the first of all. */
INLINE void route(const uint16_t fired[4], uint16_t takes[4]) {
    uint16_t taken = 0;
    for (int k = 0; k < 4; k++) {
        takes[k] = (uint16_t)(fired[k] & ~taken);
        taken |= fired[k];
    }
    takes[0] |= (uint16_t)~taken;
}

typedef struct {
    vec *x, *v, *u, *h, *total; /* u: [T, rows, W], others [rows, W] or [W] */
    uint16_t *fired;            /* [T, rows, W] */
} rows;

INLINE rows rows_of(const regraft_blocked *s, void *scratch) {
    const int64_t n = (s->pool ? 2 : 1) * s->width;
    rows r = {.x = scratch};
    r.v = r.x + s->width;
    r.h = r.v + n;
    r.total = r.h + s->width;
    r.u = r.total + n;
    r.fired = (uint16_t *)(r.u + s->steps * n);
    return r;
}

static size_t scratch_of(const regraft_blocked *s) {
    const size_t n = (s->pool ? 2 : 1) * (size_t)s->width;
    return sizeof(vec) * (2 * (size_t)s->width + 2 * n + (size_t)s->steps * n) + sizeof(uint16_t) * (size_t)s->steps * n;
}

INLINE uint16_t present(const regraft_blocked *s, int64_t b) {
    return (uint16_t)(b == s->per_step - 1 && s->lanes < LANES ? (1u << s->lanes) - 1 : 0xffffu);
}

/* All steps of one run; leaves u and fired. */
INLINE void charge_run(const run *r, rows *m, int64_t b, int64_t h, int64_t c, int high) {
    const regraft_blocked *s = r->s;
    const int64_t W = s->width;
    memset(m->v, 0, sizeof(vec) * (size_t)(high * W));
    for (int64_t t = 0; t < s->steps; t++)
        for (int k = 0; k < high; k++) {
            const int64_t at = (t * high + k) * W;
            if (!s->repeat || t == 0 || high > 1) current(r, t, b, h + k, c, m->x);
            charge(s, m->x, m->v + k * W, m->u + at, m->fired + at, W);
        }
}

static void fire_run(const run *r, rows *m, int64_t b, int64_t h, int64_t c, int high) {
    const regraft_blocked *s = r->s;
    const int64_t W = s->width, wide = W / high;
    const uint16_t there = present(s, b);
    charge_run(r, m, b, h, c, high);
    for (int64_t t = 0; t < s->steps; t++) {
        uint16_t *to = r->bits + place_bits(s, t, b, h / high, c, s->height / high, wide);
        const uint16_t *f = m->fired + t * high * W;
        if (high == 1)
            for (int64_t w = 0; w < W; w++) to[w] = f[w] & there;
        else
            for (int64_t w = 0; w < wide; w++) to[w] = (f[2 * w] | f[2 * w + 1] | f[W + 2 * w] | f[W + 2 * w + 1]) & there;
    }
}

typedef struct {
    vec g, gy[2], decay;
} run_sums;

static void unfire_run(const run *r, rows *m, int64_t b, int64_t h, int64_t c, int high, run_sums *sums) {
    const regraft_blocked *s = r->s;
    const int64_t W = s->width, wide = W / high;
    const vec decay = splat((real)s->decay), gain = splat((real)s->gain);
    const vec hard = splat(s->hard ? 1 : 0), amount = splat(s->hard ? 0 : (real)s->amount), through = splat(s->detach ? 0 : 1);
    charge_run(r, m, b, h, c, high);
    memset(m->v, 0, sizeof(vec) * (size_t)(high * W)); /* from here on: the gradient of the membrane */
    memset(m->total, 0, sizeof(vec) * (size_t)(high * W));
    for (int64_t t = s->steps - 1; t >= 0; t--) {
        const vec *g = r->grad + (((t * s->per_step + b) * (s->height / high) + h / high) * s->channels + c) * wide;
        const uint16_t *f = m->fired + t * high * W;
        for (int k = 0; k < high; k++) {
            const vec *u = m->u + (t * high + k) * W;
            vec *v = m->v + k * W;
            slopes(s, u, m->h, W);
            const vec *before = t > 0 ? u - high * W : NULL;
            const uint16_t *fired_before = t > 0 ? f + k * W - high * W : NULL;
            if (s->learn && s->gain != 1) current(r, t, b, h + k, c, m->x);
            vec *to = s->repeat ? m->total + k * W : r->gx + place(s, t, b, h + k, c);
            for (int64_t w = 0; w < W; w++) {
                vec onto = g[high == 1 ? w : w / 2];
                if (high == 2) {
                    const int64_t i = w / 2 * 2;
                    const uint16_t four[4] = {f[i], f[i + 1], f[W + i], f[W + i + 1]};
                    uint16_t takes[4];
                    route(four, takes);
                    onto = only(onto, takes[2 * k + (w & 1)]);
                }
                onto -= through * (hard * u[w] + amount) * v[w];
                const vec gu = onto * m->h[w] + (v[w] - only(hard * v[w], f[k * W + w]));
                const vec gx = gain * gu;
                v[w] = decay * gu;
                if (s->learn) {
                    if (before) sums->decay += gu * (before[w] - only(hard * before[w] + amount, fired_before[w]));
                    if (s->gain != 1) sums->decay -= gu * m->x[w];
                }
                if (s->repeat) to[w] += gx;
                else to[w] = gx;
            }
        }
    }
    const vec m0 = splat(r->mean[0] ? r->mean[0][c] : 0), m1 = splat(r->mean[1] ? r->mean[1][c] : 0);
    for (int64_t t = 0; t < (s->repeat ? 1 : s->steps); t++)
        for (int k = 0; k < high; k++) {
            const int64_t at = place(s, t, b, h + k, c);
            if (s->repeat) memcpy(r->gx + at, m->total + k * W, sizeof(vec) * (size_t)W);
            const vec *gx = r->gx + at, *y0 = r->y[0] + at, *y1 = s->terms == 2 ? r->y[1] + at : NULL;
            for (int64_t w = 0; w < W; w++) {
                sums->g += gx[w];
                sums->gy[0] += gx[w] * (y0[w] - m0);
                if (y1) sums->gy[1] += gx[w] * (y1[w] - m1);
            }
        }
}

INLINE int64_t units_of(const regraft_blocked *s) { return s->per_step * (s->height / (s->pool ? 2 : 1)); }

static void run_task(void *context, void *scratch, int64_t task) {
    const run *r = context;
    const regraft_blocked *s = r->s;
    const int high = s->pool ? 2 : 1;
    const int64_t units = units_of(s), tasks = units < TASKS ? units : TASKS, lines = s->height / high, C = s->channels;
    rows m = rows_of(s, scratch);
    double decay = 0;
    for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++)
        for (int64_t c = 0; c < C; c++) {
            if (!r->grad) {
                fire_run(r, &m, unit / lines, unit % lines * high, c, high);
                continue;
            }
            run_sums sums;
            memset(&sums, 0, sizeof sums);
            unfire_run(r, &m, unit / lines, unit % lines * high, c, high, &sums);
            double *to = r->partial + task * 3 * C;
            to[c] += total(sums.g);
            to[C + c] += total(sums.gy[0]);
            if (s->terms == 2) to[2 * C + c] += total(sums.gy[1]);
            if (s->learn) decay += total(sums.decay);
        }
    if (r->grad) r->partial[TASKS * 3 * C + task] = decay;
}

/* Spikes of all steps. What lies in the halo is not touched. */
EXPORT int PUBLIC(blocked_fire)(const regraft_blocked *s, const real *y0, const real *scale0, const real *shift0,
                                const real *y1, const real *scale1, const real *shift1, const uint16_t *added,
                                uint16_t *bits) {
    run r = {.s = s, .y = {(const vec *)y0, (const vec *)y1}, .added = added, .scale = {scale0, scale1},
             .shift = {shift0, shift1}, .bits = bits};
    const int64_t units = units_of(s);
    return units ? regraft_each(units < TASKS ? units : TASKS, s->threads, scratch_of(s), run_task, &r) : 0;
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
    memset(partial, 0, sizeof(double) * (size_t)(TASKS * (each + 1)));
    const int failed = units ? regraft_each(tasks, s->threads, scratch_of(s), run_task, &r) : 0;
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
