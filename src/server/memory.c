#include "server/memory.h"

#include "base/metric.h"
#include "engine/ledger.h"

/* A word of struct eng_peer_memory. */
struct part {
    uint64_t bytes;
};

#define PART_METRICS(M) M(bytes, GAUGE, "bytes", "memory by purpose: planned at start, and used")
#define BASE_METRIC_OWNER struct part
static const struct base_metric part_metrics[] = { PART_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER

#define WHOLE_METRICS(M)                                                                          \
    M(resident_bytes, GAUGE, "bytes", "what the kernel says is resident")                         \
    M(allowed_bytes, GAUGE, "bytes", "what the machine or a control group allows")

struct whole {
    BASE_METRIC_STRUCT(WHOLE_METRICS)
};
#define BASE_METRIC_OWNER struct whole
static const struct base_metric whole_metrics[] = { WHOLE_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER

enum { WHOLE_COUNT = sizeof whole_metrics / sizeof whole_metrics[0] };

static void add_parts(struct srv_family *f, uint32_t rank, const struct eng_peer_memory *rows,
                      const char *where)
{
    for (int t = 0; t < BASE_LEDGER_COUNT; t++) {
        const char *name = base_ledger_name((enum base_ledger_tag)t);
        srv_family_add(f, &rows[t].planned, rank, "tag=\"%s\",state=\"planned\"%s", name, where);
        srv_family_add(f, &rows[t].used, rank, "tag=\"%s\",state=\"used\"%s", name, where);
    }
}

void srv_memory_metrics(struct base_buf *to, struct srv_family *f, const struct eng_peer *peers,
                        uint32_t count)
{
    struct whole whole[COMM_RANKS_MAX];
    for (uint32_t r = 0; r < count; r++) {
        add_parts(f, r, peers[r].host, "");
        if (peers[r].on_card) add_parts(f, r, peers[r].card, ",memory=\"card\"");
    }
    srv_family_put(f, to, "memory", part_metrics, 1);
    for (uint32_t r = 0; r < count; r++) {
        whole[r] = (struct whole){ peers[r].resident_bytes, peers[r].allowed_bytes };
        srv_family_add(f, &whole[r], r, "%s", "");
    }
    srv_family_put(f, to, "memory", whole_metrics, WHOLE_COUNT);
}

static void tags_json(struct base_buf *to, const struct base_ledger *ledger)
{
    base_buf_printf(to, "\"planned_bytes\":%llu,\"used_bytes\":%llu,\"tags\":[",
                    (unsigned long long)base_ledger_planned(ledger),
                    (unsigned long long)base_ledger_used(ledger));
    for (int t = 0; t < BASE_LEDGER_COUNT; t++) {
        base_buf_printf(to, "%s{\"tag\":\"%s\",\"planned_bytes\":%llu,\"used_bytes\":%llu}",
                        t ? "," : "", base_ledger_name(t),
                        (unsigned long long)ledger->rows[t].planned,
                        (unsigned long long)ledger->rows[t].used);
    }
    base_buf_puts(to, "]");
}

void srv_memory_json(struct base_buf *to, struct eng_stack *stack)
{
    struct base_ledger ledger = stack->ledger, card = stack->card;
    struct base_ledger_process now;
    base_ledger_process(&now);
    struct whole whole = { .resident_bytes = now.resident, .allowed_bytes = stack->limit.bytes };
    eng_ledger_use(&ledger, &card, stack);
    base_buf_puts(to, "\"memory\":{");
    base_metric_json(to, whole_metrics, WHOLE_COUNT, &whole);
    base_buf_puts(to, ",");
    tags_json(to, &ledger);
    if (stack->device) {
        base_buf_puts(to, ",\"card\":{");
        tags_json(to, &card);
        base_buf_puts(to, "}");
    }
    base_buf_puts(to, "},");
}

void srv_memory_reference(struct base_buf *to)
{
    base_metric_reference(to, "memory", part_metrics, 1);
    base_metric_reference(to, "memory", whole_metrics, WHOLE_COUNT);
}
