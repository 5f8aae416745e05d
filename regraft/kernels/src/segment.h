/* One segment: one or two normalised inputs, added, a neuron over all T steps, 2x2 max pooling if asked for.
 *
 * Plain C interface: every function has the type and the instruction set in its name (`regraft_fire_f32_avx512`),
 * takes pointers and a description, and returns 0, or 1 where memory ran out. Arrays are `[T, rows, channels]` with
 * channels innermost (`inner` 1), or `[T, N, channels, inner]`, each step without gaps.
 */
#ifndef REGRAFT_SEGMENT_H
#define REGRAFT_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

enum { TRIANGLE, RECTANGLE, ATAN, SIGMOID };

typedef struct {
    int64_t steps;    /* T */
    int64_t rows;     /* N*H*W, of one step */
    int64_t channels; /* C */
    int64_t inner;    /* elements of one channel that lie together: 1, or H*W */
    int64_t height, width; /* of a map, both even, where pooled; else 0 */
    int32_t repeat;        /* the input has one step, which is seen T times */
    int32_t terms;         /* 1 or 2 */
    int32_t surrogate;
    int32_t hard, detach; /* reset to 0; no gradient through the reset */
    int32_t learn;        /* the gradient of the decay is wanted */
    int32_t threads;
    double decay, gain, threshold, amount, shape;
} regraft_segment;

/* Hand over the OpenMP runtime that the process uses already (its GOMP_parallel), so that no second pool of threads
 * competes with it. Without one, everything runs on the calling thread. */
typedef void (*regraft_team)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
void regraft_use_team(regraft_team team);

/* Which sources this was compiled from, so that an older library is not taken for theirs. */
const char *regraft_sources(void);

/* The best instruction set of this processor that was compiled in: "avx512", "avx2" or "portable". */
const char *regraft_best(void);

/* Runs body(context, scratch, task) for every task; scratch is `bytes` of a thread's own, 64-byte aligned.
 * Which thread runs what changes nothing: tasks are cut by shape alone and sum into places of their own. */
typedef void (*regraft_body)(void *context, void *scratch, int64_t task);
int regraft_each(int64_t tasks, int threads, size_t bytes, regraft_body body, void *context);

#endif
