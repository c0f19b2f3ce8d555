#include "tools/replay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "predictor/compose.h"
#include "predictor/replay.h"
#include "tiering/policy.h"
#include "tools/replay_timed.h"

enum { CASES_MAX = 256, TEXT_MAX = 1024 };
#define NOT_GIVEN UINT64_MAX

static struct {
    const char *config, *policy, *capacity, *budget, *phase;
    const char *machine, *top, *dram, *predictor, *train;
    struct cli_list set, machine_set;
    uint64_t slots;
    bool as_recorded, one_at_a_time, layers, json, quiet, adaptive;
} flags = { .slots = NOT_GIVEN };

const struct cli_flag cli_replay_run_flags[] = {
    { "config", CLI_TEXT, &flags.config, "FILE",
      "server YAML whose cache is tried; default: the configuration recorded in the trace" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE", "override one setting of the YAML" },
    { "policy", CLI_TEXT, &flags.policy, "A,B",
      "eviction policies to try (lru, lru_global, belady, ...)" },
    { "capacity", CLI_TEXT, &flags.capacity, "P,Q",
      "shares of a layer's experts, such as 25%,50%, each rounded to the nearest slot" },
    { "slots", CLI_UINT, &flags.slots, "N", "slots a layer, instead of a share" },
    { "budget", CLI_TEXT, &flags.budget, "A,B",
      "bytes over all layers, such as 750MiB, with each layer's own expert size" },
    { "adaptive", CLI_SWITCH, &flags.adaptive, NULL,
      "quotas of the layers that follow what is missed (policy.quotas: adaptive)" },
    { "phase", CLI_TEXT, &flags.phase, "PHASE",
      "totals of decode or prefill alone; the other phase still warms the cache" },
    { "machine", CLI_TEXT, &flags.machine, "FILE",
      "replay on the virtual clock of this machine (YAML, see configs/machines)" },
    { "machine-set", CLI_REPEATED, &flags.machine_set, "KEY=VALUE",
      "override one line of the machine's description" },
    { "top", CLI_TEXT, &flags.top, "TIER",
      "with --machine: the tier that --capacity is of; hbm where the machine has a device, else "
      "dram; without --capacity and --slots as the configuration has it" },
    { "dram", CLI_TEXT, &flags.dram, "P",
      "with --machine and hbm on top: share of the experts in dram; default: tiers.dram.capacity "
      "where the configuration has hbm, else all the others" },
    { "one-at-a-time", CLI_SWITCH, &flags.one_at_a_time, NULL,
      "each lookup by itself, as caches in books see requests; half-lives then count lookups" },
    { "predictor", CLI_TEXT, &flags.predictor, "KIND",
      "with --machine: who gives hints, over predictor.kind of the YAML; none, blend, ..." },
    { "train", CLI_TEXT, &flags.train, "TRACE2",
      "with --predictor: learn from this trace first; learning goes on either way" },
    { "layers", CLI_SWITCH, &flags.layers, NULL,
      "counts of each layer too, of both phases, by the model's numbers of the layers" },
    { "as-recorded", CLI_SWITCH, &flags.as_recorded, NULL,
      "replay the server's own events and compare with its own counts" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print JSON" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "no progress, no remarks" },
    { 0 },
};

struct plan {
    struct pred_case cases[CASES_MAX];
    double capacities[CASES_MAX];       /* share of a layer's experts; < 0 for budgets */
    uint32_t count;
    struct cli_replay_cache cache;      /* as configured */
    bool sized;                         /* the command line says how large the top tier is */
};

/* Calls `each` for every item of a comma list; stops at a negative code. */
static int split(const char *text,
                 int (*each)(void *context, const char *item, struct base_err *err), void *context,
                 struct base_err *err)
{
    char copy[TEXT_MAX], *rest = copy, *item;
    if (snprintf(copy, sizeof copy, "%s", text) >= TEXT_MAX) {
        return base_err_set(err, -E2BIG, "\"%.40s...\": a list this long was not meant", text);
    }
    while ((item = strsep(&rest, ",")) != NULL) {
        if (*item == '\0') return base_err_set(err, -EINVAL, "\"%s\": an item is empty", text);
        int rc = each(context, item, err);
        if (rc < 0) return rc;
    }
    return 0;
}

struct sizes {
    const struct pred_trace_header *header;
    uint64_t slots[CASES_MAX], budgets[CASES_MAX];
    double shares[CASES_MAX];
    uint32_t count;
};

static int sizes_full(const struct sizes *s, struct base_err *err)
{
    return s->count < CASES_MAX ? 0
                                : base_err_set(err, -E2BIG, "more than %d capacities", CASES_MAX);
}

static int add_share(void *context, const char *item, struct base_err *err)
{
    struct sizes *s = context;
    double share;
    if (sizes_full(s, err) < 0) return err->code;
    if (base_str_share_parse(item, &share) < 0 || share <= 0) {
        return base_err_set(err, -EINVAL, "--capacity %s: expected a share such as 25%%", item);
    }
    s->shares[s->count] = share;
    s->slots[s->count++] =
        (uint64_t)pred_slots_of_share(share, s->header->experts) * s->header->layers;
    return 0;
}

static int add_budget(void *context, const char *item, struct base_err *err)
{
    struct sizes *s = context;
    if (sizes_full(s, err) < 0) return err->code;
    if (base_str_bytes_parse(item, &s->budgets[s->count]) < 0 || s->budgets[s->count] == 0) {
        return base_err_set(err, -EINVAL, "--budget %s: expected a size such as 750MiB", item);
    }
    s->shares[s->count++] = -1;
    return 0;
}

static void add_slots(struct sizes *s, uint64_t slots)
{
    s->slots[s->count] = slots;
    s->shares[s->count++] = (double)slots / s->header->layers / s->header->experts;
}

/* The top tier as configured. */
static int add_configured(struct sizes *s, const struct cli_replay_config *config,
                          const struct cli_replay_cache *cache, struct base_err *err)
{
    bool hbm = flags.top ? strcmp(flags.top, "hbm") == 0 : cache->tier_count == 2;
    uint64_t slots;
    if (hbm && cache->tier_count == 1) {
        return base_err_set(err, -EINVAL, "--top hbm: the configuration has none "
                            "(tiers.hbm.capacity is 0): give its size with --capacity");
    }
    int rc = cli_replay_config_slots(config, s->header, hbm ? CLI_REPLAY_HBM : CLI_REPLAY_DRAM,
                                     &slots, err);
    if (rc == 0) add_slots(s, slots);
    return rc;
}

static int choose_sizes(struct sizes *s, const struct cli_replay_config *config,
                        const struct cli_replay_cache *cache, struct base_err *err)
{
    if (flags.capacity) return split(flags.capacity, add_share, s, err);
    if (flags.budget) return split(flags.budget, add_budget, s, err);
    if (flags.slots == NOT_GIVEN) return add_configured(s, config, cache, err);
    if (flags.slots == 0 || flags.slots > s->header->experts) {
        return base_err_set(err, -EINVAL, "--slots %" PRIu64 ": expected 1 to %" PRIu32
                            ", the experts of a layer", flags.slots, s->header->experts);
    }
    add_slots(s, flags.slots * s->header->layers);
    return 0;
}

struct adding {
    struct plan *plan;
    const struct sizes *sizes;
};

static int refuse_policy(const char *item, struct base_err *err)
{
    char names[400] = "";
    const char *name;
    size_t used = 0;
    for (size_t i = 0; (name = tier_policy_name(i)) != NULL && used < sizeof names; i++) {
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "",
                                 name);
    }
    return base_err_set(err, -EINVAL, "no policy is called \"%.60s\"; there are %s", item, names);
}

static int add_policy(void *context, const char *item, struct base_err *err)
{
    struct adding *a = context;
    struct plan *plan = a->plan;
    if (!tier_policy_find(item)) return refuse_policy(item, err);
    for (uint32_t i = 0; i < a->sizes->count; i++) {
        if (plan->count == CASES_MAX) {
            return base_err_set(err, -E2BIG, "more than %d cases", CASES_MAX);
        }
        struct pred_case *c = &plan->cases[plan->count];
        snprintf(c->policy, sizeof c->policy, "%s", item);
        c->slots = a->sizes->slots[i];
        c->budget_bytes = a->sizes->budgets[i];
        c->prefill_share = plan->cache.prefill_share;
        c->half_life_tokens = plan->cache.half_life_tokens;
        c->one_at_a_time = flags.one_at_a_time;
        c->adaptive = plan->cache.adaptive && c->budget_bytes == 0; /* which is over all layers */
        plan->capacities[plan->count++] = a->sizes->shares[i];
    }
    return 0;
}

static bool is_set(const char *key)
{
    size_t length = strlen(key);
    for (unsigned i = 0; i < flags.set.count; i++) {
        const char *pair = flags.set.text[i];
        if (strncmp(pair, key, length) == 0 && pair[length] == '=') return true;
    }
    return false;
}

/* Which policies are tried: where nobody names one, an import is shown a few. */
static const char *choose_policies(const struct plan *plan, const struct pred_trace_header *header)
{
    if (flags.policy) return flags.policy;
    bool named = flags.config || header->yaml[0] || is_set("policy.eviction");
    return named ? plan->cache.policy : "lru_with_prediction,lru,lru_global,belady";
}

static int make_plan(struct plan *plan, const struct pred_trace_header *header,
                     const struct cli_replay_config *config, struct base_err *err)
{
    static struct sizes sizes;
    sizes.header = header;
    int rc = cli_replay_config_cache(config, &plan->cache, err);
    if (rc < 0) return rc;
    plan->cache.adaptive |= flags.adaptive;
    plan->sized = flags.capacity || flags.slots != NOT_GIVEN;
    rc = choose_sizes(&sizes, config, &plan->cache, err);
    if (rc < 0) return rc;
    return split(choose_policies(plan, header), add_policy, &(struct adding){ plan, &sizes }, err);
}

/* -------------------------------------------------------------------------------- printing -- */

static struct tier_counts totals(const struct pred_case_result *result)
{
    struct tier_counts sum = { 0 };
    for (int p = 0; p < TIER_PHASE_COUNT; p++) {
        bool wanted = !flags.phase || (strcmp(flags.phase, "decode") == 0) == (p == TIER_DECODE);
        if (!wanted) continue;
        sum.lookups += result->phases[p].lookups;
        sum.resident += result->phases[p].resident;
        sum.misses += result->phases[p].misses;
        sum.evictions += result->phases[p].evictions;
    }
    return sum;
}

static void json_layers(struct base_buf *buf, const struct tier_counts *layers,
                        const struct pred_trace_header *header)
{
    base_buf_puts(buf, ",\"by_layer\":[");
    for (uint32_t l = 0; l < header->layers; l++) {
        base_buf_puts(buf, l > 0 ? ",{" : "{");
        cli_replay_json_layer(buf, header, l);
        cli_replay_json_counts(buf, &layers[l]);
        base_buf_puts(buf, "}");
    }
    base_buf_puts(buf, "]");
}

static int print_json(const struct plan *plan, const struct pred_case_result *results,
                      const struct pred_trace_header *header,
                      const struct pred_replay_summary *summary)
{
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_puts(&buf, "{\"what_if\":true,\"model\":\"");
    base_buf_json_escape(&buf, header->model, strlen(header->model));
    base_buf_printf(&buf,
                    "\",\"layers\":%" PRIu32 ",\"experts\":%" PRIu32 ",\"top_k\":%" PRIu32
                    ",\"phase\":\"%s\",\"from\":\"%s\",\"composed\":%s,\"gaps\":%" PRIu64
                    ",\"runs\":[",
                    header->layers, header->experts, header->top_k,
                    flags.phase ? flags.phase : "all", summary->from_events ? "events" : "steps",
                    pred_trace_composed(header) ? "true" : "false", summary->gaps);
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct pred_case *c = &plan->cases[i];
        struct tier_counts sum = totals(&results[i]);
        base_buf_printf(&buf, "%s{\"policy\":\"%s\",\"quotas\":\"%s\",", i > 0 ? "," : "",
                        c->policy, c->adaptive ? "adaptive" : "equal");
        if (c->budget_bytes > 0) {
            base_buf_printf(
                &buf, "\"capacity\":null,\"slots_per_layer\":null,\"budget_bytes\":%" PRIu64 ",",
                c->budget_bytes);
        } else {
            base_buf_printf(&buf,
                            "\"capacity\":%.6g,\"slots_per_layer\":%.6g,\"slots\":%" PRIu64 ",",
                            plan->capacities[i], (double)c->slots / header->layers, c->slots);
        }
        cli_replay_json_counts(&buf, &sum);
        base_buf_puts(&buf, ",");
        cli_replay_json_cells(&buf, results[i].cells);
        if (flags.layers) json_layers(&buf, results[i].layers, header);
        if (results[i].warning[0]) {
            base_buf_puts(&buf, ",\"warning\":\"");
            base_buf_json_escape(&buf, results[i].warning, strlen(results[i].warning));
            base_buf_puts(&buf, "\"");
        }
        base_buf_puts(&buf, "}");
    }
    base_buf_puts(&buf, "]}");
    return cli_replay_print(&buf);
}

