#include "tiering/decide.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "tiering/policy.h"

enum { DECIDE_MAGIC = 0x7de01de5, NOWHERE = UINT32_MAX };

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

/* -- partitions ------------------------------------------------------------------------------- */

static inline struct part *part_of(struct tier_decide *d, uint32_t tier, uint32_t layer)
{
    struct tier_plane *plane = &d->planes[tier];
    return &plane->parts[plane->global ? 0 : layer];
}

static inline void act(struct tier_decide *d, enum tier_action_kind kind, uint32_t tier,
                       uint32_t layer, uint32_t key)
{
    MUST(d->action_count < d->action_max);
    d->actions[d->action_count++] = (struct tier_action){
        .kind = kind, .tier = tier, .layer = layer, .expert = key - layer * d->experts,
    };
}

static void own_add(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t key)
{
    struct link *links = d->planes[tier].links;
    uint32_t last = links[part->head].prev;
    links[key] = (struct link){ .prev = last, .next = part->head };
    links[last].next = key;
    links[part->head].prev = key;
    part->own++;
    d->state[key] |= OWN_0 << tier;
}

static void own_remove(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t key)
{
    struct link *links = d->planes[tier].links;
    links[links[key].prev].next = links[key].next;
    links[links[key].next].prev = links[key].prev;
    part->own--;
    d->state[key] &= (uint8_t)~(OWN_0 << tier);
}

static uint32_t own_oldest(const struct tier_decide *d, uint32_t tier, const struct part *part)
{
    const struct tier_plane *plane = &d->planes[tier];
    uint32_t key = plane->links[part->head].next;
    while (key != part->head && plane->held[key]) key = plane->links[key].next;
    return key == part->head ? NOWHERE : key;
}

/* Tells a full partition's policy what is coming. */
static void announce(const struct part *part, uint32_t key, bool used)
{
    if (part->ops->incoming) part->ops->incoming(part->policy, key - part->key_first, used);
}

/* Key of the expert that makes room for an admission on this account. */
static uint32_t victim_of(struct tier_decide *d, uint32_t tier, struct part *part,
                          enum account account)
{
    if (account == FOR_PREFILL && part->own >= part->prefill_slots) {
        uint32_t key = own_oldest(d, tier, part);
        if (key != NOWHERE) return key;
    }
    uint32_t expert = part->ops->victim(part->policy);
    return expert == TIER_NO_EXPERT ? NOWHERE : part->key_first + expert;
}

static void enter(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t key, bool used,
                  enum account account)
{
    MUST(part->used < part->slots);
    part->ops->insert(part->policy, key - part->key_first, used);
    if (++part->used > part->used_max) part->used_max = part->used;
    d->planes[tier].resident++;
    d->state[key] |= IN_0 << tier;
    if (account == FOR_PREFILL) own_add(d, tier, part, key);
}

static void leave(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t key)
{
    part->ops->remove(part->policy, key - part->key_first);
    part->used--;
    d->planes[tier].resident--;
    if (d->state[key] & OWN_0 << tier) own_remove(d, tier, part, key);
    d->state[key] &= (uint8_t)~(IN_0 << tier);
}

static uint32_t layer_of(const struct tier_decide *d, const struct part *part, uint32_t key,
                         uint32_t tier)
{
    if (!d->planes[tier].global) return part->key_first / d->experts;
    return key / d->experts;
}

/* -- eviction --------------------------------------------------------------------------------- */

static void count_eviction(struct tier_decide *d, uint32_t tier, uint32_t layer)
{
    d->cell[tier]->evictions++;
    d->planes[tier].layers[layer].evictions++;
}

static void evict_1(struct tier_decide *d, struct part *part, uint32_t key)
{
    uint32_t layer = layer_of(d, part, key, 1);
    count_eviction(d, 1, layer);
    leave(d, 1, part, key);
    if (!(d->state[key] & IN_0)) d->state[key] &= (uint8_t)~DECODES;
    act(d, TIER_DROP, 1, layer, key);
}

/* Exclusive: an expert leaving tier 0 takes a place below, if one can be had. */
static bool demote(struct tier_decide *d, uint32_t layer, uint32_t key)
{
    struct part *below = part_of(d, 1, layer);
    enum account account = d->state[key] & DECODES ? FOR_DECODE : FOR_PREFILL;
    if (below->used == below->slots) {
        announce(below, key, true);
        uint32_t victim = victim_of(d, 1, below, account);
        if (victim == NOWHERE) return false;
        evict_1(d, below, victim);
    }
    enter(d, 1, below, key, true, account);
    act(d, TIER_COPY_DOWN, 1, layer, key);
    return true;
}

