/* The machine has at least one core, node and byte, as the system says; threads bind or say why. */
#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
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

/* A machine with two sockets, a card and a disk at each, and a disk more at the second; written as
 * hwloc writes machines. */
static void write_disk(FILE *to, unsigned bus, unsigned number)
{
    fprintf(to, "<object type=\"PCIDev\" gp_index=\"%u\" pci_busid=\"0000:%02x:00.0\" "
            "pci_type=\"0108 [144d:a80a] [144d:a801] 00\" pci_link_speed=\"0.000000\"><object "
            "type=\"OSDev\" gp_index=\"%u\" name=\"nvme%un1\" osdev_type=\"0\"/></object>\n",
            100 + bus, bus, 400 + bus, number);
}

static void write_devices(FILE *to, unsigned socket)
{
    unsigned bus = socket ? 0x97 : 0x17;
    fprintf(to, "<object type=\"Bridge\" gp_index=\"%u\" bridge_type=\"0-1\" depth=\"0\" "
            "bridge_pci=\"0000:[%02x-%02x]\">\n<object type=\"PCIDev\" gp_index=\"%u\" "
            "pci_busid=\"0000:%02x:00.0\" pci_type=\"0302 [10de:2330] [10de:16c1] a1\" "
            "pci_link_speed=\"0.000000\"/>\n", 20 + socket, bus - 7, bus + 8, 100 + bus, bus);
    write_disk(to, bus + 1, socket);
    if (socket == 1) write_disk(to, bus + 2, 2);
    fprintf(to, "</object>\n");
}

/* The attributes that every object with cpus has. */
static void write_sets(FILE *to, unsigned cpus, unsigned nodes, unsigned index)
{
    fprintf(to, "cpuset=\"0x%x\" complete_cpuset=\"0x%x\" nodeset=\"0x%x\" "
            "complete_nodeset=\"0x%x\" "
            "gp_index=\"%u\"", cpus, cpus, nodes, nodes, index);
}

static void write_machine(FILE *to)
{
    fprintf(to, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE topology SYSTEM "
            "\"hwloc2.dtd\">\n<topology version=\"2.0\">\n<object type=\"Machine\" os_index=\"0\" "
            "allowed_cpuset=\"0xf\" allowed_nodeset=\"0x3\" ");
    write_sets(to, 0xf, 0x3, 1);
    fprintf(to, ">\n");
    for (unsigned s = 0; s < 2; s++) {
        fprintf(to, "<object type=\"Package\" os_index=\"%u\" ", s);
        write_sets(to, 3u << 2 * s, 1u << s, 2 + s);
        fprintf(to, ">\n<object type=\"NUMANode\" os_index=\"%u\" local_memory=\"1073741824\" ", s);
        write_sets(to, 3u << 2 * s, 1u << s, 4 + s);
        fprintf(to, "/>\n");
        for (unsigned c = 2 * s; c < 2 * s + 2; c++) {
            fprintf(to, "<object type=\"Core\" os_index=\"%u\" ", c);
            write_sets(to, 1u << c, 1u << s, 40 + c);
            fprintf(to, "><object type=\"PU\" os_index=\"%u\" ", c);
            write_sets(to, 1u << c, 1u << s, 50 + c);
            fprintf(to, "/></object>\n");
        }
        write_devices(to, s);
        fprintf(to, "</object>\n");
    }
    fprintf(to, "</object>\n</topology>\n");
}

static char *describe(void)
{
    struct base_err err = { 0 };
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    ck_assert_msg(port_topo_describe(to, &err) == 0, "%s", err.text);
    fclose(to);
    return text;
}

START_TEST(says_what_hangs_where)
{
    char path[] = "/tmp/expertier-topo-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");
    ck_assert_ptr_nonnull(file);
    write_machine(file);
    fclose(file);
    setenv("HWLOC_XMLFILE", path, 1);
    char *text = describe();
    unsetenv("HWLOC_XMLFILE");
    unlink(path);
    ck_assert_str_eq(text,
                     "numa node 0: cpus 0-1, 1 GiB\n"
                     "numa node 1: cpus 2-3, 1 GiB\n"
                     "gpu 0 at 0000:17:00.0: numa node 0, cpus 0-1; nvme beside it: nvme0n1\n"
                     "gpu 1 at 0000:97:00.0: numa node 1, cpus 2-3; nvme beside it: nvme1n1, "
                     "nvme2n1\n"
                     "nvme0n1: numa node 0, cpus 0-1\n"
                     "nvme1n1: numa node 1, cpus 2-3\n"
                     "nvme2n1: numa node 1, cpus 2-3\n");
    free(text);
}
END_TEST

START_TEST(describes_this_machine)
{
    char *text = describe();
    ck_assert_msg(strstr(text, "numa node 0: cpus 0") && strstr(text, "gpu"), "%s", text);
    free(text);
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
    tcase_add_test(tcase, says_what_hangs_where);
    tcase_add_test(tcase, describes_this_machine);
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
