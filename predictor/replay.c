#include "predictor/replay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/feed.h"
#include "predictor/future.h"
#include "predictor/sim_bytes.h"
#include "predictor/waves.h"

enum { PROGRESS_EVERY = 4096 };     /* acquires */

/* One case while it runs. */
struct cache {
    struct tier_decide *decide;
    struct pred_sim_bytes *bytes;
    struct tier_found *found;
    const struct tier_counts *cells[TIER_CELL_COUNT];
};

struct run {
    struct pred_trace_reader *reader;
    const struct pred_trace_header *header;
    const struct pred_case *cases;
    struct pred_case_result *results;
    uint32_t count;
    struct cache *caches;
    uint64_t *expert_bytes;         /* [layers]; 0 = unknown */
    struct pred_future *future;     /* NULL when no case wants it */
    const struct pred_replay_progress *progress;
};

static void report(const struct run *run, const char *what)
{
    struct pred_trace_health health;
    if (!run->progress) return;
    pred_trace_reader_health(run->reader, &health);
    run->progress->report(run->progress->context, what, health.read_bytes, health.file_bytes);
}

static bool wants_future(const struct pred_case *c)
{
    return strncmp(c->policy, "belady", 6) == 0;
}

/* What an acquire of this phase counts in, but for the cold start. */
static enum tier_cell cell_of(enum tier_phase phase)
{
    return phase == TIER_PREFILL ? TIER_CELL_PREFILL : TIER_CELL_DECODE;
}

static void add_counts(struct tier_counts *to, uint64_t lookups, uint64_t resident,
                       uint64_t evictions)
{
    to->lookups += lookups;
    to->resident += resident;
    to->misses += lookups - resident;
    to->evictions += evictions;
}

/* ------------------------------------------------------------------------------- set-up -- */

static void warn(const struct run *run, uint32_t i)
{
    const struct pred_case *c = &run->cases[i];
    char *to = run->results[i].warning;
    size_t size = sizeof run->results[i].warning;
    uint64_t cycle = (uint64_t)run->header->layers * run->header->top_k;
    uint32_t top_k = run->header->top_k;
    if (c->budget_bytes > 0) {
        uint64_t cycle_bytes = 0;
        for (uint32_t l = 0; l < run->header->layers; l++) {
            cycle_bytes += top_k * run->expert_bytes[l];
        }
        if (c->budget_bytes < cycle_bytes && !wants_future(c)) {
            snprintf(to, size,
                     "LRU cliff: one token needs %" PRIu64 " bytes over all layers, more than "
                     "the budget; nothing lasts until its next use",
                     cycle_bytes);
        }
        return;
    }
    if (strcmp(c->policy, "lru_global") == 0 && c->slots < cycle) {
        snprintf(to, size,
                 "LRU cliff: one token needs %" PRIu64 " slots over all layers, there are %" PRIu64
                 "; nothing lasts until its next use",
                 cycle, c->slots);
    } else if (c->slots <= cycle && !strstr(c->policy, "_global")) {
        snprintf(to, size, "%" PRIu64 " slots a layer are no more than top-k (%" PRIu32
                 "): all policies are equal there", c->slots / run->header->layers, top_k);
    }
}