static void evict_0(struct tier_decide *d, struct part *part, uint32_t key)
{
    uint32_t layer = layer_of(d, part, key, 0);
    count_eviction(d, 0, layer);
    leave(d, 0, part, key);
    d->state[key] &= (uint8_t)~HINTED;
    if (d->exclusive) {
        if (demote(d, layer, key)) return;
    } else if (d->tier_count == 2) {
        /* Its copy below may leave from now on, but not before what was used longer ago. */
        struct part *below = part_of(d, 1, layer);
        d->planes[1].held[key] = 0;
        below->ops->touch(below->policy, key - below->key_first);
        act(d, TIER_DROP, 0, layer, key);
        return;
    }
    d->state[key] &= (uint8_t)~DECODES;
    act(d, TIER_DROP, 0, layer, key);
}

/* -- admission -------------------------------------------------------------------------------- */

/* Inclusive: brings an expert from nvme into tier 1. All of a full tier 1 may be held, by what lies
 * above it and by what this acquire is about to move up; then tier 0 lets go of experts until one
 * of them is free here. It has them to spare, or the acquire had not been granted. */
static void admit_below(struct tier_decide *d, uint32_t layer, uint32_t key, bool used,
                        enum account account)
{
    struct part *below = part_of(d, 1, layer), *part = part_of(d, 0, layer);
    if (below->used == below->slots) {
        announce(below, key, used);
        uint32_t victim = victim_of(d, 1, below, account);
        while (victim == NOWHERE) {
            uint32_t spare = victim_of(d, 0, part, account);
            MUST(spare != NOWHERE);
            evict_0(d, part, spare);
            victim = victim_of(d, 1, below, account);
        }
        evict_1(d, below, victim);
    }
    enter(d, 1, below, key, used, account);
    act(d, TIER_LOAD, 1, layer, key);
}

/* Makes an expert resident in tier 0, from wherever it is. The caller knows that there is room or a
 * victim. */
static void admit(struct tier_decide *d, uint32_t layer, uint32_t key, bool used,
                  enum account account)
{
    struct part *part = part_of(d, 0, layer);
    bool below = d->state[key] & IN_1;
    if (d->exclusive && below) {
        leave(d, 1, part_of(d, 1, layer), key);     /* first, so that the victim finds its place */
        d->planes[1].held[key] = 0;
    }
    if (part->used == part->slots) {
        announce(part, key, used);
        uint32_t victim = victim_of(d, 0, part, account);
        MUST(victim != NOWHERE);
        evict_0(d, part, victim);
    }
    bool through = d->tier_count == 2 && !d->exclusive;
    if (through) {
        if (!below) admit_below(d, layer, key, used, account);
        d->planes[1].held[key] = 1;
    }
    enter(d, 0, part, key, used, account);
    act(d, below || through ? TIER_COPY_UP : TIER_LOAD, 0, layer, key);
    d->cell[0]->admissions++;
    d->planes[0].layers[layer].admissions++;
    if (through && !below) {
        d->cell[1]->admissions++;
        d->planes[1].layers[layer].admissions++;
    }
}

/* -- acquire ---------------------------------------------------------------------------------- */

static enum tier_cell cell_of(const struct part *part, enum tier_phase phase)
{
    if (part->used_max < part->slots) return TIER_CELL_COLD;
    return phase == TIER_PREFILL ? TIER_CELL_PREFILL : TIER_CELL_DECODE;
}

static void cells_choose(struct tier_decide *d, uint32_t layer)
{
    for (uint32_t t = 0; t < d->tier_count; t++) {
        d->cell[t] = &d->planes[t].cells[cell_of(part_of(d, t, layer), d->phase)];
    }
}

/* How many of ids can be in tier 0 at once beside what is leased. Prefill's misses take free slots,
 * then slots from decode up to its share, then slots of its own that nobody reads. */
static uint32_t grant(const struct tier_decide *d, const struct part *part, uint32_t base,
                      const uint32_t *ids, uint32_t n, enum tier_phase phase)
{
    uint32_t own_max = part->own + (part->slots - part->used);
    if (own_max < part->prefill_slots) own_max = part->prefill_slots;
    bool bounded = phase == TIER_PREFILL;
    if (part->pinned + n <= part->slots && (!bounded || part->own_pinned + n <= own_max)) return n;
    const uint16_t *pins = d->planes[0].held;
    uint32_t pinned = part->pinned, own_pinned = part->own_pinned;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = base + ids[i];
        uint8_t state = d->state[key];
        if (state & GONE) continue;
        bool resident = state & IN_0;
        pinned += !resident || pins[key] == 0;
        own_pinned += !resident || (state & OWN_0 && pins[key] == 0);
        if (pinned > part->slots) return i;
        if (bounded && own_pinned > own_max) return i;
    }
    return n;
}

