/* Other settings while requests run: draws a change of what can change live and applies it between
 * two steps. */
#ifndef TESTS_SUPPORT_CAMPAIGN_LIVE_H
#define TESTS_SUPPORT_CAMPAIGN_LIVE_H

#include <stdbool.h>

#include "base/rng.h"
#include "tests/support/run_stack.h"

/* Draws tiers of up to `most` experts a layer; `verify`: every read stays checked, for runs in
 * which bits flip. False when the change was refused as too small or contradicting itself: then
 * nothing changed. Another failure ends the test. */
bool campaign_reconfigure(struct run *run, struct base_rng *rng, uint32_t most, bool verify);

#endif
