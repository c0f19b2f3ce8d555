#include "tests/cudahost/cases.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include <cuda_runtime.h>
#include "tests/support/guard.h"

const struct cuda_kernel cuda_kernels[] = {
    { "rmsnorm", case_rmsnorm }, { "rope", case_rope },
    { "latent", case_latent },   { "gate", case_gate },
    { "combine", case_combine }, { "greedy", case_greedy },
    { "experts", case_experts }, { "experts_tiles", case_experts_tiles },
    { "product", case_product }, { "product_tiles", case_product_tiles },
    { "absorb", case_absorb },   { "mla", case_mla },
    { "embed", case_embed },     { "add", case_add },
    { "columns", case_columns },
    { "pages", case_pages },
};
const size_t cuda_kernel_count = sizeof cuda_kernels / sizeof cuda_kernels[0];

const double case_eps = 0x1p-24;

uint32_t case_below(struct cuda_case *c, uint32_t bound)
{
    return (uint32_t)base_rng_below(&c->rng, bound);
}

float *case_floats(struct cuda_case *c, size_t n)
{
    /* A card's allocations begin at 256 bytes, what is inside them at any float. */
    float *data = guard_get(n * sizeof *data, 4 * case_below(c, 8));
    for (size_t i = 0; i < n; i++)
        data[i] = (float)base_rng_normal(&c->rng);
    return data;
}

float *case_room(struct cuda_case *c, size_t n)
{
    float *data = guard_get(n * sizeof *data, 4 * case_below(c, 8));
    for (size_t i = 0; i < n; i++)
        data[i] = -12345.0f;
    return data;
}

static void weight_draw(struct cuda_case *c, enum kern_dtype dtype, uint8_t *at)
{
    const float value = (float)base_rng_normal(&c->rng);
    uint16_t half;
    switch (dtype) {
    case KERN_F32:
        memcpy(at, &value, 4);
        break;
    case KERN_F16: /* any finite one of a moderate exponent, zeros and subnormals */
        half = (uint16_t)(base_rng_u64(&c->rng) & 0xbfffu);
        memcpy(at, &half, 2);
        break;
    case KERN_BF16:
        c->reference->to_bf16(&half, &value, 1);
        memcpy(at, &half, 2);
        break;
    case KERN_FP8_E4M3: /* no NaN, or every sum would be one */
        do
            at[0] = (uint8_t)base_rng_u64(&c->rng);
        while ((at[0] & 0x7f) == 0x7f);
        break;
    default:
        at[0] = (uint8_t)base_rng_u64(&c->rng);
    }
}

static const void *scales_draw(struct cuda_case *c, const struct kern_matrix *w)
{
    const size_t count = (size_t)((w->rows + w->scale_rows - 1) / w->scale_rows) *
                         ((w->cols + w->scale_cols - 1) / w->scale_cols);
    const size_t size = kern_dtype_grouped(w->dtype) ? 2 : 4;
    uint8_t *scales = guard_get(size * count, case_below(c, 2) ? 0 : case_below(c, 8));
    for (size_t i = 0; i < count; i++) {
        const float scale = 0.01f + (float)base_rng_unit(&c->rng) * 0.05f;
        uint16_t half;
        c->reference->to_bf16(&half, &scale, 1);
        if (size == 2)
            memcpy(scales + 2 * i, &half, 2);
        else
            memcpy(scales + 4 * i, &scale, 4);
    }
    return scales;
}

struct kern_matrix case_matrix(struct cuda_case *c, enum kern_dtype dtype, uint32_t rows,
                               uint32_t cols, uint32_t scale_rows, uint32_t scale_cols)
{
    struct kern_matrix w = { .dtype = dtype, .rows = rows, .cols = cols };
    const bool grouped = kern_dtype_grouped(dtype);
    const size_t size = dtype == KERN_INT4 ? 1 : kern_dtype_bytes(dtype);
    const size_t bytes = rows * kern_row_bytes(dtype, cols);
    uint8_t *data = guard_get(bytes, case_below(c, 4) ? 0 : size * case_below(c, 16));
    for (size_t i = 0; i < bytes; i += size)
        weight_draw(c, dtype, data + i);
    w.data = data;
    if (grouped || scale_rows > 0) {
        /* From the arguments alone: matrices of one shape have the same groups. */
        const uint32_t group = scale_cols < 100 ? KERN_GROUP_SMALL : KERN_GROUP_LARGE;
        w.scale_rows = grouped ? 1 : scale_rows;
        w.scale_cols = grouped ? group : scale_cols;
        w.scales = scales_draw(c, &w);
    }
    return w;
}

double case_weight_sum(const struct kern_matrix *w, uint32_t row, const float *x)
{
    const struct kern_ops *ops = kern_ops_variant(KERN_CPU_REFERENCE);
    float values[4096];
    double sum = 0;
    MUST(w->cols <= 4096);
    ops->to_f32(values, (const uint8_t *)w->data + row * kern_row_bytes(w->dtype, w->cols),
                w->dtype, w->cols);
    const size_t stride = w->scales ? (w->cols + w->scale_cols - 1) / w->scale_cols : 0;
    for (uint32_t k = 0; k < w->cols; k++) {
        float scale = 1;
        if (w->scales) {
            const size_t at = row / w->scale_rows * stride + k / w->scale_cols;
            if (kern_dtype_grouped(w->dtype))
                ops->to_f32(&scale, (const uint8_t *)w->scales + 2 * at, KERN_BF16, 1);
            else
                memcpy(&scale, (const uint8_t *)w->scales + 4 * at, 4);
        }
        sum += fabs((double)values[k] * scale * x[k]);
    }
    return sum;
}

void case_fail(struct cuda_case *c, const char *format, ...)
{
    va_list args;
    if (c->failed) return;
    c->failed = true;
    va_start(args, format);
    vsnprintf(c->what, sizeof c->what, format, args);
    va_end(args);
}

void case_finish(struct cuda_case *c, int rc)
{
    if (rc != 0) case_fail(c, "the launch gave %d", rc);
    if (cudaDeviceSynchronize() != cudaSuccess) case_fail(c, "the device reports an error");
}

void case_near(struct cuda_case *c, const char *name, size_t at, double got, double wanted,
               double allowed)
{
    const double error = fabs(got - wanted);
    if (error <= allowed) {
        if (allowed > 0 && error / allowed > c->worst) c->worst = error / allowed;
        return;
    }
    case_fail(c, "%s[%zu] is %.9g, not %.9g: off by %.3g, %.3g allowed", name, at, got, wanted,
              error, allowed);
}

void case_same(struct cuda_case *c, const char *name, const float *got, const float *wanted,
               size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&got[i], &wanted[i], sizeof *got) == 0) continue;
        if (isnan(got[i]) && isnan(wanted[i])) continue;
        case_fail(c, "%s[%zu] is %a, not %a", name, i, (double)got[i], (double)wanted[i]);
        return;
    }
}
