/* INT8 and INT4 against rows of activations as integers of one digit or three. Part of simd.h.
 *
 * A span of 128 columns is two vectors of 64 codes (kern.h). INT8 against one digit goes row by
 * row: a single stream is what the processor's prefetcher follows best. Where loads of activations
 * cost more than those of weights two rows share them, half the range apart: two long streams, not
 * two short ones that start anew at each row. */

/* Scales of so many columns are made at a time. */
enum { X8_CHUNK = 2048, X8_CHUNK_SCALES = X8_CHUNK / KERN_GROUP_SMALL };

enum { X8_VECTORS = 2, X8_LINE = 64, X8_PAIR = 2, X8_LONG = 32 << 10, X8_LONG_INT4 = 20 << 10 };

/* What one row of activations holds of a span. */
struct x8_operand {
    struct ivec codes[X8_VECTORS][KERN_X8_FULL], start[X8_VECTORS][KERN_X8_FULL];
};

VEC_INLINE struct x8_operand x8_operand_load(enum kern_dtype dtype, uint32_t group,
                                             uint32_t digits, const struct cpu_x8 *x, uint32_t k)
{
    struct x8_operand o;
    UNROLL for (uint32_t v = 0; v < X8_VECTORS; v++)
    {
        const size_t at = k + v * X8_LINE;
        const bool first = group == KERN_GROUP_SMALL || v == 0;
        UNROLL for (uint32_t d = 0; d < digits; d++)
            o.codes[v][d] = ivec_load(x->codes + d * x->filled + at);
        if (!first) continue;
        UNROLL for (uint32_t d = 0; d < digits; d++)
        {
            if (dtype == KERN_INT8) {
                o.start[v][d] = ivec_start_int8(x->sums + (d * x->filled + at) / 4);
            } else {
                o.start[v][d] = d + 1 < digits ? ivec_zero() : ivec_start_int4(x->sums + at / 4);
            }
        }
    }
    return o;
}

/* The sums of one scale as numbers: of vector v, or, where there is one scale, of both. */
VEC_INLINE struct vec x8_value(enum kern_dtype dtype, uint32_t group, uint32_t digits,
                               const struct ivec w[X8_VECTORS], const struct x8_operand *o,
                               uint32_t v)
{
    const bool both = group == KERN_GROUP_LARGE;
    struct ivec sum[KERN_X8_FULL];
    UNROLL for (uint32_t d = 0; d < digits; d++)
    {
        sum[d] = o->start[v][d];
        sum[d] = ivec_dot(dtype, w[v], o->codes[v][d], sum[d]);
        if (both) sum[d] = ivec_dot(dtype, w[1], o->codes[1][d], sum[d]);
    }
    if (digits == KERN_X8_FAST) return ivec_float(sum[0]);
    if (dtype == KERN_INT4)
        return ivec_float(ivec_shift_add(ivec_shift_add(sum[0], sum[1]), sum[2]));
    const struct vec low = vec_fma(ivec_float(sum[1]), vec_set1(X8_BASE), ivec_float(sum[2]));
    return vec_fma(ivec_float(sum[0]), vec_set1(X8_BASE_2), low);
}

/* One weight row over a span; `scale` holds weight scale x activation scale by group. */
VEC_INLINE void x8_span(enum kern_dtype dtype, uint32_t group, uint32_t digits, const uint8_t *w,
                        const struct x8_operand *o, const float *scale,
                        struct vec total[X8_VECTORS])
{
    struct ivec weights[X8_VECTORS];
    ivec_weights(dtype, w, weights);
    const struct vec first = x8_value(dtype, group, digits, weights, o, 0);
    if (group == KERN_GROUP_LARGE) {
        total[0] = vec_fma(first, vec_set1(*scale), total[0]);
        return;
    }
    const struct vec second = x8_value(dtype, group, digits, weights, o, 1);
    struct vec scales[X8_VECTORS];
    vec_halves(dtype == KERN_INT4, scale, scales);
    total[0] = vec_fma(first, scales[0], total[0]);
    total[1] = vec_fma(second, scales[1], total[1]);
}

