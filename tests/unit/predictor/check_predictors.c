/* Predictors learn what can be learned, follow a change, stay in their memory, survive a restart,
 * and cover on real routing what they are said to cover. */
#include <errno.h>
#include <math.h>

#include "predictor/edit.h"
#include "predictor/import.h"
#include "predictor/score.h"
#include "predictor/tables.h"
#include "tests/unit/predictor/support.h"

enum { LAYERS = 4, EXPERTS = 24, TOP_K = 3, TOKENS = 50 };

static struct pred_shape plain_shape(void)
{
    return (struct pred_shape){ .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K,
                                .tokens_max = 256, .model = "made-up" };
}

/* Routing by rule: layer 0 by the token, each further layer by the strongest expert of the one
 * before; `noise` of the choices are random. `domain` changes the rule. */
static void route(struct base_rng *rng, uint32_t token, uint32_t domain, double noise,
                  uint32_t *ids)
{
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t cause = l == 0 ? token : ids[(l - 1) * TOP_K];
        for (uint32_t k = 0; k < TOP_K; k++) {
            uint32_t *id = &ids[l * TOP_K + k];
            *id = (cause * 7 + k * 5 + l * 3 + domain * 11) % EXPERTS;
            if (base_rng_unit(rng) < noise) *id = (uint32_t)base_rng_below(rng, EXPERTS);
            for (uint32_t j = 0; j < k; j++) {
                if (ids[l * TOP_K + j] != *id) continue;
                *id = (*id + 1) % EXPERTS;
                j = UINT32_MAX;                         /* look again from the first */
            }
        }
    }
}

struct world {
    struct base_rng rng;
    uint32_t ids[2][LAYERS * TOP_K];
    unsigned now;
    uint32_t previous_token;
};

/* One token through all layers; returns how many of the chosen were among the predictor's top_k. */
static unsigned one_token(struct pred_predictor *p, struct world *w, uint32_t domain, double noise,
                          bool learn)
{
    uint32_t *ids = w->ids[w->now], token = (uint32_t)base_rng_below(&w->rng, TOKENS);
    float scores[EXPERTS];
    unsigned right = 0;
    route(&w->rng, token, domain, noise, ids);
    struct pred_context context = { .token = token, .previous_token = w->previous_token, .ids = ids,
                                    .previous = w->ids[!w->now], .future = ids };
    for (uint32_t l = 0; l < LAYERS; l++) {
        context.known = l;
        pred_predictor_predict(p, &context, l, scores);
        for (uint32_t k = 0; k < TOP_K; k++) {
            unsigned above = 0;
            float own = scores[ids[l * TOP_K + k]];
            ck_assert(isfinite(own));
            for (uint32_t e = 0; e < EXPERTS; e++) above += scores[e] > own;
            right += above < TOP_K;
        }
        pred_predictor_observe(p, &context, l, ids + l * TOP_K, learn);
    }
    w->previous_token = token;
    w->now = !w->now;
    return right;
}

static double run_tokens(struct pred_predictor *p, struct world *w, unsigned tokens,
                         uint32_t domain, double noise, bool learn)
{
    unsigned right = 0;
    for (unsigned i = 0; i < tokens; i++) right += one_token(p, w, domain, noise, learn);
    return (double)right / (double)(tokens * LAYERS * TOP_K);
}

static struct pred_predictor *make(const char *name)
{
    struct pred_predictor *p;
    struct pred_shape shape = plain_shape();
    ck_assert_int_eq(pred_predictor_create(&p, name, &shape), 0);
    ck_assert_str_eq(p->ops->name, name);
    return p;
}

static void world_init(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    base_rng_init(&w->rng, seed);
    w->previous_token = PRED_NO_TOKEN;
    route(&w->rng, 0, 0, 0, w->ids[1]);
}

