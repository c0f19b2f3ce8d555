/* Least frequently used, with decayed counts: of all simple policies the best on real routing with
 * a half-life of about 16 tokens. Counts are kept for absent experts too, so that one which comes
 * back is not a stranger.
 *
 * Without decay it is the textbook's LFU: counts begin when an expert becomes resident. Of equally
 * frequent experts the one used longest ago leaves. O(1) a use, O(log slots) for each use between
 * two evictions of the same expert.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/heap.h"
#include "tiering/score.h"

struct lfu {
    struct tier_policy base;
    struct tier_score score;
    struct tier_heap heap;      /* its ranks are the scores */
};

static struct lfu *lfu_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_lfu_ops);
    return (struct lfu *)policy;
}

static void lfu_destroy(struct tier_policy *policy)
{
    struct lfu *lfu = (struct lfu *)policy;
    tier_heap_fini(&lfu->heap);
    free(lfu->score.at);
    free(lfu);
}

static int lfu_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    struct lfu *lfu = calloc(1, sizeof *lfu);
    if (!lfu) return -ENOMEM;
    double *counts = calloc(options->expert_count, sizeof *counts);
    tier_score_init(&lfu->score, counts, options->expert_count, options->half_life);
    if (tier_heap_init(&lfu->heap, options->expert_count, counts) < 0 || !counts) {
        lfu_destroy(&lfu->base);
        return -ENOMEM;
    }
    *out = &lfu->base;
    return 0;
}

static void lfu_begin(struct tier_policy *policy, uint64_t now)
{
    struct lfu *lfu = lfu_of(policy);
    (void)now;
    if (tier_score_step(&lfu->score)) tier_heap_rebuild(&lfu->heap);
}

static void lfu_retune(struct tier_policy *policy, uint32_t slots, double half_life)
{
    (void)slots;
    tier_score_retune(&lfu_of(policy)->score, half_life);
}

static void lfu_ahead(const struct tier_policy *policy, uint32_t expert)
{
    tier_heap_ahead(&((const struct lfu *)policy)->heap, expert);
}

static void lfu_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct lfu *lfu = lfu_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        tier_score_use(&lfu->score, experts[i]);
        tier_heap_stamp(&lfu->heap, experts[i]);
    }
}

static void lfu_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct lfu *lfu = lfu_of(policy);
    if (lfu->score.growth == 1) lfu->score.at[expert] = 0;
    if (used) tier_score_use(&lfu->score, expert);
    tier_heap_stamp(&lfu->heap, expert);
    tier_heap_add(&lfu->heap, expert, tier_heap_rank(lfu->score.at[expert]));
}

static void lfu_seed(struct tier_policy *policy, uint32_t expert, double uses)
{
    struct lfu *lfu = lfu_of(policy);
    lfu->score.at[expert] = uses * lfu->score.weight;
    tier_heap_set(&lfu->heap, expert, tier_heap_rank(lfu->score.at[expert]));
}

static void lfu_remove(struct tier_policy *policy, uint32_t expert)
{
    tier_heap_remove(&lfu_of(policy)->heap, expert);
}

static uint32_t lfu_victim(struct tier_policy *policy)
{
    return tier_heap_pick(&lfu_of(policy)->heap, policy->held);
}

static void lfu_seen(struct tier_policy *policy, uint32_t expert)
{
    struct lfu *lfu = lfu_of(policy);
    DMUST(!tier_heap_has(&lfu->heap, expert));
    tier_score_use(&lfu->score, expert);
}

const struct tier_policy_ops tier_policy_lfu_ops = {
    .name = "lfu",
    .decayed = true,
    .create = lfu_create,
    .destroy = lfu_destroy,
    .begin = lfu_begin,
    .ahead = lfu_ahead,
    .touch = lfu_touch,
    .insert = lfu_insert,
    .remove = lfu_remove,
    .victim = lfu_victim,
    .seed = lfu_seed,
    .seen = lfu_seen,
    .retune = lfu_retune,
};
