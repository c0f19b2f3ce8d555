/* What the core wants of an expert, and the slot and the queue it gets for that. */
#include "base/must.h"
#include "tiering/cache_priv.h"
#include "tiering/mover.h"

static struct tier_queue *queue_of(struct tier_cache *c, const struct tier_slot *at)
{
    return at->prefetch ? &c->prefetch : &c->demand;
}

void tier_line_push(struct tier_cache *c, struct tier_line *line, uint32_t key, uint8_t flag)
{
    if (c->flags[key] & flag) return;
    c->flags[key] |= flag;
    line->next[key] = TIER_NO_KEY;
    if (line->tail == TIER_NO_KEY) {
        line->head = key;
    } else {
        line->next[line->tail] = key;
    }
    line->tail = key;
}

uint32_t tier_line_pop(struct tier_cache *c, struct tier_line *line, uint8_t flag)
{
    uint32_t key = line->head;
    if (key == TIER_NO_KEY) return TIER_NO_KEY;
    line->head = line->next[key];
    if (line->head == TIER_NO_KEY) line->tail = TIER_NO_KEY;
    c->flags[key] &= (uint8_t)~flag;
    return key;
}

/* Finds a place for an expert and queues its read, or puts it in line for a slot. */
static void seat(struct tier_cache *c, uint32_t key)
{
    MUST(c->device || !tier_cache_noted(c, key));
    uint32_t slot = tier_slots_take(&c->dram.slots, key);
    if (slot == TIER_NO_SLOT) {
        tier_line_push(c, &c->dram.line, key, TIER_KEY_IN_LINE);
        return;
    }
    struct tier_slot *at = &c->dram.slots.at[slot];
    c->dram.slot_of[key] = slot;
    at->prefetch = !(c->flags[key] & TIER_KEY_DEMAND);
    if (at->prefetch) c->prefetch_open++;
    else tier_cache_asked_begin(c, at);
    tier_queue_push(c, queue_of(c, at), slot);
}

void tier_cache_seat_waiting(struct tier_cache *c)
{
    while (c->dram.slots.free_count > 0) {
        uint32_t key = tier_line_pop(c, &c->dram.line, TIER_KEY_IN_LINE);
        if (key == TIER_NO_KEY) return;
        if (tier_cache_needs_dram(c, key) && c->dram.slot_of[key] == TIER_NO_SLOT) seat(c, key);
    }
}

static void give_slot(struct tier_cache *c, uint32_t slot)
{
    struct tier_slot *at = &c->dram.slots.at[slot];
    MUST(c->dram.slot_of[at->key] == slot);
    /* A lease reads it here, unless it moved up or was given up. */
    MUST(at->state != TIER_SLOT_READY || c->use[at->key].leases == 0 ||
         (c->device && c->flags[at->key] & (TIER_KEY_HBM | TIER_KEY_FAILED)));
    tier_cache_prefetch_close(c, at);
    tier_cache_asked_end(c, at, 0);
    tier_cache_unnote(c, at->key);
    c->dram.slot_of[at->key] = TIER_NO_SLOT;
    tier_slots_give(&c->dram.slots, slot);
}

void tier_cache_dram_give(struct tier_cache *c, uint32_t slot)
{
    give_slot(c, slot);
    tier_cache_seat_waiting(c);
}

/* Nobody needs the expert's dram slot any more. One that is being read comes back with the read. */
static void leave_dram(struct tier_cache *c, uint32_t key)
{
    uint32_t slot = c->dram.slot_of[key];
    if (slot == TIER_NO_SLOT) return;
    struct tier_slot *at = &c->dram.slots.at[slot];
    if (at->prefetch && !at->restore && at->state != TIER_SLOT_QUEUED) {
        c->stats.prefetch_wasted_bytes += at->bytes;
    }
    if (at->prefetch) {
        bool begun = at->state != TIER_SLOT_QUEUED;
        tier_cache_fate(c, key, begun ? "wasted" : "cancelled");
        if (!begun && !at->restore) c->stats.prefetch_cancelled++;
    }
    if (at->state == TIER_SLOT_READING) {
        tier_cache_prefetch_close(c, at);
        tier_cache_asked_end(c, at, 0);
        at->prefetch = false;
        return;
    }
    if (at->state == TIER_SLOT_QUEUED) tier_queue_remove(c, queue_of(c, at), slot);
    tier_cache_dram_give(c, slot);
}

