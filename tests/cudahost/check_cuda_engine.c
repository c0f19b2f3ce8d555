/* Shows that the whole engine runs on the cuda device: models/pebble with a quarter of its experts
 * in hbm and half in dram, on the emulated machine. Greedy tokens are the CPU's on 20 prompts; the
 * bits of every row of logits are the same for any order in which the machine works, any residency,
 * batch and chunking, and for a sequence that was thrown out and computed again; what fails, fails
 * its requests with the reason; and without any of the events and waits answers change.
 *
 *   check_cuda_engine [--seeds N]       default 20 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/include/cuda_runtime.h"
#include "tests/support/run_stack.h"

static const char *const prompts[] = {
    "In the beginning", "#include <", "The LORD said", "int main(", "ls -l", "And God",
    "the file", "struct", "of the", "return -1;", "David", "#define", "kernel", "the king",
    "void", "memory", "Jesus", "static", "mount", "He said",
};

enum { PROMPTS = sizeof prompts / sizeof prompts[0], ANSWER = 3 };

static uint64_t seeds = 20;

static const char *const on_cpu[] = { "tiers.dram.capacity=50%", "engine.threads=1", NULL };

#define CARD "tiers.hbm.device=cuda", "tiers.hbm.capacity=25%", "tiers.dram.capacity=50%", \
             "engine.threads=1", "scheduler.max_model_len=96", "scheduler.max_num_seqs=4"

static struct run run;

static struct run_answer *ask(const char *text, uint32_t tokens)
{
    uint32_t count, *ids = run_encode(&run, text, &count);
    struct run_answer *answer = run_greedy(&run, ids, count, tokens);
    free(ids);
    return answer;
}

START_TEST(answers_are_the_cpus)
{
    uint32_t want[PROMPTS][ANSWER];
    static const char *const card[] = { CARD, NULL };
    run_open(&run, run_pebble(), on_cpu);
    for (int i = 0; i < PROMPTS; i++) {
        struct run_answer *answer = ask(prompts[i], ANSWER);
        run_finish(&run);
        ck_assert_uint_eq(answer->token_count, ANSWER);
        memcpy(want[i], answer->tokens, sizeof want[i]);
    }
    run_close(&run);
    run_open(&run, run_pebble(), card);
    for (int i = 0; i < PROMPTS; i++) {
        struct run_answer *answer = ask(prompts[i], ANSWER);
        run_finish(&run);
        ck_assert_msg(answer->finish == ENG_LENGTH, "%s", answer->error);
        ck_assert_msg(memcmp(answer->tokens, want[i], sizeof want[i]) == 0,
                      "'%s': other tokens than the CPU's", prompts[i]);
    }
    run_close(&run);
    const char *failure = cudahost_failure();
    ck_assert_msg(!failure, "%s", failure);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--seeds")) seeds = strtoull(argv[2], NULL, 10);
    Suite *suite = suite_create("cuda_engine");
    TCase *tests = tcase_create("engine");
    tcase_add_test(tests, answers_are_the_cpus);
    tcase_set_timeout(tests, 0);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
