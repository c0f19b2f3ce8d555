/* FP8 with a scale each 128 columns against one operand row, 64 codes at a time. Part of simd.h.
 *
 * Four cuts of one row are worked on together: their sums are independent of one another, so the
 * multiply-adds need not wait, and the row stays one stream to the prefetcher. The codes that
 * follow are decoded before the multiply-adds of those at hand.
 *
 * Beyond FP8_LONG columns a row of x takes most of the first-level cache, and each line of weights
 * would wait for four of x: there four neighbouring rows share x, and the next four are prefetched
 * in the order of memory. */

enum { FP8_STEP = 64, FP8_CUT = 128, FP8_CUTS = 4, FP8_ROWS = 4, FP8_LONG = 4096 };

#if defined(VEC_FP8_TABLES)

VEC_INLINE void fp8_step(const uint8_t *from, struct vec to[4])
{
    const struct vec_fp8 tables = vec_fp8_tables();
    vec_from_fp8_table(&tables, from, to);
}

VEC_INLINE bool fp8_by_cuts(const struct kern_matrix *w)
{
    return w->scale_cols == FP8_CUT;
}

VEC_INLINE void fp8_add(const struct vec values[4], const float *x, struct vec *sum)
{
    UNROLL for (uint32_t i = 0; i < 4; i++)
        *sum = vec_fma(values[i], vec_load(x + i * KERN_LANES), *sum);
}

/* total + `cuts` whole cuts from column k on, at most FP8_CUTS. */
VEC_INLINE struct vec fp8_cuts(uint32_t cuts, const struct vec_fp8 *tables, const uint8_t *row,
                               const uint8_t *scales, const float *x, size_t k, struct vec total)
{
    const uint32_t steps = cuts * FP8_CUT / FP8_STEP;
    struct vec sum[FP8_CUTS], values[2][4];
    UNROLL for (uint32_t i = 0; i < cuts; i++) sum[i] = vec_zero();
    vec_from_fp8_table(tables, row + k, values[0]);
    UNROLL for (uint32_t s = 0; s < steps; s++)
    {
        const uint32_t next = s + 1;
        if (next < steps) {
            vec_from_fp8_table(tables, row + k + next % cuts * FP8_CUT + next / cuts * FP8_STEP,
                               values[next % 2]);
        }
        fp8_add(values[s % 2], x + k + s % cuts * FP8_CUT + s / cuts * FP8_STEP, &sum[s % cuts]);
    }
    UNROLL for (uint32_t i = 0; i < cuts; i++)
    {
        const float scale = scalar_scale(KERN_FP8_E4M3, scales, k / FP8_CUT + i);
        total = vec_fma(sum[i], vec_set1(scale), total);
    }
    return total;
}

/* sum + fewer than FP8_STEP columns. */
VEC_INLINE struct vec fp8_rest(const struct vec_fp8 *tables, const uint8_t *row, const float *x,
                               uint32_t k, uint32_t end, struct vec sum)
{
    struct vec values[4];
    vec_from_fp8_table_part(tables, row + k, end - k, values);
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        const uint32_t at = k + i * KERN_LANES;
        if (at >= end) break;
        sum = vec_fma(values[i],
                      vec_load_part(x + at, end - at < KERN_LANES ? end - at : KERN_LANES), sum);
    }
    return sum;
}

/* total + part of a cut. */
VEC_INLINE struct vec fp8_part(const struct vec_fp8 *tables, const uint8_t *row,
                               const uint8_t *scales, const float *x, uint32_t k, uint32_t end,
                               struct vec total)
{
    const float scale = scalar_scale(KERN_FP8_E4M3, scales, k / FP8_CUT);
    struct vec sum = vec_zero(), values[4];
    for (; end - k >= FP8_STEP; k += FP8_STEP) {
        vec_from_fp8_table(tables, row + k, values);
        fp8_add(values, x + k, &sum);
    }
    if (k < end) sum = fp8_rest(tables, row, x, k, end, sum);
    return vec_fma(sum, vec_set1(scale), total);
}

VEC_INLINE float fp8_dot(const struct kern_matrix *w, uint32_t n, const float *x, uint32_t k0,
                         uint32_t k1)
{
    enum { STRIDE = FP8_CUTS * FP8_CUT };
    const struct vec_fp8 tables = vec_fp8_tables();
    const uint8_t *row = row_at(w, KERN_FP8_E4M3, n), *scales = scalar_scales(w, n);
    struct vec total = vec_zero();
    uint32_t k = k0;
    if (k % FP8_CUT && k < k1) {
        const uint32_t end = cpu_cut_end(k, k1, FP8_CUT);
        total = fp8_part(&tables, row, scales, x, k, end, total);
        k = end;
    }
    for (; k1 - k >= STRIDE; k += STRIDE)
        total = fp8_cuts(FP8_CUTS, &tables, row, scales, x, k, total);
    if (k1 - k >= 2 * FP8_CUT) {
        total = fp8_cuts(2, &tables, row, scales, x, k, total);
        k += 2 * FP8_CUT;
    }
    if (k1 - k >= FP8_CUT) {
        total = fp8_cuts(1, &tables, row, scales, x, k, total);
        k += FP8_CUT;
    }
    if (k < k1) total = fp8_part(&tables, row, scales, x, k, k1, total);
    return vec_tree(total);
}

