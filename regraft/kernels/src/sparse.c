/* Products over existing connections, and neurons between them, on blocks of 16 images. See sparse.h.
 *
 * Spikes enter a product as sets of images: a connection adds its weight where the set says, without a multiplication
 * and without reading a number an image. As many pixels as registers hold are summed at a time, over all connections
 * of a channel.
 */
#include <stddef.h>
#include <string.h>

#include "error.h"
#include "sparse.h"

enum { TASKS = 8, CHUNK = 256 };

INLINE uint16_t present(int64_t block, int64_t per_step, int64_t lanes) {
    return (uint16_t)(block % per_step == per_step - 1 && lanes < LANES ? (1u << lanes) - 1 : 0xffffu);
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

typedef struct {
    const regraft_layer *s;
    const uint16_t *bits;
    const vec *x; /* in the place of bits: reals, without a halo */
    regraft_rows rows;
    const real *value, *bias, *shift;
    vec *y;
    double *partial; /* [TASKS, 2, C] sums of y - shift and of its square */
} forward;

/* One channel at `high` x `wide` pixels from (row, column). `from` is under the kernel's first pixel there. */
INLINE void sum_spikes(const int high, const int wide, const int64_t stride, const uint16_t *from, int64_t line,
                       const int32_t *at, const real *value, int64_t count, part *restrict acc) {
    for (int64_t k = 0; k < count; k++) {
        const part w = splat(value[k]);
        const uint16_t *set = from + at[k];
        for (int r = 0; r < high; r++, set += line) {
            COMPUTED(set);
            for (int i = 0; i < wide * PARTS; i++) {
                part *to = acc + r * wide * PARTS + i;
                *to = add_where_at(*to, set + i / PARTS * stride, i % PARTS, w);
            }
        }
    }
}

INLINE void sum_reals(const int high, const int wide, const int64_t stride, const vec *from, int64_t line,
                      const int32_t *at, const real *value, int64_t count, part *restrict acc) {
    for (int64_t k = 0; k < count; k++) {
        const part w = splat(value[k]);
        const vec *x = from + at[k];
        for (int r = 0; r < high; r++, x += line) {
            COMPUTED(x);
            for (int i = 0; i < wide * PARTS; i++) {
                part *to = acc + r * wide * PARTS + i;
                *to = multiply_add(w, x[i / PARTS * stride].part[i % PARTS], *to);
            }
        }
    }
}

INLINE void tile_forward(const int high, const int wide, const int64_t stride, const int spikes, const forward *f,
                         const vec *x, int64_t block, int64_t row, int64_t column, uint16_t there, vec *sum) {
    const regraft_layer *s = f->s;
    const int64_t C = s->out_channels, W = s->out_width, across = s->in_width + 2 * s->halo;
    const int64_t origin = s->halo - s->padding;
    const int64_t place = ((row * s->stride + origin) * s->in_channels) * across + column * s->stride + origin;
    const int64_t line = s->stride * s->in_channels * across;
    const uint16_t *from = f->bits + block * (s->in_height + 2 * s->halo) * s->in_channels * across + place;
    const int rows = (int)least(high, s->out_height - row), columns = (int)least(wide, W - column);
    const int full = rows == high && columns == wide;
    for (int64_t c = 0; c < C; c++) {
        part acc[POSITIONS * PARTS];
        for (int i = 0; i < high * wide * PARTS; i++)
            acc[i] = f->bias ? only(splat(f->bias[c]), members(there, i % PARTS)) : splat(0);
        const int64_t first = f->rows.first[c], count = f->rows.first[c + 1] - first;
        if (spikes) sum_spikes(high, wide, stride, from, line, f->rows.at + first, f->value + first, count, acc);
        else sum_reals(high, wide, stride, x + place, line, f->rows.at + first, f->value + first, count, acc);
        vec *to = f->y + ((block * s->out_height + row) * C + c) * W + column;
        const part shift = splat(f->shift ? f->shift[c] : 0);
        part copy[POSITIONS * PARTS]; /* registers have no index */
        for (int i = 0; i < high * wide * PARTS && !full; i++) copy[i] = acc[i];
        for (int q = 0; q < PARTS; q++) {
            const mask here = members(there, q);
            part once = splat(0), squared = splat(0);
            if (full) {
                for (int i = 0; i < high * wide; i++) {
                    const part y = acc[i * PARTS + q], d = only(y - shift, here);
                    stream(to + i / wide * C * W + i % wide, q, y);
                    once += d;
                    squared += d * d;
                }
            } else {
                for (int r = 0; r < rows; r++)
                    for (int i = 0; i < columns; i++) {
                        const part y = copy[(r * wide + i) * PARTS + q], d = only(y - shift, here);
                        to[r * C * W + i].part[q] = y;
                        once += d;
                        squared += d * d;
                    }
            }
            sum[2 * c].part[q] += once;
            sum[2 * c + 1].part[q] += squared;
        }
    }
}

INLINE void band_forward(const int high, const int wide, const int64_t stride, const int spikes, const forward *f,
                         const vec *x, int64_t block, uint16_t there, vec *sum, double *partial) {
    const regraft_layer *s = f->s;
    for (int64_t row = 0; row < s->out_height; row += high) {
        for (int64_t column = 0; column < s->out_width; column += wide)
            tile_forward(high, wide, stride, spikes, f, x, block, row, column, there, sum);
        for (int64_t j = 0; j < 2 * s->out_channels && partial; j++) { /* single precision over a few rows only */
            partial[j] += total(sum[j]);
            sum[j] = (vec){0};
        }
    }
}

/* The shape of a tile that wastes least: all of it in one row, or two or four rows of narrow maps. */
#define TILED(stride, spikes)                                                                                   \
    do {                                                                                                        \
        if (s->out_width > POSITIONS / 2 || s->out_height == 1)                                                 \
            band_forward(1, POSITIONS, stride, spikes, f, x, block, there, sum, partial);                       \
        else if (s->out_width > POSITIONS / 4)                                                                  \
            band_forward(2, POSITIONS / 2, stride, spikes, f, x, block, there, sum, partial);                   \
        else                                                                                                    \
            band_forward(4, POSITIONS / 4, stride, spikes, f, x, block, there, sum, partial);                   \
    } while (0)

/* `x` with a halo of zeros; the halo is there already. */
static void lay_out(const vec *x, int64_t height, int64_t channels, int64_t width, int64_t halo, vec *to) {
    for (int64_t h = 0; h < height; h++)
        for (int64_t c = 0; c < channels; c++)
            memcpy(to + ((h + halo) * channels + c) * (width + 2 * halo) + halo, x + (h * channels + c) * width,
                   sizeof(vec) * (size_t)width);
}

static size_t padded(const regraft_layer *s) { /* pixels of an input block with its halo, and what tiles read beyond */
    return (size_t)((s->in_height + 2 * s->halo + 4 * s->stride) * s->in_channels * (s->in_width + 2 * s->halo) +
                    POSITIONS * s->stride);
}

static void forward_task(void *context, void *scratch, int64_t task) {
    const forward *f = context;
    const regraft_layer *s = f->s;
    const int64_t tasks = least(TASKS, s->blocks), size = s->in_height * s->in_channels * s->in_width;
    const int64_t first = s->blocks * task / tasks, last = s->blocks * (task + 1) / tasks;
    vec *sum = scratch, *x = sum + 2 * s->out_channels;
    double *partial = f->partial ? f->partial + task * 2 * s->out_channels : NULL;
    memset(sum, 0, sizeof(vec) * 2 * (size_t)s->out_channels);
    if (f->x) memset(x, 0, sizeof(vec) * padded(s));
    for (int64_t block = first; block < last; block++) {
        const uint16_t there = present(block, s->per_step, s->lanes);
        if (f->x) {
            lay_out(f->x + block * size, s->in_height, s->in_channels, s->in_width, s->halo, x);
            TILED(s->stride, 0);
        } else if (s->stride == 1)
            TILED(1, 1);
        else if (s->stride == 2)
            TILED(2, 1);
        else
            TILED(s->stride, 1);
    }
    streamed();
}

/* y `[blocks, H', C', W', 16]` of spikes `bits` (or reals `x`), and for each channel the sums of y - shift and of its
 * square over all images, `sums` `[2, C']` (`partial`: room for 16 C' doubles; NULL: no sums). bias, shift: or NULL. */
EXPORT int PUBLIC(layer_forward)(const regraft_layer *s, const uint16_t *bits, const real *x, const regraft_rows *rows,
                                 const real *value, const real *bias, const real *shift, real *y, double *sums,
                                 double *partial) {
    forward f = {s, bits, (const vec *)x, *rows, value, bias, shift, (vec *)y, partial};
    const int64_t tasks = least(TASKS, s->blocks), C = s->out_channels;
    if (partial) memset(partial, 0, sizeof(double) * (size_t)(TASKS * 2 * C));
    const size_t scratch = sizeof(vec) * (2 * (size_t)C + (x ? padded(s) : 0));
    if (tasks && regraft_each(tasks, s->threads, scratch, forward_task, &f)) return 1;
    for (int64_t c = 0; c < C && partial; c++)
        for (int j = 0; j < 2; j++) {
            double sum = 0;
            for (int64_t task = 0; task < tasks; task++) sum += partial[task * 2 * C + 2 * c + j];
            sums[j * C + c] = sum;
        }
    return 0;
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

typedef struct {
    const regraft_layer *s;
    const uint16_t *bits;
    const vec *x;
    regraft_error error;
    regraft_rows rows;
    const regraft_phase *phases;
    const real *value;
    real *partial; /* [TASKS, connections] */
    vec *onto_x;
} backward;

static size_t error_size(const backward *b) { /* of a block; none where nobody wants the input's gradient */
    const regraft_layer *s = b->s;
    const size_t m = (size_t)s->margin;
    return !b->onto_x ? 0 : ((size_t)s->out_height + 2 * m + 4) * (size_t)s->out_channels * ((size_t)s->out_width + 2 * m) + POSITIONS;
}

/* The error where the input fired, or times the input; `x`: sets or vectors. */
INLINE part learnt(const int spikes, const void *x, int64_t at, int q, part g, part a) {
    return spikes ? add_where_at(a, (const uint16_t *)x + at, q, g) : multiply_add(((const vec *)x)[at].part[q], g, a);
}

/* Gradients of four weights: one reading of the error serves them all. Sums have names, as compilers leave arrays in
 * memory. */
INLINE void learn_four(const int spikes, const int64_t stride, const void *x, int64_t place, int64_t line,
                       const int32_t *at, const vec *g, int64_t rows, int64_t width, real *onto) {
    const int64_t size = spikes ? sizeof(uint16_t) : sizeof(vec);
    vec sum[4];
    for (int q = 0; q < PARTS; q++) {
        part a0 = splat(0), b0 = a0, c0 = a0, d0 = a0, a1 = a0, b1 = a0, c1 = a0, d1 = a0;
        const vec *error = g;
        for (int64_t r = 0; r < rows; r++, error += width) {
            const char *from = (const char *)x + (place + r * line) * size;
            const char *a = from + at[0] * size, *b = from + at[1] * size, *c = from + at[2] * size, *d = from + at[3] * size;
            int64_t w = 0;
            for (; w + 1 < width; w += 2) {
                const part g0 = error[w].part[q], g1 = error[w + 1].part[q];
                const int64_t left = w * stride, right = left + stride;
                a0 = learnt(spikes, a, left, q, g0, a0);
                b0 = learnt(spikes, b, left, q, g0, b0);
                c0 = learnt(spikes, c, left, q, g0, c0);
                d0 = learnt(spikes, d, left, q, g0, d0);
                a1 = learnt(spikes, a, right, q, g1, a1);
                b1 = learnt(spikes, b, right, q, g1, b1);
                c1 = learnt(spikes, c, right, q, g1, c1);
                d1 = learnt(spikes, d, right, q, g1, d1);
            }
            if (w < width) {
                const part g0 = error[w].part[q];
                const int64_t left = w * stride;
                a0 = learnt(spikes, a, left, q, g0, a0);
                b0 = learnt(spikes, b, left, q, g0, b0);
                c0 = learnt(spikes, c, left, q, g0, c0);
                d0 = learnt(spikes, d, left, q, g0, d0);
            }
        }
        sum[0].part[q] = a0 + a1;
        sum[1].part[q] = b0 + b1;
        sum[2].part[q] = c0 + c1;
        sum[3].part[q] = d0 + d1;
    }
    for (int i = 0; i < 4; i++) onto[i] += (real)total(sum[i]);
}

INLINE void learn_one(const int spikes, const int64_t stride, const void *x, int64_t place, int64_t line,
                      const int32_t *at, const vec *g, int64_t rows, int64_t width, real *onto) {
    vec sum;
    for (int q = 0; q < PARTS; q++) {
        part a = splat(0);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t w = 0; w < width; w++)
                a = learnt(spikes, x, place + r * line + at[0] + w * stride, q, g[r * width + w].part[q], a);
        sum.part[q] = a;
    }
    onto[0] += (real)total(sum);
}

/* Gradients of one channel's weights, over error vectors that lie together in `g`: rows of `width` pixels. */
INLINE void learn_rows(const backward *b, const int spikes, const int64_t stride, const void *x, int64_t row, int64_t rows,
                       int64_t c, const vec *g, real *onto) {
    const regraft_layer *s = b->s;
    const int64_t W = s->out_width, across = s->in_width + 2 * s->halo, origin = s->halo - s->padding;
    const int64_t place = ((row * stride + origin) * s->in_channels) * across + origin;
    const int64_t line = stride * s->in_channels * across, last = b->rows.first[c + 1];
    const int32_t *at = b->rows.at;
    int64_t k = b->rows.first[c];
    for (; k + 4 <= last; k += 4) learn_four(spikes, stride, x, place, line, at + k, g, rows, W, onto + k);
    for (; k < last; k++) learn_one(spikes, stride, x, place, line, at + k, g, rows, W, onto + k);
}

/* The error signal of a block, with its margin, and what the connections learn from it. Rows of a channel are made
 * side by side in `chunk`: they lie a power of two apart, and read in place they would push each other out. */
__attribute__((noinline)) /* inlined, its loops are compiled worse: 1.08 times as long */
static void learn_block(const backward *b, const vec *x, int64_t block, vec *restrict error, vec *restrict chunk, real *onto) {
    const regraft_layer *s = b->s;
    const int64_t C = s->out_channels, W = s->out_width, m = s->margin, H = s->out_height;
    const uint16_t *bits = b->bits + block * (s->in_height + 2 * s->halo) * s->in_channels * (s->in_width + 2 * s->halo);
    const uint16_t there = present(block, s->per_step, s->lanes);
    const int64_t rows = W >= CHUNK ? 1 : CHUNK / W;
    for (int64_t row = 0; row < H; row += rows)
        for (int64_t c = 0; c < C; c++) {
            const int64_t here = least(rows, H - row);
            for (int64_t r = 0; r < here; r++) {
                error_of(&b->error, ((block * H + row + r) * C + c) * W, c, W, there, chunk + r * W);
                if (b->onto_x) memcpy(error + ((row + r + m) * C + c) * (W + 2 * m) + m, chunk + r * W, sizeof(vec) * (size_t)W);
            }
            if (x) learn_rows(b, 0, s->stride, x, row, here, c, chunk, onto);
            else if (s->stride == 1) learn_rows(b, 1, 1, bits, row, here, c, chunk, onto);
            else learn_rows(b, 1, s->stride, bits, row, here, c, chunk, onto);
        }
}

/* The input's gradient at the pixels of one phase, `high` x `wide` of them at a time. All of its sums come through the
 * channels of a band before the next, so that errors are read from the nearest cache; `kept`: sums in between. */
INLINE void spread(const int high, const int wide, const backward *b, const regraft_phase *p, const real *value,
                   const vec *error, vec *kept, vec *to) {
    const regraft_layer *s = b->s;
    const int64_t C = s->in_channels, W = s->in_width, across = s->out_width + 2 * s->margin;
    const int64_t line = s->out_channels * across, below = s->stride * C * W;
    const int64_t rows = (s->in_height - p->row + s->stride - 1) / s->stride;
    const int64_t columns = (W - p->column + s->stride - 1) / s->stride;
    for (int64_t row = 0; row < rows; row += high)
        for (int64_t column = 0; column < columns; column += wide) {
            const vec *from = error + row * line + column;
            const int up = (int)least(high, rows - row), over = (int)least(wide, columns - column);
            for (int64_t j = 0; j < p->bands * C; j++) {
                const int64_t first = p->first[j], c = j % C;
                part acc[POSITIONS * PARTS], *between = (part *)(kept + c * POSITIONS);
                for (int i = 0; i < high * wide * PARTS; i++) acc[i] = j < C ? splat(0) : between[i];
                sum_reals(high, wide, 1, from, line, p->at + first, value + first, p->first[j + 1] - first, acc);
                vec *out = to + ((p->row + row * s->stride) * C + c) * W + p->column + column * s->stride;
                if (j < (p->bands - 1) * C) {
                    for (int i = 0; i < high * wide * PARTS; i++) between[i] = acc[i];
                } else if (s->stride == 1 && up == high && over == wide) {
                    for (int i = 0; i < high * wide * PARTS; i++)
                        stream(out + i / PARTS / wide * below + i / PARTS % wide, i % PARTS, acc[i]);
                } else { /* from a copy: registers have no index */
                    part copy[POSITIONS * PARTS];
                    for (int i = 0; i < high * wide * PARTS; i++) copy[i] = acc[i];
                    for (int r = 0; r < up; r++)
                        for (int i = 0; i < over * PARTS; i++)
                            out[r * below + i / PARTS * s->stride].part[i % PARTS] = copy[r * wide * PARTS + i];
                }
            }
        }
}

static void backward_task(void *context, void *scratch, int64_t task) {
    const backward *b = context;
    const regraft_layer *s = b->s;
    const int64_t tasks = least(TASKS, s->blocks), size = s->in_height * s->in_channels * s->in_width;
    const int64_t first = s->blocks * task / tasks, last = s->blocks * (task + 1) / tasks;
    vec *error = scratch, *chunk = error + error_size(b), *kept = chunk + (s->out_width > CHUNK ? s->out_width : CHUNK);
    vec *x = kept + s->in_channels * POSITIONS;
    real *value = (real *)(x + (b->x ? padded(s) : 0)), *onto = b->partial + task * s->connections;
    memset(error, 0, sizeof(vec) * error_size(b));
    if (b->x) memset(x, 0, sizeof(vec) * padded(s));
    memset(onto, 0, sizeof(real) * (size_t)s->connections);
    if (b->onto_x) { /* weights in the order of the input's channels, all phases behind each other */
        real *to = value;
        for (int64_t p = 0; p < s->stride * s->stride; p++)
            for (int64_t k = 0; k < b->phases[p].first[b->phases[p].bands * s->in_channels]; k++) *to++ = b->value[b->phases[p].from[k]];
    }
    for (int64_t block = first; block < last; block++) {
        if (b->x) lay_out(b->x + block * size, s->in_height, s->in_channels, s->in_width, s->halo, x);
        learn_block(b, b->x ? x : NULL, block, error, chunk, onto);
        const real *of = value;
        for (int64_t p = 0; p < s->stride * s->stride && b->onto_x; p++) {
            const regraft_phase *phase = b->phases + p;
            const int64_t width = (s->in_width + s->stride - 1) / s->stride;
            vec *to = b->onto_x + block * size;
            if (width > POSITIONS / 2 || s->in_height == 1) spread(1, POSITIONS, b, phase, of, error, kept, to);
            else if (width > POSITIONS / 4) spread(2, POSITIONS / 2, b, phase, of, error, kept, to);
            else spread(4, POSITIONS / 4, b, phase, of, error, kept, to);
            of += phase->first[phase->bands * s->in_channels];
        }
    }
    streamed();
}

/* Gradients of the connections, `onto` `[connections]`, and of the input, `onto_x` (NULL: not wanted). The gradient of
 * y is `scale * (g - k0 - k1 * (y - mean))` by channel, or `g` where these are NULL. `partial`: 8 connections' room. */
EXPORT int PUBLIC(layer_backward)(const regraft_layer *s, const uint16_t *bits, const real *x, const real *y, const real *g,
                                  const real *mean, const real *scale, const real *k0, const real *k1,
                                  const regraft_rows *rows, const regraft_phase *phases, const real *value, real *onto,
                                  real *onto_x, real *partial) {
    const regraft_error error = {(const vec *)y, (const vec *)g, mean, scale, k0, k1};
    backward b = {s, bits, (const vec *)x, error, *rows, phases, value, partial, (vec *)onto_x};
    const int64_t tasks = least(TASKS, s->blocks);
    const size_t chunk = (size_t)(s->out_width > CHUNK ? s->out_width : CHUNK);
    const size_t vectors = error_size(&b) + chunk + (size_t)(s->in_channels * POSITIONS) + (x ? padded(s) : 0);
    if (tasks && regraft_each(tasks, s->threads, sizeof(vec) * vectors + sizeof(real) * (size_t)s->connections,
                              backward_task, &b))
        return 1;
    for (int64_t k = 0; k < s->connections; k++) {
        real sum = 0;
        for (int64_t task = 0; task < tasks; task++) sum += partial[task * s->connections + k];
        onto[k] = sum;
    }
    return 0;
}
