#include "tiering/tiering.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "base/str.h"
#include "tiering/cache.h"
#include "tiering/policy.h"
#include "tiering/publish.h"

enum { TIER_MAGIC = 0x71e2c0de, PUBLISH_EVERY_NS = 20000000 };

struct tier {
    uint32_t magic;
    struct tier_config config;
    struct tier_store *store;
    struct base_clock *clock;
    struct tier_io *io;
    struct tier_decide *decide;
    struct tier_cache cache;
    struct dev *device, *own_device;    /* own: made here, ended here */
    uint32_t tiers;             /* resident ones: 2 = hbm over dram */
    struct tier_observer observer;
    uint32_t layers, experts;
    uint64_t expert_bytes;
    struct tier_found *found;   /* [experts] scratch of acquire */
    uint32_t *ids;              /* [experts] scratch of release */
    uint32_t *layer_hinted;     /* [layers] prefetches admitted since the layer's last acquire */
    double prefetch_credit;     /* bytes that bandwidth_share allows now */
    uint64_t credit_ns;
    uint64_t prefetch_refused;
    uint64_t hits[TIER_RESIDENT_TIERS_MAX], late[TIER_RESIDENT_TIERS_MAX];
    uint64_t resident_below;    /* lookups of tier 1 that it had: hits[1] + late[1] */
    uint64_t waits_ns[TIER_WAIT_CAUSE_COUNT];       /* since open */
    uint64_t step_waits_ns[TIER_WAIT_CAUSE_COUNT];
    uint64_t steps;
    struct base_hist submit_latency;
    /* For other threads. */
    struct tier_publish publish;        /* tier_snapshot, then tier_layer_stats[layers] */
    uint64_t published_ns;
    struct tier_snapshot scratch;
    uint64_t *expert_lookups;   /* [keys] relaxed atomics: one writer, any reader */
    uint8_t *expert_resident;
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

/* -- capacity --------------------------------------------------------------------------------- */

/* Slots of a capacity as the user wrote it: a size holds as many as fit into it, spare ones
 * included; a share is that share of each layer's experts, to the nearest slot. */
static int capacity_slots(const char *key, const char *text, const struct tier_store *store,
                          uint64_t slot_bytes, uint64_t spare, uint64_t *slots,
                          struct base_err *err)
{
    uint64_t layers = tier_store_layers(store), experts = tier_store_experts(store), bytes;
    double share;
    if (strchr(text, '%')) {
        if (base_str_share_parse(text, &share) < 0) {
            return base_err_set(err, BASE_ECONFIG,
                                "%s: \"%s\" is no share: write 25%% for a quarter "
                                "of the experts",
                                key, text);
        }
        *slots = layers * (uint64_t)(share * (double)experts + 0.5);
        return 0;
    }
    if (base_str_bytes_parse(text, &bytes) < 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "%s: \"%s\" is neither a size like 16GiB nor a share "
                            "like 25%%",
                            key, text);
    }
    uint64_t all = bytes / slot_bytes;
    *slots = all > spare ? all - spare : 0;
    if (*slots > layers * experts) *slots = layers * experts;
    return 0;
}

/* Enough for one token's experts where they run; a tier below needs a slot a layer. */
static int capacity_check(const char *key, const char *text, const struct tier_store *store,
                          uint32_t each, const struct tier_footprint *f, unsigned tier,
                          struct base_err *err)
{
    char slot[16], have[16], need[16];
    uint64_t layers = tier_store_layers(store), least = layers * each;
    if (f->slots[tier] + f->spare_slots[tier] >= UINT32_MAX) {
        return base_err_set(err, BASE_EBUDGET, "%s: more slots than can be counted", key);
    }
    if (f->slots[tier] >= least) return 0;
    return base_err_set(err, BASE_EBUDGET, "%s: %s holds %" PRIu64 " experts (slots of %s%s, %s in "
                        "all), but %" PRIu64 " layers x %s %" PRIu32 " = %" PRIu64 " are needed: "
                        "give it %s or more", key, text, f->slots[tier],
                        base_str_bytes(slot, sizeof slot, f->slot_bytes[tier]),
                        f->spare_slots[tier] ? " and some to spare" : "",
                        base_str_bytes(have, sizeof have, f->slots_bytes[tier]), layers,
                        tier == 0 ? "top_k" : "a slot:", each, least,
                        base_str_bytes(need, sizeof need,
                                       (least + f->spare_slots[tier]) * f->slot_bytes[tier]));
}

