/* What tier_open_args.landing makes of an expert: once for every read that landed well, on bytes
 * that were found good, before anybody has a lease; and from there on that is what every lease
 * reads, in dram, in hbm and after a way down and up. Over random settings, backends, hints, faults
 * and displaced reads, with mirrors and a restored set. Seeds are printed. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "port/hash.h"
#include "tests/support/sanitized.h"
#include "tests/support/tier_settings.h"
#include "tests/support/tiny_store.h"
#include "tiering/tiering.h"

#define NEED(cond) \
    do { \
        if (!(cond)) ck_abort_msg("%s, seed %d", #cond, seed); \
    } while (0)
static int seed;

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 3, KEYS = LAYERS * EXPERTS, SETS_MAX = 6 };
enum { SEEDS = SANITIZED ? 30 : 90 };

static char dir[3000], warm_path[3100];
static struct tier_store *store;

/* Experts that stay bad are told of here, and there are many. */
static void log_nowhere(enum base_log_level level, const char *area, const char *text)
{
    (void)level, (void)area, (void)text;
}

static void setup(void)
{
    base_log_sink_set(log_nowhere);
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    options.shuffle = true;
    store = tiny_store_open(dir, sizeof dir, "check_landing", &options);
    snprintf(warm_path, sizeof warm_path, "%s/warm", dir);
}

static void teardown(void)
{
    tier_store_close(store);
    tiny_remove(dir);
}

/* -- the transformation ----------------------------------------------------------------------- */

struct run {
    struct tier_config config;
    struct tier_io_config io;
    const struct tier_store *store;
    struct tier *tier;
    uint64_t landed[KEYS], calls, shared;
    unsigned leased[KEYS];
    struct tier_lease leases[SETS_MAX][EXPERTS];
    uint32_t counts[SETS_MAX], sets;
};

/* Threads that help, as far as tiers can tell: pieces in any order, some of them here. */
static void share(void *context, uint32_t count, uint64_t bytes,
                  void (*run)(void *work, uint32_t piece, bool here), void *work)
{
    struct run *r = context;
    NEED(count > 0 && bytes > 0);
    for (uint32_t i = 0; i < count; i++) run(work, (i + count / 2) % count, i % 3 > 0);
    r->shared++;
}

/* Added to every byte of a part: done twice it is not what it is done once. */
static unsigned char added(uint32_t key, int part)
{
    return (unsigned char)(1 + (key * 7 + (uint32_t)part * 13) % 120);
}

static uint64_t hash_of(const struct tier_record *record, uint32_t key, const void *const *parts,
                        bool landed)
{
    static unsigned char bytes[1 << 16];
    struct port_hash hash;
    port_hash_begin(&hash);
    for (int p = 0; p < TIER_PARTS; p++) {
        NEED((parts[p] != NULL) == (record->part_bytes[p] > 0));
        NEED(record->part_bytes[p] <= sizeof bytes);
        if (!parts[p]) continue;
        memcpy(bytes, parts[p], record->part_bytes[p]);
        for (uint64_t i = 0; landed && i < record->part_bytes[p]; i++) bytes[i] -= added(key, p);
        port_hash_add(&hash, bytes, record->part_bytes[p]);
    }
    return port_hash_end(&hash);
}

static void land(void *context, uint32_t layer, uint32_t expert, void *const parts[TIER_PARTS])
{
    struct run *r = context;
    struct tier_record record;
    const void *read[TIER_PARTS];
    uint32_t key = layer * EXPERTS + expert;
    NEED(layer < LAYERS && expert < EXPERTS);
    tier_store_record(r->store, layer, expert, &record);
    for (int p = 0; p < TIER_PARTS; p++) read[p] = parts[p];
    NEED(hash_of(&record, key, read, false) == record.hash);
    for (int p = 0; p < TIER_PARTS; p++) {
        unsigned char *at = parts[p];
        for (uint64_t i = 0; i < record.part_bytes[p]; i++) at[i] += added(key, p);
    }
    r->landed[key]++;
    r->calls++;
}

