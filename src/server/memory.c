#include "server/memory.h"

#include "base/metric.h"
#include "base/str.h"
#include "engine/ledger.h"

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

static struct whole whole_of(const struct eng_stack *stack)
{
    struct base_ledger_process now;
    base_ledger_process(&now);
    return (struct whole){ .resident_bytes = now.resident, .allowed_bytes = stack->limit.bytes };
}

struct parts {
    struct part parts[4 * BASE_LEDGER_COUNT];
    struct base_metric_sample samples[4 * BASE_LEDGER_COUNT];
    char labels[4 * BASE_LEDGER_COUNT][64];
    size_t count;
};

static void parts_add(struct parts *p, const struct base_ledger *ledger, const char *where)
{
    for (int t = 0; t < BASE_LEDGER_COUNT; t++) {
        for (int used = 0; used < 2; used++, p->count++) {
            p->parts[p->count].bytes = used ? ledger->rows[t].used : ledger->rows[t].planned;
            base_str_format(p->labels[p->count], sizeof p->labels[0], "tag=\"%s\",state=\"%s\"%s",
                            base_ledger_name(t), used ? "used" : "planned",
                            where);
            p->samples[p->count] =
                (struct base_metric_sample){ &p->parts[p->count], p->labels[p->count] };
        }
    }
}

void srv_memory_metrics(struct base_buf *to, struct eng_stack *stack)
{
    struct base_ledger ledger = stack->ledger, card = stack->card;
    struct parts p = { .count = 0 };
    eng_ledger_use(&ledger, &card, stack);
    parts_add(&p, &ledger, "");
    if (stack->device) parts_add(&p, &card, ",memory=\"card\"");
    struct whole whole = whole_of(stack);
    struct base_metric_sample one = { &whole, NULL };
    base_metric_prometheus(to, "memory", part_metrics, 1, p.samples, p.count);
    base_metric_prometheus(to, "memory", whole_metrics, WHOLE_COUNT, &one, 1);
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
    struct whole whole = whole_of(stack);
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
