/* Products with bf16 activations over sixteen lanes of two columns, written once: a file includes
 * vec_x16_avx2.h or vec_x16_avx512.h, then this. Private to kernels/cpu.
 *
 * A few operand rows (decode): weights are decoded in registers and used there, for several operand
 * rows at a time. More: a block of weight rows is decoded, a chunk of columns at a time, into a
 * panel of pairs; tiles of outputs are summed in registers over the chunk, their totals wait in
 * memory between chunks.
 *
 * Invariant: same bits as ref_x16.c for every input; subnormals are zeros while it runs.
 */
#ifndef KERNELS_CPU_SIMD_X16_H
#define KERNELS_CPU_SIMD_X16_H

enum { X16_LINE = 64, X16_PARTS_MAX = 2 };

/* Up to so many operand rows decoding again is cheaper than a panel; BF16 without scales has
 * nothing to decode and no totals beside its sums. */
enum { X16_FEW = VEC_X16_FEW, X16_FEW_PLAIN = 4 * VEC_X16_TILE_M };

VEC_INLINE uint32_t x16_span(enum kern_dtype dtype)
{
    return dtype == KERN_BF16 ? 32 : 64;
}

/* A span is 64 bytes of every type; where column k, the first of one, lies in its row. */
VEC_INLINE size_t x16_at(enum kern_dtype dtype, size_t k)
{
    return k * X16_LINE / x16_span(dtype);
}

VEC_INLINE const uint8_t *x16_row_at(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n)
{
    return (const uint8_t *)w->data + (size_t)n * w->cols * (dtype == KERN_BF16 ? 2 : 1);
}

/* The span at `from` of which `count` columns are there: the others zero. */
VEC_INLINE void x16_decode(const struct pairs_tables *tables, enum kern_dtype dtype,
                           const uint8_t *from, uint32_t count, struct pairs *to)
{
    uint8_t codes[X16_LINE] = { 0 };
    if (__builtin_expect(count >= x16_span(dtype), 1)) {
        pairs_decode(tables, dtype, from, to);
        return;
    }
    memcpy(codes, from, x16_at(dtype, count));
    pairs_decode(tables, dtype, codes, to);
}

/* ------------------------------------------------------------------------------- few operands */

struct x16_rows {
    const uint8_t *data[VEC_X16_ROWS], *scales[VEC_X16_ROWS];
};

/* Operand rows, and sums of each with the weight rows. */
struct x16_operands {
    uint32_t count;
    const uint16_t *x;
    size_t stride;
};

/* sum[m][r] += a span of row r, of which `left` columns are there, times operand row m. */
VEC_INLINE void x16_step(const struct pairs_tables *tables, enum kern_dtype dtype, uint32_t count,
                         const struct x16_rows *rows, size_t k, uint32_t left,
                         const struct x16_operands *x,
                         struct vec sum[VEC_X16_TILE_M][VEC_X16_ROWS])
{
    const uint32_t parts = x16_span(dtype) / KERN_X16_VECTOR;
    struct pairs operand[VEC_X16_TILE_M][X16_PARTS_MAX];
    UNROLL for (uint32_t m = 0; m < x->count; m++)
    {
        UNROLL for (uint32_t v = 0; v < parts; v++)
            operand[m][v] = pairs_load(x->x + m * x->stride + v * KERN_X16_VECTOR);
    }
    UNROLL for (uint32_t r = 0; r < count; r++)
    {
        struct pairs weights[X16_PARTS_MAX];
        x16_decode(tables, dtype, rows->data[r] + x16_at(dtype, k), left, weights);
        UNROLL for (uint32_t m = 0; m < x->count; m++)
        {
            UNROLL for (uint32_t v = 0; v < parts; v++)
                sum[m][r] = pairs_step(weights[v], operand[m][v], sum[m][r]);
        }
    }
}