static void pin(struct tier_decide *d, struct part *part, uint32_t key)
{
    uint16_t *pins = d->planes[0].held;
    MUST(pins[key] < UINT16_MAX);
    if (pins[key]++ != 0 || d->state[key] & GONE) return;
    part->pinned++;
    if (d->state[key] & OWN_0) part->own_pinned++;
    if (d->state[key] & IN_1) d->planes[1].held[key] = 1;
}

static void touch_0(struct tier_decide *d, struct part *part, uint32_t key, enum tier_phase phase)
{
    uint8_t state = d->state[key];
    part->ops->touch(part->policy, key - part->key_first);
    if (state & OWN_0) {
        own_remove(d, 0, part, key);
        if (phase == TIER_PREFILL) {
            own_add(d, 0, part, key);
        } else {
            part->own_pinned--;
        }
    }
    if (phase == TIER_DECODE) {
        if (state & OWN_1) own_remove(d, 1, part_of(d, 1, key / d->experts), key);
        d->state[key] |= DECODES;
    }
    if (state & HINTED) {
        d->state[key] &= (uint8_t)~HINTED;
        d->cell[0]->prefetch_used++;
        d->planes[0].layers[key / d->experts].prefetch_used++;
    }
}

static void touch_1(struct tier_decide *d, uint32_t layer, uint32_t key, enum tier_phase phase)
{
    struct part *part = part_of(d, 1, layer);
    part->ops->touch(part->policy, key - part->key_first);
    if (d->state[key] & OWN_1) {
        own_remove(d, 1, part, key);
        if (phase == TIER_PREFILL) own_add(d, 1, part, key);
    }
}

static void count_lookups(struct tier_decide *d, uint32_t tier, uint32_t layer, uint32_t lookups,
                          uint32_t resident)
{
    struct tier_counts *counts[2] = { d->cell[tier], &d->planes[tier].layers[layer] };
    for (int i = 0; i < 2; i++) {
        counts[i]->lookups += lookups;
        counts[i]->resident += resident;
        counts[i]->misses += lookups - resident;
    }
}

/* Tier 1's share of an acquire: where the misses of tier 0 are, and its policy's news of them. */
static void look_below(struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n,
                       enum tier_phase phase, struct tier_found *found)
{
    struct part *part = part_of(d, 1, layer);
    uint32_t base = layer * d->experts, lookups = 0, resident = 0;
    if (part->ops->begin) part->ops->begin(part->policy, d->acquires);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = base + ids[i];
        if (found[i].from == 0) {
            if (!(d->state[key] & IN_1) && part->ops->seen) {
                part->ops->seen(part->policy, key - part->key_first);
            }
            continue;
        }
        lookups++;
        if (d->state[key] & IN_1) {
            resident++;
            found[i].from = 1;
            touch_1(d, layer, key, phase);
        } else if (part->ops->seen && d->exclusive && !(d->state[key] & GONE)) {
            part->ops->seen(part->policy, key - part->key_first);
        }
    }
    count_lookups(d, 1, layer, lookups, resident);
}

uint32_t tier_decide_acquire(struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n,
                             enum tier_phase phase, struct tier_found *found)
{
    MUST(d->magic == DECIDE_MAGIC && layer < d->layers && n <= d->experts);
    struct part *part = part_of(d, 0, layer);
    uint32_t base = layer * d->experts, resident = 0;
    d->action_count = 0;
    d->phase = phase;
    cells_choose(d, layer);
    uint32_t k = grant(d, part, base, ids, n, phase);
    for (uint32_t i = 0; i < k; i++) {
        MUST(ids[i] < d->experts);
        pin(d, part, base + ids[i]);
    }
    if (part->ops->begin) part->ops->begin(part->policy, d->acquires);
    for (uint32_t i = 0; i < k; i++) {
        uint32_t key = base + ids[i];
        found[i].from = d->tier_count;
        if (!(d->state[key] & IN_0)) continue;
        found[i].from = 0;
        resident++;
        touch_0(d, part, key, phase);
    }
    count_lookups(d, 0, layer, k, resident);
    if (d->tier_count == 2) look_below(d, layer, ids, k, phase, found);
    if (resident < k) {
        enum account account = phase == TIER_PREFILL ? FOR_PREFILL : FOR_DECODE;
        for (uint32_t i = 0; i < k; i++) {
            uint32_t key = base + ids[i];
            if (d->state[key] & (IN_0 | GONE)) continue;
            admit(d, layer, key, true, account);
            if (account == FOR_PREFILL) part->own_pinned++;
            if (account == FOR_DECODE) d->state[key] |= DECODES;
        }
    }
    d->acquires++;
    d->layer_acquires[layer]++;
    return k;
}

