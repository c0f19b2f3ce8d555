/* A server that comes back has what it had: over random settings the saved set is resident again,
 * replay of the recorded events still gives the live counts, a file that is damaged, cut or
 * half-written is never taken for a good one, and one of other weights or of anything else is not
 * overwritten. */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/support/tier_settings.h"
#include "tests/support/tiny_store.h"
#include "tiering/store_files.h"
#include "tiering/tiering.h"
#include "tiering/warm.h"

#define NEED(cond) \
    do { \
        if (!(cond)) ck_abort_msg("%s, seed %d", #cond, seed); \
    } while (0)
static int seed;

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 3, KEYS = LAYERS * EXPERTS, KILLS = 25 };

static char dir[3000], path[3100];
static struct tier_store *store;

static void setup(void)
{
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    store = tiny_store_open(dir, sizeof dir, "check_warm", &options);
    snprintf(path, sizeof path, "%s/warm", dir);
}

static void teardown(void)
{
    tier_store_close(store);
    tiny_remove(dir);
}

/* -- a server's life -------------------------------------------------------------------------- */

struct life {
    struct tier_config config;
    struct tier_io_config io;
    struct tier *tier;
    struct tier_decide *twin;   /* fed with the recorded events */
    uint32_t restores;
};

#define SET(l, ...) tier_settings_set(&(l)->config, &(l)->io, __VA_ARGS__)

static void defaults(struct life *l)
{
    memset(l, 0, sizeof *l);
    tier_settings_default(&l->config, &l->io);
    SET(l, "io.backend=threads");
    SET(l, "tiers.warm.path=%s", path);
}

static void on_event(void *context, const struct tier_event *event)
{
    struct life *l = context;
    struct base_err err = { 0 };
    l->restores += event->kind == TIER_EVENT_RESTORE;
    if (tier_decide_apply(l->twin, event, &err) < 0) {
        ck_abort_msg("event %d: %s, seed %d", (int)event->kind, err.text, seed);
    }
}

static int try_begin(struct life *l, struct base_err *err)
{
    struct tier_open_args args = {
        .config = &l->config, .io = &l->io, .store = store, .top_k = TOP_K,
        .observer = { on_event, l },
    };
    l->restores = 0;
    return tier_open(&l->tier, &args, err);
}

static void begin(struct life *l)
{
    struct base_err err = { 0 };
    int rc = try_begin(l, &err);
    if (rc == 0) rc = tier_decide_create(&l->twin, tier_decide_config_of(l->tier), &err);
    ck_assert_msg(rc == 0, "%s, seed %d", err.text, seed);
    tier_warm_restore(l->tier);
}

static void end(struct life *l)
{
    tier_close(l->tier);
    tier_decide_destroy(l->twin);
}

static void use(struct life *l, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    struct tier_lease leases[EXPERTS];
    uint32_t k = tier_acquire(l->tier, layer, ids, n, TIER_DECODE, leases);
    NEED(k > 0);
    NEED(tier_wait(l->tier, leases, k, TIER_WAIT_ALL, UINT64_MAX) == k);
    for (uint32_t i = 0; i < k; i++) NEED(leases[i].status == 0);
    tier_release(l->tier, leases, k);
}

/* Tokens that like the low numbers, and in between what serving does. */
static void serve(struct life *l, struct base_rng *rng, unsigned tokens)
{
    for (unsigned i = 0; i < tokens; i++) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            uint32_t ids[TOP_K], n = 0;
            while (n < TOP_K) {
                uint64_t below = 1 + base_rng_below(rng, EXPERTS);
                uint32_t id = (uint32_t)base_rng_below(rng, below);
                bool there = false;
                for (uint32_t j = 0; j < n; j++) there |= ids[j] == id;
                if (!there) ids[n++] = id;
            }
            use(l, layer, ids, n);
            if (base_rng_below(rng, 3) == 0) tier_poll(l->tier);
        }
        tier_step_end(l->tier);
        if (base_rng_below(rng, 8) == 0) tier_idle(l->tier);
    }
}

