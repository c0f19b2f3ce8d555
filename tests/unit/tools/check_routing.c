/* Imposed routing: uniform draws are different, even and repeatable; a trace's tokens follow each
 * other, a trace of another shape is refused. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "predictor/trace.h"
#include "tools/bench_routing.h"

enum { LAYERS = 3, EXPERTS = 16, TOP_K = 4, TOKENS = 5 };

static struct model_shape shape_of(uint32_t experts)
{
    return (struct model_shape){ .layers = LAYERS + 1, .dense_layers = 1, .experts = experts,
                                 .top_k = TOP_K };
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

/* Token t has the experts t, t + 1, ... + layer. */
static uint32_t id_of(uint32_t token, uint32_t layer, uint32_t k)
{
    return (token + layer + k) % EXPERTS;
}

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
        uint64_t seq = 1;
        uint8_t phase = TIER_DECODE;
        uint32_t token = t, position = t, ids[LAYERS * TOP_K];
        for (uint32_t l = 0; l < LAYERS; l++) {
            for (uint32_t k = 0; k < TOP_K; k++) ids[l * TOP_K + k] = id_of(t, l, k);
        }
        struct pred_step step = { .step = t, .token_count = 1, .seqs = &seq, .tokens = &token,
                                  .positions = &position, .phases = &phase, .expert_ids = ids };
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
    int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    close(file);
    write_trace(path);
    int rc = bench_routing_open(&routing, path, &shape, 7, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    uint32_t first[TOP_K];
    bench_routing_choose(&routing, 0, 9, 0, first);
    for (uint32_t p = 0; p < 3 * TOKENS; p++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            uint32_t ids[TOP_K];
            bench_routing_choose(&routing, l, 9, p, ids);
            for (uint32_t k = 0; k < TOP_K; k++) {
                ck_assert_uint_eq(ids[k], id_of((first[0] + p) % TOKENS, l, k));
            }
        }
    }
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
