/* FP8 weights that the engine weaves where its processor gains by it (kernels/weave.h), or that a
 * pack has woven, show in nothing: the same bits whatever the op set, the sizes and kinds of the
 * tiers, the threads and the cut. Of single rows and of rows so long that they stand in groups. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kern.h"
#include "kernels/weave.h"
#include "tests/support/make_tiny.h"
#include "tests/support/run_stack.h"
#include "tests/support/sanitized.h"
#include "tiering/libtiering.h"
#include "tools/pack.h"

enum { TOKENS = SANITIZED ? 6 : 12, SETTINGS_MAX = 8 };

static bool weaves(void)
{
    return kern_weave_pays(kern_ops_cpu(KERN_CPU_BEST));
}

static char folder[3000], long_rows[3010], whole_cuts[3010], pack[3010];

static void write_model(const char *to_folder, const struct tiny_options *options)
{
    static const char *const files[] = { "tokenizer.json", "tokenizer_config.json" };
    tiny_write(to_folder, options);
    for (int i = 0; i < 2; i++) {
        char from[4000], to[4000];
        snprintf(from, sizeof from, "%s/%s", run_pebble(), files[i]);
        snprintf(to, sizeof to, "%s/%s", to_folder, files[i]);
        ck_assert_int_eq(symlink(from, to), 0);
    }
}

/* Rows of 33 scales; experts' matrices have groups of 16 and one of 8, a dense one is read in two
 * pieces. And a model whose experts can be packed woven: all rows are whole cuts. */
static void setup(void)
{
    struct tiny_options options = tiny_defaults();
    options.block = KERN_WOVEN_CUT;
    options.hidden = 33 * KERN_WOVEN_CUT;
    options.layers = 2;
    options.dense_width = 2176;
    options.expert_width = 40;
    options.experts = 64;
    options.vocab = 4096;       /* pebble's, with its tokenizer */
    tiny_folder(folder, sizeof folder, "check_woven");
    snprintf(long_rows, sizeof long_rows, "%.2990s/model", folder);
    snprintf(whole_cuts, sizeof whole_cuts, "%.2990s/cuts", folder);
    snprintf(pack, sizeof pack, "%.2990s/pack", folder);
    write_model(long_rows, &options);
    options.hidden = 3 * KERN_WOVEN_CUT;
    options.expert_width = 2 * KERN_WOVEN_CUT;
    options.experts = 16;
    write_model(whole_cuts, &options);
}

static void teardown(void)
{
    tiny_remove(long_rows);
    tiny_remove(whole_cuts);
    tiny_remove(folder);
}

/* What a run came to, as one number. */
static uint64_t outcome(const char *model, const char *const *settings, bool lands)
{
    static struct run run;
    static struct tier_snapshot s;
    uint32_t count;
    run_open(&run, model, settings);
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
    const bool woven = lands && weaves() && !strstr(settings[0], "reference");
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
    const char *model = _i ? long_rows : run_pebble();
    /* Instrumented, the reference takes longer than all the others; the plain build runs it. */
    const int first = SANITIZED ? 1 : 0;
    const uint64_t hash = outcome(model, variants[first], true);
    for (int v = first + 1; v < VARIANTS; v++) {
        ck_assert_msg(outcome(model, variants[v], true) == hash, "%s: %s %s: other bits", model,
                      variants[v][0], variants[v][1]);
    }
}
END_TEST

START_TEST(bf16_inputs_take_rows)
{
    static const char *const settings[] = { "engine.activations=bf16", "tiers.dram.capacity=25%",
                                            NULL };
    outcome(run_pebble(), settings, false);
}
END_TEST

static void repack(const char *model, const char *to)
{
    struct pack_order made;
    struct model_shape shape;
    struct tier_store *store;
    struct base_err err = { 0 };
    struct tier_pack_options options = { .dirs = &to, .dir_count = 1, .threads = 2 };
    int rc = model_shape_load(&shape, model, &err);
    if (rc == 0) rc = tier_store_index(model, NULL, &shape, 1, NULL, &err);
    if (rc == 0) rc = tier_store_open(&store, model, NULL, &shape, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    pack_order(&made, &options, TIER_ORDER_WOVEN, store, &shape);
    rc = tier_store_repack(store, &options, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    tier_store_close(store);
}

/* Nothing is rearranged then, on no processor, and the bits are the same. */
START_TEST(a_pack_may_be_woven)
{
    static const char *const plain[] = { "engine.cpu_mask=reference", "tiers.dram.capacity=100%",
                                         NULL };
    char index[3100];
    snprintf(index, sizeof index, "tiers.nvme.index=%s/expertier.index", pack);
    const char *const settings_of[][SETTINGS_MAX] = {
        { index, "tiers.dram.capacity=50%", "engine.threads=2", NULL },
        { index, "tiers.dram.capacity=50%", "engine.cpu_mask=avx2", NULL },
        { index, "tiers.dram.capacity=100%", "engine.cpu_mask=reference", NULL },
        { index, "tiers.hbm.capacity=50%", "tiers.dram.capacity=50%", "tiers.hbm.sim_bandwidth=0",
          "io.faults=seed=5,eio=0.01,flip=0.01,short=0.01", NULL },
    };
    const uint64_t hash = outcome(whole_cuts, plain, true);
    repack(whole_cuts, pack);
    for (int v = 0; v < 4; v++) {
        ck_assert_msg(outcome(whole_cuts, settings_of[v], false) == hash,
                      "%s, %s: other bits from a woven pack", settings_of[v][1], settings_of[v][2]);
    }
    static const char *const others[] = { "bf16", "int8" };
    for (int i = 0; i < 2; i++) {
        static struct run run;
        struct base_err err = { 0 };
        char activations[40];
        snprintf(activations, sizeof activations, "engine.activations=%s", others[i]);
        const char *const settings[] = { index, activations, "tiers.dram.capacity=50%", NULL };
        ck_assert_int_eq(run_try_open(&run, whole_cuts, settings, &err), BASE_EMISMATCH);
        ck_assert_msg(strstr(err.text, "are woven, for f32 activations"), "%s", err.text);
        run_close(&run);
    }
    /* Other engines' leases read rows. */
    struct tier_store *store;
    char why[500];
    ck_assert_int_eq(tier_lib_folder_open(&store, whole_cuts, strchr(index, '=') + 1, why,
                                          sizeof why), BASE_EMISMATCH);
    ck_assert_msg(strstr(why, "are woven"), "%s", why);
    tiny_remove(pack);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("woven");
    TCase *tests = tcase_create("woven");
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, nothing_shows, 0, 2);
    tcase_add_test(tests, bf16_inputs_take_rows);
    tcase_add_test(tests, a_pack_may_be_woven);
    tcase_set_timeout(tests, 200);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
