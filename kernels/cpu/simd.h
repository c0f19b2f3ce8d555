/* The operations of kern.h over sixteen lanes, written once for AVX2 and AVX-512: a file includes
 * vec_avx2.h or vec_avx512.h, then this, and fills its table from these statics. Private to
 * kernels/cpu; the parts stand in simd_matmul.h (products), simd_mla.h and simd_vector.h.
 *
 * Invariant: same bits as ref_*.c for every input. What is free is only which outputs are worked on
 * together and where running sums wait between visits.
 */
#ifndef KERNELS_CPU_SIMD_H
#define KERNELS_CPU_SIMD_H

#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"

VEC_INLINE size_t dtype_bytes(enum kern_dtype dtype)
{
    return dtype == KERN_F32 ? 4 : dtype == KERN_FP8_E4M3 ? 1 : 2;
}

/* Sixteen weights, unscaled. */
VEC_INLINE struct vec weight_load(enum kern_dtype dtype, const uint8_t *from)
{
    switch (dtype) {
    case KERN_F16:
        return vec_from_f16(from);
    case KERN_BF16:
        return vec_from_bf16(from);
    case KERN_FP8_E4M3:
        return vec_from_fp8(from);
    default:
        return vec_load((const void *)from);
    }
}

/* The first n < 16 weights, the other lanes zero; nothing beyond them is touched. */
VEC_INLINE struct vec weight_load_part(enum kern_dtype dtype, const uint8_t *from, uint32_t n)
{
    uint8_t codes[KERN_LANES * 4] = { 0 };
    memcpy(codes, from, n * dtype_bytes(dtype));
    return weight_load(dtype, codes);
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
#include "kernels/cpu/simd_mla.h"
#include "kernels/cpu/simd_vector.h"

/* Rotation and routing are a few hundred numbers a token: the reference serves. */
#define SIMD_OPS(set_name) \
    { \
        .name = set_name, .matmul = simd_matmul, .matmul_t = simd_matmul_t, \
        .rmsnorm = simd_rmsnorm, .swiglu = simd_swiglu, .rope = kern_ref_rope, .mla = simd_mla, \
        .axpy = simd_axpy, .add = simd_add, .gate = kern_ref_gate, .to_f32 = simd_to_f32, \
        .to_bf16 = simd_to_bf16, \
    }

#endif