/* total[m][r] += columns [k, end) of row r, one cut, times operand row m. */
VEC_INLINE void x16_cut(const struct pairs_tables *tables, enum kern_dtype dtype, bool scaled,
                        uint32_t count, const struct x16_rows *rows, size_t k, size_t end,
                        size_t scale_index, struct x16_operands x,
                        struct vec total[VEC_X16_TILE_M][VEC_X16_ROWS])
{
    const uint32_t span = x16_span(dtype);
    struct vec sum[VEC_X16_TILE_M][VEC_X16_ROWS];
    UNROLL for (uint32_t m = 0; m < x.count; m++)
    {
        UNROLL for (uint32_t r = 0; r < count; r++) sum[m][r] = vec_zero();
    }
    for (; end - k >= span; k += span, x.x += span)
        x16_step(tables, dtype, count, rows, k, span, &x, sum);
    if (k < end) x16_step(tables, dtype, count, rows, k, (uint32_t)(end - k), &x, sum);
    UNROLL for (uint32_t r = 0; r < count; r++)
    {
        const float scale =
            scaled ? scalar_scale(KERN_FP8_E4M3, rows->scales[r], scale_index) : 0;
        UNROLL for (uint32_t m = 0; m < x.count; m++)
            total[m][r] = scaled ? vec_fma(sum[m][r], vec_set1(scale), total[m][r]) : sum[m][r];
    }
}

enum { X16_CUT = 128, X16_CUTS = 4 };

/* *total += `cuts` whole cuts of 128 columns of one row of FP8: their sums do not wait for one
 * another. */
VEC_INLINE void x16_cuts(const struct pairs_tables *tables, uint32_t cuts, const uint8_t *row,
                         const uint8_t *scales, const uint16_t *x, struct vec *total)
{
    enum { SPAN = 64, SPANS = X16_CUT / SPAN };
    struct vec sum[X16_CUTS];
    UNROLL for (uint32_t c = 0; c < cuts; c++) sum[c] = vec_zero();
    UNROLL for (uint32_t s = 0; s < cuts * SPANS; s++)
    {
        const uint32_t at = s % cuts * X16_CUT + s / cuts * SPAN;
        struct pairs weights[2];
        pairs_decode(tables, KERN_FP8_E4M3, row + at, weights);
        sum[s % cuts] = pairs_step(weights[0], pairs_load(x + at), sum[s % cuts]);
        sum[s % cuts] =
            pairs_step(weights[1], pairs_load(x + at + KERN_X16_VECTOR), sum[s % cuts]);
    }
    UNROLL for (uint32_t c = 0; c < cuts; c++)
        *total = vec_fma(sum[c], vec_set1(scalar_scale(KERN_FP8_E4M3, scales, c)), *total);
}

/* The whole cuts of 128 columns among [k, end) of one row; returns the columns. */
VEC_INLINE uint32_t x16_whole_cuts(const struct pairs_tables *tables, const struct x16_rows *rows,
                                   uint32_t k, uint32_t end, const uint16_t *x, struct vec *total)
{
    const uint32_t first = k;
    for (; end - k >= X16_CUTS * X16_CUT; k += X16_CUTS * X16_CUT)
        x16_cuts(tables, X16_CUTS, rows->data[0] + k, rows->scales[0] + k / X16_CUT * 4,
                 x + (k - first), total);
    for (; end - k >= X16_CUT; k += X16_CUT)
        x16_cuts(tables, 1, rows->data[0] + k, rows->scales[0] + k / X16_CUT * 4, x + (k - first),
                 total);
    return k - first;
}

