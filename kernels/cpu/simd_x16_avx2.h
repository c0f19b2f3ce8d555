/* FP8 with scales for 128 columns, and BF16 without, against up to X16_WIDE_M operand rows that are
 * bf16, for the AVX2 set: the operand rows become f32 once a call, odd columns and even ones apart,
 * and several rows of weights share what is loaded of them. They lie a part of the range apart: as
 * many streams of memory, for the prefetcher draws from one alone but two thirds of what DRAM gives
 * a thread (README.md). Part of x16_avx2.c.
 *
 * Codes of FP8 become floats by a shift and a mask, as those of weave.h do: 2^-120 of their values,
 * zero and subnormals included, against operands that are 2^120 as large. So subnormal operands
 * count while FP8 is multiplied; operands and scales that are subnormal are made zeros before.
 *
 * Invariant: the bits of simd_x16.h, which takes what this does not (x16_wide_takes, a row with a
 * NaN among its codes, operands of 256 and more against FP8). */
#ifndef KERNELS_CPU_SIMD_X16_AVX2_H
#define KERNELS_CPU_SIMD_X16_AVX2_H

#include "kernels/weave.h"

enum { X16_WIDE_M = 8, X16_WIDE_STREAMS = 4, X16_WIDE_TOGETHER = 4 };
enum { X16_WIDE_ROOM = 65536 }; /* floats for which there is room on a stack */
enum { X16_WIDE_LINE = 32, X16_WIDE_FTZ = 0x8000 };

/* Columns whose sums stand alone: a cut with a scale, or as many as are added at a time. */
VEC_INLINE uint32_t x16_wide_piece(enum kern_dtype dtype)
{
    return dtype == KERN_FP8_E4M3 ? X16_CUT : KERN_X16_VECTOR;
}

struct x16_wide {
    const struct kern_matmul *args;
    const float *x; /* args->m rows of w->cols */
};

struct x16_wide_shape {
    enum kern_dtype dtype;
    uint32_t streams, count;
};

/* Sums by stream, operand row and half of the lanes. */
struct x16_wide_sums {
    __m256 at[X16_WIDE_STREAMS][X16_WIDE_TOGETHER][2];
};

/* Pairs of codes or of BF16 in eight lanes, a pair in the upper half or all of a dword. */
VEC_INLINE __m256i x16_wide_pairs(enum kern_dtype dtype, __m256i line, uint32_t v)
{
    if (dtype == KERN_BF16) return line;
    return v ? _mm256_unpackhi_epi16(line, line) : _mm256_unpacklo_epi16(line, line);
}

VEC_INLINE __m256 x16_wide_weights(enum kern_dtype dtype, __m256i pairs, bool even)
{
    if (dtype == KERN_BF16) {
        return _mm256_castsi256_ps(
            even ? _mm256_slli_epi32(pairs, 16)
                 : _mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
    }
    if (even) pairs = _mm256_slli_epi32(pairs, 8);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32(pairs, 4),
                                                _mm256_set1_epi32((int)KERN_WOVEN_MASK)));
}

/* Sums += a line of 32 bytes of each stream, whose lanes are the `half`-th eight. */
VEC_INLINE void x16_wide_line(struct x16_wide_shape s, uint32_t half,
                              const uint8_t *const from[X16_WIDE_STREAMS],
                              const float *const x[X16_WIDE_TOGETHER],
                              struct x16_wide_sums *sums, __m256i *seen)
{
    const uint32_t vectors = s.dtype == KERN_FP8_E4M3 ? 2 : 1;
    __m256i line[X16_WIDE_STREAMS];
    UNROLL for (uint32_t g = 0; g < s.streams; g++)
    {
        line[g] = _mm256_loadu_si256((const void *)from[g]);
        if (s.dtype == KERN_FP8_E4M3)
            *seen = _mm256_max_epu8(*seen, _mm256_or_si256(line[g], _mm256_set1_epi8((char)0x80)));
    }
    UNROLL for (uint32_t v = 0; v < vectors; v++)
    {
        __m256i pairs[X16_WIDE_STREAMS];
        UNROLL for (uint32_t g = 0; g < s.streams; g++)
            pairs[g] = x16_wide_pairs(s.dtype, line[g], v);
        UNROLL for (uint32_t even = 0; even < 2; even++)
        {
            __m256 value[X16_WIDE_TOGETHER];
            UNROLL for (uint32_t m = 0; m < s.count; m++)
                value[m] = _mm256_load_ps(x[m] + 16 * v + 8 * even);
            UNROLL for (uint32_t g = 0; g < s.streams; g++)
            {
                const __m256 weights = x16_wide_weights(s.dtype, pairs[g], even);
                UNROLL for (uint32_t m = 0; m < s.count; m++)
                {
                    __m256 *sum = &sums->at[g][m][half];
                    *sum = _mm256_fmadd_ps(weights, value[m], *sum);
                }
            }
        }
    }
}

