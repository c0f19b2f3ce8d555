/* Choosing the next token from one row of logits.
 *
 * A request has its own random numbers, one draw a token, so what it gets does not depend on its
 * neighbours in the batch. Greedy takes the lowest id among equals. Order of the cuts: temperature,
 * then top-k, then top-p of what is left. No allocation: the caller lends room for `vocab`
 * candidates.
 */
#ifndef ENGINE_SAMPLER_H
#define ENGINE_SAMPLER_H

#include <stdint.h>

#include "base/rng.h"
#include "engine/engine.h"
#include "kernels/kern.h"

/* Room for one candidate; for a share and its part of a sum where no order is needed. */
struct eng_candidate {
    float logit;
    uint32_t id;
};

/* The token, and its log-probability under the unscaled distribution in `*logprob`. Negative:
 * -EDOM, the logits are no numbers. Every op set chooses the same. */
int64_t eng_sample(const struct kern_ops *ops, const struct eng_sampling *sampling,
                   struct base_rng *rng, const float *logits, uint32_t vocab,
                   struct eng_candidate *room, float *logprob);

#endif
