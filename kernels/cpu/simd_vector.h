/* Norms, activation, sums and conversions over one vector. Part of simd.h. */

static void simd_rmsnorm(float *y, const float *x, const float *weight, uint32_t n, float eps)
{
    const uint32_t whole = n / KERN_LANES * KERN_LANES, rest = n - whole;
    struct vec lanes = vec_zero();
    for (uint32_t k = 0; k < whole; k += KERN_LANES) {
        const struct vec value = vec_load(x + k);
        lanes = vec_fma(value, value, lanes);
    }
    if (rest) {
        const struct vec value = vec_load_part(x + whole, rest);
        lanes = vec_fma(value, value, lanes);
    }
    const float inverse = 1.0f / sqrtf(vec_tree(lanes) / (float)n + eps);
    const struct vec factor = vec_set1(inverse);
    for (uint32_t i = 0; i < whole; i += KERN_LANES)
        vec_store(y + i, vec_mul(vec_mul(vec_load(x + i), factor), vec_load(weight + i)));
    if (rest) {
        const struct vec value = vec_mul(vec_load_part(x + whole, rest), factor);
        vec_store_part(y + whole, vec_mul(value, vec_load_part(weight + whole, rest)), rest);
    }
}

VEC_INLINE struct vec silu(struct vec x)
{
    return vec_div(x, vec_add(vec_set1(1.0f), vec_exp(vec_negate(x))));
}

static void simd_swiglu(float *y, const float *gate, const float *up, uint32_t n)
{
    const uint32_t whole = n / KERN_LANES * KERN_LANES, rest = n - whole;
    for (uint32_t i = 0; i < whole; i += KERN_LANES)
        vec_store(y + i, vec_mul(silu(vec_load(gate + i)), vec_load(up + i)));
    if (rest) {
        const struct vec value = silu(vec_load_part(gate + whole, rest));
        vec_store_part(y + whole, vec_mul(value, vec_load_part(up + whole, rest)), rest);
    }
}

static void simd_axpy(float *y, float a, const float *x, uint32_t n)
{
    const uint32_t whole = n / KERN_LANES * KERN_LANES, rest = n - whole;
    const struct vec factor = vec_set1(a);
    for (uint32_t i = 0; i < whole; i += KERN_LANES)
        vec_store(y + i, vec_fma(factor, vec_load(x + i), vec_load(y + i)));
    if (rest) {
        const struct vec sum = vec_load_part(y + whole, rest);
        vec_store_part(y + whole, vec_fma(factor, vec_load_part(x + whole, rest), sum), rest);
    }
}

static void simd_add(float *y, const float *x, uint32_t n)
{
    const uint32_t whole = n / KERN_LANES * KERN_LANES, rest = n - whole;
    for (uint32_t i = 0; i < whole; i += KERN_LANES)
        vec_store(y + i, vec_add(vec_load(y + i), vec_load(x + i)));
    if (rest) {
        const struct vec sum = vec_load_part(y + whole, rest);
        vec_store_part(y + whole, vec_add(sum, vec_load_part(x + whole, rest)), rest);
    }
}

static float simd_highest(const float *x, uint32_t n)
{
    const uint32_t whole = n / KERN_LANES * KERN_LANES, rest = n - whole;
    float lanes[KERN_LANES], most = x[0];
    struct vec high = vec_set1(x[0]), odd = vec_zero();
    for (uint32_t i = 0; i < whole; i += KERN_LANES) {
        const struct vec value = vec_load(x + i);
        high = vec_max(value, high);
        odd = vec_fma(value, vec_zero(), odd);
    }
    if (rest) odd = vec_fma(vec_load_part(x + whole, rest), vec_zero(), odd);
    vec_store(lanes, high);
    for (uint32_t j = 0; j < KERN_LANES; j++)
        most = lanes[j] > most ? lanes[j] : most;
    for (uint32_t i = whole; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most + vec_tree(odd);
}

static void simd_shares(float *y, const float *x, uint32_t n, float base, float scale, float *sums)
{
    const struct vec from = vec_set1(base), factor = vec_set1(scale);
    for (uint32_t first = 0; first < n; first += KERN_SHARE_BLOCK) {
        const uint32_t end = n - first < KERN_SHARE_BLOCK ? n : first + KERN_SHARE_BLOCK;
        const uint32_t rest = (end - first) % KERN_LANES, whole = end - rest;
        struct vec lanes = vec_zero();
        for (uint32_t i = first; i < whole; i += KERN_LANES) {
            const struct vec share = vec_exp(vec_mul(vec_sub(vec_load(x + i), from), factor));
            vec_store(y + i, share);
            lanes = vec_add(lanes, share);
        }
        if (rest) {
            const struct vec value = vec_load_part(x + whole, rest);
            vec_store_part(y + whole, vec_exp(vec_mul(vec_sub(value, from), factor)), rest);
            lanes = vec_add(lanes, vec_load_part(y + whole, rest));
        }
        sums[first / KERN_SHARE_BLOCK] = vec_tree(lanes);
    }
}

VEC_INLINE void convert(enum kern_dtype dtype, float *y, const uint8_t *x, size_t n)
{
    const size_t whole = n / KERN_LANES * KERN_LANES;
    const uint32_t rest = (uint32_t)(n - whole);
    for (size_t i = 0; i < whole; i += KERN_LANES)
        vec_store(y + i, weight_load(dtype, x, i));
    if (rest) {
        vec_store_part(y + whole, weight_load_part(dtype, x, whole, rest), rest);
    }
}

static void simd_to_f32(float *y, const void *x, enum kern_dtype dtype, size_t n)
{
    switch (dtype) {
    case KERN_F16:
        convert(KERN_F16, y, x, n);
        break;
    case KERN_BF16:
        convert(KERN_BF16, y, x, n);
        break;
    case KERN_FP8_E4M3:
        convert(KERN_FP8_E4M3, y, x, n);
        break;
    case KERN_INT8:
        convert(KERN_INT8, y, x, n);
        break;
    case KERN_INT4:
        convert(KERN_INT4, y, x, n);
        break;
    default:
        kern_ref_to_f32(y, x, dtype, n);
    }
}

#define TO_X8(type, group) \
    (digits == KERN_X8_FULL ? scalar_to_x8(row, x, n, type, group, KERN_X8_FULL) \
                            : scalar_to_x8(row, x, n, type, group, KERN_X8_FAST))

static void simd_to_x8(void *row, const float *x, uint32_t n, enum kern_dtype dtype,
                       uint32_t group, uint32_t digits)
{
    MUST(kern_dtype_grouped(dtype));
    MUST(group == KERN_GROUP_SMALL || group == KERN_GROUP_LARGE);
    MUST(digits == KERN_X8_FAST || digits == KERN_X8_FULL);
    if (dtype == KERN_INT8 && group == KERN_GROUP_SMALL)
        TO_X8(KERN_INT8, KERN_GROUP_SMALL);
    else if (dtype == KERN_INT8)
        TO_X8(KERN_INT8, KERN_GROUP_LARGE);
    else if (group == KERN_GROUP_SMALL)
        TO_X8(KERN_INT4, KERN_GROUP_SMALL);
    else
        TO_X8(KERN_INT4, KERN_GROUP_LARGE);
}

static void simd_to_bf16(uint16_t *y, const float *x, size_t n)
{
    const size_t whole = n / KERN_LANES * KERN_LANES;
    for (size_t i = 0; i < whole; i += KERN_LANES)
        vec_to_bf16(y + i, vec_load(x + i));
    kern_ref_to_bf16(y + whole, x + whole, n - whole);
}
