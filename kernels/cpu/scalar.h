/* Scalar arithmetic that the reference and the tails of faster op sets share: decoding of stored
 * types, exp, silu. Private to kernels/.
 *
 * Invariant: the vector versions compute the same operations in the same order, so they give the
 * same bits for every input (NaN payloads apart).
 */
#ifndef KERNELS_CPU_SCALAR_H
#define KERNELS_CPU_SCALAR_H

#include <math.h>
#include <stdint.h>

#include "base/le.h"
#include "kernels/kern.h"
#include "kernels/weave.h"

static inline float scalar_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t scalar_to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float scalar_from_bf16(uint16_t code)
{
    return scalar_from_bits((uint32_t)code << 16);
}

/* Round to nearest even; a NaN stays one, made quiet. */
static inline uint16_t scalar_to_bf16(float value)
{
    const uint32_t bits = scalar_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float scalar_from_f16(uint16_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x8000u) << 16;
    const uint32_t magnitude = code & 0x7fffu;
    if (magnitude >= 0x7c00u) {     /* infinity, or a NaN made quiet as F16C does */
        const uint32_t fraction = (magnitude & 0x3ffu) << 13;
        return scalar_from_bits(sign | 0x7f800000u | fraction | (fraction ? 0x400000u : 0));
    }
    if (magnitude >= 0x400u)
        return scalar_from_bits(sign | ((magnitude << 13) + (112u << 23)));
    const float small = (float)magnitude * 0x1p-24f;    /* subnormal or zero: exact */
    return scalar_from_bits(sign | scalar_to_bits(small));
}

/* e4m3 shifted into an IEEE half is the value / 256, subnormals included. */
static inline float scalar_from_fp8(uint8_t code)
{
    const uint32_t magnitude = code & 0x7fu;
    if (magnitude == 0x7fu)
        return scalar_from_bits(0x7fc00000u);
    return scalar_from_f16((uint16_t)((code & 0x80u) << 8 | magnitude << 7)) * 256.0f;
}

/* The two nibbles of a byte, sign-extended. */
static inline int scalar_int4_low(uint8_t byte)
{
    return (int)((byte & 15u) ^ 8u) - 8;
}

static inline int scalar_int4_high(uint8_t byte)
{
    return scalar_int4_low(byte >> 4);
}

/* Column `index` of a piece of woven FP8: what the mask of weave.h leaves, made 2^120 larger. */
static inline float scalar_from_woven(const uint8_t *piece, size_t index)
{
    const size_t dword = index % 16, code = index / 16;
    uint32_t bits = base_le_load32(piece + 4 * dword);
    if (code >= 2) bits = (bits & 0x0f0f0f0fu) << 4 | (bits >> 4 & 0x0f0f0f0fu);
    if (code % 2) bits <<= 16;
    return scalar_from_bits(bits & KERN_WOVEN_MASK) * KERN_WOVEN_UP;
}

/* Weight `index` of a row, unscaled; of woven ones `row` is a piece. */
static inline float scalar_weight(enum kern_dtype dtype, const void *row, size_t index)
{
    const uint8_t *bytes = row;
    switch (dtype) {
    case KERN_F32:
        return scalar_from_bits(base_le_load32(bytes + 4 * index));
    case KERN_F16:
        return scalar_from_f16(base_le_load16(bytes + 2 * index));
    case KERN_BF16:
        return scalar_from_bf16(base_le_load16(bytes + 2 * index));
    case KERN_FP8_E4M3:
        return scalar_from_fp8(bytes[index]);
    case KERN_INT8:
        return (float)(int8_t)bytes[index];
    case KERN_INT4:
        bytes += index / KERN_INT4_BLOCK * (KERN_INT4_BLOCK / 2) + index % (KERN_INT4_BLOCK / 2);
        return (float)(index % KERN_INT4_BLOCK < KERN_INT4_BLOCK / 2 ? scalar_int4_low(*bytes)
                                                                     : scalar_int4_high(*bytes));
    case KERN_FP8_WOVEN:
        return scalar_from_woven(bytes, index);
    case KERN_DTYPE_COUNT:
        break;
    }
    return 0;
}

/* Scales of row n; NULL without scales. */
static inline const uint8_t *scalar_scales(const struct kern_matrix *w, uint32_t n)
{
    const size_t size = kern_dtype_grouped(w->dtype) ? 2 : 4;
    if (!w->scales) return NULL;
    const size_t stride = (w->cols + w->scale_cols - 1) / w->scale_cols;
    return (const uint8_t *)w->scales + size * (size_t)(n / w->scale_rows) * stride;
}

static inline float scalar_scale(enum kern_dtype dtype, const uint8_t *scales, size_t index)
{
    if (kern_dtype_grouped(dtype)) return scalar_from_bf16(base_le_load16(scales + 2 * index));
    return scalar_from_bits(base_le_load32(scales + 4 * index));
}

/* Activations as integers (kern.h). Plain loops: each op set has them compiled for its own
 * processor. */
#define X8_ROUND 0x1.8p23f /* added, it leaves a whole number in the low bits */
#define X8_LEAST 0x1p-100f
#define X8_BASE 254.0f
#define X8_BASE_2 64516.0f

/* The nearest whole number of *rest / base, which is taken off. */
static inline int8_t scalar_x8_digit(float *rest, float base)
{
    const float rounded = *rest * (1.0f / base) + X8_ROUND;
    *rest -= (rounded - X8_ROUND) * base; /* exact: fewer bits than *rest had */
    return (int8_t)(scalar_to_bits(rounded) - scalar_to_bits(X8_ROUND));
}

