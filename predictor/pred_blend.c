/* All evidence at once, weighed by what it was worth so far.
 *
 *      log-odds(e) = bias + w0 * popularity(e) + sum over parts w_i * (score_i(e) - popularity(e))
 *                  + rows of layer l-1, of l-2, and of the sequence's previous token in this layer
 *
 * Weights (per layer and lead) and rows descend one logistic loss, on predictions made before the
 * tables of the parts saw the answer. So a table that only remembers gets no more weight than it
 * earns, and rows learn what the tables leave unexplained instead of saying it again. Weights are
 * kept apart for no, one and more layers of lead; with one, rows of their own stand for l-2.
 *
 * Where the layer's own gate was asked with what enters it, that alone is the answer: as a part, or
 * weighed against the sum, it gave no more (predictor/README.md). */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/lanes.h"
#include "predictor/tables.h"

enum { PARTS = 4, FEATURES = PARTS + 2, LEADS = 3 };    /* features: bias, popularity, the parts */
enum { LOOKAHEAD = 3 };         /* the part that only speaks where gates were asked */
enum { NEAR, SECOND, FAR, PREVIOUS, ROWS };
/* Steps of a weight (AdaGrad): RATE / sqrt of the squared gradients so far. It begins as if a dozen
 * tokens had been learned from, so that the first few do not throw the weights about. */
#define RATE 0.1f
#define ENERGY_START 100.0f
#define ENERGY_MAX 1e5f
/* The sequence's previous token says mostly what the parts say too: its rows move by less, or they
 * take from the layers before what these explain better. */
#define PREVIOUS_STEP 0.25f
enum { EARLY = 1024 };          /* observations that all leads learn from; later they take turns */

static const struct part_kind {
    const char *name;
    double half_life;           /* 0 = the shape's */
    float start;                /* weight before anything was learned */
} part_kinds[PARTS] = {
    { "context", 0, 0.3f },
    { "frequency", 0, 0.3f },
    { "frequency", 160, 0.4f },
    { "lookahead", 0, 2.5f },
};

struct blend {
    struct pred_predictor base;
    struct pred_popularity popularity;
    struct pred_predictor *parts[PARTS];
    struct pred_rows rows[ROWS];
    float *weights;             /* [LEADS x layers x FEATURES] */
    float *energy;              /* the same: sums of squared gradients */
    uint32_t *turns;            /* [layers] observations: leads take turns */
    float *lifts;               /* [PARTS x experts] scratch */
    float *errors;              /* [experts] scratch */
};

static void blend_destroy(struct pred_predictor *p)
{
    struct blend *b = (struct blend *)p;
    for (int i = 0; i < PARTS; i++) pred_predictor_destroy(b->parts[i]);
    for (int i = 0; i < ROWS; i++) pred_rows_fini(&b->rows[i]);
    pred_popularity_fini(&b->popularity);
    free(b->weights);
    free(b->energy);
    free(b->turns);
    free(b->lifts);
    free(b->errors);
    free(b);
}

static int blend_fill(struct blend *b, const struct pred_shape *shape)
{
    size_t rows = (size_t)LEADS * shape->layers;
    b->weights = calloc(rows * FEATURES, sizeof b->weights[0]);
    b->energy = calloc(rows * FEATURES, sizeof b->energy[0]);
    b->turns = calloc(shape->layers, sizeof b->turns[0]);
    b->lifts = calloc((size_t)PARTS * shape->experts, sizeof b->lifts[0]);
    b->errors = calloc(shape->experts, sizeof b->errors[0]);
    if (!b->weights || !b->energy || !b->turns || !b->lifts || !b->errors) return -ENOMEM;
    int rc = pred_popularity_init(&b->popularity, shape);
    for (int i = 0; rc == 0 && i < ROWS; i++) rc = pred_rows_init(&b->rows[i], shape);
    for (int i = 0; rc == 0 && i < PARTS; i++) {
        struct pred_shape own = *shape;
        if (part_kinds[i].half_life > 0) own.half_life = part_kinds[i].half_life;
        rc = pred_predictor_create(&b->parts[i], part_kinds[i].name, &own);
    }
    for (size_t row = 0; row < rows; row++) {
        float *w = b->weights + row * FEATURES;
        w[1] = 1;
        for (int i = 0; i < PARTS; i++) w[2 + i] = part_kinds[i].start;
    }
    for (size_t i = 0; i < rows * FEATURES; i++) b->energy[i] = ENERGY_START;
    return rc;
}

static int blend_create(struct pred_predictor **out, const struct pred_shape *shape)
{
    struct blend *b = calloc(1, sizeof *b);
    if (!b) return -ENOMEM;
    b->base = (struct pred_predictor){ .ops = &pred_blend_ops, .shape = *shape };
    int rc = blend_fill(b, shape);
    if (rc < 0) {
        blend_destroy(&b->base);
        return rc;
    }
    *out = &b->base;
    return 0;
}

static uint32_t lead_of(const struct pred_context *context, uint32_t layer)
{
    uint32_t lead = layer > context->known ? layer - context->known : 0;
    return lead < LEADS ? lead : LEADS - 1;
}

/* The experts that each kind of rows goes by here; NULL where it has nothing to say. */
static void sources(const struct blend *b, const struct pred_context *context, uint32_t layer,
                    const uint32_t *given[ROWS])
{
    uint32_t top_k = b->base.shape.top_k;
    const uint32_t *back[3] = { NULL };
    for (uint32_t i = 1; i <= 2; i++) {
        if (layer < i || layer - i >= context->known) continue;
        back[i] = context->ids + (size_t)(layer - i) * top_k;
        if (back[i][0] == PRED_NO_EXPERT) back[i] = NULL;
    }
    given[NEAR] = back[1];
    given[SECOND] = back[1] ? back[2] : NULL;
    given[FAR] = back[1] ? NULL : back[2];
    given[PREVIOUS] = context->previous ? context->previous + (size_t)layer * top_k : NULL;
    if (given[PREVIOUS] && given[PREVIOUS][0] == PRED_NO_EXPERT) given[PREVIOUS] = NULL;
}

