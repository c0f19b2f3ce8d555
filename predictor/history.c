#include "predictor/history.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int pred_history_init(struct pred_history *h, const struct pred_shape *shape)
{
    h->row = shape->layers * shape->top_k;
    h->last = calloc(PRED_HISTORY_PLACES, sizeof h->last[0]);
    h->ids = calloc((size_t)PRED_HISTORY_PLACES * h->row, sizeof h->ids[0]);
    return h->last && h->ids ? 0 : -ENOMEM;
}

void pred_history_fini(struct pred_history *h)
{
    free(h->last);
    free(h->ids);
}

static size_t place_of(uint64_t seq)
{
    return (size_t)((seq * UINT64_C(0x9e3779b97f4a7c15)) >> 54);
}
_Static_assert(PRED_HISTORY_PLACES == 1 << 10, "place_of takes the upper 10 bits");

void pred_history_contexts(const struct pred_history *h, const struct pred_shape *shape,
                           const struct pred_step *step, struct pred_context *contexts,
                           uint32_t *ids)
{
    uint32_t n = step->token_count, top_k = shape->top_k;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *own = ids + (size_t)i * h->row;
        for (uint32_t l = 0; l < shape->layers; l++) {
            memcpy(own + (size_t)l * top_k, step->expert_ids + ((size_t)l * n + i) * top_k,
                   top_k * sizeof own[0]);
        }
        size_t place = place_of(step->seqs[i]);
        const struct pred_last *last = &h->last[place];
        bool known = last->seq == step->seqs[i] + 1;
        contexts[i] = (struct pred_context){
            .seq = step->seqs[i], .token = step->tokens[i],
            .previous_token = known ? last->token : PRED_NO_TOKEN,
            .ids = own, .previous = known ? h->ids + place * h->row : NULL, .future = own,
        };
        /* Within a prompt the token before runs beside this one: its routing is not past yet. */
        if (i > 0 && step->seqs[i - 1] == step->seqs[i]) {
            contexts[i].previous_token = step->tokens[i - 1];
            contexts[i].previous = NULL;
        }
    }
}

const uint32_t *pred_history_find(const struct pred_history *h, uint64_t seq, uint32_t *token)
{
    size_t place = place_of(seq);
    if (h->last[place].seq != seq + 1) return NULL;
    *token = h->last[place].token;
    return h->ids + place * h->row;
}

void pred_history_keep(struct pred_history *h, uint64_t seq, uint32_t token, const uint32_t *ids)
{
    size_t place = place_of(seq);
    h->last[place] = (struct pred_last){ .seq = seq + 1, .token = token };
    memcpy(h->ids + place * h->row, ids, h->row * sizeof ids[0]);
}

void pred_history_update(struct pred_history *h, const struct pred_step *step, const uint32_t *ids)
{
    for (uint32_t i = 0; i < step->token_count; i++) {
        pred_history_keep(h, step->seqs[i], step->tokens[i], ids + (size_t)i * h->row);
    }
}