/* Outputs of rows n + r * step and of m_count operand rows from m on. */
VEC_INLINE void x16_dots(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                         uint32_t count, uint32_t n, uint32_t step, uint32_t m_count, uint32_t m)
{
    const struct kern_matrix *w = args->w;
    const struct pairs_tables tables = pairs_tables_of(dtype);
    struct x16_operands x = { m_count, args->x16 + m * args->x16_stride, args->x16_stride };
    float *y = args->y + m * args->y_stride + n;
    struct x16_rows rows;
    UNROLL for (uint32_t r = 0; r < count; r++)
    {
        rows.data[r] = x16_row_at(w, dtype, n + r * step);
        rows.scales[r] = scalar_scales(w, n + r * step);
    }
    for (uint32_t i = 0; i < args->k_blocks; i++) {
        const uint32_t end = cpu_range_begin(w, i + 1, args->k_blocks);
        uint32_t k = cpu_range_begin(w, i, args->k_blocks);
        size_t scale_index = scaled ? k / w->scale_cols : 0;
        struct vec total[VEC_X16_TILE_M][VEC_X16_ROWS];
        UNROLL for (uint32_t t = 0; t < m_count; t++)
        {
            UNROLL for (uint32_t r = 0; r < count; r++) total[t][r] = vec_zero();
        }
        while (k < end) {
            if (dtype == KERN_FP8_E4M3 && scaled && count == 1 && m_count == 1 &&
                k % X16_CUT == 0 && w->scale_cols == X16_CUT && end - k >= X16_CUT) {
                const uint32_t columns =
                    x16_whole_cuts(&tables, &rows, k, end, x.x, &total[0][0]);
                x.x += columns;
                k += columns;
                scale_index += columns / X16_CUT;
                continue;
            }
            const uint32_t cut_end = scaled ? cpu_cut_end(k, end, w->scale_cols) : end;
            x16_cut(&tables, dtype, scaled, count, &rows, k, cut_end, scale_index++, x, total);
            x.x += x16_filled(dtype, cut_end - k);
            k = cut_end;
        }
        UNROLL for (uint32_t t = 0; t < m_count; t++)
        {
            UNROLL for (uint32_t r = 0; r < count; r++)
            {
                float *to = y + t * args->y_stride + r * step;
                const float part = vec_tree(total[t][r]);
                *to = i ? *to + part : part;
            }
        }
    }
}

/* Rows n + r * step and all operand rows, of these as many together as there are registers for. */
VEC_INLINE void x16_dots_all(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                             uint32_t count, uint32_t n, uint32_t step)
{
    uint32_t m = 0;
    for (; args->m - m >= VEC_X16_TILE_M; m += VEC_X16_TILE_M)
        x16_dots(args, dtype, scaled, count, n, step, VEC_X16_TILE_M, m);
    if (VEC_X16_TILE_M > 2 && args->m - m >= 2) {
        x16_dots(args, dtype, scaled, count, n, step, 2, m);
        m += 2;
    }
    if (m < args->m) x16_dots(args, dtype, scaled, count, n, step, 1, m);
}

VEC_INLINE void x16_few(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                        uint32_t row_begin, uint32_t row_end)
{
    /* Rows side by side lie far apart: a few long streams. FP8's cuts are enough to do at once with
     * one operand row; with several two rows fit beside their totals. */
    const uint32_t several = dtype == KERN_BF16 && !scaled ? VEC_X16_ROWS : VEC_X16_SCALED_ROWS;
    const uint32_t one = dtype == KERN_BF16 ? VEC_X16_ROWS : 1;
    const uint32_t step = (row_end - row_begin) / (args->m > 1 ? several : one);
    uint32_t n = row_begin;
    if (args->m > 1) {
        for (; n < row_begin + step; n++) x16_dots_all(args, dtype, scaled, several, n, step);
        for (n = row_begin + step * several; n < row_end; n++)
            x16_dots_all(args, dtype, scaled, 1, n, 0);
        return;
    }
    for (; n < row_begin + step; n++) x16_dots(args, dtype, scaled, one, n, step, 1, 0);
    for (n = row_begin + step * one; n < row_end; n++)
        x16_dots(args, dtype, scaled, 1, n, 0, 1, 0);
}

/* ------------------------------------------------------------------------------ many operands */

/* A panel of 16 KiB at most and two operand tiles share the first-level cache. */
enum {
    X16_PANEL_N = 12,
    X16_PANEL_M = 48,
    X16_PANEL_VECTORS = 16,
    X16_PANEL_K = X16_PANEL_VECTORS * KERN_X16_VECTOR
};

