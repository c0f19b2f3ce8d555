/* Tables and names that /metrics and /tier/stats share. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include "base/metric.h"
#include "tiering/tiering.h"

/* Of struct tier_counts. Lookups are counted in cells that are never added into one rate. */
extern const struct base_metric srv_cell_metrics[];
extern const size_t srv_cell_metric_count;
extern const char *const srv_cell_names[TIER_CELL_COUNT];
extern const char *const srv_cause_names[TIER_WAIT_CAUSE_COUNT];

/* The waits of one cause. */
double srv_wait_seconds(const struct tier_io_metrics *io, int cause);

#endif
