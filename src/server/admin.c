#include "server/admin.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "server/memory.h"
#include "server/metrics.h"
#include "server/report.h"
#include "server/srv.h"
#include "server/views.h"

enum { EXPERTS_LISTED = 64 };

static const char *state_name(struct srv *srv)
{
    if (srv_failed(srv) < 0) {
        return "failed";
    }
    return atomic_load(&srv->draining) ? "draining" : "ready";
}

static void put_string(struct base_buf *to, const char *text)
{
    base_buf_puts(to, "\"");
    base_buf_json_escape(to, text, strlen(text));
    base_buf_puts(to, "\"");
}

void srv_admin_health(struct srv *srv, const struct srv_request *request, struct srv_reply *reply)
{
    const char *state = state_name(srv);
    (void)request;
    reply->status = strcmp(state, "ready") == 0 ? 200 : 503;
    base_buf_printf(&reply->body, "{\"status\":\"%s\",\"active_generations\":%u}\n", state,
                    atomic_load(&srv->drive.held));
}

/* Snapshots are too large for a worker's stack. */
struct snapshots {
    struct tier_snapshot tier;
    struct eng_metrics engine;
    struct eng_advice_metrics predictor;
    struct srv_metrics server;
};

static struct snapshots *take_snapshots(struct srv *srv, struct srv_reply *reply)
{
    struct snapshots *all = calloc(1, sizeof *all);
    if (!all) {
        struct srv_fault fault = { 0 };
        srv_fault_set(&fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
        srv_reply_fault(reply, &fault);
        return NULL;
    }
    tier_snapshot(srv->stack->tier, &all->tier);
    eng_snapshot(srv->stack->engine, &all->engine);
    eng_advice_snapshot(srv->stack->advice, &all->predictor);
    srv_snapshot(srv, &all->server);
    return all;
}

/* null where nothing was looked up: a rate of nothing is not 0. */
static void put_rate(struct base_buf *to, const char *name, uint64_t part, uint64_t whole)
{
    if (whole == 0) {
        base_buf_printf(to, ",\"%s\":null", name);
    } else {
        base_buf_printf(to, ",\"%s\":%.6f", name, (double)part / (double)whole);
    }
}

static void put_tiers(struct base_buf *to, const struct tier_snapshot *tier)
{
    base_buf_puts(to, "\"tiers\":[");
    for (uint32_t t = 0; t < tier->tier_count; t++) {
        base_buf_printf(to, "%s{\"name\":\"%s\",", t ? "," : "", tier->tier_names[t]);
        base_metric_json(to, tier_metrics, tier_metric_count, &tier->tiers[t]);
        base_buf_puts(to, ",\"phases\":{");
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            const struct tier_counts *counts = &tier->cells[t][c];
            base_buf_printf(to, "%s\"%s\":{", c ? "," : "", srv_cell_names[c]);
            base_metric_json(to, srv_cell_metrics, srv_cell_metric_count, counts);
            put_rate(to, "resident_rate", counts->resident, counts->lookups);
            base_buf_puts(to, "}");
        }
        base_buf_puts(to, "}}");
    }
    base_buf_puts(to, "],");
}

/* Reads ?by=, ?limit= and ?order=. */
static int read_view(const struct srv_request *request, struct srv_view *view,
                     struct srv_fault *fault)
{
    const char *by = request->argument(request->context, "by");
    const char *limit = request->argument(request->context, "limit");
    const char *order = request->argument(request->context, "order");
    static const char *const always[] = { "phase", "tier", "wait", "lookup", "overlap", "report" };
    *view = (struct srv_view){ .limit = EXPERTS_LISTED };
    if (limit && base_str_u64_parse(limit, &view->limit) < 0) {
        return srv_fault_set(fault, 400, "invalid_request_error", "invalid_value", "limit",
                             "'limit' must be a whole number, not '%.40s'", limit);
    }
    if (order && srv_views_order(order, &view->order) < 0) {
        return srv_fault_set(fault, 400, "invalid_request_error", "invalid_value", "order",
                             "'order' must be hot, cold, missed or slow, not '%.40s'", order);
    }
    while (by && *by) {
        size_t size = strcspn(by, ",");
        bool layer = size == 5 && memcmp(by, "layer", size) == 0;
        bool expert = size == 6 && memcmp(by, "expert", size) == 0, known = layer || expert;
        for (size_t i = 0; i < sizeof always / sizeof always[0]; i++) {
            known |= strlen(always[i]) == size && memcmp(by, always[i], size) == 0;
        }
        if (!known) {
            return srv_fault_set(fault, 400, "invalid_request_error", "invalid_value", "by",
                                 "'by' must name layer, expert, phase, tier, wait, lookup, "
                                 "overlap or report, not '%.*s'", (int)(size < 40 ? size : 40), by);
        }
        view->layers |= layer;
        view->experts |= expert;
        by += size + (by[size] == ',');
    }
    return 0;
}

