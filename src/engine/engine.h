/* The engine: forward pass of DeepSeek-V2/V3, paged latent KV, continuous batching, sampling.
 *
 * Every call on one thread, the engine thread. A request lives from submit until its `on_piece`
 * was called with a finish reason, or until cancel. The engine never owns an expert's weights: it
 * leases them from `struct tier` step by step.
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/hist.h"
#include "base/metric.h"
#include "base/option.h"
#include "engine/profile.h"
#include "model/safetensors.h"
#include "model/shape.h"
#include "model/tokenizer.h"
#include "tiering/tiering.h"

struct comm;
struct eng_advice;
struct eng_landing;
struct eng_peers;
struct eng_ranks;

#define ENG_OPTIONS(O) \
    O(threads, UINT, "engine.threads", "0", "0..1024", "threads", \
      "compute threads; 0 = all cores this process may use") \
    O(cpu_mask, ENUM, "engine.cpu_mask", "auto", "reference|avx2|avx512|auto", "", \
      "best instruction set to use; auto: what this CPU has; results are the same bits with each") \
    O(activations, ENUM, "engine.activations", "f32", "f32|bf16|int8", "", \
      "inputs of products with weights; f32 is as exact as f32 sums are, bf16 rounds those of " \
      "BF16 and FP8 matrices, int8 also those of INT8 and INT4 ones, of which there must be some") \
    O(pin_threads, BOOL, "engine.pin_threads", "true", "", "", \
      "bind each compute thread to a core") \
    O(kv_dtype, ENUM, "kv.dtype", "f32", "f32|bf16", "", "how latent KV entries are kept") \
    O(kv_block_tokens, UINT, "kv.block_tokens", "16", "1..256", "tokens", "tokens in a KV block") \
    O(kv_capacity, TEXTLINE, "kv.capacity", "auto", "", "", \
      "memory for KV blocks: a size, or auto = enough for max_num_seqs sequences of " \
      "max_model_len") \
    O(kv_blocks_per_sequence_max, UINT, "kv.blocks_per_sequence_max", "2048", "1..", "blocks", \
      "longest block table of one sequence") \
    O(kv_watermark, SHARE, "kv.watermark", "1%", "", "", \
      "share of KV blocks kept free when new sequences are let in") \
    O(max_num_seqs, UINT, "scheduler.max_num_seqs", "8", "1..4096", "sequences", \
      "sequences in one batch") \
    O(max_num_batched_tokens, UINT, "scheduler.max_num_batched_tokens", "2048", "1..", "tokens", \
      "tokens in one step") \
    O(max_chunked_prefill_tokens, UINT, "scheduler.max_chunked_prefill_tokens", "256", "1..", \
      "tokens", "prompt tokens of one chunk") \
    O(scheduling, ENUM, "scheduler.policy", "fcfs", "fcfs", "", \
      "order in which requests are let in: first come, first served") \
    O(prefix_caching, BOOL, "scheduler.enable_prefix_caching", "false", "", "", \
      "a request takes KV blocks of earlier ones that began alike instead of computing them; " \
      "the same bits") \
    O(batch_wait, TIME, "scheduler.batch_wait_timeout", "0", "0..10s", "", \
      "how long a server with nothing to do lets a request wait for company before its prompt is " \
      "computed: prompts of one step read the experts that they share once") \
    O(max_model_len, UINT, "scheduler.max_model_len", "0", "", "tokens", \
      "longest sequence; 0 = what the model allows, at most 4096")

/* The values of engine.activations, in their order. */
enum { ENG_ACTIVATIONS_F32, ENG_ACTIVATIONS_BF16, ENG_ACTIVATIONS_INT8 };

struct eng_config {
    BASE_OPTION_STRUCT(ENG_OPTIONS)
};
extern const struct base_option eng_options[];
extern const size_t eng_option_count;

enum eng_finish { ENG_RUNNING, ENG_STOP, ENG_LENGTH, ENG_CANCELLED, ENG_FAILED };

