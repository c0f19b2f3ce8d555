/* What `tier-bench decode` and `tier-bench prefill` share: a model opened as the server opens it,
 * the machine's rates, and the bytes that steps touch.
 *
 * A floor is what the machine would allow if nothing but the unavoidable happened: weights read
 * once at the measured rate of memory, missed experts at the measured rate of the disk, products at
 * the rate of our own fastest product. One thread.
 */
#ifndef TOOLS_BENCH_STACK_H
#define TOOLS_BENCH_STACK_H

#include "engine/stack.h"
#include "tools/cli.h"

enum { BENCH_ROUNDS_MAX = 101 };

struct bench_flags {
    const char *model, *config;
    struct cli_list set;
    uint64_t rounds, seed;
    bool json, quiet;
    struct tier_observer observer;      /* of cache events, or nothing */
};

struct bench_stack {
    struct eng_stack stack;
    const struct bench_flags *flags;
    unsigned threads;
    uint64_t dense_step_bytes;  /* dense weights that every step reads */
    uint32_t batch;             /* > 0: only steps count that generate for so many sequences */
    /* Added up over steps; zeroed by bench_reset. */
    uint64_t steps, step_tokens, step_ns, wait_ns, expert_bytes, kv_bytes;
    /* Of the running request. */
    uint32_t tokens;
    uint64_t first_ns, last_ns;
    bool failed;
    char why[300];              /* of the first */
};

int bench_open(struct bench_stack *bench, const struct bench_flags *flags, struct base_err *err);
void bench_close(struct bench_stack *bench);

/* Zeroes the sums and returns the bytes that demand reads have fetched so far. */
uint64_t bench_reset(struct bench_stack *bench);
uint64_t bench_missed(struct bench_stack *bench);

/* Runs `count` requests of random prompts to their end; the time of each is in the fields above. */
int bench_generate(struct bench_stack *bench, uint32_t count, uint32_t prompt_tokens,
                   uint32_t answer_tokens, uint64_t seed, struct base_err *err);
/* Brings in every expert that there is room for. */
int bench_warm(struct bench_stack *bench, struct base_err *err);

/* Bytes a second that `threads` threads read from memory together; the best of five. */
double bench_memory_rate(unsigned threads);
/* Bytes a second of random reads of an expert's size from the model's first file. */
double bench_disk_rate(struct bench_stack *bench);
/* Multiply-adds a second of the f32 product from cache, on `threads` threads; the best of five. */
double bench_product_rate(struct bench_stack *bench);

/* Median of the values, which get sorted; `*spread` = (highest - lowest) / median. */
double bench_median(double *values, size_t count, double *spread);

#endif
