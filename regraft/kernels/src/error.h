/* The gradient of a layer's result, in blocks. */
#ifndef REGRAFT_ERROR_H
#define REGRAFT_ERROR_H

#include <string.h>

#include "lanes.h"

typedef struct {
    const vec *y, *g;
    const real *mean, *scale, *k0, *k1; /* of each channel; NULL: g is the gradient of y as it is */
} regraft_error;

/* Along `width` pixels of channel c; lanes that are not `there` are 0 where a normalisation was in between. */
INLINE void error_of(const regraft_error *e, int64_t place, int64_t c, int64_t width, uint16_t there, vec *restrict to) {
    const vec *g = e->g + place, *y = e->y + place;
    if (!e->mean) {
        memcpy(to, g, sizeof(vec) * (size_t)width);
        return;
    }
    const part mean = splat(e->mean[c]), scale = splat(e->scale[c]), k0 = splat(e->k0[c]), k1 = splat(e->k1[c]);
    for (int64_t w = 0; w < width; w++)
        for (int q = 0; q < PARTS; q++)
            to[w].part[q] = only(scale * (g[w].part[q] - k0 - k1 * (y[w].part[q] - mean)), members(there, q));
}

#endif
