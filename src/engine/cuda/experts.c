#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/log.h"
#include "base/must.h"
#include "engine/cuda/room.h"
#include "engine/exchange.h"
#include "engine/gate.h"
#include "engine/leases.h"

/* Rows [begin, end) of a layer, all of one phase, and what of their experts is on the device. */
struct group {
    struct eng_cuda *cuda;
    const struct eng_layer *layer;
    uint32_t begin, end;
    uint32_t prompt_end;        /* pairs of rows before it go through tiles */
    enum tier_phase phase;
    bool spread;                /* the experts lie over several ranks */
    struct eng_cuda_failed failed;
    uint32_t pairs;
    const uint32_t *pair_row;
    const float *pair_weight;
};

static struct kern_cuda_shape shape_of(const struct kern_matrix *w, bool scaled)
{
    return (struct kern_cuda_shape){ w->dtype, w->rows, w->cols, scaled ? w->scale_rows : 0,
                                     w->scale_cols };
}

/* ------------------------------------------------------------------------ dense and shared -- */

void eng_cuda_mlp(struct eng_cuda *cuda, const struct eng_layer *layer, uint32_t layer_index)
{
    const struct eng_mlp *mlp = &layer->mlp;
    for (int i = 0; i < ENG_SPANS && cuda->rc == 0; i++) {
        const struct eng_span *span = &cuda->step.spans[i];
        const struct kern_cuda_experts_in_args args = {
            .shape = shape_of(&mlp->gate, mlp->gate.scales != NULL),
            .table = cuda->work.mlps + layer_index,
            .runs = span->run,
            .run_count = 1,
            .count_max = span->count,
            .pair_row = cuda->work.row_self,
            .x = cuda->work.normed,
            .act = cuda->work.mlp_act,
        };
        if (span->count == 0 || mlp->gate.rows == 0) continue;
        int rc = span->tiles ? kern_cuda_experts_in_tiles(&args, cuda->stream) : -EINVAL;
        if (rc == -EINVAL) rc = kern_cuda_experts_in(&args, cuda->stream);
        eng_cuda_keep(cuda, rc, "a dense or shared part");
    }
    if (cuda->core->ranks.tensor > 1) {
        const struct eng_cuda_joint joint = { &mlp->down, cuda->work.mlp_act, mlp->width, 1,
                                              cuda->core->shape->hidden, cuda->work.branch,
                                              "a dense or shared part" };
        eng_cuda_joint_product(cuda, &joint);
        return;
    }
    const struct eng_cuda_product down = {
        .w = &mlp->down, .x = cuda->work.mlp_act, .x_stride = mlp->down.cols,
        .y = cuda->work.branch, .y_stride = mlp->down.rows, .k_blocks = KERN_RANK_BLOCKS,
        .what = "a dense or shared part",
    };
    eng_cuda_product(cuda, &down);
}

/* -------------------------------------------------------------------------------------- gate -- */

/* Row products for prompts, too: which experts act should not hang on 16 bits of x. */
static void gate(struct eng_cuda *cuda, const struct eng_layer *layer)
{
    struct eng_core *core = cuda->core;
    const struct model_shape *s = core->shape;
    const uint32_t rows = cuda->step.batch->count;
    const struct kern_cuda_product_args logits = {
        .w = layer->gate,
        .m = rows,
        .rows = s->experts,
        .k_blocks = 1,
        .group = s->experts,
        .x = cuda->work.normed,
        .x_stride = s->hidden,
        .y = cuda->work.gate_logits,
        .y_stride = s->experts,
    };
    const struct kern_cuda_gate_args choice = {
        .rows = rows,
        .gate = eng_gate_of(s, layer),
        .logits = cuda->work.gate_logits,
        .ids = cuda->work.route_ids,
        .weights = cuda->work.route_weights,
    };
    const size_t at = (size_t)layer->moe_layer * rows * s->top_k, count = (size_t)rows * s->top_k;
    if (cuda->rc == 0) eng_cuda_keep(cuda, kern_cuda_product(&logits, cuda->stream), "the gate");
    if (cuda->rc == 0) eng_cuda_keep(cuda, kern_cuda_gate(&choice, cuda->stream), "the gate");
    if (cuda->rc == 0) {
        eng_cuda_keep(cuda,
                      dev_stream_copy(cuda->dev, DEV_DOWN, core->plan.route_ids + at,
                                      cuda->work.route_ids, count * sizeof(uint32_t)),
                      "copying the gate's choice");
    }
    if (cuda->rc == 0) {
        eng_cuda_keep(cuda,
                      dev_stream_copy(cuda->dev, DEV_DOWN, core->plan.route_weights + at,
                                      cuda->work.route_weights, count * sizeof(float)),
                      "copying the gate's choice");
    }
    if (cuda->rc == 0) eng_cuda_keep(cuda, dev_stream_note(cuda->dev), "waiting for the gate");
}

