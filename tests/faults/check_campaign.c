/* Faults under load: reads that fail, come short, come wrong, late or seemingly never, and copies
 * to the device that fail, at random from a seed, while several sequences run and sizes, policies
 * and quotas change. Nothing crashes or hangs; whatever is answered is right to the last token; who
 * fails is told which expert is lost and why, and it stays lost across changes; nothing is lost of
 * which a mirror has a good copy; the rest goes on, and the recorded events still replay to the
 * live counts.
 *
 * check_campaign [ROUNDS]: seeds 1..ROUNDS. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/support/campaign.h"
#include "tests/support/campaign_live.h"

enum { ASKS = 10, TOKENS = 24, LATE = 3, HANG_S = 120, DRAWS = 60, FAULTS_A_ROUND = 100,
       LIVE_MOST = 16 };

static const char *const texts[] = {
    "The kernel is the part of the system that", "In the beginning God created",
    "#include <stdio.h>\n\nint main(void)\n{", "Pour installer le paquet, il faut", "a",
};
enum { TEXTS = sizeof texts / sizeof texts[0] };

static struct campaign campaign;
static struct run run;
static uint32_t right[ASKS][TOKENS];
static uint64_t rounds, until_ns;
static struct {
    uint64_t runs, faults, copy_faults, whole, failed, quarantined, mirror_reads, stuck, events;
    uint64_t changes, changes_refused;
} done;

static void submit(unsigned i)
{
    char text[100];
    uint32_t count;
    snprintf(text, sizeof text, "%s %u", texts[i % TEXTS], i);
    uint32_t *ids = run_encode(&run, text, &count);
    struct eng_request request = {
        .prompt = ids,
        .prompt_tokens = count,
        .max_tokens = TOKENS,
        .sampling = { .temperature = i % 2 ? 0.8f : 0.0f, .top_p = 0.95f, .seed = 40 + i },
        .ignore_eos = true,
    };
    run_submit(&run, &request);
    free(ids);
}

static void prepare(void)
{
    const char *settings[] = { "tiers.dram.capacity=100%", NULL };
    campaign_watch(HANG_S, "preparing", 0);
    campaign_begin(&campaign);
    run_open(&run, run_pebble(), settings);
    for (unsigned i = 0; i < ASKS; i++) submit(i);
    run_finish(&run);
    for (unsigned i = 0; i < ASKS; i++) {
        ck_assert_uint_eq(run.answers[i].token_count, TOKENS);
        memcpy(right[i], run.answers[i].tokens, sizeof right[i]);
    }
    run_close(&run);
}

static void clean_up(void)
{
    campaign_end(&campaign);
}

static double up_to(struct base_rng *rng, double most)
{
    return most * base_rng_unit(rng);
}

/* Every fifth seed is so bad that experts are lost; the others mostly get by with reading again. */
static void draw_faults(struct campaign_settings *s, struct base_rng *rng, uint64_t seed)
{
    double bad = seed % 5 == 0 ? 4 : 1;
    campaign_set(s,
                 "io.faults=seed=%llu,eio=%.5f,short=%.5f,flip=%.5f,stuck=%.5f,slow=%.5f,"
                 "stuck_for=25ms,slow_for=1ms",
                 (unsigned long long)seed, bad * (0.004 + up_to(rng, 0.02)),
                 bad * (0.004 + up_to(rng, 0.015)), bad * (0.004 + up_to(rng, 0.015)),
                 up_to(rng, 0.001), up_to(rng, 0.01));
    campaign_set(s, "tiers.nvme.stuck_after=10ms");
}

