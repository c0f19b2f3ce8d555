/* Shows that the card chooses greedy tokens itself where nobody asked for more than their ids.
 *
 * models/pebble: the CPU's tokens on 5 prompts (a long run: 20), with log probabilities and
 * without. A small model: of each row its id comes down, and nothing of its logits; a row that is
 * asked for more comes whole, whatever its neighbours are; one that holds no numbers ends its
 * request with the words of the CPU.
 *
 *   check_cuda_choice [--seeds N]       default 20 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/small.h"
#include "tests/support/make_tiny.h"
#include "tests/support/run_stack.h"

enum {
    PROMPTS = SMALL_PROMPTS,
    FEW_PROMPTS = 3,
    PEBBLE_ANSWER = 2,
    ASKED = 3,                  /* of the small model at once */
    ANSWER = 5,
};

static uint64_t seeds = 20;
static struct run run;
static char small[3000], spoiled[3000];

static const char *const on_cpu[] = { "tiers.dram.capacity=50%", "engine.threads=1", NULL };
static const char *const on_card[] = { "tiers.hbm.device=cuda", "tiers.hbm.capacity=50%",
                                       "tiers.dram.capacity=50%", "engine.threads=1",
                                       "scheduler.max_model_len=96", "scheduler.max_num_seqs=4",
                                       NULL };

static struct run_answer *ask(const char *text, uint32_t tokens, float temperature, bool logprobs)
{
    uint32_t count, *ids = run_encode(&run, text, &count);
    struct eng_request request = { .prompt = ids, .prompt_tokens = count, .max_tokens = tokens,
                                   .sampling = { .temperature = temperature, .top_p = 1.0f,
                                                 .seed = 7 },
                                   .ignore_eos = true, .logprobs = logprobs };
    struct run_answer *answer = run_submit(&run, &request);
    free(ids);
    return answer;
}

static void open_card(const char *model)
{
    cudahost_seed(1);
    run_open(&run, model, on_card);
}

static void close_card(void)
{
    run_close(&run);
    const unsigned left = cudahost_reset();
    const char *failure = cudahost_failure();
    ck_assert_msg(!failure, "%s", failure);
    ck_assert_uint_eq(left, 0);
}

static void check_tokens(const struct run_answer *answer, const uint32_t *want, uint32_t count,
                         const char *what)
{
    ck_assert_msg(answer->finish == ENG_LENGTH, "%s: %s", what, answer->error);
    ck_assert_uint_eq(answer->token_count, count);
    ck_assert_msg(memcmp(answer->tokens, want, count * sizeof *want) == 0, "%s: other tokens",
                  what);
}

START_TEST(the_cpus_tokens_with_and_without_logprobs)
{
    static uint32_t want[PROMPTS][PEBBLE_ANSWER];
    const int asked = seeds < 100 ? FEW_PROMPTS : PROMPTS;
    run_open(&run, run_pebble(), on_cpu);
    for (int i = 0; i < asked; i++) {
        struct run_answer *answer = ask(small_prompts[i], PEBBLE_ANSWER, 0.0f, i % 2);
        run_finish(&run);
        ck_assert_uint_eq(answer->token_count, PEBBLE_ANSWER);
        memcpy(want[i], answer->tokens, sizeof want[i]);
    }
    run_close(&run);
    for (int logprobs = 0; logprobs < 2; logprobs++) {
        open_card(run_pebble());
        for (int i = 0; i < asked; i++) {
            struct run_answer *answer = ask(small_prompts[i], PEBBLE_ANSWER, 0.0f, logprobs);
            run_finish(&run);
            check_tokens(answer, want[i], PEBBLE_ANSWER, small_prompts[i]);
        }
        close_card();
    }
    printf("%d prompts, %d tokens each, with log probabilities and without: the CPU's\n", asked,
           PEBBLE_ANSWER);
}
END_TEST

static const char *const texts[ASKED] = { "In the", "int main(", "The" };

struct wish {
    float temperature;
    bool logprobs;
};

/* Answers all at once, or one by one; returns the bytes that came down from the card. */
static uint64_t answer_all(const struct wish wishes[ASKED], bool at_once,
                           uint32_t tokens[ASKED][ANSWER])
{
    struct run_answer *answers[ASKED];
    open_card(small);
    const uint64_t before = cudahost_down_bytes();
    for (int i = 0; i < ASKED; i++) {
        answers[i] = ask(texts[i], ANSWER, wishes[i].temperature, wishes[i].logprobs);
        if (!at_once) run_finish(&run);
    }
    run_finish(&run);
    const uint64_t bytes = cudahost_down_bytes() - before;
    for (int i = 0; i < ASKED; i++) {
        ck_assert_msg(answers[i]->finish == ENG_LENGTH, "%s", answers[i]->error);
        ck_assert_uint_eq(answers[i]->token_count, ANSWER);
        memcpy(tokens[i], answers[i]->tokens, sizeof tokens[i]);
    }
    close_card();
    return bytes;
}

