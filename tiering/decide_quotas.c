#include "base/must.h"
#include "tiering/decide_priv.h"

/* A slot moves after so many decode acquires a layer. A miss among a layer's last REGRET_DEPTH
 * departures is regretted: with so many slots more it had been a hit. Regrets fade by an eighth
 * from move to move; they are counted in sixteenths, so that they can do so in whole numbers.
 * Measured in docs/tuning.md. */
enum { ACQUIRES_A_MOVE = 128, REGRET_DEPTH = 4, REGRET = 16, FADE_SHIFT = 3 };

void tier_decide_regret(struct tier_decide *d, uint32_t tier, struct part *part, uint32_t key)
{
    const uint32_t *left_at = d->planes[tier].left_at;
    if (!left_at || d->phase != TIER_DECODE || left_at[key] == 0) return;
    if (part->departures - left_at[key] < REGRET_DEPTH) part->regrets += REGRET;
}

/* Inclusive: all of tier 0 must fit into tier 1, layer by layer. */
static bool may_have(const struct tier_decide *d, uint32_t tier, uint32_t layer, uint32_t quota)
{
    if (!d->config.inclusive || d->tier_count == 1) return true;
    return tier == 0 ? quota <= d->planes[1].quotas[layer] : quota >= d->planes[0].quotas[layer];
}

static void set_slots(struct tier_decide *d, uint32_t tier, uint32_t layer, uint32_t slots)
{
    struct tier_plane *plane = &d->planes[tier];
    struct part *part = &plane->parts[layer];
    plane->quotas[layer] = slots;
    part->slots = slots;
    if (part->roof < slots) part->roof = slots;
    /* Nobody has used the new one: but it is no cold start either. */
    if (part->used_max < slots) part->used_max = slots;
    part->prefill_slots = tier_decide_prefill_slots(d, slots);
    if (part->ops->retune) {
        part->ops->retune(part->policy, slots, tier_decide_half_life(d, plane));
    }
}

static void move_slot(struct tier_decide *d, uint32_t tier)
{
    struct tier_plane *plane = &d->planes[tier];
    uint32_t width = d->widths[0] > d->widths[1] ? d->widths[0] : d->widths[1];
    uint32_t least = 2 * (width > d->config.top_k ? width : d->config.top_k);
    uint32_t from = UINT32_MAX, to = UINT32_MAX;
    for (uint32_t l = 0; l < d->layers; l++) {
        const struct part *part = &plane->parts[l];
        /* Quotas of a tier that still fills say nothing. */
        if (part->used_max < part->slots) return;
        if (part->slots < d->experts && may_have(d, tier, l, part->slots + 1) &&
            (to == UINT32_MAX || part->regrets > plane->parts[to].regrets)) {
            to = l;
        }
        if (part->slots > least && may_have(d, tier, l, part->slots - 1) &&
            (from == UINT32_MAX || part->regrets < plane->parts[from].regrets)) {
            from = l;
        }
    }
    if (to == UINT32_MAX || from == UINT32_MAX) return;
    uint32_t lost = plane->parts[from].regrets, gained = plane->parts[to].regrets;
    if (gained <= lost + lost / 8 + 2 * REGRET) return;
    /* One will miss less and the other more now: how much, the next regrets tell. */
    plane->parts[from].regrets = plane->parts[to].regrets = lost + (gained - lost) / 2;
    set_slots(d, tier, from, plane->parts[from].slots - 1);
    set_slots(d, tier, to, plane->parts[to].slots + 1);
    tier_decide_trim(d, tier, &plane->parts[from]);
    d->over |= plane->parts[from].used > plane->parts[from].slots;
}

void tier_decide_adapt(struct tier_decide *d, uint32_t width)
{
    if (width > d->widths[0]) d->widths[0] = width;
    if (++d->decode_acquires % ((uint64_t)ACQUIRES_A_MOVE * d->layers) != 0) return;
    for (uint32_t t = 0; t < d->tier_count; t++) {
        struct tier_plane *plane = &d->planes[t];
        MUST(!plane->global && plane->left_at);
        move_slot(d, t);
        for (uint32_t l = 0; l < d->layers; l++) {
            struct part *part = &plane->parts[l];
            part->regrets -= part->regrets >> FADE_SHIFT;
        }
    }
    d->widths[1] = d->widths[0];
    d->widths[0] = 0;
}
