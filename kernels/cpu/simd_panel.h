/* Products of several operand rows. Part of simd.h.
 *
 * A block of weight rows is decoded, a chunk of columns at a time, into a panel that fits the
 * first-level cache; tiles of outputs are summed in registers over the chunk, and the sixteen
 * running sums of each output wait in `total` between chunks. The rows of the next block are
 * prefetched in the order of memory. */

/* The panel and two operand tiles share 32 KiB. Multiples of every tile. */
enum { PANEL_N = 12, PANEL_M = 48, PANEL_STEPS = 32, PANEL_K = PANEL_STEPS * KERN_LANES };
enum { PANEL_LINE = 64 }; /* bytes that one prefetch brings */

/* A chunk: columns [k0, k1) as cuts, each filled up to whole steps of sixteen columns. */
struct chunk {
    bool first; /* of its range: nothing is summed yet */
    uint32_t k0, k1, steps, cuts;
    uint32_t cut_end[PANEL_STEPS];
    float scale[PANEL_STEPS][PANEL_N];
};

/* The floats stand first: vectors that cross lines cost 6%. */
struct panels {
    float w[PANEL_N * PANEL_K];                     /* in tiles: simd_tiles.h, simd_halves.h */
    float total[PANEL_M * PANEL_N * KERN_LANES];    /* [m][n][lane] */
    struct chunk chunk;
    const uint8_t *after; /* weights to prefetch while those before them are decoded, or NULL */
};

#if defined(VEC_TILE_HALVES)
#include "kernels/cpu/simd_halves.h"
#else
#include "kernels/cpu/simd_tiles.h"
#endif

/* Tiles of about the same number of operand rows each. */
VEC_INLINE void chunk_tiles(struct panels *p, bool scaled, const float *x, size_t x_stride,
                            uint32_t m_count, uint32_t n_count)
{
    const uint32_t most = scaled ? VEC_SCALED_M : VEC_TILE_M, tiles = (m_count + most - 1) / most;
    for (uint32_t i = 0; i < tiles; i++) {
        const uint32_t m = m_count * i / tiles, rows = m_count * (i + 1) / tiles - m;
        const float *operand = x + m * x_stride;
        if (rows == 1) tiles_multiply(p, 1, scaled, m, n_count, operand, x_stride);
        if (rows == 2) tiles_multiply(p, 2, scaled, m, n_count, operand, x_stride);
        if (rows == 3) tiles_multiply(p, 3, scaled, m, n_count, operand, x_stride);
        if (rows == 4 && most >= 4) tiles_multiply(p, 4, scaled, m, n_count, operand, x_stride);
    }
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
        if (scaled) panel_scales(chunk->scale[chunk->cuts], w, dtype, n, n_count, k0);
        chunk->cut_end[chunk->cuts++] = end;
        chunk->steps += steps;
        k0 = end;
    }
    chunk->k1 = k0;
}

/* Columns [k, end) of one row, decoded into a tile `width` rows wide. Returns where the next go. */
VEC_INLINE float *cut_decode(float *to, uint32_t width, enum kern_dtype dtype, const uint8_t *row,
                             uint32_t k, uint32_t end)
{
    const bool woven = dtype == KERN_FP8_WOVEN, fp8 = woven || dtype == KERN_FP8_E4M3;
    const size_t stride = (size_t)width * KERN_LANES;
    for (; woven && k % KERN_WOVEN && k < end; k += KERN_LANES, to += stride)
        panel_store(to, width, weight_load(dtype, row, k));
    for (; fp8 && k + FP8_STEP <= end; k += FP8_STEP, to += 4 * stride) {
        struct vec values[4];
        panel_fp8(dtype, row + k, values);
        UNROLL for (uint32_t i = 0; i < 4; i++) panel_store(to + i * stride, width, values[i]);
    }
    for (; dtype == KERN_FP8_E4M3 && k + 2 * KERN_LANES <= end; k += 2 * KERN_LANES) {
        const bool usual = vec_fp8_usual(&row, 1, k);
        for (uint32_t i = k; i < k + 2 * KERN_LANES; i += KERN_LANES, to += stride)
            panel_store(to, width, usual ? vec_from_fp8_usual(row + i) : vec_from_fp8(row + i));
    }
    for (; k + KERN_LANES <= end; k += KERN_LANES, to += stride)
        panel_store(to, width, weight_load(dtype, row, k));
    if (k < end) {
        panel_store(to, width, weight_load_part(dtype, row, k, end - k));
        to += stride;
    }
    return to;
}

