/* tokenizer.json -> the tables of a tokenizer. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/show.h"
#include "model/tokenizer_tables.h"
#include "model/utf8.h"
#include "port/json.h"

enum {
    FILE_BYTES_MAX = 256 << 20,
    IDS_MAX = 1 << 22,
    TOKEN_BYTES_MAX = 1 << 16,
    CODES = 324,                /* code points of the byte alphabet end at 256 + 67 */
};

/* One token as the file spells it, until the pool is built. */
struct spelling {
    const char *text;           /* NULL: no such id */
    uint32_t size;
    uint8_t flags;
    bool in_list[MODEL_ADDED_COUNT];
};

struct loader {
    struct model_tokenizer *t;
    const char *where;
    struct base_err *err;
    struct spelling *spellings; /* by id */
    int16_t code_bytes[CODES];  /* the byte alphabet backwards: code point -> byte, or -1 */
};

/* GPT-2's byte alphabet: printable bytes stand for themselves, the others for 256, 257, ... */
static void alphabet_fill(struct loader *l)
{
    int16_t next = 256;
    for (int i = 0; i < CODES; i++) l->code_bytes[i] = -1;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        l->code_bytes[printable ? byte : next++] = (int16_t)byte;
    }
}

/* Translates a spelling of the byte alphabet to its bytes; -1 if some character is not of it. */
static int alphabet_decode(const struct loader *l, const char *text, size_t size, char *to)
{
    size_t count = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned code = (unsigned char)text[i];
        if (code >= 0x80) {
            /* All of the alphabet has at most two bytes, and the text is valid UTF-8. */
            if (code >= 0xe0 || i + 1 == size) return -1;
            code = (code & 0x1f) << 6 | ((unsigned char)text[++i] & 0x3f);
        }
        if (code >= CODES || l->code_bytes[code] < 0) return -1;
        to[count++] = (char)l->code_bytes[code];
    }
    return (int)count;
}

static int vocab_measure(void *context, const char *key, size_t key_size,
                         const struct port_json *value)
{
    struct loader *l = context;
    if (port_json_type(value) != PORT_JSON_INT || port_json_as_i64(value) < 0 ||
        port_json_as_i64(value) >= IDS_MAX) {
        return base_err_set(l->err, BASE_EFORMAT,
                            "%s: model.vocab: the id of '%s' must be a whole number within 0 .. %d",
                            l->where, model_show(key).text, IDS_MAX - 1);
    }
    if (key_size == 0 || key_size > TOKEN_BYTES_MAX || strlen(key) != key_size) {
        return base_err_set(l->err, BASE_EFORMAT,
                            "%s: model.vocab: token '%s' is empty, longer than %d bytes or holds a "
                            "NUL",
                            l->where, model_show(key).text, TOKEN_BYTES_MAX);
    }
    uint32_t id = (uint32_t)port_json_as_i64(value);
    if (id >= l->t->vocab) l->t->vocab = id + 1;
    return 0;
}

static int vocab_take(void *context, const char *key, size_t key_size,
                      const struct port_json *value)
{
    struct loader *l = context;
    uint32_t id = (uint32_t)port_json_as_i64(value);
    struct spelling *s = &l->spellings[id];
    if (s->text) {
        return base_err_set(l->err, BASE_EFORMAT, "%s: model.vocab: '%s' and '%s' both have id %u",
                            l->where, model_show(s->text).text, model_show(key).text, id);
    }
    *s = (struct spelling){ .text = key, .size = (uint32_t)key_size, .flags = MODEL_TOKEN_PRESENT };
    return 0;
}

static int added_fault(const struct loader *l, size_t index, const char *what)
{
    return base_err_set(l->err, BASE_EFORMAT, "%s: added_tokens[%zu]: %s", l->where, index, what);
}

