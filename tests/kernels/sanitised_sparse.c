/* Random sparse layers and blocked neurons over arrays of exactly the promised sizes: for AddressSanitizer and
 * UndefinedBehaviorSanitizer. Usage: run ROUNDS SEED. Compiled with one build of the sources of sparse layers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sparse.h"

#define GLUE4(a, b, c, d) a##b##_##c##_##d
#define NAME4(a, b, c, d) GLUE4(a, b, c, d)
#define PUBLIC(name) NAME4(regraft_, name, TYPE, ISA)
#if STORE == 1
typedef float real;
#else
typedef double real;
#endif

int PUBLIC(layer_forward)(const regraft_layer *, const uint16_t *, const real *, const regraft_rows *, const real *,
                          const real *, const real *, real *, double *, double *);
int PUBLIC(layer_backward)(const regraft_layer *, const uint16_t *, const real *, const real *, const real *, const real *,
                           const real *, const real *, const real *, const regraft_rows *, const regraft_phase *,
                           const real *, real *, real *, real *);
int PUBLIC(dense_gradient)(const regraft_layer *, const regraft_kernel *, const uint16_t *, const real *, const real *,
                           const real *, const real *, const real *, const real *, real *);
int PUBLIC(blocked_fire)(const regraft_blocked *, const real *, const real *, const real *, const real *, const real *,
                         const real *, const uint16_t *, uint16_t *);
int PUBLIC(blocked_unfire)(const regraft_blocked *, const real *, const real *, const real *, const real *, const real *,
                           const real *, const real *, const real *, const uint16_t *, const real *, real *, real *,
                           double *);
int PUBLIC(block_reals)(const regraft_exchange *, real *, real *);
int PUBLIC(unblock_reals)(const regraft_exchange *, real *, real *);
int PUBLIC(block_spikes)(const regraft_exchange *, real *, uint16_t *);
int PUBLIC(unblock_spikes)(const regraft_exchange *, real *, uint16_t *);

static int64_t pick(int64_t low, int64_t high) { return low + rand() % (high - low + 1); }

static real *reals(int64_t n) { /* 64-byte aligned, and not a byte longer */
    real *p = NULL;
    if (posix_memalign((void **)&p, 128, (size_t)(n ? n : 1) * sizeof *p)) exit(4);
    for (int64_t i = 0; i < n; i++) p[i] = (real)(rand() / (double)RAND_MAX * 4 - 2);
    return p;
}

static int64_t sets(int64_t blocks, int64_t c, int64_t h, int64_t w, int64_t q) {
    const int64_t line = c * (w + 2 * q);
    return blocks * (h + 2 * q) * line + 8 * line + 64;
}

