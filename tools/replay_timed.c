#include "tools/replay_timed.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "predictor/timed_run.h"
#include "tools/replay.h"

enum { CASES_MAX = 512, CELL_BYTES = 48 };

static const char *const cause_names[TIER_WAIT_CAUSE_COUNT] = { "demand", "late", "copy", "slot" };

struct plan {
    const struct cli_timed_args *args;
    const struct pred_trace_header *header;
    struct pred_machine machine;
    struct pred_timed_advice advice;
    struct pred_timed_case cases[CASES_MAX];
    struct pred_timed_result results[CASES_MAX];
    uint32_t count;             /* the asked ones first, then Belady's where nobody asked */
    uint32_t belady[CASES_MAX]; /* of each asked case: which one is Belady at its capacity */
};

/* -- what to run ------------------------------------------------------------------------------ */

/* Below hbm lies what was asked for, else what is configured, else all that hbm has not. */
static int dram_of(const struct plan *plan, struct pred_timed_case *to, struct base_err *err)
{
    const struct cli_timed_args *a = plan->args;
    const struct pred_trace_header *h = plan->header;
    uint64_t keys = (uint64_t)h->layers * h->experts, others = keys - to->slots[0];
    double share;
    if (a->dram) {
        if (base_str_share_parse(a->dram, &share) < 0 || share <= 0) {
            return base_err_set(err, -EINVAL, "--dram %s: expected a share such as 50%%", a->dram);
        }
        to->slots[1] = (uint64_t)pred_slots_of_share(share, h->experts) * h->layers;
    } else if (a->cache->tier_count == 2) {
        int rc = cli_replay_config_slots(a->config, h, CLI_REPLAY_DRAM, &to->slots[1], err);
        if (rc < 0) return rc;
    } else {
        to->slots[1] = others > 0 ? others : h->layers;     /* no tier is without slots */
    }
    to->start_full = pred_timed_holds_all(to, keys);
    return 0;
}

/* Belady has no use for hints, for warm experts where they lie, nor for another policy below. */
static bool is_belady(const struct pred_timed_case *c)
{
    return strcmp(c->policy, "belady") == 0;
}

static int tiers_of(const struct plan *plan, struct pred_timed_case *to,
                    const struct pred_case *from, struct base_err *err)
{
    const struct cli_timed_args *a = plan->args;
    const struct cli_replay_cache *cache = a->cache;
    bool hbm = a->top     ? strcmp(a->top, "hbm") == 0
               : a->sized ? plan->machine.copy_bandwidth > 0
                          : cache->tier_count == 2;
    to->tier_count = hbm ? 2 : 1;
    to->slots[0] = from->slots;
    if (!hbm) {
        if (!a->dram) return cli_replay_cache_without_hbm(cache, err);
        return base_err_set(err, -EINVAL,
                            "--dram says what lies below hbm, and dram is the top "
                            "tier here: give its size with --capacity");
    }
    if (plan->machine.copy_bandwidth == 0) {
        return base_err_set(err, -EINVAL, "hbm cannot be tried on a machine without a device "
                            "(copy.bandwidth is 0): --top dram leaves it out");
    }
    to->inclusive = cache->inclusive;
    if (!is_belady(to)) {
        to->warm_compute = cache->warm_compute;
        memcpy(to->policy_below, cache->policy_below, sizeof to->policy_below);
    }
    return dram_of(plan, to, err);
}

static void advice_fill(struct plan *plan)
{
    struct cli_replay_config *c = plan->args->config;
    const char *kind = plan->args->predictor;
    if (!kind) kind = cli_replay_config_get(c, "predictor.kind");
    if (strcmp(kind, "none") == 0) return;
    snprintf(plan->advice.predictor, sizeof plan->advice.predictor, "%s", kind);
    plan->advice.tokens_max = (uint32_t)cli_replay_config_real(c, "predictor.tokens_max");
    plan->advice.options = (struct pred_adviser_options){
        .lead = (uint32_t)cli_replay_config_real(c, "predictor.lead"),
        .hints_max = (uint32_t)cli_replay_config_real(c, "predictor.hints_max"),
        .probability_min = cli_replay_config_real(c, "predictor.probability_min"),
        .rows_max = (uint32_t)cli_replay_config_real(c, "predictor.rows_max"),
        .whole_pass = cli_replay_config_is(c, "predictor.whole_pass", "true"),
    };
}

