/* Inside of the decision core, shared by the files that make it up: decide.c (acquire, release,
 * hints), decide_create.c (budgets, tables) and decide_events.c (recorded events). */
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
    uint32_t used_max;          /* slots that were ever used */
    uint32_t prefill_slots;     /* what prefill may hold of a full partition */
    uint32_t own;               /* residents on prefill's account */
    uint32_t pinned;            /* tier 0: distinct leased residents, and those of them on ... */
    uint32_t own_pinned;        /* ... prefill's account */
    uint32_t head;              /* of the ring of prefill's own, oldest first */
    uint32_t key_first;         /* key of the partition's expert 0 */
};

struct link {
    uint32_t prev, next;
};

struct tier_plane {             /* one resident tier */
    struct part *parts;
    uint32_t part_count;        /* layers, or 1 */
    bool global;
    uint16_t *held;             /* [keys] what policies may not name */
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
    uint8_t *state;             /* [keys] */
    struct offer *offers;       /* [keys] */
    uint32_t *layer_acquires;   /* [layers] */
    uint64_t acquires;
    enum tier_phase phase;      /* of the latest acquire */
    struct tier_plane planes[TIER_RESIDENT_TIERS_MAX];
    /* Where the running call counts what leaves and enters. */
    struct tier_counts *cell[TIER_RESIDENT_TIERS_MAX];
    struct tier_action *actions;
    uint32_t action_count, action_max;
    struct tier_found *found;   /* [experts] scratch of apply */
    uint64_t *marks;            /* a bit an expert, scratch of apply */
};

#endif
