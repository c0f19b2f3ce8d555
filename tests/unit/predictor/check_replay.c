/* Replay agrees with what others counted, with a plain simulator, and with itself: published hit
 * rates on three real traces, LRU to the last lookup, Belady never beaten, exact replay of a live
 * core. */
#include <errno.h>
#include <math.h>

#include "predictor/feed.h"
#include "predictor/import.h"
#include "predictor/replay.h"
#include "predictor/survey.h"
#include "tests/support/plain_lru.h"
#include "tests/unit/predictor/support.h"
#include "tiering/wave.h"

static char data_dir[512];

static bool have_data(void)
{
    const char *data = getenv("EXPERTIER_DATA");
    if (!data) return false;
    snprintf(data_dir, sizeof data_dir, "%s/routing", data);
    return access(data_dir, R_OK) == 0;
}

static struct pred_case make_case(const char *policy, uint64_t slots, uint64_t budget)
{
    struct pred_case c = { .slots = slots, .budget_bytes = budget, .prefill_share = 1,
                           .half_life_tokens = 16 };
    snprintf(c.policy, sizeof c.policy, "%s", policy);
    return c;
}

static void run_cases(const char *path, const struct pred_case *cases,
                      struct pred_case_result *results, uint32_t count)
{
    struct base_err err = { 0 };
    struct pred_replay_summary summary;
    struct pred_trace_reader *r = support_open(path);
    int rc = pred_replay_run(r, cases, results, count, &summary, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    pred_trace_reader_close(r);
}

/* ---------------------------------------------------------------------- published hit rates -- */

START_TEST(agrees_with_published_curves)
{
    static const char *const names[] = { "gemma", "gptoss", "qwen" };
    enum { BUDGETS_MAX = 32 };
    char from[600], curve[600], line[256];
    struct base_err err = { 0 };
    struct pred_import_stats stats;
    struct pred_case cases[2 * BUDGETS_MAX];
    static struct pred_case_result results[2 * BUDGETS_MAX];
    double published[2 * BUDGETS_MAX];
    uint32_t count = 0;
    snprintf(from, sizeof from, "%s/bigmoeonedge/%s.route.csv", data_dir, names[_i]);
    snprintf(curve, sizeof curve, "%s/bigmoeonedge/%s-curve.txt", data_dir, names[_i]);
    const char *trace = support_path("t.trace");
    int rc = pred_import_csv(from, trace, &stats, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    FILE *file = fopen(curve, "r");
    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof line, file)) {
        unsigned mib;
        double belady, lru;
        if (sscanf(line, "%u %lf %lf", &mib, &belady, &lru) != 3) continue;
        cases[count] = make_case("belady", 0, (uint64_t)mib << 20);
        published[count++] = belady;
        cases[count] = make_case("lru_global", 0, (uint64_t)mib << 20);
        published[count++] = lru;
    }
    fclose(file);
    ck_assert_uint_eq(count, 22);
    run_cases(trace, cases, results, count);
    for (uint32_t i = 0; i < count; i++) {
        const struct tier_counts *decode = &results[i].phases[TIER_DECODE];
        double rate = 100.0 * (double)decode->resident / (double)decode->lookups;
        ck_assert_msg(fabs(rate - published[i]) <= 0.2, "%s %s at %llu MiB: %.2f, published %.1f",
                      names[_i], cases[i].policy, (unsigned long long)cases[i].budget_bytes >> 20,
                      rate, published[i]);
    }
    pred_replay_results_fini(results, count);
}
END_TEST

/* ----------------------------------------------------------------------- a plain simulator -- */

