/* The virtual clock agrees with the real tiers on a simulated disk and device: hits, late ones,
 * bytes to the last, time closely; by hand on cases small enough; machine descriptions are read. */
#include "support.h"

#include "predictor/machine.h"
#include "predictor/timed.h"
#include "predictor/timed_priv.h"
#include "predictor/timed_run.h"
#include "tests/support/tier_settings.h"
#include "tests/support/tiny_store.h"

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 3, SEEDS = 24, TOKENS = 120 };

static char dir[3000];
static struct tier_store *store;

static void setup(void)
{
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    store = tiny_store_open(dir, sizeof dir, "check_timed", &options);
    support_begin();
}

static void teardown(void)
{
    support_end();
    tier_store_close(store);
    tiny_remove(dir);
}

/* -- both beside each other ------------------------------------------------------------------- */

struct pair {
    int seed;
    struct base_rng rng;
    bool hbm, hints, in_order, warm;
    struct tier_config config;
    struct tier_io_config io;
    struct base_clock_virtual clock;
    struct tier *tier;
    struct pred_machine machine;
    struct pred_timed *timed;
    uint64_t expert_bytes[LAYERS], read_bytes[LAYERS];
    uint64_t in_place;      /* leases of the real tiers that lay in dram */
    uint64_t before_ns, shared_ns, expert_ns, warm_ns, waits_ns[TIER_WAIT_CAUSE_COUNT];
};

#define SET(p, ...) tier_settings_set(&(p)->config, &(p)->io, __VA_ARGS__)

/* What one expert takes from disk on average: whole pages of each extent. */
static uint64_t read_bytes_of(uint32_t layer, uint32_t *reads)
{
    struct tier_record record;
    uint64_t bytes = 0;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        tier_store_record(store, layer, e, &record);
        for (uint32_t i = 0; i < record.extent_count; i++) {
            bytes += tier_extent_read(&record.extents[i]).bytes;
        }
        *reads = record.extent_count;
    }
    return bytes / EXPERTS;
}

static void pair_options(struct pair *p)
{
    static const char *const policies[] = { "lru", "lfu", "slru", "lru_with_frequency" };
    tier_settings_default(&p->config, &p->io);
    p->before_ns = 20000 + base_rng_below(&p->rng, 400000);
    p->shared_ns = base_rng_below(&p->rng, 100000);
    p->expert_ns = base_rng_below(&p->rng, 60000);
    p->warm_ns = p->expert_ns + 1000 * (p->seed % 40);
    p->machine.nvme_latency = 10000 + base_rng_below(&p->rng, 150000);
    p->machine.nvme_bandwidth = (50 + base_rng_below(&p->rng, 2000)) << 20;
    p->machine.nvme_depth = 32;
    SET(p, "io.backend=sim");
    SET(p, "io.sim_seed=%d", p->seed);
    if (p->in_order) {
        SET(p, "io.sim_latency=0");
        SET(p, "io.sim_bandwidth=100TB");
        SET(p, "io.throttle_latency=%dns", (int)p->machine.nvme_latency);
        SET(p, "io.throttle_bandwidth=%llu", (unsigned long long)p->machine.nvme_bandwidth);
    } else {
        SET(p, "io.sim_latency=%dns", (int)p->machine.nvme_latency);
        SET(p, "io.sim_bandwidth=%llu", (unsigned long long)p->machine.nvme_bandwidth);
    }
    SET(p, "policy.eviction=%s", policies[base_rng_below(&p->rng, 4)]);
    SET(p, "prefetch.enabled=%s", p->hints ? "true" : "false");
    if (p->hints) {
        SET(p, "prefetch.bandwidth_share=100%%");
        SET(p, "prefetch.governor=fixed");
        SET(p, "prefetch.probability_min=0%%");
        SET(p, "prefetch.experts_per_layer_max=2");
    }
    SET(p, "tiers.dram.capacity=%d%%", 40 + (int)base_rng_below(&p->rng, 40));
    if (!p->hbm) return;
    p->machine.copy_bandwidth = (200 + base_rng_below(&p->rng, 4000)) << 20;
    p->machine.copy_latency = 0;
    SET(p, "tiers.hbm.capacity=%d%%", 40 + (int)base_rng_below(&p->rng, 20));
    SET(p, "tiers.hbm.sim_bandwidth=%llu", (unsigned long long)p->machine.copy_bandwidth);
    if (p->warm) SET(p, "tiers.warm_experts=compute");
    SET(p, "tiers.inclusion=%s", base_rng_below(&p->rng, 2) ? "exclusive" : "inclusive");
    if (p->config.inclusion == 1) SET(p, "tiers.dram.capacity=%d%%", 65 + p->seed % 30);
}

