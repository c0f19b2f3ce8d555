/* Products of tiles where one instruction multiplies and adds up the four columns of a lane. Part
 * of simd_x8.h.
 *
 * A register of a tile holds four columns of sixteen rows, or of 32 in nibbles, a line two of them.
 * The four codes of an operand row are broadcast to all lanes, so a group's sums end up one row a
 * lane, and one conversion and one multiply-add serve 512 weights in groups of 32. Few operand rows
 * take whole lines: both registers share their broadcasts, and a matrix is one stream of memory.
 * Where sums of all would not have room in registers they take one half of the lines after the
 * other, and share loads and unpacking of weights.
 *
 * High nibbles need not be unpacked: the sums of whole bytes are those of the low nibbles and
 * VEC_INT4_HIGH times those of the high ones, and what is left without the former is exact. */

enum { X8_FEW = 8 };       /* operand rows, at most, that wait for weights from DRAM */

/* What is multiplied together: `halves` of a tile's lines with `count` operand rows. */
struct x8_shape {
    enum kern_dtype dtype;
    uint32_t group, digits, halves, count;
};

/* Spans of the operand rows, and the totals of each half, from `half` on, and row of its lanes
 * against them. */
struct x8_operands {
    uint32_t half;
    const uint8_t *at[VEC_X8_ROWS_MOST];
    struct vec total[VEC_X8_ROWS_MOST][X8_HALVES][X8_ROWS];
};

/* Sums of one group by operand row, digit and half. */
struct x8_sums {
    struct ivec at[VEC_X8_ROWS_MOST][KERN_X8_FULL][X8_HALVES];
};

/* What is written before is loaded before: the compiler would move a far line to the front, and the
 * processor's prefetcher follows ascending addresses (README.md). */
VEC_INLINE void x8_in_order(const struct x8_shape s)
{
    if (s.halves == X8_HALVES) __asm__ volatile("" ::: "memory");
}

/* Totals wait in memory where several rows' sums want the registers; the compiler would rather keep
 * what it needs once a group. */
VEC_INLINE void x8_put_away(const struct x8_shape s, struct x8_operands *x)
{
    if (s.count * s.digits > 8) __asm__ volatile("" : "+m"(x->total));
}

/* What sums start with; `both`: those of whole bytes. */
VEC_INLINE struct ivec x8_start(const struct x8_shape s, const struct x8_operands *x, uint32_t m,
                                uint32_t digit, uint32_t group, bool both)
{
    const uint32_t at = (both ? X8_SPAN_GROUPS + group : group) * s.digits + digit;
    return ivec_start(s.dtype, x->at[m] + s.digits * KERN_X8_SPAN + 4 * at);
}

/* The codes of a digit from `column` of the span on. */
VEC_INLINE struct ivec x8_four(const struct x8_operands *x, uint32_t m, uint32_t digit,
                               uint32_t column)
{
    return ivec_four(x->at[m] + digit * KERN_X8_SPAN + column);
}

/* What sums of a group, divided by `high`, add to a total. */
VEC_INLINE struct vec x8_end(const struct x8_shape s, const struct ivec sum[KERN_X8_FULL],
                             float high, struct vec factor, struct vec total)
{
    if (s.digits != KERN_X8_FULL) {
        const struct ivec one = high == 1 ? sum[0] : ivec_int4_lowered(sum[0]);
        return vec_fma(ivec_float(one), factor, total);
    }
    const struct ivec last = high == 1 ? sum[2] : ivec_int4_lowered(sum[2]);
    const struct vec low = vec_fma(ivec_float(sum[1]), vec_set1(X8_BASE / high), ivec_float(last));
    const struct vec value = vec_fma(ivec_float(sum[0]), vec_set1(X8_BASE_2 / high), low);
    return vec_fma(value, factor, total);
}

VEC_INLINE float x8_scale(const struct x8_shape s, const struct x8_operands *x, uint32_t m,
                          uint32_t group)
{
    float scale;
    memcpy(&scale, x->at[m] + s.digits * (KERN_X8_SPAN + 2 * 4 * X8_SPAN_GROUPS) + 4 * group,
           sizeof scale);
    return scale;
}

