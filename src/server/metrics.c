#include "server/metrics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/peers.h"
#include "server/admin.h"
#include "server/family.h"
#include "server/memory.h"
#include "server/srv.h"

const char *const srv_cell_names[TIER_CELL_COUNT] = { "cold_start", "prefill", "decode" };
const char *const srv_cause_names[TIER_WAIT_CAUSE_COUNT] = {
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
const struct base_metric srv_cell_metrics[] = { CELL_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t srv_cell_metric_count = sizeof srv_cell_metrics / sizeof srv_cell_metrics[0];

struct latency {
    struct base_hist latency;
};

#define LOOKUP_METRICS(M)                                                                         \
    M(latency, HIST, "seconds", "from a lookup to the expert's weights, by where they were found")
#define WAIT_METRICS(M) M(latency, HIST, "seconds", "single waits of the engine, by cause")

#define BASE_METRIC_OWNER struct latency
static const struct base_metric lookup_metrics[] = { LOOKUP_METRICS(BASE_METRIC_ROW) };
static const struct base_metric wait_metrics[] = { WAIT_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER

double srv_wait_seconds(const struct tier_io_metrics *io, int cause)
{
    const double all[TIER_WAIT_CAUSE_COUNT] = {
        io->wait_demand_seconds, io->wait_late_seconds, io->wait_copy_seconds,
        io->wait_slot_seconds,
    };
    return all[cause];
}

/* Snapshots are too large for a worker's stack. */
struct page {
    struct srv *srv;
    struct base_buf *to;
    struct srv_family family;
    struct eng_peer *peers;     /* rank 0's own first */
    uint32_t peer_count;
    struct eng_metrics engine;
    struct eng_advice_metrics predictor;
    struct srv_metrics server;
    struct latency lookups[TIER_RESIDENT_TIERS_MAX + 1], waits[TIER_WAIT_CAUSE_COUNT];
};

static void put_build(struct page *p)
{
    base_buf_puts(p->to, "# HELP expertier_build_info version and model\n"
                         "# TYPE expertier_build_info gauge\n"
                         "expertier_build_info{version=\"" EXPERTIER_VERSION "\",model=\"");
    base_buf_json_escape(p->to, p->srv->model.name, strlen(p->srv->model.name));
    base_buf_printf(p->to, "\"} 1\n"
                    "# HELP expertier_server_up_seconds time since the server was ready\n"
                    "# TYPE expertier_server_up_seconds gauge\n"
                    "expertier_server_up_seconds %.3f\n",
                    (double)(base_now_ns() - p->srv->started_ns) / 1e9);
}

static void put_tiers(struct page *p)
{
    struct srv_family *f = &p->family;
    for (uint32_t r = 0; r < p->peer_count; r++) {
        const struct tier_snapshot *tier = &p->peers[r].tier;
        for (uint32_t t = 0; t < tier->tier_count; t++)
            srv_family_add(f, &tier->tiers[t], r, "tier=\"%s\"", tier->tier_names[t]);
    }
    srv_family_put(f, p->to, "tier", tier_metrics, tier_metric_count);
    for (uint32_t r = 0; r < p->peer_count; r++) {
        const struct tier_snapshot *tier = &p->peers[r].tier;
        for (uint32_t c = 0; c < tier->tier_count * TIER_CELL_COUNT; c++) {
            const uint32_t t = c / TIER_CELL_COUNT, cell = c % TIER_CELL_COUNT;
            srv_family_add(f, &tier->cells[t][cell], r, "tier=\"%s\",phase=\"%s\"",
                           tier->tier_names[t], srv_cell_names[cell]);
        }
    }
    srv_family_put(f, p->to, "tier_phase", srv_cell_metrics, srv_cell_metric_count);
}

static void put_waits(struct page *p)
{
    base_buf_puts(p->to, "# HELP expertier_wait_seconds_total time the engine waited, by cause\n"
                         "# TYPE expertier_wait_seconds_total counter\n");
    for (uint32_t r = 0; r < p->peer_count; r++) {
        for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
            base_buf_printf(p->to, "expertier_wait_seconds_total{cause=\"%s\"",
                            srv_cause_names[cause]);
            if (p->family.ranks) base_buf_printf(p->to, ",rank=\"%u\"", r);
            base_buf_printf(p->to, "} %.9g\n", srv_wait_seconds(&p->peers[r].tier.io, cause));
        }
    }
}

/* Too large to be sent between ranks: this process's own. */
static void put_latencies(struct page *p)
{
    const struct tier *tier = p->srv->stack->tier;
    const struct tier_snapshot *own = &p->peers[0].tier;
    struct srv_family *f = &p->family;
    for (uint32_t t = 0; t <= own->tier_count; t++) {
        tier_lookup_latency(tier, t, &p->lookups[t].latency);
        srv_family_add(f, &p->lookups[t], 0, "tier=\"%s\"", own->tier_names[t]);
    }
    srv_family_put(f, p->to, "lookup", lookup_metrics, 1);
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        tier_wait_latency(tier, (enum tier_wait_cause)cause, &p->waits[cause].latency);
        srv_family_add(f, &p->waits[cause], 0, "cause=\"%s\"", srv_cause_names[cause]);
    }
    srv_family_put(f, p->to, "wait", wait_metrics, 1);
}

static void put_io(struct page *p)
{
    struct srv_family *f = &p->family;
    for (uint32_t r = 0; r < p->peer_count; r++)
        srv_family_add(f, &p->peers[r].tier.io, r, "%s", "");
    srv_family_put(f, p->to, "io", tier_io_metrics, tier_io_metric_count);
    put_waits(p);
    for (uint32_t r = 0; r < p->peer_count; r++)
        srv_family_add(f, &p->peers[r].tier.warm, r, "%s", "");
    srv_family_put(f, p->to, "warm", tier_warm_metrics, tier_warm_metric_count);
}

/* Time in collectives, all and by kind; nothing with one rank. */
static void put_ranks(struct page *p)
{
    struct srv_family *f = &p->family;
    if (!f->ranks) return;
    for (uint32_t r = 0; r < p->peer_count; r++)
        srv_family_add(f, &p->peers[r].time, r, "%s", "");
    srv_family_put(f, p->to, "rank", eng_peer_metrics, eng_peer_metric_count);
    for (uint32_t r = 0; r < p->peer_count; r++) {
        for (int c = 0; c < COMM_CALL_COUNT; c++) {
            srv_family_add(f, &p->peers[r].comm[c], r, "kind=\"%s\"",
                           comm_call_name((enum comm_call)c));
        }
    }
    srv_family_put(f, p->to, "rank", comm_metrics, comm_metric_count);
}

static void put_page(struct page *p)
{
    struct base_metric_sample engine = { &p->engine, NULL };
    struct base_metric_sample predictor = { &p->predictor, NULL };
    struct base_metric_sample server = { &p->server, NULL };
    put_build(p);
    put_tiers(p);
    put_io(p);
    put_latencies(p);
    srv_memory_metrics(p->to, &p->family, p->peers, p->peer_count);
    base_metric_prometheus(p->to, "engine", eng_metrics, eng_metric_count, &engine, 1);
    base_metric_prometheus(p->to, "predictor", eng_advice_metrics, eng_advice_metric_count,
                           &predictor, 1);
    put_ranks(p);
    base_metric_prometheus(p->to, "server", srv_metrics, srv_metric_count, &server, 1);
}

static int take(struct page *p)
{
    struct eng_stack *stack = p->srv->stack;
    const uint32_t ranks = stack->ranks.count;
    p->peers = calloc(ranks, sizeof *p->peers);
    const size_t room = (size_t)ranks * SRV_MEMORY_SAMPLES;     /* more than any other table */
    _Static_assert(SRV_MEMORY_SAMPLES >= TIER_RESIDENT_TIERS_MAX * TIER_CELL_COUNT &&
                   SRV_MEMORY_SAMPLES >= (int)COMM_CALL_COUNT, "the largest table");
    if (!p->peers || srv_family_init(&p->family, room, ranks > 1) < 0) return -ENOMEM;
    p->peer_count = eng_peers_read(&stack->peers, p->peers, ranks);
    eng_snapshot(stack->engine, &p->engine);
    eng_advice_snapshot(stack->advice, &p->predictor);
    srv_snapshot(p->srv, &p->server);
    return 0;
}

void srv_admin_metrics(struct srv *srv, const struct srv_request *request,
                       struct srv_reply *reply)
{
    struct page *p = calloc(1, sizeof *p);
    (void)request;
    if (p) *p = (struct page){ .srv = srv, .to = &reply->body };
    if (p && take(p) == 0) {
        put_page(p);
        reply->status = 200;
        reply->type = "text/plain; version=0.0.4; charset=utf-8";
    } else {
        struct srv_fault fault = { 0 };
        srv_fault_set(&fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
        srv_reply_fault(reply, &fault);
    }
    if (p) {
        srv_family_fini(&p->family);
        free(p->peers);
    }
    free(p);
}

void srv_metric_reference(struct base_buf *to)
{
    base_metric_reference(to, "tier", tier_metrics, tier_metric_count);
    base_metric_reference(to, "tier_phase", srv_cell_metrics, srv_cell_metric_count);
    base_metric_reference(to, "io", tier_io_metrics, tier_io_metric_count);
    base_metric_reference(to, "lookup", lookup_metrics, 1);
    base_metric_reference(to, "wait", wait_metrics, 1);
    base_metric_reference(to, "warm", tier_warm_metrics, tier_warm_metric_count);
    srv_memory_reference(to);
    base_metric_reference(to, "engine", eng_metrics, eng_metric_count);
    base_metric_reference(to, "predictor", eng_advice_metrics, eng_advice_metric_count);
    base_metric_reference(to, "rank", eng_peer_metrics, eng_peer_metric_count);
    base_metric_reference(to, "rank", comm_metrics, comm_metric_count);
    base_metric_reference(to, "server", srv_metrics, srv_metric_count);
}
