/* GET and PUT /tier/config, on the admin socket. Any HTTP thread; PUT waits for the running
 * step. */
#ifndef SERVER_ADMIN_CONFIG_H
#define SERVER_ADMIN_CONFIG_H

#include "server/route.h"

/* What the admin socket serves: /tier/config, and all that the public port does. */
void srv_admin_route(struct srv *srv, const struct srv_request *request, struct srv_reply *reply);

#endif
