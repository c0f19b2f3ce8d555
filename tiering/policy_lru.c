/* Least recently used: the yardstick for every other policy. lru has one list a layer, lru_global
 * one list over all layers.
 *
 * A circular list threaded through an array; entry `expert_count` is its head, so that no
 * operation has a special case for an empty list or for the ends:
 *
 *      head.next = most recently used   ...   head.prev = least recently used
 *
 * What is held was used lately, so the walk from the old end past held experts is short.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"

struct link {
    uint32_t prev;
    uint32_t next;              /* TIER_NO_EXPERT while absent */
};

struct lru {
    struct tier_policy base;
    uint32_t head;
    struct link links[];        /* expert_count + 1 */
};

static struct lru *lru_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_lru_ops || policy->ops == &tier_policy_lru_global_ops);
    return (struct lru *)policy;
}

static bool is_resident(const struct lru *lru, uint32_t expert)
{
    return lru->links[expert].next != TIER_NO_EXPERT;
}

static void unlink_expert(struct lru *lru, uint32_t expert)
{
    struct link l = lru->links[expert];
    lru->links[l.prev].next = l.next;
    lru->links[l.next].prev = l.prev;
}

static void link_first(struct lru *lru, uint32_t expert)
{
    uint32_t first = lru->links[lru->head].next;
    lru->links[expert] = (struct link){ .prev = lru->head, .next = first };
    lru->links[first].prev = expert;
    lru->links[lru->head].next = expert;
}

static int create(struct tier_policy **out, const struct tier_policy_options *options,
                  const struct tier_policy_ops *ops)
{
    size_t link_count = (size_t)options->expert_count + 1;
    struct lru *lru = malloc(sizeof *lru + link_count * sizeof lru->links[0]);
    if (!lru) return -ENOMEM;
    lru->base.ops = ops;
    lru->head = options->expert_count;
    for (uint32_t e = 0; e < lru->head; e++) lru->links[e].next = TIER_NO_EXPERT;
    lru->links[lru->head] = (struct link){ .prev = lru->head, .next = lru->head };
    *out = &lru->base;
    return 0;
}

static int lru_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    return create(out, options, &tier_policy_lru_ops);
}

static int lru_global_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    return create(out, options, &tier_policy_lru_global_ops);
}

static void lru_destroy(struct tier_policy *policy)
{
    free(lru_of(policy));
}

static void lru_begin(struct tier_policy *policy, uint64_t now)
{
    (void)policy, (void)now;    /* order alone matters here */
}

static void lru_touch(struct tier_policy *policy, uint32_t expert)
{
    struct lru *lru = lru_of(policy);
    DMUST(expert < lru->head && is_resident(lru, expert));
    unlink_expert(lru, expert);
    link_first(lru, expert);
}

static void lru_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct lru *lru = lru_of(policy);
    DMUST(expert < lru->head && !is_resident(lru, expert));
    (void)used;
    link_first(lru, expert);
}

static void lru_remove(struct tier_policy *policy, uint32_t expert)
{
    struct lru *lru = lru_of(policy);
    DMUST(expert < lru->head && is_resident(lru, expert));
    unlink_expert(lru, expert);
    lru->links[expert].next = TIER_NO_EXPERT;
}

static uint32_t lru_victim(struct tier_policy *policy)
{
    const struct lru *lru = lru_of(policy);
    uint32_t e = lru->links[lru->head].prev;
    while (e != lru->head && policy->held[e]) e = lru->links[e].prev;
    return e == lru->head ? TIER_NO_EXPERT : e;
}

const struct tier_policy_ops tier_policy_lru_ops = {
    .name = "lru",
    .create = lru_create,
    .destroy = lru_destroy,
    .begin = lru_begin,
    .touch = lru_touch,
    .insert = lru_insert,
    .remove = lru_remove,
    .victim = lru_victim,
};

const struct tier_policy_ops tier_policy_lru_global_ops = {
    .name = "lru_global",
    .global = true,
    .create = lru_global_create,
    .destroy = lru_destroy,
    .begin = lru_begin,
    .touch = lru_touch,
    .insert = lru_insert,
    .remove = lru_remove,
    .victim = lru_victim,
};
