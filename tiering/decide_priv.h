/* Inside of the decision core, shared by the files that make it up: decide.c (acquire, release,
 * hints), decide_create.c (budgets, tables), decide_resize.c (changes while it lives),
 * decide_quotas.c (adaptive quotas), decide_setting.c (changes as text) and decide_events.c
 * (recorded events). */
#ifndef TIERING_DECIDE_PRIV_H
#define TIERING_DECIDE_PRIV_H

#include <stdbool.h>
#include <stdint.h>

#include "tiering/decide.h"
#include "tiering/policy.h"

enum { TIER_DECIDE_MAGIC = 0x7de01de5 };

/* State bits of an expert. */
enum {
    IN_0 = 1, IN_1 = 2,         /* resident in that tier: IN_0 << tier */
    OWN_0 = 4, OWN_1 = 8,       /* there on prefill's account: OWN_0 << tier */
    HINTED = 16,                /* admitted to tier 0 by a hint, not used since */
    GONE = 32,                  /* forgotten: its bytes cannot be had */
    DECODES = 64,               /* decode used it since it was last nowhere */
};

/* Places an expert's admission may be charged to. */
enum account { FOR_DECODE, FOR_PREFILL };

struct part {
    struct tier_policy *policy;
    const struct tier_policy_ops *ops;
    uint32_t slots;
    uint32_t used;
    uint32_t roof;              /* most it may hold: its slots, or more while leases keep it so */
    uint32_t used_max;          /* slots that were ever used */
    uint32_t prefill_slots;     /* what prefill may hold of a full partition */
    uint32_t own;               /* residents on prefill's account */
    uint32_t pinned;            /* distinct experts leased in this tier, and those of them on ... */
    uint32_t own_pinned;        /* ... prefill's account (tier 0) */
    uint32_t head;              /* of the ring of prefill's own, oldest first */
    uint32_t key_first;         /* key of the partition's expert 0 */
    uint32_t layer;             /* its layer */
    uint32_t departures;        /* evictions so far, from 1 on */
    uint32_t regrets;           /* adaptive: misses of what had just left, the older the less */
};

struct link {
    uint32_t prev, next;
};

struct tier_plane {             /* one resident tier */
    struct part *parts;
    uint32_t part_count;        /* layers, or 1 */
    bool global;
    struct tier_hold *held;     /* [keys] what policies may not name */
    uint32_t *left_at;          /* [keys] adaptive: departures when it left, 0 = never */
    struct link *links;         /* [keys + part_count] rings of prefill's own */
    uint64_t resident;
    uint32_t *quotas;           /* [layers] */
    struct tier_counts cells[TIER_CELL_COUNT];
    struct tier_counts *layers;
};

struct offer {                  /* the latest hint for an expert */
    float probability;
    uint32_t acquire;           /* of its layer; a later acquire makes it void */
};

struct tier_decide {
    uint32_t magic;
    struct tier_decide_config config;
    uint32_t layers, experts, keys, tier_count;
    bool exclusive;             /* two tiers, no expert in both */
    bool over;                  /* leases keep some partition beyond its slots */
    struct tier_hold *entries;  /* [keys] tier 0's: their `state` is that of the expert */
    uint8_t *warm_uses;         /* [keys] warm_compute: by decode in tier 1, since it came there */
    uint32_t riser;             /* key that this release may move up, or TIER_NO_RISER */
    struct offer *offers;       /* [keys] */
    uint32_t *layer_acquires;   /* [layers] */
    uint64_t acquires;
    enum tier_phase phase;      /* of the latest acquire */
    struct tier_plane planes[TIER_RESIDENT_TIERS_MAX];
    /* Where the running call counts what leaves and enters. */
    struct tier_counts *cell[TIER_RESIDENT_TIERS_MAX];
    struct tier_action *actions;
    uint32_t action_count, action_max;
    uint32_t *hits, *missed;    /* [experts] scratch of acquire: experts; places in ids */
    struct tier_found *found;   /* [experts] scratch of apply */
    uint64_t *marks;            /* a bit an expert, scratch of apply */
    uint32_t *apply_quotas;     /* [tiers x layers] scratch of apply */
    uint64_t decode_acquires;
    uint32_t widths[2];         /* largest decode acquire of this period and of the last */
};

#define TIER_NO_RISER UINT32_MAX

/* An expert with this state would be used in tier 1. */
static inline bool tier_decide_is_warm(const struct tier_decide *d, uint8_t state)
{
    return d->config.warm_compute && (state & (IN_0 | IN_1)) == IN_1;
}

static inline struct part *tier_part_of(struct tier_decide *d, uint32_t tier, uint32_t layer)
{
    struct tier_plane *plane = &d->planes[tier];
    return &plane->parts[plane->global ? 0 : layer];
}

/* The ring of prefill's own, newest last. */
static inline void tier_own_link(struct tier_plane *plane, struct part *part, uint32_t key)
{
    struct link *links = plane->links;
    uint32_t last = links[part->head].prev;
    links[key] = (struct link){ .prev = last, .next = part->head };
    links[last].next = key;
    links[part->head].prev = key;
    part->own++;
}

/* What release is made of: how many were unpinned before one that was not pinned; and what follows
 * once all are. */
uint32_t tier_decide_unpin(struct tier_decide *decide, uint32_t layer, const uint32_t *ids,
                           uint32_t n);
void tier_decide_drain(struct tier_decide *decide, uint32_t layer);
/* Sets `over`. */
void tier_decide_note_over(struct tier_decide *decide);
/* Lets go of experts while the partition holds more than its slots; leased ones stay. */
void tier_decide_trim(struct tier_decide *decide, uint32_t tier, struct part *part);

/* decide_create.c: the parts of create that a change needs too. Quotas and slots of a tier,
 * checked; what two tiers demand of each other; the partitions with their policies. */
int tier_decide_plane_check(struct tier_decide *decide, uint32_t tier, struct base_err *err);
int tier_decide_check(const struct tier_decide *decide, struct base_err *err);
int tier_decide_plane_fill(struct tier_decide *decide, uint32_t tier, struct base_err *err);
void tier_decide_plane_empty(struct tier_plane *plane);
double tier_decide_half_life(const struct tier_decide *decide, const struct tier_plane *plane);
uint32_t tier_decide_prefill_slots(const struct tier_decide *decide, uint32_t slots);

/* decide_quotas.c: a decode acquire of so many experts has ended; a slot may move. */
void tier_decide_adapt(struct tier_decide *decide, uint32_t width);
/* A lookup missed this expert: was it let go of too early? */
void tier_decide_regret(struct tier_decide *decide, uint32_t tier, struct part *part, uint32_t key);

#endif
