/* Same bits: every logit of a generation is the same whatever the size of the DRAM tier, the way of
 * reading, the number of threads, the op set, the cut of the prompt and the neighbours.
 *   check_engine_bits [TOKENS]      default 80 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kern.h"
#include "tests/support/run_stack.h"
#include "tiering/io.h"

enum { SETTINGS_MAX = 8 };

static uint32_t tokens_wanted = 80;

struct variant {
    const char *settings[SETTINGS_MAX];
    bool neighbours;
};

static const char *const text = "The kernel is the part of the system that";

/* A request like no other: sampled, so that one wrong bit leads to another text. */
static struct run_answer *submit(struct run *run, const char *prompt, uint64_t seed,
                                 uint32_t tokens)
{
    uint32_t count;
    uint32_t *ids = run_encode(run, prompt, &count);
    struct eng_request request = {
        .prompt = ids,
        .prompt_tokens = count,
        .max_tokens = tokens,
        .sampling = { .temperature = 0.8f, .top_p = 0.95f, .seed = seed },
        .ignore_eos = true,
        .prompt_logits = true
    };
    struct run_answer *answer = run_submit(run, &request);
    free(ids);
    return answer;
}

/* KV blocks for fewer than all four: some are sent back and computed again. */
static const char few_blocks[] = "kv.capacity";

/* What the generation came to, as one number. */
static uint64_t hash_of(const struct variant *variant)
{
    static struct run run;
    char capacity[64];
    const char *settings[SETTINGS_MAX];
    bool few = false;
    for (int i = 0; i < SETTINGS_MAX; i++) {
        settings[i] = variant->settings[i];
        if (settings[i] != few_blocks) continue;
        few = true;
        snprintf(capacity, sizeof capacity, "%s=%uKiB", few_blocks, 4 * tokens_wanted);
        settings[i] = capacity;
    }
    run_open(&run, run_pebble(), settings);
    if (variant->neighbours) {
        submit(&run, "In the beginning God created", 7, 60);
        submit(&run, "#include <stdio.h>\n\nint main(void)\n{", 8, tokens_wanted + 20);
    }
    struct run_answer *answer = submit(&run, text, 3, tokens_wanted);
    if (variant->neighbours) submit(&run, "Pour installer le paquet, il faut", 9, tokens_wanted);
    run_finish(&run);
    ck_assert_uint_eq(answer->token_count, tokens_wanted);
    const uint64_t hash = answer->rows_hash;
    uint32_t again = 0;
    struct eng_metrics metrics;
    eng_snapshot(run.stack.engine, &metrics);
    for (uint32_t i = 0; i < run.answer_count; i++) again += run.answers[i].rows_again;
    ck_assert_msg(few == (again > 0) && few == (metrics.preempted_requests > 0),
                  "%u rows were computed again, %llu times a sequence was sent back", again,
                  (unsigned long long)metrics.preempted_requests);
    run_close(&run);
    return hash;
}

static uint64_t plain_hash(void)
{
    static const struct variant plain = {
        { "tiers.dram.capacity=100%", "io.backend=threads", "engine.threads=1", NULL }, false
    };
    static uint64_t hash;
    if (hash == 0) hash = hash_of(&plain);
    return hash;
}

static bool backend_works(const char *name)
{
    struct tier_io_config config;
    struct base_option_group group = { "io", tier_io_options, tier_io_option_count, &config };
    struct base_err err = { 0 };
    struct tier_io *io;
    base_option_defaults(&group, 1);
    char pair[64];
    snprintf(pair, sizeof pair, "io.backend=%s", name);
    ck_assert_int_eq(base_option_set_pair(&group, 1, pair, &err), 0);
    if (tier_io_create(&io, &config, base_clock_real(), &err) < 0) {
        printf("%s is not tried here: %s\n", name, err.text);
        return false;
    }
    tier_io_destroy(io);
    return true;
}

/* Sizes x backends, each with two of the four (threads, neighbours), so that every pair of values
 * of any two settings meets. */
