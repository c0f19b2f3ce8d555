/* What `tier-bench decode` and `tier-bench prefill` share: a model opened as the server opens it,
 * the machine's rates, and the bytes that steps touch.
 *
 * A floor is what the machine would allow if nothing but the unavoidable happened: weights read
 * once at the measured rate of memory, missed experts at the measured rate of the disk,
 * multiply-adds at the measured peak of the cores. The machine is shared and its rates move:
 * they are measured round by round, beside what is held against them. One thread.
 */
#ifndef TOOLS_BENCH_STACK_H
#define TOOLS_BENCH_STACK_H

#include "engine/stack.h"
#include "tools/bench_routing.h"
#include "tools/cli.h"

enum { BENCH_ROUNDS_MAX = 101 };

struct bench_flags {
    const char *model, *config;
    struct cli_list set;
    uint64_t rounds, seed;
    const char *profile;        /* a timeline goes there; NULL = none */
    const char *routing;        /* what the gates are made to choose; NULL = nothing */
    bool json, quiet;
    struct tier_observer observer;      /* of cache events, or nothing */
};

/* Of the tiers; the lookups are the top one's. */
struct bench_counters {
    uint64_t missed_bytes;      /* that demand reads fetched */
    uint64_t ahead_bytes, wasted_bytes; /* read ahead; of those, what nobody asked for */
    uint64_t lookups, hits, late;
};

struct bench_stack {
    struct eng_stack stack;
    const struct bench_flags *flags;
    struct bench_routing routing;
    unsigned threads;
    uint64_t dense_step_bytes;  /* dense weights that every step reads */
    uint32_t batch;             /* > 0: only steps count that generate for so many sequences */
    /* Added up over steps; zeroed by bench_reset. */
    uint64_t steps, step_tokens, step_ns, wait_ns, expert_bytes, kv_bytes;
    struct bench_counters counters;
    struct bench_counters last; /* at the end of the last step, since open */
    uint32_t *loads;            /* [MoE layers x experts]: of each, before the steps that count */
    /* Added up over all of these since open. */
    uint64_t account_step_ns, account_wait_ns[TIER_WAIT_CAUSE_COUNT], account_op_ns[ENG_OP_COUNT];
    /* Of the running request. */
    uint32_t tokens;
    uint64_t first_ns, last_ns;
    bool failed;
    char why[300];              /* of the first */
};

int bench_open(struct bench_stack *bench, const struct bench_flags *flags, struct base_err *err);
void bench_close(struct bench_stack *bench);

/* Remembers how often each expert was read so far. 0 or -ENOMEM. */
int bench_loads_note(struct bench_stack *bench);
/* Zeroes the sums. */
void bench_reset(struct bench_stack *bench);

/* Runs `count` requests of random prompts to their end; the time of each is in the fields above. */
int bench_generate(struct bench_stack *bench, uint32_t count, uint32_t prompt_tokens,
                   uint32_t answer_tokens, uint64_t seed, struct base_err *err);
/* Brings in every expert that there is room for; the account of steps begins behind it. */
int bench_warm(struct bench_stack *bench, struct base_err *err);

/* Prints "model":"NAME", a member of a JSON object. */
void bench_print_model(const struct bench_stack *bench);
/* Share of the steps' time that is known: compute, operation by operation, and waits by cause. */
double bench_accounted(const struct bench_stack *bench);
/* That, and the operations and waits by their shares: as members of a JSON object, or as text. */
void bench_print_account(const struct bench_stack *bench, bool json);

/* Memory that threads read together, each a part larger than any cache. */
struct bench_memory {
    unsigned threads;
    void *at;
    size_t bytes;
};
int bench_memory_open(struct bench_memory *memory, unsigned threads);   /* -1: no memory */
void bench_memory_close(struct bench_memory *memory);
/* Bytes a second, of one stream a thread or of four, whichever is faster; of five times through all
 * of it the best one, or the median. */
double bench_memory_read(struct bench_memory *memory, bool best);
/* The best of five, all at once; 0: no memory. */
double bench_memory_rate(unsigned threads);
/* Bytes a second at which the disk gives again what the counted steps read: their experts in the
 * order of ids, in parts of up to 1 MiB, 16 at once, over and over for a second. The same bytes,
 * since a disk may have at hand what it was asked for lately. 0 when nothing was read. */
double bench_disk_rate(struct bench_stack *bench);
/* Multiply-adds a second that `threads` threads can do: f32, or bf16 or 8-bit integers where the
 * cores have instructions for them (else f32). Of five samples the best, and the median: what the
 * cores gave while they were measured, less where others were at work on them. */
enum bench_arithmetic { BENCH_F32, BENCH_BF16, BENCH_INT8 };
enum { BENCH_KINDS = BENCH_INT8 + 1 };
struct bench_peak {
    double best, median;
};
struct bench_peak bench_peak(unsigned threads, enum bench_arithmetic kind);

/* Median of the values, which get sorted; `*spread` = (highest - lowest) / median. */
double bench_median(double *values, size_t count, double *spread);

#endif
