/* Log lines have their form, drop what is below the level, count repeats, and stay JSON when asked.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static FILE *lines;
static char text[20000];

/* Check runs each test in a process of its own, so stderr may be turned to a file. */
static void setup(void)
{
    lines = tmpfile();
    ck_assert_ptr_nonnull(lines);
    ck_assert_int_ge(dup2(fileno(lines), STDERR_FILENO), 0);
}

static const char *read_lines(void)
{
    rewind(lines);
    text[fread(text, 1, sizeof text - 1, lines)] = '\0';
    return text;
}

START_TEST(form_and_level)
{
    base_log(BASE_LOG_DEBUG, "io", "not seen");
    base_log(BASE_LOG_WARN, "io", "depth=%d", 7);
    const char *line = read_lines();
    int year, month, day, hour, minute, second, ms, end = 0;
    ck_assert_int_eq(sscanf(line, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ%n", &year, &month, &day, &hour,
                            &minute, &second, &ms, &end), 7);
    ck_assert_str_eq(line + end, " warn  io       depth=7\n");
    base_log_level_set(BASE_LOG_ERROR);
    base_log(BASE_LOG_WARN, "io", "not seen either");
    ck_assert_ptr_null(strstr(read_lines(), "not seen"));
    ck_assert_int_eq(base_log_level_parse("debug"), BASE_LOG_DEBUG);
    ck_assert_int_eq(base_log_level_parse("loud"), -EINVAL);
}
END_TEST

START_TEST(repeats_are_counted)
{
    for (int i = 0; i < 50; i++) {
        base_log(BASE_LOG_INFO, "io", "again");
    }
    base_log(BASE_LOG_INFO, "io", "other");
    const char *first = strstr(read_lines(), " again\n");
    ck_assert_ptr_nonnull(first);
    ck_assert_ptr_null(strstr(first + 1, " again\n"));
    ck_assert_ptr_nonnull(strstr(first, "repeated=49\n"));
    ck_assert_ptr_nonnull(strstr(first, " other\n"));
}
END_TEST

START_TEST(json_lines_are_escaped)
{
    base_log_json_set(true);
    base_log(BASE_LOG_ERROR, "io", "a \"b\" \\ c\nd");
    ck_assert_ptr_nonnull(strstr(read_lines(), "\",\"level\":\"error\",\"area\":\"io\",\"text\":"
                                               "\"a \\\"b\\\" \\\\ c\\u000ad\"}\n"));
    char giant[9000];
    memset(giant, '\n', sizeof giant - 1);
    giant[sizeof giant - 1] = '\0';
    base_log(BASE_LOG_ERROR, "io", "%s", giant);
    const char *line = read_lines();
    ck_assert_str_eq(line + strlen(line) - 3, "\"}\n");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("log");
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_test(tcase, form_and_level);
    tcase_add_test(tcase, repeats_are_counted);
    tcase_add_test(tcase, json_lines_are_escaped);
    Suite *suite = suite_create("base/log");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
