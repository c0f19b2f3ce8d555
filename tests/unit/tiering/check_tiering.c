/* The live tiers give the right bytes and the core's counts: over random capacities, policies,
 * backends, hints, leases kept, waits cut short and settings changed meanwhile, and with reads that
 * fail. */
#include <check.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "port/hash.h"
#include "tests/support/tier_settings.h"
#include "tests/support/tiny_store.h"
#include "tiering/span.h"
#include "tiering/tiering.h"
#include "tiering/tiering_priv.h"

#define NEED(cond) \
    do { \
        if (!(cond)) ck_abort_msg("%s, seed %d", #cond, seed); \
    } while (0)
static int seed;

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 3 };

static char dir[3000];
static struct tier_store *store;

/* One model for all cases of this program: reading is what is under test. */
static void setup(void)
{
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    options.shuffle = true;
    store = tiny_store_open(dir, sizeof dir, "check_tiering", &options);
}

static void teardown(void)
{
    tier_store_close(store);
    tiny_remove(dir);
}

/* -- a run ------------------------------------------------------------------------------------ */

struct run {
    struct tier_config config;
    struct tier_io_config io;
    struct tier *tier;
    struct tier_decide *twin;   /* fed with the observer's events: what a replay would do */
    uint64_t events, hits, late;
    bool changes;               /* settings change while it runs */
    struct base_clock *clock;   /* NULL: the real one */
    struct tier_lease leases[8][EXPERTS];
    uint32_t counts[8], lease_sets;
};

static void defaults(struct run *r)
{
    memset(r, 0, sizeof *r);
    tier_settings_default(&r->config, &r->io);
}

static void set(struct run *r, const char *pair)
{
    tier_settings_set(&r->config, &r->io, "%s", pair);
}

static void on_event(void *context, const struct tier_event *event)
{
    struct run *r = context;
    struct base_err err = { 0 };
    r->events++;
    if (r->twin && tier_decide_apply(r->twin, event, &err) < 0) {
        ck_abort_msg("event %d: %s, seed %d", (int)event->kind, err.text, seed);
    }
}

