/* tier-stats: where the experts come from, read from a running server's /tier/stats. */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/str.h"
#include "port/json.h"
#include "tools/cli.h"
#include "tools/fetch.h"

enum view { VIEW_PHASE, VIEW_TIER, VIEW_LAYER, VIEW_EXPERT };
static const char *const view_names[] = { "phase", "tier", "layer", "expert" };
enum { VIEW_COUNT = sizeof view_names / sizeof view_names[0], CELL_TEXT = 32, COLUMNS_MAX = 12 };

static struct {
    const char *url;
    const char *by;
    uint64_t interval_ns;
    uint64_t limit;
    bool once;
    bool json;
} flags = { .url = "http://127.0.0.1:8000", .by = "phase", .interval_ns = 1000000000, .limit = 24 };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

/* A row being put together for a table. */
struct row {
    char text[COLUMNS_MAX][CELL_TEXT];
    const char *cells[COLUMNS_MAX];
    unsigned count;
};

static void add_text(struct row *row, const char *text)
{
    snprintf(row->text[row->count], CELL_TEXT, "%s", text);
    row->cells[row->count] = row->text[row->count];
    row->count++;
}

static void add_count(struct row *row, double count)
{
    char text[CELL_TEXT];
    snprintf(text, sizeof text, "%.0f", count);
    add_text(row, text);
}

/* A share of nothing is shown as "-": it is not 0. */
static void add_share(struct row *row, double part, double whole)
{
    char text[CELL_TEXT] = "-";
    if (whole > 0) {
        snprintf(text, sizeof text, "%.2f%%", 100 * part / whole);
    }
    add_text(row, text);
}

/* A number somewhere in the document, 0 where it is absent. */
static double number(const struct port_json *object, const char *key)
{
    return port_json_as_double(port_json_get(object, key));
}

static const char *text_of(const struct port_json *object, const char *key)
{
    const char *text = port_json_text(port_json_get(object, key), NULL);
    return text ? text : "?";
}

/* Growth per second between two documents; negative when there is no earlier one. */
static double rate(const struct port_json *now, const struct port_json *before, const char *part,
                   const char *key)
{
    double seconds = before ? number(now, "time_seconds") - number(before, "time_seconds") : 0;
    if (seconds <= 0 || number(before, "pid") != number(now, "pid")) {
        return -1;
    }
    double grown = number(port_json_get(now, part), key) - number(port_json_get(before, part), key);
    return grown / seconds;
}

static int print_table(struct cli_table *table, FILE *to)
{
    cli_table_print(table, to);
    cli_table_destroy(table);
    return 0;
}

static int show_phases(const struct port_json *now, FILE *to)
{
    static const char *const heads[] = { "tier", "phase", "lookups", "resident", "misses",
                                         "resident rate", "evictions" };
    static const char *const phases[] = { "cold_start", "prefill", "decode" };
    struct cli_table *table;
    int rc = cli_table_create(&table, 7, heads);
    if (rc < 0) return rc;
    const struct port_json *tiers = port_json_get(now, "tiers");
    for (size_t t = 0; t < port_json_count(tiers); t++) {
        const struct port_json *tier = port_json_at(tiers, t);
        for (size_t p = 0; p < sizeof phases / sizeof phases[0]; p++) {
            const struct port_json *cell = port_json_get(port_json_get(tier, "phases"), phases[p]);
            struct row row = { .count = 0 };
            add_text(&row, p == 0 ? text_of(tier, "name") : "");
            add_text(&row, phases[p]);
            add_count(&row, number(cell, "lookups"));
            add_count(&row, number(cell, "resident"));
            add_count(&row, number(cell, "misses"));
            add_share(&row, number(cell, "resident"), number(cell, "lookups"));
            add_count(&row, number(cell, "evictions"));
            cli_table_row(table, row.cells);
        }
    }
    return print_table(table, to);
}

static int show_tiers(const struct port_json *now, FILE *to)
{
    static const char *const heads[] = { "tier", "lookups", "hits", "late", "misses", "evictions",
                                         "slots", "held", "memory" };
    struct cli_table *table;
    int rc = cli_table_create(&table, 9, heads);
    if (rc < 0) return rc;
    const struct port_json *tiers = port_json_get(now, "tiers");
    for (size_t t = 0; t < port_json_count(tiers); t++) {
        const struct port_json *tier = port_json_at(tiers, t);
        struct row row = { .count = 0 };
        char bytes[CELL_TEXT];
        add_text(&row, text_of(tier, "name"));
        add_count(&row, number(tier, "lookups"));
        add_count(&row, number(tier, "hits"));
        add_count(&row, number(tier, "late"));
        add_count(&row, number(tier, "misses"));
        add_count(&row, number(tier, "evictions"));
        add_count(&row, number(tier, "slots"));
        add_count(&row, number(tier, "resident_slots"));
        add_text(&row, base_str_bytes(bytes, sizeof bytes,
                                      (uint64_t)number(tier, "capacity_bytes")));
        cli_table_row(table, row.cells);
    }
    return print_table(table, to);
}

