/* libtiering: tiered residency of expert weights, for any engine of Mixture-of-Experts models.
 *
 * An engine asks for the experts of a layer, waits for some or all of them, reads them, gives them
 * back. Where they were, what had to leave for them, which reads were under way and what each wait
 * was spent on is this library's affair. It does no arithmetic and knows no model.
 *
 *      acquire ──> leases ──> wait(any) ──> use parts ──> ... ──> release
 *                     └ demand reads are submitted inside acquire, before it returns
 *
 * One thread at a time for each tier object, unless stated. After tier_lib_open nothing here
 * allocates, and what hits neither allocates nor locks. A lease's parts stay valid from the wait
 * that said it is ready to its release. Layers count from 0 over the layers with experts.
 *
 * Failures are negative: errno values, or library codes from -2000 that come with a sentence.
 * A caller that breaks a contract (an expert out of range, a lease given back twice) ends the
 * process with a message. docs/libtiering.md has more and a walk through an example.
 *
 * Structs only grow at their end, and only behind a size that the caller passes; functions keep
 * their meaning as long as the library's name ends in .so.1.
 */
#ifndef TIERING_LIBTIERING_H
#define TIERING_LIBTIERING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* -- where experts lie ------------------------------------------------------------------------ */

/* An expert is up to six parts: for instance gate, gate scales, up, up scales, down, down scales.
 * A part of 0 bytes does not exist. */
enum { TIER_PARTS = 6 };

/* Where the bytes of each expert are and what they must hash to. Immutable; any thread. */
struct tier_store;

/* One part: a byte range of a file. */
struct tier_lib_piece {
    uint64_t offset, bytes;
    uint32_t file;              /* index into tier_lib_table.files */
    uint32_t reserved;          /* 0 */
};

struct tier_lib_expert {
    struct tier_lib_piece parts[TIER_PARTS];
    uint64_t hash;              /* XXH3-64 over the parts' bytes in order */
};

/* A caller's own description of where experts lie: any files, any offsets, experts of any sizes. */
struct tier_lib_table {
    const char *name;           /* for messages: the model's name or folder */
    uint32_t layers, experts;   /* layers with experts; experts of each layer */
    uint32_t file_count;
    const char *const *files;   /* paths */
    struct tier_lib_expert *at; /* [layers * experts], layer by layer */
};

/* Opening calls leave one sentence in `why` when they fail; `why` may be NULL. */

/* A store of the caller's table; nothing of the table is needed afterwards. Checks that the files
 * are there and long enough. -EINVAL, -ENOENT ..., -ENOMEM. */
int tier_lib_table_open(struct tier_store **out, const struct tier_lib_table *table, char *why,
                        size_t why_bytes);

/* Reads every expert of the table once, with so many threads, and fills in its hash: once for each
 * model; the caller keeps the hashes. */
int tier_lib_table_hash(const struct tier_lib_table *table, unsigned threads, char *why,
                        size_t why_bytes);

/* The store of a model folder that `tier-pack index` or `tier-pack repack` has prepared. `index`
 * may be NULL: DIR/expertier.index. Refused when a file changed since. */
int tier_lib_folder_open(struct tier_store **out, const char *dir, const char *index, char *why,
                         size_t why_bytes);

/* After the tiers that use it. Accepts NULL. */
void tier_store_close(struct tier_store *store);

uint32_t tier_store_layers(const struct tier_store *store);         /* with experts */
uint32_t tier_store_experts(const struct tier_store *store);        /* of each layer */
/* [TIER_PARTS]: bytes of each part of that expert; lives as long as the store. */
const uint64_t *tier_store_part_bytes(const struct tier_store *store, uint32_t layer,
                                      uint32_t expert);

/* -- the tiers -------------------------------------------------------------------------------- */

struct tier;

/* Settings are "key=value", the keys those of the tiers, policy, prefetch and io sections of
 * configs/default.yaml ("tiers.dram.capacity=64GiB", "policy.eviction=lfu"). One that is unknown or
 * cannot take effect is refused. */
struct tier_lib_options {
    struct tier_store *store;   /* borrowed until tier_close */
    const char *const *settings;
    uint32_t setting_count;
    uint32_t top_k;             /* experts of one layer that one token uses */
};

/* Makes the slots and opens the files; what tiers.warm.path keeps is resident again, its reads
 * begin with the calls that follow. The only call that allocates. */
int tier_lib_open(struct tier **out, const struct tier_lib_options *options, char *why,
                  size_t why_bytes);

/* Saves the resident set to tiers.warm.path, waits for reads in flight, then frees everything.
 * Accepts NULL. */
void tier_close(struct tier *tier);

enum tier_phase { TIER_PREFILL, TIER_DECODE, TIER_PHASE_COUNT };

