/* Candidates over one part of the traces, by the bytes that they would have read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/tune_priv.h"
#include "predictor/waves.h"

enum { PROGRESS_EVERY = 1024 };

/* -- the part's tokens ------------------------------------------------------------------------ */

static int step_reserve(struct pred_tune *t, uint32_t tokens)
{
    size_t ids = (size_t)tokens * t->header->layers * t->header->top_k;
    if (tokens <= t->room) return 0;
    free((void *)t->step.phases);
    free((void *)t->step.tokens);
    free((void *)t->step.expert_ids);
    free((void *)t->step.expert_weights);
    free(t->numbers);
    t->step.phases = calloc(tokens, 1);
    t->step.tokens = calloc(tokens, sizeof(uint32_t));
    t->step.expert_ids = calloc(ids, sizeof(uint32_t));
    t->step.expert_weights = calloc(ids, sizeof(float));
    t->numbers = calloc(tokens, sizeof t->numbers[0]);
    t->room = tokens;
    bool all = t->step.phases && t->step.tokens && t->step.expert_ids && t->step.expert_weights &&
               t->numbers;
    return all ? 0 : -ENOMEM;
}

static bool belongs(uint32_t number, unsigned pieces)
{
    return pieces >> pred_tune_piece_of(number) & 1;
}

int pred_tune_step_take(struct pred_tune *t, const struct pred_step *from, uint32_t trace,
                        unsigned pieces, struct pred_step *to)
{
    uint32_t n = 0, top_k = t->header->top_k;
    int rc = step_reserve(t, from->token_count);
    if (rc < 0) return rc;
    uint8_t *phases = (uint8_t *)t->step.phases;
    uint32_t *tokens = (uint32_t *)t->step.tokens, *ids = (uint32_t *)t->step.expert_ids;
    float *weights = (float *)t->step.expert_weights;
    for (uint32_t i = 0; i < from->token_count; i++) {
        n += belongs(pred_tune_parts_number(&t->parts, trace, from->seqs[i]), pieces);
    }
    for (uint32_t i = 0, at = 0; n > 0 && i < from->token_count; i++) {
        uint32_t number = pred_tune_parts_number(&t->parts, trace, from->seqs[i]);
        if (!belongs(number, pieces)) continue;
        for (uint32_t l = 0; l < t->header->layers; l++) {
            size_t source = ((size_t)l * from->token_count + i) * top_k,
                   target = ((size_t)l * n + at) * top_k;
            memcpy(ids + target, from->expert_ids + source, top_k * sizeof ids[0]);
            if (!from->expert_weights) continue;
            memcpy(weights + target, from->expert_weights + source, top_k * sizeof weights[0]);
        }
        t->numbers[at] = number;
        tokens[at] = from->tokens ? from->tokens[i] : PRED_NO_TOKEN;
        phases[at++] = from->phases[i];
    }
    *to = t->step;
    to->token_count = n;
    if (!from->expert_weights) to->expert_weights = NULL;
    return 0;
}

/* -- by bytes --------------------------------------------------------------------------------- */

static double expert_bytes(const struct pred_tune *t, uint32_t layer)
{
    const struct pred_trace_header *h = t->header;
    uint64_t bytes = h->expert_bytes ? h->expert_bytes[layer] : h->slot_bytes;
    return bytes > 0 ? (double)bytes : 1;
}

/* Lookups of the acquire that nobody in memory could serve. */
static uint32_t reads_of(struct pred_tune *t, struct tier_decide *decide, uint32_t layer,
                         uint32_t n, enum tier_phase phase)
{
    const uint32_t *ids = t->joined.ids;
    uint32_t reads = 0;
    pred_waves(decide, layer, ids, n, n, phase, t->found);
    for (uint32_t i = 0; i < n; i++) reads += t->found[i].from == t->args->cache.tier_count;
    return reads;
}

/* What an acquire costs is shared by the tokens that asked. */
static void acquire(struct pred_tune *t, const struct pred_step *step, uint32_t layer,
                    enum tier_phase phase)
{
    uint32_t n = pred_union_of(&t->joined, step, layer, phase), tokens = 0;
    if (n == 0) return;
    for (uint32_t i = 0; i < step->token_count; i++)
        tokens += step->phases[i] == phase;
    double each = expert_bytes(t, layer);
    for (uint32_t c = 0; c < t->count; c++) {
        struct pred_tune_try *try = &t->tries[c];
        if (!try->decide) continue;
        uint32_t reads = reads_of(t, try->decide, layer, n, phase);
        try->sum.lookups += n;
        try->sum.reads += reads;
        try->sum.cost += reads * each;
        for (uint32_t i = 0; reads > 0 && i < step->token_count; i++) {
            if (step->phases[i] == phase) try->cost[t->numbers[i]] += reads * each / tokens;
        }
    }
}

