/* Products against activations rounded to bf16 (engine.activations: bf16): which matrices take
 * them, how such a row of activations lies, and the order of their sums.
 *
 * Invariant (same bits): as kern.h has it, in every CPU op set, but in an order of its own, that of
 * vdpbf16ps: a lane multiplies pairs of neighbouring columns,
 *
 *   step(w, x, sum)     sum = fma(w of the odd column, x of the odd column, sum), then the same for
 *                       the even one. Every operation of the product (the scaling, the tree and the
 *                       sum of blocks too) takes subnormal operands as zeros and gives zeros for
 *                       results that are subnormal after rounding.
 *   span                the columns that are decoded together: BF16 32, FP8 64;
 *                       a vector is 16 lanes of 2 columns, a span 1 or 2 vectors. Which column
 *                       stands where follows from how codes are unpacked: kern_x16_place.
 *   run                 spans in ascending order, in each the vectors in ascending order, the lanes
 *                       starting at zero: a cut of kern.h's block-scaled types, without scales
 *                       all columns. A cut begins with a span of its own, filled up with zeros.
 *   matmul_x16          total_lane = fma(run_lane, scale, total_lane), runs ascending (without
 *                       scales total = run); then the tree; with k_blocks = 8 the sum of the
 *                       blocks, each begun by a span of its own, in ascending order.
 *
 * The values of FP8 codes are exact in bf16, products of two bf16 are in f32: what
 * is rounded are the activations, and sums as in f32.
 */
#ifndef KERNELS_X16_H
#define KERNELS_X16_H

#include "kernels/kern.h"

enum { KERN_X16_VECTOR = 32 }; /* columns */

/* Columns of a span; cuts are filled up to a multiple of it. 0: not a type of these products. */
static inline uint32_t kern_x16_span(enum kern_dtype dtype)
{
    switch (dtype) {
    case KERN_BF16:
        return 32;
    case KERN_FP8_E4M3:
        return 64;
    default:
        return 0;
    }
}

/* Whether matmul_x16 multiplies it. F32 and F16 have weights that bf16 has not, and scales of other
 * than whole 64 columns would fill up too much: such matrices stay with f32 activations. INT8 and
 * INT4 are faster with integers (matmul_x8), and with three digits more exact. */
static inline bool kern_x16_takes(const struct kern_matrix *w)
{
    if (kern_x16_span(w->dtype) == 0) return false;
    return !w->scales || w->scale_cols % 64 == 0;
}

/* Whether the two take the same rows of activations; both have to be taken. */
static inline bool kern_x16_same(const struct kern_matrix *a, const struct kern_matrix *b)
{
    return a->dtype == b->dtype && a->cols == b->cols;
}

/* Elements of a row of activations at least, for any number of k_blocks. Of what is taken with one
 * block it is used up to the columns, filled up to the span. */
static inline size_t kern_x16_elements(uint32_t cols, uint32_t k_blocks)
{
    enum { MOST = 64 };
    /* A block may begin and end within a cut: two spans of it are not full. */
    const size_t filled = ((size_t)cols + MOST - 1) / MOST * MOST;
    return filled + (k_blocks > 1 ? 2 * (size_t)k_blocks * MOST : 0);
}

/* Where column c of a span stands in it: vector * 32 + lane * 2 + 1 if it is odd. */
static inline uint32_t kern_x16_place(enum kern_dtype dtype, uint32_t c)
{
    if (dtype == KERN_BF16) return c;
    return c / 8 % 2 * KERN_X16_VECTOR + c / 16 * 8 + c % 8;
}

#endif
