/* Woven FP8 (kernels/weave.h) against up to FP8_SHARE_M operand rows, which are made larger. Part
 * of simd.h.
 *
 * A group is one pass through memory: cut by cut, and of each cut row by row against a cut of x in
 * registers, that of two operand rows at a time. Sums are scaled into totals in lines that every
 * cut touches: between groups nothing is looked at that has left the first-level cache.
 *
 * Against a single operand row two groups, half a range apart, go through their cuts in turn: from
 * two long streams of memory the prefetcher draws more than from one (README.md). */

#if defined(VEC_FP8_TABLES)

/* Operand rows that share decoding: a cut of both has room in registers. */
enum { WOVEN_PAIR = 2, WOVEN_AHEAD = 2, WOVEN_STREAMS = 2 };
enum { WOVEN_EIGHT = 8, WOVEN_X = FP8_CUT / KERN_LANES };
/* Bytes of a stream that are worth beginning a second one. */
enum { WOVEN_LONG = 192 * 1024 };

/* The totals of a group's rows, of each operand row; of two groups one after the other. */
struct woven_totals {
    float at[FP8_SHARE_M][KERN_WOVEN_ROWS][KERN_LANES];
};

/* Groups that are worked on together: their lines from a cut on, and their scales. */
struct woven_at {
    const uint8_t *lines[WOVEN_STREAMS], *scales[WOVEN_STREAMS];
};

/* `count` operand rows from m on, against one group or two. */
struct woven_shape {
    uint32_t streams, count;
};

/* The totals of a shape's operand rows += a cut of all rows. Lines are loaded in the order of
 * memory. */
VEC_INLINE void woven_cut(struct woven_shape shape, const struct kern_matmul *args, uint32_t m,
                          const struct woven_at *at, uint32_t cut, struct woven_totals *totals)
{
    struct vec value[WOVEN_PAIR][WOVEN_X];
    UNROLL for (uint32_t o = 0; o < shape.count; o++)
    {
        const float *x = args->x + (m + o) * args->x_stride + cut * FP8_CUT;
        UNROLL for (uint32_t i = 0; i < WOVEN_X; i++)
            value[o][i].all = vec_once(x + i * KERN_LANES);
    }
    /* More than one pair goes through a cut again, while nothing would come from DRAM. */
    const bool fetch = args->m > WOVEN_PAIR && m < 2 * WOVEN_PAIR;
    for (uint32_t g = 0; g < shape.streams; g++) {
        const struct vec scale = vec_set1(scalar_scale(KERN_FP8_WOVEN, at->scales[g], cut));
        const uint8_t *lines = at->lines[g];
        const uint8_t *ahead = lines + WOVEN_AHEAD * KERN_WOVEN_ROWS * FP8_CUT +
                               m / WOVEN_PAIR * KERN_WOVEN_ROWS * FP8_STEP;
        UNROLL_LONG for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++, lines += FP8_CUT)
        {
            struct vec sum[WOVEN_PAIR];
            if (fetch) __builtin_prefetch(ahead + r * FP8_STEP, 0, 2);
            UNROLL for (uint32_t o = 0; o < shape.count; o++) sum[o] = vec_zero();
            UNROLL for (uint32_t step = 0; step < FP8_CUT / FP8_STEP; step++)
            {
                struct vec weights[4];
                vec_from_woven_once(lines + step * FP8_STEP, weights);
                UNROLL for (uint32_t i = 0; i < 4; i++)
                {
                    UNROLL for (uint32_t o = 0; o < shape.count; o++)
                        sum[o] = vec_fma(weights[i], value[o][step * 4 + i], sum[o]);
                }
            }
            UNROLL for (uint32_t o = 0; o < shape.count; o++)
            {
                float *total = totals->at[m + o + g][r];
                vec_store(total, vec_fma(sum[o], scale, vec_load(total)));
            }
        }
    }
}

