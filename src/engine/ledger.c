#include "engine/ledger.h"

#include <inttypes.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"

enum { STACK_BYTES = 48 << 10 };        /* what a thread touches of its stack */

/* The program without what has a row of its own: what is resident now and what is still to come. */
static uint64_t program_bytes(const struct eng_stack_config *config)
{
    const uint64_t mib = 1 << 20;
    struct base_ledger_process now;
    uint64_t crew = config->engine.threads > 0 ? config->engine.threads
                                               : (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    base_ledger_process(&now);
    /* A thread's stack and its share of the heap; a request's tokens and text, both ways; the
     * pages of code not yet run, the heap's loss. */
    return now.resident + (crew + config->io.threads) * mib / 4 +
           config->engine.max_num_seqs * mib / 2 + 8 * mib;
}

static bool on_card(const struct eng_ledger_parts *p)
{
    return p->config->tier.hbm_device == TIER_DEVICE_CUDA;
}

/* A tier's slots, and the spare ones beside them. */
static void plan_slots(struct base_ledger *ledger, const struct eng_ledger_parts *p, unsigned t,
                       bool hbm)
{
    const struct tier_footprint *f = p->tier;
    char each[16];
    uint64_t experts = (uint64_t)tier_store_layers(p->store) * tier_store_held(p->store);
    struct base_ledger_row *row = &ledger->rows[hbm ? BASE_LEDGER_HBM : BASE_LEDGER_DRAM];
    bool simulated = hbm && p->config->tier.hbm_device == TIER_DEVICE_SIM;
    row->planned = f->slots[t] * f->slot_bytes[t];
    ledger->rows[BASE_LEDGER_STAGING].planned += f->spare_slots[t] * f->slot_bytes[t];
    snprintf(row->note, sizeof row->note,
             "%" PRIu64 " slots of %s for %" PRIu64 " experts (%.1f%%)%s", f->slots[t],
             base_str_bytes(each, sizeof each, f->slot_bytes[t]), experts,
             100.0 * (double)f->slots[t] / (double)experts,
             simulated ? ", simulated in host memory" : "");
}

void eng_ledger_plan_tiers(struct base_ledger *ledger, const struct eng_ledger_parts *p)
{
    unsigned tiers = p->tier->slots[1] > 0 ? 2 : 1;
    ledger->rows[BASE_LEDGER_STAGING].planned = 0;
    ledger->rows[BASE_LEDGER_TABLES].planned = p->tier->tables_bytes;
    for (unsigned t = 0; t < tiers; t++) {
        bool hbm = tiers == 2 && t == 0;
        if (!hbm || !on_card(p)) plan_slots(ledger, p, t, hbm);
    }
}

/* A block of base_mem as it lies in memory, all of it written. */
static uint64_t mapped(uint64_t bytes)
{
    return base_mem_touched(bytes, bytes);
}

static void plan_kv(struct base_ledger_row *row, const struct eng_ledger_parts *p)
{
    row->planned = p->engine->kv_bytes;
    snprintf(row->note, sizeof row->note, "kv.capacity: %.100s", p->config->engine.kv_capacity);
}

void eng_ledger_plan(struct base_ledger *ledger, const struct eng_ledger_parts *p)
{
    *ledger = (struct base_ledger){ 0 };
    struct base_ledger_row *rows = ledger->rows;
    rows[BASE_LEDGER_DENSE].planned = mapped(p->engine->dense_bytes);
    if (on_card(p)) {
        snprintf(rows[BASE_LEDGER_DENSE].note, sizeof rows[0].note,
                 "while it starts; then they are on the card");
    } else {
        plan_kv(&rows[BASE_LEDGER_KV], p);
        rows[BASE_LEDGER_KV].planned = mapped(rows[BASE_LEDGER_KV].planned);
    }
    rows[BASE_LEDGER_ACTIVATIONS].planned = mapped(p->engine->activation_bytes);
    eng_ledger_plan_tiers(ledger, p);
    rows[BASE_LEDGER_PREDICTOR].planned = p->predictor_bytes;
    if (p->config->trace.path[0]) {
        rows[BASE_LEDGER_BUFFERS].planned = p->config->trace.buffer;
        snprintf(rows[BASE_LEDGER_BUFFERS].note, sizeof rows[0].note, "trace.buffer");
    }
    rows[BASE_LEDGER_PROGRAM].planned = program_bytes(p->config);
}

void eng_ledger_plan_card(struct base_ledger *card, const struct eng_ledger_parts *p)
{
    *card = (struct base_ledger){ 0 };
    if (!on_card(p)) return;
    card->rows[BASE_LEDGER_DENSE].planned = p->engine->dense_bytes;
    plan_kv(&card->rows[BASE_LEDGER_KV], p);
    card->rows[BASE_LEDGER_ACTIVATIONS].planned = p->engine->device_work_bytes;
    plan_slots(card, p, 0, true);
}

static void print_rows(FILE *to, const struct base_ledger *ledger)
{
    char text[16];
    for (int t = 0; t < BASE_LEDGER_COUNT; t++) {
        const struct base_ledger_row *row = &ledger->rows[t];
        if (row->planned == 0) continue;
        fprintf(to, "  %-14s %12s  %s\n", base_ledger_title(t),
                base_str_bytes(text, sizeof text, row->planned),
                row->note[0] ? row->note : base_ledger_text(t));
    }
    fprintf(to, "  %-14s %12s\n", "sum",
            base_str_bytes(text, sizeof text, base_ledger_planned(ledger)));
}

void eng_ledger_print(FILE *to, const struct base_ledger *ledger,
                      const struct base_ledger_limit *limit)
{
    char text[16];
    fprintf(to, "memory that stays in use, at most:\n");
    print_rows(to, ledger);
    if (limit->bytes == UINT64_MAX) return;
    fprintf(to, "  %-14s %12s  %s\n", "allowed", base_str_bytes(text, sizeof text, limit->bytes),
            limit->what);
}

void eng_ledger_print_card(FILE *to, const struct base_ledger *card,
                           const struct eng_stack_config *config)
{
    fprintf(to, "memory of the card, taken at start:\n");
    print_rows(to, card);
    fprintf(to, "  %-14s %11g%%  of the card's memory stays free (tiers.hbm.headroom)\n",
            "headroom", 100 * config->tier.hbm_headroom);
}

/* Slots that were ever written: first those that policies work with, then the spare ones. */
static void use_slots(struct base_ledger *ledger, const struct tier_tier_metrics *tier, bool hbm,
                      bool has_spare)
{
    struct base_ledger_row *row = &ledger->rows[hbm ? BASE_LEDGER_HBM : BASE_LEDGER_DRAM];
    uint64_t touched = tier->touched_bytes, all = tier->capacity_bytes;
    uint64_t spare = has_spare ? ledger->rows[BASE_LEDGER_STAGING].planned : 0;
    row->planned = all > spare ? all - spare : all;     /* sizes change while it runs */
    row->used = touched < row->planned ? touched : row->planned;
    ledger->rows[BASE_LEDGER_STAGING].used += touched - row->used;
}

static void use_card(struct base_ledger *card, const struct tier_snapshot *tier,
                     const struct eng_metrics *engine)
{
    struct base_ledger_row *rows = card->rows;
    rows[BASE_LEDGER_DENSE].used = rows[BASE_LEDGER_DENSE].planned;
    rows[BASE_LEDGER_ACTIVATIONS].used = rows[BASE_LEDGER_ACTIVATIONS].planned;
    rows[BASE_LEDGER_KV].used = engine->kv_touched_bytes;
    rows[BASE_LEDGER_STAGING].used = 0;
    use_slots(card, &tier->tiers[0], true, true);
}

static uint64_t profile_touched(const struct eng_stack *stack)
{
    const struct base_timeline *timeline = stack->profile.timeline;
    uint64_t most = stack->ledger.rows[BASE_LEDGER_PROFILE].planned;
    uint64_t written = timeline ? base_timeline_bytes(base_timeline_count(timeline)) : 0;
    return base_mem_touched(most, written < most ? written : most);
}

void eng_ledger_use(struct base_ledger *ledger, struct base_ledger *card, struct eng_stack *stack)
{
    static _Thread_local struct tier_snapshot tier;     /* too large for a worker's stack */
    struct base_ledger_row *rows = ledger->rows;
    struct eng_metrics engine;
    struct base_ledger_process now;
    tier_snapshot(stack->tier, &tier);
    eng_snapshot(stack->engine, &engine);
    base_ledger_process(&now);
    rows[BASE_LEDGER_DENSE].used = stack->device ? 0 : rows[BASE_LEDGER_DENSE].planned;
    rows[BASE_LEDGER_ACTIVATIONS].used = rows[BASE_LEDGER_ACTIVATIONS].planned;
    rows[BASE_LEDGER_KV].used = stack->device ? 0 : engine.kv_touched_bytes;
    rows[BASE_LEDGER_STAGING].used = 0;
    for (uint32_t t = 0; t < tier.tier_count; t++) {
        bool hbm = tier.tier_count == 2 && t == 0;
        if (!hbm || !stack->device) use_slots(ledger, &tier.tiers[t], hbm, !hbm);
    }
    if (card && stack->device) use_card(card, &tier, &engine);
    rows[BASE_LEDGER_TABLES].used = rows[BASE_LEDGER_TABLES].planned;
    rows[BASE_LEDGER_PREDICTOR].used = rows[BASE_LEDGER_PREDICTOR].planned;
    rows[BASE_LEDGER_PROFILE].used = profile_touched(stack);
    rows[BASE_LEDGER_BUFFERS].used =
        stack->trace ? pred_trace_writer_touched(stack->trace) : 0;
    /* The heap as a whole, without what has a row and lies in it. */
    uint64_t rest = now.heap + now.files + (uint64_t)now.threads * STACK_BYTES;
    uint64_t others = rows[BASE_LEDGER_TABLES].used + rows[BASE_LEDGER_PREDICTOR].used +
                      rows[BASE_LEDGER_BUFFERS].planned + base_mem_heap();
    rows[BASE_LEDGER_PROGRAM].used = rest > others ? rest - others : 0;
}
