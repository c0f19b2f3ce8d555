/* What operators ask: /health, /metrics, /tier/stats. Any HTTP thread; nothing here waits for the
 * engine, which keeps its counters readable from any thread.
 */
#ifndef SERVER_ADMIN_H
#define SERVER_ADMIN_H

#include "server/route.h"

void srv_admin_health(struct srv *srv, const struct srv_request *request, struct srv_reply *reply);
void srv_admin_metrics(struct srv *srv, const struct srv_request *request,
                       struct srv_reply *reply);
/* ?by=layer,expert adds the per-layer and per-expert counts; ?limit=N bounds the experts listed
 * (most looked up first; 0 = all). */
void srv_admin_tier_stats(struct srv *srv, const struct srv_request *request,
                          struct srv_reply *reply);

#endif