static void pair_open(struct pair *p, int seed)
{
    struct base_err err = { 0 };
    uint32_t reads = 0;
    p->seed = seed;
    base_rng_init(&p->rng, (uint64_t)seed);
    pred_machine_load(&p->machine, NULL, &err);
    pair_options(p);
    base_clock_virtual_init(&p->clock, 1000);
    struct tier_open_args args = {
        .config = &p->config, .io = &p->io, .store = store, .top_k = TOP_K, .clock = &p->clock.clock
    };
    int rc = tier_open(&p->tier, &args, &err);
    ck_assert_msg(rc == 0, "seed %d: %s", seed, err.text);
    for (uint32_t l = 0; l < LAYERS; l++) {
        p->expert_bytes[l] = tier_store_expert_bytes(store);
        p->read_bytes[l] = read_bytes_of(l, &reads);
    }
    p->machine.expert_reads = reads;
    struct pred_timed_config config = {
        .machine = &p->machine,
        .decide = *tier_decide_config_of(p->tier),
        .expert_bytes = p->expert_bytes,
        .read_bytes = p->read_bytes,
        .prefetch_inflight = p->config.prefetch_inflight,
        .prefetch_per_layer = (uint32_t)p->config.prefetch_per_layer,
        .governor = { .share = 1, .fixed = true },
    };
    rc = pred_timed_create(&p->timed, &config, &err);
    ck_assert_msg(rc == 0, "seed %d: %s", seed, err.text);
}

static void pair_close(struct pair *p)
{
    tier_close(p->tier);
    pred_timed_destroy(p->timed);
}

static void tier_compute(struct pair *p, uint64_t ns)
{
    p->clock.time_ns += ns;
    tier_poll(p->tier);
}

static void layer_live(struct pair *p, uint32_t layer, const uint32_t *ids, uint32_t n,
                       const struct tier_hint *hints, uint32_t hint_count)
{
    struct tier_lease leases[EXPERTS];
    tier_compute(p, p->before_ns);
    uint32_t k = tier_acquire(p->tier, layer, ids, n, TIER_DECODE, leases), left = k;
    ck_assert_uint_eq(k, n);
    tier_hint(p->tier, hints, hint_count);
    tier_compute(p, p->shared_ns);
    struct tier_lease pending[EXPERTS];
    memcpy(pending, leases, sizeof leases);
    while (left > 0) {
        tier_wait(p->tier, pending, left, TIER_WAIT_ANY, UINT64_MAX);
        uint32_t kept = 0;
        uint64_t ns = 0;
        for (uint32_t i = 0; i < left; i++) {
            bool warm = pending[i].slot & TIER_SLOT_IN_DRAM;
            if (pending[i].status != 0) {
                pending[kept++] = pending[i];
                continue;
            }
            ns += warm ? p->warm_ns : p->expert_ns;
            p->in_place += warm;
        }
        left = kept;
        tier_compute(p, ns);
    }
    tier_wait(p->tier, leases, k, TIER_WAIT_ALL, UINT64_MAX);
    tier_release(p->tier, leases, k);
}

static void layer_timed(struct pair *p, uint32_t layer, const uint32_t *ids, uint32_t n,
                        const struct tier_hint *hints, uint32_t hint_count)
{
    uint32_t pending[EXPERTS], left = n;
    pred_timed_compute(p->timed, layer, p->before_ns);
    ck_assert_uint_eq(pred_timed_acquire(p->timed, layer, ids, n, TIER_DECODE), n);
    pred_timed_hint(p->timed, hints, hint_count);
    pred_timed_compute(p->timed, layer, p->shared_ns);
    memcpy(pending, ids, n * sizeof ids[0]);
    while (left > 0) {
        uint32_t kept = 0, ready = 0;
        uint64_t ns = 0;
        for (uint32_t i = 0; i < left; i++) {
            if (!pred_timed_ready(p->timed, layer, pending[i])) {
                pending[kept++] = pending[i];
                continue;
            }
            ready++;
            ns += pred_timed_in_place(p->timed, layer, pending[i]) ? p->warm_ns : p->expert_ns;
        }
        if (ready == 0) {
            pred_timed_wait(p->timed, layer, pending, left);
            continue;
        }
        left = kept;
        pred_timed_compute(p->timed, layer, ns);
    }
    pred_timed_release(p->timed, layer, ids, n);
}

