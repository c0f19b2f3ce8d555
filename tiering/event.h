/* The ordered events that decide residency, as they happen live and as the trace keeps them.
 *
 * Layers are counted over the layers WITH experts ("moe layer", from 0). Everything that the
 * decision core learns, it learns through one of these, in this order; so a trace that holds them
 * all reproduces every decision.
 */
#ifndef TIERING_EVENT_H
#define TIERING_EVENT_H

#include <stdint.h>

#include "tiering/libtiering.h"

enum { TIER_RESIDENT_TIERS_MAX = 2 };       /* hbm, dram; nvme holds everything */

enum tier_event_kind {
    TIER_EVENT_ACQUIRE = 1,     /* ids: what was asked, strongest first; granted: how many */
    TIER_EVENT_RELEASE = 2,     /* ids: what was given back, in this order */
    TIER_EVENT_HINT = 3,        /* ids[0] was predicted and offered; `admitted` says if taken */
    TIER_EVENT_SETTING = 4,     /* text: "key=value" that took effect between two steps */
    TIER_EVENT_RESTORE = 5,     /* ids: admitted to `tier` from a saved warm set */
    TIER_EVENT_FORGET = 6,      /* ids[0] could not be read: it leaves `tier` and is quarantined */
};

struct tier_event {
    enum tier_event_kind kind;
    enum tier_phase phase;
    uint32_t layer;
    uint32_t tier;              /* 0 = the top one, where experts run */
    uint32_t count;             /* of ids */
    uint32_t granted;           /* ACQUIRE: the prefix that was granted */
    const uint32_t *ids;
    float probability;          /* HINT */
    uint32_t distance;          /* HINT: layers ahead */
    const uint8_t *uses;        /* RESTORE: [count] past uses of each, in quarters; or NULL */
    uint32_t admitted;          /* HINT: 1 if the core took it */
    const char *text;           /* SETTING */
};

/* Called on the engine thread, in order, with memory that lives only during the call. Must neither
 * block nor allocate. */
struct tier_observer {
    void (*event)(void *context, const struct tier_event *event);
    void *context;
};

#endif
