/* Pairs of bf16 in sixteen lanes as f32 in AVX2 registers, multiplied by two multiply-adds: what
 * vdpbf16ps does, where subnormals are zeros (simd_x16.h sees to it).
 * Needs vec_avx2.h's flags. Private to kernels/cpu.
 */
#ifndef KERNELS_CPU_VEC_X16_AVX2_H
#define KERNELS_CPU_VEC_X16_AVX2_H

#include "kernels/cpu/vec_avx2.h"

/* 2 x 2 sums of two registers, and a pair of weights and of operands of four. */
enum { VEC_X16_ROWS = 2, VEC_X16_TILE_M = 2, VEC_X16_TILE_N = 2, VEC_X16_TILE_SCALED_N = 2 };
/* A few operand rows with scales: rows of weights beside one another, and how many are a few. */
enum { VEC_X16_SCALED_ROWS = 1, VEC_X16_FEW = 2 };

enum { PAIRS_BYTES = 128 };

/* Odd and even columns of lanes 0..7 and 8..15. */
struct pairs {
    __m256 odd[2], even[2];
};

/* Nothing is looked up in more than sixteen bytes. */
struct pairs_tables {
    int none;
};

VEC_INLINE struct pairs_tables pairs_tables_of(enum kern_dtype dtype)
{
    (void)dtype;
    return (struct pairs_tables){ 0 };
}

/* Lanes of two bf16 in register `half`. */
VEC_INLINE void pairs_set(struct pairs *to, uint32_t half, __m256i words)
{
    to->odd[half] = _mm256_castsi256_ps(
        _mm256_and_si256(words, _mm256_set1_epi32((int)0xffff0000)));
    to->even[half] = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

/* Lower and upper bytes of the bf16 of 32 FP8 codes; 8 are zero or subnormal and one a NaN. */
VEC_INLINE void pairs_fp8_bytes(__m256i codes, __m256i *low, __m256i *high)
{
    const __m256i low_table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i high_table = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi8(0x7f));
    const __m256i small = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), magnitude);
    const __m256i nan = _mm256_cmpeq_epi8(magnitude, _mm256_set1_epi8(0x7f));
    const __m256i nibble = _mm256_and_si256(codes, _mm256_set1_epi8(0x0f));
    const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(magnitude, 4),
                                           _mm256_set1_epi8(0x07));
    *low = _mm256_blendv_epi8(_mm256_slli_epi16(nibble, 4),
                              _mm256_shuffle_epi8(low_table, magnitude), small);
    *high = _mm256_blendv_epi8(_mm256_add_epi8(upper, _mm256_set1_epi8(0x3c)),
                               _mm256_shuffle_epi8(high_table, magnitude), small);
    *low = _mm256_or_si256(*low, nan);
    *high = _mm256_or_si256(*high, _mm256_and_si256(codes, _mm256_set1_epi8((char)0x80)));
    *high = _mm256_or_si256(*high, _mm256_and_si256(nan, _mm256_set1_epi8(0x7f)));
}

/* 64 bytes as the vectors of a span (kernels/x16.h); each half of them gives eight lanes. */
VEC_INLINE void pairs_decode(const struct pairs_tables *tables, enum kern_dtype dtype,
                             const uint8_t *from, struct pairs *to)
{
    (void)tables;
    UNROLL for (uint32_t half = 0; half < 2; half++)
    {
        const __m256i codes = _mm256_loadu_si256((const void *)(from + 32 * half));
        if (dtype == KERN_BF16) {
            pairs_set(&to[0], half, codes);
        } else {
            __m256i low, high;
            pairs_fp8_bytes(codes, &low, &high);
            pairs_set(&to[0], half, _mm256_unpacklo_epi8(low, high));
            pairs_set(&to[1], half, _mm256_unpackhi_epi8(low, high));
        }
    }
}

VEC_INLINE struct pairs pairs_load(const uint16_t *from)
{
    struct pairs a;
    pairs_set(&a, 0, _mm256_loadu_si256((const void *)from));
    pairs_set(&a, 1, _mm256_loadu_si256((const void *)(from + 16)));
    return a;
}

VEC_INLINE void pairs_store(uint8_t *to, struct pairs a)
{
    float *lanes = (float *)(void *)to;
    _mm256_storeu_ps(lanes, a.odd[0]);
    _mm256_storeu_ps(lanes + 8, a.odd[1]);
    _mm256_storeu_ps(lanes + 16, a.even[0]);
    _mm256_storeu_ps(lanes + 24, a.even[1]);
}

VEC_INLINE struct vec pairs_step(struct pairs w, struct pairs x, struct vec sum)
{
    sum.low = _mm256_fmadd_ps(w.odd[0], x.odd[0], sum.low);
    sum.high = _mm256_fmadd_ps(w.odd[1], x.odd[1], sum.high);
    sum.low = _mm256_fmadd_ps(w.even[0], x.even[0], sum.low);
    sum.high = _mm256_fmadd_ps(w.even[1], x.even[1], sum.high);
    return sum;
}

/* sum[m][n] = step(w[n], x[m], sum[m][n]); w[n] PAIRS_BYTES apart. Half by half, odd columns
 * first: so few values are at hand at a time that nothing is loaded twice. */
VEC_INLINE void pairs_tile_step(uint32_t rows, uint32_t cols,
                                struct vec sum[VEC_X16_TILE_M][VEC_X16_TILE_N], const uint8_t *w,
                                const uint16_t *x, size_t x_stride)
{
    UNROLL for (uint32_t half = 0; half < 2; half++)
    {
        struct pairs value[VEC_X16_TILE_M];
        UNROLL for (uint32_t m = 0; m < rows; m++)
            pairs_set(&value[m], half,
                      _mm256_loadu_si256((const void *)(x + m * x_stride + 16 * half)));
        UNROLL for (uint32_t even = 0; even < 2; even++)
        {
            UNROLL for (uint32_t n = 0; n < cols; n++)
            {
                const float *lanes = (const void *)(w + n * PAIRS_BYTES);
                const __m256 weight = vec_half_once(lanes + 16 * even + 8 * half);
                UNROLL for (uint32_t m = 0; m < rows; m++)
                {
                    const __m256 operand = even ? value[m].even[half] : value[m].odd[half];
                    __m256 *to = half ? &sum[m][n].high : &sum[m][n].low;
                    *to = _mm256_fmadd_ps(weight, operand, *to);
                }
            }
        }
    }
}

#endif