static void open_run(struct run *r)
{
    struct tier_open_args args = {
        .config = &r->config, .io = &r->io, .store = store, .top_k = TOP_K,
        .observer = { on_event, r }, .clock = r->clock,
    };
    struct base_err err = { 0 };
    int rc = tier_open(&r->tier, &args, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    rc = tier_decide_create(&r->twin, tier_decide_config_of(r->tier), &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

static void close_run(struct run *r)
{
    tier_close(r->tier);
    tier_decide_destroy(r->twin);
}

/* The bytes under a lease are those of its expert. */
static void check_lease(const struct tier_lease *lease)
{
    struct tier_record record;
    struct port_hash hash;
    tier_store_record(store, lease->layer, lease->expert, &record);
    port_hash_begin(&hash);
    for (int p = 0; p < TIER_PARTS; p++) {
        NEED((lease->parts[p] != NULL) == (record.part_bytes[p] > 0));
        if (lease->parts[p]) port_hash_add(&hash, lease->parts[p], record.part_bytes[p]);
    }
    NEED(port_hash_end(&hash) == record.hash);
}

static void settle_set(struct run *r, uint32_t i, struct base_rng *rng)
{
    struct tier_lease *leases = r->leases[i];
    uint32_t n = r->counts[i];
    if (base_rng_below(rng, 2)) {
        while (tier_wait(r->tier, leases, n, TIER_WAIT_ANY, UINT64_MAX) < n) {
            for (uint32_t j = 0; j < n; j++) {
                if (leases[j].status == 0) check_lease(&leases[j]);
            }
            if (tier_wait(r->tier, leases, n, TIER_WAIT_ALL, UINT64_MAX) == n) break;
        }
    } else {
        NEED(tier_wait(r->tier, leases, n, TIER_WAIT_ALL, UINT64_MAX) == n);
    }
    for (uint32_t j = 0; j < n; j++) {
        NEED(leases[j].status != -EINPROGRESS);
        if (leases[j].status == 0) check_lease(&leases[j]);
    }
}

static void release_set(struct run *r, uint32_t i)
{
    for (uint32_t j = 0; j < r->counts[i]; j++) {
        if (r->leases[i][j].status == 0) check_lease(&r->leases[i][j]);
    }
    tier_release(r->tier, r->leases[i], r->counts[i]);
    r->lease_sets--;
    memcpy(r->leases[i], r->leases[r->lease_sets], sizeof r->leases[i]);
    r->counts[i] = r->counts[r->lease_sets];
}

static void acquire(struct run *r, struct base_rng *rng)
{
    uint32_t layer = (uint32_t)base_rng_below(rng, LAYERS), ids[EXPERTS];
    bool prefill = base_rng_below(rng, 4) == 0;
    uint32_t n = 1 + (uint32_t)base_rng_below(rng, prefill ? EXPERTS : TOP_K);
    for (uint32_t i = 0; i < EXPERTS; i++) ids[i] = i;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = i + (uint32_t)base_rng_below(rng, EXPERTS - i), id = ids[i];
        ids[i] = ids[j];
        ids[j] = id;
    }
    struct tier_lease *leases = r->leases[r->lease_sets];
    uint32_t k = tier_acquire(r->tier, layer, ids, n, prefill ? TIER_PREFILL : TIER_DECODE, leases);
    NEED(k <= n);
    NEED(k > 0 || r->lease_sets > 0);
    for (uint32_t i = 0; i < k; i++) {
        NEED(leases[i].layer == layer && leases[i].expert == ids[i]);
        if (leases[i].status == 0) check_lease(&leases[i]);
    }
    if (k > 0) r->counts[r->lease_sets++] = k;
}

static void hint(struct run *r, struct base_rng *rng)
{
    struct tier_hint hints[4];
    for (int i = 0; i < 4; i++) {
        hints[i] = (struct tier_hint){
            .layer = (uint32_t)base_rng_below(rng, LAYERS),
            .expert = (uint32_t)base_rng_below(rng, EXPERTS),
            .probability = (float)base_rng_unit(rng),
            .distance = 1,
        };
    }
    tier_hint(r->tier, hints, 4);
}

/* Another size, policy, quotas, prefetch: taken, or refused with a sentence. */
static void reconfigure(struct run *r, struct base_rng *rng)
{
    static const char *const pairs[] = {
        "tiers.dram.capacity=25%", "tiers.dram.capacity=50%", "tiers.dram.capacity=100%",
        "tiers.dram.capacity=6%", "tiers.hbm.capacity=25%", "tiers.hbm.capacity=75%",
        "policy.eviction=lru", "policy.eviction=lfu", "policy.eviction=arc",
        "policy.eviction=lru_global", "policy.eviction=s3fifo", "policy.eviction_dram=slru",
        "policy.eviction_dram=same", "policy.quotas=equal", "policy.quotas=adaptive",
        "policy.quotas=3,1,2", "policy.prefill_share=10%", "policy.prefill_share=100%",
        "prefetch.inflight=64KiB", "prefetch.inflight=1MiB", "tiers.verify=always",
    };
    bool hbm = tier_decide_config_of(r->tier)->tier_count == 2;
    struct tier_config old = r->config;
    struct base_err err = { 0 };
    for (uint64_t n = 1 + base_rng_below(rng, 3); n > 0; n--) {
        const char *pair = pairs[base_rng_below(rng, sizeof pairs / sizeof pairs[0])];
        if (hbm || !strstr(pair, "hbm")) set(r, pair);
    }
    int rc = tier_reconfigure(r->tier, &r->config, &err);
    if (rc == 0) return;
    NEED((rc == BASE_EBUDGET || rc == BASE_ECONFIG) && err.text[0]);
    r->config = old;
}

/* Memory of slots that are not wanted any more is given back, and all of it. */
static void check_shrunk(struct run *r)
{
    struct tier_footprint f;
    struct tier_snapshot s;
    struct base_err err = { 0 };
    while (tier_shrink(r->tier)) tier_poll(r->tier);
    for (int ms = 0; ms < 5000; ms++) {
        tier_poll(r->tier);
        tier_step_end(r->tier);
        tier_snapshot(r->tier, &s);
        NEED(tier_footprint(&r->config, store, TOP_K, &f, &err) == 0);
        bool done = true;
        for (uint32_t t = 0; t < s.tier_count; t++) {
            done &= s.tiers[t].slots == f.slots[t] + f.spare_slots[t];
            NEED(s.tiers[t].slots >= f.slots[t] + f.spare_slots[t]);
            NEED(s.tiers[t].capacity_bytes == s.tiers[t].slots * f.slot_bytes[t]);
        }
        if (done) return;
        struct timespec pause = { .tv_nsec = 1000000 };
        nanosleep(&pause, NULL);
    }
    ck_abort_msg("slots are not given back, seed %d", seed);
}

static void drive(struct run *r, struct base_rng *rng, unsigned steps)
{
    for (unsigned s = 0; s < steps; s++) {
        switch (base_rng_below(rng, 8)) {
        case 0:
        case 1:
            hint(r, rng);
            break;
        case 2:
            tier_poll(r->tier);
            break;
        case 3:
            tier_step_end(r->tier);
            if (r->changes && base_rng_below(rng, 3) == 0) reconfigure(r, rng);
            break;
        default:
            acquire(r, rng);
            while (r->lease_sets > 0 && (r->lease_sets == 8 || base_rng_below(rng, 3))) {
                uint32_t i = (uint32_t)base_rng_below(rng, r->lease_sets);
                /* One in four is given back while it may still be on its way. */
                if (base_rng_below(rng, 4)) settle_set(r, i, rng);
                release_set(r, i);
            }
        }
    }
    while (r->lease_sets > 0) {
        settle_set(r, 0, rng);
        release_set(r, 0);
    }
    tier_step_end(r->tier);
}

/* Lookups that were not hits are timed once each, if they were waited for, and none longer than a
 * test may run: a difference below 0 would be. */
static void compare_times(struct run *r, const struct tier_snapshot *s)
{
    uint64_t timed = 0;
    struct base_hist found;
    for (uint32_t t = 1; t <= s->tier_count; t++) {
        tier_lookup_latency(r->tier, t, &found);
        timed += found.count;
        NEED(found.count == 0 || found.max < UINT64_C(600000000000));
    }
    NEED(timed <= s->tiers[0].lookups - s->tiers[0].hits);
    /* What leaves hbm is copied down or dropped, or was not there yet. */
    NEED(s->io.copies_down + s->io.demotions_dropped <= s->tiers[0].evictions);
    NEED(timed > 0);
    double most = s->io.read_busy_seconds, both = s->io.transfer_busy_seconds;
    if (s->io.copy_busy_seconds > most) most = s->io.copy_busy_seconds;
    NEED(both >= most);
    NEED(s->io.overlap_ratio >= 0 && s->io.overlap_ratio <= 1);
}

static void compare_counts(struct run *r)
{
    struct tier_snapshot s;
    struct tier_layer_stats layers[LAYERS];
    uint64_t lookups[LAYERS * EXPERTS], all = 0, by_layer = 0, by_expert = 0;
    uint8_t resident[LAYERS * EXPERTS];
    tier_snapshot(r->tier, &s);
    for (uint32_t t = s.tier_count; t-- > 0;) {
        const struct tier_tier_metrics *m = &s.tiers[t];
        all = 0;
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            NEED(memcmp(&s.cells[t][c], tier_decide_counts(r->twin, t, c), sizeof s.cells[t][c]) ==
                 0);
            all += s.cells[t][c].lookups;
        }
        NEED(m->lookups == all);
        NEED(m->hits + m->late + m->misses == all);
        NEED(m->leased_slots == 0);
        NEED(m->resident_slots == tier_decide_resident_count(r->twin, t));
    }
    NEED(tier_snapshot_layers(r->tier, layers, LAYERS - 1) == -ERANGE);
    NEED(tier_snapshot_layers(r->tier, layers, LAYERS) == 0);
    NEED(tier_snapshot_experts(r->tier, lookups, resident, LAYERS * EXPERTS) == 0);
    for (unsigned l = 0; l < LAYERS; l++) by_layer += layers[l].lookups;
    for (unsigned k = 0; k < LAYERS * EXPERTS; k++) {
        by_expert += lookups[k];
        for (uint32_t t = 0; t < s.tier_count; t++) {
            bool here = tier_decide_resident(r->twin, t, k / EXPERTS, k % EXPERTS);
            NEED((resident[k] >> t & 1) == here);
        }
    }
    NEED(by_layer == all && by_expert == all);
    compare_times(r, &s);
}

START_TEST(right_bytes_and_the_cores_counts)
{
    static struct run r;
    static const char *const capacities[] = { "25%", "40%", "75%", "100%" };
    static const char *const policies[] = { "lru", "lru_global", "lfu", "lru_with_frequency", "arc",
                                            "lru_with_prediction", "slru", "s3fifo", "sieve" };
    static const char *const backends[] = { "io_uring", "threads", "sim", "sim" };
    struct base_rng rng;
    char pair[128];
    seed = _i;
    base_rng_init(&rng, (uint64_t)seed);
    defaults(&r);
    snprintf(pair, sizeof pair, "tiers.dram.capacity=%s", capacities[base_rng_below(&rng, 4)]);
    set(&r, pair);
    const char *backend = backends[base_rng_below(&rng, 4)];
    struct tier_io *probe;
    snprintf(pair, sizeof pair, "io.backend=%s", backend);
    set(&r, pair);
    if (tier_io_create(&probe, &r.io, base_clock_real(), NULL) < 0) {
        set(&r, "io.backend=threads");
    } else {
        tier_io_destroy(probe);
    }
    set(&r, "io.sim_latency=20us");
    snprintf(pair, sizeof pair, "io.sim_seed=%d", seed);
    set(&r, pair);
    snprintf(pair, sizeof pair, "io.depth=%d", 1 << base_rng_below(&rng, 6));
    set(&r, pair);
    const char *policy = policies[base_rng_below(&rng, 9)];
    snprintf(pair, sizeof pair, "policy.eviction=%s", policy);
    set(&r, pair);
    set(&r, base_rng_below(&rng, 4) ? "prefetch.enabled=auto" : "prefetch.enabled=false");
    set(&r, base_rng_below(&rng, 2) ? "prefetch.governor=auto" : "prefetch.governor=fixed");
    set(&r, base_rng_below(&rng, 2) ? "prefetch.probability_min=0%"
                                    : "prefetch.probability_min=40%");
    set(&r, base_rng_below(&rng, 2) ? "prefetch.inflight=64KiB" : "prefetch.inflight=1MiB");
    set(&r,
        base_rng_below(&rng, 2) ? "prefetch.bandwidth_share=100%" : "prefetch.bandwidth_share=20%");
    set(&r, base_rng_below(&rng, 2) ? "tiers.verify=always" : "tiers.verify=first");
    if (base_rng_below(&rng, 3)) {
        bool inclusive = base_rng_below(&rng, 2);
        set(&r, inclusive ? "tiers.inclusion=inclusive" : "tiers.inclusion=exclusive");
        /* All of hbm must fit into dram, in every layer, when that keeps it too. */
        set(&r, base_rng_below(&rng, 2) || inclusive ? "tiers.hbm.capacity=25%"
                                                     : "tiers.hbm.capacity=50%");
        set(&r, base_rng_below(&rng, 4) ? "tiers.hbm.device=sim" : "tiers.hbm.device=host");
        set(&r, base_rng_below(&rng, 2) ? "tiers.hbm.sim_bandwidth=0"
                                        : "tiers.hbm.sim_bandwidth=100MiB");
        set(&r, base_rng_below(&rng, 2) ? "tiers.warm_experts=copy" : "tiers.warm_experts=compute");
        if (seed % 6 == 0) set(&r, "tiers.hbm.sim_faults=2%");
    }
    if (seed % 3 == 0) {
        snprintf(pair, sizeof pair, "io.faults=seed=%d,eio=0.01,flip=0.01,short=0.01", seed);
        set(&r, pair);
        set(&r, "tiers.verify=always");
    }
    r.changes = seed % 4 > 0;
    open_run(&r);
    drive(&r, &rng, 400);
    compare_counts(&r);
    check_shrunk(&r);
    close_run(&r);
}
END_TEST

/* -- single rules ----------------------------------------------------------------------------- */

START_TEST(budgets_are_refused_with_the_arithmetic)
{
    static struct run r;
    struct tier_footprint f;
    struct base_err err = { 0 };
    defaults(&r);
    set(&r, "tiers.dram.capacity=10%");         /* 2 of 16 experts a layer, top-4 */
    ck_assert_int_eq(tier_footprint(&r.config, store, TOP_K, &f, &err), BASE_EBUDGET);
    ck_assert_ptr_nonnull(strstr(err.text, "3 layers x top_k 4 = 12"));
    for (uint64_t slots = 0; slots < 60; slots++) {
        char pair[64];
        uint64_t bytes = slots * tier_store_slot_bytes(store) + 4095;
        snprintf(pair, sizeof pair, "tiers.dram.capacity=%llu", (unsigned long long)bytes);
        set(&r, pair);
        err = (struct base_err){ 0 };
        int rc = tier_footprint(&r.config, store, TOP_K, &f, &err);
        ck_assert_int_eq(rc, slots >= 12 + f.spare_slots[0] ? 0 : BASE_EBUDGET);
        if (rc == 0) ck_assert_uint_le(f.slots_bytes[0], bytes);
        if (rc == 0) ck_assert_uint_le(f.slots[0], LAYERS * EXPERTS);
    }
    set(&r, "tiers.dram.capacity=many");
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_footprint(&r.config, store, TOP_K, &f, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "\"many\""));
}
END_TEST