static int added_measure(struct loader *l, const struct port_json *list)
{
    for (size_t i = 0; i < port_json_count(list); i++) {
        const struct port_json *token = port_json_at(list, i);
        const struct port_json *id = port_json_get(token, "id");
        size_t size;
        const char *content = port_json_text(port_json_get(token, "content"), &size);
        if (!content || size == 0 || size > TOKEN_BYTES_MAX || strlen(content) != size) {
            return added_fault(l, i, "content must be a string, not empty and without NUL");
        }
        if (!id || port_json_type(id) != PORT_JSON_INT || port_json_as_i64(id) < 0 ||
            port_json_as_i64(id) >= IDS_MAX) {
            return added_fault(l, i, "id must be a whole number below 4194304");
        }
        if (port_json_as_i64(id) >= l->t->vocab) l->t->vocab = (uint32_t)port_json_as_i64(id) + 1;
    }
    return 0;
}

/* These would make an added token match differently from its plain text. */
static int added_check_plain(const struct loader *l, const struct port_json *token,
                             const char *content)
{
    static const char *const keys[] = { "single_word", "lstrip", "rstrip" };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        bool value;
        int rc = port_json_bool(token, keys[i], false, false, &value, l->where, l->err);
        if (rc < 0) return rc;
        if (value) {
            return base_err_set(l->err, BASE_EVERSION,
                                "%s: added token '%s' has %s: true, which is not supported",
                                l->where, model_show(content).text, keys[i]);
        }
    }
    return 0;
}

static int added_take(struct loader *l, const struct port_json *token)
{
    size_t size;
    const char *content = port_json_text(port_json_get(token, "content"), &size);
    uint32_t id = (uint32_t)port_json_as_i64(port_json_get(token, "id"));
    bool special, normalized;
    int rc = added_check_plain(l, token, content);
    if (rc == 0) rc = port_json_bool(token, "special", false, false, &special, l->where, l->err);
    if (rc == 0) {
        rc = port_json_bool(token, "normalized", false, !special, &normalized, l->where, l->err);
    }
    if (rc < 0) return rc;
    struct spelling *s = &l->spellings[id];
    if (s->text && (s->size != size || memcmp(s->text, content, size) != 0)) {
        return base_err_set(l->err, BASE_EFORMAT, "%s: id %u is '%s' and also added token '%s'",
                            l->where, id, model_show(s->text).text, model_show(content).text);
    }
    if (s->flags & MODEL_TOKEN_ADDED) {
        return base_err_set(l->err, BASE_EFORMAT, "%s: added token '%s' is there twice", l->where,
                            model_show(content).text);
    }
    s->text = content;
    s->size = (uint32_t)size;
    s->flags |= MODEL_TOKEN_PRESENT | MODEL_TOKEN_ADDED | (special ? MODEL_TOKEN_SPECIAL : 0);
    size_t length;
    bool single = model_utf8_next((const unsigned char *)content, size, &length) ==
                      MODEL_UTF8_WHOLE && length == size;
    s->in_list[normalized ? MODEL_ADDED_NORMALIZED : MODEL_ADDED_FIRST] = true;
    s->in_list[MODEL_ADDED_PLAIN] = single && !special;
    for (unsigned i = 0; i < MODEL_ADDED_COUNT; i++) l->t->added[i].count += s->in_list[i];
    return 0;
}

