#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "base/str.h"
#include "tiering/policy.h"
#include "tiering/tiering_priv.h"

enum { QUOTAS_TEXT_MAX = 65536 };

const struct base_option *tier_option_of(const char *key)
{
    for (size_t i = 0; i < tier_option_count; i++) {
        if (strcmp(tier_options[i].key, key) == 0) return &tier_options[i];
    }
    MUST(!"an option of this module");
    return NULL;
}

/* The policies' names, from the top tier down. */
static void policies_of(const struct tier_config *config, char names[TIER_RESIDENT_TIERS_MAX][32])
{
    base_option_choice(tier_option_of("policy.eviction"), config->eviction, names[0], 32);
    base_option_choice(tier_option_of("policy.eviction_dram"), config->eviction_dram, names[1], 32);
    if (strcmp(names[1], "same") == 0) memcpy(names[1], names[0], 32);
}

const char *tier_device_name(const struct tier_config *config)
{
    static const char *const names[] = { "sim", "host", "cuda" };
    return tier_budget_has_hbm(config) ? names[config->hbm_device] : "";
}

static bool is_equal(const struct tier_config *config)
{
    return strcmp(config->quotas, "equal") == 0;
}

/* -- what makes sense without a model --------------------------------------------------------- */

int tier_config_check(const struct tier_config *config, struct base_err *err)
{
    char names[TIER_RESIDENT_TIERS_MAX][32];
    uint32_t tiers = tier_budget_has_hbm(config) ? 2 : 1;
    policies_of(config, names);
    if (config->inclusion == 1 && tiers == 1) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.inclusion: inclusive has no effect without an "
                            "hbm tier: set tiers.hbm.capacity, or leave it out");
    }
    if (config->warm_experts == TIER_WARM_COMPUTE && tiers == 1) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.warm_experts: compute has no effect without an hbm tier: all of "
                            "dram is used where it lies; set tiers.hbm.capacity, or leave it out");
    }
    if (config->eviction_dram != 0 && tiers == 1) {
        return base_err_set(err, BASE_ECONFIG,
                            "policy.eviction_dram: %s has no effect without an "
                            "hbm tier: policy.eviction is dram's",
                            names[1]);
    }
    bool decayed = false, global = false;
    for (uint32_t t = 0; t < tiers; t++) {
        decayed |= tier_policy_find(names[t])->decayed;
        global |= tier_policy_find(names[t])->global;
        if (strcmp(names[t], "pinned") == 0 && config->warm_path[0] == '\0') {
            return base_err_set(err, BASE_ECONFIG,
                                "policy.%s: pinned has no effect without tiers.warm.path, whose "
                                "saved set it keeps: name that file, or take lru, which it would "
                                "be",
                                t ? "eviction_dram" : "eviction");
        }
    }
    if (global && !is_equal(config)) {
        return base_err_set(err, BASE_ECONFIG,
                            "policy.quotas: %s has no effect with a policy over "
                            "all layers at once (lru_global): take one per layer, or equal",
                            config->quotas);
    }
    uint64_t save_every = 0;
    base_str_duration_parse(tier_option_of("tiers.warm.save_every")->initial, &save_every);
    if (config->warm_path[0] == '\0' && config->warm_save_every != save_every) {
        return base_err_set(err, BASE_ECONFIG, "tiers.warm.save_every has no effect without "
                            "tiers.warm.path: name the file to save in, or leave it out");
    }
    if (config->prefetch && config->prefetch_share <= 0) {
        return base_err_set(err, BASE_ECONFIG, "prefetch.bandwidth_share: 0%% leaves nothing to "
                            "read ahead with: set prefetch.enabled to false instead");
    }
    unsigned long long initial = strtoull(tier_option_of("policy.half_life")->initial, NULL, 10);
    if (!decayed && config->half_life != initial) {
        return base_err_set(err, BASE_ECONFIG,
                            "policy.half_life: %llu has no effect with "
                            "policy.eviction: %s, which counts no uses: take lfu, "
                            "lru_with_frequency or lru_with_prediction, or leave it out",
                            (unsigned long long)config->half_life, names[0]);
    }
    return 0;
}

/* -- quotas ----------------------------------------------------------------------------------- */

/* Reads "2,1,1.5": one share a layer, separated by commas or white space. */
static int shares_parse(const char *text, double *shares, uint32_t layers, struct base_err *err)
{
    const char *at = text + strspn(text, " \t\r\n,");
    uint32_t count = 0;
    while (*at) {
        char *end;
        double share = strtod(at, &end);
        if (end == at || !(share > 0 && share < 1e9)) {
            return base_err_set(err, BASE_ECONFIG,
                                "policy.quotas: \"%.20s\" is no share: write "
                                "equal, adaptive, file:PATH, or a number above 0 for each layer",
                                at);
        }
        if (count < layers) shares[count] = share;
        count++;
        at = end + strspn(end, " \t\r\n,");
    }
    if (count == layers) return 0;
    return base_err_set(err, BASE_ECONFIG,
                        "policy.quotas: %" PRIu32 " shares, but the model has "
                        "%" PRIu32 " layers with experts: give one for each",
                        count, layers);
}