static void same_as_twin(struct life *l)
{
    static struct tier_snapshot s;
    tier_snapshot(l->tier, &s);
    for (uint32_t t = 0; t < s.tier_count; t++) {
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            NEED(memcmp(&s.cells[t][c], tier_decide_counts(l->twin, t, c), sizeof s.cells[t][c]) ==
                 0);
        }
    }
}

static void residents(struct life *l, uint8_t *in)
{
    uint64_t lookups[KEYS];
    NEED(tier_snapshot_experts(l->tier, lookups, in, KEYS) == 0);
}

static void draw(struct life *l, struct base_rng *rng)
{
    static const char *const policies[] = { "lru", "lru_global", "lfu", "lru_with_frequency", "arc",
                                            "lru_with_prediction", "slru", "s3fifo", "sieve",
                                            "pinned" };
    defaults(l);
    SET(l, "policy.eviction=%s", policies[base_rng_below(rng, 10)]);
    SET(l, "io.depth=%d", 1 << base_rng_below(rng, 6));
    SET(l, "tiers.dram.capacity=%d%%", 50 + (int)base_rng_below(rng, 50));
    if (base_rng_below(rng, 2)) {
        SET(l, "tiers.hbm.capacity=25%%");
        SET(l, "tiers.inclusion=%s", base_rng_below(rng, 2) ? "inclusive" : "exclusive");
        SET(l, "tiers.hbm.sim_bandwidth=0");
    }
}

START_TEST(what_was_resident_is_resident_again)
{
    static struct life l;
    static struct tier_snapshot s;
    struct base_rng rng;
    uint8_t before[KEYS], after[KEYS];
    seed = _i;
    base_rng_init(&rng, (uint64_t)seed);
    unlink(path);
    draw(&l, &rng);
    begin(&l);
    NEED(l.restores == 0);
    serve(&l, &rng, 60);
    residents(&l, before);
    tier_warm_save(l.tier);
    same_as_twin(&l);
    end(&l);

    begin(&l);
    residents(&l, after);
    uint32_t count = 0;
    for (unsigned k = 0; k < KEYS; k++) {
        NEED((before[k] != 0) == (after[k] != 0));
        count += after[k] != 0;
    }
    NEED(l.restores == count);
    if (base_rng_below(&rng, 2)) {
        /* Nobody asks: all is read in idle time, and then found readable. */
        while (tier_idle(l.tier) != UINT32_MAX) continue;
        tier_snapshot(l.tier, &s);
        NEED(s.warm.restore_reads == count && s.warm.restore_left == 0);
        NEED(s.io.demand_reads == 0 && s.io.prefetch_wasted_bytes == 0);
        for (unsigned k = 0; k < KEYS; k++) {
            uint32_t id = k % EXPERTS;
            if (after[k] & 1) use(&l, k / EXPERTS, &id, 1);
        }
        tier_step_end(l.tier);
        tier_snapshot(l.tier, &s);
        NEED(s.io.demand_reads == 0 && s.tiers[0].hits == s.tiers[0].lookups);
    }
    serve(&l, &rng, 40);
    same_as_twin(&l);
    /* What a warm start brings is not what hints do: the governor judges them by these. */
    tier_snapshot(l.tier, &s);
    NEED(s.io.prefetch_reads == 0 && s.io.copies_ahead == 0);
    NEED(s.io.prefetch_useful == 0 && s.io.prefetch_late == 0 && s.io.prefetch_wasted_bytes == 0);
    end(&l);
}
END_TEST

/* More slots than the saved set has: all of it is there for good, whatever is asked for. */
START_TEST(pinned_keeps_the_saved_set)
{
    static struct life l;
    static struct tier_snapshot s;
    struct base_rng rng;
    uint8_t before[KEYS], after[KEYS];
    uint32_t count = 0;
    seed = _i;
    base_rng_init(&rng, (uint64_t)seed);
    unlink(path);
    defaults(&l);
    SET(&l, "policy.eviction=pinned");
    SET(&l, "tiers.dram.capacity=50%%");
    begin(&l);
    serve(&l, &rng, 60);
    tier_snapshot(l.tier, &s);
    NEED(s.fixed_experts == 0);         /* nothing was there when it began */
    residents(&l, before);
    tier_warm_save(l.tier);
    end(&l);

    SET(&l, "tiers.dram.capacity=80%%");
    begin(&l);
    serve(&l, &rng, 60);
    residents(&l, after);
    for (unsigned k = 0; k < KEYS; k++) {
        NEED(!before[k] || after[k]);
        count += before[k] != 0;
    }
    tier_snapshot(l.tier, &s);
    NEED(count > 0 && s.fixed_experts == count && s.tiers[0].evictions > 0);
    same_as_twin(&l);
    end(&l);
}
END_TEST