/* The pool: bytes of all tokens in order of ids. Decoded tokens are never longer than spelled. */
static int pool_build(struct loader *l)
{
    struct model_tokenizer *t = l->t;
    uint64_t total = 0;
    for (uint32_t id = 0; id < t->vocab; id++) total += l->spellings[id].size;
    if (total >= UINT32_MAX) {
        return base_err_set(l->err, -EFBIG, "%s: vocabulary too big", l->where);
    }
    t->pool = malloc(total + 1);
    t->begins = malloc(((size_t)t->vocab + 1) * sizeof *t->begins);
    t->flags = calloc((size_t)t->vocab + 1, 1);
    if (!t->pool || !t->begins || !t->flags) return -ENOMEM;
    uint32_t at = 0;
    for (uint32_t id = 0; id < t->vocab; id++) {
        const struct spelling *s = &l->spellings[id];
        t->begins[id] = at;
        t->flags[id] = s->flags;
        if (!s->text) continue;
        int size = alphabet_decode(l, s->text, s->size, t->pool + at);
        /* An added token stands for its text. It takes part in merges as well if the alphabet
         * spells it the same way. */
        bool same = size == (int)s->size && memcmp(t->pool + at, s->text, s->size) == 0;
        if (size < 0 || ((s->flags & MODEL_TOKEN_ADDED) && !same)) {
            memcpy(t->pool + at, s->text, s->size);
            size = (int)s->size;
        } else {
            t->flags[id] |= MODEL_TOKEN_BYTES;
        }
        at += (uint32_t)size;
    }
    t->begins[t->vocab] = at;
    return 0;
}

static void text_insert(struct model_tokenizer *t, uint32_t id)
{
    size_t size;
    const char *text = model_token_text(t, id, &size);
    uint32_t slot = (uint32_t)port_hash64(text, size) & t->by_text_mask;
    for (; t->by_text[slot]; slot = (slot + 1) & t->by_text_mask) {
        size_t other_size;
        const char *other = model_token_text(t, t->by_text[slot] - 1, &other_size);
        if (other_size == size && memcmp(other, text, size) == 0) return;
    }
    t->by_text[slot] = id + 1;
}

static int texts_build(struct loader *l)
{
    struct model_tokenizer *t = l->t;
    uint32_t slots = 16;
    while (slots / 2 < t->vocab) slots *= 2;
    t->by_text = calloc(slots, sizeof *t->by_text);
    if (!t->by_text) return -ENOMEM;
    t->by_text_mask = slots - 1;
    /* Where two tokens have the same bytes, the one that merges can make is found. */
    for (unsigned wanted = 0; wanted < 2; wanted++) {
        for (uint32_t id = 0; id < t->vocab; id++) {
            bool bytes = (t->flags[id] & MODEL_TOKEN_BYTES) != 0;
            if ((t->flags[id] & MODEL_TOKEN_PRESENT) && bytes == (wanted == 0)) text_insert(t, id);
        }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        uint32_t id = model_token_by_text(t, &c, 1);
        /* Bytes that UTF-8 never has may be missing, as they are in DeepSeek-V2's vocabulary. */
        bool occurs = byte < 0xf5 && byte != 0xc0 && byte != 0xc1;
        if (occurs && (id == MODEL_NO_TOKEN || !(t->flags[id] & MODEL_TOKEN_BYTES))) {
            return base_err_set(l->err, BASE_EFORMAT,
                                "%s: model.vocab has no token for byte 0x%02x; a byte-level "
                                "vocabulary needs all bytes of UTF-8",
                                l->where, byte);
        }
        t->byte_ids[byte] = id;
    }
    return 0;
}

static int merge_fault(const struct loader *l, size_t rank, const char *what)
{
    return base_err_set(l->err, BASE_EFORMAT, "%s: model.merges[%zu]: %s", l->where, rank, what);
}

/* The two halves of a merge as spelled: "a b" or ["a", "b"]. */
static bool merge_halves(const struct port_json *merge, const char *halves[2], size_t sizes[2])
{
    if (port_json_type(merge) == PORT_JSON_ARRAY && port_json_count(merge) == 2) {
        for (unsigned i = 0; i < 2; i++) {
            halves[i] = port_json_text(port_json_at(merge, i), &sizes[i]);
        }
        return halves[0] && halves[1];
    }
    size_t size;
    const char *text = port_json_text(merge, &size);
    const char *space = text ? memchr(text, ' ', size) : NULL;
    if (!space || memchr(space + 1, ' ', size - (size_t)(space + 1 - text))) return false;
    halves[0] = text;
    sizes[0] = (size_t)(space - text);
    halves[1] = space + 1;
    sizes[1] = size - sizes[0] - 1;
    return true;
}

