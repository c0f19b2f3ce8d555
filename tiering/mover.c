#include "tiering/mover.h"

#include "base/must.h"

enum { REAP_BATCH = 32 };

static const uint64_t *part_bytes(const struct tier_cache *c, uint32_t key)
{
    return tier_store_part_bytes(c->store, key / c->experts, key % c->experts);
}

static void send(struct tier_cache *c, uint32_t slot)
{
    struct tier_slot *at = &c->hbm.slots.at[slot];
    const struct tier_slot *low = &c->dram.slots.at[c->dram.slot_of[at->key]];
    struct dev_copy *copy = &c->dev_copies[slot];
    char *up = tier_slots_memory(&c->hbm.slots, slot);
    char *down = tier_slots_memory(&c->dram.slots, c->dram.slot_of[at->key]);
    bool rise = at->moving == TIER_MOVING_UP;
    const uint64_t *bytes = part_bytes(c, at->key);
    *copy = (struct dev_copy){ .queue = rise ? DEV_UP : DEV_DOWN, .owner = c };
    for (int p = 0; p < TIER_PARTS; p++) {
        if (bytes[p] == 0) continue;
        char *high_part = up + at->part_offset[p], *low_part = down + low->part_offset[p];
        copy->pieces[copy->piece_count++] = (struct dev_piece){
            .to = rise ? high_part : low_part,
            .from = rise ? low_part : high_part,
            .bytes = bytes[p],
        };
    }
    dev_submit(c->device, copy);
    tier_span_begin(&c->copies, copy->submit_ns);
    tier_span_begin(&c->transfers, copy->submit_ns);
}

void tier_mover_up(struct tier_cache *c, uint32_t key)
{
    uint32_t slot = tier_slots_take(&c->hbm.slots, key);
    MUST(!tier_cache_noted(c, key));
    if (slot == TIER_NO_SLOT) {
        tier_line_push(c, &c->hbm.line, key, TIER_KEY_IN_LINE << 1);
        return;
    }
    struct tier_slot *at = &c->hbm.slots.at[slot];
    struct tier_slot *low = &c->dram.slots.at[c->dram.slot_of[key]];
    MUST(low->state == TIER_SLOT_READY);
    c->hbm.slot_of[key] = slot;
    at->state = TIER_SLOT_READING;
    at->moving = TIER_MOVING_UP;
    at->bytes = low->bytes;
    tier_slots_touch(&c->hbm.slots, slot, c->hbm.slots.slot_bytes);
    /* Fetched for nobody: from now on that is this slot's affair. */
    bool demand = c->flags[key] & TIER_KEY_DEMAND;
    at->prefetch = at->ahead = !demand && !low->restore;
    c->copies_ahead += at->ahead;
    if (demand) c->stats.demand_copy_bytes += low->bytes;
    low->prefetch = low->restore = false;
    const uint64_t *bytes = part_bytes(c, key);
    uint64_t offset = 0;
    for (int p = 0; p < TIER_PARTS; p++) {
        at->part_offset[p] = bytes[p] ? (uint32_t)offset : UINT32_MAX;
        offset += (bytes[p] + DEV_ALIGN - 1) / DEV_ALIGN * DEV_ALIGN;
    }
    send(c, slot);
}

bool tier_mover_down(struct tier_cache *c, uint32_t key)
{
    struct tier_slot *at = &c->hbm.slots.at[c->hbm.slot_of[key]];
    uint32_t slot = tier_slots_take(&c->dram.slots, key);
    MUST(at->state == TIER_SLOT_READY && !at->moving);
    if (slot == TIER_NO_SLOT) {
        c->stats.demotions_dropped++;
        return false;
    }
    struct tier_slot *low = &c->dram.slots.at[slot];
    struct tier_record record;
    tier_store_record(c->store, key / c->experts, key % c->experts, &record);
    for (int p = 0; p < TIER_PARTS; p++) {
        low->part_offset[p] = record.part_bytes[p] ? (uint32_t)record.part_offset[p] : UINT32_MAX;
    }
    c->dram.slot_of[key] = slot;
    low->state = TIER_SLOT_READING;
    low->load = TIER_NO_SLOT;
    low->bytes = at->bytes;
    tier_slots_touch(&c->dram.slots, slot, c->dram.slots.slot_bytes);
    low->prefetch = at->prefetch;
    if (low->prefetch) c->prefetch_open++;
    at->prefetch = false;
    at->moving = TIER_MOVING_DOWN;
    send(c, c->hbm.slot_of[key]);
    return true;
}