struct eng_sampling {
    float temperature;          /* 0 = greedy */
    float top_p;                /* (0, 1] */
    uint32_t top_k;             /* 0 = all */
    uint64_t seed;
};

/* One generated token, or the end of an answer. Valid during the call. */
struct eng_piece {
    uint64_t request;
    int64_t token;              /* -1 when only the end is told */
    const char *text; /* whole UTF-8 characters; held back while a stop string may begin */
    size_t size;
    uint32_t reused;            /* prompt tokens that need not be computed: their KV was there */
    float logprob;              /* of the token; may be 0 where the request did not ask for it */
    enum eng_finish finish;
    const char *error;          /* ENG_FAILED: the sentence */
    int error_code;
};

struct eng_request {
    const uint32_t *prompt;     /* copied */
    uint32_t prompt_tokens;     /* >= 1 */
    uint32_t max_tokens;
    struct eng_sampling sampling;
    const char *const *stops;   /* stop strings, copied; the answer ends before them */
    uint32_t stop_count;        /* <= 16 */
    bool ignore_eos;
    /* Pieces have log probabilities. Without them a device chooses greedy tokens itself, and only
     * their ids come down to the host. */
    bool logprobs;
    bool prompt_logits; /* give hooks.logits a row for every prompt position, not only the last */
    void (*on_piece)(void *context, const struct eng_piece *piece);
    void *context;
};

/* A step as it happened, for the trace, the predictor and tests. All arrays live during the call.
 * tokens[i] of sequence seqs[i] at position positions[i]; routing of moe layer l, token i:
 * expert_ids[(l * token_count + i) * top_k ...], strongest first, with weights alike. */
struct eng_step_record {
    uint64_t step;
    uint32_t token_count;
    const uint64_t *seqs;
    const uint32_t *tokens;
    const uint32_t *positions;
    const uint8_t *phases;      /* enum tier_phase of each token */
    uint32_t moe_layers, top_k;
    const uint32_t *expert_ids;
    const float *expert_weights;
    uint64_t step_ns, compute_ns;
    uint64_t wait_ns[TIER_WAIT_CAUSE_COUNT];
    const uint64_t *op_ns;      /* [ENG_OP_COUNT] compute by operation; NULL without a profile */
};

struct eng_hooks {
    void (*step_begin)(void *context, uint64_t step);
    void (*step_end)(void *context, const struct eng_step_record *record);
    /* Every logits row that is computed, before sampling: with it all of them come to the host. */
    void (*logits)(void *context, uint64_t request, uint32_t position, const float *logits,
                   uint32_t vocab);
    /* May put other experts into the place of those that the gate chose for a token, ids[top_k],
     * all different; their weights stay. For benchmarks: gates that are asked ahead know nothing of
     * it. Of what the CPU computes; any compute thread. */
    void (*route)(void *context, uint32_t moe_layer, uint64_t seq, uint32_t position,
                  uint32_t *ids);
    /* May put another token in the place of one: of the prompt when the request is taken in, and of
     * each that was drawn. In the vocabulary. For benchmarks, beside `route`: predictors go by
     * tokens. */
    uint32_t (*token)(void *context, uint64_t seq, uint32_t position, uint32_t token);
    void *context;
};

struct eng_open_args {
    const struct eng_config *config;
    const struct model_shape *shape;        /* borrowed, as all below */
    const struct model_files *files;
    const struct model_tokenizer *tokenizer;
    const struct tier_store *store;
    struct tier *tier;
    struct eng_landing *landing;        /* what the tier makes of experts as they land; the compute
                                 * threads help it until close */
    struct eng_advice *advice;  /* NULL = none */
    struct eng_profile *profile;        /* NULL = none */
    struct dev *device;         /* where it computes: one with a stream; NULL = on the CPU */
    struct eng_hooks hooks;
    const struct eng_ranks *ranks;      /* NULL = one; copied */
    struct eng_peers *peers;    /* what other ranks tell; NULL = nothing, on all of them */
    uint32_t core_first;        /* compute threads are bound from this core of the process on */
};