static void cell_text(char *to, size_t size, const struct tier_counts *counts)
{
    if (counts->lookups == 0) {
        snprintf(to, size, "-");
    } else {
        snprintf(to, size, "%.2f", 100 * cli_replay_rate(counts));
    }
}

static int print_table(const struct plan *plan, const struct pred_case_result *results,
                       const struct pred_trace_header *header)
{
    static const char *const headings[] = { "policy",     "capacity", "slots",     "lookups",
                                            "resident %", "misses",   "evictions", "cold %",
                                            "prefill %",  "decode %" };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    if (cli_table_create(&table, COLUMNS, headings) < 0) return 1;
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct pred_case *c = &plan->cases[i];
        struct tier_counts sum = totals(&results[i]);
        char text[COLUMNS][32];
        const char *cells[COLUMNS];
        snprintf(text[0], sizeof text[0], "%.31s", c->policy);
        if (c->budget_bytes > 0) {
            base_str_bytes(text[1], sizeof text[1], c->budget_bytes);
            snprintf(text[2], sizeof text[2], "-");
        } else {
            snprintf(text[1], sizeof text[1], "%.4g%%", 100 * plan->capacities[i]);
            snprintf(text[2], sizeof text[2], "%.4g", (double)c->slots / header->layers);
        }
        snprintf(text[3], sizeof text[3], "%" PRIu64, sum.lookups);
        cell_text(text[4], sizeof text[4], &sum);
        snprintf(text[5], sizeof text[5], "%" PRIu64, sum.misses);
        snprintf(text[6], sizeof text[6], "%" PRIu64, sum.evictions);
        for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
            cell_text(text[7 + cell], sizeof text[0], &results[i].cells[cell]);
        }
        for (int k = 0; k < COLUMNS; k++) cells[k] = text[k];
        cli_table_row(table, cells);
    }
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    return 0;
}

