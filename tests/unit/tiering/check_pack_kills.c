/* A repack that ends before any of its calls that change a file or make it durable (caught by the
 * linker's --wrap) leaves no index or a whole pack, and the next run makes it whole: from nothing,
 * from half way, with a file gone, and with --restart. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/support/make_tiny.h"
#include "tiering/store.h"

enum { DIRS = 2, KILLED = 99, STEPS_MAX = 1000 };

/* -- the calls -------------------------------------------------------------------------------- */

static int calls_left = -1;             /* then the process ends; -1 = never */

static void step(void)
{
    if (calls_left >= 0 && calls_left-- == 0) _exit(KILLED);
}

ssize_t __real_pwrite64(int fd, const void *from, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *from, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *from, size_t bytes, off_t offset)
{
    step();
    return __real_pwrite64(fd, from, bytes, offset);
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    step();
    return __real_fallocate64(fd, mode, offset, bytes);
}

int __real_ftruncate64(int fd, off_t bytes);
int __wrap_ftruncate64(int fd, off_t bytes);
int __wrap_ftruncate64(int fd, off_t bytes)
{
    step();
    return __real_ftruncate64(fd, bytes);
}

/* No time is lost on the disk: a process that ends loses nothing that it has written. */
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    step();
    (void)fd;
    return 0;
}

int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    step();
    (void)fd;
    return 0;
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    step();
    return __real_rename(from, to);
}

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
    step();
    return __real_unlink(path);
}

/* -- a model and its pack --------------------------------------------------------------------- */

static char model[3000], dirs[DIRS][3000];
static const char *dir_list[DIRS] = { dirs[0], dirs[1] };
static struct model_shape shape;
static struct tier_store *source;

static void setup(void)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err = { 0 };
    base_log_level_set(BASE_LOG_ERROR);
    tiny_folder(model, sizeof model, "check_pack_kills");
    tiny_write(model, &options);
    ck_assert_int_eq(model_shape_load(&shape, model, &err), 0);
    ck_assert_int_eq(tier_store_index(model, NULL, &shape, 1, NULL, &err), 0);
    ck_assert_int_eq(tier_store_open(&source, model, NULL, &shape, &err), 0);
    for (unsigned i = 0; i < DIRS; i++) {
        tiny_folder(dirs[i], sizeof dirs[i], "check_pack_kills_to");
    }
}

static void teardown(void)
{
    tier_store_close(source);
    tiny_remove(model);
    for (unsigned i = 0; i < DIRS; i++) {
        tiny_remove(dirs[i]);
    }
}

/* Three batches. */
static struct tier_pack_options options_of(bool restart, enum tier_pack_mode mode)
{
    uint64_t all = (uint64_t)tier_store_layers(source) * tier_store_experts(source) *
                   tier_store_slot_bytes(source);
    return (struct tier_pack_options){ .dirs = dir_list, .dir_count = DIRS, .mode = mode,
                                       .threads = 1, .sync_bytes = all / 3, .restart = restart };
}

/* Whether the run came to its end before so many calls. */
static bool run_to(const struct tier_pack_options *options, int calls)
{
    int status;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        struct base_err err = { 0 };
        calls_left = calls;
        int rc = tier_store_repack(source, options, NULL, &err);
        if (rc < 0) printf("%s\n", err.text);
        fflush(stdout);
        _exit(rc == 0 ? 0 : 1);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_msg(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == KILLED, "exit code %d",
                  WEXITSTATUS(status));
    return WEXITSTATUS(status) == 0;
}

/* A pack that can be opened has all its records. */
static bool whole_if_there(int call)
{
    struct base_err err = { 0 };
    struct tier_store *pack;
    char path[3100];
    snprintf(path, sizeof path, "%s/expertier.index", dirs[0]);
    int rc = tier_store_open(&pack, model, path, &shape, &err);
    if (rc == -ENOENT) return false;
    ck_assert_msg(rc == 0, "ended before call %d: %s", call, err.text);
    int64_t bad = tier_store_verify(pack, NULL, NULL, NULL, &err);
    ck_assert_msg(bad == 0, "ended before call %d: %d bad records", call, (int)bad);
    tier_store_close(pack);
    return true;
}

enum situation { NOTHING, HALF, FILE_GONE, HALF_RESTART, WHOLE_RESTART, SITUATIONS };

static void prepare(enum situation now, enum tier_pack_mode mode)
{
    struct tier_pack_options options = options_of(true, mode);
    char part[3100];
    snprintf(part, sizeof part, "%s/experts.pack.part", dirs[0]);
    if (now == WHOLE_RESTART) {
        ck_assert(run_to(&options, -1));
        return;
    }
    for (unsigned i = 0; i < DIRS; i++) {
        tiny_remove(dirs[i]);
    }
    /* In the third batch. */
    if (now != NOTHING) ck_assert(!run_to(&options, mode == TIER_PACK_MIRROR ? 45 : 35));
    if (now == FILE_GONE) ck_assert_int_eq(unlink(part), 0);
}

START_TEST(ended_at_any_call_it_leaves_nothing_half)
{
    const enum situation now = (enum situation)_i;
    const enum tier_pack_mode mode = _i % 2 ? TIER_PACK_MIRROR : TIER_PACK_STRIPE;
    struct tier_pack_options options = options_of(now >= HALF_RESTART, mode);
    /* Where a whole pack was being thrown away only the same command goes on. */
    struct tier_pack_options again = options_of(now == WHOLE_RESTART, mode);
    struct base_rng rng;
    int calls = 0;
    base_rng_init(&rng, 11);
    for (bool ended = false; !ended; calls++) {
        ck_assert_int_lt(calls, STEPS_MAX);
        prepare(now, mode);
        ended = run_to(&options, calls);
        whole_if_there(calls);
        /* The run that goes on ends early, too. */
        run_to(&again, (int)base_rng_below(&rng, 60));
        whole_if_there(calls);
        ck_assert(run_to(&again, -1));
        ck_assert(whole_if_there(calls));
    }
    printf("situation %d: ended before each of %d calls\n", _i, calls - 1);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("pack_kills");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, ended_at_any_call_it_leaves_nothing_half, 0, SITUATIONS);
    Suite *suite = suite_create("tiering/pack_kills");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
