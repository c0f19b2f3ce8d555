/* Woven FP8 (kernels/weave.h) against five operand rows and more, for the AVX2 set. Part of simd.h.
 *
 * A tile of up to eight operand rows goes through a group of woven rows cut by cut, one half of the
 * lanes after the other, so that its sums are registers: what a line decodes to meets all of them.
 * Of many rows tiles of six are the fastest (README.md). The operands of a pass are copied in the
 * order in which tiles read them, made larger as woven weights want it; a group is then in the
 * second-level cache for all tiles of the pass. */

enum { MANY_TILE = 8, MANY_BEST = 6, MANY_STEPS = KERN_WOVEN_CUT / KERN_LANES };

/* Of each operand row of a tile, the totals of a group's rows. */
struct many_totals {
    float at[MANY_TILE][KERN_WOVEN_ROWS][KERN_LANES];
};

/* Floats of a cut of a tile's operands: [half of the lanes][step][row][8]. */
VEC_INLINE size_t many_cut(uint32_t rows)
{
    return (size_t)rows * KERN_WOVEN_CUT;
}

/* Totals += one cut of a group. */
VEC_INLINE void many_lines(uint32_t rows, const uint8_t *line, const float *x, __m256 scale,
                           struct many_totals *totals)
{
    for (uint32_t part = 0; part < 2; part++) {
        for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) {
            const uint8_t *from = line + r * KERN_WOVEN_CUT + part * WOVEN_HALF;
            __m256 sum[MANY_TILE];
            UNROLL for (uint32_t m = 0; m < rows; m++) sum[m] = _mm256_setzero_ps();
            UNROLL for (uint32_t piece = 0; piece < 2; piece++)
            {
                const struct woven_bits bits = woven_bits(from + piece * KERN_WOVEN);
                UNROLL for (uint32_t code = 0; code < 4; code++)
                {
                    const __m256 weights = woven_small(bits, code);
                    const float *value = x + (piece * 4 + code) * rows * 8;
                    UNROLL for (uint32_t m = 0; m < rows; m++)
                        sum[m] = _mm256_fmadd_ps(weights, _mm256_load_ps(value + m * 8), sum[m]);
                }
            }
            UNROLL for (uint32_t m = 0; m < rows; m++)
            {
                float *total = totals->at[m][r] + part * 8;
                _mm256_store_ps(total, _mm256_fmadd_ps(sum[m], scale, _mm256_load_ps(total)));
            }
        }
        x += many_cut(rows) / 2;
    }
}

/* Rows m .. m + rows of y for the group of row n; x is the tile's. */
VEC_INLINE void many_group(uint32_t rows, const struct kern_matmul *args, uint32_t n, uint32_t m,
                           const float *x)
{
    enum { EIGHT = 8 };
    const struct kern_matrix *w = args->w;
    const uint8_t *scales = scalar_scales(w, n), *line = kern_woven_row(w, n);
    _Alignas(64) struct many_totals totals;
    for (uint32_t i = 0, cut = 0; i < args->k_blocks; i++) {
        memset(&totals, 0, rows * sizeof totals.at[0]);
        for (; cut < cpu_range_begin(w, i + 1, args->k_blocks) / KERN_WOVEN_CUT; cut++) {
            many_lines(rows, line, x, _mm256_set1_ps(scalar_scale(KERN_FP8_WOVEN, scales, cut)),
                       &totals);
            line += KERN_WOVEN_ROWS * KERN_WOVEN_CUT;
            x += many_cut(rows);
        }
        for (uint32_t o = 0; o < rows; o++) {
            float part[KERN_WOVEN_ROWS], *y = args->y + (m + o) * args->y_stride + n;
            for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r += EIGHT)
                vec_tree_eight(part + r, totals.at[o][r]);
            for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) y[r] = i ? y[r] + part[r] : part[r];
        }
    }
}

/* A whole group of each size of tile, compiled for itself. */
#define MANY_GROUP(rows) \
    static __attribute__((noinline)) void many_group_##rows( \
        const struct kern_matmul *args, uint32_t n, uint32_t m, const float *x) \
    { \
        many_group(rows, args, n, m, x); \
    }
MANY_GROUP(4)
MANY_GROUP(5)
MANY_GROUP(6)
MANY_GROUP(7)
MANY_GROUP(8)
#undef MANY_GROUP

/* Copies a row of x, 2^120 times as large, to row `row` of a tile of `rows`; false as
 * woven_enlarge. */
VEC_INLINE bool many_copy(float *to, const float *x, uint32_t cols, uint32_t row, uint32_t rows)
{
    const size_t half = many_cut(rows) / 2;
    bool fits = true;
    for (uint32_t k = 0; k < cols; k += KERN_WOVEN_CUT, to += many_cut(rows)) {
        float cut[KERN_WOVEN_CUT] __attribute__((aligned(32)));
        fits &= woven_enlarge(cut, x + k, KERN_WOVEN_CUT);
        UNROLL for (uint32_t step = 0; step < MANY_STEPS; step++)
        {
            float *at = to + (step * rows + row) * 8;
            _mm256_store_ps(at, _mm256_load_ps(cut + step * KERN_LANES));
            _mm256_store_ps(at + half, _mm256_load_ps(cut + step * KERN_LANES + 8));
        }
    }
    return fits;
}

/* Groups of rows [begin, end), which are whole and each have the same scales, against the operand
 * rows of args, as many as have room in x. False: nothing is done, for one does not fit. */
static bool many_pass(const struct kern_matmul *args, uint32_t begin, uint32_t end, float *x)
{
    const uint32_t cols = args->w->cols;
    const uint32_t tiles = args->m <= MANY_TILE ? 1 : (args->m + MANY_BEST - 1) / MANY_BEST;
    for (uint32_t t = 0; t < tiles; t++) {
        const uint32_t m = args->m * t / tiles, rows = args->m * (t + 1) / tiles - m;
        for (uint32_t o = 0; o < rows; o++) {
            if (!many_copy(x + (size_t)m * cols, args->x + (m + o) * args->x_stride, cols, o, rows))
                return false;
        }
    }
    for (uint32_t n = begin; n < end; n += KERN_WOVEN_ROWS) {
        for (uint32_t t = 0; t < tiles; t++) {
            const uint32_t m = args->m * t / tiles, rows = args->m * (t + 1) / tiles - m;
            const float *tile = x + (size_t)m * cols;
            MUST(rows >= MANY_TILE / 2 && rows <= MANY_TILE);
            if (rows == 4) many_group_4(args, n, m, tile);
            else if (rows == 5) many_group_5(args, n, m, tile);
            else if (rows == 6) many_group_6(args, n, m, tile);
            else if (rows == 7) many_group_7(args, n, m, tile);
            else many_group_8(args, n, m, tile);
        }
    }
    return true;
}
