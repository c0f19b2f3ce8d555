#include "engine/forward.h"

#include <string.h>

#include "engine/cuda/cuda.h"
#include "engine/ffn.h"
#include "engine/leases.h"
#include "engine/lookahead.h"
#include "engine/mla.h"
#include "engine/moe.h"

struct pass {
    struct eng_core *core;
    const struct eng_batch *batch;
    const float *weight;        /* of the norm */
};

static void row_embed(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct kern_matrix *embed = &pass->core->weights.embed;
    size_t bytes = embed->cols * kern_dtype_bytes(embed->dtype);
    uint32_t first = eng_ranks_share(&pass->core->ranks, pass->core->shape->vocab).begin;
    uint32_t token = pass->batch->tokens[row] - first;
    float *to = pass->core->plan.hidden + (size_t)row * embed->cols;
    if (token >= embed->rows) {     /* another rank's */
        memset(to, 0, embed->cols * sizeof *to);
        return;
    }
    pass->core->work.ops->to_f32(to, (const char *)embed->data + token * bytes, embed->dtype,
                                 embed->cols);
}

/* One rank has a token's row, the others have zeros: as integers they add up to its very bits. */
static void join_embeddings(struct eng_core *core, uint32_t rows)
{
    if (core->ranks.tensor == 1) return;
    comm_all_reduce(core->ranks.comm, (uint32_t *)(void *)core->plan.hidden,
                    (size_t)rows * core->shape->hidden);
}

static void row_norm(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    size_t at = (size_t)row * pass->core->shape->hidden;
    pass->core->work.ops->rmsnorm(pass->core->plan.normed + at, pass->core->plan.hidden + at,
                                  pass->weight, pass->core->shape->hidden,
                                  (float)pass->core->shape->rms_eps);
}

static void row_add(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    size_t at = (size_t)row * pass->core->shape->hidden;
    pass->core->work.ops->add(pass->core->plan.hidden + at, pass->core->plan.branch + at,
                              pass->core->shape->hidden);
}

static void by_row(struct pass *pass, enum eng_op op,
                   void (*run)(void *context, uint32_t row, unsigned thread))
{
    uint64_t begin_ns = eng_op_begin(pass->core->profile);
    uint64_t cost = (uint64_t)pass->batch->count * pass->core->shape->hidden;
    eng_work_run(&pass->core->work, pass->batch->count, cost, run, pass);
    eng_op_end(pass->core->profile, op, begin_ns);
}

/* What failed on the device failed for all that it computed together. */
static int fail_all(struct eng_core *core, const struct eng_batch *batch, int rc,
                    const struct base_err *err)
{
    for (uint32_t i = 0; rc < 0 && i < batch->member_count; i++) {
        base_err_set(&batch->members[i]->error, rc, "%s: %s", core->shape->name, err->text);
    }
    return rc;
}

static void dense(struct eng_core *core, const struct eng_layer *layer,
                  const struct eng_batch *batch)
{
    uint64_t begin_ns = eng_op_begin(core->profile);
    eng_ffn(core, &layer->mlp, core->plan.normed, core->plan.branch, batch->count);
    eng_op_end(core->profile, ENG_OP_DENSE, begin_ns);
}

/* Where each rank has every expert, one may be unable to read what the others could: its shares of
 * those rows are wrong from then on, so the requests end on all. Behind the last layer, a bit a
 * request. Where experts lie over the ranks, each exchange has told already (exchange.h). */
static void join_failures(struct eng_core *core, const struct eng_batch *batch)
{
    const struct eng_ranks *r = &core->ranks;
    if (r->count == 1 || r->expert > 1) return;
    uint32_t words = eng_plan_failed_words(batch->member_count), *all = core->plan.rank_failed;
    uint32_t *own = all + r->rank * words;
    uint64_t begin_ns = eng_op_begin(core->profile);
    memset(own, 0, words * sizeof *own);
    for (uint32_t m = 0; m < batch->member_count; m++) {
        own[m / 32] |= (uint32_t)(batch->members[m]->error.code < 0) << m % 32;
    }
    comm_all_gather(r->comm, own, all, words * sizeof *own);
    for (uint32_t i = 0; i < r->count * batch->member_count; i++) {
        uint32_t from = i / batch->member_count, m = i % batch->member_count;
        if ((all[from * words + m / 32] >> m % 32 & 1) == 0) continue;
        base_err_set(&batch->members[m]->error, BASE_EQUARANTINE, "%s: this answer needs an expert "
                     "that rank %u could not read (its log says why)", core->shape->name, from);
    }
    eng_op_end(core->profile, ENG_OP_EXCHANGE, begin_ns);
}

