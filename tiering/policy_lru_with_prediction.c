/* What is least worth keeping leaves: by how likely it is wanted at its layer's next acquire, and
 * by its share of the acquires of late.
 *
 * The share is the expert's decayed use count, scaled so that an expert used every time has 1; it
 * stands for all acquires but the next. A hint tells of the next one, and is added to it: both are
 * probabilities. So without any predictor this is the decayed lfu, and with one a hint outweighs
 * habit without erasing it. What a hint brings in must be worth more, by the same sum, than what
 * leaves for it. Equals go by recency.
 *
 * A hint is good for one acquire of its layer; the next begin makes it void. O(1) a use and
 * O(log slots) a hint, and O(log slots) for each use between two evictions of the same expert.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/heap.h"
#include "tiering/score.h"

struct predicted {
    struct tier_policy base;
    struct tier_score score;
    struct tier_heap heap;      /* ranks are the counts, and more for what is hinted */
    float *hints;               /* [experts], below 0 = none */
    uint32_t *hinted;           /* experts with a hint */
    uint32_t hinted_count;
    double rate;                /* count x rate / weight = share of recent acquires */
};

static struct predicted *predicted_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_lru_with_prediction_ops);
    return (struct predicted *)policy;
}

static void predicted_destroy(struct tier_policy *policy)
{
    struct predicted *p = (struct predicted *)policy;
    tier_heap_fini(&p->heap);
    free(p->score.at);
    free(p->hints);
    free(p->hinted);
    free(p);
}

static int predicted_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    uint32_t experts = options->expert_count;
    struct predicted *p = calloc(1, sizeof *p);
    if (!p) return -ENOMEM;
    double *counts = calloc(experts, sizeof *counts);
    tier_score_init(&p->score, counts, experts, options->half_life);
    p->hints = malloc(experts * sizeof *p->hints);
    p->hinted = malloc(experts * sizeof *p->hinted);
    if (tier_heap_init(&p->heap, experts, counts) < 0 || !counts || !p->hints || !p->hinted) {
        predicted_destroy(&p->base);
        return -ENOMEM;
    }
    for (uint32_t e = 0; e < experts; e++) p->hints[e] = -1;
    /* Counts of 1, g^-1, g^-2 ... add up to 1 / (1 - 1/g) for an expert used at every acquire.
     * Without decay a count has no share to be scaled to: there any hint outweighs all counts. */
    p->rate = 1 - 1 / p->score.growth;
    *out = &p->base;
    return 0;
}

static double rank_of(const struct predicted *p, uint32_t expert)
{
    double count = p->score.at[expert];
    if (p->hints[expert] < 0) return count;
    double full = p->rate > 0 ? p->score.weight / p->rate : 0x1p40;
    return (double)p->hints[expert] * full + count;
}

static double predicted_worth(const struct tier_policy *policy, uint32_t expert)
{
    return rank_of((const struct predicted *)policy, expert);
}

static void rerank(struct predicted *p, uint32_t expert)
{
    if (!tier_heap_has(&p->heap, expert)) return;
    tier_heap_set(&p->heap, expert, tier_heap_rank(rank_of(p, expert)));
}

static void predicted_retune(struct tier_policy *policy, uint32_t slots, double half_life)
{
    struct predicted *p = predicted_of(policy);
    (void)slots;
    tier_score_retune(&p->score, half_life);
    p->rate = 1 - 1 / p->score.growth;
    for (uint32_t i = 0; i < p->hinted_count; i++) rerank(p, p->hinted[i]);
}

static void predicted_begin(struct tier_policy *policy, uint64_t now)
{
    struct predicted *p = predicted_of(policy);
    (void)now;
    for (uint32_t i = 0; i < p->hinted_count; i++) {
        p->hints[p->hinted[i]] = -1;
        rerank(p, p->hinted[i]);
    }
    p->hinted_count = 0;
    if (tier_score_step(&p->score)) tier_heap_rebuild(&p->heap);
}

static void predicted_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct predicted *p = predicted_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        tier_score_use(&p->score, experts[i]);
        tier_heap_stamp(&p->heap, experts[i]);
        if (p->hinted_count > 0) rerank(p, experts[i]);     /* the heap knows the counts only */
    }
}

static void predicted_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct predicted *p = predicted_of(policy);
    if (used) tier_score_use(&p->score, expert);
    tier_heap_stamp(&p->heap, expert);
    tier_heap_add(&p->heap, expert, tier_heap_rank(rank_of(p, expert)));
}

static void predicted_seed(struct tier_policy *policy, uint32_t expert, double uses)
{
    struct predicted *p = predicted_of(policy);
    p->score.at[expert] = uses * p->score.weight;
    rerank(p, expert);
}

static void predicted_remove(struct tier_policy *policy, uint32_t expert)
{
    tier_heap_remove(&predicted_of(policy)->heap, expert);
}

static uint32_t predicted_victim(struct tier_policy *policy)
{
    return tier_heap_pick(&predicted_of(policy)->heap, policy->held);
}

static void predicted_seen(struct tier_policy *policy, uint32_t expert)
{
    tier_score_use(&predicted_of(policy)->score, expert);
}

static void predicted_hint(struct tier_policy *policy, uint32_t expert, float probability)
{
    struct predicted *p = predicted_of(policy);
    if (p->hints[expert] < 0) p->hinted[p->hinted_count++] = expert;
    p->hints[expert] = probability;
    rerank(p, expert);
}

const struct tier_policy_ops tier_policy_lru_with_prediction_ops = {
    .name = "lru_with_prediction",
    .decayed = true,
    .create = predicted_create,
    .destroy = predicted_destroy,
    .begin = predicted_begin,
    .touch = predicted_touch,
    .insert = predicted_insert,
    .remove = predicted_remove,
    .victim = predicted_victim,
    .seed = predicted_seed,
    .seen = predicted_seen,
    .hint = predicted_hint,
    .worth = predicted_worth,
    .retune = predicted_retune,
};