struct eng;

/* Reads the dense weights. Takes seconds for big models; `progress` may be NULL. */
int eng_open(struct eng **out, const struct eng_open_args *args, struct base_err *err);
void eng_close(struct eng *eng);

/* Takes a request in. Its id, or a negative code with a sentence: -EINVAL (empty, too long, token
 * out of range), -EAGAIN (queue full). */
int64_t eng_submit(struct eng *eng, const struct eng_request *request, struct base_err *err);
/* Ends a request without calling its on_piece again; unknown ids are ignored. */
void eng_cancel(struct eng *eng, uint64_t request);

/* Runs one step: a batch of generated tokens and a chunk of prompts. Returns the number of
 * requests still alive (0 = idle), or a negative code that no request can survive: all of them have
 * been told, eng_failure says why, and the process has to end. */
int eng_step(struct eng *eng);
/* Why no request can survive, in a sentence; NULL while they can. */
const char *eng_failure(const struct eng *eng);

/* A rank other than 0: does what rank 0 says until it ends. The hooks are called but for logits. */
void eng_follow(struct eng *eng);

/* Between steps: the tiers do what waits for idle time. As tier_idle. */
uint32_t eng_idle(struct eng *eng);
/* Tokens of the longest sequence, prompt and answer together. */
uint32_t eng_tokens_max(const struct eng *eng);

#define ENG_METRICS(M)                                                                            \
    M(steps, COUNTER, "", "forward passes")                                                       \
    M(prompt_tokens, COUNTER, "tokens", "prompt tokens computed")                                 \
    M(reused_tokens, COUNTER, "tokens", "tokens not computed, since their KV blocks were known")   \
    M(generated_tokens, COUNTER, "tokens", "tokens generated")                                    \
    M(running_requests, GAUGE, "requests", "requests in the batch")                               \
    M(waiting_requests, GAUGE, "requests", "requests that wait for a place")                      \
    M(preempted_requests, COUNTER, "requests", "times a request lost its KV blocks to others "    \
      "and was computed again")                                                                   \
    M(finished_requests, COUNTER, "requests", "requests that ended with an answer")               \
    M(failed_requests, COUNTER, "requests", "requests that ended with an error")                  \
    M(cancelled_requests, COUNTER, "requests", "requests whose client left")                      \
    M(kv_blocks, GAUGE, "blocks", "KV blocks")                                                    \
    M(kv_used_blocks, GAUGE, "blocks", "KV blocks in use")                                        \
    M(kv_idle_blocks, GAUGE, "blocks", "KV blocks not in use, kept for requests that begin alike") \
    M(kv_touched_bytes, GAUGE, "bytes", "memory of KV blocks that were ever in use")              \
    M(compute_seconds, REAL, "seconds", "time of steps without the waits for experts")            \
    M(collective_seconds, REAL, "seconds", "time of steps in collectives, waiting for other "     \
      "ranks included; of compute_seconds")                                                       \
    M(step_latency, HIST, "seconds", "time of a step")                                            \
    M(decode_latency, HIST, "seconds", "time of a step that only generates")

struct eng_metrics {
    BASE_METRIC_STRUCT(ENG_METRICS)
};
extern const struct base_metric eng_metrics[];
extern const size_t eng_metric_count;

/* Any thread. */
void eng_snapshot(struct eng *eng, struct eng_metrics *out);

/* Memory that open takes, for the table printed at start. */
struct eng_footprint {
    uint64_t dense_bytes;       /* weights that are always in memory */
    uint64_t kv_bytes;
    uint64_t activation_bytes;
    /* 0 on the CPU. Else what open takes of the device: these weights and KV blocks, which then lie
     * there, and the work space of a step. */
    uint64_t device_bytes, device_work_bytes;
};
int eng_footprint(const struct eng_config *config, const struct model_shape *shape,
                  const struct model_files *files, const struct tier_store *store,
                  const struct eng_ranks *ranks, bool on_device, struct eng_footprint *out,
                  struct base_err *err);

#endif
