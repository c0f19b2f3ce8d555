/* Absorbed latent attention. Part of simd.h.
 *
 * Runs of tokens meet groups of eight heads. Scores are summed in tiles of heads x tokens, each
 * register of the sixteen lanes on its own; values in tiles of heads x registers of columns, over
 * all tokens of the run. A run stays in the second-level cache between the two and for all groups,
 * while the next is prefetched. Within a run scores, then weights lie as [token][head], so that
 * lanes are heads in the softmax and a token's weights share a line. */

enum { MLA_GROUP = 8, MLA_GROUPS = 4, MLA_HEADS = MLA_GROUP * MLA_GROUPS, MLA_LINE = 64 };

/* Of eight heads. Those beyond the last are summed up too, from scores of zero. */
struct mla_group {
    float p[KERN_MLA_RUN][MLA_GROUP];       /* scores, then exp of them */
    float highest[2 * MLA_GROUP];           /* twice, for two tokens at once */
    float shrink[2 * MLA_GROUP];
    float sum[MLA_GROUP];
};

struct mla_work {
    struct mla_group group[MLA_GROUPS];
    float totals[VEC_MLA_TOKENS][MLA_GROUP][KERN_LANES];
    const uint8_t *row[2 * KERN_MLA_RUN];   /* of the run, then of the next: to prefetch */
};

/* Of a run that begins at token t; beyond the last token the last one again. */
VEC_INLINE void mla_rows(const uint8_t **row, const struct kern_mla *args, uint32_t t)
{
    for (uint32_t i = 0; i < KERN_MLA_RUN; i++)
        row[i] = cpu_mla_row(args, t + i < args->tokens ? t + i : args->tokens - 1);
}

VEC_INLINE struct reg mla_load(enum kern_dtype dtype, const uint8_t *row, size_t at)
{
    row += at * dtype_bytes(dtype);
    return dtype == KERN_BF16 ? reg_from_bf16(row) : reg_load((const void *)row);
}

/* The sixteen sums of heads x tokens dots. */
VEC_INLINE void mla_score_tile(struct mla_work *work, enum kern_dtype dtype, uint32_t heads,
                               uint32_t tokens, const uint8_t *const *row, const float *q,
                               uint32_t width, uint32_t first)
{
    const uint32_t rest = width % KERN_LANES, whole = width - rest;
    const size_t bytes = dtype_bytes(dtype);
    for (uint32_t part = 0; part < KERN_LANES; part += REG_LANES) {
        struct reg sum[VEC_MLA_HEADS][VEC_MLA_TOKENS], c[VEC_MLA_TOKENS];
        UNROLL for (uint32_t h = 0; h < heads; h++) {
            UNROLL for (uint32_t t = 0; t < tokens; t++) sum[h][t] = reg_zero();
        }
        for (uint32_t k = part; k < whole; k += KERN_LANES) {
            UNROLL for (uint32_t t = 0; t < tokens; t++) c[t] = mla_load(dtype, row[t], k);
            if (part == 0 && k * bytes % MLA_LINE == 0) {
                UNROLL for (uint32_t t = 0; t < tokens; t++)
                    __builtin_prefetch(row[KERN_MLA_RUN + t] + k * bytes, 0, 2);
            }
            UNROLL for (uint32_t h = 0; h < heads; h++)
            {
                const struct reg x = reg_load(q + (size_t)h * width + k);
                UNROLL for (uint32_t t = 0; t < tokens; t++)
                    sum[h][t] = reg_fma(c[t], x, sum[h][t]);
            }
        }
        if (rest) {
            float rest_c[VEC_MLA_TOKENS][KERN_LANES], rest_q[VEC_MLA_HEADS][KERN_LANES];
            for (uint32_t t = 0; t < tokens; t++)
                vec_store(rest_c[t], weight_load_part(dtype, row[t], whole, rest));
            for (uint32_t h = 0; h < heads; h++)
                vec_store(rest_q[h], vec_load_part(q + (size_t)h * width + whole, rest));
            UNROLL for (uint32_t t = 0; t < tokens; t++) c[t] = reg_load(rest_c[t] + part);
            UNROLL for (uint32_t h = 0; h < heads; h++)
            {
                const struct reg x = reg_load(rest_q[h] + part);
                UNROLL for (uint32_t t = 0; t < tokens; t++)
                    sum[h][t] = reg_fma(c[t], x, sum[h][t]);
            }
        }
        UNROLL for (uint32_t h = 0; h < heads; h++) {
            UNROLL for (uint32_t t = 0; t < tokens; t++)
                reg_store(work->totals[t][first + h] + part, sum[h][t]);
        }
    }
}