static int cache_create(struct run *run, uint32_t i, struct base_err *err)
{
    const struct pred_case *c = &run->cases[i];
    const struct pred_trace_header *h = run->header;
    struct cache *cache = &run->caches[i];
    if (c->budget_bytes > 0) {
        if (c->one_at_a_time) {
            return base_err_set(err, BASE_ECONFIG, "a budget in bytes takes the experts of a layer "
                                "together: one at a time works with slots or a share");
        }
        bool lru = strcmp(c->policy, "lru") == 0 || strcmp(c->policy, "lru_global") == 0;
        if (!lru && !wants_future(c)) {
            return base_err_set(err, BASE_ECONFIG,
                                "policy %s: a budget in bytes can be tried with lru "
                                "and belady, which work over all layers",
                                c->policy);
        }
        for (uint32_t l = 0; l < h->layers; l++) {
            if (run->expert_bytes[l] > 0) continue;
            return base_err_set(err, BASE_ECONFIG,
                                "the trace does not say how many bytes an expert of "
                                "layer %" PRIu32 " has: give the capacity as a share or in slots",
                                h->first_moe_layer + l);
        }
        return pred_sim_bytes_create(&cache->bytes, h->layers, h->experts, run->expert_bytes,
                                     c->budget_bytes, wants_future(c) ? run->future : NULL);
    }
    struct tier_decide_config config = {
        .layers = h->layers, .experts = h->experts, .top_k = h->top_k, .tier_count = 1,
        .tiers = { { .slots = c->slots } },
        .half_life_tokens = c->half_life_tokens, .prefill_share = c->prefill_share,
        .adaptive = c->adaptive,
        .next_use = pred_future_next, .next_use_context = run->future,
    };
    snprintf(config.tiers[0].policy, sizeof config.tiers[0].policy, "%s", c->policy);
    cache->found = calloc(h->experts, sizeof cache->found[0]);
    if (!cache->found) return -ENOMEM;
    int rc = tier_decide_create(&cache->decide, &config, err);
    if (rc < 0) return rc;
    for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
        cache->cells[cell] = tier_decide_counts(cache->decide, 0, (enum tier_cell)cell);
    }
    return 0;
}

static int future_fill(struct run *run, struct base_err *err)
{
    struct pred_feed *feed;
    struct pred_acquire a;
    uint64_t seen = 0;
    int rc = pred_future_create(&run->future, run->header->layers, run->header->experts, err);
    if (rc < 0) return rc;
    rc = pred_feed_create(&feed, run->reader, err);
    if (rc < 0) return rc;
    while ((rc = pred_feed_next(feed, &a, err)) > 0) {
        rc = pred_future_add(run->future, a.layer, a.ids, a.count, err);
        if (rc < 0) break;
        if (++seen % PROGRESS_EVERY == 0) report(run, "looking ahead for Belady");
    }
    pred_feed_destroy(feed);
    if (rc < 0) return rc;
    pred_future_begin(run->future);
    return pred_trace_reader_rewind(run->reader, err);
}

static int run_prepare(struct run *run, struct base_err *err)
{
    const struct pred_trace_header *h = run->header;
    bool ahead = false;
    run->caches = calloc(run->count, sizeof run->caches[0]);
    run->expert_bytes = calloc(h->layers, sizeof run->expert_bytes[0]);
    if (!run->caches || !run->expert_bytes) return -ENOMEM;
    for (uint32_t l = 0; l < h->layers; l++) {
        run->expert_bytes[l] = h->expert_bytes ? h->expert_bytes[l] : h->slot_bytes;
    }
    for (uint32_t i = 0; i < run->count; i++) ahead |= wants_future(&run->cases[i]);
    if (ahead) {
        int rc = future_fill(run, err);
        if (rc < 0) return rc;
    }
    for (uint32_t i = 0; i < run->count; i++) {
        int rc = cache_create(run, i, err);
        if (rc < 0) return rc;
        warn(run, i);
    }
    return 0;
}

/* ---------------------------------------------------------------------------------- run -- */

static void acquire_bytes(struct cache *cache, struct pred_case_result *result,
                          const struct pred_acquire *a)
{
    struct pred_sim_bytes_step step;
    pred_sim_bytes_acquire(cache->bytes, a->layer, a->ids, a->count, &step);
    enum tier_cell cell = step.cold ? TIER_CELL_COLD : cell_of(a->phase);
    add_counts(&result->cells[cell], a->count, step.resident, step.evictions);
    add_counts(&result->phases[a->phase], a->count, step.resident, step.evictions);
}

