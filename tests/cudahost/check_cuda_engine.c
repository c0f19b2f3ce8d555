/* Shows that the whole engine runs on the cuda device, on the emulated machine (server.sh: the
 * whole server).
 *
 * models/pebble with a quarter of its experts in hbm and half in dram: greedy tokens are the CPU's
 * on 5 prompts, of a long run on 20, and every row of logits has the same bits in any order in
 * which the machine works. A random small model: the same bits for any residency, policy, batch
 * and chunking, and for a sequence that lost its place and was computed again; a call that fails
 * ends its requests with the reason and no others, one after which nothing works ends all; and
 * without any of the events and waits answers change.
 *
 *   check_cuda_engine [--seeds N]       default 20 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/asan.h"
#include "base/rng.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/include/cuda_runtime.h"
#include "tests/cudahost/small.h"
#include "tests/support/make_tiny.h"
#include "tests/support/run_stack.h"

enum {
    PROMPTS = SMALL_PROMPTS,
    FEW_PROMPTS = 3,
    ANSWER = 2,
    ASKED = 3,                  /* of the small model at once */
    TINY_ANSWER = 4,
    VOCAB = SMALL_VOCAB,
    POSITIONS = 32,
};

static uint64_t seeds = 20;
static struct run run;
static char tiny[3000];

static struct run_answer *ask(const char *text, uint32_t tokens)
{
    uint32_t count, *ids = run_encode(&run, text, &count);
    struct run_answer *answer = run_greedy(&run, ids, count, tokens);
    free(ids);
    return answer;
}

/* After a run: the machine has nothing to complain of, and everything came back. */
static void check_machine(uint64_t seed)
{
    const unsigned left = cudahost_reset();
    const char *failure = cudahost_failure();
    ck_assert_msg(!failure, "seed %llu: %s", (unsigned long long)seed, failure);
    ck_assert_msg(left == 0, "seed %llu: %u things were not given back", (unsigned long long)seed,
                  left);
}

/* ------------------------------------------------------------------------------------ pebble -- */

static const char *const on_cpu[] = { "tiers.dram.capacity=50%", "engine.threads=1", NULL };
static const char *const on_card[] = { "tiers.hbm.device=cuda", "tiers.hbm.capacity=25%",
                                       "tiers.dram.capacity=50%", "engine.threads=1",
                                       "scheduler.max_model_len=96", "scheduler.max_num_seqs=4",
                                       NULL };

START_TEST(answers_are_the_cpus)
{
    static uint32_t want[PROMPTS][ANSWER];
    const int asked = seeds < 100 ? FEW_PROMPTS : PROMPTS; /* the soak asks all */
    run_open(&run, run_pebble(), on_cpu);
    for (int i = 0; i < asked; i++) {
        struct run_answer *answer = ask(small_prompts[i], ANSWER);
        run_finish(&run);
        ck_assert_uint_eq(answer->token_count, ANSWER);
        memcpy(want[i], answer->tokens, sizeof want[i]);
    }
    run_close(&run);
    cudahost_seed(1);
    run_open(&run, run_pebble(), on_card);
    for (int i = 0; i < asked; i++) {
        struct run_answer *answer = ask(small_prompts[i], ANSWER);
        run_finish(&run);
        ck_assert_msg(answer->finish == ENG_LENGTH, "%s", answer->error);
        ck_assert_msg(memcmp(answer->tokens, want[i], sizeof want[i]) == 0,
                      "'%s': other tokens than the CPU's", small_prompts[i]);
    }
    run_close(&run);
    check_machine(1);
    printf("%d prompts, %d tokens each: the CPU's\n", asked, ANSWER);
}
END_TEST

static uint64_t pebble_bits(uint64_t seed)
{
    cudahost_seed(seed);
    run_open(&run, run_pebble(), on_card);
    struct run_answer *answer = ask("And", 2);
    run_finish(&run);
    ck_assert_msg(answer->finish == ENG_LENGTH, "%s", answer->error);
    const uint64_t bits = answer->rows_hash;
    run_close(&run);
    check_machine(seed);
    return bits;
}

START_TEST(any_schedule_gives_the_same_bits)
{
    const uint64_t want = pebble_bits(1);
    const uint64_t schedules = seeds < 100 ? seeds / 2 : seeds;
    for (uint64_t seed = 2; seed <= schedules; seed++)
        ck_assert_msg(pebble_bits(seed) == want, "seed %llu: other bits",
                      (unsigned long long)seed);
    printf("%llu schedules: the same bits of every row of logits\n",
           (unsigned long long)schedules);
}
END_TEST

/* ---------------------------------------------------------------------------- a small model -- */

static void make_tiny(void)
{
    small_model(tiny, sizeof tiny, "check_cuda_engine");
}

