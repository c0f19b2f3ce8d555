/* Products. Part of simd.h.
 *
 * One operand row (decode): a few weight rows side by side, decoded in registers and used once.
 * Several operand rows: a block of weight rows and a block of operand rows, a chunk of columns at a
 * time, are decoded into panels that fit the first-level cache; tiles of them are multiplied in
 * registers, and the sixteen running sums of each output wait in `total` between chunks. */

/* Panels: multiples of every tile; one chunk is one cut of the usual 128-column scales, or less. */
enum { PANEL_N = 12, PANEL_M = 24, PANEL_K = 128 };

struct panels {
    float w[PANEL_N * PANEL_K];                     /* [tile][step][VEC_TILE_N][lane] */
    float x[PANEL_M * PANEL_K];                     /* [tile][step][tile rows][lane] */
    float total[PANEL_M * PANEL_N * KERN_LANES];    /* [m][n][lane] */
};

VEC_INLINE float scale_at(const struct kern_matrix *w, uint32_t n, uint32_t k)
{
    const size_t stride = (w->cols + w->scale_cols - 1) / w->scale_cols;
    const size_t index = (size_t)(n / w->scale_rows) * stride + k / w->scale_cols;
    return scalar_from_bits(base_le_load32((const uint8_t *)w->scales + 4 * index));
}

VEC_INLINE const uint8_t *weight_at(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n,
                                    uint32_t k)
{
    return (const uint8_t *)w->data + ((size_t)n * w->cols + k) * dtype_bytes(dtype);
}

/* out[r] = dot of row n + r with x over [k0, k1), for `count` rows. */
VEC_INLINE void dot_rows(const struct kern_matrix *w, enum kern_dtype dtype, bool scaled,
                         uint32_t count, uint32_t n, const float *x, uint32_t k0, uint32_t k1,
                         float *out)
{
    struct vec total[VEC_GEMV_ROWS];
    UNROLL for (uint32_t r = 0; r < count; r++)
        total[r] = vec_zero();
    for (uint32_t cut = k0; cut < k1;) {
        const uint32_t end = scaled ? cpu_cut_end(cut, k1, w->scale_cols) : k1;
        const uint32_t whole = cut + (end - cut) / KERN_LANES * KERN_LANES;
        struct vec lanes[VEC_GEMV_ROWS];
        const uint8_t *row[VEC_GEMV_ROWS];
        UNROLL for (uint32_t r = 0; r < count; r++) {
            lanes[r] = vec_zero();
            row[r] = weight_at(w, dtype, n + r, cut);
        }
        for (uint32_t k = cut; k < whole; k += KERN_LANES) {
            const struct vec value = operand(dtype, vec_load(x + k));
            UNROLL for (uint32_t r = 0; r < count; r++)
                lanes[r] = vec_fma(
                    weight_load(dtype, row[r] + (size_t)(k - cut) * dtype_bytes(dtype)), value,
                    lanes[r]);
        }
        if (whole < end) {
            const struct vec value = operand(dtype, vec_load_part(x + whole, end - whole));
            UNROLL for (uint32_t r = 0; r < count; r++) {
                const uint8_t *from = row[r] + (size_t)(whole - cut) * dtype_bytes(dtype);
                lanes[r] = vec_fma(weight_load_part(dtype, from, end - whole), value, lanes[r]);
            }
        }
        UNROLL for (uint32_t r = 0; r < count; r++) {
            total[r] = scaled ? vec_fma(lanes[r], vec_set1(scale_at(w, n + r, cut)), total[r])
                              : lanes[r];
        }
        cut = end;
    }
    UNROLL for (uint32_t r = 0; r < count; r++)
        out[r] = vec_tree(total[r]);
}

/* Rows [n, n + count) against one operand row, all ranges. */
VEC_INLINE void product_rows(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                             uint32_t count, uint32_t n, uint32_t m)
{
    const uint32_t cols = args->w->cols;
    const float *x = args->x + m * args->x_stride;
    float *y = args->y + m * args->y_stride + n;
    for (uint32_t i = 0; i < args->k_blocks; i++) {
        float part[VEC_GEMV_ROWS];
        dot_rows(args->w, dtype, scaled, count, n, x, cpu_range_begin(cols, i, args->k_blocks),
                 cpu_range_begin(cols, i + 1, args->k_blocks), part);
        for (uint32_t r = 0; r < count; r++)
            y[r] = i ? y[r] + part[r] : part[r];
    }
}

