/* An acquire as a server makes it, on a decision core alone: in waves where there are not slots for
 * all (tiering/wave.h), each expert used at once. */
#ifndef PREDICTOR_WAVES_H
#define PREDICTOR_WAVES_H

#include "base/must.h"
#include "tiering/decide.h"
#include "tiering/wave.h"

/* ids distinct, strongest first, n <= experts; at most `most` are asked for together. found[n] in
 * the order of ids. Nothing is leased before and after. */
static inline void pred_waves(struct tier_decide *decide, uint32_t layer, const uint32_t *ids,
                              uint32_t n, uint32_t most, enum tier_phase phase,
                              struct tier_found *found)
{
    uint32_t done = 0, held = 0;
    while (done < n || held > 0) {
        if (done < n) {
            const uint32_t asked = n - done < most ? n - done : most;
            const uint32_t k =
                tier_decide_acquire(decide, layer, ids + done, asked, phase, found + done);
            MUST(k > 0 || held > 0);
            done += k;
            held += k;
        }
        const uint32_t goes = tier_wave_goes(phase, held, done < n);
        tier_decide_release(decide, layer, ids + done - held, goes);
        held -= goes;
    }
}

#endif
