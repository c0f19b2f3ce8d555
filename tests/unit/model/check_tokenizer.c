/* Splits cut as in Hugging Face `tokenizers`, bytes survive the way there and back, characters come
 * whole, and broken tokenizer.json files get one sentence. */
#include <check.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/rng.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "port/json.h"

static struct port_json *golden;    /* tests/golden/tokenizer_splits.json */
static const char *model_text;      /* its vocabulary: "model":{...} */

static void setup(void)
{
    char path[4096];
    struct base_err err = { 0 };
    const char *root = getenv("EXPERTIER_SOURCE");
    snprintf(path, sizeof path, "%s/tests/golden/tokenizer_splits.json", root ? root : ".");
    ck_assert_msg(port_json_load(&golden, path, 1 << 20, &err) == 0, "%s", err.text);
    model_text = port_json_text(port_json_get(golden, "model"), NULL);
}

static void teardown(void)
{
    port_json_free(golden);
}

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"

/* A tokenizer with the golden vocabulary; `model_options` are members such as "dropout":1, */
static int tokenizer_make(struct model_tokenizer **t, const char *members, const char *splits,
                          const char *model_options, struct base_err *err)
{
    struct base_buf json;
    base_buf_init(&json);
    base_buf_printf(&json, "{%s\"pre_tokenizer\":%s,\"model\":{%s%s}", members, splits,
                    model_options, model_text + 1);
    ck_assert_int_eq(base_buf_error(&json), 0);
    *err = (struct base_err){ 0 };
    int rc = model_tokenizer_parse(t, json.data, json.size, "tokenizer.json", err);
    base_buf_fini(&json);
    return rc;
}

