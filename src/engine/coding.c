#include "engine/coding.h"

#include "kernels/x16.h"

struct kern_matrix eng_coding_expert(const struct tier_store *store, const struct model_shape *s,
                                     int m)
{
    const struct tier_part *part = &tier_store_parts(store)[2 * m], *scales = part + 1;
    const bool woven = part->order == TIER_ORDER_WOVEN;
    return (struct kern_matrix){ .dtype = woven ? KERN_FP8_WOVEN : eng_weights_dtype(part->dtype),
                                 .rows = m == MODEL_DOWN ? s->hidden : s->expert_width,
                                 .cols = m == MODEL_DOWN ? s->expert_width : s->hidden,
                                 .scale_rows = scales->block_rows,
                                 .scale_cols = scales->block_cols,
                                 .tiled = part->order == TIER_ORDER_TILES };
}

/* Whether all matrices of an expert take bf16, gate and up the same rows of it. */
static bool experts_take_x16(const struct tier_store *store, const struct model_shape *shape)
{
    struct kern_matrix w[MODEL_MATRIX_COUNT];
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        static const float there;
        w[m] = eng_coding_expert(store, shape, m);
        if (tier_store_parts(store)[2 * m + 1].rows > 0) w[m].scales = &there;
        if (!kern_x16_takes(&w[m])) return false;
    }
    return kern_x16_same(&w[MODEL_GATE], &w[MODEL_UP]);
}

void eng_coding_choose(struct eng_plan_size *plan, const struct eng_config *config,
                       const struct model_shape *shape, const struct tier_store *store,
                       bool dense_grouped)
{
    const uint32_t digits =
        config->activations == ENG_ACTIVATIONS_INT8 ? KERN_X8_FAST : KERN_X8_FULL;
    plan->x16 = config->activations != ENG_ACTIVATIONS_F32;
    plan->dense_digits = dense_grouped ? digits : 0;
    if (shape->experts == 0) return;
    plan->experts_x16 = plan->x16 && experts_take_x16(store, shape);
    if (kern_dtype_grouped(eng_weights_dtype(tier_store_parts(store)[0].dtype))) {
        plan->x8_digits = digits;
    }
}

int eng_coding_check(const struct eng_core *core, const struct eng_config *config,
                     bool dense_grouped, struct base_err *err)
{
    if (core->device && config->activations != ENG_ACTIVATIONS_F32) {
        bool int8 = config->activations == ENG_ACTIVATIONS_INT8;
        return base_err_set(err, BASE_ECONFIG,
                            "engine.activations: %s cannot take effect: %s on the device, whose "
                            "kernels take f32",
                            int8 ? "int8" : "bf16", int8 ? "experts compute" : "products run");
    }
    if (config->activations != ENG_ACTIVATIONS_INT8 || dense_grouped) return 0;
    if (core->shape->experts == 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "engine.activations: int8 cannot take effect: %s "
                            "has no routed experts",
                            core->shape->name);
    }
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        if (kern_dtype_grouped(core->expert[m].dtype)) continue;
        return base_err_set(err, BASE_ECONFIG,
                            "engine.activations: int8 cannot take effect: neither the routed "
                            "experts nor the dense weights of %s are INT8 or INT4 (tier-pack "
                            "quantize makes such a model)",
                            core->shape->name);
    }
    return 0;
}

static bool mlp_takes_x16(const struct eng_mlp *mlp)
{
    return kern_x16_takes(&mlp->gate) || kern_x16_takes(&mlp->up) || kern_x16_takes(&mlp->down);
}

int eng_coding_check_dense(const struct eng_core *core, const struct eng_plan_size *plan,
                           struct base_err *err)
{
    bool takes = plan->experts_x16 || kern_x16_takes(&core->weights.head);
    for (uint32_t i = 0; i < core->weights.layer_count && !takes; i++) {
        const struct eng_layer *l = &core->weights.layers[i];
        takes = kern_x16_takes(&l->q_a) || kern_x16_takes(&l->q_b) || kern_x16_takes(&l->kv_a) ||
                kern_x16_takes(&l->kv_b) || kern_x16_takes(&l->o) || kern_x16_takes(&l->gate) ||
                mlp_takes_x16(&l->mlp);
    }
    bool integers = plan->x8_digits == KERN_X8_FAST || plan->dense_digits == KERN_X8_FAST;
    if (!plan->x16 || takes || integers) return 0;
    return base_err_set(err, BASE_ECONFIG,
                        "engine.activations: bf16 cannot take effect: no matrix of %s is BF16 or "
                        "FP8",
                        core->shape->name);
}