START_TEST(settings_without_effect_are_refused)
{
    static struct run r;
    struct tier *tier;
    struct base_err err = { 0 };
    defaults(&r);
    set(&r, "policy.eviction=lru");
    set(&r, "policy.half_life=40");
    struct tier_open_args args = {
        .config = &r.config, .io = &r.io, .store = store, .top_k = TOP_K,
    };
    ck_assert_int_eq(tier_open(&tier, &args, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "policy.half_life: 40 has no effect"));
    set(&r, "policy.eviction=lfu");
    ck_assert_int_eq(tier_open(&tier, &args, NULL), 0);
    tier_close(tier);
    set(&r, "policy.half_life=16");
    set(&r, "policy.eviction=pinned");
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_open(&tier, &args, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "pinned has no effect without tiers.warm.path"));
    set(&r, "policy.eviction=lfu");
    /* 16 experts a layer, top-4: prefetch of 8 wants 12 slots a layer. */
    static struct tier_snapshot s;
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "prefetch.enabled=true");
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_open(&tier, &args, &err), BASE_EBUDGET);
    ck_assert_ptr_nonnull(strstr(err.text, "need 12 slots, and there are 8"));
    set(&r, "prefetch.enabled=auto");
    ck_assert_int_eq(tier_open(&tier, &args, NULL), 0);
    tier_snapshot(tier, &s);
    ck_assert(s.prefetch_degraded && s.io.prefetch_on == 0);   /* until a probe */
    ck_assert_ptr_nonnull(strstr(s.prefetch_note, "up to 4 experts a layer"));
    tier_close(tier);
    set(&r, "tiers.dram.capacity=25%");
    ck_assert_int_eq(tier_open(&tier, &args, NULL), 0);
    tier_snapshot(tier, &s);
    ck_assert(s.prefetch_degraded && s.io.prefetch_on == 0);
    tier_close(tier);
}
END_TEST

