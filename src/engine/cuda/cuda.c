#include "engine/cuda/cuda.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/str.h"
#include "engine/cuda/room.h"

enum { WORK_ALIGN = 256, STAGING_ALIGN = 4096, UPLOAD_LEAST = 64 << 10 };

static struct base_mem_tag staging_tag = { .name = "device_staging" };

bool eng_cuda_built(void)
{
    return true;
}

/* ------------------------------------------------------------------------------------- sizes -- */

struct layout {
    char *memory;
    uint64_t used;
};

static void *take(struct layout *layout, uint64_t count, uint64_t size)
{
    char *at = layout->memory ? layout->memory + layout->used : NULL;
    layout->used += (count * size + WORK_ALIGN - 1) / WORK_ALIGN * WORK_ALIGN;
    return at;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Everything that a step uploads at its beginning. */
static uint64_t step_bytes(const struct eng_limits *l, const struct model_shape *s)
{
    const uint64_t rows = l->plan.rows, members = (uint64_t)l->plan.decode_rows + 1;
    return rows * (3 * sizeof(uint32_t) + s->qk_rope_dim * sizeof(float)) +
           members * l->kv_blocks_per_seq * sizeof(uint32_t) +
           (rows / KERN_CUDA_QUERIES + members + ENG_SPANS) * sizeof(struct kern_cuda_run) + 1024;
}

/* What a layer's experts need, for both kinds of rows together: pairs, a row's pairs, and for each
 * expert its place and at most two runs, with the loss of a send each. */
static uint64_t layer_bytes(const struct eng_limits *l, const struct model_shape *s)
{
    const uint64_t rows = l->plan.rows, pairs = rows * s->top_k;
    const uint64_t expert = sizeof(struct kern_cuda_expert) + 2 * sizeof(struct kern_cuda_run);
    return pairs * (sizeof(uint32_t) + sizeof(float)) + rows * (s->top_k + 1) * sizeof(uint32_t) +
           2 * (uint64_t)s->experts * (expert + 64) + 1024;
}

static void layout_ranks(struct layout *l, struct eng_cuda_work *w, const struct eng_limits *limits,
                         const struct model_shape *s)
{
    struct eng_rank_room room;
    eng_ranks_room(limits->plan.ranks, s, &limits->plan, &room);
    w->rank_send = take(l, room.send, sizeof(float));
    w->rank_recv = take(l, room.recv, sizeof(float));
    w->rank_whole = take(l, room.whole, sizeof(float));
}

static void layout_work(struct layout *l, struct eng_cuda_work *w, const struct eng_limits *limits,
                        const struct model_shape *s)
{
    const uint64_t rows = limits->plan.rows, real = sizeof(float);
    const uint64_t pairs = rows * s->top_k, width = s->kv_lora_rank + s->qk_rope_dim;
    const uint64_t members = (uint64_t)limits->plan.decode_rows + 1;
    const struct eng_ranks *ranks = limits->plan.ranks;
    const uint64_t heads = eng_ranks_share(ranks, s->heads).each;
    const struct kern_cuda_mla decode = { .rows = limits->plan.decode_rows,
                                          .heads = (uint32_t)heads,
                                          .lora = s->kv_lora_rank,
                                          .tokens_max = limits->tokens_max };
    *w = (struct eng_cuda_work){ 0 };
    w->hidden = take(l, rows * s->hidden, real);
    w->normed = take(l, rows * s->hidden, real);
    w->branch = take(l, rows * s->hidden, real);
    w->q_a = take(l, rows * s->q_lora_rank, real);
    w->q = take(l, rows * heads * (s->qk_nope_dim + s->qk_rope_dim), real);
    w->kv = take(l, rows * width, real);
    w->q_latent = take(l, rows * heads * width, real);
    w->latent = take(l, rows * heads * s->kv_lora_rank, real);
    w->attended = take(l, rows * heads * s->v_dim, real);
    const uint32_t wide = larger(s->dense_width, s->shared_experts * s->expert_width);
    w->mlp_act = take(l, rows * eng_ranks_share(ranks, wide).each, real);
    w->gate_logits = take(l, rows * s->experts, real);
    w->route_ids = take(l, pairs, sizeof(uint32_t));
    w->route_weights = take(l, pairs, real);
    w->pair_act = take(l, pairs * s->expert_width, real);
    w->pair_out = take(l, pairs * s->hidden, real);
    w->mla_work = take(l, kern_cuda_mla_work(&decode), real);
    w->tables = take(l, s->layers * members * limits->kv_blocks_per_seq, sizeof(void *));
    w->places = take(l, s->layers * rows, sizeof(void *));
    w->head_in = take(l, members * s->hidden, real);
    w->logits = take(l, members * s->vocab, real);
    w->head_best = take(l, members, sizeof(uint32_t));
    w->row_self = take(l, rows, sizeof(uint32_t));
    w->mlps = take(l, s->layers, sizeof(struct kern_cuda_expert));
    w->step = take(l, step_bytes(limits, s), 1);
    w->layer = take(l, layer_bytes(limits, s), 1);
    layout_ranks(l, w, limits, s);
}

/* The layer's wire carries the weights to the device, too. */
static uint64_t upload_bytes(const struct eng_limits *limits, const struct model_shape *shape)
{
    const uint64_t bytes = layer_bytes(limits, shape);
    return bytes > UPLOAD_LEAST ? bytes : UPLOAD_LEAST;
}

void eng_cuda_bytes(struct eng_cuda_bytes *out, const struct eng_limits *limits,
                    const struct model_shape *shape)
{
    struct eng_cuda_work work;
    struct layout layout = { 0 };
    layout_work(&layout, &work, limits, shape);
    const uint64_t step =
        (step_bytes(limits, shape) + STAGING_ALIGN - 1) / STAGING_ALIGN * STAGING_ALIGN;
    *out = (struct eng_cuda_bytes){ .work = layout.used,
                                    .staging = step + upload_bytes(limits, shape) };
}

/* -------------------------------------------------------------------------------------- open -- */

/* Rows of a matrix have the bits of the whole's only where the same kernels take them: tiles want
 * scales for 16 rows, and products of heads more than one head. */
static int check_shares(const struct eng_core *core, struct base_err *err)
{
    enum { SCALE_ROWS = 16, HEAD_ROWS = 128 };
    const struct model_shape *s = core->shape;
    const struct eng_weights *weights = &core->weights;
    const bool tiled = s->fp8_block_rows % SCALE_ROWS == 0;
    if (core->ranks.tensor <= 1) return 0;
    bool apart = core->heads == 0 || (core->heads == 1 && s->v_dim % HEAD_ROWS != 0);
    for (uint32_t i = 0; i < weights->layer_count && !apart; i++) {
        const struct eng_layer *l = &weights->layers[i];
        const struct kern_matrix *const parts[] = { &l->q_b, &l->kv_b, &l->o, &l->mlp.gate,
                                                    &l->mlp.up, &l->mlp.down };
        for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++)
            apart |= tiled && parts[p]->scales && parts[p]->scale_rows % SCALE_ROWS != 0;
    }
    if (!apart) return 0;
    return base_err_set(err, BASE_EMISMATCH, "%s: parallel.tensor: %u cuts its matrices where the "
                        "kernels of the cuda device cannot go on with the same bits: a rank needs "
                        "two heads, and FP8 scales a multiple of %d rows; take parallel.tensor: 1",
                        s->name, core->ranks.tensor, SCALE_ROWS);
}

