/* One request on its way: its tokens, its KV blocks, and the text that is not told yet.
 *
 * States: waiting -> prompt -> generating -> over. A preempted sequence goes back to waiting with
 * all its tokens; computing them again gives the same bits.
 *
 * Text is held back while it may be the beginning of a stop string, and while a character is not
 * whole. Everything is allocated at create. Engine thread only.
 */
#ifndef ENGINE_SEQ_H
#define ENGINE_SEQ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/kv.h"
#include "model/tokenizer.h"

enum eng_seq_state { ENG_SEQ_WAITING, ENG_SEQ_PROMPT, ENG_SEQ_GENERATING, ENG_SEQ_OVER };

enum { ENG_STOPS_MAX = 16, ENG_STOP_BYTES_MAX = 1024 };

struct eng_seq {
    struct eng_seq *next;       /* in the scheduler's list */
    uint64_t id;
    enum eng_seq_state state;
    uint32_t *tokens;           /* the prompt, then what was generated */
    uint32_t token_count, prompt_count;
    uint32_t token_limit;       /* the answer ends when token_count reaches it */
    uint32_t computed;          /* tokens whose KV is in the cache */
    uint32_t *blocks;
    uint32_t block_count;
    uint32_t known;             /* leading blocks that are known by their text: held, not owned */
    uint32_t reused;            /* tokens that others had computed when it was let in */
    bool let_in;                /* at least once */
    struct eng_sampling sampling;
    struct base_rng rng;
    bool ignore_eos;
    bool logprobs, prompt_logits;
    char *stops[ENG_STOPS_MAX];
    uint32_t stop_sizes[ENG_STOPS_MAX];
    uint32_t stop_count;
    struct model_detokenizer detokenizer;
    char *text;                 /* held back */
    size_t text_size, text_capacity;
    struct base_err error;      /* code < 0: failed in this step */
    void (*on_piece)(void *context, const struct eng_piece *piece);
    void *context;
};

struct eng_seq_limits {
    uint32_t tokens_max;        /* of one sequence */
    uint32_t blocks_max;
    uint32_t token_bytes_max;   /* longest text of one token */
};

/* `request` must have been checked. NULL without memory. */
struct eng_seq *eng_seq_create(const struct eng_request *request, uint64_t id,
                               const struct model_tokenizer *tokenizer,
                               const struct eng_seq_limits *limits);
void eng_seq_destroy(struct eng_seq *seq);

/* Makes sure there are blocks for the first `tokens` tokens; false when the pool is empty (what was
 * taken stays taken). */
bool eng_seq_reserve(struct eng_seq *seq, struct eng_kv *kv, uint32_t tokens);
void eng_seq_drop_blocks(struct eng_seq *seq, struct eng_kv *kv);
/* Where the cache shares. take_known, of a sequence without blocks: holds those known blocks that
 * its text begins with; their tokens count as computed. At least its last token does not, for
 * whose logits it is there. make_known: so do the blocks that were filled since; one that somebody
 * else filled meanwhile is given back for theirs. */
void eng_seq_take_known(struct eng_seq *seq, struct eng_kv *kv);
void eng_seq_make_known(struct eng_seq *seq, struct eng_kv *kv);

/* Adds a generated token, and tells the client what can be told. Returns why the answer ended, or
 * ENG_RUNNING. `eos` says that the token ends answers. */
enum eng_finish eng_seq_push(struct eng_seq *seq, uint32_t token, float logprob, bool eos);
/* Tells the client about the failure in seq->error. */
void eng_seq_fail(struct eng_seq *seq);

#endif
