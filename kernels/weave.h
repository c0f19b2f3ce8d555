/* Woven FP8: the order of the bits of FP8 weights that the AVX-512 set multiplies from fastest.
 *
 * Four codes of one row, 16 columns apart, share a dword. e4m3 is a sign s, an exponent eeee and a
 * fraction mmm; of columns d, 16 + d, 32 + d, 48 + d of 64 (codes 0..3) dword d is
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
 * A NaN becomes 480: checkpoints that hold one are refused when they are read or indexed. Files
 * keep rows; the cuts, the order of sums and the bits of products are those of rows.
 */
#ifndef KERNELS_WEAVE_H
#define KERNELS_WEAVE_H

#include "kernels/kern.h"

enum { KERN_WOVEN = 64, KERN_WOVEN_CUT = 128 };
#define KERN_WOVEN_MASK UINT32_C(0x87f00000)
#define KERN_WOVEN_UP 0x1p120f

/* Whether w's FP8 codes can be woven: whole cuts of 128 columns with a scale each. */
bool kern_weave_takes(const struct kern_matrix *w);

/* Whether that makes products faster. Woven weights are multiplied as they come, subnormals as
 * floats that are subnormal, which costs some processors a hundred cycles each. */
bool kern_weave_pays(const struct kern_ops *ops);

/* `bytes` FP8 codes, whole pieces of KERN_WOVEN, in place. Any thread; any alignment. */
void kern_weave(void *codes, size_t bytes);

#endif