/* Scores of up to eight heads against 1 to VEC_MLA_TOKENS tokens, here a constant. */
VEC_INLINE void mla_score_tokens(struct mla_work *work, struct mla_group *group,
                                 const struct kern_mla *args, enum kern_dtype dtype,
                                 uint32_t heads, uint32_t tokens, uint32_t t, const float *q)
{
    const uint32_t width = args->lora + args->rope;
    uint32_t h = 0;
    for (; h + VEC_MLA_HEADS <= heads; h += VEC_MLA_HEADS)
        mla_score_tile(work, dtype, VEC_MLA_HEADS, tokens, work->row + t, q + (size_t)h * width,
                       width, h);
    for (; h + VEC_MLA_HEADS / 2 <= heads; h += VEC_MLA_HEADS / 2)
        mla_score_tile(work, dtype, VEC_MLA_HEADS / 2, tokens, work->row + t,
                       q + (size_t)h * width, width, h);
    for (; h < heads; h++)
        mla_score_tile(work, dtype, 1, tokens, work->row + t, q + (size_t)h * width, width, h);
    for (uint32_t i = 0; i < tokens; i++) {
        float *s = group->p[t + i];
        vec_tree_eight(s, work->totals[i][0]);
        for (h = 0; h < MLA_GROUP; h++)
            s[h] *= args->scale;
    }
}

VEC_INLINE void mla_scores(struct mla_work *work, struct mla_group *group,
                           const struct kern_mla *args, enum kern_dtype dtype, uint32_t heads,
                           uint32_t count, const float *q)
{
    uint32_t t = 0;
    for (; t + VEC_MLA_TOKENS <= count; t += VEC_MLA_TOKENS)
        mla_score_tokens(work, group, args, dtype, heads, VEC_MLA_TOKENS, t, q);
    for (; t < count; t++)
        mla_score_tokens(work, group, args, dtype, heads, 1, t, q);
}

/* Scores become weights against the running maximum; shrink tells by how much what was summed
 * before counts less now. Two tokens at once: an odd last one is beside one that weighs nothing. */
VEC_INLINE void mla_softmax(struct mla_group *group, uint32_t count)
{
    float two[2 * MLA_GROUP];
    for (uint32_t h = 0; count % 2 && h < MLA_GROUP; h++)
        group->p[count][h] = -INFINITY;
    struct vec high = vec_load(group->highest);
    for (uint32_t t = 0; t < count; t += 2)
        high = vec_max(vec_load(group->p[t]), high);
    vec_store(two, high);
    for (uint32_t h = 0; h < MLA_GROUP; h++)
        two[h] = two[h + MLA_GROUP] = two[h] > two[h + MLA_GROUP] ? two[h] : two[h + MLA_GROUP];
    high = vec_load(two);
    vec_store(group->shrink, vec_exp(vec_sub(vec_load(group->highest), high)));
    vec_store(group->highest, high);
    for (uint32_t t = 0; t < count; t += 2)
        vec_store(group->p[t], vec_exp(vec_sub(vec_load(group->p[t]), high)));
    for (uint32_t h = 0; h < MLA_GROUP; h++)
        group->sum[h] *= group->shrink[h];
    for (uint32_t t = 0; t < count; t++) {
        for (uint32_t h = 0; h < MLA_GROUP; h++)
            group->sum[h] += group->p[t][h];
    }
}

/* out[h][i ..] for `heads` heads from `first` on and `columns` registers of columns. */
VEC_INLINE void mla_value_tile(const struct mla_work *work, const struct mla_group *group,
                               enum kern_dtype dtype, uint32_t heads, uint32_t columns,
                               uint32_t first, uint32_t count, uint32_t lora, uint32_t i,
                               float *out)
{
    struct reg sum[VEC_MLA_HEADS][VEC_MLA_COLUMNS], value[VEC_MLA_COLUMNS];
    UNROLL for (uint32_t h = 0; h < heads; h++)
    {
        const struct reg shrink = reg_set1(&group->shrink[first + h]);
        UNROLL for (uint32_t j = 0; j < columns; j++)
            sum[h][j] = reg_mul(reg_load(out + (size_t)h * lora + i + j * REG_LANES), shrink);
    }
    for (uint32_t t = 0; t < count; t++) {
        const float *p = group->p[t] + first;
        UNROLL for (uint32_t j = 0; j < columns; j++)
            value[j] = mla_load(dtype, work->row[t], i + j * REG_LANES);
        UNROLL for (uint32_t h = 0; h < heads; h++)
        {
            const struct reg weight = reg_set1(p + h);
            UNROLL for (uint32_t j = 0; j < columns; j++)
                sum[h][j] = reg_fma(weight, value[j], sum[h][j]);
        }
    }
    UNROLL for (uint32_t h = 0; h < heads; h++) {
        UNROLL for (uint32_t j = 0; j < columns; j++)
            reg_store(out + (size_t)h * lora + i + j * REG_LANES, sum[h][j]);
    }
}

