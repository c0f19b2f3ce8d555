/* What a program makes of an expert's bytes when they land: the file keeps one order of weights,
 * its kernels may want another one.
 *
 *   read ── checked ── landed ── readable: leases, copies to hbm and back
 *
 * Called for each read that is there and was found good (demand, prefetch, a restored set), once,
 * however often it was tried and from whatever copy of a mirror; never for one that was displaced
 * on its way, and never for copies between hbm and dram, which move what it left. It may change the
 * bytes of the parts, in place, and nothing else of the slot. A part of 0 bytes is NULL; others
 * begin wherever their bytes lay in the file (tiering/store.h).
 *
 * On the engine thread, inside the calls that take reads in; nobody has a lease of the expert yet.
 * Its time is part of taking the expert in. It calls nothing of the tiers and does not fail.
 */
#ifndef TIERING_LANDING_H
#define TIERING_LANDING_H

#include <stdint.h>

#include "tiering/libtiering.h"

struct tier_landing {
    /* NULL: leases read what the file has. */
    void (*land)(void *context, uint32_t moe_layer, uint32_t expert, void *const parts[TIER_PARTS]);
    void *context;
};

#endif