static double unix_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void srv_admin_tier_stats(struct srv *srv, const struct srv_request *request,
                          struct srv_reply *reply)
{
    struct srv_fault fault = { 0 };
    struct srv_view view;
    if (read_view(request, &view, &fault) < 0) {
        srv_reply_fault(reply, &fault);
        return;
    }
    struct snapshots *all = take_snapshots(srv, reply);
    if (!all) {
        return;
    }
    struct base_buf *to = &reply->body;
    base_buf_puts(to, "{\"version\":\"" EXPERTIER_VERSION "\",\"model\":");
    put_string(to, srv->model.name);
    base_buf_printf(to, ",\"state\":\"%s\",\"pid\":%ld,\"up_seconds\":%.6f,\"time_seconds\":%.6f,"
                    "\"steps\":%llu,", state_name(srv), (long)getpid(),
                    (double)(base_now_ns() - srv->started_ns) / 1e9, unix_seconds(),
                    (unsigned long long)all->tier.steps);
    srv_report_json(to, srv, &all->tier);
    put_tiers(to, &all->tier);
    srv_memory_json(to, srv->stack);
    base_buf_puts(to, "\"io\":{");
    base_metric_json(to, tier_io_metrics, tier_io_metric_count, &all->tier.io);
    base_buf_puts(to, "},\"wait_seconds\":{");
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        base_buf_printf(to, "%s\"%s\":%.9g", cause ? "," : "", srv_cause_names[cause],
                        srv_wait_seconds(&all->tier.io, cause));
    }
    base_buf_puts(to, "},\"wait_latency\":{");
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        struct base_hist waits;
        tier_wait_latency(srv->stack->tier, (enum tier_wait_cause)cause, &waits);
        base_buf_printf(to, "%s\"%s\":", cause ? "," : "", srv_cause_names[cause]);
        base_metric_json_hist(to, &waits);
    }
    base_buf_puts(to, "},\"lookup_latency\":{");
    for (uint32_t t = 0; t <= all->tier.tier_count; t++) {
        struct base_hist lookups;
        tier_lookup_latency(srv->stack->tier, t, &lookups);
        base_buf_printf(to, "%s\"%s\":", t ? "," : "", all->tier.tier_names[t]);
        base_metric_json_hist(to, &lookups);
    }
    base_buf_puts(to, "},\"warm\":{");
    base_metric_json(to, tier_warm_metrics, tier_warm_metric_count, &all->tier.warm);
    base_buf_puts(to, "},\"engine\":{");
    base_metric_json(to, eng_metrics, eng_metric_count, &all->engine);
    base_buf_puts(to, "},\"predictor\":{");
    base_metric_json(to, eng_advice_metrics, eng_advice_metric_count, &all->predictor);
    base_buf_puts(to, ",\"governor\":");
    put_string(to, all->tier.governor_note);
    base_buf_puts(to, "},\"server\":{");
    base_metric_json(to, srv_metrics, srv_metric_count, &all->server);
    base_buf_puts(to, "}");
    free(all);
    int rc = view.layers ? srv_views_layers(to, srv->stack) : 0;
    rc = rc >= 0 && view.experts ? srv_views_experts(to, srv->stack, &view) : rc;
    base_buf_puts(to, "}\n");
    reply->status = 200;
    if (rc < 0) {
        base_buf_clear(to);
        srv_fault_set(&fault, 503, "server_error", NULL, NULL, "cannot read the counters: %s",
                      base_err_name(rc));
        srv_reply_fault(reply, &fault);
    }
}
