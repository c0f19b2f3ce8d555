/* Prediction while serving: no predictor and no prefetch shows in the bits, what was recorded
 * replays to the live counts, the predictor survives a restart and no other model gets it, and its
 * hints are worth something. */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "predictor/adviser.h"
#include "tests/support/campaign.h"
#include "tests/support/sanitized.h"

enum { TOKENS = SANITIZED ? 30 : 80 };

static struct run run;

static void submit_all(unsigned copies)
{
    static const char *const texts[] = { "In the beginning God created",
                                         "The kernel is the part of the system that",
                                         "#include <stdio.h>\n\nint main(void)\n{" };
    for (unsigned i = 0; i < copies * 3; i++) {
        uint32_t count, *ids = run_encode(&run, texts[i % 3], &count);
        struct eng_request request = {
            .prompt = ids, .prompt_tokens = count, .max_tokens = TOKENS,
            .sampling = { .temperature = 0.8f, .top_p = 0.95f, .seed = 5 + i },
            .ignore_eos = true, .prompt_logits = true,
        };
        run_submit(&run, &request);
        free(ids);
    }
}

static uint64_t hash_of(void)
{
    uint64_t hash = 0;
    for (unsigned i = 0; i < run.answer_count; i++) hash = hash * 31 + run.answers[i].rows_hash;
    return hash;
}

static uint64_t plain_hash(void)
{
    static const char *const settings[] = { "tiers.dram.capacity=100%", "predictor.kind=none",
                                            NULL };
    static uint64_t hash;
    if (hash != 0) return hash;
    run_open(&run, run_pebble(), settings);
    submit_all(1);
    run_finish(&run);
    hash = hash_of();
    run_close(&run);
    return hash;
}

/* Each kind, governed and not, one lead and another, with and without prefetch. */
START_TEST(no_predictor_shows)
{
    static const char *const kinds[] = { "frequency", "previous_token", "token_table",
                                         "transition", "context", "blend", "lookahead" };
    static struct campaign campaign;
    static struct campaign_settings s;
    uint64_t plain = plain_hash();
    campaign_begin(&campaign);
    campaign_watch(120, "a predictor", (uint64_t)_i);
    campaign_clear(&s);
    campaign_set(&s, "predictor.kind=%s", kinds[_i % 7]);
    if (_i % 7 >= 5) {
        campaign_set(&s, "predictor.lookahead=1");
        campaign_set(&s, "predictor.lookahead_shared=%s", _i < 7 ? "true" : "false");
        campaign_set(&s, "predictor.lookahead_own=%s", _i == 5 || _i == 13 ? "true" : "false");
    }
    campaign_set(&s, "predictor.tokens_max=2048");
    campaign_set(&s, "predictor.lead=%d", 1 + _i % 3);
    campaign_set(&s, "predictor.whole_pass=%s", _i % 2 ? "true" : "false");
    campaign_set(&s, "prefetch.enabled=%s", _i == 6 ? "false" : "auto");
    campaign_set(&s, "prefetch.governor=%s", _i % 2 ? "auto" : "fixed");
    campaign_set(&s, "prefetch.bandwidth_share=100%%");
    campaign_set(&s, "policy.eviction=%s", _i < 6 ? "lru_with_prediction" : "lru");
    campaign_set(&s, "tiers.dram.capacity=25%%");
    ck_assert(campaign_open_run(&campaign, &run, &s));
    submit_all(1);
    run_finish(&run);
    ck_assert_msg(hash_of() == plain, "%s: other bits",
                  campaign_show(&s));
    run_close(&run);
    ck_assert_uint_gt(campaign_replay(&campaign, campaign_show(&s)), 1000);
    campaign_end(&campaign);
    campaign_watch(0, "", 0);
}
END_TEST

static void step_until_prefetched(unsigned copies, struct tier_snapshot *snapshot,
                                  struct eng_advice_metrics *metrics)
{
    submit_all(copies);
    run_finish(&run);
    tier_snapshot(run.stack.tier, snapshot);
    eng_advice_snapshot(run.stack.advice, metrics);
}

