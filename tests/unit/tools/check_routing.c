/* Imposed routing: uniform draws are different, even and repeatable; a trace's tokens follow each
 * other within its sequences, mingled in a batch or not, from the beginning of one on; a trace of
 * another shape is refused. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "predictor/trace.h"
#include "tools/bench_routing.h"

enum { LAYERS = 3, EXPERTS = 16, TOP_K = 4, TOKENS = 5, SEQS = 2, VOCAB = 100 };

static struct model_shape shape_of(uint32_t experts)
{
    return (struct model_shape){ .layers = LAYERS + 1, .dense_layers = 1, .experts = experts,
                                 .top_k = TOP_K, .vocab = VOCAB };
}

START_TEST(uniform_is_even_and_repeatable)
{
    struct bench_routing routing;
    struct base_err err = { 0 };
    struct model_shape shape = shape_of(EXPERTS);
    unsigned drawn[EXPERTS] = { 0 };
    enum { POSITIONS = 4000 };
    ck_assert_int_eq(bench_routing_open(&routing, "uniform", &shape, 7, &err), 0);
    for (uint32_t p = 0; p < POSITIONS; p++) {
        uint32_t ids[TOP_K], again[TOP_K];
        bench_routing_choose(&routing, p % LAYERS, p / 100, p, ids);
        bench_routing_choose(&routing, p % LAYERS, p / 100, p, again);
        ck_assert_uint_eq(bench_routing_token(&routing, p / 100, p, 77), 77);
        for (int k = 0; k < TOP_K; k++) {
            ck_assert_uint_lt(ids[k], EXPERTS);
            ck_assert_uint_eq(ids[k], again[k]);
            for (int before = 0; before < k; before++) ck_assert_uint_ne(ids[before], ids[k]);
            drawn[ids[k]]++;
        }
    }
    /* 1,000 each; the standard deviation is 27. */
    for (int e = 0; e < EXPERTS; e++) ck_assert_uint_le(abs((int)drawn[e] - 1000), 140);
    bench_routing_close(&routing);
}
END_TEST

/* Token t of a sequence has the experts t + 3 x sequence, that + 1, ... + layer. */
static uint32_t id_of(uint32_t seq, uint32_t token, uint32_t layer, uint32_t k)
{
    return (3 * seq + token + layer + k) % EXPERTS;
}

/* The tokens' hashes: their order among all is the places' order. */
static uint32_t hash_of(uint32_t seq, uint32_t token)
{
    return 1000000007u + 1000 * (seq * TOKENS + token);
}

/* Steps of two sequences at once. */
static void write_trace(const char *path)
{
    struct pred_trace_writer *writer;
    struct base_err err = { 0 };
    struct pred_trace_config config;
    struct base_option_group group = { "trace", pred_trace_options, pred_trace_option_count,
                                       &config };
    base_option_defaults(&group, 1);
    snprintf(config.path, sizeof config.path, "%s", path);
    struct pred_trace_header header = { .model = "m", .source = "jsonl", .layers = LAYERS,
                                        .first_moe_layer = 1, .experts = EXPERTS, .top_k = TOP_K };
    int rc = pred_trace_writer_open(&writer, &config, &header, true, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    pred_trace_writer_patient(writer);
    for (uint32_t t = 0; t < TOKENS; t++) {
        uint64_t seqs[SEQS] = { 0, 1 };
        uint8_t phases[SEQS] = { TIER_DECODE, TIER_DECODE };
        uint32_t tokens[SEQS], positions[SEQS] = { t, t }, ids[LAYERS * SEQS * TOP_K];
        for (uint32_t s = 0; s < SEQS; s++) tokens[s] = hash_of(s, t);
        for (uint32_t i = 0; i < LAYERS * SEQS * TOP_K; i++) {
            ids[i] = id_of(i / TOP_K % SEQS, t, i / TOP_K / SEQS, i % TOP_K);
        }
        struct pred_step step = { .step = t, .token_count = SEQS, .seqs = seqs, .tokens = tokens,
                                  .positions = positions, .phases = phases, .expert_ids = ids };
        pred_trace_writer_step(writer, &step);
    }
    ck_assert_msg(pred_trace_writer_close(writer, &err) == 0, "%s", err.text);
}

START_TEST(a_trace_is_followed)
{
    char path[] = "/tmp/expertier-routing-XXXXXX";
    struct bench_routing routing;
    struct base_err err = { 0 };
    struct model_shape shape = shape_of(EXPERTS), other = shape_of(EXPERTS * 2);
    unsigned begun[SEQS] = { 0 };
    int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    close(file);
    write_trace(path);
    int rc = bench_routing_open(&routing, path, &shape, 7, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    for (uint32_t run = 0; run < 20; run++) {
        uint32_t first = bench_routing_token(&routing, run, 0, 99);
        ck_assert_uint_eq(first % TOKENS, 0);
        begun[first / TOKENS]++;
        for (uint32_t p = 0; p < 3 * SEQS * TOKENS; p++) {
            uint32_t at = (first + p) % (SEQS * TOKENS);
            ck_assert_uint_eq(bench_routing_token(&routing, run, p, 99), at);
            for (uint32_t l = 0; l < LAYERS; l++) {
                uint32_t ids[TOP_K];
                bench_routing_choose(&routing, l, run, p, ids);
                for (uint32_t k = 0; k < TOP_K; k++) {
                    ck_assert_uint_eq(ids[k], id_of(at / TOKENS, at % TOKENS, l, k));
                }
            }
        }
    }
    for (int s = 0; s < SEQS; s++) ck_assert_uint_gt(begun[s], 0);
    bench_routing_close(&routing);
    ck_assert_int_eq(bench_routing_open(&routing, path, &other, 7, &err), BASE_EMISMATCH);
    unlink(path);
    ck_assert_int_lt(bench_routing_open(&routing, path, &shape, 7, &err), 0);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("routing");
    tcase_add_test(tcase, uniform_is_even_and_repeatable);
    tcase_add_test(tcase, a_trace_is_followed);
    Suite *suite = suite_create("tools/routing");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
