/* Replies of the API as JSON. Appending only; errors are sticky in the buffer. Any thread. */
#ifndef SERVER_RENDER_H
#define SERVER_RENDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "server/openai.h"

/* One token with its log probability. */
struct srv_logprob {
    uint32_t token;
    float logprob;
    uint64_t text_offset;       /* characters of answer before it */
};

/* What every reply to one request repeats. */
struct srv_answer {
    enum srv_endpoint endpoint;
    const char *id;
    const char *model;
    int64_t created;            /* Unix seconds */
    uint64_t prompt_tokens;
    uint64_t cached_tokens;     /* of those: not computed, an earlier request had them */
    uint64_t answer_tokens;
    bool include_usage;         /* streams: every chunk has a "usage" key */
    const struct model_tokenizer *tokenizer;    /* spells the tokens of logprobs */
};

/* A piece of the answer's text. `finish` is NULL while more comes. */
struct srv_part {
    const char *text;
    size_t size;
    const char *finish;         /* "stop", "length" */
    const struct srv_logprob *logprobs;     /* NULL = not asked for */
    size_t logprob_count;
    bool first;                 /* chat streams begin with the role */
};

void srv_render_error(struct base_buf *to, const struct srv_fault *fault);
void srv_render_answer(struct base_buf *to, const struct srv_answer *answer,
                       const struct srv_part *part);
void srv_render_chunk(struct base_buf *to, const struct srv_answer *answer,
                      const struct srv_part *part);
/* Last chunk of a stream with stream_options.include_usage. */
void srv_render_usage_chunk(struct base_buf *to, const struct srv_answer *answer);
void srv_render_models(struct base_buf *to, const char *name, int64_t created,
                       uint32_t tokens_max);
void srv_render_model(struct base_buf *to, const char *name, int64_t created,
                      uint32_t tokens_max);

#endif
