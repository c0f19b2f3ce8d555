/* A trace that is made of others says what they said of themselves: how their tokens were kept,
 * which share of the sequences is in it, where records are missing, and where it is from. */
#include "predictor/compose.h"
#include "predictor/edit.h"
#include "predictor/import.h"
#include "tests/unit/predictor/support.h"

/* Each writer draws anew which sequences are in its share: of so many neither all nor none. */
enum { LAYERS = 2, EXPERTS = 16, TOP_K = 2, STEPS = 60, SEQUENCES = 60, GAP = 12, LOST = 7 };

static const struct pred_selection everything = {
    .seq_last = UINT64_MAX, .step_last = UINT64_MAX, .share = 1, .phase = -1,
};

/* One token a step; a gap before step GAP where `lost` is not 0. */
static void write_trace(const char *path, const char *source, struct pred_trace_config config,
                        bool weights, uint64_t lost)
{
    struct pred_trace_header header = { .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K,
                                        .model = "m" };
    struct pred_trace_writer *writer;
    struct base_err err = { 0 };
    snprintf(header.source, sizeof header.source, "%s", source);
    snprintf(config.path, sizeof config.path, "%s", path);
    ck_assert_msg(pred_trace_writer_open(&writer, &config, &header, true, &err) == 0, "%s",
                  err.text);
    pred_trace_writer_patient(writer);
    for (uint32_t s = 0; s < STEPS; s++) {
        uint64_t seq = s / (STEPS / SEQUENCES);
        uint32_t token = 1000 + s, ids[LAYERS * TOP_K] = { s % 16, (s + 1) % 16, (s + 2) % 16,
                                                           (s + 3) % 16 };
        float gate[LAYERS * TOP_K] = { 0.5f, 0.25f, 0.75f, 0.125f };
        uint8_t phase = TIER_DECODE;
        struct pred_step step = { .step = s, .token_count = 1, .seqs = &seq, .tokens = &token,
                                  .positions = &s, .phases = &phase, .expert_ids = ids,
                                  .expert_weights = weights ? gate : NULL };
        if (s == GAP && lost > 0) pred_trace_writer_gap(writer, lost);
        pred_trace_writer_step(writer, &step);
    }
    ck_assert_msg(pred_trace_writer_close(writer, &err) == 0, "%s", err.text);
}

static void cut(const char *from, const char *to, const struct pred_selection *selection)
{
    struct pred_trace_reader *r = support_open(from);
    struct pred_edit_stats stats;
    struct base_err err = { 0 };
    ck_assert_msg(pred_edit_select(r, to, selection, &stats, NULL, &err) == 0, "%s", err.text);
    pred_trace_reader_close(r);
}

static void merge(const char *a, const char *b, const char *to)
{
    struct pred_trace_reader *readers[] = { support_open(a), support_open(b) };
    struct pred_edit_stats stats;
    struct base_err err = { 0 };
    ck_assert_msg(pred_edit_merge(readers, 2, to, &stats, NULL, &err) == 0, "%s", err.text);
    for (int i = 0; i < 2; i++) pred_trace_reader_close(readers[i]);
}

/* What a trace holds: the tokens of its steps, whose weights are known, and its gaps. */
struct content {
    struct pred_trace_header header;
    uint32_t steps, tokens[2 * STEPS];
    bool weights[2 * STEPS];
    uint32_t gaps, gap_at;      /* the step before which the last one stands */
    struct pred_trace_health health;
};

static void look(const char *path, struct content *c)
{
    struct pred_trace_reader *r = support_open(path);
    struct pred_trace_item item;
    struct base_err err = { 0 };
    int rc;
    *c = (struct content){ .header = *pred_trace_reader_header(r) };
    while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err)) > 0) {
        if (item.kind == PRED_ITEM_GAP) {
            c->gaps++;
            c->gap_at = c->steps;
            continue;
        }
        ck_assert_int_eq(item.kind, PRED_ITEM_STEP);
        ck_assert_uint_lt(c->steps, 2 * STEPS);
        c->weights[c->steps] = item.step.expert_weights != NULL;
        c->tokens[c->steps++] = item.step.tokens[0];
    }
    ck_assert_msg(rc == 0, "%s", err.text);
    pred_trace_reader_health(r, &c->health);
    ck_assert(c->health.ended);
    pred_trace_reader_close(r);
}

/* _i: how tokens were kept. */
START_TEST(a_part_says_what_the_whole_said)
{
    struct content whole, part, again;
    struct pred_trace_config config = support_config("");
    const char *from = support_path("t"), *to = support_path("c"), *twice = support_path("d");
    config.tokens = _i;
    config.sample = 0.6;
    write_trace(from, "server", config, true, LOST);
    cut(from, to, &everything);
    cut(to, twice, &everything);
    look(from, &whole);
    look(to, &part);
    look(twice, &again);
    ck_assert(whole.steps > 0 && whole.steps < STEPS);
    ck_assert_uint_eq(part.steps, whole.steps);
    ck_assert_mem_eq(part.tokens, whole.tokens, sizeof whole.tokens);
    ck_assert_mem_eq(again.tokens, whole.tokens, sizeof whole.tokens);
    ck_assert_int_eq(part.header.tokens, _i);
    ck_assert_int_eq(again.header.tokens, _i);
    ck_assert_double_eq(part.header.sample, 0.6);
    ck_assert_double_eq(again.header.sample, 0.6);
    ck_assert_str_eq(part.header.source, "part of server");
    ck_assert_str_eq(again.header.source, "part of server");
    ck_assert_uint_eq(again.gaps, 1);
    ck_assert_uint_eq(again.gap_at, whole.gap_at);
    ck_assert_uint_eq(again.health.lost_records, LOST);
}
END_TEST

