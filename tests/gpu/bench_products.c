/* Expert and dense products at the shapes of DeepSeek-V3: 7168 wide, experts of 2048, 128 heads. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/kern_cuda.h"
#include "tests/gpu/bench_card.h"

enum {
    HIDDEN = 7168,
    WIDTH = 2048,
    HEADS = 128,
    NOPE = 128,
    ROPE = 64,
    VALUE = 128,
    Q_LORA = 1536,
    KV_LORA = 512
};

static const struct {
    const char *name;
    enum kern_dtype dtype;
    uint32_t scale_rows, scale_cols;
    enum card_fill fill;
} types[] = {
    { "FP8", KERN_FP8_E4M3, 128, 128, CARD_FILL_FP8 },
    { "BF16", KERN_BF16, 0, 0, CARD_FILL_BF16 },
    { "INT8", KERN_INT8, 1, KERN_GROUP_LARGE, CARD_FILL_BYTES },
    { "INT4", KERN_INT4, 1, KERN_GROUP_LARGE, CARD_FILL_BYTES },
};
enum { TYPES = sizeof types / sizeof *types };

static struct kern_matrix matrix_make(struct bench *b, unsigned type, uint32_t rows, uint32_t cols,
                                      double *bytes)
{
    struct kern_matrix w = { .dtype = types[type].dtype, .rows = rows, .cols = cols };
    const size_t data = rows * kern_row_bytes(w.dtype, cols);
    size_t scales = 0;
    w.data = bench_alloc(b, data, types[type].fill);
    w.scale_rows = types[type].scale_rows;
    w.scale_cols = types[type].scale_cols;
    if (w.scale_rows) {
        scales = (size_t)((rows + w.scale_rows - 1) / w.scale_rows) *
                 ((cols + w.scale_cols - 1) / w.scale_cols) * (kern_dtype_grouped(w.dtype) ? 2 : 4);
        w.scales = bench_alloc(b, scales, CARD_FILL_SCALES);
    }
    *bytes += (double)(data + scales);
    return w;
}

static struct kern_cuda_shape shape_of(const struct kern_matrix *w)
{
    return (struct kern_cuda_shape){ w->dtype, w->rows, w->cols, w->scale_rows, w->scale_cols };
}

/* ---- experts ---- */

enum { SETS_MAX = 4 };

struct experts_bench {
    struct bench *b;
    bool tiles;
    unsigned sets;
    struct kern_cuda_experts_in_args in[SETS_MAX];
    struct kern_cuda_experts_out_args out[SETS_MAX];
};

static void in_launch(void *context, unsigned i)
{
    struct experts_bench *e = context;
    const struct kern_cuda_experts_in_args *a = &e->in[i % e->sets];
    CARD_KERN(e->tiles ? kern_cuda_experts_in_tiles(a, e->b->stream)
                       : kern_cuda_experts_in(a, e->b->stream));
}

static void out_launch(void *context, unsigned i)
{
    struct experts_bench *e = context;
    const struct kern_cuda_experts_out_args *a = &e->out[i % e->sets];
    CARD_KERN(e->tiles ? kern_cuda_experts_out_tiles(a, e->b->stream)
                       : kern_cuda_experts_out(a, e->b->stream));
}