/* Several rows take a line's first half, and its second when the tile is read again: from DRAM it
 * comes with the first, or the stream has gaps (README.md). */
VEC_INLINE void x8_fetch_half(const struct x8_shape s, const struct x8_operands *x,
                              const uint8_t *line)
{
    const bool half = s.count > 1 && s.halves < X8_HALVES && x->half == 0;
    if (half) __builtin_prefetch(line + X8_REGISTER, 0, 3);
}

/* Group g of a span: its lines, then its scales. */
VEC_INLINE void x8_group_int8(const struct x8_shape s, const uint8_t *lines, uint32_t g,
                              struct x8_operands *x)
{
    struct x8_sums sums;
    struct vec weight[X8_HALVES];
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        UNROLL for (uint32_t d = 0; d < s.digits; d++)
        {
            const struct ivec start = x8_start(s, x, m, d, g, false);
            UNROLL for (uint32_t h = 0; h < s.halves; h++) sums.at[m][d][h] = start;
        }
    }
    for (uint32_t k = g * s.group; k < (g + 1) * s.group; k += KERN_GROUP_SMALL) {
        UNROLL for (uint32_t i = 0; i < X8_BATCH; i++)
        {
            struct ivec line[X8_HALVES];
            x8_fetch_half(s, x, lines + i * X8_LINE);
            UNROLL for (uint32_t h = 0; h < s.halves; h++)
                line[h] = ivec_int8(lines + i * X8_LINE + (x->half + h) * X8_REGISTER);
            UNROLL for (uint32_t m = 0; m < s.count; m++)
            {
                UNROLL for (uint32_t d = 0; d < s.digits; d++)
                {
                    const struct ivec four = x8_four(x, m, d, k + i * KERN_TILE_COLS);
                    UNROLL for (uint32_t h = 0; h < s.halves; h++)
                        sums.at[m][d][h] = ivec_dot(s.dtype, line[h], four, sums.at[m][d][h]);
                }
            }
            x8_in_order(s);
        }
        lines += X8_BATCH * X8_LINE;
    }
    UNROLL for (uint32_t h = 0; h < s.halves; h++)
        weight[h] = vec_from_bf16_pairs(lines, s.halves == X8_HALVES ? h : x->half);
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        const struct vec scale = vec_set1(x8_scale(s, x, m, g));
        UNROLL for (uint32_t h = 0; h < s.halves; h++)
        {
            struct ivec sum[KERN_X8_FULL];
            UNROLL for (uint32_t d = 0; d < s.digits; d++) sum[d] = sums.at[m][d][h];
            x->total[m][h][0] = x8_end(s, sum, 1, vec_mul(weight[h], scale), x->total[m][h][0]);
        }
    }
}

