/* Stop strings never leak: what a client was told is always a beginning of the right answer, and
 * nothing is held back that no stop string can begin with. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/seq.h"
#include "tests/support/run_stack.h"

enum { TEXT_MAX = 1 << 16, TOKENS_MAX = 120 };

static struct model_tokenizer *tokenizer;
static struct eng_seq_limits limits = { .tokens_max = 4096, .blocks_max = 8 };

/* What the client heard. */
static struct {
    char text[TEXT_MAX];
    size_t size;
    enum eng_finish finish;
    uint32_t pieces;
} heard;

static void on_piece(void *context, const struct eng_piece *piece)
{
    (void)context;
    ck_assert_int_eq(heard.finish, ENG_RUNNING);
    ck_assert_uint_lt(heard.size + piece->size, TEXT_MAX);
    memcpy(heard.text + heard.size, piece->text, piece->size);
    heard.size += piece->size;
    heard.finish = piece->finish;
    heard.pieces++;
}

static void load(void)
{
    struct base_err err = { 0 };
    int rc = model_tokenizer_load(&tokenizer, run_pebble(), &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    for (uint32_t id = 0; id < model_tokenizer_vocab(tokenizer); id++) {
        size_t size;
        bool special;
        model_tokenizer_bytes(tokenizer, id, &size, &special);
        if (size > limits.token_bytes_max) limits.token_bytes_max = (uint32_t)size;
    }
}

static void unload(void)
{
    model_tokenizer_free(tokenizer);
}

static struct eng_seq *start(const char *const *stops, uint32_t stop_count, uint32_t max_tokens)
{
    static const uint32_t prompt[] = { 5, 6 };
    struct eng_request request = { .prompt = prompt, .prompt_tokens = 2, .max_tokens = max_tokens,
                                   .stops = stops, .stop_count = stop_count, .on_piece = on_piece };
    memset(&heard, 0, sizeof heard);
    struct eng_seq *seq = eng_seq_create(&request, 1, tokenizer, &limits);
    ck_assert_ptr_nonnull(seq);
    seq->state = ENG_SEQ_GENERATING;
    return seq;
}

/* Where the earliest stop string begins, or size. */
static size_t plain_stop(const char *text, size_t size, const char *const *stops, uint32_t count)
{
    size_t first = size;
    for (uint32_t i = 0; i < count; i++) {
        const char *at = memmem(text, size, stops[i], strlen(stops[i]));
        if (at && (size_t)(at - text) < first) first = (size_t)(at - text);
    }
    return first;
}

static bool begins_a_stop(const char *text, size_t size, const char *const *stops, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (size < strlen(stops[i]) && memcmp(text, stops[i], size) == 0) return true;
    }
    return false;
}

/* Tokens of random sort; some of them spell a stop string, whole or nearly so. */
static uint32_t random_tokens(struct base_rng *rng, const char *const *stops, uint32_t stop_count,
                              uint32_t *tokens)
{
    uint32_t count = 0, want = 1 + (uint32_t)base_rng_below(rng, TOKENS_MAX);
    while (count < want) {
        if (stop_count > 0 && base_rng_below(rng, 4) == 0) {
            const char *stop = stops[base_rng_below(rng, stop_count)];
            size_t part = 1 + base_rng_below(rng, strlen(stop)), n;
            if (part == strlen(stop) && base_rng_below(rng, 3)) part -= part > 1;
            uint32_t *ids;
            ck_assert_int_eq(model_tokenizer_encode(tokenizer, stop, part, false, &ids, &n), 0);
            for (size_t i = 0; i < n && count < want; i++) {
                tokens[count++] = ids[i];
            }
            free(ids);
        } else {
            tokens[count++] = (uint32_t)base_rng_below(rng, model_tokenizer_vocab(tokenizer));
        }
    }
    return count;
}

