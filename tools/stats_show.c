#include "tools/stats_show.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "base/str.h"
#include "tools/cli.h"

enum { CELL_TEXT = 260, COLUMNS_MAX = 20, NUMBER_TEXT = 32 };

const char *cli_stats_view(unsigned view)
{
    static const char *const names[] = { "phase", "tier",   "layer",   "expert",
                                         "wait",  "lookup", "overlap", "report" };
    return view < STATS_VIEW_COUNT ? names[view] : NULL;
}

/* -- documents -------------------------------------------------------------------------------- */

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

/* Seconds between two documents of one server, by a clock that nobody sets; 0 when there is no
 * earlier one. */
static double seconds_between(const struct port_json *now, const struct port_json *before)
{
    if (!before || number(before, "pid") != number(now, "pid")) return 0;
    return number(now, "up_seconds") - number(before, "up_seconds");
}

/* Growth per second; negative when there is no earlier document. */
static double rate(const struct port_json *now, const struct port_json *before, const char *part,
                   const char *key)
{
    double seconds = seconds_between(now, before);
    if (seconds <= 0) return -1;
    double grown = number(port_json_get(now, part), key) - number(port_json_get(before, part), key);
    return grown / seconds;
}

/* -- tables ----------------------------------------------------------------------------------- */

/* What a table is made of, and where it goes. */
struct page {
    const struct port_json *now, *before;
    FILE *to;
    bool csv, heads;
    struct cli_table *table;    /* NULL: CSV */
    unsigned columns;
    char text[COLUMNS_MAX][CELL_TEXT];
    unsigned count;             /* cells of the row so far */
};

struct column {
    const char *head, *name;    /* on a terminal, in CSV */
};

static int begin(struct page *p, const struct column *columns, unsigned count)
{
    const char *heads[COLUMNS_MAX];
    p->columns = count;
    p->count = 0;
    for (unsigned i = 0; i < count; i++) heads[i] = columns[i].head;
    if (!p->csv) return cli_table_create(&p->table, count, heads);
    if (!p->heads) return 0;
    fputs("time_seconds", p->to);
    for (unsigned i = 0; i < count; i++) fprintf(p->to, ",%s", columns[i].name);
    fputc('\n', p->to);
    return 0;
}

static void csv_text(FILE *to, const char *text)
{
    if (!strpbrk(text, ",\"\n\r")) {
        fputs(text, to);
        return;
    }
    fputc('"', to);
    for (; *text; text++) {
        if (*text == '"') fputc('"', to);
        fputc(*text, to);
    }
    fputc('"', to);
}

static void row_end(struct page *p)
{
    const char *cells[COLUMNS_MAX];
    for (unsigned i = 0; i < p->count; i++) cells[i] = p->text[i];
    p->count = 0;
    if (p->table) {
        cli_table_row(p->table, cells);
        return;
    }
    fprintf(p->to, "%.3f", number(p->now, "time_seconds"));
    for (unsigned i = 0; i < p->columns; i++) {
        fputc(',', p->to);
        csv_text(p->to, cells[i]);
    }
    fputc('\n', p->to);
}

static void end(struct page *p)
{
    if (!p->table) return;
    cli_table_print(p->table, p->to);
    cli_table_destroy(p->table);
}

static void add_text(struct page *p, const char *text)
{
    snprintf(p->text[p->count++], CELL_TEXT, "%s", text);
}

static void add_count(struct page *p, double count)
{
    snprintf(p->text[p->count++], CELL_TEXT, "%.0f", count);
}

/* "-" for what is not there: it is not 0. */
static void add_real(struct page *p, bool there, double value, const char *readable)
{
    char *to = p->text[p->count++];
    if (!there) {
        snprintf(to, CELL_TEXT, "%s", p->csv ? "" : "-");
    } else if (p->csv) {
        snprintf(to, CELL_TEXT, "%.9g", value);
    } else {
        snprintf(to, CELL_TEXT, "%s", readable);
    }
}

static void add_share(struct page *p, double part, double whole)
{
    char text[32] = "";
    if (whole > 0) snprintf(text, sizeof text, "%.2f%%", 100 * part / whole);
    add_real(p, whole > 0, whole > 0 ? part / whole : 0, text);
}

static void add_seconds(struct page *p, double seconds)
{
    char text[32];
    base_str_duration(text, sizeof text, (uint64_t)(1e9 * seconds));
    add_real(p, true, seconds, text);
}

static void add_bytes(struct page *p, double bytes)
{
    char text[32];
    base_str_bytes(text, sizeof text, (uint64_t)bytes);
    add_real(p, true, bytes, text);
}

static void add_rate(struct page *p, double per_second)
{
    char text[32];
    snprintf(text, sizeof text, "%.1f", per_second);
    add_real(p, per_second >= 0, per_second, text);
}

