/* Latent attention at the shape of DeepSeek-V3: 128 heads over a BF16 cache of 512 + 64. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/kern_cuda.h"
#include "tests/gpu/bench_card.h"

enum { HEADS = 128, ROPE = 64, LORA = 512, WIDE = LORA + ROPE, BLOCK = 64, SETS_MAX = 48 };

struct mla_bench {
    struct bench *b;
    bool prefill;
    unsigned sets;
    struct kern_cuda_mla a[SETS_MAX];
};

static void mla_launch(void *context, unsigned i)
{
    struct mla_bench *m = context;
    const struct kern_cuda_mla *a = &m->a[i % m->sets];
    CARD_KERN(m->prefill ? kern_cuda_mla_prefill(a, m->b->stream)
                         : kern_cuda_mla_decode(a, m->b->stream));
}

/* Caches of `members` sequences of `tokens` tokens in blocks. */
static const void *const *blocks_make(struct bench *b, unsigned members, uint32_t tokens)
{
    const size_t block_bytes = (size_t)BLOCK * WIDE * 2, count = members * (tokens / BLOCK);
    char *cache = bench_alloc(b, count * block_bytes, CARD_FILL_BF16);
    const void **table = calloc(count, sizeof *table);
    for (size_t i = 0; i < count; i++)
        table[i] = cache + (i * 7919 % count) * block_bytes; /* blocks lie anywhere */
    const void *const *at = bench_upload(b, table, count * sizeof *table);
    free(table);
    return at;
}

static void decode_bench(struct bench *b, unsigned batch, uint32_t tokens)
{
    struct mla_bench m = { .b = b };
    const double cache = (double)batch * tokens * WIDE * 2;
    struct card_row row = {
        .stage = "roofline", .ok = true, .bandwidth = b->read_bps, .peak = b->mma_peak
    };
    snprintf(row.name, sizeof row.name, "mla decode %u x %u", batch, tokens);
    if (!bench_wanted(b, row.name)) return;
    uint32_t *member = calloc(batch, sizeof *member), *seen = calloc(batch, sizeof *seen);
    for (unsigned i = 0; i < batch; i++) {
        member[i] = i;
        seen[i] = tokens;
    }
    const uint32_t *member_at = bench_upload(b, member, batch * sizeof *member);
    const uint32_t *seen_at = bench_upload(b, seen, batch * sizeof *seen);
    m.sets = bench_sets(b, cache);
    for (unsigned s = 0; s < m.sets; s++) {
        m.a[s] = (struct kern_cuda_mla){
            .rows = batch,
            .heads = HEADS,
            .lora = LORA,
            .rope = ROPE,
            .q = s ? m.a[0].q : bench_alloc(b, (size_t)batch * HEADS * WIDE * 4, CARD_FILL_F32),
            .blocks = blocks_make(b, batch, tokens),
            .row_member = member_at,
            .row_tokens = seen_at,
            .blocks_per_seq = tokens / BLOCK,
            .block_tokens = BLOCK,
            .tokens_max = tokens,
            .bf16 = true,
            .scale = 0.01f,
            .out = s ? m.a[0].out : bench_alloc(b, (size_t)batch * HEADS * LORA * 4, -1),
        };
        m.a[s].work = s ? m.a[0].work : bench_alloc(b, kern_cuda_mla_work(&m.a[0]) * 4, -1);
    }
    row.us = bench_time(b, mla_launch, &m) * 1e6;
    row.bytes = cache;
    row.flops = 2.0 * batch * HEADS * (double)tokens * (WIDE + LORA);
    if (!b->quick)
        snprintf(row.note, sizeof row.note, "cache once: %.2f of reading, %.1f Tflop/s",
                 cache / row.us * 1e6 / b->read_bps, row.flops / row.us * 1e-6);
    card_row_give(&row);
    free(member);
    free(seen);
    bench_release(b);
}

/* The last `rows` tokens of a sequence of `tokens`. */
static void prefill_bench(struct bench *b, uint32_t rows, uint32_t tokens)
{
    struct mla_bench m = { .b = b, .prefill = true, .sets = 1 };
    struct card_row row = { .stage = "roofline", .ok = true, .peak = b->mma_peak };
    snprintf(row.name, sizeof row.name, "mla prefill %u of %u", rows, tokens);
    if (!bench_wanted(b, row.name)) return;
    const uint32_t tiles = (rows + KERN_CUDA_QUERIES - 1) / KERN_CUDA_QUERIES;
    uint32_t *member = calloc(rows, sizeof *member), *seen = calloc(rows, sizeof *seen);
    struct kern_cuda_run *run = calloc(tiles, sizeof *run);
    double pairs = 0;
    for (uint32_t i = 0; i < rows; i++) {
        seen[i] = tokens - rows + i + 1;
        pairs += seen[i];
        run[i / KERN_CUDA_QUERIES].first = i / KERN_CUDA_QUERIES * KERN_CUDA_QUERIES;
        run[i / KERN_CUDA_QUERIES].count++;
    }
    m.a[0] = (struct kern_cuda_mla){
        .rows = rows,
        .heads = HEADS,
        .lora = LORA,
        .rope = ROPE,
        .q = bench_alloc(b, (size_t)rows * HEADS * WIDE * 4, CARD_FILL_F32),
        .blocks = blocks_make(b, 1, tokens),
        .row_member = bench_upload(b, member, rows * sizeof *member),
        .row_tokens = bench_upload(b, seen, rows * sizeof *seen),
        .blocks_per_seq = tokens / BLOCK,
        .block_tokens = BLOCK,
        .tokens_max = tokens,
        .bf16 = true,
        .scale = 0.01f,
        .out = bench_alloc(b, (size_t)rows * HEADS * LORA * 4, -1),
        .tiles = bench_upload(b, run, tiles * sizeof *run),
        .tile_count = tiles,
    };
    row.us = bench_time(b, mla_launch, &m) * 1e6;
    row.flops = 2.0 * HEADS * pairs * (WIDE + LORA);
    card_row_give(&row);
    free(member);
    free(seen);
    free(run);
    bench_release(b);
}

void bench_attention(struct bench *b)
{
    if (b->quick) {
        decode_bench(b, 2, 320);
        prefill_bench(b, 12, 320);
        return;
    }
    decode_bench(b, 1, 2048);
    decode_bench(b, 16, 2048);
    decode_bench(b, 1, 16384);
    decode_bench(b, 16, 16384);
    prefill_bench(b, 512, 512);
    prefill_bench(b, 2048, 2048);
}