/* Learned in one run, of use from the first token of the next. */
START_TEST(what_was_learned_survives)
{
    static struct tier_snapshot cold, warm;
    struct eng_advice_metrics first, second;
    char path[] = "/tmp/expertier-advice-XXXXXX", setting[64];
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
    unlink(path);
    snprintf(setting, sizeof setting, "predictor.path=%s", path);
    const char *settings[] = { "predictor.kind=blend", "predictor.tokens_max=2048", setting,
                               "predictor.save_every=1s", "prefetch.governor=fixed",
                               "prefetch.bandwidth_share=100%", "tiers.dram.capacity=30%", NULL };
    run_open(&run, run_pebble(), settings);
    ck_assert_ptr_nonnull(strstr(eng_advice_note(run.stack.advice), "nothing learned yet"));
    step_until_prefetched(1, &cold, &first);
    run_close(&run);
    ck_assert_int_eq(access(path, R_OK), 0);

    run_open(&run, run_pebble(), settings);
    ck_assert_ptr_nonnull(strstr(eng_advice_note(run.stack.advice), "read from"));
    step_until_prefetched(1, &warm, &second);
    run_close(&run);
    double before = (double)first.right / (double)first.asked;
    double after = (double)second.right / (double)second.asked;
    printf("predicted: %.1f%% of what was asked for while learning, %.1f%% after a restart; "
           "%llu and %llu prefetches came to use\n", 100 * before, 100 * after,
           (unsigned long long)cold.io.prefetch_useful,
           (unsigned long long)warm.io.prefetch_useful);
    ck_assert_msg(after > before + 0.05, "%.3f %.3f", before, after);
    ck_assert_uint_gt(warm.io.prefetch_useful, 0);

    /* Frozen, it is not written again; with other tables it is refused. */
    struct base_err err = { 0 };
    const char *other[] = { "predictor.kind=blend", "predictor.tokens_max=4096", setting, NULL };
    ck_assert_int_eq(run_try_open(&run, run_pebble(), other, &err), BASE_EMISMATCH);
    ck_assert_ptr_nonnull(strstr(err.text, "predictor.path"));
    run_close(&run);
    unlink(path);
    const char *missing[] = { "predictor.kind=blend", "predictor.tokens_max=2048", setting,
                              "predictor.learn=false", NULL };
    err = (struct base_err){ 0 };
    ck_assert_int_lt(run_try_open(&run, run_pebble(), missing, &err), 0);
    ck_assert_ptr_nonnull(strstr(err.text, "nothing would ever be learned"));
    run_close(&run);
    /* What cannot be saved is told at once. */
    const char *nowhere[] = { "predictor.path=/nowhere/at/all", NULL };
    err = (struct base_err){ 0 };
    ck_assert_int_eq(run_try_open(&run, run_pebble(), nowhere, &err), -ENOENT);
    ck_assert_msg(strstr(err.text, "predictor.path: /nowhere/at/all: nothing can be saved in "
                                   "/nowhere/at/"), "%s", err.text);
    run_close(&run);
}
END_TEST

struct seen {
    uint64_t layers, wrong, near, first;
};

/* As many experts as a gate chooses are not below the last that it would choose. */
static void count_margins(void *context, const struct pred_context *row, uint32_t layer,
                          const float *scores)
{
    struct seen *seen = context;
    struct pred_shape shape = { .layers = tier_store_layers(run.stack.store),
                                .experts = run.stack.shape.experts };
    const float *margins = pred_context_margins(row, &shape, layer);
    uint32_t chosen = 0;
    (void)scores;
    if (!margins) return;
    for (uint32_t e = 0; e < shape.experts; e++) chosen += margins[e] >= 0;
    seen->layers++;
    seen->near += layer == row->known;
    seen->first += layer == 0;
    seen->wrong += chosen != run.stack.shape.top_k;
}

/* The model's own gates, a layer or two early, know more than habit does; right before the layer
 * they know more than early. */
START_TEST(gates_look_ahead)
{
    static const char *const settings[][6] = {
        { "predictor.kind=frequency", "predictor.hints_max=6", "tiers.dram.capacity=50%", NULL },
        { "predictor.kind=lookahead", "predictor.hints_max=6", "tiers.dram.capacity=50%",
          "predictor.lookahead=2", NULL },
        { "predictor.kind=blend", "predictor.hints_max=6", "tiers.dram.capacity=50%",
          "predictor.lookahead=2", "predictor.lookahead_shared=true", NULL },
        { "predictor.kind=blend", "predictor.hints_max=6", "tiers.dram.capacity=50%",
          "predictor.lookahead=0", "predictor.lookahead_own=true", NULL },
        { "predictor.kind=blend", "predictor.hints_max=6", "tiers.dram.capacity=50%", NULL },
    };
    static const char *const notes[] = { NULL, "gates asked 2 ahead", "gates asked 2 ahead",
                                         "gates asked right before their layer",
                                         "gates asked 1 ahead" };
    double right[5];
    for (int i = 0; i < 5; i++) {
        struct eng_advice_metrics m;
        struct seen seen = { 0 };
        run_open(&run, run_pebble(), settings[i]);
        pred_adviser_watch(eng_advice_adviser(run.stack.advice), count_margins, &seen);
        submit_all(1);
        run_finish(&run);
        eng_advice_snapshot(run.stack.advice, &m);
        right[i] = (double)m.right / (double)m.asked;
        ck_assert_uint_eq(seen.wrong, 0);
        ck_assert(i == 0 ? seen.layers == 0 : seen.near > 100 && seen.layers >= seen.near);
        ck_assert((seen.layers > seen.near) == (i == 1 || i == 2));
        const char *note = strstr(eng_advice_note(run.stack.advice), "gates asked ");
        ck_assert(notes[i] ? note && strcmp(note, notes[i]) == 0 : !note);
        ck_assert((seen.first > 0) == (i > 0));         /* pebble's layer 0 is a dense one */
        ck_assert(i == 0 ? m.lookahead_seconds == 0 : m.lookahead_seconds > 0);
        run_close(&run);
    }
    printf("top-k hints right: frequency %.1f%%, lookahead %.1f%%, blend with it %.1f%%, with own "
           "gates %.1f%%, by default %.1f%%\n", 100 * right[0], 100 * right[1], 100 * right[2],
           100 * right[3], 100 * right[4]);
    ck_assert(right[1] > 1.3 * right[0] && right[2] > 1.3 * right[0]);
    ck_assert(right[3] > right[1] && right[3] > right[2] && right[4] > 1.3 * right[0]);
}
END_TEST

