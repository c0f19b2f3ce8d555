/* The live half of residency: where the bytes of each expert are, and what brings them there.
 *
 * The decision core says in which tiers an expert shall be; the cache follows. What the core wants
 * and what memory holds differ while reads and copies are under way, and only then:
 *
 *   wanted, no slot       waits for a slot, or its prefetch was cancelled before it began
 *   wanted, slot          QUEUED, READING, READY
 *   not wanted, READING   the core evicted it in flight: its slot comes back when the read does
 *
 * Nothing here feeds back into the core but one thing: an expert that cannot be had is forgotten,
 * and that is a recorded event.
 *
 * Reads go nvme -> dram. An expert's extents are read at page granularity, all at once. Demand goes
 * out before prefetch, prefetch only into idle queue depth. A finished read is checked against its
 * hash before anybody sees it; a bad one is read again, TRIES times in all, then as often from each
 * other copy that a mirror has, then the expert is quarantined. Good bytes go through `landing`
 * once, if there is one: from then on, and in every copy of them, they are what that made of them.
 *
 * With an hbm tier (mover.h) every expert passes through a dram slot on its way up, also one that
 * the core puts into hbm alone; that slot is given back when the copy is there. Nothing in hbm ever
 * waits for a dram slot: a demotion that finds none is dropped. So what waits for a slot always
 * gets one.
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
#include "device/device.h"
#include "tiering/io.h"
#include "tiering/landing.h"
#include "tiering/loads.h"
#include "tiering/slots.h"
#include "tiering/span.h"
#include "tiering/store.h"
#include "tiering/story.h"

enum { TIER_READ_TRIES = 3, TIER_FAILURES_MAX = 64 };

/* What one finished load did, for the account of its layer. */
struct tier_load_stats {
    uint64_t count, ns_sum, ns_min, ns_max;     /* relaxed atomics: one writer, any reader */
    struct base_hist latency;                   /* the same */
};

struct tier_failure {
    uint32_t key, file;
    int code;
    uint64_t offset;
};

struct tier_cache_stats {
    uint64_t demand_reads, demand_bytes;
    uint64_t prefetch_reads, prefetch_bytes, prefetch_wasted_bytes, prefetch_cancelled;
    uint64_t prefetch_useful, prefetch_late;
    uint64_t restore_reads, restore_bytes;
    uint64_t checksum_failures, read_errors, mirror_reads, quarantined, stuck_reads;
    uint64_t copies_up, copies_ahead, copies_down, copy_up_bytes, copy_down_bytes, copy_errors;
    uint64_t demand_copy_bytes;     /* of the copies up, those that were asked for */
    uint64_t demotions_dropped;
    uint64_t copy_ns;           /* sum over copies, waiting in the queue included */
    struct base_hist read_latency, copy_latency;
};

struct tier_queue {
    uint32_t head, tail;        /* slots, TIER_NO_SLOT when empty */
};

struct tier_load;

/* What a lookup that hits needs of an expert, in a quarter of a cache line: with very many experts
 * that is all that has to come from memory. `layout`, `slot` and `epoch` repeat what the slot says;
 * they are noted when somebody's wait for it ends, or by its first hit, and forgotten whenever
 * anything moves the expert. */
struct tier_key_use {
    uint32_t lookups;           /* relaxed atomic: one writer, any reader; up to 2^32 - 1 */
    uint16_t leases;
    uint16_t layout;            /* of the parts in the top slot; TIER_NO_LAYOUT: look there */
    uint32_t slot, epoch;
};

enum { TIER_NO_LAYOUT = 0, TIER_LAYOUTS_MAX = 64 };

/* Where the parts of an expert begin in its slot. Most models have one or a few of these. */
struct tier_layout {
    uint32_t part_offset[TIER_PARTS];
};

/* Bits of an expert's flags. */
enum {
    TIER_KEY_HBM = 1,           /* the core's view: it shall be in hbm, ... */
    TIER_KEY_DRAM = 2,          /* ... in dram */
    TIER_KEY_DEMAND = 4,        /* somebody waits for it */
    TIER_KEY_VERIFIED = 8,      /* its hash was right once */
    TIER_KEY_FAILED = 16,
    TIER_KEY_LATE = 32,         /* DEMAND came after a prefetch had begun */
    TIER_KEY_IN_LINE = 64,      /* waits for a dram slot; << 1 for an hbm slot */
};

/* Experts that wait for a slot, first come first served. Who was evicted meanwhile is skipped. */
struct tier_line {
    uint32_t head, tail;
    uint32_t *next;             /* [keys] */
};

/* One tier's slots and who is in them. */
struct tier_seats {
    struct tier_slots slots;
    uint32_t *slot_of;          /* [keys], TIER_NO_SLOT */
    struct tier_line line;
};