/* At start and while it runs; what prefetch may take is nobody's business while it is off. */
START_TEST(no_bandwidth_for_prefetch_is_refused)
{
    static struct run r;
    struct tier *tier;
    struct base_err err = { 0 };
    defaults(&r);
    set(&r, "tiers.dram.capacity=50%");
    struct tier_open_args args = {
        .config = &r.config, .io = &r.io, .store = store, .top_k = TOP_K,
    };
    for (int live = 0; live < 2; live++) {
        set(&r, live ? "prefetch.bandwidth_share=30%" : "prefetch.bandwidth_share=0%");
        int rc = tier_open(&tier, &args, &err);
        ck_assert_int_eq(rc, live ? 0 : BASE_ECONFIG);
        set(&r, "prefetch.bandwidth_share=0%");
        if (live) ck_assert_int_eq(tier_reconfigure(tier, &r.config, &err), BASE_ECONFIG);
        ck_assert_ptr_nonnull(strstr(err.text, "prefetch.bandwidth_share: 0% leaves nothing"));
        err = (struct base_err){ 0 };
    }
    ck_assert_double_gt(tier->config.prefetch_share, 0.29);
    set(&r, "prefetch.enabled=false");
    ck_assert_int_eq(tier_reconfigure(tier, &r.config, &err), 0);
    /* On again it needs some. */
    set(&r, "prefetch.enabled=auto");
    ck_assert_int_eq(tier_reconfigure(tier, &r.config, &err), BASE_ECONFIG);
    tier_close(tier);
}
END_TEST

START_TEST(hits_wait_for_nothing)
{
    static struct run r;
    uint32_t ids[TOP_K] = { 3, 1, 9, 12 };
    struct tier_lease leases[TOP_K];
    struct tier_snapshot s;
    uint64_t waits[TIER_WAIT_CAUSE_COUNT];
    defaults(&r);
    set(&r, "tiers.dram.capacity=50%");
    open_run(&r);
    ck_assert_uint_eq(tier_acquire(r.tier, 1, ids, TOP_K, TIER_DECODE, leases), TOP_K);
    for (int i = 0; i < TOP_K; i++) ck_assert_int_eq(leases[i].status, -EINPROGRESS);
    ck_assert_uint_eq(tier_wait(r.tier, leases, TOP_K, TIER_WAIT_ALL, UINT64_MAX), TOP_K);
    tier_step_waits(r.tier, waits);
    ck_assert_uint_gt(waits[TIER_WAIT_DEMAND], 0);
    ck_assert_uint_eq(waits[TIER_WAIT_LATE] + waits[TIER_WAIT_COPY] + waits[TIER_WAIT_SLOT], 0);
    tier_release(r.tier, leases, TOP_K);
    tier_step_end(r.tier);
    ck_assert_uint_eq(tier_acquire(r.tier, 1, ids, TOP_K, TIER_DECODE, leases), TOP_K);
    for (int i = 0; i < TOP_K; i++) ck_assert_int_eq(leases[i].status, 0);
    ck_assert_uint_eq(tier_wait(r.tier, leases, TOP_K, TIER_WAIT_ALL, 0), TOP_K);
    tier_step_waits(r.tier, waits);
    ck_assert_uint_eq(waits[TIER_WAIT_DEMAND], 0);
    tier_release(r.tier, leases, TOP_K);
    tier_step_end(r.tier);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_eq(s.tiers[0].hits, TOP_K);
    ck_assert_uint_eq(s.tiers[0].misses, TOP_K);
    ck_assert_uint_eq(s.io.demand_reads, TOP_K);
    ck_assert_uint_eq(s.steps, 2);
    /* Each miss was timed from its lookup on, and this first acquire of hits. */
    struct base_hist hits, misses;
    tier_lookup_latency(r.tier, 0, &hits);
    tier_lookup_latency(r.tier, 1, &misses);
    ck_assert_uint_eq(hits.count, 1);
    ck_assert_uint_eq(misses.count, TOP_K);
    ck_assert_uint_gt(misses.min, 0);
    /* Reads were under way at least as long as somebody waited, checks included. */
    ck_assert(s.io.transfer_busy_seconds >= s.io.read_busy_seconds);
    ck_assert(s.io.read_busy_seconds > 0 && s.io.copy_busy_seconds == 0);
    ck_assert(s.io.overlap_ratio >= 0 && s.io.overlap_ratio < 1);
    close_run(&r);
}
END_TEST

/* What overlaps is counted once, and the time between two stretches not at all. */
START_TEST(time_under_way_is_a_union)
{
    struct tier_span span = { 0 };
    tier_span_begin(&span, 100);
    tier_span_begin(&span, 120);
    tier_span_seen(&span, 150);
    tier_span_seen(&span, 130);
    tier_span_end(&span);
    tier_span_end(&span);
    ck_assert_uint_eq(span.ns, 50);
    tier_span_begin(&span, 1000);
    tier_span_seen(&span, 1007);
    ck_assert_uint_eq(tier_span_ns(&span), 57);
    tier_span_end(&span);
    ck_assert_uint_eq(span.ns, 57);
    ck_assert_uint_eq(tier_span_ns(&span), 57);
}
END_TEST

/* Reads that ended while a copy is still under way are in what is told of both, too. */
START_TEST(time_of_one_kind_is_in_that_of_all)
{
    struct tier_span all = { 0 }, reads = { 0 };
    tier_span_begin(&all, 10);
    tier_span_begin(&reads, 20);
    tier_span_seen(&reads, 70);
    tier_span_seen(&all, 70);
    tier_span_end(&reads);
    ck_assert_uint_eq(tier_span_ns(&reads), 50);
    ck_assert_uint_eq(tier_span_ns(&all), 60);
}
END_TEST

/* A prefetch that has not arrived when it is asked for counts as late, is waited for as such, and
 * is not read twice. */