/* Returns the layout on disk. */
static enum campaign_layout draw(struct campaign_settings *s, struct base_rng *rng, uint64_t seed)
{
    unsigned policies = 0, hbm = (unsigned)base_rng_below(rng, 2);
    unsigned inclusive = hbm && base_rng_below(rng, 2);
    while (campaign_policy(policies)) policies++;
    campaign_clear(s);
    const char *policy = campaign_policy((unsigned)(seed % policies));
    campaign_eviction(&campaign, s, policy);
    campaign_prediction(s, rng);
    if (hbm) {
        campaign_set(s, "tiers.hbm.capacity=%.2f%%", 10 + up_to(rng, 8));
        campaign_set(s, "tiers.hbm.sim_bandwidth=1GiB");
        campaign_set(s, "tiers.hbm.sim_faults=%.3f%%", up_to(rng, seed % 5 == 0 ? 15 : 4));
        campaign_set(s, "tiers.inclusion=%s", inclusive ? "inclusive" : "exclusive");
        campaign_set(s, "tiers.warm_experts=%s", base_rng_below(rng, 2) ? "compute" : "copy");
    }
    campaign_set(s, "tiers.dram.capacity=%.2f%%", (inclusive ? 20 : 10) + up_to(rng, 15));
    enum campaign_layout layout = (enum campaign_layout)base_rng_below(rng, CAMPAIGN_LAYOUTS);
    campaign_set(s, "tiers.nvme.index=%s", campaign.index[layout]);
    campaign_set(s, "io.backend=%s", campaign_backend(rng));
    campaign_set(s, "io.sim_latency=2us");
    campaign_set(s, "io.depth=%u", (unsigned)base_rng_below(rng, 40) + 1);
    campaign_set(s, "engine.threads=%u", (unsigned)base_rng_below(rng, 2) + 1);
    campaign_set(s, "scheduler.max_num_seqs=%u", (unsigned)base_rng_below(rng, 6) + 3);
    draw_faults(s, rng, seed);
    return layout;
}

/* The sentence names an expert, that expert is lost indeed, and it says why. */
static bool sentence_is_clear(const char *sentence)
{
    unsigned expert, layer;
    char why[400];
    const char *at = strstr(sentence, "expert ");
    if (!at || sscanf(at, "expert %u of layer %u", &expert, &layer) != 2) return false;
    layer -= tier_store_layer_first(run.stack.store);
    return tier_failure_text(run.stack.tier, layer, expert, why, sizeof why) < 0 &&
           (strstr(sentence, " could not be read: ") || strstr(sentence, " could not be copied "));
}

static void check_answer(unsigned ask, const struct run_answer *answer, const char *what)
{
    ck_assert_msg(answer->token_count <= TOKENS &&
                      memcmp(answer->tokens ? answer->tokens : right[ask], right[ask],
                             answer->token_count * sizeof *right[ask]) == 0,
                  "%s: request %u got wrong tokens", what, ask);
    if (answer->finish == ENG_LENGTH) {
        ck_assert_msg(answer->token_count == TOKENS, "%s: request %u ended early", what, ask);
        done.whole++;
        return;
    }
    ck_assert_msg(answer->finish == ENG_FAILED && answer->error_code == BASE_EQUARANTINE &&
                      sentence_is_clear(answer->error),
                  "%s: request %u ended as %d with code %d: \"%s\"", what, ask,
                  (int)answer->finish, answer->error_code, answer->error);
    done.failed++;
}

static uint32_t lost_by_reading(void)
{
    uint32_t count = 0, layers = tier_store_layers(run.stack.store);
    char why[400];
    for (uint32_t l = 0; l < layers; l++) {
        for (uint32_t e = 0; e < run.stack.shape.experts; e++) {
            int code = tier_failure_text(run.stack.tier, l, e, why, sizeof why);
            count += code < 0 && code != BASE_EDEVICE;
        }
    }
    return count;
}

/* One step, and in changing runs now and then other settings before it: what was given up stays
 * so, and nothing is given up by a change. */
static bool step(struct base_rng *rng, unsigned every, const char *what)
{
    if (every > 0 && base_rng_below(rng, every) == 0) {
        uint32_t before = lost_by_reading();
        bool taken = campaign_reconfigure(&run, rng, LIVE_MOST, true);
        ck_assert_msg(lost_by_reading() == before, "%s: a change lost or found experts", what);
        done.changes += taken;
        done.changes_refused += !taken;
    }
    int alive = eng_step(run.stack.engine);
    ck_assert_int_ge(alive, 0);
    return alive > 0;
}

