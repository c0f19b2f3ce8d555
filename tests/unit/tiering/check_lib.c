/* A caller's own table of experts of many sizes at odd places of several files is served whole
 * through two and three tiers, wrong tables and settings are refused by name, counters add up,
 * and a resident set is kept over a restart. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/rng.h"
#include "tests/support/make_tiny.h"
#include "tiering/libtiering.h"

enum { LAYERS = 3, EXPERTS = 24, FILES = 2, FILE_BYTES = 400000, TOP_K = 4, STEPS = 300 };

static char folder[1024], paths[FILES][1100], why[640];
static const char *path_list[FILES];
static unsigned char *bytes[FILES];
static struct tier_lib_expert experts[LAYERS * EXPERTS];
static struct tier_lib_table table = { "a test", LAYERS, EXPERTS, FILES, path_list, experts };

/* Parts of 0 to 5000 bytes anywhere in the files, overlapping or not; some shared sizes. */
static void random_table(struct base_rng *rng)
{
    for (uint32_t i = 0; i < LAYERS * EXPERTS; i++) {
        experts[i] = (struct tier_lib_expert){ .hash = 0 };
        unsigned count = 1 + (unsigned)base_rng_below(rng, TIER_PARTS);
        for (unsigned p = 0; p < count; p++) {
            struct tier_lib_piece *piece = &experts[i].parts[base_rng_below(rng, TIER_PARTS)];
            piece->bytes = base_rng_below(rng, 3) ? 1 + base_rng_below(rng, 5000) : 4096;
            piece->offset = base_rng_below(rng, FILE_BYTES - piece->bytes + 1);
            piece->file = (uint32_t)base_rng_below(rng, FILES);
        }
    }
}

static void setup(void)
{
    struct base_rng rng;
    base_rng_init(&rng, 11);
    tiny_folder(folder, sizeof folder, "lib");
    for (int f = 0; f < FILES; f++) {
        snprintf(paths[f], sizeof paths[f], "%s/part%d", folder, f);
        path_list[f] = paths[f];
        bytes[f] = malloc(FILE_BYTES);
        for (int i = 0; i < FILE_BYTES; i++) bytes[f][i] = (unsigned char)base_rng_u64(&rng);
        FILE *file = fopen(paths[f], "wb");
        ck_assert(file && fwrite(bytes[f], 1, FILE_BYTES, file) == FILE_BYTES);
        ck_assert_int_eq(fclose(file), 0);
    }
    random_table(&rng);
}

static void teardown(void)
{
    for (int f = 0; f < FILES; f++) free(bytes[f]);
    tiny_remove(folder);
}

static void check_lease(const struct tier_store *store, const struct tier_lease *lease)
{
    const struct tier_lib_expert *expert = &experts[lease->layer * EXPERTS + lease->expert];
    const uint64_t *sizes = tier_store_part_bytes(store, lease->layer, lease->expert);
    ck_assert_int_eq(lease->status, 0);
    for (int p = 0; p < TIER_PARTS; p++) {
        const struct tier_lib_piece *piece = &expert->parts[p];
        ck_assert_uint_eq(sizes[p], piece->bytes);
        ck_assert_int_eq(lease->parts[p] != NULL, piece->bytes > 0);
        if (piece->bytes == 0) continue;
        ck_assert(memcmp(lease->parts[p], bytes[piece->file] + piece->offset, piece->bytes) == 0);
    }
}

