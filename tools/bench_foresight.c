/* tier-bench foresight: how good the predictor is while the engine runs, by the measure of
 * `tier-replay predict`.
 *
 * The lookahead predictor needs hidden states, which no trace holds: so it is scored live. For each
 * generated token and layer the n likeliest experts that a per-layer decayed-frequency cache
 * (half-life 16) does not hold are prefetched on paper; what was routed then says which came true.
 * Prompts are the lines of a file. Tables learned on some of them are kept in predictor.path and
 * scored on the others with predictor.learn=false.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/must.h"
#include "model/tokenizer.h"
#include "predictor/adviser.h"
#include "predictor/score.h"
#include "tiering/decide.h"
#include "tools/bench.h"
#include "tools/bench_stack.h"

enum { PROMPTS_BYTES_MAX = 1 << 20, PROMPT_TOKENS_MAX = 512, LAYERS_MAX = 256, EXPERTS_MAX = 1024 };

static struct bench_flags flags = { .model = "models/pebble", .rounds = 1, .seed = 1 };
static const char *prompts = NULL, *only = "all";
static uint64_t tokens = 48, lead = 0;

struct watch {
    uint32_t layers, experts, top_k;
    struct tier_decide *cache;
    struct tier_found found[EXPERTS_MAX];
    float scores[LAYERS_MAX][EXPERTS_MAX];
    bool told[LAYERS_MAX];              /* in the running step */
    uint64_t chosen, in_k, misses, prefetched[PRED_SCORE_DEPTHS], useful[PRED_SCORE_DEPTHS];
};
static struct watch watch;

static void on_prediction(void *context, const struct pred_context *row, uint32_t layer,
                          const float *scores)
{
    struct watch *w = context;
    if (layer - row->known != lead) return;
    memcpy(w->scores[layer], scores, w->experts * sizeof scores[0]);
    w->told[layer] = true;
}

/* The `n` best, among the absent only or among all, in falling order. */
static uint32_t rank(const struct watch *w, uint32_t layer, uint32_t n, bool absent, uint32_t *best)
{
    uint32_t count = 0;
    for (uint32_t e = 0; e < w->experts; e++) {
        if (absent && tier_decide_resident(w->cache, 0, layer, e)) continue;
        const float *s = w->scores[layer];
        if (count == n && !(s[e] > s[best[n - 1]])) continue;
        uint32_t at = count < n ? count++ : n - 1;
        for (; at > 0 && s[e] > s[best[at - 1]]; at--) best[at] = best[at - 1];
        best[at] = e;
    }
    return count;
}

static bool among(uint32_t id, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] == id) return true;
    }
    return false;
}

static void score(struct watch *w, const struct tier_event *event)
{
    uint32_t best[PRED_TOP_K_MAX], n = rank(w, event->layer, w->top_k, false, best);
    for (uint32_t i = 0; i < n; i++) w->in_k += among(best[i], event->ids, event->granted);
    w->chosen += event->granted;
    for (uint32_t i = 0; i < event->granted; i++) {
        w->misses += !tier_decide_resident(w->cache, 0, event->layer, event->ids[i]);
    }
    n = rank(w, event->layer, pred_score_depths[PRED_SCORE_DEPTHS - 1], true, best);
    for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
        for (uint32_t i = 0; i < n && i < pred_score_depths[d]; i++) {
            w->prefetched[d]++;
            w->useful[d] += among(best[i], event->ids, event->granted);
        }
    }
}

static void on_event(void *context, const struct tier_event *event)
{
    struct watch *w = context;
    if (event->kind != TIER_EVENT_ACQUIRE || !w->cache) return;
    if (event->phase == TIER_DECODE && w->told[event->layer]) score(w, event);
    w->told[event->layer] = false;
    for (uint32_t done = 0; done < event->granted;) {
        uint32_t k = tier_decide_acquire(w->cache, event->layer, event->ids + done,
                                         event->granted - done, event->phase, w->found);
        MUST(k > 0);
        tier_decide_release(w->cache, event->layer, event->ids + done, k);
        done += k;
    }
}

static void on_piece(void *context, const struct eng_piece *piece)
{
    bool *failed = context;
    *failed |= piece->finish == ENG_FAILED;
}

static int answer(struct bench_stack *b, const char *text, size_t size, uint64_t seed,
                  struct base_err *err)
{
    uint32_t *prompt;
    size_t count;
    bool failed = false;
    int rc = model_tokenizer_encode(b->stack.tokenizer, text, size, false, &prompt, &count);
    if (rc < 0) return base_err_set(err, rc, "%s: a line is no prompt", prompts);
    if (count > PROMPT_TOKENS_MAX) count = PROMPT_TOKENS_MAX;
    struct eng_request request = {
        .prompt = prompt, .prompt_tokens = (uint32_t)count, .max_tokens = (uint32_t)tokens,
        .ignore_eos = true, .sampling = { .temperature = 0.8f, .top_p = 1.0f, .seed = seed },
        .on_piece = on_piece, .context = &failed,
    };
    int64_t id = eng_submit(b->stack.engine, &request, err);
    free(prompt);
    int alive = id < 0 ? (int)id : 1;
    while (alive > 0) alive = eng_step(b->stack.engine);
    if (alive == 0 && failed) alive = base_err_set(err, -EIO, "the engine failed a request");
    return alive;
}

