/* FP8 in rows with a scale each 128 columns, and weights without scales, against a few operand rows
 * where a register holds half of the lanes. Part of simd.h; what fp8_product_few is to wider
 * registers.
 *
 * A block of weight rows goes through a chunk of columns at a time, for which the operand rows stay
 * in the first-level cache: weights are decoded once, into registers, and meet up to four operand
 * rows; more come in groups of about the same size, for which the block is in the cache. Of two
 * operand rows, two rows of weights are worked on together: four sums alone would wait for their
 * multiply-adds. The rows of the next block are prefetched in the order of memory. */

enum { FEW_M = 8, FEW_GROUP = 4, FEW_ROWS = 16, FEW_PAIR = 2, FEW_CHUNK = 4 * FP8_CUT };
enum { FEW_TOGETHER = 4 };     /* rows of weights without scales that are worked on together */

struct few {
    float total[FEW_ROWS][FEW_GROUP][KERN_LANES];
    const struct kern_matmul *args;
    const float *x;             /* the group's first operand row */
    const uint8_t *after;       /* of the next block, not yet prefetched; NULL: it is */
};

/* Sums of `rows` rows += sixteen columns. */
VEC_INLINE void few_step(uint32_t rows, uint32_t m_count, const struct vec *weights,
                         const float *x, size_t x_stride, struct vec sum[FEW_PAIR][FEW_GROUP])
{
    UNROLL for (uint32_t m = 0; m < m_count; m++)
    {
        const struct vec value = vec_load(x + m * x_stride);
        UNROLL for (uint32_t r = 0; r < rows; r++)
            sum[r][m] = vec_fma(weights[r], value, sum[r][m]);
    }
}

/* The same of columns that are no whole steps, or of codes with a NaN. */
VEC_INLINE void few_rest(enum kern_dtype dtype, uint32_t rows, uint32_t m_count,
                         const struct few *f, const uint8_t *const row[FEW_PAIR], uint32_t k,
                         uint32_t end, struct vec sum[FEW_PAIR][FEW_GROUP])
{
    for (uint32_t next; k < end; k = next) {
        const uint32_t count = end - k < KERN_LANES ? end - k : KERN_LANES;
        struct vec weights[FEW_PAIR];
        float x[FEW_GROUP][KERN_LANES];
        next = k + count;
        UNROLL for (uint32_t r = 0; r < rows; r++)
            weights[r] = weight_load_part(dtype, row[r], k, count);
        UNROLL for (uint32_t m = 0; m < m_count; m++)
            vec_store(x[m], vec_load_part(f->x + m * f->args->x_stride + k, count));
        few_step(rows, m_count, weights, x[0], KERN_LANES, sum);
    }
}

/* Totals of `rows` rows of FP8 from n + r on += up to a chunk, [k, end). */
VEC_INLINE void few_rows_fp8(uint32_t rows, uint32_t m_count, struct few *f, uint32_t n,
                             uint32_t r, bool first, uint32_t k, uint32_t end)
{
    const struct kern_matmul *args = f->args;
    const uint8_t *row[FEW_PAIR], *scales[FEW_PAIR];
    UNROLL for (uint32_t i = 0; i < rows; i++)
    {
        row[i] = row_at(args->w, KERN_FP8_E4M3, n + r + i);
        scales[i] = scalar_scales(args->w, n + r + i);
    }
    for (uint32_t cut_end; k < end; k = cut_end) {
        cut_end = cpu_cut_end(k, end, FP8_CUT);
        const float *x = f->x + k;
        struct vec sum[FEW_PAIR][FEW_GROUP];
        bool numbers = cut_end - k == FP8_CUT;
        UNROLL for (uint32_t i = 0; i < rows; i++)
        {
            UNROLL for (uint32_t m = 0; m < m_count; m++) sum[i][m] = vec_zero();
            numbers = numbers && vec_fp8_numbers(row[i] + k) &&
                      vec_fp8_numbers(row[i] + k + FP8_STEP);
        }
        if (__builtin_expect(numbers, 1)) {
            UNROLL for (uint32_t at = 0; at < FP8_CUT; at += KERN_LANES)
            {
                struct vec weights[FEW_PAIR];
                UNROLL for (uint32_t i = 0; i < rows; i++)
                    weights[i] = vec_from_fp8_number(row[i] + k + at);
                few_step(rows, m_count, weights, x + at, args->x_stride, sum);
            }
        } else {
            few_rest(KERN_FP8_E4M3, rows, m_count, f, row, k, cut_end, sum);
        }
        UNROLL for (uint32_t i = 0; i < rows; i++)
        {
            const struct vec scale =
                vec_set1(scalar_scale(KERN_FP8_E4M3, scales[i], k / FP8_CUT));
            UNROLL for (uint32_t m = 0; m < m_count; m++)
            {
                float *total = f->total[r + i][m];
                vec_store(total, vec_fma(sum[i][m], scale, first ? vec_zero() : vec_load(total)));
            }
        }
        first = false;
    }
}

