/* FP8 with a scale each 128 columns against one operand row, or a few, 64 codes at a time: in rows
 * or woven (kernels/weave.h). Part of simd.h; groups of woven rows against one: simd_woven.h.
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

/* What codes are and what becomes of them: values, or those of woven ones 2^-120 of their values,
 * for an x that is as much larger. */
enum fp8_form { FP8_ROWS_OF_CODES, FP8_WOVEN, FP8_WOVEN_SMALL };

VEC_INLINE void fp8_decode(enum fp8_form form, const struct vec_fp8 *tables, const uint8_t *from,
                           struct vec to[4])
{
    if (form == FP8_ROWS_OF_CODES) {
        vec_from_fp8_table(tables, from, to);
        return;
    }
    vec_from_woven_small(from, to);
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        if (form == FP8_WOVEN) to[i] = vec_mul(to[i], vec_set1(KERN_WOVEN_UP));
    }
}

VEC_INLINE void fp8_step(enum kern_dtype dtype, const uint8_t *from, struct vec to[4])
{
    const struct vec_fp8 tables = vec_fp8_tables();
    fp8_decode(dtype == KERN_FP8_WOVEN ? FP8_WOVEN : FP8_ROWS_OF_CODES, &tables, from, to);
}

VEC_INLINE bool fp8_by_cuts(const struct kern_matrix *w)
{
    return w->scale_cols == FP8_CUT;
}

/* Where the first whole step at or behind k begins: woven pieces lie where they lie. */
VEC_INLINE uint32_t fp8_aligned(enum fp8_form form, uint32_t k)
{
    return form == FP8_ROWS_OF_CODES ? k : (k + FP8_STEP - 1) / FP8_STEP * FP8_STEP;
}

VEC_INLINE void fp8_add(const struct vec values[4], const float *x, struct vec *sum)
{
    UNROLL for (uint32_t i = 0; i < 4; i++)
        *sum = vec_fma(values[i], vec_load(x + i * KERN_LANES), *sum);
}

/* Sums of `cuts` whole cuts from column k on, at most FP8_CUTS: their lines in turn, each decoded
 * before the multiply-adds of the one before it. */
VEC_INLINE void fp8_sums(uint32_t cuts, const struct vec_fp8 *tables, const uint8_t *row,
                         const float *x, size_t k, struct vec sum[FP8_CUTS])
{
    const uint32_t steps = cuts * FP8_CUT / FP8_STEP;
    struct vec values[2][4];
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
}

/* total + `cuts` whole cuts from column k on. */
VEC_INLINE struct vec fp8_cuts(uint32_t cuts, const struct vec_fp8 *tables, const uint8_t *row,
                               const uint8_t *scales, const float *x, size_t k, struct vec total)
{
    struct vec sum[FP8_CUTS];
    UNROLL for (uint32_t i = 0; i < cuts; i++) sum[i] = vec_zero();
    fp8_sums(cuts, tables, row, x, k, sum);
    UNROLL for (uint32_t i = 0; i < cuts; i++)
    {
        const float scale = scalar_scale(KERN_FP8_E4M3, scales, k / FP8_CUT + i);
        total = vec_fma(sum[i], vec_set1(scale), total);
    }
    return total;
}

/* sum + fewer than FP8_STEP columns, of woven ones within a piece. */
VEC_INLINE struct vec fp8_rest(enum fp8_form form, const struct vec_fp8 *tables,
                               const uint8_t *row, const float *x, uint32_t k, uint32_t end,
                               struct vec sum)
{
    struct vec values[4];
    const uint32_t first = form == FP8_ROWS_OF_CODES ? k : k / FP8_STEP * FP8_STEP;
    if (form == FP8_ROWS_OF_CODES) {
        vec_from_fp8_table_part(tables, row + k, end - k, values);
    } else {
        fp8_decode(form, tables, row + first, values);
    }
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        const uint32_t at = first + i * KERN_LANES;
        if (at >= end) break;
        if (at < k) continue;
        sum = vec_fma(values[i],
                      vec_load_part(x + at, end - at < KERN_LANES ? end - at : KERN_LANES), sum);
    }
    return sum;
}

