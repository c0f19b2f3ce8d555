/* The machine has at least one core, node and byte, as the system says; threads bind or say why. */
#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "port/topo.h"

static struct port_topo *topo;

static void setup(void)
{
    struct base_err err = { 0 };
    ck_assert_msg(port_topo_open(&topo, &err) == 0, "%s", err.text);
}

static void teardown(void)
{
    port_topo_close(topo);
    topo = NULL;
}

START_TEST(numbers_agree_with_the_system)
{
    cpu_set_t allowed;
    ck_assert_int_eq(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    unsigned cores = port_topo_cores(topo);
    ck_assert_uint_ge(cores, 1);
    ck_assert_uint_le(cores, (unsigned)CPU_COUNT(&allowed));
    ck_assert_uint_ge(port_topo_numa_nodes(topo), 1);
    uint64_t physical = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    ck_assert_uint_ge(port_topo_memory_bytes(topo), 1u << 20);
    ck_assert_uint_le(port_topo_memory_bytes(topo), physical + physical / 8);
}
END_TEST

START_TEST(a_narrowed_process_has_fewer_cores)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof one, &one) < 0) return;     /* then there is no narrowing */
    teardown();
    setup();
    ck_assert_uint_eq(port_topo_cores(topo), 1);
}
END_TEST

START_TEST(threads_and_memory_bind)
{
    unsigned cores = port_topo_cores(topo);
    for (unsigned index = 0; index < 2 * cores; index++) {
        int rc = port_topo_bind_thread(topo, index);
        ck_assert_msg(rc == 0 || rc == -EPERM || rc == -ENOTSUP, "%d", rc);
        if (rc < 0) continue;
        cpu_set_t now;
        ck_assert_int_eq(sched_getaffinity(0, sizeof now, &now), 0);
        ck_assert(CPU_ISSET(sched_getcpu(), &now));
    }
    size_t size = 1u << 20;
    void *memory = aligned_alloc(4096, size);
    int rc = port_topo_place(topo, memory, size, "0");
    ck_assert_msg(rc == 0 || rc == -EPERM || rc == -ENOTSUP, "%d", rc);
    rc = port_topo_place(topo, memory, size, NULL);
    ck_assert_msg(rc == 0 || rc == -EPERM || rc == -ENOTSUP, "%d", rc);
    free(memory);
    port_topo_close(NULL);
}
END_TEST

/* A machine with four nodes, as hwloc plays it: nothing is really bound there. */
START_TEST(nodes_are_named_as_the_system_numbers_them)
{
    static const char *const good[] = { "0", "3", "0,2-3", "0-3", "1,1" };
    static const char *const bad[] = { "", "4", "0-4", "0-", "two", "-1", "0 1", ",", "0x1" };
    struct base_err err = { 0 };
    teardown();
    ck_assert_int_eq(setenv("HWLOC_SYNTHETIC", "numa:4 core:2 pu:1", 1), 0);
    ck_assert_msg(port_topo_open(&topo, &err) == 0, "%s", err.text);
    ck_assert_uint_eq(port_topo_numa_nodes(topo), 4);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        ck_assert_msg(port_topo_nodes_check(topo, good[i], &err) == 0, "%s", err.text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        err = (struct base_err){ 0 };
        ck_assert_msg(port_topo_nodes_check(topo, bad[i], &err) == BASE_ECONFIG, "%s", bad[i]);
        ck_assert_ptr_nonnull(strstr(err.text, "this process has 0-3"));
    }
    char memory[4096];
    ck_assert_int_eq(port_topo_place(topo, memory, sizeof memory, "0,2"), 0);
    unsetenv("HWLOC_SYNTHETIC");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("topo");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, numbers_agree_with_the_system);
    tcase_add_test(tcase, a_narrowed_process_has_fewer_cores);
    tcase_add_test(tcase, threads_and_memory_bind);
    tcase_add_test(tcase, nodes_are_named_as_the_system_numbers_them);
    Suite *suite = suite_create("port/topo");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
