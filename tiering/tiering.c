#include "tiering/tiering.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "base/str.h"
#include "tiering/policy.h"
#include "tiering/tiering_priv.h"

enum {
    PUBLISH_EVERY_NS = 20000000,
    FETCH_FROM_EXPERTS = 32768,
    IDLE_WAIT_NS = 2000000,
    HIT_SAMPLE = 16,            /* one acquire of so many that only hit is timed */
};

_Static_assert(sizeof(struct tier_snapshot) % 8 == 0, "published word by word");
_Static_assert(sizeof(struct tier_layer_stats) % 8 == 0, "published word by word");

#define BASE_OPTION_OWNER struct tier_config
const struct base_option tier_options[] = { TIER_OPTIONS(BASE_OPTION_ROW) };
const struct base_option tier_prefetch_options[] = { TIER_PREFETCH_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t tier_option_count = sizeof tier_options / sizeof tier_options[0];
const size_t tier_prefetch_option_count =
    sizeof tier_prefetch_options / sizeof tier_prefetch_options[0];

#define BASE_METRIC_OWNER struct tier_tier_metrics
const struct base_metric tier_metrics[] = { TIER_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t tier_metric_count = sizeof tier_metrics / sizeof tier_metrics[0];

#define BASE_METRIC_OWNER struct tier_io_metrics
const struct base_metric tier_io_metrics[] = { TIER_IO_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t tier_io_metric_count = sizeof tier_io_metrics / sizeof tier_io_metrics[0];

#define BASE_METRIC_OWNER struct tier_warm_metrics
const struct base_metric tier_warm_metrics[] = { TIER_WARM_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t tier_warm_metric_count = sizeof tier_warm_metrics / sizeof tier_warm_metrics[0];

/* -- open and close --------------------------------------------------------------------------- */

static void on_failed(void *context, uint32_t key);

static int tables_create(struct tier *t)
{
    size_t keys = (size_t)t->layers * t->experts;
    t->found = calloc(t->experts, sizeof *t->found);
    t->ids = calloc(t->experts, sizeof *t->ids);
    t->layer_hinted = calloc(t->layers, sizeof *t->layer_hinted);
    t->layer_hints = calloc(t->layers, sizeof *t->layer_hints);
    t->expert_resident = calloc(keys, sizeof *t->expert_resident);
    if (!t->found || !t->ids || !t->layer_hinted || !t->layer_hints ||
        !t->expert_resident) {
        return -ENOMEM;
    }
    return tier_publish_create(&t->publish, sizeof(struct tier_snapshot) +
                                                t->layers * sizeof(struct tier_layer_stats));
}

/* Slots that a tier may ever have: enough for all experts, and what is beside them. */
static uint64_t slots_most(const struct tier *t)
{
    return (uint64_t)t->layers * t->experts + 2 * (uint64_t)t->top_k + TIER_SPARE_PREFETCH;
}

/* The same of hbm: where addresses cannot be had without memory, what it starts with. */
static uint64_t hbm_slots_most(const struct tier *t, const struct dev_ops *ops,
                               const struct tier_footprint *f)
{
    return ops->memory_give ? slots_most(t) : f->slots[0] + f->spare_slots[0];
}

static int device_create(struct tier *t, const struct tier_footprint *footprint,
                         struct base_err *err)
{
    char name[32];
    struct dev_config config = {
        .bandwidth = t->config.hbm_bandwidth,
        .fault_share = t->config.hbm_faults,
        .headroom_share = t->config.hbm_headroom,
        .seed = 1,
    };
    base_option_choice(tier_option_of("tiers.hbm.device"), t->config.hbm_device, name, sizeof name);
    const struct dev_ops *ops = dev_find(name);
    if (!ops) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.hbm.device: this build has no device %s; configure it where the "
                            "CUDA toolkit is (meson option cuda), or take sim or host", name);
    }
    config.memory_bytes = hbm_slots_most(t, ops, footprint) * footprint->slot_bytes[0];
    int rc = dev_create(&t->own_device, ops, &config, t->clock, err);
    t->device = t->own_device;
    return rc;
}

static int cache_create(struct tier *t, const struct tier_open_args *args,
                        const struct tier_footprint *f, struct base_err *err)
{
    unsigned dram = t->tiers - 1;
    for (unsigned i = 0; i < t->tiers; i++) t->slots_wanted[i] = f->slots[i] + f->spare_slots[i];
    struct tier_cache_args cache = {
        .store = t->store, .io = t->io, .clock = t->clock,
        .slots = (uint32_t)(f->slots[dram] + f->spare_slots[dram]),
        .slots_most = (uint32_t)slots_most(t),
        .hold = { (enum tier_pin)t->config.dram_pin, tier_numa_place, &t->numa },
        .verify_always = t->config.verify == 0,
        .warm_compute = t->config.warm_experts == TIER_WARM_COMPUTE,
        .prefetch_inflight = t->config.prefetch_inflight,
        .stuck_after_ns = t->config.stuck_after,
        .story = &t->story,
        .landing = args->landing,
        .failed = on_failed, .context = t,
    };
    if (t->tiers == 2) {
        t->device = args->device;
        int rc = t->device ? 0 : device_create(t, f, err);
        if (rc < 0) return rc;
        cache.device = t->device;
        cache.hbm_slots = (uint32_t)(f->slots[0] + f->spare_slots[0]);
        cache.hbm_slots_most = (uint32_t)hbm_slots_most(t, t->device->ops, f);
        cache.hbm_slot_bytes = f->slot_bytes[0];
    }
    return tier_cache_create(&t->cache, &cache, err);
}

static int create_story(struct tier *t, struct base_timeline *timeline)
{
    return tier_story_create(&t->story, timeline, t->layers, t->experts,
                             tier_store_layer_first(t->store));
}

int tier_open(struct tier **out, const struct tier_open_args *args, struct base_err *err)
{
    struct tier_footprint footprint;
    *out = NULL;
    int rc = tier_footprint(args->config, args->store, args->top_k, &footprint, err);
    if (rc < 0) return rc;
    struct tier *t = calloc(1, sizeof *t);
    if (!t) return base_err_set(err, -ENOMEM, "no memory for the tiers");
    t->magic = TIER_MAGIC;
    t->config = *args->config;
    t->store = args->store;
    t->clock = args->clock ? args->clock : base_clock_real();
    t->observer = args->observer;
    t->tiers = tier_budget_has_hbm(&t->config) ? 2 : 1;
    t->layers = tier_store_layers(args->store);
    t->experts = tier_store_experts(args->store);
    t->top_k = args->top_k;
    t->expert_bytes = tier_store_expert_bytes(args->store);
    base_hist_init(&t->submit_latency);
    base_hist_init(&t->hit_latency);
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) base_hist_init(&t->wait_latency[w]);
    rc = tables_create(t);
    if (rc == 0) rc = create_story(t, args->timeline);
    if (rc < 0) {
        base_err_set(err, rc, "no memory for the tables of the tiers");
        goto fail;
    }
    rc = tier_settings_core(&t->config, &footprint, t->store, t->top_k, &t->decide, err);
    if (rc == 0) rc = tier_prefetch_settle(t, true, err);
    if (rc < 0) goto fail;
    rc = tier_io_create(&t->io, args->io, t->clock, err);
    if (rc < 0) goto fail;
    rc = tier_numa_open(&t->numa, t->config.dram_numa, err);
    if (rc == 0) rc = cache_create(t, args, &footprint, err);
    if (rc < 0) goto fail;
    rc = tier_warm_open(&t->warm, t, err);
    if (rc < 0) goto fail;
    tier_stats_publish(t, base_clock_now_ns(t->clock));
    *out = t;
    return 0;
fail:
    tier_close(t);
    return rc;
}

void tier_close(struct tier *t)
{
    if (!t) return;
    MUST(t->magic == TIER_MAGIC);
    if (t->saves_at_close) tier_warm_save(t);
    tier_warm_close(t->warm);
    tier_cache_destroy(&t->cache);
    tier_story_destroy(&t->story, base_clock_now_ns(t->clock));
    tier_numa_close(&t->numa);
    tier_io_destroy(t->io);
    dev_destroy(t->own_device);
    tier_decide_destroy(t->decide);
    tier_publish_destroy(&t->publish);
    free(t->found);
    free(t->ids);
    free(t->layer_hinted);
    free(t->layer_hints);
    free(t->expert_resident);
    t->magic = 0;
    free(t);
}

/* -- decisions carried out -------------------------------------------------------------------- */

void tier_observe(struct tier *t, const struct tier_event *event)
{
    if (t->observer.event) t->observer.event(t->observer.context, event);
}

static void resident_set(struct tier *t, uint32_t key, uint8_t in, uint8_t out)
{
    uint8_t bits = (uint8_t)((t->expert_resident[key] | in) & ~out);
    __atomic_store_n(&t->expert_resident[key], bits, __ATOMIC_RELAXED);
}

void tier_carry_out(struct tier *t, bool fetch_new, bool demand)
{
    const struct tier_action *actions;
    uint32_t n = tier_decide_actions(t->decide, &actions);
    bool inclusive = t->config.inclusion == 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = actions[i].layer * t->experts + actions[i].expert;
        uint8_t in = 0, out = 0;
        bool fetch = fetch_new;
        switch (actions[i].kind) {
        case TIER_LOAD:
            in = (uint8_t)(1 << actions[i].tier);
            break;
        case TIER_COPY_UP:
            in = 1;
            if (!inclusive) out = 2;
            break;
        case TIER_COPY_DOWN:
            in = 2;
            out = 1;
            fetch = false;
            break;
        case TIER_DROP:
            out = (uint8_t)(1 << actions[i].tier);
            fetch = false;
            t->cache.stats.demotions_dropped += t->tiers == 2 && !inclusive && actions[i].tier == 0;
            break;
        }
        resident_set(t, key, in, out);
        /* The core's tier 0 is dram when there is no device. */
        uint8_t to = t->tiers == 2 ? 1 : TIER_KEY_DRAM;
        tier_cache_move(&t->cache, key, (uint8_t)(in * to), (uint8_t)(out * to), fetch, demand);
    }
}

