#include "server/change.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/ledger.h"
#include "base/log.h"
#include "server/srv.h"

/* What one comparison found. */
struct found {
    struct base_buf *report;    /* may be NULL */
    const char *source;
    bool log;
    unsigned fixed;             /* keys that need a restart */
    char keys[256];             /* the first of them */
};

void srv_change_current(struct srv *srv, struct srv_settings *out)
{
    pthread_mutex_lock(&srv->settings_lock);
    *out = *srv->settings;
    pthread_mutex_unlock(&srv->settings_lock);
}

static void put_text(struct base_buf *to, const char *before, const char *text)
{
    base_buf_puts(to, before);
    base_buf_json_escape(to, text, strlen(text));
    base_buf_puts(to, "\"");
}

static void note(void *context, const char *key, const char *was, const char *is, bool live)
{
    struct found *f = context;
    if (!live) {
        size_t used = strlen(f->keys);
        snprintf(f->keys + used, sizeof f->keys - used, "%s%s", f->fixed ? ", " : "", key);
        f->fixed++;
    }
    if (f->log) {
        base_log(BASE_LOG_INFO, "server", "setting changed: %s: %s -> %s by=%s", key, was, is,
                 f->source);
    }
    if (!f->report) return;
    put_text(f->report, f->report->size > 0 && f->report->data[f->report->size - 1] == '}'
                            ? ",{\"key\":\"" : "{\"key\":\"", key);
    put_text(f->report, ",\"was\":\"", was);
    put_text(f->report, ",\"is\":\"", is);
    base_buf_puts(f->report, "}");
}

/* -- on the engine thread --------------------------------------------------------------------- */

struct job {
    struct srv_drive_job base;  /* first */
    struct tier *tier;
    const struct tier_config *config;
    struct base_err *err;
    int rc;
};

static void run_job(struct srv_drive_job *base)
{
    struct job *job = (struct job *)base;
    job->rc = tier_reconfigure(job->tier, job->config, job->err);
}

bool srv_change_idle(void *context)
{
    struct srv *srv = context;
    tier_poll(srv->stack->tier);
    return tier_shrink(srv->stack->tier);
}

/* -- any other thread ------------------------------------------------------------------------- */

void srv_change_begin(struct srv *srv, struct srv_settings *out)
{
    pthread_mutex_lock(&srv->change_lock);
    if (out) srv_change_current(srv, out);
}

void srv_change_end(struct srv *srv)
{
    pthread_mutex_unlock(&srv->change_lock);
}

static int apply_locked(struct srv *srv, const struct srv_settings *to, struct found *found,
                        struct base_err *err)
{
    unsigned count = srv_settings_diff(srv->settings, to, note, found);
    if (found->fixed > 0) {
        return base_err_set(err, BASE_ECONFIG, "%s: %s a restart; nothing was changed", found->keys,
                            found->fixed == 1 ? "a change of it needs" : "changes of them need");
    }
    if (count == 0) return 0;
    if (srv->stack->ranks.count > 1) {
        return base_err_set(err, BASE_ECONFIG, "this server has %u ranks, each with tiers of its "
                            "own: settings change with a restart of all of them",
                            srv->stack->ranks.count);
    }
    int rc = eng_stack_check(&to->stack, err);
    if (rc < 0) return rc;
    struct tier_config config = to->stack.tier;
    if (!srv->stack->advice) config.prefetch = 0;       /* nobody gives hints: auto is false */
    struct base_ledger_limit limit;
    base_ledger_limit(&limit, "");
    rc = eng_stack_check_growth(srv->stack, &config, &limit, err);
    if (rc < 0) return rc;
    struct job job = { .base = { .run = run_job }, .tier = srv->stack->tier,
                       .config = &config, .err = err };
    rc = srv_drive_run(&srv->drive, &job.base);
    if (rc < 0) return base_err_set(err, rc, "the server is shutting down");
    if (job.rc < 0) return job.rc;
    found->log = true;
    found->report = NULL;
    srv_settings_diff(srv->settings, to, note, found);
    pthread_mutex_lock(&srv->settings_lock);
    *srv->settings = *to;
    pthread_mutex_unlock(&srv->settings_lock);
    return 0;
}

int srv_change_apply(struct srv *srv, const struct srv_settings *to, const char *source,
                     struct base_buf *report, struct base_err *err)
{
    struct found found = { .report = report, .source = source };
    if (report) base_buf_puts(report, "[");
    int rc = apply_locked(srv, to, &found, err);
    if (report) base_buf_puts(report, "]");
    if (rc < 0) {
        srv_hub_count_up(&srv->hub, refused_changes);
        base_log(BASE_LOG_WARN, "server", "settings not changed: %s by=%s", err->text, source);
    }
    return rc;
}
