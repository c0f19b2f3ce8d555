/* Pairs of bf16 in sixteen lanes as one AVX-512 register, multiplied by vdpbf16ps.
 * Needs vec_avx512.h's flags and -mavx512bf16. Private to kernels/cpu.
 *
 * vdpbf16ps: "srcdest.fp32[i] += src1.bf16[2i+1] * src2.bf16[2i+1]; then the same of [2i]", rounded
 * to nearest even at each of the two, subnormals taken and given as zeros, MXCSR neither asked nor
 * set (Intel SDM volume 2, VDPBF16PS; kcheck compares it with the reference on the machine at
 * hand). As two multiply-adds with FTZ and DAZ.
 */
#ifndef KERNELS_CPU_VEC_X16_AVX512_H
#define KERNELS_CPU_VEC_X16_AVX512_H

#include "kernels/cpu/vec_avx512.h"

/* 4 x 6 sums, or with totals beside them 4 x 3. */
enum { VEC_X16_ROWS = 4, VEC_X16_TILE_M = 4, VEC_X16_TILE_N = 6, VEC_X16_TILE_SCALED_N = 3 };
/* A few operand rows with scales: rows of weights beside one another, and how many are a few. */
enum { VEC_X16_SCALED_ROWS = 2, VEC_X16_FEW = 8 };

enum { PAIRS_BYTES = 64 };

struct pairs {
    __m512i all;
};

/* Lower and upper bytes of the bf16 of 128 FP8 codes. */
struct pairs_tables {
    __m512i low[2], high[2];
};

VEC_INLINE struct pairs_tables pairs_tables_of(enum kern_dtype dtype)
{
    const struct vec_fp8 t = vec_fp8_tables();
    (void)dtype;
    return (struct pairs_tables){ { t.low[0], t.low[1] }, { t.high[0], t.high[1] } };
}

/* 64 bytes as the vectors of a span (kernels/x16.h). */
VEC_INLINE void pairs_decode(const struct pairs_tables *t, enum kern_dtype dtype,
                             const uint8_t *from, struct pairs *to)
{
    enum { OR_OF_AND = 0xf8 }; /* a | (b & c) */
    const __m512i codes = _mm512_loadu_si512(from);
    if (dtype == KERN_BF16) {
        to[0].all = codes;
        return;
    }
    const __m512i low = _mm512_permutex2var_epi8(t->low[0], codes, t->low[1]);
    const __m512i high = _mm512_ternarylogic_epi32(
        _mm512_permutex2var_epi8(t->high[0], codes, t->high[1]), codes,
        _mm512_set1_epi8((char)0x80), OR_OF_AND);
    to[0].all = _mm512_unpacklo_epi8(low, high);
    to[1].all = _mm512_unpackhi_epi8(low, high);
}

VEC_INLINE struct pairs pairs_load(const uint16_t *from)
{
    return (struct pairs){ _mm512_loadu_si512(from) };
}

VEC_INLINE void pairs_store(uint8_t *to, struct pairs a)
{
    _mm512_storeu_si512(to, a.all);
}

VEC_INLINE struct vec pairs_step(struct pairs w, struct pairs x, struct vec sum)
{
    return (struct vec){ _mm512_dpbf16_ps(sum.all, (__m512bh)w.all, (__m512bh)x.all) };
}

/* sum[m][n] = step(w[n], x[m], sum[m][n]); w[n] PAIRS_BYTES apart. */
VEC_INLINE void pairs_tile_step(uint32_t rows, uint32_t cols,
                                struct vec sum[VEC_X16_TILE_M][VEC_X16_TILE_N], const uint8_t *w,
                                const uint16_t *x, size_t x_stride)
{
    __m512i weight[VEC_X16_TILE_N];
    UNROLL for (uint32_t n = 0; n < cols; n++)
    {
        weight[n] = _mm512_loadu_si512(w + n * PAIRS_BYTES);
        __asm__("" : "+v"(weight[n]));
    }
    UNROLL for (uint32_t m = 0; m < rows; m++)
    {
        __m512i value = _mm512_loadu_si512(x + m * x_stride);
        __asm__("" : "+v"(value));
        UNROLL for (uint32_t n = 0; n < cols; n++)
            sum[m][n].all =
                _mm512_dpbf16_ps(sum[m][n].all, (__m512bh)weight[n], (__m512bh)value);
    }
}

#endif
