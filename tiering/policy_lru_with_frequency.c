/* Recency first, then frequency: of the least recently used half of the residents, the one with the
 * smallest decayed count leaves. The younger half is safe whatever its counts; in the older half a
 * hot expert outlives a cold one that was used a little later. O(slots / 2) an eviction.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/ring.h"
#include "tiering/score.h"

struct mixed {
    struct tier_policy base;
    struct tier_score score;
    struct tier_ring *ring;     /* experts, then the head */
    uint32_t head, count;
};

static struct mixed *mixed_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_lru_with_frequency_ops);
    return (struct mixed *)policy;
}

static void mixed_destroy(struct tier_policy *policy)
{
    struct mixed *m = (struct mixed *)policy;
    free(m->score.at);
    free(m->ring);
    free(m);
}

static int mixed_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    uint32_t experts = options->expert_count;
    struct mixed *m = calloc(1, sizeof *m);
    if (!m) return -ENOMEM;
    double *counts = calloc(experts, sizeof *counts);
    tier_score_init(&m->score, counts, experts, options->half_life);
    m->ring = calloc((size_t)experts + 1, sizeof *m->ring);
    if (!counts || !m->ring) {
        mixed_destroy(&m->base);
        return -ENOMEM;
    }
    m->head = experts;
    tier_ring_init(m->ring, experts, 1);
    *out = &m->base;
    return 0;
}

static void mixed_begin(struct tier_policy *policy, uint64_t now)
{
    (void)now;
    tier_score_step(&mixed_of(policy)->score);
}

static void mixed_retune(struct tier_policy *policy, uint32_t slots, double half_life)
{
    (void)slots;
    tier_score_retune(&mixed_of(policy)->score, half_life);
}

static void mixed_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct mixed *m = mixed_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        DMUST(tier_ring_queued(m->ring, experts[i]));
        tier_score_use(&m->score, experts[i]);
        tier_ring_front(m->ring, m->head, experts[i]);
    }
}

static void mixed_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct mixed *m = mixed_of(policy);
    DMUST(!tier_ring_queued(m->ring, expert));
    if (used) tier_score_use(&m->score, expert);
    tier_ring_push(m->ring, m->head, expert);
    m->count++;
}

static void mixed_seed(struct tier_policy *policy, uint32_t expert, double uses)
{
    struct mixed *m = mixed_of(policy);
    m->score.at[expert] = uses * m->score.weight;
}

static void mixed_remove(struct tier_policy *policy, uint32_t expert)
{
    struct mixed *m = mixed_of(policy);
    DMUST(tier_ring_queued(m->ring, expert));
    tier_ring_unlink(m->ring, expert);
    m->count--;
}

static uint32_t mixed_victim(struct tier_policy *policy)
{
    const struct mixed *m = mixed_of(policy);
    uint32_t victim = TIER_NO_EXPERT, left = (m->count + 1) / 2;
    for (uint32_t e = m->ring[m->head].prev; e != m->head; e = m->ring[e].prev) {
        /* Held ones fill the old half too: if all of it is held, go on to the first that is not. */
        if (left == 0 && victim != TIER_NO_EXPERT) break;
        if (left > 0) left--;
        if (policy->held[e].count) continue;
        if (victim == TIER_NO_EXPERT || m->score.at[e] < m->score.at[victim]) victim = e;
    }
    return victim;
}

static void mixed_seen(struct tier_policy *policy, uint32_t expert)
{
    tier_score_use(&mixed_of(policy)->score, expert);
}

const struct tier_policy_ops tier_policy_lru_with_frequency_ops = {
    .name = "lru_with_frequency",
    .decayed = true,
    .create = mixed_create,
    .destroy = mixed_destroy,
    .begin = mixed_begin,
    .touch = mixed_touch,
    .insert = mixed_insert,
    .remove = mixed_remove,
    .victim = mixed_victim,
    .retune = mixed_retune,
    .seed = mixed_seed,
    .seen = mixed_seen,
};