/* total + part of a cut. */
VEC_INLINE struct vec fp8_part(enum fp8_form form, const struct vec_fp8 *tables,
                               const uint8_t *row, const uint8_t *scales, const float *x,
                               uint32_t k, uint32_t end, struct vec total)
{
    const float scale = scalar_scale(KERN_FP8_E4M3, scales, k / FP8_CUT);
    struct vec sum = vec_zero(), values[4];
    const uint32_t aligned = fp8_aligned(form, k) < end ? fp8_aligned(form, k) : end;
    if (k < aligned) sum = fp8_rest(form, tables, row, x, k, aligned, sum);
    for (k = aligned; end - k >= FP8_STEP; k += FP8_STEP) {
        fp8_decode(form, tables, row + k, values);
        fp8_add(values, x + k, &sum);
    }
    if (k < end) sum = fp8_rest(form, tables, row, x, k, end, sum);
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
        total = fp8_part(FP8_ROWS_OF_CODES, &tables, row, scales, x, k, end, total);
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
    if (k < k1) {
        total = fp8_part(FP8_ROWS_OF_CODES, &tables, row, scales, x, k, k1, total);
    }
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
                             const float *x, uint32_t k, uint32_t end, struct vec total[FP8_ROWS])
{
    const size_t cut = k / FP8_CUT;
    struct vec sum[FP8_ROWS];
    fp8_fetch(four, k, end);
    UNROLL for (uint32_t r = 0; r < FP8_ROWS; r++) sum[r] = vec_zero();
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
        if (k < end)
            sum[r] = fp8_rest(FP8_ROWS_OF_CODES, tables, four->row[r], x, k, end, sum[r]);
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
VEC_INLINE uint32_t fp8_fours(const struct kern_matmul *args, uint32_t row_begin,
                              uint32_t row_end)
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
        float *y = args->y + n;
        for (uint32_t i = 0; i < args->k_blocks; i++) {
            float part[FP8_ROWS];
            fp8_four_dots(&tables, &four, args->x, cpu_range_begin(args->w, i, args->k_blocks),
                          cpu_range_begin(args->w, i + 1, args->k_blocks), part);
            for (uint32_t r = 0; r < FP8_ROWS; r++) y[r] = i ? y[r] + part[r] : part[r];
        }
    }
    return n;
}

/* Several operand rows against blocks of weight rows, a chunk of columns at a time: each line of
 * weights is decoded once, into registers, and meets all operand rows; their part of the chunk
 * stays in the first-level cache over the block. The rows of the next block are prefetched in the
 * order of memory. */
enum { FP8_SHARE_M = 8, FP8_SHARE_ROWS = 16, FP8_SHARE_CHUNK = 4 * FP8_CUT };

struct fp8_share {
    float total[FP8_SHARE_ROWS][FP8_SHARE_M][KERN_LANES];
    const struct kern_matmul *args;
    const uint8_t *after; /* of the next block, not yet prefetched */
};

/* Sums of columns [k, end) within a piece, where a range begins inside of one. */
static __attribute__((noinline)) void woven_head(const struct kern_matmul *args, bool small,
                                                 uint32_t n, uint32_t k, uint32_t end,
                                                 float sums[][KERN_LANES])
{
    const struct vec_fp8 tables = vec_fp8_tables();
    const uint8_t *row = woven_row_at(args->w, n, k);
    for (uint32_t m = 0; m < args->m; m++) {
        const float *x = args->x + m * args->x_stride;
        const struct vec zero = vec_zero();
        vec_store(sums[m], small ? fp8_rest(FP8_WOVEN_SMALL, &tables, row, x, k, end, zero)
                                 : fp8_rest(FP8_WOVEN, &tables, row, x, k, end, zero));
    }
}

