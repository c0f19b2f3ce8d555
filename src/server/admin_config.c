#include "server/admin_config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "port/yaml.h"
#include "server/change.h"
#include "server/srv.h"

static void fail(struct srv_reply *reply, int status, const char *code, const char *text)
{
    struct srv_fault fault = { 0 };
    srv_fault_set(&fault, status, status < 500 ? "invalid_request_error" : "server_error", code,
                  NULL, "%s", text);
    srv_reply_fault(reply, &fault);
}

/* What holds; or what the command line says, which a file does not change. */
static void get(struct srv *srv, struct srv_settings *settings, const struct srv_request *request,
                struct srv_reply *reply)
{
    const char *from = request->argument(request->context, "from");
    if (from && strcmp(from, "command_line") == 0) {
        base_buf_puts(&reply->body, srv->command_line);
        reply->status = 200;
        reply->type = "text/plain; charset=utf-8";
        return;
    }
    if (from) {
        fail(reply, 400, "invalid_value", "'from' must be command_line, or left out");
        return;
    }
    srv_change_current(srv, settings);
    char *yaml = srv_settings_yaml(settings);
    if (!yaml) {
        fail(reply, 503, "out_of_memory", "out of memory");
        return;
    }
    base_buf_puts(&reply->body, yaml);
    free(yaml);
    reply->status = 200;
    reply->type = "application/yaml";
}

static void put_locked(struct srv *srv, struct srv_settings *settings,
                       const struct srv_request *request, struct srv_reply *reply)
{
    struct base_option_group groups[SRV_SETTINGS_GROUPS];
    struct base_err err = { 0 };
    size_t count = srv_settings_groups(settings, groups);
    int rc = port_yaml_parse(request->body, request->size, "request body", groups, count, &err);
    if (rc < 0) {
        fail(reply, 400, "invalid_config", err.text);
        return;
    }
    base_buf_puts(&reply->body, "{\"changed\":");
    rc = srv_change_apply(srv, settings, "PUT", &reply->body, &err);
    base_buf_puts(&reply->body, "}\n");
    reply->status = 200;
    if (rc == -ESHUTDOWN || rc == -ENOMEM) {
        fail(reply, 503, rc == -ENOMEM ? "out_of_memory" : "shutting_down", err.text);
    } else if (rc < 0) {
        fail(reply, 409, "config_refused", err.text);
    }
}

/* The body says what shall be otherwise, as YAML (or JSON, which is YAML too): than what holds when
 * its turn comes, so that a change before it stays. */
static void put(struct srv *srv, struct srv_settings *settings, const struct srv_request *request,
                struct srv_reply *reply)
{
    srv_change_begin(srv, settings);
    put_locked(srv, settings, request, reply);
    srv_change_end(srv);
}

void srv_admin_route(struct srv *srv, const struct srv_request *request, struct srv_reply *reply)
{
    if (strcmp(request->path, "/tier/config") != 0) {
        srv_route(srv, request, reply);
        return;
    }
    bool is_put = strcmp(request->method, "PUT") == 0;
    bool is_get = strcmp(request->method, "GET") == 0 || strcmp(request->method, "HEAD") == 0;
    if (!is_put && !is_get) {
        fail(reply, 405, "method_not_allowed", "/tier/config takes GET and PUT");
        reply->allow = "GET, PUT";
        return;
    }
    /* Too large for a worker's stack. */
    struct srv_settings *settings = calloc(1, sizeof *settings);
    if (!settings) {
        fail(reply, 503, "out_of_memory", "out of memory");
    } else if (is_put) {
        put(srv, settings, request, reply);
    } else {
        get(srv, settings, request, reply);
    }
    free(settings);
}