static int bytes_evaluate(struct pred_tune *t, enum pred_tune_part part, struct base_err *err)
{
    static const enum tier_phase order[] = { TIER_DECODE, TIER_PREFILL };
    unsigned pieces = part == PRED_TUNE_TUNED ? 3 : 1 << PRED_TUNE_HELD;
    struct pred_trace_item item;
    struct pred_step step;
    uint64_t steps = 0;
    int rc = 0;
    for (uint32_t i = 0; rc >= 0 && i < t->args->trace_count; i++) {
        struct pred_trace_reader *reader = t->args->traces[i];
        while ((rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err)) > 0) {
            rc = pred_tune_step_take(t, &item.step, i, pieces, &step);
            if (rc < 0) return base_err_set(err, rc, "no memory for a step");
            for (uint32_t l = 0; step.token_count > 0 && l < t->header->layers; l++) {
                for (int p = 0; p < 2; p++)
                    acquire(t, &step, l, order[p]);
            }
            if (++steps % PROGRESS_EVERY == 0) {
                struct pred_trace_health health;
                pred_trace_reader_health(reader, &health);
                pred_tune_report(t, (i + (double)health.read_bytes / (double)health.file_bytes) /
                                    t->args->trace_count);
            }
        }
        if (rc == 0) rc = pred_trace_reader_rewind(reader, err);
    }
    return rc;
}

/* -- the candidates --------------------------------------------------------------------------- */

bool pred_tune_per_layer(const struct pred_tune *t, const struct pred_tune_setting *s,
                         uint32_t *per_layer)
{
    const struct pred_tune_advice *advice = &t->args->advice;
    uint64_t a_layer = t->args->cache.slots[0] / t->header->layers;
    uint64_t spare = a_layer > t->header->top_k ? a_layer - t->header->top_k : 0;
    *per_layer = 0;
    if (s->predictor[0] == '\0' || advice->prefetch == PRED_TUNE_NEVER) return true;
    if (advice->prefetch == PRED_TUNE_ALWAYS && s->per_layer > spare) return false;
    *per_layer = (uint32_t)(s->per_layer > spare ? spare : s->per_layer);
    return true;
}

static int try_create(struct pred_tune *t, struct pred_tune_try *try, struct base_err *err)
{
    const struct pred_tune_cache *cache = &t->args->cache;
    const struct pred_tune_setting *s = &try->setting;
    uint32_t per_layer;
    struct tier_decide_config config = {
        .layers = t->header->layers,
        .experts = t->header->experts,
        .top_k = t->header->top_k,
        .tier_count = cache->tier_count,
        .inclusive = cache->inclusive,
        .warm_compute = cache->warm_compute,
        .adaptive = s->adaptive,
        .half_life_tokens = s->half_life_tokens,
        .prefill_share = s->prefill_share,
        .strict = true,
    };
    if (!pred_tune_per_layer(t, s, &per_layer)) {
        return base_err_set(err, BASE_EBUDGET, "prefetch.enabled: true needs slots for %u experts "
                            "of a layer beside top_k %u", s->per_layer, config.top_k);
    }
    config.prefetch = per_layer > 0;
    for (uint32_t i = 0; i < cache->tier_count; i++) {
        config.tiers[i].slots = cache->slots[i];
        bool own = i > 0 && cache->policy_below[0];
        memcpy(config.tiers[i].policy, own ? cache->policy_below : s->policy,
               sizeof config.tiers[i].policy);
    }
    try->sum = (struct pred_tune_sum){ 0 };
    if (!try->cost) try->cost = calloc(t->parts.sequences, sizeof try->cost[0]);
    if (!try->cost) return base_err_set(err, -ENOMEM, "no memory for a candidate");
    memset(try->cost, 0, t->parts.sequences * sizeof try->cost[0]);
    return tier_decide_create(&try->decide, &config, err);
}

static int tries_create(struct pred_tune *t, struct base_err *err)
{
    for (uint32_t c = 0; c < t->count; c++) {
        struct base_err refused = { 0 };
        int rc = try_create(t, &t->tries[c], &refused);
        if (rc < 0 && (c == 0 || (rc != BASE_EBUDGET && rc != BASE_ECONFIG))) {
            return base_err_set(err, rc, "%s", refused.text);
        }
    }
    return 0;
}

void pred_tune_tries_end(struct pred_tune *t)
{
    for (uint32_t c = 0; c < t->count; c++) {
        tier_decide_destroy(t->tries[c].decide);
        t->tries[c].decide = NULL;
    }
}

int pred_tune_evaluate(struct pred_tune *t, enum pred_tune_part part, uint64_t steps_max,
                       const char *what, struct base_err *err)
{
    t->what = what;
    int rc = tries_create(t, err);
    if (rc < 0) return rc;
    if (t->args->machine) {
        rc = pred_tune_clock_evaluate(t, part, steps_max, err);
    } else {
        t->work_piece = t->count;
        rc = bytes_evaluate(t, part, err);
        t->work_done += t->work_piece;
    }
    for (uint32_t c = 0; c < t->count; c++) t->tries[c].sum.tokens = t->parts.tokens[part];
    return rc;
}

void pred_tune_report(const struct pred_tune *t, double share)
{
    const struct pred_tune_progress *to = t->args->progress;
    if (!to) return;
    double done = t->work_done + share * t->work_piece;
    to->report(to->context, t->what, done, done > t->work_planned ? done : t->work_planned);
}