static void pair_run(struct pair *p)
{
    uint64_t wait_ns[TIER_WAIT_CAUSE_COUNT];
    for (int token = 0; token < TOKENS; token++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            uint32_t ids[EXPERTS], n = 1 + (uint32_t)base_rng_below(&p->rng, TOP_K);
            struct tier_hint hints[2];
            uint32_t hint_count = p->hints ? (uint32_t)base_rng_below(&p->rng, 3) : 0;
            support_ids(&p->rng, ids, n, EXPERTS);
            for (uint32_t i = 0; i < hint_count; i++) {
                hints[i] = (struct tier_hint){ .layer = (l + 1) % LAYERS,
                                               .distance = 1,
                                               .expert = (uint32_t)base_rng_below(&p->rng, EXPERTS),
                                               .probability = (float)base_rng_unit(&p->rng) };
            }
            layer_live(p, l, ids, n, hints, hint_count);
            layer_timed(p, l, ids, n, hints, hint_count);
        }
        tier_step_waits(p->tier, wait_ns);
        for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++)
            p->waits_ns[w] += wait_ns[w];
        tier_step_end(p->tier);
        pred_timed_step_end(p->timed);
    }
}

static double difference(double a, double b)
{
    return b > 0 ? (a > b ? a - b : b - a) / b : 0;
}

/* Demand only: the same residency, and nearly the same hits and time. Not exactly: experts lie at
 * odd places of their files, so that one takes a page more than the other; the simulated disk
 * serves extents in random order; the real tiers look at disk and device by turns, 50 us each. */
START_TEST(demand_agrees)
{
    struct tier_snapshot live;
    double worst_time = 0, worst_hits = 0;
    for (int seed = 1; seed <= SEEDS; seed++) {
        struct pair p = { .hbm = _i & 1 || _i >= 4, .in_order = _i == 2 || _i == 3 || _i == 5,
                          .warm = _i >= 4 };
        pair_open(&p, seed);
        pair_run(&p);
        tier_snapshot(p.tier, &live);
        const struct pred_timed_stats *s = pred_timed_stats_get(p.timed);
        uint64_t lookups = 0, hits = 0, waited = 0, live_waited = 0;
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            lookups += s->cells[c].lookups;
            hits += s->cells[c].hits;
        }
        for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) {
            waited += s->wait_ns[w];
            live_waited += p.waits_ns[w];
        }
        ck_assert_uint_eq(lookups, live.tiers[0].lookups);
        ck_assert_uint_eq(s->in_place, p.in_place);
        ck_assert(!p.warm || s->in_place > 100);
        double time = (double)pred_timed_now(p.timed);
        ck_assert_msg(pred_timed_now(p.timed) == s->compute_ns + waited,
                      "seed %d: compute and waits are not the time", seed);
        double off = difference(time, (double)(p.clock.time_ns - 1000));
        double hits_off = difference((double)hits, (double)live.tiers[0].hits);
        if (off > worst_time) worst_time = off;
        if (hits_off > worst_hits) worst_hits = hits_off;
        ck_assert_msg(off < (p.hbm ? 0.03 : 0.01),
                      "seed %d: %.0f us here, %.0f us live (waits %.0f, %.0f)", seed, time / 1e3,
                      (double)p.clock.time_ns / 1e3, (double)waited / 1e3,
                      (double)live_waited / 1e3);
        /* Both read an expert as often; pads are counted here and not there. */
        ck_assert_uint_eq(s->demand_reads, live.io.demand_reads);
        pair_close(&p);
    }
    printf("%s, %s, demand only, %d seeds: time off by %.2f%% at most, hits by %.2f%%\n",
           _i >= 4  ? "hbm over dram, warm experts in place"
           : _i & 1 ? "hbm over dram"
                    : "dram",
           _i == 2 || _i == 3 || _i == 5 ? "reads in order" : "in random order", SEEDS,
           100 * worst_time, 100 * worst_hits);
}
END_TEST

/* With random hints: what is read ahead is bounded by what is under way, so the two admit the same
 * experts only as long as they agree on when each arrives. */
START_TEST(hints_agree)
{
    struct tier_snapshot live;
    double worst = 0;
    for (int seed = 1; seed <= SEEDS; seed++) {
        struct pair p = { .hbm = _i & 1, .hints = true, .in_order = true };
        pair_open(&p, seed);
        pair_run(&p);
        tier_snapshot(p.tier, &live);
        const struct pred_timed_stats *s = pred_timed_stats_get(p.timed);
        double off = difference((double)pred_timed_now(p.timed), (double)(p.clock.time_ns - 1000));
        double reads = difference((double)s->prefetch_reads, (double)live.io.prefetch_reads);
        ck_assert_uint_gt(s->hints_admitted, 20);
        ck_assert_uint_eq(s->prefetch_bytes, s->prefetch_reads * p.read_bytes[0]);
        if (off > worst) worst = off;
        ck_assert_msg(off < 0.05 && (live.io.prefetch_reads < 50 || reads < 0.1),
                      "seed %d: time off by %.1f%%, %llu reads ahead here, %llu live", seed,
                      100 * off, (unsigned long long)s->prefetch_reads,
                      (unsigned long long)live.io.prefetch_reads);
        pair_close(&p);
    }
    printf("%s, random hints, %d seeds: time off by %.2f%% at most\n",
           _i & 1 ? "hbm over dram" : "dram", SEEDS, 100 * worst);
}
END_TEST

