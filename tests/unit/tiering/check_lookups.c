/* How long lookups took, on a virtual clock: from the lookup on until the tiers know that the
 * expert can be read, also where its bytes had arrived before and nobody had looked. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/support/tier_settings.h"
#include "tests/support/tiny_store.h"
#include "tiering/tiering.h"

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 2 };
/* The clock that is noted has steps of 1.024 us. */
enum { LATER_NS = 3000000, STEP_NS = 1024 };
enum { READ_NS = 1000000, A_WHILE_NS = 500000000 };

static char dir[3000];
static struct tier_store *store;
static struct tier *tier;
static struct base_clock_virtual virtual_clock;

static void setup(void)
{
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    struct tier_config config;
    struct tier_io_config io;
    struct base_err err = { 0 };
    store = tiny_store_open(dir, sizeof dir, "check_lookups", &options);
    base_clock_virtual_init(&virtual_clock, UINT64_C(1) << 41);
    tier_settings_default(&config, &io);
    tier_settings_set(&config, &io, "io.backend=sim");
    tier_settings_set(&config, &io, "io.sim_latency=1ms");
    tier_settings_set(&config, &io, "tiers.hbm.sim_bandwidth=128MiB");
    tier_settings_set(&config, &io, "tiers.hbm.capacity=25%%");
    tier_settings_set(&config, &io, "tiers.dram.capacity=50%%");
    struct tier_open_args args = { .config = &config, .io = &io, .store = store, .top_k = TOP_K,
                                   .clock = &virtual_clock.clock };
    ck_assert_msg(tier_open(&tier, &args, &err) == 0, "%s", err.text);
}

static void teardown(void)
{
    tier_close(tier);
    tier_store_close(store);
    tiny_remove(dir);
}

static void pass(uint64_t ns)
{
    virtual_clock.clock.sleep_until_ns(&virtual_clock.clock, virtual_clock.time_ns + ns);
}

static void ask(uint32_t first, struct tier_lease *leases)
{
    uint32_t ids[TOP_K];
    for (uint32_t i = 0; i < TOP_K; i++) ids[i] = first + i;
    ck_assert_uint_eq(tier_acquire(tier, 0, ids, TOP_K, TIER_DECODE, leases), TOP_K);
}

static void await(struct tier_lease *leases)
{
    ck_assert_uint_eq(tier_wait(tier, leases, TOP_K, TIER_WAIT_ALL, UINT64_MAX), TOP_K);
    for (uint32_t i = 0; i < TOP_K; i++) ck_assert_int_eq(leases[i].status, 0);
    tier_release(tier, leases, TOP_K);
}

/* Four experts that are nowhere in hbm are asked for and given back; what brings them comes to its
 * end. Then they are asked for again, and looked after LATER_NS. */
static void look_late(uint32_t first)
{
    struct tier_lease leases[TOP_K];
    ask(first, leases);
    tier_release(tier, leases, TOP_K);
    pass(A_WHILE_NS);
    ask(first, leases);
    for (uint32_t i = 0; i < TOP_K; i++) ck_assert_int_eq(leases[i].status, -EINPROGRESS);
    pass(LATER_NS);
    await(leases);
}

/* Others take the place of experts 0..3 in hbm, and their copies down come to an end. */
static void into_dram(void)
{
    struct tier_lease leases[TOP_K];
    for (uint32_t first = 4; first < 12; first += TOP_K) {
        ask(first, leases);
        await(leases);
    }
    pass(A_WHILE_NS);
    tier_poll(tier);
}

/* What lies in dram is copied, what lies on nvme is read and copied: each is told where it was. */
START_TEST(a_lookup_takes_as_long_as_its_way)
{
    struct base_hist found;
    struct tier_lease leases[TOP_K];
    ask(0, leases);
    await(leases);
    into_dram();
    tier_lookup_latency(tier, 1, &found);
    ck_assert_uint_eq(found.count, 0);
    tier_lookup_latency(tier, 2, &found);
    ck_assert_uint_eq(found.count, 3 * TOP_K);
    ck_assert_uint_ge(found.min, READ_NS - STEP_NS);
    ck_assert_uint_lt(found.max, 2 * READ_NS);
    ask(0, leases);
    await(leases);
    tier_lookup_latency(tier, 1, &found);
    ck_assert_uint_eq(found.count, TOP_K);
    ck_assert_uint_gt(found.min, 0);
    ck_assert_uint_lt(found.max, READ_NS / 2);
    tier_lookup_latency(tier, 2, &found);
    ck_assert_uint_eq(found.count, 3 * TOP_K);
}
END_TEST

START_TEST(what_came_before_the_lookup_counts_from_the_lookup)
{
    struct base_hist found;
    /* Read, not looked after; then looked at, and copied up. */
    look_late(0);
    tier_lookup_latency(tier, 2, &found);
    ck_assert_uint_eq(found.count, TOP_K);
    ck_assert_uint_ge(found.min, LATER_NS - STEP_NS);
    ck_assert_uint_lt(found.max, 2 * LATER_NS);
    into_dram();
    tier_lookup_latency(tier, 1, &found);
    ck_assert_uint_eq(found.count, 0);
    look_late(0);
    tier_lookup_latency(tier, 1, &found);
    ck_assert_uint_eq(found.count, TOP_K);
    ck_assert_uint_ge(found.min, LATER_NS - STEP_NS);
    ck_assert_uint_le(found.max, LATER_NS + STEP_NS);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lookups");
    TCase *tests = tcase_create("lookups");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, a_lookup_takes_as_long_as_its_way);
    tcase_add_test(tests, what_came_before_the_lookup_counts_from_the_lookup);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
