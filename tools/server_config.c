#include "tools/server_config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "engine/limits.h"
#include "port/yaml.h"
#include "server/admin_socket.h"
#include "server/cors.h"
#include "tools/fetch.h"

/* configs/cpu-only.yaml, made into a string by the build. */
static const char embedded_config[] =
#include "tools/embedded_config.inc"
    ;
static const char embedded_name[] = "configs/cpu-only.yaml (built in)";

const char *cli_server_config_name(const struct cli_server_source *from)
{
    return from->file ? from->file : embedded_name;
}

static int set_flag(const struct base_option_group *groups, size_t count, const char *flag,
                    const char *key, const char *value, struct base_err *err)
{
    struct base_option_source source = { .file = flag };
    return value ? base_option_set(groups, count, key, value, &source, false, err) : 0;
}

char *cli_server_config_command_line(const struct cli_server_source *from)
{
    struct base_buf text;
    size_t size;
    base_buf_init(&text);
    for (unsigned i = 0; from->set && i < from->set->count; i++) {
        base_buf_printf(&text, "%s\n", from->set->text[i]);
    }
    if (from->listen) base_buf_printf(&text, "server.listen=%s\n", from->listen);
    if (from->port) base_buf_printf(&text, "server.port=%s\n", from->port);
    if (from->trace) base_buf_printf(&text, "trace.path=%s\n", from->trace);
    base_buf_append(&text, "", 1);
    char *taken = base_buf_take(&text, &size);
    if (!taken) base_buf_fini(&text);
    return taken;
}

/* Pairs, one a line; `lines` is cut up. */
static int set_lines(const struct base_option_group *groups, size_t count, char *lines,
                     struct base_err *err)
{
    char *rest = NULL;
    int rc = 0;
    for (char *line = strtok_r(lines, "\n", &rest); rc >= 0 && line;
         line = strtok_r(NULL, "\n", &rest)) {
        rc = base_option_set_pair(groups, count, line, err);
    }
    return rc;
}

int cli_server_config_read(struct srv_settings *to, const struct cli_server_source *from,
                           struct base_err *err)
{
    struct base_option_group groups[SRV_SETTINGS_GROUPS];
    size_t count = srv_settings_groups(to, groups);
    base_option_defaults(groups, count);
    int rc = from->file ? port_yaml_load(from->file, groups, count, err)
                        : port_yaml_parse(embedded_config, sizeof embedded_config - 1,
                                          embedded_name, groups, count, err);
    if (rc >= 0 && from->running && from->running->command_line.size > 0) {
        char *lines = strdup(from->running->command_line.data);
        rc = lines ? set_lines(groups, count, lines, err)
                   : base_err_set(err, -ENOMEM, "out of memory");
        free(lines);
    }
    struct srv_config before = to->server;
    for (unsigned i = 0; rc >= 0 && from->set && i < from->set->count; i++) {
        rc = base_option_set_pair(groups, count, from->set->text[i], err);
    }
    if (rc >= 0) rc = set_flag(groups, count, "--listen", "server.listen", from->listen, err);
    if (rc >= 0) rc = set_flag(groups, count, "--port", "server.port", from->port, err);
    if (rc >= 0) rc = set_flag(groups, count, "--trace", "trace.path", from->trace, err);
    if (from->running) {
        to->server.port = before.port;
        memcpy(to->server.admin_listen, before.admin_listen, sizeof before.admin_listen);
    }
    if (rc >= 0) rc = srv_cors_check(to->server.cors_origins, err);
    if (rc >= 0 && !from->schema_only) rc = eng_stack_check(&to->stack, err);
    return rc < 0 ? rc : 0;
}

/* -- sense ------------------------------------------------------------------------------------ */

