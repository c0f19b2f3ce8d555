/* Products, written out in the order of kern.h: the definition that every other op set must meet
 * bit for bit. */
#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"

static float tree(float lanes[KERN_LANES])
{
    for (uint32_t width = KERN_LANES / 2; width > 0; width /= 2) {
        for (uint32_t j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    }
    return lanes[0];
}

/* Adds columns [k0, k1) of row n to the lanes. */
static void dot_lanes(float lanes[KERN_LANES], const struct kern_matrix *w, uint32_t n,
                      const float *x, uint32_t k0, uint32_t k1)
{
    const bool woven = w->dtype == KERN_FP8_WOVEN;
    const uint8_t *row = (const uint8_t *)w->data + n * kern_row_bytes(w->dtype, w->cols);
    for (uint64_t k = k0; k < k1; k += KERN_LANES) {
        const uint64_t first = woven ? k % KERN_WOVEN : k;
        if (woven) row = kern_woven_row(w, n) + kern_woven_at(kern_woven_step(w, n), (uint32_t)k);
        for (uint32_t j = 0; j < KERN_LANES; j++) {
            if (k + j < k1) {
                lanes[j] = fmaf(scalar_weight(w->dtype, row, first + j), x[k + j], lanes[j]);
            } else {
                lanes[j] = fmaf(0.0f, 0.0f, lanes[j]);
            }
        }
    }
}

static float dot_range(const struct kern_matrix *w, uint32_t n, const float *x, uint32_t k0,
                       uint32_t k1)
{
    float total[KERN_LANES] = { 0 };
    if (!w->scales) {
        dot_lanes(total, w, n, x, k0, k1);
        return tree(total);
    }
    const uint8_t *scales = scalar_scales(w, n);
    for (uint32_t cut = k0; cut < k1;) {
        const uint32_t end = cpu_cut_end(cut, k1, w->scale_cols);
        float block[KERN_LANES] = { 0 };
        dot_lanes(block, w, n, x, cut, end);
        const float scale = scalar_scale(w->dtype, scales, cut / w->scale_cols);
        for (uint32_t j = 0; j < KERN_LANES; j++)
            total[j] = fmaf(block[j], scale, total[j]);
        cut = end;
    }
    return tree(total);
}

void kern_ref_matmul(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    const struct kern_matrix *w = args->w;
    MUST(args->k_blocks == 1 || args->k_blocks == KERN_RANK_BLOCKS);
    MUST(row_begin <= row_end && row_end <= w->rows);
    cpu_matrix_check(w);
    MUST(!w->tiled);
    for (uint32_t n = row_begin; n < row_end; n++) {
        for (uint32_t m = 0; m < args->m; m++) {
            const float *x = args->x + m * args->x_stride;
            float sum = 0;
            for (uint32_t i = 0; i < args->k_blocks; i++) {
                const float part = dot_range(w, n, x, cpu_range_begin(w, i, args->k_blocks),
                                             cpu_range_begin(w, i + 1, args->k_blocks));
                sum = i ? sum + part : part;
            }
            args->y[m * args->y_stride + n] = sum;
        }
    }
}

void kern_ref_matmul_t(const struct kern_matrix *w, uint32_t row_begin, uint32_t row_end,
                       const float *x, float *y)
{
    MUST(row_begin <= row_end && row_end <= w->rows && !w->tiled);
    MUST(w->dtype != KERN_FP8_WOVEN);
    cpu_matrix_check(w);
    for (uint32_t c = 0; c < w->cols; c++)
        y[c] = 0;
    for (uint32_t d = row_begin; d < row_end; d++) {
        const uint8_t *row = (const uint8_t *)w->data + d * kern_row_bytes(w->dtype, w->cols);
        const uint8_t *scales = scalar_scales(w, d);
        for (uint32_t c = 0; c < w->cols; c++) {
            float factor = x[d - row_begin];
            if (scales) factor *= scalar_scale(w->dtype, scales, c / w->scale_cols);
            y[c] = fmaf(scalar_weight(w->dtype, row, c), factor, y[c]);
        }
    }
}
