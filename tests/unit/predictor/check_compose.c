/* Batches composed from single sequences: every token of every request once and in its order, never
 * more users than allowed, arrivals kept, both kinds of arrival file, sentences for bad ones. */
#include "support.h"

#include <errno.h>

#include "predictor/compose.h"
#include "predictor/edit.h"

enum { LAYERS = 2, TOP_K = 2, SEQUENCES = 5, PROMPT = 7, GENERATED = 9 };

/* A token's expert ids and its number say where it comes from. */
static void write_trace(const char *path)
{
    struct pred_trace_config config = support_config(path);
    struct pred_trace_header header = { .model = "m", .source = "jsonl", .layers = LAYERS,
                                        .experts = 64, .top_k = TOP_K, .sample = 1 };
    struct pred_trace_writer *writer;
    struct base_err err = { 0 };
    ck_assert_int_eq(pred_trace_writer_open(&writer, &config, &header, true, &err), 0);
    pred_trace_writer_patient(writer);
    for (uint64_t seq = 0; seq < SEQUENCES; seq++) {
        for (uint32_t i = 0; i < PROMPT + GENERATED; i++) {
            uint32_t token = (uint32_t)seq * 100 + i, ids[LAYERS * TOP_K];
            uint8_t phase = i < PROMPT ? TIER_PREFILL : TIER_DECODE;
            for (uint32_t k = 0; k < LAYERS * TOP_K; k++) ids[k] = (token + k * 16) % 64;
            struct pred_step step = { .step = i, .token_count = 1, .seqs = &seq, .tokens = &token,
                                      .positions = &i, .phases = &phase, .expert_ids = ids };
            pred_trace_writer_step(writer, &step);
        }
    }
    ck_assert_int_eq(pred_trace_writer_close(writer, &err), 0);
}

static void write_text(const char *path, const char *text)
{
    support_write(path, (const uint8_t *)text, strlen(text));
}

static int compose(const char *trace, const char *arrivals, const char *to, uint32_t users,
                   struct pred_compose_stats *stats, struct base_err *err)
{
    struct pred_compose_options options = { .arrivals = arrivals, .users = users, .chunk = 4,
                                            .step_ns = 1000000000 };
    struct pred_trace_reader *reader;
    ck_assert_int_eq(pred_trace_reader_open(&reader, trace, err), 0);
    int rc = pred_compose(reader, to, &options, stats, err);
    pred_trace_reader_close(reader);
    return rc;
}

/* Everybody at once, two places: two generate together, prompts come in chunks of four. */
START_TEST(every_token_once)
{
    struct base_err err = { 0 };
    struct pred_compose_stats stats;
    struct pred_trace_reader *reader;
    struct pred_trace_item item;
    uint32_t next[SEQUENCES] = { 0 };
    const char *trace = support_path("single"), *to = support_path("composed");
    const char *arrivals = support_path("arrivals");
    write_trace(trace);
    write_text(arrivals, "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                         "2023-11-16 18:17:03.97,4808,10\n2023-11-16 18:17:03.98,3180,10\n"
                         "2023-11-16 18:17:03.99,110,27\n2023-11-16 18:17:04.0,7,9\n"
                         "2023-11-16 18:17:04.1,7,9\n2023-11-16 18:17:05,9,9\n");
    int rc = compose(trace, arrivals, to, 2, &stats, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(stats.requests, SEQUENCES);
    ck_assert_uint_eq(stats.tokens, SEQUENCES * (PROMPT + GENERATED));
    ck_assert_uint_eq(stats.batch_max, 2);
    ck_assert_int_eq(pred_trace_reader_open(&reader, to, &err), 0);
    ck_assert_str_eq(pred_trace_reader_header(reader)->source, "composed");
    while (pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, &err) > 0) {
        uint32_t decode = 0, prefill = 0;
        for (uint32_t i = 0; i < item.step.token_count; i++) {
            uint32_t seq = (uint32_t)item.step.seqs[i], token = seq * 100 + next[seq]++;
            ck_assert_uint_eq(item.step.tokens[i], token);
            ck_assert_uint_eq(item.step.positions[i], token % 100);
            ck_assert_uint_eq(item.step.phases[i], token % 100 < PROMPT ? TIER_PREFILL
                                                                        : TIER_DECODE);
            *(item.step.phases[i] == TIER_DECODE ? &decode : &prefill) += 1;
            for (uint32_t k = 0; k < LAYERS * TOP_K; k++) {
                size_t at = ((size_t)(k / TOP_K) * item.step.token_count + i) * TOP_K + k % TOP_K;
                ck_assert_uint_eq(item.step.expert_ids[at], (token + k * 16) % 64);
            }
        }
        ck_assert_uint_le(decode, 2);
        ck_assert_uint_le(prefill, 4);
    }
    for (int s = 0; s < SEQUENCES; s++) ck_assert_uint_eq(next[s], PROMPT + GENERATED);
    pred_trace_reader_close(reader);
}
END_TEST

/* Far apart nobody meets; lengths are cut to what the arrivals say. */
START_TEST(arrivals_count)
{
    struct base_err err = { 0 };
    struct pred_compose_stats stats;
    const char *trace = support_path("single"), *arrivals = support_path("arrivals");
    write_trace(trace);
    write_text(arrivals, "{\"timestamp\": 0, \"input_length\": 3, \"output_length\": 2}\n"
                         "{\"timestamp\": 60000, \"input_length\": 0, \"output_length\": 100}\n"
                         "{\"timestamp\": 120000, \"input_length\": 9, \"output_length\": 0}\n");
    int rc = compose(trace, arrivals, support_path("apart"), 8, &stats, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(stats.requests, 3);
    ck_assert_uint_eq(stats.batch_max, 1);
    ck_assert_uint_eq(stats.tokens, 3 + 2 + GENERATED + PROMPT);
}
END_TEST

START_TEST(bad_input)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        { "", "no arrivals" },
        { "TIME,Tokens\n1,2\n", ":1:" },
        { "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", ":2:" },
        { "{\"timestamp\": 0, \"input_length\": 3}\n", "output_length" },
        { "{\"timestamp\": 0, \"input_length\": -3, \"output_length\": 1}\n", "input_length" },
    };
    struct pred_compose_stats stats;
    const char *trace = support_path("single"), *arrivals = support_path("arrivals");
    const char *to = support_path("never");
    write_trace(trace);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct base_err err = { 0 };
        write_text(arrivals, cases[i].text);
        ck_assert_int_lt(compose(trace, arrivals, to, 2, &stats, &err), 0);
        ck_assert_msg(strstr(err.text, cases[i].says) != NULL, "%s", err.text);
        ck_assert_int_ne(access(to, F_OK), 0);
    }
    /* A trace that holds batches is none of single sequences. */
    struct base_err err = { 0 };
    write_text(arrivals, "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 9}\n"
                         "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 9}\n");
    ck_assert_int_eq(compose(trace, arrivals, support_path("batch"), 2, &stats, &err), 0);
    ck_assert_int_eq(compose(support_path("batch"), arrivals, to, 2, &stats, &err), BASE_EMISMATCH);
    ck_assert_int_eq(compose(trace, arrivals, to, 0, &stats, &err), -EINVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("compose");
    TCase *tcase = tcase_create("compose");
    tcase_add_checked_fixture(tcase, support_begin, support_end);
    tcase_add_test(tcase, every_token_once);
    tcase_add_test(tcase, arrivals_count);
    tcase_add_test(tcase, bad_input);
    suite_add_tcase(suite, tcase);
    return support_run(suite);
}