/* Bit of a lease's slot: with tiers.warm_experts: compute and an hbm tier the expert lies in dram,
 * and its parts are host memory, for the CPU to use there. */
#define TIER_SLOT_IN_DRAM 0x80000000u

/* One expert, pinned. Filled by acquire and wait; the engine reads it and hands it back. */
struct tier_lease {
    uint32_t layer, expert;
    int status;                 /* 0 readable, -EINPROGRESS on its way, else why it failed */
    uint32_t slot;
    uint64_t epoch;             /* of the slot: changes whenever the slot changes hands */
    const void *parts[TIER_PARTS];  /* valid while status is 0; NULL for parts of 0 bytes */
};

enum tier_wait_mode { TIER_WAIT_ANY, TIER_WAIT_ALL };

/* Asks for experts of one layer: ids distinct, strongest first. Grants a prefix and returns its
 * length k; leases[0..k) are filled, demand reads are on their way. Never waits. k depends on slots
 * and leases only. Ask again for the rest after a release; k = 0 with nothing leased cannot
 * happen. */
uint32_t tier_acquire(struct tier *tier, uint32_t layer, const uint32_t *ids, uint32_t n,
                      enum tier_phase phase, struct tier_lease *leases);

/* Waits until any (all) of the leases left -EINPROGRESS, or until the absolute deadline on
 * CLOCK_MONOTONIC. Returns how many are settled (status 0 or failed), possibly 0 at the deadline.
 * Polls when the deadline is 0; UINT64_MAX is never. */
uint32_t tier_wait(struct tier *tier, struct tier_lease *leases, uint32_t n,
                   enum tier_wait_mode mode, uint64_t deadline_ns);

/* Gives leases back, in this order. */
void tier_release(struct tier *tier, const struct tier_lease *leases, uint32_t n);

/* Reaps what has arrived, without waiting: call between pieces of compute. */
void tier_poll(struct tier *tier);

struct tier_hint {
    uint32_t layer, expert;
    float probability;
    uint32_t distance;          /* layers ahead */
};
/* Predictions, in order of worth; cheap, may be refused, never waits. A hint for a resident expert
 * moves its place in the policy; one for an expert that is not there, or not there yet, may be read
 * ahead, as far as the governor allows (tiering/governor.h). Returns how many were admitted. */
uint32_t tier_hint(struct tier *tier, const struct tier_hint *hints, uint32_t n);

/* Ends a step: closes its account of waits and publishes the counters. */
void tier_step_end(struct tier *tier);

/* One sentence on why an expert was given up: its file, the place, what was wrong. Returns its code
 * (a checksum mismatch, -EIO ...), or 0 if it was not given up; `to` is then empty. */
int tier_failure_text(const struct tier *tier, uint32_t layer, uint32_t expert, char *to,
                      size_t size);

/* -- seeing it -------------------------------------------------------------------------------- */

struct tier_lib_tier {
    char name[8];               /* "hbm", "dram" */
    uint64_t lookups;           /* distinct experts asked of this tier: hits + late + misses */
    uint64_t hits, late, misses;    /* readable at once; admitted, still on its way; neither */
    uint64_t evictions;
    uint64_t slots, resident_slots, capacity_bytes;
};

struct tier_lib_stats {
    uint32_t tier_count;        /* resident tiers; tiers[0] is the one that leases point into */
    uint32_t reserved;
    struct tier_lib_tier tiers[2];
    uint64_t steps;
    uint64_t demand_reads, demand_bytes;        /* somebody waited for them */
    uint64_t prefetch_reads, prefetch_bytes;    /* read ahead of need */
    uint64_t read_errors, checksum_failures;    /* each was tried again */
    uint64_t quarantined;       /* experts given up */
    uint64_t stuck_reads;
    uint64_t wait_demand_ns, wait_late_ns, wait_copy_ns, wait_slot_ns;
};

/* Counters as of the last tier_step_end, or a moment ago within a long step. `bytes` is sizeof the
 * caller's struct. Any thread; never blocks the engine. */
void tier_lib_stats_get(struct tier *tier, struct tier_lib_stats *to, size_t bytes);

enum tier_lib_level { TIER_LIB_ERROR, TIER_LIB_WARN, TIER_LIB_INFO, TIER_LIB_DEBUG };

/* Where messages go instead of stderr (an expert given up, a read that does not come back, a bad
 * copy); NULL = stderr again. Of the whole process; call it while no tiers are open. The function
 * may be called on any thread of the library and must not call back into it. */
void tier_lib_log_set(void (*log)(void *context, enum tier_lib_level level, const char *text),
                      void *context);

/* "0.1.0": the version of the project. */
const char *tier_lib_version(void);

#ifdef __cplusplus
}
#endif

#endif