struct x16_chunk {
    uint32_t runs, vectors;
    uint32_t run_vectors[X16_PANEL_VECTORS];
    uint32_t run_k[X16_PANEL_VECTORS], run_end[X16_PANEL_VECTORS]; /* columns that are there */
    float scale[X16_PANEL_VECTORS][X16_PANEL_N];
};

struct x16_panel {
    uint8_t w[X16_PANEL_VECTORS * X16_PANEL_N * PAIRS_BYTES]; /* [vector][n] */
    float total[X16_PANEL_M * X16_PANEL_N * KERN_LANES];      /* [m][n][lane] */
    struct x16_chunk chunk;
};

/* Adds a run of columns [k, end), of which the spans to `filled` count as there; false: full. */
VEC_INLINE bool x16_run_add(struct x16_chunk *c, uint32_t k, uint32_t end, uint32_t filled)
{
    const uint32_t vectors = filled / KERN_X16_VECTOR;
    if (c->vectors + vectors > X16_PANEL_VECTORS) return false;
    c->run_k[c->runs] = k;
    c->run_end[c->runs] = end;
    c->run_vectors[c->runs++] = vectors;
    c->vectors += vectors;
    return true;
}

/* The runs from column k of a block on that fit; returns the column behind them. Without scales a
 * run may go on in the next chunk. */
VEC_INLINE uint32_t x16_chunk_begin(struct x16_chunk *c, const struct kern_matrix *w,
                                    enum kern_dtype dtype, bool scaled, uint32_t k, uint32_t end)
{
    c->runs = c->vectors = 0;
    while (k < end) {
        uint32_t run_end = scaled ? cpu_cut_end(k, end, w->scale_cols) : end;
        if (!scaled && run_end - k > X16_PANEL_K) run_end = k + X16_PANEL_K;
        if (!x16_run_add(c, k, run_end, x16_filled(dtype, run_end - k))) break;
        k = run_end;
    }
    return k;
}

/* One row of the chunk into place r of the panel. */
VEC_INLINE void x16_row_fill(struct x16_panel *p, const struct pairs_tables *tables,
                             const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n,
                             uint32_t r)
{
    const uint32_t span = x16_span(dtype), parts = span / KERN_X16_VECTOR;
    const struct x16_chunk *c = &p->chunk;
    const uint8_t *row = x16_row_at(w, dtype, n);
    uint8_t *to = p->w + (size_t)r * PAIRS_BYTES;
    for (uint32_t i = 0; i < c->runs; i++) {
        const uint32_t spans = c->run_vectors[i] / parts, end = c->run_end[i];
        uint32_t k = c->run_k[i];
        for (uint32_t s = 0; s < spans; s++, k += span) {
            struct pairs values[X16_PARTS_MAX];
            const uint32_t left = k >= end ? 0 : end - k;
            x16_decode(tables, dtype, row + (left > 0 ? x16_at(dtype, k) : 0), left, values);
            UNROLL for (uint32_t v = 0; v < parts; v++)
            {
                pairs_store(to, values[v]);
                to += X16_PANEL_N * PAIRS_BYTES;
            }
        }
    }
}

/* Rows of the chunk, and their scales by run. */
VEC_INLINE void x16_panel_fill(struct x16_panel *p, const struct kern_matrix *w,
                               enum kern_dtype dtype, bool scaled, uint32_t n, uint32_t n_count)
{
    const struct pairs_tables tables = pairs_tables_of(dtype);
    struct x16_chunk *c = &p->chunk;
    for (uint32_t r = 0; r < n_count; r++) {
        const uint8_t *scales = scalar_scales(w, n + r);
        x16_row_fill(p, &tables, w, dtype, n + r, r);
        for (uint32_t i = 0; scaled && i < c->runs; i++)
            c->scale[i][r] = scalar_scale(dtype, scales, c->run_k[i] / w->scale_cols);
    }
}

