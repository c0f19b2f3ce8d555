/* Tiles of outputs where a register holds half of the sixteen lanes. Part of simd.h.
 *
 * Against scales, one half after the other: so a tile of 3 x 3 outputs has nine sums in registers,
 * which six loads a step feed. Twelve (4 x 3) are slower: what is stored beside multiply-adds costs
 * as much as they do, and the more where many sums end at once (README.md). Without scales, and
 * where a tile has few outputs, both halves together: 3 x 2.
 *
 * A panel is tiles of the widest kind, then of two rows: [tile][step][half][row][lane]. */

enum { VEC_TILE_PARTS = 2, HALF_BOTH = 6 };

/* Rows of a panel for `count` of a matrix. */
VEC_INLINE uint32_t panel_rows(uint32_t widest, uint32_t count)
{
    return widest == 2 || count == 1 ? (count + 1) / 2 * 2 : count;
}

/* Of `count` rows, those in tiles of three. */
VEC_INLINE uint32_t half_threes(uint32_t widest, uint32_t count)
{
    const uint32_t twos = (3 - count % 3) % 3 * 2;
    return widest == 3 && count > twos ? count - twos : 0;
}

/* Where row r of a panel of `count` begins, and the width of its tile. */
VEC_INLINE float *panel_row(float *panel, uint32_t steps, uint32_t widest, uint32_t count,
                            uint32_t r, uint32_t *width)
{
    const uint32_t threes = half_threes(widest, count);
    const uint32_t first = r < threes ? r / 3 * 3 : threes + (r - threes) / 2 * 2;
    *width = r < threes ? 3 : 2;
    return panel + (size_t)first * steps * KERN_LANES + (r - first) * REG_LANES;
}

/* The scales of `count` rows in the cut of column k. */
VEC_INLINE void panel_scales(float *to, const struct kern_matrix *w, enum kern_dtype dtype,
                             uint32_t n, uint32_t count, uint32_t k)
{
    const size_t at = k / w->scale_cols;
    const uint8_t *scales = NULL;
    uint32_t left = 0;          /* rows that share `scales` */
    for (uint32_t r = 0; r < count; r++, left--) {
        if (left == 0) {
            scales = scalar_scales(w, n + r);
            left = w->scale_rows - (n + r) % w->scale_rows;
        }
        to[r] = scalar_scale(dtype, scales, at);
    }
    for (uint32_t r = count; r < PANEL_N; r++) to[r] = 0.0f;
}

/* Sixteen columns of a row. */
VEC_INLINE void panel_store(float *to, uint32_t width, struct vec value)
{
    reg_store(to, (struct reg){ value.low });
    reg_store(to + width * REG_LANES, (struct reg){ value.high });
}

/* 64 codes. Of a subnormal one a float is made that is one, too: a panel is decoded so seldom that
 * what this costs Intel's cores does not count. */
VEC_INLINE void panel_fp8(enum kern_dtype dtype, const uint8_t *from, struct vec to[4])
{
    if (dtype == KERN_FP8_WOVEN) {
        fp8_step(dtype, from, to);
        return;
    }
    if (__builtin_expect(vec_fp8_numbers(from), 1)) {
        UNROLL for (uint32_t i = 0; i < 4; i++) to[i] = vec_from_fp8_number(from + i * KERN_LANES);
    } else {
        UNROLL for (uint32_t i = 0; i < 4; i++) to[i] = vec_from_fp8(from + i * KERN_LANES);
    }
}

/* Sums of a tile, of one half or of both, and where its operands are. */
struct half {
    struct reg at[VEC_TILE_PARTS][VEC_SCALED_M][VEC_SCALED_N];
    const float *x[VEC_SCALED_M];
};

VEC_INLINE void half_zero(uint32_t rows, uint32_t cols, uint32_t parts, struct half *t)
{
    UNROLL for (uint32_t p = 0; p < parts; p++)
    {
        UNROLL for (uint32_t m = 0; m < rows; m++)
        {
            UNROLL for (uint32_t n = 0; n < cols; n++) t->at[p][m][n] = reg_once(reg_zero());
        }
    }
}

