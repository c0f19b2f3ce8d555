#include "base/metric.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Upper edges of exposed histogram buckets, in nanoseconds: 1, 2.5 and 5 of each decade. */
static const uint64_t edges_ns[] = {
    1000u,       2500u,        5000u,        10000u,       25000u,       50000u,       100000u,
    250000u,     500000u,      1000000u,     2500000u,     5000000u,     10000000u,    25000000u,
    50000000u,   100000000u,   250000000u,   500000000u,   1000000000u,  2500000000u,  5000000000u,
    10000000000u, 25000000000u, 50000000000u, 100000000000u,
};

static bool ends_with(const char *text, const char *tail)
{
    size_t length = strlen(text), tail_length = strlen(tail);
    return length >= tail_length && strcmp(text + length - tail_length, tail) == 0;
}

static void put_name(struct base_buf *to, const char *module, const struct base_metric *metric)
{
    base_buf_printf(to, "expertier_%s_%s", module, metric->name);
    if (metric->type == BASE_METRIC_HIST && !ends_with(metric->name, "_seconds")) {
        base_buf_puts(to, "_seconds");
    }
    if (metric->type == BASE_METRIC_COUNTER) base_buf_puts(to, "_total");
}

static void put_labels(struct base_buf *to, const char *labels, const char *edge)
{
    bool some = labels && labels[0];
    if (!some && !edge) return;
    base_buf_puts(to, "{");
    if (some) base_buf_puts(to, labels);
    if (edge) base_buf_printf(to, "%sle=\"%s\"", some ? "," : "", edge);
    base_buf_puts(to, "}");
}

static void put_real(struct base_buf *to, double value)
{
    if (isnan(value)) {
        base_buf_puts(to, "NaN");
    } else if (isinf(value)) {
        base_buf_puts(to, value < 0 ? "-Inf" : "+Inf");
    } else {
        base_buf_printf(to, "%.15g", value);
    }
}

static void put_hist(struct base_buf *to, const char *module, const struct base_metric *metric,
                     const struct base_hist *hist, const char *labels)
{
    for (size_t i = 0; i < sizeof edges_ns / sizeof edges_ns[0]; i++) {
        char edge[32];
        snprintf(edge, sizeof edge, "%.15g", (double)edges_ns[i] / 1e9);
        put_name(to, module, metric);
        base_buf_puts(to, "_bucket");
        put_labels(to, labels, edge);
        base_buf_printf(to, " %llu\n",
                        (unsigned long long)base_hist_count_le(hist, edges_ns[i]));
    }
    /* The +Inf bucket and _count must be the same number, also in a copy that is a little torn. */
    unsigned long long total = base_hist_count_le(hist, UINT64_MAX);
    put_name(to, module, metric);
    base_buf_puts(to, "_bucket");
    put_labels(to, labels, "+Inf");
    base_buf_printf(to, " %llu\n", total);
    put_name(to, module, metric);
    base_buf_puts(to, "_sum");
    put_labels(to, labels, NULL);
    base_buf_printf(to, " %.15g\n", (double)hist->sum / 1e9);
    put_name(to, module, metric);
    base_buf_puts(to, "_count");
    put_labels(to, labels, NULL);
    base_buf_printf(to, " %llu\n", total);
}

static void put_sample(struct base_buf *to, const char *module, const struct base_metric *metric,
                       const struct base_metric_sample *sample)
{
    const void *field = (const char *)sample->values + metric->offset;
    if (metric->type == BASE_METRIC_HIST) {
        put_hist(to, module, metric, field, sample->labels);
        return;
    }
    put_name(to, module, metric);
    put_labels(to, sample->labels, NULL);
    base_buf_puts(to, " ");
    if (metric->type == BASE_METRIC_REAL) {
        put_real(to, *(const double *)field);
    } else {
        base_buf_printf(to, "%llu", (unsigned long long)*(const uint64_t *)field);
    }
    base_buf_puts(to, "\n");
}

static const char *prometheus_type(enum base_metric_type type)
{
    switch (type) {
    case BASE_METRIC_COUNTER: return "counter";
    case BASE_METRIC_HIST: return "histogram";
    case BASE_METRIC_GAUGE:
    case BASE_METRIC_REAL: break;
    }
    return "gauge";
}

void base_metric_prometheus(struct base_buf *to, const char *module,
                            const struct base_metric *metrics, size_t metric_count,
                            const struct base_metric_sample *samples, size_t sample_count)
{
    for (size_t i = 0; i < metric_count; i++) {
        base_buf_puts(to, "# HELP ");
        put_name(to, module, &metrics[i]);
        base_buf_puts(to, " ");
        for (const char *c = metrics[i].text; *c; c++) {
            if (*c == '\\') {
                base_buf_puts(to, "\\\\");
            } else if (*c == '\n') {
                base_buf_puts(to, "\\n");
            } else {
                base_buf_append(to, c, 1);
            }
        }
        base_buf_puts(to, "\n# TYPE ");
        put_name(to, module, &metrics[i]);
        base_buf_printf(to, " %s\n", prometheus_type(metrics[i].type));
        for (size_t s = 0; s < sample_count; s++) {
            put_sample(to, module, &metrics[i], &samples[s]);
        }
    }
}

void base_metric_json_hist(struct base_buf *to, const struct base_hist *hist)
{
    unsigned long long count = base_hist_count_le(hist, UINT64_MAX);
    base_buf_printf(to, "{\"count\":%llu,\"mean\":%.15g,\"min\":%llu", count,
                    count ? (double)hist->sum / (double)count : 0.0,
                    count ? (unsigned long long)hist->min : 0);
    static const struct {
        const char *name;
        double share;
    } quantiles[] = { { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 } };
    for (size_t q = 0; q < sizeof quantiles / sizeof quantiles[0]; q++) {
        base_buf_printf(to, ",\"%s\":%llu", quantiles[q].name,
                        (unsigned long long)base_hist_quantile(hist, quantiles[q].share));
    }
    base_buf_printf(to, ",\"max\":%llu}", (unsigned long long)hist->max);
}

void base_metric_json(struct base_buf *to, const struct base_metric *metrics, size_t metric_count,
                      const void *values)
{
    for (size_t i = 0; i < metric_count; i++) {
        const void *field = (const char *)values + metrics[i].offset;
        base_buf_printf(to, "%s\"%s\":", i ? "," : "", metrics[i].name);
        switch (metrics[i].type) {
        case BASE_METRIC_COUNTER:
        case BASE_METRIC_GAUGE:
            base_buf_printf(to, "%llu", (unsigned long long)*(const uint64_t *)field);
            break;
        case BASE_METRIC_REAL:
            /* JSON has no NaN or infinity. */
            if (isfinite(*(const double *)field)) {
                put_real(to, *(const double *)field);
            } else {
                base_buf_puts(to, "null");
            }
            break;
        case BASE_METRIC_HIST:
            base_metric_json_hist(to, field);
            break;
        }
    }
}

void base_metric_reference(struct base_buf *to, const char *module,
                           const struct base_metric *metrics, size_t metric_count)
{
    base_buf_puts(to, "| metric | type | unit | meaning |\n|---|---|---|---|\n");
    for (size_t i = 0; i < metric_count; i++) {
        base_buf_puts(to, "| `");
        put_name(to, module, &metrics[i]);
        base_buf_printf(to, "` | %s | %s | %s |\n", prometheus_type(metrics[i].type),
                        metrics[i].unit, metrics[i].text);
    }
}
