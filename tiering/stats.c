#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "tiering/tiering_priv.h"

static double seconds(uint64_t ns)
{
    return (double)ns / 1e9;
}

static void fill_tier(struct tier *t, uint32_t tier, struct tier_tier_metrics *m,
                      struct tier_counts *cells)
{
    const struct tier_seats *seats = tier == t->tiers - 1 ? &t->cache.dram : &t->cache.hbm;
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        cells[c] = *tier_decide_counts(t->decide, tier, c);
        m->lookups += cells[c].lookups;
        m->misses += cells[c].misses;
        m->evictions += cells[c].evictions;
        m->in_place += cells[c].in_place;
    }
    m->hits = t->hits[tier];
    m->late = tier == 0 ? t->late[0] : t->resident_below - t->hits[1];
    m->evicted_bytes = m->evictions * t->expert_bytes;
    m->slots = seats->slots.count;
    m->resident_slots = tier_decide_resident_count(t->decide, tier);
    m->leased_slots = tier == 0 ? t->cache.leased : 0;
    m->capacity_bytes = seats->slots.bytes;
    m->touched_bytes = seats->slots.touched;
    m->pinned_bytes = seats->slots.locked ? seats->slots.touched : 0;
}

static void fill_io(struct tier *t, struct tier_io_metrics *m)
{
    const struct tier_cache_stats *s = &t->cache.stats;
    m->demand_reads = s->demand_reads;
    m->demand_bytes = s->demand_bytes;
    m->prefetch_reads = s->prefetch_reads;
    m->prefetch_bytes = s->prefetch_bytes;
    m->prefetch_useful = s->prefetch_useful;
    m->prefetch_late = s->prefetch_late;
    m->hints = t->hint_count;
    m->prefetch_on = t->prefetch && tier_governor_on(&t->governor);
    m->prefetch_probability_min = t->prefetch ? t->governor.probability : 0;
    m->governor_switches = t->governor.switches;
    m->prefetch_wasted_bytes = s->prefetch_wasted_bytes;
    m->prefetch_cancelled = s->prefetch_cancelled;
    m->prefetch_refused = t->prefetch_refused;
    m->checksum_failures = s->checksum_failures;
    m->read_errors = s->read_errors;
    m->mirror_reads = s->mirror_reads;
    m->faults_injected = t->io->injected;
    m->quarantined = s->quarantined;
    m->stuck_reads = s->stuck_reads;
    m->copies_up = s->copies_up;
    m->copies_up_bytes = s->copy_up_bytes;
    m->copies_ahead = s->copies_ahead;
    m->copies_down = s->copies_down;
    m->copies_down_bytes = s->copy_down_bytes;
    m->demotions_dropped = s->demotions_dropped;
    m->copy_errors = s->copy_errors;
    m->copy_latency = s->copy_latency;
    m->reconfigurations = t->reconfigurations;
    const struct tier_cache *c = &t->cache;
    uint64_t waited = 0, busy = tier_span_ns(&c->transfers);
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) waited += t->waits_ns[w];
    m->overlap_ratio = busy > waited ? 1 - (double)waited / (double)busy : 0;
    m->read_busy_seconds = seconds(tier_span_ns(&c->reads));
    m->copy_busy_seconds = seconds(tier_span_ns(&c->copies));
    m->transfer_busy_seconds = seconds(busy);
    m->take_in_seconds = seconds(c->take_in_ns);
    m->landing_seconds = seconds(c->landing_ns);
    m->wait_demand_seconds = seconds(t->waits_ns[TIER_WAIT_DEMAND]);
    m->wait_late_seconds = seconds(t->waits_ns[TIER_WAIT_LATE]);
    m->wait_copy_seconds = seconds(t->waits_ns[TIER_WAIT_COPY]);
    m->wait_slot_seconds = seconds(t->waits_ns[TIER_WAIT_SLOT]);
    m->read_latency = s->read_latency;
    m->submit_latency = t->submit_latency;
}

