/* Tiered residency of expert weights: what our own engine and programs see of the tiers.
 *
 * How experts are acquired, awaited and released stands in libtiering.h, which other engines link
 * too. Here: settings as structs, metrics, snapshots, and the footprint that is printed at start.
 *
 * All calls on the engine thread unless stated. After open nothing here allocates except
 * reconfigure.
 */
#ifndef TIERING_TIERING_H
#define TIERING_TIERING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/hist.h"
#include "base/metric.h"
#include "base/option.h"
#include "base/timeline.h"
#include "device/device.h"
#include "tiering/decide.h"
#include "tiering/event.h"
#include "tiering/io.h"
#include "tiering/landing.h"
#include "tiering/libtiering.h"
#include "tiering/loads.h"
#include "tiering/store.h"

#define TIER_OPTIONS(O) \
    O(hbm_capacity, TEXTLINE, "tiers.hbm.capacity", "0", "", "", \
      "device memory for expert slots: a size (40GiB), or a share of the model's experts; 0 = " \
      "none") \
    O(hbm_device, ENUM, "tiers.hbm.device", "sim", "sim|host|cuda", "", \
      "the device: sim emulates one in host memory, host makes the CPU one, cuda is a card") \
    O(hbm_bandwidth, BYTES, "tiers.hbm.sim_bandwidth", "16GiB", "", "bytes/s", \
      "sim device: bytes per second of copies each way; 0 = as fast as memory") \
    O(hbm_faults, SHARE, "tiers.hbm.sim_faults", "0%", "", "", \
      "sim device: share of copies that fail (tests)") \
    O(hbm_headroom, SHARE, "tiers.hbm.headroom", "0%", "", "",                                    \
      "cuda device: share of the card's memory kept free beside the slots")                        \
    O(inclusion, ENUM, "tiers.inclusion", "exclusive", "exclusive|inclusive", "", \
      "exclusive: an expert is in hbm or in dram; inclusive: dram keeps what moved up") \
    O(warm_experts, ENUM, "tiers.warm_experts", "copy", "copy|compute", "",                        \
      "an expert that is wanted and lies in dram below hbm: copied up first, or used there by " \
      "the CPU; then one that decode uses again moves up afterwards") \
    O(dram_capacity, TEXTLINE, "tiers.dram.capacity", "25%", "", "", \
      "memory for expert slots in DRAM: a size (512GiB), or a share of the model's experts (25%)") \
    O(dram_pin, ENUM, "tiers.dram.pin", "auto", "auto|on|off", "", \
      "lock the slots in memory; auto goes on without where the limit forbids it, and says so") \
    O(dram_numa, TEXTLINE, "tiers.dram.numa", "auto", "", "", \
      "NUMA nodes of the slots: auto and interleave = in turn over all (auto goes on without " \
      "where the system refuses), none = as the kernel likes, or a list like 0 or 0,2-3") \
    O(nvme_index, TEXTLINE, "tiers.nvme.index", "", "", "", \
      "path of the expert index; empty = expertier.index in the model folder") \
    O(eviction, ENUM, "policy.eviction", "lru_with_prediction", \
      "lru|lru_global|lfu|lru_with_frequency|lru_with_prediction|slru|s3fifo|sieve|arc|pinned", \
      "", "which expert leaves when a slot is needed; pinned keeps the set of tiers.warm.path " \
      "and gives the rest to recency") \
    O(eviction_dram, ENUM, "policy.eviction_dram", "same", \
      "same|lru|lru_global|lfu|lru_with_frequency|lru_with_prediction|slru|s3fifo|sieve|arc|" \
      "pinned", "", \
      "which expert leaves dram where hbm lies above it; same = policy.eviction") \
    O(quotas, TEXTLINE, "policy.quotas", "equal", "", "", \
      "slots of the layers: equal, adaptive (they follow what is missed), shares like \"2,1,1\", " \
      "or file:PATH with such a list") \
    O(half_life, UINT, "policy.half_life", "16", "0..1000000", "tokens", \
      "tokens after which a use counts half, where eviction counts uses; 0 = never") \
    O(prefill_share, SHARE, "policy.prefill_share", "50%", "", "", \
      "share of a layer's slots that prefill may take from decode's set") \
    O(verify, ENUM, "tiers.verify", "always", "always|first", "", \
      "check an expert's checksum at every read, or only at its first") \
    O(stuck_after, TIME, "tiers.nvme.stuck_after", "10s", "", "", \
      "a read that takes longer is named in the log; 0 = never") \
    O(warm_path, TEXTLINE, "tiers.warm.path", "", "", "", \
      "file that keeps what is resident over a restart; empty = start cold") \
    O(warm_save_every, TIME, "tiers.warm.save_every", "300s", "", "", \
      "how often it is saved while serving, besides at the end; 0 = only at the end")

