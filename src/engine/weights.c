#include "engine/weights.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "engine/ranks.h"
#include "engine/weights_read.h"
#include "kernels/tile.h"
#include "kernels/weave.h"

enum { WEIGHT_ALIGN = 64, NAME_MAX_BYTES = 160 };

/* What may be done with a matrix: some are multiplied and nothing else. */
enum use { USE_ANY, USE_PRODUCTS };

/* An INT8 matrix, read but not looked at yet. */
struct grouped {
    struct kern_matrix w;               /* in rows */
    const struct model_tensor *scales;
    bool bad;                           /* of them one is no finite number */
};

struct grouped_list {
    struct grouped *at;                 /* owned; NULL in the counting pass */
    uint32_t count;
};

static struct base_mem_tag dense_tag = { .name = "dense" };

/* One walk over all tensors serves both passes: without memory it checks and counts, with memory it
 * reads. */
struct loader {
    const struct model_shape *shape;
    const struct model_files *files;
    const struct eng_ranks *ranks;
    struct eng_weights_order order;
    struct base_err *err;
    int rc;                     /* the first failure; everything after it is skipped */
    char *memory;               /* NULL in the counting pass */
    uint64_t used;
    struct eng_reads reads;     /* of matrices, until all are known */
    struct grouped_list grouped;
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

/* Noted here, read after the walk (weights_read.h). */
static void *note_part(struct loader *loader, const struct model_tensor *tensor,
                       const struct eng_part *part)
{
    const uint64_t cols = part->col_end - part->col, rows = part->row_end - part->row;
    const uint64_t bytes = rows * cols * model_dtype_bytes(tensor->dtype);
    const struct eng_read read = { .tensor = tensor, .part = *part, .to = place(loader, bytes) };
    if (!read.to || bytes == 0) return read.to;
    loader->rc = eng_reads_add(&loader->reads, &read);
    return loader->rc < 0 ? NULL : read.to;
}

/* The scales of rows of an INT8 matrix lie behind them. */
static void note_grouped(struct loader *loader, const struct model_tensor *weight,
                         const char *name, const struct eng_part *part, struct kern_matrix *out)
{
    char scale_name[NAME_MAX_BYTES];
    snprintf(scale_name, sizeof scale_name, "%s_scale_inv", name);
    const struct model_tensor *tensor = find(loader, scale_name);
    if (!tensor) return;
    const uint64_t cols = weight->shape[1];
    const uint64_t small = (cols + KERN_GROUP_SMALL - 1) / KERN_GROUP_SMALL;
    const uint64_t large = (cols + KERN_GROUP_LARGE - 1) / KERN_GROUP_LARGE;
    const bool is_large = tensor->dims == 2 && tensor->shape[1] == large && large != small;
    if (!check_shape(loader, tensor, 2, weight->shape[0], is_large ? large : small)) return;
    if (tensor->dtype != MODEL_BF16) {
        loader->rc = base_err_set(loader->err, BASE_EMISMATCH,
                                  "%s: tensor '%s' is %s, scales of INT8 must be BF16",
                                  loader->shape->name, tensor->name,
                                  model_dtype_name(tensor->dtype));
        return;
    }
    MUST(part->col == 0 && part->col_end == cols);
    const struct eng_part rows = { part->row, part->row_end, 0, (uint32_t)tensor->shape[1] };
    out->scale_rows = 1;
    out->scale_cols = is_large ? KERN_GROUP_LARGE : KERN_GROUP_SMALL;
    out->scales = note_part(loader, tensor, &rows);
    const uint32_t at = loader->grouped.count++;
    if (loader->rc < 0 || !loader->grouped.at) return;
    loader->grouped.at[at] = (struct grouped){ .w = *out, .scales = tensor };
    out->tiled = loader->order.tile && out->rows > 0;
}

static int read_scale_table(struct loader *loader, const struct model_tensor *tensor,
                            uint64_t count, float **table)
{
    *table = malloc(count * sizeof **table + 1);
    if (!*table) return -ENOMEM;
    int rc = model_files_read(loader->files, tensor, *table, loader->err);
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        if (isfinite((*table)[i])) continue;
        rc = base_err_set(loader->err, BASE_EFORMAT,
                          "%s: tensor '%s' holds a scale that is no finite number at %" PRIu64,
                          loader->shape->name, tensor->name, i);
    }
    return rc;
}

