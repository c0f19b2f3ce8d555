/* The life of requests: they share the batch, leave it, run out of memory or fail alone, and
 * whatever becomes of one, the others get what they would have got without it and all blocks come
 * back. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/make_tiny.h"
#include "tests/support/run_stack.h"

enum { MOE_LAYERS_MAX = 8, EXPERTS_MAX = 64, TOKENS = 40 };

static const char *const prompts[] = {
    "In the beginning God created", "#include <stdio.h>\n\nint main(void)\n{",
    "Pour installer le paquet, il faut", "The kernel is the part of the system that",
};

static struct run_answer *ask(struct run *run, int prompt, uint32_t tokens)
{
    uint32_t count;
    uint32_t *ids = run_encode(run, prompts[prompt], &count);
    struct run_answer *answer = run_greedy(run, ids, count, tokens);
    free(ids);
    return answer;
}

static struct eng_metrics metrics_of(struct run *run)
{
    struct eng_metrics metrics;
    eng_snapshot(run->stack.engine, &metrics);
    return metrics;
}

static void all_is_free(struct run *run)
{
    struct eng_metrics m = metrics_of(run);
    struct tier_snapshot *tiers = malloc(sizeof *tiers);
    tier_snapshot(run->stack.tier, tiers);
    ck_assert_uint_eq(m.kv_used_blocks, 0);
    ck_assert_uint_eq(m.running_requests + m.waiting_requests, 0);
    ck_assert_uint_eq(tiers->tiers[0].leased_slots, 0);
    free(tiers);
}

/* ------------------------------------------------------------------------------ cancelling -- */

START_TEST(a_cancelled_request_frees_its_place)
{
    static struct run run;
    run_open(&run, run_pebble(), NULL);
    struct run_answer *alone = ask(&run, 0, TOKENS);
    run_finish(&run);

    struct run_answer *stays = ask(&run, 0, TOKENS), *leaves = ask(&run, 1, 400),
                      *inside = ask(&run, 2, 400);
    inside->cancel_after = 5;
    for (int i = 0; i < 12; i++) {
        ck_assert_int_gt(eng_step(run.stack.engine), 0);
    }
    uint32_t pieces = leaves->pieces;
    ck_assert_uint_gt(pieces, 0);
    eng_cancel(run.stack.engine, leaves->id);
    eng_cancel(run.stack.engine, leaves->id);
    eng_cancel(run.stack.engine, 987654);
    run_finish(&run);
    ck_assert_uint_eq(leaves->pieces, pieces);
    ck_assert_uint_eq(inside->pieces, 5);
    ck_assert_int_eq(stays->finish, ENG_LENGTH);
    ck_assert_uint_eq(stays->rows_hash, alone->rows_hash);
    ck_assert_uint_eq(metrics_of(&run).cancelled_requests, 2);
    all_is_free(&run);

    struct run_answer *waiting[12];
    for (int i = 0; i < 12; i++) {
        waiting[i] = ask(&run, i % 4, 10);
    }
    eng_cancel(run.stack.engine, waiting[11]->id);
    run_finish(&run);
    ck_assert_uint_eq(waiting[11]->pieces, 0);
    ck_assert_uint_eq(waiting[10]->token_count, 10);
    all_is_free(&run);
    run_close(&run);
}
END_TEST

/* --------------------------------------------------------------------------------- KV cache -- */

/* Twelve requests in a cache for two: they wait, are sent back, and all come to their end. */
START_TEST(a_small_cache_serves_all_in_turn)
{
    static const char *const settings[] = { "kv.capacity=320KiB", "scheduler.max_model_len=128",
                                            "scheduler.max_num_seqs=6", NULL };
    static struct run run;
    run_open(&run, run_pebble(), settings);
    ck_assert_uint_lt(metrics_of(&run).kv_blocks, 10);
    struct run_answer *answers[12];
    for (int i = 0; i < 12; i++) {
        answers[i] = ask(&run, i % 4, 100);
    }
    run_finish(&run);
    for (int i = 0; i < 12; i++) {
        ck_assert_int_eq(answers[i]->finish, ENG_LENGTH);
        ck_assert_uint_eq(answers[i]->token_count, 100);
        ck_assert_mem_eq(answers[i]->tokens, answers[i % 4]->tokens, 100 * sizeof(uint32_t));
    }
    all_is_free(&run);
    run_close(&run);
}
END_TEST

