/* Inside of the live tiers, shared by tiering.c (open, acquire, wait, release, hints), budget.c
 * (slots and bytes of a configuration) and stats.c (what other threads see). */
#ifndef TIERING_TIERING_PRIV_H
#define TIERING_TIERING_PRIV_H

#include "tiering/cache.h"
#include "tiering/publish.h"
#include "tiering/tiering.h"

enum { TIER_MAGIC = 0x71e2c0de };

struct tier {
    uint32_t magic;
    struct tier_config config;
    struct tier_store *store;
    struct base_clock *clock;
    struct tier_io *io;
    struct tier_decide *decide;
    struct tier_cache cache;
    struct dev *device, *own_device;    /* own: made here, ended here */
    uint32_t tiers;             /* resident ones: 2 = hbm over dram */
    struct tier_observer observer;
    uint32_t layers, experts;
    uint64_t expert_bytes;
    struct tier_found *found;   /* [experts] scratch of acquire */
    uint32_t *ids;              /* [experts] scratch of release */
    uint32_t *layer_hinted;     /* [layers] prefetches admitted since the layer's last acquire */
    double prefetch_credit;     /* bytes that bandwidth_share allows now */
    uint64_t credit_ns;
    uint64_t prefetch_refused;
    uint64_t hits[TIER_RESIDENT_TIERS_MAX], late[TIER_RESIDENT_TIERS_MAX];
    uint64_t resident_below;    /* lookups of tier 1 that it had: hits[1] + late[1] */
    uint64_t waits_ns[TIER_WAIT_CAUSE_COUNT];       /* since open */
    uint64_t step_waits_ns[TIER_WAIT_CAUSE_COUNT];
    uint64_t steps;
    struct base_hist submit_latency;
    /* For other threads. */
    struct tier_publish publish;        /* tier_snapshot, then tier_layer_stats[layers] */
    uint64_t published_ns;
    struct tier_snapshot scratch;
    uint64_t *expert_lookups;   /* [keys] relaxed atomics: one writer, any reader */
    uint8_t *expert_resident;
};

/* The configuration asks for an hbm tier. */
bool tier_budget_has_hbm(const struct tier_config *config);

/* Makes the counters visible to other threads. */
void tier_stats_publish(struct tier *tier, uint64_t now_ns);

#endif
