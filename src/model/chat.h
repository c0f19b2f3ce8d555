/* Chat template: messages -> prompt ids.
 *
 * Three templates, told apart by the `chat_template` of tokenizer_config.json (the one named
 * "default" where it is a list), or the file chat_template.jinja:
 *   deepseek     BOS, system text, <｜User｜>..., <｜Assistant｜>..., end of sentence after answers
 *                (source: DeepSeek-V3's), where both role tokens are there. With what DeepSeek-R1's
 *                adds, if it is R1's: earlier answers without what they thought, and <think> and a
 *                newline for the new one to begin with.
 *   deepseek-v2  BOS, "User: ...", "Assistant: ..." (source: DeepSeek-V2's)
 *   plain        BOS and the messages' texts joined by newlines, for base models such as
 *                models/pebble and for templates that are none of these (a warning says so).
 */
#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H

#include <stdbool.h>
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
const char *model_chat_name(const struct model_chat *chat);
/* Whether that is what the model's own template gives; false if it is another one. */
bool model_chat_as_model(const struct model_chat *chat);

/* No limit to a prompt's tokens. */
#define MODEL_CHAT_ANY SIZE_MAX

/* malloc'ed ids, ready for the engine (BOS first). BASE_EFORMAT for an unknown role. Text so long
 * that it has more than `tokens_max` tokens for certain is not even looked at: -EMSGSIZE; other
 * prompts may come out longer. */
int model_chat_render(const struct model_chat *chat, const struct model_message *messages,
                      size_t count, size_t tokens_max, uint32_t **ids, size_t *id_count,
                      struct base_err *err);
/* The same for a raw prompt: BOS (when the tokenizer's config adds it, and the text does not begin
 * with it) and the text, in which control tokens are recognised if `with_special`. */
int model_chat_prompt(const struct model_chat *chat, const char *text, size_t size,
                      bool with_special, size_t tokens_max, uint32_t **ids, size_t *id_count,
                      struct base_err *err);

#endif