static void on_failed(void *context, uint32_t key)
{
    struct tier *t = context;
    uint32_t layer = key / t->experts, expert = key % t->experts;
    tier_decide_forget(t->decide, layer, expert);
    resident_set(t, key, 0, 3);
    tier_observe(t, &(struct tier_event){ .kind = TIER_EVENT_FORGET, .layer = layer, .count = 1,
                                          .ids = &expert });
}

/* -- leases ----------------------------------------------------------------------------------- */

/* Fills a lease of an expert that can be read. */
static inline void lease_ready(struct tier *t, struct tier_lease *lease, uint32_t key)
{
    const struct tier_seats *seats = tier_cache_where(&t->cache, key);
    const struct tier_slots *slots = &seats->slots;
    uint32_t slot = seats->slot_of[key];
    const struct tier_slot *at = &slots->at[slot];
    const char *memory = tier_slots_memory(slots, slot);
    lease->status = 0;
    lease->slot = seats == t->cache.top ? slot : slot | TIER_SLOT_IN_DRAM;
    lease->epoch = at->epoch;
    for (int p = 0; p < TIER_PARTS; p++) {
        lease->parts[p] = at->part_offset[p] == UINT32_MAX ? NULL : memory + at->part_offset[p];
    }
}

/* The same of one that was noted: without a look at its slot. */
static inline void lease_noted(struct tier *t, struct tier_lease *lease,
                               const struct tier_key_use *use)
{
    const uint32_t *offset = t->cache.layouts[use->layout].part_offset;
    const char *memory = tier_slots_memory(&t->cache.top->slots, use->slot);
    lease->status = 0;
    lease->slot = use->slot;
    lease->epoch = use->epoch;
    for (int p = 0; p < TIER_PARTS; p++) {
        lease->parts[p] = offset[p] == UINT32_MAX ? NULL : memory + offset[p];
    }
}

