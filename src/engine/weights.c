#include "engine/weights.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"

enum { WEIGHT_ALIGN = 64, NAME_MAX_BYTES = 160 };

static struct base_mem_tag dense_tag = { .name = "dense" };

/* One walk over all tensors serves both passes: without memory it checks and counts, with memory it
 * reads. */
struct loader {
    const struct model_shape *shape;
    const struct model_files *files;
    struct base_err *err;
    int rc;                     /* the first failure; everything after it is skipped */
    char *memory;               /* NULL in the counting pass */
    uint64_t used;
    char prefix[64];            /* "model.layers.3." */
};

enum kern_dtype eng_weights_dtype(enum model_dtype dtype)
{
    switch (dtype) {
    case MODEL_F32: return KERN_F32;
    case MODEL_F16: return KERN_F16;
    case MODEL_BF16: return KERN_BF16;
    case MODEL_F8_E4M3: return KERN_FP8_E4M3;
    case MODEL_I8:
        return KERN_INT8;
    case MODEL_U8:
        return KERN_INT4;
    default: return KERN_DTYPE_COUNT;
    }
}

static char *place(struct loader *loader, uint64_t bytes)
{
    char *at = loader->memory ? loader->memory + loader->used : NULL;
    loader->used += (bytes + WEIGHT_ALIGN - 1) / WEIGHT_ALIGN * WEIGHT_ALIGN;
    return at;
}

static const struct model_tensor *find(struct loader *loader, const char *name)
{
    char full[NAME_MAX_BYTES];
    snprintf(full, sizeof full, "%s%s", loader->prefix, name);
    const struct model_tensor *tensor = model_files_find(loader->files, full);
    if (!tensor) {
        loader->rc = base_err_set(loader->err, BASE_EMISMATCH,
                                  "%s: tensor '%s' is missing from the checkpoint",
                                  loader->shape->name, full);
    }
    return tensor;
}

static bool check_shape(struct loader *loader, const struct model_tensor *tensor, uint32_t dims,
                        uint64_t rows, uint64_t cols)
{
    if (tensor->dims == dims && tensor->shape[0] == rows &&
        (dims == 1 || tensor->shape[1] == cols)) {
        return true;
    }
    char want[48], have[100];
    size_t used = 0;
    snprintf(want, sizeof want, dims == 1 ? "[%" PRIu64 "]" : "[%" PRIu64 ", %" PRIu64 "]", rows,
             cols);
    have[0] = '\0';
    for (uint32_t i = 0; i < tensor->dims; i++) {
        used += (size_t)snprintf(have + used, sizeof have - used, "%s%" PRIu64, i ? ", " : "",
                                 tensor->shape[i]);
    }
    loader->rc = base_err_set(loader->err, BASE_EMISMATCH,
                              "%s: tensor '%s' has the shape [%s], config.json asks for %s",
                              loader->shape->name, tensor->name, have, want);
    return false;
}

static void *read_tensor(struct loader *loader, const struct model_tensor *tensor)
{
    void *to = place(loader, tensor->bytes);
    if (!to) return NULL;
    int rc = model_files_read(loader->files, tensor, to, loader->err);
    if (rc < 0) loader->rc = rc;
    return rc < 0 ? NULL : to;
}

static void check_fp8(struct loader *loader, const struct model_tensor *tensor, const void *data)
{
    const unsigned char *codes = data;
    for (uint64_t i = 0; i < tensor->bytes; i++) {
        if ((codes[i] & 0x7f) == 0x7f) {
            loader->rc =
                base_err_set(loader->err, BASE_EFORMAT,
                             "%s: tensor '%s' holds FP8 code 0x%02x (NaN) at element %" PRIu64
                             "; the checkpoint is damaged",
                             loader->shape->name, tensor->name, codes[i], i);
            return;
        }
    }
}

