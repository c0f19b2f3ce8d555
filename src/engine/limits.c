#include "engine/limits.h"

#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "base/str.h"
#include "comm/cards.h"
#include "engine/cuda/cuda.h"
#include "engine/kv.h"
#include "engine/ranks.h"

enum { MODEL_LEN_AUTO = 4096 };

static unsigned cores(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return count > 0 ? (unsigned)count : 1;
}

uint64_t eng_limits_length_auto(const struct eng_config *config, const struct model_shape *shape)
{
    const uint64_t by_blocks = config->kv_blocks_per_sequence_max * config->kv_block_tokens;
    const uint64_t length = shape->positions_max < MODEL_LEN_AUTO ? shape->positions_max
                                                                  : MODEL_LEN_AUTO;
    return length < by_blocks ? length : by_blocks;
}

static int sequence_length(struct eng_limits *limits, const struct eng_config *config,
                           const struct model_shape *shape, struct base_err *err)
{
    uint64_t by_blocks = config->kv_blocks_per_sequence_max * config->kv_block_tokens;
    uint64_t length = config->max_model_len;
    if (length == 0) length = eng_limits_length_auto(config, shape);
    if (length > shape->positions_max) {
        return base_err_set(err, BASE_ECONFIG,
                            "scheduler.max_model_len: %" PRIu64
                            " is more than the %u positions of %s",
                            length, shape->positions_max, shape->name);
    }
    if (length > by_blocks) {
        return base_err_set(err, BASE_ECONFIG,
                            "scheduler.max_model_len: %" PRIu64 " tokens need more than "
                            "kv.blocks_per_sequence_max %" PRIu64 " x kv.block_tokens %" PRIu64
                            " = %" PRIu64 " tokens", length, config->kv_blocks_per_sequence_max,
                            config->kv_block_tokens, by_blocks);
    }
    if (length < 2) {
        return base_err_set(err, BASE_ECONFIG,
                            "scheduler.max_model_len: %" PRIu64
                            " leaves no room for an answer; 2 is the least",
                            length);
    }
    limits->tokens_max = (uint32_t)length;
    return 0;
}

static int kv_blocks(struct eng_limits *limits, const struct eng_config *config,
                     const struct model_shape *shape, struct base_err *err)
{
    limits->kv_width = shape->kv_lora_rank + shape->qk_rope_dim;
    limits->kv_block_tokens = (uint32_t)config->kv_block_tokens;
    limits->kv_bf16 = config->kv_dtype == 1;
    limits->kv_shares = config->prefix_caching;
    limits->kv_blocks_per_seq =
        (limits->tokens_max + limits->kv_block_tokens - 1) / limits->kv_block_tokens;
    uint64_t block = eng_kv_block_bytes(shape->layers, limits->kv_width, limits->kv_block_tokens,
                                        limits->kv_bf16);
    uint64_t blocks = config->max_num_seqs * limits->kv_blocks_per_seq, bytes;
    if (strcmp(config->kv_capacity, "auto") != 0) {
        if (base_str_bytes_parse(config->kv_capacity, &bytes) < 0) {
            return base_err_set(err, BASE_ECONFIG,
                                "kv.capacity: '%s' is neither a size such as 2GiB nor 'auto'",
                                config->kv_capacity);
        }
        blocks = bytes / block;
        if (blocks == 0) {
            return base_err_set(
                err, BASE_EBUDGET,
                "kv.capacity: %s holds not even one block of %u tokens, which takes %" PRIu64
                " bytes",
                config->kv_capacity, limits->kv_block_tokens, block);
        }
    }
    if (blocks > UINT32_MAX) {
        return base_err_set(err, BASE_ECONFIG, "kv.capacity: %" PRIu64 " blocks are more than 2^32",
                            blocks);
    }
    limits->kv_blocks = (uint32_t)blocks;
    if (blocks < limits->kv_blocks_per_seq) {
        const uint32_t fits = limits->kv_blocks * limits->kv_block_tokens;
        char size[16];
        if (config->max_model_len != 0 || fits < 2) {
            return base_err_set(
                err, BASE_EBUDGET,
                "kv.capacity: %s holds %u tokens, a sequence of scheduler.max_model_len %u takes "
                "%s; set one of them so that it fits",
                config->kv_capacity, fits, limits->tokens_max,
                base_str_bytes(size, sizeof size, limits->kv_blocks_per_seq * block));
        }
        limits->tokens_max = fits;
        limits->kv_blocks_per_seq = limits->kv_blocks;
    }
    limits->kv_bytes = blocks * block;
    return 0;
}

uint32_t eng_limits_threads(const struct eng_config *config)
{
    return config->threads > 0 ? (uint32_t)config->threads : cores();
}

int eng_limits_of(struct eng_limits *limits, const struct eng_config *config,
                  const struct model_shape *shape, struct base_err *err)
{
    *limits = (struct eng_limits){ 0 };
    int rc = sequence_length(limits, config, shape, err);
    if (rc == 0) rc = kv_blocks(limits, config, shape, err);
    if (rc < 0) return rc;
    if (config->max_num_batched_tokens <= config->max_num_seqs) {
        return base_err_set(err, BASE_ECONFIG,
                            "scheduler.max_num_batched_tokens: %" PRIu64
                            " leaves no token for a prompt "
                            "beside scheduler.max_num_seqs %" PRIu64 "; it must be larger",
                            config->max_num_batched_tokens, config->max_num_seqs);
    }
    uint64_t chunk = config->max_chunked_prefill_tokens, batch = config->max_num_batched_tokens;
    if (chunk > limits->tokens_max) chunk = limits->tokens_max;
    if (batch > config->max_num_seqs + chunk) batch = config->max_num_seqs + chunk;
    limits->scheduler = (struct eng_scheduler_config){
        .seqs_max = (uint32_t)config->max_num_seqs,
        .batch_tokens_max = (uint32_t)batch,
        .chunk_tokens_max = (uint32_t)chunk,
        .watermark_blocks = (uint32_t)(config->kv_watermark * limits->kv_blocks),
    };
    limits->plan = (struct eng_plan_size){
        .rows = eng_scheduler_rows_max(&limits->scheduler),
        .decode_rows = (uint32_t)config->max_num_seqs,
        .threads = eng_limits_threads(config),
        .blocks_per_seq = limits->kv_blocks_per_seq,
    };
    return 0;
}

int eng_limits_check(const struct eng_limits *limits, const struct model_shape *shape,
                     struct base_err *err)
{
    const struct eng_ranks *ranks = limits->plan.ranks;
    const uint32_t rows = limits->plan.rows;
    struct eng_rank_room room;
    if (limits->plan.on_device && rows > ENG_CUDA_ROWS_MAX) {
        return base_err_set(err, BASE_ECONFIG, "scheduler.max_num_batched_tokens: a step of %"
                            PRIu32 " tokens is more than the kernels of the cuda device take; make "
                            "it at most %d", rows, ENG_CUDA_ROWS_MAX);
    }
    eng_ranks_room(ranks, shape, &limits->plan, &room);
    /* What is received at once from all is never more than what can be sent. Cards that exchange
     * by themselves send none of it over MPI. */
    if (room.send <= INT32_MAX || comm_has_cards(ranks->comm)) return 0;
    return base_err_set(err, BASE_ECONFIG, "scheduler.max_num_batched_tokens: in a step of %" PRIu32
                        " tokens a rank may send %zu values at once, and MPI takes %d; make it at "
                        "most %" PRIu32, rows, room.send, INT32_MAX,
                        (uint32_t)((double)rows * INT32_MAX / (double)room.send));
}
