/* INT8 and INT4 against rows of activations as integers of one digit or three. Part of simd.h.
 *
 * Integer sums of a group are exact, so only their conversion and scaling cost floating point. A
 * few weight rows go together, so that loads of activations are shared; with one operand row they
 * lie a quarter of the range apart, as in simd_matmul.h. */

/* Lane sums of one group by digit. */
struct x8_sums {
    struct ivec digit[KERN_X8_FULL];
};

/* What a row of activations starts the sums of 64 columns with, and its codes. */
VEC_INLINE struct x8_sums x8_begin(enum kern_dtype dtype, uint32_t digits, const struct cpu_x8 *x,
                                   uint32_t k)
{
    struct x8_sums sums;
    UNROLL for (uint32_t d = 0; d < digits; d++)
        sums.digit[d] = ivec_bias(dtype, x->sums + (d * x->filled + k) / 4);
    return sums;
}

VEC_INLINE void x8_dot(enum kern_dtype dtype, uint32_t digits, const uint8_t *w,
                       const struct cpu_x8 *x, uint32_t k, struct x8_sums *sums)
{
    const struct ivec weights = ivec_weights(dtype, w);
    UNROLL for (uint32_t d = 0; d < digits; d++) sums->digit[d] =
        ivec_dot(dtype, weights, x->codes + d * x->filled + k, sums->digit[d]);
}

/* total + the sums, each half of the lanes times its scale. */
VEC_INLINE struct vec x8_scaled(enum kern_dtype dtype, uint32_t digits, const struct x8_sums *sums,
                                struct vec scale, struct vec total)
{
    const struct vec value = digits == KERN_X8_FULL ? ivec_join(dtype, sums->digit)
                                                    : ivec_float(dtype, sums->digit[0]);
    return vec_fma(value, scale, total);
}

/* One weight row over a span of 128 columns from k on; `scale` holds weight scale x activation
 * scale. */
VEC_INLINE struct vec x8_span(enum kern_dtype dtype, uint32_t group, uint32_t digits,
                              const uint8_t *w, const struct cpu_x8 *x, uint32_t k,
                              const float *scale, struct vec total)
{
    struct x8_sums sums = x8_begin(dtype, digits, x, k);
    x8_dot(dtype, digits, w, x, k, &sums);
    if (group == KERN_GROUP_SMALL) {
        total = x8_scaled(dtype, digits, &sums, vec_pair(scale[0], scale[1]), total);
        sums = x8_begin(dtype, digits, x, k + 64);
    }
    x8_dot(dtype, digits, w + (dtype == KERN_INT4 ? 32 : 64), x, k + 64, &sums);
    return x8_scaled(dtype, digits, &sums,
                     group == KERN_GROUP_SMALL ? vec_pair(scale[2], scale[3]) : vec_set1(scale[0]),
                     total);
}

/* What is left of a row after its whole spans, filled up with zeros: codes and scales. */
VEC_INLINE void x8_tail(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t n, uint32_t k,
                        uint8_t codes[KERN_GROUP_LARGE])
{
    const size_t bytes = row_bytes(dtype, w->cols), at = dtype == KERN_INT4 ? k / 2 : k;
    memset(codes, 0, KERN_GROUP_LARGE);
    memcpy(codes, row_at(w, dtype, n) + at, bytes - at);
}

/* Weight scale x activation scale of `count` groups, zeros up to whole vectors and a span. */
VEC_INLINE void x8_scales(float *to, const uint8_t *weight, const float *x, uint32_t count)
{
    uint32_t i = 0;
    for (; i + KERN_LANES <= count; i += KERN_LANES)
        vec_store(to + i, vec_mul(vec_from_bf16(weight + 2 * (size_t)i), vec_load(x + i)));
    vec_store(to + i, vec_zero());
    if (i < count)
        vec_store(to + i, vec_mul(weight_load_part(KERN_BF16, weight, i, count - i),
                                  vec_load_part(x + i, count - i)));
}

/* y[r * step] = row n + r * step times one operand row, for `count` rows. */
VEC_INLINE void x8_rows(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t group,
                        uint32_t digits, uint32_t count, uint32_t n, uint32_t step, const void *x8,
                        float *y)
{
    const struct cpu_x8 x = cpu_x8_row(x8, w->cols, digits);
    const uint32_t whole = w->cols / KERN_GROUP_LARGE * KERN_GROUP_LARGE;
    float scale[VEC_GEMV_ROWS][GROUP_CHUNK_SCALES + KERN_LANES];
    struct vec total[VEC_GEMV_ROWS];
    UNROLL for (uint32_t r = 0; r < count; r++) total[r] = vec_zero();
    for (uint32_t chunk = 0; chunk < w->cols; chunk += GROUP_CHUNK) {
        const uint32_t columns = w->cols - chunk < GROUP_CHUNK ? w->cols - chunk : GROUP_CHUNK;
        const uint32_t end = whole - chunk < GROUP_CHUNK ? whole : chunk + GROUP_CHUNK;
        for (uint32_t r = 0; r < count; r++)
            x8_scales(scale[r], scalar_scales(w, n + r * step) + 2 * (size_t)(chunk / group),
                      x.scales + chunk / group, (columns + group - 1) / group);
        for (uint32_t k = chunk; k < end; k += KERN_GROUP_LARGE) {
            UNROLL for (uint32_t r = 0; r < count; r++)
            {
                const uint8_t *from =
                    row_at(w, dtype, n + r * step) + (dtype == KERN_INT4 ? k / 2 : k);
                total[r] = x8_span(dtype, group, digits, from, &x, k,
                                   scale[r] + (k - chunk) / group, total[r]);
            }
        }
        if (chunk + GROUP_CHUNK < w->cols || whole == w->cols) continue;
        for (uint32_t r = 0; r < count; r++) {
            uint8_t codes[KERN_GROUP_LARGE];
            x8_tail(w, dtype, n + r * step, whole, codes);
            total[r] = x8_span(dtype, group, digits, codes, &x, whole,
                               scale[r] + (whole - chunk) / group, total[r]);
        }
    }
    UNROLL for (uint32_t r = 0; r < count; r++) y[r * step] = vec_tree(total[r]);
}

VEC_INLINE void x8_block(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t group,
                         uint32_t digits, uint32_t count, uint32_t n, uint32_t step)
{
    for (uint32_t m = 0; m < args->m; m++)
        x8_rows(args->w, dtype, group, digits, count, n, step,
                (const char *)args->x8 + m * args->x8_stride, args->y + m * args->y_stride + n);
}

#define X8_OF(type, group, digits, name) \
    static void name(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end) \
    { \
        const uint32_t quarter = (row_end - row_begin) / VEC_GEMV_ROWS; \
        const uint32_t step = args->m > 1 ? 1 : quarter, next = args->m > 1 ? VEC_GEMV_ROWS : 1; \
        for (uint32_t i = 0; i < quarter; i++) \
            x8_block(args, type, group, digits, VEC_GEMV_ROWS, row_begin + i * next, step); \
        for (uint32_t n = row_begin + quarter * VEC_GEMV_ROWS; n < row_end; n++) \
            x8_block(args, type, group, digits, 1, n, 1); \
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
