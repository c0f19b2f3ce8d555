/* Opening refuses, with a sentence, dense weights that are missing, misshapen or damaged, settings
 * that cannot take effect, and folders it cannot write an index to. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/limits.h"
#include "engine/weights.h"
#include "tests/support/make_tiny.h"
#include "tests/support/run_stack.h"
#include "tools/pack_quantize.h"

static char dir[3000];

static void setup(void)
{
    struct tiny_options options = tiny_defaults();
    tiny_folder(dir, sizeof dir, "check_open");
    tiny_write(dir, &options);
}

static void teardown(void)
{
    tiny_remove(dir);
}

/* --------------------------------------------------------------------------------- weights -- */

static void patch(uint64_t offset, const void *bytes, size_t size)
{
    char path[3100];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    int fd = open(path, O_WRONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, bytes, size, (off_t)offset), (ssize_t)size);
    close(fd);
}

static uint64_t offset_of(const char *tensor)
{
    struct model_files *files;
    struct base_err err = { 0 };
    ck_assert_msg(model_files_open(&files, dir, &err) == 0, "%s", err.text);
    const struct model_tensor *found = model_files_find(files, tensor);
    ck_assert_msg(found != NULL, "%s", tensor);
    uint64_t offset = found->offset;
    model_files_close(files);
    return offset;
}

/* Overwrites the first `from` of the header by `to`, of the same length. */
static void patch_header(const char *from, const char *to)
{
    char path[3100];
    static char header[1 << 20];
    ck_assert_uint_eq(strlen(from), strlen(to));
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    int fd = open(path, O_RDONLY);
    ssize_t size = pread(fd, header, sizeof header - 1, 8);
    ck_assert_int_gt(size, 0);
    close(fd);
    char *at = memmem(header, (size_t)size, from, strlen(from));
    ck_assert_msg(at != NULL, "the header has no %s", from);
    patch(8 + (uint64_t)(at - header), to, strlen(to));
}

static int load(struct base_err *err)
{
    struct model_shape shape;
    struct model_files *files;
    struct eng_weights weights;
    int rc = model_shape_load(&shape, dir, err);
    if (rc == 0) rc = model_files_open(&files, dir, err);
    ck_assert_msg(rc == 0, "%s", err->text);
    rc = eng_weights_load(&weights, &shape, files, NULL, &(struct eng_weights_order){ 0 }, err);
    if (rc == 0) {
        struct eng_weights_need need;
        ck_assert_int_eq(eng_weights_plan(&shape, files, NULL, &need, err), 0);
        ck_assert_uint_eq(need.bytes, weights.bytes);
        eng_weights_free(&weights);
    }
    model_files_close(files);
    return rc;
}

static void refused(int code, const char *what, const char *why)
{
    struct base_err err = { 0 };
    int rc = load(&err);
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err.text, what) && strstr(err.text, why),
                  "'%s' does not say '%s' and '%s'", err.text, what, why);
}

START_TEST(good_weights_load)
{
    struct base_err err = { 0 };
    ck_assert_msg(load(&err) == 0, "%s", err.text);
}
END_TEST

START_TEST(a_missing_tensor_is_named)
{
    static const char *const names[][2] = {
        { "model.norm.weight", "model.morn.weight" },
        { "model.layers.2.self_attn.kv_b_proj.weight\"",
          "model.layers.2.self_attn.kv_c_proj.weight\"" },
        { "model.layers.1.mlp.gate.e_score_correction_bias",
          "model.layers.1.mlp.gate.e_score_correction_bios" },
        { "model.layers.0.mlp.up_proj.weight_scale_inv",
          "model.layers.0.mlp.up_proj.weight_scale_inw" },
    };
    char name[80];
    patch_header(names[_i][0], names[_i][1]);
    snprintf(name, sizeof name, "'%.*s'", (int)strcspn(names[_i][0], "\""), names[_i][0]);
    refused(BASE_EMISMATCH, name, "missing");
}
END_TEST

