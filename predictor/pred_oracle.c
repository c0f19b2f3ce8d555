/* Reads the future that replay puts into the context: the bound of what prediction can do. */
#include <errno.h>
#include <stdlib.h>

#include "base/must.h"
#include "predictor/predictor.h"

static int oracle_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    struct pred_predictor *p = calloc(1, sizeof *p);
    if (!p) return -ENOMEM;
    *p = (struct pred_predictor){ .ops = &pred_oracle_ops, .shape = *shape };
    *out = p;
    return 0;
}

static void oracle_destroy(struct pred_predictor *p)
{
    free(p);
}

static void oracle_observe(struct pred_predictor *p, const struct pred_context *context,
                           uint32_t layer, const uint32_t *ids, bool learn)
{
    (void)p, (void)context, (void)layer, (void)ids, (void)learn;
}

static void oracle_predict(struct pred_predictor *p, const struct pred_context *context,
                           uint32_t layer, float *scores)
{
    MUST(context->future);
    uint32_t top_k = p->shape.top_k;
    for (uint32_t e = 0; e < p->shape.experts; e++) scores[e] = -10;
    for (uint32_t k = 0; k < top_k; k++) {
        uint32_t id = context->future[(size_t)layer * top_k + k];
        if (id < p->shape.experts) scores[id] = 10;
    }
}

static unsigned oracle_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    (void)p, (void)blocks;
    return 0;
}

const struct pred_predictor_ops pred_oracle_ops = {
    .name = "oracle",
    .replay_only = true,
    .create = oracle_create,
    .destroy = oracle_destroy,
    .observe = oracle_observe,
    .predict = oracle_predict,
    .blocks = oracle_blocks,
};
