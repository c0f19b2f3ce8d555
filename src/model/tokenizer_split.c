/* tokenizer.json's `pre_tokenizer` -> the steps that cut a text into pieces. */
#include <errno.h>
#include <string.h>

#include "model/show.h"
#include "model/tokenizer_tables.h"
#include "port/json.h"

/* GPT-2's pattern, which a ByteLevel step with use_regex applies. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static const char *const behavior_names[MODEL_SPLIT_BEHAVIOR_COUNT] = {
    [MODEL_SPLIT_ISOLATED] = "Isolated",
    [MODEL_SPLIT_REMOVED] = "Removed",
    [MODEL_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
    [MODEL_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
    [MODEL_SPLIT_CONTIGUOUS] = "Contiguous",
};

struct split_reader {
    struct model_tokenizer *t;
    const char *where;
    struct base_err *err;
    bool byte_level;            /* the last step was read */
};

static int step_add(struct split_reader *r, struct model_split step)
{
    if (r->t->step_count == MODEL_TOKENIZER_STEPS_MAX) {
        port_regex_free(step.regex);
        return base_err_set(r->err, BASE_EVERSION, "%s: pre_tokenizer has more than %d steps",
                            r->where, MODEL_TOKENIZER_STEPS_MAX);
    }
    r->t->steps[r->t->step_count++] = step;
    return 0;
}

static int pattern_step(struct split_reader *r, const char *pattern, size_t size, bool literal,
                        struct model_split step)
{
    struct base_buf buf;
    base_buf_init(&buf);
    int rc = 0;
    if (literal) {
        model_pattern_quote(&buf, pattern, size);
        rc = base_buf_error(&buf);
    } else {
        rc = model_pattern_translate(&buf, pattern, size, r->err);
    }
    if (rc == 0) rc = port_regex_compile(&step.regex, buf.data, buf.size, r->err);
    if (rc < 0) {
        base_err_prefix(r->err, "%s: pre_tokenizer step %u", r->where, r->t->step_count + 1);
    } else {
        rc = step_add(r, step);
    }
    base_buf_fini(&buf);
    return rc;
}

static int behavior_read(struct split_reader *r, const struct port_json *node,
                         enum model_split_behavior *behavior)
{
    const char *name = port_json_text(port_json_get(node, "behavior"), NULL);
    for (unsigned i = 0; name && i < MODEL_SPLIT_BEHAVIOR_COUNT; i++) {
        if (strcmp(name, behavior_names[i]) == 0) {
            *behavior = (enum model_split_behavior)i;
            return 0;
        }
    }
    return base_err_set(r->err, BASE_EVERSION,
                        "%s: pre_tokenizer: Split has the behavior '%s'; Isolated, Removed, "
                        "MergedWithPrevious, MergedWithNext and Contiguous are supported",
                        r->where, model_show(name).text);
}

static int split_read(struct split_reader *r, const struct port_json *node)
{
    struct model_split step = { 0 };
    int rc = behavior_read(r, node, &step.behavior);
    if (rc == 0) {
        rc = port_json_bool(node, "invert", false, false, &step.invert, r->where, r->err);
    }
    if (rc < 0) return rc;
    const struct port_json *pattern = port_json_get(node, "pattern");
    size_t size;
    const char *text = port_json_text(port_json_get(pattern, "Regex"), &size);
    bool literal = !text;
    if (literal) text = port_json_text(port_json_get(pattern, "String"), &size);
    if (!text || size == 0) {
        return base_err_set(r->err, BASE_EFORMAT,
                            "%s: pre_tokenizer: a Split needs pattern.Regex or pattern.String",
                            r->where);
    }
    return pattern_step(r, text, size, literal, step);
}

static int digits_read(struct split_reader *r, const struct port_json *node)
{
    bool individual;
    int rc = port_json_bool(node, "individual_digits", false, false, &individual, r->where, r->err);
    if (rc < 0) return rc;
    const char *pattern = individual ? "\\p{N}" : "\\p{N}+";
    return pattern_step(r, pattern, strlen(pattern), false, (struct model_split){ 0 });
}

static int byte_level_read(struct split_reader *r, const struct port_json *node)
{
    bool prefix, regex;
    int rc = port_json_bool(node, "add_prefix_space", false, true, &prefix, r->where, r->err);
    if (rc == 0) rc = port_json_bool(node, "use_regex", false, true, &regex, r->where, r->err);
    if (rc == 0 && prefix) rc = step_add(r, (struct model_split){ 0 });
    if (rc == 0 && regex) {
        rc = pattern_step(r, gpt2_pattern, sizeof gpt2_pattern - 1, false,
                          (struct model_split){ 0 });
    }
    r->byte_level = true;
    return rc;
}

static int node_read(struct split_reader *r, const struct port_json *node, unsigned depth)
{
    const char *type = port_json_text(port_json_get(node, "type"), NULL);
    if (r->byte_level) {
        return base_err_set(r->err, BASE_EVERSION,
                            "%s: pre_tokenizer: a step of type '%s' follows ByteLevel, which "
                            "must come last",
                            r->where, model_show(type).text);
    }
    if (type && strcmp(type, "Split") == 0) return split_read(r, node);
    if (type && strcmp(type, "Digits") == 0) return digits_read(r, node);
    if (type && strcmp(type, "ByteLevel") == 0) return byte_level_read(r, node);
    if (!type || strcmp(type, "Sequence") != 0 || depth > 8) {
        return base_err_set(r->err, BASE_EVERSION,
                            "%s: pre_tokenizer: a step has the type '%s'; Split, Digits, "
                            "ByteLevel and Sequence are supported",
                            r->where, model_show(type).text);
    }
    const struct port_json *list = port_json_get(node, "pretokenizers");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < port_json_count(list); i++) {
        rc = node_read(r, port_json_at(list, i), depth + 1);
    }
    return rc;
}

int model_tokenizer_read_splits(struct model_tokenizer *t, const struct port_json *pre_tokenizer,
                                const char *where, struct base_err *err)
{
    struct split_reader reader = { .t = t, .where = where, .err = err };
    int rc = 0;
    if (pre_tokenizer && port_json_type(pre_tokenizer) != PORT_JSON_NULL) {
        rc = node_read(&reader, pre_tokenizer, 0);
    }
    if (rc < 0 || reader.byte_level) return rc;
    return base_err_set(err, BASE_EVERSION,
                        "%s: pre_tokenizer has no ByteLevel step; only byte-level BPE is supported",
                        where);
}
