/* An indexed binary heap over the experts of a partition, for policies that rank by a number: the
 * smallest (rank, stamp, expert) is at the top and leaves first.
 *
 * Arrays: rank[expert], stamp[expert] (when it was used, for equal ranks; may be
 * NULL), place[expert] (TIER_NO_EXPERT while not in the heap) and order[place]. Every operation is
 * O(log n); pick costs O(h) when h held experts rank lowest.
 */
#ifndef TIERING_HEAP_H
#define TIERING_HEAP_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/policy.h"

struct tier_heap {
    double *rank;
    uint64_t *stamp;
    uint32_t *place;
    uint32_t *order;
    uint32_t count;
};

static inline void tier_heap_fini(struct tier_heap *heap)
{
    free(heap->rank);
    free(heap->stamp);
    free(heap->place);
    free(heap->order);
}

/* An empty heap for experts 0..count-1, all of rank 0; -ENOMEM. */
static inline int tier_heap_init(struct tier_heap *heap, uint32_t count, bool stamps)
{
    heap->count = 0;
    heap->rank = calloc(count, sizeof *heap->rank);
    heap->stamp = stamps ? calloc(count, sizeof *heap->stamp) : NULL;
    heap->place = malloc(count * sizeof *heap->place);
    heap->order = malloc(count * sizeof *heap->order);
    if (!heap->rank || (stamps && !heap->stamp) || !heap->place || !heap->order) return -ENOMEM;
    for (uint32_t e = 0; e < count; e++) heap->place[e] = TIER_NO_EXPERT;
    return 0;
}

static inline bool tier_heap_before(const struct tier_heap *heap, uint32_t a, uint32_t b)
{
    if (heap->rank[a] != heap->rank[b]) return heap->rank[a] < heap->rank[b];
    if (heap->stamp && heap->stamp[a] != heap->stamp[b]) return heap->stamp[a] < heap->stamp[b];
    return a < b;
}

static inline void tier_heap_put(struct tier_heap *heap, uint32_t at, uint32_t expert)
{
    heap->order[at] = expert;
    heap->place[expert] = at;
}

static inline void tier_heap_rise(struct tier_heap *heap, uint32_t expert)
{
    uint32_t at = heap->place[expert];
    DMUST(at < heap->count);
    while (at > 0) {
        uint32_t above = (at - 1) / 2;
        if (!tier_heap_before(heap, expert, heap->order[above])) break;
        tier_heap_put(heap, at, heap->order[above]);
        at = above;
    }
    tier_heap_put(heap, at, expert);
}

static inline void tier_heap_sink(struct tier_heap *heap, uint32_t expert)
{
    uint32_t at = heap->place[expert];
    DMUST(at < heap->count);
    for (;;) {
        uint32_t below = 2 * at + 1;
        if (below >= heap->count) break;
        if (below + 1 < heap->count &&
            tier_heap_before(heap, heap->order[below + 1], heap->order[below])) {
            below++;
        }
        if (!tier_heap_before(heap, heap->order[below], expert)) break;
        tier_heap_put(heap, at, heap->order[below]);
        at = below;
    }
    tier_heap_put(heap, at, expert);
}

/* Restores the order after an expert's rank or stamp changed. */
static inline void tier_heap_fix(struct tier_heap *heap, uint32_t expert)
{
    tier_heap_rise(heap, expert);
    tier_heap_sink(heap, expert);
}

/* Adds an expert under the rank it has. */
static inline void tier_heap_add(struct tier_heap *heap, uint32_t expert)
{
    DMUST(heap->place[expert] == TIER_NO_EXPERT);
    tier_heap_put(heap, heap->count++, expert);
    tier_heap_rise(heap, expert);
}

static inline void tier_heap_remove(struct tier_heap *heap, uint32_t expert)
{
    uint32_t at = heap->place[expert];
    DMUST(at < heap->count);
    uint32_t last = heap->order[--heap->count];
    heap->place[expert] = TIER_NO_EXPERT;
    if (last == expert) return;
    tier_heap_put(heap, at, last);
    tier_heap_fix(heap, last);
}

/* Restores the order after all ranks changed. */
static inline void tier_heap_rebuild(struct tier_heap *heap)
{
    for (uint32_t at = heap->count / 2; at-- > 0;) tier_heap_sink(heap, heap->order[at]);
}

/* Asks the processor for what a change of the expert's rank will need. */
static inline void tier_heap_ahead(const struct tier_heap *heap, uint32_t expert, bool near)
{
    if (!near) {
        __builtin_prefetch(&heap->rank[expert], 1);
        __builtin_prefetch(&heap->place[expert], 1);
        if (heap->stamp) __builtin_prefetch(&heap->stamp[expert], 1);
    } else if (heap->place[expert] != TIER_NO_EXPERT) {
        __builtin_prefetch(&heap->order[2 * heap->place[expert] + 1]);
    }
}

/* The first expert in order that is not held, searched below `at`: a free one is the best of its
 * subtree, a held one sends the search into both halves. Depth is at most log2 of the count. */
static inline uint32_t tier_heap_pick(const struct tier_heap *heap, uint32_t at,
                                      const struct tier_hold *held)
{
    if (at >= heap->count) return TIER_NO_EXPERT;
    uint32_t expert = heap->order[at];
    if (!held[expert].count) return expert;
    uint32_t left = tier_heap_pick(heap, 2 * at + 1, held);
    uint32_t right = tier_heap_pick(heap, 2 * at + 2, held);
    if (left == TIER_NO_EXPERT) return right;
    if (right == TIER_NO_EXPERT) return left;
    return tier_heap_before(heap, left, right) ? left : right;
}

#endif
