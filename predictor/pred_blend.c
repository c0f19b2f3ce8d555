/* All other predictors at once: log-odds are summed with weights that are learned, layer by layer, on
 * predictions made before the tables saw the answer.
 *
 *      logit P(e) = bias + w0 * popularity(e) + sum over parts w_i * (score_i(e) - popularity(e))
 *
 * The weights descend the logistic loss over all experts of the layer (AdaGrad). Because each part
 * is judged on what it had not seen, a table that only remembers gets no more weight than it earns.
 * Weights are kept apart for no, one and more layers of lead, since transition knows less with
 * each. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/tables.h"

enum {
    PARTS = 6,
    FEATURES = PARTS + 2,       /* bias and popularity */
    LEADS = 3,
};
#define RATE 0.05f

static const struct part_kind {
    const char *name;
    double half_life;           /* 0 = the shape's */
    float start;                /* weight before anything was learned */
} part_kinds[PARTS] = {
    { "transition", 0, 0.9f },     { "token_table", 0, 0.5f },  { "context", 0, 0.4f },
    { "frequency", 0, 0.3f },      { "frequency", 160, 0.4f },  { "previous_token", 0, 0.1f },
};

struct blend {
    struct pred_predictor base;
    struct pred_popularity popularity;
    struct pred_predictor *parts[PARTS];
    float *weights;             /* [LEADS x layers x FEATURES] */
    float *energy;              /* the same: sums of squared gradients */
    uint32_t *seen;             /* [1] observations, to take turns over the leads */
    float *scores;              /* [PARTS x experts] scratch */
    float *sums;                /* [experts] scratch */
};

static void blend_destroy(struct pred_predictor *p)
{
    struct blend *b = (struct blend *)p;
    for (int i = 0; i < PARTS; i++) pred_predictor_destroy(b->parts[i]);
    pred_popularity_fini(&b->popularity);
    free(b->weights);
    free(b->energy);
    free(b->seen);
    free(b->scores);
    free(b->sums);
    free(b);
}

static int blend_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    struct blend *b = calloc(1, sizeof *b);
    if (!b) return -ENOMEM;
    size_t rows = (size_t)LEADS * shape->layers;
    b->base = (struct pred_predictor){ .ops = &pred_blend_ops, .shape = *shape };
    b->weights = calloc(rows * FEATURES, sizeof b->weights[0]);
    b->energy = calloc(rows * FEATURES, sizeof b->energy[0]);
    b->seen = calloc(1, sizeof b->seen[0]);
    b->scores = calloc((size_t)PARTS * shape->experts, sizeof b->scores[0]);
    b->sums = calloc(shape->experts, sizeof b->sums[0]);
    int rc = pred_popularity_init(&b->popularity, shape);
    for (int i = 0; rc == 0 && i < PARTS; i++) {
        struct pred_shape own = *shape;
        if (part_kinds[i].half_life > 0) own.half_life = part_kinds[i].half_life;
        rc = pred_predictor_create(&b->parts[i], part_kinds[i].name, &own);
    }
    if (rc < 0 || !b->weights || !b->energy || !b->seen || !b->scores || !b->sums) {
        blend_destroy(&b->base);
        return -ENOMEM;
    }
    for (size_t row = 0; row < rows; row++) {
        float *w = b->weights + row * FEATURES;
        w[1] = 1;
        for (int i = 0; i < PARTS; i++) w[2 + i] = part_kinds[i].start;
    }
    *out = &b->base;
    return 0;
}

static size_t row_of(const struct blend *b, const struct pred_context *context, uint32_t layer)
{
    uint32_t lead = layer > context->known ? layer - context->known : 0;
    if (lead >= LEADS) lead = LEADS - 1;
    return (size_t)lead * b->base.shape.layers + layer;
}