static inline void lease_begin(struct tier *t, struct tier_lease *lease, uint32_t layer,
                               uint32_t expert)
{
    uint32_t key = layer * t->experts + expert;
    struct tier_key_use *use = &t->cache.use[key];
    lease->layer = layer;
    lease->expert = expert;
    MUST(use->leases < UINT16_MAX);
    if (use->leases++ == 0) t->cache.leased++;
    if (use->layout != TIER_NO_LAYOUT) {
        lease_noted(t, lease, use);
        return;
    }
    if (tier_cache_ready(&t->cache, key)) {
        lease_ready(t, lease, key);
        return;
    }
    *lease = (struct tier_lease){
        .layer = layer, .expert = expert, .slot = TIER_NO_SLOT, .status = -EINPROGRESS,
    };
    if (tier_cache_place(&t->cache, key) == TIER_PLACE_FAILED) lease->status = BASE_EQUARANTINE;
}

/* Who waited in line may have got a slot: its read goes out now, not when some other is back. */
static void send_seated(struct tier *t)
{
    if (t->cache.demand.head != TIER_NO_SLOT) tier_cache_pump(&t->cache);
}

/* With very many experts the tables are in main memory: all entries that an acquire needs are asked
 * for together, else it would wait for one after the other. */
static void fetch_entries(const struct tier *t, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    const struct tier_cache *c = &t->cache;
    uint32_t base = layer * t->experts;
    for (uint32_t i = 0; i < n; i++) __builtin_prefetch(&c->use[base + ids[i]], 1);
    tier_decide_ahead(t->decide, layer, ids, n);
}

