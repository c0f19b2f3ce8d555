/* A what-if begins with what the trace says of its server, or with a file; what is set goes over
 * that and over nothing else. The cache that it describes is the one that the server had. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/replay.h"

static const char recorded_yaml[] = "tiers:\n"
                                    "  hbm:\n"
                                    "    capacity: 12.5%\n"
                                    "  dram:\n"
                                    "    capacity: 100MiB\n"
                                    "  inclusion: inclusive\n"
                                    "policy:\n"
                                    "  eviction: lfu\n"
                                    "  eviction_dram: s3fifo\n"
                                    "  half_life: 9\n"
                                    "  prefill_share: 30%\n"
                                    "predictor:\n"
                                    "  kind: none\n";

/* A server's trace; its dram had spare slots, so there are fewer than 100 MiB hold. */
static struct pred_trace_header server_header(void)
{
    return (struct pred_trace_header){
        .source = "server", .layers = 4, .experts = 32, .top_k = 2, .slot_bytes = 1 << 20,
        .yaml = recorded_yaml,
        .decide = { .layers = 4, .experts = 32, .top_k = 2, .tier_count = 2,
                    .tiers = { { .slots = 16, .policy = "lfu" },
                               { .slots = 96, .policy = "s3fifo" } } },
    };
}

static struct pred_trace_header import_header(void)
{
    return (struct pred_trace_header){ .source = "jsonl", .layers = 4, .experts = 32, .top_k = 2,
                                       .yaml = "" };
}