static uint32_t bytes_token(const struct model_tokenizer *t, const char *bytes, size_t size)
{
    uint32_t id = model_token_by_text(t, bytes, size);
    return id != MODEL_NO_TOKEN && (t->flags[id] & MODEL_TOKEN_BYTES) ? id : MODEL_NO_TOKEN;
}

static int merge_take(struct loader *l, const struct port_json *merge, size_t rank, char *scratch)
{
    struct model_tokenizer *t = l->t;
    const char *halves[2];
    size_t sizes[2];
    if (!merge_halves(merge, halves, sizes)) {
        return merge_fault(l, rank, "must be two tokens, as \"a b\" or [\"a\", \"b\"]");
    }
    if (sizes[0] == 0 || sizes[1] == 0 || sizes[0] + sizes[1] > TOKEN_BYTES_MAX) {
        return merge_fault(l, rank, "a half is empty or too long");
    }
    int left_size = alphabet_decode(l, halves[0], sizes[0], scratch);
    int right_size = left_size < 0 ? -1
                                   : alphabet_decode(l, halves[1], sizes[1], scratch + left_size);
    if (right_size < 0) return merge_fault(l, rank, "holds a character outside the byte alphabet");
    struct model_merge m = {
        .left = bytes_token(t, scratch, (size_t)left_size),
        .right = bytes_token(t, scratch + left_size, (size_t)right_size),
        .rank = (uint32_t)rank,
        .result = bytes_token(t, scratch, (size_t)left_size + (size_t)right_size),
    };
    if (m.left == MODEL_NO_TOKEN || m.right == MODEL_NO_TOKEN || m.result == MODEL_NO_TOKEN) {
        return merge_fault(l, rank, "a half or the whole is not in model.vocab");
    }
    /* A pair that comes twice has its later rank, as in `tokenizers`. */
    t->merges[model_merge_slot(t, m.left, m.right)] = m;
    return 0;
}

static int merges_build(struct loader *l, const struct port_json *list)
{
    struct model_tokenizer *t = l->t;
    size_t count = port_json_count(list);
    if (!list || port_json_type(list) != PORT_JSON_ARRAY || count > IDS_MAX) {
        return base_err_set(l->err, BASE_EFORMAT, "%s: model.merges must be an array of at most %d",
                            l->where, IDS_MAX);
    }
    uint32_t slots = 16;
    while (slots / 2 < count) slots *= 2;
    t->merges = malloc(slots * sizeof *t->merges);
    char *scratch = malloc(TOKEN_BYTES_MAX);
    int rc = t->merges && scratch ? 0 : -ENOMEM;
    t->merge_mask = slots - 1;
    for (uint32_t i = 0; rc == 0 && i < slots; i++) t->merges[i].left = MODEL_NO_TOKEN;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = merge_take(l, port_json_at(list, i), i, scratch);
    }
    free(scratch);
    return rc;
}

static int added_compare(const void *a, const void *b, void *context)
{
    const struct model_tokenizer *t = context;
    size_t x_size, y_size;
    const char *x = model_token_text(t, *(const uint32_t *)a, &x_size);
    const char *y = model_token_text(t, *(const uint32_t *)b, &y_size);
    int order = memcmp(x, y, x_size < y_size ? x_size : y_size);
    return order ? order : (x_size > y_size) - (x_size < y_size);
}

static int added_check_unique(const struct loader *l, const struct model_added *added)
{
    for (uint32_t i = 1; i < added->count; i++) {
        if (added_compare(&added->ids[i - 1], &added->ids[i], l->t) == 0) {
            return base_err_set(l->err, BASE_EFORMAT,
                                "%s: added tokens %u and %u have the same content '%s'", l->where,
                                added->ids[i - 1], added->ids[i],
                                model_show(l->spellings[added->ids[i]].text).text);
        }
    }
    return 0;
}