/* -- views ------------------------------------------------------------------------------------ */

static int show_phases(struct page *p)
{
    static const struct column columns[] = {
        { "tier", "tier" }, { "phase", "phase" }, { "lookups", "lookups" },
        { "resident", "resident" }, { "misses", "misses" }, { "resident rate", "resident_rate" },
        { "in place", "in_place" }, { "evictions", "evictions" },
    };
    static const char *const phases[] = { "cold_start", "prefill", "decode" };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    const struct port_json *tiers = port_json_get(p->now, "tiers");
    for (size_t t = 0; rc == 0 && t < port_json_count(tiers); t++) {
        const struct port_json *tier = port_json_at(tiers, t);
        for (size_t i = 0; i < sizeof phases / sizeof phases[0]; i++) {
            const struct port_json *cell = port_json_get(port_json_get(tier, "phases"), phases[i]);
            add_text(p, i == 0 || p->csv ? text_of(tier, "name") : "");
            add_text(p, phases[i]);
            add_count(p, number(cell, "lookups"));
            add_count(p, number(cell, "resident"));
            add_count(p, number(cell, "misses"));
            add_share(p, number(cell, "resident"), number(cell, "lookups"));
            add_count(p, number(cell, "in_place"));
            add_count(p, number(cell, "evictions"));
            row_end(p);
        }
    }
    return rc;
}

/* Over all phases, the hits of this moment beside those since the start. */
static int show_tiers(struct page *p)
{
    static const struct column columns[] = {
        { "tier", "tier" }, { "lookups", "lookups" }, { "hits", "hits" }, { "late", "late" },
        { "misses", "misses" }, { "hit rate", "hit_rate" }, { "lookups/s", "lookups_per_second" },
        { "hit rate now", "hit_rate_now" }, { "in place", "in_place" },
        { "evictions", "evictions" }, { "slots", "slots" }, { "held", "resident_slots" },
        { "memory", "capacity_bytes" }, { "locked", "pinned_bytes" },
    };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    const struct port_json *tiers = port_json_get(p->now, "tiers");
    double seconds = seconds_between(p->now, p->before);
    for (size_t t = 0; rc == 0 && t < port_json_count(tiers); t++) {
        const struct port_json *tier = port_json_at(tiers, t);
        const struct port_json *was = NULL;
        if (seconds > 0) was = port_json_at(port_json_get(p->before, "tiers"), t);
        double looked = was ? number(tier, "lookups") - number(was, "lookups") : 0;
        add_text(p, text_of(tier, "name"));
        add_count(p, number(tier, "lookups"));
        add_count(p, number(tier, "hits"));
        add_count(p, number(tier, "late"));
        add_count(p, number(tier, "misses"));
        add_share(p, number(tier, "hits"), number(tier, "lookups"));
        add_rate(p, was ? looked / seconds : -1);
        add_share(p, was ? number(tier, "hits") - number(was, "hits") : 0, looked);
        add_count(p, number(tier, "in_place"));
        add_count(p, number(tier, "evictions"));
        add_count(p, number(tier, "slots"));
        add_count(p, number(tier, "resident_slots"));
        add_bytes(p, number(tier, "capacity_bytes"));
        add_bytes(p, number(tier, "pinned_bytes"));
        row_end(p);
    }
    return rc;
}

/* How long loads took, of a layer or an expert. */
#define LOAD_COLUMNS                                                                               \
    { "mean", "load_seconds_mean" }, { "shortest", "load_seconds_min" },                           \
    { "p50", "load_seconds_p50" }, { "p90", "load_seconds_p90" }, { "p99", "load_seconds_p99" },   \
    { "longest", "load_seconds_max" }

static void add_loads(struct page *p, const struct port_json *from)
{
    static const char *const times[] = { "load_seconds_mean", "load_seconds_min",
                                         "load_seconds_p50", "load_seconds_p90",
                                         "load_seconds_p99", "load_seconds_max" };
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        add_seconds(p, number(from, times[i]));
    }
}

static int show_layers(struct page *p)
{
    static const struct column columns[] = {
        { "layer", "layer" }, { "lookups", "lookups" }, { "resident", "resident" },
        { "misses", "misses" }, { "resident rate", "resident_rate" },
        { "dram rate", "dram_resident_rate" }, { "evictions", "evictions" }, { "hinted", "hinted" },
        { "prefetched", "prefetched" }, { "of it used", "prefetch_used" }, { "loads", "loads" },
        LOAD_COLUMNS,
    };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    const struct port_json *layers = port_json_get(p->now, "layers");
    for (size_t l = 0; rc == 0 && l < port_json_count(layers); l++) {
        const struct port_json *layer = port_json_at(layers, l);
        add_count(p, number(layer, "layer"));
        add_count(p, number(layer, "lookups"));
        add_count(p, number(layer, "resident"));
        add_count(p, number(layer, "misses"));
        add_share(p, number(layer, "resident"), number(layer, "lookups"));
        add_share(p, number(layer, "dram_resident"), number(layer, "dram_lookups"));
        add_count(p, number(layer, "evictions"));
        add_count(p, number(layer, "hinted"));
        add_count(p, number(layer, "prefetched"));
        add_count(p, number(layer, "prefetch_used"));
        add_count(p, number(layer, "loads"));
        add_loads(p, layer);
        row_end(p);
    }
    return rc;
}

