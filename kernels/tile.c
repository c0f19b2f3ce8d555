#include "kernels/tile.h"

#include <stdint.h>
#include <string.h>

#include "base/must.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

static size_t groups_of(const struct kern_matrix *w)
{
    return (w->cols + w->scale_cols - 1) / w->scale_cols;
}

size_t kern_tile_scratch(const struct kern_matrix *w)
{
    const size_t codes = kern_row_bytes(w->dtype, w->cols), scales = 2 * groups_of(w);
    return KERN_TILE_ROWS * (codes > scales ? codes : scales);
}

/* Pieces [from, pieces) of `size` bytes of `rows` rows, first by piece, then by row. */
static void by_piece(uint8_t *to, const uint8_t *rows_from, size_t row_bytes, uint32_t rows,
                     size_t from, size_t pieces, size_t size)
{
    for (size_t i = from; i < pieces; i++) {
        for (uint32_t r = 0; r < rows; r++)
            memcpy(to + (i * rows + r) * size, rows_from + r * row_bytes + i * size, size);
    }
}

#if defined(__x86_64__)
static __m128i load(const uint8_t *from)
{
    return _mm_loadu_si128((const void *)from);
}

/* Four pieces of four bytes of four rows of a whole tile. */
static void four_by_four(uint8_t *to, const uint8_t *from, size_t row_bytes)
{
    enum { PIECE = KERN_TILE_ROWS * KERN_TILE_BYTES };
    const __m128i a = load(from), b = load(from + row_bytes);
    const __m128i c = load(from + 2 * row_bytes), d = load(from + 3 * row_bytes);
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i ab_high = _mm_unpackhi_epi32(a, b), cd_high = _mm_unpackhi_epi32(c, d);
    _mm_storeu_si128((void *)to, _mm_unpacklo_epi64(ab, cd));
    _mm_storeu_si128((void *)(to + PIECE), _mm_unpackhi_epi64(ab, cd));
    _mm_storeu_si128((void *)(to + 2 * PIECE), _mm_unpacklo_epi64(ab_high, cd_high));
    _mm_storeu_si128((void *)(to + 3 * PIECE), _mm_unpackhi_epi64(ab_high, cd_high));
}

/* Pieces [first, first + count) of a whole tile, count a multiple of four: of four rows all of them
 * before the next four, since rows lie at distances at which few lines fit the first cache. */
static void whole_pieces(uint8_t *to, const uint8_t *from, size_t row_bytes, size_t first,
                         size_t count)
{
    for (uint32_t r = 0; r < KERN_TILE_ROWS; r += 4) {
        for (size_t i = first; i < first + count; i += 4)
            four_by_four(to + (i * KERN_TILE_ROWS + r) * KERN_TILE_BYTES,
                         from + r * row_bytes + i * KERN_TILE_BYTES, row_bytes);
    }
}
#endif

static void tile_codes(uint8_t *to, const uint8_t *from, size_t row_bytes, uint32_t rows)
{
    const size_t pieces = row_bytes / KERN_TILE_BYTES, rest = row_bytes % KERN_TILE_BYTES;
    size_t done = 0;
#if defined(__x86_64__)
    enum { LINE = 64 / KERN_TILE_BYTES };
    for (; rows == KERN_TILE_ROWS && done + LINE <= pieces; done += LINE)
        whole_pieces(to, from, row_bytes, done, LINE);
    if (rows == KERN_TILE_ROWS) {
        whole_pieces(to, from, row_bytes, done, (pieces - done) / 4 * 4);
        done = pieces / 4 * 4;
    }
#endif
    by_piece(to, from, row_bytes, rows, done, pieces, KERN_TILE_BYTES);
    for (uint32_t r = 0; rest && r < rows; r++)
        memcpy(to + rows * pieces * KERN_TILE_BYTES + r * rest,
               from + r * row_bytes + pieces * KERN_TILE_BYTES, rest);
}

/* Eight bytes at a time: compilers that were told -O2 leave a loop of bytes a loop of bytes. */
static void copy_up(uint8_t *to, const uint8_t *from, size_t bytes, uint8_t up)
{
    const uint64_t all = up * UINT64_C(0x0101010101010101);
    size_t i = 0;
    for (; i + sizeof all <= bytes; i += sizeof all) {
        uint64_t eight;
        memcpy(&eight, from + i, sizeof eight);
        eight ^= all;
        memcpy(to + i, &eight, sizeof eight);
    }
    for (; i < bytes; i++) to[i] = from[i] ^ up;
}

/* A tile as it was, with codes moved up. */
static void take_out(uint8_t *to, const uint8_t *from, size_t bytes, enum kern_dtype dtype)
{
    if (dtype == KERN_INT4) copy_up(to, from, bytes, KERN_TILE_INT4_UP);
    else memcpy(to, from, bytes);
}

void kern_tile(const struct kern_matrix *w, void *data, void *scales, uint32_t row_begin,
               uint32_t row_end, void *scratch)
{
    MUST(kern_dtype_grouped(w->dtype) && row_begin % KERN_TILE_ROWS == 0 && row_end <= w->rows);
    MUST(row_end % KERN_TILE_ROWS == 0 || row_end == w->rows);
    const size_t row_bytes = kern_row_bytes(w->dtype, w->cols), groups = groups_of(w);
    for (uint32_t n = row_begin; n < row_end; n += KERN_TILE_ROWS) {
        const uint32_t rows = row_end - n < KERN_TILE_ROWS ? row_end - n : KERN_TILE_ROWS;
        uint8_t *codes = (uint8_t *)data + n * row_bytes;
        uint8_t *scale = (uint8_t *)scales + n * groups * 2;
        take_out(scratch, codes, rows * row_bytes, w->dtype);
        tile_codes(codes, scratch, row_bytes, rows);
        memcpy(scratch, scale, rows * groups * 2);
        for (size_t g = 0; g < groups; g++) {
            for (uint32_t r = 0; r < rows; r++)
                memcpy(scale + 2 * (g * rows + kern_tile_scale_at(rows, r)),
                       (const uint8_t *)scratch + 2 * (r * groups + g), 2);
        }
    }
}
