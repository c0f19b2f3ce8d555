#include "engine/ffn.h"

struct pass {
    const struct eng_core *core;
    uint32_t width;
};

static void row_activate(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    float *gate = pass->core->plan.mlp_gate + (size_t)row * pass->width;
    const float *up = pass->core->plan.mlp_up + (size_t)row * pass->width;
    pass->core->work.ops->swiglu(gate, gate, up, pass->width);
}

void eng_ffn(struct eng_core *core, const struct eng_mlp *mlp, const float *x, float *y,
             uint32_t rows)
{
    enum { SILU_COST = 8 };     /* multiply-adds that one activation is worth */
    uint32_t width = mlp->gate.rows, hidden = core->shape->hidden;
    struct eng_plan *plan = &core->plan;
    struct kern_matmul in[2] = {
        eng_product(&mlp->gate, x, hidden, plan->mlp_gate, width, rows, 1),
        eng_product(&mlp->up, x, hidden, plan->mlp_up, width, rows, 1),
    };
    eng_work_products(&core->work, in, 2);
    struct pass pass = { core, width };
    eng_work_run(&core->work, rows, (uint64_t)rows * width * SILU_COST, row_activate, &pass);
    struct kern_matmul out = eng_product(&mlp->down, plan->mlp_gate, width, y, hidden, rows,
                                         KERN_RANK_BLOCKS);
    eng_work_products(&core->work, &out, 1);
}
