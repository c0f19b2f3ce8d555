/* Sub-commands that look at traces or make new ones of them: info, cut, sample, merge, export. */
#include "tools/replay.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "predictor/edit.h"

enum { MERGE_MAX = 64 };

static struct {
    const char *to, *sequences, *steps, *phase, *share, *format;
    uint64_t seed;
    bool json, quiet;
} flags = { .seed = 1 };

#define OUTPUT { "output|o", CLI_TEXT, &flags.to, "FILE", "what to make" }
#define QUIET { "quiet", CLI_SWITCH, &flags.quiet, NULL, "no progress, no summary" }

const struct cli_flag cli_replay_info_flags[] = {
    { "json", CLI_SWITCH, &flags.json, NULL, "print JSON" },
    QUIET, { 0 },
};
const struct cli_flag cli_replay_cut_flags[] = {
    OUTPUT,
    { "sequences", CLI_TEXT, &flags.sequences, "WHICH", "even, odd, N or A-B: by sequence number" },
    { "steps", CLI_TEXT, &flags.steps, "A-B", "by place in the trace, from 0" },
    { "phase", CLI_TEXT, &flags.phase, "PHASE", "decode or prefill tokens alone" },
    QUIET, { 0 },
};
const struct cli_flag cli_replay_sample_flags[] = {
    OUTPUT,
    { "share", CLI_TEXT, &flags.share, "P", "share of the sequences to keep, such as 10%" },
    { "seed", CLI_UINT, &flags.seed, "N", "which of them" },
    QUIET, { 0 },
};
const struct cli_flag cli_replay_merge_flags[] = { OUTPUT, QUIET, { 0 } };
const struct cli_flag cli_replay_export_flags[] = {
    { "output|o", CLI_TEXT, &flags.to, "FILE", "what to make; - for standard output" },
    { "to", CLI_TEXT, &flags.format, "FORMAT", "jsonl or csv" },
    QUIET, { 0 },
};

static void show_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    (void)what;
    cli_progress_bytes(context, done, total);
}

static void tell(const struct pred_edit_stats *stats)
{
    if (flags.quiet) return;
    fprintf(stderr, "%s: %" PRIu64 " tokens in %" PRIu64 " steps",
            strcmp(flags.to, "-") == 0 ? "standard output" : flags.to, stats->tokens,
            stats->steps);
    if (stats->tokens_left_out > 0)
        fprintf(stderr, ", %" PRIu64 " left out", stats->tokens_left_out);
    fputc('\n', stderr);
}

/* "A-B", or one number. */
static int parse_range(const char *text, uint64_t *first, uint64_t *last)
{
    char copy[64], *dash;
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy) return -1;
    dash = strchr(copy, '-');
    if (dash) *dash = '\0';
    if (base_str_u64_parse(copy, first) < 0) return -1;
    if (base_str_u64_parse(dash ? dash + 1 : copy, last) < 0) return -1;
    return *first <= *last ? 0 : -1;
}

static int select_to(const char *path, const struct pred_selection *selection)
{
    struct base_err err = { 0 };
    struct pred_trace_reader *reader;
    struct pred_edit_stats stats;
    struct cli_progress bar;
    struct pred_replay_progress progress = { show_progress, &bar };
    int rc = pred_trace_reader_open(&reader, path, &err);
    if (rc < 0) return cli_fail(1, &err);
    cli_progress_begin(&bar, "copying", flags.quiet);
    rc = pred_edit_select(reader, flags.to, selection, &stats, &progress, &err);
    cli_progress_end(&bar);
    if (rc >= 0 && !flags.quiet) {
        bool whole = stats.damage.code == 0 && stats.steps_read <= selection->step_last;
        (whole ? cli_replay_health : cli_replay_losses)(path, reader);
    }
    pred_trace_reader_close(reader);
    if (rc < 0) return cli_fail(1, &err);
    tell(&stats);
    if (stats.tokens == 0) {
        fprintf(stderr, "warning: %s: none of the tokens of %s was kept; the trace is empty\n",
                flags.to, path);
    }
    if (stats.damage.code < 0) {
        fprintf(stderr, "warning: %s\nwarning: %s: step %" PRIu64 " is the last whole one; what "
                "follows it was left out\n", stats.damage.text, path, stats.steps_read - 1);
    }
    return 0;
}

