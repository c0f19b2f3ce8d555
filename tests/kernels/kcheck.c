/* Shows that every op set this machine can run equals the scalar reference bit for bit: every
 * operation over random shapes, types and values (subnormals, signed zeros, infinities, NaN codes),
 * at odd alignments, in buffers whose last byte is followed by an unreadable page and whose first
 * is preceded by bytes that must not change.
 *
 *   kcheck [--seeds N] [--seed S] [OP]      compare; exit 77 when only the reference runs here
 *   kcheck --bench [OP [TYPE]]              rates beside the measured floors (kbench.c); of
 *                                           products only the weight types with TYPE in the name
 *   kcheck --floor [TYPE]                   matrix-vector products of every weight type beside
 *                                           reading, in turns; exit 1 below 0.90 of it
 *
 * A NaN equals any NaN: kern.h leaves sign and payload open. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "base/must.h"
#include "base/rng.h"
#include "kernels/kern.h"
#include "kernels/tile.h"
#include "kernels/weave.h"
#include "kernels/x16.h"
#include "tests/kernels/kcheck.h"
#include "tests/support/guard.h"

/* One comparison of `set` with `reference`; `what` describes the case when it fails. */
struct kcase {
    const struct kern_ops *set, *reference;
    struct base_rng rng;
    char what[256];
};

static uint32_t below(struct kcase *c, uint32_t bound)
{
    return (uint32_t)base_rng_below(&c->rng, bound);
}

static bool same_float(float a, float b)
{
    return (isnan(a) && isnan(b)) || !memcmp(&a, &b, sizeof a);
}

static bool same_floats(const float *a, const float *b, size_t n, size_t *at)
{
    for (*at = 0; *at < n; ++*at) {
        if (!same_float(a[*at], b[*at]))
            return false;
    }
    return true;
}

/* A float of the case's temper: 0 normal values; 1 also zeros, subnormals and wide exponents; 2
 * any bits at all. */