/* What the chunks before this one gave. */
VEC_INLINE void half_load(uint32_t rows, uint32_t cols, uint32_t parts, struct half *t,
                          const float *total)
{
    UNROLL for (uint32_t p = 0; p < parts; p++)
    {
        UNROLL for (uint32_t m = 0; m < rows; m++)
        {
            UNROLL for (uint32_t n = 0; n < cols; n++)
                t->at[p][m][n] =
                    reg_load(total + (m * PANEL_N + n) * KERN_LANES + p * REG_LANES);
        }
    }
}

VEC_INLINE void half_store(uint32_t rows, uint32_t cols, uint32_t parts, const struct half *t,
                           float *total)
{
    UNROLL for (uint32_t p = 0; p < parts; p++)
    {
        UNROLL for (uint32_t m = 0; m < rows; m++)
        {
            UNROLL for (uint32_t n = 0; n < cols; n++)
                reg_store(total + (m * PANEL_N + n) * KERN_LANES + p * REG_LANES,
                          t->at[p][m][n]);
        }
    }
}

/* total = fma(sum, scale, total or, at first, zero). */
VEC_INLINE void half_scale(uint32_t rows, uint32_t cols, uint32_t parts, const struct half *t,
                           bool first, const float *scale, float *total)
{
    UNROLL for (uint32_t n = 0; n < cols; n++)
    {
        const struct reg by = reg_set1(scale + n);
        UNROLL for (uint32_t m = 0; m < rows; m++)
        {
            UNROLL for (uint32_t p = 0; p < parts; p++)
            {
                float *at = total + (m * PANEL_N + n) * KERN_LANES + p * REG_LANES;
                const struct reg before = first ? reg_zero() : reg_peek(at);
                reg_store(at, reg_fma(t->at[p][m][n], by, before));
            }
        }
    }
}

/* Sixteen columns, or one half of them. */
VEC_INLINE void half_step(uint32_t rows, uint32_t cols, uint32_t parts, struct half *t,
                          const float *w, const float *const *x, size_t at)
{
    UNROLL for (uint32_t p = 0; p < parts; p++)
    {
        struct reg weight[VEC_SCALED_N];
        UNROLL for (uint32_t n = 0; n < cols; n++)
            weight[n] = reg_load(w + (p * cols + n) * REG_LANES);
        UNROLL for (uint32_t m = 0; m < rows; m++)
        {
            const struct reg value = reg_load(x[m] + at + p * REG_LANES);
            UNROLL for (uint32_t n = 0; n < cols; n++)
                t->at[p][m][n] = reg_fma(weight[n], value, t->at[p][m][n]);
        }
    }
}

/* Adds the products of a cut of `count` columns, and goes on to the next one's operands. */
VEC_INLINE void half_cut(uint32_t rows, uint32_t cols, uint32_t parts, uint32_t first,
                         uint32_t count, struct half *t, const float *w)
{
    const size_t whole = count / KERN_LANES * KERN_LANES;
    /* Else the compiler adds up addresses for each step of each row, and has no room for them. */
    UNROLL for (uint32_t m = 0; m < rows; m++) __asm__("" : "+r"(t->x[m]));
    for (size_t at = 0; at < whole; at += KERN_LANES)
        half_step(rows, cols, parts, t, w + at * cols, t->x, at);
    if (whole < count) {
        float rest[VEC_SCALED_M][KERN_LANES];
        const float *from[VEC_SCALED_M];
        UNROLL for (uint32_t m = 0; m < rows; m++)
        {
            vec_store(rest[m], vec_load_part(t->x[m] - first + whole, count % KERN_LANES));
            from[m] = rest[m] + first;
        }
        half_step(rows, cols, parts, t, w + whole * cols, from, 0);
    }
    UNROLL for (uint32_t m = 0; m < rows; m++) t->x[m] += count;
}

/* The chunk is one cut. */
VEC_INLINE void half_multiply(uint32_t rows, uint32_t cols, uint32_t parts, uint32_t first,
                              struct half *t, const struct chunk *chunk, const float *w,
                              float *total)
{
    half_zero(rows, cols, parts, t);
    if (!chunk->first) half_load(rows, cols, parts, t, total);
    half_cut(rows, cols, parts, first, chunk->k1 - chunk->k0, t, w);
    half_store(rows, cols, parts, t, total);
}