static void serve(struct tier_store *store, const char *const *settings, uint32_t count,
                  uint64_t seed)
{
    struct tier_lib_options options = { store, settings, count, TOP_K };
    struct tier_lib_stats stats;
    struct tier_lease leases[TOP_K];
    struct base_rng rng;
    struct tier *tier;
    uint64_t asked = 0;
    base_rng_init(&rng, seed);
    ck_assert_msg(tier_lib_open(&tier, &options, why, sizeof why) == 0, "%s", why);
    for (int step = 0; step < STEPS; step++) {
        uint32_t layer = (uint32_t)base_rng_below(&rng, LAYERS), ids[TOP_K];
        uint32_t first = (uint32_t)base_rng_below(&rng, EXPERTS);
        for (uint32_t i = 0; i < TOP_K; i++) ids[i] = (first + i * i) % EXPERTS;
        for (uint32_t done = 0, k; done < TOP_K; done += k) {
            k = tier_acquire(tier, layer, ids + done, TOP_K - done, TIER_DECODE, leases);
            ck_assert_uint_gt(k, 0);
            tier_wait(tier, leases, k, TIER_WAIT_ALL, UINT64_MAX);
            for (uint32_t i = 0; i < k; i++) check_lease(store, &leases[i]);
            tier_release(tier, leases, k);
            asked += k;
        }
        tier_step_end(tier);
    }
    tier_lib_stats_get(tier, &stats, sizeof stats);
    const struct tier_lib_tier *top = &stats.tiers[0];
    ck_assert_uint_eq(top->lookups, asked);
    ck_assert_uint_eq(top->hits + top->late + top->misses, asked);
    ck_assert_uint_eq(stats.steps, STEPS);
    ck_assert_uint_gt(top->hits, 0);
    ck_assert_uint_gt(stats.demand_reads, 0);
    ck_assert_uint_eq(stats.quarantined, 0);
    /* A caller that was built when the struct was shorter. */
    uint64_t guard[3] = { 1, 2, 3 };
    tier_lib_stats_get(tier, (struct tier_lib_stats *)guard, sizeof guard[0]);
    ck_assert_uint_eq((uint32_t)guard[0], stats.tier_count);
    ck_assert_uint_eq(guard[1], 2);
    tier_close(tier);
}

START_TEST(tables_of_any_sizes)
{
    static const char *const two[] = { "tiers.dram.capacity=40%", "policy.eviction=slru" };
    static const char *const three[] = { "tiers.dram.capacity=40%", "tiers.hbm.capacity=25%",
                                         "tiers.hbm.sim_bandwidth=0" };
    static const char *const threads[] = { "tiers.dram.capacity=40%", "io.backend=threads",
                                           "io.direct=off" };
    struct tier_store *store;
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i + 100);
    random_table(&rng);
    ck_assert_msg(tier_lib_table_hash(&table, 2, why, sizeof why) == 0, "%s", why);
    ck_assert_msg(tier_lib_table_open(&store, &table, why, sizeof why) == 0, "%s", why);
    ck_assert_str_eq(why, "");
    ck_assert_uint_eq(tier_store_layers(store), LAYERS);
    ck_assert_uint_eq(tier_store_experts(store), EXPERTS);
    serve(store, two, 2, (uint64_t)_i);
    serve(store, three, 3, (uint64_t)_i);
    serve(store, threads, 3, (uint64_t)_i);
    tier_store_close(store);
}
END_TEST

static void refused(int code, const char *part)
{
    struct tier_store *store;
    int rc = tier_lib_table_open(&store, &table, why, sizeof why);
    ck_assert_int_eq(rc, code);
    ck_assert_ptr_null(store);
    ck_assert_msg(strstr(why, part) != NULL, "\"%s\" lacks \"%s\"", why, part);
    ck_assert_int_eq(tier_lib_table_hash(&table, 1, NULL, 0), code);
}

