/* Inside of the live tiers, shared by tiering.c (open, acquire, wait, release), prefetch.c (hints),
 * settings.c (a configuration for the core), budget.c (slots and bytes of one), reconfigure.c
 * (another one while open) and stats.c (what other threads see). */
#ifndef TIERING_TIERING_PRIV_H
#define TIERING_TIERING_PRIV_H

#include "tiering/cache.h"
#include "tiering/governor.h"
#include "tiering/numa.h"
#include "tiering/publish.h"
#include "tiering/tiering.h"
#include "tiering/warm.h"

enum { TIER_MAGIC = 0x71e2c0de };
/* Most slots set aside for prefetches that are evicted before they arrive. */
enum { TIER_SPARE_PREFETCH = 4 };

struct tier {
    uint32_t magic;
    struct tier_config config;
    struct tier_store *store;
    struct base_clock *clock;
    struct tier_io *io;
    struct tier_decide *decide;
    struct tier_numa numa;      /* where dram lies */
    struct tier_cache cache;
    struct tier_story story;
    struct dev *device, *own_device;    /* own: made here, ended here */
    uint32_t tiers;             /* resident ones: 2 = hbm over dram */
    struct tier_observer observer;
    uint32_t layers, experts, top_k;
    uint64_t slots_wanted[TIER_RESIDENT_TIERS_MAX];     /* in service, leases apart */
    uint64_t reconfigurations;
    uint64_t expert_bytes;
    struct tier_found *found;   /* [experts] scratch of acquire */
    uint32_t *ids;              /* [experts] scratch of release */
    uint32_t *layer_hinted;     /* [layers] prefetches admitted since the layer's last acquire */
    bool prefetch;              /* prefetch.enabled, resolved */
    bool prefetch_degraded;     /* auto had to do with less; prefetch_note says why */
    uint32_t prefetch_per_layer;
    char prefetch_note[200];
    struct tier_governor governor;
    struct tier_governor copy_pace;     /* pace of copies to hbm; else unused */
    /* Of the running step: acquires, those that asked for no read, those that found all they use
     * where it is used; the time of the first one. */
    uint64_t step_acquires, step_quiet, step_still, step_began_ns;
    uint64_t credit_ns;         /* until when the governor's credit was earned */
    uint64_t hint_ns;           /* spent on hints by the running step */
    uint64_t hint_count, prefetch_refused;
    uint64_t *layer_hints;      /* [layers] */
    struct tier_account_marks {     /* counters when the step began */
        uint64_t lookups, demand_bytes, useful, late, wasted_bytes, asked_ns;
    } marks;
    uint64_t hits[TIER_RESIDENT_TIERS_MAX], late[TIER_RESIDENT_TIERS_MAX];
    uint64_t resident_below;    /* lookups of tier 1 that it had: hits[1] + late[1] */
    uint64_t waits_ns[TIER_WAIT_CAUSE_COUNT];       /* since open */
    uint64_t step_waits_ns[TIER_WAIT_CAUSE_COUNT];
    uint64_t steps;
    struct base_hist submit_latency, wait_latency[TIER_WAIT_CAUSE_COUNT];
    struct base_hist hit_latency;       /* a lookup's share of an acquire of hits, now and then */
    uint64_t hit_acquires;
    struct tier_warm *warm;     /* NULL: starts cold, saves nothing */
    bool saves_at_close;        /* nobody else sees to that */
    /* For other threads. */
    struct tier_publish publish;        /* tier_snapshot, then tier_layer_stats[layers] */
    uint64_t published_ns;
    struct tier_snapshot scratch;
    uint8_t *expert_resident;
};

/* What the core shall do by this configuration, whose slots are in `footprint`. The change's quotas
 * point into `quotas`, [TIER_RESIDENT_TIERS_MAX x layers]. */
int tier_settings_of(const struct tier_config *config, const struct tier_footprint *footprint,
                     const struct tier_store *store, uint32_t top_k,
                     struct tier_decide_change *change, uint32_t *quotas, struct base_err *err);
/* A core that does so. */
int tier_settings_core(const struct tier_config *config, const struct tier_footprint *footprint,
                       const struct tier_store *store, uint32_t top_k, struct tier_decide **out,
                       struct base_err *err);
const struct base_option *tier_option_of(const char *key);

/* Does what the core's last call decided; `fetch`: bring what is new in a tier now, and `demand`:
 * somebody waits for it. */
void tier_carry_out(struct tier *tier, bool fetch, bool demand);
void tier_observe(struct tier *tier, const struct tier_event *event);

/* The configuration asks for an hbm tier. */
bool tier_budget_has_hbm(const struct tier_config *config);

/* Makes prefetch what the configuration says and the slots allow. Only at first is what does not
 * fit refused; in a reconfiguration it comes to less, and the note says so. */
int tier_prefetch_settle(struct tier *tier, bool first, struct base_err *err);
/* Tells the governor what the step saw; what it changes goes to the trace. */
void tier_prefetch_account(struct tier *tier);

/* Makes the counters visible to other threads. */
void tier_stats_publish(struct tier *tier, uint64_t now_ns);

#endif
