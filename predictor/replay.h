/* Replay of a trace: the same decision core on the same acquires, without a clock.
 *
 * What-if: any number of caches (policy x capacity) are driven by one reading of the trace. They
 * start empty and stay warm from the first sequence to the last. The experts of one acquire are
 * looked up together and never push each other out; where they do not fit at once they come in
 * waves, each expert still being one lookup.
 *
 * As recorded: the server's own events through the server's own configuration; the counts must be
 * those of the live server, to the last one.
 *
 * One thread. Memory does not grow with the trace (Belady's next uses lie in a temporary file).
 */
#ifndef PREDICTOR_REPLAY_H
#define PREDICTOR_REPLAY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/trace.h"
#include "tiering/decide.h"

/* One cache to try. Either slots in all, which per-layer policies split evenly, or a budget in
 * bytes over all layers with each layer's own expert size; a budget knows the policies lru (over
 * all layers) and belady. */
struct pred_case {
    char policy[32];
    uint64_t slots;
    uint64_t budget_bytes;      /* 0 = slots count */
    double prefill_share;       /* 1 = prefill takes what it likes */
    double half_life_tokens;
    bool one_at_a_time;         /* each lookup an acquire of its own, as the caches of the books see
                                 * requests; half-lives then count lookups. Not with a budget. */
    bool adaptive;              /* quotas of the layers follow what is missed */
};

struct pred_case_result {
    struct tier_counts cells[TIER_CELL_COUNT];      /* cold start, prefill, decode: apart */
    struct tier_counts phases[TIER_PHASE_COUNT];    /* by phase, cold start included */
    struct tier_counts *layers;                     /* [layers], all cells; NULL for budgets */
    uint64_t acquires;
    char warning[256];          /* "" or what makes this case a poor comparison */
};

struct pred_replay_progress {
    void (*report)(void *context, const char *what, uint64_t done_bytes, uint64_t total_bytes);
    void *context;
};

struct pred_replay_summary {
    bool from_events;           /* the server's acquires; else made from steps */
    uint64_t gaps;
    uint64_t lookups;           /* of one case */
};

/* Runs all cases over the whole trace. results[count] is filled; end it with
 * pred_replay_results_fini. BASE_ECONFIG names what cannot be tried. `progress` may be NULL. */
int pred_replay_run(struct pred_trace_reader *reader, const struct pred_case *cases,
                    struct pred_case_result *results, uint32_t count,
                    struct pred_replay_summary *summary,
                    const struct pred_replay_progress *progress, struct base_err *err);
void pred_replay_results_fini(struct pred_case_result *results, uint32_t count);

/* What the live server counted, and what replaying its events counts, at the last place where the
 * trace holds live counts, or at the first where the two differ. */
struct pred_exact {
    uint32_t tier_count;
    struct pred_trace_counts live, replayed;
    uint64_t events, steps;
    uint32_t checks;            /* places where counts were compared */
    uint32_t differing;         /* of them */
    uint64_t differing_step;    /* steps before the first of those */
    bool same;                  /* at every one of them */
};

/* BASE_EMISMATCH when the core decides otherwise than an event says; BASE_ECONFIG when exact replay
 * is not possible at all: gaps, sampled, not the first part, an import, no counts. */
int pred_replay_exact(struct pred_trace_reader *reader, struct pred_exact *exact,
                      const struct pred_replay_progress *progress, struct base_err *err);

/* The slots of a layer that a share of its experts is: rounded to the nearest, at least one. */
static inline uint32_t pred_slots_of_share(double share, uint32_t experts)
{
    double slots = share * experts + 0.5;
    uint32_t whole = slots >= experts ? experts : (uint32_t)slots;
    return whole == 0 ? 1 : whole;
}

#endif
