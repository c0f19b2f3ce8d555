#include "engine/moe.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/must.h"
#include "engine/exchange.h"
#include "engine/ffn.h"
#include "engine/gate.h"
#include "engine/leases.h"
#include "engine/lookahead.h"
#include "tiering/wave.h"

struct pass {
    struct eng_core *core;
    const struct eng_layer *layer;
    const struct eng_batch *batch;
    uint32_t runs;              /* experts of plan.runs to compute now */
    uint32_t parts;
    uint32_t begin, end;        /* rows */
    bool shared_done, advised;
    bool spread;                /* the experts lie over several ranks */
};

static struct kern_matrix part_matrix(const struct eng_core *core, const struct tier_lease *lease,
                                      enum model_matrix matrix)
{
    struct kern_matrix w = core->expert[matrix];
    w.data = lease->parts[2 * matrix];
    w.scales = core->expert_scaled[matrix] ? lease->parts[2 * matrix + 1] : NULL;
    return w;
}

/* Into how many parts of its rows a matrix of each of `items` is cut; `cost` is that of all. */
static uint32_t parts_of(const struct pass *pass, enum model_matrix matrix, uint32_t items,
                         uint64_t cost)
{
    const struct kern_matrix *w = &pass->core->expert[matrix];
    return eng_work_parts(&pass->core->work, items, cost / items, w->rows, eng_work_unit(w));
}

static void part_rows(const struct pass *pass, enum model_matrix matrix, uint32_t part,
                      uint32_t *begin, uint32_t *end)
{
    const struct kern_matrix *w = &pass->core->expert[matrix];
    eng_work_rows(w->rows, eng_work_unit(w), pass->parts, part, begin, end);
}

/* A row of inputs of an expert's matrix as integers or as bf16. */
static void code(const struct eng_core *core, enum model_matrix matrix, char *to, const float *x)
{
    const struct kern_matrix *w = &core->expert[matrix];
    uint32_t digits = core->plan.x8_digits;
    if (digits == 0) core->work.ops->to_x16((uint16_t *)(void *)to, x, w, 1);
    else core->work.ops->to_x8(to, x, w->cols, w->dtype, w->scale_cols, digits);
}

/* The rows of coded inputs from `rows` on. */
static void take_coded(const struct eng_plan *plan, struct kern_matmul *product, const char *rows)
{
    size_t bytes = eng_plan_coded(plan, product->w->cols);
    if (plan->x8_digits > 0) {
        product->x8 = rows;
        product->x8_stride = bytes;
        product->x8_digits = plan->x8_digits;
    } else {
        product->x16 = (const uint16_t *)(const void *)rows;
        product->x16_stride = bytes / sizeof *product->x16;
    }
}

/* Chunk = one row: the experts' input, coded. */
static void row_code(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct eng_core *core = pass->core;
    uint32_t hidden = core->shape->hidden;
    code(core, MODEL_GATE, core->plan.normed_coded + row * eng_plan_coded(&core->plan, hidden),
         core->plan.normed + (size_t)row * hidden);
}

/* Chunk = one expert of the list: what goes into its down, coded. */
static void run_code(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct eng_core *core = pass->core;
    const struct eng_run *run = &core->plan.runs[chunk];
    uint32_t width = core->shape->expert_width;
    for (uint32_t i = run->first; i < run->first + run->count; i++) {
        code(core, MODEL_DOWN, core->plan.pair_coded + i * eng_plan_coded(&core->plan, width),
             core->plan.pair_gate + (size_t)i * width);
    }
}

/* A product of `m` pairs from `first` on with `down`. */
static struct kern_matmul down_product(const struct eng_core *core, const struct kern_matrix *down,
                                       uint32_t first, float *y, uint32_t m)
{
    const struct eng_plan *plan = &core->plan;
    uint32_t width = core->shape->expert_width;
    struct kern_matmul product = eng_product(down, plan->pair_gate + (size_t)first * width, width,
                                             y, core->shape->hidden, m, 1);
    if (plan->pair_coded)
        take_coded(plan, &product, plan->pair_coded + first * eng_plan_coded(plan, width));
    return product;
}