START_TEST(an_answer_ends_at_the_longest_sequence)
{
    static const char *const settings[] = { "scheduler.max_model_len=24", NULL };
    static struct run run;
    run_open(&run, run_pebble(), settings);
    struct run_answer *answer = ask(&run, 0, 1000);
    run_finish(&run);
    ck_assert_int_eq(answer->finish, ENG_LENGTH);
    ck_assert_uint_eq(answer->token_count, 24 - 7);
    run_close(&run);
}
END_TEST

/* Where the length is left to Expertier it is what the cache holds, 9 blocks of 16 here. */
START_TEST(no_sequence_is_longer_than_the_cache)
{
    static const char *const settings[] = { "kv.capacity=320KiB", NULL };
    static struct run run;
    run_open(&run, run_pebble(), settings);
    ck_assert_uint_eq(eng_tokens_max(run.stack.engine), 144);
    struct run_answer *answer = ask(&run, 0, 4000);
    run_finish(&run);
    ck_assert_int_eq(answer->finish, ENG_LENGTH);
    ck_assert_uint_eq(answer->token_count, 144 - 7);
    run_close(&run);
}
END_TEST

/* ---------------------------------------------------------------------------- bad requests -- */

START_TEST(bad_requests_get_a_sentence)
{
    static struct run run;
    static const char *const settings[] = { "kv.capacity=320KiB", NULL };
    static uint32_t many[5000];
    const char *empty = "", *stops[20] = { empty };
    for (int i = 1; i < 20; i++) {
        stops[i] = "x";
    }
    uint32_t good = 5, bad = 4096;
    const struct eng_request ok = { .prompt = &good, .prompt_tokens = 1, .max_tokens = 4,
                                    .sampling = { .top_p = 1.0f } };
    struct eng_request requests[9];
    const char *says[] = { "empty", "can have 144", "0 to 4095", "max_tokens", "temperature",
                           "top_p", "top_p", "stop strings", "stop string 0" };
    for (int i = 0; i < 9; i++) {
        requests[i] = ok;
    }
    requests[0].prompt_tokens = 0;
    requests[1].prompt = many;
    requests[1].prompt_tokens = 5000;
    requests[2].prompt = &bad;
    requests[3].max_tokens = 0;
    requests[4].sampling.temperature = -1.0f;
    requests[5].sampling.top_p = 0.0f;
    requests[6].sampling.top_p = 1.5f;
    requests[7].stops = stops + 1;
    requests[7].stop_count = 17;
    requests[8].stops = stops;
    requests[8].stop_count = 1;
    run_open(&run, run_pebble(), settings);
    for (int i = 0; i < 9; i++) {
        struct base_err err = { 0 };
        ck_assert_int_eq(eng_submit(run.stack.engine, &requests[i], &err), -EINVAL);
        ck_assert_msg(strstr(err.text, says[i]) != NULL, "request %d: '%s' does not say '%s'", i,
                      err.text, says[i]);
    }
    ck_assert_int_eq(eng_step(run.stack.engine), 0);
    all_is_free(&run);
    run_close(&run);
}
END_TEST

/* ------------------------------------------------------------------------- failing experts -- */

/* Which experts which of two requests used, and when first: 0 = never, 1 = prompt, 2 =
 * generation. */
struct usage {
    uint64_t ids[2];
    uint8_t first[2][MOE_LAYERS_MAX][EXPERTS_MAX];
};

static void note_usage(struct run *run, const struct eng_step_record *record)
{
    struct usage *usage = run->step_context;
    for (uint32_t l = 0; l < record->moe_layers; l++) {
        for (uint32_t i = 0; i < record->token_count; i++) {
            int who = record->seqs[i] == usage->ids[1];
            const uint32_t *ids =
                record->expert_ids + ((size_t)l * record->token_count + i) * record->top_k;
            for (uint32_t k = 0; k < record->top_k; k++) {
                uint8_t *first = &usage->first[who][l][ids[k]];
                if (*first == 0) *first = record->phases[i] == TIER_PREFILL ? 1 : 2;
            }
        }
    }
}

static void copy_file(const char *from_dir, const char *to_dir, const char *name)
{
    char path[4200], *buffer = malloc(1 << 20);
    snprintf(path, sizeof path, "%s/%s", from_dir, name);
    FILE *from = fopen(path, "rb");
    snprintf(path, sizeof path, "%s/%s", to_dir, name);
    FILE *to = fopen(path, "wb");
    ck_assert(from && to && buffer);
    for (size_t size; (size = fread(buffer, 1, 1 << 20, from)) > 0;) {
        ck_assert_uint_eq(fwrite(buffer, 1, size, to), size);
    }
    fclose(from);
    ck_assert_int_eq(fclose(to), 0);
    free(buffer);
}

