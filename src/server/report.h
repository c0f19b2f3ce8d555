/* The activation report as JSON, for /tier/stats: engine/report.h and the server's own row. Any
 * thread. */
#ifndef SERVER_REPORT_H
#define SERVER_REPORT_H

#include "base/buf.h"
#include "tiering/tiering.h"

struct srv;

/* Appends `"report":[...],`. */
void srv_report_json(struct base_buf *to, struct srv *srv, const struct tier_snapshot *tier);

#endif