/* The coded inputs of `count` pairs from `first` on, as gather. */
static const char *gather_coded(const struct pass *pass, uint32_t first, uint32_t count,
                                unsigned thread)
{
    const struct eng_plan *plan = &pass->core->plan;
    size_t bytes = eng_plan_coded(plan, pass->core->shape->hidden);
    if (count == 1) return plan->normed_coded + plan->pair_row[first] * bytes;
    char *tile = plan->tile_coded + thread * ENG_TILE * bytes;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(tile + i * bytes, plan->normed_coded + plan->pair_row[first + i] * bytes, bytes);
    }
    return tile;
}

/* The inputs of `count` pairs from `first` on, one after the other. A single one is used in
 * place. */
static const float *gather(const struct pass *pass, uint32_t first, uint32_t count, unsigned thread)
{
    const struct eng_plan *plan = &pass->core->plan;
    uint32_t hidden = pass->core->shape->hidden;
    if (count == 1 || plan->normed_coded) {
        return plan->normed + (size_t)plan->pair_row[first] * hidden;
    }
    float *tile = plan->tile_in + (size_t)thread * ENG_TILE * hidden;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(tile + (size_t)i * hidden, plan->normed + (size_t)plan->pair_row[first + i] * hidden,
               hidden * sizeof *tile);
    }
    return tile;
}

/* How many of the `left` pairs of an expert go together next: tiles of about the same size. */
static uint32_t tile_of(uint32_t left)
{
    uint32_t tiles = (left + ENG_TILE - 1) / ENG_TILE;
    return (left + tiles - 1) / tiles;
}

/* Chunk = some rows of gate and up of one expert, for all its tokens. */
static void run_in(void *context, uint32_t chunk, unsigned thread)
{
    const struct pass *pass = context;
    const struct eng_core *core = pass->core;
    const struct eng_plan *plan = &core->plan;
    const struct eng_run *run = &plan->runs[chunk / pass->parts];
    uint32_t hidden = core->shape->hidden, width = core->shape->expert_width, begin, end;
    part_rows(pass, MODEL_GATE, chunk % pass->parts, &begin, &end);
    if (begin == end) return;
    struct kern_matrix gate = part_matrix(core, run->lease, MODEL_GATE);
    struct kern_matrix up = part_matrix(core, run->lease, MODEL_UP);
    for (uint32_t i = 0, m; i < run->count; i += m) {
        uint32_t first = run->first + i;
        m = tile_of(run->count - i);
        const float *x = gather(pass, first, m, thread);
        float *gated = plan->pair_gate + (size_t)first * width;
        float *raised = plan->pair_up + (size_t)first * width;
        struct kern_matmul product = eng_product(&gate, x, hidden, gated, width, m, 1);
        if (plan->normed_coded)
            take_coded(plan, &product, gather_coded(pass, first, m, thread));
        eng_multiply(&core->work, &product, begin, end);
        product.w = &up;
        product.y = raised;
        eng_multiply(&core->work, &product, begin, end);
        for (uint32_t t = 0; t < m; t++) {
            float *to = gated + (size_t)t * width + begin;
            core->work.ops->swiglu(to, to, raised + (size_t)t * width + begin, end - begin);
        }
    }
}

/* Each rank's columns go where that rank's part of the exchange lies. */
static void run_out_to_ranks(const struct eng_core *core, const struct kern_matrix *down,
                             const struct eng_run *run, uint32_t begin, uint32_t end)
{
    uint32_t hidden = core->shape->hidden, ranks = core->ranks.count;
    for (uint32_t to = 0; to < ranks; to++) {
        struct eng_share share = eng_ranks_share_of(hidden, ranks, to);
        uint32_t from = begin > share.begin ? begin : share.begin;
        uint32_t till = end < share.end ? end : share.end;
        if (from >= till) continue;
        float *at = eng_exchange_place(core, run->lease->expert, to);
        struct kern_matmul product = down_product(core, down, run->first, at - share.begin,
                                                  run->count);
        product.y_stride = eng_exchange_stride(core);
        eng_multiply(&core->work, &product, from, till);
    }
}