static float any_float(struct kcase *c, uint32_t temper)
{
    const float normal = (float)base_rng_normal(&c->rng);
    uint32_t bits = (uint32_t)base_rng_u64(&c->rng);
    float value;
    if (temper == 0)
        return normal;
    if (temper == 1) {
        switch (below(c, 8)) {
        case 0:
            return bits & 1 ? 0.0f : -0.0f;
        case 1:
            bits &= 0x807fffffu;
            break;
        case 2:
            return ldexpf(normal, (int)below(c, 200) - 120);
        default:
            return normal;
        }
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float *floats(struct kcase *c, size_t n, uint32_t temper)
{
    float *data = guard_get(n * sizeof *data, 4 * below(c, 8));
    for (size_t i = 0; i < n; i++)
        data[i] = any_float(c, temper);
    return data;
}

static uint32_t temper_of(struct kcase *c)
{
    const uint32_t draw = below(c, 8);
    return draw < 4 ? 0 : draw < 7 ? 1 : 2;
}

/* `n` codes of `dtype`, of INT4 so many bytes. FP8 NaN codes come only in some cases, or every sum
 * would be one. */
static void *codes(struct kcase *c, enum kern_dtype dtype, size_t n, uint32_t temper)
{
    const size_t size = dtype == KERN_INT4 ? 1 : kern_dtype_bytes(dtype);
    const bool nan_codes = below(c, 4) == 0;
    uint8_t *data = guard_get(n * size, size == 1 ? below(c, 64) : 2 * below(c, 32));
    for (size_t i = 0; i < n; i++) {
        const float value = any_float(c, temper);
        uint16_t half = (uint16_t)base_rng_u64(&c->rng);
        const uint8_t random_byte = (uint8_t)base_rng_u64(&c->rng);
        uint8_t byte = random_byte;
        if ((byte & 0x7f) == 0x7f && !(nan_codes && below(c, 64) == 0))
            byte ^= 0x40;
        if ((half & 0x7c00) == 0x7c00 && temper < 2)
            half ^= 0x4000;
        switch (dtype) {
        case KERN_INT8:
        case KERN_INT4:
            data[i] = random_byte;
            break;
        case KERN_F32:
            memcpy(data + i * size, &value, size);
            break;
        case KERN_F16:
            memcpy(data + i * size, &half, size);
            break;
        case KERN_BF16:
            c->reference->to_bf16((uint16_t *)(void *)(data + i * size), &value, 1);
            break;
        default:
            data[i] = byte;
        }
    }
    return data;
}

static const char *const dtype_names[KERN_DTYPE_COUNT] = { "f32",  "f16",  "bf16", "fp8",
                                                           "int8", "int4", "woven fp8" };

/* Scales of groups, bf16, at any byte. */
static void group_scales(struct kcase *c, struct kern_matrix *w, uint32_t temper)
{
    w->scale_rows = 1;
    w->scale_cols = below(c, 2) ? KERN_GROUP_SMALL : KERN_GROUP_LARGE;
    const size_t count = (size_t)w->rows * ((w->cols + w->scale_cols - 1) / w->scale_cols);
    uint8_t *scales = guard_get(count * 2, below(c, 16));
    for (size_t i = 0; i < count; i++) {
        const float scale = any_float(c, temper == 2 ? 1 : temper) * 0.01f;
        uint16_t code;
        c->reference->to_bf16(&code, &scale, 1);
        memcpy(scales + 2 * i, &code, 2);
    }
    w->scales = scales;
}

/* A random matrix of a type without groups (INT8 and INT4 are checked as tiles); scales start at
 * any byte. */
static struct kern_matrix any_matrix(struct kcase *c, uint32_t rows, uint32_t cols)
{
    static const uint32_t usual[] = { 128, 128, 64, 32, 16 };
    struct kern_matrix w = { .dtype = (enum kern_dtype)below(c, KERN_INT8), .rows = rows,
                             .cols = cols };
    const uint32_t temper = temper_of(c);
    w.data = codes(c, w.dtype, (size_t)rows * cols, temper);
    if (below(c, 3) > 0) {
        w.scale_rows = below(c, 2) ? 128 : 1 + below(c, 5);
        w.scale_cols = below(c, 2) ? usual[below(c, 5)] : 1 + below(c, 300);
        const size_t count = (size_t)((rows + w.scale_rows - 1) / w.scale_rows) *
                             ((cols + w.scale_cols - 1) / w.scale_cols);
        uint8_t *scales = guard_get(count * 4, below(c, 16));
        for (size_t i = 0; i < count; i++) {
            const float scale = any_float(c, temper == 2 ? 1 : temper) * 0.01f;
            memcpy(scales + 4 * i, &scale, 4);
        }
        w.scales = scales;
    }
    return w;
}

typedef void product_rows(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);

/* Some of the rows by both; the others stay as they were. */
static bool same_rows(struct kcase *c, struct kern_matmul *args, product_rows *reference,
                      product_rows *set)
{
    const struct kern_matrix *w = args->w;
    const uint32_t rows = w->rows;
    const uint32_t begin = below(c, rows + 1), end = begin + below(c, rows + 1 - begin);
    const size_t y_count = (size_t)(args->m - 1) * args->y_stride + rows;
    float *wanted = floats(c, y_count, 0), *got = floats(c, y_count, 0);
    memcpy(got, wanted, y_count * sizeof *got);
    args->y = wanted;
    reference(args, begin, end);
    args->y = got;
    set(args, begin, end);
    size_t at;
    if (same_floats(wanted, got, y_count, &at)) return true;
    snprintf(c->what, sizeof c->what,
             "%s rows=[%u,%u) of %u cols=%u m=%u k_blocks=%u digits=%u scales=%d %ux%u: "
             "y[%zu][%zu] %a, not %a",
             dtype_names[w->dtype], begin, end, rows, w->cols, args->m, args->k_blocks,
             args->x8_digits, !!w->scales, w->scale_rows, w->scale_cols, at / args->y_stride,
             at % args->y_stride, got[at], wanted[at]);
    return false;
}

static bool same_products(struct kcase *c, struct kern_matrix w, uint32_t m)
{
    const uint32_t rows = w.rows, cols = w.cols;
    struct kern_matmul args = { .w = &w, .m = m, .x_stride = cols + below(c, 5),
                                .y_stride = rows + below(c, 5),
                                .k_blocks = below(c, 3) ? 1 : KERN_RANK_BLOCKS };
    args.x = floats(c, (size_t)(m - 1) * args.x_stride + cols, temper_of(c));
    return same_rows(c, &args, c->reference->matmul, c->set->matmul);
}

static bool check_matmul(struct kcase *c)
{
    const uint32_t rows = 1 + below(c, 30);
    const uint32_t cols = 1 + below(c, below(c, 4) ? 300 : 1500);
    const uint32_t m = below(c, 3) ? 1 + below(c, 8) : 1 + below(c, 60);
    return same_products(c, any_matrix(c, rows, cols), m);
}

/* FP8 with a scale each 128 columns has ways of its own: for one row of x, for one that the
 * first-level cache has no room for, and for a few. */
static bool check_matmul_fp8(struct kcase *c)
{
    const uint32_t rows = 1 + below(c, 40);
    const uint32_t cols = below(c, 3) ? 1 + below(c, 2600) : 4000 + below(c, 3000);
    const uint32_t strips = (cols + 127) / 128;
    const uint32_t temper = temper_of(c);
    struct kern_matrix w = { .dtype = KERN_FP8_E4M3, .rows = rows, .cols = cols,
                             .scale_rows = 1 + below(c, 5), .scale_cols = 128 };
    const uint32_t count = (rows + w.scale_rows - 1) / w.scale_rows * strips;
    w.data = codes(c, w.dtype, (size_t)rows * cols, temper);
    w.scales = floats(c, count, 1);
    return same_products(c, w, 1 + below(c, 9));
}

/* The bits of a dword of woven codes, as kernels/weave.h has them. */
static uint32_t woven_dword(const uint8_t *code)
{
    static const uint8_t two[2][2] = { { 1, 3 }, { 0, 2 } };
    uint32_t bits = 0;
    for (int i = 0; i < 2; i++) {
        const uint8_t a = code[16 * two[i][0]], b = code[16 * two[i][1]];
        const uint32_t signs = (uint32_t)(a >> 7) << 15 | (uint32_t)(b >> 7) << 11;
        const uint32_t upper = (b >> 4 & 7u) << 12 | (a >> 4 & 7u) << 8;
        bits |= (signs | upper | (a & 15u) << 4 | (b & 15u)) << 16 * i;
    }
    return bits;
}

/* Groups of sixteen rows, cut by cut; in one go or in two, the later rows first. */
static bool woven_as_defined(struct kcase *c, uint8_t *woven, const uint8_t *codes_of_rows,
                             uint32_t rows, uint32_t cols)
{
    const uint32_t group = KERN_WOVEN_ROWS, cut = below(c, rows / group + 1) * group;
    memcpy(woven, codes_of_rows, (size_t)rows * cols);
    kern_weave(woven + (size_t)cut * cols, rows - cut, cols,
               guard_get(kern_weave_scratch(cols), 0));
    kern_weave(woven, cut, cols, guard_get(kern_weave_scratch(cols), below(c, 64)));
    for (uint32_t n = 0; n < rows; n++) {
        const uint32_t first = n / group * group, left = rows - first;
        const size_t count = left < group ? left : group;
        for (uint32_t k = 0; k < cols; k += k % 64 == 15 ? 49 : 1) {
            const size_t at = (size_t)first * cols + (k / 128 * count + n - first) * 128 +
                              k % 128 / 64 * 64 + 4 * (k % 64);
            if (base_le_load32(woven + at) == woven_dword(codes_of_rows + (size_t)n * cols + k))
                continue;
            snprintf(c->what, sizeof c->what, "rows=%u cols=%u: codes of row %u from column %u on",
                     rows, cols, n, k);
            return false;
        }
    }
    return true;
}

/* Woven weights give the bits of the rows that they were, whatever x holds. */
static bool check_weave(struct kcase *c)
{
    static const uint32_t scale_rows[] = { 8, 16, 24, 64, 128 };
    const bool tall = below(c, 4) == 0; /* several groups that are worked on together, ... */
    const bool far = tall && below(c, 2); /* ... the AVX-512 set's far apart */
    const uint32_t rows = 1 + (far ? 80 : 0) + below(c, tall ? 170 : 60);
    const uint32_t m = far ? 1 : 1 + below(c, below(c, 2) ? 1 : 20);
    const uint32_t cuts = far ? 60 : tall ? 6 : below(c, 4) ? 50 : 180;
    const uint32_t cols = KERN_WOVEN_CUT * (far ? cuts - below(c, 20) : 1 + below(c, cuts));
    struct kern_matrix w = { .dtype = KERN_FP8_E4M3, .rows = rows, .cols = cols,
                             .scale_rows = far || below(c, 3) ? scale_rows[below(c, 5)]
                                                              : 1 + below(c, 5),
                             .scale_cols = KERN_WOVEN_CUT };
    const size_t bytes = (size_t)rows * cols;
    const uint32_t strips = cols / KERN_WOVEN_CUT, temper = temper_of(c);
    uint8_t *codes_of_rows = codes(c, w.dtype, bytes, 0), *woven = guard_get(bytes, below(c, 64));
    for (size_t i = 0; i < bytes; i++) {
        if ((codes_of_rows[i] & 0x7f) == 0x7f) codes_of_rows[i] ^= 1;
    }
    if (!kern_weave_takes(&w)) {
        snprintf(c->what, sizeof c->what, "rows=%u cols=%u are not taken", rows, cols);
        return false;
    }
    if (!woven_as_defined(c, woven, codes_of_rows, rows, cols)) return false;
    w.data = codes_of_rows;
    w.scales = floats(c, (size_t)((rows + w.scale_rows - 1) / w.scale_rows) * strips, 1);
    struct kern_matmul args = { .w = &w, .m = m, .x_stride = cols + below(c, 5),
                                .y_stride = rows + below(c, 5),
                                .k_blocks = below(c, 3) ? 1 : KERN_RANK_BLOCKS };
    const size_t x_count = (size_t)(m - 1) * args.x_stride + cols;
    const size_t y_count = (size_t)(m - 1) * args.y_stride + rows;
    float *x = floats(c, x_count, temper);
    /* 256 is the first that does not fit a float when it is 2^120 as large. */
    if (below(c, 4) == 0) x[below(c, (uint32_t)x_count)] = below(c, 2) ? 256.0f : -255.999985f;
    args.x = x;
    float *wanted = floats(c, y_count, 0), *got = floats(c, y_count, 0);
    memcpy(got, wanted, y_count * sizeof *got);
    args.y = wanted;
    c->reference->matmul(&args, 0, rows);
    w.data = woven;
    w.dtype = KERN_FP8_WOVEN;
    args.y = got;
    c->reference->matmul(&args, 0, rows);
    size_t at;
    if (!same_floats(wanted, got, y_count, &at)) {
        snprintf(c->what, sizeof c->what, "rows=%u cols=%u m=%u: woven %a, in rows %a", rows, cols,
                 m, got[at], wanted[at]);
        return false;
    }
    if (far) c->set->matmul(&args, 0, rows); /* parts of them seldom begin with a group */
    if (far && !same_floats(wanted, got, y_count, &at)) {
        snprintf(c->what, sizeof c->what, "rows=%u cols=%u scale_rows=%u: row %zu %a, not %a", rows,
                 cols, w.scale_rows, at, got[at], wanted[at]);
        return false;
    }
    return same_rows(c, &args, c->reference->matmul, c->set->matmul);
}

/* A walk through tiles, byte by byte. */
struct tiles_walk {
    const uint8_t *data, *scales;
    size_t data_bytes, at;
};

static uint8_t tiles_next(struct tiles_walk *walk)
{
    const size_t at = walk->at++;
    return at < walk->data_bytes ? walk->data[at] : walk->scales[at - walk->data_bytes];
}

/* Code `column` of a row, INT4 moved up by 8. */
static uint8_t row_code(const struct kern_matrix *w, const uint8_t *row, size_t column)
{
    if (w->dtype == KERN_INT8) return row[column];
    const uint8_t pair = row[column / 64 * 32 + column % 32] ^ 0x88;
    return column % 64 < 32 ? pair & 15 : pair >> 4;
}

/* Whether the next byte of the walk has `column` of row r, in INT4 `column_high` of row r_high in
 * its high nibble. */
static bool same_byte(struct kcase *c, const struct kern_matrix *w, struct tiles_walk *walk,
                      const uint8_t *data, uint32_t r, size_t column, uint32_t r_high,
                      size_t column_high)
{
    const size_t bytes = kern_row_bytes(w->dtype, w->cols);
    uint8_t wanted = row_code(w, data + r * bytes, column);
    if (w->dtype == KERN_INT4)
        wanted |= (uint8_t)(row_code(w, data + r_high * bytes, column_high) << 4);
    const uint8_t got = tiles_next(walk);
    if (got == wanted) return true;
    snprintf(c->what, sizeof c->what, "rows=%u cols=%u %s by %u: %02x for %02x at row %u, %zu",
             w->rows, w->cols, dtype_names[w->dtype], w->scale_cols, got, wanted, r, column);
    return false;
}

/* `size` columns of rows [first, first + count). */
static bool same_piece(struct kcase *c, const struct kern_matrix *w, struct tiles_walk *walk,
                       const uint8_t *data, uint32_t first, uint32_t count, size_t column,
                       size_t size)
{
    const bool int4 = w->dtype == KERN_INT4, whole = int4 && count == 64;
    for (uint32_t i = 0; i < (whole ? count / 2 : count); i++) {
        const uint32_t r = first + (whole ? i / 16 * 32 + i % 16 : i);
        for (size_t k = 0; k < size; k += int4 && !whole ? 2 : 1) {
            if (!same_byte(c, w, walk, data, r, column + k, whole ? r + 16 : r,
                           column + k + (whole ? 0 : 1)))
                return false;
        }
    }
    return true;
}

static bool same_tile(struct kcase *c, const struct kern_matrix *w, struct tiles_walk *walk,
                      const uint8_t *data, uint32_t first, uint32_t count)
{
    const bool int4 = w->dtype == KERN_INT4;
    const size_t groups = (w->cols + w->scale_cols - 1) / w->scale_cols;
    const size_t cols = int4 ? (w->cols + 63) / 64 * 64 : w->cols;
    for (size_t k = 0; k < cols; k += w->scale_cols) {
        const size_t end = k + w->scale_cols < cols ? k + w->scale_cols : cols;
        for (size_t i = k; i < end; i += 4) {
            if (!same_piece(c, w, walk, data, first, count, i, end - i < 4 ? end - i : 4))
                return false;
        }
        for (uint32_t i = 0; k / w->scale_cols < groups && i < count; i++) {
            const bool pairs = count == (int4 ? 64 : 32);
            const uint32_t r = first + (pairs ? i / 32 * 32 + i % 32 / 2 + i % 2 * 16 : i);
            const uint8_t *wanted =
                (const uint8_t *)w->scales + 2 * (r * groups + k / w->scale_cols);
            const uint8_t low = tiles_next(walk), high = tiles_next(walk);
            if (low == wanted[0] && high == wanted[1]) continue;
            snprintf(c->what, sizeof c->what, "rows=%u cols=%u %s: scale of row %u at %zu", w->rows,
                     w->cols, dtype_names[w->dtype], r, k);
            return false;
        }
    }
    return true;
}

/* A matrix made into tiles in one go, or by parts in any order. */
static void make_tiles(struct kcase *c, const struct kern_matrix *w, uint8_t *tiles,
                       uint8_t *scales)
{
    enum { PARTS = 4 };
    const uint32_t unit = kern_tile_rows(w->dtype), units = (w->rows + unit - 1) / unit;
    uint32_t bound[PARTS + 1] = { 0 };
    uint8_t *saved[PARTS];
    if (below(c, 2)) {
        kern_tile(w, tiles, scales, guard_get(kern_tile_scratch(w), 0));
        return;
    }
    for (uint32_t i = 1; i <= PARTS; i++) {
        const uint32_t left = units - bound[i - 1] / unit;
        const uint32_t end = i == PARTS ? units : bound[i - 1] / unit + below(c, left + 1);
        bound[i] = end * unit < w->rows ? end * unit : w->rows;
        if (bound[i] == w->rows)        /* no part begins within the last tile */
            for (; i < PARTS; i++) bound[i + 1] = w->rows;
    }
    for (uint32_t i = 0; i < PARTS; i++) {
        if (bound[i] == bound[i + 1]) continue;
        saved[i] = guard_get(kern_tile_saved(w, bound[i], bound[i + 1]), 0);
        kern_tile_save(w, tiles, scales, bound[i], bound[i + 1], saved[i]);
    }
    const bool backwards = below(c, 2);
    for (uint32_t i = 0; i < PARTS; i++) {
        const uint32_t part = backwards ? PARTS - 1 - i : i;
        if (bound[part] == bound[part + 1]) continue;
        kern_tile_part(w, tiles, scales, bound[part], bound[part + 1], saved[part],
                       guard_get(kern_tile_part_scratch(w), 0));
    }
}

/* Tiles are those of the definition, byte for byte: the walk through units, written out. */
static bool check_tile(struct kcase *c)
{
    const uint32_t rows = 1 + below(c, below(c, 3) ? 100 : 700), cols = 1 + below(c, 300);
    struct kern_matrix w = { .dtype = below(c, 2) ? KERN_INT8 : KERN_INT4, .rows = rows,
                             .cols = cols };
    const size_t bytes = kern_row_bytes(w.dtype, cols);
    uint8_t *data = codes(c, w.dtype, rows * bytes, 0);
    group_scales(c, &w, 0);
    const size_t groups = (cols + w.scale_cols - 1) / w.scale_cols;
    uint8_t *scales = guard_get(rows * groups * 2, below(c, 16));
    uint8_t *tiles = guard_get(rows * bytes, below(c, 64));
    memcpy(scales, w.scales, rows * groups * 2);
    memcpy(tiles, data, rows * bytes);
    make_tiles(c, &w, tiles, scales);
    struct tiles_walk walk = { tiles, scales, rows * bytes, 0 };
    const uint32_t unit = kern_tile_rows(w.dtype);
    for (uint32_t n = 0; n < rows; n += unit) {
        if (!same_tile(c, &w, &walk, data, n, rows - n < unit ? rows - n : unit)) return false;
    }
    return true;
}

static bool check_matmul_x8(struct kcase *c)
{
    const uint32_t rows = 1 + below(c, 150), m = 1 + below(c, below(c, 2) ? 1 : 20);
    const uint32_t cols = 1 + below(c, below(c, 4) ? 500 : 4000);
    struct kern_matrix w = { .dtype = below(c, 2) ? KERN_INT8 : KERN_INT4,
                             .rows = rows,
                             .cols = cols };
    const uint32_t temper = temper_of(c);
    w.data = codes(c, w.dtype, rows * kern_row_bytes(w.dtype, cols), 0);
    group_scales(c, &w, temper);
    w.tiled = true;             /* any bytes are tiles */
    const uint32_t digits = below(c, 2) ? KERN_X8_FAST : KERN_X8_FULL;
    const size_t stride = kern_x8_bytes(cols, digits) + 4 * below(c, 5);
    uint8_t *x8 = guard_get((m - 1) * stride + kern_x8_bytes(cols, digits), 4 * below(c, 8));
    for (uint32_t i = 0; i < m; i++)
        c->reference->to_x8(x8 + i * stride, floats(c, cols, temper_of(c)), cols, w.dtype,
                            w.scale_cols, digits);
    struct kern_matmul args = { .w = &w,
                                .m = m,
                                .y_stride = rows + below(c, 5),
                                .k_blocks = 1,
                                .x8 = x8,
                                .x8_stride = stride,
                                .x8_digits = digits };
    return same_rows(c, &args, c->reference->matmul_x8, c->set->matmul_x8);
}

static bool check_to_x8(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 700);
    const uint32_t group = below(c, 2) ? KERN_GROUP_SMALL : KERN_GROUP_LARGE;
    const float *x = floats(c, n, temper_of(c));
    const uint32_t digits = below(c, 2) ? KERN_X8_FAST : KERN_X8_FULL;
    uint8_t *wanted = guard_get(kern_x8_bytes(n, digits), 4 * below(c, 8));
    uint8_t *got = guard_get(kern_x8_bytes(n, digits), 4 * below(c, 8));
    const enum kern_dtype dtype = below(c, 2) ? KERN_INT8 : KERN_INT4;
    memset(wanted, 0, kern_x8_bytes(n, digits));
    memset(got, 0, kern_x8_bytes(n, digits));
    c->reference->to_x8(wanted, x, n, dtype, group, digits);
    c->set->to_x8(got, x, n, dtype, group, digits);
    if (!memcmp(wanted, got, kern_x8_bytes(n, digits))) return true;
    snprintf(c->what, sizeof c->what, "%s n=%u groups of %u, %u digits: bytes differ",
             dtype_names[dtype], n, group, digits);
    return false;
}

/* Columns of a cut from k on, and where it lies in a row of activations, as kernels/x16.h says. */
static void x16_by_definition(const struct kern_matrix *w, uint32_t k_blocks, const float *x,
                              struct kcase *c, uint16_t *row)
{
    const uint32_t span = kern_x16_span(w->dtype);
    for (uint32_t i = 0; i < k_blocks; i++) {
        uint32_t bound[2];
        for (uint32_t b = 0; b < 2; b++) {
            bound[b] = (uint32_t)((uint64_t)w->cols * (i + b) / k_blocks);
        }
        for (uint32_t k = bound[0], begin = k; k < bound[1]; k++) {
            const uint32_t at = k - begin;
            uint16_t *to = row + at / span * span + kern_x16_place(w->dtype, at % span);
            c->reference->to_bf16(to, &x[k], 1);
            const bool last =
                k + 1 == bound[1] || (w->scales && (k + 1) % w->scale_cols == 0);
            if (!last) continue;
            row += (at / span + 1) * span;
            begin = k + 1;
        }
    }
}

/* A random matrix of those that are multiplied by bf16 activations. */
static struct kern_matrix any_x16_matrix(struct kcase *c, uint32_t rows, uint32_t cols)
{
    struct kern_matrix w;
    do {
        w = any_matrix(c, rows, cols);
    } while (kern_x16_span(w.dtype) == 0);
    if (!kern_x16_takes(&w)) w.scales = NULL;
    return w;
}

static bool check_to_x16(struct kcase *c)
{
    const uint32_t cols = 1 + below(c, below(c, 4) ? 300 : 3000);
    const struct kern_matrix w = any_x16_matrix(c, 1, cols);
    const uint32_t k_blocks = below(c, 2) ? 1 : KERN_RANK_BLOCKS;
    const size_t n = kern_x16_elements(cols, k_blocks);
    const float *x = floats(c, cols, temper_of(c));
    uint16_t *wanted = guard_get(n * 2, 2 * below(c, 8)), *got = guard_get(n * 2, 2 * below(c, 8));
    memset(wanted, 0, n * 2);
    memset(got, 0, n * 2);
    x16_by_definition(&w, k_blocks, x, c, wanted);
    c->set->to_x16(got, x, &w, k_blocks);
    size_t at = 0;
    while (at < n && got[at] == wanted[at]) at++;
    if (at == n) return true;
    snprintf(c->what, sizeof c->what, "%s cols=%u k_blocks=%u scales of %u: [%zu] %04x, not %04x",
             dtype_names[w.dtype], cols, k_blocks, w.scales ? w.scale_cols : 0, at, got[at],
             wanted[at]);
    return false;
}

static bool check_matmul_x16(struct kcase *c)
{
    const uint32_t rows = 1 + below(c, 30), m = below(c, 3) ? 1 + below(c, 6) : 1 + below(c, 60);
    const uint32_t cols = 1 + below(c, below(c, 4) ? 300 : 1500);
    const struct kern_matrix w = any_x16_matrix(c, rows, cols);
    struct kern_matmul args = { .w = &w, .m = m, .y_stride = rows + below(c, 5),
                                .k_blocks = below(c, 3) ? 1 : KERN_RANK_BLOCKS };
    const size_t elements = kern_x16_elements(cols, args.k_blocks);
    args.x16_stride = elements + below(c, 5);
    uint16_t *x16 = guard_get(((m - 1) * args.x16_stride + elements) * 2, 2 * below(c, 8));
    const uint32_t temper = temper_of(c);
    for (uint32_t i = 0; i < m; i++) {
        float *x = floats(c, cols, temper);
        /* Products about the least normal number: what is flushed, and when, must be the same. */
        for (uint32_t k = 0; temper == 1 && below(c, 2) && k < cols; k++)
            x[k] = ldexpf(x[k], -(int)below(c, 140));
        c->reference->to_x16(x16 + i * args.x16_stride, x, &w, args.k_blocks);
    }
    args.x16 = x16;
    return same_rows(c, &args, c->reference->matmul_x16, c->set->matmul_x16);
}

/* A total that begins as the least normal number and loses just more than half a step below it:
 * what is left is subnormal after rounding, though a double rounds it to the bound. */
static bool check_x16_bound(struct kcase *c)
{
    enum { CUT = 128, COLS = 2 * CUT, ONE = 0x38 };
    const uint32_t m = 1 + below(c, 12);
    uint8_t *codes_of_row = guard_get(COLS, 0);
    float *scales = floats(c, 2, 0), *x = floats(c, COLS, 0);
    memset(codes_of_row, 0, COLS);
    memset(x, 0, COLS * sizeof *x);
    codes_of_row[0] = codes_of_row[CUT] = codes_of_row[CUT + 1] = ONE;
    x[0] = 0x1p-63f, scales[0] = 0x1p-63f;
    x[CUT] = -0x1p-75f, x[CUT + 1] = -0x1p-87f, scales[1] = 0x1.ffe002p-77f;
    const struct kern_matrix w = { .dtype = KERN_FP8_E4M3, .rows = 1, .cols = COLS, .scale_rows = 1,
                                   .scale_cols = CUT, .data = codes_of_row, .scales = scales };
    struct kern_matmul args = { .w = &w, .m = m, .y_stride = 1, .k_blocks = 1 };
    args.x16_stride = kern_x16_elements(COLS, 1);
    uint16_t *x16 = guard_get(m * args.x16_stride * 2, 0);
    for (uint32_t i = 0; i < m; i++)
        c->reference->to_x16(x16 + i * args.x16_stride, x, &w, 1);
    float wanted = 1;
    args.x16 = x16;
    args.m = 1;
    args.y = &wanted;
    c->reference->matmul_x16(&args, 0, 1);
    args.m = m;
    if (wanted == 0) return same_rows(c, &args, c->reference->matmul_x16, c->set->matmul_x16);
    snprintf(c->what, sizeof c->what, "the reference gives %a, not 0", wanted);
    return false;
}

static bool check_matmul_t(struct kcase *c)
{
    const uint32_t rows = 1 + below(c, 40), cols = 1 + below(c, 400);
    const struct kern_matrix w = any_matrix(c, rows, cols);
    const uint32_t begin = below(c, rows + 1), end = begin + below(c, rows + 1 - begin);
    const float *x = floats(c, end - begin, temper_of(c));
    float *wanted = floats(c, cols, 0), *got = floats(c, cols, 0);
    c->reference->matmul_t(&w, begin, end, x, wanted);
    c->set->matmul_t(&w, begin, end, x, got);
    size_t at;
    if (same_floats(wanted, got, cols, &at))
        return true;
    snprintf(c->what, sizeof c->what, "%s rows=[%u,%u) cols=%u scales=%d %ux%u: y[%zu] %a, not %a",
             dtype_names[w.dtype], begin, end, cols, !!w.scales, w.scale_rows, w.scale_cols, at,
             got[at], wanted[at]);
    return false;
}

static bool check_mla(struct kcase *c)
{
    static const uint32_t usual[] = { 16, 16, 32, 64, KERN_MLA_BLOCK_MAX };
    struct kern_mla args = { .heads = 1 + below(c, 40), .scale = 0.125f };
    const bool small = below(c, 2);
    args.lora = small ? 1 + below(c, 40) : 512;
    args.rope = small ? 1 + below(c, 20) : 64;
    args.heads = small ? args.heads : 1 + args.heads / 4;
    args.block_tokens = below(c, 2) ? usual[below(c, 5)] : 1 + below(c, 70);
    args.tokens = 1 + below(c, 150);
    args.blocks_bf16 = below(c, 2);
    const uint32_t width = args.lora + args.rope, temper = below(c, 4) == 0;
    const uint32_t count = (args.tokens + args.block_tokens - 1) / args.block_tokens;
    const enum kern_dtype dtype = args.blocks_bf16 ? KERN_BF16 : KERN_F32;
    const void *blocks[150], *others[150];
    const uint8_t *cache = codes(c, dtype, (size_t)args.tokens * width, temper);
    /* The last block ends where its tokens do: what is beyond may not be read. */
    for (uint32_t i = 0; i < count; i++)
        blocks[i] = cache + (size_t)i * args.block_tokens * width * kern_dtype_bytes(dtype);
    args.blocks = blocks;
    args.q = floats(c, (size_t)args.heads * width, temper);
    const uint32_t begin = below(c, args.heads + 1);
    const uint32_t end = begin + below(c, args.heads + 1 - begin);
    const size_t n = (size_t)args.heads * args.lora;
    float *wanted = floats(c, n, 0), *got = floats(c, n, 0);
    memcpy(got, wanted, n * sizeof *got);
    args.out = got;
    c->set->mla(&args, begin, end);
    /* The twin walks other blocks: how the cache is cut changes no bit. */
    const uint32_t cut = 1 + below(c, KERN_MLA_BLOCK_MAX);
    struct kern_mla twin = args;
    for (uint32_t i = 0; i * cut < args.tokens; i++)
        others[i] = cache + (size_t)i * cut * width * kern_dtype_bytes(dtype);
    twin.blocks = others;
    twin.block_tokens = cut;
    twin.out = wanted;
    c->reference->mla(&twin, begin, end);
    size_t at;
    if (same_floats(wanted, got, n, &at))
        return true;
    snprintf(c->what, sizeof c->what,
             "%s heads=[%u,%u) lora=%u rope=%u block=%u tokens=%u: out[%zu][%zu] %a, not %a",
             dtype_names[dtype], begin, end, args.lora, args.rope, args.block_tokens, args.tokens,
             at / args.lora, at % args.lora, got[at], wanted[at]);
    return false;
}

/* Reports the first difference between two vectors of a simple operation. */
static bool vectors_agree(struct kcase *c, const float *wanted, const float *got, size_t n)
{
    size_t at;
    if (same_floats(wanted, got, n, &at))
        return true;
    snprintf(c->what, sizeof c->what, "n=%zu: y[%zu] %a, not %a", n, at, got[at], wanted[at]);
    return false;
}

static bool check_rmsnorm(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 300), temper = temper_of(c);
    const float *x = floats(c, n, temper), *weight = floats(c, n, temper);
    float *wanted = floats(c, n, 0), *got = floats(c, n, 0);
    c->reference->rmsnorm(wanted, x, weight, n, 1e-6f);
    if (below(c, 2)) {
        memcpy(got, x, n * sizeof *got);
        c->set->rmsnorm(got, got, weight, n, 1e-6f);
    } else {
        c->set->rmsnorm(got, x, weight, n, 1e-6f);
    }
    return vectors_agree(c, wanted, got, n);
}