static int show_layers(const struct port_json *now, FILE *to)
{
    static const char *const heads[] = { "layer", "lookups", "resident", "misses", "resident rate",
                                         "evictions", "hinted", "prefetched", "of it used", "loads",
                                         "mean load", "longest" };
    struct cli_table *table;
    int rc = cli_table_create(&table, 12, heads);
    if (rc < 0) return rc;
    const struct port_json *layers = port_json_get(now, "layers");
    for (size_t l = 0; l < port_json_count(layers); l++) {
        const struct port_json *layer = port_json_at(layers, l);
        struct row row = { .count = 0 };
        char time[CELL_TEXT];
        add_count(&row, number(layer, "layer"));
        add_count(&row, number(layer, "lookups"));
        add_count(&row, number(layer, "resident"));
        add_count(&row, number(layer, "misses"));
        add_share(&row, number(layer, "resident"), number(layer, "lookups"));
        add_count(&row, number(layer, "evictions"));
        add_count(&row, number(layer, "hinted"));
        add_count(&row, number(layer, "prefetched"));
        add_count(&row, number(layer, "prefetch_used"));
        add_count(&row, number(layer, "loads"));
        add_text(&row, base_str_duration(time, sizeof time,
                                         (uint64_t)(1e9 * number(layer, "load_seconds_mean"))));
        add_text(&row, base_str_duration(time, sizeof time,
                                         (uint64_t)(1e9 * number(layer, "load_seconds_max"))));
        cli_table_row(table, row.cells);
    }
    return print_table(table, to);
}

static int show_experts(const struct port_json *now, FILE *to)
{
    static const char *const heads[] = { "layer", "expert", "lookups", "share of its layer",
                                         "resident" };
    struct cli_table *table;
    int rc = cli_table_create(&table, 5, heads);
    if (rc < 0) return rc;
    const struct port_json *experts = port_json_get(now, "experts");
    const struct port_json *layers = port_json_get(now, "layers");
    double first = number(port_json_at(layers, 0), "layer");
    for (size_t e = 0; e < port_json_count(experts); e++) {
        const struct port_json *expert = port_json_at(experts, e);
        const struct port_json *layer =
            port_json_at(layers, (size_t)(number(expert, "layer") - first));
        struct row row = { .count = 0 };
        add_count(&row, number(expert, "layer"));
        add_count(&row, number(expert, "expert"));
        add_count(&row, number(expert, "lookups"));
        add_share(&row, number(expert, "lookups"), number(layer, "lookups"));
        add_text(&row, port_json_as_bool(port_json_get(expert, "resident")) ? "yes" : "no");
        cli_table_row(table, row.cells);
    }
    return print_table(table, to);
}

static void show_rate(FILE *to, const char *what, double per_second)
{
    if (per_second >= 0) {
        fprintf(to, "  %.1f %s", per_second, what);
    }
}

static void show_head(const struct port_json *now, const struct port_json *before, FILE *to)
{
    const struct port_json *engine = port_json_get(now, "engine");
    fprintf(to, "%s  expertier %s  %s  up %.0f s  %.0f steps\n", text_of(now, "model"),
            text_of(now, "version"), text_of(now, "state"), number(now, "up_seconds"),
            number(now, "steps"));
    fprintf(to, "requests: %.0f running, %.0f waiting, %.0f finished, %.0f failed, "
            "%.0f cancelled\n",
            number(engine, "running_requests"), number(engine, "waiting_requests"),
            number(engine, "finished_requests"), number(engine, "failed_requests"),
            number(engine, "cancelled_requests"));
    fprintf(to, "tokens:   %.0f prompt, %.0f generated", number(engine, "prompt_tokens"),
            number(engine, "generated_tokens"));
    show_rate(to, "prompt tok/s", rate(now, before, "engine", "prompt_tokens"));
    show_rate(to, "generated tok/s", rate(now, before, "engine", "generated_tokens"));
    fputs("\n\n", to);
}