/* Chunk = some rows of down of one expert: outputs are kept by pair. */
static void run_out(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct eng_core *core = pass->core;
    const struct eng_run *run = &core->plan.runs[chunk / pass->parts];
    uint32_t hidden = core->shape->hidden, begin, end;
    part_rows(pass, MODEL_DOWN, chunk % pass->parts, &begin, &end);
    if (begin == end) return;
    struct kern_matrix down = part_matrix(core, run->lease, MODEL_DOWN);
    if (pass->spread) {
        run_out_to_ranks(core, &down, run, begin, end);
        return;
    }
    struct kern_matmul product = down_product(
        core, &down, run->first, core->plan.pair_out + (size_t)run->first * hidden, run->count);
    eng_multiply(&core->work, &product, begin, end);
}

/* Chunk = some rows of down of every expert of the list, in ascending id, added up at once. */
static void runs_add(void *context, uint32_t chunk, unsigned thread)
{
    const struct pass *pass = context;
    const struct eng_core *core = pass->core;
    const struct eng_plan *plan = &core->plan;
    uint32_t hidden = core->shape->hidden, begin, end;
    part_rows(pass, MODEL_DOWN, chunk, &begin, &end);
    if (begin == end) return;
    float *tile = plan->tile_out + (size_t)thread * ENG_TILE * hidden;
    for (uint32_t r = 0; r < pass->runs; r++) {
        const struct eng_run *run = &plan->runs[r];
        struct kern_matrix down = part_matrix(core, run->lease, MODEL_DOWN);
        for (uint32_t i = 0, m; i < run->count; i += m) {
            uint32_t first = run->first + i;
            m = tile_of(run->count - i);
            struct kern_matmul product = down_product(core, &down, first, tile, m);
            eng_multiply(&core->work, &product, begin, end);
            for (uint32_t t = 0; t < m; t++) {
                float *to = plan->routed + (size_t)plan->pair_row[first + t] * hidden + begin;
                core->work.ops->axpy(to, plan->pair_weight[first + t],
                                     tile + (size_t)t * hidden + begin, end - begin);
            }
        }
    }
}

static uint64_t runs_tokens(const struct pass *pass)
{
    uint64_t tokens = 0;
    for (uint32_t r = 0; r < pass->runs; r++) {
        tokens += pass->core->plan.runs[r].count;
    }
    return tokens;
}

enum { CODE_COST = 4 };     /* multiply-adds that coding one input is worth */

/* Takes the listed experts through gate, up and activation. */
static void compute_in(struct pass *pass)
{
    const struct model_shape *s = pass->core->shape;
    uint64_t cost = runs_tokens(pass) * 2 * s->hidden * s->expert_width;
    pass->parts = parts_of(pass, MODEL_GATE, pass->runs, cost);
    uint64_t begin_ns = eng_op_begin(pass->core->profile);
    eng_work_run(&pass->core->work, pass->runs * pass->parts, cost, run_in, pass);
    begin_ns = eng_op_next(pass->core->profile, ENG_OP_EXPERTS_IN, begin_ns);
    if (pass->core->plan.pair_coded) {
        eng_work_run(&pass->core->work, pass->runs, runs_tokens(pass) * s->expert_width * CODE_COST,
                     run_code, pass);
        eng_op_end(pass->core->profile, ENG_OP_QUANTIZE, begin_ns);
    }
    eng_poll(pass->core);
}

static void compute_decode(struct pass *pass)
{
    const struct model_shape *s = pass->core->shape;
    if (pass->runs == 0) return;
    compute_in(pass);
    uint64_t cost = runs_tokens(pass) * s->hidden * s->expert_width;
    pass->parts = parts_of(pass, MODEL_DOWN, pass->runs, cost);
    uint64_t begin_ns = eng_op_begin(pass->core->profile);
    eng_work_run(&pass->core->work, pass->runs * pass->parts, cost, run_out, pass);
    eng_op_end(pass->core->profile, ENG_OP_EXPERTS_OUT, begin_ns);
    eng_poll(pass->core);
}

