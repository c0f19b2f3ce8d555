/* Products. Part of simd.h.
 *
 * One operand row (decode): a few weight rows side by side, decoded in registers and used once.
 * Several operand rows: simd_panel.h. */

/* Up to so many operand rows decoding again is cheaper than a panel (README.md). */
enum { PRODUCT_FEW = 2 };

VEC_INLINE float scale_at(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n,
                          uint32_t k)
{
    return scalar_scale(dtype, scalar_scales(w, n), k / w->scale_cols);
}

VEC_INLINE const uint8_t *row_at(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n)
{
    return (const uint8_t *)w->data + n * row_bytes(dtype, w->cols);
}

/* How much further apart the cuts of woven row n lie than in a row. */
VEC_INLINE size_t woven_apart(const struct kern_matrix *w, uint32_t n)
{
    return kern_woven_step(w, n) - KERN_WOVEN_CUT;
}

/* Woven row n as it looks from within the cut of column k, where its columns lie side by side; from
 * the next cut it lies woven_apart further. */
VEC_INLINE const uint8_t *woven_row_at(const struct kern_matrix *w, uint32_t n, uint32_t k)
{
    return kern_woven_row(w, n) + k / KERN_WOVEN_CUT * woven_apart(w, n);
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
        {
            lanes[r] = vec_zero();
            if (dtype == KERN_FP8_WOVEN) row[r] = woven_row_at(w, n + r * step, (uint32_t)cut);
        }
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
#include "kernels/cpu/simd_woven.h"

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

#if !defined(VEC_FP8_TABLES)
#include "kernels/cpu/simd_woven_avx2.h"
#endif
#include "kernels/cpu/simd_panel.h"
#if defined(VEC_TILE_HALVES)
#include "kernels/cpu/simd_few.h"
#endif

#if !defined(VEC_FP8_TABLES)
/* Operand rows in as few passes as there is room for; what woven tiles do not take goes by
 * panels. */
static __attribute__((noinline)) void woven_product_many(const struct kern_matmul *args,
                                                         uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) float x[WOVEN_ROOM];
    const uint32_t cols = args->w->cols, most = WOVEN_ROOM / (cols > 0 ? cols : 1) / MANY_TILE;
    const uint32_t passes = most > 0 ? (args->m + most * MANY_TILE - 1) / (most * MANY_TILE) : 1;
    const bool takes = most > 0 && woven_by_cuts(args);
    for (uint32_t n = row_begin, next; n < row_end; n = next) {
        next = takes ? woven_groups_end(args, n, row_end) : n;
        if (next == n) {
            next = takes ? woven_rest_end(n, row_end) : row_end;
            product_block(args, KERN_FP8_WOVEN, true, n, next);
            continue;
        }
        for (uint32_t i = 0; i < passes; i++) {
            const uint32_t m = args->m * i / passes;
            struct kern_matmul pass = *args;
            pass.x = args->x + m * args->x_stride;
            pass.y = args->y + m * args->y_stride;
            pass.m = args->m * (i + 1) / passes - m;
            if (!many_pass(&pass, n, next, x))
                product_block(&pass, KERN_FP8_WOVEN, true, n, next);
        }
    }
}
#endif

VEC_INLINE void product(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                        uint32_t row_begin, uint32_t row_end)
{
#if defined(VEC_FP8_TABLES)
    const bool woven = dtype == KERN_FP8_WOVEN;
    if ((woven || dtype == KERN_FP8_E4M3) && scaled && fp8_by_cuts(args->w) &&
        args->m <= FP8_SHARE_M) {
        if (args->m > 0 && woven) {
            woven_product(args, row_begin, row_end);
        } else if (args->m > 1) {
            fp8_product_few(FP8_ROWS_OF_CODES, args, row_begin, row_end);
        } else if (args->m == 1) {
            fp8_product_one(args, row_begin, row_end);
        }
        return;
    }
#else
    if (dtype == KERN_FP8_WOVEN) {
        if (args->m > WOVEN_M) woven_product_many(args, row_begin, row_end);
        else if (args->m > 0) woven_product(args, row_begin, row_end);
        return;
    }
#endif
#if defined(VEC_TILE_HALVES)
    if (few_takes(args, dtype, scaled)) {
        few_product(dtype, args, row_begin, row_end);
        return;
    }
#endif
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

/* Never without scales. */
static void product_woven(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    product(args, KERN_FP8_WOVEN, true, row_begin, row_end);
}

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
    case KERN_FP8_WOVEN:
        product_woven(args, row_begin, row_end);
        break;
    case KERN_INT8:
    case KERN_INT4:             /* what is fast is matmul_x8 */
        kern_ref_matmul(args, row_begin, row_end);
        break;
    case KERN_DTYPE_COUNT:
        MUST(!"a dtype of enum kern_dtype");
    }
}