/* The configuration with these pairs set; NULL = none. */
static struct cli_replay_config *load(const char *path, const struct pred_trace_header *recorded,
                                      const char *first, const char *second)
{
    struct cli_replay_config *config;
    struct cli_list set = { 0 };
    struct base_err err = { 0 };
    if (first) set.text[set.count++] = first;
    if (second) set.text[set.count++] = second;
    int rc = cli_replay_config_load(&config, path, recorded, &set, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    return config;
}

static uint64_t slots_of(const struct cli_replay_config *config,
                         const struct pred_trace_header *header, enum cli_replay_tier tier)
{
    struct base_err err = { 0 };
    uint64_t slots;
    int rc = cli_replay_config_slots(config, header, tier, &slots, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    return slots;
}

/* Cache and slots of both tiers. */
struct whole {
    struct cli_replay_cache cache;
    uint64_t hbm, dram;
};

/* Ends the configuration. */
static struct whole whole_of(struct cli_replay_config *config,
                             const struct pred_trace_header *header)
{
    struct whole whole;
    struct base_err err = { 0 };
    int rc = cli_replay_config_cache(config, &whole.cache, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    whole.hbm = slots_of(config, header, CLI_REPLAY_HBM);
    whole.dram = slots_of(config, header, CLI_REPLAY_DRAM);
    cli_replay_config_free(config);
    return whole;
}

static void same(const struct whole *x, const struct whole *y)
{
    const struct cli_replay_cache *a = &x->cache, *b = &y->cache;
    ck_assert_uint_eq(x->hbm, y->hbm);
    ck_assert_uint_eq(x->dram, y->dram);
    ck_assert_uint_eq(a->tier_count, b->tier_count);
    ck_assert_int_eq(a->inclusive, b->inclusive);
    ck_assert_int_eq(a->warm_compute, b->warm_compute);
    ck_assert_int_eq(a->adaptive, b->adaptive);
    ck_assert_str_eq(a->policy, b->policy);
    ck_assert_str_eq(a->policy_below, b->policy_below);
    ck_assert_double_eq(a->half_life_tokens, b->half_life_tokens);
    ck_assert_double_eq(a->prefill_share, b->prefill_share);
}

START_TEST(the_recorded_cache_comes_back)
{
    struct pred_trace_header h = server_header();
    struct whole got = whole_of(load(NULL, &h, NULL, NULL), &h), want = {
        .cache = { .tier_count = 2, .inclusive = true, .policy = "lfu", .policy_below = "s3fifo",
                   .half_life_tokens = 9, .prefill_share = 0.3 },
        .hbm = 16, .dram = 96,
    };
    same(&got, &want);
    struct cli_replay_config *config = load(NULL, &h, NULL, NULL);
    ck_assert(cli_replay_config_is(config, "predictor.kind", "none"));
    cli_replay_config_free(config);
}
END_TEST

START_TEST(one_setting_changes_one_thing)
{
    struct pred_trace_header h = server_header();
    struct whole base = whole_of(load(NULL, &h, NULL, NULL), &h), want = base, got;
    /* What is there already, and what is none of the cache's business. */
    got = whole_of(load(NULL, &h, "policy.half_life=9", "predictor.kind=blend"), &h);
    same(&got, &base);
    got = whole_of(load(NULL, &h, "policy.half_life=16", NULL), &h);
    want.cache.half_life_tokens = 16;
    same(&got, &want);
    want = base;
    got = whole_of(load(NULL, &h, "tiers.dram.capacity=64MiB", "policy.eviction_dram=same"), &h);
    want.dram = 64;
    want.cache.policy_below[0] = '\0';
    same(&got, &want);
    want = base;
    got = whole_of(load(NULL, &h, "tiers.hbm.capacity=25%", "policy.quotas=adaptive"), &h);
    want.hbm = 32;
    want.cache.adaptive = true;
    same(&got, &want);
    /* What has a sense with hbm alone is refused without it. */
    struct base_err err = { 0 };
    got = whole_of(load(NULL, &h, "tiers.hbm.capacity=0", NULL), &h);
    ck_assert_uint_eq(got.cache.tier_count, 1);
    ck_assert_uint_eq(got.dram, 96);
    ck_assert_int_eq(cli_replay_cache_without_hbm(&got.cache, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "tiers.inclusion"));
}
END_TEST

START_TEST(an_import_has_nothing_set_aside)
{
    struct pred_trace_header h = import_header();
    struct whole got = whole_of(load(NULL, &h, NULL, NULL), &h), want = {
        .cache = { .tier_count = 1, .policy = "lru_with_prediction", .half_life_tokens = 16,
                   .prefill_share = 1 },
        .dram = 32,
    };
    same(&got, &want);
    got = whole_of(load(NULL, &h, "predictor.kind=none", NULL), &h);
    same(&got, &want);
    got = whole_of(load(NULL, &h, "policy.prefill_share=50%", NULL), &h);
    want.cache.prefill_share = 0.5;
    same(&got, &want);
    /* What begins with the defaults has theirs. */
    got = whole_of(load(NULL, NULL, NULL, NULL), &h);
    same(&got, &want);
}
END_TEST

/* A file goes before what was recorded, with all its defaults. */
START_TEST(a_file_goes_first)
{
    char path[] = "/tmp/expertier-check-XXXXXX";
    struct pred_trace_header h = server_header();
    static const char text[] = "policy:\n  eviction: arc\n";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, sizeof text - 1), (ssize_t)(sizeof text - 1));
    close(fd);
    struct whole got = whole_of(load(path, &h, NULL, NULL), &h), want = {
        .cache = { .tier_count = 1, .policy = "arc", .half_life_tokens = 16,
                   .prefill_share = 0.5 },
        .dram = 32,
    };
    same(&got, &want);
    unlink(path);
}
END_TEST

START_TEST(what_cannot_be_read_is_said)
{
    struct pred_trace_header h = server_header();
    struct cli_replay_config *config;
    struct cli_replay_cache cache;
    struct cli_list set = { 0 };
    struct base_err err = { 0 };
    uint64_t slots;
    h.yaml = "policy:\n  evictoin: lfu\n";
    ck_assert_int_eq(cli_replay_config_load(&config, NULL, &h, &set, &err), BASE_EFORMAT);
    ck_assert_ptr_null(config);
    ck_assert_ptr_nonnull(strstr(err.text, "recorded in the trace:2:"));
    ck_assert_ptr_nonnull(strstr(err.text, "--config FILE"));
    err = (struct base_err){ 0 };
    h = server_header();
    config = load(NULL, &h, "policy.quotas=2,1,1,1", NULL);
    ck_assert_int_eq(cli_replay_config_cache(config, &cache, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "policy.quotas"));
    cli_replay_config_free(config);
    err = (struct base_err){ 0 };
    h = import_header();
    config = load(NULL, &h, "tiers.dram.capacity=64MiB", NULL);
    ck_assert_int_eq(cli_replay_config_slots(config, &h, CLI_REPLAY_DRAM, &slots, &err),
                     BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "how large a slot is"));
    cli_replay_config_free(config);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("replay_config");
    tcase_add_test(tcase, the_recorded_cache_comes_back);
    tcase_add_test(tcase, one_setting_changes_one_thing);
    tcase_add_test(tcase, an_import_has_nothing_set_aside);
    tcase_add_test(tcase, a_file_goes_first);
    tcase_add_test(tcase, what_cannot_be_read_is_said);
    Suite *suite = suite_create("tools/replay_config");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
