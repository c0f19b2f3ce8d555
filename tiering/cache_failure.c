/* Experts that cannot be had: quarantined, and why. */
#include <inttypes.h>

#include "base/log.h"
#include "tiering/cache_priv.h"

void tier_cache_give_up(struct tier_cache *c, uint32_t key, int code, uint32_t file,
                        uint64_t offset)
{
    uint32_t layer = tier_store_layer_of(c->store, key / c->experts);
    const char *path = file == UINT32_MAX ? "(copy to the device)"
                                          : tier_store_file_path(c->store, file);
    if (c->failure_count < TIER_FAILURES_MAX) {
        c->failures[c->failure_count++] = (struct tier_failure){
            .key = key, .code = code, .file = file, .offset = offset,
        };
    }
    c->stats.quarantined++;
    tier_cache_fate(c, key, "failed");
    base_log(BASE_LOG_ERROR, "tiers",
             "expert given up: %s layer=%" PRIu32 " expert=%" PRIu32 " file=%s offset=%" PRIu64,
             base_err_name(code), layer, key % c->experts, path, offset);
    /* It may still stand in a line: that bit goes when its turn comes. */
    c->flags[key] &= TIER_KEY_IN_LINE | TIER_KEY_IN_LINE << 1;
    c->flags[key] |= TIER_KEY_FAILED;
    c->asked[key] = 0;
    tier_cache_unnote(c, key);
    c->failed(c->context, key);
    if (c->device && c->hbm.slot_of[key] != TIER_NO_SLOT) tier_cache_settle(c, key);
    if (c->dram.slot_of[key] != TIER_NO_SLOT) tier_cache_dram_give(c, c->dram.slot_of[key]);
}

const struct tier_failure *tier_cache_failure(const struct tier_cache *c, uint32_t key)
{
    for (uint32_t i = 0; i < c->failure_count; i++) {
        if (c->failures[i].key == key) return &c->failures[i];
    }
    return NULL;
}
