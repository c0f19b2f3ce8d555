/* tier-replay: what another cache would have done with a recorded trace, and whether the recording
 * gives the server's own counts. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "predictor/compose.h"
#include "predictor/import.h"
#include "tools/replay.h"

const char *const cli_replay_cells[TIER_CELL_COUNT] = { "cold_start", "prefill", "decode" };

double cli_replay_rate(const struct tier_counts *counts)
{
    return counts->lookups > 0 ? (double)counts->resident / (double)counts->lookups : 0;
}

void cli_replay_json_counts(struct base_buf *to, const struct tier_counts *counts)
{
    base_buf_printf(to, "\"lookups\":%" PRIu64 ",\"resident\":%" PRIu64 ",\"resident_rate\":%.6f,"
                    "\"misses\":%" PRIu64 ",\"evictions\":%" PRIu64, counts->lookups,
                    counts->resident, cli_replay_rate(counts), counts->misses, counts->evictions);
}

void cli_replay_json_layer(struct base_buf *to, const struct pred_trace_header *header,
                           uint32_t layer)
{
    base_buf_printf(to, "\"layer\":%" PRIu32 ",\"moe_layer\":%" PRIu32 ",",
                    header->first_moe_layer + layer, layer);
}

void cli_replay_json_cells(struct base_buf *to, const struct tier_counts cells[TIER_CELL_COUNT])
{
    base_buf_puts(to, "\"by_phase\":{");
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        base_buf_printf(to, "%s\"%s\":{", c > 0 ? "," : "", cli_replay_cells[c]);
        cli_replay_json_counts(to, &cells[c]);
        base_buf_puts(to, "}");
    }
    base_buf_puts(to, "}");
}

int cli_replay_print(struct base_buf *buf)
{
    int rc = base_buf_error(buf);
    if (rc == 0) puts(buf->data);
    base_buf_fini(buf);
    if (rc == 0) return 0;
    struct base_err err = { 0 };
    base_err_set(&err, rc, "no memory for the result");
    return cli_fail(1, &err);
}

void cli_replay_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    struct cli_progress *bar = context;
    if (strcmp(bar->what, what) != 0) {
        bool quiet = bar->quiet;
        cli_progress_end(bar);
        cli_progress_begin(bar, what, quiet);
    }
    cli_progress_bytes(bar, done, total);
}

void cli_replay_losses(const char *path, const struct pred_trace_reader *reader)
{
    struct pred_trace_health health;
    if (pred_trace_composed(pred_trace_reader_header(reader))) {
        fprintf(stderr, "composed: the batches of %s were put together from single sequences, no "
                        "server ran them so\n", path);
    }
    pred_trace_reader_health(reader, &health);
    if (health.torn_bytes > 0) {
        fprintf(stderr,
                "warning: %s: the last %" PRIu64 " bytes are no whole chunk and were left out\n",
                path, health.torn_bytes);
    }
    if (health.lost_records > 0) {
        fprintf(stderr, "warning: %s: %" PRIu64 " records are missing (gaps)\n", path,
                health.lost_records);
    }
}

void cli_replay_health(const char *path, const struct pred_trace_reader *reader)
{
    struct pred_trace_health health;
    cli_replay_losses(path, reader);
    pred_trace_reader_health(reader, &health);
    if (!health.ended) {
        fprintf(stderr,
                "note: %s was not closed in order: the server was killed, or still writes it\n",
                path);
    }
}

/* ---------------------------------------------------------------------------------- import -- */

static struct {
    const char *from, *to;
    bool quiet;
} import_flags;

static const struct cli_flag import_flag_table[] = {
    { "from", CLI_TEXT, &import_flags.from, "FORMAT", "jsonl or csv" },
    { "output|o", CLI_TEXT, &import_flags.to, "TRACE", "the trace to make" },
    { "quiet", CLI_SWITCH, &import_flags.quiet, NULL, "no progress, no summary" },
    { 0 },
};

static void show_progress(void *context, uint64_t done, uint64_t total)
{
    cli_progress_bytes(context, done, total);
}

static int run_import(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct pred_import_stats stats;
    struct cli_progress bar;
    struct pred_import_progress progress = { show_progress, &bar };
    (void)count;
    if (!import_flags.to) return cli_misuse("-o TRACE is needed: where the trace goes");
    bool jsonl = import_flags.from && strcmp(import_flags.from, "jsonl") == 0;
    if (!import_flags.from) return cli_misuse("--from FORMAT is needed: jsonl or csv");
    if (!jsonl && strcmp(import_flags.from, "csv") != 0) {
        return cli_misuse("--from %s: expected jsonl or csv", import_flags.from);
    }
    cli_progress_begin(&bar, "importing", import_flags.quiet);
    int rc = (jsonl ? pred_import_jsonl : pred_import_csv)(arguments[0], import_flags.to, &stats,
                                                           &progress, &err);
    cli_progress_end(&bar);
    if (rc < 0) return cli_fail(1, &err);
    if (!import_flags.quiet) {
        fprintf(stderr,
                "%s: %" PRIu64 " tokens in %" PRIu64 " steps of %" PRIu64 " sequences, %" PRIu32
                " layers of %" PRIu32 " experts, top-%" PRIu32 "\n",
                import_flags.to, stats.tokens, stats.steps, stats.sequences, stats.layers,
                stats.experts, stats.top_k);
    }
    return 0;
}

/* -------------------------------------------------------------------------------- commands -- */

