#include "predictor/score.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "predictor/feed.h"
#include "predictor/history.h"
#include "predictor/waves.h"

const uint32_t pred_score_depths[PRED_SCORE_DEPTHS] = { 1, 2, 4 };

enum { PROGRESS_EVERY = 256 };          /* steps */

struct run {
    const struct pred_score_args *args;
    struct pred_shape shape;
    struct pred_predictor **predictors;
    struct pred_score *scores;
    struct pred_score_total *total;
    struct pred_history history;
    struct pred_union joined;
    struct tier_decide *cache;
    struct tier_found *found;
    /* of the running step */
    uint32_t token_room;
    struct pred_context *contexts;
    uint32_t *ids;
    bool *resident, *missed, *chosen;   /* [experts] of the running layer */
    float *sums, *one;                  /* [experts] */
    uint32_t *ranked;                   /* [experts] */
};

static int step_reserve(struct run *run, uint32_t tokens)
{
    if (tokens <= run->token_room) return 0;
    size_t row = (size_t)run->shape.layers * run->shape.top_k;
    struct pred_context *contexts = realloc(run->contexts, tokens * sizeof contexts[0]);
    if (contexts) run->contexts = contexts;
    uint32_t *ids = realloc(run->ids, tokens * row * sizeof ids[0]);
    if (ids) run->ids = ids;
    if (!contexts || !ids) return -ENOMEM;
    run->token_room = tokens;
    return 0;
}

/* Ids of token i in a layer, NULL where it was not routed. */
static const uint32_t *ids_of(const struct run *run, uint32_t i, uint32_t layer)
{
    const uint32_t *ids = run->contexts[i].ids + (size_t)layer * run->shape.top_k;
    return ids[0] == PRED_NO_EXPERT ? NULL : ids;
}

static void observe_layer(struct run *run, uint32_t tokens, uint32_t layer, bool learn)
{
    for (uint32_t i = 0; i < tokens; i++) {
        const uint32_t *ids = ids_of(run, i, layer);
        run->contexts[i].known = layer;
        for (uint32_t p = 0; ids && p < run->args->count; p++) {
            pred_predictor_observe(run->predictors[p], &run->contexts[i], layer, ids, learn);
        }
    }
}

/* ---------------------------------------------------------------------------------- scoring -- */

/* The `n` best of all experts, or of the absent ones, into ranked; returns how many there are. */
static uint32_t rank(struct run *run, uint32_t n, bool absent_only)
{
    uint32_t count = 0;
    for (uint32_t e = 0; e < run->shape.experts; e++) {
        if (absent_only && run->resident[e]) continue;
        if (count == n && run->sums[e] <= run->sums[run->ranked[n - 1]]) continue;
        uint32_t at = count < n ? count++ : n - 1;
        while (at > 0 && run->sums[e] > run->sums[run->ranked[at - 1]]) {
            run->ranked[at] = run->ranked[at - 1];
            at--;
        }
        run->ranked[at] = e;
    }
    return count;
}

static void score_layer(struct run *run, uint32_t p, uint32_t tokens, uint32_t layer)
{
    struct pred_score *score = &run->scores[p];
    uint32_t experts = run->shape.experts, top_k = run->shape.top_k;
    for (uint32_t e = 0; e < experts; e++) run->sums[e] = -1e30f;
    uint64_t begin = base_now_ns();
    for (uint32_t i = 0; i < tokens; i++) {
        uint32_t known = layer > run->args->lead ? layer - run->args->lead : 0;
        if (!ids_of(run, i, layer)) continue;
        run->contexts[i].known = known;
        pred_predictor_predict(run->predictors[p], &run->contexts[i], layer, run->one);
        for (uint32_t e = 0; e < experts; e++) {
            if (run->one[e] > run->sums[e]) run->sums[e] = run->one[e];
        }
    }
    score->predict_ns += (double)(base_now_ns() - begin);
    uint32_t n = rank(run, 2 * top_k < experts ? 2 * top_k : experts, false);
    for (uint32_t i = 0; i < n; i++) {
        score->in_2k += run->chosen[run->ranked[i]];
        if (i < top_k) score->in_k += run->chosen[run->ranked[i]];
    }
    n = rank(run, pred_score_depths[PRED_SCORE_DEPTHS - 1], true);
    for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
        for (uint32_t i = 0; i < n && i < pred_score_depths[d]; i++) {
            score->prefetched[d]++;
            score->useful[d] += run->missed[run->ranked[i]];
        }
    }
}

