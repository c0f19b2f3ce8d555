/* A buffer holds what was appended, keeps its first error, and escapes any bytes into valid
 * JSON. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/rng.h"

START_TEST(appends_add_up)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    struct base_buf buf;
    base_buf_init(&buf);
    ck_assert_str_eq(buf.data, "");
    static char expected[200000];
    size_t size = 0;
    while (size < sizeof expected - 2000) {
        char piece[1500];
        size_t length = base_rng_below(&rng, sizeof piece);
        memset(piece, (int)('a' + base_rng_below(&rng, 26)), length);
        piece[length ? length - 1 : 0] = '\0';
        if (base_rng_below(&rng, 2)) {
            base_buf_append(&buf, piece, length);
            memcpy(expected + size, piece, length);
            size += length;
        } else {
            int value = (int)base_rng_below(&rng, 100000);
            base_buf_printf(&buf, "<%d:%s>", value, piece);
            size += (size_t)sprintf(expected + size, "<%d:%s>", value, piece);
        }
    }
    ck_assert_int_eq(base_buf_error(&buf), 0);
    ck_assert_uint_eq(buf.size, size);
    ck_assert_mem_eq(buf.data, expected, size);
    ck_assert_int_eq(buf.data[buf.size], 0);
    size_t taken_size;
    char *taken = base_buf_take(&buf, &taken_size);
    ck_assert_uint_eq(taken_size, size);
    ck_assert_uint_eq(buf.size, 0);
    ck_assert_str_eq(buf.data, "");
    free(taken);
    base_buf_fini(&buf);
}
END_TEST

START_TEST(first_error_stays)
{
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_puts(&buf, "kept");
    base_buf_append(&buf, "x", (size_t)-1);     /* no such room: refused before it is read */
    ck_assert_int_eq(base_buf_error(&buf), -ENOMEM);
    base_buf_puts(&buf, "dropped");
    base_buf_printf(&buf, "%d", 5);
    ck_assert_str_eq(buf.data, "kept");
    ck_assert_ptr_null(base_buf_take(&buf, NULL));
    base_buf_puts(&buf, "again");
    base_buf_clear(&buf);
    ck_assert_str_eq(buf.data, "");
    base_buf_fini(&buf);
    char *empty = base_buf_take(&buf, NULL);
    ck_assert_str_eq(empty, "");
    free(empty);
}
END_TEST

START_TEST(escapes)
{
    static const struct {
        const char *text, *json;
    } cases[] = {
        { "plain", "plain" },
        { "a\"b\\c", "a\\\"b\\\\c" },
        { "\n\r\t\b\f", "\\n\\r\\t\\b\\f" },
        { "\x01\x1f\x7f", "\\u0001\\u001f\x7f" },
        { "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80", "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80" },
        { "\xff" "a", "\xef\xbf\xbd" "a" },
        { "\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd" },             /* too long a form of '/' */
        { "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },     /* a surrogate */
        { "\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
        { "\xe4\xb8", "\xef\xbf\xbd" },                         /* cut off: one for what is there */
        { "\xe4\xb8\"", "\xef\xbf\xbd\\\"" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct base_buf buf;
        base_buf_init(&buf);
        base_buf_json_escape(&buf, cases[i].text, strlen(cases[i].text));
        ck_assert_str_eq(buf.data, cases[i].json);
        base_buf_fini(&buf);
    }
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_json_escape(&buf, "a\0b", 3);
    ck_assert_str_eq(buf.data, "a\\u0000b");
    base_buf_fini(&buf);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("buf");
    tcase_add_loop_test(tcase, appends_add_up, 0, 5);
    tcase_add_test(tcase, first_error_stays);
    tcase_add_test(tcase, escapes);
    Suite *suite = suite_create("base/buf");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
