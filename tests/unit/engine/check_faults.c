/* Reads that fail for good: an expert that is given up fails the requests whose tokens need it,
 * with its name, and the others get what they would have got. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/run_stack.h"

static struct run run;

static const char *const texts[] = { "In the beginning God created",
                                     "#include <stdio.h>\n\nint main(void)\n{",
                                     "Pour installer le paquet, il faut",
                                     "The kernel is the part" };
enum { TEXTS = sizeof texts / sizeof texts[0] };

static struct run_answer *ask(const char *text, uint32_t max_tokens)
{
    uint32_t count, *ids = run_encode(&run, text, &count);
    struct run_answer *answer = run_greedy(&run, ids, count, max_tokens);
    free(ids);
    return answer;
}

enum { ASKED = 12, ANSWER = 24, POSITIONS = 80, TOP_K = 6, LAYERS = 6 };

/* Which experts each token of each request needed: [request][position][layer][k]. */
static uint32_t needed[ASKED][POSITIONS][LAYERS][TOP_K];
static uint32_t computed[ASKED];        /* positions */

static void keep_routes(struct run *of, const struct eng_step_record *record)
{
    ck_assert_uint_eq(record->top_k, TOP_K);
    ck_assert_uint_eq(record->moe_layers, LAYERS);
    for (uint32_t i = 0; i < record->token_count; i++) {
        uint32_t request = 0, position = record->positions[i];
        while (of->answers[request].id != record->seqs[i]) {
            request++;
        }
        ck_assert_uint_lt(position, POSITIONS);
        if (position + 1 > computed[request]) computed[request] = position + 1;
        for (uint32_t l = 0; l < LAYERS; l++) {
            memcpy(needed[request][position][l],
                   record->expert_ids + ((size_t)l * record->token_count + i) * TOP_K,
                   sizeof needed[0][0][0]);
        }
    }
}

static void ask_all(const char *const *settings)
{
    run_open(&run, run_pebble(), settings);
    run.step_end = keep_routes;
    for (int i = 0; i < ASKED; i++) {
        char text[100];
        snprintf(text, sizeof text, "%s %d", texts[i % TEXTS], i);
        ask(text, ANSWER);
    }
    run_finish(&run);
}

static bool is_lost(uint32_t layer, uint32_t expert)
{
    char why[400];
    return tier_failure_text(run.stack.tier, layer, expert, why, sizeof why) != 0;
}

/* Among the needs of a position, one that is lost and that the sentence names. */
static bool needs_named(uint32_t request, uint32_t position, const char *sentence)
{
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (uint32_t k = 0; k < TOP_K; k++) {
            char name[80];
            uint32_t expert = needed[request][position][l][k];
            snprintf(name, sizeof name, "expert %u of layer %u ", expert,
                     l + tier_store_layer_first(run.stack.store));
            if (is_lost(l, expert) && strstr(sentence, name)) return true;
        }
    }
    return false;
}

static bool needs_lost(uint32_t request)
{
    for (uint32_t p = 0; p < computed[request]; p++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            for (uint32_t k = 0; k < TOP_K; k++) {
                if (is_lost(l, needed[request][p][l][k])) return true;
            }
        }
    }
    return false;
}

START_TEST(a_lost_expert_fails_those_who_need_it)
{
    static uint32_t right[ASKED][ANSWER];
    char faults[64];
    const char *settings[] = { "tiers.dram.capacity=100%", NULL };
    ask_all(settings);
    for (int i = 0; i < ASKED; i++) {
        ck_assert_int_eq(run.answers[i].finish, ENG_LENGTH);
        memcpy(right[i], run.answers[i].tokens, sizeof right[i]);
    }
    run_close(&run);
    uint32_t failed = 0, whole = 0;
    /* Three failures in a row and an expert is given up: a few of all, of some seeds none. Which
     * read draws which failure hangs on the order of reads: so until it has come to both. */
    for (int seed = 1; seed <= 40 && (seed <= 4 || failed < 3 || whole < 3); seed++) {
        snprintf(faults, sizeof faults, "io.faults=seed=%d,eio=0.1", seed);
        const char *faulty[] = { "tiers.dram.capacity=100%", faults, NULL };
        memset(computed, 0, sizeof computed);
        ask_all(faulty);
        for (uint32_t i = 0; i < ASKED; i++) {
            const struct run_answer *answer = &run.answers[i];
            for (uint32_t k = 0; k < answer->token_count; k++) {
                ck_assert_uint_eq(answer->tokens[k], right[i][k]);
            }
            if (answer->finish == ENG_LENGTH) {
                whole++;
                ck_assert_uint_eq(answer->token_count, ANSWER);
                ck_assert_msg(!needs_lost(i), "seed %d: request %u went on without an expert", seed,
                              i);
                continue;
            }
            failed++;
            ck_assert_int_eq(answer->finish, ENG_FAILED);
            ck_assert_int_eq(answer->error_code, BASE_EQUARANTINE);
            bool named = false;
            for (uint32_t p = 0; p < computed[i]; p++) {
                named |= needs_named(i, p, answer->error);
            }
            ck_assert_msg(named, "seed %d: request %u needs none that its sentence names: %s", seed,
                          i, answer->error);
        }
        struct eng_metrics metrics;
        eng_snapshot(run.stack.engine, &metrics);
        ck_assert_uint_eq(metrics.kv_used_blocks, 0);
        run_close(&run);
    }
    printf("%u answers whole, %u failed\n", whole, failed);
    ck_assert_uint_ge(failed, 3);
    ck_assert_uint_ge(whole, 3);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("faults");
    TCase *tests = tcase_create("faults");
    tcase_add_test(tests, a_lost_expert_fails_those_who_need_it);
    tcase_set_timeout(tests, 120);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