/* Nothing is as good as sure in a step with a prompt, so the cache knows of it before any hint; the
 * clock of replay tells it at the same place. */
static struct told {
    bool this_step, asked;
    unsigned prompts, answers, late, early;
    unsigned calls, hints, strange, unordered;
} told;
static const struct eng_placement *placed;      /* hints for others than its rank 1 are strange */

void __real_tier_step_prompt(struct tier *t);
uint32_t __real_tier_hint(struct tier *t, const struct tier_hint *hints, uint32_t n);
void __wrap_tier_step_prompt(struct tier *t);
uint32_t __wrap_tier_hint(struct tier *t, const struct tier_hint *hints, uint32_t n);

void __wrap_tier_step_prompt(struct tier *t)
{
    if (!told.this_step) told.late += told.asked;
    told.this_step = true;
    __real_tier_step_prompt(t);
}

uint32_t __wrap_tier_hint(struct tier *t, const struct tier_hint *hints, uint32_t n)
{
    told.asked |= n > 0;
    told.calls++;
    told.hints += n;
    for (uint32_t i = 0; placed && i < n; i++) {
        told.strange += !eng_placement_held(placed, hints[i].layer, hints[i].expert, 1);
        told.unordered += i > 0 && hints[i].probability > hints[i - 1].probability;
    }
    return __real_tier_hint(t, hints, n);
}

static void step_told(struct run *r, const struct eng_step_record *record)
{
    (void)r;
    bool prompt = memchr(record->phases, TIER_PREFILL, record->token_count) != NULL;
    told.early += told.this_step && !prompt;
    told.late += !told.this_step && prompt;
    told.prompts += prompt && told.asked;
    told.answers += !prompt && told.asked;
    told.this_step = told.asked = false;
}

START_TEST(a_prompt_is_told_before_its_hints)
{
    static const char *const settings[] = { "predictor.kind=blend", "predictor.tokens_max=2048",
        "prefetch.governor=fixed", "prefetch.bandwidth_share=100%", "tiers.dram.capacity=30%",
        "scheduler.max_chunked_prefill_tokens=8", NULL };
    memset(&told, 0, sizeof told);
    run_open(&run, run_pebble(), settings);
    run.step_end = step_told;
    submit_all(2);
    run_finish(&run);
    run.step_end = NULL;
    run_close(&run);
    ck_assert_msg(told.prompts > 2 && told.answers > 10, "%u steps with a prompt had hints, %u "
                  "without one", told.prompts, told.answers);
    ck_assert_uint_eq(told.late, 0);
    ck_assert_uint_eq(told.early, 0);
}
END_TEST

