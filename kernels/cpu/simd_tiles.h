/* Tiles of outputs where a register holds all sixteen lanes. Part of simd.h.
 *
 * A panel is tiles of rows, the last one filled up: [tile][step][row of the tile][lane]. */

/* Rows of a panel for `count` of a matrix. */
VEC_INLINE uint32_t panel_rows(uint32_t widest, uint32_t count)
{
    (void)widest;
    return (count + 1) / 2 * 2;
}

/* Where row r of a panel of `count` begins, and the width of its tile. */
VEC_INLINE float *panel_row(float *panel, uint32_t steps, uint32_t widest, uint32_t count,
                            uint32_t r, uint32_t *width)
{
    const size_t stride = (size_t)widest * KERN_LANES;
    (void)count;
    *width = widest;
    return panel + (size_t)(r / widest) * steps * stride + r % widest * KERN_LANES;
}

/* The scales of `count` rows in the cut of column k. */
VEC_INLINE void panel_scales(float *to, const struct kern_matrix *w, enum kern_dtype dtype,
                             uint32_t n, uint32_t count, uint32_t k)
{
    for (uint32_t r = 0; r < PANEL_N; r++) to[r] = r < count ? scale_at(w, dtype, n + r, k) : 0.0f;
}

/* Sixteen columns of a row. */
VEC_INLINE void panel_store(float *to, uint32_t width, struct vec value)
{
    (void)width;
    vec_store(to, value);
}

VEC_INLINE void panel_fp8(enum kern_dtype dtype, const uint8_t *from, struct vec to[4])
{
    fp8_step(dtype, from, to);
}

/* The registers of a tile. */
struct tile {
    struct vec at[VEC_TILE_M][VEC_TILE_N];
};

/* Adds the products of a cut of `count` columns; x points at its first column. */
VEC_INLINE void tile_cut(uint32_t rows, uint32_t cols, uint32_t width, uint32_t count,
                         struct tile *sums, const float *w, const float *x, size_t x_stride)
{
    for (uint32_t step = 0; step < count / KERN_LANES; step++) {
        vec_tile_step(rows, cols, sums->at, w, x, x_stride);
        w += width * KERN_LANES;
        x += KERN_LANES;
    }
    if (count % KERN_LANES) {
        float rest[VEC_TILE_M * KERN_LANES];
        for (uint32_t m = 0; m < rows; m++)
            vec_store(rest + m * KERN_LANES, vec_load_part(x + m * x_stride, count % KERN_LANES));
        vec_tile_step(rows, cols, sums->at, w, rest, KERN_LANES);
    }
}

VEC_INLINE void tile_zero(uint32_t rows, uint32_t cols, struct tile *t)
{
    UNROLL for (uint32_t m = 0; m < rows; m++) {
        UNROLL for (uint32_t n = 0; n < cols; n++) t->at[m][n] = vec_zero();
    }
}

/* What the chunks before this one gave. */
VEC_INLINE void tile_load(uint32_t rows, uint32_t cols, struct tile *t, bool first,
                          const float *total)
{
    tile_zero(rows, cols, t);
    if (first) return;
    UNROLL for (uint32_t m = 0; m < rows; m++) {
        UNROLL for (uint32_t n = 0; n < cols; n++)
            t->at[m][n] = vec_load(total + (m * PANEL_N + n) * KERN_LANES);
    }
}

VEC_INLINE void tile_store(uint32_t rows, uint32_t cols, const struct tile *t, float *total)
{
    UNROLL for (uint32_t m = 0; m < rows; m++) {
        UNROLL for (uint32_t n = 0; n < cols; n++)
            vec_store(total + (m * PANEL_N + n) * KERN_LANES, t->at[m][n]);
    }
}

/* rows x cols outputs over the chunk, which is one cut; x points at its first column. */
VEC_INLINE void tile_multiply(uint32_t rows, uint32_t cols, const struct chunk *chunk,
                              const float *w, const float *x, size_t x_stride, float *total)
{
    struct tile sums;
    tile_load(rows, cols, &sums, chunk->first, total);
    tile_cut(rows, cols, VEC_TILE_N, chunk->k1 - chunk->k0, &sums, w, x, x_stride);
    tile_store(rows, cols, &sums, total);
}

/* The same with scales: for each cut total = fma(cut, scale, total). Where there are registers
 * enough the totals stay in them over the chunk, beside the sums; so the tile is smaller. */
VEC_INLINE void tile_multiply_scaled(uint32_t rows, uint32_t cols, const struct chunk *chunk,
                                     uint32_t n, const float *w, const float *x, size_t x_stride,
                                     float *total)
{
    struct tile totals;
    uint32_t k = chunk->k0;
    tile_load(rows, cols, &totals, chunk->first, total);
    for (uint32_t cut = 0; cut < chunk->cuts; cut++) {
        const uint32_t count = chunk->cut_end[cut] - k;
        struct tile sums;
        tile_zero(rows, cols, &sums);
        tile_cut(rows, cols, VEC_SCALED_N, count, &sums, w, x, x_stride);
        UNROLL for (uint32_t i = 0; i < cols; i++)
        {
            const struct vec scale = vec_set1(chunk->scale[cut][n + i]);
            UNROLL for (uint32_t m = 0; m < rows; m++)
                totals.at[m][i] = vec_fma(sums.at[m][i], scale, totals.at[m][i]);
        }
        w += (count + KERN_LANES - 1) / KERN_LANES * (VEC_SCALED_N * KERN_LANES);
        x += count;
        k += count;
    }
    tile_store(rows, cols, &totals, total);
}

VEC_INLINE void tile_any(uint32_t rows, uint32_t cols, bool scaled, const struct chunk *chunk,
                         uint32_t n, const float *w, const float *x, size_t x_stride, float *total)
{
    if (scaled) {
        tile_multiply_scaled(rows, cols, chunk, n, w, x, x_stride, total);
    } else {
        tile_multiply(rows, cols, chunk, w, x, x_stride, total);
    }
}

/* One tile of operand rows against all weight tiles, of which the last may be narrower. */
VEC_INLINE void tiles_multiply(struct panels *p, uint32_t rows, bool scaled, uint32_t m,
                               uint32_t n_count, const float *x, size_t x_stride)
{
    const uint32_t widest = scaled ? VEC_SCALED_N : VEC_TILE_N, narrow = widest > 4 ? 4 : 2;
    for (uint32_t n = 0; n < n_count; n += widest) {
        const uint32_t left = n_count - n;
        const float *w = p->w + (size_t)n * p->chunk.steps * KERN_LANES;
        float *total = p->total + (m * PANEL_N + n) * KERN_LANES;
        if (left > narrow) {
            tile_any(rows, widest, scaled, &p->chunk, n, w, x, x_stride, total);
        } else if (left > 2) {
            tile_any(rows, narrow, scaled, &p->chunk, n, w, x, x_stride, total);
        } else {
            tile_any(rows, 2, scaled, &p->chunk, n, w, x, x_stride, total);
        }
    }
}

/* y = the sums of `count` outputs side by side, or y + them. */
VEC_INLINE void panel_put(float *y, const float *total, uint32_t count, bool add)
{
    for (uint32_t c = 0; c < count; c++) {
        const float part = vec_tree(vec_load(total + c * KERN_LANES));
        y[c] = add ? y[c] + part : part;
    }
}
