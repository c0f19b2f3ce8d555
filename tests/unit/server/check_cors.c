/* Pages of the named origins may call, no others; what is no origin is refused with a sentence. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "server/cors.h"

START_TEST(nobody_by_default)
{
    ck_assert_ptr_null(srv_cors_allows("", "http://localhost:3000"));
    ck_assert_ptr_null(srv_cors_allows("", ""));
    ck_assert_ptr_null(srv_cors_allows("*", NULL));
}
END_TEST

START_TEST(named_origins_to_the_letter)
{
    static const char list[] = "https://chat.example, http://localhost:3000 ,http://[::1]:8080";
    static const char *const good[] = { "https://chat.example", "http://localhost:3000",
                                        "http://[::1]:8080" };
    static const char *const bad[] = { "http://chat.example", "https://chat.example.evil.example",
                                       "https://evil.example", "http://localhost", "", "null",
                                       "http://localhost:30000", "https://chat.example, http" };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        ck_assert_ptr_eq(srv_cors_allows(list, good[i]), good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(!srv_cors_allows(list, bad[i]), "'%s' may call", bad[i]);
    }
    ck_assert_str_eq(srv_cors_allows("https://chat.example,*", "http://other.example"), "*");
}
END_TEST

START_TEST(what_is_no_origin)
{
    static const char *const good[] = { "", "*", "http://localhost:3000", "https://a.b-c.example,*",
                                        "chrome-extension://abcdef", "http://[::1]:80 , http://x" };
    static const char *const bad[] = { "localhost:3000", "http://", "http://x/", "http://x/path",
                                       "HTTP://x", "http://X", "**", "http://x,,http://y", " ",
                                       "://x", "http://x y", "http://*.example", "http://x\ry" };
    struct base_err err;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        ck_assert_msg(srv_cors_check(good[i], &err) == 0, "'%s': %s", good[i], err.text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(srv_cors_check(bad[i], &err) == BASE_ECONFIG, "'%s' is taken", bad[i]);
        ck_assert_ptr_nonnull(strstr(err.text, "server.cors_origins"));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cors");
    TCase *tcase = tcase_create("origins");
    tcase_add_test(tcase, nobody_by_default);
    tcase_add_test(tcase, named_origins_to_the_letter);
    tcase_add_test(tcase, what_is_no_origin);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
