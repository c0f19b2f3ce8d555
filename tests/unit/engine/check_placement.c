/* Placements: every expert has a rank, ranks have equal numbers, the hottest lie on all, and loads
 * come out as even as one would expect; shares and blocks of dense parts cover them once. */
#include <check.h>
#include <stdlib.h>

#include "base/rng.h"
#include "comm/comm.h"
#include "engine/placement.h"
#include "engine/plan.h"
#include "engine/ranks.h"
#include "model/shape.h"

enum { SEEDS = 60 };

static void check_whole(const struct eng_placement *p)
{
    for (uint32_t l = 0; l < p->layers; l++) {
        uint32_t count[64] = { 0 }, everywhere = 0;
        for (uint32_t e = 0; e < p->experts; e++) {
            uint64_t holders = p->holders[l * p->experts + e];
            int many = __builtin_popcountll(holders);
            ck_assert_msg(many == 1 || many == (int)p->ranks, "expert on %d ranks", many);
            ck_assert(p->ranks == 64 || holders >> p->ranks == 0);
            everywhere += many > 1;
            for (uint32_t r = 0; r < p->ranks; r++) {
                count[r] += eng_placement_held(p, l, e, r);
            }
        }
        if (p->ranks > 1) ck_assert_uint_eq(everywhere, p->replicas);
        for (uint32_t r = 0; r < p->ranks; r++) {
            ck_assert_uint_le(count[r], p->held);
        }
    }
}

START_TEST(covers_every_expert)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i + 1);
    uint32_t ranks = 1 + (uint32_t)base_rng_below(&rng, 9), layers = 1 + (uint32_t)_i % 5;
    uint32_t experts = ranks + (uint32_t)base_rng_below(&rng, 90);
    uint32_t replicas = (uint32_t)base_rng_below(&rng, 5);
    if (replicas > experts) replicas = experts;
    uint64_t load[5 * 100];
    double hottest = 0, sum = 0;
    for (uint32_t i = 0; i < layers * experts; i++) {
        double skewed = base_rng_unit(&rng);
        load[i] = (uint64_t)(1000 * skewed * skewed * skewed);
        sum += (double)load[i];
        if ((double)load[i] > hottest) hottest = (double)load[i];
    }
    struct eng_placement plain, measured;
    ck_assert_int_eq(eng_placement_round_robin(&plain, layers, experts, ranks), 0);
    ck_assert_int_eq(
        eng_placement_by_load(&measured, layers, experts, ranks, replicas, load), 0);
    check_whole(&plain);
    check_whole(&measured);
    ck_assert_uint_eq(plain.held, (experts + ranks - 1) / ranks);
    double skew = eng_placement_skew(&measured, load);
    ck_assert_msg(skew <= eng_placement_skew(&plain, load) + 1e-9 || skew < 1.05,
                  "seed %d: %f by load, %f round robin", _i + 1, skew,
                  eng_placement_skew(&plain, load));
    /* An expert is never cut: the busiest has at most one more than its share a layer. */
    ck_assert_double_le(skew, 1 + ranks * layers * hottest / (sum + 1) + 1e-9);
    eng_placement_fini(&plain);
    eng_placement_fini(&measured);
}
END_TEST

START_TEST(replicas_even_out)
{
    /* One expert has half of the load: no dealing out helps but holding it everywhere. */
    uint64_t load[16];
    struct eng_placement one, all;
    for (int e = 0; e < 16; e++) {
        load[e] = e == 5 ? 150 : 10;
    }
    ck_assert_int_eq(eng_placement_by_load(&one, 1, 16, 4, 0, load), 0);
    ck_assert_int_eq(eng_placement_by_load(&all, 1, 16, 4, 1, load), 0);
    ck_assert_double_gt(eng_placement_skew(&one, load), 1.9);
    ck_assert_double_lt(eng_placement_skew(&all, load), 1.1);
    ck_assert_uint_eq(all.holders[5], 15);
    eng_placement_fini(&one);
    eng_placement_fini(&all);
}
END_TEST

START_TEST(shares_cover_once)
{
    for (uint32_t ranks = 1; ranks <= 9; ranks++) {
        for (uint32_t all = 0; all < 70; all++) {
            uint32_t next = 0;
            for (uint32_t r = 0; r < ranks; r++) {
                struct eng_share share = eng_ranks_share_of(all, ranks, r);
                ck_assert_uint_eq(share.begin, next);
                ck_assert_uint_le(share.end - share.begin, share.each);
                next = share.end;
            }
            ck_assert_uint_eq(next, all);
        }
    }
}
END_TEST