void tier_decide_release(struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    MUST(d->magic == DECIDE_MAGIC && layer < d->layers);
    struct part *part = part_of(d, 0, layer);
    uint16_t *pins = d->planes[0].held;
    d->action_count = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = layer * d->experts + ids[i];
        MUST(ids[i] < d->experts && pins[key] > 0);
        if (--pins[key] != 0 || d->state[key] & GONE) continue;
        part->pinned--;
        if (d->state[key] & OWN_0) part->own_pinned--;
    }
}

/* -- hints, warm start, loss ------------------------------------------------------------------ */

static float likelihood(const struct tier_decide *d, uint32_t layer, uint32_t key)
{
    const struct offer *offer = &d->offers[key];
    return offer->acquire == d->layer_acquires[layer] ? offer->probability : 0;
}

bool tier_decide_hint(struct tier_decide *d, uint32_t layer, uint32_t expert, float probability,
                      uint32_t distance)
{
    MUST(d->magic == DECIDE_MAGIC && layer < d->layers && expert < d->experts);
    (void)distance;             /* how far ahead is for whoever reads, not for who stays */
    struct part *part = part_of(d, 0, layer);
    uint32_t key = layer * d->experts + expert;
    d->action_count = 0;
    if (!(probability >= 0 && probability <= 1)) return false;
    d->offers[key] = (struct offer){ probability, d->layer_acquires[layer] };
    for (uint32_t t = 0; t < d->tier_count; t++) {
        struct part *p = part_of(d, t, layer);
        if (p->ops->hint) p->ops->hint(p->policy, key - p->key_first, probability);
    }
    if (!d->config.prefetch || d->state[key] & (IN_0 | GONE)) return false;
    if (part->used == part->slots) {
        uint32_t victim = victim_of(d, 0, part, FOR_DECODE);
        if (victim == NOWHERE) return false;
        if (likelihood(d, layer_of(d, part, victim, 0), victim) >= probability) return false;
    }
    cells_choose(d, layer);
    admit(d, layer, key, false, FOR_DECODE);
    d->state[key] |= HINTED | DECODES;
    d->cell[0]->prefetch_admissions++;
    d->planes[0].layers[layer].prefetch_admissions++;
    return true;
}

uint32_t tier_decide_restore(struct tier_decide *d, uint32_t tier, uint32_t layer,
                             const uint32_t *ids, uint32_t n)
{
    MUST(d->magic == DECIDE_MAGIC && tier < d->tier_count && layer < d->layers && n <= d->experts);
    struct part *part = part_of(d, tier, layer);
    bool through = tier == 0 && d->tier_count == 2 && !d->exclusive;
    uint32_t fitted = 0;
    d->action_count = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = layer * d->experts + ids[i];
        MUST(ids[i] < d->experts);
        uint8_t there = through ? IN_0 : IN_0 | IN_1;
        if (d->state[key] & (there | GONE) || part->used == part->slots) continue;
        if (through) {
            struct part *below = part_of(d, 1, layer);
            if (!(d->state[key] & IN_1)) {
                if (below->used == below->slots) continue;
                enter(d, 1, below, key, false, FOR_DECODE);
                act(d, TIER_LOAD, 1, layer, key);
            }
            d->planes[1].held[key] = 1;
        }
        enter(d, tier, part, key, false, FOR_DECODE);
        d->state[key] |= DECODES;
        act(d, through ? TIER_COPY_UP : TIER_LOAD, tier, layer, key);
        fitted++;
    }
    return fitted;
}

