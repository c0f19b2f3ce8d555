/* Belady's rule: what is needed furthest in the future leaves. The bound for demand-only policies
 * with the same slots and partition; replay only, because it asks for the future.
 *
 * A heap ordered by how far the next use is from the end of time, so that its top is the furthest;
 * experts never used again rank at 0. O(log slots) a use.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/heap.h"

struct belady {
    struct tier_policy base;
    struct tier_heap heap;
    uint64_t (*next_use)(void *context, uint32_t layer, uint32_t expert, uint64_t now);
    void *next_use_context;
    uint32_t layer_first, layer_experts;
    uint64_t now;
};

static struct belady *belady_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_belady_ops || policy->ops == &tier_policy_belady_global_ops);
    return (struct belady *)policy;
}

static void belady_destroy(struct tier_policy *policy)
{
    struct belady *b = (struct belady *)policy;
    tier_heap_fini(&b->heap);
    free(b);
}

static int belady_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    if (!options->next_use) return -EINVAL;
    struct belady *b = calloc(1, sizeof *b);
    if (!b) return -ENOMEM;
    b->next_use = options->next_use;
    b->next_use_context = options->next_use_context;
    b->layer_first = options->layer_first;
    b->layer_experts = options->layer_experts;
    if (tier_heap_init(&b->heap, options->expert_count, NULL) < 0) {
        belady_destroy(&b->base);
        return -ENOMEM;
    }
    *out = &b->base;
    return 0;
}

static uint64_t rank_of(struct belady *b, uint32_t expert)
{
    uint64_t next = b->next_use(b->next_use_context, b->layer_first + expert / b->layer_experts,
                                expert % b->layer_experts, b->now);
    DMUST(next > b->now);
    return next == UINT64_MAX ? 0 : INT64_MAX - next;
}

static void belady_begin(struct tier_policy *policy, uint64_t now)
{
    belady_of(policy)->now = now;
}

static void belady_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct belady *b = belady_of(policy);
    for (uint32_t i = 0; i < n; i++) tier_heap_set(&b->heap, experts[i], rank_of(b, experts[i]));
}

static void belady_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct belady *b = belady_of(policy);
    (void)used;
    tier_heap_add(&b->heap, expert, rank_of(b, expert));
}

static void belady_remove(struct tier_policy *policy, uint32_t expert)
{
    tier_heap_remove(&belady_of(policy)->heap, expert);
}

static uint32_t belady_victim(struct tier_policy *policy)
{
    return tier_heap_pick(&belady_of(policy)->heap, policy->held);
}

const struct tier_policy_ops tier_policy_belady_ops = {
    .name = "belady",
    .replay_only = true,
    .create = belady_create,
    .destroy = belady_destroy,
    .begin = belady_begin,
    .touch = belady_touch,
    .insert = belady_insert,
    .remove = belady_remove,
    .victim = belady_victim,
};

const struct tier_policy_ops tier_policy_belady_global_ops = {
    .name = "belady_global",
    .global = true,
    .replay_only = true,
    .create = belady_create,
    .destroy = belady_destroy,
    .begin = belady_begin,
    .touch = belady_touch,
    .insert = belady_insert,
    .remove = belady_remove,
    .victim = belady_victim,
};