/* One half of the lanes over whole steps of weights without scales. */
VEC_INLINE void few_half(enum kern_dtype dtype, uint32_t rows, uint32_t m_count, uint32_t half,
                         struct few *f, const uint8_t *const *row, uint32_t r, bool first,
                         uint32_t k, uint32_t end)
{
    struct reg sum[FEW_TOGETHER][FEW_GROUP];
    const float *x[FEW_GROUP];
    UNROLL for (uint32_t m = 0; m < m_count; m++)
    {
        x[m] = f->x + m * f->args->x_stride + half * REG_LANES;
        UNROLL for (uint32_t i = 0; i < rows; i++)
            sum[i][m] = first ? reg_zero() : reg_load(f->total[r + i][m] + half * REG_LANES);
    }
    for (; end - k >= KERN_LANES; k += KERN_LANES) {
        struct reg weights[FEW_TOGETHER];
        UNROLL for (uint32_t i = 0; i < rows; i++)
        {
            const struct vec both = weight_load(dtype, row[i], k);
            weights[i].all = half ? both.high : both.low;
        }
        UNROLL for (uint32_t m = 0; m < m_count; m++)
        {
            const struct reg value = reg_load(x[m] + k);
            UNROLL for (uint32_t i = 0; i < rows; i++)
                sum[i][m] = reg_fma(weights[i], value, sum[i][m]);
        }
    }
    UNROLL for (uint32_t i = 0; i < rows; i++)
    {
        UNROLL for (uint32_t m = 0; m < m_count; m++)
            reg_store(f->total[r + i][m] + half * REG_LANES, sum[i][m]);
    }
}

/* Totals of `rows` rows from n + r on of weights without scales: one sum over the whole range. One
 * half of the lanes after the other, so that there is room for the sums of several rows, which
 * share what is loaded of the operand rows. */
VEC_INLINE void few_rows_plain(enum kern_dtype dtype, uint32_t rows, uint32_t m_count,
                               struct few *f, uint32_t n, uint32_t r, bool first, uint32_t k,
                               uint32_t end)
{
    const uint8_t *row[FEW_TOGETHER];
    const uint32_t whole = k + (end - k) / KERN_LANES * KERN_LANES;
    UNROLL for (uint32_t i = 0; i < rows; i++) row[i] = row_at(f->args->w, dtype, n + r + i);
    few_half(dtype, rows, m_count, 0, f, row, r, first, k, whole);
    few_half(dtype, rows, m_count, 1, f, row, r, first, k, whole);
    for (uint32_t i = 0; whole < end && i < rows; i++) {
        struct vec sum[FEW_PAIR][FEW_GROUP];
        UNROLL for (uint32_t m = 0; m < m_count; m++) sum[0][m] = vec_load(f->total[r + i][m]);
        few_rest(dtype, 1, m_count, f, row + i, whole, end, sum);
        UNROLL for (uint32_t m = 0; m < m_count; m++) vec_store(f->total[r + i][m], sum[0][m]);
    }
}

VEC_INLINE void few_rows(enum kern_dtype dtype, uint32_t rows, uint32_t m_count, struct few *f,
                         uint32_t n, uint32_t r, bool first, uint32_t k, uint32_t end)
{
    if (dtype == KERN_FP8_E4M3) {
        few_rows_fp8(rows, m_count, f, n, r, first, k, end);
    } else {
        few_rows_plain(dtype, rows, m_count, f, n, r, first, k, end);
    }
}

