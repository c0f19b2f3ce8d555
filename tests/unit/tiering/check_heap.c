/* The heap names the expert that a look at all of them names, few or many, whatever is used, held,
 * ranked anew or taken out; also when its clock comes to its end. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "tiering/heap.h"

enum { EXPERTS = 100, SEEDS = 40, STEPS = 20000 };

struct plain {                  /* what the heap should know, told over arrays */
    bool here[EXPERTS];
    double score[EXPERTS], extra[EXPERTS];
    uint64_t used[EXPERTS], clock;
    struct tier_hold held[EXPERTS];
};

static struct plain p;

static uint32_t least(void)
{
    uint32_t v = TIER_NO_EXPERT;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        if (!p.here[e] || p.held[e].count) continue;
        double rank = p.score[e] + p.extra[e];
        double best = v == TIER_NO_EXPERT ? 0 : p.score[v] + p.extra[v];
        if (v == TIER_NO_EXPERT || rank < best || (rank == best && p.used[e] < p.used[v])) v = e;
    }
    return v;
}

static uint64_t rank_of(uint32_t e)
{
    return tier_heap_rank(p.score[e] + p.extra[e]);
}

static void stamp(struct tier_heap *heap, uint32_t e)
{
    tier_heap_stamp(heap, e);
    p.used[e] = ++p.clock;
}

static void enter(struct tier_heap *heap, uint32_t e)
{
    stamp(heap, e);
    tier_heap_add(heap, e, rank_of(e));
    p.here[e] = true;
}

static void leave(struct tier_heap *heap, uint32_t e)
{
    tier_heap_remove(heap, e);
    p.here[e] = false;
    p.extra[e] = 0;
}

/* A use; the heap is told of the rank only where it is not the score. */
static void use(struct tier_heap *heap, uint32_t e, bool more)
{
    p.score[e] += more;
    stamp(heap, e);
    if (p.extra[e] > 0) tier_heap_set(heap, e, rank_of(e));
}

static void rank_anew(struct tier_heap *heap, uint32_t e, double extra)
{
    p.extra[e] = extra;
    tier_heap_set(heap, e, rank_of(e));
}

static void scale(struct tier_heap *heap)
{
    for (uint32_t e = 0; e < EXPERTS; e++) {
        if (p.extra[e] > 0) rank_anew(heap, e, 0);
        p.score[e] = floor(p.score[e] / 2);
    }
    tier_heap_rebuild(heap);
}

static void one_step(struct tier_heap *heap, struct base_rng *rng, uint32_t most)
{
    uint32_t e = (uint32_t)base_rng_below(rng, EXPERTS);
    switch (base_rng_below(rng, 12)) {
    case 0:
        p.held[e].count = !p.held[e].count;
        return;
    case 1:
        if (p.here[e]) rank_anew(heap, e, (double)base_rng_below(rng, 3));
        return;
    case 2:
        if (p.here[e]) leave(heap, e);
        return;
    case 3:
        if (base_rng_below(rng, 20) == 0) scale(heap);
        return;
    default:
        break;
    }
    if (p.here[e]) {
        use(heap, e, base_rng_below(rng, 8) == 0);  /* equals are many */
    } else {
        if (heap->count >= most) {
            uint32_t v = tier_heap_pick(heap, p.held);
            if (v == TIER_NO_EXPERT) return;
            leave(heap, v);
        }
        enter(heap, e);
    }
}

static void begin(void)
{
    p = (struct plain){ 0 };
}

START_TEST(names_the_least)
{
    struct tier_heap heap;
    struct base_rng rng;
    begin();
    base_rng_init(&rng, (uint64_t)_i);
    ck_assert_int_eq(tier_heap_init(&heap, EXPERTS, p.score), 0);
    /* Every third heap comes to the end of its clock. */
    if (_i % 3 == 0) heap.clock = UINT32_MAX - STEPS / 4;
    uint32_t most = 1, ordered = 0;
    for (int step = 0; step < STEPS; step++) {
        /* Few, many, and everything between: it goes from one way of looking to the other. */
        if (step % 2000 == 0) {
            most = 1 + (uint32_t)base_rng_below(&rng, EXPERTS);
            for (uint32_t e = 0; e < EXPERTS && heap.count > most; e++) {
                if (p.here[e]) leave(&heap, e);
            }
        }
        one_step(&heap, &rng, most);
        ordered += heap.ordered;
        if (base_rng_below(&rng, 2)) continue;      /* so that uses gather */
        uint32_t v = tier_heap_pick(&heap, p.held);
        ck_assert_msg(v == least(), "seed %d, step %d: %u, not %u", _i, step, v, least());
    }
    ck_assert(_i % 3 != 0 || heap.clock < STEPS);
    ck_assert_msg(ordered > 0 && ordered < STEPS, "seed %d: it was never few, or never many", _i);
    tier_heap_fini(&heap);
}
END_TEST

/* Ranks that are only set, as Belady's: smaller ones too, and no score to look them up in. */
START_TEST(works_without_scores)
{
    struct tier_heap heap;
    struct base_rng rng;
    begin();
    base_rng_init(&rng, (uint64_t)_i);
    ck_assert_int_eq(tier_heap_init(&heap, EXPERTS, NULL), 0);
    uint32_t most = _i % 2 ? 8 : 80;
    for (int step = 0; step < STEPS; step++) {
        uint32_t e = (uint32_t)base_rng_below(&rng, EXPERTS);
        p.score[e] = (double)base_rng_below(&rng, 1000);
        if (p.here[e]) {
            tier_heap_set(&heap, e, rank_of(e));
            continue;
        }
        if (heap.count == most) {
            uint32_t v = tier_heap_pick(&heap, p.held);
            ck_assert_msg(v == least(), "seed %d, step %d: %u, not %u", _i, step, v, least());
            leave(&heap, v);
        }
        tier_heap_add(&heap, e, rank_of(e));
        p.here[e] = true;
    }
    tier_heap_fini(&heap);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("heap");
    TCase *all = tcase_create("all");
    tcase_add_loop_test(all, names_the_least, 0, SEEDS);
    tcase_add_loop_test(all, works_without_scores, 0, 4);
    tcase_set_timeout(all, 60);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
