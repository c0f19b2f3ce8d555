/* Where an expert is, noted beside its use count: a hit then needs no look at its slot. */
#include <string.h>

#include "base/must.h"
#include "tiering/cache.h"

void tier_cache_note(struct tier_cache *c, uint32_t key)
{
    uint32_t slot = c->top->slot_of[key], i;
    const struct tier_slot *at = &c->top->slots.at[slot];
    MUST(at->state == TIER_SLOT_READY && at->key == key);
    if (at->moving || at->prefetch) return;
    for (i = 1; i <= c->layout_count; i++) {
        if (memcmp(c->layouts[i].part_offset, at->part_offset, sizeof at->part_offset) == 0) break;
    }
    if (i == TIER_LAYOUTS_MAX) return;      /* a rare one: hits look at the slot */
    if (i > c->layout_count) {
        memcpy(c->layouts[i].part_offset, at->part_offset, sizeof at->part_offset);
        c->layout_count = i;
    }
    struct tier_key_use *use = &c->use[key];
    use->slot = slot;
    use->epoch = at->epoch;
    use->layout = (uint16_t)i;
}
