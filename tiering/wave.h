/* Decode that wants more experts of a layer than there are slots for gets them in waves, and lets
 * go of half of what it holds before it asks again: the reads of the other half keep the disk at
 * work until those of the next have left. Which go depends on nothing that takes time, so that a
 * replay of other sizes cuts and lets go as a server would.
 *
 *     while (done < wanted || held > 0) {
 *         if (done < wanted) done += granted, held += granted;
 *         the first tier_wave_goes(phase, held, done < wanted) are used, then released
 *     }
 */
#ifndef TIERING_WAVE_H
#define TIERING_WAVE_H

#include <stdbool.h>
#include <stdint.h>

#include "tiering/libtiering.h"

/* How many of `held` leases, in the order in which they were granted; `more` are wanted. */
static inline uint32_t tier_wave_goes(enum tier_phase phase, uint32_t held, bool more)
{
    return more && phase == TIER_DECODE ? (held + 1) / 2 : held;
}

#endif
