/* Other settings while requests run. One change at a time: it is compared with what holds, checked,
 * and applied by the engine thread between two steps; on any error nothing has changed.
 */
#ifndef SERVER_CHANGE_H
#define SERVER_CHANGE_H

#include "base/buf.h"
#include "base/err.h"
#include "server/settings.h"

struct srv;

/* What holds now. Any thread. */
void srv_change_current(struct srv *srv, struct srv_settings *out);

/* Begins a change: what holds now, which no other change alters until srv_change_end. `out` may be
 * NULL: for settings that do not start from those. Waits for a change that is under way. */
void srv_change_begin(struct srv *srv, struct srv_settings *out);
void srv_change_end(struct srv *srv);

/* Between begin and end: makes `to` hold and logs each key that changes; `source` says who asked
 * ("SIGHUP"). Appends the changes to `report` as a JSON array unless it is NULL. Waits for the
 * running step. 0, or BASE_ECONFIG (a key needs a restart, or settings contradict each other),
 * BASE_EBUDGET, -ESHUTDOWN ... with the sentence. Any thread but the engine's. */
int srv_change_apply(struct srv *srv, const struct srv_settings *to, const char *source,
                     struct base_buf *report, struct base_err *err);

/* For the engine thread that has nothing to do: gives memory of fewer slots back; true while there
 * is more. `context` is the struct srv. */
bool srv_change_idle(void *context);

#endif
