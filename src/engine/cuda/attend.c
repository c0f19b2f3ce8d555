#include <errno.h>

#include "engine/cuda/room.h"

static void norm_latent(struct eng_cuda *cuda, float *x, const float *weight, uint32_t n)
{
    const struct kern_cuda_rmsnorm_args args = {
        .rows = cuda->step.batch->count,
        .n = n,
        .x = x,
        .weight = weight,
        .x_stride = n,
        .y_stride = n,
        .y = x,
        .eps = ENG_LATENT_NORM_EPS,
    };
    if (cuda->rc < 0) return;
    eng_cuda_keep(cuda, kern_cuda_rmsnorm(&args, cuda->stream), "a norm of attention");
}

/* normed -> q and kv. */
static void project(struct eng_cuda *cuda, const struct eng_layer *layer)
{
    const struct model_shape *s = cuda->core->shape;
    struct eng_cuda_work *w = &cuda->work;
    struct eng_cuda_product p = { .w = &layer->kv_a, .x = w->normed, .x_stride = s->hidden,
                                  .y = w->kv, .y_stride = layer->kv_a.rows, .k_blocks = 1,
                                  .what = "a projection of attention" };
    eng_cuda_product(cuda, &p);
    if (s->q_lora_rank > 0) {
        p.w = &layer->q_a;
        p.y = w->q_a;
        p.y_stride = s->q_lora_rank;
        eng_cuda_product(cuda, &p);
        norm_latent(cuda, w->q_a, layer->q_a_norm, s->q_lora_rank);
        p.x = w->q_a;
        p.x_stride = s->q_lora_rank;
    }
    p.w = &layer->q_b;
    p.y = w->q;
    p.y_stride = layer->q_b.rows;
    eng_cuda_product(cuda, &p);
}

/* Rotates queries, and puts the rows' latents and keys into the cache. */
static void rotate(struct eng_cuda *cuda, const struct eng_layer *layer, uint32_t layer_index)
{
    const struct eng_core *core = cuda->core;
    const struct model_shape *s = core->shape;
    const uint32_t rows = cuda->step.batch->count, head_dim = s->qk_nope_dim + s->qk_rope_dim;
    const struct kern_cuda_rope_args rope = {
        .rows = rows,
        .heads = core->heads,
        .dims = s->qk_rope_dim,
        .x = cuda->work.q + s->qk_nope_dim,
        .row_stride = (size_t)core->heads * head_dim,
        .head_stride = head_dim,
        .cos = cuda->step.cos,
        .sin = cuda->step.sin,
        .interleaved = s->rope_interleaved,
    };
    const struct kern_cuda_latent_args latent = {
        .rows = rows,
        .lora = s->kv_lora_rank,
        .rope = s->qk_rope_dim,
        .kv = cuda->work.kv,
        .weight = layer->kv_a_norm,
        .cos = cuda->step.cos,
        .sin = cuda->step.sin,
        .eps = ENG_LATENT_NORM_EPS,
        .interleaved = s->rope_interleaved,
        .bf16 = core->kv.bf16,
        .places = cuda->work.places + (size_t)layer_index * rows,
    };
    if (cuda->rc == 0) eng_cuda_keep(cuda, kern_cuda_rope(&rope, cuda->stream), "rotation");
    if (cuda->rc == 0)
        eng_cuda_keep(cuda, kern_cuda_latent(&latent, cuda->stream), "writing KV blocks");
}

static void absorb(struct eng_cuda *cuda, const struct eng_layer *layer)
{
    const struct model_shape *s = cuda->core->shape;
    const struct kern_cuda_absorb_args args = {
        .w = layer->kv_b,
        .rows = cuda->step.batch->count,
        .heads = cuda->core->heads,
        .nope = s->qk_nope_dim,
        .rope = s->qk_rope_dim,
        .w_head = s->qk_nope_dim + s->v_dim,
        .q = cuda->work.q,
        .q_latent = cuda->work.q_latent,
    };
    if (cuda->rc < 0) return;
    eng_cuda_keep(cuda, kern_cuda_absorb(&args, cuda->stream), "carrying queries into the latent");
}

