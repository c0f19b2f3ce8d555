#include "kernels/tile.h"

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

/* Four pieces of four bytes of each row of a whole tile. */
static void four_pieces(uint8_t *to, const uint8_t *from, size_t row_bytes)
{
    enum { PIECE = KERN_TILE_ROWS * KERN_TILE_BYTES };
    for (uint32_t r = 0; r < KERN_TILE_ROWS; r += 4) {
        const uint8_t *at = from + r * row_bytes;
        const __m128i a = load(at), b = load(at + row_bytes);
        const __m128i c = load(at + 2 * row_bytes), d = load(at + 3 * row_bytes);
        const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
        const __m128i ab_high = _mm_unpackhi_epi32(a, b), cd_high = _mm_unpackhi_epi32(c, d);
        uint8_t *out = to + r * KERN_TILE_BYTES;
        _mm_storeu_si128((void *)out, _mm_unpacklo_epi64(ab, cd));
        _mm_storeu_si128((void *)(out + PIECE), _mm_unpackhi_epi64(ab, cd));
        _mm_storeu_si128((void *)(out + 2 * PIECE), _mm_unpacklo_epi64(ab_high, cd_high));
        _mm_storeu_si128((void *)(out + 3 * PIECE), _mm_unpackhi_epi64(ab_high, cd_high));
    }
}
#endif

static void tile_codes(uint8_t *to, const uint8_t *from, size_t row_bytes, uint32_t rows)
{
    const size_t pieces = row_bytes / KERN_TILE_BYTES, rest = row_bytes % KERN_TILE_BYTES;
    size_t done = 0;
#if defined(__x86_64__)
    for (; rows == KERN_TILE_ROWS && done + 4 <= pieces; done += 4)
        four_pieces(to + done * KERN_TILE_ROWS * KERN_TILE_BYTES, from + done * KERN_TILE_BYTES,
                    row_bytes);
#endif
    by_piece(to, from, row_bytes, rows, done, pieces, KERN_TILE_BYTES);
    for (uint32_t r = 0; rest && r < rows; r++)
        memcpy(to + rows * pieces * KERN_TILE_BYTES + r * rest,
               from + r * row_bytes + pieces * KERN_TILE_BYTES, rest);
}

void kern_tile(const struct kern_matrix *w, void *data, void *scales, void *scratch)
{
    MUST(kern_dtype_grouped(w->dtype));
    const size_t row_bytes = kern_row_bytes(w->dtype, w->cols), groups = groups_of(w);
    for (uint32_t n = 0; n < w->rows; n += KERN_TILE_ROWS) {
        const uint32_t rows = w->rows - n < KERN_TILE_ROWS ? w->rows - n : KERN_TILE_ROWS;
        uint8_t *codes = (uint8_t *)data + n * row_bytes;
        uint8_t *scale = (uint8_t *)scales + n * groups * 2;
        memcpy(scratch, codes, rows * row_bytes);
        tile_codes(codes, scratch, row_bytes, rows);
        memcpy(scratch, scale, rows * groups * 2);
        by_piece(scale, scratch, groups * 2, rows, 0, groups, 2);
    }
}