START_TEST(only_gaps_of_the_part_stay)
{
    struct content part;
    struct pred_selection late = everything, early = everything;
    const char *from = support_path("t"), *to = support_path("c");
    write_trace(from, "server", support_config(""), false, LOST);
    late.step_first = GAP + 1;
    cut(from, to, &late);
    look(to, &part);
    ck_assert_uint_eq(part.steps, STEPS - GAP - 1);
    ck_assert_uint_eq(part.gaps, 0);
    ck_assert_uint_eq(part.health.lost_records, 0);
    early.step_last = GAP - 2;
    cut(from, to, &early);
    look(to, &part);
    ck_assert_uint_eq(part.steps, GAP - 1);
    ck_assert_uint_eq(part.gaps, 0);
    late.step_first = GAP;
    cut(from, to, &late);
    look(to, &part);
    ck_assert_uint_eq(part.gaps, 1);
    ck_assert_uint_eq(part.gap_at, 0);
}
END_TEST

/* Weights of the second are kept, the first has none; and what JSONL says of both comes back. */
START_TEST(merged)
{
    struct content all;
    struct pred_trace_config plain = support_config(""), sampled = plain;
    struct pred_import_stats imported;
    struct pred_edit_stats stats;
    struct base_err err = { 0 };
    const char *a = support_path("a"), *b = support_path("b"), *to = support_path("m");
    plain.tokens = PRED_TOKENS_NONE;
    plain.weights = PRED_WEIGHTS_NONE;
    sampled.sample = 0.6;
    write_trace(a, "server", plain, false, 0);
    write_trace(b, "jsonl", sampled, true, LOST);
    merge(a, b, to);
    look(to, &all);
    ck_assert(all.steps > STEPS && all.steps < 2 * STEPS);
    for (uint32_t s = 0; s < all.steps; s++) ck_assert_int_eq(all.weights[s], s >= STEPS);
    ck_assert_double_eq(all.header.sample, 0.6);
    ck_assert_int_eq(all.header.tokens, PRED_TOKENS_ID);
    ck_assert_uint_eq(all.tokens[0], PRED_NO_TOKEN);
    ck_assert_uint_ge(all.tokens[STEPS], 1000);
    ck_assert_uint_eq(all.health.lost_records, LOST);
    ck_assert_uint_ge(all.gap_at, STEPS);
    ck_assert_str_eq(all.header.source, "merge of several");

    struct pred_trace_reader *r = support_open(to);
    int rc = pred_edit_export(r, support_path("x"), PRED_EXPORT_JSONL, &stats, NULL, &err);
    pred_trace_reader_close(r);
    ck_assert_msg(rc == 0, "%s", err.text);
    const char *text = support_path("x"), *back = support_path("y");
    rc = pred_import_jsonl(text, back, &imported, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    look(back, &all);
    for (uint32_t s = 0; s < all.steps; s++) ck_assert_int_eq(all.weights[s], s >= STEPS);
}
END_TEST

START_TEST(composed_stays_composed)
{
    struct content made;
    struct pred_trace_config config = support_config("");
    struct pred_compose_stats stats;
    struct base_err err = { 0 };
    const char *from = support_path("t"), *arrivals = support_path("a"), *to = support_path("c");
    static const char text[] = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                               "2023-11-16 18:17:03.97,1,9\n2023-11-16 18:17:03.98,1,9\n";
    support_write(arrivals, (const uint8_t *)text, sizeof text - 1);
    config.tokens = PRED_TOKENS_HASH;
    write_trace(from, "server", config, true, LOST);
    struct pred_compose_options options = { .arrivals = arrivals, .users = 1, .chunk = 4,
                                            .step_ns = 1000000000 };
    struct pred_trace_reader *r = support_open(from);
    ck_assert_msg(pred_compose(r, to, &options, &stats, &err) == 0, "%s", err.text);
    pred_trace_reader_close(r);
    look(to, &made);
    ck_assert_str_eq(made.header.source, "composed");
    ck_assert_int_eq(made.header.tokens, PRED_TOKENS_HASH);
    ck_assert_uint_eq(made.health.lost_records, LOST);
    ck_assert_uint_eq(made.gaps, 1);

    const char *part = support_path("p");
    cut(to, part, &everything);
    const char *all = support_path("m");
    from = support_path("t");           /* names are kept for the last four */
    look(part, &made);
    ck_assert(pred_trace_composed(&made.header));
    merge(from, part, all);
    look(all, &made);
    ck_assert(pred_trace_composed(&made.header));
    merge(from, from, all);
    look(all, &made);
    ck_assert(!pred_trace_composed(&made.header));
    ck_assert_str_eq(made.header.source, "merge of server");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("predictor/derived");
    TCase *tcase = tcase_create("derived");
    tcase_add_checked_fixture(tcase, support_begin, support_end);
    tcase_add_loop_test(tcase, a_part_says_what_the_whole_said, 0, 3);
    tcase_add_test(tcase, only_gaps_of_the_part_stay);
    tcase_add_test(tcase, merged);
    tcase_add_test(tcase, composed_stays_composed);
    suite_add_tcase(suite, tcase);
    return support_run(suite);
}