/* Four neighbouring rows that share the loads of x, and their scales. */
struct fp8_four {
    const uint8_t *row[FP8_ROWS], *scales[FP8_ROWS];
    const uint8_t *after; /* the first byte behind them */
};

/* The next four rows in the order of memory, as far as these have come. */
VEC_INLINE void fp8_fetch(const struct fp8_four *four, uint32_t k, uint32_t end)
{
    for (size_t at = FP8_ROWS * (size_t)k; at < FP8_ROWS * (size_t)end; at += FP8_STEP)
        __builtin_prefetch(four->after + at, 0, 2);
}

/* Up to a cut's end: total[r] = fma(row r times x over [k, end), scale, total[r]). */
VEC_INLINE void fp8_four_cut(const struct vec_fp8 *tables, const struct fp8_four *four,
                             const float *x, uint32_t k, uint32_t end,
                             struct vec total[FP8_ROWS])
{
    const size_t cut = k / FP8_CUT;
    struct vec sum[FP8_ROWS];
    UNROLL for (uint32_t r = 0; r < FP8_ROWS; r++) sum[r] = vec_zero();
    fp8_fetch(four, k, end);
    for (; end - k >= FP8_STEP; k += FP8_STEP) {
        struct vec value[4];
        UNROLL for (uint32_t i = 0; i < 4; i++) value[i].all = vec_once(x + k + i * KERN_LANES);
        UNROLL for (uint32_t r = 0; r < FP8_ROWS; r++)
        {
            struct vec weights[4];
            vec_from_fp8_table(tables, four->row[r] + k, weights);
            UNROLL for (uint32_t i = 0; i < 4; i++) sum[r] = vec_fma(weights[i], value[i], sum[r]);
        }
    }
    UNROLL for (uint32_t r = 0; r < FP8_ROWS; r++)
    {
        const float scale = scalar_scale(KERN_FP8_E4M3, four->scales[r], cut);
        if (k < end) sum[r] = fp8_rest(tables, four->row[r], x, k, end, sum[r]);
        total[r] = vec_fma(sum[r], vec_set1(scale), total[r]);
    }
}

VEC_INLINE void fp8_four_dots(const struct vec_fp8 *tables, const struct fp8_four *four,
                              const float *x, uint32_t k0, uint32_t k1, float out[FP8_ROWS])
{
    struct vec total[FP8_ROWS];
    UNROLL for (uint32_t r = 0; r < FP8_ROWS; r++) total[r] = vec_zero();
    for (uint32_t k = k0; k < k1;) {
        const uint32_t end = cpu_cut_end(k, k1, FP8_CUT);
        fp8_four_cut(tables, four, x, k, end, total);
        k = end;
    }
    UNROLL for (uint32_t r = 0; r < FP8_ROWS; r++) out[r] = vec_tree(total[r]);
}

/* Rows four by four; returns the first that is left. */
static __attribute__((noinline)) uint32_t fp8_fours(const struct kern_matmul *args,
                                                    uint32_t row_begin, uint32_t row_end)
{
    const struct vec_fp8 tables = vec_fp8_tables();
    uint32_t n = row_begin;
    for (; row_end - n >= FP8_ROWS; n += FP8_ROWS) {
        struct fp8_four four;
        UNROLL for (uint32_t r = 0; r < FP8_ROWS; r++)
        {
            four.row[r] = row_at(args->w, KERN_FP8_E4M3, n + r);
            four.scales[r] = scalar_scales(args->w, n + r);
        }
        four.after = four.row[FP8_ROWS - 1] + args->w->cols;
        for (uint32_t m = 0; m < args->m; m++) {
            float *y = args->y + m * args->y_stride + n;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                float part[FP8_ROWS];
                fp8_four_dots(&tables, &four, args->x + m * args->x_stride,
                              cpu_range_begin(args->w, i, args->k_blocks),
                              cpu_range_begin(args->w, i + 1, args->k_blocks), part);
                for (uint32_t r = 0; r < FP8_ROWS; r++) y[r] = i ? y[r] + part[r] : part[r];
            }
        }
    }
    return n;
}

/* Row after row, or the few that are left of long ones, each against all operand rows. */
VEC_INLINE void fp8_product(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    if (args->w->cols > FP8_LONG) row_begin = fp8_fours(args, row_begin, row_end);
    for (uint32_t n = row_begin; n < row_end; n++) {
        for (uint32_t m = 0; m < args->m; m++) {
            float sum = 0;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                const float part = fp8_dot(args->w, n, args->x + m * args->x_stride,
                                           cpu_range_begin(args->w, i, args->k_blocks),
                                           cpu_range_begin(args->w, i + 1, args->k_blocks));
                sum = i ? sum + part : part;
            }
            args->y[m * args->y_stride + n] = sum;
        }
    }
}

#else

VEC_INLINE void fp8_step(const uint8_t *from, struct vec to[4])
{
    const bool usual = vec_fp8_usual(&from, 1, 0) && vec_fp8_usual(&from, 1, 2 * KERN_LANES);
    UNROLL for (uint32_t i = 0; i < 4; i++)
        to[i] = usual ? vec_from_fp8_usual(from + i * KERN_LANES)
                      : vec_from_fp8(from + i * KERN_LANES);
}

#endif
