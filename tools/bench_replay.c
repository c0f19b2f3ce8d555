/* What a replay costs: lookups a second of one core, by policy and with predictors beside. Several
 * rounds go over all runs in turn, so that a slow minute of the machine is nobody's own. */
#include "tools/bench.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/must.h"
#include "base/str.h"
#include "predictor/feed.h"
#include "predictor/history.h"
#include "predictor/replay.h"
#include "tools/bench_stack.h"

enum { NAMES_MAX = 16, ROWS_MAX = 64 };

static struct {
    const char *policy, *capacity, *predictors;
    unsigned long long rounds;
    bool json;
} flags = { .policy = "lru,lfu", .capacity = "25%", .predictors = "none", .rounds = 1 };

struct row {
    char name[96];
    uint64_t lookups;
    double rounds[BENCH_ROUNDS_MAX]; /* seconds of each */
    double seconds, decode_seconds;  /* medians */
    double spread;                   /* from fastest to slowest, of the median */
    uint64_t peak_bytes, index_bytes, table_bytes;
};

/* Processor time of this thread: other work on the machine does not count. */
static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_maxrss * 1024;
}

/* Seconds that reading the trace alone takes. */
static int decode(struct pred_trace_reader *reader, double *seconds, struct base_err *err)
{
    struct pred_feed *feed;
    struct pred_acquire acquire;
    double begin = now_seconds();
    int rc = pred_feed_create(&feed, reader, err);
    while (rc >= 0 && (rc = pred_feed_next(feed, &acquire, err)) > 0)
        continue;
    pred_feed_destroy(feed);
    *seconds = now_seconds() - begin;
    return rc < 0 ? rc : pred_trace_reader_rewind(reader, err);
}

static int measure_policy(struct pred_trace_reader *reader, const char *policy, uint64_t slots,
                          uint32_t round, struct row *row, struct base_err *err)
{
    struct pred_case c = { .slots = slots, .prefill_share = 1, .half_life_tokens = 16 };
    struct pred_case_result result;
    struct pred_replay_summary summary;
    snprintf(c.policy, sizeof c.policy, "%s", policy);
    double begin = now_seconds();
    int rc = pred_replay_run(reader, &c, &result, 1, &summary, NULL, err);
    row->rounds[round] = now_seconds() - begin;
    pred_replay_results_fini(&result, 1);
    row->lookups = summary.lookups;
    snprintf(row->name, sizeof row->name, "%.31s", policy);
    if (round == 0) row->peak_bytes = peak_bytes();
    if (strncmp(policy, "belady", 6) == 0) row->index_bytes = 4 * summary.lookups;
    return rc < 0 ? rc : pred_trace_reader_rewind(reader, err);
}

/* ------------------------------------------------------------------------------ predictors -- */

struct world {
    struct pred_shape shape;
    struct pred_predictor *predictors[NAMES_MAX];
    uint32_t count;
    struct pred_history history;
    struct tier_decide *decide;
    struct tier_found *found;
    struct pred_context *contexts;
    uint32_t *ids;
    float *scores;
    uint32_t token_room;
};

static int world_reserve(struct world *w, uint32_t tokens)
{
    if (tokens <= w->token_room) return 0;
    size_t row = (size_t)w->shape.layers * w->shape.top_k;
    free(w->contexts);
    free(w->ids);
    w->contexts = calloc(tokens, sizeof w->contexts[0]);
    w->ids = calloc(tokens * row, sizeof w->ids[0]);
    w->token_room = tokens;
    return w->contexts && w->ids ? 0 : -ENOMEM;
}

static void world_fini(struct world *w)
{
    for (uint32_t p = 0; p < w->count; p++)
        pred_predictor_destroy(w->predictors[p]);
    pred_history_fini(&w->history);
    tier_decide_destroy(w->decide);
    free(w->found);
    free(w->contexts);
    free(w->ids);
    free(w->scores);
}