/* What kern_cuda_* would refuse step by step. */
static int check_model(const struct eng_core *core, struct base_err *err)
{
    const struct model_shape *s = core->shape;
    const uint32_t width = s->kv_lora_rank + s->qk_rope_dim;
    if (s->kv_lora_rank > KERN_CUDA_LATENT_MAX || width > KERN_CUDA_WIDTH_MAX || width % 8 != 0) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: the kernels of the cuda device take a latent of up to %d values, "
                            "with its rotated part up to %d and a multiple of 8; this has %u + %u",
                            s->name, KERN_CUDA_LATENT_MAX, KERN_CUDA_WIDTH_MAX, s->kv_lora_rank,
                            s->qk_rope_dim);
    }
    int rc = check_shares(core, err);
    if (rc < 0) return rc;
    if (s->experts > KERN_CUDA_EXPERTS_MAX) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: the kernels of the cuda device route to up to %d experts, this "
                            "has %u",
                            s->name, KERN_CUDA_EXPERTS_MAX, s->experts);
    }
    return 0;
}

static int make_room(struct eng_cuda *cuda, const struct eng_limits *limits, struct base_err *err)
{
    const struct model_shape *s = cuda->core->shape;
    struct eng_cuda_bytes bytes;
    void *memory;
    eng_cuda_bytes(&bytes, limits, s);
    int rc = dev_memory_alloc(cuda->dev, bytes.work, &memory, err);
    if (rc < 0) return rc;
    struct layout layout = { .memory = memory };
    layout_work(&layout, &cuda->work, limits, s);
    cuda->staging_bytes = bytes.staging;
    cuda->staging = base_mem_alloc(&staging_tag, bytes.staging, STAGING_ALIGN);
    if (!cuda->staging) {
        return base_err_set(err, -ENOMEM, "no memory for %" PRIu64 " bytes to copy from",
                            bytes.staging);
    }
    rc = dev_host_register(cuda->dev, cuda->staging, bytes.staging);
    if (rc < 0) {
        return base_err_set(err, rc, "device cuda: cannot pin %" PRIu64 " bytes to copy from",
                            bytes.staging);
    }
    const uint64_t step = bytes.staging - upload_bytes(limits, s);
    cuda->step_wire = (struct eng_wire){ .host = cuda->staging, .device = cuda->work.step,
                                         .bytes = step_bytes(limits, s) };
    cuda->layer_wire = (struct eng_wire){ .host = (char *)cuda->staging + step,
                                          .device = cuda->work.layer,
                                          .bytes = layer_bytes(limits, s) };
    return 0;
}