/* What hints do to a case, as the server would set it up: with `auto` as much prefetch as the slots
 * allow. Belady knows better than any hint. */
static void case_hint(const struct plan *plan, struct pred_timed_case *to)
{
    struct cli_replay_config *c = plan->args->config;
    uint64_t a_layer = to->slots[0] / plan->header->layers;
    uint64_t spare = a_layer > plan->header->top_k ? a_layer - plan->header->top_k : 0;
    uint64_t wanted = (uint64_t)cli_replay_config_real(c, "prefetch.experts_per_layer_max");
    if (plan->advice.predictor[0] == '\0' || is_belady(to)) return;
    to->hinted = true;
    to->prefetch_inflight = (uint64_t)cli_replay_config_real(c, "prefetch.inflight");
    bool automatic = cli_replay_config_is(c, "prefetch.enabled", "auto");
    to->prefetch_per_layer = (uint32_t)(automatic && wanted > spare ? spare : wanted);
    to->prefetch =
        !cli_replay_config_is(c, "prefetch.enabled", "false") && to->prefetch_per_layer > 0;
    to->governor = (struct tier_governor_options){
        .share = cli_replay_config_real(c, "prefetch.bandwidth_share"),
        .waste_max = cli_replay_config_real(c, "prefetch.waste_max"),
        .probability_min = cli_replay_config_real(c, "prefetch.probability_min"),
        .fixed = cli_replay_config_is(c, "prefetch.governor", "fixed"),
    };
}

static int case_add(struct plan *plan, const struct pred_case *from, const char *policy,
                    struct base_err *err)
{
    if (plan->count == CASES_MAX) return base_err_set(err, -E2BIG, "more than %d cases", CASES_MAX);
    struct pred_timed_case *to = &plan->cases[plan->count];
    *to = (struct pred_timed_case){ .prefill_share = from->prefill_share,
                                    .half_life_tokens = from->half_life_tokens,
                                    .adaptive = from->adaptive };
    snprintf(to->policy, sizeof to->policy, "%s", policy);
    int rc = tiers_of(plan, to, from, err);
    if (rc < 0) return rc;
    case_hint(plan, to);
    plan->count++;
    return 0;
}

static int plan_make(struct plan *plan, struct base_err *err)
{
    const struct cli_timed_args *a = plan->args;
    int rc = pred_machine_load(&plan->machine, a->machine, err);
    for (unsigned i = 0; i < a->machine_set->count && rc >= 0; i++) {
        rc = pred_machine_set(&plan->machine, a->machine_set->text[i], err);
    }
    if (rc < 0) return rc;
    advice_fill(plan);
    if (a->train && plan->advice.predictor[0] == '\0') {
        return base_err_set(err, -EINVAL, "--train has no effect without a predictor: give "
                            "--predictor blend");
    }
    for (uint32_t i = 0; i < a->count && rc >= 0; i++) {
        rc = case_add(plan, &a->cases[i], a->cases[i].policy, err);
    }
    for (uint32_t i = 0; i < a->count && rc >= 0; i++) {
        uint32_t b = 0;
        while (b < plan->count && (strcmp(plan->cases[b].policy, "belady") != 0 ||
                                   plan->cases[b].slots[0] != plan->cases[i].slots[0])) {
            b++;
        }
        plan->belady[i] = b;
        if (b == plan->count) rc = case_add(plan, &a->cases[i], "belady", err);
    }
    return rc;
}

/* -- numbers ---------------------------------------------------------------------------------- */