static int shares_load(const char *path, double *shares, uint32_t layers, struct base_err *err)
{
    int rc = -ENOMEM;
    char *text = calloc(1, QUOTAS_TEXT_MAX);
    FILE *from = fopen(path, "re");
    if (!from) {
        rc = base_err_set(err, -errno, "policy.quotas: cannot read %s: %s", path, strerror(errno));
        goto done;
    }
    if (!text) goto done;
    size_t size = fread(text, 1, QUOTAS_TEXT_MAX - 1, from);
    rc = ferror(from) || !feof(from) || memchr(text, 0, size)
             ? base_err_set(err, BASE_ECONFIG, "policy.quotas: %s is no text of up to %d bytes",
                            path, QUOTAS_TEXT_MAX - 1)
             : shares_parse(text, shares, layers, err);
    if (rc < 0) base_err_prefix(err, "%s", path);
done:
    if (from) fclose(from);
    free(text);
    return rc;
}

/* Whole slots by these shares, between `least` and `most` a layer: what is left over goes to, and
 * what is too much comes from, the layer that is farthest from its share. */
static void shares_cut(const double *shares, uint32_t layers, uint64_t slots, uint32_t least,
                       uint32_t most, uint32_t *quotas)
{
    double sum = 0;
    uint64_t given = 0;
    for (uint32_t l = 0; l < layers; l++)
        sum += shares[l];
    for (uint32_t l = 0; l < layers; l++) {
        double due = shares[l] / sum * (double)slots;
        quotas[l] = due < least ? least : due > most ? most : (uint32_t)due;
        given += quotas[l];
    }
    while (given != slots) {
        uint32_t best = UINT32_MAX;
        double worst = 0;
        for (uint32_t l = 0; l < layers; l++) {
            double off = shares[l] / sum * (double)slots - quotas[l];
            if (given > slots) off = -off;
            bool may = given < slots ? quotas[l] < most : quotas[l] > least;
            if (!may || (best != UINT32_MAX && off <= worst)) continue;
            best = l;
            worst = off;
        }
        if (best == UINT32_MAX) return;
        quotas[best] += given < slots ? 1 : UINT32_MAX;
        given += given < slots ? 1 : UINT64_MAX;
    }
}

/* -- for the core ----------------------------------------------------------------------------- */

int tier_settings_of(const struct tier_config *config, const struct tier_footprint *footprint,
                     const struct tier_store *store, uint32_t top_k,
                     struct tier_decide_change *change, uint32_t *quotas, struct base_err *err)
{
    char names[TIER_RESIDENT_TIERS_MAX][32];
    uint32_t layers = tier_store_layers(store), experts = tier_store_experts(store);
    uint32_t tiers = tier_budget_has_hbm(config) ? 2 : 1;
    static const char file[] = "file:";
    double *shares = NULL;
    int rc = tier_config_check(config, err);
    if (rc < 0) return rc;
    policies_of(config, names);
    *change = (struct tier_decide_change){
        .adaptive = strcmp(config->quotas, "adaptive") == 0,
        .prefetch = config->prefetch,
        .half_life_tokens = (double)config->half_life,
        .prefill_share = config->prefill_share,
    };
    if (!is_equal(config) && !change->adaptive) {
        shares = calloc(layers, sizeof *shares);
        if (!shares) return base_err_set(err, -ENOMEM, "no memory for policy.quotas");
        rc = strncmp(config->quotas, file, sizeof file - 1) == 0
                 ? shares_load(config->quotas + sizeof file - 1, shares, layers, err)
                 : shares_parse(config->quotas, shares, layers, err);
    }
    for (uint32_t t = 0; rc == 0 && t < tiers; t++) {
        struct tier_decide_tier *tier = &change->tiers[t];
        tier->slots = footprint->slots[t];
        memcpy(tier->policy, names[t], sizeof tier->policy);
        if (!shares) continue;
        tier->quotas = quotas + (size_t)t * layers;
        shares_cut(shares, layers, tier->slots, t == 0 ? top_k : 1, experts,
                   quotas + (size_t)t * layers);
    }
    free(shares);
    return rc;
}

int tier_settings_core(const struct tier_config *config, const struct tier_footprint *footprint,
                       const struct tier_store *store, uint32_t top_k, struct tier_decide **out,
                       struct base_err *err)
{
    struct tier_decide_change change;
    uint32_t layers = tier_store_layers(store);
    uint32_t *quotas = calloc((size_t)TIER_RESIDENT_TIERS_MAX * layers, sizeof *quotas);
    *out = NULL;
    if (!quotas) return base_err_set(err, -ENOMEM, "no memory for policy.quotas");
    int rc = tier_settings_of(config, footprint, store, top_k, &change, quotas, err);
    if (rc == 0) {
        struct tier_decide_config core = {
            .layers = layers,
            .experts = tier_store_experts(store),
            .top_k = top_k,
            .tier_count = tier_budget_has_hbm(config) ? 2 : 1,
            .inclusive = config->inclusion == 1,
            .warm_compute = config->warm_experts == TIER_WARM_COMPUTE,
            .adaptive = change.adaptive,
            .half_life_tokens = change.half_life_tokens,
            .prefill_share = change.prefill_share,
            .prefetch = change.prefetch,
            .strict = true,
        };
        memcpy(core.tiers, change.tiers, sizeof core.tiers);
        rc = tier_decide_create(out, &core, err);
    }
    free(quotas);
    return rc;
}

int tier_config_fits(const struct tier_config *config, const struct tier_store *store,
                     uint32_t top_k, struct base_err *err)
{
    struct tier_footprint footprint;
    struct tier_decide *core;
    int rc = tier_footprint(config, store, top_k, &footprint, err);
    if (rc == 0) rc = tier_settings_core(config, &footprint, store, top_k, &core, err);
    if (rc == 0) tier_decide_destroy(core);
    return rc;
}