/* Brings memory one step nearer to what the core wants of an expert. Called after every change of
 * either; what is under way is let run, its end comes here again. */
void tier_cache_settle(struct tier_cache *c, uint32_t key)
{
    if (c->device) {
        uint32_t slot = c->hbm.slot_of[key];
        if (slot != TIER_NO_SLOT && c->hbm.slots.at[slot].moving) return;
        if (slot == TIER_NO_SLOT && c->flags[key] & TIER_KEY_HBM) {
            if (tier_seats_ready(&c->dram, key)) tier_mover_up(c, key);
            return;
        }
        if (slot != TIER_NO_SLOT && !(c->flags[key] & TIER_KEY_HBM)) {
            bool down = c->flags[key] & TIER_KEY_DRAM && c->dram.slot_of[key] == TIER_NO_SLOT;
            if (down && tier_mover_down(c, key)) return;
            tier_mover_give(c, slot);
        }
    }
    if (!tier_cache_needs_dram(c, key)) {
        leave_dram(c, key);
    } else if (c->use[key].leases > 0 && c->dram.slot_of[key] == TIER_NO_SLOT) {
        /* It was to be used where it lies, and its copy down came to nothing. */
        tier_cache_demand(c, key);
    }
}

void tier_cache_move(struct tier_cache *c, uint32_t key, uint8_t in, uint8_t out, bool fetch,
                     bool demand)
{
    MUST(!(c->flags[key] & TIER_KEY_FAILED));
    tier_cache_unnote(c, key);
    c->flags[key] = (uint8_t)((c->flags[key] | in) & ~out);
    /* What leaves the tier where it is used is nobody's demand any more. */
    if (out & (c->device ? TIER_KEY_HBM : TIER_KEY_DRAM)) {
        c->flags[key] &= (uint8_t)~(TIER_KEY_DEMAND | TIER_KEY_LATE);
        c->asked[key] = 0;
    }
    if (!(c->flags[key] & (TIER_KEY_HBM | TIER_KEY_DRAM))) {
        c->flags[key] &= (uint8_t)~(TIER_KEY_DEMAND | TIER_KEY_LATE);
    }
    if (demand && in & (c->device ? TIER_KEY_HBM : TIER_KEY_DRAM)) c->flags[key] |= TIER_KEY_DEMAND;
    tier_cache_settle(c, key);
    if (!fetch || !tier_cache_needs_dram(c, key)) return;
    if (demand) {
        tier_cache_demand(c, key);
    } else if (c->dram.slot_of[key] == TIER_NO_SLOT) {
        seat(c, key);
    }
}

void tier_cache_read_ahead(struct tier_cache *c, uint32_t key)
{
    MUST(tier_cache_needs_dram(c, key) && !tier_cache_has(c, key));
    seat(c, key);
}

/* Somebody waits for a read that may have begun for nobody. */
static void hurry(struct tier_cache *c, struct tier_slot *at)
{
    if (at->state == TIER_SLOT_READING && at->load != TIER_NO_LOAD) {
        struct tier_load *load = &c->loads[at->load];
        for (uint32_t i = 0; i < load->record.extent_count; i++) {
            tier_io_promote(c->io, &load->reqs[i]);
        }
    }
    if (at->state != TIER_SLOT_READY && !at->asked) tier_cache_asked_begin(c, at);
}