START_TEST(rules_are_learned)
{
    static const struct {
        const char *name;
        double least;                   /* recall without noise, after learning */
    } cases[] = {
        { "token_table", 0.95 }, { "context", 0.95 }, { "blend", 0.95 },
        { "transition", 0.70 },         /* layer 0 has no layer before it */
        { "oracle", 1.0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pred_predictor *p = make(cases[i].name);
        struct world w;
        world_init(&w, 1);
        run_tokens(p, &w, 3000, 0, 0, true);
        double recall = run_tokens(p, &w, 500, 0, 0, false);
        ck_assert_msg(recall >= cases[i].least, "%s: %.3f", cases[i].name, recall);
        pred_predictor_destroy(p);
    }
}
END_TEST

/* Tables do not change while frozen, whatever passes by; recency may. */
START_TEST(frozen_tables_stay)
{
    static const char *const names[] = { "token_table", "context", "transition", "previous_token" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct pred_predictor *p = make(names[i]);
        struct world w;
        struct pred_block before[PRED_BLOCKS_MAX], after[PRED_BLOCKS_MAX];
        world_init(&w, 2);
        run_tokens(p, &w, 300, 0, 0.1, true);
        unsigned n = p->ops->blocks(p, before);
        for (unsigned b = 0; b < n; b++) {
            void *copy = malloc(before[b].bytes);
            memcpy(copy, before[b].memory, before[b].bytes);
            before[b].memory = copy;
        }
        run_tokens(p, &w, 300, 1, 0.1, false);
        ck_assert_uint_eq(p->ops->blocks(p, after), n);
        for (unsigned b = 0; b < n; b++) {
            ck_assert_mem_eq(before[b].memory, after[b].memory, before[b].bytes);
            free(before[b].memory);
        }
        pred_predictor_destroy(p);
    }
}
END_TEST

START_TEST(a_change_of_domain_is_followed)
{
    static const char *const names[] = { "token_table", "transition", "blend" };
    static const double least[] = { 0.9, 0.65, 0.9 };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct pred_predictor *p = make(names[i]);
        struct world w;
        world_init(&w, 3);
        run_tokens(p, &w, 3000, 0, 0.02, true);
        double lost = run_tokens(p, &w, 100, 5, 0, false);
        run_tokens(p, &w, 6000, 5, 0.02, true);
        double found = run_tokens(p, &w, 500, 5, 0, false);
        ck_assert_msg(lost < 0.6 && found >= least[i], "%s: %.3f at the change, %.3f later",
                      names[i], lost, found);
        pred_predictor_destroy(p);
    }
}
END_TEST

/* Ten times more tokens than places: the ones used often keep theirs. */
START_TEST(memory_is_bounded)
{
    struct pred_predictor *p = make("token_table");
    size_t bytes = pred_predictor_bytes(p);
    struct base_rng rng;
    uint32_t ids[LAYERS * TOP_K], known = 0;
    base_rng_init(&rng, 4);
    for (unsigned i = 0; i < 30000; i++) {
        uint32_t token = base_rng_below(&rng, 2) ? (uint32_t)base_rng_below(&rng, 40)
                                                 : 1000 + (uint32_t)base_rng_below(&rng, 2560);
        route(&rng, token, 0, 0, ids);
        struct pred_context context = { .token = token,
                                        .previous_token = PRED_NO_TOKEN,
                                        .ids = ids };
        for (uint32_t l = 0; l < LAYERS; l++) {
            context.known = l;
            pred_predictor_observe(p, &context, l, ids + l * TOP_K, true);
        }
    }
    ck_assert_uint_eq(pred_predictor_bytes(p), bytes);
    for (uint32_t token = 0; token < 40; token++) {
        float scores[EXPERTS];
        route(&rng, token, 0, 0, ids);
        struct pred_context context = { .token = token,
                                        .previous_token = PRED_NO_TOKEN,
                                        .ids = ids };
        pred_predictor_predict(p, &context, 0, scores);
        known += scores[ids[0]] > 1;
    }
    ck_assert_uint_ge(known, 38);
    pred_predictor_destroy(p);
}
END_TEST

