#include "server/route.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "server/admin.h"
#include "server/render.h"
#include "server/srv.h"

typedef void handler_fn(struct srv *srv, const struct srv_request *request,
                        struct srv_reply *reply);

void srv_reply_fault(struct srv_reply *reply, const struct srv_fault *fault)
{
    base_buf_clear(&reply->body);
    srv_render_error(&reply->body, fault);
    base_buf_puts(&reply->body, "\n");
    reply->status = fault->status;
    reply->type = "application/json";
    reply->retry = fault->status == 429 || fault->status == 503;
}

void srv_reply_too_large(struct srv *srv, struct srv_reply *reply)
{
    struct srv_fault fault = { 0 };
    srv_fault_set(&fault, 413, "invalid_request_error", "request_too_large", NULL,
                  "the request body is larger than server.body_max (%llu bytes)",
                  (unsigned long long)srv->config.body_max);
    srv_reply_fault(reply, &fault);
}

void srv_reply_crowded(struct srv *srv, struct srv_reply *reply)
{
    struct srv_fault fault = { 0 };
    srv_fault_set(&fault, 503, "server_error", "too_many_bodies", NULL,
                  "the requests that are being sent take %d times server.body_max (%llu bytes) "
                  "together: try again later", SRV_BODIES,
                  (unsigned long long)srv->config.body_max);
    srv_reply_fault(reply, &fault);
}

static void models(struct srv *srv, const struct srv_request *request, struct srv_reply *reply)
{
    (void)request;
    reply->status = 200;
    srv_render_models(&reply->body, srv->model.name, srv->started, srv->model.tokens_max);
}

static void refuse_draining(struct srv_reply *reply)
{
    struct srv_fault fault = { 0 };
    srv_fault_set(&fault, 503, "server_error", "draining", NULL,
                  "the server is shutting down and takes no new requests");
    srv_reply_fault(reply, &fault);
}

static void refuse_busy(struct srv *srv, int rc, struct srv_reply *reply)
{
    struct srv_fault fault = { 0 };
    if (rc == -ESHUTDOWN && srv_failed(srv) == 0) {
        refuse_draining(reply);
        return;
    }
    if (rc == -EBUSY) {
        srv_hub_count_up(&srv->hub, refused_requests);
        srv_fault_set(&fault, 429, "rate_limit_error", "too_many_requests", NULL,
                      "%llu requests are running or waiting, which is server.requests_max: try "
                      "again later", (unsigned long long)srv->config.requests_max);
    } else if (rc == -ESHUTDOWN) {
        srv_fault_set(&fault, 503, "server_error", "engine_failed", NULL,
                      "the engine stopped and the server has to be restarted");
    } else {
        srv_fault_set(&fault, 503, "server_error", "out_of_memory", NULL, "out of memory");
    }
    srv_reply_fault(reply, &fault);
}

static void generate(struct srv *srv, enum srv_endpoint endpoint,
                     const struct srv_request *request, struct srv_reply *reply)
{
    struct srv_fault fault = { 0 };
    if (atomic_load(&srv->draining)) {
        refuse_draining(reply);
        return;
    }
    struct srv_ask ask;
    int rc = srv_ask_parse(&ask, endpoint, request->body, request->size,
                           srv_values_max(srv->model.tokens_max), &fault);
    if (rc == 0) {
        rc = srv_ask_tokenize(&ask, &srv->model, &fault);
    }
    if (rc < 0) {
        srv_ask_fini(&ask);
        srv_reply_fault(reply, &fault);
        return;
    }
    bool stream = ask.stream;
    struct srv_session *session =
        srv_session_create(&srv->hub, &ask, &srv->model, srv->config.answer_buffer);
    rc = session ? srv_drive_submit(&srv->drive, session) : -ENOMEM;
    if (rc < 0) {
        if (session) {
            srv_session_unref(session);     /* both owners: neither took it */
            srv_session_unref(session);
        }
        srv_ask_fini(&ask);
        refuse_busy(srv, rc, reply);
        return;
    }
    srv_hub_count_up(&srv->hub, generations);
    if (stream) {
        srv_hub_count_up(&srv->hub, streams);
    }
    reply->session = session;
}

static void completions(struct srv *srv, const struct srv_request *request,
                        struct srv_reply *reply)
{
    generate(srv, SRV_COMPLETION, request, reply);
}

static void chat(struct srv *srv, const struct srv_request *request, struct srv_reply *reply)
{
    generate(srv, SRV_CHAT, request, reply);
}

static const struct route {
    const char *path;
    const char *method;         /* GET serves HEAD too */
    handler_fn *handle;
} routes[] = {
    { "/v1/chat/completions", "POST", chat },
    { "/v1/completions", "POST", completions },
    { "/v1/models", "GET", models },
    { "/health", "GET", srv_admin_health },
    { "/metrics", "GET", srv_admin_metrics },
    { "/tier/stats", "GET", srv_admin_tier_stats },
};

static bool same_method(const char *wanted, const char *method)
{
    return strcmp(wanted, method) == 0 ||
           (strcmp(wanted, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

/* /v1/models/NAME */
static void one_model(struct srv *srv, const char *name, struct srv_reply *reply)
{
    if (strcmp(name, srv->model.name) == 0) {
        reply->status = 200;
        srv_render_model(&reply->body, srv->model.name, srv->started, srv->model.tokens_max);
        base_buf_puts(&reply->body, "\n");
        return;
    }
    struct srv_fault fault = { 0 };
    srv_fault_set(&fault, 404, "invalid_request_error", "model_not_found", "model",
                  "the model '%.100s' is not served here; '%s' is", name, srv->model.name);
    srv_reply_fault(reply, &fault);
}

static void refuse_method(const struct srv_request *request, const char *path, const char *takes,
                          struct srv_reply *reply)
{
    struct srv_fault fault = { 0 };
    srv_fault_set(&fault, 405, "invalid_request_error", "method_not_allowed", NULL,
                  "%.100s takes %s, not %.20s", path, takes, request->method);
    srv_reply_fault(reply, &fault);
    reply->allow = takes;
}

void srv_route(struct srv *srv, const struct srv_request *request, struct srv_reply *reply)
{
    static const char models_prefix[] = "/v1/models/";
    struct srv_fault fault = { 0 };
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (strcmp(request->path, routes[i].path) != 0) {
            continue;
        }
        if (same_method(routes[i].method, request->method)) {
            routes[i].handle(srv, request, reply);
            return;
        }
        refuse_method(request, routes[i].path, routes[i].method, reply);
        return;
    }
    if (strcmp(request->path, "/tier/config") == 0) {
        srv_fault_set(&fault, 404, "invalid_request_error", "unknown_path", NULL,
                      "/tier/config is served on the admin socket alone (server.admin_listen)");
        srv_reply_fault(reply, &fault);
        return;
    }
    if (strncmp(request->path, models_prefix, sizeof models_prefix - 1) == 0) {
        if (!same_method("GET", request->method)) {
            refuse_method(request, request->path, "GET", reply);
            return;
        }
        one_model(srv, request->path + sizeof models_prefix - 1, reply);
        return;
    }
    srv_fault_set(&fault, 404, "invalid_request_error", "unknown_path", NULL,
                  "nothing is served at %.100s; see /v1/models, /v1/completions, "
                  "/v1/chat/completions, /health, /metrics, /tier/stats", request->path);
    srv_reply_fault(reply, &fault);
}
