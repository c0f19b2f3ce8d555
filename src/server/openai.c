#include "server/openai.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/must.h"
#include "base/str.h"

enum { COMPLETION_TOKENS = 16 };        /* max_tokens of /v1/completions when it is not given */

int srv_fault_set(struct srv_fault *fault, int status, const char *type, const char *code,
                  const char *param, const char *format, ...)
{
    if (fault->status != 0) {
        return -EINVAL;
    }
    fault->status = status;
    fault->type = type;
    fault->code = code;
    snprintf(fault->param, sizeof fault->param, "%s", param ? param : "");
    va_list args;
    va_start(args, format);
    vsnprintf(fault->message, sizeof fault->message, format, args);
    va_end(args);
    /* Messages quote what clients sent; a sentence has no line ends and no escape codes. */
    for (char *c = fault->message; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    }
    return -EINVAL;
}

/* 400 with the API's usual type. */
#define REFUSE(fault, code, param, ...) \
    srv_fault_set(fault, 400, "invalid_request_error", code, param, __VA_ARGS__)

static const char *type_name(const struct port_json *value)
{
    switch (port_json_type(value)) {
    case PORT_JSON_NULL: return "null";
    case PORT_JSON_BOOL: return "a boolean";
    case PORT_JSON_INT: return "an integer";
    case PORT_JSON_REAL: return "a number";
    case PORT_JSON_STRING: return "a string";
    case PORT_JSON_ARRAY: return "an array";
    case PORT_JSON_OBJECT: return "an object";
    }
    return "something else";
}

static int wrong_type(struct srv_fault *fault, const char *key, const char *wanted,
                      const struct port_json *value)
{
    return REFUSE(fault, "invalid_type", key, "'%s' must be %s, not %s", key, wanted,
                  type_name(value));
}

static bool is(const struct port_json *value, enum port_json_type type)
{
    return value && port_json_type(value) == type;
}

static int read_bool(const struct port_json *value, const char *key, bool *to,
                     struct srv_fault *fault)
{
    if (!is(value, PORT_JSON_BOOL)) {
        return wrong_type(fault, key, "true or false", value);
    }
    *to = port_json_as_bool(value);
    return 0;
}

static int read_integer(const struct port_json *value, const char *key, int64_t min, int64_t max,
                        int64_t *to, struct srv_fault *fault)
{
    if (!is(value, PORT_JSON_INT)) {
        return wrong_type(fault, key, "an integer", value);
    }
    *to = port_json_as_i64(value);
    if (*to < min || *to > max) {
        return REFUSE(fault, "invalid_value", key, "'%s' must be from %lld to %lld, not %lld", key,
                      (long long)min, (long long)max, (long long)*to);
    }
    return 0;
}

static int read_real(const struct port_json *value, const char *key, double min, double max,
                     float *to, struct srv_fault *fault)
{
    if (!is(value, PORT_JSON_INT) && !is(value, PORT_JSON_REAL)) {
        return wrong_type(fault, key, "a number", value);
    }
    double number = port_json_as_double(value);
    if (!(number >= min && number <= max)) {
        return REFUSE(fault, "invalid_value", key, "'%s' must be from %g to %g, not %g", key, min,
                      max, number);
    }
    *to = (float)number;
    return 0;
}

/* Context of the walks over an object's members. */
struct each_param {
    struct srv_ask *ask;
    struct srv_fault *fault;
};

/* One parameter: reads `value` (never null) into the ask. */
typedef int param_fn(struct srv_ask *ask, const char *key, const struct port_json *value,
                     struct srv_fault *fault);

static int param_ignored(struct srv_ask *ask, const char *key, const struct port_json *value,
                         struct srv_fault *fault)
{
    (void)ask, (void)key, (void)value, (void)fault;
    return 0;
}

static int param_model(struct srv_ask *ask, const char *key, const struct port_json *value,
                       struct srv_fault *fault)
{
    ask->model = port_json_text(value, NULL);
    return ask->model ? 0 : wrong_type(fault, key, "a string", value);
}

