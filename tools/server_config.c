#include "tools/server_config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "engine/limits.h"
#include "port/yaml.h"
#include "server/admin_socket.h"
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

int cli_server_config_read(struct srv_settings *to, const struct cli_server_source *from,
                           struct base_err *err)
{
    struct base_option_group groups[SRV_SETTINGS_GROUPS];
    size_t count = srv_settings_groups(to, groups);
    base_option_defaults(groups, count);
    int rc = from->file ? port_yaml_load(from->file, groups, count, err)
                        : port_yaml_parse(embedded_config, sizeof embedded_config - 1,
                                          embedded_name, groups, count, err);
    for (unsigned i = 0; rc >= 0 && from->set && i < from->set->count; i++) {
        rc = base_option_set_pair(groups, count, from->set->text[i], err);
    }
    if (rc >= 0) rc = set_flag(groups, count, "--listen", "server.listen", from->listen, err);
    if (rc >= 0) rc = set_flag(groups, count, "--port", "server.port", from->port, err);
    if (rc >= 0) rc = set_flag(groups, count, "--trace", "trace.path", from->trace, err);
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

/* The settings of the server that runs with this admin socket. 0, or how it could not be asked. */
static int ask_server(const char *path, struct srv_settings *running, struct base_err *err)
{
    struct base_option_group groups[SRV_SETTINGS_GROUPS];
    size_t count = srv_settings_groups(running, groups);
    struct base_buf body;
    char url[SRV_ADMIN_PATH + 8];
    base_option_defaults(groups, count);
    snprintf(url, sizeof url, "unix:%s", path);
    base_buf_init(&body);
    int rc = cli_fetch(url, "/tier/config", &body, err);
    if (rc >= 0 && rc != 200) {
        rc = base_err_set(err, BASE_EFORMAT, "%s: GET /tier/config was answered with status %d",
                          path, rc);
    }
    if (rc >= 0) rc = port_yaml_parse(body.data, body.size, path, groups, count, err);
    base_buf_fini(&body);
    return rc < 0 ? rc : 0;
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

int cli_server_config_diff(const struct srv_settings *settings, FILE *to, struct base_err *err)
{
    char path[SRV_ADMIN_PATH];
    struct srv_settings *base = calloc(1, sizeof *base);
    struct lines lines = { .to = to };
    struct base_err why = { 0 };
    if (!base) return base_err_set(err, -ENOMEM, "out of memory");
    int rc = srv_admin_socket_path(path, &settings->server, (unsigned)settings->server.port, err);
    if (rc < 0) goto done;
    rc = path[0] ? ask_server(path, base, &why) : -ENOENT;
    bool running = rc == 0;
    if (rc == -ENOENT || rc == -ECONNREFUSED) {
        struct base_option_group groups[SRV_SETTINGS_GROUPS];
        base_option_defaults(groups, srv_settings_groups(base, groups));
    } else if (rc < 0) {
        base_err_set(err, rc, "%s", why.text);
        goto done;
    }
    rc = 0;
    fprintf(stderr, "compared with %s%s\n", running ? "the running server at " :
            path[0] ? "the defaults: no server answers at " : "the defaults", path);
    srv_settings_diff(base, settings, print_line, &lines);
    fprintf(stderr, "%u settings differ: %u live, %u with a restart\n", lines.live + lines.fixed,
            lines.live, lines.fixed);
done:
    free(base);
    return rc;
}
