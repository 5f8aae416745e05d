/* The segment's kernels, for one type of storage (STORE) and one instruction set (ISA). See segment.h.
 *
 * Written as plain loops over tiles of at most TILE neighbours, which compilers turn into vector code: one text
 * serves every processor. Multiplications and additions of the membrane are not contracted (the build says so),
 * so that the backward pass, which computes the membrane again, finds the very spikes of the forward pass.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "names.h"
#include "segment.h"

/* Nothing that a loop over a tile writes is read by another of its rounds. */
#define LANES _Pragma("GCC ivdep")

#if STORE == F64
typedef double real;
typedef double store;
#define FABS fabs
#else
typedef float real;
#define FABS fabsf
#endif
#if STORE == F32
typedef float store;
#endif
#if STORE == BF16
typedef uint16_t store;
INLINE real load(store s) {
    union {
        uint32_t bits;
        float value;
    } u = {.bits = (uint32_t)s << 16};
    return u.value;
}
INLINE store keep(real x) { /* to the nearest, ties to even; what is not a number stays so */
    union {
        float value;
        uint32_t bits;
    } u = {.value = x};
    uint32_t rounded = (u.bits + 0x7fffu + ((u.bits >> 16) & 1u)) >> 16;
    return (store)(x != x ? 0x7fc0u : rounded);
}
#define ONE ((store)0x3f80)
#else
INLINE real load(store s) { return s; }
INLINE store keep(real x) { return x; }
#define ONE ((store)1)
#endif

enum { TILE = 64, WINDOW = 4, FLUSH = 64, TASKS = 64 };

/* exp(x) for -87 <= x <= 0, relative error below 2e-7 (Cephes' polynomial; libm's would not become vector code). */
INLINE real exp_negative(real x) {
#if STORE == F64
    return exp(x);
#else
    float n = x * 1.44269504f - 0.5f;
    int32_t whole = (int32_t)n; /* towards 0, that is up: the nearest integer of x log2(e) */
    float r = x - (float)whole * 0.693359375f + (float)whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = (whole + 127) << 23};
    return p * power.value;
#endif
}

INLINE real slope(const int surrogate, real z, real a) { /* `a` prepared by `prepared` */
    const real arc = (real)1.57079632679489662 * a * z;
    if (surrogate == TRIANGLE) {
        real h = 1 - FABS(z) * a;
        return (h > 0 ? h : 0) * a;
    }
    if (surrogate == RECTANGLE) return FABS(z) * a < (real)0.5 ? a : 0;
    return a * (real)0.5 / (1 + arc * arc); /* ATAN */
}

INLINE real prepared(const regraft_segment *s) { /* one over the width, or the sharpness */
    return (real)(s->surrogate == TRIANGLE || s->surrogate == RECTANGLE ? 1 / s->shape : s->shape);
}

/* The neuron's constants. A reset takes `hard * u + amount` from the membrane: branches would cost more. */
typedef struct {
    real decay, gain, threshold, amount, hard, through, shape;
} constants;

INLINE constants constants_of(const regraft_segment *s) {
    return (constants){(real)s->decay,
                       (real)s->gain,
                       (real)s->threshold,
                       s->hard ? 0 : (real)s->amount,
                       s->hard ? 1 : 0,
                       s->detach ? 0 : 1,
                       prepared(s)};
}

/* Where a tile lies: the pixels of its window, and the coefficients of its channels. */
typedef struct {
    const store *y[2];     /* the first step, the window's first pixel */
    const real *scale[2], *shift[2], *mean[2];
    int64_t offset[WINDOW]; /* of the window's pixels from the first */
    int64_t stride;         /* from step to step of y; 0 where one is repeated */
    int64_t out;            /* from step to step of the spikes */
    int64_t ahead;          /* from here to the next tile of y */
    int length;
} tile;

INLINE real current(const int terms, const tile *a, const store *y0, const store *y1, int i) {
    real x = load(y0[i]) * a->scale[0][i] + a->shift[0][i];
    if (terms == 2) x += load(y1[i]) * a->scale[1][i] + a->shift[1][i];
    return x;
}

/* A tile that comes next: processors do not see through as many streams as there are steps. */
INLINE void fetch(const store *p) {
    for (int i = 0; i < TILE; i += 64 / (int)sizeof(store)) __builtin_prefetch(p + i);
}