START_TEST(fp8_nan_codes_and_bad_scales_are_refused)
{
    static const float bad[] = { 0.0f / 0.0f, 1.0f / 0.0f };
    unsigned char code = _i == 0 ? 0x7f : 0xff;
    if (_i < 2) {
        patch(offset_of("model.layers.1.self_attn.o_proj.weight") + 5, &code, 1);
        refused(BASE_EFORMAT, "model.layers.1.self_attn.o_proj.weight", "element 5");
    } else {
        patch(offset_of("model.layers.0.mlp.down_proj.weight_scale_inv"), &bad[_i - 2], 4);
        refused(BASE_EFORMAT, "model.layers.0.mlp.down_proj.weight_scale_inv", "finite");
    }
}
END_TEST

START_TEST(of_several_damaged_tensors_the_first_is_named)
{
    unsigned char code = 0x7f;
    patch(offset_of("model.layers.1.self_attn.o_proj.weight") + 5, &code, 1);
    patch(offset_of("model.layers.0.self_attn.o_proj.weight") + 203, &code, 1);
    for (int i = 0; i < 20; i++) {
        refused(BASE_EFORMAT, "model.layers.0.self_attn.o_proj.weight", "element 203;");
    }
}
END_TEST

START_TEST(a_wrong_shape_is_told)
{
    /* The tensor keeps its length, so that only its shape is wrong. */
    struct model_files *files;
    struct base_err err = { 0 };
    char from[200], to[200];
    ck_assert_int_eq(model_files_open(&files, dir, &err), 0);
    const struct model_tensor *t = model_files_find(files, "model.layers.0.mlp.up_proj.weight");
    ck_assert_ptr_nonnull(t);
    snprintf(from, sizeof from, "[%u,%u]", (unsigned)t->shape[0], (unsigned)t->shape[1]);
    snprintf(to, sizeof to, "[%u,%u]", (unsigned)t->shape[1], (unsigned)t->shape[0]);
    model_files_close(files);
    patch_header(from, to);
    refused(BASE_EMISMATCH, "the shape", "config.json asks for");
}
END_TEST

/* ------------------------------------------------------------------------- weights in INT8 -- */

/* The model's dense weights become INT8. */
static void quantise(void)
{
    char to[3010];
    struct base_err err = { 0 };
    snprintf(to, sizeof to, "%s.int8", dir);
    struct quantize q = { .from = dir, .to = to, .dtype = KERN_DTYPE_COUNT, .dense = true,
                          .group = 32, .allow_larger = true, .threads = 1 };
    int rc = quantize_run(&q, &err);
    quantize_fini(&q);
    ck_assert_msg(rc == 0, "%s", err.text);
    tiny_remove(dir);
    ck_assert_int_eq(rename(to, dir), 0);
}

START_TEST(damaged_int8_is_refused)
{
    static const char *const o = "model.layers.1.self_attn.o_proj.weight";
    static const uint16_t infinite = 0x7f80;
    struct base_err err = { 0 };
    char name[100];
    quantise();
    ck_assert_msg(load(&err) == 0, "%s", err.text);
    switch (_i) {
    case 0:
        snprintf(name, sizeof name, "%s_scale_inv", o);
        patch(offset_of(name) + 2, &infinite, 2);
        refused(BASE_EFORMAT, name, "no finite number");
        break;
    case 1:
        patch_header("\"dtype\":\"I8\"", "\"dtype\":\"U8\"");
        refused(BASE_EMISMATCH, "is U8", "only routed experts can be U8");
        break;
    case 2:
        patch_header("model.layers.1.self_attn.o_proj.weight_scale_inv",
                     "model.layers.1.self_attn.o_proj.weight_scale_inw");
        refused(BASE_EMISMATCH, "o_proj.weight_scale_inv", "missing");
        break;
    }
}
END_TEST

/* -------------------------------------------------------------------------------- settings -- */