/* The host has the choice, and all that was sent before it has arrived. */
static void gate_reach(struct eng_cuda *cuda, const struct eng_layer *layer)
{
    const struct model_shape *s = cuda->core->shape;
    const size_t count = (size_t)cuda->step.batch->count * s->top_k;
    const uint32_t *ids = cuda->core->plan.route_ids + (size_t)layer->moe_layer * count;
    if (cuda->rc == 0) eng_cuda_keep(cuda, dev_stream_reach(cuda->dev), "waiting for the gate");
    for (size_t i = 0; i < count && cuda->rc == 0; i++) {
        if (ids[i] >= s->experts) eng_cuda_keep(cuda, BASE_EDEVICE, "the gate's choice");
    }
    cuda->step.routed += cuda->rc == 0;
    eng_wire_reset(&cuda->layer_wire);
}

/* ----------------------------------------------------------------------------------- experts -- */

static void *put(struct group *g, size_t bytes, const void **device)
{
    return eng_wire_take(&g->cuda->layer_wire, bytes, device);
}

/* An expert's first pair on the device: there are those of this rank alone. */
static uint32_t first_of(const struct group *g, uint32_t expert)
{
    const struct eng_plan *plan = &g->cuda->core->plan;
    return g->spread ? plan->expert_place[expert] : plan->expert_first[expert];
}

static void put_own_pairs(struct group *g)
{
    const struct eng_core *core = g->cuda->core;
    const struct eng_plan *plan = &core->plan;
    const void *at;
    g->pairs = plan->rank_pairs[core->ranks.rank];
    uint32_t *rows = put(g, g->pairs * sizeof *rows, &at);
    for (uint32_t e = 0; e < core->shape->experts; e++) {
        if (plan->expert_count[e] == 0 || plan->expert_rank[e] != core->ranks.rank) continue;
        memcpy(rows + plan->expert_place[e], plan->pair_row + plan->expert_first[e],
               plan->expert_count[e] * sizeof *rows);
    }
    g->pair_row = at;
}

static void put_pairs(struct group *g)
{
    const struct eng_plan *plan = &g->cuda->core->plan;
    const void *at;
    if (g->spread) {
        put_own_pairs(g);
        return;
    }
    g->pairs = 0;
    for (uint32_t row = g->begin; row < g->end; row++)
        g->pairs += plan->row_pair_count[row];
    const size_t bytes = g->pairs * sizeof(uint32_t);
    memcpy(put(g, bytes, &at), plan->pair_row, bytes);
    g->pair_row = at;
    memcpy(put(g, bytes, &at), plan->pair_weight, bytes);
    g->pair_weight = at;
}

/* Runs of one kind of rows, as the kernels take them. */
struct runs {
    struct kern_cuda_run *host;
    const void *device;
    uint32_t count, longest;
};

static void runs_add(struct runs *runs, uint32_t expert, uint32_t first, uint32_t count)
{
    if (count == 0) return;
    runs->host[runs->count++] = (struct kern_cuda_run){ expert, first, count };
    if (count > runs->longest) runs->longest = count;
}

static void launch(struct group *g, const struct runs *runs, const void *table, bool tiles)
{
    struct eng_cuda *cuda = g->cuda;
    const struct eng_core *core = cuda->core;
    const struct kern_matrix *w = core->expert;
    const bool *scaled = core->expert_scaled;
    const struct kern_cuda_experts_in_args in = {
        .shape = shape_of(&w[MODEL_GATE], scaled[MODEL_GATE]),
        .table = table,
        .runs = runs->device,
        .run_count = runs->count,
        .count_max = runs->longest,
        .pair_row = g->pair_row,
        .x = cuda->work.normed,
        .act = cuda->work.pair_act,
    };
    const struct kern_cuda_experts_out_args out = {
        .shape = shape_of(&w[MODEL_DOWN], scaled[MODEL_DOWN]),
        .table = table,
        .runs = runs->device,
        .run_count = runs->count,
        .count_max = runs->longest,
        .act = cuda->work.pair_act,
        .out = cuda->work.pair_out,
    };
    if (cuda->rc < 0 || runs->count == 0) return;
    int rc = tiles ? kern_cuda_experts_in_tiles(&in, cuda->stream) : -EINVAL;
    if (rc == -EINVAL) rc = kern_cuda_experts_in(&in, cuda->stream);
    if (!eng_cuda_keep(cuda, rc, "experts")) return;
    rc = tiles ? kern_cuda_experts_out_tiles(&out, cuda->stream) : -EINVAL;
    if (rc == -EINVAL) rc = kern_cuda_experts_out(&out, cuda->stream);
    eng_cuda_keep(cuda, rc, "experts");
}

