/* The live half of residency: where the bytes of each expert are, and the reads that bring them.
 *
 * The decision core says which experts shall be resident; the cache follows. What the core wants and
 * what memory holds differ while reads are under way, and only then:
 *
 *   wanted, no slot       waits for a slot (its read has not begun), or a prefetch was cancelled
 *   wanted, slot          QUEUED, READING, READY
 *   not wanted, READING   the core evicted it in flight: its slot comes back when the read does
 *
 * Nothing here feeds back into the core but one thing: an expert that cannot be read is forgotten,
 * and that is a recorded event.
 *
 * Reads: an expert's extents are read at page granularity, all at once. Demand goes out before
 * prefetch, prefetch only into idle queue depth. A finished read is checked against its hash before
 * anybody sees it; a bad one is read again, TRIES times in all, then the expert is quarantined.
 *
 * Keys number experts over all layers. Engine thread only; nothing allocates after create.
 */
#ifndef TIERING_CACHE_H
#define TIERING_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/hist.h"
#include "tiering/io.h"
#include "tiering/slots.h"
#include "tiering/store.h"

enum { TIER_READ_TRIES = 3, TIER_FAILURES_MAX = 64 };

/* What one finished load did, for the account of its layer. */
struct tier_load_stats {
    uint64_t count, ns_sum, ns_min, ns_max;     /* relaxed atomics: one writer, any reader */
};

struct tier_failure {
    uint32_t key, file;
    int code;
    uint64_t offset;
};

struct tier_cache_stats {
    uint64_t demand_reads, demand_bytes;
    uint64_t prefetch_reads, prefetch_bytes, prefetch_wasted_bytes, prefetch_cancelled;
    uint64_t checksum_failures, read_errors, quarantined, stuck_reads;
    struct base_hist read_latency;
};

struct tier_queue {
    uint32_t head, tail;        /* slots, TIER_NO_SLOT when empty */
};

struct tier_load;

struct tier_cache_args {
    const struct tier_store *store;
    struct tier_io *io;         /* borrowed; the store's files are added in order */
    struct base_clock *clock;
    uint32_t slots;
    enum tier_pin pin;
    bool verify_always;
    uint64_t prefetch_inflight; /* bytes */
    uint64_t stuck_after_ns;
    /* An expert was given up. */
    void (*failed)(void *context, uint32_t key);
    void *context;
};

struct tier_cache {
    const struct tier_store *store;
    struct tier_io *io;
    struct base_clock *clock;
    struct tier_slots slots;
    bool verify_always;
    uint64_t stuck_after_ns;
    void (*failed)(void *context, uint32_t key);
    void *context;
    uint32_t experts, keys, file_first;
    uint32_t *slot_of;          /* [keys] */
    uint32_t *next_waiting;     /* [keys] */
    uint16_t *leases;           /* [keys] */
    uint8_t *flags;             /* [keys] */
    uint32_t waiting_head, waiting_tail, leased;
    struct tier_queue demand, prefetch;
    uint32_t prefetch_open, prefetch_open_max;
    struct tier_load *loads;
    uint32_t load_count, free_load;
    struct tier_io_req **outbox;        /* ring of requests the backend has not taken yet */
    uint32_t outbox_first, outbox_count, outbox_size;
    struct tier_load_stats *layer_loads;
    struct tier_cache_stats stats;
    struct tier_failure failures[TIER_FAILURES_MAX];
    uint32_t failure_count;
    uint64_t busy_since_ns, busy_ns, busy_bytes;   /* while anything was in flight */
};

int tier_cache_create(struct tier_cache *cache, const struct tier_cache_args *args,
                      struct base_err *err);
/* Waits for reads in flight. Accepts a zeroed one. */
void tier_cache_destroy(struct tier_cache *cache);

/* The core admitted an expert: its read shall begin. */
void tier_cache_want(struct tier_cache *cache, uint32_t key, bool demand);
/* The core dropped it. */
void tier_cache_unwant(struct tier_cache *cache, uint32_t key);
/* Somebody waits for this wanted expert now. */
void tier_cache_demand(struct tier_cache *cache, uint32_t key);
/* A layer was acquired: prefetches for it that have not begun come too late to help. */
void tier_cache_layer_passed(struct tier_cache *cache, uint32_t layer);
/* Room for another prefetch within prefetch_inflight. */
bool tier_cache_prefetch_room(const struct tier_cache *cache);

/* Hands the backend what it can take. */
void tier_cache_pump(struct tier_cache *cache);
/* Takes in finished reads; waits for one until the deadline if `wait`. True if any came. */
bool tier_cache_reap(struct tier_cache *cache, bool wait, uint64_t deadline_ns);

enum tier_cache_place {
    TIER_PLACE_READY,
    TIER_PLACE_DEMAND,          /* on its way, asked for before its read began */
    TIER_PLACE_LATE,            /* on its way, its read was begun as a prefetch */
    TIER_PLACE_NO_SLOT,         /* waits for a slot */
    TIER_PLACE_FAILED,
};

static inline bool tier_cache_ready(const struct tier_cache *cache, uint32_t key)
{
    uint32_t slot = cache->slot_of[key];
    return slot != TIER_NO_SLOT && cache->slots.at[slot].state == TIER_SLOT_READY;
}
enum tier_cache_place tier_cache_place(const struct tier_cache *cache, uint32_t key);

/* Code and place of a quarantined expert, or NULL. */
const struct tier_failure *tier_cache_failure(const struct tier_cache *cache, uint32_t key);

/* Bytes of the tables per expert and in all, beside slots. */
uint64_t tier_cache_tables_bytes(uint32_t keys, uint32_t slots, uint32_t depth);

#endif
