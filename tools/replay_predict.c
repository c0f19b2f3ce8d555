#include "tools/replay.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "predictor/score.h"

enum { NAMES_MAX = 32 };

static struct {
    const char *train, *capacity, *predictors;
    uint64_t lead;
    bool json, quiet;
} flags = { .capacity = "25%" };

const struct cli_flag cli_replay_predict_flags[] = {
    { "train", CLI_TEXT, &flags.train, "TRACE2",
      "learn the tables on this trace, then freeze them" },
    { "capacity", CLI_TEXT, &flags.capacity, "P",
      "share of a layer's experts that the cache holds" },
    { "predictor", CLI_TEXT, &flags.predictors, "A,B", "only these predictors; default all" },
    { "lead", CLI_UINT, &flags.lead, "N",
      "layers whose routing is not yet known when predicting; 0 = all before are known" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print JSON" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "no progress" },
    { 0 },
};

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

/* Wrong reads per right one, at the largest depth, as text; `none` where all were wrong. */
static void wasted(char *to, size_t size, const struct pred_score *score, int places,
                   const char *none)
{
    int d = PRED_SCORE_DEPTHS - 1;
    uint64_t wrong = score->prefetched[d] - score->useful[d];
    if (wrong > 0 && score->useful[d] == 0) snprintf(to, size, "%s", none);
    else snprintf(to, size, "%.*f", places, share(wrong, score->useful[d]));
}

static void json_depths(struct base_buf *buf, const char *key, const double *values)
{
    base_buf_printf(buf, ",\"%s\":{", key);
    for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
        base_buf_printf(buf, "%s\"%" PRIu32 "\":%.6f", d > 0 ? "," : "", pred_score_depths[d],
                        values[d]);
    }
    base_buf_puts(buf, "}");
}

static int print_json(const struct pred_score *scores, uint32_t count,
                      const struct pred_score_total *total)
{
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_puts(&buf, "{\"predictors\":[");
    for (uint32_t p = 0; p < count; p++) {
        const struct pred_score *s = &scores[p];
        double covered[PRED_SCORE_DEPTHS], precision[PRED_SCORE_DEPTHS];
        char wasted_text[32];
        for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
            covered[d] = share(s->useful[d], total->misses);
            precision[d] = share(s->useful[d], s->prefetched[d]);
        }
        base_buf_printf(&buf, "%s{\"name\":\"%s\",\"recall_k\":%.6f,\"recall_2k\":%.6f",
                        p > 0 ? "," : "", s->name, share(s->in_k, s->chosen),
                        share(s->in_2k, s->chosen));
        json_depths(&buf, "covered", covered);
        json_depths(&buf, "precision", precision);
        wasted(wasted_text, sizeof wasted_text, s, 6, "null");
        base_buf_printf(&buf, ",\"wasted_per_useful\":%s}", wasted_text);
    }
    base_buf_puts(&buf, "]}");
    return cli_replay_print(&buf);
}

static int print_table(const struct pred_score *scores, uint32_t count,
                       const struct pred_score_total *total)
{
    static const char *const headings[] = { "predictor", "recall k", "recall 2k",   "covers 1",
                                            "covers 2",  "covers 4", "precision 4", "wasted/useful",
                                            "tables",    "ns/layer" };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    if (cli_table_create(&table, COLUMNS, headings) < 0) return 1;
    for (uint32_t p = 0; p < count; p++) {
        const struct pred_score *s = &scores[p];
        char text[COLUMNS][32];
        const char *cells[COLUMNS];
        snprintf(text[0], sizeof text[0], "%.31s", s->name);
        snprintf(text[1], sizeof text[1], "%.1f%%", 100 * share(s->in_k, s->chosen));
        snprintf(text[2], sizeof text[2], "%.1f%%", 100 * share(s->in_2k, s->chosen));
        for (int d = 0; d < PRED_SCORE_DEPTHS; d++) {
            snprintf(text[3 + d], sizeof text[0], "%.1f%%",
                     100 * share(s->useful[d], total->misses));
        }
        snprintf(text[6], sizeof text[6], "%.1f%%", 100 * share(s->useful[2], s->prefetched[2]));
        wasted(text[7], sizeof text[7], s, 2, "all");
        base_str_bytes(text[8], sizeof text[8], s->table_bytes);
        snprintf(text[9], sizeof text[9], "%.0f", s->predict_ns);
        for (int k = 0; k < COLUMNS; k++) cells[k] = text[k];
        cli_table_row(table, cells);
    }
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    return 0;
}

static void remarks(const char *path, const struct pred_trace_reader *test,
                    const struct pred_trace_reader *train, const struct pred_score_total *total)
{
    cli_replay_health(path, test);
    cli_replay_health(flags.train, train);
    fprintf(stderr, "learned on %" PRIu64 " tokens, scored on %" PRIu64 ": %" PRIu64
                    " lookups, %" PRIu64 " of them misses at %s\n", total->train_tokens,
            total->test_tokens, total->lookups, total->misses, flags.capacity);
}

/* Names from --predictor, cut in place, or all there are. */
static uint32_t choose(char *list, const char **names)
{
    uint32_t count = 0;
    const char *item;
    if (!flags.predictors) {
        for (size_t i = 0; count < NAMES_MAX && (item = pred_predictor_name(i)) != NULL; i++) {
            if (!pred_predictor_find(item)->live_only) names[count++] = item;
        }
        return count;
    }
    while (count < NAMES_MAX && (item = strsep(&list, ",")) != NULL) names[count++] = item;
    return count;
}

int cli_replay_predict(int count, char **arguments)
{
    struct base_err err = { 0 };
    const char *names[NAMES_MAX];
    char list[1024];
    double capacity;
    (void)count;
    if (!flags.train) return cli_misuse("--train TRACE2 is needed: the tables are learned on it");
    if (base_str_share_parse(flags.capacity, &capacity) < 0 || capacity <= 0) {
        return cli_misuse("--capacity %s: expected a share such as 25%%", flags.capacity);
    }
    if (flags.lead > 64) return cli_misuse("--lead %" PRIu64 ": at most 64 layers", flags.lead);
    snprintf(list, sizeof list, "%s", flags.predictors ? flags.predictors : "");
    uint32_t n = choose(list, names);
    struct pred_trace_reader *train = NULL, *test = NULL;
    struct pred_score scores[NAMES_MAX];
    struct pred_score_total total;
    struct cli_progress bar;
    struct pred_replay_progress progress = { cli_replay_progress, &bar };
    int rc = pred_trace_reader_open(&test, arguments[0], &err);
    if (rc == 0) rc = pred_trace_reader_open(&train, flags.train, &err);
    if (rc == 0) {
        struct pred_score_args args = { .train = train, .test = test, .names = names, .count = n,
                                        .capacity = capacity, .lead = (uint32_t)flags.lead,
                                        .progress = &progress };
        cli_progress_begin(&bar, "learning", flags.quiet);
        rc = pred_score_run(&args, scores, &total, &err);
        cli_progress_end(&bar);
    }
    if (rc == 0 && !flags.quiet) remarks(arguments[0], test, train, &total);
    pred_trace_reader_close(train);
    pred_trace_reader_close(test);
    if (rc < 0) return cli_fail(1, &err);
    return flags.json ? print_json(scores, n, &total) : print_table(scores, n, &total);
}
