/* Products. Part of simd.h.
 *
 * One operand row (decode): a few weight rows side by side, decoded in registers and used once.
 * Several operand rows: a block of weight rows is decoded, a chunk of columns at a time, into a
 * panel that fits the first-level cache; tiles of outputs are summed in registers over the chunk,
 * and the sixteen running sums of each output wait in `total` between chunks. */

/* The panel and two operand tiles share 32 KiB. Multiples of every tile. */
enum { PANEL_N = 12, PANEL_M = 48, PANEL_STEPS = 32, PANEL_K = PANEL_STEPS * KERN_LANES };

/* Up to so many operand rows decoding again is cheaper than a panel (README.md). */
enum { PRODUCT_FEW = 2 };

/* A chunk: columns [k0, k1) as cuts, each filled up to whole steps of sixteen columns. */
struct chunk {
    uint32_t k0, k1, steps, cuts;
    uint32_t cut_end[PANEL_STEPS];
    float scale[PANEL_STEPS][PANEL_N];
};

struct panels {
    float w[PANEL_N * PANEL_K];                     /* [tile][step][VEC_TILE_N][lane] */
    float total[PANEL_M * PANEL_N * KERN_LANES];    /* [m][n][lane] */
    struct chunk chunk;
};

VEC_INLINE float scale_at(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n,
                          uint32_t k)
{
    return scalar_scale(dtype, scalar_scales(w, n), k / w->scale_cols);
}

VEC_INLINE const uint8_t *row_at(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n)
{
    return (const uint8_t *)w->data + n * row_bytes(dtype, w->cols);
}

/* Sixteen columns from k on, added to the lanes of each row. */
VEC_INLINE void dot_step(enum kern_dtype dtype, uint32_t count, const uint8_t *const *row, size_t k,
                         const float *x, struct vec *lanes)
{
    const struct vec value = vec_load(x + k);
    UNROLL for (uint32_t r = 0; r < count; r++) lanes[r] =
        vec_fma(weight_load(dtype, row[r], k), value, lanes[r]);
}

/* Adds row n + r * step times x over [k0, k1) to total[r], for `count` rows; without scales total
 * must be zero. */
VEC_INLINE void dot_cuts(const struct kern_matrix *w, enum kern_dtype dtype, bool scaled,
                         uint32_t count, uint32_t n, uint32_t step, const float *x, uint32_t k0,
                         uint32_t k1, struct vec *total)
{
    const uint8_t *row[VEC_GEMV_ROWS], *scales[VEC_GEMV_ROWS];
    size_t scale_index = scaled ? k0 / w->scale_cols : 0;
    UNROLL for (uint32_t r = 0; r < count; r++) {
        row[r] = row_at(w, dtype, n + r * step);
        scales[r] = scalar_scales(w, n + r * step);
    }
    for (size_t cut = k0; cut < k1; scale_index++) {
        const size_t next = scaled ? (scale_index + 1) * w->scale_cols : k1;
        const size_t end = next < k1 ? next : k1;
        const size_t whole = cut + (end - cut) / KERN_LANES * KERN_LANES;
        struct vec lanes[VEC_GEMV_ROWS];
        UNROLL for (uint32_t r = 0; r < count; r++)
            lanes[r] = vec_zero();
        size_t k = cut;
        /* FP8 codes are nearly always normal numbers, whose decoding is shorter. */
        for (; dtype == KERN_FP8_E4M3 && k + 2 * KERN_LANES <= whole; k += 2 * KERN_LANES) {
            if (__builtin_expect(!vec_fp8_usual(row, count, k), 0)) {
                dot_step(dtype, count, row, k, x, lanes);
                dot_step(dtype, count, row, k + KERN_LANES, x, lanes);
                continue;
            }
            for (size_t i = k; i < k + 2 * KERN_LANES; i += KERN_LANES) {
                const struct vec value = vec_load(x + i);
                UNROLL for (uint32_t r = 0; r < count; r++)
                    lanes[r] = vec_fma(vec_from_fp8_usual(row[r] + i), value, lanes[r]);
            }
        }
        for (; k < whole; k += KERN_LANES)
            dot_step(dtype, count, row, k, x, lanes);
        if (whole < end) {
            const uint32_t rest = (uint32_t)(end - whole);
            const struct vec value = vec_load_part(x + whole, rest);
            UNROLL for (uint32_t r = 0; r < count; r++) {
                const struct vec weight = weight_load_part(dtype, row[r], whole, rest);
                lanes[r] = vec_fma(weight, value, lanes[r]);
            }
        }
        UNROLL for (uint32_t r = 0; r < count; r++) {
            const struct vec scale =
                vec_set1(scaled ? scalar_scale(dtype, scales[r], scale_index) : 1.0f);
            total[r] = scaled ? vec_fma(lanes[r], scale, total[r]) : lanes[r];
        }
        cut = end;
    }
}

