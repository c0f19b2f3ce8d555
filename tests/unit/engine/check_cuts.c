/* The sampler against a plain sort in double: ties, top-k, top-p, one draw a token. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

enum { VOCAB_MAX = 3000 };

static float logits[VOCAB_MAX];
static struct eng_candidate room[VOCAB_MAX];
static const struct kern_ops *set;

struct plain {
    double p;
    uint32_t id;
};

static int strongest_first(const void *a, const void *b)
{
    const struct plain *x = a, *y = b;
    if (logits[x->id] != logits[y->id]) return logits[x->id] < logits[y->id] ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b)
{
    const struct plain *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* What the words of sampler.h say, done slowly. `*slack`: how near the draw came to a border. */
static uint32_t plain_sample(const struct eng_sampling *s, double target, uint32_t vocab,
                             double *slack)
{
    static struct plain all[VOCAB_MAX];
    double sum = 0.0, kept = 0.0, passed = 0.0;
    for (uint32_t i = 0; i < vocab; i++) {
        all[i].id = i;
    }
    qsort(all, vocab, sizeof *all, strongest_first);
    uint32_t most = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab, count = 0;
    for (uint32_t i = 0; i < most; i++) {
        all[i].p =
            exp(((double)logits[all[i].id] - (double)logits[all[0].id]) / (double)s->temperature);
        sum += all[i].p;
    }
    *slack = 1.0;
    while (count < most && (count == 0 || kept < (double)s->top_p * sum)) {
        kept += all[count++].p;
        if (s->top_p < 1.0f) *slack = fmin(*slack, fabs(kept - (double)s->top_p * sum) / sum);
    }
    /* Without a cut the draw walks the ids, with one it walks from the strongest on. */
    if (s->top_p == 1.0f && most == vocab) qsort(all, count, sizeof *all, by_id);
    uint32_t chosen = all[count - 1].id;
    for (uint32_t i = 0; i < count; i++) {
        passed += all[i].p;
        *slack = fmin(*slack, fabs(passed - target * kept) / kept);
        if (passed > target * kept) {
            chosen = all[i].id;
            break;
        }
    }
    return chosen;
}

static int64_t sample(const struct eng_sampling *s, struct base_rng *rng, uint32_t vocab,
                      float *logprob)
{
    return eng_sample(set, s, rng, logits, vocab, room, logprob);
}

START_TEST(greedy_takes_the_lowest_id_among_equals)
{
    struct eng_sampling s = { .top_p = 1.0f };
    struct base_rng rng, untouched;
    float logprob;
    base_rng_init(&rng, 1);
    untouched = rng;
    for (uint32_t seed = 1; seed <= 200; seed++) {
        struct base_rng place;
        base_rng_init(&place, seed);
        uint32_t vocab = 2 + (uint32_t)base_rng_below(&place, VOCAB_MAX - 2), lowest = vocab;
        for (uint32_t i = 0; i < vocab; i++) {
            logits[i] = (float)base_rng_below(&place, 5);
        }
        for (uint32_t i = vocab; i-- > 0;) {
            if (lowest == vocab || logits[i] >= logits[lowest]) lowest = i;
        }
        ck_assert_msg(sample(&s, &rng, vocab, &logprob) == lowest, "seed %u", seed);
        ck_assert(logprob <= 0.0f);
    }
    /* Greedy answers draw nothing. */
    ck_assert_mem_eq(&rng, &untouched, sizeof rng);
    logits[0] = -0.0f;
    logits[1] = 0.0f;
    ck_assert_int_eq(sample(&s, &rng, 2, &logprob), 0);
}
END_TEST

START_TEST(cuts_agree_with_a_plain_sort)
{
    uint32_t checked = 0;
    for (uint32_t seed = 1; seed <= 4000; seed++) {
        struct base_rng place, rng, copy;
        base_rng_init(&place, seed);
        uint32_t vocab = 1 + (uint32_t)base_rng_below(&place, seed % 7 ? 60 : VOCAB_MAX);
        for (uint32_t i = 0; i < vocab; i++) {
            logits[i] = (float)(3.0 * base_rng_normal(&place));
            if (seed % 3 == 0) logits[i] = roundf(logits[i]);       /* many equals */
        }
        struct eng_sampling s = {
            .temperature = (float)(0.05 + 2.0 * base_rng_unit(&place)),
            .top_p = seed % 2 ? 1.0f : (float)(1e-6 + (1.0 - 1e-6) * base_rng_unit(&place)),
            .top_k = seed % 5 < 2 ? 0 : (uint32_t)base_rng_below(&place, vocab + 3),
        };
        base_rng_init(&rng, seed * 31);
        copy = rng;
        float logprob;
        double slack;
        int64_t token = sample(&s, &rng, vocab, &logprob);
        uint32_t want = plain_sample(&s, base_rng_unit(&copy), vocab, &slack);
        ck_assert_mem_eq(&rng, &copy, sizeof rng);                  /* one draw a token */
        double sum = 0.0;
        for (uint32_t i = 0; i < vocab; i++) {
            sum += exp((double)logits[i]);
        }
        ck_assert_double_eq_tol((double)logprob, (double)logits[token] - log(sum), 1e-4);
        for (int i = 0; i < 2; i++) {       /* the other op sets, as far as they run here */
            struct base_rng again;
            float same;
            const struct kern_ops *used = set;
            base_rng_init(&again, seed * 31);
            set = kern_ops_variant((enum kern_cpu)i);
            if (set) {
                ck_assert_int_eq(sample(&s, &again, vocab, &same), token);
                ck_assert(same == logprob);
            }
            set = used;
        }
        /* Where rounding decides, either answer is right. */
        if (slack < 3e-6) continue;
        checked++;
        ck_assert_msg(token == want,
                      "seed %u: token %d, a plain sort says %u (vocab %u, t %g, p %g, k %u)", seed,
                      (int)token, want, vocab, (double)s.temperature, (double)s.top_p, s.top_k);
    }
    ck_assert_uint_gt(checked, 3500);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cuts");
    set = kern_ops_cpu(KERN_CPU_BEST);
    TCase *tests = tcase_create("cuts");
    tcase_add_test(tests, greedy_takes_the_lowest_id_among_equals);
    tcase_add_test(tests, cuts_agree_with_a_plain_sort);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
