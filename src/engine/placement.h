/* Which ranks hold which routed expert. Every layer gives every rank the same number (but for a
 * rest), so that each rank's slots are worth the same everywhere. Immutable after make; any thread.
 */
#ifndef ENGINE_PLACEMENT_H
#define ENGINE_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct eng_placement {
    uint32_t layers, experts, ranks;
    uint32_t replicas;          /* experts of a layer that every rank holds */
    uint32_t held;              /* experts of a layer that a rank holds at most */
    uint64_t *holders;          /* [layers x experts]: bit r = rank r holds it */
    char note[200];
};

static inline bool eng_placement_held(const struct eng_placement *placement, uint32_t layer,
                                      uint32_t expert, uint32_t rank)
{
    return placement->holders[layer * placement->experts + expert] >> rank & 1;
}

/* Expert e of layer l goes to rank (e + l) % ranks. */
int eng_placement_round_robin(struct eng_placement *placement, uint32_t layers, uint32_t experts,
                              uint32_t ranks);

/* By load[layers x experts], how often each was asked for: each layer's `replicas` hottest go to
 * all; then, hottest first, each to the rank with the least load that still has room. */
int eng_placement_by_load(struct eng_placement *placement, uint32_t layers, uint32_t experts,
                          uint32_t ranks, uint32_t replicas, const uint64_t *load);

/* Equal placements have equal hashes. */
uint64_t eng_placement_hash(const struct eng_placement *placement);
void eng_placement_fini(struct eng_placement *placement);

/* Reads load[layers x experts] from a trace or from what tier-stats --json --by expert prints. */
int eng_placement_read_load(const char *path, uint64_t *load, uint32_t layers, uint32_t experts,
                            struct base_err *err);

/* Share of the load of the rank that has most of it, times ranks: 1 = perfectly even; load of
 * experts that several hold counts evenly. */
double eng_placement_skew(const struct eng_placement *placement, const uint64_t *load);

#endif
