/* The decision core: which experts are resident in which tier. Pure: no clock, no IO, no slots, no
 * threads. The live cache and the replay run this very code on the same ordered events, and so
 * always agree (ARCHITECTURE, invariant 2).
 *
 *   acquire(layer, ids)   grants the longest prefix that fits beside what is leased, then
 *                           1. pins every granted expert,
 *                           2. touches those resident in the top tier, strongest first,
 *                           3. admits the others, strongest first, each after its victim left.
 *   release(layer, ids)   unpins. A pinned expert is never a victim.
 *   hint(layer, id, p)    may admit an expert ahead of need; may move its place in the policy.
 *
 * Tier 0 is the top tier, where experts run (hbm, or dram when there is no device); the last level,
 * nvme, holds everything and is not listed. What tier 0 did not have is a lookup of tier 1, and so
 * on; `from` tells where it was found.
 *
 * Partition: a policy works per layer with that layer's quota of slots, or over all layers at once
 * (the *_global kinds). Each call reports its moves as actions in the order in which they must be
 * carried out; carrying them out early, late or slowly never changes a later decision. Tier 0 never
 * holds more than its slots, not even between two actions; when two full tiers swap an expert, the
 * lower one holds one more between the COPY_DOWN and the COPY_UP that follows it.
 *
 * Two resident tiers. exclusive: an expert is in one of them; moving up frees its place below, and
 * what leaves tier 0 moves down (or is dropped when everything below is spoken for). inclusive: all
 * of tier 0 is in tier 1 too, so tier 1 never drops what tier 0 holds and nothing is copied down.
 *
 * Warm experts computed in place (warm_compute): an expert that is in tier 1 and not in tier 0 is
 * used where it lies; it is a miss of tier 0 and a hit of tier 1 that took no slot above, pinned
 * below until its release. Its use counts for the policies of both tiers. It moves up only at a
 * release: of those of that call that nobody pins any more and that decode used in place
 * TIER_DECIDE_WARM_USES times since they came to tier 1 the most used one, so one expert an acquire
 * at most; tier 0's policy says who makes room. An expert that was nowhere goes up as ever.
 *
 * Prefill: once it holds prefill_share of a full partition, its next admissions take the place of
 * its own oldest ones. An expert that decode uses becomes decode's. An acquire of prefill is
 * granted no further than this allows.
 *
 * Quotas of a tier's layers: equal, given, or adaptive. Adaptive ones begin equal; every 128 decode
 * acquires a layer, one slot moves to the layer that lost most lately by having too few: whose
 * misses were most often among its last 4 evictions. It comes from the layer that lost least, which
 * keeps twice what one decode acquire lately asked for at most: below that the next slot says
 * nothing about the last one.
 *
 * Reconfigured, a core keeps its residents. Partitions that become smaller let go of prefill's
 * surplus, then of the policy's victims; leased ones stay, beyond the slots, until their release. A
 * policy of another kind takes the residents over weakest first, in the order in which the old one
 * would have let go of them, leased ones last. From layers to one partition over all: the strongest
 * of each layer are the strongest, by rank, then by layer. What the old policy counted is gone. The
 * same kind of policy goes on with all it knows.
 *
 * A forgotten expert is granted, found nowhere and never admitted again: it takes no slot.
 *
 * Engine thread only (replay: any one thread). No call allocates except create and reconfigure.
 */
#ifndef TIERING_DECIDE_H
#define TIERING_DECIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "tiering/event.h"

struct tier_decide;

/* What the core's tables take an expert, with two tiers and the costliest policies. */
enum { TIER_DECIDE_BYTES_PER_EXPERT = 104, TIER_DECIDE_WARM_USES = 2 };

struct tier_decide_tier {
    uint64_t slots;             /* in all; per-layer policies get slots / layers each, the first
                                 * layers one more when it does not divide */
    const uint32_t *quotas;     /* or [layers], their sum <= slots; NULL = equal */
    char policy[32];            /* "lru", "lru_global", ... as registered in policy.h */
};