/* Each token alone: what every predictor says of the layer, the lookup, what they learn of it. */
static uint64_t one_layer(struct world *w, const struct pred_step *step, uint32_t layer)
{
    uint64_t lookups = 0;
    uint32_t top_k = w->shape.top_k;
    for (uint32_t i = 0; i < step->token_count; i++) {
        const uint32_t *ids = w->contexts[i].ids + (size_t)layer * top_k;
        if (ids[0] == PRED_NO_EXPERT) continue;
        w->contexts[i].known = layer;
        for (uint32_t p = 0; p < w->count; p++) {
            pred_predictor_predict(w->predictors[p], &w->contexts[i], layer, w->scores);
        }
        for (uint32_t done = 0; done < top_k;) {
            uint32_t k = tier_decide_acquire(w->decide, layer, ids + done, top_k - done,
                                             (enum tier_phase)step->phases[i], w->found);
            MUST(k > 0);
            tier_decide_release(w->decide, layer, ids + done, k);
            done += k;
        }
        for (uint32_t p = 0; p < w->count; p++) {
            pred_predictor_observe(w->predictors[p], &w->contexts[i], layer, ids, true);
        }
        lookups += top_k;
    }
    return lookups;
}

static int world_run(struct world *w, struct pred_trace_reader *reader, uint32_t round,
                     struct row *row, struct base_err *err)
{
    struct pred_trace_item item;
    double begin = now_seconds();
    int rc;
    row->lookups = 0;
    while ((rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err)) > 0) {
        rc = world_reserve(w, item.step.token_count);
        if (rc < 0) return rc;
        pred_history_contexts(&w->history, &w->shape, &item.step, w->contexts, w->ids);
        for (uint32_t l = 0; l < w->shape.layers; l++)
            row->lookups += one_layer(w, &item.step, l);
        pred_history_update(&w->history, &item.step, w->ids);
    }
    row->rounds[round] = now_seconds() - begin;
    return rc < 0 ? rc : pred_trace_reader_rewind(reader, err);
}

static int measure_predictors(struct pred_trace_reader *reader, const char *policy,
                              const char *const *names, uint32_t count, uint64_t slots,
                              uint32_t round, struct row *row, struct base_err *err)
{
    const struct pred_trace_header *h = pred_trace_reader_header(reader);
    struct world w = { .shape = { .layers = h->layers, .experts = h->experts, .top_k = h->top_k } };
    struct tier_decide_config config = {
        .layers = h->layers,
        .experts = h->experts,
        .top_k = h->top_k,
        .tier_count = 1,
        .tiers = { { .slots = slots } },
        .half_life_tokens = 16,
        .prefill_share = 1,
    };
    snprintf(config.tiers[0].policy, sizeof config.tiers[0].policy, "%s", policy);
    row->table_bytes = 0;
    w.found = calloc(h->experts, sizeof w.found[0]);
    w.scores = calloc(h->experts, sizeof w.scores[0]);
    int rc = w.found && w.scores ? pred_history_init(&w.history, &w.shape) : -ENOMEM;
    if (rc == 0) rc = tier_decide_create(&w.decide, &config, err);
    for (uint32_t p = 0; rc == 0 && p < count; p++) {
        rc = pred_predictor_create(&w.predictors[p], names[p], &w.shape);
        if (rc == -ENOENT) base_err_set(err, rc, "no predictor is called \"%.40s\"", names[p]);
        if (rc < 0) break;
        w.count++;
        row->table_bytes += pred_predictor_bytes(w.predictors[p]);
    }
    if (rc == 0) rc = world_run(&w, reader, round, row, err);
    world_fini(&w);
    if (round == 0) row->peak_bytes = peak_bytes();
    snprintf(row->name, sizeof row->name, "%.31s + %s", policy, count == 1 ? names[0] : "all");
    if (rc < 0) base_err_set(err, rc, "cannot measure: %s", base_err_name(rc));
    return rc;
}

/* -------------------------------------------------------------------------------- printing -- */

