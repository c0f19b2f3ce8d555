/* INT8 and INT4 experts, whose weights the engine rearranges as they land, and dense weights in
 * INT8, which it rearranges once, compute what they are: near to the model they were made from, and
 * the same bits whatever the sizes and kinds of the tiers, the reads that fail, the threads, the op
 * set, the cut and the neighbours. Of shapes that are whole tiles and of others. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kern.h"
#include "tests/support/make_tiny.h"
#include "tests/support/run_stack.h"
#include "tests/support/sanitized.h"
#include "tools/pack.h"
#include "tools/pack_quantize.h"

enum { TOKENS = SANITIZED ? 6 : 12, SETTINGS_MAX = 8 };

static const struct model {
    const char *from;           /* NULL: pebble; else below tests/golden */
    enum kern_dtype dtype;
    uint32_t group;
    bool dense;                 /* the dense weights, too */
    double near, near_int8;     /* relative RMS of its logits' difference to those of `from`, also
                                 * with INT8 inputs */
} models[] = {
    { NULL, KERN_INT8, 128, true, 0.01, 0.07 },
    { NULL, KERN_INT4, 32, false, 0.05, 0.05 },
    { "v3-fp8-odd", KERN_INT8, 32, true, 0.08, 0.1 },
    { "v3-fp8-odd", KERN_INT4, 32, false, 0.07, 0.07 },
};
enum { MODELS = sizeof models / sizeof models[0] };

static char folders[MODELS][3000], quantised[MODELS][3010];

static const char *source_of(const struct model *model)
{
    static char path[3000];
    if (!model->from) return run_pebble();
    snprintf(path, sizeof path, "%s/tests/golden/%s", getenv("EXPERTIER_SOURCE"), model->from);
    return path;
}

static void setup(void)
{
    for (int i = 0; i < MODELS; i++) {
        struct base_err err = { 0 };
        tiny_folder(folders[i], sizeof folders[i], "check_tiles");
        int length = snprintf(quantised[i], sizeof quantised[i], "%s/model", folders[i]);
        ck_assert_int_lt(length, (int)sizeof quantised[i]);
        struct quantize q = { .from = source_of(&models[i]), .to = quantised[i],
                              .dtype = models[i].dtype, .dense = models[i].dense,
                              .group = models[i].group,
                              .allow_larger = true, .threads = 1 };
        int rc = quantize_run(&q, &err);
        quantize_fini(&q);
        ck_assert_msg(rc == 0, "%s", err.text);
    }
}

static void teardown(void)
{
    for (int i = 0; i < MODELS; i++) {
        tiny_remove(quantised[i]);
        tiny_remove(folders[i]);
    }
}

/* -- a run ------------------------------------------------------------------------------------ */

static struct run_answer *submit(struct run *run, const char *prompt, uint64_t seed,
                                 uint32_t tokens)
{
    uint32_t count;
    uint32_t *ids = run_encode(run, prompt, &count);
    struct eng_request request = { .prompt = ids, .prompt_tokens = count, .max_tokens = tokens,
                                   .sampling = { .temperature = 0.8f, .top_p = 0.95f,
                                                 .seed = seed },
                                   .ignore_eos = true, .prompt_logits = true };
    struct run_answer *answer = run_submit(run, &request);
    free(ids);
    return answer;
}

static const char *const text = "The kernel is the part of the system that";

/* What a generation came to, as one number. */
static uint64_t hash_from(int model, const char *activations, const char *const *settings,
                          bool neighbours, bool in_tiles)
{
    static struct run run;
    static struct tier_snapshot s;
    char mode[64];
    const char *all[SETTINGS_MAX + 2] = { mode };
    snprintf(mode, sizeof mode, "engine.activations=%s", activations);
    for (int i = 0; settings[i]; i++) all[i + 1] = settings[i];
    run_open(&run, quantised[model], all);
    if (neighbours) {
        submit(&run, "In the beginning God created", 7, 25);
        submit(&run, "#include <stdio.h>\n\nint main(void)\n{", 8, TOKENS + 10);
    }
    struct run_answer *answer = submit(&run, text, 3, TOKENS);
    run_finish(&run);
    ck_assert_uint_eq(answer->token_count, TOKENS);
    uint64_t hash = answer->rows_hash;
    tier_snapshot(run.stack.tier, &s);
    ck_assert((s.io.landing_seconds > 0) != in_tiles);
    run_close(&run);
    return hash;
}