struct tier_decide_config {
    uint32_t layers, experts, top_k;
    uint32_t tier_count;        /* 1..TIER_RESIDENT_TIERS_MAX */
    struct tier_decide_tier tiers[TIER_RESIDENT_TIERS_MAX];
    bool adaptive;              /* quotas follow what is missed; for policies per layer */
    bool inclusive;             /* a lower tier keeps what moved up; default exclusive */
    bool warm_compute;          /* two tiers: what is in tier 1 is used there */
    double half_life_tokens;    /* decayed policies; an acquire of a layer counts as one token;
                                 * 0 = counts that do not decay */
    double prefill_share;       /* of a partition's slots that prefill may take from decode's set;
                                 * always at least one slot; 1 = no bound */
    bool prefetch;              /* hints may admit */
    bool strict;                /* server: refuse a budget below top-k or below the LRU cliff;
                                 * replay: allow it (the caller warns) */
    /* belady only (replay): the position of the next acquire that asks for an expert after position
     * `now`, UINT64_MAX when there is none. Positions number the acquires of this core from 0. With
     * one tier it is called for experts of the running acquire only, with `now` its position. */
    uint64_t (*next_use)(void *context, uint32_t layer, uint32_t expert, uint64_t now);
    void *next_use_context;
};

enum tier_action_kind {
    TIER_LOAD,                  /* nvme -> tier */
    TIER_COPY_UP,               /* tier + 1 -> tier; exclusive: it leaves tier + 1 */
    TIER_COPY_DOWN,             /* tier - 1 -> tier (demotion); it leaves tier - 1 */
    TIER_DROP,                  /* leaves tier */
};

struct tier_action {
    enum tier_action_kind kind;
    uint32_t tier;
    uint32_t layer, expert;
};

/* What became of one granted expert of an acquire. */
struct tier_found {
    uint32_t from;              /* tier in which it was resident before; tier_count = nvme */
    bool in_place;              /* it stays there while it is used: from is 1 */
};

/* Counts of one (tier, cell). An acquire counts in the cold cell while its partition still had a
 * slot that was never used when it began, else in the cell of its phase. What hints do counts in
 * the cell of the latest acquire's phase. */
struct tier_counts {
    uint64_t lookups, resident, misses;
    uint64_t evictions;         /* victims that left this tier, whatever became of them */
    uint64_t admissions;
    uint64_t prefetch_admissions, prefetch_used;    /* hinted in; looked up before leaving */
    uint64_t in_place;          /* of resident, those used where they lie instead of above */
};

enum tier_cell { TIER_CELL_COLD, TIER_CELL_PREFILL, TIER_CELL_DECODE, TIER_CELL_COUNT };

/* 0; BASE_EBUDGET or BASE_ECONFIG with the arithmetic in the sentence; -ENOMEM. */
int tier_decide_create(struct tier_decide **out, const struct tier_decide_config *config,
                       struct base_err *err);
void tier_decide_destroy(struct tier_decide *decide);

/* Asks the processor for the table entries that an acquire of these experts will look at. Changes
 * nothing. */
void tier_decide_ahead(const struct tier_decide *decide, uint32_t layer, const uint32_t *ids,
                       uint32_t n);

/* ids distinct, strongest first, n <= experts. Returns k <= n: the granted prefix (0 only if every
 * slot it may take is leased). found[0..k) in the order of ids. The actions of the call are read
 * with tier_decide_actions until the next call on this object. */
uint32_t tier_decide_acquire(struct tier_decide *decide, uint32_t layer, const uint32_t *ids,
                             uint32_t n, enum tier_phase phase, struct tier_found *found);
void tier_decide_release(struct tier_decide *decide, uint32_t layer, const uint32_t *ids,
                         uint32_t n);

