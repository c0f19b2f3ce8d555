#include "model/chat.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/log.h"
#include "base/must.h"
#include "model/show.h"
#include "port/json.h"

enum {
    CHAT_MAGIC = 0x4d434854,
    CONFIG_BYTES_MAX = 16 << 20,
};

/* The template's own tokens. The bars are U+FF5C, the low lines U+2581. */
enum mark {
    MARK_USER, MARK_ASSISTANT, MARK_END, MARK_OUTPUTS_BEGIN, MARK_OUTPUTS_END, MARK_OUTPUT_BEGIN,
    MARK_OUTPUT_END, MARK_THINK, MARK_COUNT,
};
static const char *const mark_texts[MARK_COUNT] = {
    [MARK_USER] = "<｜User｜>",
    [MARK_ASSISTANT] = "<｜Assistant｜>",
    [MARK_END] = "<｜end▁of▁sentence｜>",
    [MARK_OUTPUTS_BEGIN] = "<｜tool▁outputs▁begin｜>",
    [MARK_OUTPUTS_END] = "<｜tool▁outputs▁end｜>",
    [MARK_OUTPUT_BEGIN] = "<｜tool▁output▁begin｜>",
    [MARK_OUTPUT_END] = "<｜tool▁output▁end｜>",
    [MARK_THINK] = "<think>",
};

/* PLAIN for base models, V2 for DeepSeek-V2's text without control tokens. */
enum template { PLAIN, DEEPSEEK_V2, DEEPSEEK };

struct model_chat {
    uint32_t magic;
    const struct model_tokenizer *tokenizer;
    enum template template;
    bool answers_only;          /* DeepSeek-R1: no thoughts of earlier answers in the prompt */
    bool begins_thought;        /* and the answer begins with one */
    size_t token_bytes;         /* of the longest token */
    bool unlike;                /* the model's template is another one */
    bool prompt_bos;            /* add_bos_token: what a raw prompt begins with */
    int64_t bos;                /* -1 = none */
    int64_t marks[MARK_COUNT];  /* -1 = the vocabulary has no such token */
};

enum role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL, ROLE_COUNT };
static const char *const role_names[ROLE_COUNT] = { "system", "user", "assistant", "tool" };

/* The prompt while it grows. Text waits until the next mark, because neighbouring texts are one
 * text to the tokenizer. */
struct render {
    const struct model_chat *chat;
    size_t tokens_max;
    struct base_err *err;
    struct base_buf text;
    uint32_t *ids;
    size_t count;
    size_t capacity;
    int rc;
};

static void ids_append(struct render *r, const uint32_t *ids, size_t count)
{
    if (r->rc < 0) return;
    if (r->count + count > r->capacity || !r->ids) {
        size_t capacity = (r->count + count) * 2 + 16;
        uint32_t *grown = reallocarray(r->ids, capacity, sizeof *grown);
        if (!grown) {
            r->rc = -ENOMEM;
            return;
        }
        r->ids = grown;
        r->capacity = capacity;
    }
    if (count > 0) memcpy(r->ids + r->count, ids, count * sizeof *ids);
    r->count += count;
}

static void text_add(struct render *r, bool with_special)
{
    if (r->rc == 0) r->rc = base_buf_error(&r->text);
    if (r->rc < 0 || r->text.size == 0) return;
    uint32_t *ids;
    size_t count = r->text.size / r->chat->token_bytes;
    if (r->count > r->tokens_max || count > r->tokens_max - r->count) {
        r->rc = base_err_set(r->err, -EMSGSIZE, "the prompt has more than %zu tokens",
                             r->tokens_max);
        return;
    }
    r->rc = model_tokenizer_encode(r->chat->tokenizer, r->text.data, r->text.size, with_special,
                                   &ids, &count);
    if (r->rc < 0) {
        base_err_set(r->err, r->rc, "%zu bytes of text cannot be turned into tokens: %s",
                     r->text.size,
                     r->rc == -EFBIG   ? "16 MiB is the most at once"
                     : r->rc == -E2BIG ? "a pattern of the tokenizer gave up"
                                       : base_err_name(r->rc));
        return;
    }
    ids_append(r, ids, count);
    free(ids);
    base_buf_clear(&r->text);
}

static void text_flush(struct render *r)
{
    text_add(r, false);
}

static void put_id(struct render *r, int64_t id)
{
    if (id < 0) return;
    uint32_t value = (uint32_t)id;
    text_flush(r);
    ids_append(r, &value, 1);
}

