#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "tiering/decide_priv.h"

/* One tier on its way to its new shape. */
struct shift {
    bool rebuild;    /* a policy of another kind */
    uint32_t *order; /* [residents] weakest first, partition by partition */
    uint32_t *first; /* [old partitions + 1] */
};

/* -- residents taken over --------------------------------------------------------------------- */

/* The old policies' residents in the order in which they would have let go of them; the leased
 * ones, whom they would not, come last. Consumes the old policies. */
static void order_residents(struct tier_decide *d, uint32_t tier, struct shift *shift)
{
    struct tier_plane *plane = &d->planes[tier];
    uint32_t count = 0;
    for (uint32_t p = 0; p < plane->part_count; p++) {
        struct part *part = &plane->parts[p];
        uint32_t expert, experts = plane->global ? d->keys : d->experts;
        shift->first[p] = count;
        while ((expert = part->ops->victim(part->policy)) != TIER_NO_EXPERT) {
            part->ops->remove(part->policy, expert);
            shift->order[count++] = part->key_first + expert;
        }
        for (uint32_t e = 0; e < experts; e++) {
            uint32_t key = part->key_first + e;
            bool held = plane->held[key].count > 0;
            if (held && d->entries[key].state & IN_0 << tier) shift->order[count++] = key;
        }
        MUST(count - shift->first[p] == part->used);
    }
    shift->first[plane->part_count] = count;
}

static void take_in(struct part *part, uint32_t key)
{
    part->ops->insert(part->policy, key - part->key_first, false);
    part->used++;
}

/* Rank by rank from the weakest on, the strongest of all layers side by side. */
static void take_merged(struct tier_plane *to, const struct shift *shift, uint32_t layers)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < layers; l++) {
        uint32_t count = shift->first[l + 1] - shift->first[l];
        if (count > most) most = count;
    }
    for (uint32_t rank = most; rank > 0; rank--) {
        for (uint32_t l = 0; l < layers; l++) {
            uint32_t count = shift->first[l + 1] - shift->first[l];
            if (count >= rank) take_in(&to->parts[0], shift->order[shift->first[l + 1] - rank]);
        }
    }
}

/* Prefill's own stay its own, the oldest first. */
static void take_own(const struct tier_decide *d, const struct tier_plane *from,
                     struct tier_plane *to)
{
    for (uint32_t p = 0; p < from->part_count; p++) {
        uint32_t head = from->parts[p].head;
        for (uint32_t key = from->links[head].next; key != head; key = from->links[key].next) {
            tier_own_link(to, &to->parts[to->global ? 0 : key / d->experts], key);
        }
    }
}

static void take_over(struct tier_decide *d, uint32_t tier, struct tier_plane *to,
                      struct shift *shift)
{
    struct tier_plane *from = &d->planes[tier];
    order_residents(d, tier, shift);
    for (uint32_t p = 0; p < to->part_count; p++) {
        struct part *part = &to->parts[p];
        if (part->ops->begin) part->ops->begin(part->policy, d->acquires);
    }
    if (to->global && !from->global) {
        take_merged(to, shift, d->layers);
    } else {
        for (uint32_t i = 0; i < shift->first[from->part_count]; i++) {
            uint32_t key = shift->order[i];
            take_in(&to->parts[to->global ? 0 : key / d->experts], key);
        }
    }
    take_own(d, from, to);
    for (uint32_t p = 0; p < to->part_count; p++) {
        struct part *part = &to->parts[p];
        part->used_max = part->used;
        if (part->used > part->roof) part->roof = part->used;
    }
    for (uint32_t key = 0; key < d->keys; key++) {
        if (d->planes[0].held[key].count == 0 || d->entries[key].state & GONE) continue;
        if (tier_decide_is_warm(d, d->entries[key].state) != (tier == 1)) continue;
        struct part *part = &to->parts[to->global ? 0 : key / d->experts];
        part->pinned++;
        if (tier == 0 && d->entries[key].state & OWN_0) part->own_pinned++;
    }
    tier_decide_plane_empty(from);
    from->parts = to->parts;
    from->links = to->links;
    from->part_count = to->part_count;
    from->global = to->global;
}

/* -- the change ------------------------------------------------------------------------------- */

/* The same kind of policy goes on in partitions of another size. */
static void retune(struct tier_decide *d, uint32_t tier)
{
    struct tier_plane *plane = &d->planes[tier];
    for (uint32_t p = 0; p < plane->part_count; p++) {
        struct part *part = &plane->parts[p];
        uint32_t experts = plane->global ? d->keys : d->experts;
        uint64_t slots = plane->global ? d->config.tiers[tier].slots : plane->quotas[p];
        part->slots = (uint32_t)(slots < experts ? slots : experts);
        part->roof = part->used > part->slots ? part->used : part->slots;
        if (part->used_max > part->slots) part->used_max = part->slots;
        part->prefill_slots = tier_decide_prefill_slots(d, part->slots);
        if (part->ops->retune) {
            part->ops->retune(part->policy, part->slots, tier_decide_half_life(d, plane));
        }
    }
}

static void trim_tier(struct tier_decide *d, uint32_t tier)
{
    struct tier_plane *plane = &d->planes[tier];
    for (uint32_t p = 0; p < plane->part_count; p++)
        tier_decide_trim(d, tier, &plane->parts[p]);
}

/* Exclusive: what leaves above looks for a place below, which must have its new size by then.
 * Inclusive: below nothing can leave that is still above. */
