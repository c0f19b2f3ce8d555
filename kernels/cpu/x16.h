/* How matrices are cut for products with bf16 activations, and the making of such rows: shared by
 * the reference and the op sets. Private to kernels/.
 *
 * Invariant: a row is what follows from kernels/x16.h alone, the same bytes from every op set.
 */
#ifndef KERNELS_CPU_X16_H
#define KERNELS_CPU_X16_H

#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"
#include "kernels/x16.h"

static inline uint32_t x16_cut_end(const struct kern_matrix *w, uint32_t k0, uint32_t k1)
{
    return w->scales ? cpu_cut_end(k0, k1, w->scale_cols) : k1;
}

/* Columns of a cut of `count`, filled up. */
static inline uint32_t x16_filled(enum kern_dtype dtype, uint32_t count)
{
    const uint32_t span = kern_x16_span(dtype);
    return (count + span - 1) / span * span;
}

static inline void x16_check(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    MUST(args->k_blocks == 1 || args->k_blocks == KERN_RANK_BLOCKS);
    MUST(row_begin <= row_end && row_end <= args->w->rows);
    MUST(args->x16 && kern_x16_takes(args->w));
    cpu_matrix_check(args->w);
}

/* Whole spans of a cut as they lie. */
static inline void x16_spans(uint16_t *to, const uint16_t *from, enum kern_dtype dtype,
                             uint32_t count)
{
    enum { PIECE = 8, SPAN = 64 };
    if (dtype == KERN_BF16) {
        memcpy(to, from, count * sizeof *to);
        return;
    }
    for (uint32_t k = 0; k < count; k += SPAN) {
        for (uint32_t c = 0; c < SPAN; c += PIECE)
            memcpy(to + k + kern_x16_place(dtype, c), from + k + c, PIECE * sizeof *to);
    }
}

static inline void scalar_to_x16(uint16_t *row, const float *x, const struct kern_matrix *w,
                                 uint32_t k_blocks)
{
    enum { PIECE = 1024 };
    MUST(kern_x16_takes(w));
    for (uint32_t i = 0; i < k_blocks; i++) {
        const uint32_t end = cpu_range_begin(w, i + 1, k_blocks);
        for (uint32_t k = cpu_range_begin(w, i, k_blocks); k < end;) {
            uint16_t rounded[PIECE];
            const uint32_t cut_end = x16_cut_end(w, k, end);
            const uint32_t count = cut_end - k < PIECE ? cut_end - k : PIECE;
            const uint32_t filled = x16_filled(w->dtype, count);
            for (uint32_t c = 0; c < count; c++)
                rounded[c] = scalar_to_bf16(x[k + c]);
            memset(rounded + count, 0, (filled - count) * sizeof *rounded);
            x16_spans(row, rounded, w->dtype, filled);
            row += filled;
            k += count;
        }
    }
}

#endif