START_TEST(lru_matches_a_plain_simulator)
{
    char from[600], command[1400];
    struct base_err err = { 0 };
    struct pred_import_stats stats;
    struct pred_case_result results[2];
    const char *trace = support_path("t.trace"), *text = support_path("t.jsonl");
    snprintf(from, sizeof from, "%s/gptoss20b_dev.jsonl.xz", data_dir);
    snprintf(command, sizeof command, "xz -dc '%s' | head -n 12001 >'%s'", from, text);
    ck_assert_int_eq(system(command), 0);
    int rc = pred_import_jsonl(text, trace, &stats, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(stats.tokens, 12000);
    struct pred_case cases[] = { make_case("lru", 8 * 24, 0), make_case("lru", 16 * 24, 0) };
    run_cases(trace, cases, results, 2);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t lookups = 0, misses = 0;
        FILE *file = fopen(text, "r");
        ck_assert_ptr_nonnull(file);
        ck_assert_int_eq(plain_lru(file, i == 0 ? 8 : 16, &lookups, &misses), 0);
        fclose(file);
        ck_assert_uint_eq(results[i].phases[TIER_DECODE].lookups, lookups);
        ck_assert_uint_eq(results[i].phases[TIER_DECODE].misses, misses);
        ck_assert_uint_eq(lookups, 12000u * 24 * 4);
    }
    pred_replay_results_fini(results, 2);
}
END_TEST

/* ------------------------------------------------------------------------- made-up routing -- */

enum { LAYERS = 3, EXPERTS = 24, TOP_K = 3, STEPS = 1500 };

/* Routing with habits: skewed, drifting, batches and prompts among single tokens. */
static void write_steps(const char *path, uint64_t seed, unsigned steps)
{
    struct pred_trace_config config = support_config(path);
    static const uint64_t bytes[LAYERS] = { 1000, 1000, 1000 };
    struct pred_trace_header header = { .model = "made-up", .source = "jsonl", .layers = LAYERS,
                                        .experts = EXPERTS, .top_k = TOP_K, .expert_bytes = bytes };
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    struct base_rng rng;
    base_rng_init(&rng, seed);
    ck_assert_msg(pred_trace_writer_open(&w, &config, &header, true, &err) == 0, "%s", err.text);
    pred_trace_writer_patient(w);
    for (unsigned s = 0; s < steps; s++) {
        enum { TOKENS = 6 };
        uint32_t n = base_rng_below(&rng, 8) ? 1 : 1 + (uint32_t)base_rng_below(&rng, TOKENS);
        uint32_t ids[LAYERS * TOKENS * TOP_K], positions[TOKENS];
        uint64_t seqs[TOKENS];
        uint8_t phases[TOKENS];
        for (uint32_t i = 0; i < n; i++) {
            seqs[i] = i;
            positions[i] = s;
            phases[i] = base_rng_below(&rng, 6) ? TIER_DECODE : TIER_PREFILL;
        }
        for (uint32_t row = 0; row < LAYERS * n; row++) {
            uint32_t pool[EXPERTS];
            support_ids(&rng, pool, TOP_K, 5 + s / 100 % 20);
            for (uint32_t k = 0; k < TOP_K; k++) {
                ids[row * TOP_K + k] = (pool[k] + s / 200) % EXPERTS;
            }
        }
        struct pred_step step = { .step = s, .token_count = n, .seqs = seqs, .positions = positions,
                                  .phases = phases, .expert_ids = ids };
        pred_trace_writer_step(w, &step);
        if (s % 50 == 49) pred_trace_writer_flush(w);
    }
    ck_assert_msg(pred_trace_writer_close(w, &err) == 0, "%s", err.text);
}

static void write_routing(const char *path, uint64_t seed)
{
    write_steps(path, seed, STEPS);
}

/* No policy misses less than Belady's with the same slots and partition. */
START_TEST(belady_is_never_beaten)
{
    struct pred_case_result results[12];
    struct pred_case cases[12];
    const char *trace = support_path("t.trace");
    write_routing(trace, (uint64_t)_i);
    uint32_t n = 0;
    for (uint64_t slots = 6; slots <= 20; slots += 7) {
        cases[n++] = make_case("belady", slots * LAYERS, 0);
        cases[n++] = make_case("lru", slots * LAYERS, 0);
        cases[n++] = make_case("belady_global", slots * LAYERS, 0);
        cases[n++] = make_case("lru_global", slots * LAYERS, 0);
    }
    run_cases(trace, cases, results, n);
    for (uint32_t i = 0; i < n; i += 2) {
        uint64_t best = results[i].phases[0].misses + results[i].phases[1].misses;
        uint64_t other = results[i + 1].phases[0].misses + results[i + 1].phases[1].misses;
        ck_assert_msg(best <= other, "seed %d: %s %llu, %s %llu misses", _i, cases[i].policy,
                      (unsigned long long)best, cases[i + 1].policy, (unsigned long long)other);
        ck_assert_uint_gt(other, 0);
    }
    pred_replay_results_fini(results, n);
}
END_TEST