/* Looks the layer up in the cache, having noted what was resident before. */
static void lookup_layer(struct run *run, const struct pred_step *step, uint32_t layer,
                         enum tier_phase phase)
{
    uint32_t n = pred_union_of(&run->joined, step, layer, phase);
    const uint32_t *ids = run->joined.ids;
    pred_waves(run->cache, layer, ids, n, n, phase, run->found);
    for (uint32_t i = 0; i < n; i++) {
        bool miss = run->found[i].from != 0;
        run->missed[ids[i]] |= miss;
        run->total->misses += miss;
    }
    run->total->lookups += n;
}

static void test_layer(struct run *run, const struct pred_step *step, uint32_t layer)
{
    uint32_t experts = run->shape.experts, top_k = run->shape.top_k, chosen = 0;
    memset(run->missed, 0, experts * sizeof run->missed[0]);
    memset(run->chosen, 0, experts * sizeof run->chosen[0]);
    for (uint32_t e = 0; e < experts; e++) {
        run->resident[e] = tier_decide_resident(run->cache, 0, layer, e);
    }
    lookup_layer(run, step, layer, TIER_DECODE);
    lookup_layer(run, step, layer, TIER_PREFILL);
    for (uint32_t i = 0; i < step->token_count; i++) {
        const uint32_t *ids = ids_of(run, i, layer);
        for (uint32_t k = 0; ids && k < top_k; k++) run->chosen[ids[k]] = true;
    }
    for (uint32_t e = 0; e < experts; e++) chosen += run->chosen[e];
    run->total->events++;
    for (uint32_t p = 0; p < run->args->count; p++) {
        run->scores[p].chosen += chosen;
        score_layer(run, p, step->token_count, layer);
    }
    observe_layer(run, step->token_count, layer, false);
}

/* One pass over a trace, learning or scoring. */
static int pass(struct run *run, struct pred_trace_reader *reader, bool learn, struct base_err *err)
{
    struct pred_trace_item item;
    struct pred_trace_health health;
    const struct pred_replay_progress *progress = run->args->progress;
    uint64_t steps = 0;
    int rc;
    while ((rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err)) > 0) {
        const struct pred_step *step = &item.step;
        rc = step_reserve(run, step->token_count);
        if (rc < 0) return rc;
        pred_history_contexts(&run->history, &run->shape, step, run->contexts, run->ids);
        for (uint32_t l = 0; l < run->shape.layers; l++) {
            if (learn) {
                observe_layer(run, step->token_count, l, true);
            } else {
                test_layer(run, step, l);
            }
        }
        pred_history_update(&run->history, step, run->ids);
        *(learn ? &run->total->train_tokens : &run->total->test_tokens) += step->token_count;
        if (progress && ++steps % PROGRESS_EVERY == 0) {
            pred_trace_reader_health(reader, &health);
            progress->report(progress->context, learn ? "learning" : "scoring", health.read_bytes,
                             health.file_bytes);
        }
    }
    return rc;
}

/* ----------------------------------------------------------------------------------- set-up -- */

static int check_same(const struct pred_trace_header *a, const struct pred_trace_header *b,
                      struct base_err *err)
{
    if (a->layers != b->layers || a->experts != b->experts || a->top_k != b->top_k) {
        return base_err_set(err, BASE_EMISMATCH, "the traces are of different models: %" PRIu32
                            " layers of %" PRIu32 " experts, top-%" PRIu32 ", and %" PRIu32 " of %"
                            PRIu32 ", top-%" PRIu32, a->layers, a->experts, a->top_k, b->layers,
                            b->experts, b->top_k);
    }
    return 0;
}