static int added_build(struct loader *l)
{
    struct model_tokenizer *t = l->t;
    int rc = 0;
    for (unsigned list = 0; rc == 0 && list < MODEL_ADDED_COUNT; list++) {
        struct model_added *added = &t->added[list];
        added->ids = malloc(((size_t)added->count + 1) * sizeof *added->ids);
        if (!added->ids) return -ENOMEM;
        uint32_t count = 0;
        for (uint32_t id = 0; id < t->vocab; id++) {
            const struct spelling *s = &l->spellings[id];
            if (!s->in_list[list]) continue;
            added->ids[count++] = id;
            added->begins[(unsigned char)s->text[0]] = true;
        }
        qsort_r(added->ids, count, sizeof *added->ids, added_compare, t);
        rc = added_check_unique(l, added);
    }
    return rc;
}

static bool is_absent(const struct port_json *value)
{
    return !value || port_json_type(value) == PORT_JSON_NULL;
}

/* A normalizer changes the text before it is cut; without one, text and tokens agree byte by
 * byte. */
static int normalizer_check(const struct loader *l, const struct port_json *normalizer)
{
    if (is_absent(normalizer)) return 0;
    const char *type = port_json_text(port_json_get(normalizer, "type"), NULL);
    if (!type || strcmp(type, "Sequence") != 0) {
        return base_err_set(l->err, BASE_EVERSION,
                            "%s: normalizer '%s' is not supported (only none is)", l->where,
                            model_show(type).text);
    }
    const struct port_json *list = port_json_get(normalizer, "normalizers");
    for (size_t i = 0; i < port_json_count(list); i++) {
        int rc = normalizer_check(l, port_json_at(list, i));
        if (rc < 0) return rc;
    }
    return 0;
}

static int model_option_check(const struct loader *l, const struct port_json *model)
{
    static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    for (size_t i = 0; i < sizeof affixes / sizeof affixes[0]; i++) {
        const char *text = port_json_text(port_json_get(model, affixes[i]), NULL);
        if (text && text[0]) {
            return base_err_set(l->err, BASE_EVERSION,
                                "%s: model.%s is '%s'; only none is supported", l->where,
                                affixes[i], model_show(text).text);
        }
    }
    const struct port_json *dropout = port_json_get(model, "dropout");
    if (!is_absent(dropout) && port_json_as_double(dropout) != 0) {
        return base_err_set(l->err, BASE_EVERSION, "%s: model.dropout must be null or 0", l->where);
    }
    return port_json_bool(model, "ignore_merges", false, false, &l->t->ignore_merges, l->where,
                          l->err);
}

static int kinds_check(const struct loader *l, const struct port_json *root)
{
    const struct port_json *model = port_json_get(root, "model");
    const struct port_json *type = port_json_get(model, "type");
    const char *text = port_json_text(type, NULL);
    /* Files of early versions name no type; the vocabulary and the merges tell. */
    if ((!is_absent(type) && (!text || strcmp(text, "BPE") != 0)) ||
        port_json_type(port_json_get(model, "vocab")) != PORT_JSON_OBJECT) {
        return base_err_set(l->err, BASE_EVERSION,
                            "%s: model is of type '%s'; only BPE with a vocab object is supported",
                            l->where, model_show(text).text);
    }
    const struct port_json *decoder = port_json_get(root, "decoder");
    const char *decoder_type = port_json_text(port_json_get(decoder, "type"), NULL);
    if (!is_absent(decoder) && (!decoder_type || strcmp(decoder_type, "ByteLevel") != 0)) {
        return base_err_set(l->err, BASE_EVERSION,
                            "%s: decoder '%s' is not supported (ByteLevel is)", l->where,
                            model_show(decoder_type).text);
    }
    int rc = normalizer_check(l, port_json_get(root, "normalizer"));
    return rc < 0 ? rc : model_option_check(l, model);
}