/* All columns of `heads` heads, here a constant. */
VEC_INLINE void mla_value_heads(const struct mla_work *work, const struct mla_group *group,
                                enum kern_dtype dtype, uint32_t heads, uint32_t first,
                                uint32_t count, uint32_t lora, float *out)
{
    enum { STEP = VEC_MLA_COLUMNS * REG_LANES };
    uint32_t i = 0;
    for (; i + STEP <= lora; i += STEP)
        mla_value_tile(work, group, dtype, heads, VEC_MLA_COLUMNS, first, count, lora, i, out);
    for (; i + REG_LANES <= lora; i += REG_LANES)
        mla_value_tile(work, group, dtype, heads, 1, first, count, lora, i, out);
    for (; i < lora; i++) {
        for (uint32_t h = 0; h < heads; h++) {
            float sum = out[(size_t)h * lora + i] * group->shrink[first + h];
            for (uint32_t t = 0; t < count; t++)
                sum = fmaf(group->p[t][first + h], scalar_weight(dtype, work->row[t], i), sum);
            out[(size_t)h * lora + i] = sum;
        }
    }
}

VEC_INLINE void mla_values(const struct mla_work *work, const struct mla_group *group,
                           enum kern_dtype dtype, uint32_t heads, uint32_t count, uint32_t lora,
                           float *out)
{
    uint32_t h = 0;
    for (; h + VEC_MLA_HEADS <= heads; h += VEC_MLA_HEADS)
        mla_value_heads(work, group, dtype, VEC_MLA_HEADS, h, count, lora, out + (size_t)h * lora);
    for (; h + VEC_MLA_HEADS / 2 <= heads; h += VEC_MLA_HEADS / 2)
        mla_value_heads(work, group, dtype, VEC_MLA_HEADS / 2, h, count, lora,
                        out + (size_t)h * lora);
    for (; h < heads; h++)
        mla_value_heads(work, group, dtype, 1, h, count, lora, out + (size_t)h * lora);
}

VEC_INLINE void mla_heads(const struct kern_mla *args, enum kern_dtype dtype, uint32_t head,
                          uint32_t heads)
{
    _Alignas(64) struct mla_work work;
    const uint32_t width = args->lora + args->rope;
    memset(work.group, 0, sizeof work.group);
    for (uint32_t g = 0; g < MLA_GROUPS; g++) {
        for (uint32_t h = 0; h < 2 * MLA_GROUP; h++)
            work.group[g].highest[h] = -INFINITY;
    }
    memset(work.totals, 0, sizeof work.totals);
    memset(args->out + (size_t)head * args->lora, 0, (size_t)heads * args->lora * sizeof(float));
    mla_rows(work.row + KERN_MLA_RUN, args, 0);
    for (uint32_t begin = 0; begin < args->tokens; begin += KERN_MLA_RUN) {
        const uint32_t left = args->tokens - begin;
        const uint32_t count = left < KERN_MLA_RUN ? left : KERN_MLA_RUN;
        memcpy(work.row, work.row + KERN_MLA_RUN, KERN_MLA_RUN * sizeof *work.row);
        mla_rows(work.row + KERN_MLA_RUN, args, begin + KERN_MLA_RUN);
        for (uint32_t h = 0; h < heads; h += MLA_GROUP) {
            struct mla_group *group = &work.group[h / MLA_GROUP];
            const uint32_t some = heads - h < MLA_GROUP ? heads - h : MLA_GROUP;
            mla_scores(&work, group, args, dtype, some, count,
                       args->q + (size_t)(head + h) * width);
            mla_softmax(group, count);
            mla_values(&work, group, dtype, some, count, args->lora,
                       args->out + (size_t)(head + h) * args->lora);
        }
    }
    for (uint32_t h = 0; h < heads; h++) {
        float *out = args->out + (size_t)(head + h) * args->lora;
        const float sum = work.group[h / MLA_GROUP].sum[h % MLA_GROUP];
        for (uint32_t i = 0; i < args->lora; i++)
            out[i] = out[i] / sum;
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