static int prepare(struct run *run, struct base_err *err)
{
    const struct pred_trace_header *h = pred_trace_reader_header(run->args->test);
    int rc = check_same(pred_trace_reader_header(run->args->train), h, err);
    if (rc < 0) return rc;
    run->shape =
        (struct pred_shape){ .layers = h->layers, .experts = h->experts, .top_k = h->top_k };
    memcpy(run->shape.model, h->model, sizeof run->shape.model);
    struct tier_decide_config config = {
        .layers = h->layers,
        .experts = h->experts,
        .top_k = h->top_k,
        .tier_count = 1,
        .tiers = { { .slots =
                         (uint64_t)pred_slots_of_share(run->args->capacity, h->experts) * h->layers,
                     .policy = "lfu" } },
        .half_life_tokens = 16,
        .prefill_share = 1,
    };
    rc = tier_decide_create(&run->cache, &config, err);
    if (rc < 0) return rc;
    run->predictors = calloc(run->args->count, sizeof run->predictors[0]);
    run->found = calloc(h->experts, sizeof run->found[0]);
    run->resident = calloc(h->experts, sizeof run->resident[0]);
    run->missed = calloc(h->experts, sizeof run->missed[0]);
    run->chosen = calloc(h->experts, sizeof run->chosen[0]);
    run->sums = calloc(h->experts, sizeof run->sums[0]);
    run->one = calloc(h->experts, sizeof run->one[0]);
    run->ranked = calloc(h->experts, sizeof run->ranked[0]);
    if (!run->predictors || !run->found || !run->resident || !run->missed || !run->chosen ||
        !run->sums || !run->one || !run->ranked) {
        return -ENOMEM;
    }
    rc = pred_union_init(&run->joined, h->experts, h->top_k);
    if (rc == 0) rc = pred_history_init(&run->history, &run->shape);
    for (uint32_t p = 0; rc == 0 && p < run->args->count; p++) {
        const char *name = run->args->names[p];
        rc = pred_predictor_create(&run->predictors[p], name, &run->shape);
        if (rc == 0 && run->predictors[p]->ops->live_only) {
            rc = base_err_set(err, BASE_ECONFIG, "%.40s needs hidden states, which no trace "
                              "holds: tier-bench foresight scores it live", name);
        }
        if (rc == -ENOENT) base_err_set(err, rc, "no predictor is called \"%.40s\"", name);
        snprintf(run->scores[p].name, sizeof run->scores[p].name, "%.31s", name);
    }
    return rc;
}

int pred_score_run(const struct pred_score_args *args, struct pred_score *scores,
                   struct pred_score_total *total, struct base_err *err)
{
    struct run run = { .args = args, .scores = scores, .total = total };
    memset(scores, 0, args->count * sizeof scores[0]);
    memset(total, 0, sizeof *total);
    int rc = prepare(&run, err);
    if (rc >= 0) rc = pass(&run, args->train, true, err);
    if (rc >= 0) rc = pass(&run, args->test, false, err);
    for (uint32_t p = 0; run.predictors && p < args->count; p++) {
        if (rc >= 0) {
            scores[p].table_bytes = pred_predictor_bytes(run.predictors[p]);
            scores[p].predict_ns /= total->events > 0 ? (double)total->events : 1;
        }
        pred_predictor_destroy(run.predictors[p]);
    }
    free(run.predictors);
    pred_union_fini(&run.joined);
    pred_history_fini(&run.history);
    tier_decide_destroy(run.cache);
    free(run.found);
    free(run.contexts);
    free(run.ids);
    free(run.resident);
    free(run.missed);
    free(run.chosen);
    free(run.sums);
    free(run.one);
    free(run.ranked);
    if (rc < 0) base_err_set(err, rc, "cannot score predictors: %s", base_err_name(rc));
    return rc < 0 ? rc : 0;
}
