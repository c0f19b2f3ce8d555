/* What this token was routed to before: known for all layers one whole forward pass ahead.
 *
 * token_table keys on the token alone. context keys on the token and the one before it, and
 * believes the token alone where the pair is new: the same words in the same place go the same way.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/lanes.h"
#include "predictor/tables.h"

#define BELIEF 2.0f             /* observations that the wider belief counts as */

struct keyed {
    struct pred_predictor base;
    struct pred_popularity popularity;
    struct pred_keyed tokens, pairs;
    bool has_pairs;
};

static void keyed_destroy(struct pred_predictor *p)
{
    struct keyed *k = (struct keyed *)p;
    pred_popularity_fini(&k->popularity);
    pred_keyed_fini(&k->tokens);
    pred_keyed_fini(&k->pairs);
    free(k);
}

static int create(struct pred_predictor **out, const struct pred_shape *shape,
                  const struct pred_predictor_ops *ops, bool pairs)
{
    struct keyed *k = calloc(1, sizeof *k);
    if (!k) return -ENOMEM;
    k->base = (struct pred_predictor){ .ops = ops, .shape = *shape };
    k->has_pairs = pairs;
    if (pred_popularity_init(&k->popularity, shape) < 0 ||
        pred_keyed_init(&k->tokens, shape, shape->tokens_max) < 0 ||
        (pairs && pred_keyed_init(&k->pairs, shape, shape->tokens_max) < 0)) {
        keyed_destroy(&k->base);
        return -ENOMEM;
    }
    *out = &k->base;
    return 0;
}

static int token_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    return create(out, shape, &pred_token_table_ops, false);
}

static int context_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    return create(out, shape, &pred_context_ops, true);
}

static uint64_t token_key(const struct pred_context *context)
{
    return (uint64_t)context->token + 1;
}

/* 0 where either token is unknown. */
static uint64_t pair_key(const struct pred_context *context)
{
    if (context->token == PRED_NO_TOKEN || context->previous_token == PRED_NO_TOKEN) return 0;
    return ((uint64_t)context->previous_token + 1) << 32 | context->token;
}

static void keyed_observe(struct pred_predictor *p, const struct pred_context *context,
                          uint32_t layer, const uint32_t *ids, bool learn)
{
    struct keyed *k = (struct keyed *)p;
    if (!learn) return;
    pred_popularity_learn(&k->popularity, layer, ids, p->shape.top_k);
    if (context->token == PRED_NO_TOKEN) return;
    pred_keyed_learn(&k->tokens, token_key(context), layer, ids, p->shape.top_k);
    uint64_t pair = pair_key(context);
    if (k->has_pairs && pair != 0) pred_keyed_learn(&k->pairs, pair, layer, ids, p->shape.top_k);
}

static void keyed_predict(struct pred_predictor *p, const struct pred_context *context,
                          uint32_t layer, float *scores)
{
    struct keyed *k = (struct keyed *)p;
    uint32_t n = p->shape.experts;
    memcpy(scores, k->popularity.p + (size_t)layer * n, n * sizeof scores[0]);
    if (context->token != PRED_NO_TOKEN) {
        pred_keyed_sharpen(&k->tokens, token_key(context), layer, BELIEF, scores, n);
    }
    uint64_t pair = pair_key(context);
    if (k->has_pairs && pair != 0) pred_keyed_sharpen(&k->pairs, pair, layer, BELIEF, scores, n);
    pred_lanes()->odds(scores, n);
}

static unsigned keyed_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    struct keyed *k = (struct keyed *)p;
    unsigned n = pred_popularity_blocks(&k->popularity, blocks);
    n += pred_keyed_blocks(&k->tokens, blocks + n);
    if (k->has_pairs) n += pred_keyed_blocks(&k->pairs, blocks + n);
    return n;
}

const struct pred_predictor_ops pred_token_table_ops = {
    .name = "token_table",
    .create = token_create,
    .destroy = keyed_destroy,
    .observe = keyed_observe,
    .predict = keyed_predict,
    .blocks = keyed_blocks,
};

const struct pred_predictor_ops pred_context_ops = {
    .name = "context",
    .create = context_create,
    .destroy = keyed_destroy,
    .observe = keyed_observe,
    .predict = keyed_predict,
    .blocks = keyed_blocks,
};