static void compute_prefill(struct pass *pass)
{
    const struct model_shape *s = pass->core->shape;
    if (pass->runs == 0) return;
    compute_in(pass);
    uint64_t cost = runs_tokens(pass) * s->hidden * s->expert_width;
    pass->parts = parts_of(pass, MODEL_DOWN, 1, cost);
    uint64_t begin_ns = eng_op_begin(pass->core->profile);
    eng_work_run(&pass->core->work, pass->parts, cost, runs_add, pass);
    eng_op_end(pass->core->profile, ENG_OP_EXPERTS_OUT, begin_ns);
    eng_poll(pass->core);
}

/* Computed once a layer, as early as there is something to wait for. */
static void shared(struct pass *pass)
{
    struct eng_core *core = pass->core;
    if (pass->shared_done) return;
    pass->shared_done = true;
    uint64_t begin_ns = eng_op_begin(core->profile);
    if (pass->layer->mlp.width > 0) {
        eng_ffn(core, &pass->layer->mlp, core->plan.normed, core->plan.branch, pass->batch->count);
    } else {
        memset(core->plan.branch, 0,
               (size_t)pass->batch->count * core->shape->hidden * sizeof *core->plan.branch);
    }
    eng_op_end(core->profile, ENG_OP_SHARED, begin_ns);
    eng_poll(core);
}

/* Hints for layers ahead, once a layer: its gate has spoken for all rows, and the demand reads of
 * its last group have left. */
static void advise(struct pass *pass)
{
    const struct eng_core *core = pass->core;
    if (!core->advice || pass->advised || pass->end < pass->batch->count) return;
    pass->advised = true;
    if (eng_advice_after_shared(core->advice)) shared(pass);
    uint64_t begin_ns = eng_op_begin(core->profile);
    eng_lookahead(pass->core, pass->layer, pass->batch);
    size_t at = (size_t)pass->layer->moe_layer * pass->batch->count * core->shape->top_k;
    eng_advice_routed(core->advice, (uint32_t)pass->layer->moe_layer, core->plan.route_ids + at);
    eng_op_end(core->profile, ENG_OP_HINTS, begin_ns);
}

/* Where experts lie over ranks all of them learn of it at once, from the exchange. */
static void fail_rows(struct pass *pass, const struct tier_lease *lease)
{
    char why[BASE_ERR_TEXT / 2];
    if (!pass->spread) {
        eng_leases_fail(pass->core, pass->batch, lease);
        return;
    }
    eng_exchange_failed(pass->core, lease->expert);
    eng_leases_why(pass->core, lease, why, sizeof why);
    base_log(BASE_LOG_WARN, "ranks", "rank %u: requests end: %s", pass->core->ranks.rank, why);
}

static void list_run(struct pass *pass, const struct tier_lease *lease)
{
    struct eng_plan *plan = &pass->core->plan;
    plan->runs[pass->runs++] = (struct eng_run){ .lease = lease,
                                                 .first = plan->expert_first[lease->expert],
                                                 .count = plan->expert_count[lease->expert] };
}

/* Leases of plan.leases, in the order in which they were granted and are released. Those of experts
 * that are not computed yet are in plan.pending, ascending. */
struct held {
    uint32_t count, pending;
};

static void hold(struct eng_plan *plan, struct held *held, uint32_t granted)
{
    for (uint32_t i = held->count; i < held->count + granted; i++) {
        plan->pending[held->pending] = plan->leases[i];
        plan->pending_index[held->pending++] = i;
    }
    held->count += granted;
}

/* Computes experts as they arrive, until the first `enough` are done. plan.pending is kept dense:
 * settled leases move to plan.leases. */
