/* One metric table gives Prometheus text with units and buckets, JSON, and the reference page. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/metric.h"

#define SAMPLE_METRICS(M)                                                                          \
    M(evicted_bytes, COUNTER, "bytes", "bytes dropped\nto make \\room")                            \
    M(pinned_slots, GAUGE, "slots", "slots in use")                                                \
    M(wait_seconds, REAL, "seconds", "time waited")                                                \
    M(read_latency, HIST, "seconds", "time of a read")
struct sample {
    BASE_METRIC_STRUCT(SAMPLE_METRICS)
};

#define BASE_METRIC_OWNER struct sample
static const struct base_metric metrics[] = { SAMPLE_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
enum { METRICS = sizeof metrics / sizeof metrics[0] };

static struct base_buf buf;
static struct sample hbm, dram;

static void setup(void)
{
    base_buf_init(&buf);
    hbm = (struct sample){ .evicted_bytes = 12, .pinned_slots = 3, .wait_seconds = 0.25 };
    dram = (struct sample){ .evicted_bytes = UINT64_MAX, .wait_seconds = NAN };
    base_hist_init(&hbm.read_latency);
    base_hist_init(&dram.read_latency);
    base_hist_add(&hbm.read_latency, 900);
    base_hist_add(&hbm.read_latency, 2000000);
    base_hist_add(&hbm.read_latency, 500000000000);
}

static void teardown(void)
{
    base_buf_fini(&buf);
}

static void expect(const char *line)
{
    ck_assert_msg(strstr(buf.data, line) != NULL, "missing: %s\nin:\n%s", line, buf.data);
}

START_TEST(prometheus_text)
{
    struct base_metric_sample samples[] = { { &hbm, "tier=\"hbm\"" }, { &dram, "tier=\"dram\"" } };
    base_metric_prometheus(&buf, "cache", metrics, METRICS, samples, 2);
    expect("# HELP expertier_cache_evicted_bytes_total bytes dropped\\nto make \\\\room\n"
           "# TYPE expertier_cache_evicted_bytes_total counter\n"
           "expertier_cache_evicted_bytes_total{tier=\"hbm\"} 12\n"
           "expertier_cache_evicted_bytes_total{tier=\"dram\"} 18446744073709551615\n");
    expect("# TYPE expertier_cache_pinned_slots gauge\n");
    expect("expertier_cache_wait_seconds{tier=\"hbm\"} 0.25\n");
    expect("expertier_cache_wait_seconds{tier=\"dram\"} NaN\n");
    expect("# TYPE expertier_cache_read_latency_seconds histogram\n"
           "expertier_cache_read_latency_seconds_bucket{tier=\"hbm\",le=\"1e-06\"} 1\n");
    expect("expertier_cache_read_latency_seconds_bucket{tier=\"hbm\",le=\"0.001\"} 1\n");
    expect("expertier_cache_read_latency_seconds_bucket{tier=\"hbm\",le=\"0.0025\"} 2\n");
    expect("expertier_cache_read_latency_seconds_bucket{tier=\"hbm\",le=\"100\"} 2\n");
    expect("expertier_cache_read_latency_seconds_bucket{tier=\"hbm\",le=\"+Inf\"} 3\n");
    expect("expertier_cache_read_latency_seconds_sum{tier=\"hbm\"} 500.0020009\n");
    expect("expertier_cache_read_latency_seconds_count{tier=\"hbm\"} 3\n");
}
END_TEST

START_TEST(no_labels_no_braces)
{
    struct base_metric_sample sample = { &hbm, NULL };
    base_metric_prometheus(&buf, "cache", metrics, METRICS, &sample, 1);
    expect("expertier_cache_pinned_slots 3\n");
    expect("expertier_cache_read_latency_seconds_bucket{le=\"+Inf\"} 3\n");
}
END_TEST

START_TEST(json)
{
    base_metric_json(&buf, metrics, METRICS, &hbm);
    ck_assert_str_eq(buf.data,
                     "\"evicted_bytes\":12,\"pinned_slots\":3,\"wait_seconds\":0.25,"
                     "\"read_latency\":{\"count\":3,\"mean\":166667333633.333,\"min\":900,"
                     "\"p50\":2097151,\"p90\":500000000000,\"p99\":500000000000,"
                     "\"max\":500000000000}");
    base_buf_clear(&buf);
    base_metric_json(&buf, metrics, METRICS, &dram);
    expect("\"wait_seconds\":null,");
    expect("{\"count\":0,\"mean\":0,\"min\":0,\"p50\":0,");
}
END_TEST

START_TEST(reference)
{
    base_metric_reference(&buf, "cache", metrics, METRICS);
    expect("| `expertier_cache_pinned_slots` | gauge | slots | slots in use |\n");
    expect("| `expertier_cache_read_latency_seconds` | histogram | seconds | time of a read |\n");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("metric");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, prometheus_text);
    tcase_add_test(tcase, no_labels_no_braces);
    tcase_add_test(tcase, json);
    tcase_add_test(tcase, reference);
    Suite *suite = suite_create("base/metric");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
