/* The memory that a step works in: one block, laid out once at open for the largest batch.
 *
 * Rows are the batch's tokens. A pair is one (token, expert) of the gate's choice; pairs are
 * ordered by expert, then token.
 */
#ifndef ENGINE_PLAN_H
#define ENGINE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/sampler.h"
#include "model/shape.h"
#include "tiering/tiering.h"

struct eng_ranks;

enum {
    /* Tokens of one expert taken through its matrices together, at most: as many as one panel of
     * decoded weights meets (kernels/cpu/simd_panel.h). */
    ENG_TILE = 48,
    ENG_VALUES_TILE = 48,       /* tokens whose latent outputs are rounded together */
};

struct eng_plan_size {
    uint32_t rows;              /* tokens of the largest batch */
    uint32_t decode_rows;       /* generated tokens among them, at most */
    uint32_t threads;
    uint32_t blocks_per_seq;
    /* How the inputs of products go in (engine.activations): those of the routed experts as
     * integers of so many digits, or as bf16, or neither; those of all other products as bf16. */
    uint32_t x8_digits;
    uint32_t dense_digits;      /* of integers that go into dense matrices in INT8; 0: there are
                                 * none */
    bool experts_x16, x16;
    const struct eng_ranks *ranks;  /* NULL = one */
    bool on_device;             /* only what the host works with: routing, leases, logits */
};

struct eng_plan {
    /* [rows][...] */
    float *hidden;              /* the residual stream */
    float *normed;
    float *branch;              /* what a block adds to the stream */
    float *q_a, *q, *kv;        /* projections of attention */
    float *q_latent;            /* [heads][lora + rope] */
    float *latent;              /* [heads][lora] */
    float *kv_up;               /* [heads][nope + v], v parts used */
    float *attended;            /* [heads][v] */
    float *cos, *sin;           /* [rope / 2] */
    float *mlp_gate, *mlp_up;   /* widest dense or shared part */
    float *routed;              /* sum of the expert outputs */
    float *gate_logits;         /* [experts] */
    const void **block_table;   /* [decode_rows + 1][blocks_per_seq] */
    uint32_t *row_pairs;        /* [top_k] the row's pairs in ascending expert id */
    uint32_t *row_pair_count;
    /* [pairs] = [rows * top_k] */
    uint32_t *pair_row;
    float *pair_weight;
    float *pair_gate, *pair_up; /* [expert_width] */
    float *pair_out;            /* [hidden], decode rows only; not where experts lie over ranks */
    /* [experts] */
    uint32_t *expert_first, *expert_count, *wanted;
    float *expert_strength;
    struct tier_lease *leases, *pending;
    uint32_t *pending_index;
    struct eng_run *runs;
    const struct tier_lease **arrived;
    /* routing of the step, [moe_layers][rows of the batch][top_k] */
    uint32_t *route_ids;
    float *route_weights;
    /* [threads] */
    float *tile_in, *tile_out;  /* [ENG_TILE][hidden] */
    /* The routed experts' inputs where they are no f32, else NULL. Rows of eng_plan_coded. */
    uint32_t x8_digits;         /* 0: they are bf16 */
    char *normed_coded;         /* [rows] of hidden */
    char *pair_coded;           /* [pairs] of expert_width */
    char *tile_coded;           /* [threads][ENG_TILE] of hidden */
    /* engine.activations: bf16 or int8; else NULL */
    uint16_t *x16;              /* inputs of products, of all rows */
    size_t x16_elements;
    void *x8;                   /* inputs of products with dense matrices in INT8; else NULL */
    size_t x8_bytes;
    uint16_t *latent_x16;       /* [threads][ENG_VALUES_TILE][latent_x16_stride] */
    size_t latent_x16_stride;
    float *gate_scratch;        /* [2 * experts] */
    /* head: [decode_rows + 1] */
    float *head_in;             /* [hidden] */
    float *logits;              /* [vocab] */
    uint32_t *head_rows;
    bool *head_whole;           /* the host needs the row's logits, not only which is the largest */
    uint32_t *head_best;        /* the others' choice, on a device; KERN_CUDA_NO_ID */
    int64_t *drawn;             /* the next token of each row, or why there is none */
    float *logprobs;
    struct eng_candidate *candidates;   /* [threads][vocab] */
    /* several ranks (ranks.h, exchange.h) */
    float *rank_send, *rank_recv;       /* what collectives take and bring */
    float *rank_part, *rank_whole;      /* a share of an output; an input that was gathered */
    uint32_t *rank_pairs;               /* [ranks] */
    uint32_t *rank_failed;              /* [ranks][members, a bit each] whose request ends */
    uint32_t *expert_rank, *expert_place;       /* [experts] who computes it, where it goes */
    size_t *pair_at;                    /* [pairs] in rank_recv */
};

/* One expert's share of a batch. */
struct eng_run {
    const struct tier_lease *lease;
    uint32_t first, count;      /* its pairs */
};

/* Bytes of a row of `cols` of the routed experts' coded inputs. */
size_t eng_plan_coded(const struct eng_plan *plan, uint32_t cols);

static inline uint32_t eng_plan_failed_words(uint32_t members)
{
    return (members + 31) / 32;
}

/* Lays the plan out from `memory` on (64-byte aligned; NULL only counts). Returns the bytes. */
size_t eng_plan_layout(struct eng_plan *plan, const struct model_shape *shape,
                       const struct eng_plan_size *size, void *memory);

#endif