static void check_lease(struct run *r, const struct tier_lease *lease)
{
    struct tier_record record;
    uint32_t key = lease->layer * EXPERTS + lease->expert;
    tier_store_record(r->store, lease->layer, lease->expert, &record);
    NEED(hash_of(&record, key, lease->parts, true) == record.hash);
    NEED(r->landed[key] > 0);
}

/* Every load that ended well landed once; those that failed or were displaced did not. */
static void check_calls(struct run *r)
{
    static struct tier_snapshot s;
    uint64_t loads = 0;
    for (uint32_t k = 0; k < KEYS; k++) {
        uint64_t count = tier_expert_loads(r->tier, k / EXPERTS, k % EXPERTS).loads;
        NEED(r->landed[k] == count);
        loads += count;
    }
    NEED(r->calls == loads);
    tier_step_end(r->tier);
    tier_snapshot(r->tier, &s);
    NEED(r->calls <= s.io.demand_reads + s.io.prefetch_reads + s.warm.restore_reads);
    NEED(s.io.landing_seconds <= s.io.take_in_seconds);
}

/* -- a run ------------------------------------------------------------------------------------ */

#define SET(r, ...) tier_settings_set(&(r)->config, &(r)->io, __VA_ARGS__)

static void defaults(struct run *r)
{
    memset(r, 0, sizeof *r);
    tier_settings_default(&r->config, &r->io);
    r->store = store;
}

static void begin(struct run *r)
{
    struct tier_open_args args = { .config = &r->config, .io = &r->io, .top_k = TOP_K,
                                   .store = (struct tier_store *)r->store,
                                   .landing = { land, share, r } };
    struct base_err err = { 0 };
    memset(r->landed, 0, sizeof r->landed);
    r->calls = r->shared = 0;
    int rc = tier_open(&r->tier, &args, &err);
    ck_assert_msg(rc == 0, "%s, seed %d", err.text, seed);
}

/* Waits for all of a set, or gives it back as it is. */
static void end_set(struct run *r, uint32_t i, bool wait)
{
    struct tier_lease *leases = r->leases[i];
    uint32_t n = r->counts[i];
    if (wait) NEED(tier_wait(r->tier, leases, n, TIER_WAIT_ALL, UINT64_MAX) == n);
    for (uint32_t j = 0; j < n; j++) {
        if (leases[j].status == 0) check_lease(r, &leases[j]);
    }
    tier_release(r->tier, leases, n);
    r->sets--;
    memcpy(leases, r->leases[r->sets], sizeof r->leases[i]);
    r->counts[i] = r->counts[r->sets];
}

static void ask(struct run *r, uint32_t layer, const uint32_t *ids, uint32_t n,
                enum tier_phase phase)
{
    struct tier_lease *leases = r->leases[r->sets];
    uint32_t k = tier_acquire(r->tier, layer, ids, n, phase, leases);
    for (uint32_t i = 0; i < k; i++) {
        if (leases[i].status == 0) check_lease(r, &leases[i]);
    }
    if (k > 0) r->counts[r->sets++] = k;
}

static void ask_random(struct run *r, struct base_rng *rng)
{
    uint32_t ids[EXPERTS], n;
    bool prefill = base_rng_below(rng, 4) == 0;
    n = 1 + (uint32_t)base_rng_below(rng, prefill ? EXPERTS : TOP_K);
    for (uint32_t i = 0; i < EXPERTS; i++) ids[i] = i;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = i + (uint32_t)base_rng_below(rng, EXPERTS - i), id = ids[i];
        ids[i] = ids[j];
        ids[j] = id;
    }
    ask(r, (uint32_t)base_rng_below(rng, LAYERS), ids, n, prefill ? TIER_PREFILL : TIER_DECODE);
}

static void hint_random(struct run *r, struct base_rng *rng)
{
    struct tier_hint hints[TOP_K];
    for (int i = 0; i < TOP_K; i++) {
        hints[i] = (struct tier_hint){ (uint32_t)base_rng_below(rng, LAYERS),
                                       (uint32_t)base_rng_below(rng, EXPERTS),
                                       (float)base_rng_unit(rng), 1 };
    }
    tier_hint(r->tier, hints, TOP_K);
}