#include "kernels/cpu/simd_fp8.h"

/* out[r] = dot of row n + r * step with x over [k0, k1), for `count` rows. */
VEC_INLINE void dot_rows(const struct kern_matrix *w, enum kern_dtype dtype, bool scaled,
                         uint32_t count, uint32_t n, uint32_t step, const float *x, uint32_t k0,
                         uint32_t k1, float *out)
{
    struct vec total[VEC_GEMV_ROWS];
    UNROLL for (uint32_t r = 0; r < count; r++) total[r] = vec_zero();
    dot_cuts(w, dtype, scaled, count, n, step, x, k0, k1, total);
    UNROLL for (uint32_t r = 0; r < count; r++)
        out[r] = vec_tree(total[r]);
}

/* Rows n, n + step, ... against all operand rows: after the first the weights are in the cache.
 */
VEC_INLINE void product_rows(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                             uint32_t count, uint32_t n, uint32_t step)
{
    for (uint32_t m = 0; m < args->m; m++) {
        const float *x = args->x + m * args->x_stride;
        float *y = args->y + m * args->y_stride + n;
        for (uint32_t i = 0; i < args->k_blocks; i++) {
            float part[VEC_GEMV_ROWS];
            dot_rows(args->w, dtype, scaled, count, n, step, x,
                     cpu_range_begin(args->w, i, args->k_blocks),
                     cpu_range_begin(args->w, i + 1, args->k_blocks), part);
            for (uint32_t r = 0; r < count; r++)
                y[r * step] = i ? y[r * step] + part[r] : part[r];
        }
    }
}

/* The rows side by side lie a quarter of the range apart: four long streams are what the
 * processor's prefetcher follows, neighbouring rows are four short ones that start anew each time.
 */
VEC_INLINE void product_few(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                            uint32_t row_begin, uint32_t row_end)
{
#if defined(VEC_FP8_TABLES)
    if (dtype == KERN_FP8_E4M3 && scaled && fp8_by_cuts(args->w)) {
        fp8_product(args, row_begin, row_end);
        return;
    }
#endif
    const uint32_t quarter = (row_end - row_begin) / VEC_GEMV_ROWS;
    uint32_t n = row_begin + quarter * VEC_GEMV_ROWS;
    for (uint32_t i = 0; i < quarter; i++)
        product_rows(args, dtype, scaled, VEC_GEMV_ROWS, row_begin + i, quarter);
    if (row_end - n >= 2) {
        product_rows(args, dtype, scaled, 2, n, 1);
        n += 2;
    }
    if (n < row_end)
        product_rows(args, dtype, scaled, 1, n, 1);
}

