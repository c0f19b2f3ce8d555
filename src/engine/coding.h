/* How the inputs of products with weights go in (engine.activations): as f32, rounded to bf16, or
 * as integers. Engine thread, at open.
 *
 * F32 and F16 matrices have f32 inputs in every mode: bf16 has not their weights, and rounding the
 * inputs alone would cost exactness and save nothing. INT8 and INT4 matrices, experts or dense,
 * take integers of three digits in f32 and bf16 mode, which keep 24 bits, of one in int8 mode,
 * where all other matrices have what they have in bf16 mode.
 */
#ifndef ENGINE_CODING_H
#define ENGINE_CODING_H

#include "engine/core.h"

/* An expert's matrix `m` as the store has it, without addresses. */
struct kern_matrix eng_coding_expert(const struct tier_store *store, const struct model_shape *s,
                                     int m);

/* Fills in what the plan's size has of it; for products on the CPU. `dense_grouped`: some of the
 * dense weights are INT8. */
void eng_coding_choose(struct eng_plan_size *plan, const struct eng_config *config,
                       const struct model_shape *shape, const struct tier_store *store,
                       bool dense_grouped);

/* An option that could have no effect is refused: by what is known of the experts, and, of bf16,
 * by the dense weights when they have been read. */
int eng_coding_check(const struct eng_core *core, const struct eng_config *config,
                     bool dense_grouped, struct base_err *err);
int eng_coding_check_dense(const struct eng_core *core, const struct eng_plan_size *plan,
                           struct base_err *err);

#endif
