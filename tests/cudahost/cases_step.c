/* What a step needs beside its layers: the embedding's rows, sums, columns of ranks, addresses of
 * the cache. */
#include <string.h>

#include "tests/cudahost/cases.h"
#include "tests/support/guard.h"

void case_embed(struct cuda_case *c)
{
    static const enum kern_dtype dtypes[] = { KERN_F32, KERN_F16, KERN_BF16 };
    const uint32_t vocab = 1 + case_below(c, 40), cols = 1 + case_below(c, 600);
    struct kern_cuda_embed_args a = {
        .w = case_matrix(c, dtypes[case_below(c, 3)], vocab, cols, 0, 0),
        .rows = 1 + case_below(c, 6),
        .first = case_below(c, 2) * case_below(c, 50),
    };
    uint32_t *tokens = guard_get(a.rows * sizeof *tokens, 0);
    /* Of a share of the vocabulary, or of one of the others. */
    for (uint32_t r = 0; r < a.rows; r++)
        tokens[r] = a.first ? case_below(c, 2 * a.first + vocab) : case_below(c, vocab);
    a.tokens = tokens;
    a.out = case_room(c, (size_t)a.rows * cols);
    case_finish(c, kern_cuda_embed(&a, NULL));
    float *wanted = case_room(c, cols);
    for (uint32_t r = 0; r < a.rows; r++) {
        const uint32_t at = tokens[r] - a.first;
        memset(wanted, 0, cols * sizeof *wanted);
        if (at < vocab)
            c->reference->to_f32(wanted,
                                 (const char *)a.w.data + at * kern_row_bytes(a.w.dtype, cols),
                                 a.w.dtype, cols);
        case_same(c, "out", a.out + (size_t)r * cols, wanted, cols);
    }
}

void case_add(struct cuda_case *c)
{
    struct kern_cuda_add_args a = { .n = 1 + case_below(c, 3000) };
    float *wanted = case_floats(c, a.n);
    a.from = case_floats(c, a.n);
    a.to = case_room(c, a.n);
    memcpy(a.to, wanted, a.n * sizeof *wanted);
    case_finish(c, kern_cuda_add(&a, NULL));
    c->reference->add(wanted, a.from, (uint32_t)a.n);
    case_same(c, "to", a.to, wanted, a.n);
}

void case_columns(struct cuda_case *c)
{
    struct kern_cuda_columns_args a = { .rows = 1 + case_below(c, 5),
                                        .width = 1 + case_below(c, 700),
                                        .join = case_below(c, 2) };
    const uint32_t parts = 1 + case_below(c, 6);
    a.each = (a.width + parts - 1) / parts;
    a.add = a.join && case_below(c, 2);
    const size_t count = (size_t)a.rows * a.width;
    float *whole = case_floats(c, count), *cut = case_floats(c, count);
    float *wanted = case_room(c, count);
    uint32_t at = 0;
    for (uint32_t first = 0; first < a.width; first += a.each) {
        for (uint32_t r = 0; r < a.rows; r++) {
            for (uint32_t i = first; i < a.width && i < first + a.each; i++, at++) {
                const float one = whole[r * a.width + i], other = cut[at];
                if (a.join)
                    wanted[r * a.width + i] = a.add ? one + other : other;
                else
                    wanted[at] = one;
            }
        }
    }
    a.whole = a.join ? case_room(c, count) : whole;
    a.parts = a.join ? cut : case_room(c, count);
    if (a.add) memcpy(a.whole, whole, count * sizeof *whole);
    case_finish(c, kern_cuda_columns(&a, NULL));
    case_same(c, "columns", a.join ? a.whole : a.parts, wanted, count);
}

static const char *block_of(const struct kern_cuda_pages_args *a, uint32_t layer, uint32_t member,
                            uint32_t block)
{
    const uint64_t id = a->ids[member * a->blocks_per_seq + block];
    return a->memory + (id * a->layers + layer) * a->layer_bytes;
}

void case_pages(struct cuda_case *c)
{
    struct kern_cuda_pages_args a = { .layers = 1 + case_below(c, 5),
                                      .members = 1 + case_below(c, 5),
                                      .rows = 1 + case_below(c, 300),
                                      .blocks_per_seq = 1 + case_below(c, 20),
                                      .block_tokens = 1 + case_below(c, 20),
                                      .token_bytes = 16 * (1 + case_below(c, 20)) };
    a.blocks = 1 + case_below(c, a.blocks_per_seq);
    a.layer_bytes = a.block_tokens * a.token_bytes;
    a.memory = (char *)c; /* only ever an address */
    const uint32_t entries = a.members * a.blocks_per_seq;
    uint32_t *ids = guard_get(entries * sizeof *ids, 0);
    uint32_t *members = guard_get(a.rows * sizeof *members, 0);
    uint32_t *tokens = guard_get(a.rows * sizeof *tokens, 0);
    for (uint32_t i = 0; i < entries; i++)
        ids[i] = case_below(c, 1000);
    for (uint32_t r = 0; r < a.rows; r++) {
        members[r] = case_below(c, a.members);
        tokens[r] = 1 + case_below(c, a.blocks * a.block_tokens);
    }
    a.ids = ids;
    a.row_member = members;
    a.row_tokens = tokens;
    a.tables = guard_get((size_t)a.layers * entries * sizeof *a.tables, 0);
    a.places = guard_get((size_t)a.layers * a.rows * sizeof *a.places, 0);
    case_finish(c, kern_cuda_pages(&a, NULL));
    for (uint32_t l = 0; l < a.layers; l++) {
        for (uint32_t i = 0; i < a.members * a.blocks; i++) {
            const uint32_t m = i / a.blocks, b = i % a.blocks;
            if (a.tables[(l * a.members + m) * a.blocks_per_seq + b] != block_of(&a, l, m, b))
                case_fail(c, "layer %u, member %u, block %u: another address", l, m, b);
        }
        for (uint32_t r = 0; r < a.rows; r++) {
            const uint32_t token = tokens[r] - 1;
            const char *wanted = block_of(&a, l, members[r], token / a.block_tokens) +
                                 token % a.block_tokens * a.token_bytes;
            if (a.places[(size_t)l * a.rows + r] != wanted)
                case_fail(c, "layer %u, row %u: another place", l, r);
        }
    }
}
