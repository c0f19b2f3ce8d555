#include "engine/gate.h"

#include <string.h>

#include "base/must.h"

struct pass {
    struct eng_core *core;
    struct kern_gate gate;
    const struct eng_layer *layer;
    const struct eng_batch *batch;
    uint32_t *ids;
    float *weights;
};

static void row_choose(void *context, uint32_t row, unsigned thread)
{
    const struct pass *pass = context;
    const struct model_shape *s = pass->core->shape;
    const struct eng_hooks *hooks = pass->core->hooks;
    struct eng_plan *plan = &pass->core->plan;
    uint32_t *ids = pass->ids + (size_t)row * s->top_k;
    pass->core->work.ops->gate(&pass->gate, plan->gate_logits + (size_t)row * s->experts, ids,
                               pass->weights + (size_t)row * s->top_k,
                               plan->gate_scratch + (size_t)thread * 2 * s->experts);
    if (hooks->route) {
        hooks->route(hooks->context, (uint32_t)pass->layer->moe_layer, pass->batch->seqs[row],
                     pass->batch->positions[row], ids);
    }
}

struct kern_gate eng_gate_of(const struct model_shape *s, const struct eng_layer *layer)
{
    return (struct kern_gate){
        .experts = s->experts, .top_k = s->top_k, .groups = s->groups,
        .top_groups = s->top_groups, .sigmoid = s->scoring == MODEL_SCORE_SIGMOID,
        .method = s->topk_method == MODEL_TOPK_GREEDY      ? KERN_GATE_GREEDY
                  : s->topk_method == MODEL_TOPK_GROUP_MAX ? KERN_GATE_GROUP_MAX
                                                           : KERN_GATE_NOAUX,
        .normalize = s->norm_topk, .scaling = (float)s->routed_scaling,
        .bias = layer->gate_bias,
    };
}

void eng_gate(struct eng_core *core, const struct eng_layer *layer, const struct eng_batch *batch)
{
    enum { CHOICE_COST = 16 };  /* multiply-adds that one expert's scoring is worth */
    const struct model_shape *s = core->shape;
    struct eng_plan *plan = &core->plan;
    struct kern_matmul product = eng_product(&layer->gate, plan->normed, s->hidden,
                                             plan->gate_logits, s->experts, batch->count, 1);
    eng_work_products(&core->work, &product, 1);
    size_t at = (size_t)layer->moe_layer * batch->count * s->top_k;
    struct pass pass = {
        .core = core,
        .gate = eng_gate_of(s, layer),
        .layer = layer,
        .batch = batch,
        .ids = plan->route_ids + at,
        .weights = plan->route_weights + at,
    };
    eng_work_run(&core->work, batch->count, (uint64_t)batch->count * s->experts * CHOICE_COST,
                 row_choose, &pass);
}

static uint32_t list_wanted(struct eng_plan *plan, uint32_t experts, bool strongest_first)
{
    uint32_t wanted = 0;
    for (uint32_t e = 0; e < experts; e++) {
        if (plan->expert_count[e] == 0) continue;
        uint32_t at = wanted++;
        /* Insertion keeps equals in ascending id; the lists are short. */
        while (strongest_first && at > 0 &&
               plan->expert_strength[plan->wanted[at - 1]] < plan->expert_strength[e]) {
            plan->wanted[at] = plan->wanted[at - 1];
            at--;
        }
        plan->wanted[at] = e;
    }
    return wanted;
}

uint32_t eng_gate_group(struct eng_core *core, const struct eng_layer *layer,
                        const struct eng_batch *batch, uint32_t begin, uint32_t end,
                        bool strongest_first)
{
    const struct model_shape *s = core->shape;
    struct eng_plan *plan = &core->plan;
    size_t base = (size_t)layer->moe_layer * batch->count * s->top_k;
    memset(plan->expert_count, 0, s->experts * sizeof *plan->expert_count);
    memset(plan->expert_strength, 0, s->experts * sizeof *plan->expert_strength);
    for (uint32_t row = begin; row < end; row++) {
        if (batch->members[batch->row_member[row]]->error.code < 0) continue;
        for (uint32_t k = 0; k < s->top_k; k++) {
            size_t at = base + (size_t)row * s->top_k + k;
            uint32_t e = plan->route_ids[at];
            MUST(e < s->experts);
            plan->expert_count[e]++;
            if (plan->route_weights[at] > plan->expert_strength[e]) {
                plan->expert_strength[e] = plan->route_weights[at];
            }
        }
    }
    uint32_t pairs = 0;
    for (uint32_t e = 0; e < s->experts; e++) {
        plan->expert_first[e] = pairs;
        pairs += plan->expert_count[e];
        plan->expert_count[e] = 0;
    }
    for (uint32_t row = begin; row < end; row++) {
        plan->row_pair_count[row] = 0;
        if (batch->members[batch->row_member[row]]->error.code < 0) continue;
        for (uint32_t k = 0; k < s->top_k; k++) {
            size_t at = base + (size_t)row * s->top_k + k;
            uint32_t e = plan->route_ids[at];
            uint32_t pair = plan->expert_first[e] + plan->expert_count[e]++;
            plan->pair_row[pair] = row;
            plan->pair_weight[pair] = plan->route_weights[at];
            /* Pairs ascend with the expert's id, so sorting a row's pairs sorts its experts. */
            uint32_t *list = plan->row_pairs + (size_t)row * s->top_k;
            uint32_t place = plan->row_pair_count[row]++;
            while (place > 0 && list[place - 1] > pair) {
                list[place] = list[place - 1];
                place--;
            }
            list[place] = pair;
        }
    }
    return list_wanted(plan, s->experts, strongest_first);
}
