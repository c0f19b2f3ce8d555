/* tiers.warm_experts: compute. What lies in dram is leased there, without a copy or a slot of hbm;
 * used again by decode it moves up after its release, one expert an acquire; a demotion that comes
 * to nothing under such a lease is read again. The random runs are in check_tiering. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "port/hash.h"
#include "tests/support/tier_settings.h"
#include "tests/support/tiny_store.h"
#include "tiering/tiering.h"

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 2, SETTINGS_MAX = 8 };

static char dir[3000];
static struct tier_store *store;
static struct tier *tier;
static struct tier_snapshot s;
static struct tier_config config;

static void setup(void)
{
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    store = tiny_store_open(dir, sizeof dir, "check_in_place", &options);
}

static void teardown(void)
{
    tier_store_close(store);
    tiny_remove(dir);
}

static int open_with(const char *const *settings, struct base_err *err)
{
    struct tier_io_config io;
    tier_settings_default(&config, &io);
    tier_settings_set(&config, &io, "io.backend=threads");
    for (; *settings; settings++) tier_settings_set(&config, &io, "%s", *settings);
    struct tier_open_args args = { .config = &config, .io = &io, .store = store, .top_k = TOP_K };
    return tier_open(&tier, &args, err);
}

static void open_tiers(const char *inclusion, const char *more)
{
    struct base_err err = { 0 };
    const char *settings[SETTINGS_MAX] = { "tiers.hbm.capacity=25%", "tiers.dram.capacity=50%",
                                           "tiers.warm_experts=compute", inclusion, more };
    ck_assert_msg(open_with(settings, &err) == 0, "%s", err.text);
}

/* Asks layer 0 for experts first.. of them, waits and checks their bytes. Returns how many lie in
 * dram. */
static unsigned take(uint32_t first, uint32_t n, enum tier_phase phase, struct tier_lease *leases)
{
    uint32_t ids[EXPERTS];
    unsigned in_dram = 0;
    for (uint32_t i = 0; i < n; i++) ids[i] = first + i;
    ck_assert_uint_eq(tier_acquire(tier, 0, ids, n, phase, leases), n);
    ck_assert_uint_eq(tier_wait(tier, leases, n, TIER_WAIT_ALL, UINT64_MAX), n);
    for (uint32_t i = 0; i < n; i++) {
        struct tier_record record;
        struct port_hash hash;
        ck_assert_int_eq(leases[i].status, 0);
        tier_store_record(store, 0, ids[i], &record);
        port_hash_begin(&hash);
        for (int p = 0; p < TIER_PARTS; p++) {
            if (leases[i].parts[p]) port_hash_add(&hash, leases[i].parts[p], record.part_bytes[p]);
        }
        ck_assert_uint_eq(port_hash_end(&hash), record.hash);
        in_dram += (leases[i].slot & TIER_SLOT_IN_DRAM) != 0;
    }
    return in_dram;
}

static unsigned use(uint32_t first, uint32_t n, enum tier_phase phase)
{
    struct tier_lease leases[EXPERTS];
    unsigned in_dram = take(first, n, phase, leases);
    tier_release(tier, leases, n);
    return in_dram;
}

/* Copies that nobody waits for arrive; then the counters. */
static void look(void)
{
    for (int i = 0; i < 40; i++) {
        struct timespec pause = { .tv_nsec = 500000 };
        nanosleep(&pause, NULL);
        tier_poll(tier);
    }
    tier_step_end(tier);
    tier_snapshot(tier, &s);
}

static const char *const inclusions[] = { "tiers.inclusion=exclusive",
                                          "tiers.inclusion=inclusive" };

START_TEST(what_is_warm_stays_where_it_is)
{
    open_tiers(inclusions[_i], NULL);
    ck_assert_uint_eq(use(0, TOP_K, TIER_DECODE), 0);   /* from nvme: up, as ever */
    ck_assert_uint_eq(use(4, TOP_K, TIER_DECODE), 0);   /* the first four go down */
    look();
    uint64_t copies = s.io.copies_up, reads = s.io.demand_reads;
    ck_assert_uint_eq(use(0, TOP_K, TIER_DECODE), TOP_K);
    /* Prefill's uses move nothing up, however many. */
    for (int i = 0; i < 5; i++) ck_assert_uint_eq(use(0, TOP_K, TIER_PREFILL), TOP_K);
    look();
    ck_assert_uint_eq(s.io.copies_up, copies);
    ck_assert_uint_eq(s.io.demand_reads, reads);
    ck_assert_uint_eq(s.tiers[1].in_place, 6 * TOP_K);
    ck_assert_uint_eq(s.cells[1][TIER_CELL_COLD].in_place +
                      s.cells[1][TIER_CELL_PREFILL].in_place +
                      s.cells[1][TIER_CELL_DECODE].in_place, 6 * TOP_K);
    ck_assert_uint_eq(s.tiers[0].in_place, 0);
    /* All of hbm is leased, and dram's are leased beside it. */
    struct tier_lease above[EXPERTS], below[EXPERTS];
    ck_assert_uint_eq(take(4, TOP_K, TIER_DECODE, above), 0);
    if (_i == 0) {
        ck_assert_uint_eq(take(0, TOP_K, TIER_PREFILL, below), TOP_K);
        tier_release(tier, below, TOP_K);
    }
    tier_release(tier, above, TOP_K);
    tier_close(tier);
}
END_TEST