static bool check_swiglu(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 300);
    float *gate = floats(c, n, temper_of(c));
    const float *up = floats(c, n, temper_of(c));
    for (uint32_t i = 0; i < n; i++)
        gate[i] *= below(c, 4) ? 1 : 40;        /* across the whole range of exp */
    float *wanted = floats(c, n, 0), *got = floats(c, n, 0);
    c->reference->swiglu(wanted, gate, up, n);
    if (below(c, 2)) {
        memcpy(got, gate, n * sizeof *got);
        c->set->swiglu(got, got, up, n);
    } else {
        c->set->swiglu(got, gate, up, n);
    }
    return vectors_agree(c, wanted, got, n);
}

static bool check_highest(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 300);
    float *x = floats(c, n, temper_of(c));
    if (below(c, 3) == 0) x[below(c, n)] = below(c, 2) ? -0.0f : 0.0f;
    if (below(c, 4) == 0) x[below(c, n)] = below(c, 2) ? NAN : below(c, 2) ? INFINITY : -INFINITY;
    const float wanted = c->reference->highest(x, n), got = c->set->highest(x, n);
    return vectors_agree(c, &wanted, &got, 1);
}

static bool check_shares(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 3 * KERN_SHARE_BLOCK);
    const uint32_t blocks = (n + KERN_SHARE_BLOCK - 1) / KERN_SHARE_BLOCK;
    const float *x = floats(c, n, temper_of(c));
    const float base = any_float(c, 0), scale = below(c, 2) ? 1.0f : any_float(c, 0);
    float *wanted = floats(c, n, 0), *got = floats(c, n, 0);
    float *sums = floats(c, blocks, 0), *got_sums = floats(c, blocks, 0);
    c->reference->shares(wanted, x, n, base, scale, sums);
    if (below(c, 2)) {
        memcpy(got, x, n * sizeof *got);
        c->set->shares(got, got, n, base, scale, got_sums);
    } else {
        c->set->shares(got, x, n, base, scale, got_sums);
    }
    return vectors_agree(c, wanted, got, n) && vectors_agree(c, sums, got_sums, blocks);
}