void tier_stats_publish(struct tier *t, uint64_t now)
{
    static const char *const names[] = { "hbm", "dram", "nvme" };
    struct tier_snapshot *s = &t->scratch;
    memset(s, 0, sizeof *s);
    s->tier_count = t->tiers;
    for (uint32_t i = 0; i <= t->tiers; i++) s->tier_names[i] = names[i + 2 - t->tiers];
    for (uint32_t i = 0; i < t->tiers; i++) {
        fill_tier(t, i, &s->tiers[i], s->cells[i]);
        s->fixed_experts += tier_decide_fixed_count(t->decide, i);
    }
    fill_io(t, &s->io);
    s->steps = t->steps;
    if (t->warm) {
        tier_warm_stats(t->warm, &s->warm);
        s->warm.restore_reads = t->cache.stats.restore_reads;
        s->warm.restore_bytes = t->cache.stats.restore_bytes;
        snprintf(s->warm_note, sizeof s->warm_note, "%s", tier_warm_note(t->warm));
    }
    snprintf(s->io_note, sizeof s->io_note, "%s", t->io->note);
    snprintf(s->pin_note, sizeof s->pin_note, "%s", t->cache.dram.slots.note);
    if (t->device) snprintf(s->device_note, sizeof s->device_note, "%s", t->device->note);
    snprintf(s->prefetch_note, sizeof s->prefetch_note, "%s", t->prefetch_note);
    if (t->prefetch) tier_governor_text(&t->governor, s->governor_note, sizeof s->governor_note);
    s->prefetch_degraded = t->prefetch_degraded;
    s->holds_all = tier_holds_all(t);
    s->backend_degraded = t->io->backend_refused;
    s->direct_degraded = t->io->direct_refused;
    s->buffers_degraded = t->io->buffers_refused;
    snprintf(s->numa_note, sizeof s->numa_note, "%s", t->numa.note);
    snprintf(s->huge_note, sizeof s->huge_note, "%s", t->cache.dram.slots.huge_note);
    s->numa_degraded = t->numa.degraded;
    s->huge_degraded = t->cache.dram.slots.huge_refused;
    s->warm_refused = t->warm && tier_warm_refused(t->warm);
    s->device_lost = t->device && t->device->lost;
    s->device_host_readable = !t->device || t->device->host_readable;
    if (s->device_lost) {
        snprintf(s->device_note, sizeof s->device_note, "%.190s", t->device->lost_why);
    }
    s->pin_degraded = !t->cache.dram.slots.locked && t->config.dram_pin != TIER_PIN_OFF;
    tier_publish_begin(&t->publish);
    tier_publish_put(&t->publish, 0, s, sizeof *s);
    for (uint32_t l = 0; l < t->layers; l++) {
        const struct tier_counts *c = tier_decide_layer_counts(t->decide, 0, l);
        const struct tier_load_stats *load = &t->cache.layer_loads[l];
        static const struct tier_counts none;
        const struct tier_counts *b = t->tiers == 2 ? tier_decide_layer_counts(t->decide, 1, l)
                                                    : &none;
        struct tier_layer_stats layer = {
            .lookups = c->lookups, .resident = c->resident, .misses = c->misses,
            .evictions = c->evictions, .load_count = load->count, .load_ns_sum = load->ns_sum,
            .load_ns_min = load->ns_min, .load_ns_max = load->ns_max,
            .hinted = t->layer_hints[l], .prefetched = c->prefetch_admissions,
            .prefetch_used = c->prefetch_used,
            .below_lookups = b->lookups, .below_resident = b->resident,
            .below_in_place = b->in_place,
        };
        tier_publish_put(&t->publish, sizeof *s + l * sizeof layer, &layer, sizeof layer);
    }
    tier_publish_end(&t->publish);
    t->published_ns = now;
}

void tier_step_end(struct tier *t)
{
    MUST(t->magic == TIER_MAGIC);
    t->steps++;
    tier_prefetch_account(t);
    memset(t->step_waits_ns, 0, sizeof t->step_waits_ns);
    tier_shrink(t);
    uint64_t now = base_clock_now_ns(t->clock);
    if (t->warm) {
        tier_warm_feed(t);
        tier_warm_tick(t, now);
    }
    tier_stats_publish(t, now);
}

void tier_step_waits(const struct tier *t, uint64_t wait_ns[TIER_WAIT_CAUSE_COUNT])
{
    memcpy(wait_ns, t->step_waits_ns, sizeof t->step_waits_ns);
}

void tier_snapshot(struct tier *t, struct tier_snapshot *out)
{
    MUST(t->magic == TIER_MAGIC);
    tier_publish_get(&t->publish, 0, out, sizeof *out);
}

void tier_counts_now(const struct tier *t,
                     struct tier_counts cells[TIER_RESIDENT_TIERS_MAX][TIER_CELL_COUNT])
{
    MUST(t->magic == TIER_MAGIC);
    memset(cells, 0, TIER_RESIDENT_TIERS_MAX * sizeof cells[0]);
    for (uint32_t i = 0; i < t->tiers; i++) {
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            cells[i][c] = *tier_decide_counts(t->decide, i, (enum tier_cell)c);
        }
    }
}

int tier_snapshot_layers(struct tier *t, struct tier_layer_stats *out, uint32_t layers)
{
    if (layers < t->layers) return -ERANGE;
    tier_publish_get(&t->publish, sizeof(struct tier_snapshot), out, t->layers * sizeof *out);
    return 0;
}

int tier_snapshot_experts(struct tier *t, uint64_t *lookups, uint8_t *resident, size_t count)
{
    size_t keys = (size_t)t->layers * t->experts;
    if (count < keys) return -ERANGE;
    for (size_t k = 0; k < keys; k++) {
        lookups[k] = __atomic_load_n(&t->cache.use[k].lookups, __ATOMIC_RELAXED);
        resident[k] = __atomic_load_n(&t->expert_resident[k], __ATOMIC_RELAXED);
    }
    return 0;
}

void tier_load_latency(const struct tier *t, uint32_t layer, struct base_hist *out)
{
    MUST(layer < t->layers);
    base_hist_copy(out, &t->cache.layer_loads[layer].latency);
}

void tier_wait_latency(const struct tier *t, enum tier_wait_cause cause, struct base_hist *out)
{
    MUST(cause < TIER_WAIT_CAUSE_COUNT);
    base_hist_copy(out, &t->wait_latency[cause]);
}

void tier_lookup_latency(const struct tier *t, uint32_t tier, struct base_hist *out)
{
    MUST(tier <= t->tiers);
    const struct base_hist *from = tier == 0          ? &t->hit_latency
                                   : tier == t->tiers ? &t->cache.answer_latency[0]
                                                      : &t->cache.answer_latency[1];
    base_hist_copy(out, from);
}

struct tier_loads_entry tier_expert_loads(const struct tier *t, uint32_t layer, uint32_t expert)
{
    MUST(layer < t->layers && expert < t->experts);
    return tier_loads_get(&t->cache.expert_loads, layer * t->experts + expert);
}
