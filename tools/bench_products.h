/* Products of every weight type, timed beside reading as many bytes: what tier-bench kernels and
 * the kernels' own tests measure with.
 *
 * A sample is one product, short enough to fit between two turns of the scheduler; samples walk
 * through more memory than the caches hold, or stay with one small matrix ("cached": what the
 * instructions allow). Each figure is the best and the median of the samples; on a shared machine
 * the best is nearer to the hardware. Products from DRAM take turns with reading as many bytes by
 * as many threads, as one stream a thread and as four: their share of the faster one is a ratio
 * within one run.
 */
#ifndef TOOLS_BENCH_PRODUCTS_H
#define TOOLS_BENCH_PRODUCTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kern.h"

#define BENCH_POOL_BYTES ((size_t)256 << 20)
enum { BENCH_PRODUCT_ROWS = 1536, BENCH_PRODUCT_CACHED = 128, BENCH_THREADS_HELD = 2,
       BENCH_FLOATS = 128 * 8192 };

struct bench_timing {
    double best, median;        /* seconds */
    double spread;              /* of the middle half */
};

/* One work, over and over, each time with the sample's number. */
struct bench_timing bench_timed(void (*run)(void *context, uint32_t sample), void *context);

/* One thread, two, and all that the machine has; 0 after the last. */
unsigned bench_threads_after(unsigned threads);

struct bench_products {
    uint8_t *pool;              /* BENCH_POOL_BYTES of weights, in huge pages */
    float *x, *y;               /* [BENCH_FLOATS] */
    double fma_rate;            /* operations/s of one thread, for who measures it */
};

void bench_products_open(struct bench_products *products);      /* MUST memory */
void bench_products_close(struct bench_products *products);
/* Bytes a second of reading alone, the best. */
double bench_reading(const struct bench_products *products, unsigned threads);

enum { BENCH_BF16_DIGITS = 16 };        /* of a type: activations are bf16 */
enum { BENCH_PRODUCT_TYPES_MAX = 32 };
struct bench_product_type {
    const char *name;
    enum kern_dtype dtype;
    uint32_t scale;             /* columns that share one; 0 = none */
    uint32_t digits;            /* of integer activations; 0 = f32 */
    uint32_t cols;              /* 0 = 2048 */
};
extern const struct bench_product_type bench_product_types[];
extern const size_t bench_product_type_count;

struct kern_par;
struct bench_product {
    const struct bench_products *bench;
    const struct kern_ops *ops;
    struct kern_par *par;
    struct kern_matrix w;
    uint32_t matrices, m, sample, shift, chunks;
    const void *x8;             /* or NULL: f32 activations */
    uint32_t digits;
    const uint16_t *x16;        /* the same of bf16 */
};

/* Of a type, with .bench, .ops and .m set: what stays the same over row counts, of which it has
 * BENCH_PRODUCT_CACHED at first, and the activations. They are shared: one product at a time. */
void bench_product_prepare(struct bench_product *product, size_t type);
/* So many rows a sample, and as many times more as threads share them, so that forking these does
 * not count; fewer where one matrix would be a good part of the pool, or its results too many. */
void bench_product_crowd(struct bench_product *product, uint32_t rows, unsigned threads);
/* What one reads: weights and, where they count, scales. */
size_t bench_product_bytes(const struct kern_matrix *w);
/* [0] of products in turns with [1], reading as many bytes; cached: products alone. */
void bench_product_times(struct bench_product *product, unsigned threads, bool cached,
                         struct bench_timing times[2]);

#endif
