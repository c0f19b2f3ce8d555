/* Norms, rotation, the latent cache, routing, sums, greedy choice. */
#include <math.h>
#include <string.h>

#include "tests/cudahost/cases.h"
#include "tests/support/guard.h"

/* A sum of squares in any order is within n eps of the truth, all terms being positive; both sides
 * may be off, the root halves it; then a division, a root and two products. */
static double norm_error(uint32_t n)
{
    return (n / 16.0 + n / 256.0 + 24) * case_eps;
}

void case_rmsnorm(struct cuda_case *c)
{
    struct kern_cuda_rmsnorm_args a = { .rows = 1 + case_below(c, 4), .eps = 1e-6f };
    a.n = case_below(c, 4) ? 1 + case_below(c, 600) : 1536 + case_below(c, 600);
    a.x_stride = a.n + case_below(c, 9);
    const float *x = case_floats(c, (a.rows - 1) * a.x_stride + a.n);
    const float *weight = case_floats(c, a.n);
    const bool in_place = case_below(c, 2);
    a.y_stride = in_place ? a.x_stride : a.n + case_below(c, 9);
    a.y = case_room(c, (a.rows - 1) * a.y_stride + a.n);
    a.x = x;
    a.weight = weight;
    if (in_place) {
        memcpy(a.y, x, ((a.rows - 1) * a.x_stride + a.n) * sizeof *x);
        a.x = a.y;
    }
    case_finish(c, kern_cuda_rmsnorm(&a, NULL));
    float *wanted = case_room(c, a.n);
    for (uint32_t r = 0; r < a.rows; r++) {
        c->reference->rmsnorm(wanted, x + r * a.x_stride, weight, a.n, a.eps);
        for (uint32_t i = 0; i < a.n; i++)
            case_near(c, "y", r * a.y_stride + i, a.y[r * a.y_stride + i], wanted[i],
                      norm_error(a.n) * fabs(wanted[i]));
    }
}

void case_rope(struct cuda_case *c)
{
    struct kern_cuda_rope_args a = { .rows = 1 + case_below(c, 5),
                                     .heads = 1 + case_below(c, 5),
                                     .dims = 2 * (1 + case_below(c, 40)),
                                     .interleaved = case_below(c, 2) };
    a.head_stride = a.dims + case_below(c, 20);
    a.row_stride = a.heads * a.head_stride + case_below(c, 9);
    const size_t n = (a.rows - 1) * a.row_stride + (a.heads - 1) * a.head_stride + a.dims;
    float *wanted = case_floats(c, n);
    a.cos = case_floats(c, (size_t)a.rows * a.dims / 2);
    a.sin = case_floats(c, (size_t)a.rows * a.dims / 2);
    a.x = case_room(c, n);
    memcpy(a.x, wanted, n * sizeof *wanted);
    case_finish(c, kern_cuda_rope(&a, NULL));
    for (uint32_t r = 0; r < a.rows; r++)
        for (uint32_t h = 0; h < a.heads; h++)
            c->reference->rope(wanted + r * a.row_stride + h * a.head_stride,
                               a.cos + (size_t)r * a.dims / 2, a.sin + (size_t)r * a.dims / 2,
                               a.dims, a.interleaved);
    case_same(c, "x", a.x, wanted, n);
}

void case_latent(struct cuda_case *c)
{
    struct kern_cuda_latent_args a = { .rows = 1 + case_below(c, 4),
                                       .eps = 1e-6f,
                                       .lora = 1 + case_below(c, 520),
                                       .rope = 2 * case_below(c, 33),
                                       .bf16 = case_below(c, 2),
                                       .interleaved = case_below(c, 2) };
    const uint32_t width = a.lora + a.rope;
    const size_t size = a.bf16 ? 2 : 4;
    const float *kv = case_floats(c, (size_t)a.rows * width);
    void **places = guard_get(a.rows * sizeof *places, 0);
    a.kv = kv;
    a.weight = case_floats(c, a.lora);
    a.cos = case_floats(c, (size_t)a.rows * a.rope / 2);
    a.sin = case_floats(c, (size_t)a.rows * a.rope / 2);
    for (uint32_t r = 0; r < a.rows; r++)
        places[r] = guard_get(width * size, 0);
    a.places = places;
    case_finish(c, kern_cuda_latent(&a, NULL));
    float *wanted = case_room(c, width), *got = case_room(c, width);
    for (uint32_t r = 0; r < a.rows; r++) {
        memcpy(wanted, kv + (size_t)r * width, width * sizeof *wanted);
        c->reference->rmsnorm(wanted, wanted, a.weight, a.lora, a.eps);
        c->reference->rope(wanted + a.lora, a.cos + (size_t)r * a.rope / 2,
                           a.sin + (size_t)r * a.rope / 2, a.rope, a.interleaved);
        c->reference->to_f32(got, places[r], a.bf16 ? KERN_BF16 : KERN_F32, width);
        /* A value near the middle of two BF16 may go to either: one step is 2^-7 at most. */
        const double share = norm_error(a.lora) + (a.bf16 ? 0x1p-7 : 0);
        for (uint32_t i = 0; i < width; i++)
            case_near(c, "place", i, got[i], wanted[i], share * fabs(wanted[i]));
    }
}

