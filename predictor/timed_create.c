#include <errno.h>
#include <stdlib.h>

#include "predictor/timed_priv.h"
#include "tiering/policy.h"

/* Slots beside those that policies work with, as tiering.c has them. */
static void slots_count(struct pred_timed *t)
{
    const struct tier_decide_config *d = &t->config.decide;
    uint64_t spare = t->tiers == 2 ? 2 * (uint64_t)d->top_k : 0;
    if (d->prefetch) {
        spare += t->prefetch_open_max < 4 ? t->prefetch_open_max : 4;
    }
    uint64_t dram = d->tiers[t->tiers - 1].slots;
    bool all = dram == t->keys && t->tiers == 1;
    t->dram_free = (uint32_t)(dram + (all ? 0 : spare));
    if (t->tiers == 2) {
        t->hbm_free = (uint32_t)(d->tiers[0].slots + (d->inclusive ? 0 : d->top_k));
    }
}

static int list_create(struct list *list, uint32_t keys)
{
    list->head = list->tail = NO_KEY;
    list->nodes = calloc(keys, sizeof *list->nodes);
    return list->nodes ? 0 : -ENOMEM;
}

static int link_create(struct link *link, uint32_t size)
{
    link->size = size;
    link->ring = calloc(size, sizeof *link->ring);
    return link->ring ? 0 : -ENOMEM;
}

static int tables_create(struct pred_timed *t)
{
    uint32_t depth = (uint32_t)t->machine->nvme_depth;
    t->flags = calloc(t->keys, sizeof *t->flags);
    t->dram = calloc(t->keys, sizeof *t->dram);
    t->hbm = calloc(t->keys, sizeof *t->hbm);
    t->hinted = calloc(t->layers, sizeof *t->hinted);
    t->found = calloc(t->experts, sizeof *t->found);
    t->layer_stats = calloc(t->layers, sizeof *t->layer_stats);
    t->top = t->tiers == 2 ? t->hbm : t->dram;
    int rc = list_create(&t->demand, t->keys);
    t->prefetch = t->demand;
    if (rc == 0) rc = list_create(&t->dram_line, t->keys);
    if (rc == 0) rc = list_create(&t->hbm_line, t->keys);
    if (rc == 0) rc = link_create(&t->reads, depth);
    if (rc == 0) rc = link_create(&t->up, t->keys);
    if (rc == 0) rc = link_create(&t->down, t->keys);
    if (!t->flags || !t->dram || !t->hbm || !t->hinted || !t->found || !t->layer_stats)
        rc = -ENOMEM;
    return rc;
}

/* Both tiers hold what fits: the first experts of each layer above, the others below. */
static void fill(struct pred_timed *t)
{
    for (uint32_t tier = 0; tier < t->tiers; tier++) {
        for (uint32_t l = 0; l < t->layers; l++) {
            for (uint32_t e = 0; e < t->experts; e++) {
                const struct tier_action *actions;
                tier_decide_restore(t->decide, tier, l, &e, NULL, 1);
                uint32_t n = tier_decide_actions(t->decide, &actions);
                for (uint32_t i = 0; i < n; i++) {
                    uint32_t key = l * t->experts + actions[i].expert;
                    bool hbm = t->tiers == 2 && actions[i].tier == 0;
                    t->flags[key] |= hbm ? WANT_HBM : WANT_DRAM;
                    (hbm ? t->hbm : t->dram)[key].state = SEAT_READY;
                    (*(hbm ? &t->hbm_free : &t->dram_free))--;
                }
            }
        }
    }
}

int pred_timed_create(struct pred_timed **out, const struct pred_timed_config *config,
                      struct base_err *err)
{
    *out = NULL;
    struct pred_timed *t = calloc(1, sizeof *t);
    if (!t) return base_err_set(err, -ENOMEM, "no memory for a cache in time");
    t->config = *config;
    t->machine = config->machine;
    t->tiers = config->decide.tier_count;
    t->layers = config->decide.layers;
    t->experts = config->decide.experts;
    t->keys = t->layers * t->experts;
    uint64_t most = 1;
    for (uint32_t l = 0; l < t->layers; l++) {
        if (config->read_bytes[l] > most) most = config->read_bytes[l];
    }
    t->prefetch_open_max = (uint32_t)(config->prefetch_inflight / most);
    if (t->prefetch_open_max < 1) t->prefetch_open_max = 1;
    int rc = tier_decide_create(&t->decide, &config->decide, err);
    if (rc < 0) goto fail;
    rc = tables_create(t);
    if (rc < 0) {
        base_err_set(err, rc, "no memory for a cache in time of %u experts", t->keys);
        goto fail;
    }
    t->config.governor.read_bytes = most;
    t->config.governor.inflight_bytes = config->prefetch_inflight;
    t->config.governor.displaced = tier_policy_displaced(config->decide.tiers[0].policy,
                                                         config->decide.top_k, t->experts);
    if (config->decide.prefetch) {
        tier_governor_init(&t->governor, &t->config.governor);
        t->copy_pace = t->governor;
        t->copy_pace.options.even = true;
    }
    slots_count(t);
    if (config->start_full) fill(t);
    *out = t;
    return 0;
fail:
    pred_timed_destroy(t);
    return rc;
}

void pred_timed_destroy(struct pred_timed *t)
{
    if (!t) return;
    tier_decide_destroy(t->decide);
    free(t->flags);
    free(t->dram);
    free(t->hbm);
    free(t->hinted);
    free(t->found);
    free(t->layer_stats);
    free(t->demand.nodes);
    free(t->dram_line.nodes);
    free(t->hbm_line.nodes);
    free(t->reads.ring);
    free(t->up.ring);
    free(t->down.ring);
    free(t);
}