/* rows x cols outputs over the chunk. */
VEC_INLINE void x16_tile(uint32_t rows, uint32_t cols, bool scaled,
                         const struct x16_chunk *c, uint32_t n, const uint8_t *w, const uint16_t *x,
                         size_t x_stride, float *to)
{
    const size_t step = X16_PANEL_N * PAIRS_BYTES;
    struct vec total[VEC_X16_TILE_M][VEC_X16_TILE_N], sum[VEC_X16_TILE_M][VEC_X16_TILE_N];
    UNROLL for (uint32_t m = 0; m < rows; m++)
    {
        UNROLL for (uint32_t i = 0; i < cols; i++)
            total[m][i] = vec_load(to + (m * X16_PANEL_N + i) * KERN_LANES);
    }
    for (uint32_t run = 0; run < c->runs; run++) {
        UNROLL for (uint32_t m = 0; m < rows; m++)
        {
            UNROLL for (uint32_t i = 0; i < cols; i++)
                sum[m][i] = scaled ? vec_zero() : total[m][i];
        }
        for (uint32_t v = 0; v < c->run_vectors[run]; v++, w += step, x += KERN_X16_VECTOR)
            pairs_tile_step(rows, cols, sum, w, x, x_stride);
        UNROLL for (uint32_t i = 0; i < cols; i++)
        {
            const struct vec factor = scaled ? vec_set1(c->scale[run][n + i]) : vec_zero();
            UNROLL for (uint32_t m = 0; m < rows; m++)
                total[m][i] = scaled ? vec_fma(sum[m][i], factor, total[m][i]) : sum[m][i];
        }
    }
    UNROLL for (uint32_t m = 0; m < rows; m++)
    {
        UNROLL for (uint32_t i = 0; i < cols; i++)
            vec_store(to + (m * X16_PANEL_N + i) * KERN_LANES, total[m][i]);
    }
}

/* One tile of operand rows against all columns of the panel. */
VEC_INLINE void x16_tiles(struct x16_panel *p, uint32_t rows, bool scaled, uint32_t m,
                          uint32_t n_count, const uint16_t *x, size_t x_stride)
{
    const uint32_t widest = scaled ? VEC_X16_TILE_SCALED_N : VEC_X16_TILE_N;
    for (uint32_t n = 0; n < n_count;) {
        const uint8_t *w = p->w + (size_t)n * PAIRS_BYTES;
        float *total = p->total + (m * X16_PANEL_N + n) * KERN_LANES;
        if (n_count - n >= widest) {
            x16_tile(rows, widest, scaled, &p->chunk, n, w, x, x_stride, total);
            n += widest;
        } else if (n_count - n >= 2) {
            x16_tile(rows, 2, scaled, &p->chunk, n, w, x, x_stride, total);
            n += 2;
        } else {
            x16_tile(rows, 1, scaled, &p->chunk, n, w, x, x_stride, total);
            n++;
        }
    }
}

VEC_INLINE void x16_chunk_tiles(struct x16_panel *p, bool scaled, const uint16_t *x,
                                size_t x_stride, uint32_t m_count, uint32_t n_count)
{
    for (uint32_t m = 0; m < m_count;) {
        if (m_count - m >= VEC_X16_TILE_M) {
            x16_tiles(p, VEC_X16_TILE_M, scaled, m, n_count, x, x_stride);
            m += VEC_X16_TILE_M;
            x += VEC_X16_TILE_M * x_stride;
        } else if (m_count - m >= 2) {
            x16_tiles(p, 2, scaled, m, n_count, x, x_stride);
            m += 2;
            x += 2 * x_stride;
        } else {
            x16_tiles(p, 1, scaled, m++, n_count, x, x_stride);
            x += x_stride;
        }
    }
}

/* The types of weights share these: a panel holds pairs. */
#define X16_TILES_OF(scaled, name) \
    static __attribute__((noinline)) void name(struct x16_panel *p, const uint16_t *x, \
                                               size_t x_stride, uint32_t m_count, \
                                               uint32_t n_count) \
    { \
        x16_chunk_tiles(p, scaled, x, x_stride, m_count, n_count); \
    }

X16_TILES_OF(false, x16_tiles_plain)
X16_TILES_OF(true, x16_tiles_scaled)