/* -- by hand ---------------------------------------------------------------------------------- */

/* One layer of 4 experts in 2 slots: a read takes 10 us to start and 100 us to come. */
START_TEST(by_hand)
{
    static const uint64_t bytes[1] = { 100000 };
    struct base_err err = { 0 };
    struct pred_machine m;
    struct pred_timed *t;
    ck_assert_int_eq(pred_machine_load(&m, NULL, &err), 0);
    m.nvme_bandwidth = 1000000000;
    m.nvme_latency = 10000;
    m.nvme_take_in = 500;
    struct pred_timed_config config = {
        .machine = &m,
        .expert_bytes = bytes,
        .read_bytes = bytes,
        .prefetch_inflight = 100000,
        .prefetch_per_layer = 1,
        .governor = { .share = 1, .fixed = true },
        .decide = { .layers = 1,
                    .experts = 4,
                    .top_k = 1,
                    .tier_count = 1,
                    .prefill_share = 1,
                    .prefetch = true,
                    .tiers = { { .slots = 2, .policy = "lru" } } },
    };
    ck_assert_int_eq(pred_timed_create(&t, &config, &err), 0);
    uint32_t id = 0;
    pred_timed_acquire(t, 0, &id, 1, TIER_DECODE);
    pred_timed_wait(t, 0, &id, 1);
    ck_assert_uint_eq(pred_timed_now(t), 110500);
    pred_timed_release(t, 0, &id, 1);
    /* Prefetched for 50 us: what is left is a late wait. */
    ck_assert(pred_timed_hint(t, &(struct tier_hint){ 0, 1, 0.9f, 1 }, 1));
    ck_assert(!pred_timed_hint(t, &(struct tier_hint){ 0, 2, 0.9f, 1 }, 1)); /* one a layer */
    pred_timed_compute(t, 0, 50000);
    id = 1;
    pred_timed_acquire(t, 0, &id, 1, TIER_DECODE);
    pred_timed_wait(t, 0, &id, 1);
    ck_assert_uint_eq(pred_timed_now(t), 221000);
    pred_timed_release(t, 0, &id, 1);
    /* Prefetched for 200 us: a hit. */
    ck_assert(pred_timed_hint(t, &(struct tier_hint){ 0, 2, 0.9f, 1 }, 1));
    pred_timed_compute(t, 0, 200000);
    id = 2;
    pred_timed_acquire(t, 0, &id, 1, TIER_DECODE);
    ck_assert(pred_timed_ready(t, 0, 2));
    const struct pred_timed_stats *s = pred_timed_stats_get(t);
    ck_assert_uint_eq(s->wait_ns[TIER_WAIT_DEMAND], 110500);
    ck_assert_uint_eq(s->wait_ns[TIER_WAIT_LATE], 60500);
    ck_assert_uint_eq(s->compute_ns, 250500);
    ck_assert_uint_eq(s->demand_bytes, 100000);
    ck_assert_uint_eq(s->prefetch_bytes, 200000);
    ck_assert_uint_eq(s->useful_bytes, 100000);
    ck_assert_uint_eq(s->late_bytes, 100000);
    ck_assert_uint_eq(s->hints_refused, 1);
    pred_timed_destroy(t);
}
END_TEST