static double ratio(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static uint64_t tokens_of(const struct pred_timed_result *r)
{
    return r->decode_tokens + r->prefill_tokens;
}

/* Tokens generated a second in steps that do nothing else; of a trace of prompts, all tokens. */
static double tokens_per_second(const struct pred_timed_result *r)
{
    if (r->decode_steps_ns > 0)
        return (double)r->decode_steps_tokens * 1e9 / (double)r->decode_steps_ns;
    return ratio((double)tokens_of(r) * 1e9, (double)r->time_ns);
}

/* The same of the steps as they were recorded; 0 where no server ran them. */
static double live_rate(const struct pred_timed_summary *summary)
{
    return ratio((double)summary->live_steps_tokens * 1e9, (double)summary->live_steps_ns);
}

static uint64_t waited_ns(const struct pred_timed_result *r)
{
    uint64_t sum = 0;
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++)
        sum += r->stats.wait_ns[w];
    return sum;
}

/* Share of the links' time that no step waited for. */
static double overlap(const struct pred_timed_result *r)
{
    double moving = (double)(r->stats.read_busy_ns + r->stats.copy_busy_ns);
    double left = moving - (double)waited_ns(r);
    return left > 0 ? left / moving : 0;
}

static struct pred_timed_counts all_cells(const struct pred_timed_result *r)
{
    struct pred_timed_counts sum = { 0 };
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        sum.lookups += r->stats.cells[c].lookups;
        sum.hits += r->stats.cells[c].hits;
        sum.late += r->stats.cells[c].late;
        sum.misses += r->stats.cells[c].misses;
    }
    return sum;
}

/* -- printing --------------------------------------------------------------------------------- */

static void json_counts(struct base_buf *to, const struct pred_timed_counts *c)
{
    base_buf_printf(to,
                    "\"lookups\":%" PRIu64 ",\"hits\":%" PRIu64 ",\"late\":%" PRIu64
                    ",\"misses\":%" PRIu64 ",\"hit_rate\":%.6f,\"resident_rate\":%.6f",
                    c->lookups, c->hits, c->late, c->misses,
                    ratio((double)c->hits, (double)c->lookups),
                    ratio((double)(c->hits + c->late), (double)c->lookups));
}

static void json_layers(struct base_buf *to, const struct plan *plan,
                        const struct pred_timed_result *r)
{
    base_buf_puts(to, ",\"by_layer\":[");
    for (uint32_t l = 0; l < plan->header->layers; l++) {
        base_buf_puts(to, l > 0 ? ",{" : "{");
        cli_replay_json_layer(to, plan->header, l);
        json_counts(to, &r->layers[l].counts);
        base_buf_printf(to, ",\"compute_seconds\":%.9f,\"wait_seconds\":%.9f,"
                        "\"hinted_bytes\":{\"useful\":%" PRIu64 ",\"late\":%" PRIu64 "}}",
                        (double)r->layers[l].compute_ns / 1e9, (double)r->layers[l].wait_ns / 1e9,
                        r->layers[l].useful_bytes, r->layers[l].late_bytes);
    }
    base_buf_puts(to, "]");
}

/* What lies below hbm. */
static void json_below(struct base_buf *to, const struct pred_timed_case *c)
{
    if (c->tier_count < 2) return;
    base_buf_printf(to, "\"below\":{\"tier\":\"dram\",\"slots\":%" PRIu64
                    ",\"policy\":\"%s\",\"inclusive\":%s},", c->slots[1],
                    c->policy_below[0] ? c->policy_below : c->policy,
                    c->inclusive ? "true" : "false");
}