void tier_decide_forget(struct tier_decide *d, uint32_t layer, uint32_t expert)
{
    MUST(d->magic == DECIDE_MAGIC && layer < d->layers && expert < d->experts);
    uint32_t key = layer * d->experts + expert;
    d->action_count = 0;
    if (d->state[key] & GONE) return;
    struct part *part = part_of(d, 0, layer);
    if (d->planes[0].held[key] > 0) {
        part->pinned--;
        if (d->state[key] & OWN_0) part->own_pinned--;
    }
    for (uint32_t t = 0; t < d->tier_count; t++) {
        if (!(d->state[key] & IN_0 << t)) continue;
        leave(d, t, part_of(d, t, layer), key);
        act(d, TIER_DROP, t, layer, key);
    }
    if (d->tier_count == 2) d->planes[1].held[key] = 0;
    d->state[key] = GONE;
}

/* -- recorded events -------------------------------------------------------------------------- */

static int event_check(struct tier_decide *d, const struct tier_event *event,
                       struct base_err *err)
{
    if (event->kind == TIER_EVENT_SETTING) return 0;
    if (event->layer >= d->layers || event->count > d->experts) {
        return base_err_set(err, BASE_EFORMAT,
                            "event of layer %" PRIu32 " with %" PRIu32 " experts: this cache has "
                            "%" PRIu32 " layers of %" PRIu32, event->layer, event->count,
                            d->layers, d->experts);
    }
    if (event->phase >= TIER_PHASE_COUNT || event->tier >= d->tier_count) {
        return base_err_set(err, BASE_EFORMAT, "event with phase %d and tier %" PRIu32
                            ": this cache has %" PRIu32 " resident tiers", (int)event->phase,
                            event->tier, d->tier_count);
    }
    bool one = event->kind == TIER_EVENT_HINT || event->kind == TIER_EVENT_FORGET;
    if (one && event->count != 1) {
        return base_err_set(err, BASE_EFORMAT, "hint or forget event with %" PRIu32
                            " experts: it should have one", event->count);
    }
    memset(d->marks, 0, (d->experts / 64 + 1) * sizeof *d->marks);
    for (uint32_t i = 0; i < event->count; i++) {
        uint32_t id = event->ids[i];
        if (id >= d->experts) {
            return base_err_set(err, BASE_EFORMAT, "expert %" PRIu32 " of layer %" PRIu32
                                ": a layer has %" PRIu32, id, event->layer, d->experts);
        }
        uint64_t bit = UINT64_C(1) << id % 64;
        if (d->marks[id / 64] & bit && event->kind != TIER_EVENT_RELEASE) {
            return base_err_set(err, BASE_EFORMAT, "expert %" PRIu32 " of layer %" PRIu32
                                " twice in one event", id, event->layer);
        }
        d->marks[id / 64] |= bit;
    }
    return 0;
}

static int apply_acquire(struct tier_decide *d, const struct tier_event *event,
                         struct base_err *err)
{
    uint32_t k = tier_decide_acquire(d, event->layer, event->ids, event->count, event->phase,
                                     d->found);
    if (k == event->granted) return 0;
    return base_err_set(err, BASE_EMISMATCH, "acquire of %" PRIu32 " experts of layer %" PRIu32
                        ": %" PRIu32 " were granted when this was recorded, %" PRIu32 " now",
                        event->count, event->layer, event->granted, k);
}

static int apply_release(struct tier_decide *d, const struct tier_event *event,
                         struct base_err *err)
{
    uint16_t *pins = d->planes[0].held;
    for (uint32_t i = 0; i < event->count; i++) {
        if (pins[event->layer * d->experts + event->ids[i]] == 0) {
            return base_err_set(err, BASE_EFORMAT, "release of expert %" PRIu32 " of layer %" PRIu32
                                ", which is not leased", event->ids[i], event->layer);
        }
        tier_decide_release(d, event->layer, &event->ids[i], 1);
    }
    return 0;
}

int tier_decide_apply(struct tier_decide *d, const struct tier_event *event, struct base_err *err)
{
    MUST(d->magic == DECIDE_MAGIC);
    int rc = event_check(d, event, err);
    if (rc < 0) return rc;
    switch (event->kind) {
    case TIER_EVENT_ACQUIRE:
        return apply_acquire(d, event, err);
    case TIER_EVENT_RELEASE:
        return apply_release(d, event, err);
    case TIER_EVENT_HINT: {
        bool admitted = tier_decide_hint(d, event->layer, event->ids[0], event->probability,
                                         event->distance);
        if (admitted == (event->admitted != 0)) return 0;
        return base_err_set(err, BASE_EMISMATCH, "hint for expert %" PRIu32 " of layer %" PRIu32
                            ": %s when this was recorded, %s now", event->ids[0], event->layer,
                            event->admitted ? "admitted" : "not admitted",
                            admitted ? "admitted" : "not admitted");
    }
    case TIER_EVENT_RESTORE: {
        uint32_t n = tier_decide_restore(d, event->tier, event->layer, event->ids, event->count);
        if (n == event->count) return 0;
        return base_err_set(err, BASE_EMISMATCH, "warm start of layer %" PRIu32 ": %" PRIu32
                            " experts fitted when this was recorded, %" PRIu32 " now",
                            event->layer, event->count, n);
    }
    case TIER_EVENT_FORGET:
        tier_decide_forget(d, event->layer, event->ids[0]);
        return 0;
    case TIER_EVENT_SETTING:
        return 0;
    }
    return base_err_set(err, BASE_EFORMAT, "event of unknown kind %d", (int)event->kind);
}