static int answer_all(struct bench_stack *b, struct base_err *err)
{
    char *text;
    size_t size;
    int rc = base_file_read(&text, &size, prompts, PROMPTS_BYTES_MAX, err);
    uint64_t line = 0;
    for (size_t at = 0; rc >= 0 && at < size; line++) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t n = end ? (size_t)(end - text) - at : size - at;
        bool wanted = strcmp(only, "all") == 0 || (line % 2 == 0) == (strcmp(only, "even") == 0);
        if (n > 0 && wanted) rc = answer(b, text + at, n, flags.seed + line, err);
        at += n + 1;
    }
    if (rc >= 0) free(text);
    return rc;
}

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? 100 * (double)part / (double)whole : 0;
}

static void print(struct bench_stack *b)
{
    const struct watch *w = &watch;
    struct eng_advice_metrics m;
    eng_advice_snapshot(b->stack.advice, &m);
    double steps = b->steps > 0 ? (double)b->steps : 1, us = 1e6 / steps;
    uint64_t wasted = w->prefetched[2] - w->useful[2];
    char wasted_text[32] = "all";
    if (w->useful[2] > 0 || wasted == 0) {
        snprintf(wasted_text, sizeof wasted_text, "%.1f for each useful",
                 share(wasted, w->useful[2]) / 100);
    }
    printf("%llu lookups of generated tokens, %llu misses at 25%%; layers not known: %llu\n",
           (unsigned long long)w->chosen, (unsigned long long)w->misses,
           (unsigned long long)lead);
    printf("recall %.1f%%, covers 1 / 2 / 4: %.1f / %.1f / %.1f%%, precision 4: %.1f%%, "
           "wasted %s\n", share(w->in_k, w->chosen), share(w->useful[0], w->misses),
           share(w->useful[1], w->misses), share(w->useful[2], w->misses),
           share(w->useful[2], w->prefetched[2]), wasted_text);
    printf("a step: %.0f us; predicting %.0f us, of it gates ahead %.0f us; learning %.0f us\n",
           (double)b->step_ns / 1e3 / steps, m.predict_seconds * us, m.lookahead_seconds * us,
           m.learn_seconds * us);
}

static int run(int count, char **arguments)
{
    static struct bench_stack bench;
    struct base_err err = { 0 };
    (void)count;
    (void)arguments;
    if (!prompts) return cli_misuse("--prompts: a file with a prompt on each line");
    if (strcmp(only, "all") != 0 && strcmp(only, "even") != 0 && strcmp(only, "odd") != 0) {
        return cli_misuse("--only: all, even or odd");
    }
    flags.observer = (struct tier_observer){ on_event, &watch };
    int rc = bench_open(&bench, &flags, &err);
    const struct model_shape *s = &bench.stack.shape;
    if (rc == 0 && (!bench.stack.advice || s->experts > EXPERTS_MAX ||
                    tier_store_layers(bench.stack.store) > LAYERS_MAX)) {
        rc = base_err_set(&err, BASE_ECONFIG, "no predictor of this model: set predictor.kind");
    }
    if (rc == 0) {
        watch.layers = tier_store_layers(bench.stack.store);
        watch.experts = s->experts;
        watch.top_k = s->top_k;
        struct tier_decide_config config = {
            .layers = watch.layers, .experts = s->experts, .top_k = s->top_k, .tier_count = 1,
            .tiers = { { .slots = (uint64_t)s->experts / 4 * watch.layers, .policy = "lfu" } },
            .half_life_tokens = 16, .prefill_share = 1,
        };
        rc = tier_decide_create(&watch.cache, &config, &err);
        pred_adviser_watch(eng_advice_adviser(bench.stack.advice), on_prediction, &watch);
    }
    if (rc == 0) {
        bench_reset(&bench);
        rc = answer_all(&bench, &err);
    }
    if (rc >= 0) print(&bench);
    bench_close(&bench);
    tier_decide_destroy(watch.cache);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag foresight_flags[] = {
    { "model", CLI_TEXT, &flags.model, "DIR", "the model (models/pebble)" },
    { "prompts", CLI_TEXT, &prompts, "FILE", "a prompt on each line" },
    { "only", CLI_TEXT, &only, "WHICH", "even or odd lines of it, counted from 0 (all)" },
    { "tokens", CLI_UINT, &tokens, "N", "tokens generated for each (48)" },
    { "lead", CLI_UINT, &lead, "N", "score predictions with so many layers not known yet (0)" },
    { "seed", CLI_UINT, &flags.seed, "N", "seed of sampling (1)" },
    { "config", CLI_TEXT, &flags.config, "FILE", "YAML settings; see tier-server --options" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE",
      "one setting, over the file's; may be repeated" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "show no progress" },
    { 0 },
};

const struct cli_command bench_foresight_command = {
    .name = "foresight",
    .arguments = "",
    .text = "how many misses the predictor covers while the engine runs, and what it costs",
    .details = "The measure of tier-replay predict, taken live: the only way to score lookahead, "
               "which needs the\n"
               "hidden states. Learn with --only even --set predictor.path=FILE, then score with "
               "--only odd and\n"
               "--set predictor.learn=false.",
    .flags = foresight_flags,
    .run = run,
};