static struct model_tokenizer *plain_tokenizer(const char *members)
{
    struct model_tokenizer *t;
    struct base_err err;
    int rc = tokenizer_make(&t, members, BYTE_LEVEL, "", &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    return t;
}

START_TEST(splits_cut_as_in_tokenizers)
{
    const struct port_json *cases = port_json_get(golden, "cases");
    const struct port_json *texts = port_json_get(golden, "texts");
    ck_assert_uint_ge(port_json_count(cases), 40);
    for (size_t i = 0; i < port_json_count(cases); i++) {
        const struct port_json *item = port_json_at(cases, i);
        const char *splits = port_json_text(port_json_get(item, "pre_tokenizer"), NULL);
        bool ignore = port_json_as_bool(port_json_get(item, "ignore_merges"));
        struct model_tokenizer *t;
        struct base_err err;
        int rc = tokenizer_make(&t, "", splits, ignore ? "\"ignore_merges\":true," : "", &err);
        ck_assert_msg(rc == 0, "%s: %s", splits, err.text);
        for (size_t k = 0; k < port_json_count(texts); k++) {
            const struct port_json *want =
                port_json_at(port_json_get(item, "ids"), k);
            size_t size, count;
            const char *text = port_json_text(port_json_at(texts, k), &size);
            uint32_t *ids;
            ck_assert_int_eq(model_tokenizer_encode(t, text, size, false, &ids, &count), 0);
            bool same = count == port_json_count(want);
            for (size_t j = 0; same && j < count; j++) {
                same = ids[j] == port_json_as_i64(port_json_at(want, j));
            }
            ck_assert_msg(same, "%s cuts '%s' differently", splits, text);
            free(ids);
        }
        model_tokenizer_free(t);
    }
}
END_TEST

static void encodes_alike(const struct model_tokenizer *t, const char *text, size_t size,
                          const char *same)
{
    uint32_t *a, *b;
    size_t a_count, b_count;
    ck_assert_int_eq(model_tokenizer_encode(t, text, size, false, &a, &a_count), 0);
    ck_assert_int_eq(model_tokenizer_encode(t, same, strlen(same), false, &b, &b_count), 0);
    ck_assert_msg(a_count == b_count && memcmp(a, b, 4 * a_count) == 0, "not like '%s'", same);
    free(a);
    free(b);
}

/* The examples of Unicode's chapter 3.9 and a few beginnings that stop short. */
START_TEST(invalid_parts_become_one_replacement_each)
{
#define R "\xef\xbf\xbd"
    static const struct {
        const char *bytes, *as;
    } cases[] = {
        { "a\xff" "b", "a" R "b" },
        { "\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", R R R R R R R R "A" },
        { "\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", R R R R R R R R "A" },
        { "\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", R R R R R "A" R R "B" },
        { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", R R R R "A" },
        { "\xf0\x9f\x98", R },
        { "\xe4\xb8\xad\xe4\xb8", "\xe4\xb8\xad" R },
    };
    struct model_tokenizer *t = plain_tokenizer("");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        encodes_alike(t, cases[i].bytes, strlen(cases[i].bytes), cases[i].as);
    }
    model_tokenizer_free(t);
}
END_TEST

/* Random bytes, one token a byte: what streams out is whole characters only, and all of it is what
 * the repaired text would be. */
START_TEST(detokenizer_never_gives_half_a_character)
{
    struct model_tokenizer *t = plain_tokenizer("");
    uint32_t byte_ids[256];
    for (uint32_t id = 0; id < 256; id++) {
        size_t size;
        bool special;
        const char *bytes = model_tokenizer_bytes(t, id, &size, &special);
        ck_assert_uint_eq(size, 1);
        byte_ids[(unsigned char)bytes[0]] = id;
    }
    static const unsigned char favourites[] = { 0xf0, 0x9f, 0x98, 0x80, 0xe4, 0xb8, 0xad, 0xc3,
                                                0xa9, 0xed, 0xa0, 0xf4, 0x90, 0xe0, 'a', '\n' };
    for (uint64_t seed = 1; seed <= 3000; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        struct model_detokenizer stream;
        model_detokenizer_init(&stream, t);
        char text[64], out[512];
        size_t size = base_rng_below(&rng, sizeof text), written = 0;
        for (size_t i = 0; i < size; i++) {
            unsigned char byte = base_rng_below(&rng, 4)
                                     ? favourites[base_rng_below(&rng, sizeof favourites)]
                                     : (unsigned char)base_rng_u64(&rng);
            text[i] = (char)byte;
            size_t n = model_detokenizer_add(&stream, byte_ids[byte], out + written, 64);
            for (size_t at = 0, length; at < n; at += length) {
                ck_assert_msg(model_utf8_next((unsigned char *)out + written + at, n - at,
                                              &length) == MODEL_UTF8_WHOLE,
                              "seed %llu: half a character", (unsigned long long)seed);
            }
            written += n;
        }
        written += model_detokenizer_finish(&stream, out + written, 16);
        out[written] = '\0';
        uint32_t *ids;
        size_t count, at = 0;
        ck_assert_int_eq(model_tokenizer_encode(t, text, size, false, &ids, &count), 0);
        for (size_t i = 0; i < count; i++) {
            size_t n;
            bool special;
            const char *bytes = model_tokenizer_bytes(t, ids[i], &n, &special);
            ck_assert_msg(at + n <= written && memcmp(out + at, bytes, n) == 0,
                          "seed %llu: streamed text differs", (unsigned long long)seed);
            at += n;
        }
        ck_assert_uint_eq(at, written);
        free(ids);
    }
    model_tokenizer_free(t);
}
END_TEST

#define ADDED(id, content, more) "{\"id\":" #id ",\"content\":\"" content "\"" more "}"

START_TEST(added_tokens_are_cut_out_longest_first)
{
    struct model_tokenizer *t = plain_tokenizer(
        "\"added_tokens\":[" ADDED(21000, "<a>", ",\"special\":true") ","
        ADDED(21001, "<a>b", "") "," ADDED(21002, "<", ",\"normalized\":true") ","
        ADDED(21003, "\\u00e9 x", ",\"normalized\":false") ","
        ADDED(21004, "}", ",\"special\":true") "],");
    ck_assert_uint_eq(model_tokenizer_vocab(t), 21005);
    /* <a> is cut out in the first pass (not normalized); in what is left, <a>b and < are. */
    static const char text[] = "<a>b<a\xc3\xa9 x<";
    uint32_t *ids;
    size_t count;
    ck_assert_int_eq(model_tokenizer_encode(t, text, strlen(text), true, &ids, &count), 0);
    ck_assert_uint_eq(count, 6);
    ck_assert_uint_eq(ids[0], 21000);
    ck_assert_int_eq(ids[1], model_tokenizer_find(t, "b"));
    ck_assert_uint_eq(ids[2], 21002);
    ck_assert_int_eq(ids[3], model_tokenizer_find(t, "a"));
    ck_assert_uint_eq(ids[4], 21003);
    ck_assert_uint_eq(ids[5], 21002);
    char out[128];
    size_t size = 0;
    struct model_detokenizer stream;
    model_detokenizer_init(&stream, t);
    for (size_t i = 0; i < count; i++) {
        size += model_detokenizer_add(&stream, ids[i], out + size, 64);
    }
    ck_assert_uint_eq(size, strlen(text) - 3);      /* all but the special token */
    ck_assert_mem_eq(out, text + 3, size);
    free(ids);
    /* Not asked for, only the token of one plain character counts. */
    ck_assert_int_eq(model_tokenizer_encode(t, "<a>", 3, false, &ids, &count), 0);
    ck_assert_uint_eq(count, 3);
    ck_assert_uint_eq(ids[0], 21002);
    ck_assert_int_eq(ids[1], model_tokenizer_find(t, "a"));
    free(ids);
    ck_assert_int_eq(model_tokenizer_encode(t, "}", 1, false, &ids, &count), 0);
    ck_assert_uint_lt(ids[0], 256);
    free(ids);
    bool special;
    model_tokenizer_bytes(t, 20999, &size, &special);
    ck_assert(size == 0 && !special);
    model_tokenizer_bytes(t, 99999, &size, &special);
    ck_assert(size == 0 && !special);
    ck_assert_int_eq(model_tokenizer_find(t, "<a>"), 21000);
    ck_assert_int_eq(model_tokenizer_find(t, "nothing"), -1);
    model_tokenizer_free(t);
}
END_TEST

/* One piece of a million characters: n log n takes well under a second, n^2 would take hours. */
START_TEST(long_pieces_are_not_quadratic)
{
    struct model_tokenizer *t = plain_tokenizer("\"added_tokens\":[" ADDED(21000, "aaaaaaaab", "")
                                                "],");
    size_t size = 1000000, count;
    char *text = malloc(size);
    memset(text, 'a', size);
    uint32_t *ids;
    ck_assert_int_eq(model_tokenizer_encode(t, text, size, true, &ids, &count), 0);
    ck_assert_uint_eq(count, size / 4);
    free(ids);
    free(text);
    text = calloc(1, (16 << 20) + 1);
    ck_assert_int_eq(model_tokenizer_encode(t, text, (16 << 20) + 1, false, &ids, &count), -EFBIG);
    ck_assert_ptr_null(ids);
    free(text);
    ck_assert_int_eq(model_tokenizer_encode(t, NULL, 0, true, &ids, &count), 0);
    ck_assert(count == 0 && ids != NULL);
    free(ids);
    model_tokenizer_free(t);
}
END_TEST

#define SPLIT(pattern, behavior) \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":" pattern \
    ",\"behavior\":\"" behavior "\",\"invert\":false}," BYTE_LEVEL "]}"
#define REGEX(pattern) SPLIT("{\"Regex\":\"" pattern "\"}", "Isolated")

static const struct broken {
    const char *members, *splits, *options;
    int code;
    const char *says;
} brokens[] = {
    { "", "null", "", BASE_EVERSION, "no ByteLevel" },
    { "", "7", "", BASE_EVERSION, "'(absent)'" },
    { "", "{\"type\":\"Whitespace\"}", "", BASE_EVERSION, "'Whitespace'" },
    { "", "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL "," BYTE_LEVEL "]}", "",
      BASE_EVERSION, "must come last" },
    { "", SPLIT("{\"Regex\":\"a\"}", "Sideways"), "", BASE_EVERSION, "'Sideways'" },
    { "", SPLIT("{}", "Isolated"), "", BASE_EFORMAT, "pattern.Regex" },
    { "", REGEX("(a"), "", BASE_EFORMAT, "byte" },
    { "", REGEX("[a"), "", BASE_EFORMAT, "byte" },
    { "", REGEX("\\\\w+"), "", BASE_EVERSION, "\\w" },
    { "", REGEX("a\\\\b"), "", BASE_EVERSION, "\\b" },
    { "", REGEX("[^\\\\S]"), "", BASE_EVERSION, "\\S inside a class" },
    { "", REGEX("[a-z&&[^b]]"), "", BASE_EVERSION, "intersection" },
    { "", REGEX("[[:alpha:]]"), "", BASE_EVERSION, "'['" },
    { "", REGEX("(?m:a)"), "", BASE_EVERSION, "group" },
    { "", REGEX("(?<n>a)"), "", BASE_EVERSION, "named group" },
    { "", REGEX("a{1,3}+"), "", BASE_EVERSION, "counted repeat" },
    { "", REGEX("a\\\\"), "", BASE_EVERSION, "backslash" },
    { "", REGEX("\\\\p{Nonsense}"), "", BASE_EFORMAT, "byte" },
    { "\"normalizer\":{\"type\":\"NFC\"},", BYTE_LEVEL, "", BASE_EVERSION, "'NFC'" },
    { "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]},",
      BYTE_LEVEL, "", BASE_EVERSION, "'Lowercase'" },
    { "\"decoder\":{\"type\":\"WordPiece\"},", BYTE_LEVEL, "", BASE_EVERSION, "'WordPiece'" },
    { "\"added_tokens\":7,", BYTE_LEVEL, "", BASE_EFORMAT, "added_tokens" },
    { "\"added_tokens\":[7],", BYTE_LEVEL, "", BASE_EFORMAT, "added_tokens[0]" },
    { "\"added_tokens\":[" ADDED(21000, "", "") "],", BYTE_LEVEL, "", BASE_EFORMAT, "content" },
    { "\"added_tokens\":[" ADDED(-1, "x", "") "],", BYTE_LEVEL, "", BASE_EFORMAT, "id must be" },
    { "\"added_tokens\":[" ADDED(99999999999, "x", "") "],", BYTE_LEVEL, "", BASE_EFORMAT,
      "id must be" },
    { "\"added_tokens\":[" ADDED(97, "<x>", "") "],", BYTE_LEVEL, "", BASE_EFORMAT,
      "id 97 is 'a' and also added token '<x>'" },
    { "\"added_tokens\":[" ADDED(21000, "x<", "") "," ADDED(21000, "x<", "") "],", BYTE_LEVEL, "",
      BASE_EFORMAT, "twice" },
    { "\"added_tokens\":[" ADDED(21000, "x<", "") "," ADDED(21001, "x<", "") "],", BYTE_LEVEL, "",
      BASE_EFORMAT, "same content" },
    { "\"added_tokens\":[" ADDED(21000, "x<", ",\"lstrip\":true") "],", BYTE_LEVEL, "",
      BASE_EVERSION, "lstrip" },
    { "\"added_tokens\":[" ADDED(21000, "x<", ",\"special\":\"no\"") "],", BYTE_LEVEL, "",
      BASE_EFORMAT, "special" },
    { "", BYTE_LEVEL, "\"dropout\":0.1,", BASE_EVERSION, "dropout" },
    { "", BYTE_LEVEL, "\"continuing_subword_prefix\":\"##\",", BASE_EVERSION, "'##'" },
    { "", BYTE_LEVEL, "\"ignore_merges\":1,", BASE_EFORMAT, "ignore_merges" },
};

