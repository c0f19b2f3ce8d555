/* Timing on a card: buffers that are filled, launches in turn over several sets of inputs so that
 * the second-level cache does not serve them, medians by events. One thread, one stream. */
#ifndef TESTS_GPU_BENCH_CARD_H
#define TESTS_GPU_BENCH_CARD_H

#include "tests/gpu/card.h"

struct bench {
    struct cudaDeviceProp prop;
    cudaStream_t stream;
    double read_bps, copy_bps; /* measured: bytes a second */
    double f32_peak, mma_peak; /* measured: operations a second */
    bool quick;                /* each thing once: for sanitizers */
    const char *only;          /* part of a name, or NULL */
};

/* Memory that lives until bench_release; `fill` < 0 leaves it as it is. */
void *bench_alloc(struct bench *b, size_t bytes, int fill);
/* The same with a copy of host memory in it. */
void *bench_upload(struct bench *b, const void *from, size_t bytes);
void bench_release(struct bench *b);
/* How many sets of `bytes` make the cache useless. */
unsigned bench_sets(const struct bench *b, double bytes);
bool bench_wanted(const struct bench *b, const char *name);

/* Median seconds of launch(context, i), i counting up. */
double bench_time(struct bench *b, void (*launch)(void *context, unsigned i), void *context);

/* The parts. */
/* HBM, peaks: the floors of the rest; `say`: in rows of their own, too. */
void bench_memory(struct bench *b, bool say);
void bench_copies(struct bench *b); /* pinned host memory, both ways */
void bench_products(struct bench *b);
void bench_attention(struct bench *b);
void bench_rows(struct bench *b); /* gate, combine, norms, greedy */

#endif
