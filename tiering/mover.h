/* Copies between dram and hbm, on the device's own queues. A part of the cache: it works on its
 * struct and is called by it alone.
 *
 *   up     the dram slot stays until the copy is there
 *   down   the hbm slot stays readable until the copy is there; a demotion that finds no free dram
 *          slot, or whose copy fails, is dropped: the expert is read again when it is asked for
 *
 * An hbm slot with a copy under way (`moving`) changes hands only after that copy has ended.
 */
#ifndef TIERING_MOVER_H
#define TIERING_MOVER_H

#include "tiering/cache.h"

enum { TIER_MOVING_UP = 1, TIER_MOVING_DOWN = 2 };

/* Begins to copy an expert that is READY in dram, or puts it in line for an hbm slot. */
void tier_mover_up(struct tier_cache *cache, uint32_t key);
/* Begins to copy an expert that is READY in hbm; false if it was dropped for want of a slot. */
bool tier_mover_down(struct tier_cache *cache, uint32_t key);
/* Gives an hbm slot back and lets the next in line have it. */
void tier_mover_give(struct tier_cache *cache, uint32_t slot);
/* Lets those in line for an hbm slot have the free ones. */
void tier_mover_next(struct tier_cache *cache);
/* Takes in finished copies; true if any came. */
bool tier_mover_reap(struct tier_cache *cache, bool wait, uint64_t deadline_ns);

#endif
