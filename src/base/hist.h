/* Log-bucket histogram of durations or sizes: 8 equal ratios an octave, so a percentile is at most
 * 9.1% high.
 *
 * Values from 2.58e14 on (three days in ns) share the last bucket. Fixed size, no allocation. One
 * writer; any thread may take a copy with base_hist_copy and read that; its total may be a few
 * samples apart from its buckets.
 */
#ifndef BASE_HIST_H
#define BASE_HIST_H

#include <stdint.h>

enum { BASE_HIST_SUB = 8, BASE_HIST_BUCKETS = 8 * 48 };

struct base_hist {
    uint64_t count;
    uint64_t sum;
    uint64_t min;               /* UINT64_MAX while empty */
    uint64_t max;
    uint32_t buckets[BASE_HIST_BUCKETS];
};

void base_hist_init(struct base_hist *hist);
void base_hist_add(struct base_hist *hist, uint64_t value);
void base_hist_copy(struct base_hist *to, const struct base_hist *from);
void base_hist_merge(struct base_hist *into, const struct base_hist *from);

/* Upper edge of the bucket in which the `share` quantile (0..1) lies, clamped to [min, max]; 0 when
 * empty. */
uint64_t base_hist_quantile(const struct base_hist *hist, double share);

/* Largest value that bucket `index` holds; UINT64_MAX for the last. */
uint64_t base_hist_edge(unsigned index);

/* How many samples were <= value: exact at bucket edges and from `max` up, else without those that
 * share a bucket with larger ones. */
uint64_t base_hist_count_le(const struct base_hist *hist, uint64_t value);

#endif