/* Sums += a piece of each stream. */
VEC_INLINE void x16_wide_lines(struct x16_wide_shape s, const uint8_t *from[X16_WIDE_STREAMS],
                               const float *x[X16_WIDE_TOGETHER], struct x16_wide_sums *sums,
                               __m256i *seen)
{
    const uint32_t lines = s.dtype == KERN_FP8_E4M3 ? X16_CUT / X16_WIDE_LINE : 2;
    UNROLL for (uint32_t i = 0; i < lines; i++)
    {
        x16_wide_line(s, i % 2, from, x, sums, seen);
        UNROLL for (uint32_t g = 0; g < s.streams; g++) from[g] += X16_WIDE_LINE;
        UNROLL for (uint32_t m = 0; m < s.count; m++)
            x[m] += x16_wide_piece(s.dtype) / lines;
    }
}

VEC_INLINE __m256 x16_wide_scale(const uint8_t *scales, uint32_t cut)
{
    const __m256 scale = _mm256_set1_ps(scalar_scale(KERN_FP8_E4M3, scales, cut));
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 subnormal = _mm256_cmp_ps(_mm256_andnot_ps(sign, scale),
                                           _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
    return _mm256_blendv_ps(scale, _mm256_and_ps(scale, sign), subnormal);
}

VEC_INLINE void x16_wide_zero(struct x16_wide_shape s, struct x16_wide_sums *sums)
{
    UNROLL for (uint32_t g = 0; g < s.streams; g++)
    {
        UNROLL for (uint32_t m = 0; m < s.count; m++)
            sums->at[g][m][0] = sums->at[g][m][1] = _mm256_setzero_ps();
    }
}

/* Totals of columns [k, end) of rows n + g * apart and operand rows from m on. */
VEC_INLINE void x16_wide_range(struct x16_wide_shape s, const struct x16_wide *wide, uint32_t n,
                               uint32_t apart, uint32_t m, uint32_t k, uint32_t end,
                               struct x16_wide_sums *totals, __m256i *seen)
{
    const struct kern_matrix *w = wide->args->w;
    const uint8_t *from[X16_WIDE_STREAMS], *scales[X16_WIDE_STREAMS];
    const float *x[X16_WIDE_TOGETHER];
    UNROLL for (uint32_t g = 0; g < s.streams; g++)
    {
        scales[g] = scalar_scales(w, n + g * apart);
        from[g] = x16_row_at(w, s.dtype, n + g * apart) + x16_at(s.dtype, k);
    }
    UNROLL for (uint32_t i = 0; i < s.count; i++)
        x[i] = wide->x + (size_t)(m + i) * w->cols + k;
    x16_wide_zero(s, totals);
    if (s.dtype == KERN_BF16) {
        struct x16_wide_sums sums;
        x16_wide_zero(s, &sums);
        for (; k < end; k += x16_wide_piece(s.dtype)) x16_wide_lines(s, from, x, &sums, seen);
        *totals = sums;
        return;
    }
    for (; k < end; k += X16_CUT) {
        struct x16_wide_sums sums;
        x16_wide_zero(s, &sums);
        x16_wide_lines(s, from, x, &sums, seen);
        UNROLL for (uint32_t g = 0; g < s.streams; g++)
        {
            const __m256 scale = x16_wide_scale(scales[g], k / X16_CUT);
            UNROLL for (uint32_t i = 0; i < 2 * s.count; i++)
            {
                __m256 *total = &totals->at[g][i / 2][i % 2];
                *total = _mm256_fmadd_ps(sums.at[g][i / 2][i % 2], scale, *total);
            }
        }
    }
}

/* Outputs of rows n + g * apart and of operand rows from m on; false where a code was a NaN. */
VEC_INLINE bool x16_wide_dots(struct x16_wide_shape s, const struct x16_wide *wide, uint32_t n,
                              uint32_t apart, uint32_t m)
{
    const struct kern_matmul *args = wide->args;
    __m256i seen = _mm256_setzero_si256();
    for (uint32_t i = 0; i < args->k_blocks; i++) {
        struct x16_wide_sums totals;
        x16_wide_range(s, wide, n, apart, m, cpu_range_begin(args->w, i, args->k_blocks),
                       cpu_range_begin(args->w, i + 1, args->k_blocks), &totals, &seen);
        UNROLL for (uint32_t g = 0; g < s.streams; g++)
        {
            UNROLL for (uint32_t t = 0; t < s.count; t++)
            {
                float *y = args->y + (m + t) * args->y_stride + n + g * apart;
                const __m256 *total = totals.at[g][t];
                const float part = vec_tree((struct vec){ total[0], total[1] });
                *y = i ? *y + part : part;
            }
        }
    }
    const __m256i nan = _mm256_cmpeq_epi8(seen, _mm256_set1_epi8((char)0xff));
    return s.dtype == KERN_BF16 || _mm256_testz_si256(nan, nan);
}

/* All operand rows, of these as many together as there are registers for. */
VEC_INLINE bool x16_wide_all(enum kern_dtype dtype, uint32_t streams, bool one,
                             const struct x16_wide *wide, uint32_t n, uint32_t apart)
{
    bool good = true;
    uint32_t m = 0;
    if (!one) {
        for (; streams == 1 && wide->args->m - m >= 4; m += 4)
            good &= x16_wide_dots((struct x16_wide_shape){ dtype, streams, 4 }, wide, n, apart, m);
        for (; wide->args->m - m >= 2; m += 2)
            good &= x16_wide_dots((struct x16_wide_shape){ dtype, streams, 2 }, wide, n, apart, m);
    }
    if (m < wide->args->m)
        good &= x16_wide_dots((struct x16_wide_shape){ dtype, streams, 1 }, wide, n, apart, m);
    return good;
}

/* Rows [n, n + apart) and as many after each of them as there are streams. */
VEC_INLINE void x16_wide_rows(enum kern_dtype dtype, uint32_t streams, bool one,
                              const struct x16_wide *wide, uint32_t n, uint32_t apart)
{
    for (uint32_t end = n + apart; n < end; n++) {
        if (__builtin_expect(x16_wide_all(dtype, streams, one, wide, n, apart), 1)) continue;
        for (uint32_t g = 0; g < streams; g++)
            simd_matmul_x16(wide->args, n + g * apart, n + g * apart + 1);
    }
}

#define X16_WIDE_OF(name, type, streams, one) \
    static __attribute__((noinline)) void name(const struct x16_wide *wide, uint32_t n, \
                                               uint32_t apart) \
    { \
        x16_wide_rows(type, streams, one, wide, n, apart); \
    }

X16_WIDE_OF(x16_wide_fp8_four, KERN_FP8_E4M3, 4, true)
X16_WIDE_OF(x16_wide_fp8_one, KERN_FP8_E4M3, 1, true)
X16_WIDE_OF(x16_wide_fp8_two, KERN_FP8_E4M3, 2, false)
X16_WIDE_OF(x16_wide_fp8_few, KERN_FP8_E4M3, 1, false)
X16_WIDE_OF(x16_wide_bf16_four, KERN_BF16, 4, true)
X16_WIDE_OF(x16_wide_bf16_one, KERN_BF16, 1, true)
X16_WIDE_OF(x16_wide_bf16_two, KERN_BF16, 2, false)
X16_WIDE_OF(x16_wide_bf16_few, KERN_BF16, 1, false)

/* An operand row as f32: of each line of weights the odd columns of its eight lanes, then the even
 * ones, of FP8 of both vectors of a span. False where one times `up` is none. */
VEC_INLINE bool x16_wide_row(float *to, const uint16_t *from, enum kern_dtype dtype, uint32_t n,
                             float up)
{
    const uint32_t span = x16_span(dtype), vectors = span / KERN_X16_VECTOR;
    __m256i most = _mm256_setzero_si256(); /* magnitudes as integers: a NaN is larger than all */
    for (uint32_t k = 0; k < n; k += span) {
        for (uint32_t i = 0; i < 2 * vectors; i++, to += 16) {
            const uint32_t v = i % vectors, half = i / vectors;
            struct pairs pair;
            pairs_set(&pair, 0, _mm256_loadu_si256(
                                    (const void *)(from + k + v * KERN_X16_VECTOR + 16 * half)));
            const __m256 part[2] = { pair.odd[0], pair.even[0] };
            for (uint32_t p = 0; p < 2; p++) {
                most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(part[p]),
                                                               _mm256_set1_epi32(0x7fffffff)));
                _mm256_store_ps(to + 8 * p, _mm256_mul_ps(part[p], _mm256_set1_ps(up)));
            }
        }
    }
    const __m256i beyond = _mm256_cmpgt_epi32(
        most, _mm256_set1_epi32((int)scalar_to_bits(0x1p8f) - 1));
    return dtype == KERN_BF16 || _mm256_testz_si256(beyond, beyond);
}

