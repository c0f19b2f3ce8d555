/* The limit is the smallest of the machine's memory and of every control group's, v1 and v2, own or
 * above; a plan beyond it is refused with the arithmetic; the process's own numbers make sense. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/ledger.h"

static char root[64];

static void put(const char *path, const char *text)
{
    char whole[512];
    int n = snprintf(whole, sizeof whole, "%s%s", root, path);
    ck_assert(n > 0 && (size_t)n < sizeof whole);
    char *slash = whole + strlen(root);
    while ((slash = strchr(slash + 1, '/'))) {
        *slash = '\0';
        ck_assert(mkdir(whole, 0755) == 0 || errno == EEXIST);
        *slash = '/';
    }
    FILE *file = fopen(whole, "w");
    ck_assert(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void setup(void)
{
    snprintf(root, sizeof root, "/tmp/check_ledger_XXXXXX");
    ck_assert(mkdtemp(root));
    put("/proc/meminfo", "MemTotal:        1000 kB\nMemFree:           10 kB\n");
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", root);
    ck_assert_int_eq(system(command), 0);
}

static uint64_t limit(const char *whose)
{
    struct base_ledger_limit got;
    base_ledger_limit(&got, root);
    ck_assert_msg(strstr(got.what, whose), "%s, not %s", got.what, whose);
    return got.bytes;
}

START_TEST(the_machine)
{
    ck_assert_uint_eq(limit("this machine"), 1000 * 1024);
    put("/proc/self/cgroup", "0::/\n");
    put("/sys/fs/cgroup/memory.max", "max\n");
    ck_assert_uint_eq(limit("this machine"), 1000 * 1024);
}
END_TEST

START_TEST(groups_of_version_2)
{
    put("/proc/self/cgroup", "0::/a.slice/b.service\n");
    put("/sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
    put("/sys/fs/cgroup/a.slice/memory.max", "500000\n");
    ck_assert_uint_eq(limit("/a.slice/memory.max"), 500000);
    put("/sys/fs/cgroup/a.slice/b.service/memory.max", "400000\n");
    ck_assert_uint_eq(limit("b.service/memory.max"), 400000);
    /* As a container sees it: its own group at the mount's root. */
    put("/proc/self/cgroup", "0::/not/to/be/seen\n");
    put("/sys/fs/cgroup/memory.max", "300000\n");
    ck_assert_uint_eq(limit("/cgroup/memory.max"), 300000);
}
END_TEST

START_TEST(groups_of_version_1)
{
    put("/proc/self/cgroup", "8:pids:/x\n4:memory:/x/y\n1:cpu:/x\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "600000\n");
    put("/sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "700000\n");
    ck_assert_uint_eq(limit("/x/memory.limit_in_bytes"), 600000);
    put("/sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "none of your business\n");
    ck_assert_uint_eq(limit("/x/memory.limit_in_bytes"), 600000);
}
END_TEST

START_TEST(too_much_is_refused_with_the_arithmetic)
{
    struct base_ledger ledger = { 0 };
    struct base_ledger_limit allowed = { .bytes = 3 << 20, .what = "the test" };
    struct base_err err = { 0 };
    ledger.rows[BASE_LEDGER_DENSE].planned = 1 << 20;
    ledger.rows[BASE_LEDGER_DRAM].planned = 2 << 20;
    ck_assert_int_eq(base_ledger_check(&ledger, &allowed, &err), 0);
    ledger.rows[BASE_LEDGER_KV].planned = 1 << 20;
    ck_assert_uint_eq(base_ledger_planned(&ledger), 4 << 20);
    ck_assert_int_eq(base_ledger_check(&ledger, &allowed, &err), BASE_EBUDGET);
    ck_assert_str_eq(err.text,
                     "dense weights 1 MiB + kv cache 1 MiB + dram slots 2 MiB = 4 MiB, but the "
                     "test allows 3 MiB: lower tiers.dram.capacity or kv.capacity");
}
END_TEST

START_TEST(this_process)
{
    struct base_ledger_process before, after;
    size_t size = 24 << 20;
    base_ledger_process(&before);
    ck_assert_uint_gt(before.resident, 1 << 20);
    ck_assert_uint_gt(before.files, 0);
    ck_assert_uint_lt(before.files, before.resident);
    ck_assert_uint_eq(before.threads, 1);
    volatile char *memory = malloc(size);
    ck_assert_ptr_nonnull((const void *)memory);
    for (size_t i = 0; i < size; i += 4096) memory[i] = 1;
    base_ledger_process(&after);
    ck_assert_uint_ge(after.resident, before.resident + size - (2 << 20));
    free((void *)memory);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ledger");
    TCase *tests = tcase_create("ledger");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, the_machine);
    tcase_add_test(tests, groups_of_version_2);
    tcase_add_test(tests, groups_of_version_1);
    tcase_add_test(tests, too_much_is_refused_with_the_arithmetic);
    tcase_add_test(tests, this_process);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