int main(int argc, char **argv) {
    srand(argc > 2 ? (unsigned)atoi(argv[2]) : 0);
    for (int round = 0; round < atoi(argv[1]); round++) {
        const int64_t kernel = pick(1, 3), stride = pick(1, 2), padding = pick(0, kernel - 1), halo = padding + pick(0, 1);
        const int64_t ci = pick(1, 5), co = rand() % 4 ? pick(1, 5) : pick(15, 33), steps = pick(1, 9), images = rand() % 2 ? 1 << pick(0, 3) : pick(1, 35);
        const int64_t low = kernel - 2 * padding > 0 ? kernel - 2 * padding : 1;
        /* Steps of few images share blocks; what is in them then counts as one step. */
        const int share = images == 8 ? 1 : images == 4 ? 2 : images == 2 ? 3 : images == 1 ? 4 : 0, all_lanes = share ? steps * images : images;
        const int64_t far = rand() % 8 ? 20 : 60; /* some images are larger than a window */
        const int64_t h = pick(low, low + far), w = pick(low, low + far), per_step = (all_lanes + 15) / 16;
        const int64_t blocks = share ? per_step : steps * per_step;
        const int64_t oh = (h + 2 * padding - kernel) / stride + 1, ow = (w + 2 * padding - kernel) / stride + 1;
        const int64_t all = co * ci * kernel * kernel;
        int64_t *first = malloc((size_t)(co + 1) * sizeof *first), n = 0;
        int32_t *at = malloc((size_t)all * sizeof *at), *where = malloc((size_t)all * 4 * sizeof *where);
        for (int64_t c = 0; c < co; c++) {
            first[c] = n;
            for (int64_t r = 0; r < kernel; r++)
                for (int64_t i = 0; i < ci; i++)
                    for (int64_t k = 0; k < kernel; k++)
                        if (rand() % 3 == 0) {
                            int32_t *p = where + 4 * n;
                            p[0] = (int32_t)c, p[1] = (int32_t)i, p[2] = (int32_t)r, p[3] = (int32_t)k;
                            at[n++] = (int32_t)((r * ci + i) * (w + 2 * halo) + k);
                        }
        }
        first[co] = n;
        /* By input channel: the smallest margin that holds, as execution/pattern.py finds it. */
        int64_t margin = 0;
        const int64_t bands = pick(1, 3); /* of output channels: c belongs to band c * bands / co */
        for (int pass = 0; pass < 2; pass++) {
            regraft_phase phases[4];
            int32_t *arrays[8];
            int64_t *starts[4];
            for (int64_t p = 0; p < stride * stride; p++) {
                const int64_t row = p / stride, column = p % stride;
                starts[p] = malloc((size_t)(bands * ci + 1) * sizeof **starts);
                arrays[2 * p] = malloc((size_t)(n ? n : 1) * 4), arrays[2 * p + 1] = malloc((size_t)(n ? n : 1) * 4);
                int64_t m = 0;
                for (int64_t j = 0; j < bands * ci; j++) {
                    const int64_t i = j % ci;
                    starts[p][j] = m;
                    for (int64_t k = 0; k < n; k++) {
                        const int32_t *c = where + 4 * k;
                        int64_t down = row + padding - c[2], right = column + padding - c[3];
                        if (c[1] != i || c[0] * bands / co != j / ci || (down % stride + stride) % stride || (right % stride + stride) % stride) continue;
                        down = (down - (down < 0 ? stride - 1 : 0)) / stride, right = (right - (right < 0 ? stride - 1 : 0)) / stride;
                        const int64_t rows = (h - row + stride - 1) / stride, columns = (w - column + stride - 1) / stride;
                        if (pass == 0) {
                            if (-down > margin) margin = -down;
                            if (-right > margin) margin = -right;
                            if (down + rows - oh > margin) margin = down + rows - oh;
                            if (right + columns - ow > margin) margin = right + columns - ow;
                        }
                        arrays[2 * p][m] = (int32_t)(((down + margin) * co + c[0]) * (ow + 2 * margin) + right + margin);
                        arrays[2 * p + 1][m++] = (int32_t)k;
                    }
                }
                starts[p][bands * ci] = m;
                phases[p] = (regraft_phase){row, column, bands, starts[p], arrays[2 * p], arrays[2 * p + 1]};
            }
            if (pass == 1) {
                regraft_layer s = {blocks, per_step, all_lanes - 16 * (per_step - 1), ci, h, w, halo, co, oh, ow, stride, padding, n,
                                   margin, 2};
                const int64_t size = sets(blocks, ci, h, w, halo), pixels = blocks * h * ci * w * 16;
                uint16_t *bits = calloc((size_t)size, sizeof *bits);
                real *plain = reals(steps * images * ci * h * w), *x = reals(pixels), *value = reals(n), *bias = reals(co);
                real *y = reals(blocks * oh * co * ow * 16), *g = reals(blocks * oh * co * ow * 16), *gx = reals(pixels);
                real *k[4] = {reals(co), reals(co), reals(co), reals(co)}, *onto = reals(n), *partial = reals(8 * n);
                double *sums = malloc((size_t)(2 * co) * 8), *room = malloc((size_t)(16 * co) * 8);
                const int last = rand() % 2, real_input = rand() % 2, normal = rand() % 2;
                regraft_exchange e = {blocks, per_step, all_lanes, ci, h, w, halo, {ci * h * w, last ? 1 : h * w, last ? w * ci : w, last ? ci : 1}, 2};
                int failed = PUBLIC(block_spikes)(&e, plain, bits) | PUBLIC(block_reals)(&e, plain, x);
                regraft_rows rows = {first, at};
                failed |= PUBLIC(layer_forward)(&s, real_input ? NULL : bits, real_input ? x : NULL, &rows, value,
                                                normal ? NULL : bias, k[0], y, normal ? sums : NULL, normal ? room : NULL);
                failed |= PUBLIC(layer_backward)(&s, real_input ? NULL : bits, real_input ? x : NULL, y, g, normal ? k[0] : NULL,
                                                 k[1], k[2], k[3], &rows, phases, value, onto, rand() % 4 ? gx : NULL, partial);
                const regraft_kernel area = {kernel, kernel, 1, 1};
                real *every = reals(all);
                failed |= PUBLIC(dense_gradient)(&s, &area, bits, y, g, normal ? k[0] : NULL, k[1], k[2], k[3], every);
                free(every);
                failed |= PUBLIC(unblock_reals)(&e, plain, gx) | PUBLIC(unblock_spikes)(&e, plain, bits);

                const int pool = oh % 2 == 0 && ow % 2 == 0 && rand() % 2;
                regraft_blocked b = {.steps = steps, .per_step = share ? 1 : per_step, .lanes = share ? images : s.lanes, .share = share, .channels = co, .height = oh,
                                     .width = ow, .halo = halo, .pool = pool, .repeat = rand() % 2, .terms = (int32_t)pick(1, 3)};
                b.surrogate = rand() % 4, b.hard = rand() % 2, b.detach = rand() % 2, b.learn = rand() % 2, b.threads = 2;
                b.decay = 0.5, b.gain = rand() % 2 ? 0.5 : 1, b.threshold = 1, b.amount = 0.7, b.shape = 1.5;
                const int64_t fh = pool ? oh / 2 : oh, fw = pool ? ow / 2 : ow;
                uint16_t *out = calloc((size_t)sets(blocks, co, fh, fw, halo), sizeof *out);
                uint16_t *added = calloc((size_t)sets(blocks, co, oh, ow, halo), sizeof *added);
                real *grad = reals(blocks * fh * co * fw * 16), *total = reals(3 * co + 1);
                double *parts = malloc((size_t)(64 * (3 * co + 1)) * 8);
                failed |= PUBLIC(blocked_fire)(&b, y, k[0], k[1], b.terms == 2 ? y : NULL, k[2], k[3], b.terms == 3 ? added : NULL, out);
                failed |= PUBLIC(blocked_unfire)(&b, y, k[0], k[1], k[2], b.terms == 2 ? y : NULL, k[2], k[3], k[0],
                                                 b.terms == 3 ? added : NULL, grad, g, total, parts);
                if (failed) return 3;
                free(bits), free(plain), free(x), free(value), free(bias), free(y), free(g), free(gx), free(onto), free(partial);
                for (int i = 0; i < 4; i++) free(k[i]);
                free(sums), free(room), free(out), free(added), free(grad), free(total), free(parts);
            }
            for (int64_t p = 0; p < stride * stride; p++) free(starts[p]), free(arrays[2 * p]), free(arrays[2 * p + 1]);
        }
        free(first), free(at), free(where);
    }
    puts("clean");
    return 0;
}
