/* tier-replay report: one HTML page about a trace, with plots drawn here and nothing fetched. */
#include "tools/replay.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/out.h"
#include "base/str.h"
#include "base/temp.h"
#include "predictor/edit.h"
#include "predictor/score.h"
#include "predictor/survey.h"
#include "tools/svg.h"

enum { SHARES = 6, POLICIES = 7, PREDICTORS_MAX = SVG_SERIES_MAX, COLUMNS_MAX = 64 };
/* Experts asked for this many times as often as on average are all equally dark. */
#define HEAT_MOST 4.0
#define TIME_SHARE 0.25

static const double capacities[SHARES] = { 0.125, 0.25, 0.375, 0.5, 0.625, 0.75 };
static const char *const policies[POLICIES] = { "belady", "lfu",   "lru_with_frequency",
                                                "s3fifo", "sieve", "arc",
                                                "lru" };

static struct {
    const char *to, *train;
    bool quiet;
} flags;

const struct cli_flag cli_replay_report_flags[] = {
    { "output|o", CLI_TEXT, &flags.to, "FILE", "the HTML page to make; - for standard output" },
    { "train", CLI_TEXT, &flags.train, "TRACE2",
      "learn the predictors on this trace; default: on the even sequences, scored on the odd" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "no progress" },
    { 0 },
};

struct report {
    struct pred_trace_reader *reader;
    const struct pred_trace_header *header;
    struct pred_replay_progress progress;
    struct pred_trace_summary summary;
    struct pred_case cases[POLICIES * SHARES];
    struct pred_case_result results[POLICIES * SHARES];
    struct pred_survey survey;
    struct pred_score scores[PREDICTORS_MAX];
    struct pred_score_total total;
    uint32_t predictors;
    char why_none[256]; /* why no predictor was scored */
};

/* -- measuring -------------------------------------------------------------------------------- */

static struct pred_case case_of(const struct report *r, const char *policy, double share)
{
    struct pred_case c = { .prefill_share = 1, .half_life_tokens = 16 };
    snprintf(c.policy, sizeof c.policy, "%s", policy);
    c.slots = (uint64_t)pred_slots_of_share(share, r->header->experts) * r->header->layers;
    return c;
}

static int measure_caches(struct report *r, struct base_err *err)
{
    struct pred_replay_summary summary;
    struct pred_case timed[2] = { case_of(r, "lfu", TIME_SHARE), case_of(r, "lru", TIME_SHARE) };
    for (int p = 0; p < POLICIES; p++) {
        for (int s = 0; s < SHARES; s++) {
            r->cases[p * SHARES + s] = case_of(r, policies[p], capacities[s]);
        }
    }
    int rc = pred_replay_run(r->reader, r->cases, r->results, POLICIES * SHARES, &summary,
                             &r->progress, err);
    if (rc >= 0) rc = pred_trace_reader_rewind(r->reader, err);
    if (rc >= 0) rc = pred_survey_run(&r->survey, r->reader, timed, 2, &r->progress, err);
    if (rc >= 0 && r->survey.lookups == 0) {
        return base_err_set(err, BASE_ECONFIG, "the trace holds no routing: nothing to report");
    }
    return rc;
}

/* Half of the sequences, as a trace of its own in `path`. */
static int half(struct report *r, uint64_t rest, const char *path, uint64_t *tokens,
                struct base_err *err)
{
    struct pred_selection s = { .modulo = 2,
                                .rest = rest,
                                .seq_last = UINT64_MAX,
                                .step_last = UINT64_MAX,
                                .share = 1,
                                .phase = -1 };
    struct pred_edit_stats stats;
    int rc = pred_edit_select(r->reader, path, &s, &stats, &r->progress, err);
    *tokens = stats.tokens;
    return rc < 0 ? rc : pred_trace_reader_rewind(r->reader, err);
}