static void acquire_slots(struct cache *cache, struct pred_case_result *result,
                          const struct pred_acquire *a, bool one_at_a_time)
{
    /* The core tells the phases apart, but for the cold start. */
    const struct tier_counts *cold = cache->cells[TIER_CELL_COLD];
    struct tier_counts before = *cold;
    pred_waves(cache->decide, a->layer, a->ids, a->count, one_at_a_time ? 1 : a->count, a->phase,
               cache->found);
    if (cold->lookups == before.lookups) return;
    add_counts(&result->phases[a->phase], cold->lookups - before.lookups,
               cold->resident - before.resident, cold->evictions - before.evictions);
}

static int run_cases(struct run *run, struct pred_replay_summary *summary, struct base_err *err)
{
    struct pred_feed *feed;
    struct pred_acquire a;
    uint64_t seen = 0;
    int rc = pred_feed_create(&feed, run->reader, err);
    if (rc < 0) return rc;
    while ((rc = pred_feed_next(feed, &a, err)) > 0) {
        if (run->future) pred_future_load(run->future, a.layer, a.ids, a.count);
        for (uint32_t i = 0; i < run->count; i++) {
            if (run->caches[i].bytes) {
                acquire_bytes(&run->caches[i], &run->results[i], &a);
            } else {
                acquire_slots(&run->caches[i], &run->results[i], &a, run->cases[i].one_at_a_time);
            }
        }
        summary->lookups += a.count;
        if (++seen % PROGRESS_EVERY == 0) report(run, "replaying");
    }
    summary->from_events = pred_feed_from_events(feed);
    summary->gaps = pred_feed_gaps(feed);
    pred_feed_destroy(feed);
    for (uint32_t i = 0; i < run->count; i++) run->results[i].acquires = seen;
    return rc;
}

static int run_finish(struct run *run)
{
    for (uint32_t i = 0; i < run->count; i++) {
        struct pred_case_result *result = &run->results[i];
        struct cache *cache = &run->caches[i];
        if (!cache->decide) continue;
        for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
            result->cells[cell] = *cache->cells[cell];
        }
        for (int phase = 0; phase < TIER_PHASE_COUNT; phase++) {
            const struct tier_counts *warm = &result->cells[cell_of((enum tier_phase)phase)];
            add_counts(&result->phases[phase], warm->lookups, warm->resident, warm->evictions);
        }
        result->layers = calloc(run->header->layers, sizeof result->layers[0]);
        if (!result->layers) return -ENOMEM;
        for (uint32_t l = 0; l < run->header->layers; l++) {
            result->layers[l] = *tier_decide_layer_counts(cache->decide, 0, l);
        }
    }
    return 0;
}

int pred_replay_run(struct pred_trace_reader *reader, const struct pred_case *cases,
                    struct pred_case_result *results, uint32_t count,
                    struct pred_replay_summary *summary,
                    const struct pred_replay_progress *progress, struct base_err *err)
{
    struct run run = { .reader = reader, .header = pred_trace_reader_header(reader), .cases = cases,
                       .results = results, .count = count, .progress = progress };
    memset(results, 0, count * sizeof results[0]);
    memset(summary, 0, sizeof *summary);
    int rc = run_prepare(&run, err);
    if (rc >= 0) rc = run_cases(&run, summary, err);
    if (rc >= 0) rc = run_finish(&run);
    for (uint32_t i = 0; run.caches && i < count; i++) {
        tier_decide_destroy(run.caches[i].decide);
        pred_sim_bytes_destroy(run.caches[i].bytes);
        free(run.caches[i].found);
    }
    free(run.caches);
    free(run.expert_bytes);
    pred_future_destroy(run.future);
    if (rc < 0) base_err_set(err, rc, "cannot replay: %s", base_err_name(rc));
    return rc;
}

void pred_replay_results_fini(struct pred_case_result *results, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        free(results[i].layers);
        results[i].layers = NULL;
    }
}