int cli_replay_cut(int count, char **arguments)
{
    struct pred_selection s = {
        .seq_last = UINT64_MAX, .step_last = UINT64_MAX, .share = 1, .phase = -1,
        .until_damage = true,
    };
    (void)count;
    if (!flags.to) return cli_misuse("-o FILE is needed: where the cut goes");
    if (flags.sequences &&
        (strcmp(flags.sequences, "even") == 0 || strcmp(flags.sequences, "odd") == 0)) {
        s.modulo = 2;
        s.rest = flags.sequences[0] == 'o';
    } else if (flags.sequences && parse_range(flags.sequences, &s.seq_first, &s.seq_last) < 0) {
        return cli_misuse("--sequences %s: expected even, odd, a number or A-B", flags.sequences);
    }
    if (flags.steps && parse_range(flags.steps, &s.step_first, &s.step_last) < 0) {
        return cli_misuse("--steps %s: expected a number or A-B", flags.steps);
    }
    if (flags.phase) {
        s.phase = strcmp(flags.phase, "decode") == 0 ? TIER_DECODE : TIER_PREFILL;
        if (s.phase == TIER_PREFILL && strcmp(flags.phase, "prefill") != 0) {
            return cli_misuse("--phase %s: expected decode or prefill", flags.phase);
        }
    }
    return select_to(arguments[0], &s);
}

int cli_replay_sample(int count, char **arguments)
{
    struct pred_selection s = { .seq_last = UINT64_MAX, .step_last = UINT64_MAX, .phase = -1 };
    (void)count;
    if (!flags.to) return cli_misuse("-o FILE is needed: where the sample goes");
    if (!flags.share) {
        return cli_misuse("--share is needed: a share of the sequences, such as 10%%");
    }
    if (base_str_share_parse(flags.share, &s.share) < 0 || s.share <= 0) {
        return cli_misuse("--share %s: expected a share of the sequences, such as 10%%",
                          flags.share);
    }
    s.seed = flags.seed;
    return select_to(arguments[0], &s);
}

int cli_replay_merge(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct pred_trace_reader *readers[MERGE_MAX] = { 0 };
    struct pred_edit_stats stats;
    struct cli_progress bar;
    struct pred_replay_progress progress = { show_progress, &bar };
    int rc = 0;
    if (!flags.to) return cli_misuse("-o FILE is needed: where the merged trace goes");
    for (int i = 0; rc == 0 && i < count; i++)
        rc = pred_trace_reader_open(&readers[i], arguments[i], &err);
    if (rc == 0) {
        cli_progress_begin(&bar, "merging", flags.quiet);
        rc = pred_edit_merge(readers, (uint32_t)count, flags.to, &stats, &progress, &err);
        cli_progress_end(&bar);
    }
    for (int i = 0; rc >= 0 && !flags.quiet && i < count; i++) {
        cli_replay_health(arguments[i], readers[i]);
    }
    for (int i = 0; i < count; i++) pred_trace_reader_close(readers[i]);
    if (rc < 0) return cli_fail(1, &err);
    tell(&stats);
    return 0;
}

