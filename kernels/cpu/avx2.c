/* The AVX2 op set: compiled with -mavx2 -mfma -mf16c, chosen at run time. */
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/simd.h"

const struct kern_ops kern_ops_avx2 = SIMD_OPS("avx2", kern_avx2_matmul_x16);