START_TEST(goes_the_way_of_fewer_bytes)
{
    struct eng_ranks r = { .count = 4, .tensor = 4 };
    /* DeepSeek-V3's output projection: 7168 x 16384. Received a token: by rows 16384 * 3/4, by
     * blocks 2 * 7168 * 3/4 at 4 ranks. */
    ck_assert(eng_ranks_by_blocks(&r, 7168, 16384, 128, 128));
    r.count = r.tensor = 2;
    ck_assert(!eng_ranks_by_blocks(&r, 7168, 16384, 128, 128));
    r.count = r.tensor = 8;
    ck_assert(eng_ranks_by_blocks(&r, 7168, 16384, 128, 128));
    ck_assert(!eng_ranks_by_blocks(&r, 7168, 2048, 128, 8));    /* the shared expert */
    ck_assert(eng_ranks_by_blocks(&r, 7168, 18432, 128, 8));    /* the dense layers */
    ck_assert(!eng_ranks_by_blocks(&r, 256, 704, 128, 8));      /* scales across the edges */
    ck_assert(!eng_ranks_by_blocks(&r, 32, 512, 0, 6));         /* heads do not divide */
    r.count = r.tensor = 3;
    ck_assert(!eng_ranks_by_blocks(&r, 7168, 18432, 128, 3));
    ck_assert(!eng_ranks_by_blocks(NULL, 7168, 18432, 128, 1));
    uint32_t next = 0;
    for (r.count = r.tensor = 4, r.rank = 0; r.rank < 4; r.rank++) {
        struct eng_share share = eng_ranks_blocks(&r, 705);
        ck_assert_uint_eq(share.begin, next);
        next = share.end;
    }
    ck_assert_uint_eq(next, 705);
}
END_TEST

START_TEST(refuses_what_cannot_take_effect)
{
    struct eng_rank_config config;
    struct base_option_group group = { "ranks", eng_rank_options, eng_rank_option_count, &config };
    static const char *const wrong[] = {
        "ranks.placement=best", "ranks.replicas=2", "parallel.tensor=2", "parallel.expert=3",
        "ranks.placement=file:x",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct base_err err = { 0 };
        struct eng_ranks ranks;
        base_option_defaults(&group, 1);
        ck_assert_int_eq(eng_ranks_init(&ranks, &config, NULL, &err), 0);
        ck_assert_uint_eq(ranks.count, 1);
        ck_assert_int_eq(base_option_set_pair(&group, 1, wrong[i], &err), 0);
        ck_assert_msg(eng_ranks_init(&ranks, &config, NULL, &err) == BASE_ECONFIG, "%s", wrong[i]);
        ck_assert(err.text[0] != '\0');
    }
}
END_TEST

/* What a step of DeepSeek-V3 over eight ranks sends and gets: 8,272 tokens, of whose parts the
 * widest is an eighth of the dense layers' 18,432. */
START_TEST(rooms_are_as_large_as_what_comes)
{
    const struct eng_ranks eight = { .count = 8, .tensor = 8, .expert = 8 };
    const struct model_shape v3 = { .hidden = 7168, .vocab = 129280, .shared_experts = 1,
        .expert_width = 2048, .dense_width = 18432, .heads = 128, .v_dim = 128, .top_k = 8 };
    const struct eng_plan_size size = { .rows = 8272, .decode_rows = 80, .ranks = &eight };
    struct eng_rank_room room;
    eng_ranks_room(&eight, &v3, &size, &room);
    ck_assert_uint_eq(room.send, (size_t)8272 * 8 * 8 * (896 + 1));     /* all experts are here */
    ck_assert_uint_eq(room.recv, (size_t)8 * 8272 * 2304);
}
END_TEST

/* PMIx tells a single process of a rank, too. */
START_TEST(one_process_of_a_launcher_is_one)
{
    static const char *const names[] = { "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK",
                                         "SLURM_STEP_NUM_TASKS" };
    const struct comm_config alone = { .kind = COMM_SELF, .timeout = 1000000000 };
    struct comm *comm;
    struct base_err err = { 0 };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) unsetenv(names[i]);
    setenv("PMIX_RANK", "0", 1);
    ck_assert_int_eq(comm_open(&comm, &alone, &err), BASE_ECONFIG);
    setenv("SLURM_STEP_NUM_TASKS", "2", 1);
    ck_assert_int_eq(comm_open(&comm, &alone, &err), BASE_ECONFIG);
    setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    ck_assert_int_eq(comm_open(&comm, &alone, &err), 0);
    comm_close(comm);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("placement");
    TCase *tests = tcase_create("all");
    tcase_add_loop_test(tests, covers_every_expert, 0, SEEDS);
    tcase_add_test(tests, replicas_even_out);
    tcase_add_test(tests, shares_cover_once);
    tcase_add_test(tests, goes_the_way_of_fewer_bytes);
    tcase_add_test(tests, refuses_what_cannot_take_effect);
    tcase_add_test(tests, rooms_are_as_large_as_what_comes);
    tcase_add_test(tests, one_process_of_a_launcher_is_one);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