/* Rows [n, n + count) over the chunk, filled up with a row of zeros as panel_rows says. */
VEC_INLINE void panel_fill(float *panel, const struct chunk *chunk, const struct kern_matrix *w,
                           enum kern_dtype dtype, uint32_t widest, uint32_t n, uint32_t count)
{
    const uint32_t rows = panel_rows(widest, count);
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t width;
        float *to = panel_row(panel, chunk->steps, widest, count, r, &width);
        uint32_t k = chunk->k0;
        const bool woven = dtype == KERN_FP8_WOVEN && r < count;
        const uint8_t *row = woven ? woven_row_at(w, n + r, k) : row_at(w, dtype, n + r);
        const size_t apart = woven ? woven_apart(w, n + r) : 0;
        for (uint32_t cut = 0; r < count && cut < chunk->cuts; cut++, row += apart) {
            to = cut_decode(to, width, dtype, row, k, chunk->cut_end[cut]);
            k = chunk->cut_end[cut];
        }
        for (uint32_t step = 0; r >= count && step < chunk->steps; step++)
            panel_store(to + (size_t)step * width * KERN_LANES, width, vec_zero());
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

/* Prefetches the chunk's cuts of `count` rows from n on of groups of woven ones. */
VEC_INLINE void woven_fetch(const struct chunk *chunk, const struct kern_matrix *w, uint32_t n,
                            uint32_t count)
{
    for (uint32_t k = chunk->k0; k < chunk->k1; k = cpu_cut_end(k, chunk->k1, KERN_WOVEN_CUT)) {
        for (uint32_t r = n; r < n + count && r < w->rows; r++) {
            const uint8_t *cut = woven_row_at(w, r, k) + k / KERN_WOVEN_CUT * KERN_WOVEN_CUT;
            __builtin_prefetch(cut, 0, 2);
            __builtin_prefetch(cut + KERN_WOVEN, 0, 2);
        }
    }
}

/* One chunk for a block of m_count x n_count outputs; x points at its first column. */
VEC_INLINE void chunk_multiply(struct panels *p, const struct kern_matrix *w, enum kern_dtype dtype,
                               bool scaled, const float *x, size_t x_stride, uint32_t m_count,
                               uint32_t n, uint32_t n_count)
{
    if (p->after && dtype == KERN_FP8_WOVEN) {
        woven_fetch(&p->chunk, w, n + n_count, n_count);
    } else if (p->after) {
        const size_t bytes = n_count * row_bytes(dtype, p->chunk.k1 - p->chunk.k0);
        for (size_t at = 0; at < bytes; at += PANEL_LINE) __builtin_prefetch(p->after + at, 0, 2);
        p->after += bytes;
    }
    panel_fill(p->w, &p->chunk, w, dtype, scaled ? VEC_SCALED_N : VEC_TILE_N, n, n_count);
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
    const uint32_t begin = k0;
    if (k0 == k1) memset(p->total, 0, (size_t)m_count * PANEL_N * KERN_LANES * sizeof *p->total);
    while (k0 < k1) {
        p->chunk.first = k0 == begin;
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
            p.after = m == 0 ? row_at(args->w, dtype, n + n_count) : NULL;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                block_dots(&p, args->w, dtype, scaled, args->x + m * args->x_stride, args->x_stride,
                           m_count, n, n_count, cpu_range_begin(args->w, i, args->k_blocks),
                           cpu_range_begin(args->w, i + 1, args->k_blocks));
                for (uint32_t r = 0; r < m_count; r++) {
                    panel_put(args->y + (m + r) * args->y_stride + n,
                              p.total + (size_t)r * PANEL_N * KERN_LANES, n_count, i > 0);
                }
            }
        }
    }
}

