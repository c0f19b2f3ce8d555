/* Routing: which experts each token of the batch goes to, and how much of each it takes. */
#ifndef ENGINE_GATE_H
#define ENGINE_GATE_H

#include "engine/core.h"

/* plan.normed -> plan.route_ids and route_weights of this moe layer, strongest first. */
void eng_gate(struct eng_core *core, const struct eng_layer *layer, const struct eng_batch *batch);

/* How a layer chooses. */
struct kern_gate eng_gate_of(const struct model_shape *shape, const struct eng_layer *layer);

/* Sorts rows [begin, end) by expert: pairs, expert_first and expert_count, row_pairs; and fills
 * plan.wanted with the distinct experts, in ascending id or strongest first (largest weight, then
 * lower id). Rows of sequences that failed are left out. Returns how many experts are wanted. */
uint32_t eng_gate_group(struct eng_core *core, const struct eng_layer *layer,
                        const struct eng_batch *batch, uint32_t begin, uint32_t end,
                        bool strongest_first);

#endif