/* Where all experts have one size, slots and bytes are two words for one thing. */
START_TEST(bytes_and_slots_agree)
{
    struct pred_case_result results[4];
    const char *trace = support_path("t.trace");
    write_routing(trace, 100 + (uint64_t)_i);
    struct pred_case cases[] = {
        make_case("lru_global", 40, 0), make_case("lru", 0, 40 * 1000 + 999),
        make_case("belady_global", 40, 0), make_case("belady", 0, 40 * 1000),
    };
    run_cases(trace, cases, results, 4);
    for (int i = 0; i < 4; i += 2) {
        for (int p = 0; p < TIER_PHASE_COUNT; p++) {
            ck_assert_uint_eq(results[i].phases[p].lookups, results[i + 1].phases[p].lookups);
            /* Belady's ties may fall otherwise, which costs it nothing. */
            ck_assert_uint_eq(results[i].phases[p].misses, results[i + 1].phases[p].misses);
        }
    }
    pred_replay_results_fini(results, 4);
}
END_TEST

/* What a server writes between Belady's two readings belongs to neither. */
START_TEST(a_growing_trace_is_replayed_to_one_end)
{
    enum { CASES = 3 };
    struct pred_case_result grown[CASES], cut[CASES];
    struct pred_case cases[CASES] = { make_case("belady", 8 * LAYERS, 0),
                                      make_case("lru", 8 * LAYERS, 0),
                                      make_case("belady", 0, 24000) };
    const char *trace = support_path("t.trace");
    struct pred_replay_summary summary;
    struct support_growing growing;
    struct pred_replay_progress progress = { support_grow, &growing };
    struct pred_trace_health health;
    struct base_err err = { 0 };
    write_steps(trace, 11, 2 * STEPS);
    support_growing_begin(&growing, trace);
    run_cases(trace, cases, cut, CASES);
    struct pred_trace_reader *r = support_open(trace);
    int rc = pred_replay_run(r, cases, grown, CASES, &summary, &progress, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    pred_trace_reader_health(r, &health);
    ck_assert_uint_eq(health.torn_bytes, 100);
    ck_assert(!health.ended);
    pred_trace_reader_close(r);
    support_growing_end(&growing);
    for (int i = 0; i < CASES; i++) {
        ck_assert_uint_eq(grown[i].acquires, cut[i].acquires);
        ck_assert_mem_eq(grown[i].phases, cut[i].phases, sizeof cut[i].phases);
    }
    pred_replay_results_fini(grown, CASES);
    pred_replay_results_fini(cut, CASES);
    /* Opened anew it is as long as it has become. */
    run_cases(trace, cases, grown, CASES);
    ck_assert_uint_gt(grown[0].acquires, cut[0].acquires);
    pred_replay_results_fini(grown, CASES);
}
END_TEST

START_TEST(a_growing_trace_is_surveyed_to_one_end)
{
    static struct pred_survey grown, cut;
    struct pred_case c = make_case("lru", 8 * LAYERS, 0);
    const char *trace = support_path("t.trace");
    struct support_growing growing;
    struct pred_replay_progress progress = { support_grow, &growing };
    struct base_err err = { 0 };
    write_steps(trace, 12, 5 * STEPS);
    support_growing_begin(&growing, trace);
    struct pred_trace_reader *r = support_open(trace);
    ck_assert_int_eq(pred_survey_run(&cut, r, &c, 1, NULL, &err), 0);
    pred_trace_reader_close(r);
    r = support_open(trace);
    ck_assert_int_eq(pred_survey_run(&grown, r, &c, 1, &progress, &err), 0);
    pred_trace_reader_close(r);
    support_growing_end(&growing);
    ck_assert_uint_eq(grown.acquires, cut.acquires);
    ck_assert_uint_eq(grown.windows, PRED_SURVEY_WINDOWS);
    ck_assert_mem_eq(grown.rates[0], cut.rates[0], sizeof cut.rates[0]);
    pred_survey_fini(&grown);
    pred_survey_fini(&cut);
}
END_TEST

/* Each lookup by itself: the textbook's LRU, a list a layer, over the same acquires. */
START_TEST(one_at_a_time_is_the_textbook)
{
    enum { SLOTS = 7 };
    const char *trace = support_path("t.trace");
    uint32_t list[LAYERS][SLOTS], held[LAYERS] = { 0 };
    uint64_t misses[LAYERS] = { 0 };
    struct pred_case c = make_case("lru", SLOTS * LAYERS, 0);
    struct pred_case_result result;
    struct pred_replay_summary summary;
    struct pred_acquire a;
    struct pred_feed *feed;
    struct base_err err = { 0 };
    write_routing(trace, 31);
    struct pred_trace_reader *r = support_open(trace);
    ck_assert_int_eq(pred_feed_create(&feed, r, &err), 0);
    while (pred_feed_next(feed, &a, &err) == 1) {
        for (uint32_t i = 0; i < a.count; i++) {
            uint32_t *l = list[a.layer], n = held[a.layer], at = 0;
            while (at < n && l[at] != a.ids[i]) at++;
            misses[a.layer] += at == n;
            if (at == n && n < SLOTS) held[a.layer]++;
            if (at == SLOTS) at--;
            memmove(l + 1, l, at * sizeof l[0]);
            l[0] = a.ids[i];
        }
    }
    pred_feed_destroy(feed);
    ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
    c.one_at_a_time = true;
    ck_assert_int_eq(pred_replay_run(r, &c, &result, 1, &summary, NULL, &err), 0);
    for (uint32_t l = 0; l < LAYERS; l++) ck_assert_uint_eq(result.layers[l].misses, misses[l]);
    pred_replay_results_fini(&result, 1);
    ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
    c = make_case("lru", 0, 20000);
    c.one_at_a_time = true;
    ck_assert_int_eq(pred_replay_run(r, &c, &result, 1, &summary, NULL, &err), BASE_ECONFIG);
    pred_replay_results_fini(&result, 1);
    pred_trace_reader_close(r);
}
END_TEST

START_TEST(cells_add_up)
{
    struct pred_case_result result;
    const char *trace = support_path("t.trace");
    write_routing(trace, 7);
    struct pred_case c = make_case("lru", 8 * LAYERS, 0);
    c.prefill_share = 0.25;                     /* prompts come in waves then */
    run_cases(trace, &c, &result, 1);
    struct tier_counts cells = { 0 }, phases = { 0 }, layers = { 0 };
    for (int i = 0; i < TIER_CELL_COUNT; i++) {
        cells.lookups += result.cells[i].lookups;
        cells.misses += result.cells[i].misses;
        cells.evictions += result.cells[i].evictions;
    }
    for (int i = 0; i < TIER_PHASE_COUNT; i++) {
        phases.lookups += result.phases[i].lookups;
        phases.misses += result.phases[i].misses;
        phases.evictions += result.phases[i].evictions;
    }
    for (int i = 0; i < LAYERS; i++) {
        layers.lookups += result.layers[i].lookups;
        layers.misses += result.layers[i].misses;
        layers.evictions += result.layers[i].evictions;
    }
    ck_assert_uint_eq(cells.lookups, phases.lookups);
    ck_assert_uint_eq(cells.misses, phases.misses);
    ck_assert_uint_eq(cells.evictions, phases.evictions);
    ck_assert_uint_eq(layers.lookups, phases.lookups);
    ck_assert_uint_eq(layers.misses, phases.misses);
    ck_assert_uint_eq(layers.evictions, phases.evictions);
    ck_assert_uint_gt(result.cells[TIER_CELL_PREFILL].lookups, 0);
    pred_replay_results_fini(&result, 1);
}
END_TEST

/* ----------------------------------------------------------------------------- as recorded -- */

static void live_event(struct pred_trace_writer *w, enum tier_event_kind kind, uint32_t layer,
                       const uint32_t *ids, uint32_t count, uint32_t granted)
{
    struct tier_event event = { .kind = kind, .phase = TIER_DECODE, .layer = layer, .ids = ids,
                                .count = count, .granted = granted };
    pred_trace_writer_event(w, &event);
}

static void live_counts(struct pred_trace_writer *w, const struct tier_decide *core, uint64_t lie)
{
    struct pred_trace_counts counts = { .tier_count = 1 };
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        counts.cells[0][c] = *tier_decide_counts(core, 0, (enum tier_cell)c);
    }
    counts.cells[0][TIER_CELL_DECODE].misses += lie;
    pred_trace_writer_counts(w, &counts);
}