VEC_INLINE void product_one(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                            uint32_t m, uint32_t row_begin, uint32_t row_end)
{
    uint32_t n = row_begin;
    for (; row_end - n >= VEC_GEMV_ROWS; n += VEC_GEMV_ROWS)
        product_rows(args, dtype, scaled, VEC_GEMV_ROWS, n, m);
    for (; n < row_end; n++)
        product_rows(args, dtype, scaled, 1, n, m);
}

/* Weights of rows [n, n + count), columns [k0, k1), decoded and filled up with zeros to whole tiles
 * and whole lanes. */
VEC_INLINE void panel_fill_w(float *panel, const struct kern_matrix *w, enum kern_dtype dtype,
                             uint32_t n, uint32_t count, uint32_t k0, uint32_t k1)
{
    const uint32_t steps = (k1 - k0 + KERN_LANES - 1) / KERN_LANES;
    const uint32_t whole = (k1 - k0) / KERN_LANES, rest = (k1 - k0) % KERN_LANES;
    const uint32_t padded = (count + VEC_TILE_N - 1) / VEC_TILE_N * VEC_TILE_N;
    for (uint32_t r = 0; r < padded; r++) {
        float *to = panel + ((size_t)(r / VEC_TILE_N) * steps * VEC_TILE_N + r % VEC_TILE_N) *
                                KERN_LANES;
        uint32_t step = 0;
        if (r < count) {
            const uint8_t *from = weight_at(w, dtype, n + r, k0);
            for (; step < whole; step++) {
                vec_store(to + step * (VEC_TILE_N * KERN_LANES),
                          weight_load(dtype, from + step * KERN_LANES * dtype_bytes(dtype)));
            }
            if (rest) {
                from += step * KERN_LANES * dtype_bytes(dtype);
                vec_store(to + step++ * (VEC_TILE_N * KERN_LANES),
                          weight_load_part(dtype, from, rest));
            }
        }
        for (; step < steps; step++)
            vec_store(to + step * (VEC_TILE_N * KERN_LANES), vec_zero());
    }
}

/* Operand rows [0, count) of x, columns [k0, k1): one tile of `count` rows. */
VEC_INLINE void panel_fill_x(float *panel, enum kern_dtype dtype, const float *x, size_t x_stride,
                             uint32_t count, uint32_t k0, uint32_t k1)
{
    const uint32_t whole = (k1 - k0) / KERN_LANES, rest = (k1 - k0) % KERN_LANES;
    for (uint32_t r = 0; r < count; r++) {
        const float *from = x + r * x_stride + k0;
        float *to = panel + r * KERN_LANES;
        uint32_t step = 0;
        for (; step < whole; step++) {
            vec_store(to + (size_t)step * count * KERN_LANES,
                      operand(dtype, vec_load(from + (size_t)step * KERN_LANES)));
        }
        if (rest) {
            vec_store(to + (size_t)step * count * KERN_LANES,
                      operand(dtype, vec_load_part(from + (size_t)step * KERN_LANES, rest)));
        }
    }
}

/* rows x VEC_TILE_N outputs over one chunk. Scaled: total = fma(chunk, scale, total); else the sums
 * simply go on. `scales` has VEC_TILE_N entries. */
VEC_INLINE void tile_multiply(uint32_t rows, bool scaled, const float *w, const float *x,
                              uint32_t steps, const float *scales, float *total)
{
    struct vec sum[VEC_TILE_M][VEC_TILE_N];
    UNROLL for (uint32_t m = 0; m < rows; m++) {
        UNROLL for (uint32_t n = 0; n < VEC_TILE_N; n++)
            sum[m][n] = scaled ? vec_zero() : vec_load(total + (m * PANEL_N + n) * KERN_LANES);
    }
    for (uint32_t step = 0; step < steps; step++) {
        struct vec value[VEC_TILE_N];
        UNROLL for (uint32_t n = 0; n < VEC_TILE_N; n++)
            value[n] = vec_load(w + n * KERN_LANES);
        UNROLL for (uint32_t m = 0; m < rows; m++) {
            const struct vec operand_value = vec_load(x + m * KERN_LANES);
            UNROLL for (uint32_t n = 0; n < VEC_TILE_N; n++)
                sum[m][n] = vec_fma(value[n], operand_value, sum[m][n]);
        }
        w += VEC_TILE_N * KERN_LANES;
        x += rows * KERN_LANES;
    }
    UNROLL for (uint32_t m = 0; m < rows; m++) {
        UNROLL for (uint32_t n = 0; n < VEC_TILE_N; n++) {
            float *to = total + (m * PANEL_N + n) * KERN_LANES;
            vec_store(to, scaled ? vec_fma(sum[m][n], vec_set1(scales[n]), vec_load(to))
                                 : sum[m][n]);
        }
    }
}