static const void *read_scales(struct loader *loader, const struct model_tensor *weight,
                               const char *name, uint32_t rows, uint32_t cols)
{
    const struct model_shape *shape = loader->shape;
    if (shape->fp8_block_rows == 0 || shape->fp8_block_cols == 0) {
        loader->rc = base_err_set(loader->err, BASE_EMISMATCH,
                                  "%s: tensor '%s' is FP8, but config.json has no "
                                  "quantization_config.weight_block_size",
                                  shape->name, weight->name);
        return NULL;
    }
    char scale_name[NAME_MAX_BYTES];
    snprintf(scale_name, sizeof scale_name, "%s_scale_inv", name);
    const struct model_tensor *tensor = find(loader, scale_name);
    if (!tensor) return NULL;
    uint32_t scale_rows = (rows + shape->fp8_block_rows - 1) / shape->fp8_block_rows;
    uint32_t scale_cols = (cols + shape->fp8_block_cols - 1) / shape->fp8_block_cols;
    if (!check_shape(loader, tensor, 2, scale_rows, scale_cols)) return NULL;
    if (tensor->dtype != MODEL_F32) {
        loader->rc =
            base_err_set(loader->err, BASE_EMISMATCH, "%s: tensor '%s' is %s, scales must be F32",
                         shape->name, tensor->name, model_dtype_name(tensor->dtype));
        return NULL;
    }
    const char *scales = read_tensor(loader, tensor);
    for (uint64_t i = 0; scales && i < (uint64_t)scale_rows * scale_cols; i++) {
        float scale;
        memcpy(&scale, scales + 4 * i, sizeof scale);
        if (!isfinite(scale)) {
            loader->rc =
                base_err_set(loader->err, BASE_EFORMAT,
                             "%s: tensor '%s' holds a scale that is no finite number at %" PRIu64,
                             shape->name, tensor->name, i);
            return NULL;
        }
    }
    return scales;
}

static void matrix(struct loader *loader, struct kern_matrix *out, const char *name, uint32_t rows,
                   uint32_t cols)
{
    if (loader->rc < 0) return;
    const struct model_tensor *tensor = find(loader, name);
    if (!tensor || !check_shape(loader, tensor, 2, rows, cols)) return;
    enum kern_dtype dtype = eng_weights_dtype(tensor->dtype);
    if (dtype == KERN_DTYPE_COUNT || kern_dtype_grouped(dtype)) {
        loader->rc =
            base_err_set(loader->err, BASE_EMISMATCH,
                         "%s: tensor '%s' is %s; weights must be F32, F16, BF16 or F8_E4M3 (only "
                         "routed experts can be I8 or U8)",
                         loader->shape->name, tensor->name, model_dtype_name(tensor->dtype));
        return;
    }
    *out = (struct kern_matrix){ .dtype = dtype, .rows = rows, .cols = cols };
    out->data = read_tensor(loader, tensor);
    if (loader->rc < 0 || dtype != KERN_FP8_E4M3) return;
    if (out->data) check_fp8(loader, tensor, out->data);
    if (loader->rc < 0) return;
    out->scales = read_scales(loader, tensor, name, rows, cols);
    out->scale_rows = loader->shape->fp8_block_rows;
    out->scale_cols = loader->shape->fp8_block_cols;
}

/* Norms and biases are small and used as f32: decoded once. */
static const float *vector(struct loader *loader, const char *name, uint32_t count)
{
    if (loader->rc < 0) return NULL;
    const struct model_tensor *tensor = find(loader, name);
    if (!tensor || !check_shape(loader, tensor, 1, count, 0)) return NULL;
    enum kern_dtype dtype = eng_weights_dtype(tensor->dtype);
    if (dtype == KERN_DTYPE_COUNT || dtype == KERN_FP8_E4M3 || kern_dtype_grouped(dtype)) {
        loader->rc =
            base_err_set(loader->err, BASE_EMISMATCH,
                         "%s: tensor '%s' is %s; norms and biases must be F32, F16 or BF16",
                         loader->shape->name, tensor->name, model_dtype_name(tensor->dtype));
        return NULL;
    }
    float *values = (float *)(void *)place(loader, (uint64_t)count * sizeof(float));
    if (!values) return NULL;
    void *stored = malloc(tensor->bytes);
    if (!stored) {
        loader->rc = -ENOMEM;
        return NULL;
    }
    int rc = model_files_read(loader->files, tensor, stored, loader->err);
    if (rc < 0) loader->rc = rc;
    else kern_ops_cpu(KERN_CPU_REFERENCE)->to_f32(values, stored, dtype, count);
    free(stored);
    return rc < 0 ? NULL : values;
}

static void mlp(struct loader *loader, struct eng_mlp *out, const char *part, uint32_t width)
{
    char name[64];
    uint32_t hidden = loader->shape->hidden;
    snprintf(name, sizeof name, "%s.gate_proj.weight", part);
    matrix(loader, &out->gate, name, width, hidden);
    snprintf(name, sizeof name, "%s.up_proj.weight", part);
    matrix(loader, &out->up, name, width, hidden);
    snprintf(name, sizeof name, "%s.down_proj.weight", part);
    matrix(loader, &out->down, name, hidden, width);
}

