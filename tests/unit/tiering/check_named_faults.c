/* Faults that the random campaign cannot bring on, one by one (calls of the system are caught by
 * the linker's --wrap): ring setup refused, memlock limit, buffers not registered, a full disk
 * while packing, a file that vanished or was cut, a read that does not come back and is named, bad
 * reads of each kind, copies to the device that fail. Each ends in the sentence that it should; the
 * bytes that are served are right. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/support/make_tiny.h"
#include "tests/support/tier_settings.h"
#include "tiering/tiering.h"

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 3 };

/* -- refusals of the system ------------------------------------------------------------------- */

struct io_uring;                /* liburing is included in one place */

static int ring_code, lock_errno, buffers_code;
static int64_t writes_left = -1;        /* then the disk is full; -1 = never */
static bool no_room;

int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    return ring_code < 0 ? ring_code : __real_io_uring_queue_init(entries, ring, flags);
}

int __real_io_uring_register_buffers(struct io_uring *ring, const struct iovec *v, unsigned n);
int __wrap_io_uring_register_buffers(struct io_uring *ring, const struct iovec *v, unsigned n);
int __wrap_io_uring_register_buffers(struct io_uring *ring, const struct iovec *v, unsigned n)
{
    return buffers_code < 0 ? buffers_code : __real_io_uring_register_buffers(ring, v, n);
}

int __real_mlock2(const void *at, size_t bytes, unsigned flags);
int __wrap_mlock2(const void *at, size_t bytes, unsigned flags);
int __wrap_mlock2(const void *at, size_t bytes, unsigned flags)
{
    if (lock_errno == 0) return __real_mlock2(at, bytes, flags);
    errno = lock_errno;
    return -1;
}

ssize_t __real_pwrite64(int fd, const void *from, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *from, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *from, size_t bytes, off_t offset)
{
    if (writes_left < 0 || writes_left-- > 0) return __real_pwrite64(fd, from, bytes, offset);
    writes_left = 0;
    errno = ENOSPC;
    return -1;
}

int __real_statvfs64(const char *path, struct statvfs *to);
int __wrap_statvfs64(const char *path, struct statvfs *to);
int __wrap_statvfs64(const char *path, struct statvfs *to)
{
    int rc = __real_statvfs64(path, to);
    if (no_room) to->f_bavail = 1;
    return rc;
}

/* What is said on the way: lost experts are expected by the dozen. */
static char logged[4][600];
static unsigned log_count;

static void log_keep(enum base_log_level level, const char *area, const char *text)
{
    (void)level, (void)area;
    snprintf(logged[log_count++ % 4], sizeof logged[0], "%s", text);
}

/* -- a model and its tiers -------------------------------------------------------------------- */

static char dir[3000], pack_dir[3000];
static struct model_shape shape;
static struct tier_store *store;

static void open_store(void)
{
    struct base_err err = { 0 };
    ck_assert_msg(tier_store_open(&store, dir, NULL, &shape, &err) == 0, "%s", err.text);
}

static void setup(void)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err = { 0 };
    options.layers = LAYERS + 1;
    options.dense_layers = 1;
    options.experts = EXPERTS;
    options.top_k = TOP_K;
    options.groups = options.top_groups = 1;
    base_log_sink_set(log_keep);
    tiny_folder(dir, sizeof dir, "check_named");
    tiny_folder(pack_dir, sizeof pack_dir, "check_named_to");
    tiny_write(dir, &options);
    int rc = model_shape_load(&shape, dir, &err);
    if (rc == 0) rc = tier_store_index(dir, NULL, &shape, 1, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    open_store();
}

static void teardown(void)
{
    tier_store_close(store);
    tiny_remove(dir);
    tiny_remove(pack_dir);
}

static int open_tiers(struct tier **tier, const char *const *pairs, struct base_err *err)
{
    static struct tier_config config;
    static struct tier_io_config io;
    tier_settings_default(&config, &io);
    *err = (struct base_err){ 0 };
    for (; *pairs; pairs++) tier_settings_set(&config, &io, "%s", *pairs);
    struct tier_open_args args = { .config = &config, .io = &io, .store = store, .top_k = TOP_K };
    return tier_open(tier, &args, err);
}

