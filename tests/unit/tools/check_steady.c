/* A stalled window does not move a measured rate, two make it unreliable; a stalled read does not
 * move the mean. */
#include <check.h>
#include <stdlib.h>

#include "tools/bench_steady.h"

START_TEST(stalls_are_seen)
{
    double rate, steady[] = { 91, 90, 89, 92, 90 }, one[] = { 90, 34, 89, 91, 90 },
                 two[] = { 90, 34, 89, 20, 90 }, most[] = { 30, 34, 29, 91, 90 };
    ck_assert_uint_eq(bench_steady_median(steady, 5, &rate), 0);
    ck_assert_double_eq(rate, 90);
    ck_assert_uint_eq(bench_steady_median(one, 5, &rate), 1);
    ck_assert_double_eq(rate, 90);
    ck_assert_uint_eq(bench_steady_median(two, 5, &rate), 2);
    ck_assert_double_eq(rate, 89);
    ck_assert_uint_eq(bench_steady_median(most, 5, &rate), 2);
    double pair[] = { 3, 1 };
    bench_steady_median(pair, 2, &rate);
    ck_assert_double_eq(rate, 2);
}
END_TEST

START_TEST(a_stalled_read_is_left_out)
{
    double times[] = { 100, 120, 5000, 80, 100 }, slow[] = { 100, 399, 100 };
    ck_assert_double_eq(bench_steady_mean(times, 5), 100);
    ck_assert_double_eq_tol(bench_steady_mean(slow, 3), 599.0 / 3, 1e-9);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("steady");
    tcase_add_test(tcase, stalls_are_seen);
    tcase_add_test(tcase, a_stalled_read_is_left_out);
    Suite *suite = suite_create("tools/steady");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