static void serve_arrivals(struct pass *pass, struct held *held, uint32_t enough)
{
    struct eng_plan *plan = &pass->core->plan;
    while (held->pending > 0 && plan->pending_index[0] < enough) {
        eng_leases_wait(pass->core, plan->pending, held->pending, TIER_WAIT_ANY, UINT64_MAX);
        pass->runs = 0;
        uint32_t kept = 0;
        for (uint32_t i = 0; i < held->pending; i++) {
            uint32_t index = plan->pending_index[i];
            if (plan->pending[i].status == -EINPROGRESS) {
                plan->pending[kept] = plan->pending[i];
                plan->pending_index[kept++] = index;
                continue;
            }
            plan->leases[index] = plan->pending[i];
            if (plan->leases[index].status == 0) list_run(pass, &plan->leases[index]);
            else fail_rows(pass, &plan->leases[index]);
        }
        held->pending = kept;
        compute_decode(pass);
    }
}

/* Chunk = one row: its experts' outputs in ascending id. */
static void row_sum(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct eng_plan *plan = &pass->core->plan;
    uint32_t hidden = pass->core->shape->hidden, row = pass->begin + chunk;
    if (pass->batch->members[pass->batch->row_member[row]]->error.code < 0) return;
    const uint32_t *pairs = plan->row_pairs + (size_t)row * pass->core->shape->top_k;
    for (uint32_t i = 0; i < plan->row_pair_count[row]; i++) {
        pass->core->work.ops->axpy(plan->routed + (size_t)row * hidden, plan->pair_weight[pairs[i]],
                                   plan->pair_out + (size_t)pairs[i] * hidden, hidden);
    }
}

/* What comes before the first expert is computed. Where ranks exchange, each comes through here
 * exactly once a group, whether it computes anything or not. */
static void prepare(struct pass *pass, bool *prepared)
{
    if (*prepared) return;
    *prepared = true;
    advise(pass);
    shared(pass);
    if (pass->spread) eng_exchange_begin(pass->core);
}

static uint32_t group(struct pass *pass, bool strongest_first)
{
    uint64_t begin_ns = eng_op_begin(pass->core->profile);
    uint32_t wanted = eng_gate_group(pass->core, pass->layer, pass->batch, pass->begin, pass->end,
                                     strongest_first);
    if (pass->spread) wanted = eng_exchange_deal(pass->core, pass->layer, wanted);
    eng_op_end(pass->core->profile, ENG_OP_GATE, begin_ns);
    return wanted;
}

/* Leases of plan.wanted from `done` on, as many as there are slots for beside those held. */
static uint32_t acquire(struct pass *pass, uint32_t done, uint32_t wanted, uint32_t held,
                        enum tier_phase phase)
{
    struct eng_core *core = pass->core;
    uint64_t begin_ns = eng_op_begin(core->profile);
    uint32_t granted =
        tier_acquire(core->tier, (uint32_t)pass->layer->moe_layer, core->plan.wanted + done,
                     wanted - done, phase, core->plan.leases + held);
    MUST(granted > 0 || held > 0);
    eng_op_end(core->profile, ENG_OP_ACQUIRE, begin_ns);
    return granted;
}

static void release(struct eng_core *core, uint32_t granted)
{
    uint64_t begin_ns = eng_op_begin(core->profile);
    tier_release(core->tier, core->plan.leases, granted);
    eng_op_end(core->profile, ENG_OP_RELEASE, begin_ns);
}

/* The first `count` of those held go. */
static void release_first(struct eng_core *core, struct held *held, uint32_t count)
{
    struct eng_plan *plan = &core->plan;
    release(core, count);
    held->count -= count;
    memmove(plan->leases, plan->leases + count, held->count * sizeof *plan->leases);
    for (uint32_t i = 0; i < held->pending; i++) plan->pending_index[i] -= count;
}

static void exchange_sum(struct pass *pass)
{
    uint64_t begin_ns = eng_op_begin(pass->core->profile);
    eng_exchange_sum(pass->core, pass->layer, pass->batch, pass->begin, pass->end);
    eng_op_end(pass->core->profile, ENG_OP_EXCHANGE, begin_ns);
}