static void print_json(const struct row *rows, uint32_t count)
{
    printf("{\"runs\":[");
    for (uint32_t i = 0; i < count; i++) {
        const struct row *r = &rows[i];
        printf("%s{\"name\":\"%s\",\"lookups\":%" PRIu64 ",\"seconds\":%.6f,\"decode_seconds\":%.6f"
               ",\"lookups_per_second\":%.0f,\"spread\":%.4f,\"peak_bytes\":%" PRIu64
               ",\"index_bytes\":%" PRIu64 ",\"table_bytes\":%" PRIu64 "}",
               i > 0 ? "," : "", r->name, r->lookups, r->seconds, r->decode_seconds,
               (double)r->lookups / r->seconds, r->spread, r->peak_bytes, r->index_bytes,
               r->table_bytes);
    }
    puts("]}");
}

static int print_table(const struct row *rows, uint32_t count)
{
    static const char *const headings[] = {
        "what",   "lookups",     "seconds", "of it decoding", "million lookups/s",
        "spread", "peak memory", "tables",  "index on disk",
    };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    if (cli_table_create(&table, COLUMNS, headings) < 0) return 1;
    for (uint32_t i = 0; i < count; i++) {
        const struct row *r = &rows[i];
        char text[COLUMNS][32];
        const char *cells[COLUMNS] = { r->name };
        snprintf(text[1], sizeof text[1], "%" PRIu64, r->lookups);
        snprintf(text[2], sizeof text[2], "%.3f", r->seconds);
        snprintf(text[3], sizeof text[3], "%.3f", r->decode_seconds);
        snprintf(text[4], sizeof text[4], "%.2f", (double)r->lookups / r->seconds / 1e6);
        snprintf(text[5], sizeof text[5], "%.0f%%", 100 * r->spread);
        base_str_bytes(text[6], sizeof text[6], r->peak_bytes);
        base_str_bytes(text[7], sizeof text[7], r->table_bytes);
        base_str_bytes(text[8], sizeof text[8], r->index_bytes);
        for (int k = 1; k < COLUMNS; k++)
            cells[k] = text[k];
        cli_table_row(table, cells);
    }
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    return 0;
}

/* ------------------------------------------------------------------------------------- run -- */

/* Cuts a comma list in place. */
static uint32_t split(char *list, const char **names)
{
    uint32_t count = 0;
    const char *item;
    while (count < NAMES_MAX && (item = strsep(&list, ",")) != NULL) {
        if (*item) names[count++] = item;
    }
    return count;
}

/* "none", "all" (everything that learns tables), or a list. */
static uint32_t choose_predictors(char *list, const char **names)
{
    uint32_t count = 0;
    const char *name;
    if (strcmp(list, "none") == 0) return 0;
    if (strcmp(list, "all") != 0) return split(list, names);
    for (size_t i = 0; count < NAMES_MAX && (name = pred_predictor_name(i)) != NULL; i++) {
        const struct pred_predictor_ops *ops = pred_predictor_find(name);
        if (strcmp(name, "none") == 0 || ops->replay_only || ops->live_only) continue;
        names[count++] = name;
    }
    return count;
}

/* What one round measures, one row each: reading alone, each policy, each predictor, all of them.
 */
struct plan {
    const char *policies[NAMES_MAX], *predictors[NAMES_MAX];
    uint32_t policy_count, predictor_count;
    uint64_t slots;
};

static int measure_round(struct pred_trace_reader *reader, const struct plan *plan, uint32_t round,
                         double *decoding, struct row *rows, uint32_t *count, struct base_err *err)
{
    const char *policy = plan->policies[0];
    uint32_t n = 0;
    int rc = decode(reader, decoding, err);
    for (uint32_t i = 0; rc == 0 && i < plan->policy_count; i++) {
        rc = measure_policy(reader, plan->policies[i], plan->slots, round, &rows[n++], err);
    }
    for (uint32_t p = 0; rc == 0 && p < plan->predictor_count; p++) {
        rc = measure_predictors(reader, policy, &plan->predictors[p], 1, plan->slots, round,
                                &rows[n++], err);
    }
    if (rc == 0 && plan->predictor_count > 1) {
        rc = measure_predictors(reader, policy, plan->predictors, plan->predictor_count,
                                plan->slots, round, &rows[n++], err);
    }
    *count = n;
    return rc;
}

