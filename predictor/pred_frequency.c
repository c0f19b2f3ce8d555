/* What was used lately in this layer, whoever asked: counts that halve every half_life tokens. It
 * knows mostly what a cache holds anyway; among the others it tells who was there a moment ago. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/lanes.h"
#include "predictor/tables.h"

#define BELIEF 4.0f             /* tokens that the popularity counts as */
#define SCALE_MAX 1e15f

/* Instead of decaying every count at every token, newer counts weigh more; when the weight grows
 * too large everything is scaled down at once. */
struct frequency {
    struct pred_predictor base;
    struct pred_popularity popularity;
    float growth;               /* 2^(1/half_life) */
    float total;                /* weight of all tokens of a layer, in units of the newest */
    float *counts;              /* [layers x experts], in units of weight */
    float *weight;              /* [layers] of the next token */
};

static void frequency_destroy(struct pred_predictor *p)
{
    struct frequency *f = (struct frequency *)p;
    pred_popularity_fini(&f->popularity);
    free(f->counts);
    free(f->weight);
    free(f);
}

static int frequency_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    struct frequency *f = calloc(1, sizeof *f);
    if (!f) return -ENOMEM;
    f->base = (struct pred_predictor){ .ops = &pred_frequency_ops, .shape = *shape };
    f->growth = (float)exp2(1.0 / shape->half_life);
    f->total = (float)(1.0 / (1.0 - exp2(-1.0 / shape->half_life)));
    f->counts = calloc((size_t)shape->layers * shape->experts, sizeof f->counts[0]);
    f->weight = calloc(shape->layers, sizeof f->weight[0]);
    if (pred_popularity_init(&f->popularity, shape) < 0 || !f->counts || !f->weight) {
        frequency_destroy(&f->base);
        return -ENOMEM;
    }
    for (uint32_t l = 0; l < shape->layers; l++) f->weight[l] = 1;
    *out = &f->base;
    return 0;
}

static void frequency_observe(struct pred_predictor *p, const struct pred_context *context,
                              uint32_t layer, const uint32_t *ids, bool learn)
{
    struct frequency *f = (struct frequency *)p;
    (void)context;
    if (learn) pred_popularity_learn(&f->popularity, layer, ids, p->shape.top_k);
    float *counts = f->counts + (size_t)layer * p->shape.experts;
    float weight = f->weight[layer] * f->growth;
    for (uint32_t k = 0; k < p->shape.top_k; k++) counts[ids[k]] += weight;
    if (weight > SCALE_MAX) {
        for (uint32_t e = 0; e < p->shape.experts; e++) counts[e] /= weight;
        weight = 1;
    }
    f->weight[layer] = weight;
}

static void frequency_predict(struct pred_predictor *p, const struct pred_context *context,
                              uint32_t layer, float *scores)
{
    const struct frequency *f = (const struct frequency *)p;
    (void)context;
    const float *counts = f->counts + (size_t)layer * p->shape.experts;
    const float *popularity = f->popularity.p + (size_t)layer * p->shape.experts;
    pred_lanes()->frequency(scores, counts, 1.0f / f->weight[layer], popularity, BELIEF,
                            1.0f / (f->total + BELIEF), p->shape.experts);
}

static unsigned frequency_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    struct frequency *f = (struct frequency *)p;
    unsigned n = pred_popularity_blocks(&f->popularity, blocks);
    blocks[n++] = (struct pred_block){
        f->counts, (size_t)p->shape.layers * p->shape.experts * sizeof f->counts[0]
    };
    blocks[n++] = (struct pred_block){ f->weight, p->shape.layers * sizeof f->weight[0] };
    return n;
}

const struct pred_predictor_ops pred_frequency_ops = {
    .name = "frequency",
    .create = frequency_create,
    .destroy = frequency_destroy,
    .observe = frequency_observe,
    .predict = frequency_predict,
    .blocks = frequency_blocks,
};
