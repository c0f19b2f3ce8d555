/* Least recently used: the yardstick for every other policy. lru has one list a layer, lru_global
 * one list over all layers.
 *
 * What is held was used lately, so the walk from the old end past held experts is short.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/ring.h"

struct lru {
    struct tier_policy base;
    uint32_t head;
    struct tier_ring ring[];    /* experts, then the head */
};

static struct lru *lru_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_lru_ops || policy->ops == &tier_policy_lru_global_ops);
    return (struct lru *)policy;
}

static int lru_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    size_t entries = (size_t)options->expert_count + 1;
    struct lru *lru = malloc(sizeof *lru + entries * sizeof lru->ring[0]);
    if (!lru) return -ENOMEM;
    lru->head = options->expert_count;
    tier_ring_init(lru->ring, lru->head, 1);
    *out = &lru->base;
    return 0;
}

static void lru_destroy(struct tier_policy *policy)
{
    free(lru_of(policy));
}

static void lru_ahead(const struct tier_policy *policy, uint32_t expert, bool near)
{
    const struct tier_ring *ring = ((const struct lru *)policy)->ring;
    if (!near) {
        __builtin_prefetch(&ring[expert], 1);
    } else if (tier_ring_queued(ring, expert)) {
        __builtin_prefetch(&ring[ring[expert].prev], 1);
        __builtin_prefetch(&ring[ring[expert].next], 1);
    }
}

static void lru_touch(struct tier_policy *policy, uint32_t expert)
{
    struct lru *lru = lru_of(policy);
    DMUST(expert < lru->head && tier_ring_queued(lru->ring, expert));
    tier_ring_front(lru->ring, lru->head, expert);
}

static void lru_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct lru *lru = lru_of(policy);
    DMUST(expert < lru->head && !tier_ring_queued(lru->ring, expert));
    (void)used;                 /* what was fetched ahead starts as new, too */
    tier_ring_push(lru->ring, lru->head, expert);
}

static void lru_remove(struct tier_policy *policy, uint32_t expert)
{
    struct lru *lru = lru_of(policy);
    DMUST(expert < lru->head && tier_ring_queued(lru->ring, expert));
    tier_ring_unlink(lru->ring, expert);
}

static uint32_t lru_victim(struct tier_policy *policy)
{
    const struct lru *lru = lru_of(policy);
    return tier_ring_oldest(lru->ring, lru->head, policy->held);
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
