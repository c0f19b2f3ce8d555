/* Multi-head latent attention of one layer, absorbed: queries are carried into the latent space, so
 * that the cache holds one row a token for all heads. One formula for prompt and generated tokens:
 * the same bits however a prompt is cut.
 */
#ifndef ENGINE_MLA_H
#define ENGINE_MLA_H

#include "engine/core.h"

/* cos and sin of each row's position, once a step. */
void eng_mla_positions(struct eng_core *core, const struct eng_batch *batch);

/* plan.normed -> plan.branch; writes the rows' keys into the cache first. */
void eng_mla(struct eng_core *core, const struct eng_layer *layer, uint32_t layer_index,
             const struct eng_batch *batch);

#endif
