/* The loops that predictors are made of give the same bits on every processor, and the values of
 * the C library to the accuracy that lanes.h promises. */
#include <math.h>

#include "predictor/lanes.h"
#include "tests/unit/predictor/support.h"

enum { N_MAX = 300 };

static const struct pred_lanes *best(void)
{
    const struct pred_lanes *lanes = pred_lanes();
    if (lanes != &pred_lanes_plain) return lanes;
    printf("skip: this processor has the plain set alone\n");
    exit(77);
}

static void fill(struct base_rng *rng, float *x, float low, float high)
{
    for (int i = 0; i < N_MAX; i++)
        x[i] = low + (float)base_rng_unit(rng) * (high - low);
}

static void same(const char *what, uint32_t n, const float *a, const float *b)
{
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_msg(memcmp(&a[i], &b[i], sizeof a[i]) == 0, "%s, n %u: [%u] %.9g and %.9g", what,
                      n, i, (double)a[i], (double)b[i]);
    }
}

START_TEST(same_bits_in_every_set)
{
    const struct pred_lanes *sets[2] = { &pred_lanes_plain, best() };
    struct base_rng rng;
    base_rng_init(&rng, 11);
    printf("seed 11, sets plain and %s\n", sets[1]->name);
    for (uint32_t n = 1; n <= N_MAX; n = n < 40 ? n + 1 : n + 13) {
        float p[N_MAX], x[N_MAX], y[N_MAX], table[4][N_MAX], out[2][N_MAX], sums[2][2];
        float lifts[2][N_MAX];
        uint32_t given[3] = { 2, 0, 3 };
        fill(&rng, p, 0, 1);
        fill(&rng, x, -100, 100);
        fill(&rng, y, -3, 3);
        for (int r = 0; r < 4; r++)
            fill(&rng, table[r], -1, 1);
        float packed[4 * N_MAX];
        for (uint32_t r = 0; r < 4; r++)
            memcpy(packed + r * n, table[r], n * sizeof packed[0]);
        for (int s = 0; s < 2; s++)
            memcpy(out[s], p, sizeof p), sets[s]->odds(out[s], n);
        same("odds", n, out[0], out[1]);
        for (int s = 0; s < 2; s++)
            memcpy(out[s], x, sizeof x), sets[s]->sigmoid(out[s], n);
        same("sigmoid", n, out[0], out[1]);
        for (int s = 0; s < 2; s++)
            sets[s]->frequency(out[s], y, 0.3f, p, 4, 0.05f, n);
        same("frequency", n, out[0], out[1]);
        for (int s = 0; s < 2; s++) {
            sets[s]->affine(out[s], 0.5f, 1.25f, y, n);
            sets[s]->add_rows(out[s], packed, given, 3, n);
            sets[s]->descend(out[s], 0.3f, y, n);
            memcpy(lifts[s], table[1], sizeof table[1]);
            sets[s]->add_lifts(out[s], lifts[s], p, 0.7f, n);
            sets[s]->scale(out[s], 0.9f, n);
            sums[s][0] = sets[s]->sum(x, n);
            sums[s][1] = sets[s]->dot(x, y, n);
        }
        uint16_t counts[N_MAX];
        for (int i = 0; i < N_MAX; i++)
            counts[i] = (uint16_t)base_rng_below(&rng, 1u << 16);
        for (int s = 0; s < 2; s++)
            sets[s]->blend_counts(out[s], 0.25f, counts, 0.01f, n);
        same("sums of rows", n, out[0], out[1]);
        same("lifts", n, lifts[0], lifts[1]);
        same("sum and dot", 2, sums[0], sums[1]);
    }
}
END_TEST

START_TEST(values_of_the_library)
{
    const struct pred_lanes *lanes = pred_lanes();
    struct base_rng rng;
    double sum = 0, dot = 0;
    float p[N_MAX], x[N_MAX], out[N_MAX];
    base_rng_init(&rng, 12);
    fill(&rng, p, 0, 1);
    fill(&rng, x, -20, 20);
    memcpy(out, p, sizeof out);
    lanes->odds(out, N_MAX);
    for (int i = 0; i < N_MAX; i++) {
        double q = p[i] < 1e-4 ? 1e-4 : p[i] > 0.9999 ? 0.9999 : p[i];
        ck_assert_double_lt(fabs(out[i] - log(q / (1 - q))), 2e-4);
    }
    memcpy(out, x, sizeof out);
    lanes->sigmoid(out, N_MAX);
    for (int i = 0; i < N_MAX; i++) {
        double want = 1 / (1 + exp(-(double)x[i]));
        ck_assert_double_lt(fabs(out[i] - want) / want, 5e-6);
        sum += x[i];
        dot += (double)x[i] * p[i];
    }
    ck_assert_double_lt(fabs(lanes->sum(x, N_MAX) - sum), 1e-3);
    ck_assert_double_lt(fabs(lanes->dot(x, p, N_MAX) - dot), 1e-3);
    float far[4] = { -1e30f, 1e30f, -200, 200 };
    lanes->sigmoid(far, 4);
    for (int i = 0; i < 4; i++)
        ck_assert(far[i] >= 0 && far[i] <= 1);
}
END_TEST

START_TEST(found_where_it_is)
{
    const struct pred_lanes *sets[2] = { &pred_lanes_plain, pred_lanes() };
    struct base_rng rng;
    base_rng_init(&rng, 13);
    for (int round = 0; round < 500; round++) {
        uint16_t ids[32], counts[32];
        uint32_t n = 1 + (uint32_t)base_rng_below(&rng, 32);
        uint16_t id = (uint16_t)base_rng_below(&rng, 20);
        int want = -1;
        for (uint32_t i = 0; i < n; i++) {
            ids[i] = (uint16_t)base_rng_below(&rng, 20);
            counts[i] = (uint16_t)base_rng_below(&rng, 3);
            if (ids[i] == id && counts[i] > 0) want = (int)i;
        }
        for (int s = 0; s < 2; s++)
            ck_assert_int_eq(sets[s]->find(ids, counts, id, n), want);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lanes");
    TCase *tcase = tcase_create("lanes");
    tcase_add_test(tcase, same_bits_in_every_set);
    tcase_add_test(tcase, values_of_the_library);
    tcase_add_test(tcase, found_where_it_is);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
