/* Leases of a running step: waiting for them, and what one that cannot be read means. Engine
 * thread only. */
#ifndef ENGINE_LEASES_H
#define ENGINE_LEASES_H

#include "engine/core.h"

/* As tier_wait; what it took counts as the step's waiting. */
uint32_t eng_leases_wait(struct eng_core *core, struct tier_lease *leases, uint32_t count,
                         enum tier_wait_mode mode, uint64_t deadline_ns);

/* Why a lease came to nothing, in a sentence's part. */
void eng_leases_why(struct eng_core *core, const struct tier_lease *lease, char *why, size_t size);

/* The sequences whose tokens need an expert that cannot be read end here; their rows are computed
 * on without it, unused, so that the others' go on as they are. The expert's pairs are those of
 * the plan's last eng_gate_group. With several ranks the others learn of it behind the last
 * layer (forward.c). */
void eng_leases_fail(struct eng_core *core, const struct eng_batch *batch,
                     const struct tier_lease *lease);

/* Takes in what has arrived meanwhile; waits for nothing. */
void eng_poll(struct eng_core *core);

#endif
