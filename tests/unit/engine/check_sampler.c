/* The sampler takes the best, draws by probability, and keeps to top-k and top-p, for random
 * logits. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

enum { VOCAB = 50, DRAWS = 20000 };

static struct eng_candidate room[VOCAB];
static const struct kern_ops *set;

static void random_logits(float *logits, struct base_rng *rng)
{
    for (uint32_t i = 0; i < VOCAB; i++) {
        logits[i] = (float)(2.0 * base_rng_normal(rng));
    }
    /* Equals at the top and elsewhere: the lower id must win. */
    logits[31] = logits[17];
}

static int descending(const void *a, const void *b, void *context)
{
    const float *logits = context;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (logits[x] != logits[y]) return logits[x] > logits[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

/* What the probabilities must be, worked out by sorting. */
static void expected(const struct eng_sampling *sampling, float *logits, double *p)
{
    uint32_t order[VOCAB];
    double sum = 0.0, kept = 0.0, total = 0.0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        order[i] = i;
        p[i] = 0.0;
    }
    qsort_r(order, VOCAB, sizeof *order, descending, logits);
    uint32_t most = sampling->top_k > 0 && sampling->top_k < VOCAB ? sampling->top_k : VOCAB;
    for (uint32_t i = 0; i < most; i++) {
        sum += exp((double)logits[order[i]] / (double)sampling->temperature);
    }
    for (uint32_t i = 0; i < most && (i == 0 || kept < (double)sampling->top_p); i++) {
        p[order[i]] = exp((double)logits[order[i]] / (double)sampling->temperature) / sum;
        kept += p[order[i]];
    }
    for (uint32_t i = 0; i < VOCAB; i++) {
        total += p[i];
    }
    for (uint32_t i = 0; i < VOCAB; i++) {
        p[i] /= total;
    }
}

START_TEST(greedy_takes_the_lowest_of_the_best)
{
    float logits[VOCAB] = { 0 }, logprob;
    struct eng_sampling greedy = { .temperature = 0.0f, .top_p = 1.0f };
    struct base_rng rng;
    base_rng_init(&rng, 1);
    logits[9] = logits[23] = 1.5f;
    ck_assert_int_eq(eng_sample(set, &greedy, &rng, logits, VOCAB, room, &logprob), 9);
    double want = 1.5 - log(2.0 * exp(1.5) + (VOCAB - 2));
    ck_assert_double_eq_tol((double)logprob, want, 1e-6);
}
END_TEST

START_TEST(draws_follow_the_probabilities)
{
    static const struct eng_sampling kinds[] = {
        { .temperature = 1.0f, .top_p = 1.0f },
        { .temperature = 0.6f, .top_p = 1.0f, .top_k = 5 },
        { .temperature = 1.3f, .top_p = 0.8f },
        { .temperature = 0.9f, .top_p = 0.7f, .top_k = 12 },
        { .temperature = 1.0f, .top_p = 0.01f },
        { .temperature = 1.0f, .top_p = 1.0f, .top_k = 1 },
        { .temperature = 1.0f, .top_p = 1.0f, .top_k = 1000 },
    };
    const struct eng_sampling *sampling = &kinds[_i];
    uint32_t hits[VOCAB] = { 0 };
    float logits[VOCAB], logprob;
    double p[VOCAB];
    struct base_rng rng;
    base_rng_init(&rng, 40 + (uint64_t)_i);
    random_logits(logits, &rng);
    expected(sampling, logits, p);
    for (int i = 0; i < DRAWS; i++) {
        int64_t token = eng_sample(set, sampling, &rng, logits, VOCAB, room, &logprob);
        ck_assert_int_ge(token, 0);
        ck_assert_int_lt(token, VOCAB);
        hits[token]++;
    }
    for (uint32_t i = 0; i < VOCAB; i++) {
        double tolerance = 5.0 * sqrt(p[i] * (1.0 - p[i]) / DRAWS) + 1e-9;
        ck_assert_msg(fabs((double)hits[i] / DRAWS - p[i]) <= tolerance,
                      "kind %d token %u: drawn %u of %d, expected a share of %g", _i, i, hits[i],
                      DRAWS, p[i]);
    }
}
END_TEST

START_TEST(the_same_seed_draws_the_same)
{
    struct eng_sampling sampling = { .temperature = 1.0f, .top_p = 0.9f };
    float logits[VOCAB], logprob;
    struct base_rng a, b, other;
    base_rng_init(&a, 5);
    base_rng_init(&b, 5);
    base_rng_init(&other, 6);
    uint32_t differ = 0;
    for (int i = 0; i < 200; i++) {
        struct base_rng filler;
        base_rng_init(&filler, (uint64_t)i);
        random_logits(logits, &filler);
        int64_t first = eng_sample(set, &sampling, &a, logits, VOCAB, room, &logprob);
        ck_assert_int_eq(first, eng_sample(set, &sampling, &b, logits, VOCAB, room, &logprob));
        differ += first != eng_sample(set, &sampling, &other, logits, VOCAB, room, &logprob);
    }
    ck_assert_uint_gt(differ, 20);
}
END_TEST

START_TEST(logits_that_are_no_numbers_are_refused)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    float logits[VOCAB] = { 0 }, logprob;
    struct eng_sampling sampling = { .temperature = 0.0f, .top_p = 1.0f };
    struct base_rng rng;
    base_rng_init(&rng, 1);
    logits[_i * 20] = bad[_i];
    ck_assert_int_eq(eng_sample(set, &sampling, &rng, logits, VOCAB, room, &logprob), -EDOM);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sampler");
    set = kern_ops_cpu(KERN_CPU_BEST);
    TCase *tests = tcase_create("sampler");
    tcase_add_test(tests, greedy_takes_the_lowest_of_the_best);
    tcase_add_loop_test(tests, draws_follow_the_probabilities, 0, 7);
    tcase_add_test(tests, the_same_seed_draws_the_same);
    tcase_add_loop_test(tests, logits_that_are_no_numbers_are_refused, 0, 3);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
