#include "tools/replay.h"

#include <inttypes.h>
#include <string.h>

#include "predictor/replay.h"

static const char *tier_name(const struct pred_exact *exact, uint32_t tier)
{
    return exact->tier_count == 2 && tier == 0 ? "hbm" : "dram";
}

static struct tier_counts sum_of(const struct tier_counts cells[TIER_CELL_COUNT])
{
    struct tier_counts sum = { 0 };
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        sum.lookups += cells[c].lookups;
        sum.resident += cells[c].resident;
        sum.misses += cells[c].misses;
        sum.evictions += cells[c].evictions;
    }
    return sum;
}

static void json_side(struct base_buf *buf, const struct tier_counts cells[TIER_CELL_COUNT])
{
    struct tier_counts sum = sum_of(cells);
    cli_replay_json_counts(buf, &sum);
    base_buf_puts(buf, ",");
    cli_replay_json_cells(buf, cells);
}

static int print_json(const struct pred_exact *exact, const struct pred_trace_header *header)
{
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_printf(&buf, "{\"what_if\":false,\"same\":%s,\"events\":%" PRIu64 ",\"steps\":%" PRIu64
                    ",\"checks\":%" PRIu32 ",\"differing\":%" PRIu32 ",\"runs\":[",
                    exact->same ? "true" : "false", exact->events, exact->steps, exact->checks,
                    exact->differing);
    for (uint32_t t = 0; t < exact->tier_count; t++) {
        const struct tier_decide_tier *tier = &header->decide.tiers[t];
        double per_layer = (double)tier->slots / header->layers;
        base_buf_printf(&buf, "%s{\"policy\":\"%s\",\"tier\":\"%s\",\"capacity\":%.6g,"
                        "\"slots_per_layer\":%.6g,\"slots\":%" PRIu64 ",", t > 0 ? "," : "",
                        tier->policy, tier_name(exact, t), per_layer / header->experts, per_layer,
                        tier->slots);
        json_side(&buf, exact->replayed.cells[t]);
        base_buf_puts(&buf, ",\"live\":{");
        json_side(&buf, exact->live.cells[t]);
        base_buf_puts(&buf, "}}");
    }
    base_buf_puts(&buf, "]}");
    return cli_replay_print(&buf);
}

static void add_row(struct cli_table *table, const char *tier, const char *cell, const char *side,
                    const struct tier_counts *counts)
{
    char text[8][32];
    const char *cells[] = { tier,    cell,    side,    text[0], text[1], text[2],
                            text[3], text[4], text[5], text[6], text[7] };
    snprintf(text[0], sizeof text[0], "%" PRIu64, counts->lookups);
    snprintf(text[1], sizeof text[1], "%" PRIu64, counts->resident);
    snprintf(text[2], sizeof text[2], "%" PRIu64, counts->misses);
    snprintf(text[3], sizeof text[3], "%" PRIu64, counts->evictions);
    snprintf(text[4], sizeof text[4], "%.2f", 100 * cli_replay_rate(counts));
    snprintf(text[5], sizeof text[5], "%" PRIu64, counts->prefetch_admissions);
    snprintf(text[6], sizeof text[6], "%" PRIu64, counts->prefetch_used);
    snprintf(text[7], sizeof text[7], "%" PRIu64, counts->in_place);
    cli_table_row(table, cells);
}

static int print_table(const struct pred_exact *exact)
{
    static const char *const headings[] = { "tier",     "cell",   "counts",    "lookups",
                                            "resident", "misses", "evictions", "resident %",
                                            "ahead",    "of use", "in place" };
    struct cli_table *table;
    if (cli_table_create(&table, sizeof headings / sizeof headings[0], headings) < 0) return 1;
    for (uint32_t t = 0; t < exact->tier_count; t++) {
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            add_row(table, tier_name(exact, t), cli_replay_cells[c], "live",
                    &exact->live.cells[t][c]);
            add_row(table, "", "", "replayed", &exact->replayed.cells[t][c]);
        }
    }
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    return 0;
}

static void show_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    (void)what;
    cli_progress_bytes(context, done, total);
}

static void tell(const char *path, const struct pred_exact *exact)
{
    if (exact->same) {
        fprintf(stderr, "%s: replayed counts equal the live ones at %" PRIu32 " place%s", path,
                exact->checks, exact->checks == 1 ? "" : "s");
    } else {
        fprintf(stderr, "%s: replayed counts DIFFER at %" PRIu32 " of %" PRIu32 " places; shown is "
                        "the first, after step %" PRIu64, path, exact->differing, exact->checks,
                exact->differing_step);
    }
    fprintf(stderr, ", over %" PRIu64 " events and %" PRIu64 " steps\n", exact->events,
            exact->steps);
}

int cli_replay_exact(const char *path, bool json, bool quiet)
{
    struct base_err err = { 0 };
    struct pred_trace_reader *reader;
    struct pred_exact exact;
    struct cli_progress bar;
    struct pred_replay_progress progress = { show_progress, &bar };
    int rc = pred_trace_reader_open(&reader, path, &err);
    if (rc < 0) return cli_fail(1, &err);
    cli_progress_begin(&bar, "replaying", quiet);
    rc = pred_replay_exact(reader, &exact, &progress, &err);
    cli_progress_end(&bar);
    if (rc < 0) {
        if (strncmp(err.text, path, strlen(path)) != 0) base_err_prefix(&err, "%s", path);
        pred_trace_reader_close(reader);
        return cli_fail(1, &err);
    }
    if (!quiet) cli_replay_health(path, reader);
    int code = json ? print_json(&exact, pred_trace_reader_header(reader)) : print_table(&exact);
    if (!quiet) {
        tell(path, &exact);
    }
    pred_trace_reader_close(reader);
    return exact.same ? code : 1;
}