/* Fills b->scores with the parts' lifts over the popularity and `sums` with the blend. */
static void blend_sum(struct blend *b, const struct pred_context *context, uint32_t layer,
                      float *sums)
{
    uint32_t n = b->base.shape.experts;
    const float *w = b->weights + row_of(b, context, layer) * FEATURES;
    const float *odds = b->popularity.odds + (size_t)layer * n;
    for (uint32_t e = 0; e < n; e++) sums[e] = w[0] + w[1] * odds[e];
    for (int i = 0; i < PARTS; i++) {
        float *scores = b->scores + (size_t)i * n, weight = w[2 + i];
        pred_predictor_predict(b->parts[i], context, layer, scores);
        for (uint32_t e = 0; e < n; e++) {
            scores[e] -= odds[e];
            sums[e] += weight * scores[e];
        }
    }
}

static float logistic(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

static void weights_learn(struct blend *b, const struct pred_context *context, uint32_t layer,
                          const uint32_t *ids)
{
    uint32_t n = b->base.shape.experts;
    const float *odds = b->popularity.odds + (size_t)layer * n;
    float *w = b->weights + row_of(b, context, layer) * FEATURES;
    float *energy = b->energy + row_of(b, context, layer) * FEATURES;
    float gradient[FEATURES] = { 0 };
    blend_sum(b, context, layer, b->sums);
    for (uint32_t e = 0; e < n; e++) b->sums[e] = logistic(b->sums[e]);
    for (uint32_t k = 0; k < b->base.shape.top_k; k++) b->sums[ids[k]] -= 1;
    for (uint32_t e = 0; e < n; e++) {
        gradient[0] += b->sums[e];
        gradient[1] += b->sums[e] * odds[e];
    }
    for (int i = 0; i < PARTS; i++) {
        const float *scores = b->scores + (size_t)i * n;
        float sum = 0;
        for (uint32_t e = 0; e < n; e++) sum += b->sums[e] * scores[e];
        gradient[2 + i] = sum;
    }
    for (int i = 0; i < FEATURES; i++) {
        energy[i] += gradient[i] * gradient[i];
        w[i] -= RATE * gradient[i] / (sqrtf(energy[i]) + 1e-3f);
    }
}

static void blend_observe(struct pred_predictor *p, const struct pred_context *context,
                          uint32_t layer, const uint32_t *ids, bool learn)
{
    struct blend *b = (struct blend *)p;
    if (learn) {
        struct pred_context ahead = *context;
        weights_learn(b, context, layer, ids);
        /* Longer leads take turns: their weights are as if these layers were not yet known. */
        uint32_t lead = 1 + b->seen[0]++ % 8;
        if (lead < LEADS && context->known >= lead) {
            ahead.known -= lead;
            weights_learn(b, &ahead, layer, ids);
        }
        pred_popularity_learn(&b->popularity, layer, ids, p->shape.top_k);
    }
    for (int i = 0; i < PARTS; i++) pred_predictor_observe(b->parts[i], context, layer, ids, learn);
}

static void blend_predict(struct pred_predictor *p, const struct pred_context *context,
                          uint32_t layer, float *scores)
{
    blend_sum((struct blend *)p, context, layer, scores);
}

static unsigned blend_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    struct blend *b = (struct blend *)p;
    size_t weights = (size_t)LEADS * p->shape.layers * FEATURES * sizeof b->weights[0];
    unsigned n = pred_popularity_blocks(&b->popularity, blocks);
    blocks[n++] = (struct pred_block){ b->weights, weights };
    blocks[n++] = (struct pred_block){ b->energy, weights };
    blocks[n++] = (struct pred_block){ b->seen, sizeof b->seen[0] };
    for (int i = 0; i < PARTS; i++) n += b->parts[i]->ops->blocks(b->parts[i], blocks + n);
    return n;
}

const struct pred_predictor_ops pred_blend_ops = {
    .name = "blend",
    .create = blend_create,
    .destroy = blend_destroy,
    .observe = blend_observe,
    .predict = blend_predict,
    .blocks = blend_blocks,
};
