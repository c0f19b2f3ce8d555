/* One HTTP GET on a plain socket: enough for a tool that asks its own server on this machine. */
#ifndef TOOLS_FETCH_H
#define TOOLS_FETCH_H

#include "base/buf.h"
#include "base/err.h"

/* GETs `path` of the server at `url` ("http://HOST:PORT" or "unix:/PATH"). Returns
 * the HTTP status with the body appended; -ECONNREFUSED and other codes with a sentence,
 * BASE_ETORN for a body that ends before its length. Waits at most about 10 s. */
int cli_fetch(const char *url, const char *path, struct base_buf *body, struct base_err *err);

#endif