/* A small live run: a core is asked, in waves where its slots are few, and everything is
 * recorded. */
static void write_live(const char *path, const char *policy, uint64_t seed, uint64_t lie,
                       uint64_t slots_recorded)
{
    struct tier_decide_config core_config = {
        .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K, .tier_count = 1,
        .tiers = { { .slots = 8 * LAYERS } }, .half_life_tokens = 16, .prefill_share = 0.5,
    };
    snprintf(core_config.tiers[0].policy, sizeof core_config.tiers[0].policy, "%s", policy);
    struct tier_decide *core;
    struct tier_found found[EXPERTS];
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    struct base_rng rng;
    struct pred_trace_config config = support_config(path);
    struct pred_trace_header header = { .model = "live", .source = "server", .layers = LAYERS,
                                        .experts = EXPERTS, .top_k = TOP_K, .decide = core_config };
    header.decide.tiers[0].slots = slots_recorded;
    ck_assert_msg(tier_decide_create(&core, &core_config, &err) == 0, "%s", err.text);
    ck_assert_msg(pred_trace_writer_open(&w, &config, &header, true, &err) == 0, "%s", err.text);
    pred_trace_writer_patient(w);
    base_rng_init(&rng, seed);
    for (unsigned s = 0; s < 600; s++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            uint32_t ids[EXPERTS], n = 1 + (uint32_t)base_rng_below(&rng, 12), done = 0, held = 0;
            support_ids(&rng, ids, n, EXPERTS);
            while (done < n || held > 0) {
                if (done < n) {
                    uint32_t k =
                        tier_decide_acquire(core, l, ids + done, n - done, TIER_DECODE, found);
                    live_event(w, TIER_EVENT_ACQUIRE, l, ids + done, n - done, k);
                    done += k;
                    held += k;
                }
                uint32_t goes = tier_wave_goes(TIER_DECODE, held, done < n);
                tier_decide_release(core, l, ids + done - held, goes);
                live_event(w, TIER_EVENT_RELEASE, l, ids + done - held, goes, 0);
                held -= goes;
            }
        }
        if (s % 200 == 100) live_counts(w, core, 0);
    }
    live_counts(w, core, lie);
    ck_assert_msg(pred_trace_writer_close(w, &err) == 0, "%s", err.text);
    tier_decide_destroy(core);
}

