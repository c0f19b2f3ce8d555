#include "tests/support/run_stack.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static struct comm *run_comm;
static bool run_blind;

void run_ranks(struct comm *comm)
{
    run_comm = comm;
}

void run_without_logits(void)
{
    run_blind = true;
}

/* All ranks have the same folder: rank 0's. */
/* Under TMPDIR: who starts processes that are to die sets it, and removes what they left. */
static void make_folder(struct run *run)
{
    const char *under = getenv("TMPDIR");
    int length = snprintf(run->folder, sizeof run->folder, "%s/expertier-run-XXXXXX",
                          under ? under : "/tmp");
    ck_assert_int_lt(length, (int)sizeof run->folder);
    if (!run_comm || run_comm->rank == 0) ck_assert_ptr_nonnull(mkdtemp(run->folder));
    if (run_comm) comm_broadcast(run_comm, run->folder, sizeof run->folder, 0);
}

static struct run_answer *answer_of(struct run *run, uint64_t id)
{
    for (uint32_t i = 0; i < run->answer_count; i++) {
        if (run->answers[i].id == id) return &run->answers[i];
    }
    ck_abort_msg("request %llu is not one of the test's", (unsigned long long)id);
    return NULL;
}

static uint64_t mix(uint64_t hash, uint32_t word)
{
    hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ (hash >> 29);
}

/* Whether the row was there before, with these bits: a sequence that was sent back is computed
 * again. Of other bits there is another hash. */
static bool row_again(struct run_answer *answer, uint32_t position, uint64_t row)
{
    if (position < answer->hashed) {
        answer->rows_again++;
        return answer->row_hashes[position] == row;
    }
    answer->row_hashes = realloc(answer->row_hashes, (position + 1) * sizeof *answer->row_hashes);
    ck_assert_ptr_nonnull(answer->row_hashes);
    /* Without prompt_logits the first row is not that of position 0. */
    memset(answer->row_hashes + answer->hashed, 0,
           (position - answer->hashed) * sizeof *answer->row_hashes);
    answer->row_hashes[position] = row;
    answer->hashed = position + 1;
    return false;
}

static void on_logits(void *context, uint64_t request, uint32_t position, const float *logits,
                      uint32_t vocab)
{
    struct run *run = context;
    struct run_answer *answer = answer_of(run, request);
    uint64_t row = mix(1, position);
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        row = mix(row, bits);
    }
    if (!row_again(answer, position, row))
        answer->rows_hash = mix(mix(answer->rows_hash, (uint32_t)row), (uint32_t)(row >> 32));
    if (!run->keep_rows) return;
    if (position >= answer->row_positions) {
        answer->rows = realloc(answer->rows, (size_t)(position + 1) * vocab * sizeof *answer->rows);
        ck_assert_ptr_nonnull(answer->rows);
        answer->row_positions = position + 1;
    }
    memcpy(answer->rows + (size_t)position * vocab, logits, vocab * sizeof *logits);
}

static void on_step_end(void *context, const struct eng_step_record *record)
{
    struct run *run = context;
    if (run->step_end) run->step_end(run, record);
}

static void on_piece(void *context, const struct eng_piece *piece)
{
    struct run_answer *answer = context;
    answer->pieces++;
    ck_assert_msg(answer->finish == ENG_RUNNING, "a piece came after the end");
    if (piece->token >= 0) {
        answer->tokens =
            realloc(answer->tokens, (answer->token_count + 1) * sizeof *answer->tokens);
        answer->tokens[answer->token_count++] = (uint32_t)piece->token;
    }
    answer->text = realloc(answer->text, answer->text_size + piece->size + 1);
    memcpy(answer->text + answer->text_size, piece->text, piece->size);
    answer->text_size += piece->size;
    answer->text[answer->text_size] = '\0';
    answer->finish = piece->finish;
    answer->error_code = piece->error_code;
    if (piece->finish == ENG_FAILED) {
        snprintf(answer->error, sizeof answer->error, "%s", piece->error);
    }
    if (answer->cancel_after == answer->pieces) eng_cancel(answer->run->stack.engine, answer->id);
}