static struct tier *tiers_of(const char *const *pairs)
{
    struct base_err err;
    struct tier *tier;
    ck_assert_msg(open_tiers(&tier, pairs, &err) == 0, "%s", err.text);
    return tier;
}

/* Asks for all experts, TOP_K at a time; those that come are right. Returns how many failed. */
static unsigned serve(struct tier *tier)
{
    unsigned failed = 0;
    for (uint32_t at = 0; at < LAYERS * EXPERTS; at += TOP_K) {
        struct tier_lease leases[TOP_K];
        uint32_t ids[TOP_K];
        for (uint32_t i = 0; i < TOP_K; i++) ids[i] = at % EXPERTS + i;
        ck_assert_uint_eq(tier_acquire(tier, at / EXPERTS, ids, TOP_K, TIER_DECODE, leases), TOP_K);
        tier_wait(tier, leases, TOP_K, TIER_WAIT_ALL, UINT64_MAX);
        for (uint32_t i = 0; i < TOP_K; i++) {
            struct tier_record record, here = { 0 };
            failed += leases[i].status < 0;
            if (leases[i].status < 0) continue;
            tier_store_record(store, leases[i].layer, leases[i].expert, &record);
            here.hash = record.hash;
            memcpy(here.part_bytes, record.part_bytes, sizeof here.part_bytes);
            const char *first = leases[i].parts[0];
            for (int p = 0; p < TIER_PARTS; p++) {
                if (leases[i].parts[p]) {
                    here.part_offset[p] = (uint64_t)((const char *)leases[i].parts[p] - first);
                }
            }
            ck_assert_int_eq(tier_store_check(&here, first, NULL, NULL), 0);
        }
        tier_release(tier, leases, TOP_K);
        tier_step_end(tier);
    }
    return failed;
}

static void snapshot_of(struct tier *tier, struct tier_snapshot *s)
{
    tier_step_end(tier);
    tier_snapshot(tier, s);
}

#define HAS(text, part) ck_assert_msg(strstr(text, part) != NULL, "\"%s\" lacks \"%s\"", text, part)

/* -- the faults ------------------------------------------------------------------------------- */

START_TEST(ring_setup_refused)
{
    static const struct {
        int code;
        const char *says;
    } cases[] = { { -EPERM, "io_uring" }, { -ENOSYS, "no io_uring (Linux 5.6" },
                  { -ENOMEM, "the memlock limit is" }, { -EMFILE, "Too many open files" } };
    static const char *const any[] = { "io.backend=auto", "tiers.dram.capacity=50%", NULL };
    static const char *const this[] = { "io.backend=io_uring", NULL };
    struct tier_snapshot s;
    struct base_err err;
    struct tier *tier;
    ring_code = cases[_i].code;
    ck_assert_int_eq(open_tiers(&tier, this, &err), cases[_i].code);
    HAS(err.text, cases[_i].says);
    HAS(err.text, "threads");
    tier = tiers_of(any);
    ck_assert_uint_eq(serve(tier), 0);
    snapshot_of(tier, &s);
    ck_assert(s.backend_degraded);
    HAS(s.io_note, "threads, because ");
    tier_close(tier);
}
END_TEST

START_TEST(memlock_limit)
{
    static const char *const any[] = { "tiers.dram.pin=auto", "tiers.dram.capacity=50%", NULL };
    static const char *const on[] = { "tiers.dram.pin=on", NULL };
    struct tier_snapshot s;
    struct base_err err;
    struct tier *tier;
    lock_errno = _i ? EPERM : ENOMEM;
    buffers_code = -lock_errno;
    ck_assert_int_eq(open_tiers(&tier, on, &err), -lock_errno);
    HAS(err.text, "tiers.dram.pin: on: the system refused to lock memory");
    HAS(err.text, "ulimit -l unlimited");
    tier = tiers_of(any);
    ck_assert_uint_eq(serve(tier), 0);
    snapshot_of(tier, &s);
    ck_assert(s.pin_degraded);
    HAS(s.pin_note, "not locked");
    if (strstr(s.io_note, "threads")) {
        ck_assert(s.backend_degraded);          /* no io_uring on this machine at all */
    } else {
        ck_assert(s.buffers_degraded);
        HAS(s.io_note, "buffers not registered");
    }
    tier_close(tier);
}
END_TEST

