/* The adviser's hints: right ones, probabilities that come true as often as they say, in order of
 * worth, the same for the same calls; any batch, bounded rows. */
#include <errno.h>
#include <math.h>

#include "predictor/adviser.h"
#include "tests/unit/predictor/support.h"

enum { LAYERS = 6, EXPERTS = 32, TOP_K = 3, TOKENS = 40, ROWS = 48 };

struct world {
    struct base_rng rng;
    struct pred_predictor *predictor;
    struct pred_adviser *adviser;
    uint64_t seqs[ROWS];
    uint32_t tokens[ROWS];
    uint8_t phases[ROWS];
    uint32_t ids[LAYERS][ROWS * TOP_K];
    double noise;
};

static void world_begin(struct world *w, const char *name, struct pred_adviser_options options,
                        uint64_t seed)
{
    struct pred_shape shape = { .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K,
                                .tokens_max = 256, .model = "made-up" };
    memset(w, 0, sizeof *w);
    base_rng_init(&w->rng, seed);
    w->noise = 0.3;
    ck_assert_int_eq(pred_predictor_create(&w->predictor, name, &shape), 0);
    ck_assert_int_eq(pred_adviser_create(&w->adviser, w->predictor, &options), 0);
}

static void world_end(struct world *w)
{
    pred_adviser_destroy(w->adviser);
    pred_predictor_destroy(w->predictor);
}

static void draw(struct world *w, uint32_t count, uint32_t prefill)
{
    for (uint32_t i = 0; i < count; i++) {
        bool late = i >= count - prefill;
        w->seqs[i] = late ? 1000 : i;
        w->tokens[i] = (uint32_t)base_rng_below(&w->rng, TOKENS);
        w->phases[i] = late ? TIER_PREFILL : TIER_DECODE;
        for (uint32_t l = 0; l < LAYERS; l++) {
            uint32_t *ids = &w->ids[l][i * TOP_K];
            for (uint32_t k = 0; k < TOP_K; k++) {
                ids[k] = (w->tokens[i] * 7 + l * 5 + k * 11) % EXPERTS;
                if (base_rng_unit(&w->rng) < w->noise) {
                    ids[k] = (uint32_t)base_rng_below(&w->rng, EXPERTS);
                }
                for (uint32_t j = 0; j < k; j++) {
                    if (ids[j] != ids[k]) continue;
                    ids[k] = (ids[k] + 1) % EXPERTS;
                    j = UINT32_MAX;
                }
            }
        }
    }
}

static uint32_t begin(struct world *w, uint32_t count, const struct tier_hint **hints)
{
    return pred_adviser_begin(w->adviser, w->seqs, w->tokens, w->phases, count, hints);
}

static bool is_asked(const struct world *w, uint32_t count, uint32_t layer, uint32_t expert)
{
    for (uint32_t i = 0; i < count * TOP_K; i++) {
        if (w->ids[layer][i] == expert) return true;
    }
    return false;
}

/* An assertion that passes without a system call: it stands in loops. */
#define NEED(x) do { if (!(x)) ck_abort_msg("%s", #x); } while (0)

static void check_hints(const struct tier_hint *hints, uint32_t n, int64_t here, uint32_t from,
                        uint32_t to)
{
    uint8_t seen[LAYERS][EXPERTS] = { { 0 } };
    for (uint32_t i = 0; i < n; i++) {
        NEED(hints[i].layer >= from);
        NEED(hints[i].layer < to);
        NEED(hints[i].expert < EXPERTS);
        NEED((int64_t)hints[i].distance == (int64_t)hints[i].layer - here);
        NEED(hints[i].probability >= 0 && hints[i].probability <= 1);
        NEED(seen[hints[i].layer][hints[i].expert]++ == 0);
        NEED(i == 0 || hints[i - 1].probability >= hints[i].probability);
    }
}

/* Of hints, by the tenth that their probability lies in: how many, and how many came true. */
struct trust {
    uint64_t given[10], right[10];
};

