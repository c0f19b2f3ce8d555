/* FP8 with a scale each 128 columns against one operand row, 64 codes at a time. Part of simd.h.
 *
 * Four cuts of one row are worked on together: their sums are independent of one another, so the
 * multiply-adds need not wait, and the row stays one stream to the prefetcher. The codes that
 * follow are decoded before the multiply-adds of those at hand. */

enum { FP8_STEP = 64, FP8_CUT = 128, FP8_CUTS = 4 };

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
    if (k < end) {
        vec_from_fp8_table_part(tables, row + k, end - k, values);
        UNROLL for (uint32_t i = 0; i < 4; i++)
        {
            const uint32_t at = k + i * KERN_LANES;
            if (at >= end) break;
            const struct vec value =
                end - at < KERN_LANES ? vec_load_part(x + at, end - at) : vec_load(x + at);
            sum = vec_fma(values[i], value, sum);
        }
    }
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

/* Row after row, each against all operand rows. */
VEC_INLINE void fp8_product(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
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
