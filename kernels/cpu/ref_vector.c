/* Norms, activation, rotation, sums and conversions over one vector, scalar. */
#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"

float kern_exp(float x)
{
    return scalar_exp(x);
}

void kern_ref_rmsnorm(float *y, const float *x, const float *weight, uint32_t n, float eps)
{
    float lanes[KERN_LANES] = { 0 };
    for (uint64_t k = 0; k < n; k += KERN_LANES) {
        for (uint32_t j = 0; j < KERN_LANES; j++) {
            const float value = k + j < n ? x[k + j] : 0.0f;
            lanes[j] = fmaf(value, value, lanes[j]);
        }
    }
    for (uint32_t width = KERN_LANES / 2; width > 0; width /= 2) {
        for (uint32_t j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    }
    const float inverse = 1.0f / sqrtf(lanes[0] / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * inverse * weight[i];
}

void kern_ref_swiglu(float *y, const float *gate, const float *up, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = scalar_silu(gate[i]) * up[i];
}

void kern_ref_rope(float *x, const float *cos, const float *sin, uint32_t dims, bool interleaved)
{
    const uint32_t pairs = dims / 2;
    MUST(dims % 2 == 0);
    for (uint32_t i = 0; i < pairs; i++) {
        float *a = interleaved ? &x[2 * i] : &x[i];
        float *b = interleaved ? &x[2 * i + 1] : &x[i + pairs];
        const float first = *a * cos[i] - *b * sin[i];
        const float second = *b * cos[i] + *a * sin[i];
        *a = first;
        *b = second;
    }
}

void kern_ref_axpy(float *y, float a, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}

void kern_ref_add(float *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i];
}

float kern_ref_highest(const float *x, uint32_t n)
{
    float most = x[0], odd = 0.0f;      /* x * 0 is 0, but for what is not finite */
    for (uint32_t i = 0; i < n; i++) {
        most = x[i] > most ? x[i] : most;
        odd = fmaf(x[i], 0.0f, odd);
    }
    return most + odd;
}

void kern_ref_shares(float *y, const float *x, uint32_t n, float base, float scale, float *sums)
{
    for (uint32_t first = 0; first < n; first += KERN_SHARE_BLOCK) {
        const uint32_t count = n - first < KERN_SHARE_BLOCK ? n - first : KERN_SHARE_BLOCK;
        float lanes[KERN_LANES] = { 0 };
        for (uint32_t i = 0; i < count; i++) {
            const float share = scalar_exp((x[first + i] - base) * scale);
            y[first + i] = share;
            lanes[i % KERN_LANES] += share;
        }
        for (uint32_t width = KERN_LANES / 2; width > 0; width /= 2) {
            for (uint32_t j = 0; j < width; j++)
                lanes[j] += lanes[j + width];
        }
        sums[first / KERN_SHARE_BLOCK] = lanes[0];
    }
}

void kern_ref_to_f32(float *y, const void *x, enum kern_dtype dtype, size_t n)
{
    MUST(dtype != KERN_FP8_WOVEN);
    if (dtype == KERN_F32) {
        memmove(y, x, n * sizeof *y);
        return;
    }
    for (size_t i = 0; i < n; i++)
        y[i] = scalar_weight(dtype, x, i);
}

void kern_ref_to_x8(void *row, const float *x, uint32_t n, enum kern_dtype dtype, uint32_t group,
                    uint32_t digits)
{
    MUST(kern_dtype_grouped(dtype));
    MUST(group == KERN_GROUP_SMALL || group == KERN_GROUP_LARGE);
    scalar_to_x8(row, x, n, dtype, group, digits);
}

void kern_ref_to_bf16(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = scalar_to_bf16(x[i]);
}
