/* Method and path -> handler. Knows nothing of the HTTP library. Any HTTP thread. */
#ifndef SERVER_ROUTE_H
#define SERVER_ROUTE_H

#include <stddef.h>

#include "base/buf.h"
#include "server/session.h"

struct srv;

struct srv_request {
    const char *method;
    const char *path;
    const char *body;
    size_t size;
    /* Value of a query argument, or NULL. */
    const char *(*argument)(void *context, const char *name);
    void *context;
};

struct srv_reply {
    int status;
    const char *type;           /* Content-Type */
    struct base_buf body;
    const char *allow;          /* 405: the methods that would be right */
    bool retry;                 /* Retry-After: 1 */
    struct srv_session *session;    /* set: the answer comes from there, status is not set */
};

/* Fills the reply (its buffer is initialised by the caller). */
void srv_route(struct srv *srv, const struct srv_request *request, struct srv_reply *reply);

/* A reply that is a fault in the API's shape. */
void srv_reply_fault(struct srv_reply *reply, const struct srv_fault *fault);
/* The fault of a body that is too large. */
void srv_reply_too_large(struct srv *srv, struct srv_reply *reply);
void srv_reply_crowded(struct srv *srv, struct srv_reply *reply);

#endif
