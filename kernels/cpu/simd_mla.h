/* Absorbed latent attention. Part of simd.h.
 *
 * Heads share the cache, so a block of heads meets a block of tokens as a product does: the scores
 * are two dots (latent, rope) through the panels of simd_panel.h, and the values are added in
 * tiles of heads x sixteen columns with the sums in registers. */

enum { MLA_HEADS = 24 };

struct mla_block {
    struct panels panels;
    float s[MLA_HEADS][KERN_MLA_BLOCK_MAX];     /* scores, then exp of them */
    float shrink[MLA_HEADS];
};

VEC_INLINE void mla_scores(struct mla_block *b, const struct kern_mla *args,
                           enum kern_dtype dtype, const void *block, uint32_t head,
                           uint32_t heads, uint32_t count)
{
    const uint32_t width = args->lora + args->rope;
    const struct kern_matrix cache = { .dtype = dtype, .rows = count, .cols = width,
                                       .data = block };
    const float *q = args->q + (size_t)head * width;
    b->panels.after = NULL;
    for (uint32_t t = 0; t < count; t += PANEL_N) {
        const uint32_t tokens = count - t < PANEL_N ? count - t : PANEL_N;
        for (uint32_t part = 0; part < 2; part++) {
            block_dots(&b->panels, &cache, dtype, false, q, width, heads, t, tokens,
                       part ? args->lora : 0, part ? width : args->lora);
            for (uint32_t h = 0; h < heads; h++) {
                const float *total = b->panels.total + (size_t)h * PANEL_N * KERN_LANES;
                for (uint32_t i = 0; i < tokens; i++) {
                    const float sum = vec_tree(vec_load(total + i * KERN_LANES));
                    b->s[h][t + i] = part ? (b->s[h][t + i] + sum) * args->scale : sum;
                }
            }
        }
    }
}

/* Scores become weights against the running maximum; shrink tells by how much what was summed
 * before counts less now. */
VEC_INLINE void mla_softmax(struct mla_block *b, uint32_t heads, uint32_t count, float *highest,
                            float *sum)
{
    for (uint32_t h = 0; h < heads; h++) {
        float *s = b->s[h];
        float next = highest[h];
        for (uint32_t t = 0; t < count; t++)
            next = s[t] > next ? s[t] : next;
        b->shrink[h] = scalar_exp(highest[h] - next);
        highest[h] = next;
        const struct vec base = vec_set1(next);
        for (uint32_t t = 0; t < count; t += KERN_LANES)
            vec_store(s + t, vec_exp(vec_sub(vec_load(s + t), base)));
        float running = sum[h] * b->shrink[h];
        for (uint32_t t = 0; t < count; t++)
            running += s[t];
        sum[h] = running;
    }
}

/* out[h][i ..] for `heads` heads and sixteen columns (n of them where `part`). */
VEC_INLINE void mla_values_tile(const struct mla_block *b, const struct kern_mla *args,
                                enum kern_dtype dtype, const uint8_t *block, uint32_t heads,
                                uint32_t at, uint32_t count, uint32_t i, uint32_t n, float *out)
{
    const size_t stride = (size_t)(args->lora + args->rope) * dtype_bytes(dtype);
    struct vec acc[VEC_TILE_HEADS];
    UNROLL for (uint32_t h = 0; h < heads; h++) {
        const float *from = out + (size_t)h * args->lora + i;
        acc[h] = n < KERN_LANES ? vec_load_part(from, n) : vec_load(from);
        acc[h] = vec_mul(acc[h], vec_set1(b->shrink[at + h]));
    }
    const uint8_t *row = block + (size_t)i * dtype_bytes(dtype);
    for (uint32_t t = 0; t < count; t++, row += stride) {
        const struct vec value =
            n < KERN_LANES ? weight_load_part(dtype, row, 0, n) : weight_load(dtype, row, 0);
        UNROLL for (uint32_t h = 0; h < heads; h++)
            acc[h] = vec_fma(vec_set1(b->s[at + h][t]), value, acc[h]);
    }
    UNROLL for (uint32_t h = 0; h < heads; h++) {
        float *to = out + (size_t)h * args->lora + i;
        if (n < KERN_LANES) {
            vec_store_part(to, acc[h], n);
        } else {
            vec_store(to, acc[h]);
        }
    }
}

VEC_INLINE void mla_values(const struct mla_block *b, const struct kern_mla *args,
                           enum kern_dtype dtype, const void *block, uint32_t heads, uint32_t count,
                           float *out)
{
    const uint32_t rest = args->lora % KERN_LANES, whole = args->lora - rest;
    for (uint32_t h = 0; h < heads;) {
        const bool full = heads - h >= VEC_TILE_HEADS;
        float *to = out + (size_t)h * args->lora;
        for (uint32_t i = 0; i < whole; i += KERN_LANES) {
            if (full) {
                mla_values_tile(b, args, dtype, block, VEC_TILE_HEADS, h, count, i, KERN_LANES, to);
            } else {
                mla_values_tile(b, args, dtype, block, 1, h, count, i, KERN_LANES, to);
            }
        }
        if (rest && full) {
            mla_values_tile(b, args, dtype, block, VEC_TILE_HEADS, h, count, whole, rest, to);
        } else if (rest) {
            mla_values_tile(b, args, dtype, block, 1, h, count, whole, rest, to);
        }
        h += full ? VEC_TILE_HEADS : 1;
    }
}

VEC_INLINE void mla_heads(const struct kern_mla *args, enum kern_dtype dtype, uint32_t head,
                          uint32_t heads)
{
    _Alignas(64) struct mla_block b;
    float highest[MLA_HEADS], sum[MLA_HEADS];
    float *out = args->out + (size_t)head * args->lora;
    for (uint32_t h = 0; h < heads; h++) {
        highest[h] = -INFINITY;
        sum[h] = 0;
    }
    memset(out, 0, (size_t)heads * args->lora * sizeof *out);
    for (uint32_t begin = 0; begin < args->tokens; begin += args->block_tokens) {
        const void *block = args->blocks[begin / args->block_tokens];
        const uint32_t left = args->tokens - begin;
        const uint32_t count = left < args->block_tokens ? left : args->block_tokens;
        mla_scores(&b, args, dtype, block, head, heads, count);
        mla_softmax(&b, heads, count, highest, sum);
        mla_values(&b, args, dtype, block, heads, count, out);
    }
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t i = 0; i < args->lora; i++)
            out[(size_t)h * args->lora + i] = out[(size_t)h * args->lora + i] / sum[h];
    }
}

static void mla_heads_f32(const struct kern_mla *args, uint32_t head, uint32_t heads)
{
    mla_heads(args, KERN_F32, head, heads);
}

static void mla_heads_bf16(const struct kern_mla *args, uint32_t head, uint32_t heads)
{
    mla_heads(args, KERN_BF16, head, heads);
}

static void simd_mla(const struct kern_mla *args, uint32_t head_begin, uint32_t head_end)
{
    MUST(head_begin <= head_end && head_end <= args->heads);
    MUST(args->tokens >= 1);
    MUST(args->block_tokens >= 1 && args->block_tokens <= KERN_MLA_BLOCK_MAX);
    for (uint32_t head = head_begin; head < head_end; head += MLA_HEADS) {
        const uint32_t left = head_end - head, heads = left < MLA_HEADS ? left : MLA_HEADS;
        if (args->blocks_bf16) {
            mla_heads_bf16(args, head, heads);
        } else {
            mla_heads_f32(args, head, heads);
        }
    }
}