void case_gate(struct cuda_case *c)
{
    struct kern_cuda_gate_args a = { .rows = 1 + case_below(c, 5) };
    struct kern_gate *g = &a.gate;
    *g = (struct kern_gate){ .normalize = case_below(c, 2),
                             .sigmoid = case_below(c, 2),
                             .scaling = 2.5f,
                             .groups = 1u << case_below(c, 4) };
    if (case_below(c, 8) == 0) g->groups = 64;
    g->experts = g->groups * (1 + case_below(c, KERN_CUDA_EXPERTS_MAX / g->groups));
    g->top_groups = 1 + case_below(c, g->groups);
    g->method = case_below(c, 3);
    const bool grouped = g->method != KERN_GATE_GREEDY && g->groups > 1;
    uint32_t most = grouped ? g->experts / g->groups * g->top_groups : g->experts;
    g->top_k = 1 + case_below(c, most < 12 ? most : 12);
    g->bias = case_below(c, 2) ? case_floats(c, g->experts) : NULL;
    float *logits = case_floats(c, (size_t)a.rows * g->experts);
    /* Equal scores are the interesting ones. */
    for (uint32_t i = 0; case_below(c, 2) && i < a.rows * g->experts; i++)
        logits[i] = (float)(int)(logits[i] * 2);
    if (case_below(c, 6) == 0) logits[case_below(c, a.rows * g->experts)] = NAN;
    const size_t n = (size_t)a.rows * g->top_k;
    a.logits = logits;
    a.ids = guard_get(n * sizeof *a.ids, 0);
    a.weights = case_room(c, n);
    case_finish(c, kern_cuda_gate(&a, NULL));
    uint32_t *ids = guard_get(n * sizeof *ids, 0);
    float *weights = case_room(c, n), *scratch = case_room(c, 2 * (size_t)g->experts);
    for (uint32_t r = 0; r < a.rows; r++)
        c->reference->gate(g, logits + (size_t)r * g->experts, ids + r * g->top_k,
                           weights + r * g->top_k, scratch);
    if (memcmp(ids, a.ids, n * sizeof *ids) != 0)
        case_fail(c, "other experts (%u in %u groups, top %u of %u groups, method %d)", g->experts,
                  g->groups, g->top_k, g->top_groups, (int)g->method);
    case_same(c, "weights", a.weights, weights, n);
}

void case_combine(struct cuda_case *c)
{
    struct kern_cuda_combine_args a = { .rows = 1 + case_below(c, 5),
                                        .top_k = 1 + case_below(c, 9),
                                        .hidden = 1 + case_below(c, 600) };
    const uint32_t pairs = a.rows * a.top_k;
    uint32_t *list = guard_get(pairs * sizeof *list, 0);
    uint32_t *counts = guard_get(a.rows * sizeof *counts, 0);
    const float *weight = case_floats(c, pairs);
    const float *out = case_floats(c, (size_t)pairs * a.hidden);
    const float *add = case_below(c, 2) ? case_floats(c, (size_t)a.rows * a.hidden) : NULL;
    for (uint32_t i = 0; i < pairs; i++)
        list[i] = case_below(c, pairs);
    for (uint32_t r = 0; r < a.rows; r++)
        counts[r] = case_below(c, a.top_k + 1);
    a.row_pairs = list;
    a.row_pair_count = counts;
    a.pair_weight = weight;
    a.pair_out = out;
    a.add = add;
    a.out = case_room(c, (size_t)a.rows * a.hidden);
    case_finish(c, kern_cuda_combine(&a, NULL));
    float *wanted = case_room(c, a.hidden);
    for (uint32_t r = 0; r < a.rows; r++) {
        memset(wanted, 0, a.hidden * sizeof *wanted);
        for (uint32_t p = 0; p < counts[r]; p++) {
            const uint32_t pair = list[r * a.top_k + p];
            c->reference->axpy(wanted, weight[pair], out + (size_t)pair * a.hidden, a.hidden);
        }
        if (add) c->reference->add(wanted, add + (size_t)r * a.hidden, a.hidden);
        case_same(c, "out", a.out + (size_t)r * a.hidden, wanted, a.hidden);
    }
}

void case_greedy(struct cuda_case *c)
{
    struct kern_cuda_greedy_args a = { .rows = 1 + case_below(c, 4), .n = 1 + case_below(c, 3000) };
    float *logits = case_floats(c, (size_t)a.rows * a.n);
    for (size_t i = 0; case_below(c, 2) && i < (size_t)a.rows * a.n; i++)
        logits[i] = (float)(int)logits[i];
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    if (case_below(c, 3) == 0) logits[case_below(c, a.rows * a.n)] = bad[case_below(c, 3)];
    a.logits = logits;
    a.ids = guard_get(a.rows * sizeof *a.ids, 0);
    case_finish(c, kern_cuda_greedy(&a, NULL));
    for (uint32_t r = 0; r < a.rows; r++) {
        const float *row = logits + (size_t)r * a.n;
        uint32_t best = 0;
        bool numbers = true;
        for (uint32_t i = 0; i < a.n; i++) {
            if (row[i] > row[best]) best = i;
            numbers = numbers && isfinite(row[i]);
        }
        if (!numbers) best = KERN_CUDA_NO_ID;
        if (a.ids[r] != best) case_fail(c, "row %u: id %u, not %u", r, a.ids[r], best);
    }
}