INLINE void fire_tile(const int window, const int terms, const int n, const regraft_segment *s, const constants c,
                      const tile *a, store *restrict spikes) {
    real v[WINDOW][TILE];
    memset(v, 0, sizeof(real) * TILE * (size_t)window);
    for (int64_t t = 0; t < s->steps; t++) {
        store *restrict out = spikes + t * a->out;
        for (int k = 0; k < window; k++) {
            const store *y0 = a->y[0] + t * a->stride + a->offset[k];
            const store *y1 = terms == 2 ? a->y[1] + t * a->stride + a->offset[k] : NULL;
            real *restrict vk = v[k];
            if (!s->repeat) fetch(y0 + a->ahead);
            LANES
            for (int i = 0; i < n; i++) {
                real u = c.decay * vk[i] + c.gain * current(terms, a, y0, y1, i);
                real fired = u >= c.threshold ? 1 : 0;
                vk[i] = u - fired * (c.hard * u + c.amount);
                store one = u >= c.threshold ? ONE : 0;
                out[i] = k == 0 ? one : (store)(out[i] > one ? out[i] : one);
            }
        }
    }
}

/* The surrogate's slope at each membrane, in loops of their own: one for each surrogate is enough, not one for each
 * surrogate and each kind of tile. */
INLINE void slopes(int surrogate, const constants *c, const real *restrict u, const int n, real *restrict to) {
    const real a = c->shape, threshold = c->threshold;
    switch (surrogate) {
    case TRIANGLE:
        LANES
        for (int i = 0; i < n; i++) to[i] = slope(TRIANGLE, u[i] - threshold, a);
        break;
    case RECTANGLE:
        LANES
        for (int i = 0; i < n; i++) to[i] = slope(RECTANGLE, u[i] - threshold, a);
        break;
    case ATAN:
        LANES
        for (int i = 0; i < n; i++) to[i] = slope(ATAN, u[i] - threshold, a);
        break;
    default:
        LANES
        for (int i = 0; i < n; i++) {
            real x = -FABS(u[i] - threshold) * a;
            to[i] = x > -87 ? x : -87;
        }
        LANES
        for (int i = 0; i < n; i++) {
            real e = exp_negative(to[i]);
            to[i] = a * e / ((1 + e) * (1 + e));
        }
    }
}

/* Sums over rows, of the gradient and of the gradient times each centred input. */
typedef struct {
    real *g, *gy[2];
    real decay[TILE];
} sums;

INLINE void sum_tile(const int terms, const int n, const tile *a, const real *g, const store *y0, const store *y1, sums *into) {
    real *restrict sg = into->g, *restrict s0 = into->gy[0], *restrict s1 = into->gy[1];
    LANES
    for (int i = 0; i < n; i++) {
        sg[i] += g[i];
        s0[i] += g[i] * (load(y0[i]) - a->mean[0][i]);
        if (terms == 2) s1[i] += g[i] * (load(y1[i]) - a->mean[1][i]);
    }
}

