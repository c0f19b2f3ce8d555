#include "engine/mla.h"

#include <math.h>
#include <string.h>

#include "engine/leases.h"
#include "kernels/x16.h"

/* Heads that the kernels take together. Fewer are a walk of their own through the cache. */
enum { HEADS_UNIT = 8 };

struct pass {
    struct eng_core *core;
    const struct eng_layer *layer;
    uint32_t layer_index;
    const struct eng_batch *batch;
    uint32_t parts, unit;       /* of the heads, per row; cut at multiples of the unit */
};

void eng_mla_positions(struct eng_core *core, const struct eng_batch *batch)
{
    uint32_t half = core->shape->qk_rope_dim / 2;
    for (uint32_t row = 0; row < batch->count; row++) {
        float *cosines = core->plan.cos + (size_t)row * half;
        float *sines = core->plan.sin + (size_t)row * half;
        for (uint32_t i = 0; i < half; i++) {
            /* The angle is rounded to f32 as in the reference, which the model was trained with. */
            float angle = (float)batch->positions[row] * core->rope_frequency[i];
            cosines[i] = (float)cos((double)angle) * core->rope_magnitude;
            sines[i] = (float)sin((double)angle) * core->rope_magnitude;
        }
    }
}

/* Rotates the row's queries and key, and puts normed latent and key into the cache. */
static void row_finish(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    struct pass *pass = context;
    struct eng_core *core = pass->core;
    const struct model_shape *s = core->shape;
    const struct kern_ops *ops = core->work.ops;
    struct eng_plan *plan = &core->plan;
    uint32_t half = s->qk_rope_dim / 2, head_dim = s->qk_nope_dim + s->qk_rope_dim;
    uint32_t width = s->kv_lora_rank + s->qk_rope_dim;
    const float *cosines = plan->cos + (size_t)row * half;
    const float *sines = plan->sin + (size_t)row * half;
    float *q = plan->q + (size_t)row * core->heads * head_dim;
    float *kv = plan->kv + (size_t)row * width;
    for (uint32_t h = 0; h < core->heads; h++) {
        ops->rope(q + h * head_dim + s->qk_nope_dim, cosines, sines, s->qk_rope_dim,
                  s->rope_interleaved);
    }
    ops->rmsnorm(kv, kv, pass->layer->kv_a_norm, s->kv_lora_rank, ENG_LATENT_NORM_EPS);
    ops->rope(kv + s->kv_lora_rank, cosines, sines, s->qk_rope_dim, s->rope_interleaved);

    const struct eng_seq *seq = pass->batch->members[pass->batch->row_member[row]];
    uint32_t position = pass->batch->positions[row];
    char *block = eng_kv_block(&core->kv, seq->blocks[position / core->kv.block_tokens],
                               pass->layer_index);
    size_t at = (size_t)(position % core->kv.block_tokens) * width;
    if (core->kv.bf16) ops->to_bf16((uint16_t *)(void *)block + at, kv, width);
    else memcpy((float *)(void *)block + at, kv, width * sizeof *kv);
}

/* Chunk = one head: carries its queries of all rows into the latent space. */
static void head_absorb(void *context, uint32_t head, unsigned thread)
{
    (void)thread;
    struct pass *pass = context;
    const struct model_shape *s = pass->core->shape;
    struct eng_plan *plan = &pass->core->plan;
    uint32_t head_dim = s->qk_nope_dim + s->qk_rope_dim, width = s->kv_lora_rank + s->qk_rope_dim;
    uint32_t first = head * (s->qk_nope_dim + s->v_dim), heads = pass->core->heads;
    for (uint32_t row = 0; row < pass->batch->count; row++) {
        const float *q = plan->q + ((size_t)row * heads + head) * head_dim;
        float *to = plan->q_latent + ((size_t)row * heads + head) * width;
        pass->core->work.ops->matmul_t(&pass->layer->kv_b, first, first + s->qk_nope_dim, q, to);
        memcpy(to + s->kv_lora_rank, q + s->qk_nope_dim, s->qk_rope_dim * sizeof *q);
    }
}

