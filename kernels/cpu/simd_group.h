/* INT8 and INT4 against one operand row of f32. Part of simd.h.
 *
 * dot_rows of simd_matmul.h would do, but a group of 32 columns is two vectors: the loop over cuts
 * costs as much as they do. Here groups are unrolled, and their scales decoded some 64 at a time.
 */

enum { GROUP_CHUNK = 2048, GROUP_CHUNK_SCALES = GROUP_CHUNK / KERN_GROUP_SMALL };

/* `count` scales of one row, as f32. */
VEC_INLINE void group_scales(float *to, const uint8_t *scales, uint32_t count)
{
    const uint32_t whole = count / KERN_LANES * KERN_LANES;
    for (uint32_t i = 0; i < whole; i += KERN_LANES)
        vec_store(to + i, vec_from_bf16(scales + 2 * (size_t)i));
    if (whole < count)
        vec_store(to + whole, weight_load_part(KERN_BF16, scales, whole, count - whole));
}

/* Columns [0, 64) of one row of INT4 from `from` on, in groups of `group`. */
VEC_INLINE struct vec int4_block(uint32_t group, const uint8_t *from, const float *x,
                                 struct vec *lanes, const float *scale, struct vec total)
{
    const struct vec_pairs first = vec_int4_pairs(from), second = vec_int4_pairs(from + 16);
    *lanes = vec_fma(vec_int4_low(first), vec_load(x), *lanes);
    *lanes = vec_fma(vec_int4_low(second), vec_load(x + 16), *lanes);
    if (group == KERN_GROUP_SMALL) {
        total = vec_fma(*lanes, vec_set1(scale[0]), total);
        *lanes = vec_zero();
    }
    *lanes = vec_fma(vec_int4_high(first), vec_load(x + 32), *lanes);
    *lanes = vec_fma(vec_int4_high(second), vec_load(x + 48), *lanes);
    if (group == KERN_GROUP_SMALL) {
        total = vec_fma(*lanes, vec_set1(scale[1]), total);
        *lanes = vec_zero();
    }
    return total;
}

/* One row's columns [0, 128) from `from` on. */
VEC_INLINE struct vec group_span(enum kern_dtype dtype, uint32_t group, const uint8_t *from,
                                 const float *x, const float *scale, struct vec total)
{
    struct vec lanes = vec_zero();
    if (dtype == KERN_INT4) {
        total = int4_block(group, from, x, &lanes, scale, total);
        total = int4_block(group, from + 32, x + 64, &lanes, scale + 2, total);
        return group == KERN_GROUP_LARGE ? vec_fma(lanes, vec_set1(*scale), total) : total;
    }
    UNROLL for (uint32_t k = 0; k < KERN_GROUP_LARGE; k += KERN_LANES)
    {
        lanes = vec_fma(vec_from_int8(from + k), vec_load(x + k), lanes);
        if ((k + KERN_LANES) % group == 0) {
            total = vec_fma(lanes, vec_set1(scale[k / group]), total);
            lanes = vec_zero();
        }
    }
    return total;
}

/* out[r] = dot of row n + r with x over [k0, k1), for `count` rows; k0 is a multiple of 128. */
VEC_INLINE void dot_groups(const struct kern_matrix *w, enum kern_dtype dtype, uint32_t group,
                           uint32_t count, uint32_t n, const float *x, uint32_t k0, uint32_t k1,
                           float *out)
{
    const uint32_t whole = k1 / KERN_GROUP_LARGE * KERN_GROUP_LARGE;
    const size_t bytes = row_bytes(dtype, w->cols);
    float scale[VEC_GEMV_ROWS][GROUP_CHUNK_SCALES];
    struct vec total[VEC_GEMV_ROWS];
    UNROLL for (uint32_t r = 0; r < count; r++) total[r] = vec_zero();
    for (uint32_t chunk = k0; chunk < whole; chunk += GROUP_CHUNK) {
        const uint32_t end = whole - chunk < GROUP_CHUNK ? whole : chunk + GROUP_CHUNK;
        for (uint32_t r = 0; r < count; r++)
            group_scales(scale[r], scalar_scales(w, n + r) + 2 * (size_t)(chunk / group),
                         (end - chunk) / group);
        for (uint32_t k = chunk; k < end; k += KERN_GROUP_LARGE) {
            UNROLL for (uint32_t r = 0; r < count; r++)
            {
                const uint8_t *row = row_at(w, dtype, n + r);
                const uint8_t *from = row + (dtype == KERN_INT4 ? k / 2 : k);
                /* As for FP8: the rows that follow, a whole row group ahead. */
                __builtin_prefetch(from + count * bytes, 0, 3);
                if (dtype == KERN_INT8) __builtin_prefetch(from + count * bytes + 64, 0, 3);
                total[r] =
                    group_span(dtype, group, from, x + k, scale[r] + (k - chunk) / group, total[r]);
            }
        }
    }
    if (whole < k1) dot_cuts(w, dtype, true, count, n, 1, x, whole < k0 ? k0 : whole, k1, total);
    UNROLL for (uint32_t r = 0; r < count; r++) out[r] = vec_tree(total[r]);
}