static void add_up(enum campaign_layout layout, const char *what)
{
    static struct tier_snapshot snapshot;
    struct eng_metrics metrics;
    tier_step_end(run.stack.tier);
    tier_snapshot(run.stack.tier, &snapshot);
    eng_snapshot(run.stack.engine, &metrics);
    ck_assert_uint_eq(metrics.kv_used_blocks, 0);
    ck_assert_uint_eq(snapshot.tiers[0].leased_slots, 0);
    ck_assert_uint_eq(metrics.finished_requests + metrics.failed_requests, ASKS);
    if (layout == CAMPAIGN_MIRROR) {
        ck_assert_msg(snapshot.io.mirror_reads >= lost_by_reading(),
                      "%s: given up before the other copy was read", what);
    } else {
        ck_assert_uint_eq(snapshot.io.mirror_reads, 0);
    }
    done.faults += snapshot.io.faults_injected + snapshot.io.copy_errors;
    done.copy_faults += snapshot.io.copy_errors;
    done.quarantined += snapshot.io.quarantined;
    done.mirror_reads += snapshot.io.mirror_reads;
    done.stuck += snapshot.io.stuck_reads;
}

static void one_round(uint64_t seed)
{
    static struct campaign_settings settings;
    struct base_rng rng;
    char what[40];
    base_rng_init(&rng, seed);
    snprintf(what, sizeof what, "seed %llu", (unsigned long long)seed);
    campaign_watch(HANG_S, "the campaign", seed);
    int draws = 0;
    enum campaign_layout layout;
    do {
        ck_assert_msg(draws++ < DRAWS, "%s: %d configurations in a row are refused", what, DRAWS);
        layout = draw(&settings, &rng, seed);
    } while (!campaign_open_run(&campaign, &run, &settings));
    /* Two runs of three change their settings under way. */
    unsigned every = seed % 3 == 0 ? 0 : (unsigned)base_rng_below(&rng, 10) + 2;
    for (unsigned i = 0; i < ASKS - LATE; i++) submit(i);
    for (int steps = 0; steps < 12; steps++) step(&rng, every, what);
    /* New requests are taken in whatever has been lost by now. */
    for (unsigned i = ASKS - LATE; i < ASKS; i++) submit(i);
    while (step(&rng, every, what)) {}
    for (unsigned i = 0; i < ASKS; i++) check_answer(i, &run.answers[i], what);
    add_up(layout, what);
    run_close(&run);
    done.events += campaign_replay(&campaign, what);
    done.runs++;
}

START_TEST(nothing_wrong_and_nothing_hangs)
{
    for (uint64_t seed = 1; seed <= rounds || base_now_ns() < until_ns; seed++) one_round(seed);
    printf("seeds 1..%llu: %llu faults injected, %llu of them in copies to the device; %llu "
           "experts given up, %llu turns to another copy, %llu stuck reads named; %llu answers "
           "whole and right, %llu failed with a sentence; %llu changes of settings, %llu refused; "
           "%llu events replayed\n",
           (unsigned long long)done.runs, (unsigned long long)done.faults,
           (unsigned long long)done.copy_faults, (unsigned long long)done.quarantined,
           (unsigned long long)done.mirror_reads, (unsigned long long)done.stuck,
           (unsigned long long)done.whole, (unsigned long long)done.failed,
           (unsigned long long)done.changes, (unsigned long long)done.changes_refused,
           (unsigned long long)done.events);
    ck_assert_uint_ge(done.faults, done.runs * FAULTS_A_ROUND);
    ck_assert_uint_gt(done.copy_faults, 0);
    ck_assert_uint_gt(done.quarantined, 0);
    ck_assert_uint_gt(done.failed, 0);
    ck_assert_uint_gt(done.whole, done.runs);
    ck_assert_uint_ge(done.changes, done.runs);
}
END_TEST

int main(int argc, char **argv)
{
    rounds = campaign_rounds(argc, argv, 10, &until_ns);
    Suite *suite = suite_create("campaign");
    TCase *tests = tcase_create("campaign");
    tcase_add_unchecked_fixture(tests, prepare, clean_up);
    tcase_add_test(tests, nothing_wrong_and_nothing_hangs);
    suite_add_tcase(suite, tests);
    /* One process: its own watchdog, and what was prepared serves all. */
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