/* The tiles of one operand tile against all weight tiles. */
VEC_INLINE void tiles_multiply(struct panels *p, uint32_t rows, bool scaled, uint32_t m,
                               uint32_t n_count, uint32_t steps, const float *scales)
{
    for (uint32_t n = 0; n < n_count; n += VEC_TILE_N) {
        tile_multiply(rows, scaled, p->w + (size_t)n * steps * KERN_LANES,
                      p->x + (size_t)m * steps * KERN_LANES, steps, scales + n,
                      p->total + (m * PANEL_N + n) * KERN_LANES);
    }
}

/* One chunk of columns [k0, k1) for a block of m_count x n_count outputs. */
VEC_INLINE void chunk_multiply(struct panels *p, const struct kern_matrix *w, enum kern_dtype dtype,
                               bool scaled, const float *x, size_t x_stride, uint32_t m_count,
                               uint32_t n, uint32_t n_count, uint32_t k0, uint32_t k1)
{
    const uint32_t steps = (k1 - k0 + KERN_LANES - 1) / KERN_LANES;
    float scales[PANEL_N] = { 0 };
    for (uint32_t r = 0; scaled && r < n_count; r++)
        scales[r] = scale_at(w, n + r, k0);
    panel_fill_w(p->w, w, dtype, n, n_count, k0, k1);
    for (uint32_t m = 0; m < m_count; m += VEC_TILE_M) {
        const uint32_t rows = m_count - m < VEC_TILE_M ? m_count - m : VEC_TILE_M;
        panel_fill_x(p->x + (size_t)m * steps * KERN_LANES, dtype, x + m * x_stride, x_stride, rows,
                     k0, k1);
        switch (rows) {
        case 1:
            tiles_multiply(p, 1, scaled, m, n_count, steps, scales);
            break;
        case 2:
            tiles_multiply(p, 2, scaled, m, n_count, steps, scales);
            break;
        case 3:
            tiles_multiply(p, 3, scaled, m, n_count, steps, scales);
            break;
        default:
            tiles_multiply(p, VEC_TILE_M, scaled, m, n_count, steps, scales);
        }
    }
}

/* total[m][n] = the running sums of the dots over [k0, k1) of a block of outputs. */
VEC_INLINE void block_dots(struct panels *p, const struct kern_matrix *w, enum kern_dtype dtype,
                           bool scaled, const float *x, size_t x_stride, uint32_t m_count,
                           uint32_t n, uint32_t n_count, uint32_t k0, uint32_t k1)
{
    memset(p->total, 0, (size_t)m_count * PANEL_N * KERN_LANES * sizeof *p->total);
    for (uint32_t k = k0; k < k1;) {
        const uint32_t cut = scaled ? cpu_cut_end(k, k1, w->scale_cols) : k1;
        const uint32_t end = cut - k > PANEL_K ? k + PANEL_K : cut;
        chunk_multiply(p, w, dtype, scaled, x, x_stride, m_count, n, n_count, k, end);
        k = end;
    }
}

VEC_INLINE void product_block(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                              uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) struct panels p;
    const uint32_t cols = args->w->cols;
    for (uint32_t m = 0; m < args->m; m += PANEL_M) {
        const uint32_t m_count = args->m - m < PANEL_M ? args->m - m : PANEL_M;
        for (uint32_t n = row_begin; n < row_end; n += PANEL_N) {
            const uint32_t n_count = row_end - n < PANEL_N ? row_end - n : PANEL_N;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                block_dots(&p, args->w, dtype, scaled, args->x + m * args->x_stride, args->x_stride,
                           m_count, n, n_count, cpu_range_begin(cols, i, args->k_blocks),
                           cpu_range_begin(cols, i + 1, args->k_blocks));
                for (uint32_t r = 0; r < m_count; r++) {
                    float *y = args->y + (m + r) * args->y_stride + n;
                    const float *total = p.total + (size_t)r * PANEL_N * KERN_LANES;
                    for (uint32_t c = 0; c < n_count; c++) {
                        const float part = vec_tree(vec_load(total + c * KERN_LANES));
                        y[c] = i ? y[c] + part : part;
                    }
                }
            }
        }
    }
}

