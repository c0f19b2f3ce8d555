/* The slots of one tier: equal places for one expert each, in one range of addresses.
 *
 *      addresses:  | slot 0 | slot 1 | ... | slot most-1 |    each slot_bytes, a multiple of 4096
 *
 * Addresses are set aside at start for the most slots there may ever be; memory is behind those in
 * service only. Slots go out of service one by one, when they are free, wherever they lie, and
 * their memory goes back to the system at once (of a huge page, once all of it is out or memory is
 * short); they come back into service by number.
 *
 * A slot is free, or it belongs to one expert (`key`) and is on its way through
 *
 *      QUEUED ── READING ── READY          back to QUEUED when the bytes were bad
 *
 * `epoch` grows whenever the slot changes hands, so that a stale lease can be told from a good one.
 * Free slots form a stack: the one that was given back last is taken first, its pages are warm.
 *
 * Engine thread only. Nothing allocates after create, but grow takes memory into service.
 */
#ifndef TIERING_SLOTS_H
#define TIERING_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "tiering/store.h"

#define TIER_NO_SLOT UINT32_MAX

enum tier_slot_state { TIER_SLOT_FREE, TIER_SLOT_QUEUED, TIER_SLOT_READING, TIER_SLOT_READY };

struct tier_slot {
    _Alignas(64) uint32_t epoch;
    uint32_t key;
    uint32_t prev, next;        /* in the list the owner keeps it in */
    uint32_t load;              /* READING: who reads it */
    uint32_t bytes;             /* of the expert, once its read began */
    uint32_t touched;           /* most bytes of it that were ever written, whole pages */
    uint32_t part_offset[TIER_PARTS];   /* UINT32_MAX: no such part */
    uint8_t state;
    uint8_t moving;             /* hbm: a copy of it is under way */
    uint8_t tries;              /* hbm: of that copy */
    bool ahead;                 /* hbm: that copy was begun for nobody */
    bool prefetch;              /* it was fetched for nobody, and nobody has asked since */
    bool restore;               /* ... by a warm start: until it is there, or on its way to hbm */
    bool asked;                 /* a read of it is under way, and somebody waits for it */
};

enum tier_pin { TIER_PIN_AUTO, TIER_PIN_ON, TIER_PIN_OFF };

/* How memory is held that comes into service. */
struct tier_slots_hold {
    enum tier_pin pin;
    /* Where it lies: called before it is written; an error is a refusal. May be NULL. */
    int (*place)(void *context, void *memory, size_t bytes);
    void *context;
};

struct tier_slots {
    char *memory;
    uint64_t slot_bytes, bytes; /* bytes: of the slots in service */
    uint64_t touched;           /* sum over the slots: what is in memory */
    uint32_t count, most;       /* slots in service, addresses */
    uint32_t free_count, retired_count;
    uint32_t *free;             /* [most] the free ones from the front, the retired from the back */
    struct tier_slot *at;       /* [most], each a cache line of its own */
    void *at_memory;            /* what that lies in */
    bool locked, borrowed;      /* borrowed: the memory is the caller's */
    bool huge;                  /* of huge pages */
    bool huge_refused;          /* the slots are large enough, but the kernel gives none */
    /* Memory of a slot went out of service, or came back. May be NULL. */
    void (*moved)(void *context, void *memory, size_t bytes, bool in_service);
    void *context;
    struct tier_slots_hold hold;
    char note[200];             /* how the memory is locked, for the start report */
    char huge_note[120];        /* of which pages it is */
};

/* `count` slots in service of at most `most`; where the system sets no addresses aside for so many,
 * `most` becomes count. 0; -ENOMEM; the errno of a refusal that `hold` does not allow, with what to
 * set. slot_bytes is below 4 GiB. */
int tier_slots_create(struct tier_slots *slots, uint32_t count, uint32_t most, uint64_t slot_bytes,
                      const struct tier_slots_hold *hold, struct base_err *err);
/* The same in memory that the caller has, most x slot_bytes of it. */
int tier_slots_create_at(struct tier_slots *slots, uint32_t count, uint32_t most,
                         uint64_t slot_bytes, void *memory, struct base_err *err);
void tier_slots_destroy(struct tier_slots *slots);      /* accepts a zeroed one */

static inline char *tier_slots_memory(const struct tier_slots *slots, uint32_t slot)
{
    return slots->memory + slot * slots->slot_bytes;
}

/* So many of a slot's bytes, whole pages, are written. */
static inline void tier_slots_touch(struct tier_slots *slots, uint32_t slot, uint64_t bytes)
{
    struct tier_slot *at = &slots->at[slot];
    /* A huge page spans what lies between the parts as well. */
    if (slots->huge || bytes > slots->slot_bytes) bytes = slots->slot_bytes;
    if (bytes <= at->touched) return;
    slots->touched += bytes - at->touched;
    at->touched = (uint32_t)bytes;
}

/* A free slot for this expert, QUEUED; TIER_NO_SLOT when there is none. */
uint32_t tier_slots_take(struct tier_slots *slots, uint32_t key);
void tier_slots_give(struct tier_slots *slots, uint32_t slot);

/* Brings n more slots into service: all of them, or none and BASE_EBUDGET (beyond `most`), -ENOMEM
 * or the errno of a lock that TIER_PIN_ON wants. */
int tier_slots_grow(struct tier_slots *slots, uint32_t n, struct base_err *err);
/* Takes up to n free slots out of service; returns how many. */
uint32_t tier_slots_retire(struct tier_slots *slots, uint32_t n);

#endif