static void refused(int rc, int code, const struct base_err *err, const char *says)
{
    ck_assert_msg(rc == code && err->code == rc, "code %d, not %d (%s): %s", rc, code, says,
                  err->text);
    ck_assert_msg(strstr(err->text, says) && strncmp(err->text, "tokenizer.json", 14) == 0 &&
                      !strchr(err->text, '\n'),
                  "'%s' does not say '%s'", err->text, says);
}

START_TEST(broken_settings_get_one_sentence)
{
    for (size_t i = 0; i < sizeof brokens / sizeof brokens[0]; i++) {
        const struct broken *b = &brokens[i];
        struct model_tokenizer *t;
        struct base_err err;
        int rc = tokenizer_make(&t, b->members, b->splits, b->options, &err);
        refused(rc, b->code, &err, b->says);
        ck_assert_ptr_null(t);
    }
}
END_TEST

#define WITH_MODEL(model) "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":" model "}"
/* The whole byte alphabet is long; these fail before it is missed, or because it is. */
static const struct broken_file {
    const char *json;
    int code;
    const char *says;
} broken_files[] = {
    { "", BASE_EFORMAT, "tokenizer.json" },
    { "{\"model\":", BASE_EFORMAT, "tokenizer.json:1" },
    { "[]", BASE_EFORMAT, "object with a model" },
    { "{\"model\":[]}", BASE_EFORMAT, "object with a model" },
    { WITH_MODEL("{\"type\":\"Unigram\",\"vocab\":[]}"), BASE_EVERSION, "'Unigram'" },
    { WITH_MODEL("{\"vocab\":[]}"), BASE_EVERSION, "vocab object" },
    { WITH_MODEL("{\"vocab\":{\"a\":\"x\"}}"), BASE_EFORMAT, "the id of 'a'" },
    { WITH_MODEL("{\"vocab\":{\"a\":-1}}"), BASE_EFORMAT, "the id of 'a'" },
    { WITH_MODEL("{\"vocab\":{\"a\":4294967296}}"), BASE_EFORMAT, "the id of 'a'" },
    { WITH_MODEL("{\"vocab\":{\"\":0}}"), BASE_EFORMAT, "token ''" },
    { WITH_MODEL("{\"vocab\":{\"a\":0,\"b\":0}}"), BASE_EFORMAT, "'a' and 'b' both have id 0" },
    { WITH_MODEL("{\"vocab\":{\"a\":0,\"a\":1}}"), BASE_EFORMAT, "a" },
    { WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[]}"), BASE_EFORMAT, "byte 0x00" },
};

