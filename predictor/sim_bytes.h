/* A cache with a budget in bytes over all layers, whose experts differ in size from layer to layer:
 * what slots of one size cannot say. Replay only.
 *
 * Of one acquire all experts are touched or taken in, in order, then the cache shrinks to its
 * budget. lru: the least recently used leave. belady: those used again furthest in the future
 * leave, those of the running acquire last of all. */
#ifndef PREDICTOR_SIM_BYTES_H
#define PREDICTOR_SIM_BYTES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/future.h"

struct pred_sim_bytes;

/* expert_bytes [layers], kept by the caller. With `future` it is Belady's, else LRU. */
int pred_sim_bytes_create(struct pred_sim_bytes **out, uint32_t layers, uint32_t experts,
                          const uint64_t *expert_bytes, uint64_t budget_bytes,
                          struct pred_future *future);
void pred_sim_bytes_destroy(struct pred_sim_bytes *sim);

struct pred_sim_bytes_step {
    uint32_t resident, evictions;
    bool cold;                  /* nothing had left yet when the acquire began */
};
void pred_sim_bytes_acquire(struct pred_sim_bytes *sim, uint32_t layer, const uint32_t *ids,
                            uint32_t n, struct pred_sim_bytes_step *step);

#endif