START_TEST(late_prefetch_becomes_demand)
{
    static struct run r;
    struct tier_lease lease;
    struct tier_snapshot s;
    uint64_t waits[TIER_WAIT_CAUSE_COUNT];
    uint32_t id = 5;
    defaults(&r);
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.sim_latency=20ms");
    set(&r, "prefetch.governor=fixed");
    open_run(&r);
    struct tier_hint h = { .layer = 2, .expert = id, .probability = 0.9f, .distance = 1 };
    ck_assert_uint_eq(tier_hint(r.tier, &h, 1), 1);
    ck_assert_uint_eq(tier_acquire(r.tier, 2, &id, 1, TIER_DECODE, &lease), 1);
    ck_assert_int_eq(lease.status, -EINPROGRESS);
    ck_assert_uint_eq(tier_wait(r.tier, &lease, 1, TIER_WAIT_ANY, 1), 0);   /* long past */
    ck_assert_uint_eq(tier_wait(r.tier, &lease, 1, TIER_WAIT_ANY, UINT64_MAX), 1);
    check_lease(&lease);
    tier_step_waits(r.tier, waits);
    ck_assert_uint_gt(waits[TIER_WAIT_LATE], 0);
    ck_assert_uint_eq(waits[TIER_WAIT_DEMAND], 0);
    tier_release(r.tier, &lease, 1);
    tier_step_end(r.tier);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_eq(s.tiers[0].late, 1);
    ck_assert_uint_eq(s.io.prefetch_reads, 1);
    ck_assert_uint_eq(s.io.demand_reads, 0);
    close_run(&r);
}
END_TEST

static void take_and_leave(struct run *r, uint32_t layer, uint32_t first)
{
    struct tier_lease leases[TOP_K];
    uint32_t ids[TOP_K] = { first, first + 1, first + 2, first + 3 };
    ck_assert_uint_eq(tier_acquire(r->tier, layer, ids, TOP_K, TIER_DECODE, leases), TOP_K);
    tier_release(r->tier, leases, TOP_K);
}

/* A prefetch that was evicted before its read began, and is asked for before it does, passes those
 * in front of it like any other that is asked for, and its time is time that somebody waits. */
START_TEST(evicted_prefetch_becomes_demand)
{
    static struct run r;
    struct tier_lease lease, other;
    uint64_t waits[TIER_WAIT_CAUSE_COUNT];
    const uint32_t id = 15, before = 2;
    struct tier_hint h[] = {
        { .layer = 2, .expert = 0, .probability = 0.9f, .distance = 1 },
        { .layer = 2, .expert = 1, .probability = 0.9f, .distance = 1 },
        { .layer = 2, .expert = before, .probability = 0.9f, .distance = 1 },
        { .layer = 1, .expert = id, .probability = 0.9f, .distance = 1 },
    };
    defaults(&r);
    set(&r, "policy.eviction=lru");
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=threads");
    set(&r, "io.depth=128");
    set(&r, "io.throttle_bandwidth=1MiB");
    set(&r, "prefetch.governor=fixed");
    open_run(&r);
    ck_assert_uint_eq(tier_hint(r.tier, h, 4), 4);
    /* 8 slots a layer. */
    take_and_leave(&r, 1, 0);
    take_and_leave(&r, 1, 4);
    ck_assert(!tier_decide_resident(r.twin, 0, 1, id));
    uint32_t asked = r.tier->cache.asked_reads;
    ck_assert_uint_eq(tier_acquire(r.tier, 1, &id, 1, TIER_DECODE, &lease), 1);
    ck_assert_int_eq(lease.status, -EINPROGRESS);
    /* It and not the one that left for it. */
    ck_assert_uint_eq(r.tier->cache.asked_reads, asked);
    ck_assert_uint_eq(tier_wait(r.tier, &lease, 1, TIER_WAIT_ANY, UINT64_MAX), 1);
    check_lease(&lease);
    tier_step_waits(r.tier, waits);
    ck_assert_uint_gt(waits[TIER_WAIT_DEMAND], 0);
    ck_assert_uint_eq(waits[TIER_WAIT_LATE], 0);
    ck_assert_uint_eq(tier_acquire(r.tier, 2, &before, 1, TIER_DECODE, &other), 1);
    ck_assert_int_eq(other.status, -EINPROGRESS);
    ck_assert_uint_eq(tier_wait(r.tier, &other, 1, TIER_WAIT_ANY, UINT64_MAX), 1);
    check_lease(&other);
    tier_release(r.tier, &other, 1);
    tier_release(r.tier, &lease, 1);
    tier_step_end(r.tier);
    close_run(&r);
}
END_TEST

/* The first wave of a layer leaves alone what is read ahead for its later ones. */
START_TEST(waves_keep_their_prefetches)
{
    static struct run r;
    uint32_t wave[] = { 8, 9, 10, 11, 1, 2 }, n = 6, id = 0;
    struct tier_lease leases[6];
    struct tier_hint h[3];
    defaults(&r);
    set(&r, "policy.eviction=lru");
    set(&r, "policy.prefill_share=25%");
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.sim_latency=2ms");
    set(&r, "io.depth=2");
    set(&r, "prefetch.governor=fixed");
    open_run(&r);
    const struct tier_cache *cache = &r.tier->cache;
    /* 8 slots a layer: 5 that decode used, and 3 ahead, of which the disk takes one at a time. */
    for (id = 3; id < 8; id++) {
        ck_assert_uint_eq(tier_acquire(r.tier, 2, &id, 1, TIER_DECODE, leases), 1);
        tier_wait(r.tier, leases, 1, TIER_WAIT_ALL, UINT64_MAX);
        tier_release(r.tier, leases, 1);
    }
    for (uint32_t i = 0; i < 3; i++) h[i] = (struct tier_hint){ 2, i, 0.8f, 1 };
    ck_assert_uint_eq(tier_hint(r.tier, h, 3), 3);
    uint32_t k = tier_acquire(r.tier, 2, wave, n, TIER_PREFILL, leases);
    ck_assert_uint_eq(k, 2);
    ck_assert_uint_eq(cache->stats.prefetch_cancelled, 0);
    for (id = 1; id < 3; id++) ck_assert(tier_cache_has(cache, 2 * EXPERTS + id));
    tier_wait(r.tier, leases, k, TIER_WAIT_ALL, UINT64_MAX);
    tier_release(r.tier, leases, k);
    ck_assert_uint_eq(tier_acquire(r.tier, 2, wave + k, n - k, TIER_PREFILL, leases), n - k);
    tier_wait(r.tier, leases, n - k, TIER_WAIT_ALL, UINT64_MAX);
    for (uint32_t i = 0; i < n - k; i++) check_lease(&leases[i]);
    tier_release(r.tier, leases, n - k);
    ck_assert_uint_eq(cache->stats.prefetch_cancelled, 0);
    close_run(&r);
}
END_TEST

/* All slots are taken, and one that is asked for waits in line. Into the slot that it gets, when a
 * prefetch is cancelled or when leases end that held more than their layer has, it is read at
 * once. */