/* So many rows of weights that their sums keep both multiply-adds at work. */
VEC_INLINE uint32_t few_together(enum kern_dtype dtype, uint32_t m_count)
{
    if (dtype == KERN_FP8_E4M3) return m_count == 2 ? FEW_PAIR : 1;
    return m_count == 2 ? 4 : m_count == 3 ? 3 : 2;
}

/* The totals of rows [n, n + count) over [k0, k1). */
VEC_INLINE void few_block(enum kern_dtype dtype, uint32_t m_count, struct few *f, uint32_t n,
                          uint32_t count, uint32_t k0, uint32_t k1)
{
    const uint32_t together = few_together(dtype, m_count);
    if (k0 == k1) memset(f->total, 0, sizeof f->total);
    for (uint32_t k = k0, end; k < k1; k = end) {
        /* Cuts begin at multiples of their size, steps of weights without scales at k0. */
        end = dtype == KERN_FP8_E4M3 ? cpu_cut_end(k, k1, FEW_CHUNK)
                                     : k1 - k < FEW_CHUNK ? k1 : k + FEW_CHUNK;
        for (uint32_t r = 0; r < count;) {
            const uint32_t rows = count - r < together ? 1 : together;
            const size_t bytes = rows * row_bytes(dtype, end - k);
            for (size_t at = 0; f->after && at < bytes; at += FP8_STEP, f->after += FP8_STEP)
                __builtin_prefetch(f->after, 0, 2);
            if (rows == together) few_rows(dtype, together, m_count, f, n, r, k == k0, k, end);
            else few_rows(dtype, 1, m_count, f, n, r, k == k0, k, end);
            r += rows;
        }
    }
}

/* Rows [n, n + count) against m_count operand rows from m on. */
VEC_INLINE void few_group(enum kern_dtype dtype, uint32_t m_count, struct few *f, uint32_t m,
                          uint32_t n, uint32_t count)
{
    const struct kern_matmul *args = f->args;
    f->x = args->x + m * args->x_stride;
    for (uint32_t i = 0; i < args->k_blocks; i++) {
        few_block(dtype, m_count, f, n, count, cpu_range_begin(args->w, i, args->k_blocks),
                  cpu_range_begin(args->w, i + 1, args->k_blocks));
        for (uint32_t g = 0; g < m_count; g++) {
            float *y = args->y + (m + g) * args->y_stride + n;
            for (uint32_t r = 0; r < count; r++) {
                const float part = vec_tree(vec_load(f->total[r][g]));
                y[r] = i ? y[r] + part : part;
            }
        }
    }
    f->after = NULL;
}

VEC_INLINE void few_product(enum kern_dtype dtype, const struct kern_matmul *args,
                            uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) struct few f;
    const uint32_t groups = (args->m + FEW_GROUP - 1) / FEW_GROUP;
    f.args = args;
    for (uint32_t n = row_begin; n < row_end; n += FEW_ROWS) {
        const uint32_t count = row_end - n < FEW_ROWS ? row_end - n : FEW_ROWS;
        f.after = row_at(args->w, dtype, n + count);
        for (uint32_t i = 0; i < groups; i++) {
            const uint32_t m = args->m * i / groups, rows = args->m * (i + 1) / groups - m;
            if (rows == 2) few_group(dtype, 2, &f, m, n, count);
            else if (rows == 3) few_group(dtype, 3, &f, m, n, count);
            else few_group(dtype, 4, &f, m, n, count);
        }
    }
}

/* Whether such a product has its place here. FP8 takes so long to decode that from five operand
 * rows on a panel is better; two operand rows against other weights do no worse one by one. */
VEC_INLINE bool few_takes(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled)
{
    if (dtype == KERN_FP8_E4M3)
        return scaled && args->w->scale_cols == FP8_CUT && args->m >= 2 && args->m <= FEW_GROUP;
    return !scaled && dtype != KERN_FP8_WOVEN && args->m > 2 && args->m <= FEW_M;
}
