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
#include "kernels/tile.h"
#include "kernels/weave.h"

struct eng_work {
    const struct kern_ops *ops;
    struct kern_par *par;
    unsigned threads;
    /* engine.activations: bf16 or int8: room for the inputs of what eng_work_products runs. NULL:
     * they are f32. */
    uint16_t *x16;
    size_t x16_elements;
    /* Likewise of those with matrices in INT8, as integers of so many digits. NULL: there are none,
     * or they lie in rows. */
    void *x8;
    size_t x8_bytes;
    uint32_t x8_digits;
};

/* Rows that the kernels like to take together. */
enum { ENG_ROW_UNIT = 8 };
static inline uint32_t eng_work_unit(const struct kern_matrix *w)
{
    if (w->dtype == KERN_FP8_WOVEN) return KERN_WOVEN_ROWS;
    return w->tiled ? kern_tile_rows(w->dtype) : ENG_ROW_UNIT;
}

/* Into how many parts of rows, `unit` together, each of `items` is cut; `cost` is an item's
 * multiply-adds. */
uint32_t eng_work_parts(const struct eng_work *work, uint32_t items, uint64_t cost, uint32_t rows,
                        uint32_t unit);

/* Rows [begin, end) of part `part`: cut at multiples of `unit`. */
void eng_work_rows(uint32_t rows, uint32_t unit, uint32_t parts, uint32_t part, uint32_t *begin,
                   uint32_t *end);

/* Runs chunks 0..count-1, on the threads when `cost` (of all) is worth it. */
void eng_work_run(const struct eng_work *work, uint32_t count, uint64_t cost,
                  void (*run)(void *context, uint32_t chunk, unsigned thread), void *context);

enum { ENG_PRODUCTS_MAX = 2 };

/* Several independent products in one fork, at most ENG_PRODUCTS_MAX; with room for it, inputs of
 * matrices that take bf16 or integers are made so before. Products with tiles have one block,
 * whatever k_blocks is. */
void eng_work_products(const struct eng_work *work, const struct kern_matmul *products,
                       uint32_t count);

/* Rows [begin, end) of a product whose inputs are as it says: f32, integers or bf16. */
static inline void eng_multiply(const struct eng_work *work, const struct kern_matmul *product,
                                uint32_t begin, uint32_t end)
{
    const struct kern_ops *ops = work->ops;
    (product->x16 ? ops->matmul_x16 : product->x8 ? ops->matmul_x8 : ops->matmul)(product, begin,
                                                                                  end);
}

/* Multiply-adds that coding one input is worth. */
enum { ENG_CODE_COST = 4 };

static inline struct kern_matmul eng_product(const struct kern_matrix *w, const float *x,
                                             size_t x_stride, float *y, size_t y_stride,
                                             uint32_t m, uint32_t k_blocks)
{
    return (struct kern_matmul){ .w = w, .x = x, .x_stride = x_stride, .y = y,
                                 .y_stride = y_stride, .m = m, .k_blocks = k_blocks };
}

#endif
