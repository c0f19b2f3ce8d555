/* Predictors: which experts a token will be routed to in a layer that it has not reached.
 *
 *      for each layer:   predict(context, layer + d) ──> scores ──> hints
 *                        observe(context, layer, ids)  once the gate has spoken
 *
 * What a predictor may know of the running token stands in its context: the token and the one
 * before it, known before the forward pass begins; the routing of the layers it has passed; the
 * routing of the sequence's previous token. Predictors hold tables only, so one of them serves any
 * number of sequences at once.
 *
 * A score is the log-odds that the expert is chosen. Tables learn online, in memory that is fixed
 * at create, and forget: a change of domain is followed. The same observations give the same
 * tables.
 *
 * One thread a predictor. Only create, save and load allocate.
 */
#ifndef PREDICTOR_PREDICTOR_H
#define PREDICTOR_PREDICTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/trace.h"

struct pred_shape {
    uint32_t layers, experts, top_k;
    uint32_t tokens_max;        /* tokens that token tables have room for, 0 = 16384 */
    double half_life;           /* of recency, in tokens of a sequence's layer, 0 = 16 */
    char model[64];             /* a saved predictor is refused for another one: */
    uint64_t weights;           /* what tells models apart, 0 = unknown, then the name does */
};

enum { PRED_AHEAD_MAX = 4 };     /* layers that gates may look ahead */
/* Askings of a gate: by the layers between, or of what enters its own layer. */
enum { PRED_OWN = PRED_AHEAD_MAX, PRED_ASKINGS, PRED_NOT_ASKED = PRED_ASKINGS };

struct pred_context {
    uint64_t seq;
    uint32_t token, previous_token;     /* PRED_NO_TOKEN where unknown */
    uint32_t known;             /* layers whose routing is known: 0..known-1 */
    const uint32_t *ids;        /* [layers x top_k] of this token, the first `known` layers valid */
    const uint32_t *previous;   /* [layers x top_k] of the sequence's previous token, or NULL */
    const uint32_t *future;     /* oracle (replay): this token's whole routing; else NULL */
    /* What a layer's own gate says of the hidden state before layer - d - 1 was through, or, at
     * PRED_OWN, of the one that enters the layer, before its attention: by how much each expert is
     * above the last that it would choose, in spreads of its scores. [d] = [layers x experts]; the
     * first of a layer is NAN where it was not asked. NULL: no gate is. */
    const float *gates[PRED_ASKINGS];
};

static inline bool pred_context_has(const struct pred_context *context,
                                    const struct pred_shape *shape, uint32_t asking, uint32_t layer)
{
    if (!context->gates[asking]) return false;
    float first = context->gates[asking][(size_t)layer * shape->experts];
    return first == first;
}

/* The latest asking of the layer's gate when `known` layers are known, or PRED_NOT_ASKED. */
static inline uint32_t pred_context_asking(const struct pred_context *context,
                                           const struct pred_shape *shape, uint32_t layer)
{
    uint32_t between = layer - context->known;
    if (between == 0 && pred_context_has(context, shape, PRED_OWN, layer)) return PRED_OWN;
    return between < PRED_AHEAD_MAX && between <= layer &&
           pred_context_has(context, shape, between, layer) ? between : PRED_NOT_ASKED;
}

/* What it said; NULL: it was not asked. */
static inline const float *pred_context_margins(const struct pred_context *context,
                                                const struct pred_shape *shape, uint32_t layer)
{
    uint32_t asking = pred_context_asking(context, shape, layer);
    if (asking == PRED_NOT_ASKED) return NULL;
    return context->gates[asking] + (size_t)layer * shape->experts;
}

/* The same token before the layer's own gate was asked. */
static inline struct pred_context pred_context_earlier(const struct pred_context *context)
{
    struct pred_context earlier = *context;
    earlier.gates[PRED_OWN] = NULL;
    return earlier;
}

struct pred_predictor;

/* One piece of a predictor's state, for save and load. */
struct pred_block {
    void *memory;
    size_t bytes;
};
enum { PRED_BLOCKS_MAX = 64 };

struct pred_predictor_ops {
    const char *name;
    bool replay_only;
    bool live_only;             /* lives on what no trace holds */
    int (*create)(struct pred_predictor **out, const struct pred_shape *shape);
    void (*destroy)(struct pred_predictor *p);
    /* The routing of the layer is known now. `learn` = false: tables stay as they are; what follows
     * the recent past (decayed frequency) goes on. */
    void (*observe)(struct pred_predictor *p, const struct pred_context *context, uint32_t layer,
                    const uint32_t *ids, bool learn);
    /* Log-odds of all experts of the layer, by the layers before it that are known. */
    void (*predict)(struct pred_predictor *p, const struct pred_context *context, uint32_t layer,
                    float *scores);
    /* Describes the state; returns the number of blocks. */
    unsigned (*blocks)(struct pred_predictor *p, struct pred_block *blocks);
};

/* First member of every predictor. */
struct pred_predictor {
    const struct pred_predictor_ops *ops;
    struct pred_shape shape;
};

/* Names of all predictors in registry order; NULL past the end. */
const char *pred_predictor_name(size_t index);
const struct pred_predictor_ops *pred_predictor_find(const char *name);

/* 0, -ENOENT for an unknown name, -EINVAL for a shape out of range, -ENOMEM. */
int pred_predictor_create(struct pred_predictor **out, const char *name,
                          const struct pred_shape *shape);
void pred_predictor_destroy(struct pred_predictor *p);          /* accepts NULL */

static inline void pred_predictor_observe(struct pred_predictor *p,
                                          const struct pred_context *context, uint32_t layer,
                                          const uint32_t *ids, bool learn)
{
    p->ops->observe(p, context, layer, ids, learn);
}
static inline void pred_predictor_predict(struct pred_predictor *p,
                                          const struct pred_context *context, uint32_t layer,
                                          float *scores)
{
    p->ops->predict(p, context, layer, scores);
}

/* Writes the state: temp file, sync, rename. Load wants the same kind, shape and model: else
 * BASE_EMISMATCH; BASE_EFORMAT, BASE_EVERSION, BASE_ECHECKSUM for what is not whole. After a failed
 * load the predictor is as it was. */
int pred_predictor_save(struct pred_predictor *p, const char *path, struct base_err *err);
int pred_predictor_load(struct pred_predictor *p, const char *path, struct base_err *err);

/* Takes over the state of another one of the same kind and shape. */
void pred_predictor_copy(struct pred_predictor *to, const struct pred_predictor *from);

size_t pred_predictor_bytes(struct pred_predictor *p);
/* Brings all of them into memory, as they are: later no prediction waits for a page, and what is
 * resident is what pred_predictor_bytes says. */
void pred_predictor_settle(struct pred_predictor *p);

extern const struct pred_predictor_ops pred_none_ops, pred_frequency_ops, pred_previous_token_ops,
    pred_token_table_ops, pred_transition_ops, pred_context_ops, pred_blend_ops, pred_oracle_ops,
    pred_lookahead_ops;

#endif