/* The same, of both rows of a lane. */
VEC_INLINE void x8_group_int4(const struct x8_shape s, const uint8_t *lines, uint32_t g,
                              struct x8_operands *x)
{
    struct x8_sums low, whole;
    struct vec weight[X8_HALVES][X8_ROWS];
    x8_put_away(s, x);
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        UNROLL for (uint32_t d = 0; d < s.digits; d++)
        {
            const struct ivec start = x8_start(s, x, m, d, g, false);
            const struct ivec both = x8_start(s, x, m, d, g, VEC_INT4_HIGH > 1);
            UNROLL for (uint32_t h = 0; h < s.halves; h++)
            {
                low.at[m][d][h] = start;
                whole.at[m][d][h] = both;
            }
        }
    }
    for (uint32_t k = g * s.group; k < (g + 1) * s.group; k += KERN_GROUP_SMALL) {
        UNROLL for (uint32_t i = 0; i < X8_BATCH; i++)
        {
            struct ivec first[X8_HALVES], second[X8_HALVES];
            UNROLL for (uint32_t h = 0; h < s.halves; h++)
                ivec_int4(lines + i * X8_LINE + (x->half + h) * X8_REGISTER, &first[h],
                          &second[h]);
            UNROLL for (uint32_t m = 0; m < s.count; m++)
            {
                struct ivec four[KERN_X8_FULL];
                UNROLL for (uint32_t d = 0; d < s.digits; d++)
                    four[d] = x8_four(x, m, d, k + i * KERN_TILE_COLS);
                UNROLL for (uint32_t h = 0; h < s.halves; h++)
                {
                    UNROLL for (uint32_t d = 0; d < s.digits; d++)
                        whole.at[m][d][h] =
                            ivec_dot(s.dtype, second[h], four[d], whole.at[m][d][h]);
                }
                UNROLL for (uint32_t h = 0; h < s.halves; h++)
                {
                    UNROLL for (uint32_t d = 0; d < s.digits; d++)
                        low.at[m][d][h] = ivec_dot(s.dtype, first[h], four[d], low.at[m][d][h]);
                }
            }
            x8_in_order(s);
        }
        lines += X8_BATCH * X8_LINE;
    }
    UNROLL for (uint32_t h = 0; h < s.halves; h++)
    {
        const uint8_t *pairs = lines + (x->half + h) * X8_ROWS * KERN_LANES * 2;
        UNROLL for (uint32_t v = 0; v < X8_ROWS; v++) weight[h][v] = vec_from_bf16_pairs(pairs, v);
    }
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        const struct vec scale = vec_set1(x8_scale(s, x, m, g));
        UNROLL for (uint32_t h = 0; h < s.halves; h++)
        {
            struct ivec first[KERN_X8_FULL], second[KERN_X8_FULL];
            UNROLL for (uint32_t d = 0; d < s.digits; d++)
            {
                first[d] = low.at[m][d][h];
                second[d] = ivec_int4_high(first[d], whole.at[m][d][h]);
            }
            struct vec *total = x->total[m][h];
            total[0] = x8_end(s, first, 1, vec_mul(weight[h][0], scale), total[0]);
            total[1] = x8_end(s, second, VEC_INT4_HIGH, vec_mul(weight[h][1], scale), total[1]);
        }
    }
}

VEC_INLINE void x8_span(const struct x8_shape s, const uint8_t *span, struct x8_operands *x)
{
    const size_t bytes = s.group / KERN_TILE_COLS * (size_t)X8_LINE + x8_scale_bytes(s.dtype);
    for (uint32_t g = 0; g < KERN_X8_SPAN / s.group; g++, span += bytes) {
        if (s.dtype == KERN_INT4) x8_group_int4(s, span, g, x);
        else x8_group_int8(s, span, g, x);
    }
    UNROLL for (uint32_t m = 0; m < s.count; m++) x->at[m] += kern_x8_span_bytes(s.digits);
}

/* Spans of `bytes` each from span i on that lie one after the other, up to span *end at most;
 * NULL: not even one. */
VEC_INLINE const uint8_t *x8_spans(const struct x8_tile *t, size_t bytes, uint32_t i, uint32_t *end)
{
    const size_t at = i * bytes;
    if (i >= *end) return NULL;
    if (at >= t->seam) return t->tail + (at - t->seam);
    const size_t before = (t->seam - at) / bytes;
    if (before < *end - i) *end = i + (uint32_t)before;
    return before ? t->head + at : NULL;
}

/* Halves from `half` on of a tile against operand rows from m on. */
VEC_INLINE void x8_dots(const struct x8_shape s, const struct kern_matmul *args,
                        const struct x8_tile *t, uint32_t half, uint32_t m, struct x8_operands *x)
{
    const size_t bytes = x8_span_bytes(s.dtype, s.group);
    const uint32_t whole = t->rows == kern_tile_rows(s.dtype) ? t->cols / KERN_X8_SPAN : 0;
    x->half = half;
    UNROLL for (uint32_t r = 0; r < s.count; r++)
    {
        /* The last one stands in for those beyond it. */
        const uint32_t row = m + r < args->m ? m + r : args->m - 1;
        x->at[r] = (const uint8_t *)args->x8 + row * args->x8_stride;
        UNROLL for (uint32_t h = 0; h < s.halves; h++)
        {
            UNROLL for (uint32_t v = 0; v < x8_lane_rows(s.dtype); v++)
                x->total[r][h][v] = vec_zero();
        }
    }
    for (uint32_t i = 0; i * KERN_X8_SPAN < t->cols;) {
        _Alignas(64) uint8_t filled[X8_SPAN_BYTES];
        uint32_t end = whole;
        const uint8_t *span = x8_spans(t, bytes, i, &end);
        if (!span) {
            x8_fill(filled, s.dtype, s.group, t, i * KERN_X8_SPAN);
            span = filled;
            end = i + 1;
        }
        for (; i < end; i++, span += bytes) x8_span(s, span, x);
    }
}

