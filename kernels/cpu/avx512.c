/* The AVX-512 op set: compiled with -mavx512{f,bw,dq,vl,vbmi,vbmi2,vnni} -mgfni -mfma -mf16c,
 * chosen at run time. */
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/simd.h"

const struct kern_ops kern_ops_avx512 = SIMD_OPS("avx512", kern_avx2_matmul_x16);
const struct kern_ops kern_ops_avx512_bf16 = SIMD_OPS("avx512", kern_avx512_matmul_x16);
