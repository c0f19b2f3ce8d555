/* The forward pass on a card: weights, KV cache and work space in device memory, every operation
 * a kernel on the device's compute stream, experts read through leases that lie in hbm.
 *
 *   host    ── tokens, positions, pages ─▶ ......... ── pairs, experts' places ─▶ ▲ logits or ids
 *   stream  embed ─ attention ─ gate ─ ids ▼ ─ shared expert ─ experts as they come ─ sum ─ head
 *   tiers                                  acquire ... copies up on their own stream ... release
 *
 * The host waits twice: for a layer's gate, which the tiers are asked with, and for logits. A lease
 * is released while the kernels that read it may still run; tier_release marks the stream, and
 * copies into the slot wait for that mark.
 *
 * Same bits: a token of the prompt goes through tiles (tensor cores) where they take the weights'
 * type, one that was generated goes through row products, by its position alone: also when a
 * preempted sequence is computed again in chunks. Gate and head are row products always. So bits do
 * not depend on the batch, chunking, residency or arrival (kernels/cuda/kern_cuda.h).
 *
 * Errors: a call that fails has the reason in `err`; device->lost says when no step can succeed any
 * more. Engine thread only; allocates in open alone.
 */
#ifndef ENGINE_CUDA_CUDA_H
#define ENGINE_CUDA_CUDA_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/limits.h"
#include "engine/scheduler.h"

struct eng_core;
struct eng_cuda;

/* Tokens of a step that the kernels take: a grid has no more blocks along y. */
enum { ENG_CUDA_ROWS_MAX = 65535 };

/* This build has kernels for a card. */
bool eng_cuda_built(void);

/* Device memory for a step's work, beside dense weights and KV blocks; and host memory that copies
 * start from. */
struct eng_cuda_bytes {
    uint64_t work, staging;
};
void eng_cuda_bytes(struct eng_cuda_bytes *out, const struct eng_limits *limits,
                    const struct model_shape *shape);

/* `core` has shape, device, tier, plan, kv (in device memory), weights and experts; it is borrowed.
 * Moves the weights into device memory: their host memory is freed, their addresses in
 * core->weights are the device's from then on. BASE_EMISMATCH for a model that the kernels do not
 * take, BASE_EBUDGET, BASE_EDEVICE. */
int eng_cuda_open(struct eng_cuda **out, struct eng_core *core, const struct eng_limits *limits,
                  struct base_err *err);
/* Waits for what is under way. Accepts NULL. */
void eng_cuda_close(struct eng_cuda *cuda);

/* As eng_forward and eng_head. 0, or a negative code with
 * a sentence: then no row of the batch has a result, and nothing of it is under way. */
int eng_cuda_forward(struct eng_cuda *cuda, const struct eng_batch *batch, struct base_err *err);
int eng_cuda_head(struct eng_cuda *cuda, const uint32_t *rows, uint32_t count,
                  struct base_err *err);

#endif