/* Launches the listed experts: where they lie, their tokens, then the kernels. */
static void compute(struct group *g, const struct tier_lease *const *leases, uint32_t count)
{
    const struct eng_plan *plan = &g->cuda->core->plan;
    const void *table;
    struct runs tiles = { 0 }, rows = { 0 };
    if (count == 0 || g->cuda->rc < 0) return;
    struct kern_cuda_expert *places = put(g, count * sizeof *places, &table);
    tiles.host = put(g, count * sizeof *tiles.host, &tiles.device);
    rows.host = put(g, count * sizeof *rows.host, &rows.device);
    for (uint32_t i = 0; i < count; i++) {
        const void *const *p = leases[i]->parts;
        const uint32_t first = first_of(g, leases[i]->expert);
        const uint32_t pairs = plan->expert_count[leases[i]->expert];
        const uint32_t *row = plan->pair_row + plan->expert_first[leases[i]->expert];
        uint32_t prompt = 0;
        places[i] = (struct kern_cuda_expert){ p[0], p[1], p[2], p[3], p[4], p[5] };
        while (prompt < pairs && row[prompt] < g->prompt_end)
            prompt++;
        runs_add(&tiles, i, first, prompt);
        runs_add(&rows, i, first + prompt, pairs - prompt);
    }
    eng_wire_send(g->cuda, &g->cuda->layer_wire);
    launch(g, &tiles, table, true);
    launch(g, &rows, table, false);
}

/* Where experts lie over ranks all of them learn of it at once, before the exchange. */
static void fail_lease(struct group *g, const struct tier_lease *lease)
{
    struct eng_core *core = g->cuda->core;
    char why[BASE_ERR_TEXT / 2];
    if (!g->spread) {
        eng_leases_fail(core, g->cuda->step.batch, lease);
        return;
    }
    g->failed.count++;
    g->failed.experts[lease->expert / 32] |= 1u << lease->expert % 32;
    eng_leases_why(core, lease, why, sizeof why);
    base_log(BASE_LOG_WARN, "ranks", "rank %u: requests end: %s", core->ranks.rank, why);
}

/* Launches the granted experts as they arrive. plan.pending is kept dense; settled leases move to
 * plan.leases, where they stand in the order in which they are released. */
static void serve_arrivals(struct group *g, uint32_t granted)
{
    struct eng_core *core = g->cuda->core;
    struct eng_plan *plan = &core->plan;
    uint32_t left = granted;
    for (uint32_t i = 0; i < granted; i++) {
        plan->pending[i] = plan->leases[i];
        plan->pending_index[i] = i;
    }
    while (left > 0) {
        const struct tier_lease **arrived = plan->arrived;
        uint32_t count = 0, kept = 0;
        eng_leases_wait(core, plan->pending, left, TIER_WAIT_ANY, UINT64_MAX);
        for (uint32_t i = 0; i < left; i++) {
            const uint32_t index = plan->pending_index[i];
            if (plan->pending[i].status == -EINPROGRESS) {
                plan->pending[kept] = plan->pending[i];
                plan->pending_index[kept++] = index;
                continue;
            }
            plan->leases[index] = plan->pending[i];
            if (plan->leases[index].status == 0)
                arrived[count++] = &plan->leases[index];
            else
                fail_lease(g, &plan->leases[index]);
        }
        left = kept;
        compute(g, arrived, count);
        tier_poll(core->tier);
    }
}

/* Experts' outputs in ascending id, then the shared ones'. Rows whose sequence failed have outputs
 * that were never written: they get none. */
