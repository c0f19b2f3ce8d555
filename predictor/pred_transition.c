/* The experts of the layers just passed -> the experts of this one; and, under the name
 * previous_token, the experts of the sequence's previous token in this layer -> those of this
 * token.
 *
 * transition adds the rows of layer l-1 and of layer l-2, learned together; with two layers of lead
 * only l-2 is known, and rows of its own stand in. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/tables.h"

enum { NEAR, SECOND, FAR, ROWS_MAX };

struct transition {
    struct pred_predictor base;
    struct pred_popularity popularity;
    unsigned count;             /* of rows */
    struct pred_rows rows[ROWS_MAX];
    float *scores;              /* [experts] scratch */
};

static void transition_destroy(struct pred_predictor *p)
{
    struct transition *t = (struct transition *)p;
    pred_popularity_fini(&t->popularity);
    for (unsigned i = 0; i < t->count; i++) pred_rows_fini(&t->rows[i]);
    free(t->scores);
    free(t);
}

static int create(struct pred_predictor **out, const struct pred_shape *shape,
                  const struct pred_predictor_ops *ops, unsigned count)
{
    struct transition *t = calloc(1, sizeof *t);
    if (!t) return -ENOMEM;
    t->base = (struct pred_predictor){ .ops = ops, .shape = *shape };
    t->count = count;
    t->scores = calloc(shape->experts, sizeof t->scores[0]);
    int rc = t->scores ? pred_popularity_init(&t->popularity, shape) : -ENOMEM;
    for (unsigned i = 0; i < count; i++) {
        if (pred_rows_init(&t->rows[i], shape) < 0) rc = -ENOMEM;
    }
    if (rc < 0) {
        transition_destroy(&t->base);
        return rc;
    }
    *out = &t->base;
    return 0;
}

static unsigned transition_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    struct transition *t = (struct transition *)p;
    unsigned n = pred_popularity_blocks(&t->popularity, blocks);
    for (unsigned i = 0; i < t->count; i++) n += pred_rows_blocks(&t->rows[i], blocks + n);
    return n;
}

static void begin(const struct transition *t, uint32_t layer, float *scores)
{
    uint32_t n = t->base.shape.experts;
    memcpy(scores, t->popularity.odds + (size_t)layer * n, n * sizeof scores[0]);
}

/* ------------------------------------------------------------------------ layer to layer -- */

/* Routing of the layer `back` before, or NULL where it is not known or was never computed. */
static const uint32_t *source_of(const struct pred_predictor *p, const struct pred_context *context,
                                 uint32_t layer, uint32_t back)
{
    if (layer < back || layer - back >= context->known) return NULL;
    const uint32_t *ids = context->ids + (size_t)(layer - back) * p->shape.top_k;
    return ids[0] == PRED_NO_EXPERT ? NULL : ids;
}

static int transition_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    return create(out, shape, &pred_transition_ops, ROWS_MAX);
}

static void transition_predict(struct pred_predictor *p, const struct pred_context *context,
                               uint32_t layer, float *scores)
{
    const struct transition *t = (const struct transition *)p;
    const uint32_t *near = source_of(p, context, layer, 1), *far = source_of(p, context, layer, 2);
    begin(t, layer, scores);
    if (near) pred_rows_add(&t->rows[NEAR], layer, near, p->shape.top_k, scores);
    if (far) pred_rows_add(&t->rows[near ? SECOND : FAR], layer, far, p->shape.top_k, scores);
}

static void transition_observe(struct pred_predictor *p, const struct pred_context *context,
                               uint32_t layer, const uint32_t *ids, bool learn)
{
    struct transition *t = (struct transition *)p;
    const uint32_t *near = source_of(p, context, layer, 1), *far = source_of(p, context, layer, 2);
    uint32_t n = p->shape.experts, top_k = p->shape.top_k;
    if (!learn) return;
    if (near) {
        transition_predict(p, context, layer, t->scores);
        pred_errors(t->scores, n, ids, top_k);
        pred_rows_learn(&t->rows[NEAR], layer, near, top_k, t->scores, 1);
        if (far) pred_rows_learn(&t->rows[SECOND], layer, far, top_k, t->scores, 1);
    }
    if (far) {
        begin(t, layer, t->scores);
        pred_rows_add(&t->rows[FAR], layer, far, top_k, t->scores);
        pred_errors(t->scores, n, ids, top_k);
        pred_rows_learn(&t->rows[FAR], layer, far, top_k, t->scores, 1);
    }
    pred_popularity_learn(&t->popularity, layer, ids, top_k);
}

const struct pred_predictor_ops pred_transition_ops = {
    .name = "transition",
    .create = transition_create,
    .destroy = transition_destroy,
    .observe = transition_observe,
    .predict = transition_predict,
    .blocks = transition_blocks,
};

/* ------------------------------------------------------------------------- token to token -- */

static const uint32_t *previous_of(const struct pred_predictor *p,
                                   const struct pred_context *context, uint32_t layer)
{
    if (!context->previous) return NULL;
    const uint32_t *ids = context->previous + (size_t)layer * p->shape.top_k;
    return ids[0] == PRED_NO_EXPERT ? NULL : ids;
}

static int previous_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    return create(out, shape, &pred_previous_token_ops, 1);
}

static void previous_predict(struct pred_predictor *p, const struct pred_context *context,
                             uint32_t layer, float *scores)
{
    const struct transition *t = (const struct transition *)p;
    const uint32_t *given = previous_of(p, context, layer);
    begin(t, layer, scores);
    if (given) pred_rows_add(&t->rows[0], layer, given, p->shape.top_k, scores);
}

static void previous_observe(struct pred_predictor *p, const struct pred_context *context,
                             uint32_t layer, const uint32_t *ids, bool learn)
{
    struct transition *t = (struct transition *)p;
    const uint32_t *given = previous_of(p, context, layer);
    if (!learn) return;
    if (given) {
        previous_predict(p, context, layer, t->scores);
        pred_errors(t->scores, p->shape.experts, ids, p->shape.top_k);
        pred_rows_learn(&t->rows[0], layer, given, p->shape.top_k, t->scores, 1);
    }
    pred_popularity_learn(&t->popularity, layer, ids, p->shape.top_k);
}

const struct pred_predictor_ops pred_previous_token_ops = {
    .name = "previous_token",
    .create = previous_create,
    .destroy = transition_destroy,
    .observe = previous_observe,
    .predict = previous_predict,
    .blocks = transition_blocks,
};
