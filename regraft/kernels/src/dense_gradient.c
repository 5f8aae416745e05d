/* Gradients of all weights of a convolution over spikes, of existing connections and of absent ones. See sparse.h.
 *
 * A weight learns the sum of the errors at the pixels that spikes reach through it, so the work goes with the spikes,
 * where a dense product goes with the pixels. From one input channel all output channels want the errors at the same
 * places, and all pixels of the kernel those around them. So errors are laid out with 16 output channels in a vector
 * (elsewhere these are 16 images), the places of a channel's spikes are listed, and the sums for up to 9 pixels of the
 * kernel stay in registers. All this a window at a time: as many errors as the nearest cache holds, which are some rows
 * of an image, or several small images.
 */
#include "error.h"
#include "sparse.h"

enum { WINDOW = 600, TOGETHER = 9 };

INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

typedef struct {
    const regraft_layer *s;
    const regraft_kernel *k;
    const uint16_t *bits;
    regraft_error error;
    real *onto;
    int64_t tasks;
    int64_t rows, images, sets;     /* a window: rows of the input, images side by side, and how many of these 16 make */
    int64_t top, left, high, wide;  /* the errors that an image in it needs; top: of the window that begins at row 0 */
    int64_t vectors, pixels;        /* of output channels; of the kernel */
    int64_t phases, capacity;       /* lists of an input channel in a window, and how many places each may hold */
    size_t errors, sums;            /* vectors of a task's arrays */
} work;

/* Behind the last pixel of the output that `of` pixels of the input reach. */
static int64_t end(const work *w, int64_t of) { return (of - 1 + w->s->padding) / w->s->stride + 1; }

/* The window that fits the nearest cache best. */
static void cut(work *w) {
    const regraft_layer *s = w->s;
    w->top = (s->padding - (w->k->height - 1) * w->k->dilation) / s->stride;
    w->left = (s->padding - (w->k->width - 1) * w->k->dilation) / s->stride;
    w->wide = end(w, s->in_width) - w->left;
    w->images = 1;
    w->rows = up(s->in_height, s->stride) * s->stride;
    if ((end(w, w->rows) - w->top) * w->wide > WINDOW) {
        while (w->rows > s->stride && (end(w, w->rows) - w->top) * w->wide > WINDOW) w->rows -= s->stride;
        const int64_t parts = up(s->in_height, w->rows);
        w->rows = up(up(s->in_height, parts), s->stride) * s->stride;
    }
    w->high = end(w, w->rows) - w->top;
    while (w->rows >= s->in_height && w->images < LANES && 2 * w->images * w->high * w->wide <= WINDOW) w->images *= 2;
    w->sets = LANES / w->images;
    w->phases = s->stride * s->stride;
    w->capacity = w->images * (w->rows / s->stride) * up(s->in_width, s->stride);
}

/* Errors of a window, `[sets, vectors, images, high, wide]`, 0 outside of the output. `line`: a row of 16 channels. */
static void lay_out(const work *w, int64_t block, int64_t row, vec *line, vec *to) {
    const regraft_layer *s = w->s;
    const int64_t C = s->out_channels, top = w->top + row / s->stride, size = w->high * w->wide;
    const int64_t first = most(0, w->left), length = least(s->out_width, w->left + w->wide) - first;
    memset(to, 0, sizeof(vec) * w->errors);
    for (int64_t h = most(0, top); h < least(s->out_height, top + w->high) && length > 0; h++)
        for (int64_t c = 0; c < C; c += LANES) {
            const int64_t there = least(LANES, C - c);
            for (int64_t i = 0; i < there; i++) {
                const int64_t place = ((block * s->out_height + h) * C + c + i) * s->out_width + first;
                error_of(&w->error, place, c + i, length, 0xffff, line + i * length);
            }
            for (int64_t lane = 0; lane < LANES; lane++) {
                const int64_t image = (lane / w->images * w->vectors + c / LANES) * w->images + lane % w->images;
                real *out = (real *)(to + image * size + (h - top) * w->wide + first - w->left);
                for (int64_t x = 0; x < length; x++)
                    for (int64_t i = 0; i < there; i++) out[x * LANES + i] = ((const real *)(line + i * length + x))[lane];
            }
        }
}

