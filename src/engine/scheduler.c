#include "engine/scheduler.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"

uint32_t eng_scheduler_rows_max(const struct eng_scheduler_config *config)
{
    uint32_t rows = config->seqs_max + config->chunk_tokens_max;
    return rows < config->batch_tokens_max ? rows : config->batch_tokens_max;
}

int eng_scheduler_init(struct eng_scheduler *scheduler, const struct eng_scheduler_config *config,
                       struct eng_kv *kv)
{
    MUST(config->batch_tokens_max > config->seqs_max && config->chunk_tokens_max > 0);
    *scheduler = (struct eng_scheduler){ .config = *config, .kv = kv };
    struct eng_batch *batch = &scheduler->batch;
    uint32_t rows = eng_scheduler_rows_max(config);
    batch->members = malloc((config->seqs_max + 1) * sizeof *batch->members);
    batch->row_member = malloc(rows * sizeof *batch->row_member);
    batch->tokens = malloc(rows * sizeof *batch->tokens);
    batch->positions = malloc(rows * sizeof *batch->positions);
    batch->seqs = malloc(rows * sizeof *batch->seqs);
    batch->phases = malloc(rows * sizeof *batch->phases);
    bool whole = batch->members && batch->row_member && batch->tokens && batch->positions &&
                 batch->seqs && batch->phases;
    return whole ? 0 : -ENOMEM;
}

static void destroy_list(struct eng_seq *seq)
{
    while (seq) {
        struct eng_seq *next = seq->next;
        eng_seq_destroy(seq);
        seq = next;
    }
}

void eng_scheduler_fini(struct eng_scheduler *scheduler)
{
    struct eng_batch *batch = &scheduler->batch;
    destroy_list(scheduler->waiting);
    destroy_list(scheduler->running);
    free(batch->members);
    free(batch->row_member);
    free(batch->tokens);
    free(batch->positions);
    free(batch->seqs);
    free(batch->phases);
    *scheduler = (struct eng_scheduler){ 0 };
}

static void append(struct eng_seq **list, struct eng_seq *seq)
{
    while (*list) {
        list = &(*list)->next;
    }
    seq->next = NULL;
    *list = seq;
}

void eng_scheduler_add(struct eng_scheduler *scheduler, struct eng_seq *seq)
{
    seq->state = ENG_SEQ_WAITING;
    append(&scheduler->waiting, seq);
    scheduler->waiting_count++;
}

static struct eng_seq *find_in(struct eng_seq *seq, uint64_t id)
{
    while (seq && seq->id != id) {
        seq = seq->next;
    }
    return seq;
}

struct eng_seq *eng_scheduler_find(struct eng_scheduler *scheduler, uint64_t id)
{
    struct eng_seq *seq = find_in(scheduler->running, id);
    return seq ? seq : find_in(scheduler->waiting, id);
}

static void sweep_list(struct eng_scheduler *scheduler, struct eng_seq **list, uint32_t *count)
{
    while (*list) {
        struct eng_seq *seq = *list;
        if (seq->state != ENG_SEQ_OVER) {
            list = &seq->next;
            continue;
        }
        *list = seq->next;
        eng_seq_drop_blocks(seq, scheduler->kv);
        eng_seq_destroy(seq);
        (*count)--;
    }
}

void eng_scheduler_sweep(struct eng_scheduler *scheduler)
{
    sweep_list(scheduler, &scheduler->waiting, &scheduler->waiting_count);
    sweep_list(scheduler, &scheduler->running, &scheduler->running_count);
}

