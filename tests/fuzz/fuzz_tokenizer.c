/* Any bytes as a tokenizer.json, as the pattern of a split, or as a text.
 *
 * The first byte chooses: 0, the rest is a whole tokenizer.json; 1, a pattern, a NUL and a text; 2,
 * a text for a fixed tokenizer. Whatever loads must encode, and the tokens must give the (repaired)
 * text back. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/must.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "tests/fuzz/fuzz.h"

const char *const fuzz_words[] = {
    "\"model\":{", "\"vocab\":{", "\"merges\":[", "\"added_tokens\":[", "\"special\":true",
    "\"pre_tokenizer\":", "\"Sequence\"", "\"Split\"", "\"Regex\":\"", "\"Isolated\"",
    "\"ByteLevel\"",
    "\"id\":4294967295", "\"content\":\"\"", "\\p{L}", "(?!", "[^", "{1,3}", "\\s+", "|", "(a+)+$",
    "<x>", "<x>y", "\xc3\xa9", "\xf0\x9f\x98\x80", "\xff", "\r\n", "  ", NULL,
};

static const char whole_json[] =
    "{\"added_tokens\":[{\"id\":3,\"content\":\"<x>\",\"special\":true}],"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}";

size_t fuzz_seed(unsigned index, uint8_t *to, size_t room)
{
    static const char pattern[] = "\x01\\p{N}{1,3}|[\\p{L}]+\0abc 123 it's\r\n";
    static const char text[] = "\x02nine tests in Paris <x>y 12345\n\n  \xe4\xb8\xad\xe6\x96\x87";
    MUST(room > sizeof whole_json + 1);
    switch (index) {
    case 0:
        to[0] = 0;
        memcpy(to + 1, whole_json, sizeof whole_json - 1);
        return sizeof whole_json;
    case 1: memcpy(to, pattern, sizeof pattern - 1); return sizeof pattern - 1;
    case 2: memcpy(to, text, sizeof text - 1); return sizeof text - 1;
    default: return 0;
    }
}

/* All 256 bytes in the byte alphabet, and merges of a few letters. */
static void vocabulary_put(struct base_buf *json)
{
    static const char letters[] = "aeinst";
    unsigned id = 0, others = 256;
    base_buf_puts(json, "\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        base_buf_printf(json, "%s\"\\u%04x\":%u", id ? "," : "", printable ? byte : others++, id);
        id++;
    }
    for (const char *a = letters; *a; a++) {
        for (const char *b = letters; *b; b++) base_buf_printf(json, ",\"%c%c\":%u", *a, *b, id++);
    }
    base_buf_puts(json, "},\"merges\":[");
    for (const char *a = letters; *a; a++) {
        for (const char *b = letters; *b; b++) {
            base_buf_printf(json, "%s\"%c %c\"", a == b && a == letters ? "" : ",", *a, *b);
        }
    }
    base_buf_puts(json, "]}");
}

static int tokenizer_make(struct model_tokenizer **t, const char *pattern, size_t size,
                          struct base_err *err)
{
    struct base_buf json;
    base_buf_init(&json);
    base_buf_puts(&json,
                  "{\"added_tokens\":[{\"id\":400,\"content\":\"<x>\",\"special\":true},"
                  "{\"id\":401,\"content\":\"<x>y\",\"special\":false}],\"pre_tokenizer\":"
                  "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                  "{\"Regex\":\"");
    base_buf_json_escape(&json, pattern, size);
    base_buf_puts(&json, "\"},\"behavior\":\"MergedWithNext\",\"invert\":false},{\"type\":"
                         "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}]},");
    vocabulary_put(&json);
    base_buf_puts(&json, "}");
    MUST(base_buf_error(&json) == 0);
    int rc = model_tokenizer_parse(t, json.data, json.size, "tokenizer.json", err);
    base_buf_fini(&json);
    return rc;
}

/* The tokens' bytes, streamed one by one, are whole characters. */
static size_t stream_check(const struct model_tokenizer *t, const uint32_t *ids, size_t count)
{
    struct model_detokenizer stream;
    size_t total = 0;
    model_detokenizer_init(&stream, t);
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        bool special;
        model_tokenizer_bytes(t, ids[i], &bytes, &special);
        char *out = malloc(3 * bytes + 16);
        MUST(out != NULL);
        size_t size = model_detokenizer_add(&stream, ids[i], out, 3 * bytes + 16), length;
        for (size_t at = 0; at < size; at += length) {
            MUST(model_utf8_next((unsigned char *)out + at, size - at, &length) ==
                 MODEL_UTF8_WHOLE);
        }
        free(out);
        total += special ? bytes : size;
    }
    return total;
}

static bool is_valid(const unsigned char *text, size_t size)
{
    for (size_t at = 0, length; at < size; at += length) {
        if (model_utf8_next(text + at, size - at, &length) != MODEL_UTF8_WHOLE) return false;
    }
    return true;
}

static void text_check(const struct model_tokenizer *t, const uint8_t *text, size_t size,
                       bool lossless)
{
    for (unsigned special = 0; special < 2; special++) {
        uint32_t *ids;
        size_t count;
        int rc = model_tokenizer_encode(t, (const char *)text, size, special, &ids, &count);
        if (rc < 0) {
            MUST(!ids);
            continue;
        }
        size_t total = stream_check(t, ids, count);
        MUST(!lossless || !is_valid(text, size) || total == size);
        free(ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct model_tokenizer *fixed;
    struct model_tokenizer *t = NULL;
    struct base_err err = { 0 };
    int rc = 0;
    if (size == 0) return 0;
    const char *rest = (const char *)data + 1;
    size--;
    if (data[0] % 3 == 0) {
        rc = model_tokenizer_parse(&t, rest, size, "tokenizer.json", &err);
        if (rc == 0) text_check(t, data, size, false);
    } else if (data[0] % 3 == 1) {
        const char *nul = memchr(rest, '\0', size);
        size_t pattern_size = nul ? (size_t)(nul - rest) : size;
        rc = tokenizer_make(&t, rest, pattern_size, &err);
        if (rc == 0 && nul) {
            text_check(t, (const uint8_t *)nul + 1, size - pattern_size - 1, true);
        }
    } else {
        static const char pattern[] = "\\p{N}{1,3}|[^\\r\\n\\p{L}]?\\p{L}+|\\s+(?!\\S)";
        if (!fixed) MUST(tokenizer_make(&fixed, pattern, sizeof pattern - 1, &err) == 0);
        text_check(fixed, (const uint8_t *)rest, size, true);
    }
    if (rc < 0) MUST(!t && err.code == rc && err.text[0] && !strchr(err.text, '\n'));
    model_tokenizer_free(t);
    return 0;
}
