/* Tiles of INT8 and INT4 weights against rows of activations as integers of one digit or three:
 * where the bytes of a tile lie, and the table of products. Part of simd.h; the products themselves
 * are in the file that the op set names: simd_x8_vnni.h for AVX-512, simd_x8_avx2.h. */

enum {
    X8_HALVES = 2,      /* registers of a line */
    X8_REGISTER = KERN_LANES * KERN_TILE_COLS,
    X8_LINE = X8_HALVES * X8_REGISTER,
    X8_BATCH = KERN_GROUP_SMALL / KERN_TILE_COLS,       /* lines of a small group */
    X8_SPAN_GROUPS = KERN_X8_SPAN / KERN_GROUP_SMALL,
    X8_ROWS = 2,        /* of a lane */
    X8_SPAN_BYTES = KERN_X8_SPAN / KERN_TILE_COLS * X8_LINE +
                    X8_SPAN_GROUPS * X8_HALVES * X8_ROWS * KERN_LANES * 2, /* at most */
};

/* Rows in a lane of a register, and bytes of a group's scales and of a span in a whole tile. */
VEC_INLINE uint32_t x8_lane_rows(enum kern_dtype dtype)
{
    return dtype == KERN_INT4 ? X8_ROWS : 1;
}

VEC_INLINE size_t x8_scale_bytes(enum kern_dtype dtype)
{
    return 2 * (size_t)X8_HALVES * KERN_LANES * x8_lane_rows(dtype);
}

VEC_INLINE size_t x8_span_bytes(enum kern_dtype dtype, uint32_t group)
{
    return KERN_X8_SPAN / KERN_TILE_COLS * (size_t)X8_LINE +
           KERN_X8_SPAN / group * x8_scale_bytes(dtype);
}

/* One tile of a matrix: `seam` bytes at `head`, the others at `tail`. */
struct x8_tile {
    const uint8_t *head, *tail;
    size_t seam;
    uint32_t first, rows, cols;
};

VEC_INLINE struct x8_tile x8_tile_at(const struct kern_matrix *w, enum kern_dtype dtype,
                                     uint32_t group, uint32_t n)
{
    const size_t codes = row_bytes(dtype, w->cols), groups = (w->cols + group - 1) / group;
    const size_t begin = n * (codes + 2 * groups), end = w->rows * codes;
    const uint32_t left = w->rows - n, most = kern_tile_rows(dtype);
    const uint32_t rows = left < most ? left : most;
    const uint8_t *data = w->data, *scales = w->scales;
    if (begin >= end) return (struct x8_tile){ NULL, scales + (begin - end), 0, n, rows, w->cols };
    return (struct x8_tile){ data + begin, scales, end - begin, n, rows, w->cols };
}

/* Copies bytes of the tile; their end. */
static size_t x8_copy(uint8_t *to, const struct x8_tile *t, size_t at, size_t bytes)
{
    const size_t left = at < t->seam ? t->seam - at : 0, head = left < bytes ? left : bytes;
    if (head > 0) memcpy(to, t->head + at, head);
    if (bytes > head) memcpy(to + head, t->tail + (at + head - t->seam), bytes - head);
    return at + bytes;
}

/* Four columns of the rows of a tile with fewer than a whole one, or fewer columns of INT8. */
static size_t x8_fill_line(uint8_t *line, enum kern_dtype dtype, const struct x8_tile *t, size_t at,
                           size_t bytes)
{
    for (uint32_t r = 0; r < t->rows; r++) {
        uint8_t codes[KERN_TILE_COLS];
        at = x8_copy(codes, t, at, bytes);
        uint8_t *to = line + r * KERN_TILE_COLS;
        if (dtype == KERN_INT8) {
            memcpy(to, codes, bytes);
            continue;
        }
        to = line + (r / (2 * KERN_LANES) * KERN_LANES + r % KERN_LANES) * KERN_TILE_COLS;
        const uint32_t up = r / KERN_LANES % 2 * 4;
        for (uint32_t i = 0; i < KERN_TILE_COLS; i++)
            to[i] |= (uint8_t)((i % 2 ? codes[i / 2] >> 4 : codes[i / 2] & 15) << up);
    }
    return at;
}

