/* S3-FIFO (Yang et al., SOSP 2023): three queues in order of arrival and a use count up to 3.
 *
 *      new ──> small (a tenth of the slots) ── used twice ──> main ── used ──> main again
 *                 └ not used twice: out, remembered in ghost      └ not used: out
 *      seen in ghost ──> main
 *
 * Ghost remembers as many experts as main has slots. Held experts are passed over where they are.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/ring.h"

enum { USES_MAX = 3, USES_TO_MAIN = 2 };
enum { SMALL, MAIN, GHOST, QUEUES };

struct s3fifo {
    struct tier_policy base;
    uint32_t experts;                   /* heads are experts + queue */
    uint32_t slots, small_slots, ghost_max, counts[QUEUES];
    bool filled;                        /* something has left since it was full */
    uint32_t chosen;                    /* the last answer, while it holds */
    uint8_t *uses, *queue;              /* [experts] */
    struct tier_ring ring[];
};

static struct s3fifo *s3fifo_of(struct tier_policy *policy)
{
    DMUST(policy->ops == &tier_policy_s3fifo_ops);
    return (struct s3fifo *)policy;
}

static void s3fifo_destroy(struct tier_policy *policy)
{
    struct s3fifo *s = (struct s3fifo *)policy;
    free(s->uses);
    free(s->queue);
    free(s);
}

static void cut(struct s3fifo *s, uint32_t slots)
{
    s->slots = slots;
    s->small_slots = slots / 10 ? slots / 10 : 1;
    s->ghost_max = slots - slots / 10;
}

static int s3fifo_create(struct tier_policy **out, const struct tier_policy_options *options)
{
    uint32_t experts = options->expert_count;
    struct s3fifo *s = calloc(1, sizeof *s + ((size_t)experts + QUEUES) * sizeof s->ring[0]);
    if (!s) return -ENOMEM;
    s->uses = calloc(experts, 1);
    s->queue = calloc(experts, 1);
    if (!s->uses || !s->queue) {
        s3fifo_destroy(&s->base);
        return -ENOMEM;
    }
    s->experts = experts;
    s->chosen = TIER_NO_EXPERT;
    cut(s, options->slots);
    tier_ring_init(s->ring, experts, QUEUES);
    *out = &s->base;
    return 0;
}

static void push(struct s3fifo *s, uint32_t expert, unsigned queue)
{
    tier_ring_push(s->ring, s->experts + queue, expert);
    s->queue[expert] = (uint8_t)queue;
    s->counts[queue]++;
}

static void pull(struct s3fifo *s, uint32_t expert)
{
    tier_ring_unlink(s->ring, expert);
    s->counts[s->queue[expert]]--;
}

static void s3fifo_retune(struct tier_policy *policy, uint32_t slots, double half_life)
{
    struct s3fifo *s = s3fifo_of(policy);
    (void)half_life;
    /* New slots fill as at first: small takes its share and main the rest. */
    if (slots > s->slots) s->filled = false;
    cut(s, slots);
    s->chosen = TIER_NO_EXPERT;
    while (s->counts[GHOST] > s->ghost_max) pull(s, s->ring[s->experts + GHOST].prev);
}

static void s3fifo_touch(struct tier_policy *policy, const uint32_t *experts, uint32_t n)
{
    struct s3fifo *s = s3fifo_of(policy);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t expert = experts[i];
        DMUST(tier_ring_queued(s->ring, expert) && s->queue[expert] != GHOST);
        s->uses[expert] += s->uses[expert] < USES_MAX;
        if (s->chosen == expert) s->chosen = TIER_NO_EXPERT;
    }
}

static void s3fifo_insert(struct tier_policy *policy, uint32_t expert, bool used)
{
    struct s3fifo *s = s3fifo_of(policy);
    bool remembered = tier_ring_queued(s->ring, expert);
    (void)used;
    DMUST(!remembered || s->queue[expert] == GHOST);
    if (remembered) pull(s, expert);
    s->uses[expert] = 0;
    /* While the cache fills for the first time, small takes its share and main the rest. */
    bool first = !s->filled && s->counts[SMALL] >= s->small_slots;
    push(s, expert, remembered || first ? MAIN : SMALL);
}

static void s3fifo_remove(struct tier_policy *policy, uint32_t expert)
{
    struct s3fifo *s = s3fifo_of(policy);
    DMUST(tier_ring_queued(s->ring, expert) && s->queue[expert] != GHOST);
    bool from_small = s->queue[expert] == SMALL;
    s->filled = true;
    s->chosen = TIER_NO_EXPERT;
    pull(s, expert);
    if (!from_small || s->ghost_max == 0) return;
    if (s->counts[GHOST] == s->ghost_max) pull(s, s->ring[s->experts + GHOST].prev);
    push(s, expert, GHOST);
}

/* Oldest of small that was not used twice; those that were move on to main. */
static uint32_t small_victim(struct s3fifo *s, const struct tier_hold *held)
{
    uint32_t head = s->experts + SMALL, at = s->ring[head].prev;
    while (at != head) {
        uint32_t next = s->ring[at].prev;
        if (!held[at].count) {
            if (s->uses[at] < USES_TO_MAIN) return at;
            pull(s, at);
            push(s, at, MAIN);
            s->uses[at] = 0;
        }
        at = next;
    }
    return TIER_NO_EXPERT;
}

/* Oldest of main that was not used; used ones go round again with one use less. */
static uint32_t main_victim(struct s3fifo *s, const struct tier_hold *held)
{
    uint32_t head = s->experts + MAIN;
    for (int round = 0; round <= USES_MAX; round++) {
        uint32_t at = s->ring[head].prev;
        for (uint32_t left = s->counts[MAIN]; left > 0; left--) {
            uint32_t next = s->ring[at].prev;
            if (!held[at].count) {
                if (s->uses[at] == 0) return at;
                s->uses[at]--;
                tier_ring_front(s->ring, head, at);
            }
            at = next;
        }
    }
    return TIER_NO_EXPERT;
}

static uint32_t choose(struct s3fifo *s, const struct tier_hold *held)
{
    bool main_first = s->counts[MAIN] > s->slots - s->small_slots || s->counts[SMALL] == 0;
    uint32_t victim = main_first ? main_victim(s, held) : small_victim(s, held);
    if (victim == TIER_NO_EXPERT && main_first) victim = small_victim(s, held);
    /* What small passed on to main a moment ago may be all there is. */
    return victim != TIER_NO_EXPERT ? victim : main_victim(s, held);
}

/* Choosing moves experts between the queues, so a second look might choose another one. */
static uint32_t s3fifo_victim(struct tier_policy *policy)
{
    struct s3fifo *s = s3fifo_of(policy);
    if (s->chosen == TIER_NO_EXPERT || policy->held[s->chosen].count) {
        s->chosen = choose(s, policy->held);
    }
    return s->chosen;
}

const struct tier_policy_ops tier_policy_s3fifo_ops = {
    .name = "s3fifo",
    .create = s3fifo_create,
    .destroy = s3fifo_destroy,
    .touch = s3fifo_touch,
    .insert = s3fifo_insert,
    .remove = s3fifo_remove,
    .victim = s3fifo_victim,
    .retune = s3fifo_retune,
};
