#include "tiering/decide.h"

#include <string.h>

#include "base/must.h"
#include "tiering/decide_priv.h"

enum { NOWHERE = UINT32_MAX };

/* -- partitions ------------------------------------------------------------------------------- */

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
    tier_own_link(&d->planes[tier], part, key);
    d->entries[key].state |= OWN_0 << tier;
}

static void own_remove(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t key)
{
    struct link *links = d->planes[tier].links;
    links[links[key].prev].next = links[key].next;
    links[links[key].next].prev = links[key].prev;
    part->own--;
    d->entries[key].state &= (uint8_t)~(OWN_0 << tier);
}

static uint32_t own_oldest(const struct tier_decide *d, uint32_t tier, const struct part *part)
{
    const struct tier_plane *plane = &d->planes[tier];
    uint32_t key = plane->links[part->head].next;
    while (key != part->head && plane->held[key].count) key = plane->links[key].next;
    return key == part->head ? NOWHERE : key;
}

/* Slots that a partition may fill without a victim. While leases keep another one beyond its slots,
 * what it holds too much is not there for the others: the tier as a whole keeps to its size. */
static uint32_t room(const struct tier_decide *d, uint32_t tier, const struct part *part)
{
    if (part->used >= part->slots) return 0;
    uint32_t free = part->slots - part->used;
    if (!d->over) return free;
    uint64_t all = d->config.tiers[tier].slots, resident = d->planes[tier].resident;
    uint64_t left = all > resident ? all - resident : 0;
    return left < free ? (uint32_t)left : free;
}

/* Experts that may be leased in it at once. */
static uint32_t leases_max(const struct tier_decide *d, uint32_t tier, const struct part *part)
{
    return part->used > part->slots ? part->slots : part->used + room(d, tier, part);
}

/* One resident expert was used. */
static void touch(const struct part *part, uint32_t key)
{
    uint32_t expert = key - part->key_first;
    part->ops->touch(part->policy, &expert, 1);
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
    MUST(part->used < part->roof);
    part->ops->insert(part->policy, key - part->key_first, used);
    if (++part->used > part->used_max) part->used_max = part->used;
    d->planes[tier].resident++;
    d->entries[key].state |= IN_0 << tier;
    if (account == FOR_PREFILL) own_add(d, tier, part, key);
}

static void leave(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t key)
{
    part->ops->remove(part->policy, key - part->key_first);
    part->used--;
    d->planes[tier].resident--;
    if (d->entries[key].state & OWN_0 << tier) own_remove(d, tier, part, key);
    d->entries[key].state &= (uint8_t)~(IN_0 << tier);
}

static uint32_t layer_of(const struct tier_decide *d, const struct part *part, uint32_t key,
                         uint32_t tier)
{
    if (!d->planes[tier].global) return part->layer;
    return key / d->experts;
}

/* -- eviction --------------------------------------------------------------------------------- */

static void count_eviction(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t layer,
                           uint32_t key)
{
    struct tier_plane *plane = &d->planes[tier];
    d->cell[tier]->evictions++;
    plane->layers[layer].evictions++;
    part->departures++;
    if (plane->left_at) plane->left_at[key] = part->departures;
}

static void evict_1(struct tier_decide *d, struct part *part, uint32_t key)
{
    uint32_t layer = layer_of(d, part, key, 1);
    count_eviction(d, 1, part, layer, key);
    leave(d, 1, part, key);
    if (d->warm_uses) d->warm_uses[key] = 0;
    if (!(d->entries[key].state & IN_0)) d->entries[key].state &= (uint8_t)~DECODES;
    act(d, TIER_DROP, 1, layer, key);
}

/* Exclusive: an expert leaving tier 0 takes a place below, if one can be had: a copy is cheaper
 * than the read that it may spare. That holds even for one that is worth less, by what the policy
 * knows, than the one that it displaces: letting go of those instead saved 2 to 9% of the copies
 * down and cost 3% more reads. */
