/* One forward pass over a batch: embeddings, layers, and the head for the rows one asks for. */
#ifndef ENGINE_FORWARD_H
#define ENGINE_FORWARD_H

#include "engine/core.h"

/* Leaves the residual stream after the last layer in plan.hidden and the routing in plan.route_*.
 * Sequences that needed an unreadable expert have seq->error set. */
void eng_forward(struct eng_core *core, const struct eng_batch *batch);

/* Logits of `count` rows (at most decode_rows + 1): plan.logits[i] for rows[i]; on a device only
 * where plan.head_whole[i] is set, else plan.head_best[i]. 0, or a negative code: then there are
 * none, and all sequences of the batch have their errors set. */
int eng_head(struct eng_core *core, const struct eng_batch *batch, const uint32_t *rows,
             uint32_t count);

#endif
