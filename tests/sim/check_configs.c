/* No setting shows: over random configurations of tiers, sizes, policies, predictors, prefetch,
 * layouts on disk, ways of reading, threads, KV blocks, cuts of the prompt and neighbours, and
 * changes of size, policy, quotas and prefetch while requests run, with warm experts copied up or
 * computed where they lie, every logit of every request has the bits of a run alone with everything
 * in memory; and the recorded events of each run, replayed, give its live counts.
 *
 * check_configs [ROUNDS]: seeds 1..ROUNDS. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/support/campaign.h"
#include "tests/support/campaign_live.h"

enum { TEXTS = 6, BLOCK_MAX = 64, LAYERS = 6, EXPERTS = 64, TOP_K = 6, HANG_S = 120, DRAWS = 60 };

static const struct {
    const char *text;
    uint32_t tokens;
    float temperature;
} asks[TEXTS] = {
    { "The kernel is the part of the system that", 24, 0.8f },
    { "In the beginning God created", 16, 0.0f },
    { "#include <stdio.h>\n\nint main(void)\n{\n    printf(", 20, 0.9f },
    { "Pour installer le paquet, il faut", 12, 0.7f },
    { "a", 30, 1.0f },
    { "And the evening and the morning were the first day. And God said, Let there be a "
      "firmament in the midst of the waters, and let it divide the waters from the waters.",
      8, 0.5f },
};

static struct campaign campaign;
static struct run run;
static uint64_t wanted[TEXTS], rounds, until_ns;
static struct {
    uint64_t runs, refused, hbm, inclusive, compute, in_place;
    uint64_t answers, events, changes, changes_refused, prefetched;
} done;

/* Sampled: one wrong bit leads to another text. */
static void submit(unsigned i)
{
    uint32_t count, *ids = run_encode(&run, asks[i].text, &count);
    struct eng_request request = {
        .prompt = ids,
        .prompt_tokens = count,
        .max_tokens = asks[i].tokens,
        .sampling = { .temperature = asks[i].temperature, .top_p = 0.95f, .seed = 100 + i },
        .ignore_eos = true,
        .prompt_logits = true,
    };
    run_submit(&run, &request);
    free(ids);
}

/* Each request alone, everything in memory. */
static void plain_runs(void)
{
    const char *settings[] = { "tiers.dram.capacity=100%", "io.backend=threads",
                               "engine.threads=1", NULL };
    for (unsigned i = 0; i < TEXTS; i++) {
        run_open(&run, run_pebble(), settings);
        submit(i);
        run_finish(&run);
        ck_assert_uint_eq(run.answers[0].token_count, asks[i].tokens);
        wanted[i] = run.answers[0].rows_hash;
        run_close(&run);
    }
}

static void prepare(void)
{
    campaign_watch(HANG_S, "preparing", 0);
    campaign_begin(&campaign);
    plain_runs();
}

static void clean_up(void)
{
    campaign_end(&campaign);
}

static uint64_t between(struct base_rng *rng, uint64_t low, uint64_t high)
{
    return low + base_rng_below(rng, high - low + 1);
}

/* A share of whole slots a layer, or a size. */
static void set_capacity(struct campaign_settings *s, const char *key, struct base_rng *rng,
                         uint64_t low, uint64_t high)
{
    uint64_t slots = between(rng, low, high);
    if (base_rng_below(rng, 3) > 0) {
        campaign_set(s, "%s=%.4f%%", key, 100.0 * (double)slots / EXPERTS);
    } else {
        campaign_set(s, "%s=%lluKiB", key, (unsigned long long)(slots * LAYERS * 56 + 1000));
    }
}

