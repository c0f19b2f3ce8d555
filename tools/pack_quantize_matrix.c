/* One matrix: which it is; read, decode, quantise its rows on all threads. */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/weights.h"
#include "kernels/par.h"
#include "tools/pack_quantize.h"

bool quantize_name_of(const struct model_shape *shape, const char *tensor,
                      struct quantize_name *name)
{
    static const char *const matrices[] = { "gate_proj", "up_proj", "down_proj" };
    unsigned layer, expert;
    int end = 0;
    if (sscanf(tensor, "model.layers.%u.mlp.experts.%u.%n", &layer, &expert, &end) != 2 ||
        end == 0) {
        return false;
    }
    if (layer >= shape->layers || !model_shape_is_moe(shape, layer) || expert >= shape->experts) {
        return false;
    }
    name->moe_layer = (layer - model_shape_moe_first(shape)) / model_shape_moe_step(shape);
    name->expert = expert;
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        size_t size = strlen(matrices[m]);
        const char *rest = tensor + end + size;
        if (strncmp(tensor + end, matrices[m], size) != 0) continue;
        name->matrix = (enum model_matrix)m;
        name->scales = strcmp(rest, ".weight_scale_inv") == 0;
        return name->scales || strcmp(rest, ".weight") == 0;
    }
    return false;
}

/* As their tensors' names go on; of attention without q_lora there is q_proj. */
static const struct {
    const char *name, *tensor;
    enum quantize_part part;
} parts[] = {
    { "q_a", "self_attn.q_a_proj.weight", QUANTIZE_Q_A },
    { "q_b", "self_attn.q_b_proj.weight", QUANTIZE_Q_B },
    { "q_b", "self_attn.q_proj.weight", QUANTIZE_Q_B },
    { "kv_a", "self_attn.kv_a_proj_with_mqa.weight", QUANTIZE_KV_A },
    { "o", "self_attn.o_proj.weight", QUANTIZE_O },
    { "gate", "mlp.gate_proj.weight", QUANTIZE_GATE },
    { "up", "mlp.up_proj.weight", QUANTIZE_UP },
    { "down", "mlp.down_proj.weight", QUANTIZE_DOWN },
    { "gate", "mlp.shared_experts.gate_proj.weight", QUANTIZE_GATE },
    { "up", "mlp.shared_experts.up_proj.weight", QUANTIZE_UP },
    { "down", "mlp.shared_experts.down_proj.weight", QUANTIZE_DOWN },
};
enum { PARTS = sizeof parts / sizeof parts[0] };

const char *quantize_part_name(enum quantize_part part)
{
    for (size_t i = 0; i < PARTS; i++) {
        if (parts[i].part == part) return parts[i].name;
    }
    return "head";
}

static bool dense_name(const struct model_shape *shape, const char *tensor,
                       struct quantize_dense *dense)
{
    int end = 0;
    if (strcmp(tensor, "lm_head.weight") == 0 && !shape->tied_embeddings) {
        *dense = (struct quantize_dense){ .layer = shape->layers, .part = QUANTIZE_HEAD };
        return true;
    }
    if (sscanf(tensor, "model.layers.%u.%n", &dense->layer, &end) != 1 || end == 0) return false;
    if (dense->layer >= shape->layers) return false;
    for (size_t i = 0; i < PARTS; i++) {
        if (strcmp(tensor + end, parts[i].tensor) != 0) continue;
        dense->part = parts[i].part;
        return true;
    }
    return false;
}

/* The matrix whose scales these are, or NULL. */
static const struct model_tensor *scaled_by(const struct quantize *q, const char *scales)
{
    static const char suffix[] = "_scale_inv";
    char name[1100];
    const size_t size = strlen(scales), end = sizeof suffix - 1;
    if (size <= end || size >= sizeof name || strcmp(scales + size - end, suffix) != 0) return NULL;
    memcpy(name, scales, size - end);
    name[size - end] = '\0';
    return model_files_find(q->files, name);
}

bool quantize_dense_of(const struct quantize *q, const struct model_tensor *tensor,
                       struct quantize_dense *dense)
{
    if (!q->dense) return false;
    const struct model_tensor *scaled = scaled_by(q, tensor->name);
    if (scaled) tensor = scaled;
    if (tensor->dims != 2 || !dense_name(&q->shape, tensor->name, dense)) return false;
    const enum kern_dtype dtype = eng_weights_dtype(tensor->dtype);
    dense->scales = scaled != NULL;
    /* The scales behind an odd number of codes would not be aligned. */
    if (tensor->shape[0] * tensor->shape[1] % 2 != 0) return false;
    return dtype == KERN_F32 || dtype == KERN_F16 || dtype == KERN_BF16 ||
           (dtype == KERN_FP8_E4M3 && q->allow_larger);
}

struct kern_quant_error *quantize_dense_error(const struct quantize *q,
                                              const struct quantize_dense *dense)
{
    const bool head = dense->part == QUANTIZE_HEAD;
    return &q->dense_errors[dense->layer * (size_t)QUANTIZE_PART_COUNT +
                            (head ? 0 : (size_t)dense->part)];
}

