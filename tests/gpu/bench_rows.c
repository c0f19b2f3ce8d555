/* What has little to read: routing, the sum of expert outputs, norms, greedy sampling. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/kern_cuda.h"
#include "tests/gpu/bench_card.h"

enum { HIDDEN = 7168, EXPERTS = 256, TOP = 8, VOCABULARY = 129280 };

union rows_args {
    struct kern_cuda_rmsnorm_args norm;
    struct kern_cuda_gate_args gate;
    struct kern_cuda_combine_args combine;
    struct kern_cuda_greedy_args greedy;
};

struct rows_bench {
    struct bench *b;
    union rows_args a;
};

static void norm_launch(void *context, unsigned i)
{
    struct rows_bench *r = context;
    (void)i;
    CARD_KERN(kern_cuda_rmsnorm(&r->a.norm, r->b->stream));
}

static void gate_launch(void *context, unsigned i)
{
    struct rows_bench *r = context;
    (void)i;
    CARD_KERN(kern_cuda_gate(&r->a.gate, r->b->stream));
}

static void combine_launch(void *context, unsigned i)
{
    struct rows_bench *r = context;
    (void)i;
    CARD_KERN(kern_cuda_combine(&r->a.combine, r->b->stream));
}

static void greedy_launch(void *context, unsigned i)
{
    struct rows_bench *r = context;
    (void)i;
    CARD_KERN(kern_cuda_greedy(&r->a.greedy, r->b->stream));
}

static void rows_give(struct rows_bench *r, const char *name, uint32_t rows, double bytes,
                      void (*launch)(void *, unsigned))
{
    /* So few bytes that the cache has them: no share of HBM would say anything. */
    struct card_row row = { .stage = "roofline", .ok = true, .bytes = bytes };
    snprintf(row.name, sizeof row.name, "%s, %u", name, rows);
    if (bench_wanted(r->b, row.name)) {
        row.us = bench_time(r->b, launch, r) * 1e6;
        card_row_give(&row);
    }
    bench_release(r->b);
}

static void norm_bench(struct bench *b, uint32_t rows)
{
    struct rows_bench r = { .b = b };
    r.a.norm = (struct kern_cuda_rmsnorm_args){
        .rows = rows,
        .n = HIDDEN,
        .x_stride = HIDDEN,
        .y_stride = HIDDEN,
        .eps = 1e-6f,
        .x = bench_alloc(b, (size_t)rows * HIDDEN * 4, CARD_FILL_F32),
        .weight = bench_alloc(b, HIDDEN * 4, CARD_FILL_F32),
        .y = bench_alloc(b, (size_t)rows * HIDDEN * 4, -1),
    };
    rows_give(&r, "rmsnorm", rows, 8.0 * rows * HIDDEN, norm_launch);
}

static void gate_bench(struct bench *b, uint32_t rows)
{
    struct rows_bench r = { .b = b };
    r.a.gate = (struct kern_cuda_gate_args){
        .rows = rows,
        .gate = { .experts = EXPERTS,
                  .top_k = TOP,
                  .groups = 8,
                  .top_groups = 4,
                  .sigmoid = true,
                  .method = KERN_GATE_NOAUX,
                  .normalize = true,
                  .scaling = 2.5f,
                  .bias = bench_alloc(b, EXPERTS * 4, CARD_FILL_F32) },
        .logits = bench_alloc(b, (size_t)rows * EXPERTS * 4, CARD_FILL_F32),
        .ids = bench_alloc(b, (size_t)rows * TOP * 4, -1),
        .weights = bench_alloc(b, (size_t)rows * TOP * 4, -1),
    };
    rows_give(&r, "gate 256, top 8 of 4 groups", rows, 4.0 * rows * EXPERTS, gate_launch);
}

static void combine_bench(struct bench *b, uint32_t rows)
{
    struct rows_bench r = { .b = b };
    uint32_t *list = calloc((size_t)rows * TOP, sizeof *list), *count = calloc(rows, sizeof *count);
    for (uint32_t i = 0; i < rows * TOP; i++)
        list[i] = i;
    for (uint32_t i = 0; i < rows; i++)
        count[i] = TOP;
    r.a.combine = (struct kern_cuda_combine_args){
        .rows = rows,
        .hidden = HIDDEN,
        .top_k = TOP,
        .row_pairs = bench_upload(b, list, (size_t)rows * TOP * sizeof *list),
        .row_pair_count = bench_upload(b, count, rows * sizeof *count),
        .pair_weight = bench_alloc(b, (size_t)rows * TOP * 4, CARD_FILL_F32),
        .pair_out = bench_alloc(b, (size_t)rows * TOP * HIDDEN * 4, CARD_FILL_F32),
        .add = bench_alloc(b, (size_t)rows * HIDDEN * 4, CARD_FILL_F32),
        .out = bench_alloc(b, (size_t)rows * HIDDEN * 4, -1),
    };
    rows_give(&r, "combine 8 experts and the shared", rows, 4.0 * rows * HIDDEN * (TOP + 2),
              combine_launch);
    free(list);
    free(count);
}

static void greedy_bench(struct bench *b, uint32_t rows)
{
    struct rows_bench r = { .b = b };
    r.a.greedy = (struct kern_cuda_greedy_args){
        .rows = rows,
        .n = VOCABULARY,
        .logits = bench_alloc(b, (size_t)rows * VOCABULARY * 4, CARD_FILL_F32),
        .ids = bench_alloc(b, rows * 4, -1),
    };
    rows_give(&r, "greedy 129280", rows, 4.0 * rows * VOCABULARY, greedy_launch);
}

void bench_rows(struct bench *b)
{
    static const uint32_t batches[] = { 1, 32 };
    for (unsigned i = 0; i < 2; i++) {
        norm_bench(b, batches[i]);
        gate_bench(b, batches[i]);
        combine_bench(b, batches[i]);
        greedy_bench(b, batches[i]);
    }
    if (!b->quick) norm_bench(b, 2048);
}
