/* The life of a request on the shipped model: how it ends, what is refused, and that a cancelled
 * one leaves nothing behind. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/run_stack.h"

static struct run run;
static uint32_t *prompt, prompt_tokens;

static void open_with(const char *const *settings)
{
    run_open(&run, run_pebble(), settings);
    prompt = run_encode(&run, "In the beginning God created the heaven and", &prompt_tokens);
}

static void open_plain(void)
{
    open_with(NULL);
}

static void close_all(void)
{
    free(prompt);
    run_close(&run);
}

static struct eng_metrics counters(void)
{
    struct eng_metrics metrics;
    eng_snapshot(run.stack.engine, &metrics);
    return metrics;
}

/* Nothing of any request is left: no KV block, no lease, no place in a list. */
static void assert_empty(void)
{
    static struct tier_snapshot snapshot;
    struct eng_metrics metrics = counters();
    ck_assert_uint_eq(metrics.kv_used_blocks, 0);
    ck_assert_uint_eq(metrics.running_requests, 0);
    ck_assert_uint_eq(metrics.waiting_requests, 0);
    ck_assert_int_eq(eng_step(run.stack.engine), 0);
    tier_snapshot(run.stack.tier, &snapshot);
    ck_assert_uint_eq(snapshot.tiers[0].leased_slots, 0);
}

static struct eng_request greedy(uint32_t max_tokens)
{
    return (struct eng_request){ .prompt = prompt,
                                 .prompt_tokens = prompt_tokens,
                                 .max_tokens = max_tokens,
                                 .sampling = { .top_p = 1.0f } };
}

/* ------------------------------------------------------------------------------------- ends -- */

START_TEST(max_tokens_ends_it)
{
    struct run_answer *one = run_greedy(&run, prompt, prompt_tokens, 1);
    struct run_answer *nine = run_greedy(&run, prompt, prompt_tokens, 9);
    run_finish(&run);
    ck_assert_uint_eq(one->token_count, 1);
    ck_assert_int_eq(one->finish, ENG_LENGTH);
    ck_assert_uint_eq(nine->token_count, 9);
    ck_assert_int_eq(nine->finish, ENG_LENGTH);
    ck_assert_uint_eq(one->tokens[0], nine->tokens[0]);
    assert_empty();
    struct eng_metrics m = counters();
    ck_assert_uint_eq(m.finished_requests, 2);
    ck_assert_uint_eq(m.generated_tokens, 10);
    ck_assert_uint_eq(m.prompt_tokens, 2 * prompt_tokens);
}
END_TEST

/* Any token may be an end token: one that the model says anyway is made one. */
START_TEST(eos_ends_it_and_is_no_text)
{
    struct run_answer *whole = run_greedy(&run, prompt, prompt_tokens, 12);
    run_finish(&run);
    /* One that does not come before. */
    uint32_t at = 4;
    for (uint32_t i = 0; i < at; i++) {
        if (whole->tokens[i] != whole->tokens[at]) continue;
        at++;
        i = UINT32_MAX;
        ck_assert_uint_lt(at, 12);
    }
    run.stack.shape.eos_ids[0] = whole->tokens[at];
    run.stack.shape.eos_count = 1;
    struct eng_request request = greedy(12);
    struct run_answer *ended = run_submit(&run, &request);
    struct run_answer *ignoring = run_greedy(&run, prompt, prompt_tokens, 12);
    run_finish(&run);
    ck_assert_int_eq(ended->finish, ENG_STOP);
    ck_assert_uint_eq(ended->token_count, at + 1);
    ck_assert_uint_lt(ended->text_size, whole->text_size);
    ck_assert_mem_eq(ended->text, whole->text, ended->text_size);
    ck_assert_int_eq(ignoring->finish, ENG_LENGTH);
    ck_assert_str_eq(ignoring->text, whole->text);
    assert_empty();
}
END_TEST

