/* Vectors of 16 images, and sets of them as 16 bits.
 *
 * A vector is PARTS registers: compilers keep in memory what is wider than one, so arithmetic is written part by part.
 * The images of a set that part `q` of a vector holds are a `mask`. A NaN is `under` everything.
 */
#ifndef REGRAFT_LANES_H
#define REGRAFT_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "names.h"

enum { LANES = 16 };

#if STORE == F64
typedef double real;
typedef int64_t whole_number;
#else
typedef float real;
typedef int32_t whole_number;
#endif

#if STORE == F64
enum { WIDTH = 64, POSITIONS = 4 }; /* for tests of exactness: wider than any register, which compilers split */
#elif defined(__AVX512F__)
enum { WIDTH = 64, POSITIONS = 16 }; /* bytes of a register; how many vectors of sums the registers hold */
#elif defined(__AVX__)
enum { WIDTH = 32, POSITIONS = 4 };
#else
enum { WIDTH = 16, POSITIONS = 4 };
#endif
enum { PART = WIDTH / sizeof(real), PARTS = LANES / PART };
typedef real part __attribute__((vector_size(WIDTH), may_alias));
typedef whole_number ipart __attribute__((vector_size(WIDTH), may_alias));
typedef struct {
    part part[PARTS];
} __attribute__((aligned(64), may_alias)) vec;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE part splat(real x) { return x - (part){0}; } /* not a sum: 0 + x is no copy where x is -0 */

/* Has an address computed once. Compilers prefer to compute each of its neighbours' by itself, in the inner loop. */
#define COMPUTED(address) __asm__("" : "+r"(address))

#if defined(__AVX512F__) && STORE == F32
typedef uint16_t mask;
INLINE mask members(uint16_t set, int q) { return (void)q, set; }
INLINE uint16_t set_of(mask m, int q) { return (void)q, m; }
INLINE mask at_least(part a, part b) { return (mask)_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
INLINE mask under(part a, part b) { return (mask)_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NGE_UQ); }
INLINE part only(part a, mask m) { return (part)_mm512_maskz_mov_ps(m, (__m512)a); }
/* The set comes from memory at once: by way of a general register, as compilers choose it, it takes 1.6 times as long
 * (measured on Zen 4). */
INLINE part add_where_at(part a, const uint16_t *set, int q, part x) {
    __mmask16 m;
    (void)q;
    __asm__("kmovw %1, %0" : "=Yk"(m) : "m"(*set));
    return (part)_mm512_mask_add_ps((__m512)a, m, (__m512)a, (__m512)x);
}
INLINE part multiply_add(part a, part b, part c) { return (part)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
/* A result that is not read again before the caches have lost it: written past them, so that they need not read what
 * it replaces. `streamed` ends a task that did so. */
INLINE void stream(vec *to, int q, part x) { _mm512_stream_ps((float *)(to->part + q), (__m512)x); }
INLINE void streamed(void) { _mm_sfence(); }
#else
typedef ipart mask;
static const whole_number member[LANES] __attribute__((aligned(LANES * sizeof(whole_number)))) = {
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
INLINE mask members(uint16_t set, int q) {
    const ipart bit = ((const ipart *)member)[q];
    return (((ipart){0} + (whole_number)set) & bit) == bit;
}
INLINE uint16_t set_of(mask m, int q) {
#if defined(__AVX__) && STORE == F32
    return (uint16_t)(_mm256_movemask_ps((__m256)m) << q * PART);
#elif defined(__SSE2__) && STORE == F32
    return (uint16_t)(_mm_movemask_ps((__m128)m) << q * PART);
#else
    const ipart bits = m & ((const ipart *)member)[q];
    whole_number set = 0;
    for (int i = 0; i < PART; i++) set |= bits[i];
    return (uint16_t)set;
#endif
}
INLINE mask at_least(part a, part b) { return (mask)(a >= b); }
INLINE mask under(part a, part b) { return ~(mask)(a >= b); }
INLINE part only(part a, mask m) { return (part)((ipart)a & m); }
#if defined(__AVX2__) && defined(__FMA__) && STORE == F32
/* One reading of the set, twice to a lane, in the place of three instructions that take it there. */
INLINE part add_where_at(part a, const uint16_t *set, int q, part x) {
    const ipart bit = ((const ipart *)member)[q], twice = (ipart)_mm256_set1_epi16((short)*set);
    return a + only(x, (twice & bit) == bit);
}
INLINE part multiply_add(part a, part b, part c) { return (part)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
INLINE part add_where_at(part a, const uint16_t *set, int q, part x) { return a + only(x, members(*set, q)); }
INLINE part multiply_add(part a, part b, part c) { return a * b + c; }
#endif
INLINE void stream(vec *to, int q, part x) { to->part[q] = x; }
INLINE void streamed(void) {}
#endif

/* Where 2^share steps share a block, as many windows are worked on together, so that all lanes are at work: `x`, a
 * vector for each window with all steps of its block, becomes a vector for each step with all windows; and back. */
INLINE void regroup(const int share, vec *x) {
    const int together = 1 << share, each = LANES >> share;
#if defined(__AVX512F__) && STORE == F32
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int apart = together / 2; apart; apart /= 2) {
        mask second = 0; /* lanes of those columns that change places */
        for (int i = 0; i < LANES; i++) second |= (mask)((i / each & apart ? 1u : 0u) << i);
        const __m512i up = _mm512_add_epi32(lane, _mm512_set1_epi32(apart * each));
        const __m512i down = _mm512_sub_epi32(lane, _mm512_set1_epi32(apart * each));
        for (int i = 0; i < together; i++)
            if (!(i & apart)) {
                const __m512 a = (__m512)x[i].part[0], b = (__m512)x[i + apart].part[0];
                x[i].part[0] = (part)_mm512_mask_permutexvar_ps(a, second, down, b);
                x[i + apart].part[0] = (part)_mm512_mask_permutexvar_ps(b, (mask)~second, up, a);
            }
    }
#else
    vec to[LANES];
    if (!share) return;
    for (int i = 0; i < together; i++)
        for (int j = 0; j < together; j++)
            memcpy((real *)(to + j) + i * each, (const real *)(x + i) + j * each, sizeof(real) * (size_t)each);
    for (int i = 0; i < together; i++) x[i] = to[i];
#endif
}

INLINE part magnitude(part a) {
#if STORE == F64
    return (part)((ipart)a & INT64_MAX);
#else
    return (part)((ipart)a & INT32_MAX);
#endif
}

INLINE part negative(part a) { return -magnitude(a); }

/* A NaN stays one. */
INLINE part positive(part a) { return only(a, under(splat(0), a)); }

/* In pairs, pairs of pairs and so on: a chain of additions would wait for each of them. */
INLINE double total(vec a) {
    double sum[LANES];
    for (int i = 0; i < LANES; i++) sum[i] = (double)a.part[i / PART][i % PART];
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) sum[i] += sum[i + n];
    return sum[0];
}

#endif
