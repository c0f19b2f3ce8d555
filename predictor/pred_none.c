/* Knows nothing: every expert is equally likely, so the first ids win. The baseline that anything
 * has to beat. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/predictor.h"

static int none_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    struct pred_predictor *p = calloc(1, sizeof *p);
    if (!p) return -ENOMEM;
    *p = (struct pred_predictor){ .ops = &pred_none_ops, .shape = *shape };
    *out = p;
    return 0;
}

static void none_destroy(struct pred_predictor *p)
{
    free(p);
}

static void none_observe(struct pred_predictor *p, const struct pred_context *context,
                         uint32_t layer, const uint32_t *ids, bool learn)
{
    (void)p, (void)context, (void)layer, (void)ids, (void)learn;
}

static void none_predict(struct pred_predictor *p, const struct pred_context *context,
                         uint32_t layer, float *scores)
{
    (void)context, (void)layer;
    memset(scores, 0, p->shape.experts * sizeof scores[0]);
}

static unsigned none_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    (void)p, (void)blocks;
    return 0;
}

const struct pred_predictor_ops pred_none_ops = {
    .name = "none",
    .create = none_create,
    .destroy = none_destroy,
    .observe = none_observe,
    .predict = none_predict,
    .blocks = none_blocks,
};