/* `runs` experts, `tokens` each; x is bf16-like noise, as little matters as its values do. */
static void experts_bench(struct bench *b, unsigned type, unsigned runs, unsigned tokens,
                          bool tiles)
{
    struct experts_bench e = { .b = b, .tiles = tiles };
    char name[56];
    double in_bytes = 0, out_bytes = 0;
    const uint32_t pairs = runs * tokens;
    snprintf(name, sizeof name, "experts%s %s, %u x %u", tiles ? " tiles" : "", types[type].name,
             runs, tokens);
    if (!bench_wanted(b, name)) return;
    e.sets = b->quick ? 1 : 2;
    struct kern_cuda_run *run = calloc(runs, sizeof *run);
    uint32_t *pair_row = calloc(pairs, sizeof *pair_row);
    struct kern_cuda_expert *table = calloc(runs, sizeof *table);
    for (uint32_t i = 0; i < pairs; i++)
        pair_row[i] = i % tokens;
    for (unsigned r = 0; r < runs; r++)
        run[r] = (struct kern_cuda_run){ r, r * tokens, tokens };
    const float *x = bench_alloc(b, (size_t)tokens * HIDDEN * 4, CARD_FILL_F32);
    float *act = bench_alloc(b, (size_t)pairs * WIDTH * 4, CARD_FILL_F32);
    float *out = bench_alloc(b, (size_t)pairs * HIDDEN * 4, -1);
    const struct kern_cuda_run *runs_at = bench_upload(b, run, runs * sizeof *run);
    const uint32_t *pairs_at = bench_upload(b, pair_row, pairs * sizeof *pair_row);
    for (unsigned s = 0; s < e.sets; s++) {
        struct kern_matrix gate = { 0 }, up, down = { 0 };
        in_bytes = out_bytes = 0;
        for (unsigned r = 0; r < runs; r++) {
            gate = matrix_make(b, type, WIDTH, HIDDEN, &in_bytes);
            up = matrix_make(b, type, WIDTH, HIDDEN, &in_bytes);
            down = matrix_make(b, type, HIDDEN, WIDTH, &out_bytes);
            table[r] = (struct kern_cuda_expert){ gate.data, gate.scales, up.data,
                                                  up.scales, down.data,   down.scales };
        }
        const struct kern_cuda_expert *table_at = bench_upload(b, table, runs * sizeof *table);
        e.in[s] = (struct kern_cuda_experts_in_args){ shape_of(&gate), table_at, runs_at, runs,
                                                      tokens,          pairs_at, x,       act };
        e.out[s] = (struct kern_cuda_experts_out_args){ shape_of(&down), table_at, runs_at, runs,
                                                        tokens,          act,      out };
    }
    struct card_row row = { .stage = "roofline", .ok = true, .bandwidth = b->read_bps };
    /* Decode multiplies in f32, prompts on tensor cores, twice as x has two halves. */
    row.peak = tiles ? b->mma_peak / 2 : b->f32_peak;
    snprintf(row.name, sizeof row.name, "in  %s", name);
    row.us = bench_time(b, in_launch, &e) * 1e6;
    row.bytes = in_bytes;
    row.flops = 4.0 * HIDDEN * WIDTH * pairs;
    card_row_give(&row);
    snprintf(row.name, sizeof row.name, "out %s", name);
    row.us = bench_time(b, out_launch, &e) * 1e6;
    row.bytes = out_bytes;
    row.flops = 2.0 * HIDDEN * WIDTH * pairs;
    card_row_give(&row);
    free(run);
    free(pair_row);
    free(table);
    bench_release(b);
}

/* ---- dense ---- */

enum { PRODUCT_SETS_MAX = 16 };

struct product_bench {
    struct bench *b;
    bool tiles;
    unsigned sets;
    struct kern_cuda_product_args a[PRODUCT_SETS_MAX];
};

static void product_launch(void *context, unsigned i)
{
    struct product_bench *p = context;
    const struct kern_cuda_product_args *a = &p->a[i % p->sets];
    CARD_KERN(p->tiles ? kern_cuda_product_tiles(a, p->b->stream)
                       : kern_cuda_product(a, p->b->stream));
}

static const struct product {
    const char *name;
    uint32_t rows, cols, k_blocks, group, w_group, w_first, x_group;
} products[] = {
    { "q_a", Q_LORA, HIDDEN, 1, Q_LORA, 0, 0, 0 },
    { "q_b", HEADS *(NOPE + ROPE), Q_LORA, 1, HEADS *(NOPE + ROPE), 0, 0, 0 },
    { "kv_b values", HEADS *VALUE, KV_LORA, 1, VALUE, NOPE + VALUE, NOPE, KV_LORA },
    { "o", HIDDEN, HEADS *VALUE, KERN_RANK_BLOCKS, HIDDEN, 0, 0, 0 },
};

static void product_bench(struct bench *b, const struct product *kind, unsigned type, uint32_t m,
                          bool tiles)
{
    struct product_bench p = { .b = b, .tiles = tiles };
    struct card_row row = { .stage = "roofline",
                            .ok = true,
                            .bandwidth = b->read_bps,
                            .peak = tiles ? b->mma_peak / 2 : b->f32_peak };
    snprintf(row.name, sizeof row.name, "product%s %s %s, %u", tiles ? " tiles" : "", kind->name,
             types[type].name, m);
    if (!bench_wanted(b, row.name)) return;
    const uint32_t groups = kind->rows / kind->group;
    const uint32_t w_rows = kind->w_group ? groups * kind->w_group : kind->rows;
    const size_t x_row = kind->x_group ? (size_t)groups * kind->x_group : kind->cols;
    const float *x = bench_alloc(b, m * x_row * 4, CARD_FILL_F32);
    float *y = bench_alloc(b, (size_t)m * kind->rows * 4, -1);
    p.sets = bench_sets(b, (double)kind->rows * kind->cols);
    p.sets = p.sets > PRODUCT_SETS_MAX ? PRODUCT_SETS_MAX : p.sets;
    for (unsigned s = 0; s < p.sets; s++) {
        double bytes = 0;
        p.a[s] = (struct kern_cuda_product_args){
            .w = matrix_make(b, type, w_rows, kind->cols, &bytes),
            .m = m,
            .rows = kind->rows,
            .k_blocks = kind->k_blocks,
            .group = kind->group,
            .w_group = kind->w_group,
            .w_first = kind->w_first,
            .x = x,
            .x_stride = x_row,
            .x_group = kind->x_group,
            .y_stride = kind->rows,
            .y = y,
        };
        row.bytes = bytes * kind->rows / w_rows; /* of grouped ones only the rows read */
    }
    row.us = bench_time(b, product_launch, &p) * 1e6;
    row.flops = 2.0 * kind->rows * kind->cols * m;
    card_row_give(&row);
    bench_release(b);
}

