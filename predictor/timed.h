/* Residency in time: what the live tiers do with reads, copies, slots and waits, without a byte.
 *
 * The decision core decides, in the order of events, and time never feeds back into it. Here is
 * kept where each expert's bytes would be on the way, on a clock that moves only when told to:
 *
 *      acquire ──> compute(shared expert) ──> wait ──> compute(an expert) ... ──> release
 *
 * Reads: one link. A read starts `nvme.latency` after it was begun, or when the link is free, and
 * takes bytes / bandwidth; at most `nvme.depth` are under way. Demand is begun before prefetch;
 * prefetch takes the lower half of the depth and at most `prefetch_inflight` bytes, which is what a
 * demand read may find ahead of it. Copies: a lane each way, one after another, and no more than
 * `prefetch_inflight` bytes of them ahead of need.
 *
 * With decide.warm_compute a warm expert is used where it lies: it takes neither a copy nor a slot
 * above, and what it costs to compute there is the caller's to say.
 *
 * As live, what arrives is noticed when the engine looks: between two pieces of compute and while
 * it waits. Differences from tiering.c: reads are served in order, where a disk interleaves them;
 * nothing fails. tests/unit/predictor/check_timed.c runs both beside each other.
 *
 * One thread. Only create allocates.
 */
#ifndef PREDICTOR_TIMED_H
#define PREDICTOR_TIMED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/machine.h"
#include "tiering/decide.h"
#include "tiering/governor.h"
#include "tiering/tiering.h"

struct pred_timed;

struct pred_timed_config {
    const struct pred_machine *machine; /* kept by the caller */
    struct tier_decide_config decide;   /* tier_count 2: hbm over dram */
    const uint64_t *expert_bytes;       /* [layers], kept by the caller: copied and computed */
    const uint64_t *read_bytes;         /* [layers], kept by the caller: read from disk */
    uint64_t prefetch_inflight;         /* bytes; at least one expert goes */
    uint32_t prefetch_per_layer;        /* admitted between two acquires of a layer */
    struct tier_governor_options governor;  /* read_bytes and inflight_bytes are filled in */
    bool start_full;                    /* both tiers hold what fits before the first event */
};

/* Lookups of the top tier. */
struct pred_timed_counts {
    uint64_t lookups, hits, late, misses;
};

struct pred_timed_layer {
    struct pred_timed_counts counts;
    uint64_t compute_ns, wait_ns;
    uint64_t useful_bytes, late_bytes;  /* hinted: there at the lookup, still on their way */
};

struct pred_timed_stats {
    struct pred_timed_counts cells[TIER_CELL_COUNT];
    uint64_t below_lookups, below_hits; /* of the lower tier, when there are two */
    uint64_t in_place;                  /* of below_lookups: used there, where dram lies */
    uint64_t demand_bytes, prefetch_bytes, prefetch_wasted_bytes; /* nvme */
    uint64_t demand_reads, prefetch_reads, prefetch_cancelled;
    /* nvme -> top or dram -> top: what hints moved, and what of it was looked up before it left. */
    uint64_t hinted_bytes, useful_bytes, late_bytes, wasted_bytes;
    uint64_t copy_up_bytes, demand_copy_bytes, copy_down_bytes, demotions_dropped;
    uint64_t hints, hints_admitted, hints_refused;
    uint64_t governor_switches, governed_steps, steps;  /* governed: prefetch was off */
    uint64_t read_busy_ns, copy_busy_ns; /* links under transfer */
    uint64_t compute_ns, wait_ns[TIER_WAIT_CAUSE_COUNT];
};

/* BASE_ECONFIG, BASE_EBUDGET as tier_decide_create; -ENOMEM. */
int pred_timed_create(struct pred_timed **out, const struct pred_timed_config *config,
                      struct base_err *err);
void pred_timed_destroy(struct pred_timed *timed); /* accepts NULL */

uint64_t pred_timed_now(const struct pred_timed *timed);

/* The computing thread is busy for so long, on behalf of a layer (UINT32_MAX: none). */
void pred_timed_compute(struct pred_timed *timed, uint32_t layer, uint64_t ns);

/* As tier_acquire, tier_wait (any), tier_release. */
uint32_t pred_timed_acquire(struct pred_timed *timed, uint32_t layer, const uint32_t *ids,
                            uint32_t n, enum tier_phase phase);
bool pred_timed_ready(const struct pred_timed *timed, uint32_t layer, uint32_t expert);
/* Of a leased one: it is used in dram, below hbm (decide.warm_compute). */
bool pred_timed_in_place(const struct pred_timed *timed, uint32_t layer, uint32_t expert);
/* Until one of ids, none of which is ready, is ready. */
void pred_timed_wait(struct pred_timed *timed, uint32_t layer, const uint32_t *ids, uint32_t n);
void pred_timed_release(struct pred_timed *timed, uint32_t layer, const uint32_t *ids, uint32_t n);

/* As tier_step_prompt. */
void pred_timed_step_prompt(struct pred_timed *timed);
/* As tier_hint, in order of worth; returns how many were admitted. */
uint32_t pred_timed_hint(struct pred_timed *timed, const struct tier_hint *hints, uint32_t n);
/* As tier_step_end: the governor hears of the step. */
void pred_timed_step_end(struct pred_timed *timed);

const struct tier_decide *pred_timed_decide(const struct pred_timed *timed);
const struct pred_timed_stats *pred_timed_stats_get(const struct pred_timed *timed);
const struct pred_timed_layer *pred_timed_layers(const struct pred_timed *timed);

#endif
