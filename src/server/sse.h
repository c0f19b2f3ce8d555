/* Frames of a text/event-stream body. Appending only; errors are sticky in the buffer. */
#ifndef SERVER_SSE_H
#define SERVER_SSE_H

#include <stddef.h>

#include "base/buf.h"

/* "data: ...\n\n"; text with line ends becomes several data lines of one event. */
void srv_sse_data(struct base_buf *to, const char *text, size_t size);
/* A line that clients skip: keeps proxies from closing a quiet stream. */
void srv_sse_comment(struct base_buf *to, const char *text);
/* "data: [DONE]\n\n" */
void srv_sse_done(struct base_buf *to);

#endif