/* Margins that tell the truth are believed, alone and in the blend; lies are not. Those of a
 * layer's own gate, asked last, are believed whatever was said before. */
START_TEST(margins_are_weighed)
{
    static const char *const names[] = { "lookahead", "blend" };
    for (int c = 0; c < 8; c++) {
        struct pred_predictor *p = make(names[c / 2 % 2]);
        struct base_rng rng;
        static float margins[LAYERS * EXPERTS], lies[LAYERS * EXPERTS];
        uint32_t ids[LAYERS * TOP_K], right = 0, tokens = 600;
        bool honest = c % 2 == 0;
        base_rng_init(&rng, 9);
        struct pred_context context = { .token = PRED_NO_TOKEN, .previous_token = PRED_NO_TOKEN,
                                        .ids = ids, .gates = { margins } };
        if (c >= 4) {
            for (uint32_t l = 0; l < LAYERS; l++) lies[l * EXPERTS + 1] = 4;
            context.gates[0] = lies;
            context.gates[PRED_OWN] = margins;
        }
        for (uint32_t t = 0; t < tokens; t++) {
            route(&rng, 0, 0, 1, ids);                  /* nothing but noise */
            for (uint32_t i = 0; i < LAYERS * EXPERTS; i++) margins[i] = -1;
            for (uint32_t i = 0; i < LAYERS * TOP_K; i++) {
                uint32_t e = honest ? ids[i] : (uint32_t)base_rng_below(&rng, EXPERTS);
                margins[i / TOP_K * EXPERTS + e] = 0.5f;
            }
            for (uint32_t l = 1; l < LAYERS; l++) {
                float scores[EXPERTS];
                context.known = l;
                pred_predictor_predict(p, &context, l, scores);
                for (uint32_t k = 0; t >= tokens / 2 && k < TOP_K; k++) {
                    unsigned above = 0;
                    for (uint32_t e = 0; e < EXPERTS; e++) {
                        above += scores[e] > scores[ids[l * TOP_K + k]];
                    }
                    right += above < TOP_K;
                }
                pred_predictor_observe(p, &context, l, ids + l * TOP_K, true);
            }
        }
        double recall = (double)right / (double)(tokens / 2 * (LAYERS - 1) * TOP_K);
        ck_assert_msg(honest ? recall > 0.95 : recall < 0.3, "%s: %.3f", names[c / 2 % 2], recall);
        pred_predictor_destroy(p);
    }
}
END_TEST

START_TEST(saved_and_loaded)
{
    for (size_t i = 0; pred_predictor_name(i); i++) {
        const char *name = pred_predictor_name(i), *path = support_path("p.pred");
        struct pred_predictor *p = make(name), *q = make(name), *other;
        struct world w, v;
        struct base_err err = { 0 }, again = { 0 };
        world_init(&w, 5);
        run_tokens(p, &w, 500, 0, 0.2, true);
        ck_assert_msg(pred_predictor_save(p, path, &err) == 0, "%s", err.text);
        ck_assert_msg(pred_predictor_load(q, path, &err) == 0, "%s: %s", name, err.text);
        v = w;
        double one = run_tokens(p, &w, 200, 0, 0.2, true),
               two = run_tokens(q, &v, 200, 0, 0.2, true);
        ck_assert_msg(one == two, "%s: %.6f, after loading %.6f", name, one, two);
        /* Not for another model. */
        struct pred_shape shape = plain_shape();
        snprintf(shape.model, sizeof shape.model, "another");
        ck_assert_int_eq(pred_predictor_create(&other, name, &shape), 0);
        ck_assert_int_eq(pred_predictor_load(other, path, &again), BASE_EMISMATCH);
        ck_assert_ptr_nonnull(strstr(again.text, "made-up"));
        pred_predictor_destroy(other);
        /* Where the weights are known they tell: the name may be another, or the same. */
        for (int same = 0; same < 2; same++) {
            struct pred_predictor *giver, *taker;
            struct base_err e = { 0 };
            shape.weights = 7;
            ck_assert_int_eq(pred_predictor_create(&giver, name, &shape), 0);
            ck_assert_int_eq(pred_predictor_save(giver, path, &e), 0);
            struct pred_shape there = shape;
            there.weights = same ? 7 : 8;
            if (same) snprintf(there.model, sizeof there.model, "renamed");
            ck_assert_int_eq(pred_predictor_create(&taker, name, &there), 0);
            ck_assert_int_eq(pred_predictor_load(taker, path, &e), same ? 0 : BASE_EMISMATCH);
            if (!same) ck_assert_ptr_nonnull(strstr(e.text, "other weights"));
            pred_predictor_destroy(giver);
            pred_predictor_destroy(taker);
        }
        pred_predictor_destroy(p);
        pred_predictor_destroy(q);
    }
}
END_TEST