static void put_mark(struct render *r, enum mark mark)
{
    if (r->chat->marks[mark] >= 0) {
        put_id(r, r->chat->marks[mark]);
    } else if (r->rc == 0) {
        r->rc = base_err_set(r->err, BASE_EFORMAT,
                             "this conversation needs the token %s, which the tokenizer lacks",
                             mark_texts[mark]);
    }
}

static void put_text(struct render *r, const struct model_message *message)
{
    base_buf_append(&r->text, message->text, message->size);
}

/* What an assistant said, which R1's template leaves the thoughts out of. */
static void put_answer(struct render *r, const struct model_message *message)
{
    static const char end[] = "</think>";
    struct model_message answer = *message;
    for (const char *at; r->chat->answers_only &&
         (at = memmem(answer.text, answer.size, end, sizeof end - 1)) != NULL;) {
        answer.size -= (size_t)(at - answer.text) + sizeof end - 1;
        answer.text = at + sizeof end - 1;
    }
    put_text(r, &answer);
}

static void put_thought(struct render *r)
{
    if (!r->chat->begins_thought) return;
    if (r->chat->marks[MARK_THINK] >= 0) {
        put_id(r, r->chat->marks[MARK_THINK]);
    } else {
        base_buf_puts(&r->text, mark_texts[MARK_THINK]);
    }
    base_buf_puts(&r->text, "\n");
}

static int render_end(struct render *r, uint32_t **ids, size_t *count)
{
    text_flush(r);
    ids_append(r, NULL, 0);
    base_buf_fini(&r->text);
    if (r->rc < 0) {
        if (r->rc == -ENOMEM) base_err_set(r->err, r->rc, "out of memory for the prompt's tokens");
        free(r->ids);
        return r->rc;
    }
    *ids = r->ids;
    *count = r->count;
    return 0;
}

static int role_find(const char *name, enum role *role, struct base_err *err)
{
    for (unsigned i = 0; i < ROLE_COUNT; i++) {
        if (strcmp(name, role_names[i]) == 0) {
            *role = (enum role)i;
            return 0;
        }
    }
    return base_err_set(err, BASE_EFORMAT,
                        "role '%s' is unknown; system, user, assistant and tool are known",
                        model_show(name).text);
}

/* The chat_template of DeepSeek-V3's tokenizer_config.json, branch by branch (what it does with an
 * assistant's tool calls has no counterpart in a message here), and with a generation prompt.
 * System texts come first wherever they stand; only the first tool output ever opens the
 * outputs. */
static void render_deepseek(struct render *r, const struct model_message *messages, size_t count,
                            const enum role *roles)
{
    bool first_system = true, first_output = true, in_tools = false;
    for (size_t i = 0; i < count; i++) {
        if (roles[i] != ROLE_SYSTEM) continue;
        if (!first_system) base_buf_puts(&r->text, "\n\n");
        first_system = false;
        put_text(r, &messages[i]);
    }
    for (size_t i = 0; i < count; i++) {
        switch (roles[i]) {
        case ROLE_USER:
            in_tools = false;
            put_mark(r, MARK_USER);
            put_text(r, &messages[i]);
            break;
        case ROLE_ASSISTANT:
            put_mark(r, in_tools ? MARK_OUTPUTS_END : MARK_ASSISTANT);
            (in_tools ? put_text : put_answer)(r, &messages[i]);
            in_tools = false;
            put_mark(r, MARK_END);
            break;
        case ROLE_TOOL:
            in_tools = true;
            if (first_output) {
                put_mark(r, MARK_OUTPUTS_BEGIN);
            } else {
                base_buf_puts(&r->text, "\n");
            }
            first_output = false;
            put_mark(r, MARK_OUTPUT_BEGIN);
            put_text(r, &messages[i]);
            put_mark(r, MARK_OUTPUT_END);
            break;
        default:
            break;
        }
    }
    put_mark(r, in_tools ? MARK_OUTPUTS_END : MARK_ASSISTANT);
    if (!in_tools) put_thought(r);
}