struct tier_cache_args {
    const struct tier_store *store;
    struct tier_io *io;         /* borrowed; the store's files are added in order */
    struct base_clock *clock;
    uint32_t slots, hbm_slots;  /* hbm_slots 0: no hbm tier */
    uint32_t slots_most, hbm_slots_most;    /* that there may ever be */
    uint64_t hbm_slot_bytes;
    struct dev *device;         /* borrowed, with hbm_slots */
    struct tier_slots_hold hold;        /* of dram */
    bool verify_always, warm_compute;
    uint64_t prefetch_inflight; /* bytes */
    uint64_t stuck_after_ns;
    struct tier_story *story;   /* borrowed */
    struct tier_landing landing;
    /* An expert was given up. */
    void (*failed)(void *context, uint32_t key);
    void *context;
};

struct tier_cache {
    const struct tier_store *store;
    struct tier_io *io;
    struct base_clock *clock;
    struct dev *device;         /* NULL: no hbm tier */
    struct tier_seats dram, hbm;
    struct tier_seats *top;     /* where leases are */
    bool verify_always;
    bool warm_compute;          /* the core leaves what it finds in dram there (with hbm) */
    uint64_t stuck_after_ns;
    struct tier_story *story;
    struct tier_landing landing;
    void (*failed)(void *context, uint32_t key);
    void *context;
    uint32_t experts, keys, file_first;
    struct tier_key_use *use;   /* [keys] */
    struct tier_layout layouts[TIER_LAYOUTS_MAX];   /* from 1 on */
    uint32_t layout_count;
    uint8_t *flags;             /* [keys] */
    uint32_t leased;
    struct dev_copy *dev_copies;    /* [hbm slots, at most]: one copy a slot */
    struct tier_queue demand, prefetch;
    uint32_t prefetch_open, prefetch_open_max;
    uint32_t copies_ahead;      /* on their way up, begun for nobody */
    struct tier_load *loads;
    uint32_t load_count, free_load;
    uint32_t arrived, arrived_last;     /* loads whose bytes are there, not checked yet */
    struct tier_io_req **outbox;        /* ring of requests the backend has not taken yet */
    uint32_t outbox_first, outbox_count, outbox_size;
    struct tier_load_stats *layer_loads;
    struct tier_loads expert_loads;
    struct tier_cache_stats stats;
    struct tier_failure failures[TIER_FAILURES_MAX];
    uint32_t failure_count;
    struct tier_span reads, copies, transfers;  /* under way; transfers: any of them, checks too */
    uint64_t read_bytes;        /* that came back during `reads` */
    /* For experts that could not be read at once: since when they are asked for, and whether their
     * bytes lay in dram (else on nvme); 0 = not asked for. */
    uint32_t *asked;            /* [keys] */
    struct base_hist answer_latency[2];     /* from there to readable: of nvme, of dram */
    uint32_t asked_reads;       /* queued or in flight, and somebody waits for them */
    uint64_t asked_since_ns, asked_ns;      /* while there were any */
    uint64_t taken_in, take_in_ns;          /* loads that ended, and this thread's time for that */
    uint64_t landing_ns;                    /* of that, in `landing` */
};

int tier_cache_create(struct tier_cache *cache, const struct tier_cache_args *args,
                      struct base_err *err);
/* Waits for reads in flight. Accepts a zeroed one. */
void tier_cache_destroy(struct tier_cache *cache);

/* The core's view of an expert changes: it shall be in the tiers `in`, no more in those `out`
 * (TIER_KEY_HBM, TIER_KEY_DRAM). `fetch`: bring it if it is nowhere; `demand`: somebody waits. */
void tier_cache_move(struct tier_cache *cache, uint32_t key, uint8_t in, uint8_t out, bool fetch,
                     bool demand);
/* Somebody waits for this wanted expert now. */
void tier_cache_demand(struct tier_cache *cache, uint32_t key);
/* Begins to read a wanted expert of which it has nothing, for nobody yet. */
void tier_cache_read_ahead(struct tier_cache *cache, uint32_t key);
/* A lookup found this expert and could not read it: when it can is noted. */
void tier_cache_asked(struct tier_cache *cache, uint32_t key, uint64_t now_ns);
/* For the mover and these: an expert may be readable from now on. */
void tier_cache_answered(struct tier_cache *cache, uint32_t key);
/* All that a layer asks for was acquired: prefetches for it that have not begun come too late to
 * help. */
void tier_cache_layer_passed(struct tier_cache *cache, uint32_t layer);
/* Room for another prefetch within prefetch_inflight. */
bool tier_cache_prefetch_room(const struct tier_cache *cache);

/* Another number of slots in a tier that can take it. More: all at once or an error, and who waits
 * for a slot gets one. Fewer: as many as are free now and at most `bytes` of memory, at least one
 * slot; returns whether there are more to go. */