static int measure_all(struct pred_trace_reader *reader, double capacity, struct row *rows,
                       uint32_t *count, struct base_err *err)
{
    const struct pred_trace_header *h = pred_trace_reader_header(reader);
    struct plan plan = {
        .slots = (uint64_t)pred_slots_of_share(capacity, h->experts) * h->layers,
    };
    char policy_list[512], predictor_list[512];
    double decoding[BENCH_ROUNDS_MAX], spread;
    snprintf(policy_list, sizeof policy_list, "%s", flags.policy);
    snprintf(predictor_list, sizeof predictor_list, "%s", flags.predictors);
    plan.policy_count = split(policy_list, plan.policies);
    plan.predictor_count = choose_predictors(predictor_list, plan.predictors);
    for (uint32_t round = 0; round < flags.rounds; round++) {
        int rc = measure_round(reader, &plan, round, &decoding[round], rows, count, err);
        if (rc < 0) return rc;
    }
    double decode_seconds = bench_median(decoding, flags.rounds, &spread);
    for (uint32_t i = 0; i < *count; i++) {
        rows[i].seconds = bench_median(rows[i].rounds, flags.rounds, &rows[i].spread);
        rows[i].decode_seconds = decode_seconds;
    }
    return 0;
}

static int run(int count, char **arguments)
{
    static struct row rows[ROWS_MAX];
    struct base_err err = { 0 };
    struct pred_trace_reader *reader;
    uint32_t row_count = 0;
    double capacity;
    (void)count;
    if (base_str_share_parse(flags.capacity, &capacity) < 0 || capacity <= 0) {
        return cli_misuse("--capacity %s: expected a share such as 25%%", flags.capacity);
    }
    if (flags.policy[0] == '\0') return cli_misuse("--policy: expected the name of a policy");
    if (flags.rounds < 1 || flags.rounds > BENCH_ROUNDS_MAX) {
        return cli_misuse("--rounds: 1 to %d", BENCH_ROUNDS_MAX);
    }
    int rc = pred_trace_reader_open(&reader, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    rc = measure_all(reader, capacity, rows, &row_count, &err);
    pred_trace_reader_close(reader);
    if (rc < 0) return cli_fail(1, &err);
    if (!flags.json) return print_table(rows, row_count);
    print_json(rows, row_count);
    return 0;
}

static const struct cli_flag replay_flags[] = {
    { "policy", CLI_TEXT, &flags.policy, "A,B", "eviction policies to replay (lru,lfu)" },
    { "capacity", CLI_TEXT, &flags.capacity, "P", "share of a layer's experts (25%)" },
    { "predictors", CLI_TEXT, &flags.predictors, "A,B",
      "beside the first policy: none, all (each and all together), or a list" },
    { "rounds", CLI_UINT, &flags.rounds, "N", "rounds over all of them, whose medians count (1)" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print JSON" },
    { 0 },
};

const struct cli_command bench_replay_command = {
    .name = "replay",
    .arguments = "TRACE",
    .text = "how many lookups a second a replay decides",
    .details = "Replays the trace through each policy, then, where asked for, through the first "
               "one with\n"
               "predictors beside it that predict every layer of every token and learn from it. "
               "Seconds are\n"
               "processor time of the one thread, reading and decoding the trace included; Belady "
               "reads it twice.\n"
               "With several rounds they are medians, and spread is what lies between the fastest "
               "and the slowest.\n"
               "Peak memory is the program's so far.",
    .arguments_min = 1,
    .arguments_max = 1,
    .flags = replay_flags,
    .run = run,
};