static void attention(struct loader *loader, struct eng_layer *layer)
{
    const struct model_shape *s = loader->shape;
    uint32_t q_rows = s->heads * (s->qk_nope_dim + s->qk_rope_dim);
    if (s->q_lora_rank > 0) {
        matrix(loader, &layer->q_a, "self_attn.q_a_proj.weight", s->q_lora_rank, s->hidden);
        layer->q_a_norm = vector(loader, "self_attn.q_a_layernorm.weight", s->q_lora_rank);
        matrix(loader, &layer->q_b, "self_attn.q_b_proj.weight", q_rows, s->q_lora_rank);
    } else {
        matrix(loader, &layer->q_b, "self_attn.q_proj.weight", q_rows, s->hidden);
    }
    matrix(loader, &layer->kv_a, "self_attn.kv_a_proj_with_mqa.weight",
           s->kv_lora_rank + s->qk_rope_dim, s->hidden);
    layer->kv_a_norm = vector(loader, "self_attn.kv_a_layernorm.weight", s->kv_lora_rank);
    matrix(loader, &layer->kv_b, "self_attn.kv_b_proj.weight",
           s->heads * (s->qk_nope_dim + s->v_dim), s->kv_lora_rank);
    matrix(loader, &layer->o, "self_attn.o_proj.weight", s->hidden, s->heads * s->v_dim);
}

static void load_layer(struct loader *loader, struct eng_layer *layer, uint32_t index,
                       int32_t moe_layer)
{
    const struct model_shape *s = loader->shape;
    snprintf(loader->prefix, sizeof loader->prefix, "model.layers.%u.", index);
    layer->moe_layer = moe_layer;
    layer->attention_norm = vector(loader, "input_layernorm.weight", s->hidden);
    layer->ffn_norm = vector(loader, "post_attention_layernorm.weight", s->hidden);
    attention(loader, layer);
    if (moe_layer < 0) {
        mlp(loader, &layer->mlp, "mlp", s->dense_width);
        return;
    }
    matrix(loader, &layer->gate, "mlp.gate.weight", s->experts, s->hidden);
    if (s->topk_method == MODEL_TOPK_NOAUX) {
        layer->gate_bias = vector(loader, "mlp.gate.e_score_correction_bias", s->experts);
    }
    if (s->shared_experts > 0) {
        mlp(loader, &layer->mlp, "mlp.shared_experts", s->shared_experts * s->expert_width);
    }
}

/* `weights->layers` must have room for all layers. */
static int walk(struct loader *loader, struct eng_weights *weights)
{
    const struct model_shape *s = loader->shape;
    loader->used = 0;
    loader->prefix[0] = '\0';
    matrix(loader, &weights->embed, "model.embed_tokens.weight", s->vocab, s->hidden);
    weights->norm = vector(loader, "model.norm.weight", s->hidden);
    if (s->tied_embeddings) weights->head = weights->embed;
    else matrix(loader, &weights->head, "lm_head.weight", s->vocab, s->hidden);
    int32_t moe_layer = 0;
    for (uint32_t i = 0; i < s->layers && loader->rc == 0; i++) {
        bool moe = model_shape_is_moe(s, i);
        load_layer(loader, &weights->layers[i], i, moe ? moe_layer : -1);
        moe_layer += moe;
    }
    return loader->rc;
}

int eng_weights_plan(const struct model_shape *shape, const struct model_files *files,
                     uint64_t *bytes, struct base_err *err)
{
    struct eng_weights weights = { 0 };
    weights.layers = calloc(shape->layers, sizeof *weights.layers);
    if (!weights.layers) return -ENOMEM;
    struct loader loader = { .shape = shape, .files = files, .err = err };
    int rc = walk(&loader, &weights);
    *bytes = loader.used;
    free(weights.layers);
    return rc;
}

int eng_weights_load(struct eng_weights *weights, const struct model_shape *shape,
                     const struct model_files *files, struct base_err *err)
{
    struct loader loader = { .shape = shape, .files = files, .err = err };
    uint64_t bytes = 0;
    *weights = (struct eng_weights){ 0 };
    int rc = eng_weights_plan(shape, files, &bytes, err);
    if (rc < 0) return rc;
    weights->layers = calloc(shape->layers, sizeof *weights->layers);
    weights->memory = base_mem_alloc(&dense_tag, bytes, WEIGHT_ALIGN);
    weights->bytes = bytes;
    if (!weights->layers || !weights->memory) {
        eng_weights_free(weights);
        return base_err_set(err, -ENOMEM, "%s: no memory for %" PRIu64 " bytes of dense weights",
                            shape->name, bytes);
    }
    loader.memory = weights->memory;
    rc = walk(&loader, weights);
    MUST(rc < 0 || loader.used == bytes);
    if (rc < 0) {
        eng_weights_free(weights);
        return base_err_set(err, rc, "%s: the dense weights cannot be read: %s", shape->name,
                            base_err_name(rc));
    }
    return 0;
}

void eng_weights_free(struct eng_weights *weights)
{
    free(weights->layers);
    base_mem_free(&dense_tag, weights->memory, weights->bytes);
    *weights = (struct eng_weights){ 0 };
}