static bool has_hbm(const struct tier_config *config)
{
    uint64_t bytes;
    return base_str_bytes_parse(config->hbm_capacity, &bytes) < 0 || bytes > 0;
}

/* Slots beside those that policies work with. In dram: prefetched experts that are evicted before
 * they arrive keep their slots until then, and experts pass through on their way to hbm. In hbm:
 * demoted experts keep theirs until the copy down is done. */
static uint64_t spare_of(const struct tier_config *config, const struct tier_store *store,
                         bool hbm, uint32_t top_k)
{
    uint64_t spare = 0;
    if (hbm) return config->inclusion == 0 ? top_k : 0;
    if (has_hbm(config)) spare += 2 * (uint64_t)top_k;
    if (!config->prefetch) return spare;
    uint64_t open = config->prefetch_inflight / tier_store_slot_bytes(store);
    return spare + (open < 1 ? 1 : open < 4 ? open : 4);
}

int tier_footprint(const struct tier_config *config, const struct tier_store *store, uint32_t top_k,
                   struct tier_footprint *out, struct base_err *err)
{
    static const char *const keys[] = { "tiers.hbm.capacity", "tiers.dram.capacity" };
    const char *const texts[] = { config->hbm_capacity, config->dram_capacity };
    uint32_t layers = tier_store_layers(store), experts = tier_store_experts(store);
    unsigned first = has_hbm(config) ? 0 : 1;
    *out = (struct tier_footprint){ 0 };
    if (layers == 0) return base_err_set(err, BASE_ECONFIG, "the model has no routed experts");
    for (unsigned i = first; i < 2; i++) {
        unsigned t = i - first;
        uint64_t spare = spare_of(config, store, i == 0, top_k);
        out->slot_bytes[t] = i == 0 ? tier_cache_hbm_slot_bytes(store)
                                    : tier_store_slot_bytes(store);
        int rc = capacity_slots(keys[i], texts[i], store, out->slot_bytes[t], spare, &out->slots[t],
                                err);
        if (rc < 0) return rc;
        /* With room for every expert nothing is ever evicted. */
        bool all = out->slots[t] == (uint64_t)layers * experts;
        out->spare_slots[t] = all && first == 1 ? 0 : spare;
        out->slots_bytes[t] = (out->slots[t] + out->spare_slots[t]) * out->slot_bytes[t];
        rc = capacity_check(keys[i], texts[i], store, t == 0 ? top_k : 1, out, t, err);
        if (rc < 0) return rc;
    }
    uint64_t dram = out->slots[1 - first] + out->spare_slots[1 - first];
    uint64_t hbm = first == 0 ? out->slots[0] + out->spare_slots[0] : 0;
    out->tables_bytes = tier_cache_tables_bytes(layers * experts, dram, hbm, 64) +
                        (uint64_t)layers * experts * TIER_DECIDE_BYTES_PER_EXPERT;
    return 0;
}

/* -- open and close --------------------------------------------------------------------------- */

static void on_failed(void *context, uint32_t key);

static const struct base_option *option_of(const char *key)
{
    for (size_t i = 0; i < tier_option_count; i++) {
        if (strcmp(tier_options[i].key, key) == 0) return &tier_options[i];
    }
    MUST(!"an option of this module");
    return NULL;
}

/* A setting that cannot take effect beside the others is refused. */
static int config_check(const struct tier_config *config, const char *eviction,
                        struct base_err *err)
{
    if (config->inclusion == 1 && !has_hbm(config)) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.inclusion: inclusive has no effect without an "
                            "hbm tier: set tiers.hbm.capacity, or leave it out");
    }
    if (strcmp(eviction, "lru_with_prediction") == 0 && !config->prefetch) {
        return base_err_set(err, BASE_ECONFIG, "policy.eviction: lru_with_prediction has no effect "
                            "without a predictor that gives hints, and none is attached: take lfu, "
                            "which it would be");
    }
    unsigned long long initial = strtoull(option_of("policy.half_life")->initial, NULL, 10);
    if (!tier_policy_find(eviction)->decayed && config->half_life != initial) {
        return base_err_set(err, BASE_ECONFIG, "policy.half_life: %llu has no effect with "
                            "policy.eviction: %s, which counts no uses: take lfu, "
                            "lru_with_frequency or lru_with_prediction, or leave it out",
                            (unsigned long long)config->half_life, eviction);
    }
    return 0;
}

