/* ARC (Megiddo and Modha, FAST 2003): residents used once (T1) and more than once (T2), what left
 * each of them lately (B1, B2), and a target size for T1 that a miss remembered in B1 raises and
 * one in B2 lowers.
 *
 * Everything is ordered by recency. Held experts are passed over; if all of the list that should
 * give is held, the other one gives.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/ring.h"

enum { T1, T2, B1, B2, LISTS };

struct arc {
    struct tier_policy base;
    uint32_t experts;                   /* heads are experts + list */
    uint32_t slots, counts[LISTS];
    double target;                      /* of T1 */
    uint32_t coming;                    /* the expert that comes next */
    uint8_t *list;                      /* [experts] */
    struct tier_ring ring[];
};

static struct arc *arc_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_arc_ops);
    return (struct arc *)policy;
}

static void arc_destroy(struct tier_policy *policy)
{
    struct arc *a = (struct arc *)policy;
    free(a->list);
    free(a);
}

static int arc_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    uint32_t experts = options->expert_count;
    struct arc *a = calloc(1, sizeof *a + ((size_t)experts + LISTS) * sizeof a->ring[0]);
    if (!a) return -ENOMEM;
    a->list = calloc(experts, 1);
    if (!a->list) {
        arc_destroy(&a->base);
        return -ENOMEM;
    }
    a->experts = experts;
    a->slots = options->slots;
    a->coming = TIER_NO_EXPERT;
    tier_ring_init(a->ring, experts, LISTS);
    *out = &a->base;
    return 0;
}

static void push(struct arc *a, uint32_t expert, unsigned list)
{
    tier_ring_push(a->ring, a->experts + list, expert);
    a->list[expert] = (uint8_t)list;
    a->counts[list]++;
}

static void pull(struct arc *a, uint32_t expert)
{
    tier_ring_unlink(a->ring, expert);
    a->counts[a->list[expert]]--;
}

static void pull_oldest(struct arc *a, unsigned list)
{
    if (a->counts[list] > 0) pull(a, a->ring[a->experts + list].prev);
}

static bool is_on(const struct arc *a, uint32_t expert, unsigned list)
{
    return expert != TIER_NO_EXPERT && tier_ring_queued(a->ring, expert) && a->list[expert] == list;
}

static void arc_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct arc *a = arc_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        DMUST(is_on(a, experts[i], T1) || is_on(a, experts[i], T2));
        pull(a, experts[i]);
        push(a, experts[i], T2);
    }
}

/* What is remembered beyond the new bounds goes as experts leave. */
static void arc_retune(struct tier_policy *policy, uint32_t slots, double half_life)
{
    struct arc *a = arc_of(policy);
    (void)half_life;
    a->target *= (double)slots / a->slots;
    a->slots = slots;
}

/* A miss that is remembered moves the target towards the list it had left too early. */
static void arc_incoming(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct arc *a = arc_of(policy);
    a->coming = expert;
    if (!used) return;
    double b1 = a->counts[B1], b2 = a->counts[B2];
    if (is_on(a, expert, B1)) {
        a->target += b2 > b1 ? b2 / b1 : 1;
        if (a->target > a->slots) a->target = a->slots;
    } else if (is_on(a, expert, B2)) {
        a->target -= b1 > b2 ? b1 / b2 : 1;
        if (a->target < 0) a->target = 0;
    }
}

static void arc_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct arc *a = arc_of(policy);
    bool remembered = tier_ring_queued(a->ring, expert);
    (void)used;
    DMUST(!remembered || a->list[expert] >= B1);
    if (remembered) {
        pull(a, expert);
        push(a, expert, T2);
    } else {
        push(a, expert, T1);
    }
    a->coming = TIER_NO_EXPERT;
}

/* What leaves is remembered, within the bounds |T1| + |B1| <= slots and 2 x slots in all, where the
 * one that is coming already counts. */
static void arc_remove(struct tier_policy *policy, uint32_t expert)
{
    struct arc *a = arc_of(policy);
    bool from_1 = a->list[expert] == T1, stranger = !is_on(a, a->coming, B1) &&
                                                    !is_on(a, a->coming, B2);
    DMUST(is_on(a, expert, T1) || is_on(a, expert, T2));
    pull(a, expert);
    push(a, expert, from_1 ? B1 : B2);
    uint32_t coming = stranger && a->coming != TIER_NO_EXPERT;
    while (a->counts[T1] + a->counts[B1] + coming > a->slots && a->counts[B1] > 0) {
        pull_oldest(a, B1);
    }
    while (a->counts[T1] + a->counts[T2] + a->counts[B1] + a->counts[B2] + coming > 2 * a->slots &&
           a->counts[B2] > 0) {
        pull_oldest(a, B2);
    }
}

static uint32_t arc_victim(struct tier_policy *policy)
{
    const struct arc *a = arc_of(policy);
    double t1 = a->counts[T1];
    bool first = t1 > 0 && (t1 > a->target || (t1 == a->target && is_on(a, a->coming, B2)));
    uint32_t victim = tier_ring_oldest(a->ring, a->experts + (first ? T1 : T2), policy->held);
    if (victim != TIER_NO_EXPERT) return victim;
    return tier_ring_oldest(a->ring, a->experts + (first ? T2 : T1), policy->held);
}

const struct tier_policy_ops tier_policy_arc_ops = {
    .name = "arc",
    .create = arc_create,
    .destroy = arc_destroy,
    .touch = arc_touch,
    .incoming = arc_incoming,
    .insert = arc_insert,
    .remove = arc_remove,
    .victim = arc_victim,
    .retune = arc_retune,
};
