/* The key of an expert: (layer, index, rung) packed in 64 bits, ordered by layer, then index.
 *
 * `layer` is the model's layer number (0-based, dense layers counted), `index` the routed expert
 * within it.
 */
#ifndef MODEL_EXPERT_H
#define MODEL_EXPERT_H

#include <stdint.h>

enum model_rung { MODEL_RUNG_NATIVE, MODEL_RUNG_INT8, MODEL_RUNG_INT4, MODEL_RUNG_COUNT };

/* The three matrices of an expert, in the order in which they lie in a slot. */
enum model_matrix { MODEL_GATE, MODEL_UP, MODEL_DOWN, MODEL_MATRIX_COUNT };

static inline uint64_t model_expert_key(uint32_t layer, uint32_t index, enum model_rung rung)
{
    return (uint64_t)layer << 32 | (uint64_t)index << 8 | (uint64_t)rung;
}
static inline uint32_t model_expert_layer(uint64_t key)
{
    return (uint32_t)(key >> 32);
}
static inline uint32_t model_expert_index(uint64_t key)
{
    return (uint32_t)(key >> 8) & 0xffffffu;
}

#endif