/* How many of the parts know anything here. */
static int parts_of(const struct blend *b, const struct pred_context *context, uint32_t layer)
{
    return pred_context_margins(context, &b->base.shape, layer) ? PARTS : LOOKAHEAD;
}

/* Fills b->lifts with what the parts say over the popularity, and `scores` with the blend. */
static void blend_sum(struct blend *b, const struct pred_context *context, uint32_t layer,
                      const uint32_t *const given[ROWS], float *scores)
{
    uint32_t n = b->base.shape.experts;
    size_t row = (size_t)lead_of(context, layer) * b->base.shape.layers + layer;
    const float *w = b->weights + row * FEATURES;
    const float *odds = b->popularity.odds + (size_t)layer * n;
    const struct pred_lanes *lanes = pred_lanes();
    lanes->affine(scores, w[0], w[1], odds, n);
    for (int i = 0; i < ROWS; i++) {
        if (given[i]) pred_rows_add(&b->rows[i], layer, given[i], b->base.shape.top_k, scores);
    }
    int parts = parts_of(b, context, layer);
    for (int i = 0; i < parts; i++) {
        float *lifts = b->lifts + (size_t)i * n;
        pred_predictor_predict(b->parts[i], context, layer, lifts);
        lanes->add_lifts(scores, lifts, odds, w[2 + i], n);
    }
}

static void blend_predict(struct pred_predictor *p, const struct pred_context *context,
                          uint32_t layer, float *scores)
{
    struct blend *b = (struct blend *)p;
    const uint32_t *given[ROWS];
    if (pred_context_asking(context, &p->shape, layer) == PRED_OWN) {
        pred_predictor_predict(b->parts[LOOKAHEAD], context, layer, scores);
        return;
    }
    sources(b, context, layer, given);
    blend_sum(b, context, layer, given, scores);
}

static void weight_step(float *weight, float *energy, float gradient)
{
    *energy += gradient * gradient;
    if (*energy > ENERGY_MAX) *energy = ENERGY_MAX;
    *weight -= RATE * gradient / sqrtf(*energy);
}

static void learn_once(struct blend *b, const struct pred_context *context, uint32_t layer,
                       const uint32_t *ids)
{
    uint32_t n = b->base.shape.experts, lead = lead_of(context, layer);
    size_t row = (size_t)lead * b->base.shape.layers + layer;
    const float *odds = b->popularity.odds + (size_t)layer * n;
    float *w = b->weights + row * FEATURES, *energy = b->energy + row * FEATURES,
          *errors = b->errors;
    const uint32_t *given[ROWS];
    sources(b, context, layer, given);
    blend_sum(b, context, layer, given, errors);
    pred_errors(errors, n, ids, b->base.shape.top_k);
    const struct pred_lanes *lanes = pred_lanes();
    weight_step(&w[0], &energy[0], lanes->sum(errors, n));
    weight_step(&w[1], &energy[1], lanes->dot(errors, odds, n));
    int parts = parts_of(b, context, layer);
    for (int i = 0; i < parts; i++) {
        weight_step(&w[2 + i], &energy[2 + i], lanes->dot(errors, b->lifts + (size_t)i * n, n));
    }
    /* The previous token's rows serve all leads; they learn where the most is known besides. */
    if (lead > 0) given[PREVIOUS] = NULL;
    for (int i = 0; i < ROWS; i++) {
        if (!given[i]) continue;
        pred_rows_learn(&b->rows[i], layer, given[i], b->base.shape.top_k, errors,
                        i == PREVIOUS ? PREVIOUS_STEP : 1);
    }
}

/* Longer leads learn as if the layers between were not known yet: while little is known, of every
 * token, later one at a time to halve the work. */
static bool learns(uint32_t lead, uint32_t turn)
{
    return turn < EARLY || (lead == 1 ? turn % 2 == 0 : turn % 8 == 1);
}

static void blend_observe(struct pred_predictor *p, const struct pred_context *context,
                          uint32_t layer, const uint32_t *ids, bool learn)
{
    struct blend *b = (struct blend *)p;
    if (learn) {
        uint32_t turn = b->turns[layer]++;
        const struct pred_context earlier = pred_context_earlier(context);
        learn_once(b, &earlier, layer, ids);
        for (uint32_t lead = 1; lead < LEADS && lead <= context->known; lead++) {
            if (!learns(lead, turn)) continue;
            struct pred_context ahead = earlier;
            ahead.known -= lead;
            learn_once(b, &ahead, layer, ids);
        }
        pred_popularity_learn(&b->popularity, layer, ids, p->shape.top_k);
    }
    for (int i = 0; i < PARTS; i++) pred_predictor_observe(b->parts[i], context, layer, ids, learn);
}

static unsigned blend_blocks(struct pred_predictor *p, struct pred_block *blocks)
{
    struct blend *b = (struct blend *)p;
    size_t weights = (size_t)LEADS * p->shape.layers * FEATURES * sizeof b->weights[0];
    unsigned n = pred_popularity_blocks(&b->popularity, blocks);
    blocks[n++] = (struct pred_block){ b->weights, weights };
    blocks[n++] = (struct pred_block){ b->energy, weights };
    blocks[n++] = (struct pred_block){ b->turns, p->shape.layers * sizeof b->turns[0] };
    for (int i = 0; i < ROWS; i++) n += pred_rows_blocks(&b->rows[i], blocks + n);
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