static int score(struct report *r, const char *train_path, const char *test_path,
                 struct base_err *err)
{
    const char *names[PREDICTORS_MAX], *name;
    struct pred_trace_reader *train = NULL, *test = NULL;
    for (size_t i = 0; r->predictors < PREDICTORS_MAX && (name = pred_predictor_name(i)); i++) {
        if (!pred_predictor_find(name)->live_only) names[r->predictors++] = name;
    }
    int rc = pred_trace_reader_open(&train, train_path, err);
    if (rc == 0) rc = pred_trace_reader_open(&test, test_path, err);
    if (rc == 0) {
        struct pred_score_args args = { .train = train,
                                        .test = test,
                                        .names = names,
                                        .count = r->predictors,
                                        .capacity = TIME_SHARE,
                                        .progress = &r->progress };
        rc = pred_score_run(&args, r->scores, &r->total, err);
    }
    pred_trace_reader_close(train);
    pred_trace_reader_close(test);
    return rc;
}

static int measure_predictors(struct report *r, const char *path, struct base_err *err)
{
    char folder[4096], even[4200], odd[4200];
    uint64_t learned, tested;
    if (flags.train) return score(r, flags.train, path, err);
    snprintf(folder, sizeof folder, "%.4000s/tier-replay-report-XXXXXX", base_temp_folder());
    if (!mkdtemp(folder)) {
        return base_err_set(err, -errno, "%s: no temporary folder can be made there: %s", folder,
                            strerror(errno));
    }
    snprintf(even, sizeof even, "%s/even", folder);
    snprintf(odd, sizeof odd, "%s/odd", folder);
    const char *const made[] = { folder, even, odd };
    for (int i = 0; i < 3; i++) base_temp_add(made[i]);
    int rc = half(r, 0, even, &learned, err);
    if (rc >= 0) rc = half(r, 1, odd, &tested, err);
    if (rc >= 0 && (learned == 0 || tested == 0)) {
        snprintf(r->why_none, sizeof r->why_none,
                 "No predictor was scored: the trace has %" PRIu64 " sequence%s, and learning and "
                 "scoring want sequences of even and of odd numbers (or --train).",
                 r->summary.sequences, r->summary.sequences == 1 ? "" : "s");
    } else if (rc >= 0) {
        rc = score(r, even, odd, err);
    }
    unlink(even);
    unlink(odd);
    rmdir(folder);
    for (int i = 0; i < 3; i++) base_temp_drop(made[i]);
    return rc;
}

/* -- the page --------------------------------------------------------------------------------- */

static double resident(const struct pred_case_result *result)
{
    double lookups = 0, there = 0;
    for (int p = 0; p < TIER_PHASE_COUNT; p++) {
        lookups += (double)result->phases[p].lookups;
        there += (double)result->phases[p].resident;
    }
    return lookups > 0 ? 100 * there / lookups : 0;
}

/* The full ten below the least value, so that lines use the height they are given. */
static double floor_of(double least)
{
    double ten = 10 * floor(least / 10);
    return ten > 0 ? ten : 0;
}

static void page_head(FILE *to, const struct report *r, const char *path)
{
    const struct pred_trace_header *h = r->header;
    const char *name = strrchr(path, '/');
    fputs(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Report of ",
        to);
    svg_text(to, name ? name + 1 : path);
    fputs("</title>\n<style>\n"
          "body { font: 15px/1.45 sans-serif; color: #111; background: #fff; max-width: 760px;\n"
          "       margin: 2em auto; padding: 0 1em; }\n"
          "svg { max-width: 100%; height: auto; font: 12px sans-serif; }\n"
          "svg .title { font-size: 14px; font-weight: bold; }\n"
          "svg .axis { stroke: #333; fill: none; } svg .grid { stroke: #ddd; }\n"
          "svg .note { font-size: 10px; fill: #333; }\n"
          "table { border-collapse: collapse; margin: .6em 0 1.6em; font-size: 13px; }\n"
          "td, th { border-bottom: 1px solid #ccc; padding: .15em .8em; text-align: right; }\n"
          "td:first-child, th:first-child { text-align: left; }\n"
          "figure { margin: 1.6em 0 .4em; break-inside: avoid; }\n"
          "@media print { body { margin: 0; max-width: none; } table { break-inside: avoid; } }\n"
          "</style>\n</head>\n<body>\n<h1>",
          to);
    svg_text(to, h->model[0] ? h->model : "A trace without a name");
    fprintf(to,
            "</h1>\n<p>%" PRIu32 " layers of %" PRIu32 " experts, top-%" PRIu32 ". %" PRIu64
            " prompt and %" PRIu64 " generated tokens of %" PRIu64 " sequence%s, %" PRIu64
            " lookups. From ",
            h->layers, h->experts, h->top_k, r->summary.tokens[TIER_PREFILL],
            r->summary.tokens[TIER_DECODE], r->summary.sequences,
            r->summary.sequences == 1 ? "" : "s", r->survey.lookups);
    svg_text(to, h->source);
    fputs(
        ". Every number is a replay through the decision core: caches begin empty, each layer has "
        "the same slots, half-lives are 16 tokens, nothing is set aside for decode.</p>\n",
        to);
}