static void show_prediction(const struct port_json *now, FILE *to)
{
    const struct port_json *io = port_json_get(now, "io");
    const struct port_json *predictor = port_json_get(now, "predictor");
    char read[CELL_TEXT], wasted[CELL_TEXT];
    double asked = number(predictor, "asked");
    if (number(predictor, "table_bytes") <= 0) return;
    fprintf(to, "ahead: %.1f%% of what layers asked for was predicted; %.0f prefetch reads, %s: "
            "%.0f useful, %.0f late, %s wasted, %.0f cancelled\n",
            asked > 0 ? 100 * number(predictor, "right") / asked : 0, number(io, "prefetch_reads"),
            base_str_bytes(read, sizeof read, (uint64_t)number(io, "prefetch_bytes")),
            number(io, "prefetch_useful"), number(io, "prefetch_late"),
            base_str_bytes(wasted, sizeof wasted, (uint64_t)number(io, "prefetch_wasted_bytes")),
            number(io, "prefetch_cancelled"));
    const char *governor = text_of(predictor, "governor");
    if (governor[0]) fprintf(to, "       %s\n", governor);
}

static void show_reads(const struct port_json *now, const struct port_json *before, FILE *to)
{
    const struct port_json *io = port_json_get(now, "io");
    const struct port_json *latency = port_json_get(io, "read_latency");
    const struct port_json *waits = port_json_get(now, "wait_seconds");
    char bytes[CELL_TEXT], p50[CELL_TEXT], p99[CELL_TEXT];
    fprintf(to, "\nnvme:  %.0f demand reads, %s; read latency p50 %s, p99 %s",
            number(io, "demand_reads"),
            base_str_bytes(bytes, sizeof bytes, (uint64_t)number(io, "demand_bytes")),
            base_str_duration(p50, sizeof p50, (uint64_t)number(latency, "p50")),
            base_str_duration(p99, sizeof p99, (uint64_t)number(latency, "p99")));
    double per_second = rate(now, before, "io", "demand_bytes");
    if (per_second >= 0) {
        fprintf(to, "; now %s/s", base_str_bytes(bytes, sizeof bytes, (uint64_t)per_second));
    }
    fprintf(to, "\nwaits: demand reads %.3f s, late prefetch %.3f s, copies %.3f s, slots %.3f s; "
            "compute %.3f s\n", number(waits, "demand_read"), number(waits, "late_prefetch"),
            number(waits, "copy"), number(waits, "slot_shortage"),
            number(port_json_get(now, "engine"), "compute_seconds"));
    show_prediction(now, to);
    const char *const bad[] = { "checksum_failures", "read_errors", "quarantined" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (number(io, bad[i]) > 0) {
            fprintf(to, "faults: %.0f %s\n", number(io, bad[i]), bad[i]);
        }
    }
    const struct port_json *report = port_json_get(now, "report");
    for (size_t i = 0; i < port_json_count(report); i++) {
        const struct port_json *line = port_json_at(report, i);
        const char *state = text_of(line, "state");
        if (strcmp(state, "degraded") == 0 || strcmp(state, "refused") == 0) {
            fprintf(to, "%s: %s=%s: %s\n", text_of(line, "state"), text_of(line, "feature"),
                    text_of(line, "requested"), text_of(line, "note"));
        }
    }
}

static int show(enum view view, const struct port_json *now, const struct port_json *before,
                FILE *to)
{
    static int (*const tables[VIEW_COUNT])(const struct port_json *, FILE *) = {
        show_phases, show_tiers, show_layers, show_experts,
    };
    show_head(now, before, to);
    int rc = tables[view](now, to);
    show_reads(now, before, to);
    return rc;
}

static int fetch_stats(enum view view, struct base_buf *text, struct base_err *err)
{
    char path[128];
    snprintf(path, sizeof path, "/tier/stats?by=%s&limit=%llu",
             view == VIEW_EXPERT ? "layer,expert" : view_names[view],
             (unsigned long long)flags.limit);
    int status = cli_fetch(flags.url, path, text, err);
    if (status >= 0 && status != 200) {
        return base_err_set(err, -EIO, "%.200s%s answered with HTTP status %d: is that a "
                            "tier-server?", flags.url, path, status);
    }
    return status < 0 ? status : 0;
}

static int fetch_document(enum view view, struct port_json **out, struct base_err *err)
{
    struct base_buf text;
    base_buf_init(&text);
    int rc = fetch_stats(view, &text, err);
    if (rc == 0) {
        rc = port_json_parse(out, text.data ? text.data : "", text.size, flags.url, err);
    }
    base_buf_fini(&text);
    return rc;
}