START_TEST(tiers_and_backends_do_not_show)
{
    static const char *const sizes[] = { "9.375%", "25%", "100%" };
    static const char *const backends[] = { "io_uring", "threads", "sim" };
    int size = _i % 3, backend = _i / 3 % 3, neighbours = _i / 9;
    int threads = 1 + (size + backend + neighbours) % 2;
    char capacity[64], reader[64], crew[64], seed[64];
    if (!backend_works(backends[backend])) return;
    snprintf(capacity, sizeof capacity, "tiers.dram.capacity=%s", sizes[size]);
    snprintf(reader, sizeof reader, "io.backend=%s", backends[backend]);
    snprintf(crew, sizeof crew, "engine.threads=%d", threads);
    snprintf(seed, sizeof seed, "io.sim_seed=%d", 100 + _i);
    struct variant variant = { { capacity, reader, crew, seed, "io.sim_latency=2us", NULL },
                               neighbours };
    uint64_t hash = hash_of(&variant);
    ck_assert_msg(hash == plain_hash(),
                  "%s %s %s %s: other bits than alone with everything in memory", capacity, reader,
                  crew, neighbours ? "beside others" : "alone");
}
END_TEST

START_TEST(cuts_and_op_sets_do_not_show)
{
    static const struct variant variants[] = {
        { { "scheduler.max_chunked_prefill_tokens=1", "tiers.dram.capacity=25%", NULL }, false },
        { { "scheduler.max_chunked_prefill_tokens=3", "tiers.dram.capacity=9.375%", NULL }, true },
        { { "scheduler.max_num_batched_tokens=9", "tiers.dram.capacity=25%", NULL }, true },
        { { "engine.cpu_mask=avx2", "tiers.dram.capacity=25%", NULL }, true },
        { { "engine.cpu_mask=reference", "tiers.dram.capacity=100%", NULL }, false },
        { { "policy.eviction=lru_global", "tiers.dram.capacity=15%", NULL }, true },
        { { "kv.block_tokens=1", "tiers.dram.capacity=25%", NULL }, true },
        { { "kv.block_tokens=23", "tiers.dram.capacity=25%", NULL }, true },
        { { few_blocks, "tiers.dram.capacity=25%", NULL }, true },
    };
    ck_assert_msg(hash_of(&variants[_i]) == plain_hash(), "%s: other bits",
                  variants[_i].settings[0]);
}
END_TEST

/* The same of activations in bf16, which are other bits than f32's. */
START_TEST(bf16_keeps_its_own_bits)
{
    static const struct variant plain = {
        { "engine.activations=bf16", "engine.threads=1", NULL }, false
    };
    static const struct variant variants[] = {
        { { "engine.activations=bf16", "tiers.dram.capacity=9.375%", "engine.threads=2", NULL },
          true },
        { { "engine.activations=bf16", "tiers.dram.capacity=25%", "engine.threads=1",
            "scheduler.max_chunked_prefill_tokens=3", NULL }, true },
        { { "engine.activations=bf16", "engine.cpu_mask=avx2", "tiers.dram.capacity=25%", NULL },
          true },
        { { "engine.activations=bf16", few_blocks, "tiers.dram.capacity=25%", NULL },
          true },
    };
    static uint64_t hash;
    if (hash == 0) hash = hash_of(&plain);
    ck_assert(hash != plain_hash());
    ck_assert_msg(hash_of(&variants[_i]) == hash, "bf16 with %s: other bits",
                  variants[_i].settings[1]);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc == 2) tokens_wanted = (uint32_t)strtoul(argv[1], NULL, 10);
    if (argc > 2 || tokens_wanted == 0) {
        fputs("usage: check_engine_bits [TOKENS]\n", stderr);
        return 2;
    }
    Suite *suite = suite_create("bits");
    TCase *tests = tcase_create("same");
    tcase_add_loop_test(tests, tiers_and_backends_do_not_show, 0, 18);
    tcase_add_loop_test(tests, cuts_and_op_sets_do_not_show, 0, 9);
    tcase_add_loop_test(tests, bf16_keeps_its_own_bits, 0, 4);
    tcase_set_timeout(tests, 120);
    suite_add_tcase(suite, tests);
    /* One process: the plain run serves all. */
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