/* A predictor beside the stack's tiers, whose steps are of one token each. */
static struct eng_advice *advice_open(const struct eng_advice_config *config,
                                      const struct eng_ranks *ranks)
{
    struct eng_advice *advice;
    struct base_err err = { 0 };
    int rc = eng_advice_open(&advice, config, false, &run.stack.shape, run.stack.store,
                             run.stack.tier, ranks, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    return advice;
}

/* One token that takes the first experts of each layer. */
static void advice_step(struct eng_advice *advice)
{
    uint32_t token = 7, top_k = run.stack.shape.top_k, ids[64];
    uint64_t seq = 1;
    uint8_t phase = TIER_DECODE;
    struct eng_batch batch = { .count = 1, .decode_count = 1, .tokens = &token, .seqs = &seq,
                               .phases = &phase };
    ck_assert_uint_le(top_k, 64);
    for (uint32_t k = 0; k < top_k; k++) ids[k] = k;
    eng_advice_begin(advice, &batch);
    for (uint32_t l = 0; l < tier_store_layers(run.stack.store); l++) {
        eng_advice_routed(advice, l, ids);
    }
    eng_advice_end(advice);
}

static const char *const habit[] = { "predictor.kind=frequency", "tiers.dram.capacity=50%", NULL };

/* The tiers of a rank hear of all its hints at once: what is there goes before what is to come. */
START_TEST(a_rank_gives_its_hints_together)
{
    struct eng_placement placement;
    struct eng_ranks ranks = { .rank = 1, .count = 2, .expert = 2, .placement = &placement };
    run_open(&run, run_pebble(), habit);
    uint32_t layers = tier_store_layers(run.stack.store);
    ck_assert_int_eq(eng_placement_round_robin(&placement, layers, run.stack.shape.experts, 2), 0);
    struct eng_advice *advice = advice_open(&run.stack.config.advice, &ranks);
    for (int i = 0; i < 20; i++) advice_step(advice);
    memset(&told, 0, sizeof told);
    placed = &placement;
    advice_step(advice);
    placed = NULL;
    /* Once as it begins and behind each layer's gate. */
    ck_assert_uint_eq(told.calls, layers + 1);
    ck_assert_uint_gt(told.hints, told.calls);
    ck_assert_uint_eq(told.strange, 0);
    ck_assert_uint_eq(told.unordered, 0);
    eng_advice_close(advice);
    eng_placement_fini(&placement);
    run_close(&run);
}
END_TEST

static atomic_int refuse, refused;

int __real_pred_predictor_save(struct pred_predictor *p, const char *path, struct base_err *err);
int __wrap_pred_predictor_save(struct pred_predictor *p, const char *path, struct base_err *err);
int __wrap_pred_predictor_save(struct pred_predictor *p, const char *path, struct base_err *err)
{
    if (!atomic_load(&refuse)) return __real_pred_predictor_save(p, path, err);
    atomic_fetch_add(&refused, 1);
    return base_err_set(err, -ENOSPC, "%s: refused by a test", path);
}

/* What was learned is saved at the end, too, when the thread that saves had no time to, or was
 * refused, and nothing was learned since. */
START_TEST(a_save_that_did_not_come_off_is_made_up_for)
{
    char path[] = "/tmp/expertier-advice-XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
    unlink(path);
    run_open(&run, run_pebble(), habit);
    struct eng_advice_config config = run.stack.config.advice;
    snprintf(config.path, sizeof config.path, "%s", path);
    config.save_every = 0;
    for (int turn = 0; turn < 20; turn++) {
        struct eng_advice *advice = advice_open(&config, NULL);
        atomic_store(&refuse, turn % 2);
        atomic_store(&refused, 0);
        advice_step(advice);
        for (int ms = 0; ms < 5000 && atomic_load(&refused) < turn % 2; ms++) usleep(1000);
        ck_assert_int_eq(atomic_load(&refused), turn % 2);
        atomic_store(&refuse, 0);
        eng_advice_close(advice);
        ck_assert_msg(unlink(path) == 0, "nothing was saved in turn %d", turn);
    }
    run_close(&run);
}
END_TEST

START_TEST(settings_without_effect_are_refused)
{
    static const char *const cases[][3] = {
        { "predictor.kind=none", "predictor.lead=3" },
        { "predictor.kind=none", "prefetch.enabled=true" },
        { "predictor.kind=none", "prefetch.waste_max=50%" },
        { "predictor.kind=blend", "predictor.learn=false" },
        { "predictor.kind=lookahead", "predictor.lookahead=0" },
        { "predictor.kind=transition", "predictor.lookahead=1" },
        { "predictor.kind=transition", "predictor.lookahead_own=true" },
        { "predictor.kind=blend", "predictor.lookahead=3" },
        { "predictor.kind=transition", "predictor.lookahead_shared=true" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct base_err err = { 0 };
        ck_assert_int_eq(run_try_open(&run, run_pebble(), cases[i], &err), BASE_ECONFIG);
        ck_assert_msg(strstr(err.text, "effect") != NULL, "%s: %s", cases[i][0], err.text);
        run_close(&run);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("advice");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 200);
    tcase_add_loop_test(t, no_predictor_shows, 0, 14);
    tcase_add_test(t, what_was_learned_survives);
    tcase_add_test(t, gates_look_ahead);
    tcase_add_test(t, a_prompt_is_told_before_its_hints);
    tcase_add_test(t, a_rank_gives_its_hints_together);
    tcase_add_test(t, a_save_that_did_not_come_off_is_made_up_for);
    tcase_add_test(t, settings_without_effect_are_refused);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
