#include "server/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "server/cors.h"
#include "server/hub.h"
#include "server/route.h"
#include "server/srv.h"

enum { STREAM_BLOCK = 16384, DISCARD_FACTOR = 8, PATH_LOGGED = 64 };

struct srv_http {
    struct srv *srv;
    struct srv_http_args args;
    struct MHD_Daemon *daemon;
};

/* One request on its way through the library's callbacks. */
struct exchange {
    struct srv *srv;
    const struct srv_http *http;
    struct MHD_Connection *connection;
    struct base_buf body;
    uint64_t received;
    bool begun;
    bool too_large;
    bool crowded;               /* other bodies have taken the room */
    size_t held;                /* counted in srv->body_bytes */
    struct srv_session *session;
    int status;
    uint64_t begun_ns;
    char path[PATH_LOGGED];     /* for the log: cut, and on one line */
};

static void park(void *context)
{
    MHD_suspend_connection(context);
}

static void unpark(void *context)
{
    MHD_resume_connection(context);
}

static const char *argument(void *context, const char *name)
{
    return MHD_lookup_connection_value(context, MHD_GET_ARGUMENT_KIND, name);
}

static void add_header(struct MHD_Response *response, const char *name, const char *value)
{
    MHD_add_response_header(response, name, value);
}

static const char *header(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

/* Lets a page of another origin read the response. Errors too: else its script sees no reason. */
static void add_origin(struct exchange *x, struct MHD_Response *response)
{
    const char *list = x->srv->config.cors_origins;
    const char *allowed = srv_cors_allows(list, header(x, "Origin"));
    if (allowed) {
        add_header(response, "Access-Control-Allow-Origin", allowed);
        add_header(response, "Access-Control-Expose-Headers", "Retry-After");
    }
    /* With a list the response hangs on who asks, and caches are to know. */
    if (list[0]) {
        add_header(response, "Vary", "Origin");
    }
}

/* A browser asks before it sends another page's request: is the origin allowed? */
static bool is_preflight(const struct exchange *x, const char *method)
{
    return strcmp(method, MHD_HTTP_METHOD_OPTIONS) == 0 &&
           header(x, "Access-Control-Request-Method") &&
           srv_cors_allows(x->srv->config.cors_origins, header(x, "Origin"));
}

static enum MHD_Result send_preflight(struct exchange *x)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (!response) {
        return MHD_NO;
    }
    add_origin(x, response);
    add_header(response, "Access-Control-Allow-Methods", "GET, HEAD, POST");
    const char *headers = header(x, "Access-Control-Request-Headers");
    if (headers) {
        add_header(response, "Access-Control-Allow-Headers", headers);
    }
    add_header(response, "Access-Control-Max-Age", "600");
    x->status = MHD_HTTP_NO_CONTENT;
    enum MHD_Result queued = MHD_queue_response(x->connection, MHD_HTTP_NO_CONTENT, response);
    MHD_destroy_response(response);
    return queued;
}

/* Sends a whole reply and ends its buffer. */
static enum MHD_Result send_reply(struct exchange *x, struct srv_reply *reply)
{
    if (base_buf_error(&reply->body) < 0) {
        base_buf_fini(&reply->body);
        return MHD_NO;
    }
    size_t size = reply->body.size;
    char *bytes = base_buf_take(&reply->body, &size);
    struct MHD_Response *response =
        MHD_create_response_from_buffer(size, bytes, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(bytes);
        return MHD_NO;
    }
    add_header(response, "Content-Type", reply->type);
    if (reply->allow) {
        add_header(response, "Allow", reply->allow);
    }
    if (reply->retry) {
        add_header(response, "Retry-After", "1");
    }
    add_origin(x, response);
    x->status = reply->status;
    enum MHD_Result queued =
        MHD_queue_response(x->connection, (unsigned)reply->status, response);
    MHD_destroy_response(response);
    return queued;
}

static ssize_t read_stream(void *context, uint64_t position, char *to, size_t size)
{
    struct exchange *x = context;
    (void)position;
    for (;;) {
        ssize_t n = srv_session_read(x->session, to, size);
        if (n == -1) {
            return MHD_CONTENT_READER_END_OF_STREAM;
        }
        if (n == -2) {
            return MHD_CONTENT_READER_END_WITH_ERROR;
        }
        if (n > 0 || srv_hub_park(&x->srv->hub, x->session, park, x->connection)) {
            return n;
        }
    }
}

