/* Products of tiles with activations as integers, written out in the order of kern.h: the
 * definition that every other op set must meet bit for bit. */
#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"
#include "kernels/tile.h"

/* The tile that row n lies in. */
struct tile {
    const struct kern_matrix *w;
    struct kern_tile_unit unit;
    size_t begin;       /* of all bytes of the tiles */
    uint32_t rows, row; /* of the tile; of these n */
};

static struct tile tile_of(const struct kern_matrix *w, uint32_t n)
{
    const uint32_t most = kern_tile_rows(w->dtype), first = n / most * most;
    const size_t groups = (w->cols + w->scale_cols - 1) / w->scale_cols;
    return (struct tile){ w, kern_tile_unit(w->dtype, w->scale_cols),
                          first * (kern_row_bytes(w->dtype, w->cols) + 2 * groups),
                          w->rows - first < most ? w->rows - first : most, n - first };
}

/* Byte i of the tile, and where a unit begins. */
static uint8_t tile_byte(const struct tile *t, size_t i)
{
    const size_t seam = t->w->rows * kern_row_bytes(t->w->dtype, t->w->cols), at = t->begin + i;
    return at < seam ? ((const uint8_t *)t->w->data)[at]
                     : ((const uint8_t *)t->w->scales)[at - seam];
}

static size_t tile_unit(const struct tile *t, size_t unit)
{
    return unit * t->unit.bytes * t->rows;
}

/* Bytes of a row's codes in a unit. */
static size_t unit_codes(const struct tile *t, size_t unit)
{
    const size_t left = kern_row_bytes(t->w->dtype, t->w->cols) - unit * t->unit.codes;
    return left < t->unit.codes ? left : t->unit.codes;
}

static int32_t tile_int8(const struct tile *t, size_t column)
{
    const size_t unit = column / t->unit.cols, within = column % t->unit.cols;
    const size_t bytes = unit_codes(t, unit), whole = bytes / KERN_TILE_COLS * KERN_TILE_COLS;
    const size_t at = within >= whole
                          ? t->rows * whole + t->row * (bytes - whole) + within - whole
                          : (within / KERN_TILE_COLS * t->rows + t->row) * KERN_TILE_COLS +
                                within % KERN_TILE_COLS;
    return (int8_t)tile_byte(t, tile_unit(t, unit) + at);
}

static int32_t tile_int4(const struct tile *t, size_t column)
{
    enum { UP = 8, LANES = 16 };
    const size_t within = column % t->unit.cols, i = within % KERN_TILE_COLS;
    const size_t piece = tile_unit(t, column / t->unit.cols) +
                         within / KERN_TILE_COLS * t->rows * kern_tile_piece(KERN_INT4);
    const bool whole = t->rows == kern_tile_rows(KERN_INT4);
    const size_t lane = t->row / (2 * LANES) * LANES + t->row % LANES;
    const uint8_t pair = tile_byte(t, piece + (whole ? lane * KERN_TILE_COLS + i
                                                     : t->row * 2 + i / 2));
    const bool high = whole ? t->row / LANES % 2 : i % 2;
    return (high ? pair >> 4 : pair & 15) - UP;
}

static float tile_scale(const struct tile *t, size_t group)
{
    const size_t at = tile_unit(t, group) + t->rows * unit_codes(t, group) +
                      2 * kern_tile_scale_at(t->w->dtype, t->rows, t->row);
    return scalar_from_bf16((uint16_t)(tile_byte(t, at) | tile_byte(t, at + 1) << 8));
}

static float dot_x8(const struct kern_matrix *w, uint32_t n, const void *x8, uint32_t digits)
{
    const struct tile t = tile_of(w, n);
    float total = 0;
    for (uint32_t k = 0; k < w->cols; k += w->scale_cols) {
        const struct cpu_x8 x = cpu_x8_span(x8, k / KERN_X8_SPAN, digits);
        const uint32_t within = k % KERN_X8_SPAN / w->scale_cols;
        const float scale = tile_scale(&t, k / w->scale_cols);
        int32_t sum[KERN_X8_FULL] = { 0 };
        for (uint32_t c = k; c < w->cols && c < k + w->scale_cols; c++) {
            const int32_t weight = w->dtype == KERN_INT8 ? tile_int8(&t, c) : tile_int4(&t, c);
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
