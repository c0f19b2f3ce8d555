/* Whole files, pipes and files of no stated size are read; too large ones and folders are
 * refused; so is a place where no file can be made. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

static char path[] = "/tmp/check_file_XXXXXX";

static void setup(void)
{
    strcpy(path + strlen(path) - 6, "XXXXXX");
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, "0123456789", 10), 10);
    close(fd);
}

static void teardown(void)
{
    unlink(path);
}

START_TEST(sizes_up_to_the_limit)
{
    char *bytes;
    size_t size;
    struct base_err err = { 0 };
    ck_assert_int_eq(base_file_read(&bytes, &size, path, 10, &err), 0);
    ck_assert_uint_eq(size, 10);
    ck_assert_str_eq(bytes, "0123456789");
    free(bytes);
    ck_assert_int_eq(base_file_read(&bytes, &size, path, 9, &err), -EFBIG);
    ck_assert_ptr_null(bytes);
    ck_assert_ptr_nonnull(strstr(err.text, ": larger than 9 B, the most"));
    ck_assert_int_eq(truncate(path, 0), 0);
    ck_assert_int_eq(base_file_read(&bytes, &size, path, 9, NULL), 0);
    ck_assert_str_eq(bytes, "");
    free(bytes);
}
END_TEST

START_TEST(what_claims_no_size)
{
    char *bytes;
    size_t size;
    ck_assert_int_eq(base_file_read(&bytes, &size, "/proc/self/maps", 1 << 20, NULL), 0);
    ck_assert_uint_eq(size, strlen(bytes));
    ck_assert_uint_gt(size, 100);
    free(bytes);
    ck_assert_int_eq(base_file_read(&bytes, &size, "/proc/self/maps", 50, NULL), -EFBIG);
    ck_assert_int_eq(base_file_read(&bytes, &size, "/dev/zero", 300000, NULL), -EFBIG);
}
END_TEST

START_TEST(sentences)
{
    char *bytes;
    size_t size;
    struct base_err err = { 0 };
    ck_assert_int_eq(base_file_read(&bytes, &size, "/no/such", 9, &err), -ENOENT);
    ck_assert_str_eq(err.text, "/no/such: No such file or directory");
    err.code = 0;
    ck_assert_int_eq(base_file_read(&bytes, &size, "/tmp", 9, &err), -EISDIR);
    ck_assert_str_eq(err.text, "/tmp: Is a directory");
}
END_TEST

START_TEST(places)
{
    struct base_err err = { 0 };
    char under[64];
    ck_assert_int_eq(base_file_place_check(path, &err), 0);
    ck_assert_int_eq(base_file_place_check("/tmp/not-there-yet", &err), 0);
    ck_assert_int_eq(base_file_place_check("/nowhere/at/all", &err), -ENOENT);
    ck_assert_str_eq(err.text, "/nowhere/at/all: nothing can be saved in /nowhere/at/: No such "
                               "file or directory");
    snprintf(under, sizeof under, "%s/x", path);
    ck_assert_int_eq(base_file_place_check(under, NULL), -ENOTDIR);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("file");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, sizes_up_to_the_limit);
    tcase_add_test(tcase, what_claims_no_size);
    tcase_add_test(tcase, sentences);
    tcase_add_test(tcase, places);
    Suite *suite = suite_create("base/file");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
