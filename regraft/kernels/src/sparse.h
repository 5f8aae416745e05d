/* Layers over existing connections, on blocks of 16 images.
 *
 * Layouts: reals `[blocks, H, C, W, 16 images]`, 64-byte aligned. Spikes `[blocks, H + 2 halo, C, W + 2 halo]`, one
 * 16-bit set of images each, the halo empty, and 8 rows and 64 sets behind the end, which tiles may read. Blocks are
 * those of the first time step, then of the second, ...; a step's last block may hold fewer images, and what stands in
 * its other lanes is 0. Where a step has 8, 4, 2 or 1 images, blocks hold several steps instead, behind each other.
 */
#ifndef REGRAFT_SPARSE_H
#define REGRAFT_SPARSE_H

#include "segment.h"

typedef struct {
    int64_t blocks, per_step; /* of all steps, and of one */
    int64_t lanes;            /* images in the last block of a step */
    int64_t in_channels, in_height, in_width, halo; /* halo: of the input's spikes */
    int64_t out_channels, out_height, out_width;
    int64_t stride, padding;
    int64_t connections;
    int64_t margin; /* empty pixels around the error signal, for the input's gradient */
    int32_t threads;
} regraft_layer;

typedef struct {
    int64_t height, width, dilation, groups;
} regraft_kernel;

/* Connections by output channel: those of channel c are first[c] to first[c + 1]. `at` is where each reads, from the
 * first pixel under the kernel, in elements of the input with its halo. */
typedef struct {
    const int64_t *first;
    const int32_t *at;
} regraft_rows;

/* Connections by input channel, for the input pixels (row + stride i, column + stride j): `at` within the error signal
 * with its margin, `from` the number of the connection. First come those of a band of neighbouring output channels, then
 * those of the next: band b, channel c are first[b * C + c] to first[b * C + c + 1]. */
typedef struct {
    int64_t row, column, bands;
    const int64_t *first;
    const int32_t *at, *from;
} regraft_phase;

typedef struct {
    int64_t steps, per_step, lanes, channels, height, width, halo; /* of the inputs; halo: of the spikes */
    int32_t share; /* 2^share steps share a block, `lanes` images each; per_step is 1 then */
    int32_t repeat, pool, terms; /* terms: 1, 2, or 3 where the second is spikes, with the same halo */
    int32_t surrogate, hard, detach, learn, threads;
    double decay, gain, threshold, amount, shape;
} regraft_blocked;

typedef struct {
    int64_t blocks, per_step, images; /* images of a step: the last block of each may hold fewer than 16 */
    int64_t channels, height, width, halo;
    int64_t strides[4]; /* of the plain array `[images of all steps, C, H, W]`, in elements */
    int32_t threads;
} regraft_exchange;

#endif