static int print_layers(const struct plan *plan, const struct pred_case_result *results,
                        const struct pred_trace_header *header)
{
    static const char *const headings[] = { "policy",     "capacity", "layer",    "lookups",
                                            "resident %", "misses",   "evictions" };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    if (cli_table_create(&table, COLUMNS, headings) < 0) return 1;
    for (uint32_t i = 0; i < plan->count; i++) {
        for (uint32_t l = 0; l < header->layers; l++) {
            const struct tier_counts *counts = &results[i].layers[l];
            char text[COLUMNS][32];
            const char *cells[COLUMNS];
            snprintf(text[0], sizeof text[0], "%.31s", plan->cases[i].policy);
            snprintf(text[1], sizeof text[1], "%.4g%%", 100 * plan->capacities[i]);
            snprintf(text[2], sizeof text[2], "%" PRIu32, header->first_moe_layer + l);
            snprintf(text[3], sizeof text[3], "%" PRIu64, counts->lookups);
            cell_text(text[4], sizeof text[4], counts);
            snprintf(text[5], sizeof text[5], "%" PRIu64, counts->misses);
            snprintf(text[6], sizeof text[6], "%" PRIu64, counts->evictions);
            for (int k = 0; k < COLUMNS; k++) cells[k] = text[k];
            cli_table_row(table, cells);
        }
    }
    puts("");
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    return 0;
}