/* Whether x16_wide can have it: whole pieces in each block of columns. */
static bool x16_wide_takes(const struct kern_matmul *args)
{
    const struct kern_matrix *w = args->w;
    const bool fp8 = w->dtype == KERN_FP8_E4M3;
    /* BF16 has little to decode: from five operand rows on simd_x16.h is as fast or faster. */
    bool takes = args->m <= (fp8 ? X16_WIDE_M : X16_WIDE_TOGETHER) &&
                 (size_t)args->m * w->cols <= X16_WIDE_ROOM;
    takes &= fp8 ? w->scales && w->scale_cols == X16_CUT && kern_weave_pays(&kern_ops_avx2)
                 : w->dtype == KERN_BF16 && !w->scales;
    for (uint32_t i = 1; takes && i <= args->k_blocks; i++)
        takes = cpu_range_begin(w, i, args->k_blocks) % x16_wide_piece(w->dtype) == 0;
    return takes;
}

/* Rows [n, end) by `streams` where there are as many. */
static void x16_wide_part(const struct x16_wide *wide, uint32_t streams, uint32_t n,
                          uint32_t apart)
{
    const bool fp8 = wide->args->w->dtype == KERN_FP8_E4M3;
    if (wide->args->m == 1) {
        if (streams == 4) (fp8 ? x16_wide_fp8_four : x16_wide_bf16_four)(wide, n, apart);
        else (fp8 ? x16_wide_fp8_one : x16_wide_bf16_one)(wide, n, apart);
    } else {
        if (streams == 2) (fp8 ? x16_wide_fp8_two : x16_wide_bf16_two)(wide, n, apart);
        else (fp8 ? x16_wide_fp8_few : x16_wide_bf16_few)(wide, n, apart);
    }
}

