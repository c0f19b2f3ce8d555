#include "server/report.h"

#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "engine/report.h"
#include "server/change.h"
#include "server/srv.h"

static void put_text(struct base_buf *to, const char *before, const char *text)
{
    base_buf_puts(to, before);
    base_buf_json_escape(to, text, strlen(text));
    base_buf_puts(to, "\"");
}

static void put_row(struct base_buf *to, const struct tier_report_row *row)
{
    put_text(to, "{\"feature\":\"", row->feature);
    put_text(to, ",\"requested\":\"", row->requested);
    put_text(to, ",\"state\":\"", tier_state_name(row->state));
    put_text(to, ",\"note\":\"", row->note);
    if (row->counter) {
        put_text(to, ",\"counter\":\"", row->counter);
        base_buf_printf(to, ",\"count\":%llu", (unsigned long long)row->count);
    }
    base_buf_puts(to, "}");
}

static void report_admin(struct tier_report *report, const struct srv *srv)
{
    const char *listen = srv->config.admin_listen;
    struct tier_report_row *row = tier_report_add(report, "server.admin_listen", listen);
    bool wanted = strcmp(listen, "off") != 0;
    tier_report_note(row, !wanted ? TIER_OFF : srv->admin ? TIER_ACTIVE : TIER_REFUSED, "%s",
                     !wanted      ? "settings change by SIGHUP only"
                     : srv->admin ? "PUT /tier/config is served"
                                  : "no socket could be made; the log says why");
}

static void report_company(struct tier_report *report, uint64_t wait_ns)
{
    char text[16];
    struct tier_report_row *row =
        tier_report_add(report, "scheduler.batch_wait_timeout",
                        wait_ns ? base_str_duration(text, sizeof text, wait_ns) : "0");
    tier_report_note(row, wait_ns ? TIER_ACTIVE : TIER_OFF, "%s", wait_ns ?
                     "a request that finds nothing running waits for company" :
                     "a request that finds nothing running begins at once");
}

void srv_report_json(struct base_buf *to, struct srv *srv, const struct tier_snapshot *tier)
{
    /* Both are too large for a worker's stack. */
    struct srv_settings *now = malloc(sizeof *now);
    struct tier_report *report = malloc(sizeof *report);
    base_buf_puts(to, "\"report\":[");
    if (now && report) {
        srv_change_current(srv, now);
        eng_report(report, srv->stack, &now->stack, tier);
        report_admin(report, srv);
        report_company(report, now->stack.engine.batch_wait);
        for (uint32_t i = 0; i < report->count; i++) {
            base_buf_puts(to, i ? "," : "");
            put_row(to, &report->rows[i]);
        }
    }
    base_buf_puts(to, "],");
    free(now);
    free(report);
}