static bool check_rope(struct kcase *c)
{
    const uint32_t dims = 2 * (1 + below(c, 64));
    const bool interleaved = below(c, 2);
    float *wanted = floats(c, dims, temper_of(c)), *got = floats(c, dims, 0);
    const float *cosine = floats(c, dims / 2, 0), *sine = floats(c, dims / 2, 0);
    memcpy(got, wanted, dims * sizeof *got);
    c->reference->rope(wanted, cosine, sine, dims, interleaved);
    c->set->rope(got, cosine, sine, dims, interleaved);
    return vectors_agree(c, wanted, got, dims);
}

static bool check_axpy(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 300);
    const float *x = floats(c, n, temper_of(c));
    const float a = any_float(c, temper_of(c));
    float *wanted = floats(c, n, temper_of(c)), *got = floats(c, n, 0);
    memcpy(got, wanted, n * sizeof *got);
    c->reference->axpy(wanted, a, x, n);
    c->set->axpy(got, a, x, n);
    return vectors_agree(c, wanted, got, n);
}

static bool check_add(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 300);
    const float *x = floats(c, n, temper_of(c));
    float *wanted = floats(c, n, temper_of(c)), *got = floats(c, n, 0);
    memcpy(got, wanted, n * sizeof *got);
    c->reference->add(wanted, x, n);
    c->set->add(got, x, n);
    return vectors_agree(c, wanted, got, n);
}

