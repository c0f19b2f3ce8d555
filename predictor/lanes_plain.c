/* For every processor. */
#include "predictor/lanes_set.h"

const struct pred_lanes pred_lanes_plain = LANES_TABLE("plain");