START_TEST(another_size_keeps_the_hottest)
{
    static struct life l;
    uint8_t in[KEYS];
    seed = _i;
    unlink(path);
    defaults(&l);
    if (_i == 1) SET(&l, "policy.eviction=lfu");
    SET(&l, "tiers.dram.capacity=75%%");
    begin(&l);
    /* Each expert is used once and later than the one before; the last four most often. */
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t id = 0; id < EXPERTS; id++) use(&l, layer, &id, 1);
        for (int i = 0; i < 5; i++) use(&l, layer, (uint32_t[]){ 12, 13, 14, 15 }, 4);
    }
    tier_step_end(l.tier);
    tier_warm_save(l.tier);
    end(&l);
    SET(&l, "tiers.dram.capacity=25%%");
    begin(&l);
    residents(&l, in);
    for (unsigned k = 0; k < KEYS; k++) NEED((in[k] != 0) == (k % EXPERTS >= 12));
    /* And the one used longest ago is the first to go. */
    uint32_t id = 0;
    use(&l, 0, &id, 1);
    residents(&l, in);
    NEED(in[0] && !in[12] && in[13] && in[14] && in[15]);
    end(&l);
}
END_TEST

static void expect_saved(void)
{
    struct tier_warm_set saved;
    struct base_err err = { 0 };
    ck_assert_msg(tier_warm_file_load(&saved, path, &err) == 0, "%s", err.text);
    ck_assert_uint_gt(saved.count, 0);
    free(saved.rows);
}

START_TEST(it_is_saved_while_it_runs)
{
    static struct life l;
    struct base_rng rng;
    base_rng_init(&rng, 1);
    unlink(path);
    defaults(&l);
    SET(&l, "tiers.warm.save_every=1ms");
    begin(&l);
    serve(&l, &rng, 50);
    for (int i = 0; i < 2000 && access(path, R_OK) < 0; i++) {
        usleep(1000);
        tier_idle(l.tier);
    }
    expect_saved();
    end(&l);
}
END_TEST

/* A save that came to nothing is made up for, even if nothing is used any more. */
START_TEST(a_failed_save_is_made_up_for)
{
    static struct life l;
    static struct tier_snapshot s = { 0 };
    struct base_rng rng;
    base_rng_init(&rng, 1);
    unlink(path);
    defaults(&l);
    SET(&l, "tiers.warm.save_every=%s", _i == 0 ? "1ms" : "300s");
    begin(&l);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    serve(&l, &rng, 20);
    if (_i == 0) {
        /* One may have been under way when the last expert was used; then it is tried again. */
        tier_snapshot(l.tier, &s);
        uint64_t errors = s.warm.save_errors + 2;
        for (int i = 0; i < 2000 && s.warm.save_errors < errors; i++) {
            usleep(1000);
            tier_idle(l.tier);
            tier_step_end(l.tier);
            tier_snapshot(l.tier, &s);
        }
        ck_assert_uint_ge(s.warm.save_errors, errors);
    } else {
        tier_warm_save(l.tier);
    }
    ck_assert_int_eq(rmdir(path), 0);
    tier_warm_save(l.tier);
    expect_saved();
    end(&l);
}
END_TEST

/* -- the file --------------------------------------------------------------------------------- */

static struct tier_warm_set example(uint32_t count, uint32_t age)
{
    struct tier_warm_set set = {
        .model = 77, .layers = LAYERS, .experts = EXPERTS, .saved_at = 1234, .count = count,
        .rows = calloc(KEYS, sizeof *set.rows),
    };
    for (uint32_t i = 0; i < count; i++) {
        set.rows[i] =
            (struct tier_warm_row){ (i * 5 + 3) % KEYS, age + count - i, i & 1, (uint8_t)i };
    }
    return set;
}

