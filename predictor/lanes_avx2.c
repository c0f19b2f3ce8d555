/* Compiled with -mavx2, chosen at run time. Without -mfma: the plain set has no fused operations
 * either, and both give the same bits. */
#include "predictor/lanes_set.h"

const struct pred_lanes pred_lanes_avx2 = LANES_TABLE("avx2");