/* A disk that reads two experts at a time, one of them ahead, 10 us and 100 us each. */
static struct pred_timed *two_at_a_time(struct pred_machine *m, struct pred_timed_config *config)
{
    static const uint64_t bytes[2] = { 100000, 100000 };
    struct base_err err = { 0 };
    struct pred_timed *t;
    ck_assert_int_eq(pred_machine_load(m, NULL, &err), 0);
    m->nvme_bandwidth = 1000000000;
    m->nvme_latency = 10000;
    m->nvme_depth = 2;
    m->expert_reads = 1;
    m->copy_bandwidth = 10000000000;
    config->machine = m;
    config->expert_bytes = config->read_bytes = bytes;
    config->governor = (struct tier_governor_options){ .share = 1, .fixed = true };
    config->decide.prefetch = true;
    int rc = pred_timed_create(&t, config, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    return t;
}

static void timed_take(struct pred_timed *t, uint32_t layer, uint32_t id)
{
    ck_assert_uint_eq(pred_timed_acquire(t, layer, &id, 1, TIER_DECODE), 1);
}

static void timed_leave(struct pred_timed *t, uint32_t layer, uint32_t id)
{
    while (!pred_timed_ready(t, layer, id)) pred_timed_wait(t, layer, &id, 1);
    pred_timed_release(t, layer, &id, 1);
}

/* A stretch of reads that has not ended counts with what came back of it. */
START_TEST(the_disk_is_measured_while_it_reads)
{
    struct pred_machine m;
    struct pred_timed_config config = {
        .prefetch_inflight = 1000000, .prefetch_per_layer = 4,
        .decide = { .layers = 1, .experts = 16, .top_k = 4, .tier_count = 1, .prefill_share = 1,
                    .tiers = { { .slots = 12, .policy = "lru" } } },
    };
    struct pred_timed *t = two_at_a_time(&m, &config);
    const uint32_t ids[] = { 0, 1, 2, 3 };
    ck_assert_uint_eq(pred_timed_acquire(t, 0, ids, 4, TIER_DECODE), 4);
    pred_timed_wait(t, 0, ids, 4);
    ck_assert(t->busy.open && t->busy.ns == 0);
    /* 100 kB in 110 us. */
    t->governor.credit = 0;
    t->earned_ns = t->now;
    pred_timed_compute(t, 0, 11000);
    pred_timed_hint(t, NULL, 0);
    ck_assert_double_eq_tol(t->governor.credit, 10000, 1);
    pred_timed_step_end(t);
    ck_assert_double_eq_tol(t->governor.pace[0].fetch_ns, 110000, 1);
    pred_timed_destroy(t);
}
END_TEST

/* The first wave of a layer leaves alone what is read ahead for its later ones; the last one
 * cancels the rest. */
START_TEST(waves_keep_their_prefetches)
{
    struct pred_machine m;
    struct pred_timed_config config = {
        .prefetch_inflight = 1000000, .prefetch_per_layer = 4,
        .decide = { .layers = 1, .experts = 16, .top_k = 4, .tier_count = 1, .prefill_share = 0.25,
                    .tiers = { { .slots = 8, .policy = "lru" } } },
    };
    struct pred_timed *t = two_at_a_time(&m, &config);
    const struct pred_timed_stats *s = pred_timed_stats_get(t);
    const uint32_t wave[] = { 8, 9, 10, 11, 1 };
    for (uint32_t id = 3; id < 8; id++) {
        timed_take(t, 0, id);
        timed_leave(t, 0, id);
    }
    for (uint32_t id = 0; id < 3; id++) {
        ck_assert(pred_timed_hint(t, &(struct tier_hint){ 0, id, 0.8f, 1 }, 1));
    }
    ck_assert_uint_eq(pred_timed_acquire(t, 0, wave, 5, TIER_PREFILL), 2);
    ck_assert_uint_eq(s->prefetch_cancelled, 0);
    for (int i = 0; i < 2; i++) {
        while (!pred_timed_ready(t, 0, wave[i])) pred_timed_wait(t, 0, &wave[i], 1);
    }
    pred_timed_release(t, 0, wave, 2);
    ck_assert_uint_eq(pred_timed_acquire(t, 0, wave + 2, 3, TIER_PREFILL), 3);
    ck_assert_uint_eq(s->cells[TIER_CELL_PREFILL].late + s->cells[TIER_CELL_PREFILL].hits, 1);
    ck_assert_uint_eq(s->prefetch_cancelled, 1);
    pred_timed_destroy(t);
}
END_TEST

/* What was cancelled is resident without a byte: the next hint for it reads it ahead. */
START_TEST(a_cancelled_prefetch_is_read_again)
{
    struct pred_machine m;
    struct pred_timed_config config = {
        .prefetch_inflight = 1000000, .prefetch_per_layer = 2,
        .decide = { .layers = 1, .experts = 16, .top_k = 4, .tier_count = 1, .prefill_share = 1,
                    .tiers = { { .slots = 8, .policy = "lru" } } },
    };
    struct pred_timed *t = two_at_a_time(&m, &config);
    const struct pred_timed_stats *s = pred_timed_stats_get(t);
    const struct tier_hint h[] = { { 0, 0, 0.8f, 1 }, { 0, 1, 0.7f, 1 } };
    ck_assert_uint_eq(pred_timed_hint(t, h, 2), 2);
    timed_take(t, 0, 0);
    ck_assert_uint_eq(s->prefetch_cancelled, 1);
    timed_leave(t, 0, 0);
    ck_assert_uint_eq(pred_timed_hint(t, &h[1], 1), 0);
    pred_timed_compute(t, 0, 200000);
    ck_assert(pred_timed_ready(t, 0, 1));
    timed_take(t, 0, 1);
    timed_leave(t, 0, 1);
    ck_assert_uint_eq(s->prefetch_reads, 2);
    ck_assert_uint_eq(s->demand_reads, 0);
    pred_timed_destroy(t);
}
END_TEST

/* A cancelled prefetch that hbm let go of since is in dram as far as the core knows: to bring it up
 * takes a read, within what prefetch may have under way. */
START_TEST(what_was_cancelled_is_no_copy)
{
    struct pred_machine m;
    struct pred_timed_config config = {
        .prefetch_inflight = 100000, .prefetch_per_layer = 2,
        .decide = { .layers = 2, .experts = 8, .top_k = 1, .tier_count = 2, .prefill_share = 1,
                    .tiers = { { .slots = 4, .policy = "lru" },
                               { .slots = 16, .policy = "lru" } } },
    };
    struct pred_timed *t = two_at_a_time(&m, &config);
    const struct pred_timed_stats *s = pred_timed_stats_get(t);
    timed_take(t, 1, 0);
    ck_assert(pred_timed_hint(t, &(struct tier_hint){ 0, 1, 0.9f, 1 }, 1));
    timed_take(t, 0, 0);
    ck_assert_uint_eq(s->prefetch_cancelled, 1);
    timed_leave(t, 1, 0);
    timed_leave(t, 0, 0);
    timed_take(t, 0, 2);
    timed_leave(t, 0, 2);
    ck_assert(tier_decide_resident(pred_timed_decide(t), 1, 0, 1));
    ck_assert(pred_timed_hint(t, &(struct tier_hint){ 1, 3, 0.8f, 1 }, 1));
    ck_assert(!pred_timed_hint(t, &(struct tier_hint){ 0, 1, 0.8f, 1 }, 1));
    ck_assert_uint_eq(s->hints_refused, 1);
    pred_timed_compute(t, 1, 1000000);
    ck_assert(pred_timed_hint(t, &(struct tier_hint){ 0, 1, 0.8f, 1 }, 1));
    ck_assert_uint_eq(s->prefetch_reads, 2);
    pred_timed_destroy(t);
}
END_TEST

/* -- whole traces ----------------------------------------------------------------------------- */

/* A trace of two sequences with skewed random routing, batches of one to three tokens. */
static void write_steps(const char *path, int seed, uint32_t steps)
{
    struct pred_trace_config config = support_config(path);
    struct pred_trace_header header = {
        .model = "m", .source = "test", .layers = 4, .experts = 16, .top_k = 2, .sample = 1
    };
    struct pred_trace_writer *writer;
    struct base_err err = { 0 };
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)seed);
    ck_assert_int_eq(pred_trace_writer_open(&writer, &config, &header, true, &err), 0);
    pred_trace_writer_patient(writer);
    for (uint32_t step = 0; step < steps; step++) {
        uint32_t ids[4 * 3 * 2], tokens[3], positions[3], n = 1 + (uint32_t)base_rng_below(&rng, 3);
        uint64_t seqs[3];
        uint8_t phases[3];
        for (uint32_t i = 0; i < n; i++) {
            seqs[i] = i;
            tokens[i] = (uint32_t)base_rng_below(&rng, 50);
            positions[i] = step;
            phases[i] = i == 2 ? TIER_PREFILL : TIER_DECODE;
        }
        for (uint32_t i = 0; i < 4 * n; i++) {
            support_ids(&rng, ids + 2 * i, 2, base_rng_below(&rng, 3) ? 8 : 16);
        }
        struct pred_step record = { .step = step,
                                    .token_count = n,
                                    .seqs = seqs,
                                    .tokens = tokens,
                                    .positions = positions,
                                    .phases = phases,
                                    .expert_ids = ids };
        pred_trace_writer_step(writer, &record);
        if (step % 20 == 19) pred_trace_writer_flush(writer);
    }
    ck_assert_int_eq(pred_trace_writer_close(writer, &err), 0);
}