/* Places of the spikes of channels `first` to `last` in a window, `[sets, channels, phases, capacity]`, and how many. */
static void list(const work *w, int64_t block, int64_t row, int64_t first, int64_t last, int32_t *place, int32_t *count) {
    const regraft_layer *s = w->s;
    const int64_t across = s->in_width + 2 * s->halo, line = s->in_channels * across, lists = (last - first) * w->phases;
    const uint16_t *bits = w->bits + (block * (s->in_height + 2 * s->halo) + s->halo) * line + s->halo;
    int32_t *next[LANES], beside[LANES]; /* where the list of a lane's set goes on; the place of its first pixel */
    int of_set[LANES];
    for (int64_t lane = 0; lane < LANES; lane++) {
        of_set[lane] = (int)(lane / w->images);
        beside[lane] = (int32_t)(lane % w->images * w->high * w->wide);
    }
    for (int64_t of = 0; of < lists; of++) {
        const int64_t c = first + of / w->phases, down = of % w->phases / s->stride, right = of % w->phases % s->stride;
        for (int64_t set = 0; set < w->sets; set++) next[set] = place + (set * lists + of) * w->capacity;
        for (int64_t h = row + down; h < least(s->in_height, row + w->rows); h += s->stride) {
            const uint16_t *from = bits + h * line + c * across + right;
            int32_t at = (int32_t)((h - row) / s->stride * w->wide);
            for (int64_t x = 0; x < s->in_width - right; x += s->stride, at++)
                for (unsigned fired = from[x]; fired; fired &= fired - 1) {
                    const int lane = __builtin_ctz(fired);
                    *next[of_set[lane]]++ = beside[lane] + at;
                }
        }
        for (int64_t set = 0; set < w->sets; set++)
            count[set * lists + of] = (int32_t)(next[set] - (place + (set * lists + of) * w->capacity));
    }
}

/* The kernel's pixels in the order of the phases that use them: those of phase p are first[p] to first[p + 1], where
 * input pixel (row + stride i, column + stride j) is of phase row * stride + column. `shift`: from its place to the
 * error that it reaches through the pixel. */
static void sort(const work *w, int64_t *first, int64_t *pixel, int64_t *shift) {
    const int64_t stride = w->s->stride, padding = w->s->padding;
    int64_t count = 0;
    for (int64_t p = 0; p < w->phases; p++) {
        first[p] = count;
        for (int64_t i = 0; i < w->pixels; i++) {
            const int64_t y = p / stride + padding - i / w->k->width * w->k->dilation;
            const int64_t x = p % stride + padding - i % w->k->width * w->k->dilation;
            if (y % stride || x % stride) continue;
            pixel[count] = i;
            shift[count++] = (y / stride - w->top) * w->wide + x / stride - w->left;
        }
    }
    first[w->phases] = count;
}

/* Errors at `count` places, for `n` of the kernel's pixels. */
INLINE void gather(const int n, const vec *error, const int64_t *shift, const int32_t *place, int64_t count, vec *sum) {
    for (int q = 0; q < PARTS; q++) {
        part acc[TOGETHER];
        for (int i = 0; i < n; i++) acc[i] = splat(0);
        for (int64_t j = 0; j < count; j++)
            for (int i = 0; i < n; i++) acc[i] += error[place[j] + shift[i]].part[q];
        for (int i = 0; i < n; i++) sum[i].part[q] += acc[i];
    }
}