static void drive(struct run *r, struct base_rng *rng, unsigned steps)
{
    for (unsigned s = 0; s < steps; s++) {
        uint64_t what = base_rng_below(rng, 8);
        if (what < 2) hint_random(r, rng);
        else if (what == 2) tier_poll(r->tier);
        else if (what == 3) tier_step_end(r->tier);
        else ask_random(r, rng);
        while (r->sets > 0 && (r->sets == SETS_MAX || base_rng_below(rng, 3) == 0)) {
            end_set(r, (uint32_t)base_rng_below(rng, r->sets), base_rng_below(rng, 4) > 0);
        }
    }
    while (r->sets > 0) end_set(r, 0, true);
}

/* What is still on its way lands, too. */
static void settle(struct run *r)
{
    struct tier_snapshot s;
    do {
        uint64_t calls = r->calls;
        for (int i = 0; i < 20; i++) {
            usleep(100);
            tier_poll(r->tier);
        }
        tier_step_end(r->tier);
        tier_snapshot(r->tier, &s);
        if (calls == r->calls) return;
    } while (true);
}

static void take_backend(struct run *r, const char *backend)
{
    struct tier_io *probe;
    SET(r, "io.backend=%s", backend);
    if (tier_io_create(&probe, &r->io, base_clock_real(), NULL) < 0) SET(r, "io.backend=threads");
    else tier_io_destroy(probe);
    SET(r, "io.sim_latency=20us");
    SET(r, "io.sim_seed=%d", seed);
}

static void draw(struct run *r, struct base_rng *rng)
{
    static const char *const backends[] = { "sim", "sim", "threads", "io_uring" };
    static const char *const policies[] = { "lru", "lfu", "lru_with_prediction", "s3fifo" };
    defaults(r);
    take_backend(r, backends[base_rng_below(rng, 4)]);
    SET(r, "io.depth=%d", 1 << base_rng_below(rng, 6));
    SET(r, "tiers.dram.capacity=%d%%", 25 + (int)base_rng_below(rng, 4) * 25);
    SET(r, "policy.eviction=%s", policies[base_rng_below(rng, 4)]);
    SET(r, "prefetch.governor=%s", base_rng_below(rng, 2) ? "auto" : "fixed");
    SET(r, "prefetch.inflight=%s", base_rng_below(rng, 2) ? "64KiB" : "1MiB");
    SET(r, "tiers.verify=%s", base_rng_below(rng, 2) ? "always" : "first");
    if (seed % 3 > 0) {
        SET(r, "tiers.hbm.capacity=25%%");
        SET(r, "tiers.inclusion=%s", base_rng_below(rng, 2) ? "inclusive" : "exclusive");
        SET(r, "tiers.hbm.device=%s", base_rng_below(rng, 3) ? "sim" : "host");
        SET(r, "tiers.hbm.sim_bandwidth=%s", base_rng_below(rng, 2) ? "0" : "100MiB");
        SET(r, "tiers.warm_experts=%s", base_rng_below(rng, 2) ? "copy" : "compute");
        if (seed % 6 == 1) SET(r, "tiers.hbm.sim_faults=2%%");
    }
    if (seed % 2 == 0) {
        SET(r, "io.faults=seed=%d,eio=0.02,flip=0.02,short=0.02", seed);
        SET(r, "tiers.verify=always");
    }
}

START_TEST(once_for_each_good_read)
{
    static struct run r;
    struct base_rng rng;
    seed = _i;
    base_rng_init(&rng, (uint64_t)seed);
    draw(&r, &rng);
    begin(&r);
    drive(&r, &rng, 300);
    settle(&r);
    check_calls(&r);
    NEED(r.calls > 0);
    tier_close(r.tier);
}
END_TEST

/* -- single rules ----------------------------------------------------------------------------- */

/* All experts, TOP_K at a time. */
static void ask_all(struct run *r)
{
    for (uint32_t at = 0; at < KEYS; at += TOP_K) {
        uint32_t ids[TOP_K];
        for (uint32_t i = 0; i < TOP_K; i++) ids[i] = at % EXPERTS + i;
        ask(r, at / EXPERTS, ids, TOP_K, TIER_DECODE);
        end_set(r, 0, true);
    }
}

