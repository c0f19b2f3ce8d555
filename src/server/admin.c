#include "server/admin.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "server/memory.h"
#include "server/report.h"
#include "server/srv.h"
#include "server/views.h"

enum { EXPERTS_LISTED = 64 };

/* Lookups are counted in cells that are never added into one rate. */
static const char *const cell_names[TIER_CELL_COUNT] = { "cold_start", "prefill", "decode" };
static const char *const cause_names[TIER_WAIT_CAUSE_COUNT] = {
    "demand_read", "late_prefetch", "copy", "slot_shortage",
};

#define CELL_METRICS(M)                                                                           \
    M(lookups, COUNTER, "", "distinct experts asked of this tier, by phase")                      \
    M(resident, COUNTER, "", "of those, found there or on their way (hit + late)")                \
    M(misses, COUNTER, "", "of those, neither")                                                   \
    M(evictions, COUNTER, "", "experts that left this tier meanwhile")                            \
    M(admissions, COUNTER, "", "experts that entered it")                                         \
    M(prefetch_admissions, COUNTER, "", "experts that entered it ahead of need")                  \
    M(prefetch_used, COUNTER, "", "of those, looked up before they left")                         \
    M(in_place, COUNTER, "", "of resident, those used where they lie (tiers.warm_experts)")

#define BASE_METRIC_OWNER struct tier_counts
static const struct base_metric cell_metrics[] = { CELL_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
enum { CELL_METRIC_COUNT = sizeof cell_metrics / sizeof cell_metrics[0] };

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

static const double *wait_seconds(const struct tier_io_metrics *io, int cause)
{
    const double *const all[TIER_WAIT_CAUSE_COUNT] = {
        &io->wait_demand_seconds, &io->wait_late_seconds, &io->wait_copy_seconds,
        &io->wait_slot_seconds,
    };
    return all[cause];
}

static void put_waits(struct base_buf *to, const struct tier_io_metrics *io)
{
    base_buf_puts(to, "# HELP expertier_wait_seconds_total time the engine waited, by cause\n"
                      "# TYPE expertier_wait_seconds_total counter\n");
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        base_buf_printf(to, "expertier_wait_seconds_total{cause=\"%s\"} %.9g\n",
                        cause_names[cause], *wait_seconds(io, cause));
    }
}

static void put_build(struct srv *srv, struct base_buf *to)
{
    base_buf_puts(to, "# HELP expertier_build_info version and model\n"
                      "# TYPE expertier_build_info gauge\n"
                      "expertier_build_info{version=\"" EXPERTIER_VERSION "\",model=\"");
    base_buf_json_escape(to, srv->model.name, strlen(srv->model.name));
    base_buf_printf(to, "\"} 1\n"
                    "# HELP expertier_server_up_seconds time since the server was ready\n"
                    "# TYPE expertier_server_up_seconds gauge\n"
                    "expertier_server_up_seconds %.3f\n",
                    (double)(base_now_ns() - srv->started_ns) / 1e9);
}