static int decide_create(struct tier *t, uint32_t top_k, const struct tier_footprint *footprint,
                         struct base_err *err)
{
    struct tier_decide_config config = {
        .layers = t->layers,
        .experts = t->experts,
        .top_k = top_k,
        .tier_count = t->tiers,
        .inclusive = t->tiers == 2 && t->config.inclusion == 1,
        .half_life_tokens = (double)t->config.half_life,
        .prefill_share = t->config.prefill_share,
        .prefetch = t->config.prefetch,
        .strict = true,
    };
    for (uint32_t i = 0; i < t->tiers; i++) {
        config.tiers[i].slots = footprint->slots[i];
        base_option_choice(option_of("policy.eviction"), t->config.eviction,
                           config.tiers[i].policy, sizeof config.tiers[i].policy);
    }
    int rc = config_check(&t->config, config.tiers[0].policy, err);
    return rc < 0 ? rc : tier_decide_create(&t->decide, &config, err);
}

static int tables_create(struct tier *t)
{
    size_t keys = (size_t)t->layers * t->experts;
    t->found = calloc(t->experts, sizeof *t->found);
    t->ids = calloc(t->experts, sizeof *t->ids);
    t->layer_hinted = calloc(t->layers, sizeof *t->layer_hinted);
    t->expert_lookups = calloc(keys, sizeof *t->expert_lookups);
    t->expert_resident = calloc(keys, sizeof *t->expert_resident);
    if (!t->found || !t->ids || !t->layer_hinted || !t->expert_lookups || !t->expert_resident) {
        return -ENOMEM;
    }
    return tier_publish_create(&t->publish, sizeof(struct tier_snapshot) +
                                                t->layers * sizeof(struct tier_layer_stats));
}

static void publish(struct tier *t, uint64_t now);

static int device_create(struct tier *t, const struct tier_footprint *footprint,
                         struct base_err *err)
{
    char name[32];
    struct dev_config config = {
        .memory_bytes = footprint->slots_bytes[0],
        .bandwidth = t->config.hbm_bandwidth,
        .fault_share = t->config.hbm_faults,
        .seed = 1,
    };
    base_option_choice(option_of("tiers.hbm.device"), t->config.hbm_device, name, sizeof name);
    int rc = dev_create(&t->own_device, dev_find(name), &config, t->clock, err);
    t->device = t->own_device;
    return rc;
}

static int cache_create(struct tier *t, const struct tier_open_args *args,
                        const struct tier_footprint *f, struct base_err *err)
{
    unsigned dram = t->tiers - 1;
    uint64_t inflight = t->config.prefetch_inflight;
    struct tier_cache_args cache = {
        .store = t->store, .io = t->io, .clock = t->clock,
        .slots = (uint32_t)(f->slots[dram] + f->spare_slots[dram]),
        .pin = (enum tier_pin)t->config.dram_pin,
        .verify_always = t->config.verify == 0,
        .prefetch_inflight = inflight > f->slot_bytes[dram] ? inflight : f->slot_bytes[dram],
        .stuck_after_ns = t->config.stuck_after,
        .failed = on_failed, .context = t,
    };
    if (t->tiers == 2) {
        t->device = args->device;
        int rc = t->device ? 0 : device_create(t, f, err);
        if (rc < 0) return rc;
        cache.device = t->device;
        cache.hbm_slots = (uint32_t)(f->slots[0] + f->spare_slots[0]);
        cache.hbm_slot_bytes = f->slot_bytes[0];
    }
    return tier_cache_create(&t->cache, &cache, err);
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
    t->tiers = has_hbm(&t->config) ? 2 : 1;
    t->layers = tier_store_layers(args->store);
    t->experts = tier_store_experts(args->store);
    t->expert_bytes = tier_store_expert_bytes(args->store);
    base_hist_init(&t->submit_latency);
    rc = tables_create(t);
    if (rc < 0) {
        base_err_set(err, rc, "no memory for the tables of the tiers");
        goto fail;
    }
    rc = decide_create(t, args->top_k, &footprint, err);
    if (rc < 0) goto fail;
    rc = tier_io_create(&t->io, args->io, t->clock, err);
    if (rc < 0) goto fail;
    rc = cache_create(t, args, &footprint, err);
    if (rc < 0) goto fail;
    publish(t, base_clock_now_ns(t->clock));
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
    tier_cache_destroy(&t->cache);
    tier_io_destroy(t->io);
    dev_destroy(t->own_device);
    tier_decide_destroy(t->decide);
    tier_publish_destroy(&t->publish);
    free(t->found);
    free(t->ids);
    free(t->layer_hinted);
    free(t->expert_lookups);
    free(t->expert_resident);
    t->magic = 0;
    free(t);
}

