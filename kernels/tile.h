/* Tiles: the order in memory of INT8 and INT4 weights that the CPU multiplies from (matmul_x8).
 *
 *   tiles     kern_tile_rows rows of a matrix each, the last one the rows that are left, one tile
 *             after the other
 *   units     a tile is its rows cut into groups of columns, one unit after the other; first the
 *             codes of a unit, then the scales of its group (INT4 rows may end with a unit of
 *             padding, which has no group)
 *   codes     first the first four columns of each row, then the next four of each and so on; what
 *             is left of INT8 rows beyond whole fours goes last, row by row. INT4 codes are moved
 *             up by 8, so that they are 0..15. In a whole tile a byte has one column of row r in
 *             its low nibble and of row r + 16 in its high one, and the four bytes of rows 0 to 15
 *             come first, then those of rows 32 to 47; in the last tile, if it has fewer rows, a
 *             byte has two columns of one row
 *   scales    one of each row; in whole tiles row r and row r + 16 side by side
 *
 * So a register holds four columns of sixteen rows, or of 32, and a sum of products needs no adding
 * up across lanes and is scaled once for a group of columns instead of once for each of its
 * registers; two registers side by side share what is loaded of the activations; and a product is
 * one stream of memory, scales within (README.md has what that gives).
 *
 * Tiles lie where their rows and scales lay and have as many bytes: they begin at the begin of the
 * rows' memory and go on in the scales' where that ends, in the middle of a tile as it may be. So a
 * tile lies further on than its rows did, where those of later tiles were. Checkpoints keep rows,
 * packs either (tier-pack repack --order).
 */
#ifndef KERNELS_TILE_H
#define KERNELS_TILE_H

#include "kernels/kern.h"

enum { KERN_TILE_COLS = 4, KERN_TILE_INT4_UP = 0x88 };

/* Rows of a whole tile. */
static inline uint32_t kern_tile_rows(enum kern_dtype dtype)
{
    return dtype == KERN_INT4 ? 64 : 32;
}

/* Bytes of four columns of a row. */
static inline uint32_t kern_tile_piece(enum kern_dtype dtype)
{
    return dtype == KERN_INT4 ? KERN_TILE_COLS / 2 : KERN_TILE_COLS;
}

/* A whole unit of one row: its columns, bytes of codes, bytes in all. */
struct kern_tile_unit {
    uint32_t cols, codes, bytes;
};

static inline struct kern_tile_unit kern_tile_unit(enum kern_dtype dtype, uint32_t scale_cols)
{
    const uint32_t codes = dtype == KERN_INT4 ? scale_cols / 2 : scale_cols;
    return (struct kern_tile_unit){ scale_cols, codes, codes + 2 };
}

/* Where the scale of row r stands among those of a group in a tile of `rows` rows. */
static inline uint32_t kern_tile_scale_at(enum kern_dtype dtype, uint32_t rows, uint32_t r)
{
    return rows == kern_tile_rows(dtype) ? r / 32 * 32 + r % 16 * 2 + r % 32 / 16 : r;
}

/* Rearranges data and scales of a matrix in rows into tiles, in the same memory. w gives dtype
 * (INT8 or INT4), rows, cols and scale_cols; its addresses are not used. Data and scales at any
 * byte. Any thread. */
void kern_tile(const struct kern_matrix *w, void *data, void *scales, void *scratch);
size_t kern_tile_scratch(const struct kern_matrix *w);

/* The same by parts, several threads at once: rows [row_begin, row_end), whole tiles, so row_begin
 * is a multiple of kern_tile_rows, and row_end is one or the matrix's end. Every part is first
 * saved, what it needs and tiles of others will lie on, and once all are saved each is made. */
size_t kern_tile_saved(const struct kern_matrix *w, uint32_t row_begin, uint32_t row_end);
void kern_tile_save(const struct kern_matrix *w, const void *data, const void *scales,
                    uint32_t row_begin, uint32_t row_end, void *saved);
void kern_tile_part(const struct kern_matrix *w, void *data, void *scales, uint32_t row_begin,
                    uint32_t row_end, const void *saved, void *scratch);
/* Bytes of scratch of a part being made, of a thread. */
size_t kern_tile_part_scratch(const struct kern_matrix *w);

#endif
