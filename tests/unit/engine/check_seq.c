/* A sequence tells its text whole: no part of a stop string leaks, no character is cut, and the
 * pieces put together are the text up to the stop. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/seq.h"
#include "tests/support/run_stack.h"

enum { TEXT_MAX = 4096 };

static struct model_tokenizer *tokenizer;
static const struct eng_seq_limits limits = { .tokens_max = 512,
                                              .blocks_max = 32,
                                              .token_bytes_max = 64 };

struct told {
    char text[TEXT_MAX];
    size_t size;
    uint32_t pieces;
    enum eng_finish finish;
};

static void setup(void)
{
    struct base_err err = { 0 };
    int rc = model_tokenizer_load(&tokenizer, run_pebble(), &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

static void teardown(void)
{
    model_tokenizer_free(tokenizer);
}

static void on_piece(void *context, const struct eng_piece *piece)
{
    struct told *told = context;
    ck_assert_int_eq(told->finish, ENG_RUNNING);
    ck_assert_uint_lt(told->size + piece->size, TEXT_MAX);
    memcpy(told->text + told->size, piece->text, piece->size);
    told->size += piece->size;
    told->text[told->size] = '\0';
    told->pieces++;
    told->finish = piece->finish;
}

/* Pushes the tokens of `text` until the sequence ends; whatever was told by then is in `told`. */
static enum eng_finish say(const char *text, const char *const *stops, uint32_t stop_count,
                           uint32_t max_tokens, bool stop_at_end, struct told *told)
{
    uint32_t prompt = 5, *ids;
    size_t count;
    *told = (struct told){ .finish = ENG_RUNNING };
    struct eng_request request = { .prompt = &prompt, .prompt_tokens = 1, .max_tokens = max_tokens,
                                   .stops = stops, .stop_count = stop_count, .on_piece = on_piece,
                                   .context = told };
    struct eng_seq *seq = eng_seq_create(&request, 1, tokenizer, &limits);
    ck_assert_ptr_nonnull(seq);
    ck_assert_int_eq(model_tokenizer_encode(tokenizer, text, strlen(text), false, &ids, &count), 0);
    enum eng_finish finish = ENG_RUNNING;
    for (size_t i = 0; i < count && finish == ENG_RUNNING; i++) {
        finish = eng_seq_push(seq, ids[i], -1.0f, false);
        /* What was told so far must not run into a stop string. */
        for (uint32_t s = 0; s < stop_count; s++) {
            ck_assert_ptr_null(strstr(told->text, stops[s]));
        }
    }
    if (finish == ENG_RUNNING && stop_at_end) finish = eng_seq_push(seq, 1, -1.0f, true);
    free(ids);
    eng_seq_destroy(seq);
    return finish;
}

START_TEST(stops_cut_the_text_exactly)
{
    static const struct {
        const char *text, *stops[3], *want;
    } rows[] = {
        { "one two three", { "two" }, "one " },
        { "one two three", { "thr" }, "one two " },
        { "one two three", { "zzz" }, "one two three" },
        { "aaaaaab", { "aab" }, "aaaa" },
        { "first\n\nsecond", { "\n\n" }, "first" },
        { "a b c d", { "d", "c", "b" }, "a " },
        { "x<|end|>y", { "<|end|>" }, "x" },
        { "x<|en y", { "<|end|>" }, "x<|en y" },
        { "abcabcabd tail", { "abcabd" }, "abc" },
        { "\xe7\xb3\xbb\xe7\xbb\x9f\xe7\xae\xa1\xe7\x90\x86",
          { "\xe7\xae\xa1" },
          "\xe7\xb3\xbb\xe7\xbb\x9f" },
    };
    struct told told;
    uint32_t stop_count = 0;
    while (stop_count < 3 && rows[_i].stops[stop_count]) {
        stop_count++;
    }
    say(rows[_i].text, rows[_i].stops, stop_count, 400, true, &told);
    ck_assert_int_eq(told.finish, ENG_STOP);
    ck_assert_str_eq(told.text, rows[_i].want);
}
END_TEST

/* Random texts over few letters, so that prefixes of stops are everywhere. */
START_TEST(random_stops_never_leak)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    for (int round = 0; round < 200; round++) {
        char text[80], stops[3][8];
        const char *list[3] = { stops[0], stops[1], stops[2] };
        size_t size = 1 + base_rng_below(&rng, sizeof text - 1);
        for (size_t i = 0; i + 1 < size; i++) {
            text[i] = "ab \n"[base_rng_below(&rng, 4)];
        }
        text[size - 1] = '\0';
        for (int s = 0; s < 3; s++) {
            size_t length = 1 + base_rng_below(&rng, sizeof stops[s] - 1);
            for (size_t i = 0; i < length; i++) {
                stops[s][i] = "ab \n"[base_rng_below(&rng, 4)];
            }
            stops[s][length] = '\0';
        }
        /* Nothing before the earliest place where one of them begins may be lost. */
        size_t first = strlen(text);
        for (int s = 0; s < 3; s++) {
            const char *at = strstr(text, list[s]);
            if (at && (size_t)(at - text) < first) first = (size_t)(at - text);
        }
        struct told told;
        say(text, list, 3, 400, true, &told);
        /* Of two that overlap the one that is whole first ends the answer, so more may be told. */
        ck_assert_msg(strncmp(text, told.text, told.size) == 0, "seed %d: not the text's beginning",
                      _i);
        ck_assert_msg(told.size >= first, "seed %d: cut before the first stop", _i);
        for (int s = 0; s < 3; s++) {
            ck_assert_msg(!strstr(told.text, list[s]), "seed %d: a stop string leaked", _i);
        }
    }
}
END_TEST

START_TEST(ends_at_the_limit_and_at_eos)
{
    struct told told;
    ck_assert_int_eq(say("one two three four five", NULL, 0, 2, false, &told), ENG_LENGTH);
    ck_assert_uint_eq(told.pieces, 2);
    ck_assert_int_eq(told.finish, ENG_LENGTH);
    ck_assert_int_eq(say("one", NULL, 0, 400, true, &told), ENG_STOP);
    ck_assert_str_eq(told.text, "one");
}
END_TEST

/* The last character of an answer cut by its length may not be whole: it becomes U+FFFD. */
START_TEST(a_cut_character_is_replaced_at_the_end)
{
    struct told told;
    uint32_t prompt = 5;
    struct eng_request request = { .prompt = &prompt, .prompt_tokens = 1, .max_tokens = 1,
                                   .on_piece = on_piece, .context = &told };
    told = (struct told){ .finish = ENG_RUNNING };
    struct eng_seq *seq = eng_seq_create(&request, 1, tokenizer, &limits);
    uint32_t first_byte = 0;
    for (uint32_t id = 0; id < model_tokenizer_vocab(tokenizer); id++) {
        size_t size;
        bool special;
        const char *bytes = model_tokenizer_bytes(tokenizer, id, &size, &special);
        if (size == 1 && (unsigned char)bytes[0] == 0xe7) first_byte = id;
    }
    ck_assert_uint_ne(first_byte, 0);
    ck_assert_int_eq(eng_seq_push(seq, first_byte, 0.0f, false), ENG_LENGTH);
    ck_assert_str_eq(told.text, "\xef\xbf\xbd");
    eng_seq_destroy(seq);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("seq");
    TCase *tests = tcase_create("text");
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, stops_cut_the_text_exactly, 0, 10);
    tcase_add_loop_test(tests, random_stops_never_leak, 0, 5);
    tcase_add_test(tests, ends_at_the_limit_and_at_eos);
    tcase_add_test(tests, a_cut_character_is_replaced_at_the_end);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