static const struct cli_command commands[] = {
    { "run", "TRACE", "replay a trace through other caches, or exactly as recorded",
      "Tries every policy at every capacity in one reading of the trace. Caches start empty and "
      "stay "
      "warm across sequences; the experts of one layer and token are looked up together. The "
      "totals "
      "count every lookup of the chosen phase; cold start, prefill and decode stand beside them, "
      "never averaged.\n\n"
      "Without --config the configuration recorded in the trace is the base, and --set goes over "
      "it; an import, which no server recorded, has the defaults with policy.prefill_share at "
      "100%. The top tier's size and policy.* count; with --machine also what lies below hbm, "
      "tiers.inclusion, tiers.warm_experts, predictor.* and prefetch.*.\n\n"
      "With --as-recorded the server's own events run through its own configuration: the counts "
      "must "
      "be the live ones, to the last, or the exit code is 1.",
      1, 1, cli_replay_run_flags, cli_replay_run },
    { "import", "FILE", "make a trace from a JSONL or CSV recording (also .xz)",
      "One line of JSONL is one token; a CSV holds the rows of a prompt layer by layer. Sizes of "
      "experts are kept where the file says them.",
      1, 1, import_flag_table, run_import },
    { "predict", "TRACE", "score predictors on the misses of a cache",
      "Learns every predictor's tables on the trace given with --train, freezes them, and scores "
      "them on "
      "TRACE: for each token and layer the n most likely experts that are not resident would be "
      "prefetched; covers n is the share of the misses of a per-layer decayed-frequency cache "
      "(half-life 16) that were among them.",
      1, 1, cli_replay_predict_flags, cli_replay_predict },
    { "tune", "TRACE...", "search the cache settings of a server",
      "Deals the sequences into two halves, tries eviction policies, half-lives, quotas and "
      "prefill shares on one, and compares the winner with the configuration it began with on "
      "the other, sequence by sequence. What counts is bytes that had to be read from nvme, or, "
      "with --machine, the time on that machine's virtual clock; then predictors, how far ahead "
      "they look and how much is read ahead are tried, too. The YAML it writes holds every "
      "key and is taken by tier-server as it is; it differs from the base only where the "
      "bootstrap over the held-out sequences leaves no doubt. The same traces and base give the "
      "same file.",
      1, 64, cli_replay_tune_flags, cli_replay_tune },
    { "report", "TRACE", "one HTML page with plots of caches, predictors, layers and time",
      "The page is whole in itself: plots are SVG within it, and nothing is fetched. It shows the "
      "resident rate by capacity and policy with Belady's, the misses that each predictor would "
      "cover against the bytes it would waste, how unevenly each layer uses its experts, and the "
      "resident rate over time.",
      1, 1, cli_replay_report_flags, cli_replay_report },
    { "info", "TRACE", "what a trace holds", NULL, 1, 1, cli_replay_info_flags, cli_replay_info },
    { "cut", "TRACE", "keep some sequences, steps or one phase",
      "The result holds routing and no cache events: those of a part would not tell the truth. "
      "Gaps stay, and so does what the trace says of its tokens and of the share of sequences in "
      "it. Of a damaged trace it holds what stands before the damage; a warning names the last "
      "whole step, and the exit code is 0.",
      1, 1, cli_replay_cut_flags, cli_replay_cut },
    { "sample", "TRACE", "keep a share of the sequences", NULL, 1, 1, cli_replay_sample_flags,
      cli_replay_sample },
    { "merge", "TRACE TRACE...", "put traces of one model one after another",
      "Their sequences are numbered anew, without holes, in the order in which they come up.", 2,
      64, cli_replay_merge_flags, cli_replay_merge },
    { "compose", "TRACE", "make batches of single sequences and an arrival file",
      "Requests arrive, and are as long, as the file says; each plays the next sequence of TRACE. "
      "The result says that it was composed, and so does every report on it.",
      1, 1, cli_replay_compose_flags, cli_replay_compose },
    { "export", "TRACE", "write the routing as JSONL or CSV", NULL, 1, 1, cli_replay_export_flags,
      cli_replay_export },
};

int main(int argc, char **argv)
{
    static const struct cli_program program = {
        .name = "tier-replay",
        .text = "replay recorded expert routing through other caches",
        .details =
            "Reads traces that tier-server --trace wrote, or that were imported, and runs the same "
            "decision core on them that the server runs. Replay of the recorded events with the "
            "recorded configuration is exact; everything else is a what-if and says so.\n\n"
            "What -o names appears there when it is whole, in the place of a file of that name, "
            "but never of one that is read; until then it lies beside it under a name of its own "
            "(FILE.1a2b3c4d.tmp), which a run that is stopped takes along. Links are followed; "
            "text can go to a pipe or a device, and from export and report to standard output, "
            "-o -. Parts of a trace that are needed on the way lie in TMPDIR.",
        .commands = commands,
        .command_count = sizeof commands / sizeof commands[0],
        .examples =
            "tier-replay run t.trace --policy lru,belady --capacity 12.5%,25%,50%\n"
            "tier-replay run t.trace --as-recorded\n"
            "tier-replay run t.trace --policy lru_global,belady --budget 750MiB --phase decode\n"
            "tier-replay cut routing.trace --sequences even -o even.trace\n"
            "tier-replay predict odd.trace --train even.trace --capacity 25%\n"
            "tier-replay tune day.trace --config server.yaml -o tuned.yaml --explain\n"
            "tier-replay compose routing.trace --arrivals arrivals.csv --users 8 -o batches.trace\n"
            "tier-replay import --from jsonl routing.jsonl.xz -o routing.trace",
    };
    return cli_main(&program, argc, argv);
}