/* The span at k as a whole tile has it, filled up with zeros to all rows and columns. */
static void x8_fill(uint8_t to[X8_SPAN_BYTES], enum kern_dtype dtype, uint32_t group,
                    const struct x8_tile *t, uint32_t k)
{
    const struct kern_tile_unit unit = kern_tile_unit(dtype, group);
    const size_t codes = row_bytes(dtype, t->cols), groups = (t->cols + group - 1) / group;
    const uint32_t most = kern_tile_rows(dtype), piece = kern_tile_piece(dtype);
    size_t at = (size_t)k / unit.cols * unit.bytes * t->rows;
    if (t->rows == most && k + KERN_X8_SPAN <= t->cols) {
        x8_copy(to, t, at, x8_span_bytes(dtype, group));
        return;
    }
    memset(to, 0, X8_SPAN_BYTES);
    for (size_t u = k / group; u < groups && u < (k + KERN_X8_SPAN) / group; u++) {
        const size_t left = codes - u * unit.codes, bytes = left < unit.codes ? left : unit.codes;
        uint8_t *line = to, *scales = to + group / KERN_TILE_COLS * X8_LINE;
        for (size_t i = 0; i < bytes; i += piece, line += X8_LINE) {
            const size_t size = bytes - i < piece ? bytes - i : piece;
            at = t->rows == most && size == piece ? x8_copy(line, t, at, X8_LINE)
                                                  : x8_fill_line(line, dtype, t, at, size);
        }
        for (uint32_t r = 0; t->rows < most && r < t->rows; r++)
            at = x8_copy(scales + 2 * kern_tile_scale_at(dtype, most, r), t, at, 2);
        if (t->rows == most) at = x8_copy(scales, t, at, 2 * most);
        to = scales + x8_scale_bytes(dtype);
    }
}

#include VEC_X8_PRODUCTS

#define X8_OF(type, group, digits, name) \
    static void name(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end) \
    { \
        x8_product(args, type, group, digits, row_begin, row_end); \
    }

X8_OF(KERN_INT8, KERN_GROUP_SMALL, KERN_X8_FAST, x8_int8_small)
X8_OF(KERN_INT8, KERN_GROUP_LARGE, KERN_X8_FAST, x8_int8_large)
X8_OF(KERN_INT4, KERN_GROUP_SMALL, KERN_X8_FAST, x8_int4_small)
X8_OF(KERN_INT4, KERN_GROUP_LARGE, KERN_X8_FAST, x8_int4_large)
X8_OF(KERN_INT8, KERN_GROUP_SMALL, KERN_X8_FULL, x8_int8_small_full)
X8_OF(KERN_INT8, KERN_GROUP_LARGE, KERN_X8_FULL, x8_int8_large_full)
X8_OF(KERN_INT4, KERN_GROUP_SMALL, KERN_X8_FULL, x8_int4_small_full)
X8_OF(KERN_INT4, KERN_GROUP_LARGE, KERN_X8_FULL, x8_int4_large_full)

static void simd_matmul_x8(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end)
{
    /* [INT4][group of 128][three digits] */
    static void (*const products[2][2][2])(const struct kern_matmul *, uint32_t, uint32_t) = {
        { { x8_int8_small, x8_int8_small_full }, { x8_int8_large, x8_int8_large_full } },
        { { x8_int4_small, x8_int4_small_full }, { x8_int4_large, x8_int4_large_full } },
    };
    cpu_x8_check(args, row_begin, row_end);
    products[args->w->dtype == KERN_INT4][args->w->scale_cols == KERN_GROUP_LARGE]
            [args->x8_digits == KERN_X8_FULL](args, row_begin, row_end);
}