VEC_INLINE void product(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                        uint32_t row_begin, uint32_t row_end)
{
    /* A cut longer than a panel would need two sets of running sums: rows one by one do it too. */
    if (args->m > 1 && !(scaled && args->w->scale_cols > PANEL_K)) {
        product_block(args, dtype, scaled, row_begin, row_end);
        return;
    }
    for (uint32_t m = 0; m < args->m; m++)
        product_one(args, dtype, scaled, m, row_begin, row_end);
}

#define PRODUCT_OF(type, name) \
    static void name(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end) \
    { \
        if (args->w->scales) { \
            product(args, type, true, row_begin, row_end); \
        } else { \
            product(args, type, false, row_begin, row_end); \
        } \
    }

PRODUCT_OF(KERN_F32, product_f32)
PRODUCT_OF(KERN_F16, product_f16)
PRODUCT_OF(KERN_BF16, product_bf16)
PRODUCT_OF(KERN_FP8_E4M3, product_fp8)

static void simd_matmul(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    MUST(args->k_blocks == 1 || args->k_blocks == KERN_RANK_BLOCKS);
    MUST(row_begin <= row_end && row_end <= args->w->rows);
    switch (args->w->dtype) {
    case KERN_F32:
        product_f32(args, row_begin, row_end);
        break;
    case KERN_F16:
        product_f16(args, row_begin, row_end);
        break;
    case KERN_BF16:
        product_bf16(args, row_begin, row_end);
        break;
    case KERN_FP8_E4M3:
        product_fp8(args, row_begin, row_end);
        break;
    case KERN_DTYPE_COUNT:
        MUST(!"a dtype of enum kern_dtype");
    }
}

/* y[c] += rows d .. d + count of w, in that order, over columns of one scale cut. */
VEC_INLINE void transpose_rows(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t count,
                               uint32_t d, const float *x, float *y)
{
    for (uint32_t cut = 0; cut < w->cols;) {
        const uint32_t end = w->scales ? cpu_cut_end(cut, w->cols, w->scale_cols) : w->cols;
        const uint32_t whole = cut + (end - cut) / KERN_LANES * KERN_LANES;
        struct vec factor[VEC_GEMV_ROWS];
        const uint8_t *row[VEC_GEMV_ROWS];
        UNROLL for (uint32_t r = 0; r < count; r++) {
            const float scaled = w->scales ? x[r] * scale_at(w, d + r, cut) : x[r];
            factor[r] = vec_set1(scalar_operand(dtype, scaled));
            row[r] = weight_at(w, dtype, d + r, 0);
        }
        for (uint32_t c = cut; c < whole; c += KERN_LANES) {
            struct vec sum = vec_load(y + c);
            UNROLL for (uint32_t r = 0; r < count; r++) {
                const uint8_t *from = row[r] + (size_t)c * dtype_bytes(dtype);
                sum = vec_fma(weight_load(dtype, from), factor[r], sum);
            }
            vec_store(y + c, sum);
        }
        if (whole < end) {
            struct vec sum = vec_load_part(y + whole, end - whole);
            UNROLL for (uint32_t r = 0; r < count; r++) {
                const uint8_t *from = row[r] + (size_t)whole * dtype_bytes(dtype);
                sum = vec_fma(weight_load_part(dtype, from, end - whole), factor[r], sum);
            }
            vec_store_part(y + whole, sum, end - whole);
        }
        cut = end;
    }
}

VEC_INLINE void transpose(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t row_begin,
                          uint32_t row_end, const float *x, float *y)
{
    uint32_t d = row_begin;
    for (uint32_t c = 0; c < w->cols; c++)
        y[c] = 0;
    for (; row_end - d >= VEC_GEMV_ROWS; d += VEC_GEMV_ROWS)
        transpose_rows(w, dtype, VEC_GEMV_ROWS, d, x + (d - row_begin), y);
    for (; d < row_end; d++)
        transpose_rows(w, dtype, 1, d, x + (d - row_begin), y);
}

static void simd_matmul_t(const struct kern_matrix *w, uint32_t row_begin, uint32_t row_end,
                          const float *x, float *y)
{
    MUST(row_begin <= row_end && row_end <= w->rows);
    switch (w->dtype) {
    case KERN_F32:
        transpose(w, KERN_F32, row_begin, row_end, x, y);
        break;
    case KERN_F16:
        transpose(w, KERN_F16, row_begin, row_end, x, y);
        break;
    case KERN_BF16:
        transpose(w, KERN_BF16, row_begin, row_end, x, y);
        break;
    case KERN_FP8_E4M3:
        transpose(w, KERN_FP8_E4M3, row_begin, row_end, x, y);
        break;
    case KERN_DTYPE_COUNT:
        MUST(!"a dtype of enum kern_dtype");
    }
}
