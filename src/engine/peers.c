#include "engine/peers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/ledger.h"
#include "engine/stack.h"

#define BASE_METRIC_OWNER struct eng_peer_metrics
const struct base_metric eng_peer_metrics[] = { ENG_PEER_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t eng_peer_metric_count = sizeof eng_peer_metrics / sizeof eng_peer_metrics[0];

static const uint64_t every_ns = UINT64_C(1000000000);

static void take_ledger(struct eng_peer_memory *to, const struct base_ledger *ledger)
{
    for (int t = 0; t < BASE_LEDGER_COUNT; t++) {
        to[t].planned = ledger->rows[t].planned;
        to[t].used = ledger->rows[t].used;
    }
}

void eng_peer_take(struct eng_peer *out, struct eng_stack *stack)
{
    struct base_ledger ledger = stack->ledger, card = stack->card;
    struct base_ledger_process now;
    struct eng_metrics engine;
    memset(out, 0, sizeof *out);
    tier_snapshot(stack->tier, &out->tier);
    comm_stats(stack->ranks.comm, out->comm);
    eng_snapshot(stack->engine, &engine);
    out->time.compute_seconds = engine.compute_seconds;
    out->time.collective_seconds = engine.collective_seconds;
    if (engine.compute_seconds > 0) {
        out->time.collective_ratio = engine.collective_seconds / engine.compute_seconds;
    }
    eng_ledger_use(&ledger, &card, stack);
    take_ledger(out->host, &ledger);
    take_ledger(out->card, &card);
    out->on_card = stack->device != NULL;
    base_ledger_process(&now);
    out->resident_bytes = now.resident;
    out->allowed_bytes = stack->limit.bytes;
}

int eng_peers_init(struct eng_peers *p, struct eng_stack *stack, bool shows)
{
    struct comm *comm = stack->ranks.comm;
    *p = (struct eng_peers){ .stack = stack, .comm = comm };
    pthread_mutex_init(&p->lock, NULL);
    p->lock_made = true;
    p->shows = shows && comm && comm->rank == 0;
    if (!p->shows) return 0;
    p->arriving = calloc(comm->size, sizeof *p->arriving);
    p->shown = calloc(comm->size, sizeof *p->shown);
    return p->arriving && p->shown ? 0 : -ENOMEM;
}

void eng_peers_fini(struct eng_peers *p)
{
    free(p->arriving);
    free(p->shown);
    if (p->lock_made) pthread_mutex_destroy(&p->lock);
    *p = (struct eng_peers){ 0 };
}

bool eng_peers_due(struct eng_peers *p, bool stepped)
{
    if (!p || !p->shows) return false;
    p->stale |= stepped || p->gathered_ns == 0;
    return p->stale && base_now_ns() - p->gathered_ns >= every_ns;
}

uint32_t eng_peers_wait_ms(const struct eng_peers *p)
{
    if (!p || !p->shows || !p->stale) return UINT32_MAX;
    const uint64_t passed_ns = base_now_ns() - p->gathered_ns;
    return passed_ns >= every_ns ? 0 : (uint32_t)((every_ns - passed_ns) / 1000000 + 1);
}

/* A reader that is copying just now keeps the older ones. */
static void show(struct eng_peers *p)
{
    if (pthread_mutex_trylock(&p->lock) != 0) return;
    struct eng_peer *before = p->shown;
    p->shown = p->arriving;
    p->arriving = before;
    p->shown_ns = p->gathered_ns;
    p->stale = false;
    pthread_mutex_unlock(&p->lock);
}

void eng_peers_gather(struct eng_peers *p)
{
    size_t sent[COMM_RANKS_MAX] = { 0 }, got[COMM_RANKS_MAX] = { 0 };
    if (!p->shows) eng_peer_take(&p->own, p->stack);
    sent[0] = sizeof p->own;
    for (unsigned r = 0; p->shows && r < p->comm->size; r++)
        got[r] = sizeof p->own;
    comm_all_to_all(p->comm, &p->own, sent, p->shows ? p->arriving : NULL, got);
    if (!p->shows) return;
    p->gathered_ns = base_now_ns();
    show(p);
}

uint32_t eng_peers_read(struct eng_peers *p, struct eng_peer *out, uint32_t count)
{
    uint32_t ranks = 1;
    eng_peer_take(&out[0], p->stack);
    if (!p->shows || count < p->comm->size) return ranks;
    pthread_mutex_lock(&p->lock);
    if (p->shown_ns > 0) {
        ranks = p->comm->size;
        memcpy(out + 1, p->shown + 1, (ranks - 1) * sizeof *out);
    }
    const double age = (double)(base_now_ns() - p->shown_ns) / 1e9;
    pthread_mutex_unlock(&p->lock);
    for (uint32_t r = 1; r < ranks; r++) {
        /* All ranks have the same tiers; their names' addresses are each process's own. */
        memcpy(out[r].tier.tier_names, out[0].tier.tier_names, sizeof out[0].tier.tier_names);
        out[r].time.age_seconds = age;
    }
    return ranks;
}
