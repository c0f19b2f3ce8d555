/* INT8 and INT4 against rows of INT8 activations. Part of simd.h.
 *
 * Integer sums of a group are exact, so only their conversion and scaling cost floating point. One
 * operand row takes the weight rows one by one: a single stream is what the processor's prefetcher
 * keeps up with. Several take a few weight rows together, which stay in the first-level cache. */

/* One weight row over a span of 128 columns; `scale` holds weight scale x activation scale. */
VEC_INLINE struct vec x8_span(enum kern_dtype dtype, uint32_t group, const uint8_t *w,
                              const int8_t *x, const struct ivec *bias, const float *scale,
                              struct vec total)
{
    struct ivec sum = bias[0];
    sum = dtype == KERN_INT4 ? ivec_dot_int4(w, x, sum) : ivec_dot_int8(w, x, sum);
    if (group == KERN_GROUP_SMALL) {
        total = ivec_scale(sum, scale[0], scale[1], total);
        sum = bias[1];
    } else {
        sum = ivec_add(sum, bias[1]);
    }
    w += dtype == KERN_INT4 ? 32 : 64;
    sum = dtype == KERN_INT4 ? ivec_dot_int4(w, x + 64, sum) : ivec_dot_int8(w, x + 64, sum);
    return group == KERN_GROUP_SMALL ? ivec_scale(sum, scale[2], scale[3], total)
                                     : ivec_scale(sum, scale[0], scale[0], total);
}

/* What the codes of a span were moved up by, to start its sums with. */
VEC_INLINE void x8_bias(enum kern_dtype dtype, const int32_t *sums, struct ivec bias[2])
{
    const int shift = dtype == KERN_INT4 ? VEC_INT4_SHIFT : VEC_INT8_SHIFT;
    bias[0] = shift < 0 ? ivec_zero() : ivec_bias(sums, shift);
    bias[1] = shift < 0 ? ivec_zero() : ivec_bias(sums + KERN_LANES, shift);
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

/* y[r] = rows n + r times one operand row, for `count` rows. */
VEC_INLINE void x8_rows(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t group,
                        uint32_t count, uint32_t n, const void *x8, float *y)
{
    const struct cpu_x8 x = cpu_x8_row(x8, w->cols);
    const uint32_t whole = w->cols / KERN_GROUP_LARGE * KERN_GROUP_LARGE;
    float scale[VEC_GEMV_ROWS][GROUP_CHUNK_SCALES + KERN_LANES];
    struct vec total[VEC_GEMV_ROWS];
    struct ivec bias[2];
    UNROLL for (uint32_t r = 0; r < count; r++) total[r] = vec_zero();
    for (uint32_t chunk = 0; chunk < w->cols; chunk += GROUP_CHUNK) {
        const uint32_t columns = w->cols - chunk < GROUP_CHUNK ? w->cols - chunk : GROUP_CHUNK;
        const uint32_t end = whole - chunk < GROUP_CHUNK ? whole : chunk + GROUP_CHUNK;
        for (uint32_t r = 0; r < count; r++)
            x8_scales(scale[r], scalar_scales(w, n + r) + 2 * (size_t)(chunk / group),
                      x.scales + chunk / group, (columns + group - 1) / group);
        for (uint32_t k = chunk; k < end; k += KERN_GROUP_LARGE) {
            x8_bias(dtype, x.sums + k / 4, bias);
            UNROLL for (uint32_t r = 0; r < count; r++)
            {
                const uint8_t *from = row_at(w, dtype, n + r) + (dtype == KERN_INT4 ? k / 2 : k);
                total[r] = x8_span(dtype, group, from, x.codes + k, bias,
                                   scale[r] + (k - chunk) / group, total[r]);
            }
        }
        if (chunk + GROUP_CHUNK < w->cols || whole == w->cols) continue;
        x8_bias(dtype, x.sums + whole / 4, bias);
        for (uint32_t r = 0; r < count; r++) {
            uint8_t codes[KERN_GROUP_LARGE];
            x8_tail(w, dtype, n + r, whole, codes);
            total[r] = x8_span(dtype, group, codes, x.codes + whole, bias,
                               scale[r] + (whole - chunk) / group, total[r]);
        }
    }
    UNROLL for (uint32_t r = 0; r < count; r++) y[r] = vec_tree(total[r]);
}

VEC_INLINE void x8_block(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t group,
                         uint32_t count, uint32_t n)
{
    for (uint32_t m = 0; m < args->m; m++)
        x8_rows(args->w, dtype, group, count, n, (const char *)args->x8 + m * args->x8_stride,
                args->y + m * args->y_stride + n);
}

#define X8_OF(type, group, name) \
    static void name(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end) \
    { \
        uint32_t n = row_begin; \
        for (; args->m > 1 && row_end - n >= VEC_GEMV_ROWS; n += VEC_GEMV_ROWS) \
            x8_block(args, type, group, VEC_GEMV_ROWS, n); \
        for (; n < row_end; n++) \
            x8_block(args, type, group, 1, n); \
    }

X8_OF(KERN_INT8, KERN_GROUP_SMALL, x8_int8_small)
X8_OF(KERN_INT8, KERN_GROUP_LARGE, x8_int8_large)
X8_OF(KERN_INT4, KERN_GROUP_SMALL, x8_int4_small)
X8_OF(KERN_INT4, KERN_GROUP_LARGE, x8_int4_large)

static void product_x8(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    const bool small = args->w->scale_cols == KERN_GROUP_SMALL;
    cpu_x8_check(args);
    if (args->w->dtype == KERN_INT8)
        (small ? x8_int8_small : x8_int8_large)(args, row_begin, row_end);
    else
        (small ? x8_int4_small : x8_int4_large)(args, row_begin, row_end);
}
