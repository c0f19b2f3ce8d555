/* Runs the whole stack for a test and remembers what it said: tokens, text, every logits row.
 *
 * Failures end the test with the sentence that the stack gave. Indexes are made in a folder of
 * their own, so that model folders stay as they are.
 */
#ifndef TESTS_SUPPORT_RUN_STACK_H
#define TESTS_SUPPORT_RUN_STACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/stack.h"

enum { RUN_ANSWERS_MAX = 64 };

struct run_answer {
    struct run *run;
    uint64_t id;
    uint32_t *tokens;
    uint32_t token_count;
    char *text;
    size_t text_size;
    enum eng_finish finish;
    int error_code;
    char error[BASE_ERR_TEXT];
    uint32_t pieces;
    float *rows;                /* logits by position when run->keep_rows; [positions][vocab] */
    uint32_t row_positions;     /* highest position seen + 1 */
    uint64_t rows_hash;         /* over position and bits of every row, in order; again only if
                                 * the bits are others */
    uint64_t *row_hashes;       /* [position] of those up to `hashed` */
    uint32_t hashed, rows_again;        /* rows_again: computed again */
    uint32_t cancel_after;      /* pieces, from inside the callback; 0 = never */
};

struct run {
    struct eng_stack stack;
    char folder[200];
    bool keep_rows;
    void (*step_end)(struct run *run, const struct eng_step_record *record);
    void *step_context;
    struct run_answer answers[RUN_ANSWERS_MAX];
    uint32_t answer_count;
};

/* Stacks that are opened from now on are those of a rank; NULL = one rank. */
void run_ranks(struct comm *comm);
/* Those that are opened from now on are not asked for logits: answers have no rows. */
void run_without_logits(void);

/* `settings` are "key=value" texts, NULL at the end; NULL = defaults. */
void run_open(struct run *run, const char *model_dir, const char *const *settings);
/* The same, but an expected failure comes back as its code. */
int run_try_open(struct run *run, const char *model_dir, const char *const *settings,
                 struct base_err *err);
void run_close(struct run *run);

/* Submits; greedy unless `request` says otherwise. The prompt is copied. */
struct run_answer *run_submit(struct run *run, const struct eng_request *request);
struct run_answer *run_greedy(struct run *run, const uint32_t *prompt, uint32_t prompt_tokens,
                              uint32_t max_tokens);
/* Steps until nothing is alive. */
void run_finish(struct run *run);

/* Ids of a text, with BOS. Caller frees. */
uint32_t *run_encode(struct run *run, const char *text, uint32_t *count);

/* models/pebble of the source tree. */
const char *run_pebble(void);

#endif
