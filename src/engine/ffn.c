#include "engine/ffn.h"

struct pass {
    const struct eng_core *core;
    uint32_t width, stride;
};

static void row_activate(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    float *gate = pass->core->plan.mlp_gate + (size_t)row * pass->stride;
    const float *up = pass->core->plan.mlp_up + (size_t)row * pass->stride;
    pass->core->work.ops->swiglu(gate, gate, up, pass->width);
}

/* The last product of a part whose width lies over the ranks. */
static void join(struct eng_core *core, const struct eng_mlp *mlp, uint32_t stride, float *y,
                 uint32_t rows)
{
    struct eng_plan *plan = &core->plan;
    uint32_t hidden = core->shape->hidden;
    if (mlp->down_blocks[0].rows > 0) {
        eng_ranks_blocks_sum(core, mlp->down_blocks, mlp->width, plan->mlp_gate, stride, y, rows);
        return;
    }
    eng_ranks_gather(core, plan->mlp_gate, plan->rank_whole, rows, mlp->width, 1);
    eng_ranks_rows(core, &mlp->down, plan->rank_whole, mlp->width, y, rows, hidden);
}

void eng_ffn(struct eng_core *core, const struct eng_mlp *mlp, const float *x, float *y,
             uint32_t rows)
{
    enum { SILU_COST = 8 };     /* multiply-adds that one activation is worth */
    uint32_t width = mlp->gate.rows, hidden = core->shape->hidden;
    struct eng_plan *plan = &core->plan;
    bool joint = core->ranks.tensor > 1;
    uint32_t stride = !joint || mlp->down_blocks[0].rows > 0
                          ? width : eng_ranks_share(&core->ranks, mlp->width).each;
    struct kern_matmul in[2] = {
        eng_product(&mlp->gate, x, hidden, plan->mlp_gate, stride, rows, 1),
        eng_product(&mlp->up, x, hidden, plan->mlp_up, stride, rows, 1),
    };
    if (width > 0) eng_work_products(&core->work, in, 2);
    struct pass pass = { core, width, stride };
    eng_work_run(&core->work, rows, (uint64_t)rows * width * SILU_COST, row_activate, &pass);
    if (joint) {
        join(core, mlp, stride, y, rows);
        return;
    }
    struct kern_matmul out = eng_product(&mlp->down, plan->mlp_gate, width, y, hidden, rows,
                                         KERN_RANK_BLOCKS);
    eng_work_products(&core->work, &out, 1);
}
