#include "engine/seq.h"

#include <stdlib.h>
#include <string.h>

#include "base/must.h"

static bool copy_stops(struct eng_seq *seq, const struct eng_request *request, size_t *longest)
{
    *longest = 0;
    for (uint32_t i = 0; i < request->stop_count; i++) {
        size_t size = strlen(request->stops[i]);
        MUST(size > 0 && size <= ENG_STOP_BYTES_MAX);
        seq->stops[i] = strdup(request->stops[i]);
        if (!seq->stops[i]) return false;
        seq->stop_sizes[i] = (uint32_t)size;
        seq->stop_count++;
        if (size > *longest) *longest = size;
    }
    return true;
}

struct eng_seq *eng_seq_create(const struct eng_request *request, uint64_t id,
                               const struct model_tokenizer *tokenizer,
                               const struct eng_seq_limits *limits)
{
    struct eng_seq *seq = calloc(1, sizeof *seq);
    size_t longest;
    if (!seq || !copy_stops(seq, request, &longest)) goto fail;
    uint64_t limit = (uint64_t)request->prompt_tokens + request->max_tokens;
    seq->token_limit = limit < limits->tokens_max ? (uint32_t)limit : limits->tokens_max;
    seq->id = id;
    seq->tokens = malloc(seq->token_limit * sizeof *seq->tokens);
    seq->blocks = malloc(limits->blocks_max * sizeof *seq->blocks);
    /* Room for what a stop string may hold back, one more token, and the detokenizer's demand. */
    seq->text_capacity = longest + 3 * (size_t)limits->token_bytes_max + 64;
    seq->text = malloc(seq->text_capacity);
    if (!seq->tokens || !seq->blocks || !seq->text) goto fail;
    memcpy(seq->tokens, request->prompt, request->prompt_tokens * sizeof *seq->tokens);
    seq->token_count = seq->prompt_count = request->prompt_tokens;
    seq->sampling = request->sampling;
    base_rng_init(&seq->rng, request->sampling.seed);
    seq->ignore_eos = request->ignore_eos;
    seq->logprobs = request->logprobs;
    seq->prompt_logits = request->prompt_logits;
    seq->on_piece = request->on_piece;
    seq->context = request->context;
    model_detokenizer_init(&seq->detokenizer, tokenizer);
    return seq;
fail:
    eng_seq_destroy(seq);
    return NULL;
}

void eng_seq_destroy(struct eng_seq *seq)
{
    if (!seq) return;
    for (uint32_t i = 0; i < ENG_STOPS_MAX; i++) {
        free(seq->stops[i]);
    }
    free(seq->tokens);
    free(seq->blocks);
    free(seq->text);
    free(seq);
}

bool eng_seq_reserve(struct eng_seq *seq, struct eng_kv *kv, uint32_t tokens)
{
    uint32_t want = eng_kv_blocks_for(kv, tokens);
    while (seq->block_count < want) {
        int64_t id = eng_kv_take(kv);
        if (id < 0) return false;
        seq->blocks[seq->block_count++] = (uint32_t)id;
    }
    return true;
}

void eng_seq_drop_blocks(struct eng_seq *seq, struct eng_kv *kv)
{
    eng_kv_give(kv, seq->blocks + seq->known, seq->block_count - seq->known);
    while (seq->known > 0) {
        eng_prefix_release(&kv->prefix, seq->blocks[--seq->known]);     /* the last first */
    }
    seq->block_count = 0;
    seq->computed = 0;
}

/* The known block before the next one to become known. */
static uint32_t last_known(const struct eng_seq *seq)
{
    return seq->known > 0 ? seq->blocks[seq->known - 1] : ENG_PREFIX_NONE;
}

/* Whether its next block, of so many tokens, may be known. */
static bool may_be_known(const struct eng_seq *seq, const struct eng_kv *kv, uint32_t tokens)
{
    const uint32_t most = kv->prompts_only && seq->prompt_count < tokens ? seq->prompt_count
                                                                         : tokens;
    return kv->shares && (seq->known + 1) * kv->block_tokens <= most;
}