START_TEST(disk_full_while_packing)
{
    const char *const dirs[] = { pack_dir };
    struct tier_pack_options options = { .dirs = dirs, .dir_count = 1, .threads = 2,
                                         .sync_bytes = 1 };
    struct tier_store *pack;
    struct base_err err = { 0 };
    char index[3100];
    snprintf(index, sizeof index, "%s/expertier.index", pack_dir);
    no_room = true;
    ck_assert_int_eq(tier_store_repack(store, &options, NULL, &err), -ENOSPC);
    HAS(err.text, "the pack takes");
    no_room = false;
    /* Full after so many writes: a sentence each time, no index, and the next run goes on. */
    unsigned refused = 0;
    for (int64_t room = 0; room < 200; room += 5) {
        err = (struct base_err){ 0 };
        writes_left = room;
        int rc = tier_store_repack(store, &options, NULL, &err);
        writes_left = -1;
        if (rc == 0) break;
        ck_assert_int_eq(rc, -ENOSPC);
        HAS(err.text, "No space left on device");
        HAS(err.text, pack_dir);
        ck_assert_int_ne(access(index, F_OK), 0);
        refused++;
    }
    ck_assert_uint_gt(refused, 3);
    err = (struct base_err){ 0 };
    ck_assert_msg(tier_store_repack(store, &options, NULL, &err) == 0, "%s", err.text);
    ck_assert_int_eq(tier_store_open(&pack, dir, index, &shape, &err), 0);
    ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 0);
    tier_store_close(pack);
}
END_TEST

START_TEST(a_file_vanishes)
{
    static const char *const pairs[] = { "tiers.dram.capacity=25%", NULL };
    struct tier_store *other;
    struct base_err err = { 0 };
    struct tier *tier = tiers_of(pairs);
    /* What is open is still there; who comes later is told. */
    ck_assert_int_eq(unlink(tier_store_file_path(store, 0)), 0);
    ck_assert_uint_eq(serve(tier), 0);
    tier_close(tier);
    ck_assert_int_eq(tier_store_open(&other, dir, NULL, &shape, &err), BASE_ESTALE);
    HAS(err.text, "is gone since");
    ck_assert_int_lt(open_tiers(&tier, pairs, &err), 0);
    HAS(err.text, "model.safetensors");
}
END_TEST

START_TEST(a_file_is_cut)
{
    static const char *const pairs[] = { "tiers.dram.capacity=25%", NULL };
    struct tier_snapshot s;
    struct tier *tier = tiers_of(pairs);
    char why[500];
    ck_assert_int_eq(truncate(tier_store_file_path(store, 0), 0), 0);
    ck_assert_uint_eq(serve(tier), LAYERS * EXPERTS);
    ck_assert_int_eq(tier_failure_text(tier, 1, 7, why, sizeof why), -EIO);
    HAS(why, "expert 7 of layer 2 could not be read: ");
    HAS(why, "model.safetensors at byte");
    snapshot_of(tier, &s);
    ck_assert_uint_eq(s.io.quarantined, LAYERS * EXPERTS);
    tier_close(tier);
}
END_TEST