static int check_model(const struct srv_settings *settings, const char *dir, char *note,
                       size_t note_size, struct base_err *err)
{
    const struct eng_stack_config *config = &settings->stack;
    const char *index = config->tier.nvme_index[0] ? config->tier.nvme_index : NULL;
    struct model_shape shape;
    struct tier_store *store = NULL;
    struct eng_limits limits;
    int rc = model_shape_load(&shape, dir, err);
    if (rc == 0) rc = eng_limits_of(&limits, &config->engine, &shape, err);
    if (rc < 0) return rc;
    rc = tier_store_open(&store, dir, index, &shape, err);
    if (rc == -ENOENT) {
        snprintf(note, note_size, "%s has no expert index yet: the sizes of its tiers are checked "
                 "once tier-pack index, or a first start, has made it", dir);
        return 0;
    }
    if (rc == 0) rc = tier_config_fits(&config->tier, store, shape.top_k, err);
    tier_store_close(store);
    return rc;
}

int cli_server_config_check(const struct srv_settings *settings, const char *model_dir, char *note,
                            size_t note_size, struct base_err *err)
{
    char path[SRV_ADMIN_PATH];
    note[0] = '\0';
    int rc = tier_config_check(&settings->stack.tier, err);
    if (rc == 0) {
        rc = srv_admin_socket_path(path, &settings->server, (unsigned)settings->server.port, err);
    }
    if (rc == 0 && model_dir) rc = check_model(settings, model_dir, note, note_size, err);
    return rc < 0 ? rc : 0;
}

/* -- difference ------------------------------------------------------------------------------- */

static int ask(const char *path, const char *what, struct base_buf *body, struct base_err *err)
{
    char url[SRV_ADMIN_PATH + 8];
    snprintf(url, sizeof url, "unix:%s", path);
    base_buf_init(body);
    int rc = cli_fetch(url, what, body, err);
    if (rc >= 0 && rc != 200) {
        rc = base_err_set(err, BASE_EFORMAT, "%s: GET %s was answered with status %d", path, what,
                          rc);
    }
    if (rc >= 0) base_buf_append(body, "", 1);
    return rc < 0 ? rc : base_buf_error(body);
}

int cli_server_config_ask(struct cli_server_running *running, const struct srv_settings *settings,
                          struct base_err *err)
{
    struct base_option_group groups[SRV_SETTINGS_GROUPS];
    struct base_buf body;
    struct base_err why = { 0 };
    size_t count = srv_settings_groups(&running->settings, groups);
    base_option_defaults(groups, count);
    base_buf_init(&running->command_line);
    running->there = false;
    int rc = srv_admin_socket_path(running->path, &settings->server,
                                   (unsigned)settings->server.port, err);
    if (rc < 0 || !running->path[0]) return rc;
    rc = ask(running->path, "/tier/config", &body, &why);
    if (rc >= 0) {
        rc = port_yaml_parse(body.data, body.size - 1, running->path, groups, count, &why);
    }
    base_buf_fini(&body);
    if (rc == -ENOENT || rc == -ECONNREFUSED) return 0;
    if (rc >= 0) {
        rc = ask(running->path, "/tier/config?from=command_line", &running->command_line, &why);
    }
    running->there = rc >= 0;
    return rc < 0 ? base_err_set(err, rc, "%s", why.text) : 0;
}

void cli_server_config_forget(struct cli_server_running *running)
{
    base_buf_fini(&running->command_line);
}

struct lines {
    FILE *to;
    unsigned live, fixed;
};

static void print_line(void *context, const char *key, const char *was, const char *is, bool live)
{
    struct lines *lines = context;
    lines->live += live;
    lines->fixed += !live;
    fprintf(lines->to, "%-10s %s: %s -> %s\n", live ? "live" : "restart", key,
            was[0] ? was : "\"\"", is[0] ? is : "\"\"");
}

void cli_server_config_diff(const struct cli_server_running *running,
                            const struct srv_settings *settings, FILE *to)
{
    struct lines lines = { .to = to };
    const char *path = running->path;
    fprintf(stderr, "compared with %s%s\n", running->there ? "the running server at " :
            path[0] ? "the defaults: no server answers at " : "the defaults", path);
    srv_settings_diff(&running->settings, settings, print_line, &lines);
    fprintf(stderr, "%u settings differ: %u live, %u with a restart\n", lines.live + lines.fixed,
            lines.live, lines.fixed);
}