/* The next chunk from k0 on: as many cuts as fit. */
VEC_INLINE void chunk_begin(struct chunk *chunk, const struct kern_matrix *w, enum kern_dtype dtype,
                            bool scaled, uint32_t n, uint32_t n_count, uint32_t k0, uint32_t k1)
{
    chunk->k0 = k0;
    chunk->steps = chunk->cuts = 0;
    while (k0 < k1 && chunk->steps < PANEL_STEPS) {
        uint32_t end = scaled ? cpu_cut_end(k0, k1, w->scale_cols) : k1;
        if (!scaled && end - k0 > PANEL_K)
            end = k0 + PANEL_K;
        const uint32_t steps = (end - k0 + KERN_LANES - 1) / KERN_LANES;
        if (chunk->steps + steps > PANEL_STEPS)
            break;
        for (uint32_t r = 0; scaled && r < PANEL_N; r++)
            chunk->scale[chunk->cuts][r] = r < n_count ? scale_at(w, dtype, n + r, k0) : 0.0f;
        chunk->cut_end[chunk->cuts++] = end;
        chunk->steps += steps;
        k0 = end;
    }
    chunk->k1 = k0;
}

/* Columns [k, end) of one row, decoded; sixteen floats every `stride`. Returns where the next
 * go. */
VEC_INLINE float *cut_decode(float *to, size_t stride, enum kern_dtype dtype, const uint8_t *row,
                             uint32_t k, uint32_t end)
{
    for (; dtype == KERN_FP8_E4M3 && k + FP8_STEP <= end; k += FP8_STEP, to += 4 * stride) {
        struct vec values[4];
        fp8_step(row + k, values);
        UNROLL for (uint32_t i = 0; i < 4; i++) vec_store(to + i * stride, values[i]);
    }
    for (; dtype == KERN_FP8_E4M3 && k + 2 * KERN_LANES <= end; k += 2 * KERN_LANES) {
        const bool usual = vec_fp8_usual(&row, 1, k);
        for (uint32_t i = k; i < k + 2 * KERN_LANES; i += KERN_LANES, to += stride)
            vec_store(to, usual ? vec_from_fp8_usual(row + i) : vec_from_fp8(row + i));
    }
    for (; k + KERN_LANES <= end; k += KERN_LANES, to += stride)
        vec_store(to, weight_load(dtype, row, k));
    if (k < end) {
        vec_store(to, weight_load_part(dtype, row, k, end - k));
        to += stride;
    }
    return to;
}

/* Rows [n, n + count) over the chunk, filled up with a row of zeros to an even number. */
VEC_INLINE void panel_fill(float *panel, const struct chunk *chunk, const struct kern_matrix *w,
                           enum kern_dtype dtype, uint32_t n, uint32_t count)
{
    const size_t stride = VEC_TILE_N * KERN_LANES;
    const uint32_t padded = (count + 1) / 2 * 2;
    for (uint32_t r = 0; r < padded; r++) {
        float *to = panel + (size_t)(r / VEC_TILE_N) * chunk->steps * stride +
                    r % VEC_TILE_N * KERN_LANES;
        uint32_t k = chunk->k0;
        for (uint32_t cut = 0; r < count && cut < chunk->cuts; cut++) {
            to = cut_decode(to, stride, dtype, row_at(w, dtype, n + r), k, chunk->cut_end[cut]);
            k = chunk->cut_end[cut];
        }
        for (uint32_t step = 0; r >= count && step < chunk->steps; step++)
            vec_store(to + step * stride, vec_zero());
    }
}

/* rows x cols outputs over the chunk; x points at its first column. Scaled: for each cut
 * total = fma(cut, scale, total); else the sums simply go on. */
