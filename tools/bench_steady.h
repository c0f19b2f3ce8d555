/* What a rate or a time is when something else may have stalled it now and then: a shared disk, a
 * busy processor. Pure. */
#ifndef TOOLS_BENCH_STEADY_H
#define TOOLS_BENCH_STEADY_H

#include <stddef.h>

/* The median of windows, which are put in order; returns how many are more than a quarter off it.
 * With more than one of five the measurement is no good. */
size_t bench_steady_median(double *windows, size_t count, double *median);

/* The mean of those that took up to four times the median; the order changes. */
double bench_steady_mean(double *times, size_t count);

#endif