START_TEST(used_again_one_an_acquire_moves_up)
{
    open_tiers(inclusions[_i], NULL);
    use(0, TOP_K, TIER_DECODE);
    use(4, TOP_K, TIER_DECODE);
    look();
    uint64_t copies = s.io.copies_up;
    ck_assert_uint_eq(use(0, TOP_K, TIER_DECODE), 4);
    ck_assert_uint_eq(use(0, TOP_K, TIER_DECODE), 4);   /* the first of them goes up after it */
    look();
    ck_assert_uint_eq(s.io.copies_up, copies + 1);
    ck_assert_uint_eq(s.io.prefetch_useful + s.io.prefetch_late, 0);
    ck_assert_uint_eq(use(0, TOP_K, TIER_DECODE), 3);
    look();
    ck_assert_uint_eq(s.io.copies_up, copies + 2);
    for (unsigned left = 2; left > 0; left--) {
        ck_assert_uint_eq(use(0, TOP_K, TIER_DECODE), left);
    }
    ck_assert_uint_eq(use(0, TOP_K, TIER_DECODE), 0);
    /* While one lease is held it stays, whoever else gives it back. */
    struct tier_lease lease;
    ck_assert_uint_eq(take(5, 1, TIER_DECODE, &lease), 1);
    for (int i = 0; i < 4; i++) ck_assert_uint_eq(use(5, 1, TIER_DECODE), 1);
    tier_release(tier, &lease, 1);
    ck_assert_uint_eq(use(5, 1, TIER_DECODE), 0);
    tier_close(tier);
}
END_TEST

/* Copies down fail: what the core has in dram is nowhere then, and is read when it is wanted. */
START_TEST(a_lost_demotion_is_read_again)
{
    struct tier_lease leases[EXPERTS];
    uint32_t ids[TOP_K] = { 0, 1, 2, 3 };
    open_tiers(inclusions[0], "tiers.hbm.sim_bandwidth=2MiB");
    for (int round = 0; round < 20; round++) {
        /* Asked for while they still go down. */
        use(round % 2 * 4, TOP_K, TIER_DECODE);
        uint32_t n = tier_acquire(tier, 0, ids, TOP_K, TIER_DECODE, leases);
        ck_assert_uint_eq(n, TOP_K);
        ck_assert_uint_eq(tier_wait(tier, leases, n, TIER_WAIT_ALL, UINT64_MAX), n);
        for (uint32_t i = 0; i < n; i++) ck_assert_int_eq(leases[i].status, 0);
        tier_release(tier, leases, n);
    }
    look();
    ck_assert_uint_gt(s.tiers[1].in_place, 0);
    tier_close(tier);
    open_tiers(inclusions[0], "tiers.hbm.sim_faults=40%");
    unsigned readable = 0;
    for (int round = 0; round < 60; round++) {
        uint32_t first = (uint32_t)round * 5 % 12;
        for (uint32_t i = 0; i < TOP_K; i++) ids[i] = first + i;
        uint32_t n = tier_acquire(tier, 0, ids, TOP_K, TIER_DECODE, leases);
        ck_assert_uint_eq(tier_wait(tier, leases, n, TIER_WAIT_ALL, UINT64_MAX), n);
        for (uint32_t i = 0; i < n; i++) readable += leases[i].status == 0;
        tier_release(tier, leases, n);
    }
    look();
    ck_assert_uint_gt(readable, 0);
    ck_assert_uint_gt(s.io.copy_errors, 0);
    ck_assert_uint_gt(s.io.demotions_dropped, 0);
    ck_assert_uint_gt(s.tiers[1].in_place, 0);
    tier_close(tier);
}
END_TEST

START_TEST(without_hbm_it_is_refused)
{
    struct base_err err = { 0 };
    const char *settings[] = { "tiers.warm_experts=compute", NULL };
    ck_assert_int_eq(open_with(settings, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "tiers.warm_experts: compute has no effect without"));
    /* And it stays what it was at start. */
    open_tiers(inclusions[0], NULL);
    config.warm_experts = TIER_WARM_COPY;
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_reconfigure(tier, &config, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "needs a restart"));
    tier_close(tier);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("in_place");
    TCase *tests = tcase_create("in_place");
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, what_is_warm_stays_where_it_is, 0, 2);
    tcase_add_loop_test(tests, used_again_one_an_acquire_moves_up, 0, 2);
    tcase_add_test(tests, a_lost_demotion_is_read_again);
    tcase_add_test(tests, without_hbm_it_is_refused);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