START_TEST(broken_saves_are_refused)
{
    const char *path = support_path("p.pred");
    struct pred_predictor *p = make("transition"), *q = make("frequency");
    struct world w;
    struct base_err err = { 0 };
    size_t size;
    world_init(&w, 6);
    run_tokens(p, &w, 100, 0, 0.2, true);
    ck_assert_int_eq(pred_predictor_save(p, path, &err), 0);
    uint8_t *bytes = support_read(path, &size);
    static const struct {
        size_t place;                   /* from the end when the size is cut */
        int code;
    } cases[] = { { 0, BASE_EFORMAT }, { 8, BASE_EVERSION }, { 12, BASE_EMISMATCH },
                  { 40, BASE_EMISMATCH }, { 154, BASE_ECHECKSUM }, { 400, BASE_ECHECKSUM } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct base_err e = { 0 };
        bytes[cases[i].place] ^= 1;
        support_write(path, bytes, size);
        bytes[cases[i].place] ^= 1;
        ck_assert_int_eq(pred_predictor_load(p, path, &e), cases[i].code);
        ck_assert_ptr_nonnull(strstr(e.text, "p.pred: "));
    }
    for (size_t keep = 0; keep < size; keep += size / 7) {
        struct base_err e = { 0 };
        support_write(path, bytes, keep);
        ck_assert_int_lt(pred_predictor_load(p, path, &e), 0);
    }
    struct base_err kind = { 0 }, none = { 0 };
    support_write(path, bytes, size);
    ck_assert_int_eq(pred_predictor_load(q, path, &kind), BASE_EMISMATCH);
    ck_assert_int_eq(pred_predictor_load(q, support_path("absent"), &none), -ENOENT);
    free(bytes);
    pred_predictor_destroy(p);
    pred_predictor_destroy(q);
}
END_TEST

START_TEST(unknown_names_and_shapes_are_refused)
{
    struct pred_predictor *p;
    struct pred_shape shape = plain_shape();
    ck_assert_int_eq(pred_predictor_create(&p, "crystal_ball", &shape), -ENOENT);
    shape.top_k = EXPERTS + 1;
    ck_assert_int_eq(pred_predictor_create(&p, "blend", &shape), -EINVAL);
    ck_assert_ptr_null(p);
}
END_TEST

/* ------------------------------------------------------------------- traces cut and put together
 * -- */

static void write_world(const char *path, uint64_t seed, unsigned steps)
{
    struct pred_trace_config config = support_config(path);
    struct pred_trace_header header = { .model = "made-up", .source = "jsonl", .layers = LAYERS,
                                        .first_moe_layer = 1, .experts = EXPERTS, .top_k = TOP_K };
    struct pred_trace_writer *writer;
    struct base_err err = { 0 };
    struct base_rng rng;
    base_rng_init(&rng, seed);
    config.weights = PRED_WEIGHTS_F32;
    ck_assert_msg(pred_trace_writer_open(&writer, &config, &header, true, &err) == 0, "%s",
                  err.text);
    pred_trace_writer_patient(writer);
    for (unsigned s = 0; s < steps; s++) {
        uint32_t ids[LAYERS * TOP_K], token = (uint32_t)base_rng_below(&rng, TOKENS),
                                      position = s / 4;
        float weights[LAYERS * TOP_K];
        uint64_t seq = s % 4;
        uint8_t phase = s < 20 ? TIER_PREFILL : TIER_DECODE;
        route(&rng, token, 0, 0.1, ids);
        for (int i = 0; i < LAYERS * TOP_K; i++) weights[i] = (float)base_rng_unit(&rng);
        struct pred_step step = { .step = s, .token_count = 1, .seqs = &seq, .tokens = &token,
                                  .positions = &position, .phases = &phase, .expert_ids = ids,
                                  .expert_weights = weights };
        pred_trace_writer_step(writer, &step);
    }
    ck_assert_msg(pred_trace_writer_close(writer, &err) == 0, "%s", err.text);
}

