/* tier-replay tune: searches the cache settings of a server on recorded routing and writes them as
 * a YAML that the server takes as it is. */
#include "tools/replay.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/out.h"
#include "base/str.h"
#include "predictor/compose.h"
#include "predictor/tune.h"

enum { TRACES_MAX = 64 };
/* Above this share of common windows the held-out half is no fair judge. */
#define SHARED_TEXT_MAX 0.05

static struct {
    const char *config, *to, *machine;
    struct cli_list set, machine_set;
    bool explain, json, quiet;
} flags;

const struct cli_flag cli_replay_tune_flags[] = {
    { "config", CLI_TEXT, &flags.config, "FILE",
      "server YAML to start from; default: the defaults of every key" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE", "override one setting of the YAML" },
    { "machine", CLI_TEXT, &flags.machine, "FILE",
      "judge by the time on the virtual clock of this machine (YAML, see configs/machines), and "
      "search what predicts and how much is read ahead, too" },
    { "machine-set", CLI_REPEATED, &flags.machine_set, "KEY=VALUE",
      "override one value of the machine's description" },
    { "output|o", CLI_TEXT, &flags.to, "FILE", "where the tuned YAML goes" },
    { "explain", CLI_SWITCH, &flags.explain, NULL, "say in words what each setting gave" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print JSON" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "no progress" },
    { 0 },
};

/* -------------------------------------------------------------------------------- the cache -- */

static int cache_of(const struct cli_replay_config *config, const struct pred_trace_header *h,
                    struct pred_tune_args *args, struct base_err *err)
{
    struct cli_replay_cache cache;
    int rc = cli_replay_config_cache(config, &cache, err);
    if (rc < 0) return rc;
    args->cache = (struct pred_tune_cache){
        .tier_count = cache.tier_count, .inclusive = cache.inclusive,
        .warm_compute = cache.warm_compute,
    };
    uint64_t *slots = args->cache.slots;
    if (cache.tier_count == 1) rc = cli_replay_cache_without_hbm(&cache, err);
    else rc = cli_replay_config_slots(config, h, CLI_REPLAY_HBM, slots++, err);
    if (rc == 0) rc = cli_replay_config_slots(config, h, CLI_REPLAY_DRAM, slots, err);
    if (rc < 0) return rc;
    memcpy(args->cache.policy_below, cache.policy_below, sizeof cache.policy_below);
    memcpy(args->base.policy, cache.policy, sizeof cache.policy);
    args->base.adaptive = cache.adaptive;
    args->base.half_life_tokens = cache.half_life_tokens;
    args->base.prefill_share = cache.prefill_share;
    return 0;
}

static void advice_of(struct cli_replay_config *config, struct pred_tune_args *args)
{
    const char *kind = cli_replay_config_get(config, "predictor.kind");
    struct pred_tune_setting *base = &args->base;
    if (strcmp(kind, "none") != 0) snprintf(base->predictor, sizeof base->predictor, "%s", kind);
    base->lead = (uint32_t)cli_replay_config_real(config, "predictor.lead");
    base->per_layer =
        (uint32_t)cli_replay_config_real(config, "prefetch.experts_per_layer_max");
    base->bandwidth_share = cli_replay_config_real(config, "prefetch.bandwidth_share");
    base->inflight = (uint64_t)cli_replay_config_real(config, "prefetch.inflight");
    args->advice = (struct pred_tune_advice){
        .prefetch = cli_replay_config_is(config, "prefetch.enabled", "false") ? PRED_TUNE_NEVER
                    : cli_replay_config_is(config, "prefetch.enabled", "true") ? PRED_TUNE_ALWAYS
                                                                               : PRED_TUNE_AUTO,
        .hints_max = (uint32_t)cli_replay_config_real(config, "predictor.hints_max"),
        .rows_max = (uint32_t)cli_replay_config_real(config, "predictor.rows_max"),
        .tokens_max = (uint32_t)cli_replay_config_real(config, "predictor.tokens_max"),
        .lead_min = (uint32_t)cli_replay_config_real(config, "predictor.lookahead"),
        .probability_min = cli_replay_config_real(config, "predictor.probability_min"),
        .whole_pass = cli_replay_config_is(config, "predictor.whole_pass", "true"),
        .prefetch_probability_min = cli_replay_config_real(config, "prefetch.probability_min"),
        .waste_max = cli_replay_config_real(config, "prefetch.waste_max"),
        .fixed = cli_replay_config_is(config, "prefetch.governor", "fixed"),
    };
}

/* ----------------------------------------------------------------------------------- writing -- */

/* Nothing about prediction may be set where nothing predicts, nor gates be asked for nobody. */
static int advice_write(struct cli_replay_config *config, const struct pred_tune_setting *s,
                        struct base_err *err)
{
    char pair[5][96];
    bool none = s->predictor[0] == '\0';
    if (none) {
        cli_replay_config_reset(config, "predictor.");
        cli_replay_config_reset(config, "prefetch.");
    } else if (strcmp(s->predictor, "blend") != 0) {
        cli_replay_config_reset(config, "predictor.lookahead");
    }
    snprintf(pair[0], sizeof pair[0], "predictor.kind=%s", none ? "none" : s->predictor);
    snprintf(pair[1], sizeof pair[1], "predictor.lead=%" PRIu32, s->lead);
    snprintf(pair[2], sizeof pair[2], "prefetch.experts_per_layer_max=%" PRIu32, s->per_layer);
    snprintf(pair[3], sizeof pair[3], "prefetch.bandwidth_share=%.6g%%", 100 * s->bandwidth_share);
    snprintf(pair[4], sizeof pair[4], "prefetch.inflight=%" PRIu64, s->inflight);
    for (int i = 0; i < (none ? 1 : 5); i++) {
        int rc = cli_replay_config_set(config, pair[i], err);
        if (rc < 0) return rc;
    }
    return 0;
}

static int setting_write(struct cli_replay_config *config, const struct pred_tune_result *r,
                         struct base_err *err)
{
    const struct pred_tune_setting *s = &r->path[r->path_count - 1].setting;
    char pair[4][96];
    if (!r->better) return 0;
    snprintf(pair[0], sizeof pair[0], "policy.eviction=%s", s->policy);
    snprintf(pair[1], sizeof pair[1], "policy.half_life=%.0f", s->half_life_tokens);
    snprintf(pair[2], sizeof pair[2], "policy.prefill_share=%.6g%%", 100 * s->prefill_share);
    snprintf(pair[3], sizeof pair[3], "policy.quotas=%s", s->adaptive ? "adaptive" : "equal");
    for (int i = 0; i < 4; i++) {
        int rc = cli_replay_config_set(config, pair[i], err);
        if (rc < 0) return rc;
    }
    return r->on_clock ? advice_write(config, s, err) : 0;
}

static int write_yaml(struct cli_replay_config *config, const struct pred_tune_result *r,
                      struct base_err *err)
{
    struct base_out out;
    int rc = setting_write(config, r, err);
    if (rc == 0) rc = base_out_begin(&out, flags.to, err);
    if (rc == 0) rc = base_out_open(&out, err);
    if (rc < 0) return rc;
    fputs("# Written by tier-replay tune.\n", out.file);
    cli_replay_config_print(out.file, config);
    return base_out_end(&out, 0, err);
}

/* Before the search: could the YAML be written, and is it nothing that is read? */
static int check_output(struct pred_trace_reader *const *traces, int count, struct base_err *err)
{
    struct base_out out;
    int rc = base_out_begin(&out, flags.to, err);
    if (rc == 0 && flags.config) rc = base_out_spares(&out, flags.config, err);
    if (rc == 0 && flags.machine) rc = base_out_spares(&out, flags.machine, err);
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = pred_trace_reader_spares(traces[i], flags.to, err);
    }
    return rc;
}

/* ---------------------------------------------------------------------------------- telling -- */

/* Percent: on the clock of what could be read where it runs, else of what was in some tier. */
static double share_of(const struct pred_tune_result *r, const struct pred_tune_sum *sum)
{
    double there = r->on_clock ? sum->hits : sum->lookups - sum->reads;
    return sum->lookups > 0 ? 100 * there / sum->lookups : 0;
}

static const char *share_name(const struct pred_tune_result *r)
{
    return r->on_clock ? "hits" : "resident";
}

static void knob_text(char *to, size_t size, const char *knob, const struct pred_tune_setting *s)
{
    if (strcmp(knob, "policy.eviction") == 0) {
        snprintf(to, size, "%s", s->policy);
    } else if (strcmp(knob, "policy.quotas") == 0) {
        snprintf(to, size, "%s", s->adaptive ? "adaptive" : "equal");
    } else if (strcmp(knob, "policy.half_life") == 0) {
        snprintf(to, size, "%.0f", s->half_life_tokens);
    } else if (strcmp(knob, "policy.prefill_share") == 0) {
        snprintf(to, size, "%.6g%%", 100 * s->prefill_share);
    } else if (strcmp(knob, "predictor.kind") == 0) {
        snprintf(to, size, "%s", s->predictor[0] ? s->predictor : "none");
    } else if (strcmp(knob, "predictor.lead") == 0) {
        snprintf(to, size, "%" PRIu32, s->lead);
    } else if (strcmp(knob, "prefetch.experts_per_layer_max") == 0) {
        snprintf(to, size, "%" PRIu32, s->per_layer);
    } else if (strcmp(knob, "prefetch.bandwidth_share") == 0) {
        snprintf(to, size, "%.6g%%", 100 * s->bandwidth_share);
    } else {
        base_str_bytes(to, size, s->inflight);
    }
}

/* Behind what a knob gave: what it does to the bytes, where time is what counts. */
static void bytes_text(char *to, size_t size, const struct pred_tune_result *r,
                       const struct pred_tune_sum *from, const struct pred_tune_sum *then)
{
    to[0] = '\0';
    if (!r->on_clock || from->bytes <= 0) return;
    snprintf(to, size, ", %+.1f%% bytes moved", 100 * (then->bytes / from->bytes - 1));
}

static void explain(const struct pred_tune_result *r)
{
    const struct pred_tune_step *base = &r->path[0];
    if (r->path_count == 1) {
        printf("Nothing else that was tried %s on the tuned half: the base stays.\n",
               r->on_clock ? "is faster" : "reads less");
        return;
    }
    for (uint32_t i = 1; i < r->path_count; i++) {
        const struct pred_tune_step *from = &r->path[i - 1], *to = &r->path[i];
        char before[40], after[40], bytes[40];
        knob_text(before, sizeof before, to->knob, &from->setting);
        knob_text(after, sizeof after, to->knob, &to->setting);
        bytes_text(bytes, sizeof bytes, r, &from->held_out, &to->held_out);
        double saved = from->held_out.cost - to->held_out.cost,
               points = share_of(r, &to->held_out) - share_of(r, &from->held_out);
        printf("Turning %s from %s to %s %s %.2f%% of the base's %s on the held-out half "
               "(%s %+.2f points%s; %+.2f on the tuned half).\n",
               to->knob, before, after, saved >= 0 ? "saves" : "costs",
               base->held_out.cost > 0 ? 100 * fabs(saved) / base->held_out.cost : 0,
               r->on_clock ? "time" : "bytes", share_name(r), points, bytes,
               share_of(r, &to->tuned) - share_of(r, &from->tuned));
    }
}

/* What a part cost, in words. */
static void cost_text(char *to, size_t size, const struct pred_tune_result *r,
                      const struct pred_tune_sum *sum)
{
    char text[16];
    if (r->on_clock) {
        snprintf(to, size, "%.2f tokens/s", sum->cost > 0 ? 1e9 * sum->tokens / sum->cost : 0);
    } else if (r->known_bytes) {
        snprintf(to, size, "reads %s", base_str_bytes(text, sizeof text, (uint64_t)sum->cost));
    } else {
        snprintf(to, size, "reads %.0f experts", sum->cost);
    }
}

static void advice_text(char *to, size_t size, const struct pred_tune_setting *s)
{
    char inflight[32];
    base_str_bytes(inflight, sizeof inflight, s->inflight);
    if (s->predictor[0] == '\0') {
        snprintf(to, size, ", no prediction");
    } else {
        snprintf(to, size, ", %s %" PRIu32 " ahead, %" PRIu32 " experts a layer, %.4g%% of the "
                 "bandwidth, %s under way", s->predictor, s->lead, s->per_layer,
                 100 * s->bandwidth_share, inflight);
    }
}

static void setting_print(const char *name, const struct pred_tune_result *r,
                          const struct pred_tune_step *step)
{
    const struct pred_tune_setting *s = &step->setting;
    char advice[160] = "", cost[32];
    if (r->on_clock) advice_text(advice, sizeof advice, s);
    cost_text(cost, sizeof cost, r, &step->held_out);
    printf("%-8s %s, half-life %.0f, quotas %s, prefill share %.4g%%%s: %s %.2f%% held out, %s\n",
           name, s->policy, s->half_life_tokens, s->adaptive ? "adaptive" : "equal",
           100 * s->prefill_share, advice, share_name(r), share_of(r, &step->held_out), cost);
}

static void tell(const struct pred_tune_result *r)
{
    printf("%" PRIu64 " candidates on %" PRIu64 " sequences; %" PRIu64 " others held out\n",
           r->candidates, r->sequences - r->held_out_sequences, r->held_out_sequences);
    setting_print("base", r, &r->path[0]);
    setting_print("tuned", r, &r->path[r->path_count - 1]);
    printf("saved    %.2f%% of the %s, 95%% between %.2f%% and %.2f%% (bootstrap over the held-out "
           "sequences)\n",
           100 * r->saved, r->on_clock ? "time" : "bytes read", 100 * r->saved_low,
           100 * r->saved_high);
    if (!r->better) printf("The base is kept: nothing is surely better on the held-out half.\n");
    if (flags.explain) explain(r);
}

static void warn(const struct pred_tune_result *r)
{
    if (r->shared_text > SHARED_TEXT_MAX) {
        fprintf(stderr,
                "warning: %.1f%% of the held-out text (windows of %d tokens) is in the tuned half "
                "too: the held-out result is too good\n",
                100 * r->shared_text, PRED_TUNE_WINDOW);
    } else if (r->shared_text < 0) {
        fprintf(stderr,
                "note: the trace holds no text of %d known tokens: whether the halves share "
                "text cannot be told\n",
                PRED_TUNE_WINDOW);
    }
    if (r->held_out_sequences < 10) {
        fprintf(stderr, "warning: %" PRIu64 " held-out sequences are few: the interval is rough\n",
                r->held_out_sequences);
    }
    const struct pred_tune_setting *base = &r->path[0].setting;
    if (!r->on_clock) {
        fprintf(stderr, "note: %spredictors and prefetch are searched with --machine only: what "
                "they give is time\n", base->predictor[0] ? "the base's prediction is not counted; "
                                                           : "");
    }
}

static void json_sum(struct base_buf *buf, const char *name, const struct pred_tune_sum *sum)
{
    double lookups = sum->lookups > 0 ? sum->lookups : 1;
    base_buf_printf(buf,
                    "\"%s\":{\"lookups\":%.0f,\"reads\":%.0f,\"cost\":%.0f,"
                    "\"hits\":%.0f,\"moved_bytes\":%.0f,\"resident_rate\":%.6f}",
                    name, sum->lookups, sum->reads, sum->cost, sum->hits, sum->bytes,
                    1 - sum->reads / lookups);
}

static int print_json(const struct pred_tune_result *r, bool composed)
{
    struct base_buf buf;
    base_buf_init(&buf);
    base_buf_printf(&buf,
                    "{\"objective\":\"%s\",\"composed\":%s,\"candidates\":%" PRIu64
                    ",\"sequences\":%" PRIu64 ",\"held_out_sequences\":%" PRIu64
                    ",\"saved\":%.6f,\"saved_low\":%.6f,"
                    "\"saved_high\":%.6f,\"better\":%s,\"known_bytes\":%s,\"shared_text\":",
                    r->on_clock ? "time in ns" : r->known_bytes ? "bytes read" : "experts read",
                    composed ? "true" : "false",
                    r->candidates, r->sequences, r->held_out_sequences, r->saved, r->saved_low,
                    r->saved_high, r->better ? "true" : "false", r->known_bytes ? "true" : "false");
    if (r->shared_text < 0) {
        base_buf_puts(&buf, "null");
    } else {
        base_buf_printf(&buf, "%.6f", r->shared_text);
    }
    base_buf_puts(&buf, ",\"path\":[");
    for (uint32_t i = 0; i < r->path_count; i++) {
        const struct pred_tune_step *s = &r->path[i];
        base_buf_printf(&buf,
                        "%s{\"knob\":%s%s%s,\"policy\":\"%s\",\"half_life\":%.0f,"
                        "\"adaptive\":%s,\"prefill_share\":%.6g,\"predictor\":\"%s\",",
                        i > 0 ? "," : "", s->knob ? "\"" : "", s->knob ? s->knob : "null",
                        s->knob ? "\"" : "", s->setting.policy, s->setting.half_life_tokens,
                        s->setting.adaptive ? "true" : "false", s->setting.prefill_share,
                        s->setting.predictor[0] ? s->setting.predictor : "none");
        base_buf_printf(&buf,
                        "\"lead\":%" PRIu32 ",\"experts_per_layer_max\":%" PRIu32
                        ",\"bandwidth_share\":%.6g,\"inflight_bytes\":%" PRIu64 ",",
                        s->setting.lead, s->setting.per_layer, s->setting.bandwidth_share,
                        s->setting.inflight);
        json_sum(&buf, "tuned", &s->tuned);
        base_buf_puts(&buf, ",");
        json_sum(&buf, "held_out", &s->held_out);
        base_buf_puts(&buf, "}");
    }
    base_buf_puts(&buf, "]}");
    return cli_replay_print(&buf);
}

/* ------------------------------------------------------------------------------------- run -- */

struct telling {
    struct cli_progress bar;
    struct pred_trace_reader *const *traces;
    char *const *paths;
};

static void on_progress(void *context, const char *what, double done, double total)
{
    struct telling *t = context;
    cli_progress_share(&t->bar, what, total > 0 ? done / total : 0);
}

/* The search begins each trace anew, and with it its health: what is wrong is told now. */
static void on_read(void *context, uint32_t trace)
{
    struct telling *t = context;
    if (!flags.quiet) cli_replay_health(t->paths[trace], t->traces[trace]);
}

static int tune(struct cli_replay_config *config, struct pred_trace_reader *const *traces,
                char *const *paths, uint32_t count, struct pred_tune_result *result,
                struct base_err *err)
{
    struct telling telling = { .traces = traces, .paths = paths };
    struct pred_machine machine;
    struct pred_tune_progress progress = { on_progress, on_read, &telling };
    struct pred_tune_args args = { .traces = traces, .trace_count = count, .progress = &progress };
    int rc = cache_of(config, pred_trace_reader_header(traces[0]), &args, err);
    if (rc < 0) return rc;
    advice_of(config, &args);
    cli_progress_begin(&telling.bar, "reading", flags.quiet);
    if (flags.machine) {
        rc = pred_machine_load(&machine, flags.machine, err);
        for (unsigned i = 0; rc >= 0 && i < flags.machine_set.count; i++) {
            rc = pred_machine_set(&machine, flags.machine_set.text[i], err);
        }
        args.machine = &machine;
    }
    if (rc >= 0) rc = pred_tune_run(&args, result, err);
    cli_progress_end(&telling.bar);
    return rc < 0 ? rc : 0;
}

int cli_replay_tune(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct pred_trace_reader *traces[TRACES_MAX] = { 0 };
    struct cli_replay_config *config = NULL;
    struct pred_tune_result result;
    if (!flags.to) return cli_misuse("-o FILE is needed: where the tuned YAML goes");
    if (strcmp(flags.to, "-") == 0) {
        return cli_misuse("-o -: standard output is for what was found; name a file for the YAML");
    }
    if (flags.machine_set.count > 0 && !flags.machine) {
        return cli_misuse("--machine-set has no effect without --machine");
    }
    int rc = cli_replay_config_load(&config, flags.config, NULL, &flags.set, &err);
    if (rc < 0) return cli_fail(2, &err);
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = pred_trace_reader_open(&traces[i], arguments[i], &err);
    }
    if (rc == 0) rc = check_output(traces, count, &err);
    if (rc == 0) rc = tune(config, traces, arguments, (uint32_t)count, &result, &err);
    if (rc == 0) rc = write_yaml(config, &result, &err);
    bool composed = false;
    for (int i = 0; i < count && rc == 0; i++) {
        composed |= pred_trace_composed(pred_trace_reader_header(traces[i]));
    }
    for (int i = 0; i < count; i++)
        pred_trace_reader_close(traces[i]);
    cli_replay_config_free(config);
    if (rc < 0) return cli_fail(1, &err);
    if (!flags.quiet) warn(&result);
    if (flags.json) return print_json(&result, composed);
    tell(&result);
    return 0;
}