/* In pieces of what the layer's wire has, each over before the next is put there. */
static int upload(struct eng_cuda *cuda, char *to, const char *from, uint64_t bytes, uint64_t piece)
{
    for (uint64_t at = 0; at < bytes; at += piece) {
        const uint64_t now = bytes - at < piece ? bytes - at : piece;
        memcpy(cuda->layer_wire.host, from + at, now);
        int rc = dev_stream_copy(cuda->dev, DEV_UP, to + at, cuda->layer_wire.host, now);
        if (rc == 0) rc = dev_stream_settle(cuda->dev);
        if (rc < 0) return rc;
    }
    return 0;
}

static int upload_weights(struct eng_cuda *cuda, const struct eng_limits *limits,
                          struct base_err *err)
{
    struct eng_weights *weights = &cuda->core->weights;
    void *memory;
    int rc = dev_memory_alloc(cuda->dev, weights->bytes, &memory, err);
    if (rc < 0) return rc;
    rc = upload(cuda, memory, weights->memory, weights->bytes,
                upload_bytes(limits, cuda->core->shape));
    if (rc == 0) eng_weights_moved(weights, memory);
    return rc;
}

/* What never changes: row numbers, and each layer's dense part as if it were an expert. */
static int upload_tables(struct eng_cuda *cuda, const struct eng_limits *limits)
{
    const struct model_shape *s = cuda->core->shape;
    const uint64_t piece = upload_bytes(limits, s), rows = limits->plan.rows;
    struct kern_cuda_expert *mlps = calloc(s->layers, sizeof *mlps);
    uint32_t *numbers = malloc(rows * sizeof *numbers);
    int rc = mlps && numbers ? 0 : -ENOMEM;
    for (uint32_t i = 0; rc == 0 && i < rows; i++)
        numbers[i] = i;
    for (uint32_t i = 0; rc == 0 && i < s->layers; i++) {
        const struct eng_mlp *mlp = &cuda->core->weights.layers[i].mlp;
        mlps[i] = (struct kern_cuda_expert){ mlp->gate.data, mlp->gate.scales, mlp->up.data,
                                             mlp->up.scales, mlp->down.data, mlp->down.scales };
    }
    if (rc == 0) {
        rc = upload(cuda, (char *)cuda->work.row_self, (char *)numbers, rows * sizeof *numbers,
                    piece);
    }
    if (rc == 0) {
        rc = upload(cuda, (char *)cuda->work.mlps, (char *)mlps, s->layers * sizeof *mlps, piece);
    }
    free(numbers);
    free(mlps);
    return rc;
}

int eng_cuda_open(struct eng_cuda **out, struct eng_core *core, const struct eng_limits *limits,
                  struct base_err *err)
{
    *out = NULL;
    struct eng_cuda *cuda = calloc(1, sizeof *cuda);
    if (!cuda) return -ENOMEM;
    cuda->core = core;
    cuda->dev = core->device;
    cuda->stream = dev_stream(core->device);
    cuda->words = calloc(core->ranks.count, sizeof *cuda->words);
    int rc = cuda->words ? check_model(core, err) : -ENOMEM;
    if (rc == 0) rc = make_room(cuda, limits, err);
    if (rc == 0) rc = upload_weights(cuda, limits, err);
    if (rc == 0) rc = upload_tables(cuda, limits);
    if (rc == 0) {
        *out = cuda;
        return 0;
    }
    base_err_set(err, rc, "%s",
                 cuda->dev->lost ? cuda->dev->lost_why
                                 : "device cuda: the weights cannot be copied to it");
    eng_cuda_close(cuda);
    return rc;
}

void eng_cuda_close(struct eng_cuda *cuda)
{
    if (!cuda) return;
    /* What is under way reads the wires. */
    dev_stream_settle(cuda->dev);
    if (cuda->staging) dev_host_unregister(cuda->dev, cuda->staging);
    base_mem_free(&staging_tag, cuda->staging, cuda->staging_bytes);
    free(cuda->words);
    free(cuda);
}