START_TEST(what_was_told_begins_the_right_answer)
{
    /* They overlap, begin alike, repeat themselves, and hold characters of several bytes. */
    static const char *const kinds[] = { "aa", "aab", "\n\n", "the",       "the end", "end",
                                         "é",  "→→",  " ",    "abcabcabd", "}\n",     "x" };
    enum { KINDS = sizeof kinds / sizeof kinds[0] };
    static char text[TEXT_MAX], whole[TEXT_MAX];
    uint32_t stopped = 0;
    for (uint32_t seed = 1; seed <= 1500; seed++) {
        struct base_rng rng;
        const char *stops[4];
        uint32_t tokens[TOKENS_MAX];
        base_rng_init(&rng, seed);
        uint32_t stop_count = (uint32_t)base_rng_below(&rng, 5);
        for (uint32_t i = 0; i < stop_count; i++) {
            stops[i] = kinds[base_rng_below(&rng, KINDS)];
        }
        uint32_t count = random_tokens(&rng, stops, stop_count, tokens);
        struct eng_seq *seq = start(stops, stop_count, count);
        struct model_detokenizer plain;
        model_detokenizer_init(&plain, tokenizer);
        size_t size = 0, end = 0;
        for (uint32_t i = 0; i < count && heard.finish == ENG_RUNNING; i++) {
            size += model_detokenizer_add(&plain, tokens[i], text + size, sizeof text - size);
            if (i + 1 == count) {
                size += model_detokenizer_finish(&plain, text + size, sizeof text - size);
            }
            eng_seq_push(seq, tokens[i], -1.0f, false);
            ck_assert_uint_eq(heard.pieces, i + 1);
            end = plain_stop(text, size, stops, stop_count);
            if (end < size) {
                ck_assert_msg(heard.finish == ENG_STOP, "seed %u: a stop string was passed over",
                              seed);
                stopped++;
            } else if (i + 1 < count) {
                ck_assert_msg(heard.finish == ENG_RUNNING, "seed %u: stopped without a reason",
                              seed);
                size_t held = size - heard.size;
                ck_assert_msg(held == 0 ||
                                  begins_a_stop(text + heard.size, held, stops, stop_count),
                              "seed %u: text is held back for nothing", seed);
            } else {
                ck_assert_msg(heard.finish == ENG_LENGTH, "seed %u", seed);
            }
            /* Compared at the end with the whole answer. */
            ck_assert_msg(heard.size <= end, "seed %u: text of a stop string was told", seed);
        }
        memcpy(whole, text, size);
        ck_assert_msg(heard.size == end && memcmp(heard.text, whole, end) == 0,
                      "seed %u: other text than the tokens up to the stop string", seed);
        eng_seq_destroy(seq);
    }
    ck_assert_uint_gt(stopped, 300);
}
END_TEST

/* An eos with half a stop string held back: it was no stop string, so it is told. */
START_TEST(the_end_tells_what_was_held)
{
    static const char *const stops[] = { "word and more" };
    struct eng_seq *seq = start(stops, 1, 10);
    uint32_t *ids;
    size_t count;
    ck_assert_int_eq(model_tokenizer_encode(tokenizer, "word", 4, false, &ids, &count), 0);
    for (size_t i = 0; i < count; i++) {
        ck_assert_int_eq(eng_seq_push(seq, ids[i], 0.0f, false), ENG_RUNNING);
        ck_assert_uint_eq(heard.size, 0);
    }
    ck_assert_int_eq(eng_seq_push(seq, 1, 0.0f, true), ENG_STOP);
    ck_assert_uint_eq(heard.size, 4);
    ck_assert_mem_eq(heard.text, "word", 4);
    free(ids);
    eng_seq_destroy(seq);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("stops");
    TCase *tests = tcase_create("stops");
    tcase_add_checked_fixture(tests, load, unload);
    tcase_add_test(tests, what_was_told_begins_the_right_answer);
    tcase_add_test(tests, the_end_tells_what_was_held);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