static void sum_up(struct group *g)
{
    struct eng_cuda *cuda = g->cuda;
    const struct eng_plan *plan = &cuda->core->plan;
    const struct eng_batch *batch = cuda->step.batch;
    const struct model_shape *s = cuda->core->shape;
    const uint32_t rows = g->end - g->begin;
    const void *pairs, *counts;
    memcpy(put(g, (size_t)rows * s->top_k * sizeof(uint32_t), &pairs),
           plan->row_pairs + (size_t)g->begin * s->top_k,
           (size_t)rows * s->top_k * sizeof(uint32_t));
    uint32_t *count = put(g, rows * sizeof *count, &counts);
    for (uint32_t i = 0; i < rows; i++) {
        const struct eng_seq *seq = batch->members[batch->row_member[g->begin + i]];
        count[i] = seq->error.code < 0 ? 0 : plan->row_pair_count[g->begin + i];
    }
    eng_wire_send(cuda, &cuda->layer_wire);
    float *branch = cuda->work.branch + (size_t)g->begin * s->hidden;
    const struct kern_cuda_combine_args args = {
        .rows = rows,
        .hidden = s->hidden,
        .top_k = s->top_k,
        .row_pairs = pairs,
        .row_pair_count = counts,
        .pair_weight = g->pair_weight,
        .pair_out = cuda->work.pair_out,
        .add = g->layer->mlp.width > 0 ? branch : NULL,
        .out = branch,
    };
    if (cuda->rc == 0)
        eng_cuda_keep(cuda, kern_cuda_combine(&args, cuda->stream), "the sum of experts");
}

/* Hints for layers ahead, once a layer: behind the demand reads of its last group. */
static void advise(const struct group *g, bool *advised)
{
    const struct eng_core *core = g->cuda->core;
    const uint32_t rows = g->cuda->step.batch->count;
    if (!core->advice || *advised || g->end < rows) return;
    *advised = true;
    eng_advice_routed(core->advice, (uint32_t)g->layer->moe_layer,
                      core->plan.route_ids +
                          (size_t)g->layer->moe_layer * rows * core->shape->top_k);
}

/* The experts of this rank: their outputs are on the device, or will be. */
static void serve_own(struct group *g, bool *advised)
{
    struct eng_core *core = g->cuda->core;
    struct eng_plan *plan = &core->plan;
    uint32_t wanted = eng_gate_group(core, g->layer, g->cuda->step.batch, g->begin, g->end,
                                     g->phase == TIER_DECODE);
    if (g->spread) wanted = eng_exchange_deal(core, g->layer, wanted);
    put_pairs(g);
    for (uint32_t done = 0; done < wanted;) {
        const uint32_t granted =
            tier_acquire(core->tier, (uint32_t)g->layer->moe_layer, plan->wanted + done,
                         wanted - done, g->phase, plan->leases);
        MUST(granted > 0);
        advise(g, advised);
        serve_arrivals(g, granted);
        tier_release(core->tier, plan->leases, granted);
        done += granted;
    }
    advise(g, advised); /* nothing was wanted: every sequence has failed, or all is others' */
}

static void serve(struct group *g, bool *advised)
{
    struct eng_cuda *cuda = g->cuda;
    if (g->begin == g->end) return;
    g->spread = cuda->core->ranks.expert > 1;
    if (cuda->rc == 0) serve_own(g, advised);
    if (!g->spread) {
        if (cuda->rc == 0) sum_up(g);
        return;
    }
    const struct eng_cuda_exchange exchange = { .layer = g->layer, .begin = g->begin,
                                                .end = g->end, .add = g->layer->mlp.width > 0,
                                                .failed = &g->failed };
    if (eng_cuda_goes_on(cuda)) eng_cuda_exchange(cuda, &exchange);
}

void eng_cuda_experts(struct eng_cuda *cuda, const struct eng_layer *layer, uint32_t layer_index)
{
    const struct eng_batch *batch = cuda->step.batch;
    const struct eng_span *prompt = &cuda->step.spans[1];
    bool advised = false;
    gate(cuda, layer);
    if (layer->mlp.width > 0) eng_cuda_mlp(cuda, layer, layer_index);
    gate_reach(cuda, layer);
    struct group decode = { .cuda = cuda, .layer = layer, .end = batch->decode_count,
                            .phase = TIER_DECODE };
    serve(&decode, &advised);
    struct group prefill = { .cuda = cuda, .layer = layer, .begin = batch->decode_count,
                             .end = batch->count, .prompt_end = prompt->first + prompt->count,
                             .phase = TIER_PREFILL };
    serve(&prefill, &advised);
}
