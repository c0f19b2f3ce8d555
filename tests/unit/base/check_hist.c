/* Quantiles are at most 9.1% above those of the sorted samples, and copies merge without loss. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hist.h"
#include "base/rng.h"

enum { SAMPLES = 5000 };

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Small numbers, latencies over six decades, and a few giants: a different mix each seed. */
static uint64_t sample(struct base_rng *rng, int kind)
{
    switch (kind % 3) {
    case 0: return base_rng_below(rng, 40);
    case 1: return (uint64_t)exp(base_rng_unit(rng) * 14.0 + 5.0);
    default: return base_rng_u64(rng) >> base_rng_below(rng, 64);
    }
}

START_TEST(edges_grow_by_an_eighth_of_an_octave)
{
    uint64_t before = 0;
    for (unsigned i = 0; i < BASE_HIST_BUCKETS - 1; i++) {
        uint64_t edge = base_hist_edge(i);
        ck_assert_uint_ge(edge, before);
        double exact = pow(2.0, (i + 1) / 8.0);
        ck_assert_msg((double)edge < exact && (double)edge >= exact - 1.0 - exact * 1e-12,
                      "bucket %u: %llu", i, (unsigned long long)edge);
        before = edge;
    }
    ck_assert_uint_eq(base_hist_edge(BASE_HIST_BUCKETS - 1), UINT64_MAX);
}
END_TEST

START_TEST(quantiles_are_near)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    static uint64_t values[SAMPLES];
    struct base_hist hist;
    base_hist_init(&hist);
    uint64_t sum = 0;
    for (int i = 0; i < SAMPLES; i++) {
        values[i] = sample(&rng, _i);
        sum += values[i];
        base_hist_add(&hist, values[i]);
    }
    qsort(values, SAMPLES, sizeof values[0], by_value);
    ck_assert_uint_eq(hist.count, SAMPLES);
    ck_assert_uint_eq(hist.sum, sum);
    ck_assert_uint_eq(hist.min, values[0]);
    ck_assert_uint_eq(hist.max, values[SAMPLES - 1]);
    for (int k = 0; k <= 1000; k++) {
        double share = k / 1000.0;
        int rank = (int)ceil(share * SAMPLES);
        uint64_t exact = values[rank > 0 ? rank - 1 : 0];
        uint64_t found = base_hist_quantile(&hist, share);
        ck_assert_msg(found >= exact, "seed %d share %.3f: %llu < %llu", _i, share,
                      (unsigned long long)found, (unsigned long long)exact);
        if (exact > base_hist_edge(BASE_HIST_BUCKETS - 2)) continue;    /* one bucket for giants */
        ck_assert_msg((double)found <= (double)exact * 1.091 + 1.0,
                      "seed %d share %.3f: %llu for %llu", _i, share, (unsigned long long)found,
                      (unsigned long long)exact);
    }
    for (unsigned i = 0; i < BASE_HIST_BUCKETS; i += 7) {
        uint64_t edge = base_hist_edge(i), below = 0;
        while (below < SAMPLES && values[below] <= edge) {
            below++;
        }
        ck_assert_uint_eq(base_hist_count_le(&hist, edge), below);
    }
}
END_TEST

START_TEST(merge_equals_adding_all)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    struct base_hist parts[3], whole, merged, copy;
    base_hist_init(&whole);
    base_hist_init(&merged);
    for (int p = 0; p < 3; p++) {
        base_hist_init(&parts[p]);
        for (uint64_t n = base_rng_below(&rng, 300); n > 0; n--) {
            uint64_t value = sample(&rng, (int)base_rng_below(&rng, 3));
            base_hist_add(&parts[p], value);
            base_hist_add(&whole, value);
        }
    }
    for (int p = 0; p < 3; p++) {
        base_hist_copy(&copy, &parts[p]);
        base_hist_merge(&merged, &copy);
    }
    ck_assert_mem_eq(&merged, &whole, sizeof merged);
}
END_TEST

START_TEST(empty_says_zero)
{
    struct base_hist hist;
    base_hist_init(&hist);
    ck_assert_uint_eq(base_hist_quantile(&hist, 0.5), 0);
    ck_assert_uint_eq(base_hist_count_le(&hist, UINT64_MAX), 0);
    base_hist_add(&hist, 0);
    ck_assert_uint_eq(base_hist_quantile(&hist, 1.0), 0);
    ck_assert_uint_eq(base_hist_count_le(&hist, 0), 1);
    base_hist_add(&hist, UINT64_MAX);
    ck_assert_uint_eq(base_hist_quantile(&hist, 1.0), UINT64_MAX);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("hist");
    tcase_add_test(tcase, edges_grow_by_an_eighth_of_an_octave);
    tcase_add_loop_test(tcase, quantiles_are_near, 0, 12);
    tcase_add_loop_test(tcase, merge_equals_adding_all, 0, 12);
    tcase_add_test(tcase, empty_says_zero);
    Suite *suite = suite_create("base/hist");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
