#include "tests/support/campaign_live.h"

#include <check.h>
#include <stdio.h>
#include <string.h>

static uint64_t between(struct base_rng *rng, uint64_t low, uint64_t high)
{
    return low + base_rng_below(rng, high - low + 1);
}

static void set(struct tier_config *config, const char *key, const char *value)
{
    struct base_option_group group = { "tiers", tier_options, tier_option_count, config };
    struct base_option_source source = { .file = "drawn" };
    struct base_err err = { 0 };
    int rc = base_option_set(&group, 1, key, value, &source, false, &err);
    ck_assert_msg(rc >= 0, "%s", err.text);
}

static void draw_share(struct tier_config *config, const char *key, struct base_rng *rng,
                       uint32_t low, uint32_t high, uint32_t experts)
{
    char text[32];
    snprintf(text, sizeof text, "%.4f%%", 100.0 * (double)between(rng, low, high) / experts);
    set(config, key, text);
}

/* One of "a|b|c". */
static void draw_choice(struct tier_config *config, const char *key, struct base_rng *rng)
{
    for (size_t i = 0; i < tier_option_count; i++) {
        if (strcmp(tier_options[i].key, key) != 0) continue;
        char copy[256], *names[32], *rest = NULL;
        unsigned count = 0;
        snprintf(copy, sizeof copy, "%s", tier_options[i].limits);
        for (char *name = strtok_r(copy, "|", &rest); name; name = strtok_r(NULL, "|", &rest)) {
            names[count++] = name;
        }
        set(config, key, names[base_rng_below(rng, count)]);
        return;
    }
    ck_abort_msg("no option %s", key);
}

static void draw_quotas(struct tier_config *config, struct base_rng *rng, uint32_t layers)
{
    char text[BASE_OPTION_TEXT] = "";
    uint64_t kind = base_rng_below(rng, 4);
    for (uint32_t l = 0; kind > 1 && l < layers; l++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s%llu", l ? "," : "",
                 (unsigned long long)between(rng, 1, 4));
    }
    set(config, "policy.quotas", kind == 0 ? "equal" : kind == 1 ? "adaptive" : text);
}

bool campaign_reconfigure(struct run *run, struct base_rng *rng, uint32_t most, bool verify)
{
    struct tier *tier = run->stack.tier;
    struct tier_config config = run->stack.config.tier;
    const struct tier_decide_config *core = tier_decide_config_of(tier);
    bool hbm = core->tier_count == 2, sizes = base_rng_below(rng, 3) > 0;
    uint32_t least = hbm ? 1 : core->top_k, hbm_most = most < 30 ? most : 30;
    struct base_err err = { 0 };
    char text[32];
    if (sizes && hbm) {
        draw_share(&config, "tiers.hbm.capacity", rng, core->top_k, hbm_most, core->experts);
    }
    if (sizes) draw_share(&config, "tiers.dram.capacity", rng, least, most, core->experts);
    if (base_rng_below(rng, 2)) draw_choice(&config, "policy.eviction", rng);
    if (hbm && base_rng_below(rng, 2)) draw_choice(&config, "policy.eviction_dram", rng);
    if (base_rng_below(rng, 2)) draw_quotas(&config, rng, core->layers);
    snprintf(text, sizeof text, "%llu", (unsigned long long)between(rng, 1, 40));
    set(&config, "policy.half_life", base_rng_below(rng, 2) ? text : "16");
    snprintf(text, sizeof text, "%llu%%", (unsigned long long)between(rng, 5, 100));
    set(&config, "policy.prefill_share", text);
    set(&config, "tiers.verify", verify || base_rng_below(rng, 2) ? "always" : "first");
    config.prefetch = base_rng_below(rng, 2);
    config.prefetch_inflight = between(rng, 0, 1 << 20);
    int rc = tier_reconfigure(tier, &config, &err);
    if (rc == 0) {
        run->stack.config.tier = config;
        return true;
    }
    ck_assert_msg((rc == BASE_EBUDGET || rc == BASE_ECONFIG) && err.text[0], "%d: %s", rc,
                  err.text);
    return false;
}
