/* The last token of each running sequence and its routing: what a context needs to know of the
 * past. A fixed number of places, one for each hash of a sequence number; sequences that share a
 * place forget each other's past, which costs a prediction and nothing else. */
#ifndef PREDICTOR_HISTORY_H
#define PREDICTOR_HISTORY_H

#include "predictor/predictor.h"

enum { PRED_HISTORY_PLACES = 1024 };

struct pred_history {
    uint32_t row;               /* layers x top_k */
    struct pred_last {
        uint64_t seq;           /* + 1; 0 = free */
        uint32_t token;
    } *last;
    uint32_t *ids;              /* [places x row] */
};

int pred_history_init(struct pred_history *history, const struct pred_shape *shape);
void pred_history_fini(struct pred_history *history);

/* The routing [layers x top_k] of the sequence's last token, and that token; NULL if unknown. Lives
 * until that place is written again. */
const uint32_t *pred_history_find(const struct pred_history *history, uint64_t seq,
                                  uint32_t *token);
/* This token and its routing are the sequence's past now. */
void pred_history_keep(struct pred_history *history, uint64_t seq, uint32_t token,
                       const uint32_t *ids);

/* Contexts of all tokens of a step, nothing of it known yet. `ids` [tokens x layers x top_k] and
 * `contexts` [tokens] are the caller's; ids are filled with the step's routing, token by token. */
void pred_history_contexts(const struct pred_history *history, const struct pred_shape *shape,
                           const struct pred_step *step, struct pred_context *contexts,
                           uint32_t *ids);
/* The step is through: its tokens are the past now. */
void pred_history_update(struct pred_history *history, const struct pred_step *step,
                         const uint32_t *ids);

#endif
