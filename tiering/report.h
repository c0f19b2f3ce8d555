/* The activation report: of every feature that settings ask for, whether it is active, degraded or
 * refused, and why. The same rows are printed at start and served in /tier/stats.
 *
 *   active      as requested
 *   degraded    there is less of it than was requested: `note` says why, `count` how often it was
 *               felt where that can be counted
 *   refused     requested and not there at all, though the process runs
 *   off         not requested, or there is nothing to apply it to
 *
 * What an explicit setting cannot have is refused at start and never gets here. Pure; any thread.
 */
#ifndef TIERING_REPORT_H
#define TIERING_REPORT_H

#include <stdint.h>

#include "base/str.h"
#include "tiering/tiering.h"

enum tier_state { TIER_OFF, TIER_ACTIVE, TIER_DEGRADED, TIER_REFUSED };

struct tier_report_row {
    const char *feature;        /* the setting's key, or a name of its own: "io.buffers" */
    char requested[64];
    enum tier_state state;
    char note[240];
    const char *counter;        /* what `count` counts; NULL = nothing */
    uint64_t count;
};

enum { TIER_REPORT_ROWS_MAX = 40 };

struct tier_report {
    struct tier_report_row rows[TIER_REPORT_ROWS_MAX];
    uint32_t count;
};

/* What a report of the tiers is made of. */
struct tier_report_args {
    const struct tier_config *config;   /* as they hold now */
    const struct tier_io_config *io;
    const struct tier_snapshot *snapshot;
    const struct tier_store *store;
    bool hints;                 /* somebody gives hints: there is a predictor */
};

const char *tier_state_name(enum tier_state state);     /* "active", ... */

/* A new row, OFF; the caller fills in the rest. Lives as long as the report. */
struct tier_report_row *tier_report_add(struct tier_report *report, const char *feature,
                                        const char *requested);
void tier_report_note(struct tier_report_row *row, enum tier_state state, const char *format, ...)
    BASE_PRINTF(3, 4);

/* Appends the tiers' rows. */
void tier_report_tiers(struct tier_report *report, const struct tier_report_args *args);

#endif