static int param_max_tokens(struct srv_ask *ask, const char *key, const struct port_json *value,
                            struct srv_fault *fault)
{
    int64_t count = 0;
    int rc = read_integer(value, key, 1, UINT32_MAX, &count, fault);
    if (rc == 0 && ask->max_tokens != 0 && ask->max_tokens != (uint64_t)count) {
        return REFUSE(fault, "invalid_value", key,
                      "'max_tokens' and 'max_completion_tokens' name one limit but differ");
    }
    if (rc == 0) {
        ask->max_tokens = (uint64_t)count;
    }
    return rc;
}

static int param_temperature(struct srv_ask *ask, const char *key, const struct port_json *value,
                             struct srv_fault *fault)
{
    return read_real(value, key, 0, 2, &ask->sampling.temperature, fault);
}

static int param_top_p(struct srv_ask *ask, const char *key, const struct port_json *value,
                       struct srv_fault *fault)
{
    return read_real(value, key, 0, 1, &ask->sampling.top_p, fault);
}

static int param_top_k(struct srv_ask *ask, const char *key, const struct port_json *value,
                       struct srv_fault *fault)
{
    int64_t count = 0;
    int rc = read_integer(value, key, -1, INT32_MAX, &count, fault);
    if (rc == 0) {
        ask->sampling.top_k = count < 0 ? 0 : (uint32_t)count;  /* -1 is vLLM's "all" */
    }
    return rc;
}

static int param_seed(struct srv_ask *ask, const char *key, const struct port_json *value,
                      struct srv_fault *fault)
{
    int64_t seed = 0;
    int rc = read_integer(value, key, INT64_MIN, INT64_MAX, &seed, fault);
    if (rc == 0) {
        ask->sampling.seed = (uint64_t)seed;
        ask->seeded = true;
    }
    return rc;
}

static int param_stream(struct srv_ask *ask, const char *key, const struct port_json *value,
                        struct srv_fault *fault)
{
    return read_bool(value, key, &ask->stream, fault);
}

static int param_ignore_eos(struct srv_ask *ask, const char *key, const struct port_json *value,
                            struct srv_fault *fault)
{
    return read_bool(value, key, &ask->ignore_eos, fault);
}

static int stream_option(void *context, const char *key, size_t key_size,
                         const struct port_json *value)
{
    struct each_param *c = context;
    (void)key_size;
    if (strcmp(key, "include_usage") == 0) {
        return read_bool(value, "stream_options.include_usage", &c->ask->include_usage, c->fault);
    }
    if (strcmp(key, "include_obfuscation") == 0) {
        return 0;
    }
    return REFUSE(c->fault, "unsupported_parameter", "stream_options",
                  "'stream_options.%.40s' is not supported; 'include_usage' is", key);
}

static int param_stream_options(struct srv_ask *ask, const char *key,
                                const struct port_json *value, struct srv_fault *fault)
{
    if (!is(value, PORT_JSON_OBJECT)) {
        return wrong_type(fault, key, "an object", value);
    }
    struct each_param context = { ask, fault };
    return port_json_each(value, stream_option, &context);
}

static int add_stop(struct srv_ask *ask, const struct port_json *value, struct srv_fault *fault)
{
    size_t size;
    const char *text = port_json_text(value, &size);
    if (!text) {
        return wrong_type(fault, "stop", "a string or an array of strings", value);
    }
    if (size == 0 || size > SRV_STOP_BYTES_MAX) {
        return REFUSE(fault, "invalid_value", "stop",
                      "a stop string must have 1 to %d bytes, not %zu", SRV_STOP_BYTES_MAX, size);
    }
    if (strlen(text) != size) {
        return REFUSE(fault, "invalid_value", "stop", "a stop string cannot hold a NUL character");
    }
    ask->stops[ask->stop_count++] = text;
    return 0;
}

