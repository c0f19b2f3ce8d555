#include "tools/replay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "base/str.h"
#include "engine/advice.h"
#include "engine/engine.h"
#include "engine/ranks.h"
#include "port/yaml.h"
#include "server/server.h"

/* The tables are made here from the modules' X-macros: this program links no engine and no
 * server. */
#define BASE_OPTION_OWNER struct tier_config
static const struct base_option tier_table[] = { TIER_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
#define BASE_OPTION_OWNER struct tier_config
static const struct base_option prefetch_table[] = { TIER_PREFETCH_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
#define BASE_OPTION_OWNER struct eng_advice_config
static const struct base_option advice_table[] = { ENG_ADVICE_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
#define BASE_OPTION_OWNER struct tier_io_config
static const struct base_option io_table[] = { TIER_IO_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
#define BASE_OPTION_OWNER struct eng_config
static const struct base_option engine_table[] = { ENG_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
#define BASE_OPTION_OWNER struct pred_trace_config
static const struct base_option trace_table[] = { PRED_TRACE_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
#define BASE_OPTION_OWNER struct srv_config
static const struct base_option server_table[] = { SRV_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER

#define BASE_OPTION_OWNER struct eng_rank_config
static const struct base_option rank_table[] = { ENG_RANK_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
#define BASE_OPTION_OWNER struct comm_config
static const struct base_option comm_table[] = { COMM_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER

enum { GROUPS = 9 };

struct cli_replay_config {
    struct tier_config tier;
    struct tier_io_config io;
    struct eng_config engine;
    struct pred_trace_config trace;
    struct srv_config server;
    struct eng_rank_config ranks;
    struct comm_config comm;
    struct eng_advice_config advice;
    struct base_option_group groups[GROUPS];
    char text[BASE_OPTION_TEXT];
    const struct pred_trace_header *recorded;   /* whose configuration is the base, or NULL */
    char recorded_capacity[CLI_REPLAY_DRAM + 1][BASE_OPTION_TEXT];
};

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

/* Replay without a file begins with what the trace says of its server. An import says nothing, and
 * then policies work as in the books. */
static int recorded_load(struct cli_replay_config *c, const struct pred_trace_header *recorded,
                         struct base_err *err)
{
    struct base_err why = { 0 };
    if (recorded->yaml[0] == '\0') {
        return base_option_set_pair(c->groups, GROUPS, "policy.prefill_share=100%", err);
    }
    int rc = port_yaml_parse(recorded->yaml, strlen(recorded->yaml),
                             "the configuration recorded in the trace", c->groups, GROUPS, &why);
    if (rc < 0) {
        return base_err_set(err, BASE_EFORMAT, "%s; --config FILE goes before it", why.text);
    }
    c->recorded = recorded;
    memcpy(c->recorded_capacity[CLI_REPLAY_HBM], c->tier.hbm_capacity, BASE_OPTION_TEXT);
    memcpy(c->recorded_capacity[CLI_REPLAY_DRAM], c->tier.dram_capacity, BASE_OPTION_TEXT);
    return 0;
}

int cli_replay_config_load(struct cli_replay_config **out, const char *path,
                           const struct pred_trace_header *recorded, const struct cli_list *set,
                           struct base_err *err)
{
    *out = NULL;
    struct cli_replay_config *c = calloc(1, sizeof *c);
    if (!c) return base_err_set(err, -ENOMEM, "no memory for the configuration");
    c->groups[0] = (struct base_option_group){ "tiers", tier_table, COUNT(tier_table), &c->tier };
    c->groups[1] = (struct base_option_group){ "io", io_table, COUNT(io_table), &c->io };
    c->groups[2] =
        (struct base_option_group){ "engine", engine_table, COUNT(engine_table), &c->engine };
    c->groups[3] =
        (struct base_option_group){ "trace", trace_table, COUNT(trace_table), &c->trace };
    c->groups[4] =
        (struct base_option_group){ "server", server_table, COUNT(server_table), &c->server };
    c->groups[5] =
        (struct base_option_group){ "ranks", rank_table, COUNT(rank_table), &c->ranks };
    c->groups[6] = (struct base_option_group){ "prefetch", prefetch_table, COUNT(prefetch_table),
                                               &c->tier };
    c->groups[7] =
        (struct base_option_group){ "predictor", advice_table, COUNT(advice_table), &c->advice };
    c->groups[8] = (struct base_option_group){ "comm", comm_table, COUNT(comm_table), &c->comm };
    base_option_defaults(c->groups, GROUPS);
    int rc = path ? port_yaml_load(path, c->groups, GROUPS, err)
                  : recorded ? recorded_load(c, recorded, err) : 0;
    for (unsigned i = 0; rc >= 0 && i < set->count; i++) {
        rc = base_option_set_pair(c->groups, GROUPS, set->text[i], err);
    }
    if (rc < 0) {
        free(c);
        return rc;
    }
    *out = c;
    return 0;
}

void cli_replay_config_free(struct cli_replay_config *c)
{
    free(c);
}

int cli_replay_config_set(struct cli_replay_config *c, const char *pair, struct base_err *err)
{
    return base_option_set_pair(c->groups, GROUPS, pair, err);
}

void cli_replay_config_print(FILE *to, const struct cli_replay_config *c)
{
    base_option_print_yaml(to, c->groups, GROUPS, false);
}

const char *cli_replay_config_get(struct cli_replay_config *c, const char *key)
{
    c->text[0] = '\0';
    if (base_option_get(c->groups, GROUPS, key, c->text, sizeof c->text) < 0) return "";
    return c->text;
}

double cli_replay_config_real(struct cli_replay_config *c, const char *key)
{
    const char *text = cli_replay_config_get(c, key);
    uint64_t bytes;
    double value = 0;
    if (strchr(text, '%')) base_str_share_parse(text, &value);
    else if (base_str_bytes_parse(text, &bytes) == 0) value = (double)bytes;
    else base_str_double_parse(text, &value);
    return value;
}

bool cli_replay_config_is(struct cli_replay_config *c, const char *key, const char *value)
{
    return strcmp(cli_replay_config_get(c, key), value) == 0;
}

void cli_replay_config_reset(struct cli_replay_config *c, const char *beginning)
{
    char pair[2 * BASE_OPTION_TEXT];
    struct base_err unused = { 0 };
    for (size_t g = 0; g < GROUPS; g++) {
        for (size_t i = 0; i < c->groups[g].count; i++) {
            const struct base_option *o = &c->groups[g].options[i];
            if (strncmp(o->key, beginning, strlen(beginning)) != 0) continue;
            snprintf(pair, sizeof pair, "%s=%s", o->key, o->initial);
            int rc = base_option_set_pair(c->groups, GROUPS, pair, &unused);
            MUST(rc >= 0); /* a default is a value */
        }
    }
}

/* ------------------------------------------------------------------------------- the cache -- */

static bool has_hbm(const struct cli_replay_config *c)
{
    uint64_t bytes;
    return base_str_bytes_parse(c->tier.hbm_capacity, &bytes) < 0 || bytes > 0;
}

/* The slots that the recording server had of this capacity; false where that is not known. */
static bool recorded_slots(const struct cli_replay_config *c, enum cli_replay_tier tier,
                           const char *text, uint64_t *slots)
{
    bool dram = tier == CLI_REPLAY_DRAM;
    if (!c->recorded || strcmp(text, c->recorded_capacity[tier]) != 0) return false;
    const struct tier_decide_config *core = &c->recorded->decide;
    if (core->tier_count < (dram ? 1 : 2)) return false;
    *slots = core->tiers[dram ? core->tier_count - 1 : 0].slots;
    return true;
}

int cli_replay_config_slots(const struct cli_replay_config *c, const struct pred_trace_header *h,
                            enum cli_replay_tier tier, uint64_t *slots, struct base_err *err)
{
    bool dram = tier == CLI_REPLAY_DRAM;
    const char *key = dram ? "tiers.dram.capacity" : "tiers.hbm.capacity";
    const char *text = dram ? c->tier.dram_capacity : c->tier.hbm_capacity;
    uint64_t bytes, keys = (uint64_t)h->layers * h->experts;
    double share;
    if (recorded_slots(c, tier, text, slots)) return 0;
    if (strchr(text, '%')) {
        if (base_str_share_parse(text, &share) < 0) {
            return base_err_set(err, BASE_ECONFIG, "%s: \"%s\" is no share", key, text);
        }
        *slots = (uint64_t)(share * h->experts + 0.5) * h->layers;
        return 0;
    }
    if (base_str_bytes_parse(text, &bytes) < 0) {
        return base_err_set(err, BASE_ECONFIG, "%s: \"%s\" is neither a size nor a share", key,
                            text);
    }
    if (bytes > 0 && h->slot_bytes == 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "%s is %s, but the trace does not say how large a slot is: give a "
                            "share, --set %s=25%%",
                            key, text, key);
    }
    *slots = bytes > 0 ? bytes / h->slot_bytes : 0;
    if (*slots > keys) *slots = keys;
    return 0;
}

static void choice(const struct cli_replay_config *c, const char *key, char to[32])
{
    int rc = base_option_get(c->groups, GROUPS, key, to, 32);
    MUST(rc >= 0);
}

int cli_replay_config_cache(const struct cli_replay_config *c, struct cli_replay_cache *out,
                            struct base_err *err)
{
    bool adaptive = strcmp(c->tier.quotas, "adaptive") == 0;
    *out = (struct cli_replay_cache){
        .tier_count = has_hbm(c) ? 2 : 1, .inclusive = c->tier.inclusion == 1,
        .warm_compute = c->tier.warm_experts == TIER_WARM_COMPUTE, .adaptive = adaptive,
        .half_life_tokens = (double)c->tier.half_life, .prefill_share = c->tier.prefill_share,
    };
    if (!adaptive && strcmp(c->tier.quotas, "equal") != 0) {
        return base_err_set(err, BASE_ECONFIG, "policy.quotas: %s: equal and adaptive ones can be "
                            "tried; --set policy.quotas=equal begins there", c->tier.quotas);
    }
    choice(c, "policy.eviction", out->policy);
    choice(c, "policy.eviction_dram", out->policy_below);
    if (strcmp(out->policy_below, "same") == 0) out->policy_below[0] = '\0';
    return 0;
}

int cli_replay_cache_without_hbm(const struct cli_replay_cache *cache, struct base_err *err)
{
    if (cache->inclusive) {
        return base_err_set(err, -EINVAL, "tiers.inclusion: inclusive has no effect without hbm: "
                            "set it to exclusive");
    }
    if (cache->warm_compute) {
        return base_err_set(err, -EINVAL, "tiers.warm_experts: compute has no effect without hbm: "
                            "all of dram is used where it lies; set it to copy");
    }
    if (cache->policy_below[0]) {
        return base_err_set(err, -EINVAL, "policy.eviction_dram: %s has no effect without hbm: "
                            "policy.eviction is dram's; set it to same", cache->policy_below);
    }
    return 0;
}
