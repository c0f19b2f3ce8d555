/* tier-stats: where the experts come from, read from a running server's /tier/stats. */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "port/json.h"
#include "tools/cli.h"
#include "tools/fetch.h"
#include "tools/stats_show.h"

#define NOT_GIVEN UINT64_MAX

static struct {
    const char *url;
    const char *by;
    const char *order;
    uint64_t interval_ns;
    uint64_t limit, top, count;
    bool once, watch;
    bool json, csv;
} flags = { .url = "http://127.0.0.1:8000", .order = "hot", .interval_ns = 1000000000,
            .limit = NOT_GIVEN };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static int fetch_stats(enum stats_view view, struct base_buf *text, struct base_err *err)
{
    char path[160];
    snprintf(path, sizeof path, "/tier/stats?by=%s&limit=%llu&order=%.20s",
             view == STATS_EXPERT ? "layer,expert" : cli_stats_view(view),
             (unsigned long long)flags.limit, flags.order);
    int status = cli_fetch(flags.url, path, text, err);
    if (status >= 0 && status != 200) {
        return base_err_set(err, -EIO, "%.200s%s answered with HTTP status %d: is that a "
                            "tier-server?", flags.url, path, status);
    }
    return status < 0 ? status : 0;
}

static int fetch_document(enum stats_view view, struct port_json **out, struct base_err *err)
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
static int draw(enum stats_view view, const struct port_json *now, const struct port_json *before)
{
    char *text = NULL;
    size_t size = 0;
    FILE *page = open_memstream(&text, &size);
    if (!page) return -errno;
    int rc = cli_stats_show(view, now, before, page);
    fclose(page);
    fputs("\033[H", stdout);
    for (const char *line = text; rc >= 0 && *line;) {
        size_t bytes = strcspn(line, "\n");
        printf("%.*s\033[K\n", (int)bytes, line);
        line += bytes + (line[bytes] == '\n');
    }
    fputs("\033[J", stdout);
    free(text);
    return rc;
}

/* One picture in the form that was asked for. */
static int picture(enum stats_view view, const struct port_json *now,
                   const struct port_json *before, bool over)
{
    int rc;
    if (flags.csv) {
        rc = cli_stats_csv(view, now, before, !before, stdout);
    } else if (over) {
        rc = draw(view, now, before);
    } else {
        fputs(before ? "\n" : "", stdout);
        rc = cli_stats_show(view, now, before, stdout);
    }
    fflush(stdout);
    return rc;
}

static void rest(void)
{
    struct timespec pause = { .tv_sec = (time_t)(flags.interval_ns / 1000000000),
                              .tv_nsec = (long)(flags.interval_ns % 1000000000) };
    nanosleep(&pause, NULL);
}

