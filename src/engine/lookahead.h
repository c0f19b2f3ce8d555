/* Lookahead: the gates of the next layers asked with this layer's hidden state, for the predictor.
 * They are the model's own, with bias and group mask; their answer is a guess, since what the
 * blocks between will add is not known. Costs a product of hidden x experts for each gate and row.
 * Changes nothing that the forward pass reads. Engine thread; nothing allocates. */
#ifndef ENGINE_LOOKAHEAD_H
#define ENGINE_LOOKAHEAD_H

#include "engine/core.h"

/* plan.hidden holds the stream as the experts of `layer` get it; with predictor.lookahead_shared
 * plan.branch holds the shared experts' output already. */
void eng_lookahead(struct eng_core *core, const struct eng_layer *layer,
                   const struct eng_batch *batch);
/* The same in a dense layer, as its own block gets the stream: asks where the next layer is the
 * first one with experts, whose gate nobody would ask ahead otherwise. */
void eng_lookahead_dense(struct eng_core *core, const struct eng_layer *layer,
                         const struct eng_batch *batch);
/* Of `layer` itself, before its attention; plan.hidden holds what enters it. */
void eng_lookahead_own(struct eng_core *core, const struct eng_layer *layer,
                       const struct eng_batch *batch);

#endif