static int show_experts(struct page *p)
{
    static const struct column columns[] = {
        { "layer", "layer" }, { "expert", "expert" }, { "lookups", "lookups" },
        { "share of its layer", "share_of_layer" }, { "where", "where" }, { "misses", "misses" },
        { "loads", "loads" }, LOAD_COLUMNS,
    };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    const struct port_json *experts = port_json_get(p->now, "experts");
    const struct port_json *layers = port_json_get(p->now, "layers");
    double first = number(port_json_at(layers, 0), "layer");
    for (size_t e = 0; rc == 0 && e < port_json_count(experts); e++) {
        const struct port_json *expert = port_json_at(experts, e);
        const struct port_json *layer =
            port_json_at(layers, (size_t)(number(expert, "layer") - first));
        add_count(p, number(expert, "layer"));
        add_count(p, number(expert, "expert"));
        add_count(p, number(expert, "lookups"));
        add_share(p, number(expert, "lookups"), number(layer, "lookups"));
        add_text(p, text_of(expert, "where"));
        add_count(p, number(expert, "misses"));
        add_count(p, number(expert, "loads"));
        add_loads(p, expert);
        row_end(p);
    }
    return rc;
}

static void add_times(struct page *p, const struct port_json *hist)
{
    static const char *const times[] = { "mean", "p50", "p90", "p99", "max" };
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        add_seconds(p, number(hist, times[i]) / 1e9);
    }
}

static int show_waits(struct page *p)
{
    static const struct column columns[] = {
        { "waited for", "cause" }, { "waits", "count" }, { "in all", "seconds" },
        { "share of now", "share_now" }, { "mean", "mean_seconds" }, { "p50", "p50_seconds" },
        { "p90", "p90_seconds" }, { "p99", "p99_seconds" }, { "longest", "max_seconds" },
    };
    static const char *const causes[] = { "demand_read", "late_prefetch", "copy", "slot_shortage" };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    for (size_t c = 0; rc == 0 && c < sizeof causes / sizeof causes[0]; c++) {
        const struct port_json *hist = port_json_get(port_json_get(p->now, "wait_latency"),
                                                     causes[c]);
        double share = rate(p->now, p->before, "wait_seconds", causes[c]);
        add_text(p, causes[c]);
        add_count(p, number(hist, "count"));
        add_seconds(p, number(port_json_get(p->now, "wait_seconds"), causes[c]));
        add_share(p, share, share >= 0 ? 1 : 0);
        add_times(p, hist);
        row_end(p);
    }
    return rc;
}

/* Which tier an expert was found in, and how long that took. */
static int show_lookups(struct page *p)
{
    static const struct column columns[] = {
        { "found in", "tier" }, { "lookups", "lookups" }, { "share", "share" },
        { "timed", "count" }, { "mean", "mean_seconds" }, { "p50", "p50_seconds" },
        { "p90", "p90_seconds" }, { "p99", "p99_seconds" }, { "longest", "max_seconds" },
    };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    const struct port_json *tiers = port_json_get(p->now, "tiers");
    size_t count = port_json_count(tiers);
    double all = number(port_json_at(tiers, 0), "lookups");
    for (size_t t = 0; rc == 0 && t <= count; t++) {
        /* What the last tier lacks is on nvme. */
        const struct port_json *tier = port_json_at(tiers, t < count ? t : count - 1);
        const char *name = t < count ? text_of(tier, "name") : "nvme";
        double found = number(tier, "misses");
        if (t < count) found = number(tier, "lookups") - found;
        const struct port_json *hist = port_json_get(port_json_get(p->now, "lookup_latency"), name);
        add_text(p, name);
        add_count(p, found);
        add_share(p, found, all);
        add_count(p, number(hist, "count"));
        add_times(p, hist);
        row_end(p);
    }
    return rc;
}

