/* A result takes its place whole or not at all; links lead on, pipes are written as they are and
 * stay, and no file that is read is written over. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/out.h"

static char dir[64];

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

static void put(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    ck_assert_int_eq(fclose(file), 0);
}

static void expect(const char *path, const char *text)
{
    char *bytes;
    size_t size;
    struct base_err err = { 0 };
    ck_assert_msg(base_file_read(&bytes, &size, path, 1000, &err) == 0, "%s", err.text);
    ck_assert_str_eq(bytes, text);
    free(bytes);
}

/* How many there are. */
static unsigned files(void)
{
    unsigned count = 0;
    DIR *all = opendir(".");
    ck_assert_ptr_nonnull(all);
    for (struct dirent *one; (one = readdir(all));) count += one->d_name[0] != '.';
    closedir(all);
    return count;
}

/* Writes the text and ends with `rc`. */
static int write_out(const char *to, const char *text, int rc, struct base_err *err)
{
    struct base_out out;
    int code = base_out_begin(&out, to, err);
    if (code == 0) code = base_out_open(&out, err);
    if (code < 0) return code;
    fputs(text, out.file);
    return base_out_end(&out, rc, err);
}

START_TEST(whole_or_not_at_all)
{
    struct base_err err = { 0 };
    ck_assert_int_eq(write_out("a", "one", 0, &err), 0);
    expect("a", "one");
    ck_assert_int_eq(write_out("a", "two", -EIO, &err), -EIO);
    expect("a", "one");
    ck_assert_uint_eq(files(), 1);
    ck_assert_int_eq(write_out("a", "two", 0, NULL), 0);
    expect("a", "two");
    ck_assert_uint_eq(files(), 1);
}
END_TEST

/* What somebody else has beside it stays, and two that write at the same time never meet. */
START_TEST(others_are_left_alone)
{
    struct base_err err = { 0 };
    struct base_out one, two;
    put("a.tmp", "notes");
    ck_assert(base_out_begin(&one, "a", &err) == 0 && base_out_open(&one, &err) == 0);
    fputs("one", one.file);
    ck_assert(base_out_begin(&two, "a", &err) == 0 && base_out_open(&two, &err) == 0);
    ck_assert_str_ne(one.temporary, two.temporary);
    fputs("tw", two.file);
    fflush(two.file);
    ck_assert_msg(base_out_end(&one, 0, &err) == 0, "%s", err.text);
    expect("a", "one");
    fputs("o", two.file);
    ck_assert_msg(base_out_end(&two, 0, &err) == 0, "%s", err.text);
    expect("a", "two");
    ck_assert_int_eq(write_out("a", "three", -EIO, &err), -EIO);
    expect("a.tmp", "notes");
    ck_assert_uint_eq(files(), 2);
}
END_TEST

/* Also for a name that leaves no room for an ending, and for who writes by name. */
START_TEST(made_for_another)
{
    char name[NAME_MAX + 1];
    struct base_err err = { 0 };
    struct base_out out;
    memset(name, 'n', sizeof name - 1);
    name[NAME_MAX] = '\0';
    ck_assert_int_eq(base_out_begin(&out, name, &err), 0);
    ck_assert_msg(base_out_make(&out, &err) == 0, "%s", err.text);
    expect(out.temporary, "");
    put(out.temporary, "made");
    ck_assert_msg(base_out_end(&out, 0, &err) == 0, "%s", err.text);
    expect(name, "made");
    ck_assert_uint_eq(files(), 1);
}
END_TEST

