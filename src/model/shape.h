/* The dimensions of a model of the DeepSeek-V2/V3 architecture, read from config.json.
 *
 * Sources: arXiv 2405.04434 (V2), arXiv 2412.19437 (V3), the checkpoints' config.json. Every value
 * is checked for range and for agreement with the others; nothing is guessed silently.
 * Immutable after load; any thread.
 */
#ifndef MODEL_SHAPE_H
#define MODEL_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum model_family { MODEL_DEEPSEEK_V2, MODEL_DEEPSEEK_V3 };
enum model_scoring { MODEL_SCORE_SOFTMAX, MODEL_SCORE_SIGMOID };
/* greedy: top-k of all. group_max: group score = best in group (V2). noaux_tc: group score = sum of
 * the two best biased scores (V3). */
enum { MODEL_GROUPS_MAX = 64 }; /* what the gates of kernels/ have room for */
enum model_topk { MODEL_TOPK_GREEDY, MODEL_TOPK_GROUP_MAX, MODEL_TOPK_NOAUX };

struct model_yarn {
    bool enabled;
    double factor;
    double beta_fast, beta_slow;
    double mscale, mscale_all_dim;
    uint32_t original_positions;
};

struct model_shape {
    enum model_family family;
    char name[64];                  /* folder's last component: what /v1/models shows */
    uint32_t layers;                /* without the MTP layer */
    uint32_t mtp_layers;
    uint32_t dense_layers;          /* first_k_dense_replace */
    uint32_t moe_layer_freq;
    uint32_t hidden;
    uint32_t dense_width;           /* intermediate_size */
    uint32_t expert_width;          /* moe_intermediate_size */
    uint32_t experts;               /* routed, per layer; 0 = no MoE layer */
    uint32_t shared_experts;        /* their widths add up into one matrix */
    uint32_t top_k;
    uint32_t groups, top_groups;    /* 1, 1 when the gate knows no groups */
    enum model_scoring scoring;
    enum model_topk topk_method;
    bool norm_topk;
    double routed_scaling;
    uint32_t heads;
    uint32_t q_lora_rank;           /* 0 = plain q_proj */
    uint32_t kv_lora_rank;
    uint32_t qk_nope_dim, qk_rope_dim, v_dim;
    uint32_t vocab;
    uint32_t positions_max;
    double rms_eps;
    double rope_theta;
    struct model_yarn yarn;
    bool rope_interleaved;          /* pairs (2i, 2i+1), as in the checkpoints; config may say no */
    bool attention_bias;            /* refused at load when true: no public checkpoint has it */
    bool tied_embeddings;
    uint32_t fp8_block_rows, fp8_block_cols;    /* weight_block_size, 0 when not FP8 */
    int32_t bos_id, eos_ids[8];     /* -1 = none */
    uint32_t eos_count;
};

/* Reads DIR/config.json (and generation_config.json's eos ids, if there). Returns 0; -errno of the
 * file; BASE_EFORMAT, BASE_EMISMATCH or BASE_EVERSION with a sentence naming key and value. */
int model_shape_load(struct model_shape *shape, const char *dir, struct base_err *err);
int model_shape_parse(struct model_shape *shape, const char *json, size_t size, const char *name,
                      struct base_err *err);

/* XXH3 of every field but the name: equal for folders whose answers follow the same rules. */
uint64_t model_shape_hash(const struct model_shape *shape);

/* The MoE layers are the multiples of moe_layer_freq from first_k_dense_replace on, the step being
 * counted from layer 0. Source: the reference modeling_deepseek.py of V2/V3. */
static inline uint32_t model_shape_moe_step(const struct model_shape *shape)
{
    return shape->moe_layer_freq ? shape->moe_layer_freq : 1;
}
static inline uint32_t model_shape_moe_first(const struct model_shape *shape)
{
    const uint32_t step = model_shape_moe_step(shape);
    return (shape->dense_layers + step - 1) / step * step;
}
static inline bool model_shape_is_moe(const struct model_shape *shape, uint32_t layer)
{
    return shape->experts > 0 && layer >= model_shape_moe_first(shape) &&
           layer % model_shape_moe_step(shape) == 0;
}
static inline uint32_t model_shape_moe_layers(const struct model_shape *shape)
{
    uint32_t count = 0;
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        count += model_shape_is_moe(shape, layer);
    }
    return count;
}

/* Softmax scale of attention: (nope + rope)^-0.5, times YaRN's mscale(factor, mscale_all_dim)^2. */
double model_shape_softmax_scale(const struct model_shape *shape);

/* Rotary frequencies (qk_rope_dim / 2 of them), with YaRN's ramp, and the factor on cos and sin
 * (mscale / mscale_all_dim). Source: the reference modeling_deepseek.py of V2/V3. */
void model_shape_rope(const struct model_shape *shape, double *inverse_frequency,
                      double *magnitude);

#endif