static void write_trace(const char *path, int seed)
{
    write_steps(path, seed, 200);
}

static void reckoned(struct pred_machine *m)
{
    struct base_err err = { 0 };
    ck_assert_int_eq(pred_machine_load(m, NULL, &err), 0);
    ck_assert_int_eq(pred_machine_set(m, "nvme.bandwidth=1GB", &err), 0);
    ck_assert_int_eq(pred_machine_set(m, "copy.bandwidth=4GB", &err), 0);
    ck_assert_int_eq(pred_machine_set(m, "compute.bandwidth=10GB", &err), 0);
    ck_assert_int_eq(pred_machine_set(m, "compute.layer_time=20us", &err), 0);
    ck_assert_int_eq(pred_machine_set(m, "model.expert_bytes=100KiB", &err), 0);
}

/* Every case: the parts of its time add up to it, it is as slow as its bounds or slower, and it
 * does not hang on which cases run beside it. */
START_TEST(runs_add_up)
{
    static const char *const policies[] = { "belady", "lru", "lfu", "s3fifo" };
    struct pred_timed_case cases[8];
    struct pred_timed_result results[8], alone;
    struct pred_timed_summary summary;
    struct pred_trace_reader *reader;
    struct pred_machine machine;
    struct base_err err = { 0 };
    const char *path = support_path("timed.trace");
    write_trace(path, 7 + _i);
    reckoned(&machine);
    for (uint32_t i = 0; i < 8; i++) {
        cases[i] = (struct pred_timed_case){
            .tier_count = 1 + i / 4, .slots = { 24, 24 }, .prefill_share = 1, .half_life_tokens = 16
        };
        snprintf(cases[i].policy, sizeof cases[i].policy, "%s", policies[i % 4]);
    }
    cases[5].start_full = true;
    cases[5].slots[1] = 40;
    ck_assert_int_eq(pred_trace_reader_open(&reader, path, &err), 0);
    struct pred_timed_args args = { .reader = reader, .machine = &machine, .cases = cases,
                                    .count = 8 };
    int rc = pred_timed_run(&args, results, &summary, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    for (uint32_t i = 0; i < 8; i++) {
        const struct pred_timed_result *r = &results[i];
        uint64_t sum = r->stats.compute_ns;
        for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++)
            sum += r->stats.wait_ns[w];
        ck_assert_uint_eq(sum, r->time_ns);
        ck_assert_uint_ge(r->time_ns, pred_timed_bound_ns(&machine, &results[i / 4 * 4]));
        ck_assert_uint_eq(r->steps, 200);
        ck_assert_uint_eq(r->layers[0].counts.lookups, results[0].layers[0].counts.lookups);
        if (i < 4) ck_assert_uint_ge(r->stats.demand_bytes, results[0].stats.demand_bytes);
        ck_assert_int_eq(pred_trace_reader_rewind(reader, &err), 0);
        args.cases = &cases[i];
        args.count = 1;
        rc = pred_timed_run(&args, &alone, &summary, &err);
        ck_assert_int_eq(rc, 0);
        ck_assert_uint_eq(alone.time_ns, r->time_ns);
        ck_assert_mem_eq(&alone.stats, &r->stats, sizeof alone.stats);
        pred_timed_results_fini(&alone, 1);
    }
    ck_assert_uint_eq(results[5].stats.demand_bytes, 0); /* both tiers hold everything */
    uint64_t copied_up = results[6].stats.copy_up_bytes;
    pred_timed_results_fini(results, 8);
    /* In place without a word of the CPU's time is refused; with it, no copy is waited for. */
    cases[6].warm_compute = true;
    args.cases = &cases[6];
    rc = pred_timed_run(&args, &alone, &summary, &err);
    ck_assert_int_eq(rc, BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "cpu.bandwidth"));
    ck_assert_int_eq(pred_machine_set(&machine, "cpu.bandwidth=5GB", &err), 0);
    ck_assert_int_eq(pred_trace_reader_rewind(reader, &err), 0);
    ck_assert_int_eq(pred_timed_run(&args, &alone, &summary, &err), 0);
    ck_assert_uint_gt(alone.stats.in_place, 100);
    ck_assert_uint_lt(alone.stats.copy_up_bytes, copied_up);
    pred_timed_results_fini(&alone, 1);
    err = (struct base_err){ 0 };
    machine.expert_bytes = 0;
    rc = pred_timed_run(&args, results, &summary, &err);
    ck_assert_int_eq(rc, BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "model.expert_bytes"));
    pred_trace_reader_close(reader);
}
END_TEST

