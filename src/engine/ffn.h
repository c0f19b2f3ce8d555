/* The gated feed-forward part: down(silu(gate x) * up x), for dense layers and shared experts. */
#ifndef ENGINE_FFN_H
#define ENGINE_FFN_H

#include "engine/core.h"

/* x[rows][hidden] -> y[rows][hidden]. */
void eng_ffn(struct eng_core *core, const struct eng_mlp *mlp, const float *x, float *y,
             uint32_t rows);

#endif
