/* How the dram slots are held: NUMA nodes (on machines that hwloc plays) and huge pages, each as it
 * is had, done without, or refused; and a live growth is held the same way. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "tests/support/tiny_store.h"
#include "tiering/slots.h"
#include "tiering/tiering.h"

enum { EXPERTS = 8, TOP_K = 2, LAYERS = 1, HUGE_SLOT = 2 << 20 };

static char dir[3000];
static struct tier_store *store;
static struct tier *tier;
static struct tier_snapshot s;
static struct tier_config config;
static bool huge_refused;

int __real_madvise(void *at, size_t bytes, int advice);
int __wrap_madvise(void *at, size_t bytes, int advice);
int __wrap_madvise(void *at, size_t bytes, int advice)
{
    if (!huge_refused || advice != MADV_HUGEPAGE) return __real_madvise(at, bytes, advice);
    errno = EINVAL;
    return -1;
}

static void setup(void)
{
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    store = tiny_store_open(dir, sizeof dir, "check_hold", &options);
}

static void teardown(void)
{
    unsetenv("HWLOC_SYNTHETIC");
    unsetenv("HWLOC_THISSYSTEM");
    tier_store_close(store);
    tiny_remove(dir);
}

static int open_with(const char *numa, struct base_err *err)
{
    struct tier_io_config io;
    struct base_option_group groups[] = {
        { "tiers", tier_options, tier_option_count, &config },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &config },
        { "io", tier_io_options, tier_io_option_count, &io },
    };
    enum { GROUPS = sizeof groups / sizeof groups[0] };
    char pair[80];
    base_option_defaults(groups, GROUPS);
    snprintf(pair, sizeof pair, "tiers.dram.numa=%s", numa);
    ck_assert_int_eq(base_option_set_pair(groups, GROUPS, pair, err), 0);
    ck_assert_int_eq(base_option_set_pair(groups, GROUPS, "tiers.dram.capacity=50%", err), 0);
    ck_assert_int_eq(base_option_set_pair(groups, GROUPS, "io.backend=threads", err), 0);
    struct tier_open_args args = { .config = &config, .io = &io, .store = store, .top_k = TOP_K };
    return tier_open(&tier, &args, err);
}

/* Opens, grows, and says what became of it. */
static const char *note_of(const char *numa)
{
    struct base_err err = { 0 };
    ck_assert_msg(open_with(numa, &err) == 0, "%s", err.text);
    snprintf(config.dram_capacity, sizeof config.dram_capacity, "100%%");
    ck_assert_msg(tier_reconfigure(tier, &config, &err) == 0, "%s", err.text);
    tier_snapshot(tier, &s);
    tier_close(tier);
    return s.numa_note;
}

START_TEST(one_node_has_everything)
{
    struct base_err err = { 0 };
    setenv("HWLOC_SYNTHETIC", "numa:1 core:2 pu:1", 1);
    ck_assert_str_eq(note_of("auto"), "one NUMA node: all memory lies there");
    ck_assert_str_eq(note_of("interleave"), "one NUMA node: all memory lies there");
    ck_assert_str_eq(note_of("0"), "one NUMA node: all memory lies there");
    ck_assert(!s.numa_degraded);
    ck_assert_ptr_nonnull(strstr(note_of("none"), "tiers.dram.numa is none"));
    ck_assert_int_eq(open_with("1", &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "tiers.dram.numa: not all of the NUMA nodes 1 are "
                                           "there: this process has 0"));
    err = (struct base_err){ 0 };
    ck_assert_int_eq(open_with("both", &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "\"both\" is no list of NUMA nodes"));
}
END_TEST

/* What hwloc plays it does not bind. */
START_TEST(several_nodes_take_turns_or_are_named)
{
    setenv("HWLOC_SYNTHETIC", "numa:4 core:2 pu:1", 1);
    ck_assert_str_eq(note_of("auto"), "in turn over 4 NUMA nodes");
    ck_assert_str_eq(note_of("interleave"), "in turn over 4 NUMA nodes");
    ck_assert_str_eq(note_of("1,3"), "on the NUMA nodes 1,3 of 4");
    ck_assert(!s.numa_degraded);
}
END_TEST

/* Played nodes that the real system is asked for: it has none of their numbers. */
START_TEST(a_refusal_is_told)
{
    struct base_err err = { 0 };
    setenv("HWLOC_SYNTHETIC", "numa:2(indexes=900,901) core:2 pu:1", 1);
    setenv("HWLOC_THISSYSTEM", "1", 1);
    int rc = open_with("900", &err);
    if (rc == 0) {
        tier_close(tier);
        printf("skipped: hwloc binds nothing on played machines\n");
        return;
    }
    ck_assert_int_lt(rc, 0);
    ck_assert_ptr_nonnull(strstr(err.text, "tiers.dram.numa: the system refuses to place memory"));
    const char *note = note_of("auto");
    ck_assert_ptr_nonnull(strstr(note, "not placed: the system refuses it"));
    ck_assert(s.numa_degraded);
}
END_TEST

START_TEST(huge_pages_where_slots_are_large)
{
    struct tier_slots slots;
    struct base_err err = { 0 };
    const struct tier_slots_hold hold = { .pin = TIER_PIN_OFF };
    ck_assert_int_eq(tier_slots_create(&slots, 2, 4, 4096, &hold, &err), 0);
    ck_assert(!slots.huge && !slots.huge_refused);
    ck_assert_ptr_nonnull(strstr(slots.huge_note, "slots of 4 KiB"));
    tier_slots_destroy(&slots);
    ck_assert_int_eq(tier_slots_create(&slots, 2, 4, HUGE_SLOT, &hold, &err), 0);
    ck_assert(slots.huge == base_mem_huge_given() && slots.huge != slots.huge_refused);
    /* A huge page lies in memory whole. */
    uint32_t slot = tier_slots_take(&slots, 0);
    tier_slots_touch(&slots, slot, 4096);
    ck_assert_uint_eq(slots.touched, slots.huge ? HUGE_SLOT : 4096);
    tier_slots_destroy(&slots);
    /* Slots that are smaller, but many; of 64 MiB none is written here. */
    ck_assert_int_eq(tier_slots_create(&slots, 1024, 1024, 64 << 10, &hold, &err), 0);
    ck_assert(slots.huge == base_mem_huge_given());
    ck_assert_uint_eq((uintptr_t)slots.memory % HUGE_SLOT, 0);
    tier_slots_destroy(&slots);
    ck_assert_int_eq(tier_slots_create(&slots, 1023, 1024, 64 << 10, &hold, &err), 0);
    ck_assert(!slots.huge && !slots.huge_refused);
    tier_slots_destroy(&slots);
    huge_refused = true;
    ck_assert_int_eq(tier_slots_create(&slots, 2, 4, HUGE_SLOT, &hold, &err), 0);
    ck_assert(!slots.huge && slots.huge_refused);
    ck_assert_ptr_nonnull(strstr(slots.huge_note, "small pages: the kernel gives no huge ones"));
    tier_slots_destroy(&slots);
    huge_refused = false;
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hold");
    TCase *tests = tcase_create("hold");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, one_node_has_everything);
    tcase_add_test(tests, several_nodes_take_turns_or_are_named);
    tcase_add_test(tests, a_refusal_is_told);
    tcase_add_test(tests, huge_pages_where_slots_are_large);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