struct tiny_run {
    char text[12][64];
    const char *settings[13];
    unsigned count;
    bool at_once;
};

static void add(struct tiny_run *t, const char *key, const char *value)
{
    snprintf(t->text[t->count], sizeof t->text[0], "%s=%s", key, value);
    t->settings[t->count] = t->text[t->count];
    t->settings[++t->count] = NULL;
}

static const char *one_of(struct base_rng *rng, const char *const *list, unsigned count)
{
    return list[base_rng_below(rng, count)];
}

#define ONE_OF(rng, ...) \
    one_of(rng, (const char *const[]){ __VA_ARGS__ }, \
           sizeof((const char *const[]){ __VA_ARGS__ }) / sizeof(const char *))

/* Seed 0: everything resident, one request after the other, whole prompts. */
static void draw(struct tiny_run *t, uint64_t seed)
{
    struct base_rng rng;
    base_rng_init(&rng, seed);
    *t = (struct tiny_run){ .at_once = seed > 0 };
    add(t, "tiers.hbm.device", "cuda");
    add(t, "engine.threads", "1");
    add(t, "scheduler.max_model_len", seed % 2 ? "14" : "64");
    add(t, "kv.block_tokens", "2");
    add(t, "scheduler.max_num_seqs", "3");
    const char *dram = seed ? ONE_OF(&rng, "25%", "50%", "100%") : "100%";
    add(t, "tiers.hbm.capacity", seed ? ONE_OF(&rng, "25%", "40%", "75%") : "100%");
    add(t, "tiers.dram.capacity", dram);
    if (seed == 0) return;
    /* Inclusive needs room in dram for all of hbm. */
    if (!strcmp(dram, "100%")) add(t, "tiers.inclusion", ONE_OF(&rng, "exclusive", "inclusive"));
    add(t, "policy.eviction", ONE_OF(&rng, "lru", "lfu", "s3fifo", "lru_global"));
    add(t, "scheduler.max_chunked_prefill_tokens", ONE_OF(&rng, "1", "2", "3", "5", "256"));
    /* Seven blocks: the last one in goes out again and is computed anew. */
    if (seed % 2) add(t, "kv.capacity", "4096");
}

static const char *const texts[ASKED] = { "In the", "int main(", "The" };

/* What the small model answers: of everything resident, one by one. */
static struct {
    uint32_t tokens[ASKED][TINY_ANSWER];
    float *rows[ASKED];
    uint32_t positions[ASKED];
} truth;

/* NULL, or how an answer differs from the truth. */
static const char *compare(int i, const struct run_answer *answer)
{
    static char what[300];
    if (answer->finish != ENG_LENGTH || answer->token_count != TINY_ANSWER) {
        snprintf(what, sizeof what, "request %d: %.200s", i, answer->error);
        return what;
    }
    if (memcmp(answer->tokens, truth.tokens[i], sizeof truth.tokens[i])) return "other tokens";
    if (answer->row_positions != truth.positions[i]) return "other positions";
    for (size_t at = 0; at < (size_t)truth.positions[i] * VOCAB; at++) {
        if (memcmp(&answer->rows[at], &truth.rows[i][at], sizeof(float)) == 0) continue;
        snprintf(what, sizeof what, "request %d: other bits at position %zu", i, at / VOCAB);
        return what;
    }
    return NULL;
}

/* Steps until nothing is alive: 0, or the code that ended everybody. */
static int finish(void)
{
    int alive = 1;
    while (alive > 0)
        alive = eng_step(run.stack.engine);
    return alive;
}

static void ask_tiny(struct run_answer *answers[ASKED], bool at_once)
{
    for (int i = 0; i < ASKED; i++) {
        answers[i] = ask(texts[i], TINY_ANSWER);
        if (!at_once) finish();
    }
}

/* NULL, or what was wrong; `computed` gets the prompt tokens that were computed. */
static const char *run_tiny(uint64_t seed, uint64_t order, uint64_t *computed)
{
    struct run_answer *answers[ASKED];
    struct eng_metrics metrics;
    struct base_err err = { 0 };
    const char *what = NULL;
    static char text[BASE_ERR_TEXT];
    struct tiny_run t;
    draw(&t, seed);
    cudahost_seed(order);
    if (run_try_open(&run, tiny, t.settings, &err) < 0) {
        snprintf(text, sizeof text, "%s", err.text);
        run_close(&run);
        return text;
    }
    run.keep_rows = true;
    ask_tiny(answers, t.at_once);
    if (finish() < 0) what = "the engine stopped";
    for (int i = 0; i < ASKED && !what; i++) {
        if (seed > 0) {
            what = compare(i, answers[i]);
            continue;
        }
        memcpy(truth.tokens[i], answers[i]->tokens, sizeof truth.tokens[i]);
        truth.positions[i] = answers[i]->row_positions;
        truth.rows[i] = answers[i]->rows;
        answers[i]->rows = NULL;
    }
    eng_snapshot(run.stack.engine, &metrics);
    *computed = metrics.prompt_tokens;
    run_close(&run);
    const unsigned left = cudahost_reset();
    const char *failure = cudahost_failure();
    if (!what && failure) what = failure;
    if (!what && left) what = "something was not given back";
    return what;
}