static void figure_caches(FILE *to, const struct report *r)
{
    struct svg_plot plot = {
        .to = to,
        .title = "Resident rate by capacity and policy",
        .x_label = "share of a layer's experts that fit into memory",
        .y_label = "lookups found resident",
        .x_min = 0,
        .x_max = 80,
        .y_min = 0,
        .y_max = 100,
        .x_step = 12.5,
        .y_step = 20,
        .x_unit = "%",
        .y_unit = "%",
        .width = 660,
        .height = 320,
    };
    double x[SHARES], y[SHARES], least = 100;
    for (int i = 0; i < POLICIES * SHARES; i++)
        least = fmin(least, resident(&r->results[i]));
    plot.y_min = floor_of(least);
    plot.y_step = plot.y_min >= 50 ? 5 : 10;
    fputs("<figure>\n", to);
    svg_begin(&plot);
    for (int p = POLICIES - 1; p >= 0; p--) {
        for (int s = 0; s < SHARES; s++) {
            x[s] = 100 * (double)r->cases[p * SHARES + s].slots /
                   ((double)r->header->layers * r->header->experts);
            y[s] = resident(&r->results[p * SHARES + s]);
        }
        svg_line(&plot, (unsigned)p, x, y, SHARES);
    }
    svg_legend(&plot, NULL, policies, POLICIES);
    svg_end(&plot);
    fputs("</figure>\n<table>\n<tr><th>policy</th>", to);
    for (int s = 0; s < SHARES; s++)
        fprintf(to, "<th>%.4g%%</th>", 100 * capacities[s]);
    fputs("</tr>\n", to);
    for (int p = 0; p < POLICIES; p++) {
        fprintf(to, "<tr><td>%s</td>", policies[p]);
        for (int s = 0; s < SHARES; s++) {
            fprintf(to, "<td>%.2f</td>", resident(&r->results[p * SHARES + s]));
        }
        fputs("</tr>\n", to);
    }
    fputs("</table>\n<p>belady knows the future: no policy without prediction is above it.</p>\n",
          to);
}