/* ---- absorb ---- */

struct absorb_bench {
    struct bench *b;
    unsigned sets;
    struct kern_cuda_absorb_args a[PRODUCT_SETS_MAX];
};

static void absorb_launch(void *context, unsigned i)
{
    struct absorb_bench *p = context;
    CARD_KERN(kern_cuda_absorb(&p->a[i % p->sets], p->b->stream));
}

static void absorb_bench(struct bench *b, unsigned type, uint32_t rows)
{
    struct absorb_bench p = { .b = b };
    struct card_row row = {
        .stage = "roofline", .ok = true, .bandwidth = b->read_bps, .peak = b->f32_peak
    };
    snprintf(row.name, sizeof row.name, "absorb %s, %u", types[type].name, rows);
    if (!bench_wanted(b, row.name)) return;
    const float *q = bench_alloc(b, (size_t)rows * HEADS * (NOPE + ROPE) * 4, CARD_FILL_F32);
    float *to = bench_alloc(b, (size_t)rows * HEADS * (KV_LORA + ROPE) * 4, -1);
    p.sets = bench_sets(b, (double)HEADS * (NOPE + VALUE) * KV_LORA);
    p.sets = p.sets > PRODUCT_SETS_MAX ? PRODUCT_SETS_MAX : p.sets;
    for (unsigned s = 0; s < p.sets; s++) {
        double bytes = 0;
        p.a[s] = (struct kern_cuda_absorb_args){
            .w = matrix_make(b, type, HEADS * (NOPE + VALUE), KV_LORA, &bytes),
            .rows = rows,
            .heads = HEADS,
            .nope = NOPE,
            .rope = ROPE,
            .w_head = NOPE + VALUE,
            .q = q,
            .q_latent = to,
        };
        row.bytes = bytes * NOPE / (NOPE + VALUE);
    }
    row.us = bench_time(b, absorb_launch, &p) * 1e6;
    row.flops = 2.0 * HEADS * NOPE * KV_LORA * rows;
    card_row_give(&row);
    bench_release(b);
}

void bench_products(struct bench *b)
{
    static const unsigned batches[] = { 1, 8, 32 }, prompts[] = { 64, 512 };
    for (unsigned t = 0; t < TYPES; t++)
        for (unsigned i = 0; i < 3; i++)
            experts_bench(b, t, 8, b->quick ? i + 1 : batches[i], false);
    /* A batch of 8 or so whose tokens chose other experts each. */
    experts_bench(b, 0, b->quick ? 3 : 57, 1, false);
    /* Prompts of 512 and 2048 tokens give each expert of 256 some 16 and 64. */
    for (unsigned t = 0; t < 2; t++)
        for (unsigned i = 0; i < 2; i++)
            experts_bench(b, t, b->quick ? 2 : 32, b->quick ? 17 : prompts[i] / (i ? 8 : 4), true);
    for (unsigned k = 0; k < sizeof products / sizeof *products; k++) {
        for (unsigned t = 0; t < (k == 1 || k == 3 ? (unsigned)TYPES : 1u); t++)
            product_bench(b, &products[k], t, 1, false);
        product_bench(b, &products[k], 0, 8, false);
        product_bench(b, &products[k], 0, 32, false);
        product_bench(b, &products[k], 0, b->quick ? 40 : 512, true);
        if (!b->quick) product_bench(b, &products[k], 0, 2048, true);
    }
    absorb_bench(b, 0, 1);
    absorb_bench(b, 0, 8);
    absorb_bench(b, 0, 32);
    absorb_bench(b, 1, 1);
    if (!b->quick) absorb_bench(b, 0, 512);
}