/* Pictures until Ctrl-C or --count; drawn over each other on a terminal. */
static int watch(enum stats_view view, struct base_err *err)
{
    struct sigaction action = { .sa_handler = on_interrupt };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    bool over = isatty(STDOUT_FILENO) && !flags.csv;
    struct port_json *before = NULL, *now = NULL;
    int rc = fetch_document(view, &now, err);
    bool drawn = rc >= 0 && over;
    fputs(drawn ? "\033[2J\033[?25l" : "", stdout);     /* clear, hide the cursor */
    for (uint64_t n = 1; rc >= 0; n++) {
        rc = picture(view, now, before, over);
        if (rc < 0 || n == flags.count) break;
        rest();
        if (interrupted) break;
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

static int once(enum stats_view view, struct base_err *err)
{
    struct port_json *now;
    int rc = fetch_document(view, &now, err);
    if (rc < 0) return rc;
    rc = picture(view, now, NULL, false);
    port_json_free(now);
    return rc;
}

/* The server's document as it is, again and again with --watch: one a line. */
static int print_json(enum stats_view view, struct base_err *err)
{
    int rc = 0;
    for (uint64_t n = 1; rc == 0; n++) {
        struct base_buf text;
        base_buf_init(&text);
        rc = fetch_stats(view, &text, err);
        if (rc == 0) {
            fwrite(text.data, 1, text.size, stdout);
            fflush(stdout);
        }
        base_buf_fini(&text);
        if (!flags.watch || n == flags.count) break;
        rest();
    }
    return rc;
}

static int run(int count, char **arguments)
{
    static const char *const orders[] = { "hot", "cold", "missed", "slow" };
    struct base_err err = { 0 };
    unsigned view = 0, order = 0;
    (void)count, (void)arguments;
    bool limited = flags.limit != NOT_GIVEN;
    if (limited && flags.top > 0) return cli_misuse("--top and --limit: take one");
    if (!limited) flags.limit = flags.top > 0 ? flags.top : 24;
    if (!flags.by) flags.by = flags.top > 0 ? "expert" : "phase";
    while (view < STATS_VIEW_COUNT && strcmp(flags.by, cli_stats_view(view)) != 0) view++;
    while (order < 4 && strcmp(flags.order, orders[order]) != 0) order++;
    if (view == STATS_VIEW_COUNT) {
        return cli_misuse("--by must be phase, tier, layer, expert, wait, lookup, overlap or "
                          "report, not '%s'", flags.by);
    }
    if (order == 4) {
        return cli_misuse("--order must be hot, cold, missed or slow, not '%s'", flags.order);
    }
    if (view != STATS_EXPERT && (order > 0 || flags.top > 0 || limited)) {
        return cli_misuse("--top, --order and --limit have no effect without --by expert");
    }
    if (flags.json && flags.csv) return cli_misuse("--json and --csv: take one");
    if (flags.once && flags.watch) return cli_misuse("--once and --watch: take one");
    if (flags.count > 0 && !flags.watch) {
        return cli_misuse("--count has no effect without --watch");
    }
    if (flags.interval_ns < 50000000) {
        return cli_misuse("--interval must be at least 50ms");
    }
    bool live = flags.watch || (!flags.once && !flags.csv && isatty(STDOUT_FILENO));
    int rc = flags.json ? print_json(view, &err) : live ? watch(view, &err) : once(view, &err);
    return rc < 0 ? cli_fail(EXIT_FAILURE, &err) : EXIT_SUCCESS;
}

static const struct cli_flag stats_flags[] = {
    { "url", CLI_TEXT, &flags.url, "URL", "the server; default http://127.0.0.1:8000" },
    { "by", CLI_TEXT, &flags.by, "VIEW", "phase (default), tier, layer, expert, wait, lookup, "
      "overlap or report" },
    { "top", CLI_UINT, &flags.top, "N", "the first N experts (--by expert --limit N)" },
    { "order", CLI_TEXT, &flags.order, "ORDER", "experts: hot (default: most lookups first), cold, "
      "missed (most often found in no tier) or slow (longest median load)" },
    { "watch", CLI_SWITCH, &flags.watch, NULL, "go on until Ctrl-C, with rates; on a terminal that "
      "is the default" },
    { "once", CLI_SWITCH, &flags.once, NULL, "print once and stop (also when the output is no "
      "terminal)" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the server's JSON; with --watch one document a "
      "line" },
    { "csv", CLI_SWITCH, &flags.csv, NULL, "print the view's table as CSV: plain numbers, the Unix "
      "time in front; with --watch rows go on" },
    { "interval", CLI_TIME, &flags.interval_ns, "TIME", "time between two pictures; default 1s" },
    { "count", CLI_UINT, &flags.count, "N", "pictures of --watch; default 0 = no end" },
    { "limit", CLI_UINT, &flags.limit, "N", "experts listed (--by expert); 0 = all; default 24" },
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
        "for. Refreshed in the terminal with rates a second until Ctrl-C. The views: phase and "
        "tier; layer, with the percentiles of its loads; expert, with its misses and loads (times "
        "to the next power of two); wait, the distribution of waits by cause; lookup, the share of "
        "lookups that each tier answered and how long that took; overlap, the share of the time "
        "of reads and copies that was hidden behind compute; report, what became of every "
        "setting.",
    .commands = commands,
    .command_count = 1,
    .examples = "tier-stats\n"
                "tier-stats --once --by layer\n"
                "tier-stats --top 10 --order missed\n"
                "tier-stats --by tier --csv --watch --interval 5s >tiers.csv\n"
                "tier-stats --json --by expert --limit 0 | jq '.experts[0]'\n",
};

int main(int argc, char **argv)
{
    return cli_main(&program, argc, argv);
}