static void figure_predictors(FILE *to, const struct report *r)
{
    const char *names[PREDICTORS_MAX];
    struct svg_plot plot = {
        .to = to,
        .title = "What prediction could save, and what it would waste",
        .x_label = "bytes read for nothing, per byte that misses",
        .x_unit = "",
        .y_label = "bytes of misses read ahead",
        .y_unit = "%",
        .y_max = 100,
        .x_step = 2,
        .y_step = 20,
        .width = 660,
        .height = 320,
    };
    if (r->predictors == 0) {
        fprintf(to, "<p>%s</p>\n", r->why_none);
        return;
    }
    for (uint32_t p = 0; p < r->predictors; p++) {
        const struct pred_score *s = &r->scores[p];
        int d = PRED_SCORE_DEPTHS - 1;
        double x = (double)(s->prefetched[d] - s->useful[d]) / (double)r->total.misses;
        if (x > plot.x_max) plot.x_max = x;
    }
    while (plot.x_max / plot.x_step > 10)
        plot.x_step *= 2;
    while (plot.x_max / plot.x_step < 4)
        plot.x_step /= 2;
    plot.x_max = plot.x_step * ceil(plot.x_max / plot.x_step);
    fputs("<figure>\n", to);
    svg_begin(&plot);
    for (uint32_t p = 0; p < r->predictors; p++) {
        const struct pred_score *s = &r->scores[p];
        double x[PRED_SCORE_DEPTHS], y[PRED_SCORE_DEPTHS];
        for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
            x[d] = (double)(s->prefetched[d] - s->useful[d]) / (double)r->total.misses;
            y[d] = 100 * (double)s->useful[d] / (double)r->total.misses;
        }
        names[p] = s->name;
        svg_line(&plot, p, x, y, PRED_SCORE_DEPTHS);
        if (strcmp(s->name, "blend") != 0) continue;
        for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
            char text[32];
            snprintf(text, sizeof text, "%" PRIu32 " a layer", pred_score_depths[d]);
            svg_note(&plot, x[d], y[d], text);
        }
    }
    svg_legend(&plot, NULL, names, r->predictors);
    svg_end(&plot);
    fprintf(to,
            "</figure>\n<p>For each token and layer the 1, 2 or 4 likeliest experts that a decayed "
            "frequency cache of %.0f%% does not hold are read ahead: the three points of a line. "
            "Further up and further left is better. Learned on %" PRIu64
            " tokens, scored on %" PRIu64 " others, %" PRIu64
            " misses.</p>\n<table>\n<tr><th>predictor</th>",
            100 * TIME_SHARE, r->total.train_tokens, r->total.test_tokens, r->total.misses);
    for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
        fprintf(to, "<th>covers at %" PRIu32 "</th><th>wasted</th>", pred_score_depths[d]);
    }
    fputs("</tr>\n", to);
    for (uint32_t p = 0; p < r->predictors; p++) {
        const struct pred_score *s = &r->scores[p];
        fprintf(to, "<tr><td>%s</td>", s->name);
        for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
            fprintf(to, "<td>%.1f%%</td><td>%.2f</td>",
                    100 * (double)s->useful[d] / (double)r->total.misses,
                    (double)(s->prefetched[d] - s->useful[d]) / (double)r->total.misses);
        }
        fputs("</tr>\n", to);
    }
    fputs("</table>\n", to);
}