static void trim(struct tier_decide *d)
{
    for (uint32_t t = 0; t < d->tier_count; t++) {
        enum tier_cell cell = d->phase == TIER_PREFILL ? TIER_CELL_PREFILL : TIER_CELL_DECODE;
        d->cell[t] = &d->planes[t].cells[cell];
    }
    if (d->exclusive) trim_tier(d, 1);
    tier_decide_note_over(d);   /* leases may keep tier 1 beyond its slots: what comes down asks */
    trim_tier(d, 0);
    if (d->tier_count == 2) trim_tier(d, 1);
    tier_decide_note_over(d);
}

static bool same_shape(const struct tier_decide *d, const struct tier_decide *trial)
{
    if (d->config.adaptive != trial->config.adaptive) return false;
    for (uint32_t t = 0; t < d->tier_count; t++) {
        const struct tier_decide_tier *a = &d->config.tiers[t], *b = &trial->config.tiers[t];
        if (a->slots != b->slots || strcmp(a->policy, b->policy) != 0) return false;
    }
    return true;
}

/* Makes all that the change needs, beside the core: `trial` is a copy of it with planes of its own
 * where policies change. */
static int prepare(struct tier_decide *d, struct tier_decide *trial, struct shift *shifts,
                   struct base_err *err)
{
    int rc = 0;
    for (uint32_t t = 0; rc == 0 && t < d->tier_count; t++) {
        struct tier_plane *plane = &trial->planes[t];
        shifts[t].rebuild = strcmp(d->config.tiers[t].policy, trial->config.tiers[t].policy) != 0;
        plane->quotas = calloc(d->layers, sizeof *plane->quotas);
        if (d->config.adaptive != trial->config.adaptive) plane->left_at = NULL;
        if (trial->config.adaptive && !plane->left_at) {
            plane->left_at = calloc(d->keys, sizeof *plane->left_at);
        }
        if (!plane->quotas || (trial->config.adaptive && !plane->left_at)) rc = -ENOMEM;
        if (rc == 0) rc = tier_decide_plane_check(trial, t, err);
        if (rc < 0 || !shifts[t].rebuild) continue;
        shifts[t].order = calloc(plane->resident + 1, sizeof *shifts[t].order);
        shifts[t].first = calloc((size_t)d->planes[t].part_count + 1, sizeof *shifts[t].first);
        if (!shifts[t].order || !shifts[t].first) rc = -ENOMEM;
        if (rc == 0) rc = tier_decide_plane_fill(trial, t, err);
    }
    if (rc == 0) rc = tier_decide_check(trial, err);
    uint32_t moves = 4 * d->keys;
    if (rc == 0 && d->action_max < moves) {
        struct tier_action *actions = realloc(d->actions, moves * sizeof *actions);
        if (actions) {
            d->actions = actions;
            d->action_max = moves;
        } else {
            rc = -ENOMEM;
        }
    }
    if (rc == -ENOMEM) base_err_set(err, rc, "no memory for the tables of the new settings");
    return rc;
}

static void discard(const struct tier_decide *d, struct tier_decide *trial,
                    const struct shift *shifts)
{
    for (uint32_t t = 0; t < d->tier_count; t++) {
        struct tier_plane *plane = &trial->planes[t];
        if (plane->quotas != d->planes[t].quotas) free(plane->quotas);
        if (plane->left_at != d->planes[t].left_at) free(plane->left_at);
        if (shifts[t].rebuild && plane->parts != d->planes[t].parts) tier_decide_plane_empty(plane);
    }
}

static void commit(struct tier_decide *d, struct tier_decide *trial, struct shift *shifts)
{
    bool keep_quotas = d->config.adaptive && same_shape(d, trial);
    d->config.half_life_tokens = trial->config.half_life_tokens;
    d->config.prefill_share = trial->config.prefill_share;
    d->config.prefetch = trial->config.prefetch;
    d->config.adaptive = trial->config.adaptive;
    for (uint32_t t = 0; t < d->tier_count; t++) {
        struct tier_plane *plane = &d->planes[t], *to = &trial->planes[t];
        if (!keep_quotas) memcpy(plane->quotas, to->quotas, d->layers * sizeof *plane->quotas);
        free(to->quotas);
        if (plane->left_at != to->left_at) free(plane->left_at);
        plane->left_at = to->left_at;
        d->config.tiers[t] = trial->config.tiers[t];
        d->config.tiers[t].quotas = plane->quotas;
        if (!shifts[t].rebuild) {
            retune(d, t);
            continue;
        }
        take_over(d, t, to, &shifts[t]);
        if (plane->left_at) memset(plane->left_at, 0, d->keys * sizeof *plane->left_at);
    }
    d->action_count = 0;
    trim(d);
}

int tier_decide_reconfigure(struct tier_decide *d, const struct tier_decide_change *change,
                            struct base_err *err)
{
    MUST(d->magic == TIER_DECIDE_MAGIC);
    struct tier_decide trial = *d;
    struct shift shifts[TIER_RESIDENT_TIERS_MAX] = { 0 };
    trial.config.adaptive = change->adaptive;
    trial.config.prefetch = change->prefetch;
    trial.config.half_life_tokens = change->half_life_tokens;
    trial.config.prefill_share = change->prefill_share;
    for (uint32_t t = 0; t < d->tier_count; t++)
        trial.config.tiers[t] = change->tiers[t];
    for (uint32_t t = 0; t < d->tier_count; t++) {
        if (strcmp(d->config.tiers[t].policy, trial.config.tiers[t].policy) == 0) continue;
        trial.planes[t].parts = NULL;
        trial.planes[t].links = NULL;
    }
    int rc = prepare(d, &trial, shifts, err);
    if (rc == 0) {
        commit(d, &trial, shifts);
    } else {
        discard(d, &trial, shifts);
    }
    for (uint32_t t = 0; t < d->tier_count; t++) {
        free(shifts[t].order);
        free(shifts[t].first);
    }
    return rc;
}
