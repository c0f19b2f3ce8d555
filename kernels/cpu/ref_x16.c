/* Products with bf16 activations, written out in the order of kernels/x16.h: the definition that
 * every other op set must meet bit for bit. */
#include "kernels/cpu/x16.h"

/* As the processor takes an operand when subnormals are zeros. */
static float zeroed(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}

/* Whether ab + c is subnormal after rounding, below the least normal number with the exponent
 * unbounded. A double has the product exactly; where it rounds the sum onto the bound, what it left
 * away decides (Knuth's two-sum). */
static bool sum_tiny(float a, float b, float c)
{
    const double bound = 0x1p-126 - 0x1p-151;
    const double product = (double)a * (double)b, addend = (double)c, sum = product + addend;
    const double part = sum - product;
    const double rest = (product - (sum - part)) + (addend - part);
    return fabs(sum) < bound || (fabs(sum) == bound && (sum > 0 ? rest < 0 : rest > 0));
}

static float fma_zeroed(float a, float b, float c)
{
    a = zeroed(a);
    b = zeroed(b);
    c = zeroed(c);
    const float sum = fmaf(a, b, c);
    return sum_tiny(a, b, c) ? copysignf(0.0f, sum) : sum;
}

/* Sums of two normal numbers are exact where they are that small. */
static float add_zeroed(float a, float b)
{
    return zeroed(zeroed(a) + zeroed(b));
}

static float tree(float lanes[KERN_LANES])
{
    for (uint32_t width = KERN_LANES / 2; width > 0; width /= 2) {
        for (uint32_t j = 0; j < width; j++)
            lanes[j] = add_zeroed(lanes[j], lanes[j + width]);
    }
    return lanes[0];
}

/* Adds vector `v` of the span at column k to the lanes; x is where the span begins in the row. */
static void vector_add(float lanes[KERN_LANES], enum kern_dtype dtype, const uint8_t *row,
                       uint32_t k, uint32_t end, uint32_t v, const uint16_t *x)
{
    float weights[KERN_X16_VECTOR] = { 0 };
    for (uint32_t c = 0; c < kern_x16_span(dtype) && k + c < end; c++) {
        const uint32_t place = kern_x16_place(dtype, c);
        if (place / KERN_X16_VECTOR == v)
            weights[place % KERN_X16_VECTOR] = scalar_weight(dtype, row, k + c);
    }
    x += v * KERN_X16_VECTOR;
    for (uint32_t j = 0; j < KERN_LANES; j++) {
        const uint32_t odd = 2 * j + 1, even = 2 * j;
        lanes[j] = fma_zeroed(weights[odd], scalar_from_bf16(x[odd]), lanes[j]);
        lanes[j] = fma_zeroed(weights[even], scalar_from_bf16(x[even]), lanes[j]);
    }
}

static void cut_add(float total[KERN_LANES], const struct kern_matrix *w, uint32_t n, uint32_t k,
                    uint32_t end, const uint16_t *x)
{
    const uint8_t *row = (const uint8_t *)w->data + n * kern_row_bytes(w->dtype, w->cols);
    const uint32_t span = kern_x16_span(w->dtype);
    const bool scaled = w->scales;
    const float scale =
        scaled ? scalar_scale(w->dtype, scalar_scales(w, n), k / w->scale_cols) : 0.0f;
    float lanes[KERN_LANES] = { 0 };
    for (; k < end; k += span, x += span) {
        for (uint32_t v = 0; v < span / KERN_X16_VECTOR; v++)
            vector_add(lanes, w->dtype, row, k, end, v, x);
    }
    for (uint32_t j = 0; j < KERN_LANES; j++)
        total[j] = scaled ? fma_zeroed(lanes[j], scale, total[j]) : lanes[j];
}

/* The dot over columns [k, end) of a block; *x moves behind them. */
static float block_dot(const struct kern_matrix *w, uint32_t n, uint32_t k, uint32_t end,
                       const uint16_t **x)
{
    float total[KERN_LANES] = { 0 };
    while (k < end) {
        const uint32_t cut_end = x16_cut_end(w, k, end);
        cut_add(total, w, n, k, cut_end, *x);
        *x += x16_filled(w->dtype, cut_end - k);
        k = cut_end;
    }
    return tree(total);
}

void kern_ref_matmul_x16(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    const struct kern_matrix *w = args->w;
    x16_check(args, row_begin, row_end);
    for (uint32_t n = row_begin; n < row_end; n++) {
        for (uint32_t m = 0; m < args->m; m++) {
            const uint16_t *x = args->x16 + m * args->x16_stride;
            float sum = 0;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                const float part = block_dot(w, n, cpu_range_begin(w, i, args->k_blocks),
                                             cpu_range_begin(w, i + 1, args->k_blocks), &x);
                sum = i ? add_zeroed(sum, part) : part;
            }
            args->y[m * args->y_stride + n] = sum;
        }
    }
}

void kern_ref_to_x16(uint16_t *row, const float *x, const struct kern_matrix *w, uint32_t k_blocks)
{
    scalar_to_x16(row, x, w, k_blocks);
}
