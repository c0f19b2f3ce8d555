/* SIEVE (Zhang et al., NSDI 2024): one queue in order of arrival, a bit for "used since the hand
 * went by", and a hand that walks from old to new. What it finds used it spares and marks unused;
 * what it finds unused leaves, and the hand stays there. Nothing moves on a hit.
 *
 * The hand passes held experts without changing them.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/ring.h"

struct sieve {
    struct tier_policy base;
    uint32_t head, hand, count;         /* hand == head: start from the oldest */
    uint8_t *used;
    struct tier_ring ring[];            /* experts, then the head */
};

static struct sieve *sieve_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_sieve_ops);
    return (struct sieve *)policy;
}

static void sieve_destroy(struct tier_policy *policy)
{
    struct sieve *s = (struct sieve *)policy;
    free(s->used);
    free(s);
}

static int sieve_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    uint32_t experts = options->expert_count;
    struct sieve *s = calloc(1, sizeof *s + ((size_t)experts + 1) * sizeof s->ring[0]);
    if (!s) return -ENOMEM;
    s->used = calloc(experts, 1);
    if (!s->used) {
        sieve_destroy(&s->base);
        return -ENOMEM;
    }
    s->head = s->hand = experts;
    tier_ring_init(s->ring, experts, 1);
    *out = &s->base;
    return 0;
}

static void sieve_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct sieve *s = sieve_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        DMUST(tier_ring_queued(s->ring, experts[i]));
        s->used[experts[i]] = 1;
    }
}

static void sieve_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct sieve *s = sieve_of(policy);
    DMUST(!tier_ring_queued(s->ring, expert));
    (void)used;
    tier_ring_push(s->ring, s->head, expert);
    s->used[expert] = 0;
    s->count++;
}

static void sieve_remove(struct tier_policy *policy, uint32_t expert)
{
    struct sieve *s = sieve_of(policy);
    DMUST(tier_ring_queued(s->ring, expert));
    if (s->hand == expert) s->hand = s->ring[expert].prev;
    tier_ring_unlink(s->ring, expert);
    s->count--;
}

static uint32_t sieve_victim(struct tier_policy *policy)
{
    struct sieve *s = sieve_of(policy);
    uint32_t at = s->hand == s->head ? s->ring[s->head].prev : s->hand;
    /* Two rounds: the first may find all used, the second then finds none. */
    for (uint32_t left = 2 * (s->count + 1); left > 0; left--) {
        if (at != s->head && !policy->held[at].count) {
            if (!s->used[at]) {
                s->hand = at;
                return at;
            }
            s->used[at] = 0;
        }
        at = s->ring[at].prev;
    }
    return TIER_NO_EXPERT;
}

const struct tier_policy_ops tier_policy_sieve_ops = {
    .name = "sieve",
    .create = sieve_create,
    .destroy = sieve_destroy,
    .touch = sieve_touch,
    .insert = sieve_insert,
    .remove = sieve_remove,
    .victim = sieve_victim,
};
