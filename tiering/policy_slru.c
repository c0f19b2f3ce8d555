/* Segmented LRU: newcomers are on probation; a second use makes them protected, and protected ones
 * leave only after every one on probation. The protected segment has four fifths of the slots; what
 * overflows it, oldest first, is on probation again.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/ring.h"

struct slru {
    struct tier_policy base;
    uint32_t probation, protected;      /* heads */
    uint32_t protected_count, protected_max;
    uint8_t *safe;                      /* [experts] in the protected segment */
    struct tier_ring ring[];            /* experts, then the two heads */
};

static struct slru *slru_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_slru_ops);
    return (struct slru *)policy;
}

static void slru_destroy(struct tier_policy *policy)
{
    struct slru *s = (struct slru *)policy;
    free(s->safe);
    free(s);
}

static int slru_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    uint32_t experts = options->expert_count;
    struct slru *s = calloc(1, sizeof *s + ((size_t)experts + 2) * sizeof s->ring[0]);
    if (!s) return -ENOMEM;
    s->safe = calloc(experts, 1);
    if (!s->safe) {
        slru_destroy(&s->base);
        return -ENOMEM;
    }
    s->probation = experts;
    s->protected = experts + 1;
    s->protected_max = (uint32_t)((uint64_t)options->slots * 4 / 5);
    tier_ring_init(s->ring, experts, 2);
    *out = &s->base;
    return 0;
}

/* The oldest protected ones beyond the bound are on probation again. */
static void bound_protected(struct slru *s)
{
    while (s->protected_count > s->protected_max) {
        uint32_t oldest = s->ring[s->protected].prev;
        tier_ring_front(s->ring, s->probation, oldest);
        s->safe[oldest] = 0;
        s->protected_count--;
    }
}

static void slru_retune(struct tier_policy *policy, uint32_t slots, double half_life)
{
    struct slru *s = slru_of(policy);
    (void)half_life;
    s->protected_max = (uint32_t)((uint64_t)slots * 4 / 5);
    bound_protected(s);
}

static void use(struct slru *s, uint32_t expert)
{
    DMUST(tier_ring_queued(s->ring, expert));
    if (s->safe[expert] || s->protected_max == 0) {
        tier_ring_front(s->ring, s->safe[expert] ? s->protected : s->probation, expert);
        return;
    }
    tier_ring_front(s->ring, s->protected, expert);
    s->safe[expert] = 1;
    s->protected_count++;
    bound_protected(s);
}

static void slru_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct slru *s = slru_of(policy);
    for (uint32_t i = 0; i < n; i++) use(s, experts[i]);
}

static void slru_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct slru *s = slru_of(policy);
    DMUST(!tier_ring_queued(s->ring, expert));
    (void)used;
    tier_ring_push(s->ring, s->probation, expert);
}

static void slru_remove(struct tier_policy *policy, uint32_t expert)
{
    struct slru *s = slru_of(policy);
    DMUST(tier_ring_queued(s->ring, expert));
    tier_ring_unlink(s->ring, expert);
    s->protected_count -= s->safe[expert];
    s->safe[expert] = 0;
}

static uint32_t slru_victim(struct tier_policy *policy)
{
    const struct slru *s = slru_of(policy);
    uint32_t victim = tier_ring_oldest(s->ring, s->probation, policy->held);
    if (victim != TIER_NO_EXPERT) return victim;
    return tier_ring_oldest(s->ring, s->protected, policy->held);
}

const struct tier_policy_ops tier_policy_slru_ops = {
    .name = "slru",
    .create = slru_create,
    .destroy = slru_destroy,
    .touch = slru_touch,
    .insert = slru_insert,
    .remove = slru_remove,
    .victim = slru_victim,
    .retune = slru_retune,
};
