/* The HTTP library (libmicrohttpd): limits, timeouts, threads, and how a connection waits. This is
 * the only place that includes it.
 *
 * A worker thread serves many connections by epoll. A connection whose answer is not there yet is
 * suspended, which costs nothing; the hub's watch thread resumes it.
 */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include "base/err.h"

struct srv;
struct srv_http;

struct srv_request;
struct srv_reply;

struct srv_http_args {
    int listen_fd;              /* listens already; owned from success on */
    unsigned threads, connections;
    void (*route)(struct srv *srv, const struct srv_request *request, struct srv_reply *reply);
};

/* Serves a socket. */
int srv_http_open(struct srv_http **out, struct srv *srv, const struct srv_http_args *args,
                  struct base_err *err);
/* No connection may be parked any more (srv_hub_shut). */
void srv_http_close(struct srv_http *http);

#endif