static const char *const faults[] = { "eio=0.04", "short=0.04", "flip=0.04" };

/* Reads that were bad first: one call, after the good one; and none for an expert given up. */
START_TEST(not_before_a_read_is_good)
{
    static struct run r;
    static struct tier_snapshot s;
    uint64_t bad = 0;
    for (seed = 0; seed < 8; seed++) {
        defaults(&r);
        take_backend(&r, seed % 2 ? "sim" : "threads");
        SET(&r, "tiers.dram.capacity=25%%");
        SET(&r, "io.faults=seed=%d,%s", seed, faults[_i]);
        begin(&r);
        for (int round = 0; round < 3; round++) ask_all(&r);
        check_calls(&r);
        tier_snapshot(r.tier, &s);
        bad += _i == 2 ? s.io.checksum_failures : s.io.read_errors;
        NEED(r.calls + s.io.quarantined == s.io.demand_reads);
        tier_close(r.tier);
    }
    ck_assert_uint_gt(bad, 0);
}
END_TEST

/* A prefetch that has to leave while it is read lands nowhere; asked for later, the expert does. */
START_TEST(not_for_what_was_displaced)
{
    static struct run r;
    static struct tier_snapshot s;
    uint32_t ids[EXPERTS];
    struct tier_hint hints[TOP_K];
    defaults(&r);
    SET(&r, "io.backend=sim");
    SET(&r, "io.sim_latency=20ms");
    SET(&r, "tiers.dram.capacity=50%%");
    SET(&r, "prefetch.governor=fixed");
    SET(&r, "policy.eviction=lru");
    begin(&r);
    for (uint32_t i = 0; i < TOP_K; i++) hints[i] = (struct tier_hint){ 1, i, 0.9f, 1 };
    ck_assert_uint_gt(tier_hint(r.tier, hints, TOP_K), 0);
    for (uint32_t i = 0; i < EXPERTS; i++) ids[i] = EXPERTS - 1 - i;
    for (uint32_t i = 0; i < EXPERTS / 2; i += TOP_K) ask(&r, 1, ids + i, TOP_K, TIER_DECODE);
    while (r.sets > 0) end_set(&r, 0, true);
    settle(&r);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_gt(s.io.prefetch_reads, 0);
    ck_assert_uint_eq(s.io.demand_reads, EXPERTS / 2);
    ck_assert_uint_lt(r.calls, s.io.prefetch_reads + s.io.demand_reads);
    check_calls(&r);
    for (uint32_t i = 0; i < EXPERTS; i += TOP_K) {
        ask(&r, 1, ids + i, TOP_K, TIER_DECODE);
        end_set(&r, 0, true);
    }
    for (uint32_t i = 0; i < TOP_K; i++) ck_assert_uint_gt(r.landed[EXPERTS + i], 0);
    check_calls(&r);
    tier_close(r.tier);
}
END_TEST

/* Up, down and up again: moved as it is, and not landed a second time. */
START_TEST(copies_move_what_landed)
{
    static struct run r;
    static struct tier_snapshot s;
    uint32_t ids[2 * TOP_K] = { 0, 1, 2, 3, 4, 5, 6, 7 };
    defaults(&r);
    SET(&r, "tiers.hbm.capacity=25%%");
    SET(&r, "tiers.dram.capacity=50%%");
    SET(&r, "tiers.hbm.device=%s", _i < 2 ? "sim" : "host");
    SET(&r, "tiers.inclusion=%s", _i % 2 ? "inclusive" : "exclusive");
    begin(&r);
    for (int round = 0; round < 6; round++) {
        ask(&r, 1, &ids[round % 2 * TOP_K], TOP_K, TIER_DECODE);
        end_set(&r, 0, true);
        settle(&r);
    }
    tier_snapshot(r.tier, &s);
    ck_assert_uint_eq(s.io.demand_reads, 2 * TOP_K);
    ck_assert_uint_eq(s.io.copies_up, 6 * TOP_K);
    ck_assert_uint_eq(s.io.copies_down, _i % 2 ? 0 : 5 * TOP_K);
    for (uint32_t i = 0; i < 2 * TOP_K; i++) ck_assert_uint_eq(r.landed[EXPERTS + i], 1);
    check_calls(&r);
    tier_close(r.tier);
}
END_TEST