static void copy_pebble(char *dir, size_t size)
{
    static const char *const names[] = {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors.index.json", "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
    };
    tiny_folder(dir, size, "check_requests");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        copy_file(run_pebble(), dir, names[i]);
    }
}

/* Turns one bit of an expert over, on disk. */
static void damage(const struct run *run, uint32_t layer, uint32_t expert)
{
    struct tier_record record;
    tier_store_record(run->stack.store, layer, expert, &record);
    int fd = open(tier_store_file_path(run->stack.store, record.extents[0].file), O_RDWR);
    unsigned char byte;
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pread(fd, &byte, 1, (off_t)record.extents[0].offset + 77), 1);
    byte ^= 4;
    ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)record.extents[0].offset + 77), 1);
    ck_assert_int_eq(fsync(fd), 0);
    close(fd);
}

static bool pick(const struct usage *usage, uint8_t when, uint32_t *layer, uint32_t *expert)
{
    for (uint32_t l = 0; l < MOE_LAYERS_MAX; l++) {
        for (uint32_t e = 0; e < EXPERTS_MAX; e++) {
            if (usage->first[0][l][e] != when || usage->first[1][l][e] != 0) continue;
            *layer = l;
            *expert = e;
            return true;
        }
    }
    return false;
}

/* _i: the damaged expert is first needed by the first request's prompt (1) or by its answer (2). */
START_TEST(a_damaged_expert_fails_those_who_need_it)
{
    static struct run run;
    static struct usage usage;
    char dir[3000];
    uint32_t layer = 0, expert = 0, first_tokens[TOKENS], second_tokens[TOKENS];
    memset(&usage, 0, sizeof usage);
    copy_pebble(dir, sizeof dir);
    run_open(&run, dir, NULL);
    run.step_end = note_usage;
    run.step_context = &usage;
    struct run_answer *first = ask(&run, 1, TOKENS), *second = ask(&run, 0, TOKENS);
    usage.ids[0] = first->id;
    usage.ids[1] = second->id;
    run_finish(&run);
    memcpy(first_tokens, first->tokens, sizeof first_tokens);
    memcpy(second_tokens, second->tokens, sizeof second_tokens);
    uint64_t second_hash = second->rows_hash;
    ck_assert(pick(&usage, (uint8_t)_i, &layer, &expert));
    run_close(&run);

    run_open(&run, dir, NULL);
    damage(&run, layer, expert);
    first = ask(&run, 1, TOKENS);
    second = ask(&run, 0, TOKENS);
    run_finish(&run);
    ck_assert_int_eq(first->finish, ENG_FAILED);
    ck_assert_int_lt(first->error_code, 0);
    char name[64];
    snprintf(name, sizeof name, "expert %u of layer %u ", expert,
             layer + tier_store_layer_first(run.stack.store));
    ck_assert_msg(strstr(first->error, name) != NULL, "'%s' does not name %s", first->error, name);
    ck_assert_int_eq(first->token_count == 0, _i == 1);
    ck_assert_mem_eq(first->tokens ? first->tokens : first_tokens, first_tokens,
                     first->token_count * sizeof *first_tokens);
    ck_assert_int_eq(second->finish, ENG_LENGTH);
    ck_assert_mem_eq(second->tokens, second_tokens, sizeof second_tokens);
    ck_assert_uint_eq(second->rows_hash, second_hash);
    ck_assert_uint_eq(metrics_of(&run).failed_requests, 1);
    all_is_free(&run);
    run_close(&run);
    tiny_remove(dir);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("requests");
    TCase *tests = tcase_create("requests");
    tcase_add_test(tests, a_cancelled_request_frees_its_place);
    tcase_add_test(tests, a_small_cache_serves_all_in_turn);
    tcase_add_test(tests, an_answer_ends_at_the_longest_sequence);
    tcase_add_test(tests, no_sequence_is_longer_than_the_cache);
    tcase_add_test(tests, bad_requests_get_a_sentence);
    tcase_add_loop_test(tests, a_damaged_expert_fails_those_who_need_it, 1, 3);
    tcase_set_timeout(tests, 120);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