static enum MHD_Result send_stream(struct exchange *x)
{
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, x, NULL);
    if (!response) {
        return MHD_NO;
    }
    add_header(response, "Content-Type", "text/event-stream; charset=utf-8");
    add_header(response, "Cache-Control", "no-cache");
    add_header(response, "X-Accel-Buffering", "no");
    add_origin(x, response);
    x->status = MHD_HTTP_OK;
    srv_hub_stream(&x->srv->hub, x->session);
    enum MHD_Result queued = MHD_queue_response(x->connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return queued;
}

/* The request was handed to the engine: answers, begins to stream, or waits. */
static enum MHD_Result carry_on(struct exchange *x)
{
    for (;;) {
        switch (srv_session_advance(x->session)) {
        case SRV_SESSION_WAIT:
            if (srv_hub_park(&x->srv->hub, x->session, park, x->connection)) {
                return MHD_YES;
            }
            break;
        case SRV_SESSION_STREAM: return send_stream(x);
        case SRV_SESSION_REPLY: {
            struct srv_reply reply = { .type = "application/json" };
            base_buf_init(&reply.body);
            reply.status = srv_session_reply(x->session, &reply.body);
            reply.retry = reply.status == 503;
            return send_reply(x, &reply);
        }
        case SRV_SESSION_ABORT: return MHD_NO;
        }
    }
}

static void keep_path(struct exchange *x, const char *path)
{
    snprintf(x->path, sizeof x->path, "%s", path);
    for (char *c = x->path; *c; c++) {
        if ((unsigned char)*c <= ' ' || (unsigned char)*c >= 0x7f) *c = '?';
    }
}

static void free_body(struct exchange *x)
{
    base_buf_fini(&x->body);
    base_buf_init(&x->body);
    atomic_fetch_sub(&x->srv->body_bytes, x->held);
    x->held = 0;
}

/* Room for `more` bytes of the body, of what all bodies together may take. */
static bool body_room(struct exchange *x, size_t more)
{
    const size_t size = x->body.size + more;
    const size_t add = (size > SRV_BODY_SMALL ? size - SRV_BODY_SMALL : 0) - x->held;
    const size_t most = (size_t)SRV_BODIES * x->srv->config.body_max;
    if (add > 0 && atomic_fetch_add(&x->srv->body_bytes, add) + add > most) {
        atomic_fetch_sub(&x->srv->body_bytes, add);
        return false;
    }
    x->held += add;
    return true;
}

static enum MHD_Result answer(struct exchange *x, const char *method, const char *path)
{
    struct srv_request request = {
        .method = method,
        .path = path,
        .body = x->body.data ? x->body.data : "",
        .size = x->body.size,
        .argument = argument,
        .context = x->connection,
    };
    struct srv_reply reply = { .type = "application/json" };
    base_buf_init(&reply.body);
    keep_path(x, path);
    if (is_preflight(x, method)) {
        base_buf_fini(&reply.body);
        free_body(x);
        return send_preflight(x);
    }
    if (x->too_large) {
        srv_reply_too_large(x->srv, &reply);
    } else if (x->crowded) {
        srv_reply_crowded(x->srv, &reply);
    } else {
        x->http->args.route(x->srv, &request, &reply);
    }
    free_body(x);
    if (!reply.session) {
        return send_reply(x, &reply);
    }
    base_buf_fini(&reply.body);
    x->session = reply.session;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    srv_hub_join(&x->srv->hub, x->session, info ? info->connect_fd : -1, unpark, x->connection);
    return carry_on(x);
}

/* A length that is announced and too large is refused before it is sent. */
static bool announces_too_much(struct exchange *x)
{
    const char *length =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Content-Length");
    uint64_t bytes;
    return length && base_str_u64_parse(length, &bytes) == 0 && bytes > x->srv->config.body_max;
}