static void draw_tiers(struct campaign_settings *s, struct base_rng *rng, const char *policy)
{
    static const char *const bandwidths[] = { "0", "256MiB", "16GiB" };
    bool hbm = base_rng_below(rng, 5) < 3, inclusive = hbm && base_rng_below(rng, 3) == 0;
    campaign_eviction(&campaign, s, policy);
    if (strstr(policy, "lfu") || strstr(policy, "frequency")) {
        campaign_set(s, "policy.half_life=%llu", (unsigned long long)between(rng, 0, 40));
    }
    if (hbm) {
        set_capacity(s, "tiers.hbm.capacity", rng, TOP_K, 30);
        campaign_set(s, "tiers.hbm.device=%s", base_rng_below(rng, 4) ? "sim" : "host");
        campaign_set(s, "tiers.hbm.sim_bandwidth=%s", bandwidths[base_rng_below(rng, 3)]);
        campaign_set(s, "tiers.inclusion=%s", inclusive ? "inclusive" : "exclusive");
        campaign_set(s, "tiers.warm_experts=%s", base_rng_below(rng, 2) ? "compute" : "copy");
        set_capacity(s, "tiers.dram.capacity", rng, inclusive ? 31 : 1, 60);
    } else {
        set_capacity(s, "tiers.dram.capacity", rng, TOP_K, EXPERTS);
    }
    campaign_set(s, "tiers.dram.pin=%s", base_rng_below(rng, 2) ? "auto" : "off");
    campaign_set(s, "tiers.verify=%s", base_rng_below(rng, 2) ? "always" : "first");
    campaign_set(s, "policy.prefill_share=%llu%%", (unsigned long long)between(rng, 5, 100));
}

static void draw(struct campaign_settings *s, struct base_rng *rng, const char *policy)
{
    static const unsigned chunks[] = { 1, 3, 7, 32, 256 },
                          pieces[] = { 64, 256, 1024 };
    campaign_clear(s);
    draw_tiers(s, rng, policy);
    campaign_prediction(s, rng);
    campaign_set(s, "tiers.nvme.index=%s", campaign.index[base_rng_below(rng, CAMPAIGN_LAYOUTS)]);
    campaign_set(s, "io.backend=%s", campaign_backend(rng));
    campaign_set(s, "io.depth=%llu", (unsigned long long)between(rng, 1, 48));
    campaign_set(s, "io.threads=%llu", (unsigned long long)between(rng, 1, 4));
    campaign_set(s, "io.direct=%s", base_rng_below(rng, 2) ? "auto" : "off");
    campaign_set(s, "io.chunk=%uKiB", pieces[base_rng_below(rng, 3)]);
    campaign_set(s, "io.sim_seed=%llu", (unsigned long long)base_rng_below(rng, 1000000));
    campaign_set(s, "io.sim_latency=%lluus", (unsigned long long)between(rng, 0, 20));
    campaign_set(s, "engine.threads=%llu", (unsigned long long)between(rng, 1, 2));
    campaign_set(s, "kv.block_tokens=%llu", (unsigned long long)between(rng, 1, BLOCK_MAX));
    campaign_set(s, "scheduler.max_chunked_prefill_tokens=%u", chunks[base_rng_below(rng, 5)]);
    campaign_set(s, "scheduler.max_num_batched_tokens=%llu",
                 (unsigned long long)between(rng, 8, 300));
    campaign_set(s, "scheduler.max_num_seqs=%llu", (unsigned long long)between(rng, 1, TEXTS));
}

/* Opens with the first configuration drawn from the seed that the stack takes. */
static void open_drawn(struct campaign_settings *s, struct base_rng *rng, uint64_t seed)
{
    unsigned policies = 0;
    while (campaign_policy(policies)) policies++;
    for (int i = 0; i < DRAWS; i++) {
        draw(s, rng, campaign_policy((unsigned)(seed % policies)));
        if (campaign_open_run(&campaign, &run, s)) return;
        done.refused++;
    }
    ck_abort_msg("seed %llu: %d configurations in a row are refused, the last: %s",
                 (unsigned long long)seed, DRAWS, campaign_show(s));
}

/* One step, and now and then other settings before it. False when nothing is left to do. */
static bool step(struct base_rng *rng, unsigned every)
{
    if (every > 0 && base_rng_below(rng, every) == 0) {
        bool taken = campaign_reconfigure(&run, rng, EXPERTS, false);
        done.changes += taken;
        done.changes_refused += !taken;
    }
    int alive = eng_step(run.stack.engine);
    ck_assert_int_ge(alive, 0);
    return alive > 0;
}

