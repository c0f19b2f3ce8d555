/* The operations of kern.h over sixteen lanes, written once for AVX2 and AVX-512: a file includes
 * vec_avx2.h or vec_avx512.h, then this, and fills its table from these statics. Private to
 * kernels/cpu; the parts stand in simd_matmul.h (products; it takes in simd_fp8.h, simd_woven.h,
 * simd_panel.h with its tiles and simd_few.h), simd_x8.h, simd_mla.h and simd_vector.h.
 *
 * Invariant: same bits as ref_*.c for every input. What is free is only which outputs are worked on
 * together and where running sums wait between visits.
 */
#ifndef KERNELS_CPU_SIMD_H
#define KERNELS_CPU_SIMD_H

#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"
#include "kernels/tile.h"

/* Of all types but INT4. */
VEC_INLINE size_t dtype_bytes(enum kern_dtype dtype)
{
    switch (dtype) {
    case KERN_F32:
        return 4;
    case KERN_FP8_E4M3:
    case KERN_FP8_WOVEN:
    case KERN_INT8:
        return 1;
    default:
        return 2;
    }
}

VEC_INLINE size_t row_bytes(enum kern_dtype dtype, uint32_t cols)
{
    if (dtype == KERN_INT4)
        return ((size_t)cols + KERN_INT4_BLOCK - 1) / KERN_INT4_BLOCK * (KERN_INT4_BLOCK / 2);
    return cols * dtype_bytes(dtype);
}

/* Sixteen weights of a row from column k on, unscaled; INT4, woven: k is a multiple of 16. Of woven
 * ones `row` is woven_row_at. */
VEC_INLINE struct vec weight_load(enum kern_dtype dtype, const uint8_t *row, size_t k)
{
    enum { HALF = KERN_INT4_BLOCK / 2 };
    switch (dtype) {
    case KERN_F16:
        return vec_from_f16(row + 2 * k);
    case KERN_BF16:
        return vec_from_bf16(row + 2 * k);
    case KERN_FP8_E4M3:
        return vec_from_fp8(row + k);
    case KERN_FP8_WOVEN:
        return vec_from_woven(row + k / KERN_WOVEN * KERN_WOVEN, k % KERN_WOVEN / KERN_LANES);
    case KERN_INT8:
        return vec_from_int8(row + k);
    case KERN_INT4: {
        const struct vec_pairs pairs = vec_int4_pairs(row + k / KERN_INT4_BLOCK * HALF + k % HALF);
        return k % KERN_INT4_BLOCK < HALF ? vec_int4_low(pairs) : vec_int4_high(pairs);
    }
    default:
        return vec_load((const void *)(row + 4 * k));
    }
}

/* The first n < 16 weights, the other lanes zero; nothing beyond them is touched, but a row of INT4
 * has room for whole vectors. */
VEC_INLINE struct vec weight_load_part(enum kern_dtype dtype, const uint8_t *row, size_t k,
                                       uint32_t n)
{
    uint8_t codes[KERN_LANES * 4] = { 0 };
    if (dtype == KERN_INT4) {
        float values[KERN_LANES];
        vec_store(values, weight_load(dtype, row, k));
        return vec_load_part(values, n);
    }
    memcpy(codes, row + k * dtype_bytes(dtype), n * dtype_bytes(dtype));
    return weight_load(dtype, codes, 0);
}

/* scalar_exp, lane by lane. */
VEC_INLINE struct vec vec_exp(struct vec x)
{
    const struct vec one = vec_set1(1.0f);
    x = vec_min(vec_set1(EXP_MAX), x);
    x = vec_max(vec_set1(EXP_MIN), x);
    const struct vec shifted = vec_fma(x, vec_set1(EXP_LOG2E), vec_set1(EXP_ROUND));
    const struct vec n = vec_sub(shifted, vec_set1(EXP_ROUND));
    struct vec r = vec_fma(n, vec_set1(-EXP_LN2_HIGH), x);
    r = vec_fma(n, vec_set1(-EXP_LN2_LOW), r);
    struct vec p = vec_fma(vec_set1(EXP_C6), r, vec_set1(EXP_C5));
    p = vec_fma(p, r, vec_set1(EXP_C4));
    p = vec_fma(p, r, vec_set1(EXP_C3));
    p = vec_fma(p, r, vec_set1(EXP_C2));
    p = vec_fma(p, r, one);
    p = vec_fma(p, r, one);
    return vec_scale(p, shifted);
}

#include "kernels/cpu/simd_matmul.h"
#include "kernels/cpu/simd_x8.h"
#include "kernels/cpu/simd_mla.h"
#include "kernels/cpu/simd_vector.h"

/* Rotation and routing are a few hundred numbers a token: the reference serves. */
#define SIMD_OPS(set_name, product_x16) \
    { \
        .name = set_name, .matmul = simd_matmul, .matmul_t = simd_matmul_t, \
        .rmsnorm = simd_rmsnorm, .swiglu = simd_swiglu, .rope = kern_ref_rope, .mla = simd_mla, \
        .axpy = simd_axpy, .add = simd_add, .gate = kern_ref_gate, .to_f32 = simd_to_f32, \
        .to_bf16 = simd_to_bf16, .matmul_x8 = simd_matmul_x8, .to_x8 = simd_to_x8, \
        .highest = simd_highest, .shares = simd_shares, \
        .matmul_x16 = product_x16, .to_x16 = kern_avx2_to_x16, \
    }

#endif
