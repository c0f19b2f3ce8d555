#include "engine/forward.h"

#include <string.h>

#include "engine/cuda/cuda.h"
#include "engine/ffn.h"
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

static void by_row(struct pass *pass, void (*run)(void *context, uint32_t row, unsigned thread))
{
    uint64_t cost = (uint64_t)pass->batch->count * pass->core->shape->hidden;
    eng_work_run(&pass->core->work, pass->batch->count, cost, run, pass);
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

void eng_forward(struct eng_core *core, const struct eng_batch *batch)
{
    if (core->cuda) {
        struct base_err err = { 0 };
        fail_all(core, batch, eng_cuda_forward(core->cuda, batch, &err), &err);
        return;
    }
    struct pass pass = { .core = core, .batch = batch };
    by_row(&pass, row_embed);
    join_embeddings(core, batch->count);
    eng_mla_positions(core, batch);
    for (uint32_t i = 0; i < core->shape->layers; i++) {
        const struct eng_layer *layer = &core->weights.layers[i];
        pass.weight = layer->attention_norm;
        by_row(&pass, row_norm);
        eng_mla(core, layer, i, batch);
        by_row(&pass, row_add);
        pass.weight = layer->ffn_norm;
        by_row(&pass, row_norm);
        if (layer->moe_layer >= 0) eng_moe(core, layer, batch);
        else eng_ffn(core, &layer->mlp, core->plan.normed, core->plan.branch, batch->count);
        by_row(&pass, row_add);
        tier_poll(core->tier);
    }
}

int eng_head(struct eng_core *core, const struct eng_batch *batch, const uint32_t *rows,
             uint32_t count)
{
    if (core->cuda) {
        struct base_err err = { 0 };
        return fail_all(core, batch, eng_cuda_head(core->cuda, rows, count, &err), &err);
    }
    const struct model_shape *s = core->shape;
    struct eng_plan *plan = &core->plan;
    if (core->ranks.rank == 0) eng_lead_head(&core->lead, rows, count);
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
    return 0;
}