/* The same with scales. Totals stay in memory, also from cut to cut, which the compiler has to be
 * told: there is no room for them beside the sums. */
VEC_INLINE void half_multiply_scaled(uint32_t rows, uint32_t cols, uint32_t parts, uint32_t first,
                                     struct half *t, const struct chunk *chunk, uint32_t n,
                                     const float *w, float *total)
{
    uint32_t k = chunk->k0;
    for (uint32_t cut = 0; cut < chunk->cuts; cut++) {
        const uint32_t count = chunk->cut_end[cut] - k;
        const float *scale = chunk->scale[cut] + n;
        half_zero(rows, cols, parts, t);
        if (count == FP8_CUT) half_cut(rows, cols, parts, first, FP8_CUT, t, w);
        else half_cut(rows, cols, parts, first, count, t, w);
        __asm__ volatile("" ::: "memory");
        if (chunk->first && cut == 0) half_scale(rows, cols, parts, t, true, scale, total);
        else half_scale(rows, cols, parts, t, false, scale, total);
        __asm__ volatile("" ::: "memory");
        w += (count + KERN_LANES - 1) / KERN_LANES * (cols * KERN_LANES);
        k += count;
    }
}

/* rows x cols outputs over the chunk; x points at its first column. Of few outputs both halves have
 * room, and each alone would wait for its multiply-adds. */
VEC_INLINE void tile_any(uint32_t rows, uint32_t cols, bool scaled, const struct chunk *chunk,
                         uint32_t n, const float *w, const float *x, size_t x_stride, float *total)
{
    const uint32_t parts = rows * cols > HALF_BOTH ? 1 : VEC_TILE_PARTS;
    for (uint32_t part = 0; part < VEC_TILE_PARTS; part += parts) {
        const uint32_t first = part * REG_LANES;
        struct half t;
        UNROLL for (uint32_t m = 0; m < rows; m++) t.x[m] = x + m * x_stride + first;
        if (scaled) {
            half_multiply_scaled(rows, cols, parts, first, &t, chunk, n, w + cols * first,
                                 total + first);
        } else {
            half_multiply(rows, cols, parts, first, &t, chunk, w + cols * first, total + first);
        }
    }
}

/* One tile of operand rows against all weight tiles. */
VEC_INLINE void tiles_multiply(struct panels *p, uint32_t rows, bool scaled, uint32_t m,
                               uint32_t n_count, const float *x, size_t x_stride)
{
    const uint32_t threes = half_threes(scaled ? VEC_SCALED_N : VEC_TILE_N, n_count);
    const size_t step = (size_t)p->chunk.steps * KERN_LANES;
    float *total = p->total + m * PANEL_N * KERN_LANES;
    uint32_t n = 0;
    for (; n < threes; n += 3)
        tile_any(rows, 3, scaled, &p->chunk, n, p->w + n * step, x, x_stride,
                 total + n * KERN_LANES);
    for (; n < n_count; n += 2)
        tile_any(rows, 2, scaled, &p->chunk, n, p->w + n * step, x, x_stride,
                 total + n * KERN_LANES);
}

/* The sums of `count` outputs side by side, eight at a time; the last eight may overlap those
 * before them. */
VEC_INLINE void panel_sums(float *to, const float *total, uint32_t count)
{
    enum { EIGHT = 8 };
    if (count < EIGHT) {
        for (uint32_t c = 0; c < count; c++) to[c] = vec_tree(vec_load(total + c * KERN_LANES));
        return;
    }
    vec_tree_eight(to, total);
    if (count > EIGHT) vec_tree_eight(to + count - EIGHT, total + (count - EIGHT) * KERN_LANES);
}

/* y = the sums of `count` outputs side by side, or y + them. */
VEC_INLINE void panel_put(float *y, const float *total, uint32_t count, bool add)
{
    float part[PANEL_N];
    panel_sums(part, total, count);
    for (uint32_t c = 0; c < count; c++) y[c] = add ? y[c] + part[c] : part[c];
}