START_TEST(settings_that_cannot_work_are_refused)
{
    static const struct {
        const char *settings[3];
        int code;
        const char *says;
    } rows[] = {
        { { "scheduler.max_model_len=5000" }, BASE_ECONFIG, "4096 positions" },
        { { "scheduler.max_model_len=4096", "kv.blocks_per_sequence_max=10" },
          BASE_ECONFIG,
          "160 tokens" },
        { { "scheduler.max_num_seqs=64", "scheduler.max_num_batched_tokens=64" },
          BASE_ECONFIG,
          "must be larger" },
        { { "kv.capacity=1KiB" }, BASE_EBUDGET, "not even one block" },
        { { "kv.capacity=1MiB", "scheduler.max_model_len=1000" }, BASE_EBUDGET,
          "464 tokens, a sequence of scheduler.max_model_len 1000 takes 2.15 MiB" },
        { { "kv.capacity=lots" }, BASE_ECONFIG, "neither a size" },
        { { "scheduler.max_model_len=1" }, BASE_ECONFIG, "no room for an answer" },
        { { "tiers.dram.capacity=3%" }, BASE_EBUDGET, "" },
        { { "tiers.nvme.index=/proc/nowhere/experts.index" }, -ENOENT, "" },
    };
    static struct run run;
    struct base_err err = { 0 };
    int rc = run_try_open(&run, run_pebble(), rows[_i].settings, &err);
    ck_assert_msg(rc < 0, "%s was accepted", rows[_i].settings[0]);
    ck_assert_msg(rc == rows[_i].code, "%s: code %d, '%s'", rows[_i].settings[0], rc, err.text);
    ck_assert_msg(err.text[0] && strstr(err.text, rows[_i].says), "%s: '%s' does not say '%s'",
                  rows[_i].settings[0], err.text, rows[_i].says);
    run_close(&run);
}
END_TEST

/* Before they fail step by step: kernels of a card count to 65535, MPI to 2^31. */
START_TEST(steps_that_are_too_large_are_refused)
{
    static struct run run;
    const struct eng_ranks two = { .count = 2, .tensor = 2, .expert = 2 };
    const struct {
        const struct eng_ranks *ranks;
        bool on_device;
        uint32_t most;          /* tokens; 0: no limit here */
    } rows[] = { { NULL, true, 65535 },
                 { NULL, false, 0 },
                 /* 6 experts a token, for 2 ranks 128 outputs and a word each. */
                 { &two, false, INT32_MAX / (6 * 2 * 129) } };
    run_open(&run, run_pebble(), NULL);
    struct model_shape shape = run.stack.shape;
    struct eng_config config = run.stack.config.engine;
    shape.positions_max = 1 << 22;
    config.max_model_len = shape.positions_max;
    config.max_chunked_prefill_tokens = shape.positions_max;
    config.kv_blocks_per_sequence_max = shape.positions_max;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (uint32_t more = 0; more < 2; more++) {
            struct eng_footprint footprint;
            struct base_err err = { 0 };
            char most[40];
            config.max_num_batched_tokens = (rows[i].most ? rows[i].most : 2000000) + more;
            int rc = eng_footprint(&config, &shape, run.stack.files, run.stack.store,
                                   rows[i].ranks, rows[i].on_device, &footprint, &err);
            if (more == 0 || rows[i].most == 0) {
                ck_assert_msg(rc == 0, "%zu: %s", i, err.text);
                continue;
            }
            ck_assert_int_eq(rc, BASE_ECONFIG);
            snprintf(most, sizeof most, "make it at most %u", rows[i].most);
            ck_assert_msg(strstr(err.text, "scheduler.max_num_batched_tokens: ") &&
                          strstr(err.text, most), "'%s'", err.text);
        }
    }
    run_close(&run);
}
END_TEST

START_TEST(the_footprint_is_what_open_takes)
{
    static struct run run;
    struct base_err err = { 0 };
    struct eng_footprint footprint;
    run_open(&run, run_pebble(), NULL);
    ck_assert_int_eq(eng_footprint(&run.stack.config.engine, &run.stack.shape, run.stack.files,
                                   run.stack.store, NULL, false, &footprint, &err),
                     0);
    struct eng_metrics metrics;
    eng_snapshot(run.stack.engine, &metrics);
    /* 7 layers x (64 + 16) numbers x 4 bytes a token, 8 sequences of 4096 tokens. */
    ck_assert_uint_eq(footprint.kv_bytes, UINT64_C(7) * 80 * 4 * 8 * 4096);
    ck_assert_uint_eq(metrics.kv_blocks, 8 * 4096 / 16);
    ck_assert_uint_gt(footprint.dense_bytes, 4096 * 256 * 2 * 2);
    ck_assert_uint_lt(footprint.dense_bytes, 16 << 20);
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    struct eng_stack_args args = { .model_dir = run_pebble(),
                                   .config = &run.stack.config,
                                   .quiet = true };
    ck_assert_msg(eng_stack_print_footprint(&args, to, &err) == 0, "%s", err.text);
    fclose(to);
    static const char *const rows[] = { "dense weights", "kv cache", "activations",
                                        "dram slots",    "tables",   "sum" };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ck_assert_msg(strstr(text, rows[i]) != NULL, "no row '%s' in:\n%s", rows[i], text);
    }
    free(text);
    run_close(&run);
}
END_TEST

