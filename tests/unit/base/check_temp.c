/* A signal that ends a program takes its temporary files along, and nothing that was taken back; a
 * temporary file without a name lies where TMPDIR says. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/out.h"
#include "base/temp.h"

static char dir[64];
static const int signals[] = { SIGINT, SIGTERM, SIGHUP };

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/expertier-check-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(chdir(dir), 0);
}

static void teardown(void)
{
    char command[128];
    ck_assert_int_eq(chdir("/"), 0);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    ck_assert_int_eq(system(command), 0);
}

static void touch(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0) abort();
    close(fd);
}

/* What a program has made when the signal comes. */
static void work(void)
{
    static struct base_out whole, half;
    for (int i = 0; i < 3; i++) signal(signals[i], SIG_DFL);    /* the runner has its own */
    base_temp_guard();
    if (mkdir("folder", 0755) < 0) abort();
    base_temp_add("folder");
    base_temp_add("folder/file");
    touch("folder/file");
    base_temp_add("result");
    touch("result");
    base_temp_drop("result");
    if (base_out_begin(&whole, "whole", NULL) < 0 || base_out_open(&whole, NULL) < 0 ||
        base_out_end(&whole, 0, NULL) < 0 || base_out_begin(&half, "half", NULL) < 0 ||
        base_out_open(&half, NULL) < 0) {
        abort();
    }
    fputs("half", half.file);
    fflush(half.file);
}

/* `_i`: which signal. */
START_TEST(signals_leave_nothing)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        work();
        raise(signals[_i]);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == signals[_i]);
    ck_assert_int_eq(access("result", F_OK), 0);
    ck_assert_int_eq(access("whole", F_OK), 0);
    ck_assert_int_eq(unlink("result") + unlink("whole"), 0);
    ck_assert_int_eq(chdir("/"), 0);
    ck_assert_msg(rmdir(dir) == 0, "something was left: %s", strerror(errno));
    ck_assert_int_eq(mkdir(dir, 0755) + chdir(dir), 0);
}
END_TEST

START_TEST(what_is_ignored_stays_ignored)
{
    struct sigaction was;
    signal(SIGHUP, SIG_IGN);
    base_temp_guard();
    ck_assert_int_eq(sigaction(SIGHUP, NULL, &was), 0);
    ck_assert(was.sa_handler == SIG_IGN);
}
END_TEST

START_TEST(nameless_files_lie_in_tmpdir)
{
    struct stat file, folder;
    struct base_err err = { 0 };
    setenv("TMPDIR", dir, 1);
    int fd = base_temp_open(&err);
    ck_assert_msg(fd >= 0, "%s", err.text);
    ck_assert(fstat(fd, &file) == 0 && stat(dir, &folder) == 0);
    ck_assert_uint_eq(file.st_nlink, 0);
    ck_assert_uint_eq(file.st_dev, folder.st_dev);
    close(fd);
    setenv("TMPDIR", "no/such", 1);
    ck_assert_int_eq(base_temp_open(&err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "no/such: no temporary file"));
    setenv("TMPDIR", "", 1);
    ck_assert_str_eq(base_temp_folder(), "/tmp");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("temp");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, signals_leave_nothing, 0, 3);
    tcase_add_test(tcase, what_is_ignored_stays_ignored);
    tcase_add_test(tcase, nameless_files_lie_in_tmpdir);
    Suite *suite = suite_create("base/temp");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