/* total[m] of row n += columns [k, end) times operand row m, within one chunk. */
VEC_INLINE void fp8_share_row(enum fp8_form form, uint32_t m_count, const struct vec_fp8 *tables,
                              const struct kern_matmul *args, uint32_t n, uint32_t k, uint32_t end,
                              bool first, float total[][KERN_LANES])
{
    const bool woven = form != FP8_ROWS_OF_CODES;
    const size_t apart = woven ? woven_apart(args->w, n) : 0;
    const uint8_t *row = woven ? woven_row_at(args->w, n, k) : row_at(args->w, KERN_FP8_E4M3, n);
    const uint8_t *scales = scalar_scales(args->w, n);
    struct vec all[FP8_SHARE_M];
    UNROLL for (uint32_t m = 0; m < m_count; m++) all[m] = first ? vec_zero() : vec_load(total[m]);
    while (k < end) {
        const uint32_t cut_end = cpu_cut_end(k, end, FP8_CUT);
        const struct vec scale = vec_set1(scalar_scale(KERN_FP8_E4M3, scales, k / FP8_CUT));
        const uint32_t step = fp8_aligned(form, k), aligned = step < cut_end ? step : cut_end;
        struct vec sum[FP8_SHARE_M], values[4];
        if (k < aligned) {
            float heads[FP8_SHARE_M][KERN_LANES];
            woven_head(args, form == FP8_WOVEN_SMALL, n, k, aligned, heads);
            UNROLL for (uint32_t m = 0; m < m_count; m++) sum[m] = vec_load(heads[m]);
        } else {
            UNROLL for (uint32_t m = 0; m < m_count; m++) sum[m] = vec_zero();
        }
        for (k = aligned; cut_end - k >= FP8_STEP; k += FP8_STEP) {
            fp8_decode(form, tables, row + k, values);
            UNROLL for (uint32_t i = 0; i < 4; i++)
            {
                const float *x = args->x + k + i * KERN_LANES;
                UNROLL for (uint32_t m = 0; m < m_count; m++)
                    sum[m] = vec_fma(values[i], vec_load(x + m * args->x_stride), sum[m]);
            }
        }
        if (k < cut_end) {
            UNROLL for (uint32_t m = 0; m < m_count; m++)
                sum[m] = fp8_rest(form, tables, row, args->x + m * args->x_stride, k, cut_end,
                                  sum[m]);
            k = cut_end;
        }
        UNROLL for (uint32_t m = 0; m < m_count; m++) all[m] = vec_fma(sum[m], scale, all[m]);
        row += apart;
    }
    UNROLL for (uint32_t m = 0; m < m_count; m++) vec_store(total[m], all[m]);
}

/* The totals of rows [n, n + count) over [k0, k1). */
VEC_INLINE void fp8_share_block(enum fp8_form form, struct fp8_share *s, uint32_t m_count,
                                uint32_t n, uint32_t count, uint32_t k0, uint32_t k1)
{
    const struct vec_fp8 tables = vec_fp8_tables();
    uint32_t k = k0;
    do {
        const uint32_t end = cpu_cut_end(k, k1, FP8_SHARE_CHUNK);
        for (uint32_t r = 0; r < count; r++) {
            for (uint32_t at = 0; at < end - k; at += FP8_STEP, s->after += FP8_STEP)
                __builtin_prefetch(s->after, 0, 2);
            fp8_share_row(form, m_count, &tables, s->args, n + r, k, end, k == k0, s->total[r]);
        }
        k = end;
    } while (k < k1);
}

VEC_INLINE void fp8_share_rows(enum fp8_form form, struct fp8_share *s, uint32_t m_count,
                               uint32_t row_begin, uint32_t row_end)
{
    const struct kern_matmul *args = s->args;
    for (uint32_t n = row_begin; n < row_end; n += FP8_SHARE_ROWS) {
        const uint32_t count = row_end - n < FP8_SHARE_ROWS ? row_end - n : FP8_SHARE_ROWS;
        s->after = row_at(args->w, KERN_FP8_E4M3, n + count);
        for (uint32_t i = 0; i < args->k_blocks; i++) {
            fp8_share_block(form, s, m_count, n, count,
                            cpu_range_begin(args->w, i, args->k_blocks),
                            cpu_range_begin(args->w, i + 1, args->k_blocks));
            for (uint32_t m = 0; m < m_count; m++) {
                float *y = args->y + m * args->y_stride + n;
                for (uint32_t r = 0; r < count; r++) {
                    const float part = vec_tree(vec_load(s->total[r][m]));
                    y[r] = i ? y[r] + part : part;
                }
            }
        }
    }
}

