/* FP8 weights that the engine weaves where its processor gains by it (kernels/weave.h) show in
 * nothing: the same bits whatever the op set, the sizes and kinds of the tiers, the threads and the
 * cut. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kern.h"
#include "kernels/weave.h"
#include "tests/support/run_stack.h"

enum { TOKENS = 12, SETTINGS_MAX = 8 };

static bool weaves(void)
{
    return kern_weave_pays(kern_ops_cpu(KERN_CPU_AVX512));
}

/* What a run came to, as one number. */
static uint64_t outcome(const char *const *settings)
{
    static struct run run;
    static struct tier_snapshot s;
    uint32_t count;
    run_open(&run, run_pebble(), settings);
    uint32_t *ids = run_encode(&run, "The kernel is the part of the system that", &count);
    struct eng_request request = { .prompt = ids, .prompt_tokens = count, .max_tokens = TOKENS,
                                   .sampling = { .top_p = 1 }, .ignore_eos = true,
                                   .prompt_logits = true };
    struct run_answer *answer = run_submit(&run, &request);
    free(ids);
    run_finish(&run);
    ck_assert_uint_eq(answer->token_count, TOKENS);
    uint64_t hash = answer->rows_hash;
    tier_snapshot(run.stack.tier, &s);
    const bool woven = weaves() && !strstr(settings[0], "cpu_mask") && !strstr(settings[0], "bf16");
    ck_assert_msg((s.io.landing_seconds > 0) == woven, "%s: rearranged for %g s", settings[0],
                  s.io.landing_seconds);
    run_close(&run);
    return hash;
}

static const char *const variants[][SETTINGS_MAX] = {
    { "engine.cpu_mask=reference", "tiers.dram.capacity=100%", NULL },
    { "engine.cpu_mask=avx2", "tiers.dram.capacity=25%", NULL },
    { "tiers.dram.capacity=100%", "engine.threads=2", NULL },
    { "tiers.dram.capacity=9.375%", "scheduler.max_num_batched_tokens=9", NULL },
    { "tiers.hbm.capacity=20%", "tiers.dram.capacity=30%", "tiers.hbm.sim_bandwidth=0", NULL },
    { "tiers.dram.capacity=25%", "io.faults=seed=5,eio=0.01,flip=0.01,short=0.01", NULL },
};
enum { VARIANTS = sizeof variants / sizeof variants[0] };

START_TEST(nothing_shows)
{
    const uint64_t hash = outcome(variants[0]);
    for (int v = 1; v < VARIANTS; v++) {
        ck_assert_msg(outcome(variants[v]) == hash, "%s %s: other bits", variants[v][0],
                      variants[v][1]);
    }
}
END_TEST

START_TEST(bf16_inputs_take_rows)
{
    static const char *const settings[] = { "engine.activations=bf16", "tiers.dram.capacity=25%",
                                            NULL };
    outcome(settings);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("woven");
    TCase *tests = tcase_create("woven");
    tcase_add_test(tests, nothing_shows);
    tcase_add_test(tests, bf16_inputs_take_rows);
    tcase_set_timeout(tests, 200);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
