/* Prints what some generations of each model come to, every bit of their logits in one number: the
 * same line for any number of ranks, or something is wrong.
 *
 *     rank_bits [KEY=VALUE...] MODEL...      alone, or under mpirun
 *
 * RANK_BITS_SHORT: prompts and answers of an eighth. RANK_BITS_TWICE: everything once before; what
 * is printed is the second time, and why an answer failed goes to stderr, "failed" or "failed the
 * second time".
 * RANK_BITS_NUMBERS: what each rank holds, on stderr. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/support/run_stack.h"

enum { SETTINGS_MAX = 32, ANSWERS = 3 };

static const char *settings[SETTINGS_MAX];
static unsigned setting_count;
static struct comm *comm;

/* Prompts of different lengths that begin one after another, so that steps hold prompt and
 * generated tokens together. */
static void generate(struct run *run)
{
    static const uint32_t prompts[ANSWERS] = { 37, 5, 70 }, answers[ANSWERS] = { 24, 40, 16 };
    const uint32_t part = getenv("RANK_BITS_SHORT") ? 8 : 1;
    uint32_t ids[128];
    for (unsigned i = 0; i < ANSWERS; i++) {
        struct base_rng rng;
        base_rng_init(&rng, 100 + i);
        const uint32_t tokens = (prompts[i] + part - 1) / part;
        for (uint32_t t = 0; t < tokens; t++) {
            ids[t] = (uint32_t)base_rng_below(&rng, run->stack.shape.vocab);
        }
        struct eng_request request = {
            .prompt = ids, .prompt_tokens = tokens, .max_tokens = answers[i] / part,
            .sampling = { .temperature = i == 1 ? 0.8f : 0.0f, .top_p = 0.95f, .seed = i + 1 },
            .ignore_eos = true, .prompt_logits = i == 0,
        };
        run_submit(run, &request);
    }
    run_finish(run);
}

static void show(const struct run *run)
{
    printf("%-22s", run->stack.shape.name);
    for (uint32_t i = 0; i < run->answer_count; i++) {
        const struct run_answer *answer = &run->answers[i];
        if (getenv("RANK_BITS_TWICE")) {
            if (answer->finish == ENG_FAILED)
                fprintf(stderr, "  failed%s: %s\n", i < ANSWERS ? "" : " the second time",
                        answer->error);
            if (i < ANSWERS) continue;
        }
        printf(" %016llx %u", (unsigned long long)answer->rows_hash, answer->token_count);
    }
    putchar('\n');
    fflush(stdout);
}

/* What this rank holds, for whoever reads the numbers; not compared. */
static void show_ranks(const struct run *run)
{
    struct eng_metrics m;
    struct tier_snapshot *tier = calloc(1, sizeof *tier);
    struct comm_metrics stats[COMM_CALL_COUNT];
    static uint64_t exchanges_before, received_before;
    uint64_t received = 0, exchanges;
    eng_snapshot(run->stack.engine, &m);
    tier_snapshot(run->stack.tier, tier);
    comm_stats(comm, stats);
    for (int c = 0; c < COMM_CALL_COUNT; c++) {
        received += stats[c].received_bytes;
    }
    exchanges = stats[COMM_ALL_TO_ALL].calls;
    fprintf(stderr,
            "  rank %u: %s, experts of a layer %u of %u, slots %llu, dense %.3f MB, "
            "received %.3f MB, all_to_all %llu, reused %llu, %.0f%% of %.3f s in collectives\n",
            comm->rank, run->stack.shape.name,
            tier_store_held(run->stack.store), run->stack.shape.experts,
            (unsigned long long)tier->tiers[0].slots,
            (double)run->stack.ledger.rows[BASE_LEDGER_DENSE].planned / 1e6,
            (double)(received - received_before) / 1e6,
            (unsigned long long)(exchanges - exchanges_before),
            (unsigned long long)m.reused_tokens,
            100 * m.collective_seconds / (m.step_latency.sum / 1e9), m.step_latency.sum / 1e9);
    exchanges_before = exchanges;
    received_before = received;
    free(tier);
}

static char **models;
static int model_count;

/* A test only because the helpers are made for tests. */
START_TEST(generates)
{
    static struct run run;
    struct base_err err = { 0 };
    for (int i = 0; i < model_count; i++) {
        if (strchr(models[i], '=')) {
            ck_assert_uint_lt(setting_count, SETTINGS_MAX - 1);
            settings[setting_count++] = models[i];
            continue;
        }
        if (run_try_open(&run, models[i], settings, &err) < 0) {
            fprintf(stderr, "%s\n", err.text);
            comm_abort(comm, err.text);
            exit(EXIT_FAILURE);
        }
        if (comm->rank == 0) {
            if (getenv("RANK_BITS_TWICE")) generate(&run);
            generate(&run);
        } else {
            eng_follow(run.stack.engine);
        }
        if (comm->rank == 0) show(&run);
        if (getenv("RANK_BITS_NUMBERS") && comm->size > 1) show_ranks(&run);
        run_close(&run);
    }
}
END_TEST

int main(int argc, char **argv)
{
    struct comm_config config;
    struct base_option_group group = { "ranks", comm_options, comm_option_count, &config };
    struct base_err err = { 0 };
    base_option_defaults(&group, 1);
    /* How the ranks speak is settled before the first model. */
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "ranks.comm=", 11) == 0 || strncmp(argv[i], "ranks.timeout=", 14) == 0)
            base_option_set_pair(&group, 1, argv[i], &err);
    }
    if (comm_open(&comm, &config, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return EXIT_FAILURE;
    }
    run_ranks(comm);
    models = argv + 1;
    model_count = argc - 1;
    Suite *suite = suite_create("rank_bits");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, generates);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    if (failed > 0) {
        srunner_print(runner, CK_NORMAL);
        comm_abort(comm, "the test failed");
    }
    srunner_free(runner);
    comm_close(comm);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
