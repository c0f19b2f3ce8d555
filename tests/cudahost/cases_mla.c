/* Latent attention: decode and prefill beside the reference, and beside each other bit for bit. */
#include <math.h>
#include <string.h>

#include "tests/cudahost/cases.h"
#include "tests/support/guard.h"

/* Sequences whose rows are consecutive, as a batch has them. */
struct batch {
    struct kern_cuda_mla a;
    const void **blocks;
    uint32_t *member, *tokens;
    struct kern_cuda_run *tiles;
};

static const void *block_draw(struct cuda_case *c, const struct kern_cuda_mla *a, uint32_t tokens)
{
    const size_t n = (size_t)tokens * (a->lora + a->rope);
    /* Blocks begin at 16 bytes and end where their tokens do: what is beyond may not be read. */
    uint8_t *block = guard_get(n * (a->bf16 ? 2 : 4), 0);
    for (size_t i = 0; i < n; i++) {
        const float value = (float)base_rng_normal(&c->rng);
        if (a->bf16)
            c->reference->to_bf16((uint16_t *)(void *)block + i, &value, 1);
        else
            memcpy(block + 4 * i, &value, 4);
    }
    return block;
}

static void batch_draw(struct cuda_case *c, struct batch *b)
{
    static const uint32_t usual[] = { 16, 16, 64 };
    const bool small = case_below(c, 2) > 0;
    struct kern_cuda_mla *a = &b->a;
    *a = (struct kern_cuda_mla){
        .heads =
            small ? 1 + case_below(c, 10) : 1 + case_below(c, 3) + 32 * (case_below(c, 8) == 0),
        .rope = small ? 8 * case_below(c, 4) : 64,
        .lora = small ? 8 * (1 + case_below(c, 12)) : 512,
        .bf16 = case_below(c, small ? 2 : 6),
        .scale = 0.125f,
    };
    const uint32_t members = 1 + case_below(c, 2), longest = case_below(c, 3) ? 60 : 560;
    /* Of V3's shape some are longer than a split. */
    const uint32_t most = small ? longest : case_below(c, 4) ? 150 : KERN_CUDA_SPLIT + 40;
    a->block_tokens = case_below(c, 2) ? usual[case_below(c, 3)] : 8 * (1 + case_below(c, 8));
    a->blocks_per_seq = (most + a->block_tokens - 1) / a->block_tokens;
    b->blocks = guard_get(members * a->blocks_per_seq * sizeof *b->blocks, 0);
    b->member = guard_get(32 * sizeof *b->member, 0);
    b->tokens = guard_get(32 * sizeof *b->tokens, 0);
    b->tiles = guard_get(8 * sizeof *b->tiles, 0);
    for (uint32_t s = 0; s < members; s++) {
        const uint32_t seen = 1 + case_below(c, most), new_rows = 1 + case_below(c, 12);
        const uint32_t rows = new_rows < seen ? new_rows : seen;
        for (uint32_t at = 0, i = 0; at < seen; at += a->block_tokens, i++) {
            const uint32_t left = seen - at;
            b->blocks[s * a->blocks_per_seq + i] =
                block_draw(c, a, left < a->block_tokens ? left : a->block_tokens);
        }
        for (uint32_t r = 0; r < rows; r++, a->rows++) {
            if (r % KERN_CUDA_QUERIES == 0)
                b->tiles[a->tile_count++] = (struct kern_cuda_run){ 0, a->rows, 0 };
            b->tiles[a->tile_count - 1].count++;
            b->member[a->rows] = s;
            b->tokens[a->rows] = seen - rows + r + 1;
        }
        a->tokens_max = seen > a->tokens_max ? seen : a->tokens_max;
    }
    a->blocks = b->blocks;
    a->row_member = b->member;
    a->row_tokens = b->tokens;
    a->tiles = b->tiles;
    a->q = case_floats(c, (size_t)a->rows * a->heads * (a->lora + a->rope));
}

static void reference_compare(struct cuda_case *c, const struct batch *b, const float *out)
{
    const struct kern_cuda_mla *a = &b->a;
    const size_t n = (size_t)a->heads * a->lora;
    float *wanted = case_room(c, n);
    for (uint32_t r = 0; r < a->rows; r++) {
        const struct kern_mla mla = {
            .heads = a->heads,
            .lora = a->lora,
            .rope = a->rope,
            .blocks_bf16 = a->bf16,
            .q = a->q + (size_t)r * a->heads * (a->lora + a->rope),
            .scale = a->scale,
            .blocks = b->blocks + b->member[r] * a->blocks_per_seq,
            .block_tokens = a->block_tokens,
            .tokens = b->tokens[r],
            .out = wanted,
        };
        c->reference->mla(&mla, 0, a->heads);
        /* Twice the bound of the reference itself (kernels/README.md). */
        for (size_t i = 0; i < n; i++)
            case_near(c, "out", r * n + i, out[r * n + i], wanted[i], 4e-5);
    }
}

void case_mla(struct cuda_case *c)
{
    struct batch b;
    batch_draw(c, &b);
    struct kern_cuda_mla a = b.a;
    const size_t row = (size_t)a.heads * a.lora, n = a.rows * row;
    float *decoded = a.out = case_room(c, n);
    a.work = case_room(c, kern_cuda_mla_work(&a));
    case_finish(c, kern_cuda_mla_decode(&a, NULL));
    reference_compare(c, &b, decoded);
    a.out = case_room(c, n);
    case_finish(c, kern_cuda_mla_prefill(&a, NULL));
    case_same(c, "prefill", a.out, decoded, n);
    /* One row alone, in less room: the grid is another, the bits are not. */
    const uint32_t r = case_below(c, a.rows);
    a.rows = 1;
    a.q += (size_t)r * a.heads * (a.lora + a.rope);
    a.row_member += r;
    a.row_tokens += r;
    a.tokens_max = a.row_tokens[0];
    a.out = case_room(c, row);
    a.work = case_room(c, kern_cuda_mla_work(&a));
    case_finish(c, kern_cuda_mla_decode(&a, NULL));
    case_same(c, "alone", a.out, decoded + r * row, row);
}