START_TEST(who_gets_a_slot_is_read_at_once)
{
    static struct run r;
    struct tier_lease held[2 * TOP_K], lease;
    struct tier_record record;
    struct base_err err = { 0 };
    const uint32_t first = 0, waits = 9;
    uint32_t spare[LAYERS * EXPERTS], spares = 0, n = 1;
    defaults(&r);
    /* The disk takes two at a time, one of them ahead. */
    tier_store_record(store, 0, first, &record);
    tier_settings_set(&r.config, &r.io, "io.depth=%u", (unsigned)(2 * record.extent_count));
    set(&r, "policy.eviction=lru");
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.sim_latency=10ms");
    set(&r, "prefetch.governor=fixed");
    open_run(&r);
    struct tier_cache *cache = &r.tier->cache;
    if (_i == 0) {
        for (uint32_t i = 0; i < 3; i++) {
            struct tier_hint h = { 0, i, 0.8f, 1 };
            ck_assert_uint_eq(tier_hint(r.tier, &h, 1), 1);
        }
    } else {
        n = 2 * TOP_K;
        for (uint32_t i = 0; i < n; i++) {
            ck_assert_uint_eq(tier_acquire(r.tier, 0, &i, 1, TIER_DECODE, &held[i]), 1);
            tier_wait(r.tier, &held[i], 1, TIER_WAIT_ALL, UINT64_MAX);
        }
        set(&r, "tiers.dram.capacity=25%");
        ck_assert_int_eq(tier_reconfigure(r.tier, &r.config, &err), 0);
    }
    while (cache->dram.slots.free_count > 0) {
        spare[spares++] = tier_slots_take(&cache->dram.slots, 0);
    }
    ck_assert_uint_eq(tier_acquire(r.tier, 1, &waits, 1, TIER_DECODE, &lease), 1);
    ck_assert(cache->flags[EXPERTS + waits] & TIER_KEY_IN_LINE);
    if (_i == 0) {
        ck_assert_uint_eq(tier_acquire(r.tier, 0, &first, 1, TIER_DECODE, held), 1);
        ck_assert_uint_gt(cache->stats.prefetch_cancelled, 0);
    } else {
        tier_release(r.tier, held, n);
    }
    uint32_t slot = cache->dram.slot_of[EXPERTS + waits];
    ck_assert(slot != TIER_NO_SLOT && cache->dram.slots.at[slot].state == TIER_SLOT_READING);
    while (spares > 0) tier_slots_give(&cache->dram.slots, spare[--spares]);
    if (_i == 0) tier_release(r.tier, held, n);
    tier_wait(r.tier, &lease, 1, TIER_WAIT_ALL, UINT64_MAX);
    check_lease(&lease);
    tier_release(r.tier, &lease, 1);
    close_run(&r);
}
END_TEST

/* A stretch of reads that has not ended counts with what came back of it: else the disk would look
 * as fast as it likes. */
START_TEST(the_disk_is_measured_while_it_reads)
{
    static struct run r;
    struct base_clock_virtual clock;
    uint32_t ids[TOP_K] = { 3, 1, 9, 12 };
    struct tier_lease leases[TOP_K];
    defaults(&r);
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.sim_bandwidth=1MiB");
    set(&r, "prefetch.bandwidth_share=100%");
    base_clock_virtual_init(&clock, 1000);
    r.clock = &clock.clock;
    open_run(&r);
    const struct tier_cache *cache = &r.tier->cache;
    struct tier_governor *g = &r.tier->governor;
    ck_assert_uint_eq(tier_acquire(r.tier, 1, ids, TOP_K, TIER_DECODE, leases), TOP_K);
    while (cache->taken_in == 0) tier_wait(r.tier, leases, TOP_K, TIER_WAIT_ANY, UINT64_MAX);
    ck_assert(cache->reads.open && cache->reads.ns == 0);
    double rate = (double)cache->read_bytes / (double)tier_span_ns(&cache->reads);
    ck_assert_double_lt(rate * 1e9, 1.01 * (1 << 20));
    /* Credit for the time that passed, not all there can be. */
    r.tier->credit_ns = clock.time_ns;
    g->credit = 0;
    clock.time_ns += 100000;
    tier_hint(r.tier, NULL, 0);
    ck_assert_double_eq_tol(g->credit, rate * 100000, 1);
    tier_step_end(r.tier);
    ck_assert_double_eq_tol(g->pace[0].fetch_ns, (double)r.tier->expert_bytes / rate, 1);
    tier_wait(r.tier, leases, TOP_K, TIER_WAIT_ALL, UINT64_MAX);
    tier_release(r.tier, leases, TOP_K);
    close_run(&r);
}
END_TEST

/* Prefetch that is switched on learns from the steps that follow, not from all those before it. */
START_TEST(what_was_before_prefetch_is_not_its_pace)
{
    static struct run r;
    struct base_clock_virtual clock;
    struct base_err err = { 0 };
    defaults(&r);
    set(&r, "policy.eviction=lru");
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.sim_latency=100us");
    set(&r, "prefetch.enabled=false");
    base_clock_virtual_init(&clock, 1000);
    r.clock = &clock.clock;
    open_run(&r);
    for (uint32_t step = 0; step < 20; step++) {
        if (step == 19) {
            set(&r, "prefetch.enabled=auto");
            ck_assert_int_eq(tier_reconfigure(r.tier, &r.config, &err), 0);
        }
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            struct tier_lease lease;
            uint32_t id = step % EXPERTS;
            ck_assert_uint_eq(tier_acquire(r.tier, layer, &id, 1, TIER_DECODE, &lease), 1);
            tier_wait(r.tier, &lease, 1, TIER_WAIT_ALL, UINT64_MAX);
            clock.time_ns += 1000;
            tier_release(r.tier, &lease, 1);
        }
        tier_step_end(r.tier);
        clock.time_ns += 1000000000;            /* nobody asks for anything */
    }
    const struct tier_governor *g = &r.tier->governor;
    ck_assert_double_gt(g->pace[0].fetch_ns, 0);
    ck_assert_msg(g->pace[0].idle_ns < 10000, "%.0f ns", g->pace[0].idle_ns);
    ck_assert_uint_eq(g->window.lookups, 0);    /* the first steps of a window settle */
    ck_assert_uint_eq(g->window.demand_bytes, LAYERS * r.tier->expert_bytes);
    close_run(&r);
}
END_TEST

/* Makes experts of layer 0 resident in a tier with no byte of them there, as after a demotion that
 * was dropped. */
