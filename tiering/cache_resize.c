#include "base/must.h"
#include "tiering/cache.h"
#include "tiering/mover.h"

int tier_cache_grow(struct tier_cache *c, struct tier_seats *seats, uint32_t slots,
                    struct base_err *err)
{
    MUST(slots >= seats->slots.count);
    int rc = tier_slots_grow(&seats->slots, slots - seats->slots.count, err);
    if (rc < 0) return rc;
    if (seats == &c->dram) {
        tier_cache_seat_waiting(c);
    } else {
        tier_mover_next(c);
    }
    return 0;
}

bool tier_cache_shrink(struct tier_seats *seats, uint64_t slots, uint64_t bytes)
{
    struct tier_slots *s = &seats->slots;
    if (s->count <= slots) return false;
    uint64_t n = s->count - slots, most = bytes / s->slot_bytes;
    if (most == 0) most = 1;
    tier_slots_retire(s, (uint32_t)(n < most ? n : most));
    return s->count > slots;
}

void tier_cache_prefetch_limit(struct tier_cache *c, uint64_t inflight_bytes)
{
    const struct tier_slots *s = &c->dram.slots;
    uint64_t open_max = inflight_bytes / s->slot_bytes;
    if (open_max == 0) open_max = 1;
    c->prefetch_open_max = open_max < s->count ? (uint32_t)open_max : s->count;
}
