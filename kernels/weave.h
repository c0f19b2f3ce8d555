/* Woven FP8: the order of FP8 weights that the AVX-512 and AVX2 sets multiply from fastest, where
 * subnormal operands cost nothing.
 *
 * Rows stand in groups of sixteen (the last group has those that are left). Of a group first come
 * the first 128 columns of each row, then the next 128 of each and so on:
 *
 *   cut 0 of row 0 | cut 0 of row 1 | ... | cut 1 of row 0 | cut 1 of row 1 | ...
 *
 * So a group is multiplied in the order of memory, and its rows share what is loaded of the
 * activations.
 *
 * A cut is two pieces of 64 columns, in which four codes, 16 columns apart, share a dword. e4m3 is
 * a sign s, an exponent eeee and a fraction mmm; of columns d, 16 + d, 32 + d, 48 + d of 64 (codes
 * 0..3) dword d is
 *
 *   bit   31 | 30..28 | 27 | 26..24 | 23..20 | 19..16 | 15 | 14..12 | 11 | 10..8  | 7..4   | 3..0
 *         s0 | eee 2  | s2 | eee 0  | emmm 0 | emmm 2 | s1 | eee 3  | s3 | eee 1  | emmm 1 | emmm 3
 *
 * where eee are the upper three bits of an exponent and emmm its lowest and the fraction. Of that
 * the mask 0x87f00000 leaves code 0 as a float: sign, exponent and fraction where a float has them,
 * its value times 2^-120, zero and subnormals included. 16 bits to the left it leaves code 1; with
 * the nibbles of each byte swapped codes 2 and 3. So 64 codes become floats by seven operations, of
 * which none looks anything up (README.md has what that gives).
 *
 * A NaN becomes 480: checkpoints that hold one are refused when they are read or indexed.
 * Checkpoints keep rows, packs may have either; the cuts, the order of sums and the bits of
 * products are those of rows. A matrix has as many bytes as in rows, and a group lies where its
 * rows lay.
 */
#ifndef KERNELS_WEAVE_H
#define KERNELS_WEAVE_H

#include "kernels/kern.h"

enum { KERN_WOVEN = 64, KERN_WOVEN_CUT = 128 };
enum { KERN_WOVEN_ROWS = 16 };         /* of a whole group */
#define KERN_WOVEN_MASK UINT32_C(0x87f00000)
#define KERN_WOVEN_UP 0x1p120f

/* Whether w's FP8 codes can be woven: whole cuts of 128 columns with a scale each. */
bool kern_weave_takes(const struct kern_matrix *w);

/* Whether that makes products faster. Woven weights are multiplied as they come, subnormals as
 * floats that are subnormal, which costs some processors a hundred cycles each. */
bool kern_weave_pays(const struct kern_ops *ops);

/* Bytes of scratch for weaving rows of `cols` columns. */
static inline size_t kern_weave_scratch(uint32_t cols)
{
    return (size_t)KERN_WOVEN_ROWS * cols;
}

/* Weaves rows of `cols` codes, whole cuts, in place: whole groups, or all up to the end of their
 * matrix. Any thread, each with a scratch of its own; any alignment. */
void kern_weave(void *codes, uint32_t rows, uint32_t cols, void *scratch);

/* Bytes from a cut of row n of woven w to its next one. */
static inline size_t kern_woven_step(const struct kern_matrix *w, uint32_t n)
{
    const uint32_t rows = KERN_WOVEN_ROWS, left = w->rows - (n & ~(rows - 1));
    return (size_t)(left < rows ? left : rows) * KERN_WOVEN_CUT;
}

/* The first piece of row n of woven w. */
static inline const uint8_t *kern_woven_row(const struct kern_matrix *w, uint32_t n)
{
    const uint32_t r = n % KERN_WOVEN_ROWS;
    return (const uint8_t *)w->data + (size_t)(n - r) * w->cols + (size_t)r * KERN_WOVEN_CUT;
}

/* Where the piece of column k lies from the first one of its row on. */
static inline size_t kern_woven_at(size_t step, uint32_t k)
{
    return k / KERN_WOVEN_CUT * step + k % KERN_WOVEN_CUT / KERN_WOVEN * KERN_WOVEN;
}

#endif
