/* The mixture-of-experts part of a layer: acquire, compute what has arrived, sum, release.
 *
 * Generated tokens: demand reads leave first, the shared expert is computed while they are under
 * way, then experts as they become readable; each (token, expert) output is kept and they are
 * summed in ascending expert id. Prompt tokens: experts in ascending id, added up at once. Both
 * give sum = fma(weight, output, sum) in ascending id from zero, then + shared: the same bits
 * whatever arrived first and however many experts one acquire was granted.
 *
 * An expert that cannot be read fails the sequences whose tokens need it, and no others.
 */
#ifndef ENGINE_MOE_H
#define ENGINE_MOE_H

#include "engine/core.h"

/* plan.normed -> plan.branch. */
void eng_moe(struct eng_core *core, const struct eng_layer *layer, const struct eng_batch *batch);

#endif