#define FP8_SHARE_OF(name, form, count) \
    static __attribute__((noinline)) void name##_##count(struct fp8_share *s, uint32_t row_begin, \
                                                         uint32_t row_end) \
    { \
        fp8_share_rows(form, s, count, row_begin, row_end); \
    }
#define FP8_SHARES_OF(name, form) \
    FP8_SHARE_OF(name, form, 2) \
    FP8_SHARE_OF(name, form, 3) \
    FP8_SHARE_OF(name, form, 4) \
    FP8_SHARE_OF(name, form, 5) \
    FP8_SHARE_OF(name, form, 6) \
    FP8_SHARE_OF(name, form, 7) \
    FP8_SHARE_OF(name, form, 8)

FP8_SHARES_OF(fp8_share, FP8_ROWS_OF_CODES)
FP8_SHARES_OF(woven_share, FP8_WOVEN)
FP8_SHARE_OF(woven_share, FP8_WOVEN, 1)
FP8_SHARES_OF(small_share, FP8_WOVEN_SMALL)
FP8_SHARE_OF(small_share, FP8_WOVEN_SMALL, 1)

/* Up to FP8_SHARE_M operand rows; one only of woven weights. */
static __attribute__((noinline)) void fp8_product_few(enum fp8_form form,
                                                      const struct kern_matmul *args,
                                                      uint32_t row_begin, uint32_t row_end)
{
    static void (*const by_count[3][FP8_SHARE_M])(struct fp8_share *s, uint32_t row_begin,
                                                  uint32_t row_end) = {
        [FP8_ROWS_OF_CODES] = { NULL, fp8_share_2, fp8_share_3, fp8_share_4, fp8_share_5,
                                fp8_share_6, fp8_share_7, fp8_share_8 },
        [FP8_WOVEN] = { woven_share_1, woven_share_2, woven_share_3, woven_share_4, woven_share_5,
                        woven_share_6, woven_share_7, woven_share_8 },
        [FP8_WOVEN_SMALL] = { small_share_1, small_share_2, small_share_3, small_share_4,
                              small_share_5, small_share_6, small_share_7, small_share_8 },
    };
    _Alignas(64) struct fp8_share s;
    s.args = args;
    by_count[form][args->m - 1](&s, row_begin, row_end);
}

/* One operand row: row after row of weights. */
VEC_INLINE void fp8_rows(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    for (uint32_t n = row_begin; n < row_end; n++) {
        float sum = 0;
        for (uint32_t i = 0; i < args->k_blocks; i++) {
            const float part = fp8_dot(args->w, n, args->x,
                                       cpu_range_begin(args->w, i, args->k_blocks),
                                       cpu_range_begin(args->w, i + 1, args->k_blocks));
            sum = i ? sum + part : part;
        }
        args->y[n] = sum;
    }
}

/* The same, four by four where they are long. */
static __attribute__((noinline)) void fp8_product_one(const struct kern_matmul *args,
                                                      uint32_t row_begin, uint32_t row_end)
{
    if (args->w->cols > FP8_LONG) row_begin = fp8_fours(args, row_begin, row_end);
    fp8_rows(args, row_begin, row_end);
}

#else

VEC_INLINE void fp8_step(enum kern_dtype dtype, const uint8_t *from, struct vec to[4])
{
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        if (dtype == KERN_FP8_WOVEN) to[i] = vec_from_woven(from, i);
    }
    if (dtype == KERN_FP8_WOVEN) return;
    const bool usual = vec_fp8_usual(&from, 1, 0) && vec_fp8_usual(&from, 1, 2 * KERN_LANES);
    UNROLL for (uint32_t i = 0; i < 4; i++)
        to[i] = usual ? vec_from_fp8_usual(from + i * KERN_LANES)
                      : vec_from_fp8(from + i * KERN_LANES);
}

#endif
