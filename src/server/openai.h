/* Request bodies of OpenAI's API -> a job for the engine, or one clear sentence.
 *
 * Three kinds of parameters: those that are understood; those that clients send by habit and that
 * cannot change the text (user, metadata ...), which are ignored; and everything else, which is
 * refused unless it is given its neutral value (n: 1, presence_penalty: 0), because an answer that
 * silently ignores what was asked is worse than none.
 *
 * Parsing needs no model; srv_ask_tokenize turns the prompt into ids. Any thread; allocates.
 */
#ifndef SERVER_OPENAI_H
#define SERVER_OPENAI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/engine.h"
#include "model/chat.h"
#include "model/tokenizer.h"
#include "port/json.h"

enum { SRV_STOPS_MAX = 16, SRV_STOP_BYTES_MAX = 256, SRV_MESSAGES_MAX = 4096 };

/* An error in the API's shape. `type`, `code` and `param` are NULL or empty where there is none. */
struct srv_fault {
    int status;                 /* HTTP status; 0 = no fault */
    const char *type;           /* "invalid_request_error" */
    const char *code;           /* "context_length_exceeded" */
    char param[64];
    char message[BASE_ERR_TEXT + 160];
};

/* Sets all parts but keeps the first fault; returns -EINVAL. */
int srv_fault_set(struct srv_fault *fault, int status, const char *type, const char *code,
                  const char *param, const char *format, ...) BASE_PRINTF(6, 7);

enum srv_endpoint { SRV_COMPLETION, SRV_CHAT };

struct srv_ask {
    enum srv_endpoint endpoint;
    struct port_json *body;             /* owns every text below, until srv_ask_tokenize */
    const char *model;                  /* NULL = not given */
    struct model_message *messages;     /* chat */
    char **message_texts;               /* joined content parts, or NULL */
    size_t message_count;
    const char *prompt;                 /* completion: text, or NULL when ids were given */
    size_t prompt_bytes;
    uint32_t *ids;                      /* prompt as ids: given, or made by srv_ask_tokenize */
    size_t id_count;
    uint64_t max_tokens;                /* 0 = not given */
    struct eng_sampling sampling;
    bool seeded;
    const char *stops[SRV_STOPS_MAX];
    char *stop_texts;                   /* theirs, from srv_ask_tokenize on */
    uint32_t stop_count;
    bool stream;
    bool include_usage;
    bool logprobs;
    bool ignore_eos;
};

/* The most values of a body, each of which takes up to SRV_VALUE_BYTES while it is read. */
enum { SRV_VALUES_MAX = 262144, SRV_VALUE_BYTES = 180 };
/* As many as a prompt of `tokens_max` tokens can have, SRV_VALUES_MAX at most. */
size_t srv_values_max(uint32_t tokens_max);

/* 0, or -EINVAL with the fault; -ENOMEM counts as a fault too. The ask needs srv_ask_fini either
 * way. */
int srv_ask_parse(struct srv_ask *ask, enum srv_endpoint endpoint, const char *body, size_t size,
                  size_t values_max, struct srv_fault *fault);
void srv_ask_fini(struct srv_ask *ask);

/* What a prompt must fit. */
struct srv_model {
    const char *name;
    const struct model_tokenizer *tokenizer;
    const struct model_chat *chat;
    uint32_t vocab;
    uint32_t tokens_max;        /* prompt and answer together */
};

/* Checks the model's name, makes the ids, fills max_tokens with what is left when it was not given
 * (completions: 16, as the API says), and refuses what does not fit. Then the body is freed with
 * the texts in it: ids and stop strings stay. */
int srv_ask_tokenize(struct srv_ask *ask, const struct srv_model *model, struct srv_fault *fault);

#endif
