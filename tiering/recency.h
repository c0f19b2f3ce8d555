/* Experts in the order of their last use, kept so that a use touches nothing of any other expert:
 *
 *      log    | a . b . . c d . . |        each use is appended; '.' was used again since
 *               ^ oldest          ^ head   bits: which places still count
 *
 * A list threaded through the experts would write to both neighbours of the one that moves: with a
 * million experts two cache lines that have to come from memory. Here a use clears one bit and
 * appends; the bits are few, and the log is written in order. When the log is full, the places that
 * count are moved together: a few nanoseconds a use, spread over all.
 */
#ifndef TIERING_RECENCY_H
#define TIERING_RECENCY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiering/policy.h"

struct tier_recency {
    uint32_t head;              /* place of the next use, < end */
    uint32_t end;               /* of the log as long as it may become now, <= places */
    uint32_t oldest;            /* no place before it counts */
    uint32_t count;             /* experts in the order */
    uint32_t places;
    uint32_t *at;               /* [experts] place of the last use, or TIER_NO_EXPERT */
    uint32_t *log;              /* [places] */
    uint64_t *bits;             /* [places / 64] */
};

/* 0 or -ENOMEM; nothing is in the order. */
int tier_recency_init(struct tier_recency *recency, uint32_t experts);
void tier_recency_fini(struct tier_recency *recency);       /* accepts a zeroed one */

/* Moves what counts to the front of the log. */
void tier_recency_pack(struct tier_recency *recency);

static inline bool tier_recency_has(const struct tier_recency *r, uint32_t expert)
{
    return r->at[expert] != TIER_NO_EXPERT;
}

/* An expert that is not in the order comes in as the one used last. */
static inline void tier_recency_push(struct tier_recency *r, uint32_t expert)
{
    uint32_t place = r->head++;
    r->log[place] = expert;
    r->bits[place / 64] |= UINT64_C(1) << place % 64;
    r->at[expert] = place;
    r->count++;
    if (r->head == r->end) tier_recency_pack(r);
}

static inline void tier_recency_remove(struct tier_recency *r, uint32_t expert)
{
    uint32_t place = r->at[expert];
    r->bits[place / 64] &= ~(UINT64_C(1) << place % 64);
    r->at[expert] = TIER_NO_EXPERT;
    r->count--;
}

/* One that is in the order was used. */
static inline void tier_recency_touch(struct tier_recency *r, uint32_t expert)
{
    tier_recency_remove(r, expert);
    tier_recency_push(r, expert);
}

/* The one used longest ago that is not held, or TIER_NO_EXPERT. */
uint32_t tier_recency_oldest(struct tier_recency *recency, const struct tier_hold *held);

#endif