INLINE void unfire_tile(const int window, const int terms, const int n, const regraft_segment *s, const constants c,
                        const tile *a, const store *grad, store *restrict gx, real *restrict u, sums *into) {
    real v[WINDOW][TILE], taken[TILE];
    memset(v, 0, sizeof(real) * TILE * (size_t)window);
    for (int64_t t = 0; t < s->steps; t++) /* the membrane again */
        for (int k = 0; k < window; k++) {
            const store *y0 = a->y[0] + t * a->stride + a->offset[k];
            const store *y1 = terms == 2 ? a->y[1] + t * a->stride + a->offset[k] : NULL;
            real *restrict vk = v[k], *restrict ut = u + (t * window + k) * TILE;
            if (!s->repeat) fetch(y0 + a->ahead);
            LANES
            for (int i = 0; i < n; i++) {
                ut[i] = c.decay * vk[i] + c.gain * current(terms, a, y0, y1, i);
                real fired = ut[i] >= c.threshold ? 1 : 0;
                vk[i] = ut[i] - fired * (c.hard * ut[i] + c.amount);
            }
        }
    real total[WINDOW][TILE]; /* over steps, where one input is repeated */
    memset(v, 0, sizeof(real) * TILE * (size_t)window); /* from here on: the gradient of the membrane */
    if (s->repeat) memset(total, 0, sizeof(real) * TILE * (size_t)window);
    for (int64_t t = s->steps - 1; t >= 0; t--) {
        const store *g = grad + t * a->out;
        const real *ut = u + t * window * TILE;
        if (window > 1) { /* 1 where the first pixel takes the gradient: it fired, or none did */
            LANES
            for (int i = 0; i < n; i++) {
                real others = ut[TILE + i] > ut[2 * TILE + i] ? ut[TILE + i] : ut[2 * TILE + i];
                others = others > ut[3 * TILE + i] ? others : ut[3 * TILE + i];
                taken[i] = (ut[i] >= c.threshold) | !(others >= c.threshold) ? 1 : 0;
            }
        }
        for (int k = 0; k < window; k++) {
            const real *restrict uk = ut + k * TILE;
            real *restrict gv = v[k], gxs[TILE], gus[TILE], h[TILE];
            slopes(s->surrogate, &c, uk, n, h);
            LANES
            for (int i = 0; i < n; i++) {
                real fired = uk[i] >= c.threshold ? 1 : 0;
                real onto = load(g[i]);
                if (window > 1) {
                    real mine = k == 0 ? taken[i] : fired * (1 - taken[i]);
                    if (k > 0) taken[i] += mine;
                    onto *= mine;
                }
                onto -= c.through * (c.hard * uk[i] + c.amount) * gv[i];
                real gu = onto * h[i] + gv[i] * (1 - c.hard * fired);
                gv[i] = c.decay * gu;
                gxs[i] = c.gain * gu;
                gus[i] = gu;
            }
            const store *y0 = a->y[0] + t * a->stride + a->offset[k];
            const store *y1 = terms == 2 ? a->y[1] + t * a->stride + a->offset[k] : NULL;
            if (s->learn) {
                const real *before = t > 0 ? uk - window * TILE : NULL;
                if (before) {
                    LANES
                    for (int i = 0; i < n; i++) {
                        real fired = before[i] >= c.threshold ? 1 : 0;
                        into->decay[i] += gus[i] * (before[i] - fired * (c.hard * before[i] + c.amount));
                    }
                }
                if (c.gain != 1) { /* it is 1 - decay */
                    LANES
                    for (int i = 0; i < n; i++) into->decay[i] -= gus[i] * current(terms, a, y0, y1, i);
                }
            }
            if (s->repeat) {
                LANES
                for (int i = 0; i < n; i++) total[k][i] += gxs[i];
            } else {
                store *restrict to = gx + t * a->stride + a->offset[k];
                LANES
                for (int i = 0; i < n; i++) to[i] = keep(gxs[i]);
                sum_tile(terms, n, a, gxs, y0, y1, into);
            }
        }
    }
    if (s->repeat)
        for (int k = 0; k < window; k++) {
            const store *y0 = a->y[0] + a->offset[k], *y1 = terms == 2 ? a->y[1] + a->offset[k] : NULL;
            store *restrict to = gx + a->offset[k];
            LANES
            for (int i = 0; i < n; i++) to[i] = keep(total[k][i]);
            sum_tile(terms, n, a, total[k], y0, y1, into);
        }
}

/* ---- how an array is cut into tiles ---------------------------------------------------------------------------- */

typedef struct {
    const regraft_segment *s;
    const store *y[2];
    const store *grad; /* NULL: forward */
    store *to;         /* spikes, or gx */
    real *scale[2], *shift[2], *mean[2]; /* of C channels and once more the first, up to a tile beyond */
    double *partial;                     /* [tasks, 1 + terms, C] and [tasks] for the decay */
    int64_t units, tasks;
} whole;

INLINE int64_t wide(const regraft_segment *s) { return s->channels + TILE; }

/* Full tiles have a length that the compiler knows. */
#define FULL(body, window, terms, ...) \
    do {                               \
        if (a->length == TILE) body(window, terms, TILE, __VA_ARGS__); \
        else body(window, terms, a->length, __VA_ARGS__); \
    } while (0)

