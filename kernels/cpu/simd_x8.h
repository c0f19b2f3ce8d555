/* Tiles of INT8 and INT4 weights against rows of activations as integers of one digit or three.
 * Part of simd.h.
 *
 * A register of a tile holds four bytes of each of sixteen rows, a line two of them. The four codes
 * of an operand row are broadcast to all lanes, so a group's sums end up one row a lane, and one
 * conversion and one multiply-add serve 512 weights in groups of 32. A single operand row takes
 * whole lines: both registers share its broadcasts, and the tile is one stream of memory. Several
 * take one half of the lines after the other, and share loads and unpacking of weights.
 *
 * High nibbles may be left where they are, VEC_INT4_HIGH times too large: so then are the sums of
 * their groups, exactly, until they are floats. */

enum {
    X8_HALVES = KERN_TILE_ROWS / KERN_LANES,
    X8_REGISTER = KERN_LANES * KERN_TILE_BYTES,
    X8_LINE = KERN_TILE_ROWS * KERN_TILE_BYTES,
    X8_BATCH = 8,       /* lines of a block of 64 columns of INT4, of a small group of INT8 */
    X8_SPAN_GROUPS = KERN_X8_SPAN / KERN_GROUP_SMALL,
    X8_SPAN_LINES = KERN_X8_SPAN / KERN_TILE_BYTES,
    X8_SCALES = 2 * KERN_TILE_ROWS, /* bytes of a group's */
};

VEC_INLINE uint32_t x8_span_lines(enum kern_dtype dtype)
{
    return dtype == KERN_INT4 ? X8_SPAN_LINES / 2 : X8_SPAN_LINES;
}

/* What is multiplied together: `halves` of a tile's lines with `count` operand rows. */
struct x8_shape {
    enum kern_dtype dtype;
    uint32_t group, digits, halves, count;
};

/* Spans of the operand rows, and the totals of each half, from `half` on, against them. */
struct x8_operands {
    uint32_t half;
    const uint8_t *at[VEC_X8_ROWS_MOST];
    struct vec total[VEC_X8_ROWS_MOST][X8_HALVES];
};

/* Sums of one group by operand row, digit and half. */
struct x8_sums {
    struct ivec at[VEC_X8_ROWS_MOST][KERN_X8_FULL][X8_HALVES];
};

VEC_INLINE void x8_begin(const struct x8_shape s, const struct x8_operands *x, uint32_t group,
                         bool high, struct x8_sums *sums)
{
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        const uint8_t *starts = x->at[m] + s.digits * KERN_X8_SPAN + 4 * group * s.digits;
        UNROLL for (uint32_t d = 0; d < s.digits; d++)
        {
            struct ivec start = ivec_start(s.dtype, starts + 4 * d);
            if (high) start = ivec_raised(start);
            UNROLL for (uint32_t h = 0; h < s.halves; h++) sums->at[m][d][h] = start;
        }
    }
}

/* sums += a line times the four codes from `column` of the span on. */
VEC_INLINE void x8_line(const struct x8_shape s, const struct ivec line[X8_HALVES],
                        const struct x8_operands *x, uint32_t column, struct x8_sums *sums)
{
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        UNROLL for (uint32_t d = 0; d < s.digits; d++)
        {
            const struct ivec four = ivec_four(x->at[m] + d * KERN_X8_SPAN + column);
            UNROLL for (uint32_t h = 0; h < s.halves; h++)
                sums->at[m][d][h] = ivec_dot(s.dtype, line[h], four, sums->at[m][d][h]);
        }
    }
}

VEC_INLINE struct vec x8_times(struct vec a, float factor)
{
    return factor == 1 ? a : vec_mul(a, vec_set1(factor));
}

/* What a group adds to the totals; `high`: its sums are VEC_INT4_HIGH times too large. */
VEC_INLINE void x8_end(const struct x8_shape s, const uint8_t *scales, uint32_t group, bool high,
                       const struct x8_sums *sums, struct x8_operands *x)
{
    const float unit = high ? 1.0f / VEC_INT4_HIGH : 1.0f;
    struct vec weight[X8_HALVES];
    UNROLL for (uint32_t h = 0; h < s.halves; h++)
        weight[h] = vec_from_bf16_pairs(scales, s.halves == X8_HALVES ? h : x->half);
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        float scale;
        memcpy(&scale, x->at[m] + s.digits * (KERN_X8_SPAN + 4 * X8_SPAN_GROUPS) + 4 * group,
               sizeof scale);
        UNROLL for (uint32_t h = 0; h < s.halves; h++)
        {
            struct vec value = ivec_float(sums->at[m][0][h]);
            if (s.digits == KERN_X8_FULL) {
                const struct vec low = vec_fma(ivec_float(sums->at[m][1][h]),
                                               vec_set1(X8_BASE * unit),
                                               x8_times(ivec_float(sums->at[m][2][h]), unit));
                value = vec_fma(value, vec_set1(X8_BASE_2 * unit), low);
            } else {
                value = x8_times(value, unit);
            }
            const struct vec factor = vec_mul(weight[h], vec_set1(scale));
            x->total[m][h] = vec_fma(value, factor, x->total[m][h]);
        }
    }
}

