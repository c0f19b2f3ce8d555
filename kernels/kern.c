#include "kernels/kern.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/must.h"
#include "kernels/cpu/cpu.h"

const struct kern_ops kern_ops_reference = {
    .name = "reference",
    .matmul = kern_ref_matmul,
    .matmul_t = kern_ref_matmul_t,
    .rmsnorm = kern_ref_rmsnorm,
    .swiglu = kern_ref_swiglu,
    .rope = kern_ref_rope,
    .mla = kern_ref_mla,
    .axpy = kern_ref_axpy,
    .add = kern_ref_add,
    .gate = kern_ref_gate,
    .to_f32 = kern_ref_to_f32,
    .to_bf16 = kern_ref_to_bf16,
    .matmul_x8 = kern_ref_matmul_x8,
    .to_x8 = kern_ref_to_x8,
    .highest = kern_ref_highest,
    .shares = kern_ref_shares,
    .matmul_x16 = kern_ref_matmul_x16,
    .to_x16 = kern_ref_to_x16,
};

size_t kern_dtype_bytes(enum kern_dtype dtype)
{
    switch (dtype) {
    case KERN_F32:
        return 4;
    case KERN_F16:
    case KERN_BF16:
        return 2;
    case KERN_FP8_E4M3:
    case KERN_FP8_WOVEN:
    case KERN_INT8:
        return 1;
    case KERN_INT4:
    case KERN_DTYPE_COUNT:
        break;
    }
    MUST(!"a dtype with whole bytes for each weight");
    return 0;
}

size_t kern_row_bytes(enum kern_dtype dtype, uint32_t cols)
{
    if (dtype == KERN_INT4)
        return ((size_t)cols + KERN_INT4_BLOCK - 1) / KERN_INT4_BLOCK * (KERN_INT4_BLOCK / 2);
    return cols * kern_dtype_bytes(dtype);
}

#if defined(__x86_64__)
/* What the AVX2 set is compiled for; __builtin_cpu_supports also asks whether the system saves the
 * wide registers. */
static bool has_avx2(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_F16C))
        return false;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#if defined(KERN_WITH_AVX512)
/* With byte tables and integer dot products (Ice Lake, Zen 4 and later): without them AVX-512 won
 * nothing over AVX2. */
static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("gfni");
}
#endif
#endif

const struct kern_ops *kern_ops_variant(enum kern_cpu variant)
{
    switch (variant) {
    case KERN_CPU_REFERENCE:
        return &kern_ops_reference;
    case KERN_CPU_AVX2:
#if defined(__x86_64__)
        if (has_avx2())
            return &kern_ops_avx2;
#endif
        break;
    case KERN_CPU_AVX512:
#if defined(__x86_64__) && defined(KERN_WITH_AVX512)
        if (has_avx512())
            return __builtin_cpu_supports("avx512bf16") ? &kern_ops_avx512_bf16 : &kern_ops_avx512;
#endif
        break;
    case KERN_CPU_BEST:
        break;
    }
    return NULL;
}

bool kern_ops_has_dot_bf16(const struct kern_ops *ops)
{
#if defined(__x86_64__) && defined(KERN_WITH_AVX512)
    return ops == &kern_ops_avx512_bf16;
#else
    (void)ops;
    return false;
#endif
}

const struct kern_ops *kern_ops_cpu(enum kern_cpu cap)
{
    const struct kern_ops *ops = NULL;
    for (int variant = (int)cap; !ops; variant--)
        ops = kern_ops_variant((enum kern_cpu)variant);
    return ops;
}
