#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "tiering/tiering_priv.h"

/* Memory that one step gives back: of small slots many, of large ones a few. */
enum { SHRINK_BYTES = 256 << 20, GROUPS = 2 };

static const char *const live_keys[] = {
    "tiers.hbm.capacity",
    "tiers.dram.capacity",
    "tiers.verify",
    "tiers.nvme.stuck_after",
    "policy.eviction",
    "policy.eviction_dram",
    "policy.quotas",
    "policy.half_life",
    "policy.prefill_share",
    "prefetch.enabled",
    "prefetch.inflight",
    "prefetch.bandwidth_share",
    "prefetch.experts_per_layer_max",
    "prefetch.governor",
    "prefetch.probability_min",
    "prefetch.waste_max",
};

bool tier_config_live(const char *key)
{
    for (size_t i = 0; i < sizeof live_keys / sizeof live_keys[0]; i++) {
        if (strcmp(live_keys[i], key) == 0) return true;
    }
    return false;
}

static void groups_of(struct tier_config *config, struct base_option_group groups[GROUPS])
{
    groups[0] = (struct base_option_group){ "tiers", tier_options, tier_option_count, config };
    groups[1] = (struct base_option_group){ "prefetch", tier_prefetch_options,
                                            tier_prefetch_option_count, config };
}

/* Number of keys that differ; BASE_ECONFIG if one of them stays until a restart. */
static int differences(const struct tier *t, const struct tier_config *config, struct base_err *err)
{
    struct tier_config old = t->config, new = *config;
    struct base_option_group a[GROUPS], b[GROUPS];
    char was[BASE_OPTION_TEXT], is[BASE_OPTION_TEXT];
    int count = 0;
    groups_of(&old, a);
    groups_of(&new, b);
    for (size_t g = 0; g < GROUPS; g++) {
        for (size_t i = 0; i < a[g].count; i++) {
            const char *key = a[g].options[i].key;
            base_option_get(a, GROUPS, key, was, sizeof was);
            base_option_get(b, GROUPS, key, is, sizeof is);
            if (strcmp(was, is) == 0) continue;
            count++;
            if (tier_config_live(key)) continue;
            return base_err_set(err, BASE_ECONFIG,
                                "%s: %s -> %s needs a restart: it was settled "
                                "when the tiers were opened",
                                key, was, is);
        }
    }
    if (tier_budget_has_hbm(config) != (t->tiers == 2)) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.hbm.capacity: %s -> %s needs a restart: a "
                            "tier cannot come or go while others run",
                            t->config.hbm_capacity, config->hbm_capacity);
    }
    if (t->device && t->device->ops->host_register &&
        strcmp(config->dram_capacity, t->config.dram_capacity) != 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.dram.capacity: %s -> %s needs a restart: the device has pinned "
                            "these slots, and copies from them",
                            t->config.dram_capacity, config->dram_capacity);
    }
    return count;
}

static struct tier_seats *seats_of(struct tier *t, uint32_t tier)
{
    return tier == t->tiers - 1 ? &t->cache.dram : &t->cache.hbm;
}

bool tier_shrink(struct tier *t)
{
    MUST(t->magic == TIER_MAGIC);
    bool more = false, any = false;
    for (uint32_t i = 0; i < t->tiers; i++) {
        struct tier_seats *seats = seats_of(t, i);
        if (seats->slots.count <= t->slots_wanted[i]) continue;
        any = true;
        uint64_t keep = t->slots_wanted[i] + tier_decide_over(t->decide, i);
        more |= tier_cache_shrink(seats, keep, SHRINK_BYTES);
    }
    if (any) tier_stats_publish(t, base_clock_now_ns(t->clock));
    return more;
}

static int grow(struct tier *t, const struct tier_footprint *f, struct base_err *err)
{
    static const char *const keys[] = { "tiers.hbm.capacity", "tiers.dram.capacity" };
    for (uint32_t i = 0; i < t->tiers; i++) {
        struct tier_seats *seats = seats_of(t, i);
        uint64_t wanted = f->slots[i] + f->spare_slots[i];
        if (wanted <= seats->slots.count) continue;
        int rc = tier_cache_grow(&t->cache, seats, (uint32_t)wanted, err);
        if (rc < 0) {
            base_err_prefix(err, "%s", keys[i + 2 - t->tiers]);
            return rc;
        }
    }
    return 0;
}

/* Memory first, for it may be refused; then the core, which says what has to leave. */
static int change(struct tier *t, const struct tier_config *config, const struct tier_footprint *f,
                  uint32_t *quotas, struct base_err *err)
{
    struct tier_decide_change to;
    char text[TIER_DECIDE_TEXT_MAX];
    int rc = tier_settings_of(config, f, t->store, t->top_k, &to, quotas, err);
    if (rc < 0) return rc;
    if (tier_decide_change_format(&to, t->layers, t->tiers, text, sizeof text) < 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "policy.quotas: too many different numbers to be "
                            "recorded in a trace; equal neighbours take less room");
    }
    rc = grow(t, f, err);
    if (rc == 0) rc = tier_decide_reconfigure(t->decide, &to, err);
    if (rc < 0) return rc;
    tier_carry_out(t, true, false);
    tier_observe(t, &(struct tier_event){ .kind = TIER_EVENT_SETTING, .text = text });
    return 0;
}

int tier_reconfigure(struct tier *t, const struct tier_config *config, struct base_err *err)
{
    MUST(t->magic == TIER_MAGIC);
    struct tier_footprint f;
    int rc = differences(t, config, err);
    if (rc <= 0) return rc;
    rc = tier_footprint(config, t->store, t->top_k, &f, err);
    if (rc < 0) return rc;
    uint32_t *quotas = calloc((size_t)TIER_RESIDENT_TIERS_MAX * t->layers, sizeof *quotas);
    if (!quotas) return base_err_set(err, -ENOMEM, "no memory for policy.quotas");
    rc = change(t, config, &f, quotas, err);
    free(quotas);
    if (rc == 0) {
        for (uint32_t i = 0; i < t->tiers; i++) {
            t->slots_wanted[i] = f.slots[i] + f.spare_slots[i];
        }
        t->config = *config;
        t->cache.verify_always = config->verify == 0;
        t->cache.stuck_after_ns = config->stuck_after;
        tier_cache_prefetch_limit(&t->cache, config->prefetch_inflight);
        tier_prefetch_settle(t, false, NULL);
        t->reconfigurations++;
    }
    /* After a failure too: slots that came for nothing go again. */
    tier_shrink(t);
    tier_cache_pump(&t->cache);
    tier_stats_publish(t, base_clock_now_ns(t->clock));
    return rc;
}
