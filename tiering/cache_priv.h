/* What the rooms of the cache share, and nobody else: cache.c (what the core wants of an expert,
 * and the slot it gets), cache_read.c (reads from submission to check), cache_failure.c (experts
 * given up), cache_create.c. Engine thread only. */
#ifndef TIERING_CACHE_PRIV_H
#define TIERING_CACHE_PRIV_H

#include "tiering/cache.h"

enum { TIER_NO_KEY = UINT32_MAX, TIER_NO_LOAD = UINT32_MAX, TIER_REAP_BATCH = 64 };
/* As many reads may wait for their check as are with the disk: it goes on reading meanwhile. */
enum { TIER_LOADS_PER_READ = 2 };

/* One expert being read. */
struct tier_load {
    uint32_t slot, key;
    uint32_t next_free;         /* or the next one that arrived */
    uint32_t left;              /* requests not back yet */
    uint32_t tries;             /* of this copy */
    uint32_t copy;              /* of the record: which mirror is read */
    int error;
    uint32_t error_extent;
    uint64_t begin_ns, end_ns;
    uint64_t named_ns;          /* when the watchdog named it, or begin_ns */
    struct tier_record record;
    struct tier_io_req reqs[TIER_PARTS];
};

static inline void tier_load_free(struct tier_cache *c, struct tier_load *load)
{
    load->next_free = c->free_load;
    c->free_load = (uint32_t)(load - c->loads);
}

static inline void tier_queue_push(struct tier_cache *c, struct tier_queue *q, uint32_t slot)
{
    struct tier_slot *at = &c->dram.slots.at[slot];
    at->prev = q->tail;
    at->next = TIER_NO_SLOT;
    if (q->tail == TIER_NO_SLOT) {
        q->head = slot;
    } else {
        c->dram.slots.at[q->tail].next = slot;
    }
    q->tail = slot;
}

static inline void tier_queue_remove(struct tier_cache *c, struct tier_queue *q, uint32_t slot)
{
    struct tier_slot *at = &c->dram.slots.at[slot];
    if (at->prev == TIER_NO_SLOT) {
        q->head = at->next;
    } else {
        c->dram.slots.at[at->prev].next = at->next;
    }
    if (at->next == TIER_NO_SLOT) {
        q->tail = at->prev;
    } else {
        c->dram.slots.at[at->next].prev = at->prev;
    }
}

/* A prefetch that is under way ends being one: asked for, arrived or given up. */
static inline void tier_cache_prefetch_close(struct tier_cache *c, struct tier_slot *at)
{
    if (at->prefetch && at->state != TIER_SLOT_READY) c->prefetch_open--;
}

/* Somebody waits for a read that is under way from now on. */
static inline void tier_cache_asked_begin(struct tier_cache *c, struct tier_slot *at)
{
    at->asked = true;
    if (c->asked_reads++ == 0) c->asked_since_ns = base_clock_now_ns(c->clock);
}

/* It came at `end_ns` (0: now, or it will not come). */
static inline void tier_cache_asked_end(struct tier_cache *c, struct tier_slot *at, uint64_t end_ns)
{
    if (!at->asked) return;
    at->asked = false;
    if (--c->asked_reads > 0) return;
    if (end_ns == 0) end_ns = base_clock_now_ns(c->clock);
    if (end_ns > c->asked_since_ns) c->asked_ns += end_ns - c->asked_since_ns;
}

/* It shall be in dram, or must pass through it. */
static inline bool tier_cache_needs_dram(const struct tier_cache *c, uint32_t key)
{
    if (c->flags[key] & TIER_KEY_DRAM) return true;
    return c->flags[key] & TIER_KEY_HBM && !tier_seats_ready(&c->hbm, key);
}

static inline void tier_cache_fate(struct tier_cache *c, uint32_t key, const char *fate)
{
    if (c->story->timeline) tier_story_fate(c->story, base_clock_now_ns(c->clock), key, fate);
}

#endif