static void expect_same_steps(const char *a_path, const char *b_path)
{
    struct pred_trace_reader *a = support_open(a_path), *b = support_open(b_path);
    struct pred_trace_item x, y;
    struct base_err err = { 0 };
    unsigned steps = 0;
    while (pred_trace_reader_next(a, PRED_WANT_STEPS, &x, &err) == 1) {
        ck_assert_msg(pred_trace_reader_next(b, PRED_WANT_STEPS, &y, &err) == 1, "%s", err.text);
        ck_assert_uint_eq(x.step.token_count, y.step.token_count);
        ck_assert_uint_eq(x.step.seqs[0], y.step.seqs[0]);
        ck_assert_uint_eq(x.step.tokens[0], y.step.tokens[0]);
        ck_assert_uint_eq(x.step.positions[0], y.step.positions[0]);
        ck_assert_uint_eq(x.step.phases[0], y.step.phases[0]);
        ck_assert_mem_eq(x.step.expert_ids, y.step.expert_ids, LAYERS * TOP_K * 4);
        ck_assert_mem_eq(x.step.expert_weights, y.step.expert_weights, LAYERS * TOP_K * 4);
        steps++;
    }
    ck_assert_int_eq(pred_trace_reader_next(b, PRED_WANT_STEPS, &y, &err), 0);
    ck_assert_uint_gt(steps, 0);
    pred_trace_reader_close(a);
    pred_trace_reader_close(b);
}

START_TEST(exported_and_imported_again)
{
    const char *trace = support_path("a.trace"), *text = support_path("a.txt"),
               *back = support_path("b.trace");
    struct pred_edit_stats stats;
    struct pred_import_stats imported;
    struct base_err err = { 0 };
    write_world(trace, 1, 200);
    struct pred_trace_reader *r = support_open(trace);
    ck_assert_msg(pred_edit_export(r, text, PRED_EXPORT_JSONL, &stats, NULL, &err) == 0, "%s",
                  err.text);
    pred_trace_reader_close(r);
    ck_assert_uint_eq(stats.tokens, 200);
    ck_assert_msg(pred_import_jsonl(text, back, &imported, NULL, &err) == 0, "%s", err.text);
    ck_assert_uint_eq(imported.layers, LAYERS);
    expect_same_steps(trace, back);
}
END_TEST

START_TEST(cut_and_merged)
{
    const char *trace = support_path("a.trace"), *even = support_path("even"),
               *odd = support_path("odd");
    const char *both = support_path("both");
    struct pred_selection s = {
        .modulo = 2, .seq_last = UINT64_MAX, .step_last = UINT64_MAX, .share = 1, .phase = -1
    };
    struct pred_edit_stats stats;
    struct pred_trace_summary summary;
    struct base_err err = { 0 };
    write_world(trace, 2, 200);
    struct pred_trace_reader *r = support_open(trace);
    ck_assert_int_eq(pred_edit_select(r, even, &s, &stats, NULL, &err), 0);
    ck_assert_uint_eq(stats.tokens, 100);
    s.rest = 1;
    s.phase = TIER_DECODE;
    ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
    ck_assert_int_eq(pred_edit_select(r, odd, &s, &stats, NULL, &err), 0);
    ck_assert_uint_eq(stats.tokens, 90);
    ck_assert_uint_eq(stats.tokens_left_out, 110);
    pred_trace_reader_close(r);
    struct pred_trace_reader *parts[2] = { support_open(even), support_open(odd) };
    ck_assert_msg(pred_edit_merge(parts, 2, both, &stats, NULL, &err) == 0, "%s", err.text);
    pred_trace_reader_close(parts[0]);
    pred_trace_reader_close(parts[1]);
    r = support_open(both);
    ck_assert_int_eq(pred_trace_summarize(r, &summary, NULL, &err), 0);
    ck_assert_uint_eq(summary.steps, 190);
    ck_assert_uint_eq(summary.sequences, 4);
    ck_assert_uint_eq(summary.tokens[TIER_PREFILL], 10);
    pred_trace_reader_close(r);
}
END_TEST