/* Who knows the routing beforehand bounds what hints can do; prefill rows and batches too. */
START_TEST(the_oracle_bounds_prediction)
{
    static const char *const kinds[] = { "", "blend", "oracle" };
    struct pred_timed_result results[3];
    struct pred_timed_summary summary;
    struct pred_trace_reader *reader;
    struct pred_machine machine;
    struct base_err err = { 0 };
    write_trace(support_path("timed.trace"), 40 + _i);
    reckoned(&machine);
    ck_assert_int_eq(pred_trace_reader_open(&reader, support_path("timed.trace"), &err), 0);
    for (int k = 0; k < 3; k++) {
        struct pred_timed_case one = {
            .policy = "lru_with_prediction", .tier_count = 1, .slots = { 40 }, .prefill_share = 1,
            .half_life_tokens = 16, .hinted = k > 0, .prefetch = k > 0,
            .prefetch_inflight = 1 << 20, .prefetch_per_layer = 4,
            .governor = { .share = 1, .waste_max = 1, .probability_min = 0.1, .fixed = true },
        };
        struct pred_timed_args args = { .reader = reader, .machine = &machine, .cases = &one,
                                        .count = 1,
                                        .advice.options = { .lead = 2, .hints_max = 8,
                                                            .probability_min = 0.02,
                                                            .rows_max = 16 } };
        snprintf(args.advice.predictor, sizeof args.advice.predictor, "%s", kinds[k]);
        int rc = pred_timed_run(&args, &results[k], &summary, &err);
        ck_assert_msg(rc == 0, "%s", err.text);
        ck_assert_int_eq(pred_trace_reader_rewind(reader, &err), 0);
    }
    pred_trace_reader_close(reader);
    /* All that it hints is asked for: nothing that arrives in time is wasted. */
    ck_assert_uint_gt(results[2].stats.hints_admitted, 200);
    ck_assert_uint_eq(results[2].stats.wasted_bytes, 0);
    ck_assert_uint_gt(results[1].stats.wasted_bytes, 0);
    ck_assert_uint_lt(results[2].time_ns, results[1].time_ns);
    ck_assert_uint_lt(results[2].time_ns, results[0].time_ns);
    pred_timed_results_fini(results, 3);
}
END_TEST

