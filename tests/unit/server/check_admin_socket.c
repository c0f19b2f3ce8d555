/* The admin socket makes no folders but that of `auto`, and takes none in which others could put
 * their own socket. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/admin_socket.h"

static char folder[64], inner[80], path[SRV_ADMIN_PATH];

static void setup(void)
{
    snprintf(folder, sizeof folder, "/tmp/check_admin_socket.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(inner, sizeof inner, "%s/missing", folder);
    snprintf(path, sizeof path, "%s/x.sock", inner);
}

static void teardown(void)
{
    unlink(path);
    rmdir(inner);
    ck_assert_int_eq(rmdir(folder), 0);
}

START_TEST(a_missing_folder_is_refused_and_not_made)
{
    struct base_err err = { 0 };
    ck_assert_int_eq(srv_admin_socket_open(path, false, &err), -ENOENT);
    ck_assert_msg(strstr(err.text, inner), "%s", err.text);
    ck_assert_int_lt(access(inner, F_OK), 0);
}
END_TEST

START_TEST(that_of_auto_is_made_for_this_user_alone)
{
    struct base_err err = { 0 };
    struct stat info;
    int fd = srv_admin_socket_open(path, true, &err);
    ck_assert_msg(fd >= 0, "%s", err.text);
    ck_assert_int_eq(stat(inner, &info), 0);
    ck_assert_uint_eq(info.st_mode & 0777, 0700);
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_uint_eq(info.st_mode & 0777, 0600);
    ck_assert_int_eq(srv_admin_socket_open(path, false, &err), -EADDRINUSE);
    close(fd);
    fd = srv_admin_socket_open(path, false, &err);      /* nobody listens any more */
    ck_assert_msg(fd >= 0, "%s", err.text);
    close(fd);
}
END_TEST

START_TEST(a_folder_that_others_can_write_to_is_refused)
{
    struct base_err err = { 0 };
    ck_assert_int_eq(mkdir(inner, 0700), 0);
    ck_assert_int_eq(chmod(inner, 0777), 0);
    ck_assert_int_eq(srv_admin_socket_open(path, false, &err), -EPERM);
}
END_TEST

/* As /var/run is one; a folder of our own may not be. */
START_TEST(a_link_to_a_folder_is_followed_where_a_path_was_given)
{
    struct base_err err = { 0 };
    char real[100];
    snprintf(real, sizeof real, "%s/real", folder);
    ck_assert_int_eq(mkdir(real, 0700), 0);
    ck_assert_int_eq(symlink(real, inner), 0);
    ck_assert_int_eq(srv_admin_socket_open(path, true, &err), -EPERM);
    int fd = srv_admin_socket_open(path, false, &err);
    ck_assert_msg(fd >= 0, "%s", err.text);
    close(fd);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(chmod(real, 0777), 0);
    ck_assert_int_eq(srv_admin_socket_open(path, false, &err), -EPERM);
    ck_assert_int_eq(unlink(inner), 0);
    ck_assert_int_eq(rmdir(real), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admin_socket");
    TCase *cases = tcase_create("admin_socket");
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, a_missing_folder_is_refused_and_not_made);
    tcase_add_test(cases, that_of_auto_is_made_for_this_user_alone);
    tcase_add_test(cases, a_folder_that_others_can_write_to_is_refused);
    tcase_add_test(cases, a_link_to_a_folder_is_followed_where_a_path_was_given);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