START_TEST(wrong_tables_get_a_sentence)
{
    struct tier_lib_piece *piece = &experts[EXPERTS + 2].parts[3], was = *piece;
    *piece = (struct tier_lib_piece){ .offset = FILE_BYTES - 9, .bytes = 10 };
    refused(-EINVAL, "a test: expert 2 of layer 1: part 3 lies at byte 399991 with 10 bytes, but ");
    *piece = (struct tier_lib_piece){ .offset = UINT64_MAX - 4, .bytes = 10 };
    refused(-EINVAL, "part 3 lies at byte 18446744073709551611");
    *piece = (struct tier_lib_piece){ .file = 2, .bytes = 10 };
    refused(-EINVAL, "part 3 is in file 2, there are 2");
    *piece = was;
    struct tier_lib_expert expert = experts[5];
    memset(&experts[5], 0, sizeof experts[5]);
    refused(-EINVAL, "expert 5 of layer 0 has 0 bytes");
    experts[5] = expert;
    path_list[1] = "/nonexistent/part";
    refused(-ENOENT, "/nonexistent/part: No such file");
    path_list[1] = folder;
    refused(-EINVAL, "neither a file nor a block device");
    path_list[1] = paths[1];
    table.layers = 0;
    refused(-EINVAL, "a test: 0 layers of 24 experts");
    table.layers = LAYERS;
    table.name = NULL;
    table.file_count = 0;
    refused(-EINVAL, "(table of experts): 0 files");
    table.name = "a test";
    table.file_count = FILES;
}
END_TEST

START_TEST(wrong_settings_get_a_sentence)
{
    static const struct {
        const char *setting, *part;
    } cases[] = {
        { "tiers.dram.capacty=1", "settings[0]: tiers.dram.capacty: unknown key; the nearest known "
                                  "one is tiers.dram.capacity" },
        { "engine.threads=1", "settings[0]: engine.threads: unknown key" },
        { "tiers.dram.capacity", "settings[0]: \"tiers.dram.capacity\" is not key=value" },
        { "=1", "settings[0]: \"=1\" is not key=value" },
        { "policy.eviction=lfru", "settings[0]: policy.eviction: " },
        { "tiers=1", "settings[0]: tiers: is a section" },
        { "tiers.nvme.index=x", "tiers.nvme.index: has no effect here" },
        { "tiers.dram.capacity=4%", "top_k" },
    };
    struct tier_store *store;
    struct tier *tier;
    ck_assert_int_eq(tier_lib_table_hash(&table, 1, why, sizeof why), 0);
    ck_assert_int_eq(tier_lib_table_open(&store, &table, why, sizeof why), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tier_lib_options options = { store, &cases[i].setting, 1, TOP_K };
        ck_assert_int_lt(tier_lib_open(&tier, &options, why, sizeof why), 0);
        ck_assert_ptr_null(tier);
        ck_assert_msg(strstr(why, cases[i].part) != NULL, "\"%s\" lacks \"%s\"", why,
                      cases[i].part);
        ck_assert_msg(!strstr(why, "--"), "of a command line: %s", why);
    }
    tier_store_close(store);
    ck_assert_int_lt(tier_lib_folder_open(&store, folder, NULL, why, sizeof why), 0);
    ck_assert_ptr_nonnull(strstr(why, "there is no expert index"));
}
END_TEST

/* What was resident at the end is so again at the start, pinned or not, and found by its hashes. */
START_TEST(a_resident_set_is_kept)
{
    char warm[1200];
    snprintf(warm, sizeof warm, "tiers.warm.path=%s/warm", folder);
    const char *settings[] = { "tiers.dram.capacity=60%", warm,
                               _i ? "policy.eviction=pinned" : "policy.eviction=lfu" };
    struct tier_lib_options options = { .settings = settings, .setting_count = 3, .top_k = TOP_K };
    struct tier_lease leases[TOP_K];
    struct tier_lib_stats stats;
    struct tier *tier;
    uint32_t ids[TOP_K] = { 3, 20, 9, 14 };
    ck_assert_int_eq(tier_lib_table_hash(&table, 1, why, sizeof why), 0);
    ck_assert_int_eq(tier_lib_table_open(&options.store, &table, why, sizeof why), 0);
    for (int life = 0; life < 2; life++) {
        ck_assert_msg(tier_lib_open(&tier, &options, why, sizeof why) == 0, "%s", why);
        for (int i = 0; life == 1 && i < 1000; i++) {
            tier_step_end(tier);
            usleep(1000);
            tier_lib_stats_get(tier, &stats, sizeof stats);
            if (stats.tiers[0].resident_slots == TOP_K && i > 100) break;
        }
        ck_assert_uint_eq(tier_acquire(tier, 1, ids, TOP_K, TIER_DECODE, leases), TOP_K);
        ck_assert_uint_eq(tier_wait(tier, leases, TOP_K, TIER_WAIT_ALL, UINT64_MAX), TOP_K);
        for (int i = 0; i < TOP_K; i++) check_lease(options.store, &leases[i]);
        tier_release(tier, leases, TOP_K);
        tier_step_end(tier);
        tier_lib_stats_get(tier, &stats, sizeof stats);
        ck_assert_uint_eq(stats.tiers[0].misses, life ? 0 : TOP_K);
        ck_assert_uint_eq(stats.demand_reads, life ? 0 : TOP_K);
        tier_close(tier);
    }
    tier_store_close(options.store);
    /* Of other experts it is not overwritten. */
    experts[0].parts[0] = (struct tier_lib_piece){ .bytes = 77 };
    ck_assert_int_eq(tier_lib_table_hash(&table, 1, why, sizeof why), 0);
    ck_assert_int_eq(tier_lib_table_open(&options.store, &table, why, sizeof why), 0);
    ck_assert_int_eq(tier_lib_open(&tier, &options, why, sizeof why), BASE_EMISMATCH);
    ck_assert_msg(strstr(why, "tiers.warm.path: ") == why, "%s", why);
    tier_store_close(options.store);
}
END_TEST