/* What is written before is loaded before: the compiler would move a far line to the front, and the
 * processor's prefetcher follows ascending addresses (README.md). */
VEC_INLINE void x8_in_order(const struct x8_shape s)
{
    if (s.count == 1) __asm__ volatile("" ::: "memory");
}

VEC_INLINE void x8_span_int8(const struct x8_shape s, const uint8_t *lines, const uint8_t *scales,
                             struct x8_operands *x)
{
    for (uint32_t g = 0; g < KERN_X8_SPAN / s.group; g++) {
        struct x8_sums sums;
        x8_begin(s, x, g, false, &sums);
        for (uint32_t k = g * s.group; k < (g + 1) * s.group; k += X8_BATCH * KERN_TILE_BYTES) {
            UNROLL for (uint32_t i = 0; i < X8_BATCH; i++)
            {
                struct ivec line[X8_HALVES];
                UNROLL for (uint32_t h = 0; h < s.halves; h++)
                    line[h] = ivec_int8(lines + i * X8_LINE + (x->half + h) * X8_REGISTER);
                x8_line(s, line, x, k + i * KERN_TILE_BYTES, &sums);
                x8_in_order(s);
            }
            lines += X8_BATCH * X8_LINE;
        }
        x8_end(s, scales + g * X8_SCALES, g, false, &sums, x);
    }
}

/* INT4 against three digits takes as long to multiply as to read: the processor looks too few
 * lines ahead to begin the next page of 4 KiB in time, and its prefetcher stops at each. So lines
 * are asked for two pages ahead, into the second-level cache. All others this only costs
 * (README.md). */
VEC_INLINE void x8_fetch(const struct x8_shape s, const uint8_t *from, uint32_t bytes)
{
    enum { AHEAD = 8192 };
    if (s.digits != KERN_X8_FULL || s.count > 1 || s.halves < X8_HALVES) return;
    UNROLL for (uint32_t i = 0; i < bytes; i += X8_REGISTER)
        __builtin_prefetch(from + AHEAD + i, 0, 2);
}

/* A block of 64 columns has two small groups, one in the low nibbles and one in the high ones; the
 * sums of a large one are kept apart likewise, and start once: a second start's room is zero. */
VEC_INLINE void x8_span_int4(const struct x8_shape s, const uint8_t *lines, const uint8_t *scales,
                             struct x8_operands *x)
{
    enum { HALF = KERN_INT4_BLOCK / 2, BLOCKS = KERN_X8_SPAN / KERN_INT4_BLOCK };
    const bool small = s.group == KERN_GROUP_SMALL;
    struct x8_sums low, high;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        if (small || b == 0) {
            x8_begin(s, x, 2 * b, false, &low);
            x8_begin(s, x, 2 * b + 1, true, &high);
        }
        UNROLL for (uint32_t i = 0; i < X8_BATCH; i++)
        {
            const uint32_t column = b * KERN_INT4_BLOCK + i * KERN_TILE_BYTES;
            const uint8_t *from = lines + i * X8_LINE;
            struct ivec first[X8_HALVES], second[X8_HALVES];
            x8_fetch(s, from, X8_LINE);
            UNROLL for (uint32_t h = 0; h < s.halves; h++)
                ivec_int4(from + (x->half + h) * X8_REGISTER, &first[h], &second[h]);
            x8_line(s, first, x, column, &low);
            x8_line(s, second, x, column + HALF, &high);
            x8_in_order(s);
        }
        lines += X8_BATCH * X8_LINE;
        if (small) {
            x8_end(s, scales + 2 * b * X8_SCALES, 2 * b, false, &low, x);
            x8_end(s, scales + (2 * b + 1) * X8_SCALES, 2 * b + 1, true, &high, x);
        }
    }
    if (small) return;
    UNROLL for (uint32_t m = 0; m < s.count; m++)
    {
        UNROLL for (uint32_t d = 0; d < s.digits; d++)
        {
            UNROLL for (uint32_t h = 0; h < s.halves; h++)
                low.at[m][d][h] = ivec_add(low.at[m][d][h], ivec_lowered(high.at[m][d][h]));
        }
    }
    x8_end(s, scales, 0, false, &low, x);
}