static bool check_gate(struct kcase *c)
{
    enum { EXPERTS_MAX = 256 };
    struct kern_gate gate = { .normalize = below(c, 2), .sigmoid = below(c, 2), .scaling = 2.5f };
    gate.groups = 1u << below(c, 4);
    gate.experts = gate.groups * (1 + below(c, EXPERTS_MAX / 8));
    gate.top_groups = 1 + below(c, gate.groups);
    gate.top_k = 1 + below(c, gate.experts / gate.groups * gate.top_groups);
    gate.method = below(c, 3);
    gate.bias = below(c, 2) ? floats(c, gate.experts, 0) : NULL;
    const float *logits = floats(c, gate.experts, temper_of(c));
    float *scratch = floats(c, 2 * (size_t)gate.experts, 0);
    uint32_t *ids[2];
    float *weights[2];
    for (int i = 0; i < 2; i++) {
        ids[i] = guard_get(gate.top_k * sizeof *ids[i], 0);
        weights[i] = floats(c, gate.top_k, 0);
        (i ? c->set : c->reference)->gate(&gate, logits, ids[i], weights[i], scratch);
    }
    if (memcmp(ids[0], ids[1], gate.top_k * sizeof *ids[0])) {
        snprintf(c->what, sizeof c->what, "experts=%u: ids differ", gate.experts);
        return false;
    }
    return vectors_agree(c, weights[0], weights[1], gate.top_k);
}