/* What a server writes between Belady's two readings belongs to neither. */
START_TEST(a_growing_trace_is_timed_to_one_end)
{
    struct pred_timed_case one = { .policy = "belady", .tier_count = 1, .slots = { 24 },
                                   .prefill_share = 1, .half_life_tokens = 16 };
    struct pred_timed_result grown, cut;
    struct pred_timed_summary summary;
    struct pred_trace_reader *reader;
    struct pred_machine machine;
    struct base_err err = { 0 };
    const char *path = support_path("timed.trace");
    struct support_growing growing;
    struct pred_replay_progress progress = { support_grow, &growing };
    struct pred_timed_args args = { .machine = &machine, .cases = &one, .count = 1 };
    write_steps(path, 5, 600);
    reckoned(&machine);
    support_growing_begin(&growing, path);
    for (int growth = 0; growth < 2; growth++) {
        ck_assert_int_eq(pred_trace_reader_open(&reader, path, &err), 0);
        args.reader = reader;
        args.progress = growth ? &progress : NULL;
        int rc = pred_timed_run(&args, growth ? &grown : &cut, &summary, &err);
        ck_assert_msg(rc == 0, "%s", err.text);
        pred_trace_reader_close(reader);
    }
    support_growing_end(&growing);
    ck_assert_uint_lt(cut.steps, 600);
    ck_assert_uint_eq(grown.steps, cut.steps);
    ck_assert_uint_eq(grown.time_ns, cut.time_ns);
    ck_assert_mem_eq(&grown.stats, &cut.stats, sizeof cut.stats);
    pred_timed_results_fini(&grown, 1);
    pred_timed_results_fini(&cut, 1);
}
END_TEST

/* The descriptions that ship are read, and say something of every part. */
START_TEST(machines_load)
{
    static const char *const names[] = { "8xh20", "desktop-pcie5", "cpu-only" };
    const char *source = getenv("EXPERTIER_SOURCE");
    struct base_err err = { 0 };
    struct pred_machine m;
    char path[4096];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/configs/machines/%s.yaml", source ? source : ".", names[i]);
        ck_assert_msg(pred_machine_load(&m, path, &err) == 0, "%s", err.text);
        ck_assert(m.name[0] != '\0');
        ck_assert((m.copy_bandwidth == 0) == (i == 2));
        for (int part = PRED_PART_LAYER; part <= PRED_PART_STEP; part++) {
            uint64_t one = pred_machine_compute_ns(&m, (enum pred_machine_part)part, 44 << 20, 1);
            uint64_t many =
                pred_machine_compute_ns(&m, (enum pred_machine_part)part, 44 << 20, 4096);
            ck_assert_uint_gt(one, 1000);
            ck_assert_uint_gt(many, one);
        }
    }
    support_write(support_path("bad.yaml"), (const uint8_t *)"nvme:\n  bandwith: 7GB\n", 22);
    ck_assert_int_eq(pred_machine_load(&m, support_path("bad.yaml"), &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "nvme.bandwidth"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("timed");
    TCase *tcase = tcase_create("pair");
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, demand_agrees, 0, 6);
    tcase_add_loop_test(tcase, hints_agree, 0, 2);
    tcase_add_test(tcase, by_hand);
    tcase_add_test(tcase, the_disk_is_measured_while_it_reads);
    tcase_add_test(tcase, waves_keep_their_prefetches);
    tcase_add_test(tcase, a_cancelled_prefetch_is_read_again);
    tcase_add_test(tcase, what_was_cancelled_is_no_copy);
    tcase_add_loop_test(tcase, runs_add_up, 0, 3);
    tcase_add_loop_test(tcase, the_oracle_bounds_prediction, 0, 3);
    tcase_add_test(tcase, a_growing_trace_is_timed_to_one_end);
    tcase_add_test(tcase, machines_load);
    suite_add_tcase(suite, tcase);
    return support_run(suite);
}