/* False where operands are too large. */
static __attribute__((noinline)) bool x16_wide_product(const struct kern_matmul *args,
                                                       uint32_t row_begin, uint32_t row_end)
{
    _Alignas(32) float x[X16_WIDE_ROOM];
    const struct kern_matrix *w = args->w;
    const bool fp8 = w->dtype == KERN_FP8_E4M3;
    const struct x16_wide wide = { args, x };
    const unsigned before = _mm_getcsr();
    bool fits = true;
    _mm_setcsr(before | X16_MXCSR_FLUSH);
    for (uint32_t m = 0; fits && m < args->m; m++)
        fits = x16_wide_row(x + (size_t)m * w->cols, args->x16 + m * args->x16_stride, w->dtype,
                            w->cols, fp8 ? KERN_WOVEN_UP : 1.0f);
    if (fp8) _mm_setcsr(before | X16_WIDE_FTZ);
    const uint32_t streams = args->m == 1 ? 4 : args->m < 4 ? 2 : 1;
    if (fits) {
        const uint32_t apart = (row_end - row_begin) / streams;
        x16_wide_part(&wide, streams, row_begin, apart);
        row_begin += streams * apart;
        x16_wide_part(&wide, 1, row_begin, row_end - row_begin);
    }
    _mm_setcsr(before);
    return fits;
}

#endif