static bool check_to_f32(struct kcase *c)
{
    const enum kern_dtype dtype = (enum kern_dtype)below(c, KERN_STORED_COUNT);
    const uint32_t n = 1 + below(c, 300);
    const void *x = codes(c, dtype, dtype == KERN_INT4 ? (uint32_t)kern_row_bytes(dtype, n) : n, 2);
    float *wanted = floats(c, n, 0), *got = floats(c, n, 0);
    c->reference->to_f32(wanted, x, dtype, n);
    c->set->to_f32(got, x, dtype, n);
    return vectors_agree(c, wanted, got, n);
}

static bool check_to_bf16(struct kcase *c)
{
    const uint32_t n = 1 + below(c, 300);
    const float *x = floats(c, n, below(c, 3));
    uint16_t *wanted = guard_get(n * sizeof *wanted, 2 * below(c, 8));
    uint16_t *got = guard_get(n * sizeof *got, 2 * below(c, 8));
    c->reference->to_bf16(wanted, x, n);
    c->set->to_bf16(got, x, n);
    if (!memcmp(wanted, got, n * sizeof *got))
        return true;
    snprintf(c->what, sizeof c->what, "n=%u: codes differ", n);
    return false;
}

static const struct {
    const char *name;
    bool (*check)(struct kcase *c);
    uint32_t seeds;
} checks[] = {
    { "matmul", check_matmul, 1500 },  { "matmul_t", check_matmul_t, 400 },
    { "mla", check_mla, 150 },         { "rmsnorm", check_rmsnorm, 400 },
    { "swiglu", check_swiglu, 400 },   { "rope", check_rope, 100 },
    { "axpy", check_axpy, 400 },       { "add", check_add, 400 },
    { "gate", check_gate, 400 },       { "to_f32", check_to_f32, 400 },
    { "to_bf16", check_to_bf16, 400 }, { "matmul_x8", check_matmul_x8, 800 },
    { "weave", check_weave, 600 },
    { "tile", check_tile, 200 },
    { "matmul_fp8", check_matmul_fp8, 200 },
    { "to_x8", check_to_x8, 400 },     { "highest", check_highest, 400 },
    { "shares", check_shares, 400 },   { "matmul_x16", check_matmul_x16, 1500 },
    { "to_x16", check_to_x16, 400 },     { "x16_bound", check_x16_bound, 40 },
};