static int param_stop(struct srv_ask *ask, const char *key, const struct port_json *value,
                      struct srv_fault *fault)
{
    if (!is(value, PORT_JSON_ARRAY)) {
        return add_stop(ask, value, fault);
    }
    size_t count = port_json_count(value);
    if (count > SRV_STOPS_MAX) {
        return REFUSE(fault, "invalid_value", key, "at most %d stop strings, not %zu",
                      SRV_STOPS_MAX, count);
    }
    for (size_t i = 0; i < count; i++) {
        int rc = add_stop(ask, port_json_at(value, i), fault);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

/* Chat: true or false. Completions: a number of alternatives, of which only 0 is served. */
static int param_logprobs(struct srv_ask *ask, const char *key, const struct port_json *value,
                          struct srv_fault *fault)
{
    if (ask->endpoint == SRV_CHAT) {
        return read_bool(value, key, &ask->logprobs, fault);
    }
    int64_t alternatives = 0;
    int rc = read_integer(value, key, 0, 5, &alternatives, fault);
    if (rc == 0 && alternatives > 0) {
        return REFUSE(fault, "unsupported_value", key,
                      "'logprobs' gives the chosen token's log probability only: "
                      "%lld alternatives are not supported, use 0", (long long)alternatives);
    }
    ask->logprobs = rc == 0;
    return rc;
}

static int param_prompt_ids(struct srv_ask *ask, const struct port_json *array,
                            struct srv_fault *fault)
{
    size_t count = port_json_count(array);
    ask->ids = calloc(count, sizeof *ask->ids);
    if (!ask->ids) {
        return srv_fault_set(fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        int64_t id = 0;
        int rc = read_integer(port_json_at(array, i), "prompt", 0, UINT32_MAX, &id, fault);
        if (rc < 0) {
            return rc;
        }
        ask->ids[i] = (uint32_t)id;
    }
    ask->id_count = count;
    return 0;
}

static int param_prompt(struct srv_ask *ask, const char *key, const struct port_json *value,
                        struct srv_fault *fault)
{
    const struct port_json *first = port_json_at(value, 0);
    if (is(value, PORT_JSON_ARRAY) && !first) {
        return REFUSE(fault, "invalid_value", key, "'prompt' is an empty array");
    }
    if (is(first, PORT_JSON_STRING) || is(first, PORT_JSON_ARRAY)) {
        if (port_json_count(value) > 1) {
            return REFUSE(fault, "unsupported_value", key,
                          "one prompt a request: send the %zu prompts as %zu requests, they are "
                          "computed in one batch", port_json_count(value), port_json_count(value));
        }
        value = first;
        first = port_json_at(value, 0);
    }
    if (is(first, PORT_JSON_INT)) {
        return param_prompt_ids(ask, value, fault);
    }
    ask->prompt = port_json_text(value, &ask->prompt_bytes);
    return ask->prompt ? 0
                       : wrong_type(fault, key, "a string or an array of token ids",
                                    is(value, PORT_JSON_ARRAY) && first ? first : value);
}

/* Joins the text parts of a content array. */
static int join_parts(const struct port_json *parts, size_t index, char **joined, size_t *size,
                      struct srv_fault *fault)
{
    struct base_buf text;
    base_buf_init(&text);
    for (size_t i = 0; i < port_json_count(parts); i++) {
        const struct port_json *part = port_json_at(parts, i);
        const char *type = port_json_text(port_json_get(part, "type"), NULL);
        size_t bytes;
        const char *piece = port_json_text(port_json_get(part, "text"), &bytes);
        if (!type || strcmp(type, "text") != 0 || !piece) {
            base_buf_fini(&text);
            return REFUSE(fault, "unsupported_value", "messages",
                          "messages[%zu].content[%zu]: only parts of {\"type\": \"text\", "
                          "\"text\": ...} are supported, not type '%.40s'",
                          index, i, type ? type : "(none)");
        }
        base_buf_append(&text, piece, bytes);
    }
    base_buf_append(&text, "", 0);
    if (base_buf_error(&text) == 0 && text.size == 0) {
        base_buf_fini(&text);
        *joined = calloc(1, 1);
        *size = 0;
    } else {
        *joined = base_buf_take(&text, size);
    }
    if (!*joined) {
        base_buf_fini(&text);
        return srv_fault_set(fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
    }
    return 0;
}

/* Context of the walk over a message. */
struct each_message_key {
    bool tool;                  /* the answer of a tool */
    struct srv_fault *fault;
};

static int message_key(void *context, const char *key, size_t key_size,
                       const struct port_json *value)
{
    static const char *const known[] = { "role", "content", "name", "refusal", "annotations" };
    const struct each_message_key *c = context;
    (void)key_size;
    /* Says which call it answers, and agents send it always; the text has no place for it. */
    if (c->tool && strcmp(key, "tool_call_id") == 0 && !is(value, PORT_JSON_NULL)) {
        return is(value, PORT_JSON_STRING)
                   ? 0
                   : REFUSE(c->fault, "invalid_type", "messages",
                            "a message's 'tool_call_id' must be a string, not %s",
                            type_name(value));
    }
    if (port_json_type(value) == PORT_JSON_NULL ||
        (is(value, PORT_JSON_ARRAY) && port_json_count(value) == 0)) {
        return 0;
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(key, known[i]) == 0) {
            return 0;
        }
    }
    return REFUSE(c->fault, "unsupported_parameter", "messages",
                  "a message's '%.40s' is not supported; 'role' and 'content' are", key);
}

static int read_message(struct srv_ask *ask, size_t index, const struct port_json *value,
                        struct srv_fault *fault)
{
    static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };
    struct model_message *message = &ask->messages[index];
    if (!is(value, PORT_JSON_OBJECT)) {
        return REFUSE(fault, "invalid_type", "messages",
                      "messages[%zu] must be an object with 'role' and 'content', not %s", index,
                      type_name(value));
    }
    const char *role = port_json_text(port_json_get(value, "role"), NULL);
    struct each_message_key context = { role && strcmp(role, "tool") == 0, fault };
    int rc = port_json_each(value, message_key, &context);
    if (rc < 0) {
        return rc;
    }
    for (size_t i = 0; role && i < sizeof roles / sizeof roles[0]; i++) {
        if (strcmp(role, roles[i]) == 0) {
            message->role = i == 1 ? "system" : roles[i];
        }
    }
    if (!message->role) {
        return REFUSE(fault, "invalid_value", "messages",
                      "messages[%zu].role must be system, developer, user, assistant or tool"
                      "%s%.40s",
                      index, role ? ", not " : "", role ? role : "");
    }
    const struct port_json *content = port_json_get(value, "content");
    if (is(content, PORT_JSON_ARRAY)) {
        rc = join_parts(content, index, &ask->message_texts[index], &message->size, fault);
        message->text = ask->message_texts[index];
        return rc;
    }
    message->text = content ? port_json_text(content, &message->size) : NULL;
    if (!message->text) {
        return REFUSE(fault, "invalid_type", "messages",
                      "messages[%zu].content must be a string or an array of text parts, not %s",
                      index, content ? type_name(content) : "absent");
    }
    return 0;
}

static int param_messages(struct srv_ask *ask, const char *key, const struct port_json *value,
                          struct srv_fault *fault)
{
    if (!is(value, PORT_JSON_ARRAY)) {
        return wrong_type(fault, key, "an array", value);
    }
    size_t count = port_json_count(value);
    if (count < 1 || count > SRV_MESSAGES_MAX) {
        return REFUSE(fault, "invalid_value", key, "'messages' must hold 1 to %d messages, not %zu",
                      SRV_MESSAGES_MAX, count);
    }
    ask->messages = calloc(count, sizeof *ask->messages);
    ask->message_texts = calloc(count, sizeof *ask->message_texts);
    if (!ask->messages || !ask->message_texts) {
        return srv_fault_set(fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
    }
    ask->message_count = count;
    for (size_t i = 0; i < count; i++) {
        int rc = read_message(ask, i, port_json_at(value, i), fault);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int param_best_of(struct srv_ask *ask, const char *key, const struct port_json *value,
                         struct srv_fault *fault)
{
    (void)ask;
    if (is(value, PORT_JSON_INT) && port_json_as_i64(value) == 1) {
        return 0;
    }
    if (!is(value, PORT_JSON_INT)) {
        return wrong_type(fault, key, "an integer", value);
    }
    return REFUSE(fault, "unsupported_value", key,
                  "'%s' must be 1: several answers are several requests, they are computed in one "
                  "batch", key);
}

/* Something that is not built: only the value that asks for nothing is let through. */
static int param_neutral(struct srv_ask *ask, const char *key, const struct port_json *value,
                         struct srv_fault *fault)
{
    static const struct {
        const char *key;
        double number;
    } neutral[] = {
        { "repetition_penalty", 1 }, { "length_penalty", 1 },
    };
    (void)ask;
    double wanted = 0;
    for (size_t i = 0; i < sizeof neutral / sizeof neutral[0]; i++) {
        wanted = strcmp(key, neutral[i].key) == 0 ? neutral[i].number : wanted;
    }
    switch (port_json_type(value)) {
    case PORT_JSON_INT:
    case PORT_JSON_REAL:
        if (port_json_as_double(value) == wanted) return 0;
        break;
    case PORT_JSON_BOOL:
        if (!port_json_as_bool(value)) return 0;
        break;
    case PORT_JSON_ARRAY:
    case PORT_JSON_OBJECT:
        if (port_json_count(value) == 0) return 0;
        break;
    case PORT_JSON_STRING:
        if (strcmp(port_json_text(value, NULL), "") == 0) return 0;
        break;
    case PORT_JSON_NULL: return 0;
    }
    return REFUSE(fault, "unsupported_parameter", key,
                  "'%s' is not supported: leave it out (or at its neutral value)", key);
}

static int param_tool_choice(struct srv_ask *ask, const char *key, const struct port_json *value,
                             struct srv_fault *fault)
{
    const char *text = port_json_text(value, NULL);
    (void)ask;
    if (text && (strcmp(text, "none") == 0 || strcmp(text, "auto") == 0)) {
        return 0;
    }
    return REFUSE(fault, "unsupported_parameter", key, "tools are not supported: '%s' must be "
                  "\"none\" or left out", key);
}

static int param_response_format(struct srv_ask *ask, const char *key,
                                 const struct port_json *value, struct srv_fault *fault)
{
    const char *type = port_json_text(port_json_get(value, "type"), NULL);
    (void)ask;
    if (type && strcmp(type, "text") == 0) {
        return 0;
    }
    return REFUSE(fault, "unsupported_value", key,
                  "'response_format' must be {\"type\": \"text\"}: constrained output is not "
                  "supported");
}

static int param_modalities(struct srv_ask *ask, const char *key, const struct port_json *value,
                            struct srv_fault *fault)
{
    const char *only = port_json_text(port_json_at(value, 0), NULL);
    (void)ask;
    if (port_json_count(value) == 1 && only && strcmp(only, "text") == 0) {
        return 0;
    }
    return REFUSE(fault, "unsupported_value", key, "'modalities' must be [\"text\"]");
}

enum { COMPLETIONS = 1, CHATS = 2, BOTH = 3 };

static const struct param {
    const char *key;
    unsigned endpoints;
    param_fn *read;
} params[] = {
    { "model", BOTH, param_model },
    { "prompt", COMPLETIONS, param_prompt },
    { "messages", CHATS, param_messages },
    { "max_tokens", BOTH, param_max_tokens },
    { "max_completion_tokens", CHATS, param_max_tokens },
    { "temperature", BOTH, param_temperature },
    { "top_p", BOTH, param_top_p },
    { "top_k", BOTH, param_top_k },
    { "seed", BOTH, param_seed },
    { "stop", BOTH, param_stop },
    { "stream", BOTH, param_stream },
    { "stream_options", BOTH, param_stream_options },
    { "logprobs", BOTH, param_logprobs },
    { "ignore_eos", BOTH, param_ignore_eos },
    { "n", BOTH, param_best_of },
    { "best_of", COMPLETIONS, param_best_of },
    { "tool_choice", CHATS, param_tool_choice },
    { "function_call", CHATS, param_tool_choice },
    { "response_format", BOTH, param_response_format },
    { "modalities", CHATS, param_modalities },
    /* would change the answer, not built */
    { "top_logprobs", CHATS, param_neutral },
    { "presence_penalty", BOTH, param_neutral },
    { "frequency_penalty", BOTH, param_neutral },
    { "repetition_penalty", BOTH, param_neutral },
    { "length_penalty", BOTH, param_neutral },
    { "min_p", BOTH, param_neutral },
    { "min_tokens", BOTH, param_neutral },
    { "logit_bias", BOTH, param_neutral },
    { "echo", COMPLETIONS, param_neutral },
    { "suffix", COMPLETIONS, param_neutral },
    { "tools", CHATS, param_neutral },
    { "functions", CHATS, param_neutral },
    { "audio", CHATS, param_neutral },
    { "prediction", CHATS, param_neutral },
    { "web_search_options", CHATS, param_neutral },
    { "reasoning_effort", CHATS, param_neutral },
    { "verbosity", CHATS, param_neutral },
    /* sent by habit, cannot change the text */
    { "user", BOTH, param_ignored },
    { "metadata", BOTH, param_ignored },
    { "store", BOTH, param_ignored },
    { "service_tier", BOTH, param_ignored },
    { "safety_identifier", BOTH, param_ignored },
    { "prompt_cache_key", BOTH, param_ignored },
    { "prompt_cache_retention", BOTH, param_ignored },
    { "parallel_tool_calls", CHATS, param_ignored },
};
enum { PARAM_COUNT = sizeof params / sizeof params[0] };

static int each_param(void *context, const char *key, size_t key_size,
                      const struct port_json *value)
{
    struct each_param *c = context;
    const unsigned endpoint = c->ask->endpoint == SRV_CHAT ? CHATS : COMPLETIONS;
    const char *names[PARAM_COUNT];
    size_t name_count = 0;
    for (size_t i = 0; i < PARAM_COUNT; i++) {
        if (!(params[i].endpoints & endpoint)) {
            continue;
        }
        if (key_size == strlen(params[i].key) && memcmp(key, params[i].key, key_size) == 0) {
            return port_json_type(value) == PORT_JSON_NULL
                       ? 0
                       : params[i].read(c->ask, params[i].key, value, c->fault);
        }
        names[name_count++] = params[i].key;
    }
    const char *near = base_str_nearest(key, names, name_count);
    return REFUSE(c->fault, "unknown_parameter", key, "unknown parameter '%.60s'%s%s%s", key,
                  near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

size_t srv_values_max(uint32_t tokens_max)
{
    enum { OTHERS = 16384, FOR_A_TOKEN = 8 };
    const uint64_t most = OTHERS + (uint64_t)FOR_A_TOKEN * tokens_max;
    return most < SRV_VALUES_MAX ? (size_t)most : SRV_VALUES_MAX;
}

int srv_ask_parse(struct srv_ask *ask, enum srv_endpoint endpoint, const char *body, size_t size,
                  size_t values_max, struct srv_fault *fault)
{
    *ask = (struct srv_ask){ .endpoint = endpoint };
    *fault = (struct srv_fault){ 0 };
    ask->sampling = (struct eng_sampling){ .temperature = 1, .top_p = 1 };
    struct base_err err = { 0 };
    if (port_json_values(body, size) > values_max) {
        return REFUSE(fault, "invalid_json", NULL, "the request body has more than %zu JSON values "
                      "(an empty array or object counts twice)", values_max);
    }
    int rc = port_json_parse(&ask->body, body, size, "request body", &err);
    if (rc == -ENOMEM) {
        return srv_fault_set(fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
    }
    if (rc < 0) {
        return REFUSE(fault, "invalid_json", NULL, "%s", err.text);
    }
    if (!is(ask->body, PORT_JSON_OBJECT)) {
        return REFUSE(fault, "invalid_type", NULL, "the request body must be a JSON object, not %s",
                      type_name(ask->body));
    }
    struct each_param context = { ask, fault };
    rc = port_json_each(ask->body, each_param, &context);
    if (rc < 0) {
        return rc;
    }
    if (endpoint == SRV_CHAT && !ask->messages) {
        return REFUSE(fault, "missing_parameter", "messages", "'messages' is missing");
    }
    if (endpoint == SRV_COMPLETION && !ask->prompt && !ask->ids) {
        return REFUSE(fault, "missing_parameter", "prompt", "'prompt' is missing");
    }
    if (ask->include_usage && !ask->stream) {
        return REFUSE(fault, "invalid_value", "stream_options",
                      "'stream_options' needs \"stream\": true");
    }
    if (ask->sampling.top_p == 0) {     /* the smallest set that reaches 0 is the best token */
        ask->sampling.temperature = 0;
        ask->sampling.top_p = 1;
    }
    return 0;
}

/* Frees the body and all that points into it but the stop strings. */
static void free_body(struct srv_ask *ask)
{
    for (size_t i = 0; ask->message_texts && i < ask->message_count; i++) {
        free(ask->message_texts[i]);
    }
    free(ask->message_texts);
    free(ask->messages);
    port_json_free(ask->body);
    ask->message_texts = NULL;
    ask->messages = NULL;
    ask->message_count = 0;
    ask->prompt = ask->model = NULL;
    ask->body = NULL;
}

void srv_ask_fini(struct srv_ask *ask)
{
    free_body(ask);
    free(ask->ids);
    free(ask->stop_texts);
    *ask = (struct srv_ask){ 0 };
}

/* A parsed body takes many times its bytes, an answer many seconds: what is still needed of it is
 * copied. */
static int settle(struct srv_ask *ask, struct srv_fault *fault)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < ask->stop_count; i++) {
        bytes += strlen(ask->stops[i]) + 1;
    }
    char *to = bytes > 0 ? malloc(bytes) : NULL;
    if (bytes > 0 && !to) {
        return srv_fault_set(fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
    }
    ask->stop_texts = to;
    for (uint32_t i = 0; i < ask->stop_count; i++) {
        size_t size = strlen(ask->stops[i]) + 1;
        ask->stops[i] = memcpy(to, ask->stops[i], size);
        to += size;
    }
    free_body(ask);
    return 0;
}

static int make_ids(struct srv_ask *ask, const struct srv_model *model, struct srv_fault *fault)
{
    struct base_err err = { 0 };
    int rc = 0;
    const char *param = ask->endpoint == SRV_CHAT ? "messages" : "prompt";
    if (ask->endpoint == SRV_CHAT) {
        rc = model_chat_render(model->chat, ask->messages, ask->message_count, model->tokens_max,
                               &ask->ids, &ask->id_count, &err);
    } else if (!ask->ids) {
        rc = model_chat_prompt(model->chat, ask->prompt, ask->prompt_bytes, true,
                               model->tokens_max, &ask->ids, &ask->id_count, &err);
    }
    if (rc == -ENOMEM) {
        return srv_fault_set(fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
    }
    if (rc == -EMSGSIZE) {
        return REFUSE(fault, "context_length_exceeded", param, "%s, which is what prompt and "
                      "answer together may have here", err.text);
    }
    if (rc < 0) {
        return REFUSE(fault, rc == -EFBIG ? "context_length_exceeded" : "invalid_value", param,
                      "%s", err.text[0] ? err.text : base_err_name(rc));
    }
    if (ask->id_count == 0) {
        return REFUSE(fault, "invalid_value", param, "the prompt is empty: it has no token");
    }
    for (size_t i = 0; i < ask->id_count; i++) {
        if (ask->ids[i] >= model->vocab) {
            return REFUSE(fault, "invalid_value", param,
                          "prompt[%zu] is token %u, but the model's ids end at %u", i, ask->ids[i],
                          model->vocab - 1);
        }
    }
    return 0;
}

int srv_ask_tokenize(struct srv_ask *ask, const struct srv_model *model, struct srv_fault *fault)
{
    if (ask->model && strcmp(ask->model, model->name) != 0) {
        return srv_fault_set(fault, 404, "invalid_request_error", "model_not_found", "model",
                             "the model '%.100s' is not served here; '%s' is", ask->model,
                             model->name);
    }
    int rc = make_ids(ask, model, fault);
    if (rc < 0) {
        return rc;
    }
    const char *param = ask->endpoint == SRV_CHAT ? "messages" : "prompt";
    if (ask->id_count >= model->tokens_max) {
        return REFUSE(fault, "context_length_exceeded", param,
                      "the prompt has %zu tokens, but prompt and answer together may have %u here",
                      ask->id_count, model->tokens_max);
    }
    uint64_t left = model->tokens_max - ask->id_count;
    if (ask->max_tokens > left) {
        return REFUSE(fault, "context_length_exceeded", "max_tokens",
                      "the prompt has %zu tokens and %llu more are asked for, but prompt and "
                      "answer together may have %u here", ask->id_count,
                      (unsigned long long)ask->max_tokens, model->tokens_max);
    }
    if (ask->max_tokens == 0) {
        ask->max_tokens =
            ask->endpoint == SRV_COMPLETION && left > COMPLETION_TOKENS ? COMPLETION_TOKENS : left;
    }
    if (!ask->seeded && getrandom(&ask->sampling.seed, sizeof ask->sampling.seed, 0) < 0) {
        ask->sampling.seed = (uint64_t)(uintptr_t)ask ^ ask->id_count;
    }
    return settle(ask, fault);
}