static void trust_add(struct trust *t, const struct world *w, uint32_t count,
                      const struct tier_hint *hint)
{
    unsigned tenth = (unsigned)fminf(hint->probability * 10, 9);
    t->given[tenth]++;
    t->right[tenth] += is_asked(w, count, hint->layer, hint->expert);
}

/* `count`: rows of a step at most, for the message. */
static void trust_check(const struct trust *t, const char *name, uint32_t count)
{
    for (unsigned i = 0; i < 10; i++) {
        if (t->given[i] < 1000) continue;
        double share = (double)t->right[i] / (double)t->given[i];
        ck_assert_msg(fabs(share - (i + 0.5) / 10) < 0.12, "%s, batch of %u: hints of %u0%% came "
                      "true in %.1f%%", name, count, i, 100 * share);
    }
}

static void trust_check_likely(const struct trust *t, const char *name, uint64_t least)
{
    uint64_t likely = t->given[7] + t->given[8] + t->given[9];
    ck_assert_msg(likely > least, "%s: %llu hints are likely", name, (unsigned long long)likely);
}

/* One step through all layers, hints checked; `trust` counts those of the layer one ahead. Adds up
 * a hash of all hints. */
static uint64_t one_step(struct world *w, uint32_t count, uint32_t prefill, uint32_t lead,
                         bool whole, struct trust *trust)
{
    const struct tier_hint *hints;
    uint64_t hash = 7;
    draw(w, count, prefill);
    uint32_t n = begin(w, count, &hints);
    check_hints(hints, n, -1, 0, whole ? LAYERS : lead < LAYERS ? lead : LAYERS);
    for (uint32_t l = 0;; l++) {
        for (uint32_t i = 0; i < n; i++) {
            hash = hash * 31 + hints[i].layer * EXPERTS + hints[i].expert;
            hash = hash * 31 + (uint64_t)(hints[i].probability * 1e6f);
            if (trust && hints[i].distance == 1) trust_add(trust, w, count, &hints[i]);
        }
        if (l == LAYERS) break;
        n = pred_adviser_routed(w->adviser, l, w->ids[l], &hints);
        check_hints(hints, n, l, l + 1, l + 1 + lead < LAYERS ? l + 1 + lead : LAYERS);
    }
    pred_adviser_end(w->adviser, PRED_LEARN);
    return hash;
}

static struct pred_adviser_options plain(void)
{
    return (struct pred_adviser_options){ .lead = 1, .hints_max = 8, .probability_min = 0.02,
                                          .rows_max = 16 };
}

START_TEST(hints_come_true_as_said)
{
    static const char *const names[] = { "token_table", "context", "transition", "blend",
                                         "previous_token", "frequency" };
    for (size_t c = 0; c < sizeof names / sizeof names[0]; c++) {
        for (uint32_t count = 1; count <= 5; count += 4) {
            struct world w;
            struct trust trust = { 0 };
            world_begin(&w, names[c], plain(), 1);
            for (int i = 0; i < 700; i++) one_step(&w, count, 0, 1, false, NULL);
            for (int i = 0; i < 1500; i++) one_step(&w, count, 0, 1, false, &trust);
            trust_check(&trust, names[c], count);
            world_end(&w);
        }
    }
}
END_TEST

START_TEST(tables_find_what_is_asked)
{
    struct world w;
    struct pred_adviser_options options = plain();
    options.whole_pass = true;
    world_begin(&w, "token_table", options, 2);
    w.noise = 0;
    for (int i = 0; i < 400; i++) one_step(&w, 2, 0, 1, true, NULL);
    const struct pred_adviser_stats *stats = pred_adviser_stats(w.adviser);
    uint64_t right = stats->right, asked = stats->asked;
    for (int i = 0; i < 200; i++) one_step(&w, 2, 0, 1, true, NULL);
    double found = (double)(stats->right - right) / (double)(stats->asked - asked);
    ck_assert_msg(found > 0.99, "%.3f", found);
    ck_assert_uint_eq(stats->steps, 600);
    ck_assert_uint_eq(stats->learned_rows, 1200);
    world_end(&w);
}
END_TEST