static uint32_t divisor(uint32_t a, uint32_t b)
{
    while (b > 0) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The scales of a part. Its columns begin where a scale does; rows may begin within one: then each
 * scale is written for fewer rows, and more often. */
static const void *read_scales(struct loader *loader, const struct model_tensor *weight,
                               const char *name, const struct eng_part *part,
                               struct kern_matrix *out)
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
    uint32_t block_rows = shape->fp8_block_rows, block_cols = shape->fp8_block_cols;
    uint64_t scale_rows = (weight->shape[0] + block_rows - 1) / block_rows;
    uint64_t scale_cols = (weight->shape[1] + block_cols - 1) / block_cols;
    if (!check_shape(loader, tensor, 2, scale_rows, scale_cols)) return NULL;
    if (tensor->dtype != MODEL_F32) {
        loader->rc =
            base_err_set(loader->err, BASE_EMISMATCH, "%s: tensor '%s' is %s, scales must be F32",
                         shape->name, tensor->name, model_dtype_name(tensor->dtype));
        return NULL;
    }
    MUST(part->col % block_cols == 0);
    out->scale_rows = divisor(block_rows, part->row);
    out->scale_cols = block_cols;
    uint64_t rows = (out->rows + out->scale_rows - 1) / out->scale_rows;
    uint64_t cols = (out->cols + block_cols - 1) / block_cols;
    float *scales = (float *)(void *)place(loader, rows * cols * sizeof(float)), *table;
    if (!scales) return NULL;
    loader->rc = read_scale_table(loader, tensor, scale_rows * scale_cols, &table);
    for (uint64_t r = 0; loader->rc == 0 && r < rows; r++) {
        uint64_t from = (part->row + r * out->scale_rows) / block_rows;
        memcpy(scales + r * cols, table + from * scale_cols + part->col / block_cols,
               cols * sizeof *scales);
    }
    free(table);
    return loader->rc < 0 ? NULL : scales;
}

/* The matrix that was noted last. */
static void weave(struct loader *loader, struct kern_matrix *w)
{
    if (loader->rc < 0 || !loader->order.weave || !loader->memory || w->rows == 0) return;
    if (!kern_weave_takes(w)) return;
    loader->reads.at[loader->reads.count - 1].weave = true;
    w->dtype = KERN_FP8_WOVEN;
}

/* Part of a matrix that has rows x cols in the checkpoint; without rows or columns of its own it
 * has neither data nor scales. */
static void matrix_part(struct loader *loader, struct kern_matrix *out, const char *name,
                        uint32_t rows, uint32_t cols, struct eng_part part, enum use use)
{
    if (loader->rc < 0) return;
    const struct model_tensor *tensor = find(loader, name);
    if (!tensor || !check_shape(loader, tensor, 2, rows, cols)) return;
    enum kern_dtype dtype = eng_weights_dtype(tensor->dtype);
    if (dtype == KERN_DTYPE_COUNT || dtype == KERN_INT4 ||
        (dtype == KERN_INT8 && use != USE_PRODUCTS)) {
        loader->rc = base_err_set(loader->err, BASE_EMISMATCH,
                                  "%s: tensor '%s' is %s; it must be F32, F16, BF16 or F8_E4M3%s",
                                  loader->shape->name, tensor->name,
                                  model_dtype_name(tensor->dtype),
                                  use == USE_PRODUCTS ? ", or I8 with scales (only routed experts "
                                                        "can be U8)" : "");
        return;
    }
    *out = (struct kern_matrix){ .dtype = dtype, .rows = part.row_end - part.row,
                                 .cols = part.col_end - part.col };
    out->data = note_part(loader, tensor, &part);
    if (loader->rc < 0) return;
    if (dtype == KERN_INT8) note_grouped(loader, tensor, name, &part, out);
    if (dtype != KERN_FP8_E4M3) return;
    out->scales = read_scales(loader, tensor, name, &part, out);
    if (use == USE_PRODUCTS) weave(loader, out);
}