START_TEST(a_stop_string_ends_it)
{
    struct run_answer *whole = run_greedy(&run, prompt, prompt_tokens, 30);
    run_finish(&run);
    char stop[8] = { 0 };
    ck_assert_uint_gt(whole->text_size, 30);
    memcpy(stop, whole->text + 20, 4);
    size_t first = (size_t)(strstr(whole->text, stop) - whole->text);
    const char *stops[] = { "never to be seen", stop };
    struct eng_request request = greedy(30);
    request.stops = stops;
    request.stop_count = 2;
    request.ignore_eos = true;
    struct run_answer *ended = run_submit(&run, &request);
    run_finish(&run);
    ck_assert_int_eq(ended->finish, ENG_STOP);
    ck_assert_uint_eq(ended->text_size, first);
    ck_assert_mem_eq(ended->text, whole->text, first);
    assert_empty();
}
END_TEST

/* -------------------------------------------------------------------------------- refusals -- */

START_TEST(a_full_queue_is_refused)
{
    struct eng_request r = greedy(2);
    struct base_err err = { 0 };
    int64_t first = 0, last = 0;
    uint32_t taken = 0;
    for (;; taken++) {
        int64_t id = eng_submit(run.stack.engine, &r, &err);
        if (id < 0) {
            last = id;
            break;
        }
        if (taken == 0) first = id;
        ck_assert_uint_lt(taken, 100000);
    }
    ck_assert_int_eq(last, -EAGAIN);
    ck_assert_msg(strstr(err.text, "waiting"), "%s", err.text);
    ck_assert_uint_eq(counters().waiting_requests, taken);
    for (uint32_t i = 0; i < taken; i++) {
        eng_cancel(run.stack.engine, (uint64_t)first + i);
    }
    ck_assert_uint_eq(counters().cancelled_requests, taken);
    assert_empty();
}
END_TEST

/* ---------------------------------------------------------------------------------- cancel -- */

START_TEST(cancel_frees_everything_at_any_time)
{
    static const char *const settings[] = { "scheduler.max_num_seqs=3",
                                            "scheduler.max_chunked_prefill_tokens=4", NULL };
    open_with(settings);
    struct run_answer *alone = run_greedy(&run, prompt, prompt_tokens, 20);
    run_finish(&run);
    /* After every number of steps: waiting, within its prompt, generating. */
    for (uint32_t steps = 0; steps < 12; steps++) {
        struct run_answer *leaving[4];
        for (int i = 0; i < 4; i++) {
            leaving[i] = run_greedy(&run, prompt, prompt_tokens, 20);
        }
        struct run_answer *staying = NULL;
        if (steps == 5) staying = run_greedy(&run, prompt, prompt_tokens, 20);
        for (uint32_t s = 0; s < steps; s++) {
            ck_assert_int_gt(eng_step(run.stack.engine), 0);
        }
        for (int i = 0; i < 4; i++) {
            uint32_t pieces = leaving[i]->pieces;
            eng_cancel(run.stack.engine, leaving[i]->id);
            eng_cancel(run.stack.engine, leaving[i]->id);
            ck_assert_uint_eq(leaving[i]->pieces, pieces);
        }
        eng_cancel(run.stack.engine, 999999);
        run_finish(&run);
        if (staying) {
            ck_assert_int_eq(staying->finish, ENG_LENGTH);
            ck_assert_str_eq(staying->text, alone->text);
        }
        assert_empty();
    }
    ck_assert_uint_eq(counters().cancelled_requests, 48);
    close_all();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("life");
    TCase *tests = tcase_create("plain"), *own = tcase_create("own settings");
    tcase_add_checked_fixture(tests, open_plain, close_all);
    tcase_add_test(tests, max_tokens_ends_it);
    tcase_add_test(tests, eos_ends_it_and_is_no_text);
    tcase_add_test(tests, a_stop_string_ends_it);
    tcase_add_test(tests, a_full_queue_is_refused);
    tcase_add_test(own, cancel_frees_everything_at_any_time);
    tcase_set_timeout(tests, 60);
    tcase_set_timeout(own, 60);
    suite_add_tcase(suite, tests);
    suite_add_tcase(suite, own);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