/* For callers that give hints (tier_hint). A program without a predictor does not offer them. */
#define TIER_PREFETCH_OPTIONS(O)                                                                  \
    O(prefetch, ENUM, "prefetch.enabled", "auto", "false|true|auto", "",                          \
      "read predicted experts ahead of need; auto = where a predictor is attached and the slots "  \
      "allow it")                                                                                 \
    O(prefetch_governor, ENUM, "prefetch.governor", "auto", "auto|fixed", "",                     \
      "auto turns prefetch off while it does not pay; fixed leaves it on, from "                  \
      "prefetch.probability_min")                                                                 \
    O(prefetch_inflight, BYTES, "prefetch.inflight", "128MiB", "", "bytes",                        \
      "most bytes of prefetch on their way at once; at least one expert")                         \
    O(prefetch_share, SHARE, "prefetch.bandwidth_share", "30%", "", "",                           \
      "share of the measured read bandwidth that prefetch may use for what is not as good as "    \
      "sure")                                                                                     \
    O(prefetch_per_layer, UINT, "prefetch.experts_per_layer_max", "8", "1..", "experts",          \
      "most experts read ahead for one layer between two of its acquires")                        \
    O(prefetch_probability, SHARE, "prefetch.probability_min", "10%", "", "",                     \
      "an expert less likely than this is never read ahead")                                      \
    O(prefetch_waste, SHARE, "prefetch.waste_max", "25%", "", "",                                 \
      "bytes that prefetch may waste, as a share of those that steps needed; with more the "      \
      "governor asks for likelier experts")

/* The values of tiers.hbm.device, in their order. */
enum { TIER_DEVICE_SIM, TIER_DEVICE_HOST, TIER_DEVICE_CUDA };

struct tier_config {
    BASE_OPTION_STRUCT(TIER_OPTIONS)
    BASE_OPTION_STRUCT(TIER_PREFETCH_OPTIONS)
};

extern const struct base_option tier_options[];
extern const size_t tier_option_count;
extern const struct base_option tier_prefetch_options[];
extern const size_t tier_prefetch_option_count;

enum tier_warm_experts { TIER_WARM_COPY, TIER_WARM_COMPUTE };

/* Why the engine waited. */
enum tier_wait_cause {
    TIER_WAIT_DEMAND,           /* a demand read from nvme */
    TIER_WAIT_LATE,             /* a prefetch read that had not arrived */
    TIER_WAIT_COPY,             /* dram -> hbm */
    TIER_WAIT_SLOT,             /* a slot still being filled for somebody who left */
    TIER_WAIT_CAUSE_COUNT,
};

struct tier_open_args {
    const struct tier_config *config;
    const struct tier_io_config *io;
    struct tier_store *store;           /* borrowed */
    uint32_t top_k;
    struct tier_observer observer;      /* .event may be NULL */
    struct tier_landing landing;        /* .land may be NULL */
    struct dev *device;                 /* borrowed; NULL = made as tiers.hbm.* says */
    struct base_clock *clock;           /* NULL = real */
    struct base_timeline *timeline;     /* borrowed; NULL = nobody wants to see it */
};

int tier_open(struct tier **out, const struct tier_open_args *args, struct base_err *err);
/* What can be done while there is no step: reads of a warm start go on, the resident set is saved
 * when its time has come. Takes a few milliseconds at most. Returns in how many it wants to be
 * called again; UINT32_MAX = not before the next step. */
uint32_t tier_idle(struct tier *tier);

/* Makes the set that tiers.warm.path keeps resident again; nothing without it. Once, after open and
 * before the first acquire. A set that was damaged or cut means a cold start; the log says why. */