static void one_round(uint64_t seed)
{
    static struct campaign_settings settings;
    struct base_rng rng;
    unsigned asked[TEXTS];
    char what[40];
    base_rng_init(&rng, seed);
    snprintf(what, sizeof what, "seed %llu", (unsigned long long)seed);
    campaign_watch(HANG_S, "a configuration", seed);
    open_drawn(&settings, &rng, seed);
    const struct tier_decide_config *decide = tier_decide_config_of(run.stack.tier);
    done.hbm += decide->tier_count == 2;
    done.inclusive += decide->inclusive;
    done.compute += decide->warm_compute;
    unsigned first = (unsigned)base_rng_below(&rng, TEXTS), n = (unsigned)between(&rng, 1, 4);
    /* Every other run keeps its settings. */
    unsigned every = seed % 2 ? 0 : (unsigned)between(&rng, 1, 12);
    for (unsigned i = 0; i < n; i++) {
        asked[i] = (first + i) % TEXTS;
        submit(asked[i]);
        /* Some come while others are under way. */
        for (uint64_t steps = base_rng_below(&rng, 6); steps > 0; steps--) step(&rng, every);
    }
    while (step(&rng, every)) {}
    for (unsigned i = 0; i < n; i++) {
        const struct run_answer *answer = &run.answers[i];
        ck_assert_msg(answer->finish == ENG_LENGTH, "%s: %s: %s", what, answer->error,
                      campaign_show(&settings));
        ck_assert_msg(answer->rows_hash == wanted[asked[i]],
                      "%s: request %u has other bits than alone with everything in memory: %s",
                      what, asked[i], campaign_show(&settings));
    }
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        struct tier_snapshot snapshot;
        tier_snapshot(run.stack.tier, &snapshot);
        done.prefetched += snapshot.cells[0][c].prefetch_admissions;
        if (decide->tier_count == 2) done.in_place += snapshot.cells[1][c].in_place;
    }
    run_close(&run);
    done.events += campaign_replay(&campaign, what);
    done.answers += n;
    done.runs++;
}

START_TEST(no_setting_shows)
{
    for (uint64_t seed = 1; seed <= rounds || base_now_ns() < until_ns; seed++) one_round(seed);
    printf("seeds 1..%llu: %llu answers with the same bits, %llu events replayed to the same "
           "counts; %llu runs with hbm, %llu of them inclusive; %llu compute what is warm in "
           "place, %llu experts so; %llu draws refused; %llu changes "
           "while requests ran, %llu refused; %llu experts prefetched\n",
           (unsigned long long)done.runs, (unsigned long long)done.answers,
           (unsigned long long)done.events, (unsigned long long)done.hbm,
           (unsigned long long)done.inclusive, (unsigned long long)done.compute,
           (unsigned long long)done.in_place, (unsigned long long)done.refused,
           (unsigned long long)done.changes, (unsigned long long)done.changes_refused,
           (unsigned long long)done.prefetched);
    ck_assert_uint_ge(done.prefetched, 10 * done.runs);
    ck_assert_uint_ge(done.hbm * 4, done.runs);
    ck_assert_uint_ge(done.inclusive * 20, done.runs);
    ck_assert_uint_ge(done.compute * 8, done.runs);
    ck_assert_uint_ge(done.in_place, 10 * done.runs);
    ck_assert_uint_le(done.refused, done.runs);
    ck_assert_uint_ge(done.changes, done.runs);
}
END_TEST

int main(int argc, char **argv)
{
    rounds = campaign_rounds(argc, argv, 40, &until_ns);
    Suite *suite = suite_create("configs");
    TCase *tests = tcase_create("configs");
    tcase_add_unchecked_fixture(tests, prepare, clean_up);
    tcase_add_test(tests, no_setting_shows);
    suite_add_tcase(suite, tests);
    /* One process: its own watchdog, and what was prepared serves all. */
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
