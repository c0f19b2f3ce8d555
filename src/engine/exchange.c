#include "engine/exchange.h"

#include <stdlib.h>
#include <string.h>

#include "base/must.h"

struct pass {
    struct eng_core *core;
    const struct eng_batch *batch;
    uint32_t begin, columns, stride;
};

uint32_t eng_exchange_stride(const struct eng_core *core)
{
    return (core->shape->hidden + core->ranks.count - 1) / core->ranks.count + 1;
}

/* Of the ranks that hold an expert, the one with the fewest pairs so far. */
static uint32_t least(uint64_t holders, const uint32_t *pairs, uint32_t ranks)
{
    uint32_t best = ranks;
    for (uint32_t r = 0; r < ranks; r++) {
        if (holders >> r & 1 && (best == ranks || pairs[r] < pairs[best])) best = r;
    }
    MUST(best < ranks);
    return best;
}

/* Experts that one rank alone holds come first: the others even out what those left uneven. */
static void assign(struct eng_core *core, uint32_t moe_layer)
{
    const struct eng_placement *p = core->ranks.placement;
    struct eng_plan *plan = &core->plan;
    uint32_t *pairs = plan->rank_pairs, ranks = core->ranks.count;
    const uint64_t *holders = p->holders + (size_t)moe_layer * p->experts;
    memset(pairs, 0, ranks * sizeof *pairs);
    for (int many = 0; many < 2; many++) {
        for (uint32_t e = 0; e < p->experts; e++) {
            bool several = (holders[e] & (holders[e] - 1)) != 0;
            if (plan->expert_count[e] == 0 || several != (many == 1)) continue;
            uint32_t to = least(holders[e], pairs, ranks);
            plan->expert_rank[e] = to;
            pairs[to] += plan->expert_count[e];
        }
    }
}

uint32_t eng_exchange_deal(struct eng_core *core, const struct eng_layer *layer, uint32_t wanted)
{
    struct eng_plan *plan = &core->plan;
    uint32_t kept = 0, experts = core->shape->experts, next[COMM_RANKS_MAX] = { 0 };
    assign(core, (uint32_t)layer->moe_layer);
    for (uint32_t e = 0; e < experts; e++) {
        if (plan->expert_count[e] == 0) continue;
        plan->expert_place[e] = next[plan->expert_rank[e]];
        next[plan->expert_rank[e]] += plan->expert_count[e];
    }
    for (uint32_t i = 0; i < wanted; i++) {
        if (plan->expert_rank[plan->wanted[i]] == core->ranks.rank) {
            plan->wanted[kept++] = plan->wanted[i];
        }
    }
    return kept;
}

void eng_exchange_begin(struct eng_core *core)
{
    /* Every pair's last word: nothing has failed so far. */
    uint32_t stride = eng_exchange_stride(core);
    size_t pairs = (size_t)core->plan.rank_pairs[core->ranks.rank] * core->ranks.count;
    for (size_t i = 0; i < pairs; i++) {
        core->plan.rank_send[i * stride + stride - 1] = 0.0f;
    }
}

float *eng_exchange_place(const struct eng_core *core, uint32_t expert, uint32_t to)
{
    const struct eng_plan *plan = &core->plan;
    size_t pair = (size_t)to * plan->rank_pairs[core->ranks.rank] + plan->expert_place[expert];
    return plan->rank_send + pair * eng_exchange_stride(core);
}

void eng_exchange_failed(struct eng_core *core, uint32_t expert)
{
    uint32_t stride = eng_exchange_stride(core), count = core->plan.expert_count[expert];
    for (uint32_t to = 0; to < core->ranks.count; to++) {
        float *at = eng_exchange_place(core, expert, to);
        memset(at, 0, (size_t)count * stride * sizeof *at);
        for (uint32_t i = 0; i < count; i++) {
            at[(size_t)i * stride + stride - 1] = 1.0f;
        }
    }
}

/* Chunk = one row: this rank's columns of its experts' outputs, in ascending id. */
static void row_sum(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct eng_plan *plan = &pass->core->plan;
    uint32_t row = pass->begin + chunk, each = pass->stride - 1;
    float *to = plan->rank_part + (size_t)chunk * each;
    const uint32_t *pairs = plan->row_pairs + (size_t)row * pass->core->shape->top_k;
    memset(to, 0, each * sizeof *to);
    if (pass->batch->members[pass->batch->row_member[row]]->error.code < 0) return;
    for (uint32_t i = 0; i < plan->row_pair_count[row]; i++) {
        pass->core->work.ops->axpy(to, plan->pair_weight[pairs[i]],
                                   plan->rank_recv + plan->pair_at[pairs[i]], pass->columns);
    }
}

void eng_exchange_end_requests(struct eng_core *core, const struct eng_layer *layer,
                               const struct eng_batch *batch, uint32_t expert)
{
    const struct eng_plan *plan = &core->plan;
    for (uint32_t i = 0; i < plan->expert_count[expert]; i++) {
        uint32_t row = plan->pair_row[plan->expert_first[expert] + i];
        struct eng_seq *seq = batch->members[batch->row_member[row]];
        base_err_set(&seq->error, BASE_EQUARANTINE, "%s: this answer needs expert %u of moe layer "
                     "%u, which rank %u could not read (its log says why)", core->shape->name,
                     expert, (uint32_t)layer->moe_layer, plan->expert_rank[expert]);
    }
}

/* Finds where each pair's outputs came to lie, and ends the requests whose experts failed. */
static void receive(struct pass *pass, const struct eng_layer *layer, const size_t *first)
{
    struct eng_core *core = pass->core;
    struct eng_plan *plan = &core->plan;
    for (uint32_t e = 0; e < core->shape->experts; e++) {
        uint32_t count = plan->expert_count[e], from = plan->expert_rank[e];
        if (count == 0) continue;
        size_t at = first[from] + (size_t)plan->expert_place[e] * pass->stride;
        for (uint32_t i = 0; i < count; i++) {
            plan->pair_at[plan->expert_first[e] + i] = at + (size_t)i * pass->stride;
        }
        if (plan->rank_recv[at + pass->stride - 1] != 0.0f) {
            eng_exchange_end_requests(core, layer, pass->batch, e);
        }
    }
}

void eng_exchange_sum(struct eng_core *core, const struct eng_layer *layer,
                      const struct eng_batch *batch, uint32_t begin, uint32_t end)
{
    const struct eng_ranks *r = &core->ranks;
    struct eng_plan *plan = &core->plan;
    struct eng_share own = eng_ranks_share_of(core->shape->hidden, r->count, r->rank);
    struct pass pass = { core, batch, begin, own.end - own.begin, eng_exchange_stride(core) };
    size_t sent[COMM_RANKS_MAX], got[COMM_RANKS_MAX], first[COMM_RANKS_MAX], floats = 0;
    for (uint32_t from = 0; from < r->count; from++) {
        size_t pairs = (size_t)plan->rank_pairs[from] * pass.stride;
        sent[from] = (size_t)plan->rank_pairs[r->rank] * pass.stride * sizeof(float);
        got[from] = pairs * sizeof(float);
        first[from] = floats;
        floats += pairs;
    }
    comm_all_to_all(r->comm, plan->rank_send, sent, plan->rank_recv, got);
    receive(&pass, layer, first);
    uint32_t rows = end - begin;
    eng_work_run(&core->work, rows, (uint64_t)rows * core->shape->top_k * pass.columns, row_sum,
                 &pass);
    eng_ranks_gather(core, plan->rank_part, plan->routed + (size_t)begin * core->shape->hidden,
                     rows, core->shape->hidden, 1);
}
