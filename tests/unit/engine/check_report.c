/* The activation report says of every feature that was asked for whether it is active, degraded or
 * refused, and why: each state of each row, from snapshots that say so; real refusals of the system
 * are brought on by check_named_faults, check_hold and check_warm. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/report.h"
#include "tests/support/tiny_store.h"
#include "tiering/slots.h"

enum { EXPERTS = 8, TOP_K = 2 };

static char dir[3000];
static struct tier_store *store;
static struct tier_config config;
static struct tier_io_config io;
static struct tier_snapshot s;
static struct tier_report report;
static bool hints;

static void setup(void)
{
    struct tiny_options options = tiny_moe(1, EXPERTS, TOP_K);
    store = tiny_store_open(dir, sizeof dir, "check_report", &options);
}

static void teardown(void)
{
    tier_store_close(store);
    tiny_remove(dir);
}

/* Everything as it was asked for, on a machine that has it all. */
static void begin(void)
{
    struct base_option_group groups[] = {
        { "tiers", tier_options, tier_option_count, &config },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &config },
        { "io", tier_io_options, tier_io_option_count, &io },
    };
    base_option_defaults(groups, sizeof groups / sizeof groups[0]);
    s = (struct tier_snapshot){ .tier_count = 1, .device_host_readable = true };
    snprintf(s.io_note, sizeof s.io_note, "io_uring: depth 32");
    snprintf(s.pin_note, sizeof s.pin_note, "locked in memory");
    snprintf(s.huge_note, sizeof s.huge_note, "huge pages, as far as the kernel has some");
    snprintf(s.numa_note, sizeof s.numa_note, "in turn over 2 NUMA nodes");
    snprintf(s.device_note, sizeof s.device_note, "simulated");
    snprintf(s.prefetch_note, sizeof s.prefetch_note, "up to 8 experts a layer");
    snprintf(s.warm_note, sizeof s.warm_note, "4 of 4 saved experts fit");
    hints = false;
}

static const struct tier_report_row *row(const char *feature)
{
    struct tier_report_args args = { &config, &io, &s, store, hints };
    report.count = 0;
    tier_report_tiers(&report, &args);
    for (uint32_t i = 0; i < report.count; i++) {
        if (strcmp(report.rows[i].feature, feature) == 0) return &report.rows[i];
    }
    ck_abort_msg("no row %s", feature);
    return NULL;
}

static void is(const char *feature, enum tier_state state, const char *note)
{
    const struct tier_report_row *r = row(feature);
    ck_assert_msg(r->state == state && strstr(r->note, note), "%s: %s \"%s\", not %s \"%s\"",
                  feature, tier_state_name(r->state), r->note, tier_state_name(state), note);
}

static void counts(const char *feature, const char *counter, uint64_t count)
{
    const struct tier_report_row *r = row(feature);
    ck_assert_msg(r->counter && strcmp(r->counter, counter) == 0 && r->count == count,
                  "%s counts %s %llu", feature, r->counter ? r->counter : "nothing",
                  (unsigned long long)r->count);
}

START_TEST(reading)
{
    begin();
    is("io.backend", TIER_ACTIVE, "io_uring");
    is("io.buffers", TIER_ACTIVE, "own buffers");
    is("io.direct", TIER_ACTIVE, "O_DIRECT");
    s.buffers_degraded = s.direct_degraded = true;
    s.io.demand_reads = 7;
    snprintf(s.io_note, sizeof s.io_note, "io_uring: depth 32; buffers not registered: memlock");
    is("io.buffers", TIER_DEGRADED, "buffers not registered: memlock");
    counts("io.buffers", "reads", 7);
    is("io.direct", TIER_DEGRADED, "io_uring");
    s = (struct tier_snapshot){ .tier_count = 1, .backend_degraded = true };
    s.io.demand_reads = 2;
    s.io.prefetch_reads = 3;
    s.warm.restore_reads = 4;
    snprintf(s.io_note, sizeof s.io_note, "threads, because io_uring is forbidden");
    is("io.backend", TIER_DEGRADED, "threads, because");
    counts("io.backend", "reads_by_threads", 9);
    is("io.buffers", TIER_OFF, "only io_uring");
    is("io.direct", TIER_ACTIVE, "O_DIRECT");
    io.direct = TIER_IO_DIRECT_OFF;
    is("io.direct", TIER_OFF, "page cache");
    snprintf(s.io_note, sizeof s.io_note, "sim");
    is("io.direct", TIER_OFF, "does not read from a disk");
    snprintf(io.faults, sizeof io.faults, "eio=1");
    s.io.faults_injected = 5;
    is("io.faults", TIER_ACTIVE, "on purpose");
    counts("io.faults", "faults_injected", 5);
}
END_TEST