static void decode_rows(struct pass *pass)
{
    struct eng_core *core = pass->core;
    uint32_t wanted = group(pass, true), done = 0;
    bool prepared = false;
    struct held held = { 0 };
    while (done < wanted || held.count > 0) {
        if (done < wanted) {
            uint32_t granted = acquire(pass, done, wanted, held.count, TIER_DECODE);
            hold(&core->plan, &held, granted);
            done += granted;
        }
        prepare(pass, &prepared);
        uint32_t enough = tier_wave_goes(TIER_DECODE, held.count, done < wanted);
        serve_arrivals(pass, &held, enough);
        release_first(core, &held, enough);
    }
    if (pass->spread) {
        prepare(pass, &prepared);
        exchange_sum(pass);
        return;
    }
    uint32_t rows = pass->end - pass->begin;
    uint64_t begin_ns = eng_op_begin(core->profile);
    eng_work_run(&core->work, rows, (uint64_t)rows * core->shape->top_k * core->shape->hidden,
                 row_sum, pass);
    eng_op_end(core->profile, ENG_OP_SUM, begin_ns);
}

static void prefill_rows(struct pass *pass)
{
    struct eng_core *core = pass->core;
    struct eng_plan *plan = &core->plan;
    uint32_t wanted = group(pass, false);
    bool prepared = false;
    for (uint32_t done = 0; done < wanted;) {
        uint32_t granted = acquire(pass, done, wanted, 0, TIER_PREFILL);
        prepare(pass, &prepared);
        for (uint32_t i = 0; i < granted;) {
            /* The next in id order, and all those behind it that are there as well. */
            eng_leases_wait(core, &plan->leases[i], 1, TIER_WAIT_ALL, UINT64_MAX);
            uint64_t begin_ns = eng_op_begin(core->profile);
            tier_wait(core->tier, &plan->leases[i], granted - i, TIER_WAIT_ANY, 0);
            eng_op_end(core->profile, ENG_OP_POLL, begin_ns);
            pass->runs = 0;
            for (; i < granted && plan->leases[i].status != -EINPROGRESS; i++) {
                if (plan->leases[i].status == 0) list_run(pass, &plan->leases[i]);
                else fail_rows(pass, &plan->leases[i]);
            }
            if (pass->spread) compute_decode(pass);
            else compute_prefill(pass);
        }
        release(core, granted);
        done += granted;
    }
    if (pass->spread) {
        prepare(pass, &prepared);
        exchange_sum(pass);
    }
}

void eng_moe(struct eng_core *core, const struct eng_layer *layer, const struct eng_batch *batch)
{
    struct pass pass = { .core = core, .layer = layer, .batch = batch,
                         .spread = core->ranks.expert > 1 };
    struct eng_plan *plan = &core->plan;
    size_t hidden = core->shape->hidden;
    uint64_t begin_ns = eng_op_begin(core->profile);
    memset(plan->routed, 0, batch->count * hidden * sizeof *plan->routed);
    eng_gate(core, layer, batch);
    begin_ns = eng_op_next(core->profile, ENG_OP_GATE, begin_ns);
    if (plan->normed_coded) {
        eng_work_run(&core->work, batch->count, (uint64_t)batch->count * hidden * CODE_COST,
                     row_code, &pass);
        eng_op_end(core->profile, ENG_OP_QUANTIZE, begin_ns);
    }
    pass.end = batch->decode_count;
    if (pass.begin < pass.end) decode_rows(&pass);
    pass.begin = batch->decode_count;
    pass.end = batch->count;
    if (pass.begin < pass.end) prefill_rows(&pass);
    advise(&pass);              /* nothing was wanted: every sequence of the batch has failed */
    shared(&pass);
    begin_ns = eng_op_begin(core->profile);
    for (uint32_t row = 0; row < batch->count; row++) {
        core->work.ops->add(plan->routed + row * hidden, plan->branch + row * hidden,
                            (uint32_t)hidden);
    }
    memcpy(plan->branch, plan->routed, batch->count * hidden * sizeof *plan->branch);
    eng_op_end(core->profile, ENG_OP_SUM, begin_ns);
}