/* Offers a prediction for an expert `distance` layers ahead. True if it was admitted (it was
 * absent, and a victim less likely than it could leave); a resident expert's place may move either
 * way. */
bool tier_decide_hint(struct tier_decide *decide, uint32_t layer, uint32_t expert,
                      float probability, uint32_t distance);

/* The probability of the latest hint for an expert, below 0 once its layer was acquired since. */
float tier_decide_hinted(const struct tier_decide *decide, uint32_t layer, uint32_t expert);

/* Makes absent experts resident in free slots without a lookup (warm start), the one to keep
 * longest last. `uses`: how often each was used before, in quarters, decayed; NULL = unknown.
 * Returns how many fitted. */
uint32_t tier_decide_restore(struct tier_decide *decide, uint32_t tier, uint32_t layer,
                             const uint32_t *ids, const uint8_t *uses, uint32_t n);

/* Takes an expert out of every tier: its bytes cannot be had. */
void tier_decide_forget(struct tier_decide *decide, uint32_t layer, uint32_t expert);

/* What can change while a core lives. */
struct tier_decide_change {
    struct tier_decide_tier tiers[TIER_RESIDENT_TIERS_MAX];
    bool adaptive, prefetch;
    double half_life_tokens, prefill_share;
};

/* 0, and the actions that follow from it; else nothing changed: BASE_EBUDGET, BASE_ECONFIG, -ENOMEM
 * as create. Quotas that adapted begin equal again if slots, policies or quotas change. */
int tier_decide_reconfigure(struct tier_decide *decide, const struct tier_decide_change *change,
                            struct base_err *err);

/* A change as the text of a TIER_EVENT_SETTING: "decide.tiers=...", and back. `layers` and `tiers`
 * are those of the core. -ENOSPC: the text does not fit. parse: 0; BASE_EFORMAT; quotas must have
 * room for TIER_RESIDENT_TIERS_MAX x layers. */
enum { TIER_DECIDE_TEXT_MAX = 4000 };
int tier_decide_change_format(const struct tier_decide_change *change, uint32_t layers,
                              uint32_t tiers, char *to, size_t size);
int tier_decide_change_parse(struct tier_decide_change *change, uint32_t layers, uint32_t tiers,
                             const char *text, uint32_t *quotas, struct base_err *err);

/* Applies one recorded event. Returns 0; BASE_EFORMAT when the event is impossible (an id out of
 * range or twice, a release of what is not leased); BASE_EMISMATCH when the core answered otherwise
 * than the event says (granted, admitted): the trace is not of this configuration. */
int tier_decide_apply(struct tier_decide *decide, const struct tier_event *event,
                      struct base_err *err);

uint32_t tier_decide_actions(const struct tier_decide *decide, const struct tier_action **actions);

/* What it runs with; quotas filled in, always [layers]. Lives as long as the core. */
const struct tier_decide_config *tier_decide_config_get(const struct tier_decide *decide);

bool tier_decide_resident(const struct tier_decide *decide, uint32_t tier, uint32_t layer,
                          uint32_t expert);
uint64_t tier_decide_resident_count(const struct tier_decide *decide, uint32_t tier);
/* Of those, the ones that the tier's policy lets go of only when all others are held. */
uint64_t tier_decide_fixed_count(const struct tier_decide *decide, uint32_t tier);
/* Residents beyond their partitions' slots: leased when the slots became fewer. */
uint64_t tier_decide_over(const struct tier_decide *decide, uint32_t tier);
uint32_t tier_decide_slots_of_layer(const struct tier_decide *decide, uint32_t tier,
                                    uint32_t layer);
const struct tier_counts *tier_decide_counts(const struct tier_decide *decide, uint32_t tier,
                                             enum tier_cell cell);
/* The same per moe layer, all cells together. */
const struct tier_counts *tier_decide_layer_counts(const struct tier_decide *decide,
                                                   uint32_t tier, uint32_t layer);

#endif
