#include "engine/lookahead.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"

#define MARGIN_MAX 8.0f         /* spreads; beyond them nothing more is said */

struct pass {
    struct eng_core *core;
    const struct eng_layer *layer;      /* whose gate is asked */
    const struct eng_lookahead_room *room;
};

static void row_norm(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct eng_core *core = pass->core;
    uint32_t hidden = core->shape->hidden;
    float *to = pass->room->normed + (size_t)row * hidden;
    memcpy(to, core->plan.hidden + (size_t)row * hidden, hidden * sizeof *to);
    if (pass->room->shared) {
        core->work.ops->add(to, core->plan.branch + (size_t)row * hidden, hidden);
    }
    core->work.ops->rmsnorm(to, to, pass->layer->ffn_norm, hidden, (float)core->shape->rms_eps);
}

/* The group's score: its best expert, or its best two. */
static float group_score(const float *scores, uint32_t n, bool two)
{
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t e = 0; e < n; e++) {
        if (scores[e] > first) {
            second = first;
            first = scores[e];
        } else if (scores[e] > second) {
            second = scores[e];
        }
    }
    return two && n > 1 ? first + second : first;
}

/* Experts of groups that the gate would not look into get -INFINITY. */
static void mask_groups(const struct model_shape *s, float *scores)
{
    uint32_t each = s->groups > 0 ? s->experts / s->groups : s->experts;
    float of[64];
    if (s->topk_method == MODEL_TOPK_GREEDY || s->groups < 2 || s->groups > 64) return;
    for (uint32_t g = 0; g < s->groups; g++) {
        of[g] = group_score(scores + g * each, each, s->topk_method != MODEL_TOPK_GROUP_MAX);
    }
    for (uint32_t g = 0; g < s->groups; g++) {
        uint32_t better = 0;
        for (uint32_t o = 0; o < s->groups; o++) {
            better += of[o] > of[g] || (of[o] == of[g] && o < g);
        }
        if (better < s->top_groups) continue;
        for (uint32_t e = g * each; e < (g + 1) * each; e++) scores[e] = -INFINITY;
    }
}

/* The last that would be chosen. */
static float threshold(const float *scores, uint32_t n, uint32_t top_k)
{
    float best[128];
    uint32_t have = 0, most = top_k < 128 ? top_k : 128;
    for (uint32_t e = 0; e < n; e++) {
        if (have == most && !(scores[e] > best[most - 1])) continue;
        uint32_t at = have < most ? have++ : most - 1;
        for (; at > 0 && best[at - 1] < scores[e]; at--) best[at] = best[at - 1];
        best[at] = scores[e];
    }
    return best[have - 1];
}

/* Logits of a gate -> margins, in place. */
static void row_margins(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct pass *pass = context;
    const struct model_shape *s = pass->core->shape;
    float *x = pass->room->margins + (size_t)row * s->experts, sum = 0, squares = 0;
    uint32_t open = 0;
    for (uint32_t e = 0; e < s->experts; e++) {
        if (s->scoring == MODEL_SCORE_SIGMOID) x[e] = 1 / (1 + kern_exp(-x[e]));
        if (pass->layer->gate_bias) x[e] += pass->layer->gate_bias[e];
    }
    mask_groups(s, x);
    float least = threshold(x, s->experts, s->top_k);
    for (uint32_t e = 0; e < s->experts; e++) {
        if (isinf(x[e])) continue;
        sum += x[e];
        squares += x[e] * x[e];
        open++;
    }
    float mean = sum / (float)open, spread = sqrtf(squares / (float)open - mean * mean);
    if (!(spread > 1e-6f)) spread = 1e-6f;
    for (uint32_t e = 0; e < s->experts; e++) {
        float margin = (x[e] - least) / spread;
        x[e] = margin > -MARGIN_MAX ? margin < MARGIN_MAX ? margin : MARGIN_MAX : -MARGIN_MAX;
    }
}

/* The layer with these experts, or NULL. */
static const struct eng_layer *find(const struct eng_core *core, const struct eng_layer *from,
                                    int32_t moe_layer)
{
    const struct eng_layer *end = core->weights.layers + core->shape->layers;
    while (from < end && from->moe_layer != moe_layer) from++;
    return from < end ? from : NULL;
}

/* Fills the room with the margins of `layer`, by plan.hidden as it is. */
static void ask(struct eng_core *core, const struct eng_layer *layer, const struct eng_batch *batch,
                const struct eng_lookahead_room *room)
{
    enum { MARGIN_COST = 16 };  /* multiply-adds that one expert's margin is worth */
    const struct model_shape *s = core->shape;
    struct pass pass = { core, layer, room };
    eng_work_run(&core->work, batch->count, (uint64_t)batch->count * s->hidden, row_norm, &pass);
    struct kern_matmul product = eng_product(&layer->gate, room->normed, s->hidden, room->margins,
                                             s->experts, batch->count, 1);
    eng_work_products(&core->work, &product, 1);
    eng_work_run(&core->work, batch->count, (uint64_t)batch->count * s->experts * MARGIN_COST,
                 row_margins, &pass);
}

static void ask_later(struct eng_core *core, const struct eng_layer *layer,
                      const struct eng_batch *batch, const struct eng_lookahead_room *room)
{
    for (uint32_t n = 1; n <= room->layers; n++) {
        uint64_t begin_ns = base_now_ns();
        const struct eng_layer *later = find(core, layer, layer->moe_layer + (int32_t)n);
        if (!later) return;
        ask(core, later, batch, room);
        eng_advice_gate(core->advice, layer->moe_layer, (uint32_t)later->moe_layer, begin_ns);
    }
}

void eng_lookahead(struct eng_core *core, const struct eng_layer *layer,
                   const struct eng_batch *batch)
{
    struct eng_lookahead_room room;
    if (eng_advice_looks_ahead(core->advice, &room)) ask_later(core, layer, batch, &room);
}

void eng_lookahead_dense(struct eng_core *core, const struct eng_layer *layer,
                         const struct eng_batch *batch)
{
    struct eng_lookahead_room room;
    const struct eng_layer *end = core->weights.layers + core->shape->layers;
    if (layer + 1 == end || layer[1].moe_layer != 0) return;
    if (!eng_advice_looks_ahead(core->advice, &room) || room.layers == 0) return;
    uint64_t op_ns = eng_op_begin(core->profile);
    room.shared = false;        /* it has none */
    ask_later(core, layer, batch, &room);
    eng_advice_before(core->advice);
    eng_op_end(core->profile, ENG_OP_HINTS, op_ns);
}

void eng_lookahead_own(struct eng_core *core, const struct eng_layer *layer,
                       const struct eng_batch *batch)
{
    struct eng_lookahead_room room;
    if (!eng_advice_looks_ahead(core->advice, &room) || !room.own) return;
    uint64_t begin_ns = base_now_ns(), op_ns = eng_op_begin(core->profile);
    room.shared = false;        /* of this layer, which has not begun */
    ask(core, layer, batch, &room);
    eng_advice_own(core->advice, (uint32_t)layer->moe_layer, begin_ns);
    eng_op_end(core->profile, ENG_OP_HINTS, op_ns);
}