/* ----------------------------------------------------------------------------------- scoring -- */

START_TEST(oracle_covers_all_and_none_nothing_special)
{
    static const char *const names[] = { "none", "token_table", "oracle" };
    struct pred_score scores[3];
    struct pred_score_total total;
    struct base_err err = { 0 };
    write_world(support_path("train"), 3, 2000);
    write_world(support_path("test"), 4, 2000);
    struct pred_trace_reader *train = support_open(support_path("train")),
                             *test = support_open(support_path("test"));
    struct pred_score_args args = { .train = train, .test = test, .names = names, .count = 3,
                                    .capacity = 0.25 };
    ck_assert_msg(pred_score_run(&args, scores, &total, &err) == 0, "%s", err.text);
    ck_assert_uint_gt(total.misses, 1000);
    ck_assert_uint_eq(scores[2].useful[2], total.misses);       /* top-3 never misses more than 4 */
    ck_assert_uint_eq(scores[2].in_k, scores[2].chosen);
    ck_assert_uint_lt(scores[0].useful[2], scores[1].useful[2]);
    ck_assert_uint_gt(scores[1].useful[2], total.misses / 2);
    ck_assert_uint_eq(total.lookups, 2000u * LAYERS * TOP_K);
    pred_trace_reader_close(train);
    pred_trace_reader_close(test);
}
END_TEST

/* Routing of gpt-oss-20b, tables from the even sequences, scored on the odd. */
START_TEST(covers_what_is_claimed)
{
    static const char *const names[] = { "blend", "transition", "context" };
    char from[600];
    struct pred_import_stats imported;
    struct pred_edit_stats stats;
    struct pred_score scores[3];
    struct pred_score_total total;
    struct base_err err = { 0 };
    snprintf(from, sizeof from, "%s/routing/gptoss20b_dev.jsonl.xz", getenv("EXPERTIER_DATA"));
    int rc = pred_import_jsonl(from, support_path("all"), &imported, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    struct pred_selection s = {
        .modulo = 2, .seq_last = UINT64_MAX, .step_last = UINT64_MAX, .share = 1, .phase = -1
    };
    struct pred_trace_reader *all = support_open(support_path("all"));
    ck_assert_int_eq(pred_edit_select(all, support_path("even"), &s, &stats, NULL, &err), 0);
    s.rest = 1;
    ck_assert_int_eq(pred_trace_reader_rewind(all, &err), 0);
    ck_assert_int_eq(pred_edit_select(all, support_path("odd"), &s, &stats, NULL, &err), 0);
    pred_trace_reader_close(all);
    struct pred_trace_reader *train = support_open(support_path("even")),
                             *test = support_open(support_path("odd"));
    struct pred_score_args args = { .train = train, .test = test, .names = names, .count = 3,
                                    .capacity = 0.25 };
    ck_assert_msg(pred_score_run(&args, scores, &total, &err) == 0, "%s", err.text);
    pred_trace_reader_close(train);
    pred_trace_reader_close(test);
    double covered[3][PRED_SCORE_DEPTHS];
    for (int p = 0; p < 3; p++) {
        for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
            covered[p][d] = (double)scores[p].useful[d] / (double)total.misses;
        }
    }
    ck_assert_msg(covered[0][2] >= 0.85, "blend covers %.4f at 4 a layer", covered[0][2]);
    ck_assert_msg(covered[0][1] >= 0.68, "blend covers %.4f at 2 a layer", covered[0][1]);
    ck_assert_msg(covered[1][2] >= 0.69, "transition covers %.4f at 4 a layer", covered[1][2]);
    ck_assert_msg(covered[2][2] >= 0.70, "context covers %.4f at 4 a layer", covered[2][2]);
}
END_TEST