/* Evicted to nvme and read again: its bytes are new, and land again. */
START_TEST(each_read_lands)
{
    static struct run r;
    defaults(&r);
    SET(&r, "tiers.dram.capacity=25%%");
    SET(&r, "tiers.verify=%s", _i ? "first" : "always");
    begin(&r);
    for (int round = 0; round < 3; round++) ask_all(&r);
    for (uint32_t k = 0; k < KEYS; k++) ck_assert_uint_eq(r.landed[k], 3);
    check_calls(&r);
    tier_close(r.tier);
}
END_TEST

START_TEST(a_restored_set_lands)
{
    static struct run r;
    static struct tier_snapshot s;
    unlink(warm_path);
    defaults(&r);
    SET(&r, "tiers.dram.capacity=50%%");
    SET(&r, "tiers.warm.path=%s", warm_path);
    if (_i) {
        SET(&r, "tiers.hbm.capacity=25%%");
        SET(&r, "tiers.hbm.sim_bandwidth=0");
    }
    begin(&r);
    ask_all(&r);
    tier_warm_save(r.tier);
    tier_close(r.tier);
    begin(&r);
    tier_warm_restore(r.tier);
    while (tier_idle(r.tier) < 2) continue;
    settle(&r);
    check_calls(&r);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_gt(s.warm.restore_reads, 0);
    ck_assert_uint_eq(s.warm.restore_reads, r.calls);
    ask_all(&r);
    check_calls(&r);
    tier_close(r.tier);
}
END_TEST

/* A copy of a mirror that stays bad is never landed; the one that is taken instead is, once. */
START_TEST(mirrors_land_the_good_copy)
{
    static struct run r;
    static struct tier_snapshot s;
    char folders[2][3000], index[3100];
    const char *list[2] = { folders[0], folders[1] };
    struct tier_pack_options to = { .dirs = list, .dir_count = 2, .mode = TIER_PACK_MIRROR,
                                    .threads = 1 };
    struct tier_store *pack;
    struct base_err err = { 0 };
    for (int i = 0; i < 2; i++) tiny_folder(folders[i], sizeof folders[i], "check_landing_to");
    snprintf(index, sizeof index, "%s/expertier.index", folders[0]);
    int rc = tier_store_repack(store, &to, NULL, &err);
    if (rc == 0) rc = tier_store_open(&pack, dir, index, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    for (uint32_t k = 0; k < KEYS; k += 2) {
        struct tier_record record;
        unsigned char byte;
        tier_store_record(pack, k / EXPERTS, k % EXPERTS, &record);
        int fd = open(tier_store_file_path(pack, record.extents[0].file), O_RDWR);
        off_t at = (off_t)record.extents[0].offset + 5;
        ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
        byte ^= 16;
        ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
        close(fd);
    }
    defaults(&r);
    r.store = pack;
    take_backend(&r, _i ? "sim" : "threads");
    SET(&r, "tiers.dram.capacity=25%%");
    begin(&r);
    ask_all(&r);
    check_calls(&r);
    tier_snapshot(r.tier, &s);
    ck_assert_uint_eq(s.io.mirror_reads, KEYS / 2);
    ck_assert_uint_ge(r.shared, KEYS + KEYS / 2);
    ck_assert_uint_eq(r.calls, KEYS);
    tier_close(r.tier);
    tier_store_close(pack);
    for (int i = 0; i < 2; i++) tiny_remove(folders[i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("landing");
    TCase *tests = tcase_create("landing");
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, once_for_each_good_read, 1, SEEDS + 1);
    tcase_add_loop_test(tests, not_before_a_read_is_good, 0, 3);
    tcase_add_test(tests, not_for_what_was_displaced);
    tcase_add_loop_test(tests, copies_move_what_landed, 0, 4);
    tcase_add_loop_test(tests, each_read_lands, 0, 2);
    tcase_add_loop_test(tests, a_restored_set_lands, 0, 2);
    tcase_add_loop_test(tests, mirrors_land_the_good_copy, 0, 2);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
