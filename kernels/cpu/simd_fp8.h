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

/* total + FP8_CUTS whole cuts from column k on. */
VEC_INLINE struct vec fp8_cuts(const struct vec_fp8 *tables, const uint8_t *row,
                               const uint8_t *scales, const float *x, size_t k, struct vec total)
{
    enum { STEPS = FP8_CUTS * FP8_CUT / FP8_STEP };
    struct vec sum[FP8_CUTS], values[2][4];
    UNROLL for (uint32_t i = 0; i < FP8_CUTS; i++) sum[i] = vec_zero();
    vec_from_fp8_table(tables, row + k, values[0]);
    UNROLL for (uint32_t s = 0; s < STEPS; s++)
    {
        const uint32_t next = s + 1;
        if (next < STEPS) {
            vec_from_fp8_table(
                tables, row + k + next % FP8_CUTS * FP8_CUT + next / FP8_CUTS * FP8_STEP,
                values[next % 2]);
        }
        fp8_add(values[s % 2], x + k + s % FP8_CUTS * FP8_CUT + s / FP8_CUTS * FP8_STEP,
                &sum[s % FP8_CUTS]);
    }
    UNROLL for (uint32_t i = 0; i < FP8_CUTS; i++)
    {
        const float scale = scalar_scale(KERN_FP8_E4M3, scales, k / FP8_CUT + i);
        total = vec_fma(sum[i], vec_set1(scale), total);
    }
    return total;
}

VEC_INLINE float fp8_dot(const struct kern_matrix *w, uint32_t n, const float *x, uint32_t k0,
                         uint32_t k1)
{
    enum { STRIDE = FP8_CUTS * FP8_CUT };
    const struct vec_fp8 tables = vec_fp8_tables();
    const uint8_t *row = row_at(w, KERN_FP8_E4M3, n), *scales = scalar_scales(w, n);
    struct vec total = vec_zero();
    uint32_t k = k0;
    if (k % FP8_CUT) {
        const uint32_t end = cpu_cut_end(k, k1, FP8_CUT);
        dot_cuts(w, KERN_FP8_E4M3, true, 1, n, 1, x, k, end, &total);
        k = end;
    }
    for (; k1 - k >= STRIDE; k += STRIDE)
        total = fp8_cuts(&tables, row, scales, x, k, total);
    dot_cuts(w, KERN_FP8_E4M3, true, 1, n, 1, x, k, k1, &total);
    return vec_tree(total);
}

#else

VEC_INLINE void fp8_step(const uint8_t *from, struct vec to[4])
{
    const bool usual = vec_fp8_usual(&from, 1, 0) && vec_fp8_usual(&from, 1, 2 * KERN_LANES);
    UNROLL for (uint32_t i = 0; i < 4; i++)
        to[i] = usual ? vec_from_fp8_usual(from + i * KERN_LANES)
                      : vec_from_fp8(from + i * KERN_LANES);
}

VEC_INLINE bool fp8_by_cuts(const struct kern_matrix *w)
{
    (void)w;
    return false;
}

VEC_INLINE float fp8_dot(const struct kern_matrix *w, uint32_t n, const float *x, uint32_t k0,
                         uint32_t k1)
{
    struct vec total = vec_zero();
    dot_cuts(w, KERN_FP8_E4M3, true, 1, n, 1, x, k0, k1, &total);
    return vec_tree(total);
}

#endif
