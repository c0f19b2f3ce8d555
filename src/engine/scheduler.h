/* Continuous batching: which sequences and which tokens one step computes.
 *
 * First come, first served. Every generating sequence gets one token a step; beside them prompts
 * share a chunk, each after the one before it is whole: experts that they have in common are read
 * once. A waiting sequence is let in when the chunk has room, a place is free and its prompt fits
 * the KV cache with the watermark left over. When a generating
 * sequence finds no block, the one let in last gives its blocks back and waits at the head of
 * the queue (its tokens are computed again, to the same bits). Where the cache shares, a sequence
 * begins behind the blocks of its text that are known.
 *
 * Engine thread only; allocates in create alone.
 */
#ifndef ENGINE_SCHEDULER_H
#define ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/kv.h"
#include "engine/seq.h"
#include "tiering/event.h"

/* Rows of one step: those of generating sequences first, then prompts, one after the other. Tokens
 * that were generated before their sequence was sent back come last of all. */
struct eng_batch {
    uint32_t count, decode_count;
    uint32_t member_count;
    struct eng_seq **members;   /* member i < decode_count owns row i; the others are prompts */
    uint32_t *row_member;
    uint32_t *tokens, *positions;
    uint64_t *seqs;
    uint8_t *phases;
};

struct eng_scheduler_config {
    uint32_t seqs_max;
    uint32_t batch_tokens_max, chunk_tokens_max;
    uint32_t watermark_blocks;
};

struct eng_scheduler {
    struct eng_scheduler_config config;
    struct eng_kv *kv;
    struct eng_seq *waiting;    /* in order of arrival */
    struct eng_seq *running;    /* in order of admission */
    uint32_t waiting_count, running_count;
    uint64_t preempted;
    uint64_t reused;            /* tokens not computed, since their blocks were known */
    struct eng_batch batch;
};

/* Rows that a step can have at most. */
uint32_t eng_scheduler_rows_max(const struct eng_scheduler_config *config);

int eng_scheduler_init(struct eng_scheduler *scheduler, const struct eng_scheduler_config *config,
                       struct eng_kv *kv);
/* Destroys the sequences that are left. */
void eng_scheduler_fini(struct eng_scheduler *scheduler);

void eng_scheduler_add(struct eng_scheduler *scheduler, struct eng_seq *seq);
struct eng_seq *eng_scheduler_find(struct eng_scheduler *scheduler, uint64_t id);

/* Frees what sequences in state OVER held, and the sequences. */
void eng_scheduler_sweep(struct eng_scheduler *scheduler);

/* Builds the next step's batch; an empty one when there is nothing to do. */
const struct eng_batch *eng_scheduler_next(struct eng_scheduler *scheduler);

#endif
