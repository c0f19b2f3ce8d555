/* The admin listener: a unix socket that only this user can open (mode 0600), under the runtime
 * folder of the service or the user. What changes the server is served there and never on the
 * public port.
 */
#ifndef SERVER_ADMIN_SOCKET_H
#define SERVER_ADMIN_SOCKET_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "server/server.h"

enum { SRV_ADMIN_PATH = 108 };      /* what a unix socket's address holds */

/* Where the socket of a server with this configuration and port is; "" when server.admin_listen is
 * off. auto: PORT.sock in $RUNTIME_DIRECTORY, else in $XDG_RUNTIME_DIR/expertier, else in
 * /tmp/expertier-UID. */
int srv_admin_socket_path(char to[SRV_ADMIN_PATH], const struct srv_config *config, unsigned port,
                          struct base_err *err);

/* Binds and listens. A missing folder is made when `make_folder`, which is for the path of `auto`;
 * -ENOENT else. A socket that nobody listens on any more is replaced; one that answers is refused.
 * Returns the descriptor. At start, before there are other threads. */
int srv_admin_socket_open(const char *path, bool make_folder, struct base_err *err);

#endif