static int show_overlap(struct page *p)
{
    static const struct column columns[] = {
        { "moved by", "way" }, { "bytes", "bytes" }, { "under way", "busy_seconds" },
        { "waited for", "wait_seconds" }, { "behind compute", "overlap" },
    };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    const struct port_json *io = port_json_get(p->now, "io");
    const struct port_json *waits = port_json_get(p->now, "wait_seconds");
    double read = number(io, "demand_bytes") + number(io, "prefetch_bytes") +
                  number(port_json_get(p->now, "warm"), "restore_bytes");
    double copied = number(io, "copies_up_bytes") + number(io, "copies_down_bytes");
    double for_reads = number(waits, "demand_read") + number(waits, "late_prefetch");
    double for_copies = number(waits, "copy");
    const struct {
        const char *way;
        double bytes, busy, waited;
    } rows[] = {
        { "reads", read, number(io, "read_busy_seconds"), for_reads },
        { "copies", copied, number(io, "copy_busy_seconds"), for_copies },
        { "both", read + copied, number(io, "transfer_busy_seconds"),
          for_reads + for_copies + number(waits, "slot_shortage") },
    };
    for (size_t i = 0; rc == 0 && i < sizeof rows / sizeof rows[0]; i++) {
        double hidden = rows[i].busy > rows[i].waited ? rows[i].busy - rows[i].waited : 0;
        add_text(p, rows[i].way);
        add_bytes(p, rows[i].bytes);
        add_seconds(p, rows[i].busy);
        add_seconds(p, rows[i].waited);
        add_share(p, hidden, rows[i].busy);
        row_end(p);
    }
    return rc;
}

static int show_report(struct page *p)
{
    static const struct column columns[] = {
        { "state", "state" }, { "feature", "feature" }, { "requested", "requested" },
        { "counted", "counter" }, { "", "count" }, { "why", "note" },
    };
    int rc = begin(p, columns, sizeof columns / sizeof columns[0]);
    const struct port_json *report = port_json_get(p->now, "report");
    for (size_t i = 0; rc == 0 && i < port_json_count(report); i++) {
        const struct port_json *line = port_json_at(report, i);
        bool counted = port_json_get(line, "counter") != NULL;
        add_text(p, text_of(line, "state"));
        add_text(p, text_of(line, "feature"));
        add_text(p, text_of(line, "requested"));
        add_text(p, counted ? text_of(line, "counter") : "");
        add_text(p, "");
        if (counted) snprintf(p->text[p->count - 1], CELL_TEXT, "%.0f", number(line, "count"));
        add_text(p, text_of(line, "note"));
        row_end(p);
    }
    return rc;
}

static int show_table(enum stats_view view, struct page *p)
{
    static int (*const tables[STATS_VIEW_COUNT])(struct page *) = {
        show_phases, show_tiers,   show_layers,  show_experts,
        show_waits,  show_lookups, show_overlap, show_report,
    };
    int rc = tables[view](p);
    end(p);
    return rc;
}

/* -- around the table ------------------------------------------------------------------------- */

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
            "%.0f cancelled",
            number(engine, "running_requests"), number(engine, "waiting_requests"),
            number(engine, "finished_requests"), number(engine, "failed_requests"),
            number(engine, "cancelled_requests"));
    if (number(engine, "preempted_requests") > 0)
        fprintf(to, ", %.0f times one lost its KV blocks",
                number(engine, "preempted_requests"));
    fputc('\n', to);
    fprintf(to, "tokens:   %.0f prompt, %.0f generated", number(engine, "prompt_tokens"),
            number(engine, "generated_tokens"));
    if (number(engine, "reused_tokens") > 0)
        fprintf(to, ", %.0f not computed again", number(engine, "reused_tokens"));
    show_rate(to, "prompt tok/s", rate(now, before, "engine", "prompt_tokens"));
    show_rate(to, "generated tok/s", rate(now, before, "engine", "generated_tokens"));
    fputs("\n\n", to);
}

static void show_prediction(const struct port_json *now, FILE *to)
{
    const struct port_json *io = port_json_get(now, "io");
    const struct port_json *predictor = port_json_get(now, "predictor");
    char read[NUMBER_TEXT], wasted[NUMBER_TEXT];
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
    char bytes[NUMBER_TEXT], p50[NUMBER_TEXT], p99[NUMBER_TEXT];
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
            "compute %.3f s, with %.1f%% of the time of reads and copies behind it\n",
            number(waits, "demand_read"), number(waits, "late_prefetch"), number(waits, "copy"),
            number(waits, "slot_shortage"),
            number(port_json_get(now, "engine"), "compute_seconds"),
            100 * number(io, "overlap_ratio"));
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

int cli_stats_show(enum stats_view view, const struct port_json *now,
                   const struct port_json *before, FILE *to)
{
    struct page page = { .now = now, .before = before, .to = to };
    show_head(now, before, to);
    int rc = show_table(view, &page);
    show_reads(now, before, to);
    return rc;
}

int cli_stats_csv(enum stats_view view, const struct port_json *now,
                  const struct port_json *before, bool heads, FILE *to)
{
    struct page page = { .now = now, .before = before, .to = to, .csv = true, .heads = heads };
    return show_table(view, &page);
}