/* Chunk = some heads of one row. */
static void row_attend(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    struct pass *pass = context;
    struct eng_core *core = pass->core;
    const struct model_shape *s = core->shape;
    uint32_t row = chunk / pass->parts, part = chunk % pass->parts;
    uint32_t width = s->kv_lora_rank + s->qk_rope_dim, heads = core->heads;
    uint32_t member = pass->batch->row_member[row];
    struct kern_mla args = {
        .heads = heads,
        .lora = s->kv_lora_rank,
        .rope = s->qk_rope_dim,
        .q = core->plan.q_latent + (size_t)row * heads * width,
        .blocks = core->plan.block_table +
                  (size_t)member * core->kv.blocks_per_seq,
        .blocks_bf16 = core->kv.bf16,
        .block_tokens = core->kv.block_tokens,
        .tokens = pass->batch->positions[row] + 1,
        .scale = core->softmax_scale,
        .out = core->plan.latent + (size_t)row * heads * s->kv_lora_rank,
    };
    uint32_t begin, end;
    eng_work_rows(heads, pass->unit, pass->parts, part, &begin, &end);
    core->work.ops->mla(&args, begin, end);
}

/* A product with a head's rows of kv_b, whose inputs are rounded to bf16 tile by tile. */
static void multiply_rounded(const struct eng_core *core, const struct kern_matmul *all,
                             uint32_t begin, uint32_t end, unsigned thread)
{
    const struct eng_plan *plan = &core->plan;
    uint16_t *tile = plan->latent_x16 + thread * ENG_VALUES_TILE * plan->latent_x16_stride;
    for (uint32_t first = 0; first < all->m; first += ENG_VALUES_TILE) {
        struct kern_matmul product = *all;
        product.m = all->m - first < ENG_VALUES_TILE ? all->m - first : ENG_VALUES_TILE;
        product.y += first * all->y_stride;
        product.x16 = tile;
        product.x16_stride = plan->latent_x16_stride;
        for (uint32_t i = 0; i < product.m; i++) {
            core->work.ops->to_x16(tile + i * plan->latent_x16_stride,
                                   all->x + (first + i) * all->x_stride, all->w, 1);
        }
        eng_multiply(&core->work, &product, begin, end);
    }
}

/* Chunk = one head: from its latent outputs to its values, for all rows. */
static void head_values(void *context, uint32_t head, unsigned thread)
{
    struct pass *pass = context;
    const struct model_shape *s = pass->core->shape;
    struct eng_plan *plan = &pass->core->plan;
    uint32_t per_head = s->qk_nope_dim + s->v_dim, first = head * per_head + s->qk_nope_dim;
    uint32_t heads = pass->core->heads;
    size_t out_stride = (size_t)heads * per_head;
    uint32_t stride = eng_ranks_share(&pass->core->ranks, s->heads).each;   /* as it is gathered */
    struct kern_matmul product = eng_product(
        &pass->layer->kv_b, plan->latent + (size_t)head * s->kv_lora_rank,
        (size_t)heads * s->kv_lora_rank, plan->kv_up, out_stride, pass->batch->count, 1);
    if (plan->latent_x16 && kern_x16_takes(product.w)) {
        multiply_rounded(pass->core, &product, first, first + s->v_dim, thread);
    } else {
        eng_multiply(&pass->core->work, &product, first, first + s->v_dim);
    }
    for (uint32_t row = 0; row < pass->batch->count; row++) {
        memcpy(plan->attended + ((size_t)row * stride + head) * s->v_dim,
               plan->kv_up + row * out_stride + first, s->v_dim * sizeof *plan->attended);
    }
}

static void project(struct pass *pass)
{
    struct eng_core *core = pass->core;
    const struct eng_layer *layer = pass->layer;
    const struct model_shape *s = core->shape;
    struct eng_plan *plan = &core->plan;
    uint32_t m = pass->batch->count;
    struct kern_matmul kv = eng_product(&layer->kv_a, plan->normed, s->hidden, plan->kv,
                                        layer->kv_a.rows, m, 1);
    struct kern_matmul pair[2] = { kv };
    if (s->q_lora_rank == 0) {
        pair[1] = eng_product(&layer->q_b, plan->normed, s->hidden, plan->q, layer->q_b.rows, m, 1);
        eng_work_products(&core->work, pair, 2);
        return;
    }
    pair[1] = eng_product(&layer->q_a, plan->normed, s->hidden, plan->q_a, s->q_lora_rank, m, 1);
    eng_work_products(&core->work, pair, 2);
    for (uint32_t row = 0; row < m; row++) {
        float *q_a = plan->q_a + (size_t)row * s->q_lora_rank;
        core->work.ops->rmsnorm(q_a, q_a, layer->q_a_norm, s->q_lora_rank, ENG_LATENT_NORM_EPS);
    }
    struct kern_matmul q = eng_product(&layer->q_b, plan->q_a, s->q_lora_rank, plan->q,
                                       layer->q_b.rows, m, 1);
    eng_work_products(&core->work, &q, 1);
}