/* Totals += cuts [cut, end) of the rows of whole groups. */
VEC_INLINE void woven_cuts(uint32_t streams, bool one, const struct kern_matmul *args,
                           struct woven_at *at, uint32_t cut, uint32_t end,
                           struct woven_totals *totals)
{
    for (; cut < end; cut++) {
        uint32_t m = 0;
        for (; !one && args->m - m >= WOVEN_PAIR; m += WOVEN_PAIR)
            woven_cut((struct woven_shape){ 1, WOVEN_PAIR }, args, m, at, cut, totals);
        if (one || m < args->m)
            woven_cut((struct woven_shape){ streams, 1 }, args, m, at, cut, totals);
        for (uint32_t g = 0; g < streams; g++) at->lines[g] += KERN_WOVEN_ROWS * FP8_CUT;
    }
}

/* The totals of a group += a part of a cut, at the edge of a range. */
static __attribute__((noinline)) void woven_edge(const struct kern_matmul *args, uint32_t n,
                                                 uint32_t k, uint32_t end,
                                                 float (*totals)[KERN_WOVEN_ROWS][KERN_LANES])
{
    const struct vec_fp8 tables = vec_fp8_tables();
    for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) {
        const uint8_t *row = woven_row_at(args->w, n + r, k);
        for (uint32_t m = 0; m < args->m; m++) {
            float *total = totals[m][r];
            vec_store(total, fp8_part(FP8_WOVEN_SMALL, &tables, row, scalar_scales(args->w, n + r),
                                      args->x + m * args->x_stride, k, end, vec_load(total)));
        }
    }
}

/* Totals = a range of columns of the rows of `streams` whole groups, `apart` rows apart, of which
 * the first begins with row n. */
VEC_INLINE void woven_range(uint32_t streams, bool one, const struct kern_matmul *args, uint32_t n,
                            uint32_t apart, uint32_t k, uint32_t end, struct woven_totals *totals)
{
    struct woven_at at;
    for (uint32_t m = 0; m < (one ? streams : args->m); m++) {
        for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) vec_store(totals->at[m][r], vec_zero());
    }
    if (k % FP8_CUT && k < end) {
        const uint32_t edge = cpu_cut_end(k, end, FP8_CUT);
        for (uint32_t g = 0; g < streams; g++)
            woven_edge(args, n + g * apart, k, edge, &totals->at[g]);
        k = edge;
    }
    for (uint32_t g = 0; g < streams; g++) {
        at.lines[g] = kern_woven_row(args->w, n + g * apart) +
                      (size_t)(k / FP8_CUT) * KERN_WOVEN_ROWS * FP8_CUT;
        at.scales[g] = scalar_scales(args->w, n + g * apart);
    }
    woven_cuts(streams, one, args, &at, k / FP8_CUT, end / FP8_CUT, totals);
    for (uint32_t g = 0; g < streams && k < end && end % FP8_CUT; g++)
        woven_edge(args, n + g * apart, end / FP8_CUT * FP8_CUT, end, &totals->at[g]);
}

/* y of whole groups that are worked on together, each of whose rows share their scales. */
VEC_INLINE void woven_groups(uint32_t streams, bool one, const struct kern_matmul *args, uint32_t n,
                             uint32_t apart, struct woven_totals *totals)
{
    for (uint32_t i = 0; i < args->k_blocks; i++) {
        woven_range(streams, one, args, n, apart, cpu_range_begin(args->w, i, args->k_blocks),
                    cpu_range_begin(args->w, i + 1, args->k_blocks), totals);
        for (uint32_t m = 0; m < (one ? streams : args->m); m++) {
            float part[KERN_WOVEN_ROWS];
            float *y = args->y + n + (one ? m * apart : m * args->y_stride);
            for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r += WOVEN_EIGHT)
                vec_tree_eight(part + r, totals->at[m][r]);
            for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) y[r] = i ? y[r] + part[r] : part[r];
        }
    }
}