static int most_first(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

/* Experts of each layer by how often they are asked for; neighbours share a cell where there are
 * more of them than columns. */
static int figure_layers(FILE *to, const struct report *r)
{
    uint32_t layers = r->survey.layers, experts = r->survey.experts;
    uint32_t columns = experts < COLUMNS_MAX ? experts : COLUMNS_MAX;
    double *cells = calloc((size_t)layers * columns, sizeof cells[0]);
    char label[64];
    if (!cells) return -ENOMEM;
    for (uint32_t l = 0; l < layers; l++) {
        uint64_t *uses = r->survey.uses + (size_t)l * experts, sum = 0;
        qsort(uses, experts, sizeof uses[0], most_first);
        for (uint32_t e = 0; e < experts; e++)
            sum += uses[e];
        for (uint32_t c = 0; c < columns && sum > 0; c++) {
            uint32_t from = c * experts / columns, end = (c + 1) * experts / columns;
            double in = 0;
            for (uint32_t e = from; e < end; e++)
                in += (double)uses[e];
            cells[l * columns + c] = in / (end - from) * experts / (double)sum;
        }
    }
    snprintf(label, sizeof label, "experts of the layer, the most asked for first (%" PRIu32 ")",
             experts);
    fputs("<figure>\n", to);
    svg_cells(to, "How unevenly each layer uses its experts", label, "layer", cells,
              r->header->first_moe_layer, layers, columns, HEAT_MOST,
              "times as often as the average expert");
    fputs("</figure>\n<p>A dark left edge that fades quickly is a layer that a small cache "
          "serves well; an even row is one that it does not.</p>\n",
          to);
    free(cells);
    return 0;
}

static void figure_time(FILE *to, const struct report *r)
{
    static const char *const names[] = { "lfu", "lru" };
    /* The looks that these two have in the first figure. */
    static const unsigned looks[] = { 1, 6 };
    const struct pred_survey *s = &r->survey;
    double x[PRED_SURVEY_WINDOWS], y[PRED_SURVEY_WINDOWS], end = s->window_tokens * s->windows;
    struct svg_plot plot = {
        .to = to,
        .title = "Resident rate over time, 25% of the experts in memory",
        .x_label = "tokens replayed",
        .y_label = "lookups found resident",
        .x_max = end,
        .y_max = 100,
        .x_step = end / 5,
        .y_step = 20,
        .x_unit = "",
        .y_unit = "%",
        .width = 660,
        .height = 260,
    };
    double unit = pow(10, floor(log10(plot.x_step)));
    plot.x_step = unit * (plot.x_step / unit >= 5 ? 5 : plot.x_step / unit >= 2 ? 2 : 1);
    double least = 1;
    for (int c = 0; c < 2; c++) {
        for (uint32_t w = 0; w < s->windows; w++)
            least = fmin(least, s->rates[c][w]);
    }
    plot.y_min = floor_of(100 * least);
    plot.y_step = plot.y_min >= 50 ? 5 : 10;
    fputs("<figure>\n", to);
    svg_begin(&plot);
    for (int c = 0; c < 2; c++) {
        for (uint32_t w = 0; w < s->windows; w++) {
            x[w] = s->window_tokens * (w + 0.5);
            y[w] = 100 * s->rates[c][w];
        }
        svg_line(&plot, looks[c], x, y, s->windows);
    }
    svg_legend(&plot, looks, names, 2);
    svg_end(&plot);
    fprintf(to,
            "</figure>\n<p>%" PRIu32 " windows of %.0f tokens each. A dip is a change of "
            "subject, or a long prompt.</p>\n",
            s->windows, s->window_tokens);
}

static int write_page(const struct report *r, const char *path, struct base_err *err)
{
    struct base_out out;
    int rc = base_out_begin(&out, flags.to, err);
    if (rc == 0) rc = base_out_open(&out, err);
    if (rc < 0) return rc;
    page_head(out.file, r, path);
    figure_caches(out.file, r);
    figure_predictors(out.file, r);
    rc = figure_layers(out.file, r);
    figure_time(out.file, r);
    fputs("</body>\n</html>\n", out.file);
    return base_out_end(&out, rc, err);
}

/* Before the work: could the page be written, and is it none of the traces? */
static int check_output(const struct report *r, struct base_err *err)
{
    struct pred_trace_reader *train = NULL;
    int rc = pred_trace_reader_spares(r->reader, flags.to, err);
    if (rc == 0 && flags.train) rc = pred_trace_reader_open(&train, flags.train, err);
    if (rc == 0 && train) rc = pred_trace_reader_spares(train, flags.to, err);
    pred_trace_reader_close(train);
    return rc;
}

int cli_replay_report(int count, char **arguments)
{
    static struct report r;
    struct base_err err = { 0 };
    struct cli_progress bar;
    (void)count;
    if (!flags.to) return cli_misuse("-o FILE is needed: where the page goes");
    int rc = pred_trace_reader_open(&r.reader, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    r.header = pred_trace_reader_header(r.reader);
    r.progress = (struct pred_replay_progress){ cli_replay_progress, &bar };
    cli_progress_begin(&bar, "reading", flags.quiet);
    rc = check_output(&r, &err);
    if (rc >= 0) rc = pred_trace_summarize(r.reader, &r.summary, &r.progress, &err);
    if (rc >= 0) rc = pred_trace_reader_rewind(r.reader, &err);
    if (rc >= 0) rc = measure_caches(&r, &err);
    if (rc >= 0) rc = measure_predictors(&r, arguments[0], &err);
    cli_progress_end(&bar);
    if (rc >= 0) rc = write_page(&r, arguments[0], &err);
    pred_replay_results_fini(r.results, POLICIES * SHARES);
    pred_survey_fini(&r.survey);
    pred_trace_reader_close(r.reader);
    return rc < 0 ? cli_fail(1, &err) : 0;
}
