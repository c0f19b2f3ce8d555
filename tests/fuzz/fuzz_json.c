/* Any bytes as JSON: a document that can be walked to its end, or a sentence that says where. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/must.h"
#include "port/json.h"
#include "tests/fuzz/fuzz.h"

const char *const fuzz_words[] = {
    "{", "}", "[", "]", "[[[[[[[[", "{\"a\":", "\"", "\\\"", "\\u0000", "\\ud800", "\\udc00",
    "null",
    "true", "false", "-", "1e308", "1e999", "9223372036854775807", "9223372036854775808", "0.1",
    "NaN", "\"a\":1,", "\"a\":1,\"a\":2", "\xff", "\xed\xa0\x80", "\xef\xbb\xbf", ",", ":", NULL,
};

static const char *const seeds[] = {
    "{\"a\":1,\"b\":[true,false,null,-1.5e3],\"c\":{\"d\":\"text \\u00e9 \\n\"}}",
    "[]",
    "{\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\",[\"b\",\"c\"]]},"
    "\"added_tokens\":[]}",
    "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true,\"temperature\":0.5}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
};

size_t fuzz_seed(unsigned index, uint8_t *to, size_t room)
{
    if (index >= sizeof seeds / sizeof seeds[0]) return 0;
    size_t size = strlen(seeds[index]);
    MUST(size <= room);
    memcpy(to, seeds[index], size);
    return size;
}

static void walk(const struct port_json *value, unsigned depth);

static int walk_member(void *context, const char *key, size_t key_size,
                       const struct port_json *value)
{
    unsigned *depth = context;
    MUST(strlen(key) == key_size);
    walk(value, *depth);
    return 0;
}

static void walk(const struct port_json *value, unsigned depth)
{
    size_t size;
    int64_t number;
    MUST(depth <= 65);
    switch (port_json_type(value)) {
    case PORT_JSON_OBJECT:
        depth++;
        MUST(port_json_each(value, walk_member, &depth) == 0);
        port_json_i64(value, "a", false, -5, 5, 0, &number, "x", NULL);
        break;
    case PORT_JSON_ARRAY:
        for (size_t i = 0; i < port_json_count(value); i++) {
            walk(port_json_at(value, i), depth + 1);
        }
        break;
    case PORT_JSON_STRING:
        MUST(port_json_text(value, &size));
        break;
    default:
        MUST(!port_json_text(value, &size) && size == 0);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct port_json *root = NULL;
    struct base_err err = { 0 };
    int rc = port_json_parse(&root, (const char *)bytes, size, "input", &err);
    if (rc < 0) {
        MUST(!root);
        fuzz_check_refusal(rc, &err);
    } else {
        walk(root, 0);
    }
    port_json_free(root);
    /* Any bytes, escaped, are one JSON string. */
    struct base_buf text;
    base_buf_init(&text);
    base_buf_puts(&text, "\"");
    base_buf_json_escape(&text, (const char *)bytes, size);
    base_buf_puts(&text, "\"");
    MUST(port_json_parse(&root, text.data, text.size, "escaped", NULL) == 0);
    MUST(port_json_type(root) == PORT_JSON_STRING);
    port_json_free(root);
    base_buf_fini(&text);
    return 0;
}