static void decide_only(struct run *r, uint32_t tier, uint32_t first, uint32_t n)
{
    for (uint32_t id = first; id < first + n; id++) {
        ck_assert_uint_eq(tier_decide_restore(r->tier->decide, tier, 0, &id, NULL, 1), 1);
        tier_carry_out(r->tier, false, false);
        tier_observe(r->tier, &(struct tier_event){ .kind = TIER_EVENT_RESTORE, .tier = tier,
                                                    .count = 1, .ids = &id });
    }
}

/* What the core has in dram and dram has not is read, not copied: that keeps to what prefetch may
 * have under way. */
START_TEST(a_lost_demotion_is_read_ahead_within_bounds)
{
    static struct run r;
    struct tier_hint h[3];
    defaults(&r);
    set(&r, "tiers.hbm.capacity=50%");
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.sim_latency=20ms");
    set(&r, "prefetch.governor=fixed");
    set(&r, "prefetch.inflight=1");
    open_run(&r);
    for (uint32_t i = 0; i < 3; i++) h[i] = (struct tier_hint){ 0, i, 0.8f, 1 };
    decide_only(&r, 1, 0, 3);
    ck_assert_uint_eq(r.tier->cache.prefetch_open_max, 1);
    ck_assert_uint_eq(tier_hint(r.tier, h, 3), 1);
    ck_assert_uint_eq(r.tier->cache.prefetch_open, 1);
    close_run(&r);
}
END_TEST

/* A prefetch that was cancelled before it began leaves its expert resident without a byte. The next
 * hint for it is read ahead like any other. */
START_TEST(a_cancelled_prefetch_is_read_again)
{
    static struct run r;
    struct tier_lease lease;
    uint32_t id = 0;
    defaults(&r);
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.depth=4");
    set(&r, "prefetch.governor=fixed");
    if (_i == 1) set(&r, "tiers.hbm.capacity=50%");
    open_run(&r);
    const struct tier_cache *cache = &r.tier->cache;
    struct tier_hint h[3];
    for (uint32_t i = 0; i < 3; i++) h[i] = (struct tier_hint){ 0, i, 0.7f, 1 };
    ck_assert_uint_eq(tier_hint(r.tier, h, 3), 3);
    ck_assert_uint_eq(tier_acquire(r.tier, 0, &id, 1, TIER_DECODE, &lease), 1);
    ck_assert_uint_gt(cache->stats.prefetch_cancelled, 0);
    tier_wait(r.tier, &lease, 1, TIER_WAIT_ALL, UINT64_MAX);
    tier_release(r.tier, &lease, 1);
    id = 2;
    ck_assert(tier_decide_resident(r.twin, 0, 0, id) && !tier_cache_has(cache, id));
    ck_assert_uint_eq(tier_hint(r.tier, &h[id], 1), 0);     /* admitted it was before */
    ck_assert(tier_cache_has(cache, id));
    while (!tier_cache_ready(cache, id)) tier_poll(r.tier);
    ck_assert_uint_eq(tier_acquire(r.tier, 0, &id, 1, TIER_DECODE, &lease), 1);
    ck_assert_int_eq(lease.status, 0);
    check_lease(&lease);
    ck_assert_uint_eq(cache->stats.demand_reads, 0);
    ck_assert_uint_gt(cache->stats.prefetch_useful, 0);
    tier_release(r.tier, &lease, 1);
    close_run(&r);
}
END_TEST

/* The same of what a warm start has not come to, as far as prefetch may; the same hint again is
 * taken up when it may. */
START_TEST(what_is_not_restored_yet_is_read_ahead)
{
    static struct run r;
    struct tier_hint h[2] = { { 0, 0, 0.6f, 1 }, { 0, 1, 0.7f, 1 } };
    defaults(&r);
    set(&r, "tiers.dram.capacity=50%");
    set(&r, "io.backend=sim");
    set(&r, "io.sim_latency=10ms");
    set(&r, "prefetch.governor=fixed");
    set(&r, "prefetch.inflight=1");
    open_run(&r);
    const struct tier_cache *cache = &r.tier->cache;
    decide_only(&r, 0, 0, 1);
    /* In order of worth, resident or not. */
    ck_assert_uint_eq(tier_hint(r.tier, (struct tier_hint[]){ h[1], h[0] }, 2), 1);
    ck_assert(tier_cache_has(cache, 1) && !tier_cache_has(cache, 0));
    ck_assert_uint_eq(r.tier->prefetch_refused, 1);
    while (!tier_cache_ready(cache, 1)) tier_poll(r.tier);
    uint64_t events = r.events;
    ck_assert_uint_eq(tier_hint(r.tier, h, 1), 0);
    ck_assert(tier_cache_has(cache, 0));
    ck_assert_uint_eq(r.events, events);
    ck_assert_uint_eq(cache->prefetch_open, 1);
    close_run(&r);
}
END_TEST

/* Three tiers: what hbm drops is found in dram, and goes up again without a read. */
START_TEST(hbm_over_dram)
{
    static struct run r;
    uint32_t ids[2 * TOP_K] = { 0, 1, 2, 3, 4, 5, 6, 7 };
    struct tier_lease leases[TOP_K];
    struct tier_snapshot s;
    uint64_t waits[TIER_WAIT_CAUSE_COUNT];
    defaults(&r);
    set(&r, "tiers.hbm.capacity=25%");
    set(&r, "tiers.hbm.sim_bandwidth=10MiB");
    open_run(&r);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_eq(s.tier_count, 2);
    ck_assert_str_eq(s.tier_names[0], "hbm");
    ck_assert_str_eq(s.tier_names[1], "dram");
    ck_assert_str_eq(s.tier_names[2], "nvme");
    for (int i = 0; i < 3; i++) {
        uint32_t *four = &ids[i % 2 * TOP_K];
        ck_assert_uint_eq(tier_acquire(r.tier, 1, four, TOP_K, TIER_DECODE, leases), TOP_K);
        ck_assert_uint_eq(tier_wait(r.tier, leases, TOP_K, TIER_WAIT_ALL, UINT64_MAX), TOP_K);
        for (int j = 0; j < TOP_K; j++) check_lease(&leases[j]);
        tier_release(r.tier, leases, TOP_K);
    }
    tier_step_waits(r.tier, waits);
    ck_assert_uint_gt(waits[TIER_WAIT_COPY] + waits[TIER_WAIT_SLOT], 0);
    tier_step_end(r.tier);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_eq(s.tiers[0].misses, 3 * TOP_K);
    ck_assert_uint_eq(s.tiers[1].hits, TOP_K);
    ck_assert_uint_eq(s.tiers[1].misses, 2 * TOP_K);
    ck_assert_uint_eq(s.io.demand_reads, 2 * TOP_K);
    /* Asked for while it is still on its way down, an expert need not be copied up again. */
    ck_assert_uint_ge(s.io.copies_up, 2 * TOP_K);
    ck_assert_uint_le(s.io.copies_up, 3 * TOP_K);
    ck_assert_uint_eq(s.io.demotions_dropped, 0);
    ck_assert_uint_eq(s.tiers[0].resident_slots, TOP_K);
    ck_assert_uint_eq(s.tiers[1].resident_slots, TOP_K);
    ck_assert_ptr_nonnull(strstr(s.device_note, "simulated"));
    close_run(&r);
}
END_TEST