/* -- decisions carried out -------------------------------------------------------------------- */

static void observe(struct tier *t, const struct tier_event *event)
{
    if (t->observer.event) t->observer.event(t->observer.context, event);
}

static void resident_set(struct tier *t, uint32_t key, uint8_t in, uint8_t out)
{
    uint8_t bits = (uint8_t)((t->expert_resident[key] | in) & ~out);
    __atomic_store_n(&t->expert_resident[key], bits, __ATOMIC_RELAXED);
}

static void carry_out(struct tier *t, bool demand)
{
    const struct tier_action *actions;
    uint32_t n = tier_decide_actions(t->decide, &actions);
    bool inclusive = t->config.inclusion == 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = actions[i].layer * t->experts + actions[i].expert;
        uint8_t in = 0, out = 0;
        bool fetch = true;
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
    observe(t, &(struct tier_event){ .kind = TIER_EVENT_FORGET, .layer = layer, .count = 1,
                                     .ids = &expert });
}

/* -- leases ----------------------------------------------------------------------------------- */

/* Fills a lease of an expert that can be read. */
static inline void lease_ready(struct tier *t, struct tier_lease *lease, uint32_t slot)
{
    const struct tier_slots *slots = &t->cache.top->slots;
    const struct tier_slot *at = &slots->at[slot];
    const char *memory = tier_slots_memory(slots, slot);
    lease->status = 0;
    lease->slot = slot;
    lease->epoch = at->epoch;
    for (int p = 0; p < TIER_PARTS; p++) {
        lease->parts[p] = at->part_offset[p] == UINT32_MAX ? NULL : memory + at->part_offset[p];
    }
}

static inline void lease_begin(struct tier *t, struct tier_lease *lease, uint32_t layer,
                               uint32_t expert)
{
    uint32_t key = layer * t->experts + expert;
    lease->layer = layer;
    lease->expert = expert;
    if (t->cache.leases[key]++ == 0) t->cache.leased++;
    if (tier_cache_ready(&t->cache, key)) {
        lease_ready(t, lease, t->cache.top->slot_of[key]);
        return;
    }
    *lease = (struct tier_lease){
        .layer = layer, .expert = expert, .slot = TIER_NO_SLOT, .status = -EINPROGRESS,
    };
    if (tier_cache_place(&t->cache, key) == TIER_PLACE_FAILED) lease->status = BASE_EQUARANTINE;
}

uint32_t tier_acquire(struct tier *t, uint32_t layer, const uint32_t *ids, uint32_t n,
                      enum tier_phase phase, struct tier_lease *leases)
{
    MUST(t->magic == TIER_MAGIC && layer < t->layers && n <= t->experts);
    struct tier_cache *cache = &t->cache;
    struct tier_seats *top = cache->top;
    uint32_t base = layer * t->experts, resident = 0, hits = 0, below = 0;
    uint64_t begin_ns = base_clock_now_ns(t->clock);
    uint32_t k = tier_decide_acquire(t->decide, layer, ids, n, phase, t->found);
    carry_out(t, true);
    for (uint32_t i = 0; i < k; i++) {
        uint32_t key = base + ids[i];
        if (t->found[i].from != 0) {
            if (t->found[i].from == t->tiers) continue;
            /* One that is still being copied down can be read where it was. */
            t->hits[1] += tier_seats_ready(&cache->dram, key) || tier_cache_ready(cache, key);
            below++;
            continue;
        }
        resident++;
        if (tier_cache_ready(cache, key)) {
            top->slots.at[top->slot_of[key]].prefetch = false;
            hits++;
        } else {
            tier_cache_demand(cache, key);
        }
    }
    if (hits < k) {
        tier_cache_pump(cache);
        base_hist_add(&t->submit_latency, base_clock_now_ns(t->clock) - begin_ns);
    }
    for (uint32_t i = 0; i < k; i++) {
        uint64_t *lookups = &t->expert_lookups[base + ids[i]];
        __atomic_store_n(lookups, *lookups + 1, __ATOMIC_RELAXED);
        lease_begin(t, &leases[i], layer, ids[i]);
    }
    t->hits[0] += hits;
    t->late[0] += resident - hits;
    t->resident_below += below;
    t->layer_hinted[layer] = 0;
    if (cache->prefetch.head != TIER_NO_SLOT) tier_cache_layer_passed(cache, layer);
    observe(t, &(struct tier_event){ .kind = TIER_EVENT_ACQUIRE, .phase = phase, .layer = layer,
                                     .count = n, .granted = k, .ids = ids });
    if (begin_ns - t->published_ns > PUBLISH_EVERY_NS) publish(t, begin_ns);
    return k;
}

