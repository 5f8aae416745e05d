/* Vectors of 16 images, and sets of them as 16 bits. Compilers split the vectors where registers are narrower. */
#ifndef REGRAFT_LANES_H
#define REGRAFT_LANES_H

#include <math.h>
#include <stdint.h>

#include "names.h"

enum { LANES = 16 };

#if STORE == F64
typedef double real;
typedef int64_t whole_number;
#define EXP exp
#else
typedef float real;
typedef int32_t whole_number;
#endif
typedef real vec __attribute__((vector_size(LANES * sizeof(real)), may_alias));
typedef whole_number ivec __attribute__((vector_size(LANES * sizeof(real)), may_alias));

INLINE vec splat(real x) { return x - (vec){0}; } /* not a sum: 0 + x is no copy where x is -0 */

/* Has an address computed once. Compilers prefer to compute each of its neighbours' by itself, in the inner loop. */
#define COMPUTED(address) __asm__("" : "+r"(address))

#if defined(__AVX512F__) && STORE == F32
#include <immintrin.h>
enum { POSITIONS = 16 }; /* accumulators that fit the registers */
INLINE vec add_where(vec a, uint16_t set, vec x) { return (vec)_mm512_mask_add_ps((__m512)a, set, (__m512)a, (__m512)x); }
/* The set comes from memory at once: by way of a general register, as compilers choose it, it takes 1.6 times as long
 * (measured on Zen 4). */
INLINE vec add_where_at(vec a, const uint16_t *set, vec x) {
    __mmask16 lanes;
    __asm__("kmovw %1, %0" : "=Yk"(lanes) : "m"(*set));
    return (vec)_mm512_mask_add_ps((__m512)a, lanes, (__m512)a, (__m512)x);
}
INLINE vec only(vec a, uint16_t set) { return (vec)_mm512_maskz_mov_ps(set, (__m512)a); }
INLINE vec mixed(vec a, vec b, uint16_t set) { return (vec)_mm512_mask_mov_ps((__m512)a, set, (__m512)b); }
INLINE uint16_t at_least(vec a, real x) {
    return (uint16_t)_mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(x), _CMP_GE_OQ);
}
INLINE vec multiply_add(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
/* A result that is not read again before the caches have lost it: written past them, so that they need not read what
 * it replaces. `streamed` ends a task that did so. */
INLINE void stream(vec *to, vec x) { _mm512_stream_ps((float *)to, (__m512)x); }
INLINE void streamed(void) { _mm_sfence(); }
/* Lane i of the result is lane i + by, and behind the last lane comes the first. */
INLINE vec turned(vec a, int by) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (vec)_mm512_permutexvar_ps((__m512i)(lane + by), (__m512)a);
}
#else
enum { POSITIONS = 4 };
INLINE ivec members(uint16_t set) {
    const ivec bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (((ivec){0} + (whole_number)set) & bit) != 0;
}
INLINE vec only(vec a, uint16_t set) { return (vec)((ivec)a & members(set)); }
INLINE vec mixed(vec a, vec b, uint16_t set) { return only(a, (uint16_t)~set) + only(b, set); }
INLINE vec add_where(vec a, uint16_t set, vec x) { return a + only(x, set); }
INLINE vec add_where_at(vec a, const uint16_t *set, vec x) { return add_where(a, *set, x); }
INLINE uint16_t at_least(vec a, real x) {
    const ivec bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    const ivec found = (a >= splat(x)) & bit;
    whole_number set = 0;
    for (int i = 0; i < LANES; i++) set |= found[i];
    return (uint16_t)set;
}
INLINE vec multiply_add(vec a, vec b, vec c) { return a * b + c; }
INLINE void stream(vec *to, vec x) { *to = x; }
INLINE void streamed(void) {}
INLINE vec turned(vec a, int by) {
    vec to;
    for (int i = 0; i < LANES; i++) to[i] = a[(i + by) & (LANES - 1)];
    return to;
}
#endif

INLINE vec magnitude(vec a) {
#if STORE == F64
    return (vec)((ivec)a & INT64_MAX);
#else
    return (vec)((ivec)a & INT32_MAX);
#endif
}

INLINE vec positive(vec a) { return (vec)((ivec)a & (a > splat(0))); }

/* In pairs, pairs of pairs and so on: a chain of additions would wait for each of them. */
INLINE double total(vec a) {
    double sum[LANES];
    for (int i = 0; i < LANES; i++) sum[i] = (double)a[i];
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) sum[i] += sum[i + n];
    return sum[0];
}

#endif