void tier_warm_restore(struct tier *tier);
/* Saves the set now, before close. A failure stands in the log. */
void tier_warm_save(struct tier *tier);

/* Other settings from here on, between two steps, leases or not. What changed is decided at once
 * and recorded as one event; memory of fewer slots goes back bit by bit (tier_shrink), what is
 * leased stays until its release. More slots than addresses were set aside for at start (for all
 * experts of the model, if the system had them) are refused, as is a change of what needs a
 * restart. On an error nothing has changed: BASE_ECONFIG, BASE_EBUDGET, -ENOMEM, with the sentence.
 * Allocates. */
int tier_reconfigure(struct tier *tier, const struct tier_config *config, struct base_err *err);
/* Gives a bounded part of the memory back that fewer slots do without; tier_step_end does it too.
 * True while there is more: call again, after tier_poll, when no step is coming. */
bool tier_shrink(struct tier *tier);
/* The step that begins has a prompt. Told before its first hint; otherwise known at its first
 * acquire. */
void tier_step_prompt(struct tier *tier);
/* Every expert has a slot where it is used: none ever leaves, and hints are of no use. */
bool tier_holds_all(const struct tier *tier);
/* The option of this key can change while the tiers are open. */
bool tier_config_live(const char *key);
/* Settings that contradict each other, without a model; and with one, all that open would refuse of
 * slots and policies. */
int tier_config_check(const struct tier_config *config, struct base_err *err);
/* "sim", "host" or "cuda"; "" without an hbm tier. */
const char *tier_device_name(const struct tier_config *config);
int tier_config_fits(const struct tier_config *config, const struct tier_store *store,
                     uint32_t top_k, struct base_err *err);

#define TIER_METRICS(M)                                                                           \
    M(lookups, COUNTER, "", "distinct experts asked of this tier")                                \
    M(hits, COUNTER, "", "lookups that were readable at once")                                    \
    M(late, COUNTER, "", "lookups that were admitted and still on their way")                     \
    M(misses, COUNTER, "", "lookups that were neither")                                           \
    M(in_place, COUNTER, "", "lookups used where they lie (tiers.warm_experts: compute)")         \
    M(evictions, COUNTER, "", "experts that left this tier to make room")                         \
    M(evicted_bytes, COUNTER, "bytes", "bytes of those experts")                                  \
    M(slots, GAUGE, "slots", "slots of this tier")                                                \
    M(resident_slots, GAUGE, "slots", "slots that hold an expert")                                \
    M(leased_slots, GAUGE, "slots", "slots a running step still reads")                           \
    M(capacity_bytes, GAUGE, "bytes", "memory of this tier's slots, pads included")               \
    M(touched_bytes, GAUGE, "bytes", "of it, what was ever written")                              \
    M(pinned_bytes, GAUGE, "bytes", "of it, what is locked in memory")

struct tier_tier_metrics {
    BASE_METRIC_STRUCT(TIER_METRICS)
};