static void matrix(struct loader *loader, struct kern_matrix *out, const char *name, uint32_t rows,
                   uint32_t cols, enum use use)
{
    matrix_part(loader, out, name, rows, cols, (struct eng_part){ 0, rows, 0, cols }, use);
}

/* This rank's rows, dealt out in units of `unit`. */
static void matrix_rows(struct loader *loader, struct kern_matrix *out, const char *name,
                        uint32_t rows, uint32_t cols, uint32_t unit, enum use use)
{
    struct eng_share share = eng_ranks_share(loader->ranks, rows / unit);
    matrix_part(loader, out, name, rows, cols,
                (struct eng_part){ share.begin * unit, share.end * unit, 0, cols }, use);
}

/* Whether a product over all ranks goes by blocks; its scales are those of the stored type. INT8
 * sums integers by group and has no blocks. */
static bool by_blocks(struct loader *loader, const char *name, uint32_t rows, uint32_t cols,
                      uint32_t units)
{
    if (loader->rc < 0) return false;
    const struct model_tensor *tensor = find(loader, name);
    if (!tensor || tensor->dtype == MODEL_I8) return false;
    bool scaled = tensor->dtype == MODEL_F8_E4M3;
    return eng_ranks_by_blocks(loader->ranks, rows, cols,
                               scaled ? loader->shape->fp8_block_cols : 0, units);
}

static void matrix_blocks(struct loader *loader, struct kern_matrix *out, const char *name,
                          uint32_t rows, uint32_t cols)
{
    uint32_t each = KERN_RANK_BLOCKS / loader->ranks->tensor, first = loader->ranks->rank * each;
    for (uint32_t b = 0; b < each; b++) {
        matrix_part(loader, &out[b], name, rows, cols,
                    (struct eng_part){ 0, rows, eng_ranks_block_edge(cols, first + b),
                                   eng_ranks_block_edge(cols, first + b + 1) },
                    USE_PRODUCTS);
    }
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
    char gate[64], up[64], down[64];
    uint32_t hidden = loader->shape->hidden;
    snprintf(gate, sizeof gate, "%s.gate_proj.weight", part);
    snprintf(up, sizeof up, "%s.up_proj.weight", part);
    snprintf(down, sizeof down, "%s.down_proj.weight", part);
    out->width = width;
    if (by_blocks(loader, down, hidden, width, loader->ranks ? loader->ranks->tensor : 1)) {
        struct eng_share share = eng_ranks_blocks(loader->ranks, width);
        struct eng_part rows = { share.begin, share.end, 0, hidden };
        matrix_part(loader, &out->gate, gate, width, hidden, rows, USE_PRODUCTS);
        matrix_part(loader, &out->up, up, width, hidden, rows, USE_PRODUCTS);
        matrix_blocks(loader, out->down_blocks, down, hidden, width);
        return;
    }
    matrix_rows(loader, &out->gate, gate, width, hidden, 1, USE_PRODUCTS);
    matrix_rows(loader, &out->up, up, width, hidden, 1, USE_PRODUCTS);
    matrix_rows(loader, &out->down, down, hidden, width, 1, USE_PRODUCTS);
}