START_TEST(any_batch_any_bound)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        struct pred_adviser_options options = {
            .lead = 1 + (uint32_t)base_rng_below(&rng, 8),
            .hints_max = 1 + (uint32_t)base_rng_below(&rng, 40),
            .probability_min = base_rng_unit(&rng) * 0.2,
            .rows_max = 1 + (uint32_t)base_rng_below(&rng, 20),
            .whole_pass = base_rng_unit(&rng) < 0.5,
        };
        struct world a, b;
        world_begin(&a, seed % 2 ? "blend" : "context", options, seed);
        world_begin(&b, seed % 2 ? "blend" : "context", options, seed);
        for (int i = 0; i < 40; i++) {
            uint32_t count = (uint32_t)base_rng_below(&rng, ROWS + 1);
            uint32_t prefill = (uint32_t)base_rng_below(&rng, count + 1);
            uint64_t one = one_step(&a, count, prefill, options.lead, options.whole_pass, NULL);
            uint64_t two = one_step(&b, count, prefill, options.lead, options.whole_pass, NULL);
            ck_assert_msg(one == two, "seed %llu step %d", (unsigned long long)seed, i);
        }
        const struct pred_adviser_stats *stats = pred_adviser_stats(a.adviser);
        ck_assert_uint_le(stats->learned_rows, 40ull * options.rows_max);
        ck_assert_uint_gt(stats->learned_rows, 0);
        world_end(&a);
        world_end(&b);
    }
}
END_TEST

/* What a gate says ahead of time: four of five of the experts that it will choose. */
static void draw_margins(struct world *w, uint32_t layer, uint32_t count, float *margins)
{
    for (uint32_t i = 0; i < count * EXPERTS; i++) margins[i] = -2;
    for (uint32_t i = 0; i < count * TOP_K; i++) {
        uint32_t e = w->ids[layer][i];
        if (base_rng_unit(&w->rng) < 0.2) e = (uint32_t)base_rng_below(&w->rng, EXPERTS);
        margins[i / TOP_K * EXPERTS + e] = 1;
    }
}

/* Gates that are asked right before their layers: hints of the one layer, the last word about it,
 * for the first one too, as likely as they say. */
START_TEST(own_gates_have_the_last_word)
{
    static const char *const names[] = { "lookahead", "blend" };
    for (int c = 0; c < 2; c++) {
        struct world w;
        struct pred_adviser_options options = plain();
        const struct tier_hint *hints;
        static float margins[3 * EXPERTS];
        struct trust trust = { 0 };
        options.own = true;
        options.ahead = c;
        world_begin(&w, names[c], options, 4 + (uint64_t)c);
        w.noise = 1;            /* nothing else tells */
        for (int step = 0; step < 2000; step++) {
            uint32_t count = 1 + (uint32_t)step % 3, n;
            draw(&w, count, 0);
            begin(&w, count, &hints);
            ck_assert(pred_adviser_wants(w.adviser));
            for (uint32_t l = 0; l < LAYERS; l++) {
                draw_margins(&w, l, count, margins);
                n = pred_adviser_own(w.adviser, l, margins, &hints);
                check_hints(hints, n, (int64_t)l - 1, l, l + 1);
                for (uint32_t i = 0; step >= 1000 && i < n; i++) {
                    trust_add(&trust, &w, count, &hints[i]);
                }
                for (uint32_t i = 0; i < count * EXPERTS; i++) margins[i] = 0;
                if (c && l + 1 < LAYERS) {
                    pred_adviser_gate(w.adviser, (int32_t)l, l + 1, margins);
                }
                pred_adviser_routed(w.adviser, l, w.ids[l], &hints);
            }
            pred_adviser_end(w.adviser, PRED_LEARN);
        }
        trust_check_likely(&trust, names[c], 15000);
        trust_check(&trust, names[c], 3);
        world_end(&w);
    }
}
END_TEST