/* An expert that was read or copied ahead is there when it is asked for. */
static void used_ahead(struct tier *t, uint32_t key)
{
    t->cache.stats.prefetch_useful++;
    if (!t->story.timeline) return;
    tier_story_fate(&t->story, base_clock_now_ns(t->clock), key, "useful");
}

/* An expert is used where it lies, in dram. True if it can be read at once. */
static bool use_in_place(struct tier *t, uint32_t key)
{
    struct tier_cache *cache = &t->cache;
    if (!tier_seats_ready(&cache->dram, key)) {
        bool down = cache->hbm.slot_of[key] != TIER_NO_SLOT;    /* its copy is on its way */
        if (!down) tier_cache_demand(cache, key);
        return false;
    }
    struct tier_slot *slot = &cache->dram.slots.at[cache->dram.slot_of[key]];
    if (slot->prefetch) used_ahead(t, key);
    slot->prefetch = false;
    return true;
}

uint32_t tier_acquire(struct tier *t, uint32_t layer, const uint32_t *ids, uint32_t n,
                      enum tier_phase phase, struct tier_lease *leases)
{
    MUST(t->magic == TIER_MAGIC && layer < t->layers && n <= t->experts);
    struct tier_cache *cache = &t->cache;
    struct tier_seats *top = cache->top;
    uint32_t base = layer * t->experts, resident = 0, hits = 0, below = 0, in_place = 0;
    uint32_t asked = cache->asked_reads;
    uint64_t begin_ns = base_clock_now_ns(t->clock);
    if (t->step_acquires++ == 0) t->step_began_ns = begin_ns;
    if (phase == TIER_PREFILL) tier_step_prompt(t);
    if (t->layers * t->experts >= FETCH_FROM_EXPERTS) fetch_entries(t, layer, ids, n);
    uint32_t k = tier_decide_acquire(t->decide, layer, ids, n, phase, t->found);
    tier_carry_out(t, true, true);
    for (uint32_t i = 0; i < k; i++) {
        uint32_t key = base + ids[i];
        if (t->found[i].from != 0) {
            if (t->found[i].from == t->tiers) {
                tier_loads_miss(&cache->expert_loads, key);
                tier_cache_asked(cache, key, begin_ns);
                continue;
            }
            below++;
            if (t->found[i].in_place) {
                bool ready = use_in_place(t, key);
                if (!ready) tier_cache_asked(cache, key, begin_ns);
                t->hits[1] += ready;
                in_place += ready;
                continue;
            }
            /* One that is still being copied down can be read where it was. */
            t->hits[1] += tier_seats_ready(&cache->dram, key) || tier_cache_ready(cache, key);
            if (!tier_cache_ready(cache, key)) tier_cache_asked(cache, key, begin_ns);
            continue;
        }
        resident++;
        if (tier_cache_noted(cache, key)) {
            hits++;
        } else if (tier_cache_ready(cache, key)) {
            struct tier_slot *slot = &top->slots.at[top->slot_of[key]];
            if (slot->prefetch) used_ahead(t, key);
            slot->prefetch = false;
            tier_cache_note(cache, key);
            hits++;
        } else {
            tier_cache_asked(cache, key, begin_ns);
            tier_cache_demand(cache, key);
        }
    }
    t->step_quiet += cache->asked_reads == asked;
    t->step_still += hits + in_place == k;
    if (hits + in_place < k) {
        tier_cache_pump(cache);
        base_hist_add(&t->submit_latency, base_clock_now_ns(t->clock) - begin_ns);
    }
    for (uint32_t i = 0; i < k; i++) {
        uint32_t *lookups = &t->cache.use[base + ids[i]].lookups;
        if (*lookups < UINT32_MAX) __atomic_store_n(lookups, *lookups + 1, __ATOMIC_RELAXED);
        lease_begin(t, &leases[i], layer, ids[i]);
    }
    t->hits[0] += hits;
    t->late[0] += resident - hits;
    t->resident_below += below;
    t->layer_hinted[layer] = 0;
    if (t->warm) tier_warm_used(t->warm, layer, ids, k);
    /* Those not granted are asked for again: until then what is read ahead of them is not late. */
    if (k == n && cache->prefetch.head != TIER_NO_SLOT) {
        tier_cache_layer_passed(cache, layer);
        send_seated(t);
    }
    tier_observe(t, &(struct tier_event){ .kind = TIER_EVENT_ACQUIRE, .phase = phase,
                                          .layer = layer, .count = n, .granted = k, .ids = ids });
    if (hits == k && k > 0 && t->hit_acquires++ % HIT_SAMPLE == 0) {
        base_hist_add(&t->hit_latency, (base_clock_now_ns(t->clock) - begin_ns) / k);
    }
    if (begin_ns - t->published_ns > PUBLISH_EVERY_NS) tier_stats_publish(t, begin_ns);
    return k;
}