/* A tile at element e of a step: a run of neighbours that may cross pixels, as coefficients repeat with C. */
static __attribute__((noinline)) void run_tile(const whole *w, tile *a, int64_t spikes, real *u, sums *acc, real *const base[3], int64_t c0) {
    const regraft_segment *s = w->s;
    const constants c = constants_of(s);
    const int pooled = s->height > 0, two = s->terms == 2;
    for (int i = 0; i < s->terms; i++) {
        a->scale[i] = w->scale[i] + c0;
        a->shift[i] = w->shift[i] + c0;
        a->mean[i] = w->mean[i] + c0;
    }
    acc->g = base[0] + c0;
    acc->gy[0] = base[1] + c0;
    acc->gy[1] = base[2] + c0;
    if (!w->grad) {
        store *to = w->to + spikes;
        if (pooled && two) FULL(fire_tile, WINDOW, 2, s, c, a, to);
        else if (pooled) FULL(fire_tile, WINDOW, 1, s, c, a, to);
        else if (two) FULL(fire_tile, 1, 2, s, c, a, to);
        else FULL(fire_tile, 1, 1, s, c, a, to);
        return;
    }
    const store *g = w->grad + spikes;
    store *gx = w->to + (a->y[0] - w->y[0]);
    if (pooled && two) FULL(unfire_tile, WINDOW, 2, s, c, a, g, gx, u, acc);
    else if (pooled) FULL(unfire_tile, WINDOW, 1, s, c, a, g, gx, u, acc);
    else if (two) FULL(unfire_tile, 1, 2, s, c, a, g, gx, u, acc);
    else FULL(unfire_tile, 1, 1, s, c, a, g, gx, u, acc);
}

/* Units of work: tiles of a step (channels innermost), rows of windows (pooled), or planes (`inner` > 1). */
static int64_t units_of(const regraft_segment *s) {
    int64_t elements = s->rows * s->channels;
    if (elements == 0) return 0;
    if (s->height > 0) return s->rows / (2 * s->width);
    if (s->inner > 1) return elements / s->inner;
    return (elements + TILE - 1) / TILE;
}

/* The channel of the next tile of a run. */
INLINE int64_t next_channel(int64_t c, int64_t channels) {
    c += TILE;
    return c < channels ? c : channels < TILE ? c % channels : c - channels;
}

/* Adds the sums of a run of tiles, C + TILE of them, to those of their channels. */
static void fold(double *to, const real *from, int64_t channels) {
    for (int64_t i = 0, c = 0; i < channels + TILE; i++) {
        to[c] += (double)from[i];
        c = c + 1 == channels ? 0 : c + 1;
    }
}

static void flush(const whole *w, int64_t task, real *const base[3], int64_t width, int64_t plane) {
    const regraft_segment *s = w->s;
    double *to = w->partial + task * (1 + s->terms) * s->channels;
    for (int j = 0; j < 1 + s->terms; j++, to += s->channels) {
        if (plane >= 0) {
            double sum = 0;
            for (int i = 0; i < TILE; i++) sum += (double)base[j][i];
            to[plane] += sum;
        } else {
            fold(to, base[j], s->channels);
        }
        memset(base[j], 0, sizeof(real) * (size_t)width);
    }
}

static size_t scratch_of(const regraft_segment *s, int backward) {
    size_t membrane = backward ? (size_t)s->steps * (s->height > 0 ? WINDOW : 1) * TILE : 0;
    size_t coefficients = s->inner > 1 ? 6 * TILE : 0;
    return sizeof(real) * (membrane + coefficients + 3 * (size_t)wide(s));
}