/* A key that newcomers to its full set wear down as fast as it is seen: what it says of an expert
 * stays a share, and the right one, however long that goes on. */
START_TEST(worn_keys_keep_their_shares)
{
    enum { KEYS = PRED_KEYED_WAYS, OFTEN = 900, SHARES = 4 };
    static const float wanted[SHARES] = { 0.5f, 0.25f, 0.125f, 0.125f };
    const struct pred_shape shape = { .layers = 1, .experts = _i ? 24 : 40, .top_k = 1 };
    struct pred_keyed keyed;
    struct base_rng rng;
    base_rng_init(&rng, 9);
    ck_assert_int_eq(pred_keyed_init(&keyed, &shape, KEYS), 0);
    for (uint64_t key = 2; key <= KEYS; key++) {
        for (uint32_t i = 0, id = 0; i < OFTEN; i++) pred_keyed_learn(&keyed, key, 0, &id, 1);
    }
    for (uint32_t round = 0; round < 100000; round++) {
        const uint64_t drawn = base_rng_below(&rng, 8);
        const uint32_t id = drawn < 4 ? 0 : drawn < 6 ? 1 : drawn < 7 ? 2 : 3;
        pred_keyed_learn(&keyed, 1, 0, &id, 1);
        if (round > OFTEN / 2) pred_keyed_learn(&keyed, 1000 + round, 0, &id, 1);
        if (round % 1000 != 999) continue;
        float p[64] = { 0 };
        ck_assert_uint_gt(pred_keyed_sharpen(&keyed, 1, 0, 0, p, shape.experts), OFTEN / 4);
        for (uint32_t e = 0; e < SHARES; e++) {
            ck_assert_msg(fabsf(p[e] - wanted[e]) < 0.12f, "round %u: share of expert %u is %g",
                          round, e, (double)p[e]);
        }
    }
    pred_keyed_fini(&keyed);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("predictor/predictors");
    TCase *made_up = tcase_create("made-up");
    tcase_set_timeout(made_up, 60);
    tcase_add_checked_fixture(made_up, support_begin, support_end);
    tcase_add_test(made_up, rules_are_learned);
    tcase_add_test(made_up, frozen_tables_stay);
    tcase_add_loop_test(made_up, worn_keys_keep_their_shares, 0, 2);
    tcase_add_test(made_up, a_change_of_domain_is_followed);
    tcase_add_test(made_up, memory_is_bounded);
    tcase_add_test(made_up, saved_and_loaded);
    tcase_add_test(made_up, margins_are_weighed);
    tcase_add_test(made_up, broken_saves_are_refused);
    tcase_add_test(made_up, unknown_names_and_shapes_are_refused);
    tcase_add_test(made_up, exported_and_imported_again);
    tcase_add_test(made_up, cut_and_merged);
    tcase_add_test(made_up, oracle_covers_all_and_none_nothing_special);
    suite_add_tcase(suite, made_up);
    const char *data = getenv("EXPERTIER_DATA");
    if (data && access(data, R_OK) == 0) {
        TCase *real = tcase_create("real");
        tcase_set_timeout(real, 300);
        tcase_add_checked_fixture(real, support_begin, support_end);
        tcase_add_test(real, covers_what_is_claimed);
        suite_add_tcase(suite, real);
    } else {
        puts("skip: EXPERTIER_DATA names no folder: recorded routing is not tried");
    }
    return support_run(suite);
}