/* -- views ------------------------------------------------------------------------------------ */

uint32_t tier_decide_actions(const struct tier_decide *d, const struct tier_action **actions)
{
    *actions = d->actions;
    return d->action_count;
}

const struct tier_decide_config *tier_decide_config_get(const struct tier_decide *d)
{
    return &d->config;
}

bool tier_decide_resident(const struct tier_decide *d, uint32_t tier, uint32_t layer,
                          uint32_t expert)
{
    MUST(tier < d->tier_count && layer < d->layers && expert < d->experts);
    return d->state[layer * d->experts + expert] & IN_0 << tier;
}

uint64_t tier_decide_resident_count(const struct tier_decide *d, uint32_t tier)
{
    MUST(tier < d->tier_count);
    return d->planes[tier].resident;
}

uint32_t tier_decide_slots_of_layer(const struct tier_decide *d, uint32_t tier, uint32_t layer)
{
    MUST(tier < d->tier_count && layer < d->layers);
    const struct tier_plane *plane = &d->planes[tier];
    return plane->parts[plane->global ? 0 : layer].slots;
}

const struct tier_counts *tier_decide_counts(const struct tier_decide *d, uint32_t tier,
                                             enum tier_cell cell)
{
    MUST(tier < d->tier_count && cell < TIER_CELL_COUNT);
    return &d->planes[tier].cells[cell];
}

const struct tier_counts *tier_decide_layer_counts(const struct tier_decide *d, uint32_t tier,
                                                   uint32_t layer)
{
    MUST(tier < d->tier_count && layer < d->layers);
    return &d->planes[tier].layers[layer];
}

/* -- create ----------------------------------------------------------------------------------- */

static const char *tier_name(const struct tier_decide_config *config, uint32_t tier)
{
    if (config->tier_count == 2) return tier == 0 ? "tier hbm" : "tier dram";
    return "the resident tier";
}

static int config_check(const struct tier_decide_config *c, struct base_err *err)
{
    if (c->layers == 0 || c->experts == 0 || c->top_k == 0 || c->top_k > c->experts ||
        c->experts > 1u << 20 || (uint64_t)c->layers * c->experts >= 1u << 30) {
        return base_err_set(err, BASE_ECONFIG, "%" PRIu32 " layers of %" PRIu32 " experts with "
                            "top-%" PRIu32 " are no cache: top-k should be between 1 and the "
                            "experts of a layer", c->layers, c->experts, c->top_k);
    }
    if (c->tier_count < 1 || c->tier_count > TIER_RESIDENT_TIERS_MAX) {
        return base_err_set(err, BASE_ECONFIG, "%" PRIu32 " resident tiers: 1 or 2 can be had",
                            c->tier_count);
    }
    if (!(c->half_life_tokens >= 0)) {
        return base_err_set(err, BASE_ECONFIG, "half-life of %g tokens: it should be above 0, or 0 "
                            "for counts that do not decay", c->half_life_tokens);
    }
    if (!(c->prefill_share >= 0 && c->prefill_share <= 1)) {
        return base_err_set(err, BASE_ECONFIG, "prefill share of %g: it should be from 0 to 1",
                            c->prefill_share);
    }
    return 0;
}

/* Slots of each layer: as given, or split evenly with the remainder to the first layers. */
static int quotas_fill(struct tier_decide *d, uint32_t tier, struct base_err *err)
{
    const struct tier_decide_tier *from = &d->config.tiers[tier];
    uint32_t *quotas = d->planes[tier].quotas;
    uint64_t sum = 0;
    for (uint32_t l = 0; l < d->layers; l++) {
        uint64_t share = from->slots / d->layers + (l < from->slots % d->layers);
        if (from->quotas) share = from->quotas[l];
        quotas[l] = (uint32_t)(share < d->experts ? share : d->experts);
        sum += share;
    }
    if (sum > from->slots) {
        return base_err_set(err, BASE_EBUDGET, "%s: quotas of %" PRIu64 " slots in all, but it has "
                            "%" PRIu64, tier_name(&d->config, tier), sum, from->slots);
    }
    d->config.tiers[tier].quotas = quotas;
    return 0;
}