static void segment_task(void *context, void *scratch, int64_t task) {
    whole *w = context;
    const regraft_segment *s = w->s;
    const int64_t first = w->units * task / w->tasks, last = w->units * (task + 1) / w->tasks;
    const int64_t step = s->rows * s->channels, width = s->inner > 1 ? TILE : wide(s);
    const int64_t stride = s->repeat ? 0 : step;
    real *base[3];
    for (int j = 0; j < 3; j++) base[j] = (real *)scratch + j * width;
    real *spread = base[2] + width, *u = spread + (s->inner > 1 ? 6 * TILE : 0);
    memset(base[0], 0, sizeof(real) * 3 * (size_t)width);
    sums acc = {.decay = {0}};
    double decay = 0;
    tile a = {.stride = stride, .out = step, .ahead = TILE};
    whole local = *w;
    if (s->inner > 1) /* a plane has one channel: its coefficients, spread over a tile */
        for (int i = 0; i < 2; i++) {
            local.scale[i] = spread + (3 * i) * TILE;
            local.shift[i] = spread + (3 * i + 1) * TILE;
            local.mean[i] = spread + (3 * i + 2) * TILE;
        }
    int64_t c0 = first * TILE % s->channels;
    int64_t since = 0; /* rows summed in single precision since the last flush */
    for (int64_t unit = first; unit < last; unit++) {
        if (s->height > 0) {
            const int64_t half = s->width / 2, line = s->width * s->channels;
            a.offset[1] = s->channels;
            a.offset[2] = line;
            a.offset[3] = line + s->channels;
            a.out = step / 4;
            a.ahead = s->channels <= TILE ? 2 * s->channels : TILE;
            for (int64_t o = 0; o < half; o++)
                for (int64_t c0 = 0; c0 < s->channels; c0 += TILE) {
                    a.length = (int)(s->channels - c0 < TILE ? s->channels - c0 : TILE);
                    for (int i = 0; i < s->terms; i++) a.y[i] = w->y[i] + unit * 2 * line + o * 2 * s->channels + c0;
                    run_tile(&local, &a, (unit * half + o) * s->channels + c0, u, &acc, base, c0);
                }
            since += 2 * s->width;
        } else if (s->inner > 1) {
            const int64_t channel = unit % s->channels;
            for (int i = 0; i < s->terms; i++)
                for (int j = 0; j < TILE; j++) {
                    local.scale[i][j] = w->scale[i][channel];
                    local.shift[i][j] = w->shift[i][channel];
                    local.mean[i][j] = w->mean[i][channel];
                }
            for (int64_t e = 0; e < s->inner; e += TILE) {
                a.length = (int)(s->inner - e < TILE ? s->inner - e : TILE);
                for (int i = 0; i < s->terms; i++) a.y[i] = w->y[i] + unit * s->inner + e;
                run_tile(&local, &a, unit * s->inner + e, u, &acc, base, 0);
            }
            if (w->grad) flush(w, task, base, TILE, channel);
        } else {
            const int64_t e = unit * TILE;
            a.length = (int)(step - e < TILE ? step - e : TILE);
            for (int i = 0; i < s->terms; i++) a.y[i] = w->y[i] + e;
            run_tile(&local, &a, e, u, &acc, base, c0);
            c0 = next_channel(c0, s->channels);
            since += 1;
        }
        if (w->grad) {
            for (int i = 0; i < TILE && s->learn; i++) decay += (double)acc.decay[i], acc.decay[i] = 0;
            int64_t rows = s->height > 0 ? since : since * TILE / s->channels;
            if (s->inner == 1 && rows * s->steps >= FLUSH * 4) {
                flush(w, task, base, width, -1);
                since = 0;
            }
        }
    }
    if (w->grad) {
        if (s->inner == 1) flush(w, task, base, width, -1);
        w->partial[w->tasks * (1 + s->terms) * s->channels + task] = decay;
    }
}

static int run(whole *w, real *const coefficients[6], void *room) {
    const regraft_segment *s = w->s;
    real *spare = room;
    for (int i = 0; i < s->terms; i++) {
        real **to[3] = {&w->scale[i], &w->shift[i], &w->mean[i]};
        for (int j = 0; j < 3; j++, spare += wide(s)) {
            *to[j] = spare;
            for (int64_t c = 0; c < wide(s); c++)
                spare[c] = coefficients[3 * i + j] ? coefficients[3 * i + j][c % s->channels] : (j == 0);
        }
    }
    w->units = units_of(s);
    w->tasks = w->units < TASKS ? w->units : TASKS;
    return regraft_each(w->tasks, s->threads, scratch_of(s, w->grad != NULL), segment_task, w);
}

/* ---- public ---------------------------------------------------------------------------------------------------- */

/* How many reals `room` and doubles `partial` must hold, for C channels. */
EXPORT int64_t PUBLIC(room)(int64_t channels) { return 6 * (channels + TILE); }
EXPORT int64_t PUBLIC(partials)(int64_t channels) { return TASKS * (3 * channels + 1); }

/* Spikes `[T, rows (a quarter of them where pooled), C]`; scale and shift may be NULL: 1 and 0. */
EXPORT int PUBLIC(fire)(const regraft_segment *s, const store *y0, real *scale0, real *shift0, const store *y1, real *scale1,
                 real *shift1, store *spikes, real *room) {
    if (units_of(s) == 0) return 0;
    whole w = {.s = s, .y = {y0, y1}, .to = spikes};
    real *coefficients[6] = {scale0, shift0, NULL, scale1, shift1, NULL};
    return run(&w, coefficients, room);
}