START_TEST(bytes)
{
    begin();
    is("tiers.verify", TIER_ACTIVE, "at every read");
    config.verify = 1;
    s.io.checksum_failures = 3;
    is("tiers.verify", TIER_ACTIVE, "first read");
    counts("tiers.verify", "checksum_failures", 3);
    is("layout", TIER_ACTIVE, "1 copy of each expert");
    ck_assert_str_eq(row("layout")->requested, "checkpoint");
    s.io.quarantined = 2;
    is("layout", TIER_DEGRADED, "2 experts cannot be read");
    counts("layout", "quarantined", 2);
}
END_TEST

START_TEST(packed_layouts)
{
    static const struct {
        enum tier_pack_mode mode;
        const char *name, *note;
    } cases[] = { { TIER_PACK_STRIPE, "stripe", "2 files, 1 copy" },
                  { TIER_PACK_MIRROR, "mirror", "2 copies" } };
    char to[2][3000], index[3100];
    const char *list[2] = { to[0], to[1] };
    struct tier_store *plain = store;
    struct base_err err = { 0 };
    begin();
    for (int i = 0; i < 2; i++) tiny_folder(to[i], sizeof to[i], "check_report_to");
    struct tier_pack_options options = { .dirs = list, .dir_count = 2, .mode = cases[_i].mode,
                                         .threads = 1 };
    snprintf(index, sizeof index, "%s/expertier.index", to[0]);
    int rc = tier_store_repack(plain, &options, NULL, &err);
    if (rc == 0) rc = tier_store_open(&store, dir, index, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_str_eq(row("layout")->requested, cases[_i].name);
    is("layout", TIER_ACTIVE, cases[_i].note);
    s.io.mirror_reads = 4;
    if (cases[_i].mode == TIER_PACK_MIRROR) {
        is("layout", TIER_DEGRADED, "the other one is read");
        counts("layout", "mirror_reads", 4);
    }
    tier_store_close(store);
    store = plain;
    for (int i = 0; i < 2; i++) tiny_remove(to[i]);
}
END_TEST

START_TEST(memory)
{
    begin();
    s.tiers[0].pinned_bytes = 4096;
    s.tiers[0].slots = 12;
    is("tiers.dram.pin", TIER_ACTIVE, "locked");
    counts("tiers.dram.pin", "pinned_bytes", 4096);
    is("tiers.dram.huge_pages", TIER_ACTIVE, "huge pages");
    is("tiers.dram.numa", TIER_ACTIVE, "in turn over 2");
    is("tiers.dram.capacity", TIER_ACTIVE, "12 slots");
    s.pin_degraded = s.huge_degraded = s.numa_degraded = true;
    is("tiers.dram.pin", TIER_DEGRADED, "");
    is("tiers.dram.huge_pages", TIER_DEGRADED, "");
    is("tiers.dram.numa", TIER_DEGRADED, "");
    s.pin_degraded = s.huge_degraded = s.numa_degraded = false;
    config.dram_pin = TIER_PIN_OFF;
    snprintf(config.dram_numa, sizeof config.dram_numa, "none");
    snprintf(s.huge_note, sizeof s.huge_note, "small pages: a slot of 4 KiB");
    is("tiers.dram.pin", TIER_OFF, "");
    is("tiers.dram.numa", TIER_OFF, "");
    is("tiers.dram.huge_pages", TIER_OFF, "a slot of 4 KiB");
}
END_TEST

START_TEST(device)
{
    begin();
    is("tiers.hbm.device", TIER_OFF, "no hbm tier");
    is("tiers.inclusion", TIER_OFF, "");
    is("tiers.warm_experts", TIER_OFF, "");
    is("bits", TIER_ACTIVE, "the same arithmetic");
    s.tier_count = 2;
    s.io.demotions_dropped = 6;
    is("tiers.hbm.device", TIER_ACTIVE, "simulated");
    is("tiers.inclusion", TIER_ACTIVE, "copied down");
    counts("tiers.inclusion", "demotions_dropped", 6);
    is("tiers.warm_experts", TIER_ACTIVE, "copied to hbm");
    s.io.copy_errors = 3;
    is("tiers.hbm.device", TIER_DEGRADED, "copies have failed");
    counts("tiers.hbm.device", "copy_errors", 3);
    s.device_lost = true;
    snprintf(s.device_note, sizeof s.device_note, "the card fell off the bus");
    is("tiers.hbm.device", TIER_REFUSED, "fell off");
    config.inclusion = 1;
    is("tiers.inclusion", TIER_ACTIVE, "keeps what moved up");
    /* The CPU computes everywhere: nothing depends on the place. With a card of its own it does. */
    config.warm_experts = TIER_WARM_COMPUTE;
    s.tiers[1].in_place = 8;
    is("tiers.warm_experts", TIER_ACTIVE, "where they lie");
    counts("tiers.warm_experts", "in_place", 8);
    is("bits", TIER_ACTIVE, "the same arithmetic");
    s.device_host_readable = false;
    is("bits", TIER_DEGRADED, "device-dependent");
    config.warm_experts = TIER_WARM_COPY;
    is("bits", TIER_ACTIVE, "the same arithmetic");
}
END_TEST

START_TEST(decisions)
{
    begin();
    /* The default hears hints, and goes on without them. */
    is("policy.eviction", TIER_DEGRADED, "by frequency and recency");
    hints = true;
    is("policy.eviction", TIER_ACTIVE, "");
    hints = false;
    ck_assert_int_eq(base_option_set_pair(&(struct base_option_group){
                         "tiers", tier_options, tier_option_count, &config }, 1,
                         "policy.eviction=lfu", &(struct base_err){ 0 }), 0);
    is("policy.eviction", TIER_ACTIVE, "");
    config.eviction = 9;
    is("policy.eviction", TIER_DEGRADED, "works as lru");
    s.fixed_experts = 12;
    is("policy.eviction", TIER_ACTIVE, "pinned keeps");
    counts("policy.eviction", "pinned_experts", 12);
    is("policy.quotas", TIER_OFF, "same number");
    snprintf(config.quotas, sizeof config.quotas, "adaptive");
    is("policy.quotas", TIER_ACTIVE, "follow what layers miss");
    snprintf(config.quotas, sizeof config.quotas, "2,1");
    is("policy.quotas", TIER_ACTIVE, "by the shares");
    is("prefetch.enabled", TIER_OFF, "no predictor");
    is("prefetch.governor", TIER_OFF, "nothing is read ahead");
    hints = true;
    config.prefetch = 2;
    s.io.prefetch_refused = 9;
    snprintf(s.governor_note, sizeof s.governor_note, "prefetch.governor=on");
    is("prefetch.enabled", TIER_ACTIVE, "up to 8");
    counts("prefetch.enabled", "prefetch_refused", 9);
    is("prefetch.governor", TIER_ACTIVE, "prefetch.governor=on");
    s.prefetch_degraded = true;
    is("prefetch.enabled", TIER_DEGRADED, "up to 8");
    snprintf(s.prefetch_note, sizeof s.prefetch_note, "off: every slot is needed");
    is("prefetch.enabled", TIER_REFUSED, "every slot is needed");
    is("prefetch.governor", TIER_OFF, "");
    is("tiers.warm.path", TIER_OFF, "starts cold");
    snprintf(config.warm_path, sizeof config.warm_path, "set.warm");
    s.warm.restore_experts = 4;
    is("tiers.warm.path", TIER_ACTIVE, "4 of 4");
    counts("tiers.warm.path", "restore_experts", 4);
    s.warm_refused = true;
    is("tiers.warm.path", TIER_REFUSED, "");
    s.warm.save_errors = 1;
    is("tiers.warm.path", TIER_DEGRADED, "could not be saved");
    counts("tiers.warm.path", "save_errors", 1);
}
END_TEST

START_TEST(trace_and_op_set)
{
    struct pred_trace_config trace = { .path = "a.trace", .sample = 1 };
    struct pred_trace_metrics m = { .records = 90, .written_bytes = 2048 };
    report.count = 0;
    eng_report_trace(&report, &trace, &m, false);
    eng_report_trace(&report, &trace, &m, true);
    trace.sample = 0.5;
    eng_report_trace(&report, &trace, &m, true);
    m.lost_records = 10;
    eng_report_trace(&report, &trace, &m, true);
    eng_report_ops(&report, "avx2", "avx2");
    eng_report_ops(&report, "avx512", "reference");
    eng_report_ops(&report, "auto", "avx2");
    static const struct {
        enum tier_state state;
        const char *note;
    } wanted[] = {
        { TIER_OFF, "nothing is recorded" }, { TIER_ACTIVE, "2 KiB written, without gaps" },
        { TIER_ACTIVE, "a sample" }, { TIER_DEGRADED, "10 of 100 records lost" },
        { TIER_ACTIVE, "avx2" }, { TIER_DEGRADED, "reference: the best that this CPU" },
        { TIER_ACTIVE, "avx2: the best that this CPU" },
    };
    ck_assert_uint_eq(report.count, sizeof wanted / sizeof wanted[0]);
    for (uint32_t i = 0; i < report.count; i++) {
        const struct tier_report_row *r = &report.rows[i];
        ck_assert_msg(r->state == wanted[i].state && strstr(r->note, wanted[i].note),
                      "%u: %s \"%s\"", i, tier_state_name(r->state), r->note);
    }
    ck_assert_str_eq(report.rows[3].counter, "lost_records");
    ck_assert_uint_eq(report.rows[3].count, 10);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("report");
    TCase *tests = tcase_create("report");
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_test(tests, reading);
    tcase_add_test(tests, bytes);
    tcase_add_loop_test(tests, packed_layouts, 0, 2);
    tcase_add_test(tests, memory);
    tcase_add_test(tests, device);
    tcase_add_test(tests, decisions);
    tcase_add_test(tests, trace_and_op_set);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