/* What is left of a row after its whole spans, filled up with zeros. */
VEC_INLINE void x8_tail(const struct kern_matrix *w, enum kern_dtype dtype, const uint8_t *row,
                        uint32_t k, uint8_t codes[KERN_GROUP_LARGE])
{
    const size_t bytes = row_bytes(dtype, w->cols), at = dtype == KERN_INT4 ? k / 2 : k;
    memset(codes, 0, KERN_GROUP_LARGE);
    memcpy(codes, row + at, bytes - at);
}

/* Weight scale x activation scale of `count` groups, zeros up to whole vectors and a span. */
VEC_INLINE void x8_scales(float *to, const uint8_t *weight, const float *x, uint32_t count)
{
    uint32_t i = 0;
    for (; i + KERN_LANES <= count; i += KERN_LANES)
        vec_store(to + i, vec_mul(vec_from_bf16(weight + 2 * (size_t)i), vec_load(x + i)));
    if (i == count) return;
    vec_store(to + i, vec_mul(weight_load_part(KERN_BF16, weight, i, count - i),
                              vec_load_part(x + i, count - i)));
}

/* Rows at equal distances, and their scales. */
struct x8_rows {
    const uint8_t *row, *scales;
    size_t row_step, scales_step;
    size_t ahead; /* bytes that rows are prefetched ahead in the order of memory; 0: not */
};

/* y[r * step] = row r times one operand row, for `count` rows. */
VEC_INLINE void x8_dots(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t group,
                        uint32_t digits, uint32_t count, const struct x8_rows *rows,
                        const void *x8, float *y, uint32_t step)
{
    const struct cpu_x8 x = cpu_x8_row(x8, w->cols, digits);
    const uint32_t cols = w->cols, whole = cols / KERN_GROUP_LARGE * KERN_GROUP_LARGE;
    _Alignas(64) float scale[VEC_GEMV_ROWS][X8_CHUNK_SCALES];
    struct vec total[VEC_GEMV_ROWS][X8_VECTORS];
    UNROLL for (uint32_t r = 0; r < count; r++) total[r][0] = total[r][1] = vec_zero();
    for (uint32_t chunk = 0; chunk < cols; chunk += X8_CHUNK) {
        const uint32_t columns = cols - chunk < X8_CHUNK ? cols - chunk : X8_CHUNK;
        const uint32_t end = whole - chunk < X8_CHUNK ? whole : chunk + X8_CHUNK;
        UNROLL for (uint32_t r = 0; r < count; r++)
            x8_scales(scale[r], rows->scales + r * rows->scales_step + chunk / group * 2,
                      x.scales + chunk / group, (columns + group - 1) / group);
        for (uint32_t k = chunk; k < end; k += KERN_GROUP_LARGE) {
            const struct x8_operand o = x8_operand_load(dtype, group, digits, &x, k);
            if (rows->ahead > 0) {
                const uint32_t lines = count * (dtype == KERN_INT4 ? 1 : X8_VECTORS);
                const uint8_t *from =
                    rows->row + rows->ahead + (size_t)k / KERN_GROUP_LARGE * lines * X8_LINE;
                UNROLL for (uint32_t i = 0; i < lines; i++)
                    __builtin_prefetch(from + i * X8_LINE, 0, 2);
            }
            UNROLL for (uint32_t r = 0; r < count; r++)
                x8_span(dtype, group, digits,
                        rows->row + r * rows->row_step + (dtype == KERN_INT4 ? k / 2 : k), &o,
                        scale[r] + (k - chunk) / group, total[r]);
        }
        if (chunk + X8_CHUNK < cols || whole == cols) continue;
        const struct x8_operand o = x8_operand_load(dtype, group, digits, &x, whole);
        UNROLL for (uint32_t r = 0; r < count; r++)
        {
            uint8_t codes[KERN_GROUP_LARGE];
            x8_tail(w, dtype, rows->row + r * rows->row_step, whole, codes);
            x8_span(dtype, group, digits, codes, &o, scale[r] + (whole - chunk) / group, total[r]);
        }
    }
    UNROLL for (uint32_t r = 0; r < count; r++)
    {
        const struct vec all =
            group == KERN_GROUP_SMALL ? vec_add(total[r][0], total[r][1]) : total[r][0];
        y[r * step] = vec_tree(all);
    }
}