START_TEST(recorded_run_replays_exactly)
{
    const char *policies[] = { "lru", "lru_global" };
    const char *trace = support_path("t.trace");
    struct base_err err = { 0 };
    struct pred_exact exact;
    write_live(trace, policies[_i], 5, 0, 8 * LAYERS);
    struct pred_trace_reader *r = support_open(trace);
    ck_assert_msg(pred_replay_exact(r, &exact, NULL, &err) == 0, "%s", err.text);
    ck_assert(exact.same);
    ck_assert_uint_eq(exact.checks, 4);
    ck_assert_uint_gt(exact.live.cells[0][TIER_CELL_DECODE].misses, 1000);
    ck_assert_uint_eq(exact.live.cells[0][TIER_CELL_DECODE].misses,
                      exact.replayed.cells[0][TIER_CELL_DECODE].misses);
    /* The same acquires as a what-if with the same slots: the same counts, waves joined again. */
    struct pred_replay_summary summary;
    struct pred_case c = make_case(policies[_i], 8 * LAYERS, 0);
    struct pred_case_result result;
    ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
    ck_assert_int_eq(pred_replay_run(r, &c, &result, 1, &summary, NULL, &err), 0);
    ck_assert(summary.from_events);
    ck_assert_uint_eq(result.cells[TIER_CELL_DECODE].misses,
                      exact.live.cells[0][TIER_CELL_DECODE].misses);
    ck_assert_uint_eq(result.cells[TIER_CELL_DECODE].evictions,
                      exact.live.cells[0][TIER_CELL_DECODE].evictions);
    pred_replay_results_fini(&result, 1);
    pred_trace_reader_close(r);
}
END_TEST