VEC_INLINE void tile_multiply(uint32_t rows, uint32_t cols, bool scaled, const struct chunk *chunk,
                              uint32_t n, const float *w, const float *x, size_t x_stride,
                              float *total)
{
    struct vec sum[VEC_TILE_M][VEC_TILE_N];
    uint32_t k = chunk->k0;
    for (uint32_t cut = 0; cut < chunk->cuts; cut++) {
        const uint32_t count = chunk->cut_end[cut] - k;
        UNROLL for (uint32_t m = 0; m < rows; m++) {
            UNROLL for (uint32_t i = 0; i < cols; i++)
                sum[m][i] = scaled ? vec_zero() : vec_load(total + (m * PANEL_N + i) * KERN_LANES);
        }
        for (uint32_t step = 0; step < count / KERN_LANES; step++) {
            vec_tile_step(rows, cols, sum, w, x, x_stride);
            w += VEC_TILE_N * KERN_LANES;
            x += KERN_LANES;
        }
        if (count % KERN_LANES) {
            float rest[VEC_TILE_M * KERN_LANES];
            for (uint32_t m = 0; m < rows; m++)
                vec_store(rest + m * KERN_LANES,
                          vec_load_part(x + m * x_stride, count % KERN_LANES));
            vec_tile_step(rows, cols, sum, w, rest, KERN_LANES);
            w += VEC_TILE_N * KERN_LANES;
            x += count % KERN_LANES;
        }
        UNROLL for (uint32_t m = 0; m < rows; m++) {
            UNROLL for (uint32_t i = 0; i < cols; i++) {
                float *to = total + (m * PANEL_N + i) * KERN_LANES;
                const struct vec scale = vec_set1(scaled ? chunk->scale[cut][n + i] : 1.0f);
                vec_store(to, scaled ? vec_fma(sum[m][i], scale, vec_load(to)) : sum[m][i]);
            }
        }
        k = chunk->cut_end[cut];
    }
}

/* One tile of operand rows against all weight tiles, of which the last may be narrower. */
VEC_INLINE void tiles_multiply(struct panels *p, uint32_t rows, bool scaled, uint32_t m,
                               uint32_t n_count, const float *x, size_t x_stride)
{
    const uint32_t widest = VEC_TILE_N, narrow = widest < 4 ? widest : 4;
    for (uint32_t n = 0; n < n_count; n += VEC_TILE_N) {
        const float *w = p->w + (size_t)n * p->chunk.steps * KERN_LANES;
        float *total = p->total + (m * PANEL_N + n) * KERN_LANES;
        if (widest > narrow && n_count - n > narrow) {
            tile_multiply(rows, widest, scaled, &p->chunk, n, w, x, x_stride, total);
        } else if (n_count - n > 2) {
            tile_multiply(rows, narrow, scaled, &p->chunk, n, w, x, x_stride, total);
        } else {
            tile_multiply(rows, 2, scaled, &p->chunk, n, w, x, x_stride, total);
        }
    }
}

VEC_INLINE void chunk_tiles(struct panels *p, bool scaled, const float *x, size_t x_stride,
                            uint32_t m_count, uint32_t n_count)
{
    for (uint32_t m = 0; m < m_count; m += VEC_TILE_M, x += VEC_TILE_M * x_stride) {
        switch (m_count - m < VEC_TILE_M ? m_count - m : VEC_TILE_M) {
        case 1:
            tiles_multiply(p, 1, scaled, m, n_count, x, x_stride);
            break;
        case 2:
            tiles_multiply(p, 2, scaled, m, n_count, x, x_stride);
            break;
        case 3:
            tiles_multiply(p, 3, scaled, m, n_count, x, x_stride);
            break;
        default:
            tiles_multiply(p, VEC_TILE_M, scaled, m, n_count, x, x_stride);
        }
    }
}

/* The types of weights share these: a panel holds floats. */
static __attribute__((noinline)) void chunk_tiles_plain(struct panels *p, const float *x,
                                                        size_t x_stride, uint32_t m_count,
                                                        uint32_t n_count)
{
    chunk_tiles(p, false, x, x_stride, m_count, n_count);
}

static __attribute__((noinline)) void chunk_tiles_scaled(struct panels *p, const float *x,
                                                         size_t x_stride, uint32_t m_count,
                                                         uint32_t n_count)
{
    chunk_tiles(p, true, x, x_stride, m_count, n_count);
}