static void attention(struct loader *loader, struct eng_layer *layer)
{
    const struct model_shape *s = loader->shape;
    uint32_t head = s->qk_nope_dim + s->qk_rope_dim, q_rows = s->heads * head;
    uint32_t values = s->heads * s->v_dim;
    const char *const o = "self_attn.o_proj.weight";
    if (s->q_lora_rank > 0) {
        matrix(loader, &layer->q_a, "self_attn.q_a_proj.weight", s->q_lora_rank, s->hidden,
               USE_PRODUCTS);
        layer->q_a_norm = vector(loader, "self_attn.q_a_layernorm.weight", s->q_lora_rank);
        matrix_rows(loader, &layer->q_b, "self_attn.q_b_proj.weight", q_rows, s->q_lora_rank,
                    head, USE_PRODUCTS);
    } else {
        matrix_rows(loader, &layer->q_b, "self_attn.q_proj.weight", q_rows, s->hidden, head,
                    USE_PRODUCTS);
    }
    matrix(loader, &layer->kv_a, "self_attn.kv_a_proj_with_mqa.weight",
           s->kv_lora_rank + s->qk_rope_dim, s->hidden, USE_PRODUCTS);
    layer->kv_a_norm = vector(loader, "self_attn.kv_a_layernorm.weight", s->kv_lora_rank);
    matrix_rows(loader, &layer->kv_b, "self_attn.kv_b_proj.weight",
                s->heads * (s->qk_nope_dim + s->v_dim), s->kv_lora_rank,
                s->qk_nope_dim + s->v_dim, USE_ANY);
    if (by_blocks(loader, o, s->hidden, values, s->heads)) {
        matrix_blocks(loader, layer->o_blocks, o, s->hidden, values);
    } else {
        matrix_rows(loader, &layer->o, o, s->hidden, values, 1, USE_PRODUCTS);
    }
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
    matrix(loader, &layer->gate, "mlp.gate.weight", s->experts, s->hidden, USE_ANY);
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
    matrix_rows(loader, &weights->embed, "model.embed_tokens.weight", s->vocab, s->hidden, 1,
                USE_ANY);
    weights->norm = vector(loader, "model.norm.weight", s->hidden);
    if (s->tied_embeddings) weights->head = weights->embed;
    else matrix_rows(loader, &weights->head, "lm_head.weight", s->vocab, s->hidden, 1,
                     USE_PRODUCTS);
    int32_t moe_layer = 0;
    for (uint32_t i = 0; i < s->layers && loader->rc == 0; i++) {
        bool moe = model_shape_is_moe(s, i);
        load_layer(loader, &weights->layers[i], i, moe ? moe_layer : -1);
        moe_layer += moe;
    }
    return loader->rc;
}

int eng_weights_plan(const struct model_shape *shape, const struct model_files *files,
                     const struct eng_ranks *ranks, struct eng_weights_need *need,
                     struct base_err *err)
{
    struct eng_weights weights = { 0 };
    weights.layers = calloc(shape->layers, sizeof *weights.layers);
    if (!weights.layers) return -ENOMEM;
    struct loader loader = { .shape = shape, .files = files, .ranks = ranks, .err = err };
    int rc = walk(&loader, &weights);
    *need = (struct eng_weights_need){ loader.used, loader.grouped.count };
    free(weights.layers);
    return rc;
}

/* --------------------------------------------------------------------------- INT8, once read -- */

struct rearranging {
    struct grouped_list *list;
    bool tile;
    char *scratch;              /* [threads] of so many bytes */
    size_t scratch_bytes;
};

static bool all_finite(const struct kern_matrix *w)
{
    const size_t count = w->rows * (((size_t)w->cols + w->scale_cols - 1) / w->scale_cols);
    const uint16_t *scales = w->scales, exponent = 0x7f80;
    bool finite = true;
    for (size_t i = 0; i < count; i++) finite &= (scales[i] & exponent) != exponent;
    return finite;
}

/* Chunk = one matrix. */
static void rearrange_one(void *context, uint32_t chunk, unsigned thread)
{
    const struct rearranging *r = context;
    struct grouped *one = &r->list->at[chunk];
    if (one->w.rows == 0) return;
    one->bad = !all_finite(&one->w);
    if (!r->tile) return;
    kern_tile(&one->w, (void *)(uintptr_t)one->w.data, (void *)(uintptr_t)one->w.scales,
              r->scratch + thread * r->scratch_bytes);
}

static int rearrange(struct loader *loader)
{
    const struct eng_weights_order *order = &loader->order;
    struct rearranging r = { .list = &loader->grouped, .tile = order->tile };
    const unsigned threads = order->par ? kern_par_threads(order->par) : 1;
    for (uint32_t i = 0; i < r.list->count; i++) {
        const size_t bytes = kern_tile_scratch(&r.list->at[i].w);
        if (bytes > r.scratch_bytes) r.scratch_bytes = bytes;
    }
    r.scratch = malloc(threads * r.scratch_bytes + 1);
    if (!r.scratch) return base_err_set(loader->err, -ENOMEM, "out of memory");
    if (order->par) kern_par_run(order->par, r.list->count, rearrange_one, &r);
    for (uint32_t i = 0; !order->par && i < r.list->count; i++) rearrange_one(&r, i, 0);
    free(r.scratch);
    for (uint32_t i = 0; i < r.list->count; i++) {
        if (!r.list->at[i].bad) continue;
        return base_err_set(loader->err, BASE_EFORMAT,
                            "%s: tensor '%s' holds a scale that is no finite number",
                            loader->shape->name, r.list->at[i].scales->name);
    }
    return 0;
}