static int budget_check(const struct tier_decide *d, uint32_t tier, struct base_err *err)
{
    const struct tier_decide_config *c = &d->config;
    const struct tier_plane *plane = &d->planes[tier];
    const struct tier_decide_tier *t = &c->tiers[tier];
    const char *name = tier_name(c, tier);
    uint64_t cycle = (uint64_t)c->layers * c->top_k;
    if (plane->global) {
        if (t->slots == 0 || (tier == 0 && c->strict && t->slots < c->top_k)) {
            return base_err_set(err, BASE_EBUDGET, "%s has %" PRIu64 " slots, but one layer of one "
                                "token needs top_k = %" PRIu32, name, t->slots, c->top_k);
        }
        if (tier == 0 && c->strict && t->slots < cycle) {
            return base_err_set(err, BASE_EBUDGET,
                                "%s has %" PRIu64 " slots for policy %s, but one "
                                "token goes through %" PRIu32 " layers x top_k %" PRIu32
                                " = %" PRIu64
                                ": with fewer slots nothing lasts until its next use (LRU "
                                "cliff); give it %" PRIu64 " slots or take a policy per layer",
                                name, t->slots, t->policy, c->layers, c->top_k, cycle, cycle);
        }
        return 0;
    }
    uint32_t least = tier == 0 && c->strict ? c->top_k : 1;
    for (uint32_t l = 0; l < c->layers; l++) {
        if (plane->quotas[l] >= least) continue;
        return base_err_set(err, BASE_EBUDGET, "%s has %" PRIu32 " slots for layer %" PRIu32
                            " of %" PRIu32 " (%" PRIu64 " in all), but it needs at least %" PRIu32
                            " each%s: %" PRIu64 " in all", name, plane->quotas[l], l, c->layers,
                            t->slots, least, least == c->top_k ? " (top_k)" : "",
                            (uint64_t)least * c->layers);
    }
    return 0;
}

/* All of tier 0 must fit into tier 1, wherever tier 0's policy may put it. */
static int inclusive_check(const struct tier_decide *d, struct base_err *err)
{
    const struct tier_decide_config *c = &d->config;
    const struct tier_plane *upper = &d->planes[0], *lower = &d->planes[1];
    if (lower->global) {
        if (c->tiers[1].slots >= c->tiers[0].slots) return 0;
        return base_err_set(err, BASE_EBUDGET, "inclusion: inclusive keeps all of hbm in dram too: "
                            "dram has %" PRIu64 " slots, hbm %" PRIu64, c->tiers[1].slots,
                            c->tiers[0].slots);
    }
    for (uint32_t l = 0; l < c->layers; l++) {
        uint64_t above = upper->quotas[l];
        if (upper->global) above = c->tiers[0].slots < c->experts ? c->tiers[0].slots : c->experts;
        if (lower->quotas[l] >= above) continue;
        return base_err_set(err, BASE_EBUDGET, "inclusion: inclusive keeps all of hbm in dram too: "
                            "layer %" PRIu32 " has %" PRIu32 " slots in dram and up to %" PRIu64
                            " in hbm", l, lower->quotas[l], above);
    }
    return 0;
}

static int part_create(struct tier_decide *d, uint32_t tier, uint32_t p,
                       const struct tier_policy_ops *ops, struct base_err *err)
{
    struct tier_plane *plane = &d->planes[tier];
    struct part *part = &plane->parts[p];
    uint32_t experts = plane->global ? d->keys : d->experts;
    uint64_t slots = plane->global ? d->config.tiers[tier].slots : plane->quotas[p];
    part->ops = ops;
    part->slots = (uint32_t)(slots < experts ? slots : experts);
    part->prefill_slots = (uint32_t)(d->config.prefill_share * part->slots);
    if (part->prefill_slots == 0) part->prefill_slots = 1;
    part->key_first = plane->global ? 0 : p * d->experts;
    part->head = d->keys + p;
    plane->links[part->head] = (struct link){ part->head, part->head };
    struct tier_policy_options options = {
        .expert_count = experts,
        .slots = part->slots,
        .half_life = d->config.half_life_tokens > 0
                         ? d->config.half_life_tokens * (plane->global ? d->layers : 1)
                         : INFINITY,
        .held = plane->held + part->key_first,
        .next_use = d->config.next_use,
        .next_use_context = d->config.next_use_context,
        .layer_first = plane->global ? 0 : p,
        .layer_experts = d->experts,
    };
    int rc = tier_policy_create(&part->policy, ops, &options);
    if (rc == -EINVAL && ops->replay_only) {
        return base_err_set(err, BASE_ECONFIG,
                            "policy %s knows the future: it works in replay only", ops->name);
    }
    if (rc < 0) return base_err_set(err, rc, "cannot make policy %s for %" PRIu32 " experts: %s",
                                    ops->name, experts, base_err_name(rc));
    return 0;
}