/* gx, shaped as y, and `out`: [1 + terms, C] sums, and the gradient of the decay. */
EXPORT int PUBLIC(unfire)(const regraft_segment *s, const store *y0, real *scale0, real *shift0, real *mean0, const store *y1,
                   real *scale1, real *shift1, real *mean1, const store *grad, store *gx, real *out, real *room,
                   double *partial) {
    const int64_t each = (1 + s->terms) * s->channels;
    memset(out, 0, sizeof(real) * (size_t)(each + 1));
    if (units_of(s) == 0) return 0;
    whole w = {.s = s, .y = {y0, y1}, .grad = grad, .to = gx, .partial = partial};
    memset(partial, 0, sizeof(double) * (size_t)PUBLIC(partials)(s->channels));
    real *coefficients[6] = {scale0, shift0, mean0, scale1, shift1, mean1};
    int failed = run(&w, coefficients, room);
    double decay = 0;
    for (int64_t j = 0; j < each; j++) {
        double sum = 0;
        for (int64_t task = 0; task < w.tasks; task++) sum += partial[task * each + j];
        out[j] = (real)sum;
    }
    for (int64_t task = 0; task < w.tasks; task++) decay += partial[w.tasks * each + task];
    out[each] = (real)decay;
    return failed;
}

/* ---- batch normalisation --------------------------------------------------------------------------------------- */

typedef struct {
    const store *y, *g;
    store *to;
    const real *coefficient[4]; /* of C + TILE channels */
    double *partial;
    int64_t elements, channels, inner, units, tasks;
} flat;

static void cut(flat *f) {
    f->units = f->inner > 1 ? f->elements / f->inner : (f->elements + TILE - 1) / TILE;
    f->tasks = f->units < TASKS ? f->units : TASKS;
}

static void moments_task(void *context, void *scratch, int64_t task) {
    const flat *f = context;
    const int64_t first = f->units * task / f->tasks, last = f->units * (task + 1) / f->tasks;
    const int64_t width = f->channels + TILE, C = f->channels;
    double *sum = f->partial + task * 2 * C, *square = sum + C;
    real *restrict s = scratch, *restrict q = s + width;
    memset(scratch, 0, sizeof(real) * 2 * (size_t)width);
    if (f->inner > 1) {
        for (int64_t unit = first; unit < last; unit++) {
            const store *y = f->y + unit * f->inner;
            const int64_t c = unit % C;
            const real shift = f->coefficient[0][c];
            for (int64_t e = 0; e < f->inner; e += TILE) {
                const int n = (int)(f->inner - e < TILE ? f->inner - e : TILE);
                for (int i = 0; i < n; i++) {
                    real d = load(y[e + i]) - shift;
                    s[i] += d;
                    q[i] += d * d;
                }
            }
            for (int i = 0; i < TILE; i++) sum[c] += (double)s[i], square[c] += (double)q[i];
            memset(scratch, 0, sizeof(real) * 2 * (size_t)width);
        }
        return;
    }
    int64_t c0 = first * TILE % C, since = 0;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t e = unit * TILE;
        const int n = (int)(f->elements - e < TILE ? f->elements - e : TILE);
        const store *y = f->y + e;
        const real *shift = f->coefficient[0] + c0;
        for (int i = 0; i < n; i++) {
            real d = load(y[i]) - shift[i];
            s[c0 + i] += d;
            q[c0 + i] += d * d;
        }
        c0 = next_channel(c0, C);
        since += TILE;
        if (since >= 4 * FLUSH * C || unit + 1 == last) {
            fold(sum, s, C);
            fold(square, q, C);
            memset(scratch, 0, sizeof(real) * 2 * (size_t)width);
            since = 0;
        }
    }
}

static const real *extended(real **room, const real *from, int64_t channels) {
    real *to = *room;
    for (int64_t i = 0, c = 0; i < channels + TILE; i++) {
        to[i] = from[c];
        c = c + 1 == channels ? 0 : c + 1;
    }
    *room += channels + TILE;
    return to;
}

/* Statistics of y over all but the channels (biased variance), and from them the scale and shift that normalise it.
 * Running statistics are moved by `momentum` (unbiased variance); they, gamma and beta may be NULL. */