static uint64_t hash_of(int model, const char *activations, const char *const *settings,
                        bool neighbours)
{
    return hash_from(model, activations, settings, neighbours, false);
}

static const char *const modes[] = { "f32", "bf16", "int8" };
enum { MODES = 3 };

static const struct variant {
    const char *settings[SETTINGS_MAX];
    bool neighbours;
} variants[] = {
    { { "tiers.dram.capacity=25%", "engine.threads=2", NULL }, true },
    { { "tiers.dram.capacity=9.375%", "io.backend=sim", "io.sim_latency=2us", NULL }, true },
    { { "tiers.dram.capacity=9.375%", "tiers.verify=first", "scheduler.max_num_batched_tokens=9",
        NULL }, true },
    { { "tiers.hbm.capacity=20%", "tiers.dram.capacity=30%", "tiers.hbm.sim_bandwidth=0", NULL },
      true },
    { { "tiers.hbm.capacity=20%", "tiers.dram.capacity=40%", "tiers.inclusion=inclusive",
        "tiers.hbm.device=host", "engine.threads=2", NULL }, false },
    { { "tiers.hbm.capacity=20%", "tiers.dram.capacity=30%", "tiers.warm_experts=compute",
        "tiers.hbm.sim_bandwidth=0", NULL }, true },
    { { "tiers.dram.capacity=25%", "io.faults=seed=5,eio=0.01,flip=0.01,short=0.01", NULL },
      false },
    { { "tiers.dram.capacity=25%", "engine.cpu_mask=avx2", "scheduler.max_chunked_prefill_tokens=3",
        NULL }, false },
    { { "tiers.dram.capacity=100%", "engine.cpu_mask=reference", NULL }, false },
};
enum { VARIANTS = sizeof variants / sizeof variants[0] };

/* Small models have no room for the shares above: as many slots as a layer needs, and all. */
static const char *const odd_settings[][SETTINGS_MAX] = {
    { "tiers.dram.capacity=50%", "engine.threads=2", NULL },
    { "tiers.dram.capacity=100%", "engine.cpu_mask=avx2", NULL },
    { "tiers.dram.capacity=100%", "engine.cpu_mask=reference", NULL },
    { "tiers.hbm.capacity=50%", "tiers.dram.capacity=50%", "tiers.hbm.sim_bandwidth=0", NULL },
};
enum { ODD_SETTINGS = sizeof odd_settings / sizeof odd_settings[0] };

/* Instrumented, the reference takes longer than all the others; the plain build runs it. */
static bool left_out(const char *const *settings)
{
    return SANITIZED && strstr(settings[1], "reference");
}

START_TEST(nothing_but_the_weights_shows)
{
    static const char *const plain[] = { "tiers.dram.capacity=100%", "engine.threads=1", NULL };
    int model = _i / MODES;
    const char *mode = modes[_i % MODES];
    uint64_t hash = hash_of(model, mode, plain, false);
    if (models[model].from) {
        for (int v = 0; v < ODD_SETTINGS; v++) {
            if (left_out(odd_settings[v])) continue;
            ck_assert_msg(hash_of(model, mode, odd_settings[v], v % 2) == hash,
                          "model %d, %s, %s %s: other bits", model, mode, odd_settings[v][0],
                          odd_settings[v][1]);
        }
        return;
    }
    for (int v = 0; v < VARIANTS; v++) {
        if (left_out(variants[v].settings)) continue;
        /* INT8 has every other of them with bf16, INT4 the rest; with integers the other way. */
        if (_i % MODES > 0 && (v + _i % MODES + model) % 2 == 0) continue;
        ck_assert_msg(hash_of(model, mode, variants[v].settings, variants[v].neighbours) == hash,
                      "model %d, %s, %s %s: other bits", model, mode, variants[v].settings[0],
                      variants[v].settings[1]);
    }
}
END_TEST

/* -- packs ------------------------------------------------------------------------------------ */