VEC_INLINE void x8_span(const struct x8_shape s, const uint8_t *lines, const uint8_t *scales,
                        struct x8_operands *x)
{
    if (s.dtype == KERN_INT4) x8_span_int4(s, lines, scales, x);
    else x8_span_int8(s, lines, scales, x);
    UNROLL for (uint32_t m = 0; m < s.count; m++) x->at[m] += kern_x8_span_bytes(s.digits);
}

/* One tile of a matrix. */
struct x8_tile {
    const uint8_t *codes, *scales;
    uint32_t first, rows, cols;
};

VEC_INLINE struct x8_tile x8_tile_at(const struct kern_matrix *w, enum kern_dtype dtype,
                                     uint32_t n)
{
    const uint32_t left = w->rows - n;
    return (struct x8_tile){ row_at(w, dtype, n), scalar_scales(w, n), n,
                             left < KERN_TILE_ROWS ? left : KERN_TILE_ROWS, w->cols };
}

struct x8_filled {
    _Alignas(64) uint8_t lines[X8_SPAN_LINES * X8_LINE];
    uint8_t scales[X8_SPAN_GROUPS * KERN_TILE_ROWS * 2];
};

/* The span at k filled up with zeros to whole lines and all columns. */
static void x8_fill(struct x8_filled *to, enum kern_dtype dtype, uint32_t group,
                    const struct x8_tile *t, uint32_t k)
{
    const size_t bytes = row_bytes(dtype, t->cols), whole = bytes / KERN_TILE_BYTES;
    const size_t first = (dtype == KERN_INT4 ? k / 2 : k) / KERN_TILE_BYTES;
    const size_t groups = (t->cols + group - 1) / group, rest = bytes % KERN_TILE_BYTES;
    memset(to, 0, sizeof *to);
    for (size_t i = 0; i < x8_span_lines(dtype); i++) {
        uint8_t *line = to->lines + i * X8_LINE;
        const uint8_t *from = t->codes + (first + i) * t->rows * KERN_TILE_BYTES;
        if (first + i < whole) memcpy(line, from, t->rows * KERN_TILE_BYTES);
        for (uint32_t r = 0; first + i == whole && rest && r < t->rows; r++)
            memcpy(line + r * KERN_TILE_BYTES, from + r * rest, rest);
    }
    for (size_t g = k / group, i = 0; g < groups && i < KERN_X8_SPAN / group; g++, i++)
        for (uint32_t r = 0; r < t->rows; r++) {
            memcpy(to->scales + i * X8_SCALES + 2 * kern_tile_scale_at(KERN_TILE_ROWS, r),
                   t->scales + 2 * (g * t->rows + kern_tile_scale_at(t->rows, r)), 2);
        }
}

/* Halves from `half` on of a tile against operand rows from m on. */
VEC_INLINE void x8_dots(const struct x8_shape s, const struct kern_matmul *args,
                        const struct x8_tile *t, uint32_t half, uint32_t m, struct x8_operands *x)
{
    const uint32_t whole = t->rows == KERN_TILE_ROWS ? t->cols / KERN_X8_SPAN * KERN_X8_SPAN : 0;
    const uint8_t *lines = t->codes, *scales = t->scales;
    x->half = half;
    UNROLL for (uint32_t i = 0; i < s.count; i++)
    {
        x->at[i] = (const uint8_t *)args->x8 + (m + i) * args->x8_stride;
        UNROLL for (uint32_t h = 0; h < s.halves; h++) x->total[i][h] = vec_zero();
    }
    for (uint32_t k = 0; k < whole; k += KERN_X8_SPAN) {
        x8_span(s, lines, scales, x);
        lines += x8_span_lines(s.dtype) * X8_LINE;
        scales += KERN_X8_SPAN / s.group * KERN_TILE_ROWS * 2;
    }
    for (uint32_t k = whole; k < t->cols; k += KERN_X8_SPAN) {
        struct x8_filled filled;
        x8_fill(&filled, s.dtype, s.group, t, k);
        x8_span(s, filled.lines, filled.scales, x);
    }
}