static void learn(const vec *error, const int64_t *shift, int64_t n, const int32_t *place, int64_t count, vec *sum) {
    int64_t i = 0;
    for (; i + TOGETHER <= n; i += TOGETHER) gather(TOGETHER, error, shift + i, place, count, sum + i);
    for (; i + 4 <= n; i += 4) gather(4, error, shift + i, place, count, sum + i);
    for (; i + 2 <= n; i += 2) gather(2, error, shift + i, place, count, sum + i);
    for (; i < n; i++) gather(1, error, shift + i, place, count, sum + i);
}

static void task_of(void *context, void *scratch, int64_t task) {
    const work *w = context;
    const regraft_layer *s = w->s;
    const int64_t first = s->in_channels * task / w->tasks, last = s->in_channels * (task + 1) / w->tasks;
    const int64_t inputs = s->in_channels / w->k->groups, outputs = s->out_channels / w->k->groups;
    vec *error = scratch, *sum = error + w->errors, *line = sum + w->sums;
    int64_t *of_phase = (int64_t *)(line + LANES * s->out_width), *pixel = of_phase + w->phases + 1, *shift = pixel + w->pixels;
    int32_t *count = (int32_t *)(shift + w->pixels), *place = count + w->sets * (last - first) * w->phases;
    memset(sum, 0, sizeof(vec) * w->sums);
    sort(w, of_phase, pixel, shift);
    for (int64_t block = 0; block < s->blocks; block++)
        for (int64_t row = 0; row < s->in_height; row += w->rows) {
            lay_out(w, block, row, line, error);
            list(w, block, row, first, last, place, count);
            for (int64_t set = 0; set < w->sets; set++)
                for (int64_t v = 0; v < w->vectors; v++)
                    for (int64_t c = first; c < last; c++) {
                        const int64_t group = c / inputs, lists = (set * (last - first) + c - first) * w->phases;
                        if (v < group * outputs / LANES || v > ((group + 1) * outputs - 1) / LANES) continue;
                        for (int64_t p = 0; p < w->phases; p++) {
                            const int64_t k = of_phase[p], at = ((c - first) * w->vectors + v) * w->pixels + k;
                            learn(error + (set * w->vectors + v) * w->images * w->high * w->wide, shift + k, of_phase[p + 1] - k,
                                  place + (lists + p) * w->capacity, count[lists + p], sum + at);
                        }
                    }
        }
    for (int64_t c = first; c < last; c++)
        for (int64_t o = c / inputs * outputs; o < (c / inputs + 1) * outputs; o++)
            for (int64_t i = 0; i < w->pixels; i++) {
                const real *from = (const real *)(sum + ((c - first) * w->vectors + o / LANES) * w->pixels + i);
                w->onto[(o * inputs + c % inputs) * w->pixels + pixel[i]] = from[o % LANES];
            }
}

/* Gradients of all weights, `onto` `[C', C / groups, kernel]`. The gradient of y as in layer_backward. */
EXPORT int PUBLIC(dense_gradient)(const regraft_layer *s, const regraft_kernel *k, const uint16_t *bits, const real *y,
                                  const real *g, const real *mean, const real *scale, const real *k0, const real *k1,
                                  real *onto) {
    work w = {.s = s, .k = k, .bits = bits, .error = {(const vec *)y, (const vec *)g, mean, scale, k0, k1}, .onto = onto};
    w.tasks = least(most(1, s->threads), s->in_channels); /* each has its own input channels: no sum is shared */
    w.vectors = up(s->out_channels, LANES);
    w.pixels = k->height * k->width;
    cut(&w);
    const int64_t channels = up(s->in_channels, w.tasks), lists = w.sets * channels * w.phases;
    w.errors = (size_t)(LANES * w.vectors * w.high * w.wide);
    w.sums = (size_t)(channels * w.vectors * w.pixels);
    const size_t scratch = sizeof(vec) * (w.errors + w.sums + (size_t)(LANES * s->out_width)) +
                           sizeof(int64_t) * (size_t)(w.phases + 1 + 2 * w.pixels) + sizeof(int32_t) * (size_t)(lists + lists * w.capacity);
    return w.tasks && regraft_each(w.tasks, s->threads, scratch, task_of, &w);
}