static void repack(int model, const char *to)
{
    struct pack_order made;
    struct model_shape shape;
    struct tier_store *store;
    struct base_err err = { 0 };
    const char *const dirs[] = { to };
    struct tier_pack_options options = { .dirs = dirs, .dir_count = 1, .threads = 2 };
    int rc = model_shape_load(&shape, quantised[model], &err);
    if (rc == 0) rc = tier_store_open(&store, quantised[model], NULL, &shape, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    pack_order(&made, &options, TIER_ORDER_TILES, store, &shape);
    rc = tier_store_repack(store, &options, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    tier_store_close(store);
}

/* Nothing is rearranged then, and the bits are the same. */
START_TEST(a_pack_may_have_tiles)
{
    static const char *const plain[] = { "tiers.dram.capacity=100%", NULL };
    char to[3000], index[3040];
    snprintf(to, sizeof to, "%.2990s/pack", folders[_i]);
    snprintf(index, sizeof index, "tiers.nvme.index=%s/expertier.index", to);
    const char *const variants_of[][SETTINGS_MAX] = {
        { index, "tiers.dram.capacity=50%", "engine.threads=2", NULL },
        { index, "tiers.dram.capacity=50%", "engine.cpu_mask=avx2",
          "io.faults=seed=5,eio=0.01,flip=0.01,short=0.01", NULL },
        { index, "tiers.hbm.capacity=50%", "tiers.dram.capacity=50%", "tiers.hbm.sim_bandwidth=0",
          "io.backend=threads", NULL },
    };
    repack(_i, to);
    /* Other engines' leases read rows. */
    struct tier_store *store;
    char why[500];
    ck_assert_int_eq(tier_lib_folder_open(&store, quantised[_i], strchr(index, '=') + 1, why,
                                          sizeof why), BASE_EMISMATCH);
    ck_assert_msg(strstr(why, "lie in tiles"), "%s", why);
    ck_assert_ptr_null(store);
    for (int mode = 0; mode < MODES; mode++) {
        uint64_t hash = hash_of(_i, modes[mode], plain, false);
        for (int v = 0; v < 3; v++) {
            ck_assert_msg(hash_from(_i, modes[mode], variants_of[v], v % 2, true) == hash,
                          "model %d, %s, %s: other bits from a pack in tiles", _i, modes[mode],
                          variants_of[v][2]);
        }
    }
    tiny_remove(to);
}
END_TEST

/* -- what they compute ------------------------------------------------------------------------ */

/* Logits of a prompt's positions; caller frees. */
static float *logits_of(const char *from, const char *activations, size_t *count)
{
    static struct run run;
    char mode[64];
    const char *settings[] = { mode, "tiers.dram.capacity=100%", NULL };
    snprintf(mode, sizeof mode, "engine.activations=%s", activations);
    run_open(&run, from, settings);
    run.keep_rows = true;
    struct run_answer *answer = submit(&run, text, 3, 1);
    run_finish(&run);
    *count = (size_t)answer->row_positions * run.stack.shape.vocab;
    float *rows = malloc(*count * sizeof *rows);
    ck_assert_ptr_nonnull(rows);
    memcpy(rows, answer->rows, *count * sizeof *rows);
    run_close(&run);
    return rows;
}

START_TEST(near_to_what_they_were_made_from)
{
    const struct model *model = &models[_i / MODES];
    const char *mode = modes[_i % MODES];
    size_t want_count, count;
    float *want = logits_of(source_of(model), "f32", &want_count);
    float *have = logits_of(quantised[_i / MODES], mode, &count);
    double energy = 0, error = 0;
    ck_assert_uint_eq(count, want_count);
    for (size_t i = 0; i < count; i++) {
        double difference = (double)have[i] - (double)want[i];
        energy += (double)want[i] * (double)want[i];
        error += difference * difference;
    }
    double relative = sqrt(error / energy);
    printf("%s to %s in groups of %u%s, %s: %.4f\n", model->from ? model->from : "pebble",
           model->dtype == KERN_INT8 ? "INT8" : "INT4", model->group,
           model->dense ? " with its dense weights" : "", mode, relative);
    ck_assert_msg(relative < (strcmp(mode, "int8") == 0 ? model->near_int8 : model->near),
                  "%s: logits differ by %g", mode, relative);
    ck_assert(relative > 0);
    free(want);
    free(have);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiles");
    TCase *tests = tcase_create("tiles");
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, near_to_what_they_were_made_from, 0, MODELS * MODES);
    tcase_add_loop_test(tests, nothing_but_the_weights_shows, 0, MODELS * MODES);
    tcase_add_loop_test(tests, a_pack_may_have_tiles, 0, MODELS);
    tcase_set_timeout(tests, 200);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
