/* The table of experts' loads: counts and percentiles within a factor of two, a fixed size, and the
 * places that many experts share belong to those that load most. */
#include <check.h>
#include <stdlib.h>

#include "base/rng.h"
#include "tiering/loads.h"

START_TEST(percentiles_are_within_a_factor_of_two)
{
    struct tier_loads loads;
    ck_assert_int_eq(tier_loads_create(&loads, 100), 0);
    ck_assert_uint_eq(tier_loads_get(&loads, 7).loads, 0);
    struct tier_loads_entry none = tier_loads_get(&loads, 7);
    ck_assert_uint_eq(tier_loads_quantile_us(&none, 0.5), 0);
    for (int i = 0; i < 3; i++) tier_loads_miss(&loads, 7);
    for (int i = 0; i < 9; i++) tier_loads_add(&loads, 7, 100 * 1000);
    tier_loads_add(&loads, 7, 3000 * 1000);
    struct tier_loads_entry e = tier_loads_get(&loads, 7);
    ck_assert_uint_eq(e.misses, 3);
    ck_assert_uint_eq(e.loads, 10);
    ck_assert_uint_eq(e.us_max, 3000);
    ck_assert_uint_eq(e.us_min, 100);
    ck_assert_uint_eq(e.us_sum, 9 * 100 + 3000);
    ck_assert_uint_ge(tier_loads_quantile_us(&e, 0.5), 100);
    ck_assert_uint_le(tier_loads_quantile_us(&e, 0.5), 200);
    ck_assert_uint_eq(tier_loads_quantile_us(&e, 0.99), 3000);
    /* The fastest and the slowest there may be. */
    tier_loads_add(&loads, 8, 0);
    e = tier_loads_get(&loads, 8);
    ck_assert_uint_eq(tier_loads_quantile_us(&e, 0.5), 0);
    tier_loads_add(&loads, 9, UINT64_C(100000) * 1000000000);
    e = tier_loads_get(&loads, 9);
    ck_assert_uint_eq(tier_loads_quantile_us(&e, 0.5), UINT32_MAX);
    tier_loads_destroy(&loads);
}
END_TEST

START_TEST(what_is_recent_weighs_more)
{
    struct tier_loads loads;
    ck_assert_int_eq(tier_loads_create(&loads, 1), 0);
    for (int i = 0; i < 1000; i++) tier_loads_add(&loads, 0, 100 * 1000);
    for (int i = 0; i < 60; i++) tier_loads_add(&loads, 0, 5000 * 1000);
    struct tier_loads_entry e = tier_loads_get(&loads, 0);
    ck_assert_uint_eq(e.loads, 1060);
    ck_assert_uint_eq(tier_loads_quantile_us(&e, 0.5), 5000);
    tier_loads_destroy(&loads);
}
END_TEST

START_TEST(shared_places_go_to_who_loads_most)
{
    struct tier_loads loads;
    struct base_rng rng;
    base_rng_init(&rng, 5);
    ck_assert_int_eq(tier_loads_create(&loads, 1u << 20), 0);
    ck_assert_uint_eq(loads.size, TIER_LOADS_MAX);
    /* Key 3 loads twice as often as all that share its place together. */
    for (int i = 0; i < 3000; i++) {
        uint32_t other = (uint32_t)(base_rng_below(&rng, 60) + 1) * TIER_LOADS_MAX + 3;
        tier_loads_add(&loads, i % 3 ? 3 : other, 100 * 1000);
    }
    ck_assert_uint_gt(tier_loads_get(&loads, 3).loads, 1500);
    /* It stops; another one comes into its place. */
    for (int i = 0; i < 4000; i++) tier_loads_add(&loads, TIER_LOADS_MAX + 3, 100 * 1000);
    ck_assert_uint_eq(tier_loads_get(&loads, 3).loads, 0);
    ck_assert_uint_gt(tier_loads_get(&loads, TIER_LOADS_MAX + 3).loads, 1000);
    tier_loads_destroy(&loads);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loads");
    TCase *tests = tcase_create("loads");
    tcase_add_test(tests, percentiles_are_within_a_factor_of_two);
    tcase_add_test(tests, what_is_recent_weighs_more);
    tcase_add_test(tests, shared_places_go_to_who_loads_most);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