/* Collectives of this rank by kind; nothing with one rank. */
static void put_ranks(struct base_buf *to, const struct comm *comm)
{
    struct comm_metrics stats[COMM_CALL_COUNT];
    struct base_metric_sample samples[COMM_CALL_COUNT];
    char labels[COMM_CALL_COUNT][32];
    if (!comm) return;
    comm_stats(comm, stats);
    for (int c = 0; c < COMM_CALL_COUNT; c++) {
        base_str_format(labels[c], sizeof labels[c], "kind=\"%s\"", comm_call_name(c));
        samples[c] = (struct base_metric_sample){ &stats[c], labels[c] };
    }
    base_metric_prometheus(to, "rank", comm_metrics, comm_metric_count, samples, COMM_CALL_COUNT);
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

void srv_admin_metrics(struct srv *srv, const struct srv_request *request,
                       struct srv_reply *reply)
{
    struct snapshots *all = take_snapshots(srv, reply);
    (void)request;
    if (!all) {
        return;
    }
    struct base_metric_sample tiers[TIER_RESIDENT_TIERS_MAX];
    struct base_metric_sample cells[TIER_RESIDENT_TIERS_MAX * TIER_CELL_COUNT];
    char labels[TIER_RESIDENT_TIERS_MAX * TIER_CELL_COUNT][64];
    char tier_labels[TIER_RESIDENT_TIERS_MAX][64];
    size_t cell_count = 0;
    for (uint32_t t = 0; t < all->tier.tier_count; t++) {
        base_str_format(tier_labels[t], sizeof tier_labels[t], "tier=\"%s\"",
                        all->tier.tier_names[t]);
        tiers[t] = (struct base_metric_sample){ &all->tier.tiers[t], tier_labels[t] };
        for (int c = 0; c < TIER_CELL_COUNT; c++, cell_count++) {
            base_str_format(labels[cell_count], sizeof labels[cell_count],
                            "tier=\"%s\",phase=\"%s\"", all->tier.tier_names[t], cell_names[c]);
            cells[cell_count] =
                (struct base_metric_sample){ &all->tier.cells[t][c], labels[cell_count] };
        }
    }
    struct base_metric_sample io = { &all->tier.io, NULL };
    struct base_metric_sample warm = { &all->tier.warm, NULL };
    struct base_metric_sample engine = { &all->engine, NULL };
    struct base_metric_sample predictor = { &all->predictor, NULL };
    struct base_metric_sample server = { &all->server, NULL };
    struct base_buf *to = &reply->body;
    put_build(srv, to);
    base_metric_prometheus(to, "tier", tier_metrics, tier_metric_count, tiers,
                           all->tier.tier_count);
    base_metric_prometheus(to, "tier_phase", cell_metrics, CELL_METRIC_COUNT, cells, cell_count);
    base_metric_prometheus(to, "io", tier_io_metrics, tier_io_metric_count, &io, 1);
    put_waits(to, &all->tier.io);
    base_metric_prometheus(to, "warm", tier_warm_metrics, tier_warm_metric_count, &warm, 1);
    srv_memory_metrics(to, srv->stack);
    base_metric_prometheus(to, "engine", eng_metrics, eng_metric_count, &engine, 1);
    base_metric_prometheus(to, "predictor", eng_advice_metrics, eng_advice_metric_count, &predictor,
                           1);
    put_ranks(to, srv->stack->ranks.comm);
    base_metric_prometheus(to, "server", srv_metrics, srv_metric_count, &server, 1);
    reply->status = 200;
    reply->type = "text/plain; version=0.0.4; charset=utf-8";
    free(all);
}

void srv_metric_reference(struct base_buf *to)
{
    base_metric_reference(to, "tier", tier_metrics, tier_metric_count);
    base_metric_reference(to, "tier_phase", cell_metrics, CELL_METRIC_COUNT);
    base_metric_reference(to, "io", tier_io_metrics, tier_io_metric_count);
    base_metric_reference(to, "warm", tier_warm_metrics, tier_warm_metric_count);
    srv_memory_reference(to);
    base_metric_reference(to, "engine", eng_metrics, eng_metric_count);
    base_metric_reference(to, "predictor", eng_advice_metrics, eng_advice_metric_count);
    base_metric_reference(to, "rank", comm_metrics, comm_metric_count);
    base_metric_reference(to, "server", srv_metrics, srv_metric_count);
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
            base_buf_printf(to, "%s\"%s\":{", c ? "," : "", cell_names[c]);
            base_metric_json(to, cell_metrics, CELL_METRIC_COUNT, counts);
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
    static const char *const always[] = { "phase", "tier", "wait", "report" };
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
                                 "'by' must name layer, expert, phase, tier, wait or report, not "
                                 "'%.*s'", (int)(size < 40 ? size : 40), by);
        }
        view->layers |= layer;
        view->experts |= expert;
        by += size + (by[size] == ',');
    }
    return 0;
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
    base_buf_printf(to, ",\"state\":\"%s\",\"pid\":%ld,\"up_seconds\":%.3f,\"time_seconds\":%.6f,"
                    "\"steps\":%llu,", state_name(srv), (long)getpid(),
                    (double)(base_now_ns() - srv->started_ns) / 1e9, (double)base_now_ns() / 1e9,
                    (unsigned long long)all->tier.steps);
    srv_report_json(to, srv, &all->tier);
    put_tiers(to, &all->tier);
    srv_memory_json(to, srv->stack);
    base_buf_puts(to, "\"io\":{");
    base_metric_json(to, tier_io_metrics, tier_io_metric_count, &all->tier.io);
    base_buf_puts(to, "},\"wait_seconds\":{");
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        base_buf_printf(to, "%s\"%s\":%.9g", cause ? "," : "", cause_names[cause],
                        *wait_seconds(&all->tier.io, cause));
    }
    base_buf_puts(to, "},\"wait_latency\":{");
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        struct base_hist waits;
        tier_wait_latency(srv->stack->tier, (enum tier_wait_cause)cause, &waits);
        base_buf_printf(to, "%s\"%s\":", cause ? "," : "", cause_names[cause]);
        base_metric_json_hist(to, &waits);
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