static void release_layer(struct tier *t, uint32_t layer, uint32_t n)
{
    tier_decide_release(t->decide, layer, t->ids, n);
    observe(t, &(struct tier_event){ .kind = TIER_EVENT_RELEASE, .layer = layer, .count = n,
                                     .ids = t->ids });
}

void tier_release(struct tier *t, const struct tier_lease *leases, uint32_t n)
{
    MUST(t->magic == TIER_MAGIC);
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct tier_lease *lease = &leases[i];
        uint32_t key = lease->layer * t->experts + lease->expert;
        MUST(lease->layer < t->layers && lease->expert < t->experts && t->cache.leases[key] > 0);
        /* A slot that changed hands under a lease would have been read as another expert. */
        MUST(lease->status != 0 || t->cache.top->slots.at[lease->slot].epoch == lease->epoch);
        if (count > 0 && (leases[i - 1].layer != lease->layer || count == t->experts)) {
            release_layer(t, leases[i - 1].layer, count);
            count = 0;
        }
        if (--t->cache.leases[key] == 0) t->cache.leased--;
        t->ids[count++] = lease->expert;
    }
    if (count > 0) release_layer(t, leases[n - 1].layer, count);
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
                lease_ready(t, lease, t->cache.top->slot_of[key]);
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
        MUST(t->io->in_flight > 0 || (t->device && t->device->in_flight > 0));
        tier_cache_reap(&t->cache, true, deadline_ns);
        settled = settle(t, leases, n);
        uint64_t now = base_clock_now_ns(t->clock);
        t->waits_ns[cause] += now - from;
        t->step_waits_ns[cause] += now - from;
        from = now;
    }
    return settled;
}

void tier_poll(struct tier *t)
{
    tier_cache_reap(&t->cache, false, 0);
}

/* -- hints ------------------------------------------------------------------------------------ */

/* Credit grows with time at the share of the bandwidth that reads have reached so far, up to what
 * may be in flight. Before anything was measured it is full. */
static bool credit_for(struct tier *t, uint64_t now)
{
    double most = (double)(t->cache.prefetch_open_max * tier_store_slot_bytes(t->store));
    if (t->cache.busy_ns == 0) {
        t->prefetch_credit = most;
    } else {
        double rate = (double)t->cache.busy_bytes / (double)t->cache.busy_ns;
        t->prefetch_credit += rate * t->config.prefetch_share * (double)(now - t->credit_ns);
        if (t->prefetch_credit > most) t->prefetch_credit = most;
    }
    t->credit_ns = now;
    return t->prefetch_credit >= (double)t->expert_bytes;
}

uint32_t tier_hint(struct tier *t, const struct tier_hint *hints, uint32_t n)
{
    MUST(t->magic == TIER_MAGIC);
    uint32_t admitted = 0;
    uint64_t now = base_clock_now_ns(t->clock);
    for (uint32_t i = 0; i < n; i++) {
        const struct tier_hint *h = &hints[i];
        MUST(h->layer < t->layers && h->expert < t->experts);
        bool resident = false;      /* nothing to read from disk */
        for (uint32_t tier = 0; tier < t->tiers; tier++) {
            resident |= tier_decide_resident(t->decide, tier, h->layer, h->expert);
        }
        if (!resident && t->config.prefetch &&
            (t->layer_hinted[h->layer] >= t->config.prefetch_per_layer ||
             !tier_cache_prefetch_room(&t->cache) || !credit_for(t, now))) {
            t->prefetch_refused++;
            continue;
        }
        bool taken = tier_decide_hint(t->decide, h->layer, h->expert, h->probability, h->distance);
        carry_out(t, false);
        if (taken) {
            admitted++;
            t->layer_hinted[h->layer]++;
            if (!resident) t->prefetch_credit -= (double)t->expert_bytes;
        }
        observe(t, &(struct tier_event){
            .kind = TIER_EVENT_HINT, .layer = h->layer, .count = 1, .ids = &h->expert,
            .probability = h->probability, .distance = h->distance, .admitted = taken,
        });
    }
    if (admitted > 0) tier_cache_pump(&t->cache);
    return admitted;
}