/* The codes of n columns of one group, of each digit KERN_X8_SPAN after the one before; returns
 * their scale. */
static inline float scalar_x8_group(int8_t *codes, const float *x, uint32_t n, uint32_t digits)
{
    const float all = digits == KERN_X8_FAST ? 127.0f : 127.0f * X8_BASE_2;
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t size = scalar_to_bits(x[i]) & 0x7fffffffu;
        most = size > most ? size : most;
    }
    const float largest = scalar_from_bits(most);
    if (!(largest >= X8_LEAST) || most >= 0x7f800000u) {
        for (uint32_t d = 0; d < digits; d++)
            memset(codes + d * KERN_X8_SPAN, 0, n);
        return most >= 0x7f800000u ? scalar_from_bits(0x7fc00000u) : 0.0f;
    }
    const float inverse = all / largest;
    for (uint32_t i = 0; digits == KERN_X8_FAST && i < n; i++) {
        float rest = x[i] * inverse;
        codes[i] = scalar_x8_digit(&rest, 1.0f);
    }
    for (uint32_t i = 0; digits == KERN_X8_FULL && i < n; i++) {
        float rest = x[i] * inverse;
        codes[i] = scalar_x8_digit(&rest, X8_BASE_2);
        codes[KERN_X8_SPAN + i] = scalar_x8_digit(&rest, X8_BASE);
        codes[2 * KERN_X8_SPAN + i] = scalar_x8_digit(&rest, 1.0f);
    }
    return largest / all;
}

/* One span of n columns, 1..KERN_X8_SPAN. */
static inline void scalar_x8_span(uint8_t *span, const float *x, uint32_t n, int32_t moved,
                                  uint32_t group, uint32_t digits)
{
    enum { GROUPS = KERN_X8_SPAN / KERN_GROUP_SMALL };
    int8_t *codes = (int8_t *)span;
    int32_t *starts = (int32_t *)(void *)(span + digits * KERN_X8_SPAN);
    int32_t *both = starts + digits * GROUPS;
    float *scales = (float *)(void *)(both + digits * GROUPS);
    if (n < KERN_X8_SPAN) memset(span, 0, digits * KERN_X8_SPAN);
    for (uint32_t g = 0; g < GROUPS; g++) {
        const uint32_t k = g * group;
        int32_t sum[KERN_X8_FULL] = { 0 };
        scales[g] = 0;
        if (k < n)
            scales[g] = scalar_x8_group(codes + k, x + k, n - k < group ? n - k : group, digits);
        for (uint32_t d = 0; d < digits; d++) {
            const int8_t *digit = codes + d * KERN_X8_SPAN + k;
            for (uint32_t i = 0; k < n && i < group; i++) sum[d] += digit[i];
            starts[g * digits + d] = -moved * sum[d];
            both[g * digits + d] = -moved * sum[d] * KERN_X8_BOTH;
        }
    }
}

static inline void scalar_to_x8(void *row, const float *x, uint32_t n, enum kern_dtype dtype,
                                uint32_t group, uint32_t digits)
{
    const int32_t moved = dtype == KERN_INT8 ? 128 : 8;
    uint8_t *span = row;
    for (uint32_t k = 0; k < n; k += KERN_X8_SPAN, span += kern_x8_span_bytes(digits)) {
        const uint32_t count = n - k < KERN_X8_SPAN ? n - k : KERN_X8_SPAN;
        scalar_x8_span(span, x + k, count, moved, group, digits);
    }
}

/* exp: x = n ln2 + r with |r| <= ln2 / 2, then a polynomial of degree 6 (fitted for least relative
 * error, see README.md), then times 2^n in two exact halves so that results below the normal range
 * round once. Outside [-104, 89] the result is 0 or infinity anyway. */
#define EXP_MIN (-104.0f)
#define EXP_MAX 89.0f
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_LN2_HIGH 0x1.62e400p-1f
#define EXP_LN2_LOW 0x1.7f7d1cp-20f
#define EXP_ROUND 0x1.8p23f
#define EXP_C2 0x1.fffffcp-2f
#define EXP_C3 0x1.555492p-3f
#define EXP_C4 0x1.5558f2p-5f
#define EXP_C5 0x1.123a20p-7f
#define EXP_C6 0x1.6a23cep-10f

static inline float scalar_exp(float x)
{
    x = x > EXP_MAX ? EXP_MAX : x;
    x = x < EXP_MIN ? EXP_MIN : x;
    const float shifted = fmaf(x, EXP_LOG2E, EXP_ROUND);
    const float n = shifted - EXP_ROUND;
    float r = fmaf(n, -EXP_LN2_HIGH, x);
    r = fmaf(n, -EXP_LN2_LOW, r);
    float p = fmaf(EXP_C6, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    const uint32_t whole = scalar_to_bits(shifted) - scalar_to_bits(EXP_ROUND);
    const uint32_t half = (uint32_t)((int32_t)whole >> 1);
    const float scale_a = scalar_from_bits((half + 127u) << 23);
    const float scale_b = scalar_from_bits((whole - half + 127u) << 23);
    return p * scale_a * scale_b;
}

static inline float scalar_silu(float x)
{
    return x / (1.0f + scalar_exp(-x));
}

#endif