void eng_seq_take_known(struct eng_seq *seq, struct eng_kv *kv)
{
    MUST(seq->block_count == 0);
    /* Whoever wants the logits of the whole prompt has it computed. */
    if (seq->prompt_logits) return;
    while (may_be_known(seq, kv, seq->token_count - 1)) {
        uint32_t id = eng_prefix_find(&kv->prefix, last_known(seq),
                                      seq->tokens + seq->known * kv->block_tokens);
        if (id == ENG_PREFIX_NONE) break;
        eng_prefix_hold(&kv->prefix, id);
        seq->blocks[seq->known++] = id;
    }
    seq->block_count = seq->known;
    seq->computed = seq->known * kv->block_tokens;
}

void eng_seq_make_known(struct eng_seq *seq, struct eng_kv *kv)
{
    while (may_be_known(seq, kv, seq->computed)) {
        const uint32_t *tokens = seq->tokens + seq->known * kv->block_tokens;
        uint32_t *own = &seq->blocks[seq->known], before = last_known(seq);
        uint32_t theirs = eng_prefix_find(&kv->prefix, before, tokens);
        if (theirs == ENG_PREFIX_NONE) {
            eng_prefix_add(&kv->prefix, *own, before, tokens);
        } else {
            eng_prefix_hold(&kv->prefix, theirs);
            eng_kv_give(kv, own, 1);
            *own = theirs;
        }
        seq->known++;
    }
}

/* Where the earliest stop string begins in the held text, or its size when there is none. */
static size_t find_stop(const struct eng_seq *seq)
{
    for (size_t at = 0; at < seq->text_size; at++) {
        for (uint32_t i = 0; i < seq->stop_count; i++) {
            if (seq->stop_sizes[i] <= seq->text_size - at &&
                memcmp(seq->text + at, seq->stops[i], seq->stop_sizes[i]) == 0) {
                return at;
            }
        }
    }
    return seq->text_size;
}

/* How much of the held text can be no part of a stop string. */
static size_t safe_size(const struct eng_seq *seq)
{
    for (size_t at = 0; at < seq->text_size; at++) {
        size_t rest = seq->text_size - at;
        for (uint32_t i = 0; i < seq->stop_count; i++) {
            if (rest < seq->stop_sizes[i] && memcmp(seq->text + at, seq->stops[i], rest) == 0) {
                return at;
            }
        }
    }
    return seq->text_size;
}

static void tell(struct eng_seq *seq, int64_t token, size_t size, float logprob,
                 enum eng_finish finish)
{
    struct eng_piece piece = { .request = seq->id, .token = token, .text = seq->text, .size = size,
                               .logprob = logprob, .finish = finish, .reused = seq->reused };
    if (seq->on_piece) seq->on_piece(seq->context, &piece);
    memmove(seq->text, seq->text + size, seq->text_size - size);
    seq->text_size -= size;
}

enum eng_finish eng_seq_push(struct eng_seq *seq, uint32_t token, float logprob, bool eos)
{
    MUST(seq->token_count < seq->token_limit);
    enum eng_finish finish = ENG_RUNNING;
    seq->tokens[seq->token_count++] = token;
    if (eos && !seq->ignore_eos) {
        finish = ENG_STOP;
    } else {
        bool special = false;
        size_t bytes = 0;
        model_tokenizer_bytes(seq->detokenizer.tokenizer, token, &bytes, &special);
        if (!special && bytes > 0) {
            seq->text_size += model_detokenizer_add(&seq->detokenizer, token,
                                                    seq->text + seq->text_size,
                                                    seq->text_capacity - seq->text_size);
        }
        if (seq->token_count == seq->token_limit) finish = ENG_LENGTH;
    }
    if (finish != ENG_RUNNING) {
        seq->text_size += model_detokenizer_finish(&seq->detokenizer, seq->text + seq->text_size,
                                                   seq->text_capacity - seq->text_size);
    }
    size_t stop = find_stop(seq);
    if (stop < seq->text_size) {
        finish = ENG_STOP;
        seq->text_size = stop;
    }
    size_t size = finish == ENG_RUNNING ? safe_size(seq) : seq->text_size;
    tell(seq, token, size, logprob, finish);
    return finish;
}

void eng_seq_fail(struct eng_seq *seq)
{
    struct eng_piece piece = { .request = seq->id, .token = -1, .text = "", .finish = ENG_FAILED,
                               .error = seq->error.text, .error_code = seq->error.code };
    if (seq->on_piece) seq->on_piece(seq->context, &piece);
}
