/* Tiles: the order in memory of INT8 and INT4 weights that the CPU multiplies from (matmul_x8).
 *
 *   rows      a tile is KERN_TILE_ROWS rows of a matrix, one after the other as kern.h has them;
 *             the last tile has the rows that are left
 *   codes     in a tile first the first four bytes of each of its rows, then the next four of each
 *             and so on; what is left of INT8 rows beyond whole fours goes last, row by row. INT4
 *             codes are moved up by 8 (each byte with 0x88 by exclusive or), so that they are 0..15
 *   scales    likewise: first the scale of the first group of each row, then the second of each; in
 *             tiles of KERN_TILE_ROWS rows those of row r and row r + 16 side by side
 *
 * So a register holds four bytes of sixteen rows, and a sum of products needs no adding up across
 * lanes and is scaled once for a group of columns instead of once for each of its registers; two
 * registers side by side share what is loaded of the activations (README.md has what that gives).
 * A tile lies where its rows lay and has as many bytes; checkpoints and packs keep rows.
 */
#ifndef KERNELS_TILE_H
#define KERNELS_TILE_H

#include "kernels/kern.h"

enum { KERN_TILE_ROWS = 32, KERN_TILE_BYTES = 4, KERN_TILE_INT4_UP = 0x88 };

/* Where the scale of row r stands among those of a group in a tile of `rows` rows. */
static inline uint32_t kern_tile_scale_at(uint32_t rows, uint32_t r)
{
    enum { HALF = KERN_TILE_ROWS / 2 };
    return rows == KERN_TILE_ROWS ? r % HALF * 2 + r / HALF : r;
}

/* Bytes of scratch that kern_tile needs for w. */
size_t kern_tile_scratch(const struct kern_matrix *w);

/* Rearranges rows [row_begin, row_end) of data and scales of a matrix in rows into tiles, in place:
 * whole tiles, so row_begin is a multiple of KERN_TILE_ROWS, and row_end is one or the matrix's
 * end. w gives dtype (INT8 or INT4), rows, cols and scale_cols; its addresses are not used. Data
 * and scales, both of the whole matrix, at any byte. Any thread; several may take other rows of a
 * matrix at the same time, each with a scratch of its own. */
void kern_tile(const struct kern_matrix *w, void *data, void *scales, uint32_t row_begin,
               uint32_t row_end, void *scratch);

#endif
