#include "tiering/landing.h"

struct check {
    const struct tier_record *record;
    const void *slot;
    void (*between)(void *context);
    void *context;
    uint64_t hashes[TIER_STRETCHES];
};

static void check_stretch(void *work, uint32_t stretch, bool here)
{
    struct check *check = work;
    check->hashes[stretch] = tier_store_stretch_hash(check->record, check->slot, stretch);
    if (here && check->between) check->between(check->context);
}

int tier_landing_check(const struct tier_landing *landing, const struct tier_record *record,
                       const void *slot, void (*between)(void *context), void *context)
{
    const uint32_t stretches = tier_store_stretches(record);
    if (stretches == 0 || !landing->share) return tier_store_check(record, slot, between, context);
    struct check check = { record, slot, between, context, { 0 } };
    landing->share(landing->context, stretches, record->record_bytes, check_stretch, &check);
    return tier_store_stretches_check(record, check.hashes);
}
