/* DeepSeek-LLM's vocabulary, which DeepSeek-V2 took over, gives the ids that llama.cpp keeps for
 * it.
 *
 * The shared data holds the vocabulary as a GGUF file with 47 texts and their ids. Only what this
 * check needs of GGUF is read: the tokens, their types and the merges. */
#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/le.h"
#include "model/tokenizer.h"
#include "port/json.h"

enum gguf_type { GGUF_BOOL = 7, GGUF_STRING = 8, GGUF_ARRAY = 9 };
enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_USER = 4 };

static const size_t type_bytes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

struct array {
    const unsigned char *at;    /* first element */
    uint64_t count;
};

struct gguf {
    char *bytes;
    size_t size;
    size_t at;
    struct array tokens, types, merges;
};

static char *file_read(const char *suffix, size_t *size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizer/ggml-vocab-deepseek-llm.gguf%s",
             getenv("EXPERTIER_DATA"), suffix);
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "cannot open %s", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*size + 1);
    ck_assert_uint_eq(fread(bytes, 1, *size, file), *size);
    bytes[*size] = '\0';
    fclose(file);
    return bytes;
}

static const unsigned char *take(struct gguf *g, size_t bytes)
{
    ck_assert_uint_le(bytes, g->size - g->at);
    g->at += bytes;
    return (const unsigned char *)g->bytes + g->at - bytes;
}

static const char *take_string(struct gguf *g, size_t *size)
{
    *size = base_le_load64(take(g, 8));
    return (const char *)take(g, *size);
}

static void skip_value(struct gguf *g, uint32_t type, struct array *array)
{
    size_t size;
    if (type == GGUF_STRING) {
        take_string(g, &size);
    } else if (type == GGUF_ARRAY) {
        uint32_t element = base_le_load32(take(g, 4));
        array->count = base_le_load64(take(g, 8));
        array->at = take(g, 0);
        for (uint64_t i = 0; i < array->count; i++) skip_value(g, element, &(struct array){ 0 });
    } else {
        ck_assert_uint_lt(type, sizeof type_bytes / sizeof type_bytes[0]);
        take(g, type_bytes[type]);
    }
}

static void gguf_open(struct gguf *g)
{
    *g = (struct gguf){ 0 };
    g->bytes = file_read("", &g->size);
    ck_assert_mem_eq(take(g, 4), "GGUF", 4);
    take(g, 4 + 8);
    for (uint64_t left = base_le_load64(take(g, 8)); left > 0; left--) {
        size_t size;
        struct array array = { 0 };
        const char *key = take_string(g, &size);
        skip_value(g, base_le_load32(take(g, 4)), &array);
#define IS(name) (size == sizeof name - 1 && memcmp(key, name, size) == 0)
        if (IS("tokenizer.ggml.tokens")) g->tokens = array;
        if (IS("tokenizer.ggml.token_type")) g->types = array;
        if (IS("tokenizer.ggml.merges")) g->merges = array;
    }
    ck_assert_uint_eq(g->tokens.count, g->types.count);
    ck_assert_uint_gt(g->merges.count, 0);
}

/* The vocabulary's members, or the list of added tokens. */
static void tokens_put(struct gguf *g, struct base_buf *json, bool added)
{
    const char *comma = "";
    g->at = (size_t)((const char *)g->tokens.at - g->bytes);
    for (uint64_t id = 0; id < g->tokens.count; id++) {
        size_t size;
        const char *text = take_string(g, &size);
        uint32_t type = base_le_load32(g->types.at + 4 * id);
        if (type == TYPE_NORMAL && !added) {
            base_buf_printf(json, "%s\"", comma);
            base_buf_json_escape(json, text, size);
            base_buf_printf(json, "\":%u", (unsigned)id);
        } else if (type != TYPE_NORMAL && added) {
            base_buf_printf(json, "%s{\"id\":%u,\"special\":%s,\"content\":\"", comma, (unsigned)id,
                            type == TYPE_CONTROL ? "true" : "false");
            base_buf_json_escape(json, text, size);
            base_buf_puts(json, "\"}");
        } else {
            continue;
        }
        comma = ",";
    }
}