/* The watchdog names what does not come back; when it does, all is well. */
START_TEST(a_stuck_read_is_named)
{
    static const char *const pairs[] = { "io.faults=seed=1,stuck=1,stuck_for=500ms",
                                         "tiers.nvme.stuck_after=30ms", "tiers.dram.capacity=100%",
                                         NULL };
    struct tier_lease lease;
    struct tier_snapshot s;
    uint32_t id = 5;
    struct tier *tier = tiers_of(pairs);
    ck_assert_uint_eq(tier_acquire(tier, 2, &id, 1, TIER_DECODE, &lease), 1);
    ck_assert_uint_eq(tier_wait(tier, &lease, 1, TIER_WAIT_ALL, UINT64_MAX), 1);
    ck_assert_int_eq(lease.status, 0);
    ck_assert_uint_ge(log_count, 1);
    HAS(logged[0], "read does not come back layer=3 expert=5 file=");
    HAS(logged[0], "model.safetensors offset=");
    snapshot_of(tier, &s);
    ck_assert_uint_ge(s.io.stuck_reads, 1);
    ck_assert_uint_eq(s.io.quarantined, 0);
    tier_release(tier, &lease, 1);
    tier_close(tier);
}
END_TEST

/* Of all kinds of bad reads: what comes right at the second or third try is served, the rest is
 * given up by name. */
START_TEST(bad_reads_are_read_again)
{
    static const char *const kinds[] = { "eio=0.2", "short=0.2", "flip=0.2",
                                         "slow=0.5,slow_for=2ms" };
    static const char *const backends[] = { "io.backend=auto", "io.backend=threads" };
    for (unsigned b = 0; b < 2; b++) {
        char faults[100];
        snprintf(faults, sizeof faults, "io.faults=seed=%d,%s", 3 + _i, kinds[_i]);
        const char *const pairs[] = { faults, backends[b], "tiers.dram.capacity=25%", NULL };
        struct tier_snapshot s;
        struct tier *tier = tiers_of(pairs);
        unsigned failed = serve(tier);
        snapshot_of(tier, &s);
        ck_assert_uint_ge(s.io.faults_injected, 3);
        ck_assert_uint_eq(s.io.quarantined, failed);
        ck_assert_uint_lt(failed, 6);
        if (_i < 3) ck_assert_uint_gt(s.io.read_errors + s.io.checksum_failures, 3 * failed);
        if (_i == 3) ck_assert_uint_eq(failed, 0);
        tier_close(tier);
    }
}
END_TEST

START_TEST(device_copies_fail)
{
    static const char *const some[] = { "tiers.hbm.capacity=25%", "tiers.dram.capacity=50%",
                                        "tiers.hbm.sim_bandwidth=0", "tiers.hbm.sim_faults=10%",
                                        NULL };
    static const char *const all[] = { "tiers.hbm.capacity=25%", "tiers.dram.capacity=50%",
                                       "tiers.hbm.sim_bandwidth=0", "tiers.hbm.sim_faults=100%",
                                       NULL };
    struct tier_snapshot s;
    char why[500];
    struct tier *tier = tiers_of(some);
    unsigned failed = serve(tier);
    snapshot_of(tier, &s);
    ck_assert_uint_gt(s.io.copy_errors, 0);
    ck_assert_uint_lt(failed, 4);
    tier_close(tier);
    tier = tiers_of(all);
    ck_assert_uint_eq(serve(tier), LAYERS * EXPERTS);
    ck_assert_int_eq(tier_failure_text(tier, 0, 3, why, sizeof why), BASE_EDEVICE);
    HAS(why, "expert 3 of layer 1 could not be copied to the device");
    tier_close(tier);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("named faults");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
#ifdef TIERING_HAVE_URING
    tcase_add_loop_test(tcase, ring_setup_refused, 0, 4);
#endif
    tcase_add_loop_test(tcase, memlock_limit, 0, 2);
    tcase_add_test(tcase, disk_full_while_packing);
    tcase_add_test(tcase, a_file_vanishes);
    tcase_add_test(tcase, a_file_is_cut);
    tcase_add_test(tcase, a_stuck_read_is_named);
    tcase_add_loop_test(tcase, bad_reads_are_read_again, 0, 4);
    tcase_add_test(tcase, device_copies_fail);
    Suite *suite = suite_create("named faults");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
