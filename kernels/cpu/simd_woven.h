/* Woven FP8 (kernels/weave.h) against operand rows that are made larger; groups of woven rows
 * against one. Part of simd.h.
 *
 * A group is one pass through memory: cut by cut, and of each cut row by row against a cut of x in
 * registers. Sums are scaled into totals in lines that every cut touches: between groups nothing is
 * looked at that has left the first-level cache. */

#if defined(VEC_FP8_TABLES)

enum { WOVEN_EIGHT = 8, WOVEN_X = FP8_CUT / KERN_LANES };

/* total + a cut of one row; its lines are loaded in the order of memory. */
VEC_INLINE struct vec woven_cut(const uint8_t *cut, const struct vec x[WOVEN_X], struct vec scale,
                                struct vec total)
{
    struct vec sum = vec_zero();
    UNROLL for (uint32_t step = 0; step < FP8_CUT / FP8_STEP; step++)
    {
        struct vec weights[4];
        vec_from_woven_once(cut + step * FP8_STEP, weights);
        UNROLL for (uint32_t i = 0; i < 4; i++)
            sum = vec_fma(weights[i], x[step * 4 + i], sum);
    }
    return vec_fma(sum, scale, total);
}

/* totals[r] += cuts [cut, end) of the rows of a whole group. */
VEC_INLINE void woven_cuts(const uint8_t *group, const uint8_t *scales, const float *x,
                           uint32_t cut, uint32_t end, float totals[][KERN_LANES])
{
    const uint8_t *at = group + (size_t)cut * KERN_WOVEN_ROWS * FP8_CUT;
    for (; cut < end; cut++) {
        const struct vec scale = vec_set1(scalar_scale(KERN_FP8_WOVEN, scales, cut));
        struct vec value[WOVEN_X];
        UNROLL for (uint32_t i = 0; i < WOVEN_X; i++)
            value[i].all = vec_once(x + cut * FP8_CUT + i * KERN_LANES);
        UNROLL_LONG for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++, at += FP8_CUT)
            vec_store(totals[r], woven_cut(at, value, scale, vec_load(totals[r])));
    }
}

/* totals[r] += a part of a cut, at the edge of a range. */
static __attribute__((noinline)) void woven_edge(const struct kern_matmul *args, uint32_t n,
                                                 uint32_t k, uint32_t end,
                                                 float totals[][KERN_LANES])
{
    const struct vec_fp8 tables = vec_fp8_tables();
    for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) {
        vec_store(totals[r], fp8_part(FP8_WOVEN_SMALL, &tables, woven_row_at(args->w, n + r, k),
                                      scalar_scales(args->w, n + r), args->x, k, end,
                                      vec_load(totals[r])));
    }
}

/* totals = a range of columns of the rows of the whole group that begins with row n. */
VEC_INLINE void woven_range(const struct kern_matmul *args, uint32_t n, uint32_t k, uint32_t end,
                            float totals[][KERN_LANES])
{
    for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) vec_store(totals[r], vec_zero());
    if (k % FP8_CUT && k < end) {
        const uint32_t edge = cpu_cut_end(k, end, FP8_CUT);
        woven_edge(args, n, k, edge, totals);
        k = edge;
    }
    woven_cuts(kern_woven_row(args->w, n), scalar_scales(args->w, n), args->x, k / FP8_CUT,
               end / FP8_CUT, totals);
    if (k < end && end % FP8_CUT) woven_edge(args, n, end / FP8_CUT * FP8_CUT, end, totals);
}

/* y of a whole group, whose rows share their scales. */
VEC_INLINE void woven_group(const struct kern_matmul *args, uint32_t n)
{
    _Alignas(64) float totals[KERN_WOVEN_ROWS][KERN_LANES];
    for (uint32_t i = 0; i < args->k_blocks; i++) {
        float part[KERN_WOVEN_ROWS], *y = args->y + n;
        woven_range(args, n, cpu_range_begin(args->w, i, args->k_blocks),
                    cpu_range_begin(args->w, i + 1, args->k_blocks), totals);
        for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r += WOVEN_EIGHT)
            vec_tree_eight(part + r, totals[r]);
        for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) y[r] = i ? y[r] + part[r] : part[r];
    }
}

/* Long rows; those that make up no whole group, or one whose scales differ, go one by one. */
static __attribute__((noinline)) void woven_groups(const struct kern_matmul *args,
                                                   uint32_t row_begin, uint32_t row_end)
{
    const struct kern_matrix *w = args->w;
    for (uint32_t n = row_begin, next; n < row_end; n = next) {
        const uint32_t end = n / KERN_WOVEN_ROWS * KERN_WOVEN_ROWS + KERN_WOVEN_ROWS;
        next = end < row_end ? end : row_end;
        if (next - n == KERN_WOVEN_ROWS && scalar_scales(w, n) == scalar_scales(w, next - 1))
            woven_group(args, n);
        else fp8_product_few(FP8_WOVEN_SMALL, args, n, next);
    }
}

/* x times 2^120, exactly; false where it would not be a float or is none. */
VEC_INLINE bool woven_enlarge(float *to, const float *x, uint32_t n)
{
    struct vec_magnitude most = vec_magnitude_zero();
    for (uint32_t k = 0; k < n; k += KERN_LANES) {
        const struct vec value = vec_load(x + k);
        most = vec_magnitude_most(most, value);
        vec_store(to + k, vec_mul(value, vec_set1(KERN_WOVEN_UP)));
    }
    return vec_magnitude_below(most, 0x1p8f);
}

enum { WOVEN_ROOM = 20480 }; /* floats for which there is room on a stack */

/* Woven weights come out 2^-120 too small: against an x that is 2^120 as large each multiply-add
 * gives the bits that the values give. */
static __attribute__((noinline)) void woven_product(const struct kern_matmul *args,
                                                    uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) float x[WOVEN_ROOM];
    const uint32_t cols = args->w->cols;
    struct kern_matmul enlarged = *args;
    enlarged.x = x;
    enlarged.x_stride = cols;
    bool fits = (size_t)args->m * cols <= WOVEN_ROOM;
    for (uint32_t m = 0; fits && m < args->m; m++)
        fits = woven_enlarge(x + (size_t)m * cols, args->x + m * args->x_stride, cols);
    if (!fits) fp8_product_few(FP8_WOVEN, args, row_begin, row_end);
    else if (args->m > 1) fp8_product_few(FP8_WOVEN_SMALL, &enlarged, row_begin, row_end);
    else if (kern_weave_rows(cols) > 1) woven_groups(&enlarged, row_begin, row_end);
    else fp8_rows(FP8_WOVEN_SMALL, &enlarged, row_begin, row_end);
}

#endif
