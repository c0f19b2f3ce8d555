/* A fixed set: what was made resident before the first acquire (a restored warm set; what another
 * policy leaves behind, where this one takes over) stays, and the rest of the slots works by
 * recency. The yardstick for every claim that a hot list learned elsewhere is enough. A pinned
 * expert leaves only when all others are held.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/ring.h"

struct pinned {
    struct tier_policy base;
    uint32_t moving, fixed;             /* heads */
    uint32_t fixed_count;
    bool began;
    uint8_t *is_fixed;
    struct tier_ring ring[];            /* experts, then the two heads */
};

static struct pinned *pinned_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_pinned_ops);
    return (struct pinned *)policy;
}

static void pinned_destroy(struct tier_policy *policy)
{
    struct pinned *p = (struct pinned *)policy;
    free(p->is_fixed);
    free(p);
}

static int pinned_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    uint32_t experts = options->expert_count;
    struct pinned *p = calloc(1, sizeof *p + ((size_t)experts + 2) * sizeof p->ring[0]);
    if (!p) return -ENOMEM;
    p->is_fixed = calloc(experts, 1);
    if (!p->is_fixed) {
        pinned_destroy(&p->base);
        return -ENOMEM;
    }
    p->moving = experts;
    p->fixed = experts + 1;
    tier_ring_init(p->ring, experts, 2);
    *out = &p->base;
    return 0;
}

static void pinned_begin(struct tier_policy *policy, uint64_t now)
{
    (void)now;
    pinned_of(policy)->began = true;
}

static void pinned_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct pinned *p = pinned_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t expert = experts[i];
        DMUST(tier_ring_queued(p->ring, expert));
        tier_ring_front(p->ring, p->is_fixed[expert] ? p->fixed : p->moving, expert);
    }
}

static void pinned_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct pinned *p = pinned_of(policy);
    DMUST(!tier_ring_queued(p->ring, expert));
    p->is_fixed[expert] = !p->began && !used;
    p->fixed_count += p->is_fixed[expert];
    tier_ring_push(p->ring, p->is_fixed[expert] ? p->fixed : p->moving, expert);
}

static void pinned_remove(struct tier_policy *policy, uint32_t expert)
{
    struct pinned *p = pinned_of(policy);
    DMUST(tier_ring_queued(p->ring, expert));
    tier_ring_unlink(p->ring, expert);
    p->fixed_count -= p->is_fixed[expert];
    p->is_fixed[expert] = 0;
}

static uint32_t pinned_fixed(const struct tier_policy *policy)
{
    return ((const struct pinned *)policy)->fixed_count;
}

static uint32_t pinned_victim(struct tier_policy *policy)
{
    const struct pinned *p = pinned_of(policy);
    uint32_t victim = tier_ring_oldest(p->ring, p->moving, policy->held);
    if (victim != TIER_NO_EXPERT) return victim;
    return tier_ring_oldest(p->ring, p->fixed, policy->held);
}

const struct tier_policy_ops tier_policy_pinned_ops = {
    .name = "pinned",
    .create = pinned_create,
    .destroy = pinned_destroy,
    .begin = pinned_begin,
    .touch = pinned_touch,
    .insert = pinned_insert,
    .remove = pinned_remove,
    .victim = pinned_victim,
    .fixed = pinned_fixed,
};