/* Generated tokens row by row, prompts in tiles of one sequence: the same bits either way. */
static void attend(struct eng_cuda *cuda, uint32_t layer_index)
{
    const struct eng_core *core = cuda->core;
    const struct model_shape *s = core->shape;
    const struct eng_batch *batch = cuda->step.batch;
    struct kern_cuda_mla args = {
        .rows = batch->decode_count,
        .heads = core->heads,
        .lora = s->kv_lora_rank,
        .rope = s->qk_rope_dim,
        .q = cuda->work.q_latent,
        .blocks = (const void *const *)cuda->work.tables +
                  (size_t)layer_index * batch->member_count * core->kv.blocks_per_seq,
        .row_member = cuda->step.row_member,
        .row_tokens = cuda->step.row_tokens,
        .blocks_per_seq = core->kv.blocks_per_seq,
        .block_tokens = core->kv.block_tokens,
        .tokens_max = cuda->step.tokens_max[0],
        .bf16 = core->kv.bf16,
        .scale = core->softmax_scale,
        .out = cuda->work.latent,
        .work = cuda->work.mla_work,
    };
    if (cuda->rc == 0 && args.rows > 0)
        eng_cuda_keep(cuda, kern_cuda_mla_decode(&args, cuda->stream), "attention");
    args.rows = batch->count;
    args.tokens_max = cuda->step.tokens_max[1];
    args.tiles = cuda->step.tiles;
    args.tile_count = cuda->step.tile_count;
    if (cuda->rc == 0 && args.tile_count > 0)
        eng_cuda_keep(cuda, kern_cuda_mla_prefill(&args, cuda->stream), "attention of a prompt");
}

/* latent -> attended: each head through its own rows of kv_b. */
static void values(struct eng_cuda *cuda, const struct eng_layer *layer)
{
    const struct model_shape *s = cuda->core->shape;
    const size_t own = cuda->core->heads, latents = own * s->kv_lora_rank, heads = own * s->v_dim;
    for (int i = 0; i < ENG_SPANS && cuda->rc == 0; i++) {
        const struct eng_span *span = &cuda->step.spans[i];
        const struct kern_cuda_product_args args = {
            .w = layer->kv_b,
            .m = span->count,
            .rows = (uint32_t)heads,
            .k_blocks = 1,
            .group = s->v_dim,
            .w_group = s->qk_nope_dim + s->v_dim,
            .w_first = s->qk_nope_dim,
            .x = cuda->work.latent + span->first * latents,
            .x_stride = latents,
            .x_group = s->kv_lora_rank,
            .y = cuda->work.attended + span->first * heads,
            .y_stride = heads,
        };
        if (span->count == 0) continue;
        int rc = span->tiles ? kern_cuda_product_tiles(&args, cuda->stream) : -EINVAL;
        if (rc == -EINVAL) rc = kern_cuda_product(&args, cuda->stream);
        eng_cuda_keep(cuda, rc, "values of attention");
    }
}

void eng_cuda_attend(struct eng_cuda *cuda, const struct eng_layer *layer, uint32_t layer_index)
{
    const struct model_shape *s = cuda->core->shape;
    project(cuda, layer);
    rotate(cuda, layer, layer_index);
    absorb(cuda, layer);
    attend(cuda, layer_index);
    tier_poll(cuda->core->tier);
    values(cuda, layer);
    if (cuda->core->ranks.tensor > 1) {
        const struct eng_cuda_joint joint = { &layer->o, cuda->work.attended, s->heads, s->v_dim,
                                              s->hidden, cuda->work.branch,
                                              "the output of attention" };
        eng_cuda_joint_product(cuda, &joint);
        return;
    }
    const struct eng_cuda_product out = {
        .w = &layer->o, .x = cuda->work.attended, .x_stride = (size_t)s->heads * s->v_dim,
        .y = cuda->work.branch, .y_stride = s->hidden, .k_blocks = KERN_RANK_BLOCKS,
        .what = "the output of attention",
    };
    eng_cuda_product(cuda, &out);
}