/* All of it is one operation but for the waits in it. */
static void forward_on_device(struct eng_core *core, const struct eng_batch *batch)
{
    struct base_err err = { 0 };
    uint64_t begin_ns = eng_op_begin(core->profile);    /* nothing has waited yet */
    int rc = fail_all(core, batch, eng_cuda_forward(core->cuda, batch, &err), &err);
    if (core->profile) eng_op_end(core->profile, ENG_OP_DEVICE, begin_ns + core->wait_ns);
    if (rc == 0) join_failures(core, batch);    /* the ranks have agreed on it */
}

void eng_forward(struct eng_core *core, const struct eng_batch *batch)
{
    if (core->cuda) {
        forward_on_device(core, batch);
        return;
    }
    struct pass pass = { .core = core, .batch = batch };
    by_row(&pass, ENG_OP_EMBED, row_embed);
    uint64_t positions_ns = eng_op_begin(core->profile);
    join_embeddings(core, batch->count);
    eng_mla_positions(core, batch);
    eng_op_end(core->profile, ENG_OP_EMBED, positions_ns);
    for (uint32_t i = 0; i < core->shape->layers; i++) {
        const struct eng_layer *layer = &core->weights.layers[i];
        uint64_t layer_ns = eng_op_begin(core->profile);
        if (core->profile) core->profile->layer = i;
        if (layer->moe_layer >= 0 && core->advice) eng_lookahead_own(core, layer, batch);
        pass.weight = layer->attention_norm;
        by_row(&pass, ENG_OP_NORM, row_norm);
        eng_mla(core, layer, i, batch);
        by_row(&pass, ENG_OP_ADD, row_add);
        pass.weight = layer->ffn_norm;
        by_row(&pass, ENG_OP_NORM, row_norm);
        if (layer->moe_layer >= 0) {
            eng_moe(core, layer, batch);
        } else {
            if (core->advice) eng_lookahead_dense(core, layer, batch);
            dense(core, layer, batch);
        }
        by_row(&pass, ENG_OP_ADD, row_add);
        eng_poll(core);
        if (core->profile) eng_profile_layer(core->profile, layer_ns);
    }
    join_failures(core, batch);
}

int eng_head(struct eng_core *core, const struct eng_batch *batch, const uint32_t *rows,
             uint32_t count)
{
    /* Cards that each have the whole head: rank 0 has its own. */
    bool alone = core->cuda && core->ranks.tensor == 1;
    if (core->ranks.rank == 0 && !alone) eng_lead_head(&core->lead, rows, count);
    if (core->cuda) {
        struct base_err err = { 0 };
        uint64_t device_ns = eng_op_begin(core->profile);
        int rc = fail_all(core, batch, eng_cuda_head(core->cuda, rows, count, &err), &err);
        eng_op_end(core->profile, ENG_OP_DEVICE, device_ns);
        return rc;
    }
    const struct model_shape *s = core->shape;
    struct eng_plan *plan = &core->plan;
    uint64_t begin_ns = eng_op_begin(core->profile);
    for (uint32_t i = 0; i < count; i++) {
        core->work.ops->rmsnorm(plan->head_in + (size_t)i * s->hidden,
                                plan->hidden + (size_t)rows[i] * s->hidden, core->weights.norm,
                                s->hidden, (float)s->rms_eps);
    }
    bool joint = core->ranks.tensor > 1;
    uint32_t stride = eng_ranks_share(&core->ranks, s->vocab).each;
    struct kern_matmul product = eng_product(&core->weights.head, plan->head_in, s->hidden,
                                             joint ? plan->rank_part : plan->logits, stride, count,
                                             1);
    if (core->weights.head.rows > 0) eng_work_products(&core->work, &product, 1);
    if (joint) eng_ranks_gather(core, plan->rank_part, plan->logits, count, s->vocab, 1);
    eng_op_end(core->profile, ENG_OP_HEAD, begin_ns);
    return 0;
}