/* p->total = the dots of block `i` of the columns; returns where the next begins in the operands.
 */
VEC_INLINE size_t x16_block(struct x16_panel *p, const struct kern_matmul *args,
                            enum kern_dtype dtype, bool scaled, uint32_t m, uint32_t m_count,
                            uint32_t n, uint32_t n_count, uint32_t i, size_t at)
{
    const struct kern_matrix *w = args->w;
    const uint32_t end = cpu_range_begin(w, i + 1, args->k_blocks);
    memset(p->total, 0, (size_t)m_count * X16_PANEL_N * KERN_LANES * sizeof *p->total);
    for (uint32_t k = cpu_range_begin(w, i, args->k_blocks); k < end;) {
        const uint16_t *x = args->x16 + m * args->x16_stride + at;
        k = x16_chunk_begin(&p->chunk, w, dtype, scaled, k, end);
        x16_panel_fill(p, w, dtype, scaled, n, n_count);
        (scaled ? x16_tiles_scaled : x16_tiles_plain)(p, x, args->x16_stride, m_count, n_count);
        at += (size_t)p->chunk.vectors * KERN_X16_VECTOR;
    }
    return at;
}

VEC_INLINE void x16_many(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                         uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) struct x16_panel p;
    for (uint32_t m = 0; m < args->m; m += X16_PANEL_M) {
        const uint32_t m_count = args->m - m < X16_PANEL_M ? args->m - m : X16_PANEL_M;
        for (uint32_t n = row_begin; n < row_end; n += X16_PANEL_N) {
            const uint32_t n_count = row_end - n < X16_PANEL_N ? row_end - n : X16_PANEL_N;
            size_t at = 0;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                at = x16_block(&p, args, dtype, scaled, m, m_count, n, n_count, i, at);
                for (uint32_t r = 0; r < m_count; r++) {
                    float *y = args->y + (m + r) * args->y_stride + n;
                    const float *total = p.total + (size_t)r * X16_PANEL_N * KERN_LANES;
                    for (uint32_t c = 0; c < n_count; c++) {
                        const float part = vec_tree(vec_load(total + c * KERN_LANES));
                        y[c] = i ? y[c] + part : part;
                    }
                }
            }
        }
    }
}

VEC_INLINE void x16_product(const struct kern_matmul *args, enum kern_dtype dtype, bool scaled,
                            uint32_t row_begin, uint32_t row_end)
{
    const uint32_t few = dtype == KERN_BF16 && !scaled ? X16_FEW_PLAIN : X16_FEW;
    /* A run longer than a panel would need two sets of sums. */
    if (args->m > few && !(scaled && args->w->scale_cols > X16_PANEL_K)) {
        x16_many(args, dtype, scaled, row_begin, row_end);
    } else {
        x16_few(args, dtype, scaled, row_begin, row_end);
    }
}

#define X16_OF(type, scaled, name) \
    static __attribute__((noinline)) void name(const struct kern_matmul *args, \
                                               uint32_t row_begin, uint32_t row_end) \
    { \
        x16_product(args, type, scaled, row_begin, row_end); \
    }

X16_OF(KERN_BF16, false, x16_bf16)
X16_OF(KERN_BF16, true, x16_bf16_scaled)
X16_OF(KERN_FP8_E4M3, false, x16_fp8)
X16_OF(KERN_FP8_E4M3, true, x16_fp8_scaled)

/* Subnormals are zeros between the two: what vdpbf16ps does, multiply-adds do with these bits set.
 * Products are calls of their own, so that nothing of them is moved out. */
enum { X16_MXCSR_FLUSH = 0x8040 };

static void simd_matmul_x16(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    const struct kern_matrix *w = args->w;
    x16_check(args, row_begin, row_end);
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | X16_MXCSR_FLUSH);
    if (w->dtype == KERN_BF16)
        (w->scales ? x16_bf16_scaled : x16_bf16)(args, row_begin, row_end);
    else
        (w->scales ? x16_fp8_scaled : x16_fp8)(args, row_begin, row_end);
    _mm_setcsr(before);
}

#endif