START_TEST(only_ids_come_down)
{
    static const struct wish ids[ASKED] = { { 0.0f, false }, { 0.0f, false }, { 0.0f, false } };
    static const struct wish rows[ASKED] = { { 0.0f, true }, { 0.0f, true }, { 0.0f, true } };
    enum { ROW = SMALL_VOCAB * sizeof(float), ID = sizeof(uint32_t), ROWS = ASKED * ANSWER };
    uint32_t want[ASKED][ANSWER], got[ASKED][ANSWER];
    const uint64_t few = answer_all(ids, false, want), many = answer_all(rows, false, got);
    ck_assert_mem_eq(got, want, sizeof want);
    /* Both have the same routing beside it. */
    ck_assert_uint_eq(many - few, ROWS * (ROW - ID));
    printf("%d rows of %d logits: %llu bytes less to the host, %d instead of %d a row\n", ROWS,
           SMALL_VOCAB, (unsigned long long)(many - few), ID, ROW);
}
END_TEST

START_TEST(neighbours_change_nothing)
{
    static const struct wish ids[ASKED] = { { 0.0f, false }, { 0.0f, false }, { 0.0f, false } };
    enum { ROW = SMALL_VOCAB * sizeof(float) };
    uint32_t greedy[ASKED][ANSWER], alone[ASKED][ANSWER], together[ASKED][ANSWER];
    const uint64_t few = answer_all(ids, true, greedy);
    for (int drawn = 0; drawn < ASKED; drawn++) {
        struct wish wishes[ASKED] = { 0 };
        wishes[drawn].temperature = 0.8f;
        wishes[(drawn + 1) % ASKED].logprobs = true;
        answer_all(wishes, false, alone);
        const uint64_t bytes = answer_all(wishes, true, together);
        ck_assert_mem_eq(alone, together, sizeof alone);
        for (int i = 0; i < ASKED; i++) {
            const bool same = memcmp(together[i], greedy[i], sizeof greedy[i]) == 0;
            ck_assert_msg(same == (i != drawn), "request %d of those with %d drawn", i, drawn);
        }
        /* Two of three come whole, and no others; ids come only where there is somebody to get
         * them. */
        ck_assert_uint_le(bytes, few + 2 * ANSWER * ROW);
        ck_assert_uint_gt(bytes, few + 2 * ANSWER * ROW - ASKED * ANSWER * 4);
    }
}
END_TEST

START_TEST(no_numbers_are_told_as_on_the_cpu)
{
    char want[BASE_ERR_TEXT];
    run_open(&run, spoiled, on_cpu);
    struct run_answer *answer = ask(texts[0], ANSWER, 0.0f, false);
    run_finish(&run);
    ck_assert_int_eq(answer->finish, ENG_FAILED);
    const int code = answer->error_code;
    snprintf(want, sizeof want, "%s", answer->error);
    ck_assert_ptr_nonnull(strstr(want, "no finite numbers"));
    run_close(&run);
    for (int logprobs = 0; logprobs < 2; logprobs++) {
        open_card(spoiled);
        answer = ask(texts[0], ANSWER, 0.0f, logprobs);
        run_finish(&run);
        ck_assert_int_eq(answer->finish, ENG_FAILED);
        ck_assert_int_eq(answer->error_code, code);
        ck_assert_str_eq(answer->error, want);
        close_card();
    }
    printf("no numbers: %s\n", want);
}
END_TEST

static void make_models(void)
{
    small_model(small, sizeof small, "check_cuda_choice");
    small_model(spoiled, sizeof spoiled, "check_cuda_choice_spoiled");
    small_model_spoil(spoiled);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--seeds")) seeds = strtoull(argv[2], NULL, 10);
    setvbuf(stdout, NULL, _IOLBF, 0);
    run_without_logits();
    Suite *suite = suite_create("cuda_choice");
    TCase *tests = tcase_create("choice");
    tcase_add_unchecked_fixture(tests, make_models, NULL);
    tcase_add_test(tests, only_ids_come_down);
    tcase_add_test(tests, neighbours_change_nothing);
    tcase_add_test(tests, no_numbers_are_told_as_on_the_cpu);
    tcase_add_test(tests, the_cpus_tokens_with_and_without_logprobs);
    tcase_set_timeout(tests, 0);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (small[0]) tiny_remove(small);
    if (spoiled[0]) tiny_remove(spoiled);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