/* Draws over the last picture, line by line, so that nothing flickers. */
static int draw(enum view view, const struct port_json *now, const struct port_json *before)
{
    char *text = NULL;
    size_t size = 0;
    FILE *page = open_memstream(&text, &size);
    if (!page) return -errno;
    int rc = show(view, now, before, page);
    fclose(page);
    fputs("\033[H", stdout);
    for (const char *line = text; rc >= 0 && *line;) {
        size_t bytes = strcspn(line, "\n");
        printf("%.*s\033[K\n", (int)bytes, line);
        line += bytes + (line[bytes] == '\n');
    }
    fputs("\033[J", stdout);
    fflush(stdout);
    free(text);
    return rc;
}

static int live(enum view view, struct base_err *err)
{
    struct sigaction action = { .sa_handler = on_interrupt };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    struct port_json *before = NULL, *now = NULL;
    int rc = fetch_document(view, &now, err);
    fputs(rc < 0 ? "" : "\033[2J\033[?25l", stdout);    /* clear, hide the cursor */
    bool drawn = rc >= 0;
    while (rc >= 0 && !interrupted) {
        rc = draw(view, now, before);
        struct timespec pause = { .tv_sec = (time_t)(flags.interval_ns / 1000000000),
                                  .tv_nsec = (long)(flags.interval_ns % 1000000000) };
        nanosleep(&pause, NULL);
        if (rc < 0 || interrupted) break;
        port_json_free(before);
        before = now;
        now = NULL;
        rc = fetch_document(view, &now, err);
    }
    fputs(drawn ? "\033[?25h\n" : "", stdout);
    fflush(stdout);
    port_json_free(before);
    port_json_free(now);
    return interrupted ? 0 : rc;
}

static int once(enum view view, struct base_err *err)
{
    struct port_json *now;
    int rc = fetch_document(view, &now, err);
    if (rc < 0) return rc;
    rc = show(view, now, NULL, stdout);
    port_json_free(now);
    return rc;
}

static int print_json(enum view view, struct base_err *err)
{
    struct base_buf text;
    base_buf_init(&text);
    int rc = fetch_stats(view, &text, err);
    if (rc == 0) {
        fwrite(text.data, 1, text.size, stdout);
    }
    base_buf_fini(&text);
    return rc;
}

static int run(int count, char **arguments)
{
    struct base_err err = { 0 };
    unsigned view = 0;
    (void)count, (void)arguments;
    while (view < VIEW_COUNT && strcmp(flags.by, view_names[view]) != 0) {
        view++;
    }
    if (view == VIEW_COUNT) {
        return cli_misuse("--by must be layer, expert, phase or tier, not '%s'", flags.by);
    }
    if (flags.interval_ns < 50000000) {
        return cli_misuse("--interval must be at least 50ms");
    }
    int rc = flags.json                                ? print_json(view, &err)
             : flags.once || !isatty(STDOUT_FILENO)    ? once(view, &err)
                                                       : live(view, &err);
    return rc < 0 ? cli_fail(EXIT_FAILURE, &err) : EXIT_SUCCESS;
}

static const struct cli_flag stats_flags[] = {
    { "url", CLI_TEXT, &flags.url, "URL", "the server; default http://127.0.0.1:8000" },
    { "by", CLI_TEXT, &flags.by, "VIEW", "phase (default), tier, layer or expert" },
    { "once", CLI_SWITCH, &flags.once, NULL, "print once and stop (also when the output is no "
      "terminal)" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the server's JSON once" },
    { "interval", CLI_TIME, &flags.interval_ns, "TIME", "time between two pictures; default 1s" },
    { "limit", CLI_UINT, &flags.limit, "N", "experts listed, most used first; 0 = all; "
      "default 24" },
    { 0 },
};

static const struct cli_command commands[] = {
    { NULL, "", NULL, NULL, 0, 0, stats_flags, run },
};

static const struct cli_program program = {
    .name = "tier-stats",
    .text = "watch where a server's experts come from",
    .details =
        "Shows a running tier-server's lookups, misses and resident rates by tier and phase (cold "
        "start, prefill and decode are never averaged into one), reads, and what the engine waited "
        "for. Refreshed in the terminal with rates a second until Ctrl-C.",
    .commands = commands,
    .command_count = 1,
    .examples = "tier-stats\n"
                "tier-stats --once --by layer\n"
                "tier-stats --json --by expert --limit 0 | jq '.experts[0]'\n",
};

int main(int argc, char **argv)
{
    return cli_main(&program, argc, argv);
}
