/* Replay on a virtual clock: what a machine would make of a trace's steps.
 *
 * The engine's way of a step (src/engine/moe.c) on the tiers in time (timed.h): a layer before its
 * experts, acquire, shared expert, then each expert as it arrives. Any number of cases are driven
 * by one reading of the trace, each with a clock of its own. The steps are taken as they are, so a
 * trace of one sequence gives a batch of one; batches are composed beforehand (compose.h).
 *
 * Two bounds stand beside the cases: Belady's residency without prefetch, on the clock; and the
 * bandwidth bound, the longest of computing, reading and copying with nothing waited for and no
 * more moved than Belady moves. No prefetcher with these slots is faster than that; a case that
 * computes warm experts in place may be, since Belady copies them.
 *
 * One thread. Memory does not grow with the trace (Belady's next uses lie in a temporary file).
 */
#ifndef PREDICTOR_TIMED_RUN_H
#define PREDICTOR_TIMED_RUN_H

#include "predictor/adviser.h"
#include "predictor/machine.h"
#include "predictor/replay.h"
#include "predictor/timed.h"

struct pred_timed_case {
    char policy[32];
    uint32_t tier_count; /* 1: dram over nvme; 2: hbm over dram over nvme */
    uint64_t slots[TIER_RESIDENT_TIERS_MAX];
    bool inclusive;
    bool start_full;
    bool warm_compute;      /* what lies in dram below hbm is computed there, by the CPU */
    bool adaptive;          /* quotas of the layers follow what is missed */
    char policy_below[32];  /* of the lower of two tiers; "" = as above */
    double prefill_share, half_life_tokens;
    /* Optional: told after each step what it took on this case's clock. */
    void (*step_done)(void *context, const struct pred_step *step, uint64_t ns);
    void *context;
    /* What the live engine makes hints with, and what the tiers make of them. */
    bool hinted;                /* by the run's predictor; else nobody hints */
    bool prefetch;              /* hints may bring experts in */
    uint64_t prefetch_inflight;
    uint32_t prefetch_per_layer;
    struct tier_governor_options governor;
};

/* Of two tiers that hold every expert nothing is read from disk once they are full. */
static inline bool pred_timed_holds_all(const struct pred_timed_case *c, uint64_t keys)
{
    if (c->tier_count < 2) return false;
    return (c->inclusive ? 0 : c->slots[0]) + c->slots[1] >= keys;
}

/* The predictor of a run: the cases that are hinted hear the same hints. */
struct pred_timed_advice {
    char predictor[32];         /* "" = none */
    struct pred_adviser_options options;
    uint32_t tokens_max;
    struct pred_trace_reader *train;    /* learned from beforehand; NULL = nothing */
    const struct pred_predictor *learned;   /* else begins with its tables; NULL = empty */
};

struct pred_timed_args {
    struct pred_trace_reader *reader;
    const struct pred_machine *machine;
    const struct pred_timed_case *cases;
    uint32_t count;
    struct pred_timed_advice advice;
    uint64_t steps_max;     /* only the trace's first so many; 0 = all */
    const struct pred_replay_progress *progress;        /* or NULL */
};

struct pred_timed_result {
    struct pred_timed_stats stats;
    struct pred_timed_layer *layers; /* [layers] */
    uint64_t steps, decode_tokens, prefill_tokens;
    uint64_t time_ns;
    uint64_t decode_steps_ns, decode_steps_tokens; /* of steps without prefill */
};

struct pred_timed_summary {
    uint64_t gaps;
    bool composed; /* the trace says so of itself */
    bool sampled;  /* it holds a part of the sequences only */
    /* Steps without prefill as they were recorded live; 0 where nothing was. */
    uint64_t live_steps_ns, live_steps_tokens;
};

/* results[count] is filled; end it with pred_timed_results_fini. BASE_ECONFIG names what the
 * machine's description lacks or what cannot be tried. */
int pred_timed_run(const struct pred_timed_args *args, struct pred_timed_result *results,
                   struct pred_timed_summary *summary, struct base_err *err);
void pred_timed_results_fini(struct pred_timed_result *results, uint32_t count);

/* Makes the predictor of `advice` and lets it learn from the traces, which are left at their begin:
 * what a server with a predictor.path starts with. The caller destroys it. */
int pred_timed_learn(struct pred_predictor **out, const struct pred_timed_advice *advice,
                     struct pred_trace_reader *const *traces, uint32_t trace_count,
                     struct base_err *err);

/* The least time in which a run that moves these bytes can be done. */
uint64_t pred_timed_bound_ns(const struct pred_machine *machine,
                             const struct pred_timed_result *belady);

#endif
