/* Ordered queues of experts for policies: circular lists threaded through one array of links. The
 * entries after the experts are the heads, so that no operation has a special case for an empty
 * queue or for its ends:
 *
 *      head.next = pushed last   ...   head.prev = pushed first
 *
 * An expert is in at most one queue of an array.
 */
#ifndef TIERING_RING_H
#define TIERING_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "tiering/policy.h"

struct tier_ring {
    uint32_t prev;
    uint32_t next;              /* TIER_NO_EXPERT while in no queue */
};

/* experts + heads entries: no expert queued, all queues empty. */
static inline void tier_ring_init(struct tier_ring *ring, uint32_t experts, uint32_t heads)
{
    for (uint32_t e = 0; e < experts; e++) ring[e].next = TIER_NO_EXPERT;
    for (uint32_t h = experts; h < experts + heads; h++) ring[h] = (struct tier_ring){ h, h };
}

static inline bool tier_ring_queued(const struct tier_ring *ring, uint32_t expert)
{
    return ring[expert].next != TIER_NO_EXPERT;
}

static inline void tier_ring_push(struct tier_ring *ring, uint32_t head, uint32_t expert)
{
    uint32_t first = ring[head].next;
    ring[expert] = (struct tier_ring){ .prev = head, .next = first };
    ring[first].prev = expert;
    ring[head].next = expert;
}

static inline void tier_ring_unlink(struct tier_ring *ring, uint32_t expert)
{
    struct tier_ring l = ring[expert];
    ring[l.prev].next = l.next;
    ring[l.next].prev = l.prev;
    ring[expert].next = TIER_NO_EXPERT;
}

static inline void tier_ring_front(struct tier_ring *ring, uint32_t head, uint32_t expert)
{
    tier_ring_unlink(ring, expert);
    tier_ring_push(ring, head, expert);
}

/* The one pushed first that is not held, or TIER_NO_EXPERT. */
static inline uint32_t tier_ring_oldest(const struct tier_ring *ring, uint32_t head,
                                        const struct tier_hold *held)
{
    uint32_t e = ring[head].prev;
    while (e != head && held[e].count) e = ring[e].prev;
    return e == head ? TIER_NO_EXPERT : e;
}

#endif
