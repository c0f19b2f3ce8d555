/* From settings and model to sizes: every number that open and the footprint need, checked once. */
#ifndef ENGINE_LIMITS_H
#define ENGINE_LIMITS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "engine/plan.h"
#include "engine/scheduler.h"

struct eng_limits {
    struct eng_plan_size plan;
    struct eng_scheduler_config scheduler;
    uint32_t tokens_max;        /* of one sequence; kv.capacity holds as many */
    uint32_t kv_width, kv_block_tokens, kv_blocks, kv_blocks_per_seq;
    bool kv_bf16, kv_shares;
    uint64_t kv_bytes;
};

/* Compute threads that the settings come to, the engine's own among them. */
uint32_t eng_limits_threads(const struct eng_config *config);

/* The longest sequence where scheduler.max_model_len is 0, as long as kv.capacity allows. */
uint64_t eng_limits_length_auto(const struct eng_config *config, const struct model_shape *shape);

/* BASE_ECONFIG or BASE_EBUDGET with the arithmetic in the sentence. */
int eng_limits_of(struct eng_limits *limits, const struct eng_config *config,
                  const struct model_shape *shape, struct base_err *err);
/* Whether a step may have as many tokens as these are, with plan.ranks and plan.on_device set: the
 * kernels of a card and MPI count so far and no further. BASE_ECONFIG. */
int eng_limits_check(const struct eng_limits *limits, const struct model_shape *shape,
                     struct base_err *err);

#endif