/* Rows whose weights are in the first-level cache while column after column of them is summed. */
enum { TRANSPOSE_ROWS = 16, TRANSPOSE_LINE = 64 };

/* y += `count` rows of `vecs` x 16 columns times their factors, the sums in registers. As many
 * bytes from `after` on are prefetched as are read: the next rows, in the order of memory. */
VEC_INLINE const uint8_t *transpose_tile(enum kern_dtype dtype, uint32_t vecs, uint32_t count,
                                         const uint8_t *from, size_t stride, const float *factor,
                                         const uint8_t *after, float *y)
{
    const uint32_t bytes = vecs * KERN_LANES * (uint32_t)dtype_bytes(dtype);
    struct vec sum[VEC_TRANSPOSE], value[4];
    UNROLL for (uint32_t i = 0; i < vecs; i++) sum[i] = vec_load(y + i * KERN_LANES);
    for (uint32_t r = 0; r < count; r++, from += stride) {
        const struct vec scaled = vec_set1(factor[r]);
        for (uint32_t at = 0; after && at < bytes; at += TRANSPOSE_LINE)
            __builtin_prefetch(after + at, 0, 2);
        after = after ? after + bytes : NULL;
        UNROLL for (uint32_t i = 0; i < vecs; i++)
        {
            if (dtype == KERN_FP8_E4M3 && vecs % 4 == 0) {
                if (i % 4 == 0) fp8_step(dtype, from + i * KERN_LANES, value);
            } else {
                value[i % 4] = weight_load(dtype, from, i * KERN_LANES);
            }
            sum[i] = vec_fma(value[i % 4], scaled, sum[i]);
        }
    }
    UNROLL for (uint32_t i = 0; i < vecs; i++) vec_store(y + i * KERN_LANES, sum[i]);
    return after;
}

/* The same of n < 16 columns from k on. */
VEC_INLINE void transpose_rest(enum kern_dtype dtype, uint32_t count, const uint8_t *row,
                               size_t stride, uint32_t k, uint32_t n, const float *factor, float *y)
{
    struct vec sum = vec_load_part(y, n);
    for (uint32_t r = 0; r < count; r++, row += stride)
        sum = vec_fma(weight_load_part(dtype, row, k, n), vec_set1(factor[r]), sum);
    vec_store_part(y, sum, n);
}

VEC_INLINE void transpose(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t row_begin,
                          uint32_t row_end, const float *x, float *y)
{
    enum { WIDE = VEC_TRANSPOSE * KERN_LANES };
    const size_t stride = row_bytes(dtype, w->cols);
    float factor[TRANSPOSE_ROWS];
    memset(y, 0, w->cols * sizeof *y);
    for (uint32_t d = row_begin; d < row_end; d += TRANSPOSE_ROWS) {
        const uint32_t count = row_end - d < TRANSPOSE_ROWS ? row_end - d : TRANSPOSE_ROWS;
        const uint8_t *row = row_at(w, dtype, d);
        const uint8_t *after = row_end - d > TRANSPOSE_ROWS ? row + count * stride : NULL;
        for (uint32_t cut = 0; cut < w->cols;) {
            const uint32_t end = w->scales ? cpu_cut_end(cut, w->cols, w->scale_cols) : w->cols;
            for (uint32_t r = 0; r < count; r++) {
                const float at = x[d + r - row_begin];
                factor[r] = w->scales ? at * scale_at(w, dtype, d + r, cut) : at;
            }
            for (; cut + WIDE <= end; cut += WIDE)
                after = transpose_tile(dtype, VEC_TRANSPOSE, count, row + cut * dtype_bytes(dtype),
                                       stride, factor, after, y + cut);
            for (; cut + KERN_LANES <= end; cut += KERN_LANES)
                after = transpose_tile(dtype, 1, count, row + cut * dtype_bytes(dtype), stride,
                                       factor, after, y + cut);
            if (cut < end)
                transpose_rest(dtype, count, row, stride, cut, end - cut, factor, y + cut);
            cut = end;
        }
    }
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
    case KERN_INT4:
        kern_ref_matmul_t(w, row_begin, row_end, x, y);
        break;
    case KERN_FP8_WOVEN:
    case KERN_DTYPE_COUNT:
        MUST(!"a dtype of enum kern_dtype");
    }
}
