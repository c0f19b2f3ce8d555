/* The real gates of the layers ahead, asked with the hidden state of the layer that runs: each
 * block adds little to that state, so most of their answer is known a layer or two early.
 *
 *      log-odds(e) = bias + w0 * popularity(e) + w1 * margin(e)
 *
 * Weights are kept for each layer and asking (by the layers between; right before the layer
 * itself), and descend the logistic loss: so the farther a gate looks, the less it is believed. The
 * gates themselves are the engine's (src/engine/lookahead.c); a trace holds no hidden states, and
 * without them only the popularity is left. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "predictor/lanes.h"
#include "predictor/tables.h"

enum { FEATURES = 3 };          /* bias, popularity, margin */
#define RATE 0.1f               /* first step of a weight (AdaGrad) */
#define ENERGY_MAX 1e5f         /* its steps never shrink below RATE / sqrt of this */

struct lookahead {
    struct pred_predictor base;
    struct pred_popularity popularity;
    float *weights;             /* [PRED_ASKINGS x layers x FEATURES] */
    float *energy;              /* the same: sums of squared gradients */
    float *errors;              /* [experts] scratch */
};

static void lookahead_destroy(struct pred_predictor *p)
{
    struct lookahead *a = (struct lookahead *)p;
    pred_popularity_fini(&a->popularity);
    free(a->weights);
    free(a->energy);
    free(a->errors);
    free(a);
}

static int lookahead_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    struct lookahead *a = calloc(1, sizeof *a);
    size_t rows = (size_t)PRED_ASKINGS * shape->layers;
    if (!a) return -ENOMEM;
    a->base = (struct pred_predictor){ .ops = &pred_lookahead_ops, .shape = *shape };
    a->weights = calloc(rows * FEATURES, sizeof a->weights[0]);
    a->energy = calloc(rows * FEATURES, sizeof a->energy[0]);
    a->errors = calloc(shape->experts, sizeof a->errors[0]);
    if (pred_popularity_init(&a->popularity, shape) < 0 || !a->weights || !a->energy ||
        !a->errors) {
        lookahead_destroy(&a->base);
        return -ENOMEM;
    }
    for (size_t row = 0; row < rows; row++) {
        a->weights[row * FEATURES + 1] = 0.5f;
        a->weights[row * FEATURES + 2] = 1;
    }
    *out = &a->base;
    return 0;
}

static void sum(const struct lookahead *a, const float *w, const float *margins, uint32_t layer,
                float *scores)
{
    uint32_t n = a->base.shape.experts;
    pred_lanes()->affine(scores, w[0], w[1], a->popularity.odds + (size_t)layer * n, n);
    for (uint32_t e = 0; e < n; e++) scores[e] += w[2] * margins[e];
}

static void lookahead_predict(struct pred_predictor *p, const struct pred_context *context,
                              uint32_t layer, float *scores)
{
    struct lookahead *a = (struct lookahead *)p;
    uint32_t asking = pred_context_asking(context, &p->shape, layer), n = p->shape.experts;
    const float *margins = pred_context_margins(context, &p->shape, layer);
    if (!margins) {
        pred_lanes()->affine(scores, 0, 1, a->popularity.odds + (size_t)layer * n, n);
        return;
    }
    size_t row = (size_t)asking * p->shape.layers + layer;
    sum(a, a->weights + row * FEATURES, margins, layer, scores);
}

static void lookahead_observe(struct pred_predictor *p, const struct pred_context *context,
                              uint32_t layer, const uint32_t *ids, bool learn)
{
    struct lookahead *a = (struct lookahead *)p;
    const struct pred_lanes *lanes = pred_lanes();
    uint32_t n = p->shape.experts;
    if (!learn) return;
    for (uint32_t asking = 0; asking < PRED_ASKINGS; asking++) {
        if (!pred_context_has(context, &p->shape, asking, layer)) continue;
        const float *margins = context->gates[asking] + (size_t)layer * n;
        size_t row = ((size_t)asking * p->shape.layers + layer) * FEATURES;
        const float *odds = a->popularity.odds + (size_t)layer * n;
        sum(a, a->weights + row, margins, layer, a->errors);
        pred_errors(a->errors, n, ids, p->shape.top_k);
        float gradients[FEATURES] = { lanes->sum(a->errors, n), lanes->dot(a->errors, odds, n),
                                      lanes->dot(a->errors, margins, n) };
        for (int f = 0; f < FEATURES; f++) {
            float *energy = &a->energy[row + f];
            *energy += gradients[f] * gradients[f];
            if (*energy > ENERGY_MAX) *energy = ENERGY_MAX;
            a->weights[row + f] -= RATE * gradients[f] / (sqrtf(*energy) + 1e-3f);
        }
    }
    pred_popularity_learn(&a->popularity, layer, ids, p->shape.top_k);
}

static unsigned lookahead_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    struct lookahead *a = (struct lookahead *)p;
    size_t weights = (size_t)PRED_ASKINGS * p->shape.layers * FEATURES * sizeof a->weights[0];
    unsigned n = pred_popularity_blocks(&a->popularity, blocks);
    blocks[n++] = (struct pred_block){ a->weights, weights };
    blocks[n++] = (struct pred_block){ a->energy, weights };
    return n;
}

const struct pred_predictor_ops pred_lookahead_ops = {
    .name = "lookahead",
    .live_only = true,
    .create = lookahead_create,
    .destroy = lookahead_destroy,
    .observe = lookahead_observe,
    .predict = lookahead_predict,
    .blocks = lookahead_blocks,
};
