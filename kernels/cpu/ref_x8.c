/* Products of tiles with activations as integers, written out in the order of kern.h: the
 * definition that every other op set must meet bit for bit. */
#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"
#include "kernels/tile.h"

/* The tile that row n lies in. */
struct tile {
    const uint8_t *codes, *scales;
    uint32_t rows, row; /* of the tile; of these n */
};

static struct tile tile_of(const struct kern_matrix *w, uint32_t n)
{
    const uint32_t first = n / KERN_TILE_ROWS * KERN_TILE_ROWS, left = w->rows - first;
    return (struct tile){ (const uint8_t *)w->data + first * kern_row_bytes(w->dtype, w->cols),
                          scalar_scales(w, first), left < KERN_TILE_ROWS ? left : KERN_TILE_ROWS,
                          n - first };
}

/* Byte i of the tile's row. */
static uint8_t tile_byte(const struct kern_matrix *w, const struct tile *t, size_t i)
{
    const size_t bytes = kern_row_bytes(w->dtype, w->cols);
    const size_t whole = bytes / KERN_TILE_BYTES * KERN_TILE_BYTES;
    if (i >= whole) return t->codes[t->rows * whole + t->row * (bytes - whole) + i - whole];
    return t->codes[(i / KERN_TILE_BYTES * t->rows + t->row) * KERN_TILE_BYTES +
                    i % KERN_TILE_BYTES];
}

static int32_t tile_weight(const struct kern_matrix *w, const struct tile *t, size_t column)
{
    enum { HALF = KERN_INT4_BLOCK / 2 };
    if (w->dtype == KERN_INT8) return (int8_t)tile_byte(w, t, column);
    const uint8_t pair = tile_byte(w, t, column / KERN_INT4_BLOCK * HALF + column % HALF) ^
                         KERN_TILE_INT4_UP;
    return column % KERN_INT4_BLOCK < HALF ? scalar_int4_low(pair) : scalar_int4_high(pair);
}

static float dot_x8(const struct kern_matrix *w, uint32_t n, const void *x8, uint32_t digits)
{
    const struct tile t = tile_of(w, n);
    float total = 0;
    for (uint32_t k = 0; k < w->cols; k += w->scale_cols) {
        const struct cpu_x8 x = cpu_x8_span(x8, k / KERN_X8_SPAN, digits);
        const uint32_t group = k / w->scale_cols, within = k % KERN_X8_SPAN / w->scale_cols;
        const float scale = scalar_scale(w->dtype, t.scales,
                                         group * t.rows + kern_tile_scale_at(t.rows, t.row));
        int32_t sum[KERN_X8_FULL] = { 0 };
        for (uint32_t c = k; c < w->cols && c < k + w->scale_cols; c++) {
            const int32_t weight = tile_weight(w, &t, c);
            for (uint32_t d = 0; d < digits; d++)
                sum[d] += weight * x.codes[d * KERN_X8_SPAN + c % KERN_X8_SPAN];
        }
        float value = (float)sum[0];
        if (digits == KERN_X8_FULL)
            value = fmaf(value, X8_BASE_2, fmaf((float)sum[1], X8_BASE, (float)sum[2]));
        total = fmaf(value, scale * x.scales[within], total);
    }
    return total;
}

void kern_ref_matmul_x8(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    cpu_x8_check(args, row_begin, row_end);
    for (uint32_t n = row_begin; n < row_end; n++) {
        for (uint32_t m = 0; m < args->m; m++) {
            const char *row = (const char *)args->x8 + m * args->x8_stride;
            args->y[m * args->y_stride + n] = dot_x8(args->w, n, row, args->x8_digits);
        }
    }
}
