/* Errors keep the first sentence, prefixes keep its code, and long sentences are cut, not
 * spilled. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

START_TEST(first_sentence_stays)
{
    struct base_err err = { 0 };
    ck_assert_int_eq(base_err_set(&err, BASE_EFORMAT, "byte %d is wrong", 7), BASE_EFORMAT);
    ck_assert_int_eq(base_err_set(&err, -EIO, "later"), -EIO);
    ck_assert_int_eq(err.code, BASE_EFORMAT);
    ck_assert_str_eq(err.text, "byte 7 is wrong");
    base_err_prefix(&err, "%s", "x.json");
    ck_assert_str_eq(err.text, "x.json: byte 7 is wrong");
    struct base_err quoting = { 0 };
    base_err_set(&quoting, -EINVAL, "\"%s\" is wrong", "a\nb\x1b[31m\x7f\xc3\xa9");
    ck_assert_str_eq(quoting.text, "\"a?b?[31m?\xc3\xa9\" is wrong");
    ck_assert_int_eq(base_err_set(NULL, -EIO, "nobody listens"), -EIO);
    base_err_prefix(NULL, "x");
    struct base_err none = { 0 };
    base_err_prefix(&none, "x");
    ck_assert_str_eq(none.text, "");
}
END_TEST

START_TEST(long_sentences_are_cut)
{
    struct base_err err = { 0 };
    char giant[2000];
    memset(giant, 'x', sizeof giant - 1);
    giant[sizeof giant - 1] = '\0';
    base_err_set(&err, -EIO, "%s", giant);
    ck_assert_uint_eq(strlen(err.text), BASE_ERR_TEXT - 1);
    base_err_prefix(&err, "where");
    ck_assert_uint_lt(strlen(err.text), BASE_ERR_TEXT);
    ck_assert_ptr_eq(strstr(err.text, "where: xxx"), err.text);
    base_err_prefix(&err, "%s", giant);
    ck_assert_uint_eq(strlen(err.text), BASE_ERR_TEXT - 1);
}
END_TEST

START_TEST(every_code_has_words)
{
    for (int code = BASE_EFORMAT; code >= BASE_EQUARANTINE; code--) {
        const char *name = base_err_name(code);
        ck_assert_msg(strncmp(name, "Unknown", 7) != 0 && name[0], "code %d: %s", code, name);
    }
    ck_assert_str_eq(base_err_name(-ENOENT), "No such file or directory");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("err");
    tcase_add_test(tcase, first_sentence_stays);
    tcase_add_test(tcase, long_sentences_are_cut);
    tcase_add_test(tcase, every_code_has_words);
    Suite *suite = suite_create("base/err");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
