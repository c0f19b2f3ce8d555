#include "tiering/policy.h"

#include <errno.h>
#include <string.h>

static const struct tier_policy_ops *const registry[] = {
    &tier_policy_lru_ops,
    &tier_policy_lru_global_ops,
    &tier_policy_lfu_ops,
    &tier_policy_lru_with_frequency_ops,
    &tier_policy_lru_with_prediction_ops,
    &tier_policy_slru_ops,
    &tier_policy_s3fifo_ops,
    &tier_policy_sieve_ops,
    &tier_policy_arc_ops,
    &tier_policy_pinned_ops,
    &tier_policy_belady_ops,
    &tier_policy_belady_global_ops,
};

enum { REGISTRY_COUNT = sizeof registry / sizeof registry[0] };

const struct tier_policy_ops *tier_policy_find(const char *name)
{
    for (size_t i = 0; i < REGISTRY_COUNT; i++) {
        if (strcmp(registry[i]->name, name) == 0) return registry[i];
    }
    return NULL;
}

double tier_policy_displaced(const char *name, uint32_t top_k, uint32_t experts)
{
    const struct tier_policy_ops *ops = tier_policy_find(name);
    return ops && ops->worth ? 0 : (double)top_k / experts;
}

const char *tier_policy_name(size_t index)
{
    return index < REGISTRY_COUNT ? registry[index]->name : NULL;
}

int tier_policy_create(struct tier_policy **out, const struct tier_policy_ops *ops,
                       const struct tier_policy_options *options)
{
    *out = NULL;
    if (options->expert_count == 0 || options->expert_count == TIER_NO_EXPERT) return -EINVAL;
    if (options->slots == 0 || options->layer_experts == 0 || !options->held) return -EINVAL;
    if (!(options->half_life > 0)) return -EINVAL;
    int rc = ops->create(out, options);
    if (rc < 0) return rc;
    (*out)->ops = ops;
    (*out)->held = options->held;
    return 0;
}

void tier_policy_destroy(struct tier_policy *policy)
{
    if (policy) policy->ops->destroy(policy);
}