static void remarks(const char *path, const struct plan *plan,
                    const struct pred_case_result *results, const struct pred_trace_reader *reader,
                    const struct pred_replay_summary *summary)
{
    const struct pred_trace_header *header = pred_trace_reader_header(reader);
    cli_replay_health(path, reader);
    fprintf(stderr,
            "what-if: %s of %s through caches of another shape; --as-recorded repeats the server's "
            "own run\n",
            summary->from_events ? "the acquires" : "the routing",
            header->model[0] ? header->model : "an unnamed model");
    if (plan->cache.tier_count == 2) {
        fprintf(stderr, "note: hbm alone is replayed; with --machine what lies below it counts, "
                        "too: tiers.dram.capacity, tiers.inclusion, tiers.warm_experts and "
                        "policy.eviction_dram\n");
    }
    for (uint32_t i = 0; i < plan->count; i++) {
        if (!results[i].warning[0]) continue;
        fprintf(stderr, "warning: %s", plan->cases[i].policy);
        if (plan->capacities[i] >= 0) fprintf(stderr, " at %.4g%%", 100 * plan->capacities[i]);
        fprintf(stderr, ": %s\n", results[i].warning);
    }
}

/* ------------------------------------------------------------------------------------- run -- */

static int what_if(const char *path, struct pred_trace_reader *reader, const struct plan *plan,
                   struct cli_replay_config *config, struct base_err *err)
{
    static struct pred_case_result results[CASES_MAX];
    struct pred_replay_summary summary;
    struct cli_progress bar;
    struct pred_replay_progress progress = { cli_replay_progress, &bar };
    if (flags.machine) {
        struct cli_timed_args args = {
            .path = path, .reader = reader, .machine = flags.machine,
            .machine_set = &flags.machine_set, .top = flags.top, .dram = flags.dram,
            .cases = plan->cases, .capacities = plan->capacities, .count = plan->count,
            .cache = &plan->cache, .sized = plan->sized,
            .config = config, .predictor = flags.predictor, .train = flags.train,
            .layers = flags.layers, .json = flags.json, .quiet = flags.quiet,
        };
        return cli_replay_timed(&args, err);
    }
    cli_progress_begin(&bar, "replaying", flags.quiet);
    int rc = pred_replay_run(reader, plan->cases, results, plan->count, &summary, &progress, err);
    cli_progress_end(&bar);
    if (rc >= 0) {
        if (!flags.quiet) remarks(path, plan, results, reader, &summary);
        const struct pred_trace_header *header = pred_trace_reader_header(reader);
        rc = flags.json ? print_json(plan, results, header, &summary)
                        : print_table(plan, results, header);
        if (rc == 0 && flags.layers && !flags.json) rc = print_layers(plan, results, header);
    }
    pred_replay_results_fini(results, plan->count);
    return rc;
}

