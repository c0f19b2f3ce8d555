/* A mirror pack serves every expert while one copy of it is whole, and counts each turn to another
 * copy; an expert whose copies are all bad is given up, and the sentence says so. Both stay so when
 * sizes and policies change. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "port/hash.h"
#include "tests/support/make_tiny.h"
#include "tests/support/tier_settings.h"
#include "tiering/tiering.h"

enum { EXPERTS = 16, TOP_K = 4, DIRS_MAX = 3 };

static char model[3000], dirs[DIRS_MAX][3000];
static struct tier_store *pack;
static struct tier *tier;
static struct tier_config config;

static void open_mirror(unsigned copies)
{
    struct tiny_options options = tiny_defaults();
    struct tier_pack_options to = { .dir_count = copies, .mode = TIER_PACK_MIRROR, .threads = 1 };
    const char *list[DIRS_MAX];
    struct model_shape shape;
    struct tier_store *source;
    struct base_err err = { 0 };
    char index[3100];
    options.experts = EXPERTS;
    options.top_k = TOP_K;
    options.groups = options.top_groups = 1;
    tiny_folder(model, sizeof model, "check_mirror");
    tiny_write(model, &options);
    for (unsigned i = 0; i < copies; i++) {
        tiny_folder(dirs[i], sizeof dirs[i], "check_mirror_to");
        list[i] = dirs[i];
    }
    to.dirs = list;
    snprintf(index, sizeof index, "%s/expertier.index", dirs[0]);
    int rc = model_shape_load(&shape, model, &err);
    if (rc == 0) rc = tier_store_index(model, NULL, &shape, 1, NULL, &err);
    if (rc == 0) rc = tier_store_open(&source, model, NULL, &shape, &err);
    if (rc == 0) rc = tier_store_repack(source, &to, NULL, &err);
    if (rc == 0) tier_store_close(source);
    if (rc == 0) rc = tier_store_open(&pack, model, index, &shape, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(tier_store_copies(pack), copies);
}

static void open_tiers(const char *backend)
{
    struct tier_io_config io;
    struct base_err err = { 0 };
    tier_settings_default(&config, &io);
    tier_settings_set(&config, &io, "io.backend=%s", backend);
    tier_settings_set(&config, &io, "tiers.dram.capacity=50%%");
    struct tier_open_args args = { .config = &config, .io = &io, .store = pack, .top_k = TOP_K };
    int rc = tier_open(&tier, &args, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

static void close_all(unsigned copies)
{
    tier_close(tier);
    tier_store_close(pack);
    tiny_remove(model);
    for (unsigned i = 0; i < copies; i++) tiny_remove(dirs[i]);
}

/* One bit of one copy, in the middle of the expert's first part. */
static void flip(uint32_t expert, uint32_t copy)
{
    struct tier_record record;
    unsigned char byte;
    tier_store_record_copy(pack, 0, expert, copy, &record);
    const struct tier_extent *extent = &record.extents[0];
    off_t at = (off_t)(extent->offset + record.part_offset[0] + record.part_bytes[0] / 2);
    int fd = open(tier_store_file_path(pack, extent->file), O_RDWR);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 16;
    ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* Cuts a copy's file in front of an expert. */
static void cut(uint32_t expert, uint32_t copy)
{
    struct tier_record record;
    tier_store_record_copy(pack, 0, expert, copy, &record);
    const char *path = tier_store_file_path(pack, record.extents[0].file);
    ck_assert_int_eq(truncate(path, (off_t)record.extents[0].offset), 0);
}

/* Asks for an expert: its status. One that is readable has the right bytes. */
static int ask(uint32_t layer, uint32_t expert)
{
    struct tier_lease lease;
    struct tier_record record;
    struct port_hash hash;
    ck_assert_uint_eq(tier_acquire(tier, layer, &expert, 1, TIER_DECODE, &lease), 1);
    ck_assert_uint_eq(tier_wait(tier, &lease, 1, TIER_WAIT_ALL, UINT64_MAX), 1);
    if (lease.status == 0) {
        tier_store_record(pack, layer, expert, &record);
        port_hash_begin(&hash);
        for (unsigned p = 0; p < TIER_PARTS; p++) {
            if (lease.parts[p]) port_hash_add(&hash, lease.parts[p], record.part_bytes[p]);
        }
        ck_assert_uint_eq(port_hash_end(&hash), record.hash);
    }
    tier_release(tier, &lease, 1);
    return lease.status;
}

static struct tier_io_metrics counts(void)
{
    static struct tier_snapshot snapshot;
    tier_step_end(tier);
    tier_snapshot(tier, &snapshot);
    return snapshot.io;
}

static const char *const backends[] = { "threads", "sim", "auto" };

START_TEST(a_bad_copy_is_read_from_another)
{
    open_mirror(2);
    for (uint32_t e = 0; e < EXPERTS; e += 2) flip(e, 0);
    flip(1, 1);
    open_tiers(backends[_i]);
    for (uint32_t e = 0; e < EXPERTS; e++) ck_assert_int_eq(ask(0, e), 0);
    struct tier_io_metrics m = counts();
    ck_assert_uint_eq(m.mirror_reads, EXPERTS / 2);
    ck_assert_uint_eq(m.checksum_failures, EXPERTS / 2 * 3);
    ck_assert_uint_eq(m.quarantined, 0);
    /* Evicted and asked for again: found again. */
    ck_assert_int_eq(ask(0, 0), 0);
    ck_assert_uint_eq(counts().mirror_reads, EXPERTS / 2 + 1);
    close_all(2);
}
END_TEST

START_TEST(a_short_copy_is_read_from_another)
{
    open_mirror(3);
    open_tiers(backends[_i]);
    cut(4, 0);
    flip(5, 1);
    for (uint32_t e = 0; e < EXPERTS; e++) {
        for (uint32_t layer = 0; layer < tier_store_layers(pack); layer++) {
            ck_assert_int_eq(ask(layer, e), 0);
        }
    }
    struct tier_io_metrics m = counts();
    ck_assert_uint_gt(m.read_errors, 0);
    ck_assert_uint_eq(m.checksum_failures, 3);          /* expert 5: cut off, flipped, whole */
    ck_assert_uint_eq(m.mirror_reads, m.read_errors / 3 + 1);
    ck_assert_uint_eq(m.quarantined, 0);
    close_all(3);
}
END_TEST

START_TEST(without_a_whole_copy_it_is_given_up)
{
    char why[400];
    open_mirror(2);
    flip(3, 0);
    flip(3, 1);
    open_tiers(backends[_i]);
    ck_assert_int_eq(ask(0, 3), BASE_EQUARANTINE);
    ck_assert_int_eq(ask(0, 2), 0);
    ck_assert_int_eq(tier_failure_text(tier, 0, 3, why, sizeof why), BASE_ECHECKSUM);
    ck_assert_msg(strstr(why, "expert 3 of layer 1 ") && strstr(why, "nor from its other copies"),
                  "%s", why);
    ck_assert_ptr_nonnull(strstr(why, strrchr(dirs[1], '/') + 1));
    struct tier_io_metrics m = counts();
    ck_assert_uint_eq(m.mirror_reads, 1);
    ck_assert_uint_eq(m.checksum_failures, 6);
    ck_assert_uint_eq(m.quarantined, 1);
    close_all(2);
}
END_TEST

static void change(const char *capacity, const char *policy)
{
    struct base_option_group group = { "tiers", tier_options, tier_option_count, &config };
    struct base_err err = { 0 };
    char pair[64];
    snprintf(pair, sizeof pair, "tiers.dram.capacity=%s", capacity);
    int rc = base_option_set_pair(&group, 1, pair, &err);
    snprintf(pair, sizeof pair, "policy.eviction=%s", policy);
    if (rc == 0) rc = base_option_set_pair(&group, 1, pair, &err);
    if (rc == 0) rc = tier_reconfigure(tier, &config, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

/* One copy gone altogether, one expert bad in both, and other settings between all requests. */
START_TEST(changes_keep_what_was_found_and_lost)
{
    static const char *const sizes[] = { "25%", "75%", "37.5%", "100%", "50%" };
    static const char *const policies[] = { "lru", "lfu", "arc", "lru_global", "s3fifo" };
    enum { CHANGES = 5 };
    open_mirror(2);
    open_tiers(backends[_i]);
    cut(0, 0);
    flip(3, 1);
    for (uint32_t n = 0; n < 40 * EXPERTS; n++) {
        uint32_t e = n * 7 % EXPERTS;
        if (n % 9 == 0) change(sizes[n / 9 % CHANGES], policies[n / 9 % 4 + n / 36 % 2]);
        ck_assert_int_eq(ask(0, e), e == 3 ? BASE_EQUARANTINE : 0);
    }
    struct tier_io_metrics m = counts();
    ck_assert_uint_eq(m.quarantined, 1);
    ck_assert_uint_ge(m.mirror_reads, EXPERTS);
    ck_assert_uint_ge(m.reconfigurations, 40);
    close_all(2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mirror");
    TCase *tests = tcase_create("mirror");
    tcase_add_loop_test(tests, a_bad_copy_is_read_from_another, 0, 3);
    tcase_add_loop_test(tests, a_short_copy_is_read_from_another, 0, 3);
    tcase_add_loop_test(tests, without_a_whole_copy_it_is_given_up, 0, 3);
    tcase_add_loop_test(tests, changes_keep_what_was_found_and_lost, 0, 3);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