static void json_run(struct base_buf *to, const struct plan *plan, uint32_t i)
{
    const struct pred_timed_result *r = &plan->results[i], *b = &plan->results[plan->belady[i]];
    const struct pred_timed_stats *s = &r->stats;
    struct pred_timed_counts all = all_cells(r);
    double bound = (double)pred_timed_bound_ns(&plan->machine, b);
    base_buf_printf(to,
                    "{\"policy\":\"%s\",\"top\":\"%s\",\"capacity\":%.6g,\"slots\":%" PRIu64 ",",
                    plan->cases[i].policy, plan->cases[i].tier_count == 2 ? "hbm" : "dram",
                    plan->args->capacities[i], plan->cases[i].slots[0]);
    json_below(to, &plan->cases[i]);
    base_buf_printf(to,
                    "\"tokens_per_second\":%.4f,\"steps\":%" PRIu64 ",\"decode_tokens\":%" PRIu64
                    ",\"prefill_tokens\":%" PRIu64 ",\"seconds\":%.6f,\"compute_seconds\":%.6f,"
                    "\"wait_seconds\":{",
                    tokens_per_second(r), r->steps, r->decode_tokens, r->prefill_tokens,
                    (double)r->time_ns / 1e9, (double)s->compute_ns / 1e9);
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) {
        base_buf_printf(to, "%s\"%s\":%.6f", w > 0 ? "," : "", cause_names[w],
                        (double)s->wait_ns[w] / 1e9);
    }
    base_buf_printf(to,
                    "},\"bytes\":{\"demand\":%" PRIu64 ",\"prefetch\":%" PRIu64
                    ",\"prefetch_wasted\":%" PRIu64 ",\"copy_up\":%" PRIu64
                    ",\"copy_down\":%" PRIu64 "},\"in_place\":%" PRIu64 ",\"overlap\":%.4f,",
                    s->demand_bytes, s->prefetch_bytes, s->prefetch_wasted_bytes, s->copy_up_bytes,
                    s->copy_down_bytes, s->in_place, overlap(r));
    json_counts(to, &all);
    if (plan->cases[i].hinted) {
        base_buf_printf(to, ",\"predictor\":\"%s\",\"hints\":%" PRIu64
                        ",\"hints_admitted\":%" PRIu64 ",\"hinted_bytes\":{\"all\":%" PRIu64
                        ",\"useful\":%" PRIu64
                        ",\"late\":%" PRIu64 "},\"governor\":{\"switches\":%" PRIu64
                        ",\"off_share\":%.4f}", plan->advice.predictor, s->hints,
                        s->hints_admitted, s->hinted_bytes, s->useful_bytes, s->late_bytes,
                        s->governor_switches, ratio((double)s->governed_steps, (double)s->steps));
    }
    base_buf_puts(to, ",\"by_phase\":{");
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        base_buf_printf(to, "%s\"%s\":{", c > 0 ? "," : "", cli_replay_cells[c]);
        json_counts(to, &s->cells[c]);
        base_buf_puts(to, "}");
    }
    base_buf_printf(to, "},\"of_belady\":%.4f,\"of_bandwidth_bound\":%.4f",
                    ratio((double)b->time_ns, (double)r->time_ns),
                    ratio(bound, (double)r->time_ns));
    if (plan->args->layers) json_layers(to, plan, r);
    base_buf_puts(to, "}");
}

static int print_json(const struct plan *plan, const struct pred_timed_summary *summary)
{
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_puts(&buf, "{\"what_if\":true,\"machine\":\"");
    base_buf_json_escape(&buf, plan->machine.name, strlen(plan->machine.name));
    base_buf_puts(&buf, "\",\"model\":\"");
    base_buf_json_escape(&buf, plan->header->model, strlen(plan->header->model));
    base_buf_printf(
        &buf, "\",\"composed\":%s,\"gaps\":%" PRIu64 ",\"live_tokens_per_second\":%.4f,\"runs\":[",
        summary->composed ? "true" : "false", summary->gaps, live_rate(summary));
    for (uint32_t i = 0; i < plan->args->count; i++) {
        if (i > 0) base_buf_puts(&buf, ",");
        json_run(&buf, plan, i);
    }
    base_buf_puts(&buf, "]}");
    return cli_replay_print(&buf);
}

static void row_case(const struct plan *plan, uint32_t i, char text[2][CELL_BYTES])
{
    const struct pred_timed_case *c = &plan->cases[i];
    double top = 100 * plan->args->capacities[i];
    double keys = (double)plan->header->layers * plan->header->experts;
    snprintf(text[0], sizeof text[0], "%.31s", c->policy);
    if (c->tier_count == 2) {
        snprintf(text[1], sizeof text[1], "hbm %.4g%%, dram %.4g%%", top,
                 100 * (double)c->slots[1] / keys);
    } else {
        snprintf(text[1], sizeof text[1], "dram %.4g%%", top);
    }
}