/* Gates that the dense layer before all others asks: hints of as many layers as they look ahead,
 * which the first hints of the step could not know, as likely as they say. */
START_TEST(gates_of_the_dense_layer_before)
{
    static const char *const names[] = { "lookahead", "blend" };
    for (int c = 0; c < 4; c++) {
        struct world w;
        struct pred_adviser_options options = plain();
        const struct tier_hint *hints;
        static float margins[3 * EXPERTS];
        struct trust trust = { 0 };
        options.ahead = 1 + (uint32_t)c / 2;
        options.lead = 2;
        world_begin(&w, names[c % 2], options, 14 + (uint64_t)c);
        w.noise = 1;            /* nothing else tells */
        for (int step = 0; step < 3000; step++) {
            uint32_t count = 1 + (uint32_t)step % 3, n;
            draw(&w, count, 0);
            begin(&w, count, &hints);
            for (uint32_t l = 0; l < options.ahead; l++) {
                draw_margins(&w, l, count, margins);
                pred_adviser_gate(w.adviser, -1, l, margins);
            }
            n = pred_adviser_before(w.adviser, &hints);
            check_hints(hints, n, -1, 0, options.ahead);
            for (uint32_t i = 0; step >= 1500 && i < n; i++) {
                trust_add(&trust, &w, count, &hints[i]);
            }
            for (uint32_t l = 0; l < LAYERS; l++) {
                pred_adviser_routed(w.adviser, l, w.ids[l], &hints);
            }
            pred_adviser_end(w.adviser, PRED_LEARN);
        }
        trust_check_likely(&trust, names[c % 2], 4000 * options.ahead);
        trust_check(&trust, names[c % 2], 3);
        world_end(&w);
    }
}
END_TEST

/* A prompt that does not fit the rows is learned from but not predicted; one that fits is. */
START_TEST(long_prompts_are_not_guessed)
{
    struct world w;
    const struct tier_hint *hints;
    world_begin(&w, "token_table", plain(), 3);
    w.noise = 0;
    for (int i = 0; i < 400; i++) one_step(&w, 1, 0, 1, false, NULL);
    draw(&w, 17, 17);
    ck_assert_uint_eq(begin(&w, 17, &hints), 0);
    pred_adviser_end(w.adviser, PRED_LEARN);
    draw(&w, 16, 16);
    ck_assert_uint_gt(begin(&w, 16, &hints), 0);
    pred_adviser_end(w.adviser, PRED_LEARN);
    world_end(&w);
}
END_TEST

START_TEST(refusals)
{
    struct pred_shape shape = { .layers = 2, .experts = 4, .top_k = 1 };
    struct pred_predictor *p;
    struct pred_adviser *a;
    ck_assert_int_eq(pred_predictor_create(&p, "none", &shape), 0);
    for (int i = 0; i < 4; i++) {
        struct pred_adviser_options o = plain();
        if (i == 0) o.lead = 0;
        if (i == 1) o.hints_max = 0;
        if (i == 2) o.rows_max = 0;
        if (i == 3) o.probability_min = 1.5;
        ck_assert_int_eq(pred_adviser_create(&a, p, &o), -EINVAL);
        ck_assert_ptr_null(a);
    }
    pred_adviser_destroy(NULL);
    pred_predictor_destroy(p);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("adviser");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, hints_come_true_as_said);
    tcase_add_test(t, tables_find_what_is_asked);
    tcase_add_test(t, any_batch_any_bound);
    tcase_add_test(t, own_gates_have_the_last_word);
    tcase_add_test(t, gates_of_the_dense_layer_before);
    tcase_add_test(t, long_prompts_are_not_guessed);
    tcase_add_test(t, refusals);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