static int spellings_take(struct loader *l, const struct port_json *vocab,
                          const struct port_json *added)
{
    int rc = port_json_each(vocab, vocab_measure, l);
    if (rc == 0) rc = added_measure(l, added);
    if (rc < 0) return rc;
    l->spellings = calloc((size_t)l->t->vocab + 1, sizeof *l->spellings);
    if (!l->spellings) return -ENOMEM;
    rc = port_json_each(vocab, vocab_take, l);
    for (size_t i = 0; rc == 0 && i < port_json_count(added); i++) {
        rc = added_take(l, port_json_at(added, i));
    }
    return rc;
}

static int tables_build(struct loader *l, const struct port_json *root)
{
    const struct port_json *model = port_json_get(root, "model");
    const struct port_json *added = port_json_get(root, "added_tokens");
    if (!is_absent(added) && port_json_type(added) != PORT_JSON_ARRAY) {
        return base_err_set(l->err, BASE_EFORMAT, "%s: added_tokens must be an array", l->where);
    }
    int rc = spellings_take(l, port_json_get(model, "vocab"), added);
    if (rc == 0) rc = pool_build(l);
    if (rc == 0) rc = texts_build(l);
    if (rc == 0) rc = merges_build(l, port_json_get(model, "merges"));
    if (rc == 0) rc = added_build(l);
    return rc;
}

static int tokenizer_build(struct model_tokenizer **out, const struct port_json *root,
                           const char *where, struct base_err *err)
{
    struct loader l = { .where = where, .err = err };
    if (port_json_type(root) != PORT_JSON_OBJECT ||
        port_json_type(port_json_get(root, "model")) != PORT_JSON_OBJECT) {
        return base_err_set(err, BASE_EFORMAT, "%s: the file must hold an object with a model",
                            where);
    }
    l.t = calloc(1, sizeof *l.t);
    if (!l.t) return -ENOMEM;
    l.t->magic = MODEL_TOKENIZER_MAGIC;
    alphabet_fill(&l);
    int rc = kinds_check(&l, root);
    if (rc == 0) {
        rc = model_tokenizer_read_splits(l.t, port_json_get(root, "pre_tokenizer"), where, err);
    }
    if (rc == 0) rc = tables_build(&l, root);
    free(l.spellings);
    if (rc < 0) {
        model_tokenizer_free(l.t);
        if (rc == -ENOMEM) base_err_set(err, rc, "%s: out of memory", where);
        return rc;
    }
    *out = l.t;
    return 0;
}

int model_tokenizer_parse(struct model_tokenizer **out, const char *json, size_t size,
                          const char *name, struct base_err *err)
{
    *out = NULL;
    struct port_json *root = NULL;
    int rc = port_json_parse(&root, json, size, name, err);
    if (rc == 0) rc = tokenizer_build(out, root, name, err);
    port_json_free(root);
    return rc;
}

int model_tokenizer_load_file(struct model_tokenizer **out, const char *path, struct base_err *err)
{
    *out = NULL;
    struct port_json *root = NULL;
    int rc = port_json_load(&root, path, FILE_BYTES_MAX, err);
    if (rc == 0) rc = tokenizer_build(out, root, path, err);
    port_json_free(root);
    return rc;
}

int model_tokenizer_load(struct model_tokenizer **out, const char *dir, struct base_err *err)
{
    *out = NULL;
    char *path;
    if (asprintf(&path, "%s/tokenizer.json", dir) < 0) return -ENOMEM;
    int rc = model_tokenizer_load_file(out, path, err);
    free(path);
    return rc;
}

void model_tokenizer_free(struct model_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    for (uint32_t i = 0; i < tokenizer->step_count; i++) {
        port_regex_free(tokenizer->steps[i].regex);
    }
    free(tokenizer->pool);
    free(tokenizer->begins);
    free(tokenizer->flags);
    free(tokenizer->by_text);
    free(tokenizer->merges);
    for (unsigned i = 0; i < MODEL_ADDED_COUNT; i++) free(tokenizer->added[i].ids);
    tokenizer->magic = 0;
    free(tokenizer);
}