VEC_INLINE bool woven_whole(const struct kern_matmul *args, uint32_t n)
{
    return scalar_scales(args->w, n) == scalar_scales(args->w, n + KERN_WOVEN_ROWS - 1);
}

/* How far apart groups lie that two streams take from row n on: half of the whole groups that
 * follow there, the rows of each with the same scales. 0: they are too few. */
static uint32_t woven_streams_apart(const struct kern_matmul *args, uint32_t n, uint32_t row_end)
{
    uint32_t end = n;
    while (end % KERN_WOVEN_ROWS == 0 && end + KERN_WOVEN_ROWS <= row_end &&
           woven_whole(args, end))
        end += KERN_WOVEN_ROWS;
    const uint32_t apart = (end - n) / KERN_WOVEN_ROWS / WOVEN_STREAMS * KERN_WOVEN_ROWS;
    return (size_t)apart * args->w->cols < WOVEN_LONG ? 0 : apart;
}

/* Rows that make up no whole group, or one whose scales differ, go one by one. */
VEC_INLINE void woven_rows(bool one, const struct kern_matmul *args, uint32_t row_begin,
                           uint32_t row_end)
{
    _Alignas(64) struct woven_totals totals;
    for (uint32_t n = row_begin, next; n < row_end; n = next) {
        const uint32_t apart = one ? woven_streams_apart(args, n, row_end) : 0;
        const uint32_t end = n / KERN_WOVEN_ROWS * KERN_WOVEN_ROWS + KERN_WOVEN_ROWS;
        next = end < row_end ? end : row_end;
        if (apart > 0) {
            for (uint32_t i = 0; i < apart; i += KERN_WOVEN_ROWS)
                woven_groups(WOVEN_STREAMS, true, args, n + i, apart, &totals);
            next = n + WOVEN_STREAMS * apart;
        } else if (next - n == KERN_WOVEN_ROWS && woven_whole(args, n)) {
            woven_groups(1, one, args, n, 0, &totals);
        } else {
            fp8_product_few(FP8_WOVEN_SMALL, args, n, next);
        }
    }
}

static __attribute__((noinline)) void woven_one(const struct kern_matmul *args, uint32_t row_begin,
                                                uint32_t row_end)
{
    woven_rows(true, args, row_begin, row_end);
}

static __attribute__((noinline)) void woven_few(const struct kern_matmul *args, uint32_t row_begin,
                                                uint32_t row_end)
{
    woven_rows(false, args, row_begin, row_end);
}

/* x times 2^120, exactly; false where it would not be a float or is none. */
VEC_INLINE bool woven_enlarge(float *to, const float *x, uint32_t n)
{
    struct vec_magnitude most = vec_magnitude_zero();
    for (uint32_t k = 0; k < n; k += KERN_LANES) {
        const struct vec value = vec_load(x + k);
        most = vec_magnitude_most(most, value);
        vec_store(to + k, vec_mul(value, vec_set1(KERN_WOVEN_UP)));
    }
    return vec_magnitude_below(most, 0x1p8f);
}

enum { WOVEN_ROOM = 65536 }; /* floats for which there is room on a stack */

/* Woven weights come out 2^-120 too small: against an x that is 2^120 as large each multiply-add
 * gives the bits that the values give. */
static __attribute__((noinline)) void woven_product(const struct kern_matmul *args,
                                                    uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) float x[WOVEN_ROOM];
    const uint32_t cols = args->w->cols;
    struct kern_matmul enlarged = *args;
    enlarged.x = x;
    enlarged.x_stride = cols;
    bool fits = (size_t)args->m * cols <= WOVEN_ROOM;
    for (uint32_t m = 0; fits && m < args->m; m++)
        fits = woven_enlarge(x + (size_t)m * cols, args->x + m * args->x_stride, cols);
    if (!fits) fp8_product_few(FP8_WOVEN, args, row_begin, row_end);
    else if (args->m > 1) woven_few(&enlarged, row_begin, row_end);
    else woven_one(&enlarged, row_begin, row_end);
}

#endif