static void *encoded(const struct tier_warm_set *set, size_t *size)
{
    *size = tier_warm_file_bytes(set->count);
    void *bytes = malloc(*size);
    tier_warm_file_encode(set, bytes);
    return bytes;
}

static void put(const void *bytes, size_t size)
{
    FILE *file = fopen(path, "w");
    ck_assert(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

START_TEST(any_changed_byte_is_noticed)
{
    struct tier_warm_set set = example(9, 0), got;
    struct base_err err = { 0 };
    size_t size;
    uint8_t *bytes = encoded(&set, &size);
    put(bytes, size);
    ck_assert_int_eq(tier_warm_file_load(&got, path, &err), 0);
    ck_assert_uint_eq(got.count, 9);
    ck_assert_uint_eq(got.model, 77);
    for (unsigned i = 0; i < 9; i++) {
        ck_assert_uint_eq(got.rows[i].key, set.rows[i].key);
        ck_assert_uint_eq(got.rows[i].age, set.rows[i].age);
        ck_assert_uint_eq(got.rows[i].hbm, set.rows[i].hbm);
        ck_assert_uint_eq(got.rows[i].uses, set.rows[i].uses);
    }
    free(got.rows);
    for (size_t i = 0; i < size; i++) {
        bytes[i] ^= (uint8_t)(1 << i % 8);
        put(bytes, size);
        err = (struct base_err){ 0 };
        ck_assert_int_lt(tier_warm_file_load(&got, path, &err), 0);
        ck_assert(strstr(err.text, path));
        ck_assert_ptr_null(got.rows);
        bytes[i] ^= (uint8_t)(1 << i % 8);
        put(bytes, i);
        ck_assert_int_lt(tier_warm_file_load(&got, path, &err), 0);
    }
    free(bytes);
    set.rows[3] = set.rows[2];
    bytes = encoded(&set, &size);
    put(bytes, size);
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_warm_file_load(&got, path, &err), BASE_EFORMAT);
    ck_assert(strstr(err.text, "once again"));
    free(bytes);
    free(set.rows);
}
END_TEST

/* The file is there afterwards as it was before. */
static void not_begun(int code, const char *part, const void *bytes, size_t size)
{
    static struct life l;
    struct base_err err = { 0 };
    char got[4096];
    put(bytes, size);
    defaults(&l);
    ck_assert_int_eq(try_begin(&l, &err), code);
    ck_assert_msg(strstr(err.text, "tiers.warm.path: ") == err.text && strstr(err.text, path) &&
                  strstr(err.text, part), "%s", err.text);
    FILE *file = fopen(path, "r");
    ck_assert(file && fread(got, 1, sizeof got, file) == size && fclose(file) == 0);
    ck_assert(memcmp(got, bytes, size) == 0);
}

START_TEST(what_is_not_ours_is_not_overwritten)
{
    static struct life l;
    struct tier_warm_set set = example(9, 0);
    struct base_err err = { 0 };
    size_t size;
    void *bytes = encoded(&set, &size);
    not_begun(BASE_EMISMATCH, "another model or other weights", bytes, size);
    not_begun(BASE_EFORMAT, "should begin with EXPTWARM", "precious\n", 9);
    not_begun(BASE_EFORMAT, "name another file", "EXPTWA\n", 7);
    defaults(&l);
    SET(&l, "tiers.warm.path=%s", dir);
    ck_assert_int_eq(try_begin(&l, &err), -EISDIR);
    ck_assert_msg(strstr(err.text, "tiers.warm.path: "), "%s", err.text);
    free(bytes);
    free(set.rows);
}
END_TEST

/* Empty, cut anywhere, damaged, of another version: told, not used, and written anew. */
START_TEST(a_set_that_was_cut_means_a_cold_start)
{
    static struct life l;
    static struct tier_snapshot s;
    struct tier_warm_set set = example(9, 0), got;
    size_t size;
    uint8_t *bytes = encoded(&set, &size);
    const size_t cuts[] = { 0, 5, 40, size - 1, size, size };
    const char *const why[] = { "header", "header", "header", "which take", "checksum", "version" };
    uint32_t ids[TOP_K] = { 0, 1, 2, 3 };
    seed = 0;
    for (int i = 0; i < 6; i++) {
        if (i >= 4) bytes[i == 4 ? size - 1 : 8] ^= 2;
        put(bytes, cuts[i]);
        if (i >= 4) bytes[i == 4 ? size - 1 : 8] ^= 2;
        defaults(&l);
        begin(&l);
        ck_assert_uint_eq(l.restores, 0);
        use(&l, 0, ids, TOP_K);
        tier_step_end(l.tier);
        tier_snapshot(l.tier, &s);
        ck_assert_msg(s.warm_refused && strstr(s.warm_note, why[i]), "%s", s.warm_note);
        tier_warm_save(l.tier);
        end(&l);
        ck_assert_int_eq(tier_warm_file_load(&got, path, NULL), 0);
        ck_assert_uint_eq(got.count, TOP_K);
        free(got.rows);
    }
    free(bytes);
    free(set.rows);
    unlink(path);
}
END_TEST

START_TEST(a_place_that_cannot_be_written_is_refused)
{
    static struct life l;
    struct base_err err = { 0 };
    defaults(&l);
    SET(&l, "tiers.warm.path=%s/nowhere/warm", dir);
    ck_assert_int_eq(try_begin(&l, &err), -ENOENT);
    ck_assert_msg(strstr(err.text, "tiers.warm.path"), "%s", err.text);
    defaults(&l);
    SET(&l, "tiers.warm.path=");
    SET(&l, "tiers.warm.save_every=7s");
    err = (struct base_err){ 0 };
    ck_assert_int_eq(try_begin(&l, &err), BASE_ECONFIG);
    ck_assert_msg(strstr(err.text, "no effect without tiers.warm.path"), "%s", err.text);
}
END_TEST

/* A child saves two sets by turns until it is killed: one of the two is there, whole. */
START_TEST(a_killed_save_leaves_a_whole_file)
{
    struct tier_warm_set sets[2] = { example(KEYS, 0), example(KEYS / 2, 1000) }, got;
    struct base_err err = { 0 };
    struct base_rng rng;
    void *bytes[2];
    size_t size[2];
    unsigned seen[2] = { 0, 0 };
    base_rng_init(&rng, 5);
    for (int i = 0; i < 2; i++) bytes[i] = encoded(&sets[i], &size[i]);
    put(bytes[0], size[0]);
    for (int i = 0; i < KILLS; i++) {
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        for (int n = 1; child == 0; n++) {
            tier_store_file_replace(path, bytes[n & 1], size[n & 1], &err);
        }
        usleep((useconds_t)(500 + base_rng_below(&rng, 6000)));
        kill(child, SIGKILL);
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
        int rc = tier_warm_file_load(&got, path, &err);
        ck_assert_msg(rc == 0, "kill %d: %s", i, err.text);
        ck_assert(got.count == sets[0].count || got.count == sets[1].count);
        seen[got.count == sets[1].count]++;
        free(got.rows);
    }
    printf("%d kills: the older set %u times, the newer %u times, never another\n", KILLS, seen[0],
           seen[1]);
    for (int i = 0; i < 2; i++) {
        free(bytes[i]);
        free(sets[i].rows);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("warm");
    TCase *tests = tcase_create("warm");
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, what_was_resident_is_resident_again, 1, 41);
    tcase_add_loop_test(tests, pinned_keeps_the_saved_set, 0, 10);
    tcase_add_loop_test(tests, another_size_keeps_the_hottest, 0, 2);
    tcase_add_test(tests, it_is_saved_while_it_runs);
    tcase_add_loop_test(tests, a_failed_save_is_made_up_for, 0, 2);
    tcase_add_test(tests, any_changed_byte_is_noticed);
    tcase_add_test(tests, what_is_not_ours_is_not_overwritten);
    tcase_add_test(tests, a_set_that_was_cut_means_a_cold_start);
    tcase_add_test(tests, a_place_that_cannot_be_written_is_refused);
    tcase_add_test(tests, a_killed_save_leaves_a_whole_file);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
