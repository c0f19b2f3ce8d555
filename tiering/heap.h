/* An indexed binary heap over the experts of a partition, for policies that rank by a number: the
 * smallest (rank, stamp, expert) is at the top and leaves first.
 *
 *      items | rank, stamp, expert | ...   the heap: each item under the key that it had when it
 *                                          was last looked at
 *      seats [expert]  stamp               of the expert's last use
 *                      place               of its item, TIER_NO_EXPERT while not in the heap
 *
 * A use makes an expert's key larger, so the item that still holds the old one may lie too near the
 * top and never too far from it: a use is noted in the seat alone, O(1), and pick moves the items
 * that it finds outdated to where they belong, O(log n) each. What makes a key smaller is told with
 * tier_heap_set, O(log n). pick costs O(h) more when h held experts rank lowest.
 *
 * A few items are kept in no order, and pick looks at all of them: without a branch that has to be
 * guessed that is faster.
 */
#ifndef TIERING_HEAP_H
#define TIERING_HEAP_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "tiering/policy.h"

/* So few are in no order; ordered, there are more than half as many. */
enum { TIER_HEAP_FEW = 32 };

struct tier_heap_item {
    uint32_t expert, stamp;
    uint64_t rank;              /* < 2^63 */
};

struct tier_heap_seat {
    uint32_t stamp, place;
};

struct tier_heap {
    struct tier_heap_seat *seats;
    struct tier_heap_item *items;
    const double *scores;       /* [experts] ranks of used experts, the owner's; >= 0 */
    uint32_t count;
    uint32_t clock;             /* the latest stamp */
    bool ordered;
};

/* Item as one number: ranks first, then stamps, then experts. */
__extension__ typedef unsigned __int128 tier_heap_key;

static inline tier_heap_key tier_heap_key_of(struct tier_heap_item item)
{
    return (tier_heap_key)item.rank << 64 | (uint64_t)item.stamp << 32 | item.expert;
}

/* Order of doubles that are not negative. */
static inline uint64_t tier_heap_rank(double rank)
{
    uint64_t bits;
    DMUST(rank >= 0);
    memcpy(&bits, &rank, sizeof bits);
    return bits;
}

static inline void tier_heap_fini(struct tier_heap *heap)
{
    free(heap->seats);
    free(heap->items);
}

/* An empty heap for experts 0..count-1; -ENOMEM. scores: NULL when every rank is set. */
static inline int tier_heap_init(struct tier_heap *heap, uint32_t count, const double *scores)
{
    *heap = (struct tier_heap){ .scores = scores };
    heap->seats = malloc(count * sizeof *heap->seats);
    heap->items = malloc(count * sizeof *heap->items);
    if (!heap->seats || !heap->items) return -ENOMEM;
    for (uint32_t e = 0; e < count; e++) {
        heap->seats[e] = (struct tier_heap_seat){ .place = TIER_NO_EXPERT };
    }
    return 0;
}

static inline bool tier_heap_has(const struct tier_heap *heap, uint32_t expert)
{
    return heap->seats[expert].place != TIER_NO_EXPERT;
}

static inline void tier_heap_put(struct tier_heap *heap, uint32_t at, struct tier_heap_item item)
{
    heap->items[at] = item;
    heap->seats[item.expert].place = at;
}

/* Places an item at `at` or above; below it all is in order. */
static inline void tier_heap_rise(struct tier_heap *heap, uint32_t at, struct tier_heap_item item)
{
    tier_heap_key key = tier_heap_key_of(item);
    while (at > 0) {
        uint32_t above = (at - 1) / 2;
        if (tier_heap_key_of(heap->items[above]) < key) break;
        tier_heap_put(heap, at, heap->items[above]);
        at = above;
    }
    tier_heap_put(heap, at, item);
}

/* Places an item at `at` or below; above it all is in order. */
static inline void tier_heap_sink(struct tier_heap *heap, uint32_t at, struct tier_heap_item item)
{
    const struct tier_heap_item *items = heap->items;
    tier_heap_key key = tier_heap_key_of(item);
    for (uint32_t below; (below = 2 * at + 1) < heap->count; at = below) {
        /* Which half is as good as random: no branch. */
        uint32_t other = below + 1 < heap->count;
        below += tier_heap_key_of(items[below + other]) < tier_heap_key_of(items[below]);
        if (key < tier_heap_key_of(items[below])) break;
        tier_heap_put(heap, at, items[below]);
    }
    tier_heap_put(heap, at, item);
}

static inline void tier_heap_place(struct tier_heap *heap, uint32_t at, struct tier_heap_item item)
{
    bool up = at > 0 && tier_heap_key_of(item) < tier_heap_key_of(heap->items[(at - 1) / 2]);
    if (up) {
        tier_heap_rise(heap, at, item);
    } else {
        tier_heap_sink(heap, at, item);
    }
}

static inline struct tier_heap_item tier_heap_item(const struct tier_heap *heap, uint32_t expert,
                                                   uint64_t rank)
{
    return (struct tier_heap_item){ .expert = expert, .stamp = heap->seats[expert].stamp,
                                    .rank = rank };
}

/* Gives an expert another rank, larger or smaller. */
static inline void tier_heap_set(struct tier_heap *heap, uint32_t expert, uint64_t rank)
{
    uint32_t at = heap->seats[expert].place;
    DMUST(at < heap->count);
    if (heap->ordered) {
        tier_heap_place(heap, at, tier_heap_item(heap, expert, rank));
    } else {
        heap->items[at] = tier_heap_item(heap, expert, rank);
    }
}

static inline bool tier_heap_outdated(const struct tier_heap *heap, struct tier_heap_item item)
{
    return heap->seats[item.expert].stamp != item.stamp;
}