static int check_flags(void)
{
    bool choosing = flags.policy || flags.capacity || flags.slots != NOT_GIVEN || flags.budget ||
                    flags.config || flags.set.count > 0 || flags.phase || flags.machine ||
                    flags.one_at_a_time || flags.layers || flags.adaptive;
    bool timing = flags.machine_set.count > 0 || flags.top || flags.dram || flags.predictor ||
                  flags.train;
    if (timing && !flags.machine) {
        return cli_misuse("--machine-set, --top, --dram, --predictor and --train need "
                          "--machine FILE");
    }
    int sizes = (flags.capacity != NULL) + (flags.slots != NOT_GIVEN) + (flags.budget != NULL);
    if (sizes > 1) return cli_misuse("--capacity, --slots and --budget exclude each other");
    if (flags.top && strcmp(flags.top, "hbm") != 0 && strcmp(flags.top, "dram") != 0) {
        return cli_misuse("--top %s: expected hbm or dram", flags.top);
    }
    if (flags.machine && flags.budget) {
        return cli_misuse("--budget knows no slots, and the clock needs them: give --capacity or "
                          "--slots with --machine");
    }
    if (flags.budget && flags.adaptive) {
        return cli_misuse("--adaptive has no effect with --budget, which is one for all layers");
    }
    if (flags.machine && flags.phase) {
        return cli_misuse("--phase has no effect with --machine: its report has all phases apart");
    }
    if (flags.machine && flags.one_at_a_time) {
        return cli_misuse("--one-at-a-time has no place on a clock: an engine asks for a layer's "
                          "experts together");
    }
    if (flags.layers && flags.budget) {
        return cli_misuse("--layers: a budget in bytes is one for all layers");
    }
    if (flags.as_recorded && choosing) {
        return cli_misuse(
            "--as-recorded takes everything from the trace: give no policy, capacity, "
            "configuration, phase, machine, --one-at-a-time or --layers with it");
    }
    if (flags.phase && strcmp(flags.phase, "decode") != 0 && strcmp(flags.phase, "prefill") != 0) {
        return cli_misuse("--phase %s: expected decode or prefill", flags.phase);
    }
    return 0;
}

int cli_replay_run(int count, char **arguments)
{
    static struct plan plan;
    struct base_err err = { 0 };
    struct pred_trace_reader *reader = NULL;
    struct cli_replay_config *config = NULL;
    (void)count;
    int code = check_flags();
    if (code != 0) return code;
    if (flags.as_recorded) return cli_replay_exact(arguments[0], flags.json, flags.quiet);
    int rc = pred_trace_reader_open(&reader, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    const struct pred_trace_header *header = pred_trace_reader_header(reader);
    rc = cli_replay_config_load(&config, flags.config, header, &flags.set, &err);
    if (rc < 0 && rc != BASE_EFORMAT) code = 2;
    if (rc >= 0) {
        rc = make_plan(&plan, header, config, &err);
        if (rc == -EINVAL || rc == -E2BIG) code = 2;
    }
    if (rc >= 0) rc = what_if(arguments[0], reader, &plan, config, &err);
    pred_trace_reader_close(reader);
    cli_replay_config_free(config);
    if (rc < 0) return cli_fail(code != 0 ? code : 1, &err);
    return rc;
}
