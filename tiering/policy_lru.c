/* Least recently used: the yardstick for every other policy. lru has one list a layer, lru_global
 * one list over all layers.
 *
 * What is held was used lately, so the walk from the old end past held experts is short.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/recency.h"

struct lru {
    struct tier_policy base;
    struct tier_recency recency;
};

static struct lru *lru_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_lru_ops || policy->ops == &tier_policy_lru_global_ops);
    return (struct lru *)policy;
}

static int lru_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    struct lru *lru = malloc(sizeof *lru);
    if (!lru) return -ENOMEM;
    int rc = tier_recency_init(&lru->recency, options->expert_count);
    if (rc < 0) {
        free(lru);
        return rc;
    }
    *out = &lru->base;
    return 0;
}

static void lru_destroy(struct tier_policy *policy)
{
    tier_recency_fini(&lru_of(policy)->recency);
    free(policy);
}

static void lru_ahead(const struct tier_policy *policy, uint32_t expert)
{
    __builtin_prefetch(&((const struct lru *)policy)->recency.at[expert], 1);
}

static void lru_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct lru *lru = lru_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        DMUST(tier_recency_has(&lru->recency, experts[i]));
        tier_recency_touch(&lru->recency, experts[i]);
    }
}

static void lru_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct lru *lru = lru_of(policy);
    DMUST(!tier_recency_has(&lru->recency, expert));
    (void)used;                 /* what was fetched ahead starts as new, too */
    tier_recency_push(&lru->recency, expert);
}

static void lru_remove(struct tier_policy *policy, uint32_t expert)
{
    struct lru *lru = lru_of(policy);
    DMUST(tier_recency_has(&lru->recency, expert));
    tier_recency_remove(&lru->recency, expert);
}

static uint32_t lru_victim(struct tier_policy *policy)
{
    return tier_recency_oldest(&lru_of(policy)->recency, policy->held);
}

const struct tier_policy_ops tier_policy_lru_ops = {
    .name = "lru",
    .create = lru_create,
    .destroy = lru_destroy,
    .ahead = lru_ahead,
    .touch = lru_touch,
    .insert = lru_insert,
    .remove = lru_remove,
    .victim = lru_victim,
};

const struct tier_policy_ops tier_policy_lru_global_ops = {
    .name = "lru_global",
    .global = true,
    .create = lru_create,
    .destroy = lru_destroy,
    .ahead = lru_ahead,
    .touch = lru_touch,
    .insert = lru_insert,
    .remove = lru_remove,
    .victim = lru_victim,
};
