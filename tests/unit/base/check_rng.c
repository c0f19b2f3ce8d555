/* The generator gives the published sequence, evenly within any bound, and nothing outside of it.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"

enum { DRAWS = 100000 };

START_TEST(the_sequence_is_xoshiro256)
{
    /* Computed from the authors' description: xoshiro256**, state from splitmix64 of 42. */
    struct base_rng rng;
    base_rng_init(&rng, 42);
    ck_assert_uint_eq(base_rng_u64(&rng), 0x15780b2e0c2ec716u);
    ck_assert_uint_eq(base_rng_u64(&rng), 0x6104d9866d113a7eu);
    ck_assert_uint_eq(base_rng_u64(&rng), 0xae17533239e499a1u);
}
END_TEST

START_TEST(bounded_draws_are_even)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    enum { BOUND = 7 };
    int counts[BOUND] = { 0 };
    for (int i = 0; i < DRAWS; i++) {
        uint64_t draw = base_rng_below(&rng, BOUND);
        if (draw >= BOUND) ck_abort_msg("seed %d: %llu", _i, (unsigned long long)draw);
        counts[draw]++;
    }
    double chi = 0.0, expected = (double)DRAWS / BOUND;
    for (int k = 0; k < BOUND; k++) {
        chi += (counts[k] - expected) * (counts[k] - expected) / expected;
    }
    ck_assert_msg(chi < 30.0, "seed %d: chi square %.1f of 6 degrees", _i, chi);
    ck_assert_uint_eq(base_rng_below(&rng, 1), 0);
    /* A bound that a plain modulo would favour the low half of. */
    uint64_t bound = 3ull << 62;
    int low = 0;
    for (int i = 0; i < DRAWS; i++) {
        low += base_rng_below(&rng, bound) < bound / 2;
    }
    ck_assert_msg(abs(low - DRAWS / 2) < 1000, "seed %d: %d in the low half", _i, low);
}
END_TEST

START_TEST(units_and_normals)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    double sum = 0.0, normal_sum = 0.0, normal_squares = 0.0;
    for (int i = 0; i < DRAWS; i++) {
        double unit = base_rng_unit(&rng), normal = base_rng_normal(&rng);
        if (!(unit >= 0.0 && unit < 1.0) || !isfinite(normal)) ck_abort_msg("seed %d", _i);
        sum += unit;
        normal_sum += normal;
        normal_squares += normal * normal;
    }
    ck_assert_double_eq_tol(sum / DRAWS, 0.5, 0.01);
    ck_assert_double_eq_tol(normal_sum / DRAWS, 0.0, 0.02);
    ck_assert_double_eq_tol(normal_squares / DRAWS, 1.0, 0.03);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("rng");
    tcase_add_test(tcase, the_sequence_is_xoshiro256);
    tcase_add_loop_test(tcase, bounded_draws_are_even, 0, 5);
    tcase_add_loop_test(tcase, units_and_normals, 0, 5);
    Suite *suite = suite_create("base/rng");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
