#include "kernels/quant.h"

#include "base/must.h"
#include "kernels/cpu/scalar.h"

enum { INT8_MAX_CODE = 127, INT4_MIN_CODE = -8, INT4_MAX_CODE = 7 };

/* The least bf16 that is not below `value` (>= 0): no code passes its end then. */
static uint16_t bf16_above(float value)
{
    const uint16_t code = scalar_to_bf16(value);
    return scalar_from_bf16(code) < value ? (uint16_t)(code + 1) : code;
}

static int code_of(float weight, float inverse, int low, int high)
{
    const float code = nearbyintf(weight * inverse);
    return code < (float)low ? low : code > (float)high ? high : (int)code;
}

/* Of 1/scale the reciprocal that codes are made with; 0 for a scale too small to have one. */
static float inverse_of(float scale)
{
    const float inverse = 1.0f / scale;
    return scale != 0.0f && isfinite(inverse) ? inverse : 0.0f;
}

/* With codes for this range, the scale that fits the group best, and how much of its energy that
 * explains: (sum w q)^2 / sum q^2. */
static double range_gain(const float *w, uint32_t n, float inverse, float *scale)
{
    double product = 0, square = 0;
    for (uint32_t i = 0; i < n; i++) {
        const int code = code_of(w[i], inverse, INT4_MIN_CODE, INT4_MAX_CODE);
        product += (double)w[i] * code;
        square += (double)code * code;
    }
    *scale = square > 0 ? (float)(product / square) : 0.0f;
    return square > 0 ? product * product / square : 0;
}

/* The weight that is largest without its sign is put at -8, at 7, or a little inside or outside:
 * codes are not symmetric, so the scale may be negative. */
static uint16_t int4_scale(const float *w, uint32_t n, float extreme)
{
    static const float ends[] = { -9.0f, -8.5f, -8.0f, -7.5f, -7.0f, -6.5f, -6.0f,
                                  8.0f,  7.5f,  7.0f,  6.5f,  6.0f,  5.5f };
    double best = -1;
    float chosen = 0;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        float scale;
        const double gain = range_gain(w, n, inverse_of(extreme / ends[i]), &scale);
        if (gain > best) {
            best = gain;
            chosen = scale;
        }
    }
    return scalar_to_bf16(chosen);
}

static void code_store(enum kern_dtype dtype, uint8_t *codes, uint32_t k, int code)
{
    if (dtype == KERN_INT8) {
        codes[k] = (uint8_t)code;
        return;
    }
    const uint32_t half = KERN_INT4_BLOCK / 2, within = k % KERN_INT4_BLOCK;
    uint8_t *at = codes + (size_t)(k / KERN_INT4_BLOCK) * half + within % half;
    *at = (uint8_t)(*at | (code & 15) << (within < half ? 0 : 4));
}

bool kern_quant_row(enum kern_dtype dtype, uint32_t group, const float *row, uint32_t cols,
                    uint8_t *codes, uint8_t *scales, struct kern_quant_error *error)
{
    MUST(kern_dtype_grouped(dtype) && (group == KERN_GROUP_SMALL || group == KERN_GROUP_LARGE));
    const int high = dtype == KERN_INT8 ? INT8_MAX_CODE : INT4_MAX_CODE;
    const int low = dtype == KERN_INT8 ? -INT8_MAX_CODE : INT4_MIN_CODE;
    memset(codes, 0, kern_row_bytes(dtype, cols));
    for (uint32_t begin = 0; begin < cols; begin += group) {
        const uint32_t n = cols - begin < group ? cols - begin : group;
        const float *w = row + begin;
        float extreme = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (!isfinite(w[i])) return false;
            if (fabsf(w[i]) > fabsf(extreme)) extreme = w[i];
        }
        const uint16_t code = dtype == KERN_INT8 ? bf16_above(fabsf(extreme) / INT8_MAX_CODE)
                                                 : int4_scale(w, n, extreme);
        const float scale = scalar_from_bf16(code), inverse = inverse_of(scale);
        if (!isfinite(scale)) return false;
        base_le_store16(scales + 2 * (size_t)(begin / group), code);
        for (uint32_t i = 0; i < n; i++) {
            const int q = code_of(w[i], inverse, low, high);
            const double off = (double)w[i] - (double)scale * q;
            code_store(dtype, codes, begin + i, q);
            error->energy += (double)w[i] * w[i];
            error->error += off * off;
        }
    }
    return true;
}