int eng_weights_load(struct eng_weights *weights, const struct model_shape *shape,
                     const struct model_files *files, const struct eng_ranks *ranks,
                     const struct eng_weights_order *order, struct base_err *err)
{
    struct loader loader = { .shape = shape, .files = files, .ranks = ranks, .order = *order,
                             .err = err };
    struct eng_weights_need need;
    *weights = (struct eng_weights){ 0 };
    int rc = eng_weights_plan(shape, files, ranks, &need, err);
    if (rc < 0) return rc;
    const uint64_t bytes = need.bytes;
    weights->layers = calloc(shape->layers, sizeof *weights->layers);
    weights->memory = base_mem_alloc(&dense_tag, bytes, WEIGHT_ALIGN);
    weights->bytes = bytes;
    weights->layer_count = shape->layers;
    loader.grouped.at = calloc(need.grouped + 1, sizeof *loader.grouped.at);
    if (!weights->layers || !weights->memory || !loader.grouped.at) {
        free(loader.grouped.at);
        eng_weights_free(weights);
        return base_err_set(err, -ENOMEM, "%s: no memory for %" PRIu64 " bytes of dense weights",
                            shape->name, bytes);
    }
    loader.memory = weights->memory;
    rc = walk(&loader, weights);
    MUST(rc < 0 || loader.used == bytes);
    const uint64_t began_ns = base_now_ns();
    if (rc == 0) rc = eng_reads_run(&loader.reads, files, shape->name, err);
    if (rc == 0) rc = rearrange(&loader);
    eng_reads_free(&loader.reads);
    free(loader.grouped.at);
    if (rc < 0) {
        eng_weights_free(weights);
        return base_err_set(err, rc, "%s: the dense weights cannot be read: %s", shape->name,
                            base_err_name(rc));
    }
    const double seconds = (double)(base_now_ns() - began_ns) / 1e9;
    base_log(BASE_LOG_INFO, "engine", "dense weights: %.2f GB in %.2f s", (double)bytes / 1e9,
             seconds);
    return 0;
}

static const void *moved(const void *at, const char *from, const char *to)
{
    return at ? to + ((const char *)at - from) : NULL;
}

static void move_matrix(struct kern_matrix *w, const char *from, const char *to)
{
    w->data = moved(w->data, from, to);
    w->scales = moved(w->scales, from, to);
}

static void move_layer(struct eng_layer *l, const char *from, const char *to)
{
    struct kern_matrix *const matrices[] = { &l->q_a, &l->q_b, &l->kv_a, &l->kv_b, &l->o, &l->gate,
                                             &l->mlp.gate, &l->mlp.up, &l->mlp.down };
    const float **const vectors[] = { &l->attention_norm, &l->ffn_norm, &l->q_a_norm,
                                      &l->kv_a_norm, &l->gate_bias };
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        move_matrix(matrices[i], from, to);
    }
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        *vectors[i] = moved(*vectors[i], from, to);
    }
}

void eng_weights_moved(struct eng_weights *weights, void *to)
{
    char *from = weights->memory;
    move_matrix(&weights->embed, from, to);
    move_matrix(&weights->head, from, to);
    weights->norm = moved(weights->norm, from, to);
    for (uint32_t i = 0; i < weights->layer_count; i++) {
        move_layer(&weights->layers[i], from, to);
    }
    base_mem_free(&dense_tag, weights->memory, weights->bytes);
    weights->memory = NULL;
}

void eng_weights_free(struct eng_weights *weights)
{
    free(weights->layers);
    base_mem_free(&dense_tag, weights->memory, weights->bytes);
    *weights = (struct eng_weights){ 0 };
}
