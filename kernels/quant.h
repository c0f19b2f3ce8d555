/* Quantising weights: rows of f32 into the INT8 and INT4 of kern.h.
 *
 * Invariant: a row's codes and scales depend on that row alone, so the result is the same bytes for
 * any number of threads. Pure; allocates nothing; any thread.
 */
#ifndef KERNELS_QUANT_H
#define KERNELS_QUANT_H

#include "kernels/kern.h"

/* What rounding cost: sums over weights of their squares and of the squares of the errors. */
struct kern_quant_error {
    double energy, error;
};

/* One row of `cols` weights into kern_row_bytes of codes and ceil(cols / group) bf16 scales, each
 * at any byte; group is 32 or 128. INT8: the largest weight of a group takes code 127 or -127.
 * INT4: of several ranges the one with the least squared error. Adds to `error`. False, and nothing
 * useful written, when a weight is no finite number. */
bool kern_quant_row(enum kern_dtype dtype, uint32_t group, const float *row, uint32_t cols,
                    uint8_t *codes, uint8_t *scales, struct kern_quant_error *error);

#endif
