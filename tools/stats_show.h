/* What tier-stats prints of a server's /tier/stats: one table a view, readable or as CSV. */
#ifndef TOOLS_STATS_SHOW_H
#define TOOLS_STATS_SHOW_H

#include <stdbool.h>
#include <stdio.h>

#include "port/json.h"

enum stats_view {
    STATS_PHASE, STATS_TIER, STATS_LAYER, STATS_EXPERT, STATS_WAIT, STATS_LOOKUP, STATS_OVERLAP,
    STATS_REPORT, STATS_VIEW_COUNT,
};

/* "phase", ...; NULL past the last. */
const char *cli_stats_view(unsigned view);

/* The whole picture: head, the view's table, reads and waits. `before`: an earlier document, for
 * rates; may be NULL. 0 or -ENOMEM. */
int cli_stats_show(enum stats_view view, const struct port_json *now,
                   const struct port_json *before, FILE *to);

/* The table alone: a row each, the document's time in front; plain numbers: shares from 0 to 1,
 * seconds, bytes; empty where there is none. `heads`: with the line of names. */
int cli_stats_csv(enum stats_view view, const struct port_json *now,
                  const struct port_json *before, bool heads, FILE *to);

#endif