int tier_cache_grow(struct tier_cache *cache, struct tier_seats *seats, uint32_t slots,
                    struct base_err *err);
bool tier_cache_shrink(struct tier_seats *seats, uint64_t slots, uint64_t bytes);
/* For the mover and these: who waits for a slot gets the free ones. */
void tier_cache_seat_waiting(struct tier_cache *cache);
/* How much prefetch may be on its way from now on. */
void tier_cache_prefetch_limit(struct tier_cache *cache, uint64_t inflight_bytes);
/* Begins the read of a wanted expert that nobody waits for, into queue depth that is idle and
 * within the bound on prefetch. False if there is no room now; true if it began, or none is
 * needed. */
bool tier_cache_restore(struct tier_cache *cache, uint32_t key);

/* Hands the backend what it can take. */
void tier_cache_pump(struct tier_cache *cache);
/* Takes in finished reads and copies; waits for one until the deadline if `wait`. True if any
 * came. Reads come back in crowds, and each is checked here: who waits gets them one by one, so
 * that what it asks for next is on its way to the disk while the others are checked. */
bool tier_cache_reap(struct tier_cache *cache, bool wait, uint64_t deadline_ns);
/* Something is under way that a reap will bring. */
bool tier_cache_busy(const struct tier_cache *cache);

enum tier_cache_place {
    TIER_PLACE_READY,
    TIER_PLACE_DEMAND,          /* on its way, asked for before its read began */
    TIER_PLACE_LATE,            /* on its way, its read was begun as a prefetch */
    TIER_PLACE_COPY,            /* in dram, on its way to hbm */
    TIER_PLACE_NO_SLOT,         /* waits for a slot */
    TIER_PLACE_FAILED,
};

static inline bool tier_seats_ready(const struct tier_seats *seats, uint32_t key)
{
    uint32_t slot = seats->slot_of[key];
    return slot != TIER_NO_SLOT && seats->slots.at[slot].state == TIER_SLOT_READY;
}

/* Where a lease of this expert points: the top tier, or dram where it is used in place. While it is
 * leased that does not change. */
static inline const struct tier_seats *tier_cache_where(const struct tier_cache *cache,
                                                        uint32_t key)
{
    bool in_place = cache->warm_compute &&
                    (cache->flags[key] & (TIER_KEY_HBM | TIER_KEY_DRAM)) == TIER_KEY_DRAM;
    return in_place ? &cache->dram : cache->top;
}

/* Notes where an expert is that can be read in the top tier and will stay: the next hits need not
 * look at its slot. */
void tier_cache_note(struct tier_cache *cache, uint32_t key);
static inline void tier_cache_unnote(struct tier_cache *cache, uint32_t key)
{
    cache->use[key].layout = TIER_NO_LAYOUT;
}
static inline bool tier_cache_noted(const struct tier_cache *cache, uint32_t key)
{
    return cache->use[key].layout != TIER_NO_LAYOUT;
}

/* It has a slot, or waits for one to be read into: nothing more need be read for it. */
static inline bool tier_cache_has(const struct tier_cache *cache, uint32_t key)
{
    return cache->dram.slot_of[key] != TIER_NO_SLOT || cache->flags[key] & TIER_KEY_IN_LINE ||
           (cache->device && cache->hbm.slot_of[key] != TIER_NO_SLOT);
}

/* Readable where it runs. */
static inline bool tier_cache_ready(const struct tier_cache *cache, uint32_t key)
{
    return tier_seats_ready(tier_cache_where(cache, key), key);
}
enum tier_cache_place tier_cache_place(const struct tier_cache *cache, uint32_t key);

/* Code and place of a quarantined expert, or NULL. */
const struct tier_failure *tier_cache_failure(const struct tier_cache *cache, uint32_t key);

/* Bytes of an hbm slot: the parts of the largest expert, each at a multiple of DEV_ALIGN. */
uint64_t tier_cache_hbm_slot_bytes(const struct tier_store *store);

/* Bytes of the tables. */
uint64_t tier_cache_tables_bytes(uint32_t keys, uint64_t slots, uint64_t hbm_slots, uint32_t depth);

/* For the mover: an expert is given up, its slots given back; what may be next is set going. */
void tier_cache_give_up(struct tier_cache *cache, uint32_t key, int code, uint32_t file,
                        uint64_t offset);
void tier_cache_settle(struct tier_cache *cache, uint32_t key);
void tier_cache_dram_give(struct tier_cache *cache, uint32_t slot);
void tier_line_push(struct tier_cache *cache, struct tier_line *line, uint32_t key, uint8_t flag);
uint32_t tier_line_pop(struct tier_cache *cache, struct tier_line *line, uint8_t flag);

#endif