#define TIER_IO_METRICS(M)                                                                        \
    M(demand_reads, COUNTER, "", "experts read while somebody waited")                            \
    M(demand_bytes, COUNTER, "bytes", "bytes of those reads")                                     \
    M(prefetch_reads, COUNTER, "", "experts read ahead of need")                                  \
    M(prefetch_bytes, COUNTER, "bytes", "bytes of those reads")                                   \
    M(prefetch_useful, COUNTER, "", "experts read ahead that were there when asked for")          \
    M(prefetch_late, COUNTER, "", "experts read ahead that were asked for while on their way")     \
    M(prefetch_wasted_bytes, COUNTER, "bytes", "bytes read ahead and evicted unused")             \
    M(checksum_failures, COUNTER, "", "experts whose bytes did not match and were read again")    \
    M(read_errors, COUNTER, "", "reads that failed and were tried again")                         \
    M(mirror_reads, COUNTER, "", "experts read from another copy after one stayed bad")           \
    M(faults_injected, COUNTER, "", "faults that io.faults brought on (tests)")                   \
    M(quarantined, GAUGE, "experts", "experts given up")                                          \
    M(stuck_reads, COUNTER, "", "times that a read took longer than tiers.nvme.stuck_after")      \
    M(prefetch_refused, COUNTER, "", "hints that a bound on prefetch turned away")                \
    M(prefetch_cancelled, COUNTER, "", "prefetches that were dropped before their read began")    \
    M(hints, COUNTER, "", "predictions that were offered")                                        \
    M(prefetch_on, GAUGE, "",                                                                     \
      "1 while the governor lets experts be read ahead that are not as good as sure")             \
    M(prefetch_probability_min, REAL, "", "from which probability an expert is read ahead")       \
    M(governor_switches, COUNTER, "", "times that the governor turned prefetch off or on")        \
    M(copies_up, COUNTER, "", "experts copied from dram to hbm")                                  \
    M(copies_up_bytes, COUNTER, "bytes", "bytes of those copies")                                 \
    M(copies_ahead, COUNTER, "", "experts copied from dram to hbm ahead of need")                 \
    M(copies_down, COUNTER, "", "experts copied from hbm to dram when they were demoted")         \
    M(copies_down_bytes, COUNTER, "bytes", "bytes of those copies")                               \
    M(demotions_dropped, COUNTER, "", "demotions that found no slot below, and were dropped")     \
    M(copy_errors, COUNTER, "", "copies that failed")                                             \
    M(reconfigurations, COUNTER, "", "times that the settings were changed while open")           \
    M(overlap_ratio, REAL, "", "share of the time of reads and copies that no step waited for")   \
    M(read_busy_seconds, REAL, "seconds", "time with a read under way")                           \
    M(copy_busy_seconds, REAL, "seconds", "time with a copy under way")                           \
    M(transfer_busy_seconds, REAL, "seconds", "time with either under way, checks included")      \
    M(take_in_seconds, REAL, "seconds", "engine thread's time for what was read: checks and all") \
    M(landing_seconds, REAL, "seconds", "of that, rearranging weights for the kernels")           \
    M(wait_demand_seconds, REAL, "seconds", "engine waits for demand reads")                      \
    M(wait_late_seconds, REAL, "seconds", "engine waits for late prefetches")                     \
    M(wait_copy_seconds, REAL, "seconds", "engine waits for copies between tiers")                \
    M(wait_slot_seconds, REAL, "seconds", "engine waits for a slot")                              \
    M(read_latency, HIST, "seconds", "from submit to the last byte of an expert")                 \
    M(copy_latency, HIST, "seconds", "from the request to the end of a copy")                     \
    M(submit_latency, HIST, "seconds", "from acquire to the submission of its demand reads")

struct tier_io_metrics {
    BASE_METRIC_STRUCT(TIER_IO_METRICS)
};

#define TIER_WARM_METRICS(M)                                                                      \
    M(saves, COUNTER, "", "times that the resident set was saved")                                \
    M(save_errors, COUNTER, "", "times that it could not be")                                     \
    M(saved_experts, GAUGE, "experts", "experts in the set saved last")                           \
    M(restore_experts, GAUGE, "experts", "experts made resident from the saved set at start")     \
    M(restore_left, GAUGE, "experts", "of those, still to be looked at for a read in idle time")  \
    M(restore_reads, COUNTER, "", "of those, read in idle time; others came by demand or left")   \
    M(restore_bytes, COUNTER, "bytes", "bytes of those reads")

struct tier_warm_metrics {
    BASE_METRIC_STRUCT(TIER_WARM_METRICS)
};

struct tier_layer_stats {
    uint64_t lookups, resident, misses, evictions;      /* top tier */
    uint64_t below_lookups, below_resident, below_in_place;     /* dram, where hbm lies above it */
    uint64_t load_count, load_ns_sum, load_ns_min, load_ns_max;
    uint64_t hinted, prefetched, prefetch_used;     /* hinted: predictions offered */
};