/* Those of sixteen rows from n on that lie in [row_begin, row_end). */
VEC_INLINE void x8_store(float *y, struct vec rows, uint32_t n, uint32_t row_begin,
                         uint32_t row_end)
{
    float all[KERN_LANES];
    if (n >= row_begin && n + KERN_LANES <= row_end) {
        vec_store(y + n, rows);
        return;
    }
    vec_store(all, rows);
    for (uint32_t r = 0; r < KERN_LANES; r++) {
        if (n + r >= row_begin && n + r < row_end) y[n + r] = all[r];
    }
}

/* A tile against operand rows from m on, a half or both at a time. */
VEC_INLINE void x8_tile_rows(const struct x8_shape s, const struct kern_matmul *args,
                             const struct x8_tile *t, uint32_t m, uint32_t row_begin,
                             uint32_t row_end)
{
    for (uint32_t half = 0; half < X8_HALVES; half += s.halves) {
        struct x8_operands x;
        x8_dots(s, args, t, half, m, &x);
        for (uint32_t i = 0; i < s.count; i++) {
            UNROLL for (uint32_t h = 0; h < s.halves; h++)
                x8_store(args->y + (m + i) * args->y_stride, x.total[i][h],
                         t->first + (half + h) * KERN_LANES, row_begin, row_end);
        }
    }
}

VEC_INLINE void x8_product(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t group,
                           uint32_t digits, uint32_t row_begin, uint32_t row_end)
{
    const uint32_t most = digits == KERN_X8_FAST ? VEC_X8_ROWS_FAST : VEC_X8_ROWS_FULL;
    for (uint32_t n = row_begin / KERN_TILE_ROWS * KERN_TILE_ROWS; n < row_end;
         n += KERN_TILE_ROWS) {
        const struct x8_tile t = x8_tile_at(args->w, dtype, n);
        uint32_t m = 0;
        for (; most > 1 && args->m - m >= most; m += most)
            x8_tile_rows((struct x8_shape){ dtype, group, digits, 1, most }, args, &t, m,
                         row_begin, row_end);
        for (; most > 4 && args->m - m >= 4; m += 4)
            x8_tile_rows((struct x8_shape){ dtype, group, digits, 1, 4 }, args, &t, m, row_begin,
                         row_end);
        for (; most > 2 && args->m - m >= 2; m += 2)
            x8_tile_rows((struct x8_shape){ dtype, group, digits, 1, 2 }, args, &t, m, row_begin,
                         row_end);
        for (; m < args->m; m++)
            x8_tile_rows((struct x8_shape){ dtype, group, digits, VEC_X8_HALVES, 1 }, args, &t, m,
                         row_begin, row_end);
    }
}

#define X8_OF(type, group, digits, name) \
    static void name(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end) \
    { \
        x8_product(args, type, group, digits, row_begin, row_end); \
    }

X8_OF(KERN_INT8, KERN_GROUP_SMALL, KERN_X8_FAST, x8_int8_small)
X8_OF(KERN_INT8, KERN_GROUP_LARGE, KERN_X8_FAST, x8_int8_large)
X8_OF(KERN_INT4, KERN_GROUP_SMALL, KERN_X8_FAST, x8_int4_small)
X8_OF(KERN_INT4, KERN_GROUP_LARGE, KERN_X8_FAST, x8_int4_large)
X8_OF(KERN_INT8, KERN_GROUP_SMALL, KERN_X8_FULL, x8_int8_small_full)
X8_OF(KERN_INT8, KERN_GROUP_LARGE, KERN_X8_FULL, x8_int8_large_full)
X8_OF(KERN_INT4, KERN_GROUP_SMALL, KERN_X8_FULL, x8_int4_small_full)
X8_OF(KERN_INT4, KERN_GROUP_LARGE, KERN_X8_FULL, x8_int4_large_full)

static void simd_matmul_x8(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    /* [INT4][group of 128][three digits] */
    static void (*const products[2][2][2])(const struct kern_matmul *, uint32_t, uint32_t) = {
        { { x8_int8_small, x8_int8_small_full }, { x8_int8_large, x8_int8_large_full } },
        { { x8_int4_small, x8_int4_small_full }, { x8_int4_large, x8_int4_large_full } },
    };
    cpu_x8_check(args, row_begin, row_end);
    products[args->w->dtype == KERN_INT4][args->w->scale_cols == KERN_GROUP_LARGE]
            [args->x8_digits == KERN_X8_FULL](args, row_begin, row_end);
}