START_TEST(broken_files_get_one_sentence)
{
    for (size_t i = 0; i < sizeof broken_files / sizeof broken_files[0]; i++) {
        const struct broken_file *b = &broken_files[i];
        struct model_tokenizer *t;
        struct base_err err = { 0 };
        int rc = model_tokenizer_parse(&t, b->json, strlen(b->json), "tokenizer.json", &err);
        refused(rc, b->code, &err, b->says);
        ck_assert_ptr_null(t);
    }
}
END_TEST

/* The golden file's model with its merges replaced. */
static int parse_with_merges(const char *merges, struct base_err *err)
{
    const char *end = strstr(model_text, "\"merges\":");
    ck_assert_ptr_nonnull(end);
    struct base_buf json;
    base_buf_init(&json);
    base_buf_printf(&json, "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":%.*s\"merges\":%s}}",
                    (int)(end - model_text), model_text, merges);
    struct model_tokenizer *t;
    *err = (struct base_err){ 0 };
    int rc = model_tokenizer_parse(&t, json.data, json.size, "tokenizer.json", err);
    base_buf_fini(&json);
    model_tokenizer_free(t);
    return rc;
}

START_TEST(broken_merges_get_one_sentence)
{
    static const struct {
        const char *merges, *says;
    } cases[] = {
        { "7", "must be an array" },
        { "[\"ab\"]", "model.merges[0]: must be two tokens" },
        { "[\"a a\",\"a a a\"]", "model.merges[1]: must be two tokens" },
        { "[[\"a\",\"b\",\"a\"]]", "must be two tokens" },
        { "[[\"a\",7]]", "must be two tokens" },
        { "[\"a \"]", "empty" },
        { "[\"a \xe4\xb8\xad\"]", "outside the byte alphabet" },
        { "[\"x y\"]", "not in model.vocab" },
        { "[\"a nothing\"]", "not in model.vocab" },
    };
    struct base_err err;
    ck_assert_int_eq(parse_with_merges("[\"a a\",[\"a\",\"b\"]]", &err), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        refused(parse_with_merges(cases[i].merges, &err), BASE_EFORMAT, &err, cases[i].says);
    }
}
END_TEST

START_TEST(missing_file_is_named)
{
    struct model_tokenizer *t;
    struct base_err err = { 0 };
    ck_assert_int_eq(model_tokenizer_load(&t, "/nonexistent", &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "/nonexistent/tokenizer.json"));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("tokenizer");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 110);
    tcase_add_test(tcase, splits_cut_as_in_tokenizers);
    tcase_add_test(tcase, invalid_parts_become_one_replacement_each);
    tcase_add_test(tcase, detokenizer_never_gives_half_a_character);
    tcase_add_test(tcase, added_tokens_are_cut_out_longest_first);
    tcase_add_test(tcase, long_pieces_are_not_quadratic);
    tcase_add_test(tcase, broken_settings_get_one_sentence);
    tcase_add_test(tcase, broken_files_get_one_sentence);
    tcase_add_test(tcase, broken_merges_get_one_sentence);
    tcase_add_test(tcase, missing_file_is_named);
    Suite *suite = suite_create("tokenizer");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
