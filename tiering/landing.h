/* What a program does with an expert's bytes when they land: the file keeps one order of weights,
 * its kernels may want another one; and its threads may help.
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

#include <stdbool.h>
#include <stdint.h>

#include "tiering/libtiering.h"
#include "tiering/store.h"

struct tier_landing {
    /* NULL: leases read what the file has. */
    void (*land)(void *context, uint32_t moe_layer, uint32_t expert, void *const parts[TIER_PARTS]);
    /* Runs pieces 0..count-1 of work that reads `bytes` in all, on whatever threads it has, and
     * returns when all are done; `here`: on the thread that called. NULL: nobody helps. */
    void (*share)(void *context, uint32_t count, uint64_t bytes,
                  void (*run)(void *work, uint32_t piece, bool here), void *work);
    void *context;
};

/* tier_store_check, with the program's threads where the record has stretches: `between` is called
 * on this thread alone. */
int tier_landing_check(const struct tier_landing *landing, const struct tier_record *record,
                       const void *slot, void (*between)(void *context), void *context);

#endif