static void row_add(struct cli_table *table, char (*text)[CELL_BYTES], unsigned columns)
{
    const char *cells[16];
    for (unsigned k = 0; k < columns; k++) cells[k] = text[k];
    cli_table_row(table, cells);
}

/* Where the time goes. */
static int print_times(const struct plan *plan)
{
    static const char *const headings[] = { "policy",    "capacity",  "tokens/s",    "hit %",
                                            "late %",    "compute %", "demand %",    "late wait %",
                                            "copy %",    "slot %",    "of Belady",   "of bound" };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    if (cli_table_create(&table, COLUMNS, headings) < 0) return 1;
    for (uint32_t i = 0; i < plan->args->count; i++) {
        const struct pred_timed_result *r = &plan->results[i], *b = &plan->results[plan->belady[i]];
        struct pred_timed_counts all = all_cells(r);
        double time = (double)r->time_ns, lookups = (double)all.lookups;
        char text[COLUMNS][CELL_BYTES];
        row_case(plan, i, text);
        snprintf(text[2], sizeof text[0], "%.2f", tokens_per_second(r));
        snprintf(text[3], sizeof text[0], "%.2f", 100 * ratio((double)all.hits, lookups));
        snprintf(text[4], sizeof text[0], "%.2f", 100 * ratio((double)all.late, lookups));
        snprintf(text[5], sizeof text[0], "%.1f", 100 * ratio((double)r->stats.compute_ns, time));
        for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) {
            double waited = (double)r->stats.wait_ns[w];
            snprintf(text[6 + w], sizeof text[0], "%.1f", 100 * ratio(waited, time));
        }
        snprintf(text[10], sizeof text[0], "%.3f", ratio((double)b->time_ns, time));
        snprintf(text[11], sizeof text[0], "%.3f",
                 ratio((double)pred_timed_bound_ns(&plan->machine, b), time));
        row_add(table, text, COLUMNS);
    }
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    return 0;
}

/* What moved for it, in MB a token. */
static int print_bytes(const struct plan *plan)
{
    static const char *const headings[] = { "policy",    "capacity",   "read MB/t", "on demand",
                                            "ahead",     "wasted",     "up MB/t",   "down MB/t",
                                            "hinted",    "of use",     "late",      "overlap %" };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    if (cli_table_create(&table, COLUMNS, headings) < 0) return 1;
    for (uint32_t i = 0; i < plan->args->count; i++) {
        const struct pred_timed_result *r = &plan->results[i];
        const struct pred_timed_stats *s = &r->stats;
        const uint64_t bytes[] = { s->demand_bytes + s->prefetch_bytes, s->demand_bytes,
                                   s->prefetch_bytes, s->prefetch_wasted_bytes, s->copy_up_bytes,
                                   s->copy_down_bytes, s->hinted_bytes, s->useful_bytes,
                                   s->late_bytes };
        char text[COLUMNS][CELL_BYTES];
        row_case(plan, i, text);
        for (unsigned k = 0; k < sizeof bytes / sizeof bytes[0]; k++) {
            double a_token = ratio((double)bytes[k] / 1e6, (double)tokens_of(r));
            snprintf(text[2 + k], sizeof text[0], "%.2f", a_token);
        }
        snprintf(text[11], sizeof text[0], "%.1f", 100 * overlap(r));
        row_add(table, text, COLUMNS);
    }
    putchar('\n');
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    return 0;
}