START_TEST(bad_expert_is_quarantined_and_named)
{
    static struct run r;
    uint32_t ids[TOP_K] = { 0, 1, 2, 3 };
    struct tier_lease leases[TOP_K];
    struct tier_snapshot s;
    char text[400];
    defaults(&r);
    set(&r, "io.backend=threads");
    set(&r, "io.faults=seed=1,eio=1");
    open_run(&r);
    ck_assert_uint_eq(tier_acquire(r.tier, 0, ids, TOP_K, TIER_DECODE, leases), TOP_K);
    ck_assert_uint_eq(tier_wait(r.tier, leases, TOP_K, TIER_WAIT_ALL, UINT64_MAX), TOP_K);
    for (int i = 0; i < TOP_K; i++) {
        ck_assert_int_eq(leases[i].status, BASE_EQUARANTINE);
        ck_assert_int_eq(tier_failure_text(r.tier, 0, ids[i], text, sizeof text), -EIO);
        ck_assert_ptr_nonnull(strstr(text, ".safetensors at byte"));
    }
    tier_release(r.tier, leases, TOP_K);
    /* Asked again it fails at once, costs no slot and no read. */
    ck_assert_uint_eq(tier_acquire(r.tier, 0, ids, TOP_K, TIER_DECODE, leases), TOP_K);
    for (int i = 0; i < TOP_K; i++) ck_assert_int_eq(leases[i].status, BASE_EQUARANTINE);
    tier_release(r.tier, leases, TOP_K);
    tier_step_end(r.tier);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_eq(s.io.quarantined, TOP_K);
    ck_assert_uint_eq(s.io.read_errors, 3 * TOP_K);
    ck_assert_uint_eq(s.io.demand_reads, TOP_K);
    ck_assert_uint_eq(s.tiers[0].resident_slots, 0);
    ck_assert_int_eq(tier_failure_text(r.tier, 0, 9, text, sizeof text), 0);
    close_run(&r);
}
END_TEST

/* Another thread reads the counters while the engine works: each copy is one moment's. */
static void *read_counters(void *context)
{
    struct run *r = context;
    struct tier_snapshot s;
    uint64_t lookups[LAYERS * EXPERTS], last = 0;
    uint8_t resident[LAYERS * EXPERTS];
    while (last < 300) {
        tier_snapshot(r->tier, &s);
        const struct tier_tier_metrics *m = &s.tiers[0];
        if (m->hits + m->late + m->misses != m->lookups || s.steps < last) return r;
        last = s.steps;
        tier_snapshot_experts(r->tier, lookups, resident, LAYERS * EXPERTS);
    }
    return NULL;
}

START_TEST(counters_are_consistent_for_other_threads)
{
    static struct run r;
    struct base_rng rng;
    pthread_t thread;
    void *failed;
    base_rng_init(&rng, 1);
    defaults(&r);
    open_run(&r);
    ck_assert_int_eq(pthread_create(&thread, NULL, read_counters, &r), 0);
    for (int step = 0; step < 300; step++) drive(&r, &rng, 4);
    ck_assert_int_eq(pthread_join(thread, &failed), 0);
    ck_assert_ptr_null(failed);
    close_run(&r);
}
END_TEST

START_TEST(steps_do_not_allocate)
{
    static struct run r;
    struct base_rng rng;
    base_rng_init(&rng, 4);
    defaults(&r);
    set(&r, "io.backend=sim");
    set(&r, "io.sim_latency=1us");
    open_run(&r);
    drive(&r, &rng, 50);
    size_t before = mallinfo2().uordblks;
    unsigned long chunks = mallinfo2().ordblks;
    drive(&r, &rng, 400);
    ck_assert_uint_eq(mallinfo2().uordblks, before);
    ck_assert_uint_eq(mallinfo2().ordblks, chunks);
    close_run(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering");
    TCase *rules = tcase_create("rules");
    tcase_add_unchecked_fixture(rules, setup, teardown);
    tcase_add_test(rules, budgets_are_refused_with_the_arithmetic);
    tcase_add_test(rules, settings_without_effect_are_refused);
    tcase_add_test(rules, no_bandwidth_for_prefetch_is_refused);
    tcase_add_test(rules, hits_wait_for_nothing);
    tcase_add_test(rules, time_under_way_is_a_union);
    tcase_add_test(rules, time_of_one_kind_is_in_that_of_all);
    tcase_add_test(rules, late_prefetch_becomes_demand);
    tcase_add_test(rules, evicted_prefetch_becomes_demand);
    tcase_add_test(rules, the_disk_is_measured_while_it_reads);
    tcase_add_test(rules, what_was_before_prefetch_is_not_its_pace);
    tcase_add_test(rules, waves_keep_their_prefetches);
    tcase_add_loop_test(rules, who_gets_a_slot_is_read_at_once, 0, 2);
    tcase_add_test(rules, a_lost_demotion_is_read_ahead_within_bounds);
    tcase_add_loop_test(rules, a_cancelled_prefetch_is_read_again, 0, 2);
    tcase_add_test(rules, what_is_not_restored_yet_is_read_ahead);
    tcase_add_test(rules, hbm_over_dram);
    tcase_add_test(rules, bad_expert_is_quarantined_and_named);
    tcase_add_test(rules, counters_are_consistent_for_other_threads);
    tcase_add_test(rules, steps_do_not_allocate);
    tcase_set_timeout(rules, 60);
    suite_add_tcase(suite, rules);
    TCase *random = tcase_create("random");
    tcase_add_unchecked_fixture(random, setup, teardown);
    tcase_add_loop_test(random, right_bytes_and_the_cores_counts, 1, 121);   /* _i is the seed */
    tcase_set_timeout(random, 60);
    suite_add_tcase(suite, random);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