EXPORT int PUBLIC(moments)(int64_t elements, int64_t channels, int64_t inner, int threads, const store *y, const real *gamma,
                    const real *beta, double eps, double momentum, real *running_mean, real *running_var, real *mean,
                    real *inverse, real *scale, real *shift, real *room, double *partial) {
    if (elements == 0) return 0;
    real *first = room + channels + TILE;
    for (int64_t c = 0; c < channels; c++) { /* a shift near the mean, not an outlier: squares of small numbers */
        const int64_t row = channels * inner, rows = elements / row;
        const real p = load(y[c * inner]), q = load(y[rows / 2 * row + c * inner]);
        const real r = load(y[(rows - 1) * row + c * inner + inner - 1]);
        first[c] = p > q ? (q > r ? q : p > r ? r : p) : (p > r ? p : q > r ? r : q); /* the median */
    }
    flat f = {.y = y, .partial = partial, .elements = elements, .channels = channels, .inner = inner};
    real *spare = room;
    f.coefficient[0] = extended(&spare, first, channels);
    cut(&f);
    memset(partial, 0, sizeof(double) * (size_t)(TASKS * 2 * channels));
    if (regraft_each(f.tasks, threads, sizeof(real) * 2 * (size_t)(channels + TILE), moments_task, &f)) return 1;
    const double rows = (double)(elements / channels);
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (int64_t task = 0; task < f.tasks; task++) {
            sum += partial[task * 2 * channels + c];
            square += partial[(task * 2 + 1) * channels + c];
        }
        const double m = sum / rows, centre = (double)first[c] + m;
        double var = square / rows - m * m;
        if (var < 0) var = 0;
        const double inv = 1 / sqrt(var + eps), a = (gamma ? (double)gamma[c] : 1) * inv;
        mean[c] = (real)centre;
        inverse[c] = (real)inv;
        scale[c] = (real)a;
        shift[c] = (real)((beta ? (double)beta[c] : 0) - centre * a);
        if (running_mean) {
            const double unbiased = rows > 1 ? var * rows / (rows - 1) : var;
            running_mean[c] = (real)((1 - momentum) * (double)running_mean[c] + momentum * centre);
            running_var[c] = (real)((1 - momentum) * (double)running_var[c] + momentum * unbiased);
        }
    }
    return 0;
}

static void renormalise_task(void *context, void *scratch, int64_t task) {
    (void)scratch;
    const flat *f = context;
    const int64_t first = f->units * task / f->tasks, last = f->units * (task + 1) / f->tasks, C = f->channels;
    const real *const *k = f->coefficient;
    if (f->inner > 1) {
        for (int64_t unit = first; unit < last; unit++) {
            const store *y = f->y + unit * f->inner;
            const store *g = f->g + unit * f->inner;
            store *to = f->to + unit * f->inner;
            const int64_t c = unit % C;
            const real mean = k[0][c], scale = k[1][c], k0 = k[2][c], k1 = k[3][c];
            for (int64_t i = 0; i < f->inner; i++) to[i] = keep(scale * (load(g[i]) - k0 - k1 * (load(y[i]) - mean)));
        }
        return;
    }
    int64_t c0 = first * TILE % C;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t e = unit * TILE;
        const int n = (int)(f->elements - e < TILE ? f->elements - e : TILE);
        const store *y = f->y + e, *g = f->g + e;
        store *to = f->to + e;
        const real *mean = k[0] + c0, *scale = k[1] + c0, *k0 = k[2] + c0, *k1 = k[3] + c0;
        for (int i = 0; i < n; i++) to[i] = keep(scale[i] * (load(g[i]) - k0[i] - k1[i] * (load(y[i]) - mean[i])));
        c0 = next_channel(c0, C);
    }
}

/* From the gradient of the normalised y to that of y: scale * (g - k0 - k1 * (y - mean)); `to` may be `g`. */
EXPORT int PUBLIC(renormalise)(int64_t elements, int64_t channels, int64_t inner, int threads, const store *y, const store *g,
                        store *to, const real *mean, const real *scale, const real *k0, const real *k1, real *room) {
    if (elements == 0) return 0;
    flat f = {.y = y, .g = g, .to = to, .elements = elements, .channels = channels, .inner = inner};
    const real *from[4] = {mean, scale, k0, k1};
    for (int i = 0; i < 4; i++) f.coefficient[i] = extended(&room, from[i], channels);
    cut(&f);
    return regraft_each(f.tasks, threads, 0, renormalise_task, &f);
}
