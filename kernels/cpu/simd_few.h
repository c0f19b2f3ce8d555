/* FP8 in rows, a scale each 128 columns, against two to four operand rows where a register holds
 * half of the lanes. Part of simd.h; what fp8_product_few is to wider registers.
 *
 * A block of weight rows goes through a chunk of columns at a time, for which the operand rows stay
 * in the first-level cache: codes are decoded once, into registers, and meet all operand rows. Of
 * two operand rows, two rows of weights are worked on together: four sums alone would wait for
 * their multiply-adds. The rows of the next block are prefetched in the order of memory. */

enum { FEW_M = 4, FEW_ROWS = 16, FEW_PAIR = 2, FEW_CHUNK = 4 * FP8_CUT };

struct few {
    float total[FEW_ROWS][FEW_M][KERN_LANES];
    const struct kern_matmul *args;
    const uint8_t *after;       /* of the next block, not yet prefetched */
};

/* Sums of `rows` rows += sixteen columns. */
VEC_INLINE void few_step(uint32_t rows, uint32_t m_count, const struct vec *weights,
                         const float *x, size_t x_stride, struct vec sum[FEW_PAIR][FEW_M])
{
    UNROLL for (uint32_t m = 0; m < m_count; m++)
    {
        const struct vec value = vec_load(x + m * x_stride);
        UNROLL for (uint32_t r = 0; r < rows; r++)
            sum[r][m] = vec_fma(weights[r], value, sum[r][m]);
    }
}

/* The same of a cut that is not whole, or has a NaN. */
VEC_INLINE void few_rest(uint32_t rows, uint32_t m_count, const struct kern_matmul *args,
                         const uint8_t *const row[FEW_PAIR], uint32_t k, uint32_t end,
                         struct vec sum[FEW_PAIR][FEW_M])
{
    for (uint32_t next; k < end; k = next) {
        const uint32_t count = end - k < KERN_LANES ? end - k : KERN_LANES;
        struct vec weights[FEW_PAIR];
        float x[FEW_M][KERN_LANES];
        next = k + count;
        UNROLL for (uint32_t r = 0; r < rows; r++)
            weights[r] = weight_load_part(KERN_FP8_E4M3, row[r], k, count);
        UNROLL for (uint32_t m = 0; m < m_count; m++)
            vec_store(x[m], vec_load_part(args->x + m * args->x_stride + k, count));
        few_step(rows, m_count, weights, x[0], KERN_LANES, sum);
    }
}

/* Totals of `rows` rows from n + r on += up to a chunk, [k, end). */
VEC_INLINE void few_rows(uint32_t rows, uint32_t m_count, struct few *f, uint32_t n, uint32_t r,
                         bool first, uint32_t k, uint32_t end)
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
        const float *x = args->x + k;
        struct vec sum[FEW_PAIR][FEW_M];
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
            few_rest(rows, m_count, args, row, k, cut_end, sum);
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

/* The totals of rows [n, n + count) over [k0, k1). */
VEC_INLINE void few_block(uint32_t m_count, struct few *f, uint32_t n, uint32_t count, uint32_t k0,
                          uint32_t k1)
{
    const uint32_t together = m_count == 2 ? FEW_PAIR : 1;
    if (k0 == k1) memset(f->total, 0, sizeof f->total);
    for (uint32_t k = k0, end; k < k1; k = end) {
        end = cpu_cut_end(k, k1, FEW_CHUNK);
        for (uint32_t r = 0; r < count;) {
            const uint32_t rows = count - r < together ? 1 : together;
            for (uint32_t at = 0; at < rows * (end - k); at += FP8_STEP, f->after += FP8_STEP)
                __builtin_prefetch(f->after, 0, 2);
            if (rows == 2) few_rows(2, m_count, f, n, r, k == k0, k, end);
            else few_rows(1, m_count, f, n, r, k == k0, k, end);
            r += rows;
        }
    }
}

VEC_INLINE void few_product(uint32_t m_count, const struct kern_matmul *args, uint32_t row_begin,
                            uint32_t row_end)
{
    _Alignas(64) struct few f;
    f.args = args;
    for (uint32_t n = row_begin; n < row_end; n += FEW_ROWS) {
        const uint32_t count = row_end - n < FEW_ROWS ? row_end - n : FEW_ROWS;
        f.after = row_at(args->w, KERN_FP8_E4M3, n + count);
        for (uint32_t i = 0; i < args->k_blocks; i++) {
            few_block(m_count, &f, n, count, cpu_range_begin(args->w, i, args->k_blocks),
                      cpu_range_begin(args->w, i + 1, args->k_blocks));
            for (uint32_t m = 0; m < m_count; m++) {
                float *y = args->y + m * args->y_stride + n;
                for (uint32_t r = 0; r < count; r++) {
                    const float part = vec_tree(vec_load(f.total[r][m]));
                    y[r] = i ? y[r] + part : part;
                }
            }
        }
    }
}

static __attribute__((noinline)) void few_2(const struct kern_matmul *args, uint32_t row_begin,
                                            uint32_t row_end)
{
    few_product(2, args, row_begin, row_end);
}

static __attribute__((noinline)) void few_3(const struct kern_matmul *args, uint32_t row_begin,
                                            uint32_t row_end)
{
    few_product(3, args, row_begin, row_end);
}

static __attribute__((noinline)) void few_4(const struct kern_matmul *args, uint32_t row_begin,
                                            uint32_t row_end)
{
    few_product(4, args, row_begin, row_end);
}