static uint32_t epoch_of_lease(const struct tier *t, const struct tier_lease *lease)
{
    const struct tier_key_use *use =
        &t->cache.use[lease->layer * t->experts + lease->expert];
    if (use->layout != TIER_NO_LAYOUT && use->slot == lease->slot) return use->epoch;
    bool in_dram = lease->slot & TIER_SLOT_IN_DRAM;
    const struct tier_seats *seats = in_dram ? &t->cache.dram : t->cache.top;
    return seats->slots.at[lease->slot & ~TIER_SLOT_IN_DRAM].epoch;
}

static void release_layer(struct tier *t, uint32_t layer, uint32_t n)
{
    tier_decide_release(t->decide, layer, t->ids, n);
    /* What moves up here was asked for: no prefetch. */
    tier_carry_out(t, true, true);
    tier_observe(t, &(struct tier_event){ .kind = TIER_EVENT_RELEASE, .layer = layer, .count = n,
                                          .ids = t->ids });
}

void tier_release(struct tier *t, const struct tier_lease *leases, uint32_t n)
{
    MUST(t->magic == TIER_MAGIC);
    uint32_t count = 0;
    /* Before any slot can change hands: what was launched on these leases may still read them. */
    if (t->device) dev_mark(t->device);
    for (uint32_t i = 0; i < n; i++) {
        const struct tier_lease *lease = &leases[i];
        uint32_t key = lease->layer * t->experts + lease->expert;
        MUST(lease->layer < t->layers && lease->expert < t->experts);
        MUST(t->cache.use[key].leases > 0);
        /* A slot that changed hands under a lease would have been read as another expert. */
        MUST(lease->status != 0 || epoch_of_lease(t, lease) == lease->epoch);
        if (count > 0 && (leases[i - 1].layer != lease->layer || count == t->experts)) {
            release_layer(t, leases[i - 1].layer, count);
            count = 0;
        }
        if (--t->cache.use[key].leases == 0) t->cache.leased--;
        t->ids[count++] = lease->expert;
    }
    if (count > 0) release_layer(t, leases[n - 1].layer, count);
    send_seated(t);
}

/* -- waiting ---------------------------------------------------------------------------------- */

static uint32_t settle(struct tier *t, struct tier_lease *leases, uint32_t n)
{
    uint32_t settled = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct tier_lease *lease = &leases[i];
        if (lease->status == -EINPROGRESS) {
            uint32_t key = lease->layer * t->experts + lease->expert;
            switch (tier_cache_place(&t->cache, key)) {
            case TIER_PLACE_READY:
                lease_ready(t, lease, key);
                if (!(lease->slot & TIER_SLOT_IN_DRAM)) tier_cache_note(&t->cache, key);
                break;
            case TIER_PLACE_FAILED:
                lease->status = BASE_EQUARANTINE;
                break;
            default:
                continue;
            }
        }
        settled++;
    }
    return settled;
}