static void find_truth(void)
{
    uint64_t computed;
    const char *what = run_tiny(0, 1, &computed);
    ck_assert_msg(!what, "%s", what);
}

START_TEST(any_company_and_cache_give_the_same_bits)
{
    uint64_t least = UINT64_MAX, again = 0, computed;
    find_truth();
    const uint64_t caches = seeds / 2 + 1;
    for (uint64_t seed = 1; seed <= caches; seed++) {
        const char *what = run_tiny(seed, seed, &computed);
        ck_assert_msg(!what, "seed %llu: %s", (unsigned long long)seed, what);
        if (computed < least) least = computed;
        again += computed > least;
    }
    printf("%llu caches, batches, chunks: the same bits; in %llu a sequence was computed again\n",
           (unsigned long long)caches, (unsigned long long)again);
    ck_assert_uint_gt(again, 0);
}
END_TEST

/* Conversations: the second prompt begins with the first and its answer. The third asks for nothing
 * new. Sampled and without logits of the prompt, so that what is known need not be computed. */
static void converse(uint64_t bits[ASKED], const char *sharing, uint64_t seed, uint64_t *reused)
{
    struct tiny_run t;
    struct eng_metrics metrics;
    char setting[64];
    uint32_t count, *ids;
    draw(&t, seed);
    snprintf(setting, sizeof setting, "scheduler.enable_prefix_caching=%s", sharing);
    t.settings[t.count] = setting;
    t.settings[t.count + 1] = NULL;
    cudahost_seed(seed);
    run_open(&run, tiny, t.settings);
    ids = run_encode(&run, "In the", &count);
    ids = realloc(ids, (count + TINY_ANSWER) * sizeof *ids);
    for (int i = 0; i < ASKED; i++) {
        struct eng_request request = { .prompt = ids, .prompt_tokens = count,
                                       .max_tokens = TINY_ANSWER, .ignore_eos = true,
                                       .sampling = { .temperature = 0.8f, .top_p = 1, .seed = 3 } };
        const struct run_answer *answer = run_submit(&run, &request);
        ck_assert_int_eq(finish(), 0);
        ck_assert_msg(answer->finish == ENG_LENGTH, "%s", answer->error);
        bits[i] = answer->rows_hash;
        if (i == 0) {
            memcpy(ids + count, answer->tokens, TINY_ANSWER * sizeof *ids);
            count += TINY_ANSWER;
        }
    }
    free(ids);
    eng_snapshot(run.stack.engine, &metrics);
    *reused = metrics.reused_tokens;
    run_close(&run);
    check_machine(seed);
}

START_TEST(beginnings_that_were_there_do_not_show)
{
    uint64_t want[ASKED], have[ASKED], reused, total = 0;
    converse(want, "false", 2, &reused);
    ck_assert_uint_eq(reused, 0);
    for (uint64_t seed = 1; seed <= seeds / 2; seed++) {
        converse(have, "true", seed, &reused);
        for (int i = 0; i < ASKED; i++) {
            ck_assert_msg(have[i] == want[i], "seed %llu, request %d: other bits",
                          (unsigned long long)seed, i);
        }
        /* In the second only what was a prompt: the card computes answers in another way. */
        ck_assert_uint_gt(reused, 0);
        total += reused;
    }
    printf("%llu tokens were there from before: the same bits\n", (unsigned long long)total);
}
END_TEST

/* ------------------------------------------------------------------------------------ faults -- */

/* The n-th call from when the engine is open gives `code`. Returns how many calls there were, or
 * 0 when it was reached and everything was as it should be. */