/* Number of failed cases of one op set. */
static unsigned set_check(const struct kern_ops *set, const char *only, uint64_t first,
                          uint64_t seeds)
{
    unsigned failed = 0;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (only && strcmp(only, checks[i].name))
            continue;
        const uint64_t count = seeds ? seeds : checks[i].seeds;
        unsigned bad = 0;
        for (uint64_t seed = first; seed < first + count && bad < 5; seed++) {
            struct kcase c = { .set = set, .reference = kern_ops_variant(KERN_CPU_REFERENCE) };
            base_rng_init(&c.rng, seed);
            const bool same = checks[i].check(&c);
            const bool guarded = guard_end();
            if (same && guarded)
                continue;
            bad++;
            printf("FAIL %s %s --seed %llu: %s\n", set->name, checks[i].name,
                   (unsigned long long)seed, same ? "guard bytes were overwritten" : c.what);
        }
        if (!bad)
            printf("ok   %s %s: %llu cases\n", set->name, checks[i].name,
                   (unsigned long long)count);
        failed += bad;
    }
    return failed;
}

int main(int argc, char **argv)
{
    const char *only = NULL, *type = NULL;
    uint64_t first = 1, seeds = 0;
    bool bench = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench")) {
            bench = true;
        } else if (!strcmp(argv[i], "--floor")) {
            return kbench_floor(i + 1 < argc ? argv[i + 1] : NULL);
        } else if (!strcmp(argv[i], "--seeds") && i + 1 < argc) {
            seeds = strtoull(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            seeds = seeds ? seeds : 1;
        } else if (argv[i][0] != '-') {
            *(only ? &type : &only) = argv[i];
        } else {
            fprintf(stderr,
                    "usage: kcheck [--bench] [--floor [TYPE]] [--seed S] [--seeds N] "
                    "[OP [TYPE]]\n");
            return 2;
        }
    }
    if (bench) return kbench_run(only, type);
    unsigned failed = 0, sets = 0;
    for (int variant = KERN_CPU_AVX2; variant <= KERN_CPU_AVX512; variant++) {
        const struct kern_ops *set = kern_ops_variant((enum kern_cpu)variant);
        if (!set) {
            printf("skip %s: this machine or build cannot run it\n",
                   variant == KERN_CPU_AVX2 ? "avx2" : "avx512");
            continue;
        }
        failed += set_check(set, only, first, seeds);
        sets++;
    }
    if (!sets) {
        printf("skip: only the reference runs here, there is nothing to compare\n");
        return 77;
    }
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
