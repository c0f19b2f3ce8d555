/* Chat template: messages -> prompt ids.
 *
 * Two templates, chosen from tokenizer_config.json: DeepSeek's (BOS, system text, <｜User｜>...,
 * <｜Assistant｜>..., end of sentence after answers; source: the chat_template shipped with
 * DeepSeek-V3) when its `chat_template` and both role tokens are there, else `plain`: BOS and the
 * messages' texts joined by newlines, for base models such as models/pebble.
 */
#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/tokenizer.h"

struct model_chat;

struct model_message {
    const char *role;           /* "system", "user", "assistant", "tool" */
    const char *text;
    size_t size;
};

int model_chat_load(struct model_chat **out, const char *dir,
                    const struct model_tokenizer *tokenizer, struct base_err *err);
void model_chat_free(struct model_chat *chat);
const char *model_chat_name(const struct model_chat *chat);     /* "deepseek" or "plain" */

/* malloc'ed ids, ready for the engine (BOS first). BASE_EFORMAT for an unknown role. */
int model_chat_render(const struct model_chat *chat, const struct model_message *messages,
                      size_t count, uint32_t **ids, size_t *id_count, struct base_err *err);
/* The same for a raw prompt: BOS (when the tokenizer's config adds it) and the text. */
int model_chat_prompt(const struct model_chat *chat, const char *text, size_t size, uint32_t **ids,
                      size_t *id_count, struct base_err *err);

#endif
