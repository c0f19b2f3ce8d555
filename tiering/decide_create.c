#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "tiering/decide_priv.h"

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
    if (c->warm_compute && c->tier_count < 2) {
        return base_err_set(err, BASE_ECONFIG, "warm experts cannot be computed in place with one "
                            "resident tier: all are where they run");
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
        if (from->quotas && !d->config.adaptive) share = from->quotas[l];
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
        return base_err_set(err, BASE_EBUDGET, "%s has %" PRIu32 " slots for moe layer %" PRIu32
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
                            "moe layer %" PRIu32 " has %" PRIu32 " slots in dram and up to %" PRIu64
                            " in hbm", l, lower->quotas[l], above);
    }
    return 0;
}

double tier_decide_half_life(const struct tier_decide *d, const struct tier_plane *plane)
{
    double tokens = d->config.half_life_tokens;
    return tokens > 0 ? tokens * (plane->global ? d->layers : 1) : INFINITY;
}

uint32_t tier_decide_prefill_slots(const struct tier_decide *d, uint32_t slots)
{
    uint32_t own = (uint32_t)(d->config.prefill_share * slots);
    return own > 0 ? own : 1;
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
    part->roof = part->slots;
    part->prefill_slots = tier_decide_prefill_slots(d, part->slots);
    part->key_first = plane->global ? 0 : p * d->experts;
    part->layer = plane->global ? 0 : p;
    part->head = d->keys + p;
    plane->links[part->head] = (struct link){ part->head, part->head };
    struct tier_policy_options options = {
        .expert_count = experts,
        .slots = part->slots,
        .half_life = tier_decide_half_life(d, plane),
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

static int no_memory(const struct tier_decide *d, struct base_err *err)
{
    return base_err_set(err, -ENOMEM, "no memory for the tables of %" PRIu32 " experts", d->keys);
}

int tier_decide_plane_check(struct tier_decide *d, uint32_t tier, struct base_err *err)
{
    const struct tier_policy_ops *ops = tier_policy_find(d->config.tiers[tier].policy);
    if (!ops) {
        return base_err_set(err, BASE_ECONFIG, "no policy is called \"%s\"",
                            d->config.tiers[tier].policy);
    }
    if (d->config.adaptive && ops->global) {
        return base_err_set(err, BASE_ECONFIG, "%s: adaptive quotas have no effect with policy %s, "
                            "which has no layers", tier_name(&d->config, tier), ops->name);
    }
    d->planes[tier].global = ops->global;
    int rc = quotas_fill(d, tier, err);
    return rc == 0 ? budget_check(d, tier, err) : rc;
}

int tier_decide_check(const struct tier_decide *d, struct base_err *err)
{
    int rc = config_check(&d->config, err);
    bool inclusive = d->tier_count == 2 && d->config.inclusive;
    return rc == 0 && inclusive ? inclusive_check(d, err) : rc;
}

int tier_decide_plane_fill(struct tier_decide *d, uint32_t tier, struct base_err *err)
{
    struct tier_plane *plane = &d->planes[tier];
    const struct tier_policy_ops *ops = tier_policy_find(d->config.tiers[tier].policy);
    plane->part_count = plane->global ? 1 : d->layers;
    plane->parts = calloc(plane->part_count, sizeof *plane->parts);
    plane->links = calloc((size_t)d->keys + plane->part_count, sizeof *plane->links);
    if (!plane->parts || !plane->links) return no_memory(d, err);
    int rc = 0;
    for (uint32_t p = 0; rc == 0 && p < plane->part_count; p++) {
        rc = part_create(d, tier, p, ops, err);
    }
    return rc;
}

void tier_decide_plane_empty(struct tier_plane *plane)
{
    for (uint32_t p = 0; plane->parts && p < plane->part_count; p++) {
        tier_policy_destroy(plane->parts[p].policy);
    }
    free(plane->parts);
    free(plane->links);
    plane->parts = NULL;
    plane->links = NULL;
}

static int plane_create(struct tier_decide *d, uint32_t tier, struct base_err *err)
{
    struct tier_plane *plane = &d->planes[tier];
    plane->held = calloc(d->keys, sizeof *plane->held);
    if (tier == 0) d->entries = plane->held;
    plane->quotas = calloc(d->layers, sizeof *plane->quotas);
    plane->layers = calloc(d->layers, sizeof *plane->layers);
    plane->left_at = d->config.adaptive ? calloc(d->keys, sizeof *plane->left_at) : NULL;
    if (!plane->held || !plane->quotas || !plane->layers ||
        (d->config.adaptive && !plane->left_at)) {
        return no_memory(d, err);
    }
    int rc = tier_decide_plane_check(d, tier, err);
    return rc == 0 ? tier_decide_plane_fill(d, tier, err) : rc;
}

int tier_decide_create(struct tier_decide **out, const struct tier_decide_config *config,
                       struct base_err *err)
{
    *out = NULL;
    int rc = config_check(config, err);
    if (rc < 0) return rc;
    struct tier_decide *d = calloc(1, sizeof *d);
    if (!d) return base_err_set(err, -ENOMEM, "no memory for the decision core");
    d->magic = TIER_DECIDE_MAGIC;
    d->config = *config;
    d->layers = config->layers;
    d->experts = config->experts;
    d->keys = config->layers * config->experts;
    d->tier_count = config->tier_count;
    d->exclusive = config->tier_count == 2 && !config->inclusive;
    /* Above the most moves that one admission causes, times ids. */
    d->action_max = 8 * (config->experts + 1);
    d->riser = TIER_NO_RISER;
    d->warm_uses = config->warm_compute ? calloc(d->keys, sizeof *d->warm_uses) : NULL;
    d->offers = calloc(d->keys, sizeof *d->offers);
    d->layer_acquires = calloc(d->layers, sizeof *d->layer_acquires);
    d->actions = calloc(d->action_max, sizeof *d->actions);
    d->hits = calloc(d->experts, sizeof *d->hits);
    d->missed = calloc(d->experts, sizeof *d->missed);
    d->found = calloc(d->experts, sizeof *d->found);
    d->marks = calloc(d->experts / 64 + 1, sizeof *d->marks);
    d->apply_quotas = calloc(TIER_RESIDENT_TIERS_MAX * d->layers, sizeof *d->apply_quotas);
    if (!d->offers || !d->layer_acquires || !d->actions || !d->hits || !d->missed || !d->found ||
        !d->marks || !d->apply_quotas || (config->warm_compute && !d->warm_uses)) {
        rc = no_memory(d, err);
        goto fail;
    }
    for (uint32_t t = 0; t < d->tier_count; t++) {
        rc = plane_create(d, t, err);
        if (rc < 0) goto fail;
    }
    rc = tier_decide_check(d, err);
    if (rc < 0) goto fail;
    *out = d;
    return 0;
fail:
    tier_decide_destroy(d);
    return rc;
}

void tier_decide_destroy(struct tier_decide *d)
{
    if (!d) return;
    MUST(d->magic == TIER_DECIDE_MAGIC);
    for (uint32_t t = 0; t < d->tier_count; t++) {
        struct tier_plane *plane = &d->planes[t];
        tier_decide_plane_empty(plane);
        free(plane->held);
        free(plane->left_at);
        free(plane->quotas);
        free(plane->layers);
    }
    free(d->warm_uses);
    free(d->offers);
    free(d->layer_acquires);
    free(d->actions);
    free(d->hits);
    free(d->missed);
    free(d->found);
    free(d->marks);
    free(d->apply_quotas);
    d->magic = 0;
    free(d);
}
