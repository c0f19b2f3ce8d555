#include <inttypes.h>
#include <string.h>

#include "base/str.h"
#include "tiering/tiering_priv.h"

/* Slots of a capacity as the user wrote it: a size holds as many as fit into it, spare ones
 * included; a share is that share of each layer's experts, to the nearest slot. Of several ranks
 * each counts the experts that it holds, and has its part of the size. */
static int capacity_slots(const char *key, const char *text, const struct tier_store *store,
                          uint32_t sharers, uint64_t slot_bytes, uint64_t spare, uint64_t *slots,
                          struct base_err *err)
{
    uint64_t layers = tier_store_layers(store), experts = tier_store_held(store), bytes;
    double share;
    if (strchr(text, '%')) {
        if (base_str_share_parse(text, &share) < 0) {
            return base_err_set(err, BASE_ECONFIG,
                                "%s: \"%s\" is no share: write 25%% for a quarter "
                                "of the experts",
                                key, text);
        }
        *slots = layers * (uint64_t)(share * (double)experts + 0.5);
        return 0;
    }
    if (base_str_bytes_parse(text, &bytes) < 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "%s: \"%s\" is neither a size like 16GiB nor a share "
                            "like 25%%",
                            key, text);
    }
    uint64_t all = bytes / sharers / slot_bytes;
    *slots = all > spare ? all - spare : 0;
    if (*slots > layers * experts) *slots = layers * experts;
    return 0;
}

/* Enough for one token's experts where they run; a tier below needs a slot a layer. */
static int capacity_check(const char *key, const char *text, const struct tier_store *store,
                          uint32_t each, const struct tier_footprint *f, unsigned tier,
                          struct base_err *err)
{
    char slot[16], have[16], need[16];
    uint64_t layers = tier_store_layers(store), least = layers * each;
    if (f->slots[tier] + f->spare_slots[tier] >= UINT32_MAX) {
        return base_err_set(err, BASE_EBUDGET, "%s: more slots than can be counted", key);
    }
    if (f->slots[tier] >= least) return 0;
    return base_err_set(err, BASE_EBUDGET, "%s: %s holds %" PRIu64 " experts (slots of %s%s, %s in "
                        "all), but %" PRIu64 " layers x %s %" PRIu32 " = %" PRIu64 " are needed: "
                        "give it %s or more", key, text, f->slots[tier],
                        base_str_bytes(slot, sizeof slot, f->slot_bytes[tier]),
                        f->spare_slots[tier] ? " and some to spare" : "",
                        base_str_bytes(have, sizeof have, f->slots_bytes[tier]), layers,
                        tier == 0 ? "top_k" : "a slot:", each, least,
                        base_str_bytes(need, sizeof need,
                                       (least + f->spare_slots[tier]) * f->slot_bytes[tier]));
}

bool tier_budget_has_hbm(const struct tier_config *config)
{
    uint64_t bytes;
    return base_str_bytes_parse(config->hbm_capacity, &bytes) < 0 || bytes > 0;
}

/* Slots beside those that policies work with. In dram: prefetched experts that are evicted before
 * they arrive keep their slots until then, and experts pass through on their way to hbm. In hbm:
 * demoted experts keep theirs until the copy down is done. */
static uint64_t spare_of(const struct tier_config *config, const struct tier_store *store,
                         bool hbm, uint32_t top_k)
{
    uint64_t spare = 0;
    if (hbm) return config->inclusion == 0 ? top_k : 0;
    if (tier_budget_has_hbm(config)) spare += 2 * (uint64_t)top_k;
    if (!config->prefetch) return spare;
    uint64_t open = config->prefetch_inflight / tier_store_slot_bytes(store);
    return spare + (open < 1 ? 1 : open < TIER_SPARE_PREFETCH ? open : TIER_SPARE_PREFETCH);
}

int tier_footprint(const struct tier_config *config, const struct tier_store *store, uint32_t top_k,
                   struct tier_footprint *out, struct base_err *err)
{
    static const char *const keys[] = { "tiers.hbm.capacity", "tiers.dram.capacity" };
    const char *const texts[] = { config->hbm_capacity, config->dram_capacity };
    uint32_t layers = tier_store_layers(store), experts = tier_store_experts(store);
    uint32_t held = tier_store_held(store);
    unsigned first = tier_budget_has_hbm(config) ? 0 : 1;
    *out = (struct tier_footprint){ 0 };
    if (layers == 0) return base_err_set(err, BASE_ECONFIG, "the model has no routed experts");
    for (unsigned i = first; i < 2; i++) {
        unsigned t = i - first;
        uint64_t spare = spare_of(config, store, i == 0, top_k);
        out->slot_bytes[t] = i == 0 ? tier_cache_hbm_slot_bytes(store)
                                    : tier_store_slot_bytes(store);
        uint32_t sharers = i == 1 ? tier_store_sharers(store) : 1;
        int rc = capacity_slots(keys[i], texts[i], store, sharers, out->slot_bytes[t], spare,
                                &out->slots[t], err);
        if (rc < 0) return rc;
        /* With room for every expert nothing is ever evicted. */
        bool all = out->slots[t] == (uint64_t)layers * held;
        out->spare_slots[t] = all && first == 1 ? 0 : spare;
        out->slots_bytes[t] = (out->slots[t] + out->spare_slots[t]) * out->slot_bytes[t];
        rc = capacity_check(keys[i], texts[i], store, t == 0 ? top_k : 1, out, t, err);
        if (rc < 0) return rc;
    }
    uint64_t dram = out->slots[1 - first] + out->spare_slots[1 - first];
    uint64_t hbm = first == 0 ? out->slots[0] + out->spare_slots[0] : 0;
    out->tables_bytes = tier_cache_tables_bytes(layers * experts, dram, hbm, 64) +
                        (uint64_t)layers * experts * TIER_DECIDE_BYTES_PER_EXPERT;
    if (config->warm_experts == TIER_WARM_COMPUTE) out->tables_bytes += (uint64_t)layers * experts;
    if (config->warm_path[0]) {
        out->tables_bytes += (uint64_t)layers * experts * TIER_WARM_BYTES_PER_EXPERT;
    }
    return 0;
}