static enum MHD_Result handle(void *context, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *data_size, void **state)
{
    struct exchange *x = *state;
    (void)context, (void)version;
    if (!x) {
        return MHD_NO;          /* begin was out of memory */
    }
    if (!x->begun) {
        x->begun = true;
        x->connection = connection;
        if (announces_too_much(x)) {
            x->too_large = true;
            return answer(x, method, url);
        }
        return MHD_YES;
    }
    if (*data_size > 0) {
        /* Without an announced length the rest is read and thrown away, up to a bound, because a
         * reply can only be given after it. */
        x->received += *data_size;
        x->too_large |= x->received > x->srv->config.body_max;
        if (!x->too_large && !x->crowded) {
            x->crowded = !body_room(x, *data_size);
            if (!x->crowded) base_buf_append(&x->body, data, *data_size);
        }
        if (x->too_large || x->crowded) free_body(x);
        *data_size = 0;
        bool give_up = x->received > DISCARD_FACTOR * x->srv->config.body_max;
        return give_up || base_buf_error(&x->body) < 0 ? MHD_NO : MHD_YES;
    }
    return x->session ? carry_on(x) : answer(x, method, url);
}

static void *begin(void *context, const char *uri, struct MHD_Connection *connection)
{
    struct srv_http *http = context;
    struct exchange *x = calloc(1, sizeof *x);
    (void)uri, (void)connection;
    if (x) {
        x->srv = http->srv;
        x->http = http;
        x->begun_ns = base_now_ns();
        base_buf_init(&x->body);
    }
    return x;
}

static void completed(void *context, struct MHD_Connection *connection, void **state,
                      enum MHD_RequestTerminationCode how)
{
    struct exchange *x = *state;
    (void)context, (void)connection, (void)how;
    if (!x) {
        return;
    }
    struct srv_hub *hub = &x->srv->hub;
    pthread_mutex_lock(&hub->metrics_lock);
    hub->metrics.requests++;
    hub->metrics.received_bytes += x->received;
    hub->metrics.client_errors += x->status >= 400 && x->status < 500;
    hub->metrics.server_errors += x->status >= 500;
    pthread_mutex_unlock(&hub->metrics_lock);
    if (x->session) {
        srv_session_log(x->session, x->status);
        srv_hub_leave(hub, x->session);
    } else if (x->status >= 400) {
        base_log(BASE_LOG_DEBUG, "request", "%s refused status=%d total_ms=%.1f", x->path,
                 x->status, (double)(base_now_ns() - x->begun_ns) / 1e6);
    }
    free_body(x);
    free(x);
    *state = NULL;
}

static void log_line(void *context, const char *format, va_list args) BASE_PRINTF(2, 0);
static void log_line(void *context, const char *format, va_list args)
{
    char line[512];
    (void)context;
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = '\0';
    base_log(BASE_LOG_DEBUG, "http", "%s", line);
}

int srv_http_open(struct srv_http **out, struct srv *srv, const struct srv_http_args *args,
                  struct base_err *err)
{
    const struct srv_config *config = &srv->config;
    struct srv_http *http = calloc(1, sizeof *http);
    if (!http) {
        return base_err_set(err, -ENOMEM, "out of memory");
    }
    http->srv = srv;
    http->args = *args;
    unsigned connections = args->connections, threads = args->threads;
    threads = threads > connections ? connections : threads;
    struct MHD_OptionItem options[] = {
        { MHD_OPTION_EXTERNAL_LOGGER, (intptr_t)log_line, NULL },   /* first: later ones may log */
        { MHD_OPTION_LISTEN_SOCKET, args->listen_fd, NULL },
        { MHD_OPTION_URI_LOG_CALLBACK, (intptr_t)begin, http },
        { MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)completed, http },
        { MHD_OPTION_CONNECTION_LIMIT, (intptr_t)connections, NULL },
        { MHD_OPTION_CONNECTION_TIMEOUT, (intptr_t)(config->idle_timeout / 1000000000), NULL },
        { MHD_OPTION_CONNECTION_MEMORY_LIMIT, (intptr_t)config->header_max, NULL },
        { threads > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, (intptr_t)threads, NULL },
        { MHD_OPTION_END, 0, NULL },
    };
    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL,
        NULL, handle, http, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
    if (!http->daemon) {
        free(http);
        return base_err_set(err, -EIO, "cannot start the HTTP library with %u threads and %u "
                            "connections (see --log-level debug)", threads, connections);
    }
    *out = http;
    return 0;
}

void srv_http_close(struct srv_http *http)
{
    if (!http) {
        return;
    }
    MHD_stop_daemon(http->daemon);
    free(http);
}