/* The same item under its expert's key of now. */
static inline struct tier_heap_item tier_heap_updated(const struct tier_heap *heap,
                                                      struct tier_heap_item item)
{
    return tier_heap_item(heap, item.expert, tier_heap_rank(heap->scores[item.expert]));
}

static inline void tier_heap_order(struct tier_heap *heap)
{
    if (!heap->ordered) return;
    for (uint32_t at = heap->count / 2; at-- > 0;) tier_heap_sink(heap, at, heap->items[at]);
}

/* Takes all ranks from the scores, which may have changed in any way. */
static inline void tier_heap_rebuild(struct tier_heap *heap)
{
    for (uint32_t at = 0; at < heap->count; at++) {
        heap->items[at] = tier_heap_updated(heap, heap->items[at]);
    }
    tier_heap_order(heap);
}

/* The clock has come to its end: those in the heap are stamped 1, 2, ... in their order. */
static inline void tier_heap_renumber(struct tier_heap *heap)
{
    struct tier_heap_item *items = heap->items;
    for (uint32_t i = 0; i < heap->count; i++) {
        struct tier_heap_item item = items[i];
        if (tier_heap_outdated(heap, item)) item = tier_heap_updated(heap, item);
        uint32_t at = i;
        for (; at > 0 && items[at - 1].stamp > item.stamp; at--) items[at] = items[at - 1];
        items[at] = item;
    }
    for (uint32_t at = 0; at < heap->count; at++) {
        items[at].stamp = at + 1;
        heap->seats[items[at].expert] = (struct tier_heap_seat){ .stamp = at + 1, .place = at };
    }
    heap->clock = heap->count;
    tier_heap_order(heap);
}

static inline void tier_heap_add(struct tier_heap *heap, uint32_t expert, uint64_t rank)
{
    DMUST(!tier_heap_has(heap, expert));
    uint32_t at = heap->count++;
    struct tier_heap_item item = tier_heap_item(heap, expert, rank);
    if (heap->ordered) {
        tier_heap_rise(heap, at, item);
        return;
    }
    tier_heap_put(heap, at, item);
    heap->ordered = heap->count > TIER_HEAP_FEW;
    tier_heap_order(heap);
}

static inline void tier_heap_remove(struct tier_heap *heap, uint32_t expert)
{
    uint32_t at = heap->seats[expert].place;
    DMUST(at < heap->count);
    struct tier_heap_item last = heap->items[--heap->count];
    if (heap->count <= TIER_HEAP_FEW / 2) heap->ordered = false;
    if (heap->ordered && last.expert != expert) {
        tier_heap_place(heap, at, last);
    } else {
        tier_heap_put(heap, at, last);
    }
    heap->seats[expert].place = TIER_NO_EXPERT;
}

/* A new stamp for an expert that is used, or about to be added. */
static inline void tier_heap_stamp(struct tier_heap *heap, uint32_t expert)
{
    if (heap->clock == UINT32_MAX) tier_heap_renumber(heap);
    heap->seats[expert].stamp = ++heap->clock;
}

/* Asks the processor for what a use of the expert will need. */
static inline void tier_heap_ahead(const struct tier_heap *heap, uint32_t expert)
{
    __builtin_prefetch(&heap->seats[expert], 1);
    if (heap->scores) __builtin_prefetch(&heap->scores[expert], 1);
}

/* Place of the first item in order whose expert is not held, searched below `at`: a free one is the
 * best of its subtree, a held one sends the search into both halves. Depth is at most log2 of the
 * count. */
static inline uint32_t tier_heap_search(struct tier_heap *heap, uint32_t at,
                                        const struct tier_hold *held)
{
    if (at >= heap->count) return TIER_NO_EXPERT;
    while (tier_heap_outdated(heap, heap->items[at])) {
        tier_heap_sink(heap, at, tier_heap_updated(heap, heap->items[at]));
    }
    if (!held[heap->items[at].expert].count) return at;
    uint32_t left = tier_heap_search(heap, 2 * at + 1, held);
    uint32_t right = tier_heap_search(heap, 2 * at + 2, held);
    if (left == TIER_NO_EXPERT) return right;
    if (right == TIER_NO_EXPERT) return left;
    bool is_left = tier_heap_key_of(heap->items[left]) < tier_heap_key_of(heap->items[right]);
    return is_left ? left : right;
}

/* Looks at every item. Held ones get a rank that no other has. */
static inline uint32_t tier_heap_scan(const struct tier_heap *heap, const struct tier_hold *held,
                                      const double *scores)
{
    const uint64_t beyond = UINT64_C(1) << 63;
    tier_heap_key least = ~(tier_heap_key)0;
    for (uint32_t at = 0; at < heap->count; at++) {
        struct tier_heap_item item = heap->items[at];
        uint32_t stamp = heap->seats[item.expert].stamp;
        if (scores) {
            uint64_t rank = tier_heap_rank(scores[item.expert]);
            item.rank = stamp == item.stamp ? item.rank : rank;
            item.stamp = stamp;
        }
        item.rank |= held[item.expert].count ? beyond : 0;
        tier_heap_key key = tier_heap_key_of(item);
        least = key < least ? key : least;
    }
    return least >> 127 ? TIER_NO_EXPERT : (uint32_t)least;
}

static inline uint32_t tier_heap_pick(struct tier_heap *heap, const struct tier_hold *held)
{
    if (!heap->ordered) {
        return heap->scores ? tier_heap_scan(heap, held, heap->scores)
                            : tier_heap_scan(heap, held, NULL);
    }
    uint32_t at = tier_heap_search(heap, 0, held);
    return at == TIER_NO_EXPERT ? TIER_NO_EXPERT : heap->items[at].expert;
}

#endif
