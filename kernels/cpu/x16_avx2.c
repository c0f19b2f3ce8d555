/* Products with bf16 activations in AVX2: compiled with -mavx2 -mfma -mf16c. Also what the AVX-512
 * set takes on a processor without vdpbf16ps. */
#include "kernels/cpu/vec_x16_avx2.h"

#include "kernels/cpu/x16.h"

#include "kernels/cpu/simd_x16.h"

#include "kernels/cpu/simd_x16_avx2.h"

void kern_avx2_matmul_x16(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    x16_check(args, row_begin, row_end);
    if (x16_wide_takes(args) && x16_wide_product(args, row_begin, row_end)) return;
    simd_matmul_x16(args, row_begin, row_end);
}

void kern_avx2_to_x16(uint16_t *row, const float *x, const struct kern_matrix *w, uint32_t k_blocks)
{
    scalar_to_x16(row, x, w, k_blocks);
}