static void print_layers(const struct plan *plan, uint32_t i)
{
    static const char *const headings[] = { "layer",  "lookups",    "hit %",
                                            "late %", "compute ms", "wait ms",
                                            "hinted MB", "hidden %" };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    printf("\n%s at %.4g%%:\n", plan->cases[i].policy, 100 * plan->args->capacities[i]);
    if (cli_table_create(&table, COLUMNS, headings) < 0) return;
    for (uint32_t l = 0; l < plan->header->layers; l++) {
        const struct pred_timed_layer *layer = &plan->results[i].layers[l];
        double lookups = (double)layer->counts.lookups;
        char text[COLUMNS][CELL_BYTES];
        const char *cells[COLUMNS];
        snprintf(text[0], sizeof text[0], "%" PRIu32, plan->header->first_moe_layer + l);
        snprintf(text[1], sizeof text[0], "%" PRIu64, layer->counts.lookups);
        snprintf(text[2], sizeof text[0], "%.2f", 100 * ratio((double)layer->counts.hits, lookups));
        snprintf(text[3], sizeof text[0], "%.2f", 100 * ratio((double)layer->counts.late, lookups));
        snprintf(text[4], sizeof text[0], "%.3f", (double)layer->compute_ns / 1e6);
        snprintf(text[5], sizeof text[0], "%.3f", (double)layer->wait_ns / 1e6);
        double hinted = (double)(layer->useful_bytes + layer->late_bytes);
        snprintf(text[6], sizeof text[0], "%.1f", hinted / 1e6);
        snprintf(text[7], sizeof text[0], "%.2f", 100 * ratio((double)layer->useful_bytes, hinted));
        for (int k = 0; k < COLUMNS; k++)
            cells[k] = text[k];
        cli_table_row(table, cells);
    }
    cli_table_print(table, stdout);
    cli_table_destroy(table);
}

static int print_tables(const struct plan *plan)
{
    int rc = print_times(plan);
    if (rc == 0) rc = print_bytes(plan);
    for (uint32_t i = 0; i < plan->args->count && plan->args->layers && rc == 0; i++)
        print_layers(plan, i);
    return rc;
}

static void remarks(const struct plan *plan, const struct pred_timed_summary *summary)
{
    cli_replay_health(plan->args->path, plan->args->reader);
    fprintf(stderr, "what-if: the routing of %s on the virtual clock of %s\n",
            plan->header->model[0] ? plan->header->model : "an unnamed model",
            plan->machine.name[0] ? plan->machine.name : plan->args->machine);
    const struct cli_replay_cache *cache = plan->args->cache;
    if (plan->cases[0].tier_count == 2 && (cache->inclusive || cache->policy_below[0])) {
        fprintf(stderr, "below hbm: dram, %s, policy %s\n",
                cache->inclusive ? "inclusive" : "exclusive",
                cache->policy_below[0] ? cache->policy_below : "as above");
    }
    const struct pred_predictor_ops *ops = pred_predictor_find(plan->advice.predictor);
    if (ops && ops->replay_only) {
        fprintf(stderr, "bound: %s knows the routing of every step before it begins; what is left "
                        "is bandwidth, slots and the governor\n", ops->name);
    }
    if (summary->live_steps_ns > 0) {
        fprintf(stderr, "live, when it was recorded: %.2f tokens/s\n", live_rate(summary));
    }
    if (summary->sampled) {
        fprintf(stderr, "warning: only a part of the sequences was recorded: batches and times are "
                        "smaller than they were\n");
    }
}

int cli_replay_timed(const struct cli_timed_args *args, struct base_err *err)
{
    static struct plan plan;
    struct pred_timed_summary summary;
    struct cli_progress bar;
    struct pred_replay_progress progress = { cli_replay_progress, &bar };
    plan.args = args;
    plan.header = pred_trace_reader_header(args->reader);
    int rc = plan_make(&plan, err);
    if (rc == -EINVAL || rc == -E2BIG) return cli_fail(2, err);
    if (rc >= 0 && args->train) rc = pred_trace_reader_open(&plan.advice.train, args->train, err);
    if (rc < 0) return rc;
    struct pred_timed_args run = { .reader = args->reader, .machine = &plan.machine,
                                   .cases = plan.cases, .count = plan.count,
                                   .advice = plan.advice, .progress = &progress };
    cli_progress_begin(&bar, "replaying", args->quiet);
    rc = pred_timed_run(&run, plan.results, &summary, err);
    cli_progress_end(&bar);
    pred_trace_reader_close(plan.advice.train);
    if (rc >= 0) {
        if (!args->quiet) remarks(&plan, &summary);
        rc = args->json ? print_json(&plan, &summary) : print_tables(&plan);
    }
    pred_timed_results_fini(plan.results, plan.count);
    return rc;
}