/* Whether a row of activations takes so much of the first-level cache that each line of weights
 * waits for some of it: then four neighbouring rows share it, and the next four are prefetched
 * (README.md has the limits). */
VEC_INLINE bool x8_long(const struct kern_matmul *args, enum kern_dtype dtype)
{
    return args->m == 1 && kern_x8_bytes(args->w->cols, args->x8_digits) >
                               (dtype == KERN_INT4 ? X8_LONG_INT4 : X8_LONG);
}

/* INT8 against three digits takes about as long to multiply as to read: the processor looks too few
 * lines ahead to begin the next page of 4 KiB in time, and its prefetcher stops at each. So lines
 * are asked for two pages ahead, into the second-level cache, one long stream. Against one digit
 * this only costs (README.md). */
VEC_INLINE size_t x8_ahead(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t digits,
                           uint32_t count)
{
    if (x8_long(args, dtype)) return count > 1 ? count * row_bytes(dtype, args->w->cols) : 0;
    return args->m == 1 && dtype == KERN_INT8 && digits == KERN_X8_FULL ? VEC_X8_AHEAD : 0;
}

/* Blocks of `count` rows against all operand rows; returns the row after the last block. With one
 * short operand row a block's rows lie far apart, else they are neighbours. */
VEC_INLINE uint32_t x8_blocks(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t group,
                              uint32_t digits, uint32_t count, uint32_t row_begin, uint32_t row_end)
{
    const struct kern_matrix *w = args->w;
    const uint32_t blocks = (row_end - row_begin) / count;
    const bool near = args->m > 1 || x8_long(args, dtype);
    const uint32_t step = near ? 1 : blocks, next = near ? count : 1;
    const size_t bytes = row_bytes(dtype, w->cols), scales = (w->cols + group - 1) / group * 2;
    struct x8_rows rows = { (const uint8_t *)w->data + row_begin * bytes,
                            (const uint8_t *)w->scales + row_begin * scales, step * bytes,
                            step * scales, x8_ahead(args, dtype, digits, count) };
    for (uint32_t i = 0; i < blocks; i++) {
        for (uint32_t m = 0; m < args->m; m++)
            x8_dots(w, dtype, group, digits, count, &rows,
                    (const char *)args->x8 + m * args->x8_stride,
                    args->y + m * args->y_stride + row_begin + i * next, step);
        rows.row += next * bytes;
        rows.scales += next * scales;
    }
    return row_begin + blocks * count;
}

VEC_INLINE void x8_product(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t group,
                           uint32_t digits, uint32_t row_begin, uint32_t row_end)
{
    if (args->m > 1 || x8_long(args, dtype)) {
        row_begin = x8_blocks(args, dtype, group, digits, VEC_GEMV_ROWS, row_begin, row_end);
    } else if (dtype == KERN_INT4 || (digits == KERN_X8_FULL && group == KERN_GROUP_SMALL &&
                                      VEC_X8_AHEAD == 0)) {
        row_begin = x8_blocks(args, dtype, group, digits, X8_PAIR, row_begin, row_end);
    }
    x8_blocks(args, dtype, group, digits, 1, row_begin, row_end);
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

static void product_x8(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    /* [INT4][group of 128][three digits] */
    static void (*const products[2][2][2])(const struct kern_matmul *, uint32_t, uint32_t) = {
        { { x8_int8_small, x8_int8_small_full }, { x8_int8_large, x8_int8_large_full } },
        { { x8_int4_small, x8_int4_small_full }, { x8_int4_large, x8_int4_large_full } },
    };
    cpu_x8_check(args);
    products[args->w->dtype == KERN_INT4][args->w->scale_cols == KERN_GROUP_LARGE]
            [args->x8_digits == KERN_X8_FULL](args, row_begin, row_end);
}
