/* Products with bf16 activations by vdpbf16ps: compiled with the flags of the AVX-512 set and
 * -mavx512bf16. */
#include "kernels/cpu/vec_x16_avx512.h"

#include "kernels/cpu/x16.h"

#include "kernels/cpu/simd_x16.h"

void kern_avx512_matmul_x16(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    simd_matmul_x16(args, row_begin, row_end);
}