/* Those of sixteen rows from n on that lie in [row_begin, row_end). */
VEC_INLINE void x8_store(float *y, struct vec rows, uint32_t n, uint32_t row_begin,
                         uint32_t row_end)
{
    float all[KERN_LANES];
    if (n >= row_begin && n + KERN_LANES <= row_end) {
        vec_store(y + n, rows);
        return;
    }
    vec_store(all, rows);
    for (uint32_t r = 0; r < KERN_LANES; r++) {
        if (n + r >= row_begin && n + r < row_end) y[n + r] = all[r];
    }
}

/* A tile against operand rows from m on, a half or both at a time. */
VEC_INLINE void x8_tile_rows(const struct x8_shape s, const struct kern_matmul *args,
                             const struct x8_tile *t, uint32_t m, uint32_t row_begin,
                             uint32_t row_end)
{
    const uint32_t lane_rows = x8_lane_rows(s.dtype);
    for (uint32_t half = 0; half < X8_HALVES; half += s.halves) {
        struct x8_operands x;
        x8_dots(s, args, t, half, m, &x);
        for (uint32_t i = 0; i < s.count && m + i < args->m; i++) {
            UNROLL for (uint32_t j = 0; j < s.halves * lane_rows; j++)
                x8_store(args->y + (m + i) * args->y_stride,
                         x.total[i][j / lane_rows][j % lane_rows],
                         t->first + (half * lane_rows + j) * KERN_LANES, row_begin, row_end);
        }
    }
}

VEC_INLINE struct x8_shape x8_shape(enum kern_dtype dtype, uint32_t group, uint32_t digits,
                                    uint32_t count, bool few)
{
    const uint32_t halves = few || count == 1 ? VEC_X8_HALVES : 1;
    return (struct x8_shape){ dtype, group, digits, halves, count };
}

/* A tile against all operand rows: few take whole lines, as many as have room for their sums,
 * for they wait for DRAM, of many only the first do. Where four or eight go together, so do three
 * and seven. */
VEC_INLINE void x8_rows(enum kern_dtype dtype, uint32_t group, uint32_t digits, bool few,
                        const struct kern_matmul *args, const struct x8_tile *t,
                        uint32_t row_begin, uint32_t row_end)
{
    const uint32_t share = dtype == KERN_INT4 ? VEC_X8_INT4_SUMS : 1;
    const uint32_t most = few ? VEC_X8_SUMS / (X8_HALVES * digits * share)
                              : (digits == KERN_X8_FAST ? VEC_X8_ROWS_FAST : VEC_X8_ROWS_FULL) /
                                    share;
    uint32_t m = 0;
    for (; most > 1 && m + most <= args->m + (most > 2); m += most)
        x8_tile_rows(x8_shape(dtype, group, digits, most, few), args, t, m, row_begin, row_end);
    for (; most > 4 && m + 4 <= args->m + 1; m += 4)
        x8_tile_rows(x8_shape(dtype, group, digits, 4, few), args, t, m, row_begin, row_end);
    for (; most > 2 && m + 2 <= args->m; m += 2)
        x8_tile_rows(x8_shape(dtype, group, digits, 2, few), args, t, m, row_begin, row_end);
    for (; m < args->m; m++)
        x8_tile_rows(x8_shape(dtype, group, digits, 1, few), args, t, m, row_begin, row_end);
}

VEC_INLINE void x8_product(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t group,
                           uint32_t digits, uint32_t row_begin, uint32_t row_end)
{
    const uint32_t rows = kern_tile_rows(dtype);
    for (uint32_t n = row_begin / rows * rows; n < row_end; n += rows) {
        const struct x8_tile t = x8_tile_at(args->w, dtype, group, n);
        if (VEC_X8_SUMS > 0 && args->m <= X8_FEW)
            x8_rows(dtype, group, digits, true, args, &t, row_begin, row_end);
        else
            x8_rows(dtype, group, digits, false, args, &t, row_begin, row_end);
    }
}