static char logged[1000];
static enum tier_lib_level logged_level;

static void log_line(void *context, enum tier_lib_level level, const char *text)
{
    ck_assert_ptr_eq(context, logged);
    snprintf(logged, sizeof logged, "%s", text);
    logged_level = level;
}

START_TEST(a_wrong_hash_is_told_and_the_log_goes_where_asked)
{
    static const char *const settings[] = { "tiers.dram.capacity=100%" };
    struct tier_lib_options options = { .settings = settings, .setting_count = 1, .top_k = 2 };
    struct tier_lease leases[2];
    struct tier_lib_stats stats;
    struct tier *tier;
    uint32_t ids[2] = { 7, 8 };
    ck_assert_int_eq(tier_lib_table_hash(&table, 1, why, sizeof why), 0);
    experts[7].hash ^= 1;
    ck_assert_int_eq(tier_lib_table_open(&options.store, &table, why, sizeof why), 0);
    ck_assert_int_eq(tier_lib_open(&tier, &options, why, sizeof why), 0);
    tier_lib_log_set(log_line, logged);
    ck_assert_uint_eq(tier_acquire(tier, 0, ids, 2, TIER_DECODE, leases), 2);
    ck_assert_uint_eq(tier_wait(tier, leases, 2, TIER_WAIT_ALL, UINT64_MAX), 2);
    tier_lib_log_set(NULL, NULL);
    ck_assert_int_lt(leases[0].status, 0);
    check_lease(options.store, &leases[1]);
    ck_assert_int_lt(tier_failure_text(tier, 0, 7, why, sizeof why), 0);
    ck_assert_ptr_nonnull(strstr(why, "expert 7 of layer 0 could not be read: checksum mismatch"));
    ck_assert_ptr_nonnull(strstr(logged, "expert given up: checksum mismatch layer=0 expert=7"));
    ck_assert_int_eq(logged_level, TIER_LIB_ERROR);
    tier_release(tier, leases, 2);
    tier_step_end(tier);
    tier_lib_stats_get(tier, &stats, sizeof stats);
    ck_assert_uint_eq(stats.quarantined, 1);
    ck_assert_uint_eq(stats.checksum_failures, 3);
    tier_close(tier);
    tier_store_close(options.store);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lib");
    TCase *tcase = tcase_create("lib");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, tables_of_any_sizes, 0, 6);
    tcase_add_test(tcase, wrong_tables_get_a_sentence);
    tcase_add_test(tcase, wrong_settings_get_a_sentence);
    tcase_add_loop_test(tcase, a_resident_set_is_kept, 0, 2);
    tcase_add_test(tcase, a_wrong_hash_is_told_and_the_log_goes_where_asked);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