/* One chunk for a block of m_count x n_count outputs; x points at its first column. */
VEC_INLINE void chunk_multiply(struct panels *p, const struct kern_matrix *w, enum kern_dtype dtype,
                               bool scaled, const float *x, size_t x_stride, uint32_t m_count,
                               uint32_t n, uint32_t n_count)
{
    panel_fill(p->w, &p->chunk, w, dtype, n, n_count);
    if (scaled) {
        chunk_tiles_scaled(p, x, x_stride, m_count, n_count);
    } else {
        chunk_tiles_plain(p, x, x_stride, m_count, n_count);
    }
}

/* total[m][n] = the running sums of the dots over [k0, k1) of a block of outputs. */
VEC_INLINE void block_dots(struct panels *p, const struct kern_matrix *w, enum kern_dtype dtype,
                           bool scaled, const float *x, size_t x_stride, uint32_t m_count,
                           uint32_t n, uint32_t n_count, uint32_t k0, uint32_t k1)
{
    memset(p->total, 0, (size_t)m_count * PANEL_N * KERN_LANES * sizeof *p->total);
    while (k0 < k1) {
        chunk_begin(&p->chunk, w, dtype, scaled, n, n_count, k0, k1);
        chunk_multiply(p, w, dtype, scaled, x + k0, x_stride, m_count, n, n_count);
        k0 = p->chunk.k1;
    }
}

VEC_INLINE void product_block(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                              uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) struct panels p;
    for (uint32_t m = 0; m < args->m; m += PANEL_M) {
        const uint32_t m_count = args->m - m < PANEL_M ? args->m - m : PANEL_M;
        for (uint32_t n = row_begin; n < row_end; n += PANEL_N) {
            const uint32_t n_count = row_end - n < PANEL_N ? row_end - n : PANEL_N;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                block_dots(&p, args->w, dtype, scaled, args->x + m * args->x_stride, args->x_stride,
                           m_count, n, n_count, cpu_range_begin(args->w, i, args->k_blocks),
                           cpu_range_begin(args->w, i + 1, args->k_blocks));
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
    if (args->m > PRODUCT_FEW && !(scaled && args->w->scale_cols > PANEL_K)) {
        product_block(args, dtype, scaled, row_begin, row_end);
    } else {
        product_few(args, dtype, scaled, row_begin, row_end);
    }
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
PRODUCT_OF(KERN_INT8, product_int8)
PRODUCT_OF(KERN_INT4, product_int4)

static void simd_matmul(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    MUST(args->k_blocks == 1 || args->k_blocks == KERN_RANK_BLOCKS);
    MUST(row_begin <= row_end && row_end <= args->w->rows);
    cpu_matrix_check(args->w);
    MUST(!args->w->tiled);
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
    case KERN_INT8:
        product_int8(args, row_begin, row_end);
        break;
    case KERN_INT4:
        product_int4(args, row_begin, row_end);
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
            const float scaled = w->scales ? x[r] * scale_at(w, dtype, d + r, cut) : x[r];
            factor[r] = vec_set1(scaled);
            row[r] = row_at(w, dtype, d + r);
        }
        for (uint32_t c = cut; c < whole; c += KERN_LANES) {
            struct vec sum = vec_load(y + c);
            UNROLL for (uint32_t r = 0; r < count; r++) {
                sum = vec_fma(weight_load(dtype, row[r], c), factor[r], sum);
            }
            vec_store(y + c, sum);
        }
        if (whole < end) {
            struct vec sum = vec_load_part(y + whole, end - whole);
            UNROLL for (uint32_t r = 0; r < count; r++) {
                const struct vec weight = weight_load_part(dtype, row[r], whole, end - whole);
                sum = vec_fma(weight, factor[r], sum);
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
    MUST(row_begin <= row_end && row_end <= w->rows && !w->tiled);
    cpu_matrix_check(w);
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
    case KERN_INT8:
        transpose(w, KERN_INT8, row_begin, row_end, x, y);
        break;
    case KERN_INT4:
        transpose(w, KERN_INT4, row_begin, row_end, x, y);
        break;
    case KERN_DTYPE_COUNT:
        MUST(!"a dtype of enum kern_dtype");
    }
}
