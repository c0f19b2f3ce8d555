#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/must.h"
#include "tiering/decide_priv.h"

static int event_check(struct tier_decide *d, const struct tier_event *event,
                       struct base_err *err)
{
    if (event->kind == TIER_EVENT_SETTING) return 0;
    if (event->layer >= d->layers || event->count > d->experts) {
        return base_err_set(err, BASE_EFORMAT,
                            "event of moe layer %" PRIu32 " with %" PRIu32 " experts: this cache "
                            "has %" PRIu32 " layers of %" PRIu32, event->layer, event->count,
                            d->layers, d->experts);
    }
    if (event->phase >= TIER_PHASE_COUNT || event->tier >= d->tier_count) {
        return base_err_set(err, BASE_EFORMAT, "event with phase %d and tier %" PRIu32
                            ": this cache has %" PRIu32 " resident tiers", (int)event->phase,
                            event->tier, d->tier_count);
    }
    bool one = event->kind == TIER_EVENT_HINT || event->kind == TIER_EVENT_FORGET;
    if (one && event->count != 1) {
        return base_err_set(err, BASE_EFORMAT, "hint or forget event with %" PRIu32
                            " experts: it should have one", event->count);
    }
    memset(d->marks, 0, (d->experts / 64 + 1) * sizeof *d->marks);
    for (uint32_t i = 0; i < event->count; i++) {
        uint32_t id = event->ids[i];
        if (id >= d->experts) {
            return base_err_set(err, BASE_EFORMAT, "expert %" PRIu32 " of moe layer %" PRIu32
                                ": a layer has %" PRIu32, id, event->layer, d->experts);
        }
        uint64_t bit = UINT64_C(1) << id % 64;
        if (d->marks[id / 64] & bit && event->kind != TIER_EVENT_RELEASE) {
            return base_err_set(err, BASE_EFORMAT, "expert %" PRIu32 " of moe layer %" PRIu32
                                " twice in one event", id, event->layer);
        }
        d->marks[id / 64] |= bit;
    }
    return 0;
}

static int apply_acquire(struct tier_decide *d, const struct tier_event *event,
                         struct base_err *err)
{
    for (uint32_t i = 0; i < event->count; i++) {
        if (d->entries[event->layer * d->experts + event->ids[i]].count < UINT16_MAX) continue;
        return base_err_set(err, BASE_EFORMAT, "acquire of expert %" PRIu32 " of moe layer %" PRIu32
                            ", which is leased %d times: more than can be counted", event->ids[i],
                            event->layer, UINT16_MAX);
    }
    uint32_t k = tier_decide_acquire(d, event->layer, event->ids, event->count, event->phase,
                                     d->found);
    if (k == event->granted) return 0;
    return base_err_set(err, BASE_EMISMATCH, "acquire of %" PRIu32 " experts of moe layer %" PRIu32
                        ": %" PRIu32 " were granted when this was recorded, %" PRIu32 " now",
                        event->count, event->layer, event->granted, k);
}

static int apply_release(struct tier_decide *d, const struct tier_event *event,
                         struct base_err *err)
{
    uint32_t n = tier_decide_unpin(d, event->layer, event->ids, event->count);
    if (n < event->count) {
        return base_err_set(err, BASE_EFORMAT, "release of expert %" PRIu32 " of moe layer %" PRIu32
                            ", which is not leased", event->ids[n], event->layer);
    }
    tier_decide_drain(d, event->layer);
    return 0;
}

/* Settings of others are notes. */
static int apply_setting(struct tier_decide *d, const char *text, struct base_err *err)
{
    struct tier_decide_change change;
    if (strncmp(text, "decide.", 7) != 0) return 0;
    int rc = tier_decide_change_parse(&change, d->layers, d->tier_count, text, d->apply_quotas,
                                      err);
    if (rc == 0) rc = tier_decide_reconfigure(d, &change, err);
    return rc == -ENOMEM || rc == 0 ? rc
                                    : base_err_set(err, BASE_EFORMAT, "setting \"%s\": %s", text,
                                                   base_err_name(rc));
}

int tier_decide_apply(struct tier_decide *d, const struct tier_event *event, struct base_err *err)
{
    MUST(d->magic == TIER_DECIDE_MAGIC);
    int rc = event_check(d, event, err);
    if (rc < 0) return rc;
    switch (event->kind) {
    case TIER_EVENT_ACQUIRE:
        return apply_acquire(d, event, err);
    case TIER_EVENT_RELEASE:
        return apply_release(d, event, err);
    case TIER_EVENT_HINT: {
        bool admitted = tier_decide_hint(d, event->layer, event->ids[0], event->probability,
                                         event->distance);
        if (admitted == (event->admitted != 0)) return 0;
        return base_err_set(err, BASE_EMISMATCH, "hint for expert %" PRIu32 " of moe layer %" PRIu32
                            ": %s when this was recorded, %s now", event->ids[0], event->layer,
                            event->admitted ? "admitted" : "not admitted",
                            admitted ? "admitted" : "not admitted");
    }
    case TIER_EVENT_RESTORE: {
        uint32_t n = tier_decide_restore(d, event->tier, event->layer, event->ids, event->uses,
                                         event->count);
        if (n == event->count) return 0;
        return base_err_set(err, BASE_EMISMATCH, "warm start of moe layer %" PRIu32 ": %" PRIu32
                            " experts fitted when this was recorded, %" PRIu32 " now",
                            event->layer, event->count, n);
    }
    case TIER_EVENT_FORGET:
        tier_decide_forget(d, event->layer, event->ids[0]);
        return 0;
    case TIER_EVENT_SETTING:
        return apply_setting(d, event->text, err);
    }
    return base_err_set(err, BASE_EFORMAT, "event of unknown kind %d", (int)event->kind);
}