static void fill_block_table(struct pass *pass)
{
    struct eng_core *core = pass->core;
    for (uint32_t i = 0; i < pass->batch->member_count; i++) {
        const struct eng_seq *seq = pass->batch->members[i];
        const void **table = core->plan.block_table + (size_t)i * core->kv.blocks_per_seq;
        for (uint32_t b = 0; b < seq->block_count; b++) {
            table[b] = eng_kv_block(&core->kv, seq->blocks[b], pass->layer_index);
        }
    }
}

/* The output product of heads that lie over the ranks. */
static void join_heads(struct eng_core *core, const struct eng_layer *layer, uint32_t rows)
{
    const struct model_shape *s = core->shape;
    struct eng_plan *plan = &core->plan;
    if (layer->o_blocks[0].rows > 0) {
        eng_ranks_blocks_sum(core, layer->o_blocks, s->heads * s->v_dim, plan->attended,
                             core->heads * s->v_dim, plan->branch, rows);
        return;
    }
    eng_ranks_gather(core, plan->attended, plan->rank_whole, rows, s->heads, s->v_dim);
    eng_ranks_rows(core, &layer->o, plan->rank_whole, s->heads * s->v_dim, plan->branch, rows,
                   s->hidden);
}

void eng_mla(struct eng_core *core, const struct eng_layer *layer, uint32_t layer_index,
             const struct eng_batch *batch)
{
    const struct model_shape *s = core->shape;
    struct pass pass = { core, layer, layer_index, batch, 1, HEADS_UNIT };
    uint64_t rows = batch->count, heads = core->heads, lora = s->kv_lora_rank;
    uint64_t begin_ns = eng_op_begin(core->profile);
    project(&pass);
    begin_ns = eng_op_next(core->profile, ENG_OP_PROJECT, begin_ns);
    eng_work_run(&core->work, batch->count, rows * heads * s->qk_rope_dim * 4, row_finish, &pass);
    begin_ns = eng_op_next(core->profile, ENG_OP_ROPE, begin_ns);
    eng_work_run(&core->work, core->heads, rows * heads * s->qk_nope_dim * lora, head_absorb,
                 &pass);
    begin_ns = eng_op_next(core->profile, ENG_OP_ABSORB, begin_ns);
    fill_block_table(&pass);
    uint64_t seen = 0;
    for (uint32_t row = 0; row < batch->count; row++) {
        seen += batch->positions[row] + 1;
    }
    uint64_t cost = seen * heads * (2 * lora + s->qk_rope_dim);
    while (pass.unit > 1 && rows * ((heads + pass.unit - 1) / pass.unit) < core->work.threads) {
        pass.unit /= 2;
    }
    pass.parts = eng_work_parts(&core->work, batch->count, cost / rows, core->heads, pass.unit);
    eng_work_run(&core->work, batch->count * pass.parts, cost, row_attend, &pass);
    begin_ns = eng_op_next(core->profile, ENG_OP_ATTEND, begin_ns);
    eng_poll(core);
    begin_ns = eng_op_begin(core->profile);
    eng_work_run(&core->work, core->heads, rows * heads * s->v_dim * lora, head_values, &pass);
    begin_ns = eng_op_next(core->profile, ENG_OP_VALUES, begin_ns);
    if (core->ranks.tensor > 1) {
        join_heads(core, layer, batch->count);
    } else {
        struct kern_matmul out = eng_product(&layer->o, core->plan.attended, heads * s->v_dim,
                                             core->plan.branch, s->hidden, batch->count,
                                             KERN_RANK_BLOCKS);
        eng_work_products(&core->work, &out, 1);
    }
    eng_op_end(core->profile, ENG_OP_OUTPUT, begin_ns);
}