/* Consistent counters, as of the last tier_step_end or, within a long step, a moment ago. */
struct tier_snapshot {
    uint32_t tier_count;                /* resident tiers */
    const char *tier_names[TIER_RESIDENT_TIERS_MAX + 1];    /* then "nvme" */
    struct tier_tier_metrics tiers[TIER_RESIDENT_TIERS_MAX];
    struct tier_counts cells[TIER_RESIDENT_TIERS_MAX][TIER_CELL_COUNT];
    struct tier_io_metrics io;
    struct tier_warm_metrics warm;
    uint64_t steps;
    char io_note[200];                  /* which backend, and why */
    char pin_note[200];
    char numa_note[200];
    char huge_note[120];
    char device_note[200];              /* empty without an hbm tier */
    char prefetch_note[200];            /* what was made of prefetch.enabled, and why */
    char governor_note[200];            /* what prefetch does at present; empty without any */
    char warm_note[200];                /* what became of the saved set; empty without a path */
    /* Where `auto` had to do with less than it wanted; the notes say why. */
    bool backend_degraded, direct_degraded, buffers_degraded, pin_degraded, prefetch_degraded;
    bool numa_degraded, huge_degraded;
    bool warm_refused;                  /* the saved set was there and could not be used */
    uint64_t fixed_experts;             /* residents that a policy keeps for good (pinned) */
    bool device_lost;                   /* device_note says why */
    bool device_host_readable;          /* the CPU computes on what lies in hbm */
    bool holds_all;                     /* tier_holds_all */
};
/* Any thread, at any time; never blocks the engine. */
void tier_snapshot(struct tier *tier, struct tier_snapshot *out);
/* The engine's thread: the cells of this moment, after all events that the observer was told of. A
 * snapshot is of the last tier_step_end. */
void tier_counts_now(const struct tier *tier,
                     struct tier_counts cells[TIER_RESIDENT_TIERS_MAX][TIER_CELL_COUNT]);
/* [layers] and [layers x experts]: lookups per expert, and a bit per tier that it is resident in (1
 * = the top one); return -ERANGE if the array is too small. */
int tier_snapshot_layers(struct tier *tier, struct tier_layer_stats *out, uint32_t layers);
int tier_snapshot_experts(struct tier *tier, uint64_t *lookups, uint8_t *resident, size_t count);

/* Histograms in ns that are too large to publish with the rest: of a layer's loads from nvme, of
 * waits by cause. A copy may be a few samples apart from the snapshot. Any thread. */
void tier_load_latency(const struct tier *tier, uint32_t layer, struct base_hist *out);
void tier_wait_latency(const struct tier *tier, enum tier_wait_cause cause, struct base_hist *out);
/* From a lookup until the engine's thread knows that the expert can be read, in ns, by where it was
 * found: tier 0 is the top one (hits; one acquire of 16 is timed, a lookup being its share), then
 * dram below hbm, then nvme (`tier` = the number of resident tiers). What was on its way counts
 * where its bytes still lay. Any thread. */
void tier_lookup_latency(const struct tier *tier, uint32_t tier_found, struct base_hist *out);
/* One expert's loads (tiering/loads.h). Any thread. */
struct tier_loads_entry tier_expert_loads(const struct tier *tier, uint32_t layer, uint32_t expert);

/* Memory that open will take, for the table printed at start. Index 0 is the top tier: hbm, then
 * dram, or dram alone. */
struct tier_footprint {
    uint64_t slots[TIER_RESIDENT_TIERS_MAX];    /* that policies work with */
    uint64_t spare_slots[TIER_RESIDENT_TIERS_MAX];  /* beside them: for what is on its way */
    uint64_t slot_bytes[TIER_RESIDENT_TIERS_MAX];
    uint64_t slots_bytes[TIER_RESIDENT_TIERS_MAX];  /* all of them */
    uint64_t tables_bytes;
};
int tier_footprint(const struct tier_config *config, const struct tier_store *store,
                   uint32_t top_k, struct tier_footprint *out, struct base_err *err);

/* What the decision core runs with: written into the trace's header. */
const struct tier_decide_config *tier_decide_config_of(const struct tier *tier);

/* The last `tier_wait` causes of the running step, in nanoseconds (invariant 6). */
void tier_step_waits(const struct tier *tier, uint64_t wait_ns[TIER_WAIT_CAUSE_COUNT]);

extern const struct base_metric tier_metrics[], tier_io_metrics[], tier_warm_metrics[];
extern const size_t tier_metric_count, tier_io_metric_count, tier_warm_metric_count;

#endif