static int plane_create(struct tier_decide *d, uint32_t tier, struct base_err *err)
{
    struct tier_plane *plane = &d->planes[tier];
    const struct tier_policy_ops *ops = tier_policy_find(d->config.tiers[tier].policy);
    if (!ops) {
        return base_err_set(err, BASE_ECONFIG, "no policy is called \"%s\"",
                            d->config.tiers[tier].policy);
    }
    plane->global = ops->global;
    plane->part_count = ops->global ? 1 : d->layers;
    plane->parts = calloc(plane->part_count, sizeof *plane->parts);
    plane->held = calloc(d->keys, sizeof *plane->held);
    plane->links = calloc((size_t)d->keys + plane->part_count, sizeof *plane->links);
    plane->quotas = calloc(d->layers, sizeof *plane->quotas);
    plane->layers = calloc(d->layers, sizeof *plane->layers);
    if (!plane->parts || !plane->held || !plane->links || !plane->quotas || !plane->layers) {
        return base_err_set(err, -ENOMEM, "no memory for the tables of %" PRIu32 " experts",
                            d->keys);
    }
    int rc = quotas_fill(d, tier, err);
    if (rc == 0) rc = budget_check(d, tier, err);
    for (uint32_t p = 0; rc == 0 && p < plane->part_count; p++) {
        rc = part_create(d, tier, p, ops, err);
    }
    return rc;
}

int tier_decide_create(struct tier_decide **out, const struct tier_decide_config *config,
                       struct base_err *err)
{
    *out = NULL;
    int rc = config_check(config, err);
    if (rc < 0) return rc;
    struct tier_decide *d = calloc(1, sizeof *d);
    if (!d) return base_err_set(err, -ENOMEM, "no memory for the decision core");
    d->magic = DECIDE_MAGIC;
    d->config = *config;
    d->layers = config->layers;
    d->experts = config->experts;
    d->keys = config->layers * config->experts;
    d->tier_count = config->tier_count;
    d->exclusive = config->tier_count == 2 && !config->inclusive;
    d->action_max = 8 * config->experts; /* above the most moves one admission causes, times ids */
    d->state = calloc(d->keys, sizeof *d->state);
    d->offers = calloc(d->keys, sizeof *d->offers);
    d->layer_acquires = calloc(d->layers, sizeof *d->layer_acquires);
    d->actions = calloc(d->action_max, sizeof *d->actions);
    d->found = calloc(d->experts, sizeof *d->found);
    d->marks = calloc(d->experts / 64 + 1, sizeof *d->marks);
    if (!d->state || !d->offers || !d->layer_acquires || !d->actions || !d->found || !d->marks) {
        rc = base_err_set(err, -ENOMEM, "no memory for the tables of %" PRIu32 " experts", d->keys);
        goto fail;
    }
    for (uint32_t t = 0; t < d->tier_count; t++) {
        rc = plane_create(d, t, err);
        if (rc < 0) goto fail;
    }
    if (d->tier_count == 2 && config->inclusive) {
        rc = inclusive_check(d, err);
        if (rc < 0) goto fail;
    }
    *out = d;
    return 0;
fail:
    tier_decide_destroy(d);
    return rc;
}

void tier_decide_destroy(struct tier_decide *d)
{
    if (!d) return;
    MUST(d->magic == DECIDE_MAGIC);
    for (uint32_t t = 0; t < d->tier_count; t++) {
        struct tier_plane *plane = &d->planes[t];
        for (uint32_t p = 0; plane->parts && p < plane->part_count; p++) {
            tier_policy_destroy(plane->parts[p].policy);
        }
        free(plane->parts);
        free(plane->held);
        free(plane->links);
        free(plane->quotas);
        free(plane->layers);
    }
    free(d->state);
    free(d->offers);
    free(d->layer_acquires);
    free(d->actions);
    free(d->found);
    free(d->marks);
    d->magic = 0;
    free(d);
}
