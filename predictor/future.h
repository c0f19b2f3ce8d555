/* When each lookup's expert is asked for again: what Belady needs.
 *
 * Filled in one pass over the acquires, in their order: the n-th lookup gets its distance when its
 * expert comes up again. Distances lie in an unlinked temporary file that is mapped, 4 bytes a
 * lookup, so that memory stays bounded by what the kernel wants to keep: the pages in use are those
 * of the last few uses and those being read. O(1) a lookup both ways.
 *
 * Positions number the acquires from 0. One thread.
 */
#ifndef PREDICTOR_FUTURE_H
#define PREDICTOR_FUTURE_H

#include <stdint.h>

#include "base/err.h"

struct pred_future;

int pred_future_create(struct pred_future **out, uint32_t layers, uint32_t experts,
                       struct base_err *err);
void pred_future_destroy(struct pred_future *future);

/* First pass: the next acquire asks for these. */
int pred_future_add(struct pred_future *future, uint32_t layer, const uint32_t *ids, uint32_t n,
                    struct base_err *err);
/* Second pass from the begin, same acquires in the same order: loads the next uses of the running
 * acquire's experts, which pred_future_next then answers. */
void pred_future_begin(struct pred_future *future);
void pred_future_load(struct pred_future *future, uint32_t layer, const uint32_t *ids, uint32_t n);

/* A tier_decide_config's next_use: context is the future. Where the expert comes up again, as of
 * its latest use: its position times the number of experts, which is beyond every position a core
 * can have reached by then, in however many waves it took the acquires; UINT64_MAX if it never
 * does. */
uint64_t pred_future_next(void *future, uint32_t layer, uint32_t expert, uint64_t now);

#endif