static unsigned run_fault(unsigned n, int code, unsigned *failed)
{
    struct run_answer *answers[ASKED];
    struct tiny_run t;
    draw(&t, 2);
    cudahost_seed(n);
    run_open(&run, tiny, t.settings);
    run.keep_rows = true;
    cudahost_machine.fail_at = n;
    cudahost_machine.fail_code = code;
    ask_tiny(answers, true);
    const int rc = finish();
    const unsigned left = cudahost_machine.fail_at;
    const bool lost = eng_failure(run.stack.engine) != NULL;
    cudahost_machine.fail_at = 0;
    ck_assert_msg((rc < 0) == lost, "call %u gives %d: step gave %d", n, code, rc);
    ck_assert_msg(left > 0 || lost == (code == cudaErrorIllegalAddress), "call %u gives %d", n,
                  code);
    for (int i = 0; i < ASKED; i++) {
        if (answers[i]->finish == ENG_FAILED) {
            (*failed)++;
            ck_assert_msg(strstr(answers[i]->error, "device") ||
                              strstr(answers[i]->error, "expert"),
                          "call %u gives %d: '%s'", n, code, answers[i]->error);
            continue;
        }
        const char *what = compare(i, answers[i]);
        ck_assert_msg(!what, "call %u gives %d: %s", n, code, what);
    }
    if (!lost) {
        struct run_answer *next = ask(texts[1], TINY_ANSWER);
        ck_assert_int_eq(finish(), 0);
        /* An expert that was given up stays away. */
        const char *what = next->finish == ENG_FAILED ? NULL : compare(1, next);
        ck_assert_msg(!what, "after call %u gave %d: %s", n, code, what);
    }
    run_close(&run);
    const char *failure = cudahost_failure();
    ck_assert_msg(!failure, "call %u gives %d: %s", n, code, failure);
    ck_assert_uint_eq(cudahost_reset(), 0);
    return left > 0 ? n - left : 0;
}

START_TEST(a_failed_call_fails_its_requests)
{
    static const int codes[] = { cudaErrorInvalidValue, cudaErrorIllegalAddress };
    unsigned failed = 0, runs = 0;
    find_truth();
    const unsigned calls = run_fault(1000000, codes[0], &failed);
    ck_assert_uint_eq(failed, 0);
    const unsigned stride = calls / (unsigned)(seeds / 2 + 1) + 1;
    for (unsigned n = 1; n <= calls; n += stride, runs++)
        run_fault(n + runs % stride, codes[runs % 2], &failed);
    printf("%u of %u calls failed, one a run: %u requests ended with the reason\n", runs, calls,
           failed);
    ck_assert_uint_gt(failed, runs / 2);
}
END_TEST

/* --------------------------------------------------------------------------------- mutations -- */

/* In a process of its own: what reads nonsense may crash. True if it was noticed. */
static bool noticed(const char *site, uint64_t seed)
{
    int status;
    char left[3000];
    tiny_folder(left, sizeof left, "check_cuda_engine");
    fflush(stdout);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        uint64_t computed;
        if (!freopen("/dev/null", "w", stderr) || setenv("TMPDIR", left, 1) < 0) _exit(2);
        cudahost_site_mute(site);
        _exit(run_tiny(seed, seed, &computed) ? 1 : 0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    tiny_remove(left);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

START_TEST(every_event_and_wait_is_needed)
{
    static char sites[CUDAHOST_SITES_MAX][64];
    const char *const *names;
    unsigned count = 0, missed = 0;
    if (BASE_ASAN) {
        printf("skipped here: events and waits removed in turn\n");
        return;
    }
    find_truth();
    const unsigned all = cudahost_sites(&names);
    for (unsigned i = 0; i < all; i++) {
        if (strncmp(names[i], "device_cuda.c", 13) == 0)
            snprintf(sites[count++], sizeof sites[0], "%s", names[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        uint64_t seed = 1;
        while (seed <= 5 && !noticed(sites[i], seed))
            seed++;
        printf("%s without %s\n", seed <= 5 ? "answers change" : "nothing changes", sites[i]);
        missed += seed <= 5;
    }
    /* Record and wait of the mark; record and query of a copy's end; record and wait of the note;
     * the upload's wait. What only ends and failures need is the affair of check_device_cuda. */
    printf("%u of %u events and waits removed in turn are missed by the engine\n", missed, count);
    ck_assert_uint_ge(missed, 7);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--seeds")) seeds = strtoull(argv[2], NULL, 10);
    setvbuf(stdout, NULL, _IOLBF, 0);
    Suite *suite = suite_create("cuda_engine");
    TCase *tests = tcase_create("small");
    tcase_add_unchecked_fixture(tests, make_tiny, NULL);
    tcase_add_test(tests, any_company_and_cache_give_the_same_bits);
    tcase_add_test(tests, beginnings_that_were_there_do_not_show);
    tcase_add_test(tests, a_failed_call_fails_its_requests);
    tcase_add_test(tests, every_event_and_wait_is_needed);
    tcase_set_timeout(tests, 0);
    suite_add_tcase(suite, tests);
    tests = tcase_create("pebble");
    tcase_add_test(tests, any_schedule_gives_the_same_bits);
    tcase_add_test(tests, answers_are_the_cpus);
    tcase_set_timeout(tests, 0);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (tiny[0]) tiny_remove(tiny);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