START_TEST(links_lead_on)
{
    struct stat st;
    struct base_err err = { 0 };
    ck_assert_int_eq(mkdir("far", 0755), 0);
    put("far/file", "old");
    ck_assert_int_eq(symlink("file", "far/near"), 0);
    ck_assert_int_eq(symlink("far/near", "link"), 0);
    ck_assert_msg(write_out("link", "new", 0, &err) == 0, "%s", err.text);
    expect("far/file", "new");
    ck_assert(lstat("link", &st) == 0 && S_ISLNK(st.st_mode));
    ck_assert(lstat("far/near", &st) == 0 && S_ISLNK(st.st_mode));
    ck_assert_int_eq(symlink("far/absent", "ahead"), 0);
    ck_assert_int_eq(write_out("ahead", "made", 0, &err), 0);
    expect("far/absent", "made");
    ck_assert_int_eq(symlink("round", "round"), 0);
    ck_assert_int_eq(write_out("round", "", 0, &err), -ELOOP);
    ck_assert_ptr_nonnull(strstr(err.text, "round: cannot write"));
}
END_TEST

static void *drain(void *text)
{
    int fd = open("pipe", O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, text, 15);
    if (fd >= 0) close(fd);
    return got == 3 ? text : NULL;
}

START_TEST(a_pipe_is_written_and_stays)
{
    struct stat st;
    struct base_err err = { 0 };
    for (int i = 0; i < 2; i++) {
        char text[16] = "";
        pthread_t reader;
        void *got;
        if (i == 0) ck_assert_int_eq(mkfifo("pipe", 0644), 0);
        if (i == 0) ck_assert_int_eq(symlink("pipe", "to_pipe"), 0);
        ck_assert_int_eq(pthread_create(&reader, NULL, drain, text), 0);
        ck_assert_int_eq(write_out(i == 0 ? "pipe" : "to_pipe", "abc", i == 0 ? 0 : -EIO, &err),
                         i == 0 ? 0 : -EIO);
        pthread_join(reader, &got);
        ck_assert_str_eq(text, "abc");
        ck_assert(lstat("pipe", &st) == 0 && S_ISFIFO(st.st_mode));
        ck_assert(lstat("to_pipe", &st) == 0 && S_ISLNK(st.st_mode));
    }
}
END_TEST

START_TEST(what_is_read_is_spared)
{
    struct base_out out;
    put("in", "precious");
    ck_assert_int_eq(symlink("in", "link"), 0);
    ck_assert_int_eq(link("in", "twin"), 0);
    static const struct {
        const char *to, *input;
        int rc;
    } cases[] = {
        { "in", "in", -EINVAL },   { "link", "in", -EINVAL }, { "in", "link", -EINVAL },
        { "twin", "in", -EINVAL }, { "new", "in", 0 },        { "new", "absent", 0 },
        { "-", "in", 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct base_err err = { 0 };
        ck_assert_int_eq(base_out_begin(&out, cases[i].to, &err), 0);
        ck_assert_msg(base_out_spares(&out, cases[i].input, &err) == cases[i].rc, "case %zu: %s", i,
                      err.text);
        ck_assert(cases[i].rc == 0 || strstr(err.text, "name another file"));
    }
    expect("in", "precious");
}
END_TEST

START_TEST(what_cannot_be_is_said_at_once)
{
    struct base_out out;
    struct base_err folder = { 0 }, dir_itself = { 0 };
    ck_assert_int_eq(base_out_begin(&out, "no/such", &folder), -ENOENT);
    ck_assert_str_eq(folder.text, "no/such: cannot write: No such file or directory");
    ck_assert_int_eq(base_out_begin(&out, ".", &dir_itself), -EISDIR);
    char *longest = calloc(1, PATH_MAX + 1);
    memset(longest, 'a', PATH_MAX);
    ck_assert_int_eq(base_out_begin(&out, longest, NULL), -ENAMETOOLONG);
    free(longest);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("out");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, whole_or_not_at_all);
    tcase_add_test(tcase, others_are_left_alone);
    tcase_add_test(tcase, made_for_another);
    tcase_add_test(tcase, links_lead_on);
    tcase_add_test(tcase, a_pipe_is_written_and_stays);
    tcase_add_test(tcase, what_is_read_is_spared);
    tcase_add_test(tcase, what_cannot_be_is_said_at_once);
    Suite *suite = suite_create("base/out");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
