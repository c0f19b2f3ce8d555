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

enum { PAIRS_BYTES = 64 };

struct pairs {
    __m512i all;
};

/* Tables by type: FP8 and INT8 lower and upper bytes of 128 codes, INT4 words of 16. */
struct pairs_tables {
    __m512i low[2], high[2];
};

/* bf16 of 0..127. */
#define X16_LOG2(m) \
    ((m) < 2 ? 0 : (m) < 4 ? 1 : (m) < 8 ? 2 : (m) < 16 ? 3 : (m) < 32 ? 4 : (m) < 64 ? 5 : 6)
#define X16_CODE(m) \
    ((m) == 0 ? 0 : ((127 + X16_LOG2(m)) << 7 | (((m) << (7 - X16_LOG2(m))) & 0x7f)))
#define X16_LOW(m) (X16_CODE(m) & 0xff)
#define X16_HIGH(m) (X16_CODE(m) >> 8)
#define X16_OF_4(of, m) of(m), of((m) + 1), of((m) + 2), of((m) + 3)
#define X16_OF_16(of, m) \
    X16_OF_4(of, m), X16_OF_4(of, (m) + 4), X16_OF_4(of, (m) + 8), X16_OF_4(of, (m) + 12)
#define X16_OF_64(of, m) \
    X16_OF_16(of, m), X16_OF_16(of, (m) + 16), X16_OF_16(of, (m) + 32), X16_OF_16(of, (m) + 48)

VEC_INLINE struct pairs_tables pairs_tables_of(enum kern_dtype dtype)
{
    static const uint8_t low[128] __attribute__((aligned(64))) = { X16_OF_64(X16_LOW, 0),
                                                                   X16_OF_64(X16_LOW, 64) };
    static const uint8_t high[128] __attribute__((aligned(64))) = { X16_OF_64(X16_HIGH, 0),
                                                                    X16_OF_64(X16_HIGH, 64) };
    /* The lookup sees five bits: the fifth is another nibble's. */
    static const uint16_t nibbles[32] __attribute__((aligned(64))) = {
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, /* 0..7 */
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, /* -8..-1 */
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80
    };
    struct pairs_tables t = { { _mm512_setzero_si512() }, { _mm512_setzero_si512() } };
    if (dtype == KERN_FP8_E4M3) {
        const struct vec_fp8 fp8 = vec_fp8_tables();
        t = (struct pairs_tables){ { fp8.low[0], fp8.low[1] }, { fp8.high[0], fp8.high[1] } };
    } else if (dtype == KERN_INT8) {
        t = (struct pairs_tables){ { _mm512_load_si512(low), _mm512_load_si512(low + 64) },
                                   { _mm512_load_si512(high), _mm512_load_si512(high + 64) } };
    } else if (dtype == KERN_INT4) {
        t.low[0] = _mm512_load_si512(nibbles);
    }
    return t;
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
    if (dtype == KERN_INT4) {
        to[0].all = _mm512_permutexvar_epi16(codes, t->low[0]);
        to[1].all = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), t->low[0]);
        to[2].all = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), t->low[0]);
        to[3].all = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), t->low[0]);
        return;
    }
    /* Seven bits are looked up: of INT8's magnitudes 128 finds 0, whose upper byte is put right. */
    const __m512i places = dtype == KERN_INT8 ? _mm512_abs_epi8(codes) : codes;
    const __m512i low = _mm512_permutex2var_epi8(t->low[0], places, t->low[1]);
    __m512i high = _mm512_permutex2var_epi8(t->high[0], places, t->high[1]);
    if (dtype == KERN_INT8)
        high = _mm512_mask_blend_epi8(_mm512_movepi8_mask(places), high,
                                      _mm512_set1_epi8(0x43)); /* 128 is 0x4300 */
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8((char)0x80), OR_OF_AND);
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

/* Four bf16 scales as two vectors of which each half has its own: 0, 1 and 2, 3, or `crossed` 0, 2
 * and 1, 3. */
VEC_INLINE void pairs_scales(bool crossed, const uint8_t *four, struct vec to[2])
{
    /* Bytes of a lane: two zeros, then those of the scale; a step of one scale is 2 each. */
    enum { FIRST = 0x01008080, STEP = 0x02020000 };
    const int next = crossed ? 2 : 1, other = crossed ? 1 : 2;
    const __m512i scales = _mm512_set1_epi64((long long)base_le_load64(four));
    const __m512i low = _mm512_inserti64x4(_mm512_set1_epi32(FIRST),
                                           _mm256_set1_epi32(FIRST + next * STEP), 1);
    const __m512i high = _mm512_inserti64x4(_mm512_set1_epi32(FIRST + other * STEP),
                                            _mm256_set1_epi32(FIRST + 3 * STEP), 1);
    to[0].all = _mm512_castsi512_ps(_mm512_shuffle_epi8(scales, low));
    to[1].all = _mm512_castsi512_ps(_mm512_shuffle_epi8(scales, high));
}

/* two[0] in the lower eight lanes, two[1] in the others. */
VEC_INLINE struct vec pairs_halves(const float *two)
{
    return (struct vec){ _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(two[0]),
                                              _mm512_set1_ps(two[1])) };
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