void tier_mover_give(struct tier_cache *c, uint32_t slot)
{
    struct tier_slot *at = &c->hbm.slots.at[slot];
    uint32_t key = at->key;
    MUST(c->hbm.slot_of[key] == slot && !at->moving);
    /* A lease reads it here, unless it was demoted and is used in place below. */
    MUST(at->state != TIER_SLOT_READY || c->use[key].leases == 0 ||
         !(c->flags[key] & TIER_KEY_HBM));
    if (at->prefetch) {
        c->stats.prefetch_wasted_bytes += at->bytes;
        if (c->story->timeline) {
            tier_story_fate(c->story, base_clock_now_ns(c->clock), key, "wasted");
        }
    }
    tier_cache_unnote(c, key);
    c->hbm.slot_of[key] = TIER_NO_SLOT;
    tier_slots_give(&c->hbm.slots, slot);
    tier_mover_next(c);
}

void tier_mover_next(struct tier_cache *c)
{
    while (c->hbm.slots.free_count > 0) {
        uint32_t next = tier_line_pop(c, &c->hbm.line, TIER_KEY_IN_LINE << 1);
        if (next == UINT32_MAX) break;
        tier_cache_settle(c, next);
    }
}

static void up_end(struct tier_cache *c, uint32_t slot, const struct dev_copy *copy)
{
    struct tier_slot *at = &c->hbm.slots.at[slot];
    uint32_t key = at->key;
    if (copy->result < 0) {
        c->stats.copy_errors++;
        bool again = c->flags[key] & TIER_KEY_HBM && ++at->tries < TIER_READ_TRIES;
        if (again) {
            send(c, slot);
            return;
        }
        c->copies_ahead -= at->ahead;
        at->moving = 0;
        bool wanted = c->flags[key] & TIER_KEY_HBM;
        tier_mover_give(c, slot);
        if (wanted) {
            tier_cache_give_up(c, key, copy->result, UINT32_MAX, 0);
        } else {
            tier_cache_settle(c, key);
        }
        return;
    }
    c->copies_ahead -= at->ahead;
    c->stats.copies_ahead += at->ahead;
    at->moving = 0;
    at->state = TIER_SLOT_READY;
    c->stats.copies_up++;
    c->stats.copy_up_bytes += at->bytes;
    tier_cache_settle(c, key);
}

static void down_end(struct tier_cache *c, uint32_t slot, const struct dev_copy *copy)
{
    struct tier_slot *at = &c->hbm.slots.at[slot];
    uint32_t key = at->key, low = c->dram.slot_of[key];
    struct tier_slot *to = &c->dram.slots.at[low];
    at->moving = 0;
    if (to->prefetch) c->prefetch_open--;
    if (copy->result < 0) {
        c->stats.copy_errors++;
        c->stats.demotions_dropped++;
        to->prefetch = false;
        tier_cache_dram_give(c, low);
        /* Not tried again: whoever asks next, or waits for it below, has it read from disk. */
        if (c->flags[key] & TIER_KEY_HBM) return;
        tier_mover_give(c, slot);
        tier_cache_settle(c, key);
        return;
    }
    to->state = TIER_SLOT_READY;
    c->stats.copies_down++;
    c->stats.copy_down_bytes += at->bytes;
    tier_cache_settle(c, key);
}

bool tier_mover_reap(struct tier_cache *c, bool wait, uint64_t deadline_ns)
{
    struct dev_copy *done[REAP_BATCH];
    int n = dev_reap(c->device, done, REAP_BATCH, wait ? 1 : 0, deadline_ns);
    MUST(n >= 0);
    for (int i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)(done[i] - c->dev_copies);
        uint64_t ns = done[i]->done_ns - done[i]->submit_ns, end_ns = done[i]->done_ns;
        uint32_t key = c->hbm.slots.at[slot].key;
        c->stats.copy_ns += ns;
        tier_span_seen(&c->copies, end_ns);
        tier_span_seen(&c->transfers, end_ns);
        base_hist_add(&c->stats.copy_latency, ns);
        const struct tier_slot *at = &c->hbm.slots.at[slot];
        bool up = at->moving == TIER_MOVING_UP;
        tier_story_flight(c->story, "copies", up ? "copy up" : "copy down", done[i]->submit_ns,
                          done[i]->done_ns, at->key, at->bytes,
                          done[i]->result < 0 ? "failed" : NULL);
        if (up) {
            up_end(c, slot, done[i]);
        } else {
            down_end(c, slot, done[i]);
        }
        tier_cache_answered(c, key);
    }
    if (c->device->in_flight == 0) tier_span_end(&c->copies);
    return n > 0;
}
