#include "engine/perplexity.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct reading {
    struct eng_stack stack;
    const uint32_t *window; /* the tokens being read */
    uint32_t count;
    double nats; /* sum */
    uint64_t tokens;
    bool failed;
    char error[BASE_ERR_TEXT];
};

/* log of the sum of exp, in double and in order: the same for the same logits. */
static double log_sum(const float *logits, uint32_t vocab)
{
    double sum = 0, most = -INFINITY;
    for (uint32_t i = 0; i < vocab; i++) {
        if ((double)logits[i] > most) most = logits[i];
    }
    for (uint32_t i = 0; i < vocab; i++) {
        sum += exp((double)logits[i] - most);
    }
    return most + log(sum);
}

static void on_logits(void *context, uint64_t request, uint32_t position, const float *logits,
                      uint32_t vocab)
{
    struct reading *reading = context;
    (void)request;
    if (position + 1 >= reading->count) return;
    reading->nats += log_sum(logits, vocab) - (double)logits[reading->window[position + 1]];
    reading->tokens++;
}

static void on_piece(void *context, const struct eng_piece *piece)
{
    struct reading *reading = context;
    if (piece->finish != ENG_FAILED) return;
    reading->failed = true;
    snprintf(reading->error, sizeof reading->error, "%s", piece->error ? piece->error : "");
}

static int read_window(struct reading *reading, struct base_err *err)
{
    struct eng_request request = { .prompt = reading->window,
                                   .prompt_tokens = reading->count,
                                   .max_tokens = 1,
                                   .sampling = { .top_p = 1.0f },
                                   .ignore_eos = true,
                                   .prompt_logits = true,
                                   .on_piece = on_piece,
                                   .context = reading };
    int64_t id = eng_submit(reading->stack.engine, &request, err);
    if (id < 0) return (int)id;
    int alive = 1;
    while (alive > 0) {
        alive = eng_step(reading->stack.engine);
    }
    if (alive < 0) {
        return base_err_set(err, alive, "the engine stopped: %s", base_err_name(alive));
    }
    return reading->failed ? base_err_set(err, BASE_EQUARANTINE, "%s", reading->error) : 0;
}

/* `head` tokens begin every window; they are the first of `ids`. */
static int read_all(struct reading *reading, const uint32_t *ids, size_t count, size_t head,
                    uint32_t window, int (*progress)(void *, uint64_t, uint64_t), void *context,
                    struct base_err *err)
{
    uint32_t *tokens = malloc(window * sizeof *tokens);
    if (!tokens) return -ENOMEM;
    memcpy(tokens, ids, head * sizeof *tokens);
    reading->window = tokens;
    int rc = 0;
    for (size_t at = head; rc == 0 && at < count; at += window - head) {
        size_t part = count - at < window - head ? count - at : window - head;
        memcpy(tokens + head, ids + at, part * sizeof *tokens);
        reading->count = (uint32_t)(head + part);
        if (reading->count < 2) break;
        rc = read_window(reading, err);
        if (rc == 0 && progress && progress(context, at + part, count)) {
            rc = base_err_set(err, -ECANCELED, "stopped on request");
        }
    }
    free(tokens);
    return rc;
}

/* Ids of what begins every window, and of that and the text. */
struct text {
    uint32_t *head_ids, *ids;
    size_t head, count;
};

static int text_encode(struct text *t, const struct model_chat *chat, const char *text, size_t size,
                       uint32_t window, struct base_err *err)
{
    *t = (struct text){ 0 };
    int rc = model_chat_prompt(chat, "", 0, false, MODEL_CHAT_ANY, &t->head_ids, &t->head, err);
    if (rc == 0) rc = model_chat_prompt(chat, text, size, false, MODEL_CHAT_ANY, &t->ids, &t->count,
                                        err);
    if (rc < 0 || (t->count >= t->head + 2 && window >= t->head + 2)) return rc;
    return base_err_set(err, -EINVAL,
                        "a text of %zu tokens in windows of %u says nothing about a model",
                        t->count - t->head, window);
}

static void text_free(struct text *t)
{
    free(t->head_ids);
    free(t->ids);
}

int eng_perplexity_check(const char *model_dir, const char *text, size_t size,
                         struct base_err *err)
{
    struct model_tokenizer *tokenizer = NULL;
    struct model_chat *chat = NULL;
    struct text t = { 0 };
    int rc = model_tokenizer_load(&tokenizer, model_dir, err);
    if (rc == 0) rc = model_chat_load(&chat, model_dir, tokenizer, err);
    if (rc == 0) rc = text_encode(&t, chat, text, size, ENG_PERPLEXITY_WINDOW, err);
    text_free(&t);
    model_chat_free(chat);
    model_tokenizer_free(tokenizer);
    return rc;
}

static int read_text(struct reading *reading, const char *text, size_t size, uint32_t window,
                     int (*progress)(void *, uint64_t, uint64_t), void *context,
                     struct base_err *err)
{
    struct text t;
    uint32_t longest = eng_tokens_max(reading->stack.engine);
    if (window == 0) window = ENG_PERPLEXITY_WINDOW;
    if (window >= longest) window = longest - 1;
    int rc = text_encode(&t, reading->stack.chat, text, size, window, err);
    if (rc == 0) rc = read_all(reading, t.ids, t.count, t.head, window, progress, context, err);
    text_free(&t);
    return rc;
}

int eng_perplexity(struct eng_perplexity *out, const struct eng_stack_args *args, const char *text,
                   size_t size, uint32_t window,
                   int (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                   struct base_err *err)
{
    struct reading *reading = calloc(1, sizeof *reading);
    if (!reading) return -ENOMEM;
    struct eng_stack_args own = *args;
    own.hooks = (struct eng_hooks){ .logits = on_logits, .context = reading };
    own.trace_path = NULL;
    int rc = eng_stack_open(&reading->stack, &own, err);
    if (rc == 0) rc = read_text(reading, text, size, window, progress, context, err);
    if (rc == 0) {
        out->tokens = reading->tokens;
        out->nats = reading->nats / (double)reading->tokens;
        out->perplexity = exp(out->nats);
    }
    eng_stack_close(&reading->stack);
    free(reading);
    return rc;
}
