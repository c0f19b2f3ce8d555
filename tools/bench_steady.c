#include "tools/bench_steady.h"

#include <stdlib.h>

#include "base/must.h"

#define OFF 0.25
#define STALLED 4

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

size_t bench_steady_median(double *windows, size_t count, double *median)
{
    size_t off = 0;
    MUST(count > 0);
    qsort(windows, count, sizeof *windows, ascending);
    *median = count % 2 ? windows[count / 2] : (windows[count / 2 - 1] + windows[count / 2]) / 2;
    for (size_t i = 0; i < count; i++) {
        off += windows[i] < *median * (1 - OFF) || windows[i] > *median * (1 + OFF);
    }
    return off;
}

double bench_steady_mean(double *times, size_t count)
{
    double median, sum = 0;
    size_t kept = 0;
    bench_steady_median(times, count, &median);
    for (size_t i = 0; i < count && times[i] <= STALLED * median; i++, kept++) sum += times[i];
    return sum / (double)kept;
}