static bool demote(struct tier_decide *d, uint32_t layer, uint32_t key)
{
    struct part *below = tier_part_of(d, 1, layer);
    enum account account = d->entries[key].state & DECODES ? FOR_DECODE : FOR_PREFILL;
    if (room(d, 1, below) == 0) {
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
    count_eviction(d, 0, part, layer, key);
    leave(d, 0, part, key);
    d->entries[key].state &= (uint8_t)~HINTED;
    if (d->exclusive) {
        if (demote(d, layer, key)) return;
    } else if (d->tier_count == 2) {
        /* Its copy below may leave from now on, but not before what was used longer ago. */
        struct part *below = tier_part_of(d, 1, layer);
        d->planes[1].held[key].count = 0;
        touch(below, key);
        act(d, TIER_DROP, 0, layer, key);
        return;
    }
    d->entries[key].state &= (uint8_t)~DECODES;
    act(d, TIER_DROP, 0, layer, key);
}

void tier_decide_trim(struct tier_decide *d, uint32_t tier, struct part *part)
{
    while (part->used > part->slots) {
        uint32_t key = victim_of(d, tier, part, FOR_PREFILL);
        if (key == NOWHERE) break;
        if (tier == 0) {
            evict_0(d, part, key);
        } else {
            evict_1(d, part, key);
        }
    }
    part->roof = part->used > part->slots ? part->used : part->slots;
}

/* -- admission -------------------------------------------------------------------------------- */

/* Inclusive: brings an expert from nvme into tier 1. All of a full tier 1 may be held, by what lies
 * above it and by what this acquire is about to move up; then tier 0 lets go of experts until one
 * of them is free here. It has them to spare, or the acquire had not been granted. */
static void admit_below(struct tier_decide *d, uint32_t layer, uint32_t key, bool used,
                        enum account account)
{
    struct part *below = tier_part_of(d, 1, layer), *part = tier_part_of(d, 0, layer);
    if (room(d, 1, below) == 0) {
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
    struct part *part = tier_part_of(d, 0, layer);
    bool below = d->entries[key].state & IN_1;
    if (d->exclusive && below) {
        /* First, so that the victim finds its place. */
        leave(d, 1, tier_part_of(d, 1, layer), key);
        d->planes[1].held[key].count = 0;
    }
    if (d->warm_uses) d->warm_uses[key] = 0;
    if (room(d, 0, part) == 0) {
        announce(part, key, used);
        uint32_t victim = victim_of(d, 0, part, account);
        MUST(victim != NOWHERE);
        evict_0(d, part, victim);
    }
    bool through = d->tier_count == 2 && !d->exclusive;
    if (through) {
        if (!below) admit_below(d, layer, key, used, account);
        d->planes[1].held[key].count = 1;
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

static inline void cells_choose(struct tier_decide *d, uint32_t layer)
{
    for (uint32_t t = 0; t < d->tier_count; t++) {
        d->cell[t] = &d->planes[t].cells[cell_of(tier_part_of(d, t, layer), d->phase)];
    }
}

/* Inclusive, while leases keep a partition beyond its slots: what is leased must find a place below
 * too, beside what other layers have above it. */
static uint32_t careful_most(struct tier_decide *d, const struct part *part, uint32_t layer,
                             uint32_t most)
{
    if (d->tier_count == 1 || d->exclusive) return most;
    const struct part *below = tier_part_of(d, 1, layer);
    uint64_t fits = leases_max(d, 1, below), others = 0;
    if (!d->planes[0].global && d->planes[1].global) others = d->planes[0].resident - part->used;
    fits = fits > others ? fits - others : 0;
    return fits < most ? (uint32_t)fits : most;
}

/* Inclusive, with experts used in place: what is leased in tier 0 needs a place below beside those,
 * and beside what other layers have above. Experts that may be leased in both. */
static uint32_t both_most(struct tier_decide *d, const struct part *part, uint32_t layer)
{
    if (d->exclusive || !d->config.warm_compute) return UINT32_MAX;
    const struct part *below = tier_part_of(d, 1, layer);
    uint64_t fits = leases_max(d, 1, below), others = 0;
    if (!d->planes[0].global && d->planes[1].global) others = d->planes[0].resident - part->used;
    return fits > others ? (uint32_t)(fits - others) : 0;
}

/* How many of ids can be leased at once beside what is. Prefill's misses take free slots, then
 * slots from decode up to its share, then slots of its own that nobody reads. What is used in
 * place takes none of tier 0. */
static uint32_t grant(struct tier_decide *d, const struct part *part, uint32_t layer,
                      const uint32_t *ids, uint32_t n, enum tier_phase phase)
{
    uint32_t own_max = part->own + room(d, 0, part), most = leases_max(d, 0, part);
    if (own_max < part->prefill_slots) own_max = part->prefill_slots;
    bool bounded = phase == TIER_PREFILL;
    if (d->over) most = careful_most(d, part, layer, most);
    uint32_t both = both_most(d, part, layer), warm = 0;
    if (both != UINT32_MAX) warm = tier_part_of(d, 1, layer)->pinned;
    if (part->pinned + n <= most && part->pinned + warm + n <= both &&
        (!bounded || part->own_pinned + n <= own_max)) {
        return n;
    }
    const struct tier_hold *pins = d->planes[0].held;
    uint32_t pinned = part->pinned, own_pinned = part->own_pinned;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = layer * d->experts + ids[i];
        uint8_t state = d->entries[key].state;
        if (state & GONE) continue;
        if (tier_decide_is_warm(d, state)) {
            warm += pins[key].count == 0;
            if (pinned + warm > both) return i;
            continue;
        }
        bool resident = state & IN_0;
        pinned += !resident || pins[key].count == 0;
        own_pinned += !resident || (state & OWN_0 && pins[key].count == 0);
        if (pinned > most || pinned + warm > both) return i;
        if (bounded && own_pinned > own_max) return i;
    }
    return n;
}

/* The first lease of an expert that has a copy in tier 1, too or only. True if tier 0's slots are
 * not concerned. */
static bool pin_below(struct tier_decide *d, uint32_t layer, struct tier_hold *hold)
{
    d->planes[1].held[hold - d->entries].count = 1;
    if (!tier_decide_is_warm(d, hold->state)) return false;
    tier_part_of(d, 1, layer)->pinned++;
    return true;
}

/* Whose an expert of tier 0 is once it was used, and what a hint was good for. */
static void use_owned(struct tier_decide *d, struct part *part, uint32_t key, enum tier_phase phase)
{
    uint8_t state = d->entries[key].state;
    if (state & OWN_0) {
        own_remove(d, 0, part, key);
        if (phase == TIER_PREFILL) {
            own_add(d, 0, part, key);
        } else {
            part->own_pinned--;
        }
    }
    if (phase == TIER_DECODE && state & OWN_1) {
        own_remove(d, 1, tier_part_of(d, 1, key / d->experts), key);
    }
    if (state & HINTED) {
        d->entries[key].state &= (uint8_t)~HINTED;
        d->cell[0]->prefetch_used++;
        d->planes[0].layers[key / d->experts].prefetch_used++;
    }
}

/* Pins what was granted and tells the hits of tier 0 from the misses, without a branch: which it is
 * is what nobody can foretell. Returns how many hits, and all their states together. */
static uint32_t look_up(struct tier_decide *d, struct part *part, uint32_t layer,
                        const uint32_t *ids, uint32_t k, struct tier_found *found, uint8_t *states)
{
    uint32_t base = layer * d->experts, first = base - part->key_first, experts = d->experts;
    uint32_t hits = 0, pinned = 0, own_pinned = 0, nowhere = d->tier_count;
    uint32_t *hit_experts = d->hits, *missed = d->missed;
    uint8_t all = 0;
    for (uint32_t i = 0; i < k; i++) {
        uint32_t id = ids[i];
        MUST(id < experts);
        struct tier_hold *hold = &d->entries[base + id];
        uint8_t state = hold->state;
        MUST(hold->count < UINT16_MAX);
        bool counts = hold->count++ == 0 && !(state & GONE);
        if (counts && state & IN_1) counts = !pin_below(d, layer, hold);
        if (counts) {
            pinned++;
            own_pinned += (state & OWN_0) != 0;
        }
        _Static_assert(IN_0 == 1, "a hit counts as one");
        uint32_t hit = state & IN_0;
        found[i] = (struct tier_found){ .from = nowhere & (hit - 1) };
        hit_experts[hits] = first + id;
        missed[i - hits] = i;
        hits += hit;
        all |= (uint8_t)((state ^ DECODES) & (0 - hit));
    }
    part->pinned += pinned;
    part->own_pinned += own_pinned;
    *states = all;
    return hits;
}

/* The hits of tier 0 are used: most are decode's already. */
static void use_hits(struct tier_decide *d, struct part *part, uint32_t hits, uint8_t states,
                     enum tier_phase phase)
{
    part->ops->touch(part->policy, d->hits, hits);
    if (!(states & (OWN_0 | OWN_1 | HINTED | DECODES))) return;
    for (uint32_t i = 0; i < hits; i++) {
        uint32_t key = part->key_first + d->hits[i];
        if (d->entries[key].state & (OWN_0 | OWN_1 | HINTED)) use_owned(d, part, key, phase);
        if (phase == TIER_DECODE) d->entries[key].state |= DECODES;
    }
}

static void touch_1(struct tier_decide *d, uint32_t layer, uint32_t key, enum tier_phase phase)
{
    struct part *part = tier_part_of(d, 1, layer);
    touch(part, key);
    if (d->entries[key].state & OWN_1) {
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

/* An expert of tier 1 is used there. */
static void use_in_place(struct tier_decide *d, uint32_t key, enum tier_phase phase)
{
    struct part *above = tier_part_of(d, 0, key / d->experts);
    if (above->ops->seen) above->ops->seen(above->policy, key - above->key_first);
    if (phase != TIER_DECODE) return;
    d->entries[key].state |= DECODES;
    if (d->warm_uses[key] < UINT8_MAX) d->warm_uses[key]++;
}

/* Tier 1's share of an acquire: where the misses of tier 0 are, and its policy's news of them. */
static void look_below(struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n,
                       enum tier_phase phase, struct tier_found *found)
{
    struct part *part = tier_part_of(d, 1, layer);
    uint32_t base = layer * d->experts, lookups = 0, resident = 0, in_place = 0;
    if (part->ops->begin) part->ops->begin(part->policy, d->acquires);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = base + ids[i];
        if (found[i].from == 0) {
            if (!(d->entries[key].state & IN_1) && part->ops->seen) {
                part->ops->seen(part->policy, key - part->key_first);
            }
            continue;
        }
        lookups++;
        if (!(d->entries[key].state & IN_1)) tier_decide_regret(d, 1, part, key);
        if (d->entries[key].state & IN_1) {
            resident++;
            found[i].from = 1;
            touch_1(d, layer, key, phase);
            found[i].in_place = tier_decide_is_warm(d, d->entries[key].state);
            if (!found[i].in_place) continue;
            use_in_place(d, key, phase);
            in_place++;
        } else if (part->ops->seen && d->exclusive && !(d->entries[key].state & GONE)) {
            part->ops->seen(part->policy, key - part->key_first);
        }
    }
    count_lookups(d, 1, layer, lookups, resident);
    d->cell[1]->in_place += in_place;
    d->planes[1].layers[layer].in_place += in_place;
}

void tier_decide_ahead(const struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    const struct tier_plane *plane = &d->planes[0];
    const struct part *part = &plane->parts[plane->global ? 0 : layer];
    const struct tier_policy_ops *ops = part->ops;
    uint32_t base = layer * d->experts, first = base - part->key_first;
    for (uint32_t i = 0; i < n; i++) __builtin_prefetch(&plane->held[base + ids[i]], 1);
    for (uint32_t i = 0; ops->ahead && i < n; i++) ops->ahead(part->policy, first + ids[i]);
}

uint32_t tier_decide_acquire(struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n,
                             enum tier_phase phase, struct tier_found *found)
{
    MUST(d->magic == TIER_DECIDE_MAGIC && layer < d->layers && n <= d->experts);
    struct part *part = tier_part_of(d, 0, layer);
    uint32_t base = layer * d->experts;
    d->action_count = 0;
    d->phase = phase;
    cells_choose(d, layer);
    uint32_t k = grant(d, part, layer, ids, n, phase);
    uint8_t states;
    uint32_t hits = look_up(d, part, layer, ids, k, found, &states);
    if (part->ops->begin) part->ops->begin(part->policy, d->acquires);
    if (hits > 0) use_hits(d, part, hits, states, phase);
    count_lookups(d, 0, layer, k, hits);
    if (d->tier_count == 2) look_below(d, layer, ids, k, phase, found);
    enum account account = phase == TIER_PREFILL ? FOR_PREFILL : FOR_DECODE;
    for (uint32_t i = 0; i < k - hits; i++) {
        uint32_t key = base + ids[d->missed[i]];
        if (d->entries[key].state & GONE) continue;
        if (d->config.adaptive) tier_decide_regret(d, 0, part, key);
        if (found[d->missed[i]].in_place) continue;
        admit(d, layer, key, true, account);
        if (account == FOR_PREFILL) part->own_pinned++;
        if (account == FOR_DECODE) d->entries[key].state |= DECODES;
    }
    d->acquires++;
    d->layer_acquires[layer]++;
    if (d->config.adaptive && phase == TIER_DECODE) tier_decide_adapt(d, n);
    return k;
}

/* What was used in place is leased no more. */
static void unpin_warm(struct tier_decide *d, uint32_t key)
{
    tier_part_of(d, 1, key / d->experts)->pinned--;
    d->planes[1].held[key].count = 0;
    uint8_t uses = d->warm_uses[key];
    bool most = d->riser == TIER_NO_RISER || uses > d->warm_uses[d->riser];
    if (uses >= TIER_DECIDE_WARM_USES && most) d->riser = key;
}

uint32_t tier_decide_unpin(struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    struct part *part = tier_part_of(d, 0, layer);
    uint32_t i = 0, base = layer * d->experts, experts = d->experts, pinned = 0, own_pinned = 0;
    for (; i < n; i++) {
        MUST(ids[i] < experts);
        struct tier_hold *hold = &d->entries[base + ids[i]];
        uint8_t state = hold->state;
        if (hold->count == 0) break;
        if (--hold->count != 0 || state & GONE) continue;
        if (state & IN_1 && tier_decide_is_warm(d, state)) {
            unpin_warm(d, base + ids[i]);
            continue;
        }
        pinned++;
        own_pinned += (state & OWN_0) != 0;
    }
    part->pinned -= pinned;
    part->own_pinned -= own_pinned;
    return i;
}

/* An expert that was used in place and is leased no more moves up, if anything there may leave. */
static void rise(struct tier_decide *d, uint32_t layer, uint32_t key)
{
    struct part *part = tier_part_of(d, 0, layer);
    if (part->used >= part->slots && victim_of(d, 0, part, FOR_DECODE) == NOWHERE) return;
    cells_choose(d, layer);
    /* Its uses were counted when they happened. */
    admit(d, layer, key, false, FOR_DECODE);
    d->entries[key].state |= DECODES;
}

/* Leases may have kept experts alive beyond the slots. */
void tier_decide_drain(struct tier_decide *d, uint32_t layer)
{
    struct part *part = tier_part_of(d, 0, layer);
    struct part *below = d->tier_count == 2 ? tier_part_of(d, 1, layer) : NULL;
    uint32_t riser = d->riser;
    d->riser = TIER_NO_RISER;
    d->action_count = 0;
    if (!d->over && riser != TIER_NO_RISER) rise(d, layer, riser);
    if (!d->over) return;
    cells_choose(d, layer);
    tier_decide_trim(d, 0, part);
    if (below) tier_decide_trim(d, 1, below);
    tier_decide_note_over(d);
}

void tier_decide_release(struct tier_decide *d, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    MUST(d->magic == TIER_DECIDE_MAGIC && layer < d->layers);
    MUST(tier_decide_unpin(d, layer, ids, n) == n);
    tier_decide_drain(d, layer);
}

/* -- hints, warm start, loss ------------------------------------------------------------------ */

static float likelihood(const struct tier_decide *d, uint32_t layer, uint32_t key)
{
    const struct offer *offer = &d->offers[key];
    return offer->acquire == d->layer_acquires[layer] ? offer->probability : 0;
}

float tier_decide_hinted(const struct tier_decide *d, uint32_t layer, uint32_t expert)
{
    MUST(layer < d->layers && expert < d->experts);
    const struct offer *offer = &d->offers[layer * d->experts + expert];
    return offer->acquire == d->layer_acquires[layer] ? offer->probability : -1;
}

/* Is the hinted expert worth the place of the one that would leave for it? */
static bool outweighs(const struct tier_decide *d, const struct part *part, uint32_t key,
                      uint32_t victim, float probability)
{
    const struct tier_policy_ops *ops = part->ops;
    if (!ops->worth) return probability > likelihood(d, layer_of(d, part, victim, 0), victim);
    return ops->worth(part->policy, key - part->key_first) >
           ops->worth(part->policy, victim - part->key_first);
}

bool tier_decide_hint(struct tier_decide *d, uint32_t layer, uint32_t expert, float probability,
                      uint32_t distance)
{
    MUST(d->magic == TIER_DECIDE_MAGIC && layer < d->layers && expert < d->experts);
    (void)distance;             /* how far ahead is for whoever reads, not for who stays */
    struct part *part = tier_part_of(d, 0, layer);
    uint32_t key = layer * d->experts + expert;
    d->action_count = 0;
    if (!(probability >= 0 && probability <= 1)) return false;
    d->offers[key] = (struct offer){ probability, d->layer_acquires[layer] };
    for (uint32_t t = 0; t < d->tier_count; t++) {
        struct part *p = tier_part_of(d, t, layer);
        if (p->ops->hint) p->ops->hint(p->policy, key - p->key_first, probability);
    }
    if (!d->config.prefetch || d->entries[key].state & (IN_0 | GONE)) return false;
    /* While leases keep a partition beyond its slots, nothing comes that nobody asked for; and what
     * is used in place stays there. */
    if (d->over || d->planes[0].held[key].count) return false;
    if (part->used >= part->slots) {
        uint32_t victim = victim_of(d, 0, part, FOR_DECODE);
        if (victim == NOWHERE) return false;
        if (!outweighs(d, part, key, victim, probability)) return false;
    }
    cells_choose(d, layer);
    admit(d, layer, key, false, FOR_DECODE);
    d->entries[key].state |= HINTED | DECODES;
    d->cell[0]->prefetch_admissions++;
    d->planes[0].layers[layer].prefetch_admissions++;
    return true;
}

/* Tells a policy what it would know of an expert that was just restored. */
static void seed(const struct part *part, uint32_t key, uint8_t quarters)
{
    if (part->ops->seed) {
        part->ops->seed(part->policy, key - part->key_first, quarters / 4.0);
    } else if (quarters > 6) {
        touch(part, key);
    }
}

uint32_t tier_decide_restore(struct tier_decide *d, uint32_t tier, uint32_t layer,
                             const uint32_t *ids, const uint8_t *uses, uint32_t n)
{
    MUST(d->magic == TIER_DECIDE_MAGIC && tier < d->tier_count && layer < d->layers);
    MUST(n <= d->experts);
    struct part *part = tier_part_of(d, tier, layer);
    bool through = tier == 0 && d->tier_count == 2 && !d->exclusive;
    uint32_t fitted = 0;
    d->action_count = 0;
    for (uint32_t i = 0; !d->over && i < n; i++) {
        uint32_t key = layer * d->experts + ids[i];
        MUST(ids[i] < d->experts);
        uint8_t there = through ? IN_0 : IN_0 | IN_1;
        if (d->entries[key].state & (there | GONE) || part->used >= part->slots) continue;
        if (through) {
            struct part *below = tier_part_of(d, 1, layer);
            if (!(d->entries[key].state & IN_1)) {
                if (below->used >= below->slots) continue;
                enter(d, 1, below, key, false, FOR_DECODE);
                if (uses) seed(below, key, uses[i]);
                act(d, TIER_LOAD, 1, layer, key);
            }
            d->planes[1].held[key].count = 1;
        }
        enter(d, tier, part, key, false, FOR_DECODE);
        if (uses) seed(part, key, uses[i]);
        d->entries[key].state |= DECODES;
        act(d, through ? TIER_COPY_UP : TIER_LOAD, tier, layer, key);
        fitted++;
    }
    return fitted;
}

void tier_decide_forget(struct tier_decide *d, uint32_t layer, uint32_t expert)
{
    MUST(d->magic == TIER_DECIDE_MAGIC && layer < d->layers && expert < d->experts);
    uint32_t key = layer * d->experts + expert;
    d->action_count = 0;
    if (d->entries[key].state & GONE) return;
    struct part *part = tier_part_of(d, 0, layer);
    if (d->planes[0].held[key].count > 0 && tier_decide_is_warm(d, d->entries[key].state)) {
        tier_part_of(d, 1, layer)->pinned--;
    } else if (d->planes[0].held[key].count > 0) {
        part->pinned--;
        if (d->entries[key].state & OWN_0) part->own_pinned--;
    }
    for (uint32_t t = 0; t < d->tier_count; t++) {
        if (!(d->entries[key].state & IN_0 << t)) continue;
        leave(d, t, tier_part_of(d, t, layer), key);
        act(d, TIER_DROP, t, layer, key);
    }
    if (d->tier_count == 2) d->planes[1].held[key].count = 0;
    d->entries[key].state = GONE;
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
    return d->entries[layer * d->experts + expert].state & IN_0 << tier;
}

uint64_t tier_decide_resident_count(const struct tier_decide *d, uint32_t tier)
{
    MUST(tier < d->tier_count);
    return d->planes[tier].resident;
}

uint64_t tier_decide_fixed_count(const struct tier_decide *d, uint32_t tier)
{
    MUST(tier < d->tier_count);
    const struct tier_plane *plane = &d->planes[tier];
    uint64_t fixed = 0;
    for (uint32_t p = 0; p < plane->part_count; p++) {
        const struct part *part = &plane->parts[p];
        if (!part->ops->fixed) return 0;
        fixed += part->ops->fixed(part->policy);
    }
    return fixed;
}

void tier_decide_note_over(struct tier_decide *d)
{
    d->over = false;
    for (uint32_t t = 0; t < d->tier_count; t++) d->over |= tier_decide_over(d, t) > 0;
}

uint64_t tier_decide_over(const struct tier_decide *d, uint32_t tier)
{
    const struct tier_plane *plane = &d->planes[tier];
    uint64_t over = 0;
    for (uint32_t p = 0; p < plane->part_count; p++) {
        const struct part *part = &plane->parts[p];
        if (part->used > part->slots) over += part->used - part->slots;
    }
    return over;
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
