/* Patterns with Unicode properties find their ranges; bad ones say where, runaway ones are
 * stopped. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "port/regex.h"

static struct port_regex *regex;
static struct port_regex_match *match;

static void compile(const char *pattern)
{
    struct base_err err = { 0 };
    ck_assert_msg(port_regex_compile(&regex, pattern, strlen(pattern), &err) == 0, "%s", err.text);
    ck_assert_int_eq(port_regex_match_create(&match), 0);
}

static void teardown(void)
{
    port_regex_free(regex);
    port_regex_match_destroy(match);
    regex = NULL;
    match = NULL;
}

static void expect_pieces(const char *text, size_t size, const char *const *pieces)
{
    size_t at = 0, begin, end;
    for (; *pieces; pieces++) {
        ck_assert_int_eq(port_regex_find(regex, match, text, size, at, &begin, &end), 1);
        ck_assert_uint_eq(end - begin, strlen(*pieces));
        ck_assert_mem_eq(text + begin, *pieces, end - begin);
        at = end;
    }
    ck_assert_int_eq(port_regex_find(regex, match, text, size, at, &begin, &end), 0);
}

START_TEST(splits_words_and_blanks)
{
    compile(
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+");
    const char *text = "Hello w\xc3\xb6rld 12345  \xe4\xb8\xad\xe6\x96\x87!\n\n";
    const char *pieces[] = { "Hello", " w\xc3\xb6rld", " ", "123", "45", " ",
                             " \xe4\xb8\xad\xe6\x96\x87", "!", "\n\n", NULL };
    expect_pieces(text, strlen(text), pieces);
}
END_TEST

START_TEST(unicode_digits_and_blanks_count)
{
    compile("\\s+|\\d+");
    const char *text = "x\xc2\xa0y\xd9\xa1\xd9\xa2z";      /* no-break space, Arabic digits */
    const char *pieces[] = { "\xc2\xa0", "\xd9\xa1\xd9\xa2", NULL };
    expect_pieces(text, strlen(text), pieces);
}
END_TEST

START_TEST(looks_behind_where_it_starts)
{
    compile("(?<=a)b|^c");
    size_t begin, end;
    ck_assert_int_eq(port_regex_find(regex, match, "ab", 2, 1, &begin, &end), 1);
    ck_assert_uint_eq(begin, 1);
    ck_assert_int_eq(port_regex_find(regex, match, "ac", 2, 1, &begin, &end), 0);
    ck_assert_int_eq(port_regex_find(regex, match, "a\0ab", 4, 0, &begin, &end), 1);
    ck_assert_uint_eq(begin, 3);
    ck_assert_int_eq(port_regex_find(regex, match, "ab", 2, 2, &begin, &end), 0);
}
END_TEST

START_TEST(bad_patterns_say_where)
{
    struct base_err err = { 0 };
    ck_assert_int_eq(port_regex_compile(&regex, "ab(c", 4, &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "regular expression, byte 4: missing closing parenthesis");
    ck_assert_ptr_null(regex);
    err.code = 0;
    ck_assert_int_eq(port_regex_compile(&regex, "\xff", 1, &err), BASE_EFORMAT);
    err.code = 0;
    ck_assert_int_eq(port_regex_compile(&regex, "\\p{Nope}", 8, &err), BASE_EFORMAT);
}
END_TEST

START_TEST(runaway_matches_stop)
{
    compile("(a+)+$");
    char text[200];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'b';
    size_t begin, end;
    ck_assert_int_eq(port_regex_find(regex, match, text, sizeof text, 0, &begin, &end), -E2BIG);
}
END_TEST

START_TEST(long_texts_fit)
{
    compile("(?:a|b)+\\s");
    size_t size = 1u << 20, begin, end;
    char *text = malloc(size);
    memset(text, 'a', size);
    text[size - 1] = '\n';
    ck_assert_int_eq(port_regex_find(regex, match, text, size, 0, &begin, &end), 1);
    ck_assert_uint_eq(begin, 0);
    ck_assert_uint_eq(end, size);
    free(text);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("regex");
    tcase_add_checked_fixture(tcase, NULL, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, splits_words_and_blanks);
    tcase_add_test(tcase, unicode_digits_and_blanks_count);
    tcase_add_test(tcase, looks_behind_where_it_starts);
    tcase_add_test(tcase, bad_patterns_say_where);
    tcase_add_test(tcase, runaway_matches_stop);
    tcase_add_test(tcase, long_texts_fit);
    Suite *suite = suite_create("port/regex");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