uint64_t quantize_code_bytes(enum kern_dtype dtype, const struct model_tensor *tensor)
{
    return tensor->shape[0] * kern_row_bytes(dtype, (uint32_t)tensor->shape[1]);
}

uint64_t quantize_scale_bytes(const struct quantize *q, const struct model_tensor *tensor)
{
    return tensor->shape[0] * ((tensor->shape[1] + q->group - 1) / q->group) * 2;
}

struct rows {
    const struct quantize *q;
    enum kern_dtype dtype;
    struct kern_matrix from;
    const struct kern_ops *ops;
    float *row; /* [threads][cols] */
    uint8_t *codes, *scales;
    struct kern_quant_error *errors; /* [rows]: added up in their order */
    atomic_bool bad;
};

static void row_quantize(void *context, uint32_t n, unsigned thread)
{
    struct rows *r = context;
    const struct kern_matrix *w = &r->from;
    const uint32_t group = r->q->group;
    float *row = r->row + (size_t)thread * w->cols;
    size_t bytes = kern_row_bytes(w->dtype, w->cols);
    size_t scale_bytes = ((size_t)w->cols + group - 1) / group * 2;
    r->ops->to_f32(row, (const uint8_t *)w->data + n * bytes, w->dtype, w->cols);
    if (w->scales) {
        const uint32_t stride = (w->cols + w->scale_cols - 1) / w->scale_cols;
        const float *scales = (const float *)w->scales + (size_t)(n / w->scale_rows) * stride;
        for (uint32_t k = 0; k < w->cols; k++) {
            row[k] *= scales[k / w->scale_cols];
        }
    }
    if (!kern_quant_row(r->dtype, group, row, w->cols,
                        r->codes + n * kern_row_bytes(r->dtype, w->cols),
                        r->scales + n * scale_bytes, &r->errors[n])) {
        atomic_store(&r->bad, true);
    }
}

/* The matrix as it lies in the checkpoint; data and scales are malloc'ed. */
static int read_matrix(const struct quantize *q, const struct model_tensor *tensor,
                       struct kern_matrix *w, struct base_err *err)
{
    *w = (struct kern_matrix){ .dtype = eng_weights_dtype(tensor->dtype),
                               .rows = (uint32_t)tensor->shape[0],
                               .cols = (uint32_t)tensor->shape[1],
                               .scale_rows = q->shape.fp8_block_rows,
                               .scale_cols = q->shape.fp8_block_cols };
    void *data = malloc(tensor->bytes), *scales = NULL;
    w->data = data;
    if (!data) return base_err_set(err, -ENOMEM, "out of memory");
    int rc = model_files_read(q->files, tensor, data, err);
    if (rc < 0 || w->dtype != KERN_FP8_E4M3) return rc;

    char name[1100];
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    const struct model_tensor *from = model_files_find(q->files, name);
    uint64_t rows = w->scale_rows ? (w->rows + w->scale_rows - 1) / w->scale_rows : 0;
    uint64_t cols = w->scale_cols ? (w->cols + w->scale_cols - 1) / w->scale_cols : 0;
    if (!from || from->dtype != MODEL_F32 || rows == 0 || from->bytes != rows * cols * 4) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: tensor %s is missing or does not have %" PRIu64 " x %" PRIu64
                            " scales in F32",
                            q->from, name, rows, cols);
    }
    scales = malloc(from->bytes);
    w->scales = scales;
    if (!scales) return base_err_set(err, -ENOMEM, "out of memory");
    return model_files_read(q->files, from, scales, err);
}

int quantize_matrix(struct quantize *q, const struct model_tensor *tensor, enum kern_dtype dtype,
                    uint8_t *codes, uint8_t *scales, struct kern_quant_error *error,
                    struct base_err *err)
{
    struct rows r = { .q = q, .dtype = dtype, .ops = kern_ops_cpu(KERN_CPU_BEST),
                      .codes = codes, .scales = scales };
    int rc = read_matrix(q, tensor, &r.from, err);
    if (rc == 0) {
        r.row = malloc((size_t)kern_par_threads(q->par) * r.from.cols * sizeof *r.row);
        r.errors = calloc(r.from.rows, sizeof *r.errors);
        if (!r.row || !r.errors) rc = base_err_set(err, -ENOMEM, "out of memory");
    }
    if (rc == 0) {
        kern_par_run(q->par, r.from.rows, row_quantize, &r);
        for (uint32_t n = 0; n < r.from.rows; n++) {
            error->energy += r.errors[n].energy;
            error->error += r.errors[n].error;
        }
        if (atomic_load(&r.bad)) {
            rc = base_err_set(err, BASE_EFORMAT,
                              "%s: tensor %s holds a weight that is no finite "
                              "number: it cannot be quantised",
                              q->from, tensor->name);
        }
    }
    free(r.row);
    free(r.errors);
    free((void *)(uintptr_t)r.from.data);
    free((void *)(uintptr_t)r.from.scales);
    return rc;
}