/* What the first unsettled lease waits for. */
static enum tier_wait_cause cause_of(const struct tier *t, const struct tier_lease *leases,
                                     uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (leases[i].status != -EINPROGRESS) continue;
        uint32_t key = leases[i].layer * t->experts + leases[i].expert;
        enum tier_cache_place place = tier_cache_place(&t->cache, key);
        if (place == TIER_PLACE_NO_SLOT) return TIER_WAIT_SLOT;
        if (place == TIER_PLACE_COPY) return TIER_WAIT_COPY;
        return place == TIER_PLACE_LATE ? TIER_WAIT_LATE : TIER_WAIT_DEMAND;
    }
    return TIER_WAIT_DEMAND;
}

static const char *const causes[TIER_WAIT_CAUSE_COUNT] = {
    [TIER_WAIT_DEMAND] = "wait for demand", [TIER_WAIT_LATE] = "wait for late prefetch",
    [TIER_WAIT_COPY] = "wait for copy", [TIER_WAIT_SLOT] = "wait for slot",
};

uint32_t tier_wait(struct tier *t, struct tier_lease *leases, uint32_t n, enum tier_wait_mode mode,
                   uint64_t deadline_ns)
{
    MUST(t->magic == TIER_MAGIC);
    uint32_t enough = mode == TIER_WAIT_ALL ? n : n > 0, settled = settle(t, leases, n);
    if (settled >= enough) return settled;
    if (deadline_ns == 0) {
        return tier_cache_reap(&t->cache, false, 0) ? settle(t, leases, n) : settled;
    }
    uint64_t from = base_clock_now_ns(t->clock);
    while (settled < enough && from < deadline_ns) {
        enum tier_wait_cause cause = cause_of(t, leases, n);
        /* Else nothing could ever end this wait. */
        MUST(tier_cache_busy(&t->cache));
        tier_cache_reap(&t->cache, true, deadline_ns);
        settled = settle(t, leases, n);
        uint64_t now = base_clock_now_ns(t->clock);
        t->waits_ns[cause] += now - from;
        t->step_waits_ns[cause] += now - from;
        base_hist_add(&t->wait_latency[cause], now - from);
        tier_story_span(&t->story, causes[cause], from, now, BASE_TIMELINE_NONE);
        from = now;
    }
    return settled;
}

void tier_poll(struct tier *t)
{
    tier_cache_reap(&t->cache, false, 0);
    if (t->warm) tier_warm_feed(t);
}

uint32_t tier_idle(struct tier *t)
{
    MUST(t->magic == TIER_MAGIC);
    uint64_t now = base_clock_now_ns(t->clock);
    tier_poll(t);
    if (!t->warm) return UINT32_MAX;
    /* What was restored to hbm is not there before its copy is. */
    bool copies = t->device && t->device->in_flight > 0;
    if (tier_warm_feeding(t->warm) || t->cache.prefetch_open > 0 || copies) {
        tier_cache_reap(&t->cache, true, now + IDLE_WAIT_NS);
        tier_poll(t);
        tier_stats_publish(t, base_clock_now_ns(t->clock));
        return t->io->in_flight > 0 ? 0 : 1;
    }
    return tier_warm_tick(t, now);
}

/* -- views ------------------------------------------------------------------------------------ */

int tier_failure_text(const struct tier *t, uint32_t layer, uint32_t expert, char *to, size_t size)
{
    const struct tier_failure *f;
    uint32_t key = layer * t->experts + expert, model_layer = tier_store_layer_of(t->store, layer);
    to[0] = '\0';
    if (tier_cache_place(&t->cache, key) != TIER_PLACE_FAILED) return 0;
    f = tier_cache_failure(&t->cache, key);
    if (!f) {
        snprintf(to, size, "expert %" PRIu32 " of layer %" PRIu32 " could not be read", expert,
                 model_layer);
        return BASE_EQUARANTINE;
    }
    if (f->file == UINT32_MAX) {
        snprintf(to, size, "expert %" PRIu32 " of layer %" PRIu32 " could not be copied to the "
                 "device: %s, %d times", expert, model_layer, base_err_name(f->code),
                 TIER_READ_TRIES);
        return f->code;
    }
    snprintf(to, size, "expert %" PRIu32 " of layer %" PRIu32 " could not be read: %s in %s at "
             "byte %" PRIu64 ", %d times%s", expert, model_layer, base_err_name(f->code),
             tier_store_file_path(t->store, f->file), f->offset, TIER_READ_TRIES,
             tier_store_copies(t->store) > 1 ? ", nor from its other copies" : "");
    return f->code;
}

const struct tier_decide_config *tier_decide_config_of(const struct tier *t)
{
    return tier_decide_config_get(t->decide);
}