/* The chat_template of DeepSeek-V2's tokenizer_config.json, with a generation prompt. */
static void render_deepseek_v2(struct render *r, const struct model_message *messages,
                               size_t count, const enum role *roles)
{
    for (size_t i = 0; i < count && r->rc == 0; i++) {
        switch (roles[i]) {
        case ROLE_USER:
            base_buf_puts(&r->text, "User: ");
            put_text(r, &messages[i]);
            base_buf_puts(&r->text, "\n\n");
            break;
        case ROLE_ASSISTANT:
            base_buf_puts(&r->text, "Assistant: ");
            put_text(r, &messages[i]);
            put_mark(r, MARK_END);
            break;
        case ROLE_SYSTEM:
            put_text(r, &messages[i]);
            base_buf_puts(&r->text, "\n\n");
            break;
        default:
            r->rc = base_err_set(r->err, BASE_EFORMAT, "role '%s' has no place in this model's "
                                 "chat template, which is DeepSeek-V2's", role_names[roles[i]]);
        }
    }
    base_buf_puts(&r->text, "Assistant:");
}

static void render_plain(struct render *r, const struct model_message *messages, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (i > 0) base_buf_puts(&r->text, "\n");
        put_text(r, &messages[i]);
    }
}

int model_chat_render(const struct model_chat *chat, const struct model_message *messages,
                      size_t count, size_t tokens_max, uint32_t **ids, size_t *id_count,
                      struct base_err *err)
{
    MUST_MAGIC(chat, CHAT_MAGIC);
    *ids = NULL;
    *id_count = 0;
    enum role *roles = calloc(count + 1, sizeof *roles);
    int rc = roles ? 0 : base_err_set(err, -ENOMEM, "out of memory for %zu messages", count);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = role_find(messages[i].role, &roles[i], err);
    }
    if (rc == 0) {
        struct render r = { .chat = chat, .tokens_max = tokens_max, .err = err };
        base_buf_init(&r.text);
        put_id(&r, chat->bos);
        switch (chat->template) {
        case DEEPSEEK: render_deepseek(&r, messages, count, roles); break;
        case DEEPSEEK_V2: render_deepseek_v2(&r, messages, count, roles); break;
        case PLAIN: render_plain(&r, messages, count); break;
        }
        rc = render_end(&r, ids, id_count);
    }
    free(roles);
    return rc;
}

int model_chat_prompt(const struct model_chat *chat, const char *text, size_t size,
                      bool with_special, size_t tokens_max, uint32_t **ids, size_t *id_count,
                      struct base_err *err)
{
    MUST_MAGIC(chat, CHAT_MAGIC);
    *ids = NULL;
    *id_count = 0;
    struct render r = { .chat = chat, .tokens_max = tokens_max, .err = err };
    base_buf_init(&r.text);
    if (chat->prompt_bos) put_id(&r, chat->bos);
    base_buf_append(&r.text, text, size);
    const size_t begin = r.count;
    text_add(&r, with_special);
    if (r.rc == 0 && begin == 1 && r.count > begin && r.ids[begin] == r.ids[0]) {
        memmove(r.ids, r.ids + 1, --r.count * sizeof *r.ids);   /* the text has its own BOS */
    }
    return render_end(&r, ids, id_count);
}

/* "bos_token" is a string, an object with its content, or null. */
static int read_bos(struct model_chat *chat, const struct port_json *root, const char *path,
                    struct base_err *err)
{
    const struct port_json *value = port_json_get(root, "bos_token");
    if (!value || port_json_type(value) == PORT_JSON_NULL) return 0;
    if (port_json_type(value) == PORT_JSON_OBJECT) value = port_json_get(value, "content");
    const char *text = port_json_text(value, NULL);
    if (!text) {
        return base_err_set(err, BASE_EFORMAT,
                            "%s: bos_token must be a string, or an object with its content", path);
    }
    chat->bos = model_tokenizer_find(chat->tokenizer, text);
    if (chat->bos >= 0) return 0;
    return base_err_set(err, BASE_EMISMATCH, "%s: bos_token '%s' is no token of tokenizer.json",
                        path, model_show(text).text);
}

/* DIR/chat_template.jinja, which stands for the config's template. -ENOENT if there is none. */
static int file_template(const char *dir, char **out, struct base_err *err)
{
    char *path, *data;
    size_t size;
    if (asprintf(&path, "%s/chat_template.jinja", dir) < 0) return -ENOMEM;
    int rc = access(path, F_OK) == 0 ? base_file_read(&data, &size, path, CONFIG_BYTES_MAX, err)
                                     : -ENOENT;
    free(path);
    if (rc == 0) *out = data;
    return rc;
}

/* The config's template: a string, or the one named "default" of a list of named ones. NULL if
 * there is none. */
