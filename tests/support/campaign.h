/* What the long campaigns share: the model in several layouts on disk, settings drawn at random,
 * a watchdog, and the check that a recorded run replays to its own counts.
 *
 * Failures end the test with a sentence. One thread.
 */
#ifndef TESTS_SUPPORT_CAMPAIGN_H
#define TESTS_SUPPORT_CAMPAIGN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "tests/support/run_stack.h"

enum campaign_layout { CAMPAIGN_SHARDS, CAMPAIGN_STRIPE, CAMPAIGN_MIRROR, CAMPAIGN_LAYOUTS };
enum { CAMPAIGN_SETTINGS_MAX = 48, CAMPAIGN_FOLDERS = 5 };

struct campaign {
    char folders[CAMPAIGN_FOLDERS][3000];
    char index[CAMPAIGN_LAYOUTS][3100];
    char trace[3100];
    char warm[3100];            /* a saved resident set */
};

struct campaign_settings {
    char text[CAMPAIGN_SETTINGS_MAX][256];
    const char *at[CAMPAIGN_SETTINGS_MAX + 1];      /* NULL after the last, as run_open wants it */
    unsigned count;
};

/* Indexes and packs models/pebble in folders of the test's own. */
void campaign_begin(struct campaign *campaign);
void campaign_end(struct campaign *campaign);

void campaign_clear(struct campaign_settings *settings);
void campaign_set(struct campaign_settings *settings, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* One line with all of them, for messages. Valid until the next call. */
const char *campaign_show(const struct campaign_settings *settings);

/* A backend that works on this machine. */
const char *campaign_backend(struct base_rng *rng);
/* The n-th eviction policy; NULL after the last. */
const char *campaign_policy(unsigned n);
/* Sets it, and what it needs to take effect. */
void campaign_eviction(const struct campaign *campaign, struct campaign_settings *settings,
                       const char *policy);
/* Draws predictor.* and prefetch.*; none at all now and then. */
void campaign_prediction(struct campaign_settings *settings, struct base_rng *rng);

/* Opens a run with these settings, recording into campaign->trace. False when they are refused as
 * too small or as contradicting each other; any other failure ends the test. */
bool campaign_open_run(const struct campaign *campaign, struct run *run,
                       struct campaign_settings *settings);
/* After run_close: the recorded events must give the live counts, and the trace goes. Returns how
 * many events that were. */
uint64_t campaign_replay(const struct campaign *campaign, const char *what);

/* From now on the process may take `seconds` more; then it says `what` hangs, and dies. */
void campaign_watch(unsigned seconds, const char *what, uint64_t seed);

/* Rounds to run: the program's argument, or `usual`; *until_ns: to go on with fresh seeds until
 * then, as EXPERTIER_SOAK_MINUTES says when an argument was given, else 0. */
uint64_t campaign_rounds(int argc, char **argv, uint64_t usual, uint64_t *until_ns);

#endif
