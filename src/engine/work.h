/* Splitting arithmetic over the threads.
 *
 * Work is a number of equal items (matrices, heads, tokens), each cut by rows into `parts`. Small
 * work runs on the caller alone: waking a thread costs more than it saves. How it is cut never
 * changes a result (kernels/kern.h). Engine thread only; no allocation.
 */
#ifndef ENGINE_WORK_H
#define ENGINE_WORK_H

#include <stdint.h>

#include "kernels/kern.h"
#include "kernels/par.h"

struct eng_work {
    const struct kern_ops *ops;
    struct kern_par *par;
    unsigned threads;
};

/* Into how many parts of rows each of `items` is cut; `cost` is an item's multiply-adds. */
uint32_t eng_work_parts(const struct eng_work *work, uint32_t items, uint64_t cost, uint32_t rows);

/* Rows [begin, end) of part `part`: cut at multiples of 8. */
void eng_work_rows(uint32_t rows, uint32_t parts, uint32_t part, uint32_t *begin, uint32_t *end);

/* Runs chunks 0..count-1, on the threads when `cost` (of all) is worth it. */
void eng_work_run(const struct eng_work *work, uint32_t count, uint64_t cost,
                  void (*run)(void *context, uint32_t chunk, unsigned thread), void *context);

/* Several independent products in one fork. */
void eng_work_products(const struct eng_work *work, const struct kern_matmul *products,
                       uint32_t count);

static inline struct kern_matmul eng_product(const struct kern_matrix *w, const float *x,
                                             size_t x_stride, float *y, size_t y_stride,
                                             uint32_t m, uint32_t k_blocks)
{
    return (struct kern_matmul){ .w = w, .x = x, .x_stride = x_stride, .y = y,
                                 .y_stride = y_stride, .m = m, .k_blocks = k_blocks };
}

#endif
