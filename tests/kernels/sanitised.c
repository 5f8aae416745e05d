/* Random segments over arrays of exactly the promised sizes: for AddressSanitizer and UndefinedBehaviorSanitizer.
 * Usage: sanitised ROUNDS SEED. Compiled together with one build of segment.c (TYPE, ISA, STORE as there). */
#include <stdio.h>
#include <stdlib.h>

#include "segment.h"

#define GLUE4(a, b, c, d) a##b##_##c##_##d
#define NAME4(a, b, c, d) GLUE4(a, b, c, d)
#define PUBLIC(name) NAME4(regraft_, name, TYPE, ISA)
#if STORE == 1
typedef float store;
typedef float real;
#elif STORE == 2
typedef uint16_t store;
typedef float real;
#else
typedef double store;
typedef double real;
#endif

int64_t PUBLIC(room)(int64_t);
int64_t PUBLIC(partials)(int64_t);
int PUBLIC(fire)(const regraft_segment *, const store *, real *, real *, const store *, real *, real *, store *, real *);
int PUBLIC(unfire)(const regraft_segment *, const store *, real *, real *, real *, const store *, real *, real *, real *,
                   const store *, store *, real *, real *, double *);
int PUBLIC(moments)(int64_t, int64_t, int64_t, int, const store *, const real *, const real *, double, double, real *,
                    real *, real *, real *, real *, real *, real *, double *);
int PUBLIC(renormalise)(int64_t, int64_t, int64_t, int, const store *, const store *, store *, const real *,
                        const real *, const real *, const real *, real *);

static int64_t pick(int64_t low, int64_t high) { return low + rand() % (high - low + 1); }

static store some(void) {
    double x = rand() / (double)RAND_MAX * 6 - 3;
    if (rand() % 997 == 0) x = x / 0.0; /* infinite, or not a number further on */
#if STORE == 2
    union {
        float value;
        uint32_t bits;
    } u = {.value = (float)x};
    return (store)(u.bits >> 16);
#else
    return (store)x;
#endif
}

static store *stores(int64_t n) {
    store *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = some();
    return p;
}

static real *reals(int64_t n) {
    real *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = (real)(rand() / (double)RAND_MAX * 2 - 1);
    return p;
}

int main(int argc, char **argv) {
    srand(argc > 2 ? (unsigned)atoi(argv[2]) : 0);
    for (int round = 0; round < atoi(argv[1]); round++) {
        const int pool = rand() % 3 == 0, planes = !pool && rand() % 3 == 0, empty = rand() % 20 == 0;
        const int64_t n = empty ? 0 : pick(1, 3), h = pool ? 2 * pick(1, 4) : pick(1, 9), w = pool ? 2 * pick(1, 4) : pick(1, 9);
        const int64_t c = pick(1, 140), t = pick(1, rand() % 4 ? 6 : 64), rows = n * h * w;
        regraft_segment s = {.steps = t, .rows = rows, .channels = c, .inner = planes ? h * w : 1};
        if (planes && h * w == 1) s.inner = 1;
        s.height = pool ? h : 0, s.width = pool ? w : 0;
        s.repeat = rand() % 2, s.terms = (int32_t)pick(1, 2), s.surrogate = rand() % 4, s.hard = rand() % 2;
        s.detach = rand() % 2, s.learn = rand() % 2, s.threads = (int32_t)pick(1, 4);
        s.decay = 0.5, s.gain = rand() % 2 ? 0.5 : 1, s.threshold = 1, s.amount = 0.7, s.shape = 1.5;
        const int64_t in = (s.repeat ? 1 : t) * rows * c, out = t * (pool ? rows / 4 : rows) * c;
        store *y[2] = {stores(in), stores(in)}, *spikes = stores(out), *grad = stores(out), *gx = stores(in);
        real *scale[2], *shift[2], *mean[2], *inverse = reals(c), *mv = reals(2 * c);
        real *sums = reals((1 + s.terms) * c + 1), *room = reals(PUBLIC(room)(c)), *k = reals(2 * c);
        double *partial = malloc((size_t)PUBLIC(partials)(c) * sizeof *partial);
        int failed = 0;
        for (int i = 0; i < 2; i++) {
            scale[i] = reals(c), shift[i] = reals(c), mean[i] = reals(c);
            failed |= PUBLIC(moments)(in, c, s.inner, s.threads, y[i], i ? NULL : k, i ? NULL : k + c, 1e-5, 0.1, i ? NULL : mv,
                                      mv + c, mean[i], inverse, scale[i], shift[i], room, partial);
        }
        const int plain = rand() % 2; /* the second term is not normalised */
        failed |= PUBLIC(fire)(&s, y[0], scale[0], shift[0], s.terms > 1 ? y[1] : NULL, plain ? NULL : scale[1],
                               plain ? NULL : shift[1], spikes, room);
        failed |= PUBLIC(unfire)(&s, y[0], scale[0], shift[0], mean[0], s.terms > 1 ? y[1] : NULL,
                                 plain ? NULL : scale[1], plain ? NULL : shift[1], plain ? NULL : mean[1], grad, gx, sums,
                                 room, partial);
        failed |= PUBLIC(renormalise)(in, c, s.inner, s.threads, y[0], gx, gx, mean[0],
                                      scale[0], k, k + c, room);
        if (failed) return 3;
        for (int i = 0; i < 2; i++) free(y[i]), free(scale[i]), free(shift[i]), free(mean[i]);
        free(spikes), free(grad), free(gx), free(inverse), free(mv), free(sums), free(room), free(k), free(partial);
    }
    puts("clean");
    return 0;
}
