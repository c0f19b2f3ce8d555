#include "comm/cards.h"
#include "engine/plan.h"

#include "engine/ranks.h"
#include "engine/work.h"
#include "kernels/x16.h"

struct layout {
    char *memory;
    size_t used;
};

static void *take(struct layout *layout, size_t count, size_t size)
{
    enum { ALIGN = 64 };
    void *at = layout->memory ? layout->memory + layout->used : NULL;
    layout->used += (count * size + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static void layout_rows(struct eng_plan *p, struct layout *l, const struct model_shape *s,
                        const struct eng_plan_size *size)
{
    size_t rows = size->rows, real = sizeof(float);
    size_t heads = eng_ranks_share(size->ranks, s->heads).each;
    uint32_t shared = s->shared_experts * s->expert_width;
    uint32_t width = larger(s->dense_layers > 0 || s->experts == 0 || s->moe_layer_freq > 1 ?
                            s->dense_width : 0, shared);
    width = eng_ranks_share(size->ranks, width).each;
    p->cos = take(l, rows * s->qk_rope_dim / 2, real);
    p->sin = take(l, rows * s->qk_rope_dim / 2, real);
    p->row_pairs = take(l, rows * s->top_k, sizeof(uint32_t));
    p->row_pair_count = take(l, rows, sizeof(uint32_t));
    if (size->on_device) return;
    p->hidden = take(l, rows * s->hidden, real);
    p->normed = take(l, rows * s->hidden, real);
    p->branch = take(l, rows * s->hidden, real);
    p->q_a = take(l, rows * s->q_lora_rank, real);
    p->q = take(l, rows * heads * (s->qk_nope_dim + s->qk_rope_dim), real);
    p->kv = take(l, rows * (s->kv_lora_rank + s->qk_rope_dim), real);
    p->q_latent = take(l, rows * heads * (s->kv_lora_rank + s->qk_rope_dim), real);
    p->latent = take(l, rows * heads * s->kv_lora_rank, real);
    p->kv_up = take(l, rows * heads * (s->qk_nope_dim + s->v_dim), real);
    p->attended = take(l, rows * heads * s->v_dim, real);
    p->mlp_gate = take(l, rows * width, real);
    p->mlp_up = take(l, rows * width, real);
    p->routed = take(l, rows * s->hidden, real);
    p->gate_logits = take(l, rows * s->experts, real);
    p->block_table =
        take(l, (size_t)(size->decode_rows + 1) * size->blocks_per_seq, sizeof(void *));
}

static void layout_experts(struct eng_plan *p, struct layout *l, const struct model_shape *s,
                           const struct eng_plan_size *size)
{
    size_t pairs = (size_t)size->rows * s->top_k, real = sizeof(float), experts = s->experts;
    size_t routes = pairs * model_shape_moe_layers(s);
    p->pair_row = take(l, pairs, sizeof(uint32_t));
    p->pair_weight = take(l, pairs, real);
    p->expert_first = take(l, experts, sizeof(uint32_t));
    p->expert_count = take(l, experts, sizeof(uint32_t));
    p->wanted = take(l, experts, sizeof(uint32_t));
    p->expert_strength = take(l, experts, real);
    p->leases = take(l, experts, sizeof(struct tier_lease));
    p->pending = take(l, experts, sizeof(struct tier_lease));
    p->pending_index = take(l, experts, sizeof(uint32_t));
    p->runs = take(l, experts, sizeof(struct eng_run));
    p->route_ids = take(l, routes, sizeof(uint32_t));
    p->route_weights = take(l, routes, real);
    p->arrived = take(l, experts, sizeof(void *));
    if (size->on_device) return;
    bool spread = size->ranks && size->ranks->expert > 1;
    p->pair_gate = take(l, pairs * s->expert_width, real);
    p->pair_up = take(l, pairs * s->expert_width, real);
    p->pair_out = take(l, spread ? 0 : (size_t)size->decode_rows * s->top_k * s->hidden, real);
    p->tile_in = take(l, (size_t)size->threads * ENG_TILE * s->hidden, real);
    p->tile_out = take(l, (size_t)size->threads * ENG_TILE * s->hidden, real);
    p->x8_digits = size->x8_digits;
    if (size->x8_digits > 0 || size->experts_x16) {
        size_t row = eng_plan_coded(p, s->hidden);
        p->normed_coded = take(l, size->rows, row);
        p->pair_coded = take(l, pairs, eng_plan_coded(p, s->expert_width));
        p->tile_coded = take(l, (size_t)size->threads * ENG_TILE, row);
    }
    p->gate_scratch = take(l, size->threads * 2 * experts, real);
}

size_t eng_plan_coded(const struct eng_plan *plan, uint32_t cols)
{
    if (plan->x8_digits > 0) return kern_x8_bytes(cols, plan->x8_digits);
    return kern_x16_elements(cols, 1) * sizeof(uint16_t);
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Two products with an input each of the model's width, or one of any other. */
static void layout_x8(struct eng_plan *p, struct layout *l, const struct model_shape *s,
                      const struct eng_plan_size *size)
{
    size_t rows = most(size->rows, (size_t)size->decode_rows + 1);
    uint32_t shared = s->shared_experts * s->expert_width, digits = size->dense_digits;
    if (digits == 0 || size->on_device) return;
    size_t row = ENG_PRODUCTS_MAX * kern_x8_bytes(s->hidden, digits);
    row = most(row, kern_x8_bytes(s->q_lora_rank, digits));
    row = most(row, kern_x8_bytes(s->heads * s->v_dim, digits));
    row = most(row, kern_x8_bytes(larger(s->dense_width, shared), digits));
    p->x8_bytes = rows * row;
    p->x8 = take(l, p->x8_bytes, 1);
}

/* Room for as many inputs, and for those of values, thread by thread. */
static void layout_x16(struct eng_plan *p, struct layout *l, const struct model_shape *s,
                       const struct eng_plan_size *size)
{
    size_t rows = most(size->rows, (size_t)size->decode_rows + 1);
    uint32_t shared = s->shared_experts * s->expert_width;
    if (!size->x16 || size->on_device) return;
    size_t row = ENG_PRODUCTS_MAX * kern_x16_elements(s->hidden, 1);
    row = most(row, kern_x16_elements(s->q_lora_rank, 1));
    row = most(row, kern_x16_elements(s->heads * s->v_dim, KERN_RANK_BLOCKS));
    row = most(row, kern_x16_elements(larger(s->dense_width, shared), KERN_RANK_BLOCKS));
    p->x16_elements = rows * row;
    p->x16 = take(l, p->x16_elements, sizeof *p->x16);
    p->latent_x16_stride = kern_x16_elements(s->kv_lora_rank, 1);
    p->latent_x16 = take(l, (size_t)size->threads * ENG_VALUES_TILE * p->latent_x16_stride,
                         sizeof *p->latent_x16);
}

static void layout_ranks(struct eng_plan *p, struct layout *l, const struct model_shape *s,
                         const struct eng_plan_size *size)
{
    struct eng_rank_room room;
    if (!size->ranks || size->ranks->count == 1) return;
    eng_ranks_room(size->ranks, s, size, &room);
    /* Cards that speak with one another do it from their own memory. */
    const bool by_host = !size->on_device || !comm_has_cards(size->ranks->comm);
    p->rank_send = take(l, by_host ? room.send : 0, sizeof(float));
    p->rank_recv = take(l, by_host ? room.recv : 0, sizeof(float));
    p->rank_part = take(l, size->on_device ? 0 : room.part, sizeof(float));
    p->rank_whole = take(l, size->on_device ? 0 : room.whole, sizeof(float));
    p->rank_pairs = take(l, size->ranks->count, sizeof(uint32_t));
    p->rank_failed = take(l, size->ranks->count * eng_plan_failed_words(size->decode_rows + 1),
                          sizeof(uint32_t));
    p->expert_rank = take(l, s->experts, sizeof(uint32_t));
    p->expert_place = take(l, s->experts, sizeof(uint32_t));
    p->pair_at = take(l, (size_t)size->rows * s->top_k, sizeof(size_t));
}

size_t eng_plan_layout(struct eng_plan *plan, const struct model_shape *shape,
                       const struct eng_plan_size *size, void *memory)
{
    struct layout layout = { .memory = memory };
    *plan = (struct eng_plan){ 0 };
    layout_rows(plan, &layout, shape, size);
    layout_experts(plan, &layout, shape, size);
    layout_x16(plan, &layout, shape, size);
    layout_x8(plan, &layout, shape, size);
    size_t head_rows = (size_t)size->decode_rows + 1;
    if (!size->on_device) plan->head_in = take(&layout, head_rows * shape->hidden, sizeof(float));
    plan->logits = take(&layout, head_rows * shape->vocab, sizeof(float));
    plan->head_rows = take(&layout, head_rows, sizeof(uint32_t));
    plan->head_whole = take(&layout, head_rows, sizeof(bool));
    plan->head_best = take(&layout, head_rows, sizeof(uint32_t));
    plan->drawn = take(&layout, head_rows, sizeof(int64_t));
    plan->logprobs = take(&layout, head_rows, sizeof(float));
    plan->candidates =
        take(&layout, (size_t)size->threads * shape->vocab, sizeof(struct eng_candidate));
    layout_ranks(plan, &layout, shape, size);
    return layout.used;
}