static void merges_put(struct gguf *g, struct base_buf *json)
{
    g->at = (size_t)((const char *)g->merges.at - g->bytes);
    for (uint64_t i = 0; i < g->merges.count; i++) {
        size_t size;
        const char *text = take_string(g, &size);
        base_buf_puts(json, i ? ",\"" : "\"");
        base_buf_json_escape(json, text, size);
        base_buf_puts(json, "\"");
    }
}

/* DeepSeek-LLM's pre-tokenizer; of its list of letters, those that the texts use. */
static const char pre_tokenizer[] =
    "{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[\\r\\n]\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-"
    "ΡΣ-ϵϷ-"
    "ҁҊ-ԯԱ-Ֆ]+\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s?[!-/"
    ":-~！-／：-～‘-‟　-。]+\"},\"behavior\":"
    "\"Isolated\"},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s+$\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[一-龥ࠀ-一가-퟿]+\"},\"behavior\":\"Isolated\"}"
    ","
    "{\"type\":\"Digits\",\"individual_digits\":true},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}";

static struct model_tokenizer *tokenizer_make(void)
{
    struct gguf g;
    struct base_buf json;
    struct base_err err = { 0 };
    struct model_tokenizer *t;
    gguf_open(&g);
    base_buf_init(&json);
    base_buf_printf(&json, "{\"pre_tokenizer\":%s,\"added_tokens\":[", pre_tokenizer);
    tokens_put(&g, &json, true);
    base_buf_puts(&json, "],\"model\":{\"type\":\"BPE\",\"vocab\":{");
    tokens_put(&g, &json, false);
    base_buf_puts(&json, "},\"merges\":[");
    merges_put(&g, &json);
    base_buf_puts(&json, "]}}");
    ck_assert_int_eq(base_buf_error(&json), 0);
    int rc = model_tokenizer_parse(&t, json.data, json.size, "tokenizer.json", &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    base_buf_fini(&json);
    free(g.bytes);
    return t;
}

START_TEST(texts_have_the_kept_ids)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    struct model_tokenizer *t = tokenizer_make();
    size_t in_size, out_size;
    unsigned count = 0;
    char *in = file_read(".inp", &in_size), *out = file_read(".out", &out_size);
    const char *text = in, *line = out;
    /* The last text ends with the file. */
    for (bool more = true; more; count++) {
        const char *end = strstr(text, separator);
        more = end != NULL;
        if (!end) end = in + in_size;
        for (unsigned special = 0; special < 2; special++) {
            uint32_t *ids;
            size_t n;
            ck_assert_int_eq(
                model_tokenizer_encode(t, text, (size_t)(end - text), special, &ids, &n), 0);
            const char *want = line;
            for (size_t i = 0; i < n; i++) {
                char *after;
                unsigned long id = strtoul(want, &after, 10);
                ck_assert_msg(after > want && id == ids[i], "text %u: id %zu is %u, not %lu", count,
                              i, ids[i], id);
                want = after;
            }
            ck_assert_msg(strspn(want, " ") == strcspn(want, "\n"), "text %u: too few ids", count);
            free(ids);
        }
        if (!more) continue;
        text = end + sizeof separator - 1;
        line += strcspn(line, "\n");
        line += *line == '\n';
    }
    ck_assert_uint_ge(count, 40);
    free(in);
    free(out);
    model_tokenizer_free(t);
}
END_TEST

int main(void)
{
    if (!getenv("EXPERTIER_DATA")) {
        puts("skipped: EXPERTIER_DATA is not set");
        return 77;
    }
    TCase *tcase = tcase_create("llm");
    tcase_set_timeout(tcase, 280);
    tcase_add_test(tcase, texts_have_the_kept_ids);
    Suite *suite = suite_create("tokenizer_llm");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