int cli_replay_export(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct pred_trace_reader *reader;
    struct pred_edit_stats stats;
    struct cli_progress bar;
    struct pred_replay_progress progress = { show_progress, &bar };
    (void)count;
    if (!flags.to) return cli_misuse("-o FILE is needed: where the text goes");
    bool csv = flags.format && strcmp(flags.format, "csv") == 0;
    if (!flags.format) return cli_misuse("--to FORMAT is needed: jsonl or csv");
    if (!csv && strcmp(flags.format, "jsonl") != 0) {
        return cli_misuse("--to %s: expected jsonl or csv", flags.format);
    }
    int rc = pred_trace_reader_open(&reader, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    cli_progress_begin(&bar, "exporting", flags.quiet);
    rc = pred_edit_export(reader, flags.to, csv ? PRED_EXPORT_CSV : PRED_EXPORT_JSONL, &stats,
                          &progress, &err);
    cli_progress_end(&bar);
    if (rc >= 0 && !flags.quiet) cli_replay_health(arguments[0], reader);
    pred_trace_reader_close(reader);
    if (rc < 0) return cli_fail(1, &err);
    tell(&stats);
    return 0;
}

/* ------------------------------------------------------------------------------------- info -- */

static const char *const token_kinds[] = { "id", "hash", "none" };
static const char *const weight_kinds[] = { "none", "u16", "f32" };
static const char *const event_names[] = { NULL, "acquire", "release", "hint", "setting", "restore",
                                           "forget" };
enum { EVENT_KINDS = sizeof event_names / sizeof event_names[0] };

static int info_json(const struct pred_trace_header *h, const struct pred_trace_summary *s,
                     const struct pred_trace_health *health)
{
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_puts(&buf, "{\"model\":\"");
    base_buf_json_escape(&buf, h->model, strlen(h->model));
    base_buf_puts(&buf, "\",\"source\":\"");
    base_buf_json_escape(&buf, h->source, strlen(h->source));
    base_buf_printf(&buf, "\",\"layers\":%" PRIu32 ",\"first_moe_layer\":%" PRIu32
                    ",\"experts\":%" PRIu32 ",\"top_k\":%" PRIu32 ",\"slot_bytes\":%" PRIu64
                    ",\"tokens\":\"%s\",\"weights\":\"%s\",\"sample\":%.6g", h->layers,
                    h->first_moe_layer, h->experts, h->top_k, h->slot_bytes, token_kinds[h->tokens],
                    weight_kinds[h->weights], h->sample);
    base_buf_printf(&buf,
                    ",\"steps\":%" PRIu64 ",\"sequences\":%" PRIu64 ",\"prefill_tokens\":%" PRIu64
                    ",\"decode_tokens\":%" PRIu64 ",\"unknown_tokens\":%" PRIu64 ",\"events\":{",
                    s->steps, s->sequences, s->tokens[TIER_PREFILL], s->tokens[TIER_DECODE],
                    s->unknown_tokens);
    for (int i = 1; i < EVENT_KINDS; i++) {
        base_buf_printf(&buf, "%s\"%s\":%" PRIu64, i > 1 ? "," : "", event_names[i], s->events[i]);
    }
    base_buf_printf(&buf,
                    "},\"counts\":%" PRIu64 ",\"gaps\":%" PRIu64 ",\"lost_records\":%" PRIu64
                    ",\"torn_bytes\":%" PRIu64 ",\"ended\":%s,\"parts\":%" PRIu32
                    ",\"file_bytes\":%" PRIu64 "}",
                    s->counts, s->gaps, health->lost_records, health->torn_bytes,
                    health->ended ? "true" : "false", health->parts, health->file_bytes);
    return cli_replay_print(&buf);
}

static void info_text(const struct pred_trace_header *h, const struct pred_trace_summary *s,
                      const struct pred_trace_health *health)
{
    char bytes[16];
    uint64_t tokens = s->tokens[TIER_PREFILL] + s->tokens[TIER_DECODE];
    printf("model      %s (from %s)\n", h->model[0] ? h->model : "unnamed", h->source);
    printf("shape      %" PRIu32 " layers of %" PRIu32 " experts, top-%" PRIu32
           ", first layer with experts %" PRIu32 "\n",
           h->layers, h->experts, h->top_k, h->first_moe_layer);
    printf("tokens     %" PRIu64 " prompt, %" PRIu64 " generated, of %" PRIu64
           " sequences, in %" PRIu64 " steps\n",
           s->tokens[TIER_PREFILL], s->tokens[TIER_DECODE], s->sequences, s->steps);
    printf("kept       token ids: %s, gate weights: %s, sequences: %.4g%%\n",
           token_kinds[h->tokens], weight_kinds[h->weights], 100 * h->sample);
    for (uint32_t t = 0; t < h->decide.tier_count; t++) {
        printf("cache      %s, %" PRIu64 " slots (%.4g%% of the experts)\n",
               h->decide.tiers[t].policy, h->decide.tiers[t].slots,
               100.0 * (double)h->decide.tiers[t].slots / h->layers / h->experts);
    }
    printf("events    ");
    bool any = false;
    for (int i = 1; i < EVENT_KINDS; i++) {
        if (s->events[i] > 0) printf(" %s %" PRIu64, event_names[i], s->events[i]);
        any |= s->events[i] > 0;
    }
    if (any || s->counts > 0) printf("; live counts at %" PRIu64 " places\n", s->counts);
    else puts(" none");
    printf("file       %s in %" PRIu32 " part%s, %.4g bytes a token\n",
           base_str_bytes(bytes, sizeof bytes, health->file_bytes), health->parts,
           health->parts == 1 ? "" : "s",
           tokens > 0 ? (double)health->file_bytes / (double)tokens : 0);
}

int cli_replay_info(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct pred_trace_reader *reader;
    struct pred_trace_summary summary;
    struct pred_trace_health health;
    struct cli_progress bar;
    struct pred_replay_progress progress = { show_progress, &bar };
    (void)count;
    int rc = pred_trace_reader_open(&reader, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    cli_progress_begin(&bar, "reading", flags.quiet);
    rc = pred_trace_summarize(reader, &summary, &progress, &err);
    cli_progress_end(&bar);
    if (rc < 0) {
        pred_trace_reader_close(reader);
        return cli_fail(1, &err);
    }
    pred_trace_reader_health(reader, &health);
    if (!flags.quiet) cli_replay_health(arguments[0], reader);
    int code = 0;
    if (flags.json) {
        code = info_json(pred_trace_reader_header(reader), &summary, &health);
    } else {
        info_text(pred_trace_reader_header(reader), &summary, &health);
    }
    pred_trace_reader_close(reader);
    return code;
}