static const char *config_template(const struct port_json *root)
{
    const struct port_json *value = port_json_get(root, "chat_template");
    if (port_json_type(value) != PORT_JSON_ARRAY) return port_json_text(value, NULL);
    for (size_t i = 0; i < port_json_count(value); i++) {
        const struct port_json *named = port_json_at(value, i);
        const char *name = port_json_text(port_json_get(named, "name"), NULL);
        if (name && strcmp(name, "default") == 0) {
            return port_json_text(port_json_get(named, "template"), NULL);
        }
    }
    return NULL;
}

/* Which template it is, by what only it says. */
static void template_known(struct model_chat *chat, const char *text, const char *path)
{
    const bool thinks = strstr(text, "</think>") != NULL;
    if (chat->marks[MARK_USER] >= 0 && chat->marks[MARK_ASSISTANT] >= 0) {
        chat->template = DEEPSEEK;
        chat->answers_only = strstr(text, "content.split('</think>')[-1]") != NULL;
        chat->begins_thought = strstr(text, "'<｜Assistant｜><think>\\n'") != NULL;
        if (thinks && !chat->answers_only) {
            base_log(BASE_LOG_WARN, "model", "this chat template steers thinking, which is left to "
                     "the model: messages are rendered as for DeepSeek-V3 file=%s", path);
            chat->unlike = true;
        }
    } else if (strstr(text, "'User: ' + message['content'] + '\\n\\n'") &&
               strstr(text, "'Assistant: ' + message['content'] + eos_token") &&
               chat->marks[MARK_END] >= 0) {
        chat->template = DEEPSEEK_V2;
    } else {
        base_log(BASE_LOG_WARN, "model", "this chat template is none of DeepSeek's: messages are "
                 "joined by newlines file=%s", path);
        chat->unlike = true;
    }
}

/* Absent add_bos_token means yes, as in the tokenizer class that DeepSeek's checkpoints name. */
static int config_read(struct model_chat *chat, const char *dir, const struct port_json *root,
                       const char *path, struct base_err *err)
{
    if (port_json_type(root) != PORT_JSON_OBJECT) {
        return base_err_set(err, BASE_EFORMAT, "%s: the file must hold one JSON object", path);
    }
    int rc = read_bos(chat, root, path, err);
    if (rc == 0) {
        rc = port_json_bool(root, "add_bos_token", false, true, &chat->prompt_bos, path, err);
    }
    if (rc < 0) return rc;
    char *of_file = NULL;
    rc = file_template(dir, &of_file, err);
    if (rc < 0 && rc != -ENOENT) return rc;
    const char *template = of_file ? of_file : config_template(root);
    if (template) template_known(chat, template, path);
    free(of_file);
    return 0;
}

int model_chat_load(struct model_chat **out, const char *dir,
                    const struct model_tokenizer *tokenizer, struct base_err *err)
{
    *out = NULL;
    struct port_json *root = NULL;
    char *path = NULL;
    struct model_chat *chat = calloc(1, sizeof *chat);
    int rc = -ENOMEM;
    if (asprintf(&path, "%s/tokenizer_config.json", dir) < 0) path = NULL;
    if (!chat || !path) goto fail;
    *chat = (struct model_chat){ .magic = CHAT_MAGIC, .tokenizer = tokenizer, .bos = -1,
                                 .token_bytes = model_tokenizer_longest(tokenizer) };
    for (unsigned i = 0; i < MARK_COUNT; i++) {
        chat->marks[i] = model_tokenizer_find(tokenizer, mark_texts[i]);
    }
    rc = port_json_load(&root, path, CONFIG_BYTES_MAX, err);
    if (rc == 0) rc = config_read(chat, dir, root, path, err);
    if (rc < 0) goto fail;
    port_json_free(root);
    free(path);
    *out = chat;
    return 0;
fail:
    if (rc == -ENOMEM) base_err_set(err, rc, "%s: out of memory", dir);
    port_json_free(root);
    free(path);
    model_chat_free(chat);
    return rc;
}

void model_chat_free(struct model_chat *chat)
{
    if (!chat) return;
    chat->magic = 0;
    free(chat);
}

const char *model_chat_name(const struct model_chat *chat)
{
    MUST_MAGIC(chat, CHAT_MAGIC);
    static const char *const names[] = { "plain", "deepseek-v2", "deepseek" };
    return names[chat->template];
}

bool model_chat_as_model(const struct model_chat *chat)
{
    MUST_MAGIC(chat, CHAT_MAGIC);
    return !chat->unlike;
}