int run_try_open(struct run *run, const char *model_dir, const char *const *settings,
                 struct base_err *err)
{
    static struct eng_stack_config config;
    struct base_option_group groups[ENG_STACK_GROUPS];
    char pair[300];
    *run = (struct run){ 0 };
    base_log_level_set(BASE_LOG_ERROR);
    make_folder(run);
    size_t count = eng_stack_groups(&config, groups);
    base_option_defaults(groups, count);
    snprintf(pair, sizeof pair, "tiers.nvme.index=%s/experts.index", run->folder);
    ck_assert_int_eq(base_option_set_pair(groups, count, pair, err), 0);
    for (; settings && *settings; settings++) {
        int rc = base_option_set_pair(groups, count, *settings, err);
        ck_assert_msg(rc == 0, "%s", err->text);
    }
    struct eng_stack_args args = { .model_dir = model_dir, .config = &config, .quiet = true,
                                   .comm = run_comm,
                                   .hooks = { .step_end = on_step_end,
                                              .logits = run_blind ? NULL : on_logits,
                                              .context = run } };
    return eng_stack_open(&run->stack, &args, err);
}

void run_open(struct run *run, const char *model_dir, const char *const *settings)
{
    struct base_err err = { 0 };
    int rc = run_try_open(run, model_dir, settings, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

void run_close(struct run *run)
{
    char path[300];
    eng_stack_close(&run->stack);
    for (uint32_t i = 0; i < run->answer_count; i++) {
        free(run->answers[i].tokens);
        free(run->answers[i].text);
        free(run->answers[i].rows);
        free(run->answers[i].row_hashes);
    }
    if (run_comm && run_comm->rank > 0) return;
    snprintf(path, sizeof path, "%s/experts.index", run->folder);
    unlink(path);
    rmdir(run->folder);
}

struct run_answer *run_submit(struct run *run, const struct eng_request *request)
{
    struct base_err err = { 0 };
    struct eng_request copy = *request;
    ck_assert_uint_lt(run->answer_count, RUN_ANSWERS_MAX);
    struct run_answer *answer = &run->answers[run->answer_count];
    *answer = (struct run_answer){ .run = run, .rows_hash = 1 };
    copy.on_piece = on_piece;
    copy.context = answer;
    int64_t id = eng_submit(run->stack.engine, &copy, &err);
    ck_assert_msg(id > 0, "%s", err.text);
    answer->id = (uint64_t)id;
    run->answer_count++;
    return answer;
}

struct run_answer *run_greedy(struct run *run, const uint32_t *prompt, uint32_t prompt_tokens,
                              uint32_t max_tokens)
{
    struct eng_request request = { .prompt = prompt, .prompt_tokens = prompt_tokens,
                                   .max_tokens = max_tokens, .sampling = { .top_p = 1.0f },
                                   .ignore_eos = true, .prompt_logits = true };
    return run_submit(run, &request);
}

void run_finish(struct run *run)
{
    int alive;
    do {
        alive = eng_step(run->stack.engine);
        ck_assert_int_ge(alive, 0);
    } while (alive > 0);
}

uint32_t *run_encode(struct run *run, const char *text, uint32_t *count)
{
    struct base_err err = { 0 };
    uint32_t *ids;
    size_t size;
    int rc = model_chat_prompt(run->stack.chat, text, strlen(text), false, MODEL_CHAT_ANY,
                               &ids, &size, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    *count = (uint32_t)size;
    return ids;
}

const char *run_pebble(void)
{
    static char path[3000];
    const char *source = getenv("EXPERTIER_SOURCE");
    snprintf(path, sizeof path, "%s/models/pebble", source ? source : ".");
    return path;
}
