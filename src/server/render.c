#include "server/render.h"

#include <math.h>
#include <string.h>

static void put_text(struct base_buf *to, const char *text, size_t size)
{
    base_buf_puts(to, "\"");
    base_buf_json_escape(to, text, size);
    base_buf_puts(to, "\"");
}

static void put_string(struct base_buf *to, const char *text)
{
    put_text(to, text, strlen(text));
}

static void put_or_null(struct base_buf *to, const char *text)
{
    if (text && text[0]) {
        put_string(to, text);
    } else {
        base_buf_puts(to, "null");
    }
}

void srv_render_error(struct base_buf *to, const struct srv_fault *fault)
{
    base_buf_puts(to, "{\"error\":{\"message\":");
    put_string(to, fault->message);
    base_buf_puts(to, ",\"type\":");
    put_or_null(to, fault->type);
    base_buf_puts(to, ",\"param\":");
    put_or_null(to, fault->param);
    base_buf_puts(to, ",\"code\":");
    put_or_null(to, fault->code);
    base_buf_puts(to, "}}");
}

/* JSON has no infinity: a token that could not be drawn shows as the API's own floor. */
static double printable(float logprob)
{
    return isfinite(logprob) ? (double)logprob : -9999.0;
}

static void put_chat_logprobs(struct base_buf *to, const struct srv_answer *answer,
                              const struct srv_part *part)
{
    base_buf_puts(to, "{\"content\":[");
    for (size_t i = 0; i < part->logprob_count; i++) {
        bool special;
        size_t size;
        const char *bytes = model_tokenizer_bytes(answer->tokenizer, part->logprobs[i].token,
                                                  &size, &special);
        base_buf_puts(to, i ? ",{\"token\":" : "{\"token\":");
        put_text(to, bytes, size);
        base_buf_printf(to, ",\"logprob\":%.6f,\"bytes\":[", printable(part->logprobs[i].logprob));
        for (size_t k = 0; k < size; k++) {
            base_buf_printf(to, k ? ",%u" : "%u", (unsigned)(unsigned char)bytes[k]);
        }
        base_buf_puts(to, "],\"top_logprobs\":[]}");
    }
    base_buf_puts(to, "],\"refusal\":null}");
}

static void put_text_logprobs(struct base_buf *to, const struct srv_answer *answer,
                              const struct srv_part *part)
{
    base_buf_puts(to, "{\"tokens\":[");
    for (size_t i = 0; i < part->logprob_count; i++) {
        bool special;
        size_t size;
        const char *bytes = model_tokenizer_bytes(answer->tokenizer, part->logprobs[i].token,
                                                  &size, &special);
        base_buf_puts(to, i ? "," : "");
        put_text(to, bytes, size);
    }
    base_buf_puts(to, "],\"token_logprobs\":[");
    for (size_t i = 0; i < part->logprob_count; i++) {
        base_buf_printf(to, i ? ",%.6f" : "%.6f", printable(part->logprobs[i].logprob));
    }
    base_buf_puts(to, "],\"top_logprobs\":null,\"text_offset\":[");
    for (size_t i = 0; i < part->logprob_count; i++) {
        base_buf_printf(to, i ? ",%llu" : "%llu",
                        (unsigned long long)part->logprobs[i].text_offset);
    }
    base_buf_puts(to, "]}");
}

static void put_logprobs(struct base_buf *to, const struct srv_answer *answer,
                         const struct srv_part *part)
{
    base_buf_puts(to, ",\"logprobs\":");
    if (!part->logprobs || part->logprob_count == 0) {
        base_buf_puts(to, "null");
    } else if (answer->endpoint == SRV_CHAT) {
        put_chat_logprobs(to, answer, part);
    } else {
        put_text_logprobs(to, answer, part);
    }
}

static void put_head(struct base_buf *to, const struct srv_answer *answer, const char *object)
{
    base_buf_puts(to, "{\"id\":");
    put_string(to, answer->id);
    base_buf_printf(to, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object,
                    (long long)answer->created);
    put_string(to, answer->model);
}

static void put_usage(struct base_buf *to, const struct srv_answer *answer)
{
    base_buf_printf(to, ",\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,"
                    "\"total_tokens\":%llu,\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
                    (unsigned long long)answer->prompt_tokens,
                    (unsigned long long)answer->answer_tokens,
                    (unsigned long long)(answer->prompt_tokens + answer->answer_tokens),
                    (unsigned long long)answer->cached_tokens);
}

static void put_finish(struct base_buf *to, const char *finish)
{
    base_buf_puts(to, ",\"finish_reason\":");
    put_or_null(to, finish);
    base_buf_puts(to, "}]");
}

void srv_render_answer(struct base_buf *to, const struct srv_answer *answer,
                       const struct srv_part *part)
{
    bool chat = answer->endpoint == SRV_CHAT;
    put_head(to, answer, chat ? "chat.completion" : "text_completion");
    base_buf_puts(to, ",\"choices\":[{\"index\":0,");
    base_buf_puts(to, chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
    put_text(to, part->text, part->size);
    base_buf_puts(to, chat ? ",\"refusal\":null}" : "");
    put_logprobs(to, answer, part);
    put_finish(to, part->finish);
    put_usage(to, answer);
    base_buf_puts(to, "}\n");
}

void srv_render_chunk(struct base_buf *to, const struct srv_answer *answer,
                      const struct srv_part *part)
{
    bool chat = answer->endpoint == SRV_CHAT;
    put_head(to, answer, chat ? "chat.completion.chunk" : "text_completion");
    base_buf_puts(to, ",\"choices\":[{\"index\":0,");
    if (chat && part->first) {
        base_buf_puts(to, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}");
    } else if (chat && part->finish && part->size == 0) {
        base_buf_puts(to, "\"delta\":{}");
    } else {
        base_buf_puts(to, chat ? "\"delta\":{\"content\":" : "\"text\":");
        put_text(to, part->text, part->size);
        base_buf_puts(to, chat ? "}" : "");
    }
    put_logprobs(to, answer, part);
    put_finish(to, part->finish);
    base_buf_puts(to, answer->include_usage ? ",\"usage\":null}" : "}");
}

void srv_render_usage_chunk(struct base_buf *to, const struct srv_answer *answer)
{
    put_head(to, answer,
             answer->endpoint == SRV_CHAT ? "chat.completion.chunk" : "text_completion");
    base_buf_puts(to, ",\"choices\":[]");
    put_usage(to, answer);
    base_buf_puts(to, "}");
}

void srv_render_model(struct base_buf *to, const char *name, int64_t created, uint32_t tokens_max)
{
    base_buf_puts(to, "{\"id\":");
    put_string(to, name);
    base_buf_printf(to, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"expertier\","
                    "\"max_model_len\":%u}", (long long)created, tokens_max);
}

void srv_render_models(struct base_buf *to, const char *name, int64_t created, uint32_t tokens_max)
{
    base_buf_puts(to, "{\"object\":\"list\",\"data\":[");
    srv_render_model(to, name, created, tokens_max);
    base_buf_puts(to, "]}\n");
}