/* Here there is either no CUDA in the build or no card in the machine, and it is told which. */
START_TEST(a_card_that_cannot_be_had_is_told)
{
    static const char *const card[] = { "tiers.hbm.device=cuda", "tiers.hbm.capacity=50%", NULL };
    static const char *const no_slots[] = { "tiers.hbm.device=cuda", NULL };
    static const char *const spared[] = { "tiers.hbm.headroom=5%", NULL };
    static struct run run;
    struct base_err err = { 0 };
    int rc = run_try_open(&run, run_pebble(), card, &err);
    if (rc == 0) {
        printf("a card is here: that case is not shown\n");
    } else {
        ck_assert_msg(strstr(err.text, "this build has no CUDA") || strstr(err.text, "no card"),
                      "%s", err.text);
    }
    run_close(&run);
    err = (struct base_err){ 0 };
    ck_assert_int_eq(run_try_open(&run, run_pebble(), no_slots, &err), BASE_ECONFIG);
    ck_assert_msg(strstr(err.text, "tiers.hbm.capacity"), "%s", err.text);
    run_close(&run);
    err = (struct base_err){ 0 };
    ck_assert_int_eq(run_try_open(&run, run_pebble(), spared, &err), BASE_ECONFIG);
    ck_assert_msg(strstr(err.text, "tiers.hbm.headroom"), "%s", err.text);
    run_close(&run);
}
END_TEST

/* A folder that cannot be written gets its index elsewhere, or a message that says how. */
START_TEST(a_read_only_folder_says_what_to_set)
{
    struct base_err err = { 0 };
    static struct eng_stack_config config;
    struct base_option_group groups[ENG_STACK_GROUPS];
    base_option_defaults(groups, eng_stack_groups(&config, groups));
    struct eng_stack_args args = { .model_dir = dir, .config = &config, .quiet = true };
    ck_assert_int_eq(chmod(dir, 0555), 0);
    /* Permissions do not bind root. */
    if (geteuid() == 0) ck_assert_int_eq(seteuid(65534), 0);
    char path[3100];
    snprintf(path, sizeof path, "%s/config.json", dir);
    int fd = open(path, O_RDONLY);
    bool reachable = fd >= 0;
    if (reachable) close(fd);
    int rc = eng_stack_print_footprint(&args, stderr, &err);
    if (getuid() == 0) ck_assert_int_eq(seteuid(0), 0);
    ck_assert_int_eq(chmod(dir, 0755), 0);
    if (!reachable) {
        printf("%s cannot be reached by other users: the read-only case is not shown here\n", dir);
        return;
    }
    ck_assert_int_eq(rc, -EACCES);
    ck_assert_msg(strstr(err.text, "tiers.nvme.index"), "%s", err.text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("open");
    TCase *tests = tcase_create("open");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, good_weights_load);
    tcase_add_loop_test(tests, a_missing_tensor_is_named, 0, 4);
    tcase_add_loop_test(tests, fp8_nan_codes_and_bad_scales_are_refused, 0, 4);
    tcase_add_test(tests, of_several_damaged_tensors_the_first_is_named);
    tcase_add_test(tests, a_wrong_shape_is_told);
    tcase_add_loop_test(tests, damaged_int8_is_refused, 0, 3);
    tcase_add_loop_test(tests, settings_that_cannot_work_are_refused, 0, 8);
    tcase_add_test(tests, steps_that_are_too_large_are_refused);
    tcase_add_test(tests, the_footprint_is_what_open_takes);
    tcase_add_test(tests, a_card_that_cannot_be_had_is_told);
    tcase_add_test(tests, a_read_only_folder_says_what_to_set);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