void tier_cache_demand(struct tier_cache *c, uint32_t key)
{
    uint32_t slot = c->dram.slot_of[key];
    c->flags[key] |= TIER_KEY_DEMAND;
    if (slot == TIER_NO_SLOT) {
        MUST(tier_cache_needs_dram(c, key));
        seat(c, key);
        return;
    }
    struct tier_slot *at = &c->dram.slots.at[slot];
    if (c->device && c->hbm.slot_of[key] != TIER_NO_SLOT &&
        c->hbm.slots.at[c->hbm.slot_of[key]].prefetch) {
        c->flags[key] |= TIER_KEY_LATE;
        c->stats.prefetch_late++;
        c->hbm.slots.at[c->hbm.slot_of[key]].prefetch = false;
        tier_cache_fate(c, key, "late");
    }
    /* Also one that was evicted on its way: it is no prefetch any more, its read still is one. */
    hurry(c, at);
    if (!at->prefetch) return;
    tier_cache_fate(c, key, at->state == TIER_SLOT_READY ? "useful" : "late");
    if (at->state == TIER_SLOT_QUEUED) {
        tier_queue_remove(c, &c->prefetch, slot);
        tier_queue_push(c, &c->demand, slot);
    } else if (at->state == TIER_SLOT_READING && at->load != TIER_NO_LOAD) {
        c->stats.prefetch_late += !(c->flags[key] & TIER_KEY_LATE) && !at->restore;
        c->flags[key] |= TIER_KEY_LATE;
    }
    tier_cache_prefetch_close(c, at);
    at->prefetch = at->restore = false;
}

void tier_cache_layer_passed(struct tier_cache *c, uint32_t layer)
{
    uint32_t slot = c->prefetch.head;
    while (slot != TIER_NO_SLOT) {
        struct tier_slot *at = &c->dram.slots.at[slot];
        uint32_t next = at->next;
        if (at->key / c->experts == layer && !at->restore) {
            tier_queue_remove(c, &c->prefetch, slot);
            tier_cache_fate(c, at->key, "cancelled");
            give_slot(c, slot);
            c->stats.prefetch_cancelled++;
        }
        slot = next;
    }
    tier_cache_seat_waiting(c);
}

bool tier_cache_prefetch_room(const struct tier_cache *c)
{
    return c->prefetch_open < c->prefetch_open_max;
}

bool tier_cache_restore(struct tier_cache *c, uint32_t key)
{
    if (!tier_cache_needs_dram(c, key) || c->dram.slot_of[key] != TIER_NO_SLOT) return true;
    if (c->flags[key] & TIER_KEY_IN_LINE) return true;
    bool idle = c->demand.head == TIER_NO_SLOT && c->prefetch.head == TIER_NO_SLOT &&
                c->dram.line.head == TIER_NO_KEY && c->outbox_count == 0 &&
                c->io->in_flight < (c->io->depth + 1) / 2;
    if (!idle || c->dram.slots.free_count == 0 || !tier_cache_prefetch_room(c)) return false;
    seat(c, key);
    c->dram.slots.at[c->dram.slot_of[key]].restore = true;
    tier_cache_pump(c);
    return true;
}

enum tier_cache_place tier_cache_place(const struct tier_cache *c, uint32_t key)
{
    if (tier_cache_ready(c, key)) return TIER_PLACE_READY;
    if (c->flags[key] & TIER_KEY_FAILED) return TIER_PLACE_FAILED;
    if (c->flags[key] & TIER_KEY_LATE) return TIER_PLACE_LATE;
    if (c->device && c->hbm.slot_of[key] != TIER_NO_SLOT) return TIER_PLACE_COPY;
    /* In dram but not on its way: in line for an hbm slot. */
    if (c->dram.slot_of[key] == TIER_NO_SLOT || tier_seats_ready(&c->dram, key)) {
        return TIER_PLACE_NO_SLOT;
    }
    return TIER_PLACE_DEMAND;
}