START_TEST(a_difference_is_found)
{
    const char *trace = support_path("t.trace");
    struct base_err err = { 0 };
    struct pred_exact exact;
    write_live(trace, "lru", 5, 1, 8 * LAYERS); /* one miss too many in the live counts */
    struct pred_trace_reader *r = support_open(trace);
    ck_assert_int_eq(pred_replay_exact(r, &exact, NULL, &err), 0);
    ck_assert(!exact.same);
    ck_assert_uint_eq(exact.differing, 1);
    ck_assert_uint_eq(exact.differing_step, exact.steps);
    ck_assert_uint_eq(exact.live.cells[0][TIER_CELL_DECODE].misses,
                      exact.replayed.cells[0][TIER_CELL_DECODE].misses + 1);
    pred_trace_reader_close(r);
    write_live(trace, "lru", 5, 0, 7 * LAYERS); /* another configuration than recorded */
    r = support_open(trace);
    int rc = pred_replay_exact(r, &exact, NULL, &err);
    ck_assert(rc == BASE_EMISMATCH || (rc == 0 && !exact.same));
    pred_trace_reader_close(r);
}
END_TEST

START_TEST(inexact_traces_are_refused)
{
    const char *trace = support_path("t.trace");
    struct base_err err = { 0 };
    struct pred_exact exact;
    write_routing(trace, 3);
    struct pred_trace_reader *r = support_open(trace);
    ck_assert_int_eq(pred_replay_exact(r, &exact, NULL, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "no events of a server's cache"));
    pred_trace_reader_close(r);
    /* A gap: a record too large for the ring is lost. */
    struct pred_trace_config config = support_config(trace);
    struct pred_trace_header header = {
        .model = "live", .source = "server", .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K,
        .decide = { .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K, .tier_count = 1,
                    .tiers = { { .slots = 8 * LAYERS, .policy = "lru" } }, .half_life_tokens = 16 },
    };
    struct pred_trace_writer *w;
    char text[2000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    struct tier_event large = { .kind = TIER_EVENT_SETTING, .text = text };
    config.buffer = 1024;
    struct base_err writer_err = { 0 }, gap_err = { 0 };
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &writer_err), 0);
    pred_trace_writer_event(w, &large);
    live_event(w, TIER_EVENT_ACQUIRE, 0, (const uint32_t[]){ 1, 2 }, 2, 2);
    ck_assert_int_eq(pred_trace_writer_close(w, &writer_err), -ENOBUFS);
    r = support_open(trace);
    ck_assert_int_eq(pred_replay_exact(r, &exact, NULL, &gap_err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(gap_err.text, "gaps"));
    pred_trace_reader_close(r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("predictor/replay");
    TCase *made_up = tcase_create("made-up");
    tcase_set_timeout(made_up, 60);
    tcase_add_checked_fixture(made_up, support_begin, support_end);
    tcase_add_loop_test(made_up, belady_is_never_beaten, 0, 8);
    tcase_add_loop_test(made_up, bytes_and_slots_agree, 0, 4);
    tcase_add_test(made_up, a_growing_trace_is_replayed_to_one_end);
    tcase_add_test(made_up, a_growing_trace_is_surveyed_to_one_end);
    tcase_add_test(made_up, one_at_a_time_is_the_textbook);
    tcase_add_test(made_up, cells_add_up);
    tcase_add_loop_test(made_up, recorded_run_replays_exactly, 0, 2);
    tcase_add_test(made_up, a_difference_is_found);
    tcase_add_test(made_up, inexact_traces_are_refused);
    suite_add_tcase(suite, made_up);
    if (have_data()) {
        TCase *real = tcase_create("real");
        tcase_set_timeout(real, 100);
        tcase_add_checked_fixture(real, support_begin, support_end);
        tcase_add_loop_test(real, agrees_with_published_curves, 0, 3);
        tcase_add_test(real, lru_matches_a_plain_simulator);
        suite_add_tcase(suite, real);
    } else {
        puts(
            "skip: EXPERTIER_DATA names no folder with routing: the recorded traces are not tried");
    }
    return support_run(suite);
}
