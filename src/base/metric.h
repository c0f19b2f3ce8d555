/* Metric tables: one table a module makes its snapshot struct, /metrics, tier-stats and the docs.
 *
 *     #define TIER_CACHE_METRICS(M)                                                     \
 *         M(hits,          COUNTER, "",      "lookups served without waiting")          \
 *         M(evicted_bytes, COUNTER, "bytes", "bytes dropped to make room")              \
 *         M(pinned_slots,  GAUGE,   "slots", "slots a running step still reads")
 *     struct tier_cache_metrics { BASE_METRIC_STRUCT(TIER_CACHE_METRICS) };
 *
 * Fields are uint64_t counters, gauges and double for REAL gauges. Exposed as
 * expertier_<module>_<field>[_total]{labels}: the field's last word is its unit, base units only.
 * HIST fields are struct base_hist of nanoseconds; they are exposed in seconds and named so.
 *
 * Snapshots are plain structs that their module fills; rendering is cold and may run on any thread.
 */
#ifndef BASE_METRIC_H
#define BASE_METRIC_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/hist.h"

enum base_metric_type {
    BASE_METRIC_COUNTER, BASE_METRIC_GAUGE, BASE_METRIC_REAL, BASE_METRIC_HIST,
};

#define BASE_METRIC_FIELD_COUNTER(name) uint64_t name;
#define BASE_METRIC_FIELD_GAUGE(name) uint64_t name;
#define BASE_METRIC_FIELD_REAL(name) double name;
#define BASE_METRIC_FIELD_HIST(name) struct base_hist name;

struct base_metric {
    const char *name;
    enum base_metric_type type;
    size_t offset;
    const char *unit;
    const char *text;
};

#define BASE_METRIC_FIELD(name, type, unit, text) BASE_METRIC_FIELD_##type(name)
#define BASE_METRIC_STRUCT(TABLE) TABLE(BASE_METRIC_FIELD)

/* As with options, define BASE_METRIC_OWNER as the struct before using the row macro. */
#define BASE_METRIC_ROW(name, type, unit, text) \
    { #name, BASE_METRIC_##type, offsetof(BASE_METRIC_OWNER, name), unit, text },

/* One sample: a struct and the label text that tells it from its siblings (tier="hbm"), or NULL.
 * The text goes out as it is: quotes and backslashes inside its values are the caller's to
 * escape. */
struct base_metric_sample {
    const void *values;
    const char *labels;
};

/* Appends Prometheus text (HELP, TYPE, then one line a sample; histograms with buckets at fixed
 * edges from 1 us to 100 s, _sum and _count). */
void base_metric_prometheus(struct base_buf *to, const char *module,
                            const struct base_metric *metrics, size_t metric_count,
                            const struct base_metric_sample *samples, size_t sample_count);

/* {"count":..,"mean":..,"min":..,"p50":..,"p90":..,"p99":..,"max":..} in the histogram's unit. */
void base_metric_json_hist(struct base_buf *to, const struct base_hist *hist);

/* Appends the fields of one sample as the inside of a JSON object ("name":value,...); histograms as
 * {"count","mean","min","p50","p90","p99","max"} in nanoseconds. */
void base_metric_json(struct base_buf *to, const struct base_metric *metrics, size_t metric_count,
                      const void *values);

/* Prints the reference table of a module's metrics to the docs. */
void base_metric_reference(struct base_buf *to, const char *module,
                           const struct base_metric *metrics, size_t metric_count);

#endif