/* Lets the sequence in that has waited longest; NULL if there is none, or no room for it. */
static struct eng_seq *admit(struct eng_scheduler *scheduler)
{
    struct eng_seq *seq = scheduler->waiting;
    if (!seq || scheduler->running_count >= scheduler->config.seqs_max) return NULL;
    /* Held first: what is idle and known to begin this text is no room for the rest of it. */
    eng_seq_take_known(seq, scheduler->kv);
    uint32_t need = eng_kv_blocks_for(scheduler->kv, seq->token_count) - seq->block_count;
    uint32_t spare = scheduler->running ? scheduler->config.watermark_blocks : 0;
    if (eng_kv_room(scheduler->kv) < (uint64_t)need + spare) {
        eng_seq_drop_blocks(seq, scheduler->kv);
        return NULL;
    }
    if (!seq->let_in) seq->reused = seq->computed;
    seq->let_in = true;
    scheduler->reused += seq->computed;
    scheduler->waiting = seq->next;
    scheduler->waiting_count--;
    append(&scheduler->running, seq);
    scheduler->running_count++;
    seq->state = ENG_SEQ_PROMPT;
    /* Taken now, so that what was promised to this prompt does not go to others meanwhile. */
    bool reserved = eng_seq_reserve(seq, scheduler->kv, seq->token_count);
    MUST(reserved);
    return seq;
}

/* Sends the sequence that was let in last back to the head of the queue. */
static void preempt_last(struct eng_scheduler *scheduler)
{
    struct eng_seq **list = &scheduler->running;
    MUST(*list != NULL);
    while ((*list)->next) {
        list = &(*list)->next;
    }
    struct eng_seq *seq = *list;
    *list = NULL;
    scheduler->running_count--;
    eng_seq_drop_blocks(seq, scheduler->kv);
    seq->state = ENG_SEQ_WAITING;
    seq->next = scheduler->waiting;
    scheduler->waiting = seq;
    scheduler->waiting_count++;
    scheduler->preempted++;
}

static void reserve_next_tokens(struct eng_scheduler *scheduler)
{
    struct eng_seq *seq = scheduler->running;
    while (seq) {
        if (seq->state != ENG_SEQ_GENERATING ||
            eng_seq_reserve(seq, scheduler->kv, seq->token_count)) {
            seq = seq->next;
            continue;
        }
        /* A sequence that fits the cache alone was checked at submit, so this comes to an end. */
        preempt_last(scheduler);
        if (seq->state == ENG_SEQ_WAITING) break;
    }
}

static void add_rows(struct eng_batch *batch, struct eng_seq *seq, uint32_t count,
                     enum tier_phase phase)
{
    uint32_t member = batch->member_count++;
    batch->members[member] = seq;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t row = batch->count++;
        batch->row_member[row] = member;
        batch->tokens[row] = seq->tokens[seq->computed + i];
        batch->positions[row] = seq->computed + i;
        batch->seqs[row] = seq->id;
        batch->phases[row] = (uint8_t)phase;
    }
}

/* As much of a prompt as there is room for in the chunk; the room that is left. */
static uint32_t add_prompt(struct eng_batch *batch, struct eng_seq *seq, uint32_t room)
{
    uint32_t left = seq->token_count - seq->computed;
    uint32_t count = left < room ? left : room;
    add_rows(batch, seq, count, TIER_PREFILL);
    /* What it generated before it was sent back stands behind all prompts. */
    return seq->token_count > seq->prompt_count ? 0 : room - count;
}

const struct eng_batch *eng_scheduler_next(struct eng_scheduler *scheduler)
{
    const struct eng_scheduler_config *config = &scheduler->config;
    struct eng_batch *batch = &scheduler->batch;
    batch->count = batch->decode_count = batch->member_count = 0;
    reserve_next_tokens(scheduler);
    for (struct eng_seq *seq = scheduler->running; seq; seq = seq->next) {
        if (seq->state == ENG_SEQ_GENERATING) add_rows(batch, seq, 1, TIER_DECODE);
    }
    batch->decode_count = batch->count;
    uint32_t room = config->batch_tokens_max - batch->count;
    if (room > config->chunk_tokens_max) room = config->chunk_tokens_max;
    for (struct eng_seq *seq = scheduler->running; seq && room > 0; seq = seq->next) {
        if (seq->state == ENG_SEQ_PROMPT) room = add_prompt(batch, seq, room);
    }
    while (room > 0) {
        struct eng_seq *seq = admit(scheduler);
        if (!seq) break;
        room = add_prompt(batch, seq, room);
    }
    return batch;
}