/* -- seeing it -------------------------------------------------------------------------------- */

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
    }
    m->hits = t->hits[tier];
    m->late = tier == 0 ? t->late[0] : t->resident_below - t->hits[1];
    m->evicted_bytes = m->evictions * t->expert_bytes;
    m->slots = seats->slots.count;
    m->resident_slots = tier_decide_resident_count(t->decide, tier);
    m->leased_slots = tier == 0 ? t->cache.leased : 0;
    m->capacity_bytes = seats->slots.bytes;
}

static void fill_io(struct tier *t, struct tier_io_metrics *m)
{
    const struct tier_cache_stats *s = &t->cache.stats;
    m->demand_reads = s->demand_reads;
    m->demand_bytes = s->demand_bytes;
    m->prefetch_reads = s->prefetch_reads;
    m->prefetch_bytes = s->prefetch_bytes;
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
    m->copies_down = s->copies_down;
    m->copies_down_bytes = s->copy_down_bytes;
    m->demotions_dropped = s->demotions_dropped;
    m->copy_errors = s->copy_errors;
    m->copy_latency = s->copy_latency;
    uint64_t transfer = t->cache.busy_ns + s->copy_ns, waited = 0;
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) waited += t->waits_ns[w];
    m->overlap_ratio = transfer > waited ? 1 - (double)waited / (double)transfer : 0;
    m->wait_demand_seconds = seconds(t->waits_ns[TIER_WAIT_DEMAND]);
    m->wait_late_seconds = seconds(t->waits_ns[TIER_WAIT_LATE]);
    m->wait_copy_seconds = seconds(t->waits_ns[TIER_WAIT_COPY]);
    m->wait_slot_seconds = seconds(t->waits_ns[TIER_WAIT_SLOT]);
    m->read_latency = s->read_latency;
    m->submit_latency = t->submit_latency;
}

static void publish(struct tier *t, uint64_t now)
{
    static const char *const names[] = { "hbm", "dram", "nvme" };
    struct tier_snapshot *s = &t->scratch;
    memset(s, 0, sizeof *s);
    s->tier_count = t->tiers;
    for (uint32_t i = 0; i <= t->tiers; i++) s->tier_names[i] = names[i + 2 - t->tiers];
    for (uint32_t i = 0; i < t->tiers; i++) fill_tier(t, i, &s->tiers[i], s->cells[i]);
    fill_io(t, &s->io);
    s->steps = t->steps;
    snprintf(s->io_note, sizeof s->io_note, "%s", t->io->note);
    snprintf(s->pin_note, sizeof s->pin_note, "%s", t->cache.dram.slots.note);
    if (t->device) snprintf(s->device_note, sizeof s->device_note, "%s", t->device->note);
    s->backend_degraded = t->io->backend_refused;
    s->direct_degraded = t->io->direct_refused;
    s->buffers_degraded = t->io->buffers_refused;
    s->pin_degraded = !t->cache.dram.slots.locked && t->config.dram_pin != TIER_PIN_OFF;
    tier_publish_begin(&t->publish);
    tier_publish_put(&t->publish, 0, s, sizeof *s);
    for (uint32_t l = 0; l < t->layers; l++) {
        const struct tier_counts *c = tier_decide_layer_counts(t->decide, 0, l);
        const struct tier_load_stats *load = &t->cache.layer_loads[l];
        struct tier_layer_stats layer = {
            .lookups = c->lookups, .resident = c->resident, .misses = c->misses,
            .evictions = c->evictions, .load_count = load->count, .load_ns_sum = load->ns_sum,
            .load_ns_min = load->ns_min, .load_ns_max = load->ns_max,
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
    memset(t->step_waits_ns, 0, sizeof t->step_waits_ns);
    publish(t, base_clock_now_ns(t->clock));
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
        lookups[k] = __atomic_load_n(&t->expert_lookups[k], __ATOMIC_RELAXED);
        resident[k] = __atomic_load_n(&t->expert_resident[k], __ATOMIC_RELAXED);
    }
    return 0;
}

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
