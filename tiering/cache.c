#include "tiering/cache.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/must.h"
#include "tiering/mover.h"

enum { NO_KEY = UINT32_MAX, NO_LOAD = UINT32_MAX, REAP_BATCH = 64, BOTH_WAIT_NS = 50000 };
/* As many reads may wait for their check as are with the disk: it goes on reading meanwhile. */
enum { LOADS_PER_READ = 2 };

/* One expert being read. */
struct tier_load {
    uint32_t slot, key;
    uint32_t next_free;         /* or the next one that arrived */
    uint32_t left;              /* requests not back yet */
    uint32_t tries;             /* of this copy */
    uint32_t copy;              /* of the record: which mirror is read */
    int error;
    uint32_t error_extent;
    uint64_t begin_ns, end_ns;
    uint64_t named_ns;          /* when the watchdog named it, or begin_ns */
    struct tier_record record;
    struct tier_io_req reqs[TIER_PARTS];
};

/* -- queues of slots -------------------------------------------------------------------------- */

static void queue_push(struct tier_cache *c, struct tier_queue *q, uint32_t slot)
{
    struct tier_slot *at = &c->dram.slots.at[slot];
    at->prev = q->tail;
    at->next = TIER_NO_SLOT;
    if (q->tail == TIER_NO_SLOT) {
        q->head = slot;
    } else {
        c->dram.slots.at[q->tail].next = slot;
    }
    q->tail = slot;
}

static void queue_remove(struct tier_cache *c, struct tier_queue *q, uint32_t slot)
{
    struct tier_slot *at = &c->dram.slots.at[slot];
    if (at->prev == TIER_NO_SLOT) {
        q->head = at->next;
    } else {
        c->dram.slots.at[at->prev].next = at->next;
    }
    if (at->next == TIER_NO_SLOT) {
        q->tail = at->prev;
    } else {
        c->dram.slots.at[at->next].prev = at->prev;
    }
}

static struct tier_queue *queue_of(struct tier_cache *c, const struct tier_slot *at)
{
    return at->prefetch ? &c->prefetch : &c->demand;
}

/* A prefetch that is under way ends being one: asked for, arrived or given up. */
static void prefetch_close(struct tier_cache *c, struct tier_slot *at)
{
    if (at->prefetch && at->state != TIER_SLOT_READY) c->prefetch_open--;
}

/* Somebody waits for a read that is under way from now on. */
static void asked_begin(struct tier_cache *c, struct tier_slot *at)
{
    at->asked = true;
    if (c->asked_reads++ == 0) c->asked_since_ns = base_clock_now_ns(c->clock);
}

/* It came at `end_ns` (0: now, or it will not come). */
static void asked_end(struct tier_cache *c, struct tier_slot *at, uint64_t end_ns)
{
    if (!at->asked) return;
    at->asked = false;
    if (--c->asked_reads > 0) return;
    if (end_ns == 0) end_ns = base_clock_now_ns(c->clock);
    if (end_ns > c->asked_since_ns) c->asked_ns += end_ns - c->asked_since_ns;
}

/* -- slots for keys --------------------------------------------------------------------------- */

void tier_line_push(struct tier_cache *c, struct tier_line *line, uint32_t key, uint8_t flag)
{
    if (c->flags[key] & flag) return;
    c->flags[key] |= flag;
    line->next[key] = NO_KEY;
    if (line->tail == NO_KEY) {
        line->head = key;
    } else {
        line->next[line->tail] = key;
    }
    line->tail = key;
}

uint32_t tier_line_pop(struct tier_cache *c, struct tier_line *line, uint8_t flag)
{
    uint32_t key = line->head;
    if (key == NO_KEY) return NO_KEY;
    line->head = line->next[key];
    if (line->head == NO_KEY) line->tail = NO_KEY;
    c->flags[key] &= (uint8_t)~flag;
    return key;
}

/* It shall be in dram, or must pass through it. */
static bool needs_dram(const struct tier_cache *c, uint32_t key)
{
    if (c->flags[key] & TIER_KEY_DRAM) return true;
    return c->flags[key] & TIER_KEY_HBM && !tier_seats_ready(&c->hbm, key);
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
    else asked_begin(c, at);
    queue_push(c, queue_of(c, at), slot);
}

void tier_cache_seat_waiting(struct tier_cache *c)
{
    while (c->dram.slots.free_count > 0) {
        uint32_t key = tier_line_pop(c, &c->dram.line, TIER_KEY_IN_LINE);
        if (key == NO_KEY) return;
        if (needs_dram(c, key) && c->dram.slot_of[key] == TIER_NO_SLOT) seat(c, key);
    }
}

static void give_slot(struct tier_cache *c, uint32_t slot)
{
    struct tier_slot *at = &c->dram.slots.at[slot];
    MUST(c->dram.slot_of[at->key] == slot);
    /* A lease reads it here, unless it moved up or was given up. */
    MUST(at->state != TIER_SLOT_READY || c->use[at->key].leases == 0 ||
         (c->device && c->flags[at->key] & (TIER_KEY_HBM | TIER_KEY_FAILED)));
    prefetch_close(c, at);
    asked_end(c, at, 0);
    tier_cache_unnote(c, at->key);
    c->dram.slot_of[at->key] = TIER_NO_SLOT;
    tier_slots_give(&c->dram.slots, slot);
}

void tier_cache_dram_give(struct tier_cache *c, uint32_t slot)
{
    give_slot(c, slot);
    tier_cache_seat_waiting(c);
}

static void tell_fate(struct tier_cache *c, uint32_t key, const char *fate)
{
    if (c->story->timeline) tier_story_fate(c->story, base_clock_now_ns(c->clock), key, fate);
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
    if (at->prefetch) tell_fate(c, key, at->state == TIER_SLOT_QUEUED ? "cancelled" : "wasted");
    if (at->state == TIER_SLOT_READING) {
        prefetch_close(c, at);
        asked_end(c, at, 0);
        at->prefetch = false;
        return;
    }
    if (at->state == TIER_SLOT_QUEUED) queue_remove(c, queue_of(c, at), slot);
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
    if (!needs_dram(c, key)) {
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
    }
    if (!(c->flags[key] & (TIER_KEY_HBM | TIER_KEY_DRAM))) {
        c->flags[key] &= (uint8_t)~(TIER_KEY_DEMAND | TIER_KEY_LATE);
    }
    if (demand && in & (c->device ? TIER_KEY_HBM : TIER_KEY_DRAM)) c->flags[key] |= TIER_KEY_DEMAND;
    tier_cache_settle(c, key);
    if (!fetch || !needs_dram(c, key)) return;
    if (demand) {
        tier_cache_demand(c, key);
    } else if (c->dram.slot_of[key] == TIER_NO_SLOT) {
        seat(c, key);
    }
}

void tier_cache_demand(struct tier_cache *c, uint32_t key)
{
    uint32_t slot = c->dram.slot_of[key];
    c->flags[key] |= TIER_KEY_DEMAND;
    if (slot == TIER_NO_SLOT) {
        MUST(needs_dram(c, key));
        seat(c, key);
        return;
    }
    struct tier_slot *at = &c->dram.slots.at[slot];
    if (c->device && c->hbm.slot_of[key] != TIER_NO_SLOT &&
        c->hbm.slots.at[c->hbm.slot_of[key]].prefetch) {
        c->flags[key] |= TIER_KEY_LATE;
        c->stats.prefetch_late++;
        c->hbm.slots.at[c->hbm.slot_of[key]].prefetch = false;
        tell_fate(c, key, "late");
    }
    if (!at->prefetch) return;
    tell_fate(c, key, at->state == TIER_SLOT_READY ? "useful" : "late");
    if (at->state == TIER_SLOT_QUEUED) {
        queue_remove(c, &c->prefetch, slot);
        queue_push(c, &c->demand, slot);
    } else if (at->state == TIER_SLOT_READING && at->load != NO_LOAD) {
        struct tier_load *load = &c->loads[at->load];
        if (!(c->flags[key] & TIER_KEY_LATE)) c->stats.prefetch_late++;
        c->flags[key] |= TIER_KEY_LATE;
        for (uint32_t i = 0; i < load->record.extent_count; i++) {
            tier_io_promote(c->io, &load->reqs[i]);
        }
    }
    if (at->state != TIER_SLOT_READY) asked_begin(c, at);
    prefetch_close(c, at);
    at->prefetch = at->restore = false;
}

void tier_cache_layer_passed(struct tier_cache *c, uint32_t layer)
{
    uint32_t slot = c->prefetch.head;
    while (slot != TIER_NO_SLOT) {
        struct tier_slot *at = &c->dram.slots.at[slot];
        uint32_t next = at->next;
        if (at->key / c->experts == layer && !at->restore) {
            queue_remove(c, &c->prefetch, slot);
            tell_fate(c, at->key, "cancelled");
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
    if (!needs_dram(c, key) || c->dram.slot_of[key] != TIER_NO_SLOT) return true;
    if (c->flags[key] & TIER_KEY_IN_LINE) return true;
    bool idle = c->demand.head == TIER_NO_SLOT && c->prefetch.head == TIER_NO_SLOT &&
                c->dram.line.head == NO_KEY && c->outbox_count == 0 &&
                c->io->in_flight < (c->io->depth + 1) / 2;
    if (!idle || c->dram.slots.free_count == 0 || !tier_cache_prefetch_room(c)) return false;
    seat(c, key);
    c->dram.slots.at[c->dram.slot_of[key]].restore = true;
    tier_cache_pump(c);
    return true;
}

/* -- reads ------------------------------------------------------------------------------------ */

static void outbox_push(struct tier_cache *c, struct tier_load *load)
{
    load->left = load->record.extent_count;
    load->error = 0;
    for (uint32_t i = 0; i < load->record.extent_count; i++) {
        MUST(c->outbox_count < c->outbox_size);
        c->outbox[(c->outbox_first + c->outbox_count++) % c->outbox_size] = &load->reqs[i];
    }
}

static void load_begin(struct tier_cache *c, uint32_t slot)
{
    struct tier_slot *at = &c->dram.slots.at[slot];
    uint32_t index = c->free_load, key = at->key;
    struct tier_load *load = &c->loads[index];
    c->free_load = load->next_free;
    load->slot = slot;
    load->key = key;
    load->tries = 1;
    load->copy = 0;
    load->begin_ns = base_clock_now_ns(c->clock);
    load->end_ns = load->named_ns = load->begin_ns;
    tier_store_record(c->store, key / c->experts, key % c->experts, &load->record);
    const struct tier_record *record = &load->record;
    char *memory = tier_slots_memory(&c->dram.slots, slot);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < record->extent_count; i++) {
        const struct tier_extent *extent = &record->extents[i];
        struct tier_extent_read read = tier_extent_read(extent);
        load->reqs[i] = (struct tier_io_req){
            .file = c->file_first + extent->file,
            .offset = read.offset,
            .to = memory + extent->slot_offset,
            .bytes = read.bytes,
            .prefetch = at->prefetch,
            .owner = load,
        };
        MUST(extent->slot_offset + load->reqs[i].bytes <= c->dram.slots.slot_bytes);
        bytes += read.bytes;
    }
    tier_slots_touch(&c->dram.slots, slot, bytes);
    for (int p = 0; p < TIER_PARTS; p++) {
        at->part_offset[p] = record->part_bytes[p] ? (uint32_t)record->part_offset[p] : UINT32_MAX;
    }
    at->bytes = (uint32_t)record->bytes;
    at->load = index;
    at->state = TIER_SLOT_READING;
    outbox_push(c, load);
    if (at->restore) {
        c->stats.restore_reads++;
        c->stats.restore_bytes += record->bytes;
    } else if (at->prefetch) {
        c->stats.prefetch_reads++;
        c->stats.prefetch_bytes += record->bytes;
    } else {
        c->stats.demand_reads++;
        c->stats.demand_bytes += record->bytes;
    }
}

/* Slot whose read should begin next. Prefetch takes the lower half of the queue depth, so that a
 * demand read that comes finds room at once. */
static uint32_t next_slot(struct tier_cache *c)
{
    struct tier_queue *q = &c->demand;
    if (q->head == TIER_NO_SLOT) {
        q = &c->prefetch;
        if (q->head == TIER_NO_SLOT) return TIER_NO_SLOT;
        if (c->io->in_flight + c->outbox_count >= (c->io->depth + 1) / 2) return TIER_NO_SLOT;
    }
    uint32_t slot = q->head;
    queue_remove(c, q, slot);
    return slot;
}

void tier_cache_pump(struct tier_cache *c)
{
    for (;;) {
        uint32_t room = c->io->depth - c->io->in_flight;
        while (c->outbox_count < room && c->free_load != NO_LOAD) {
            uint32_t slot = next_slot(c);
            if (slot == TIER_NO_SLOT) break;
            load_begin(c, slot);
        }
        uint32_t n = c->outbox_count < room ? c->outbox_count : room;
        uint32_t straight = c->outbox_size - c->outbox_first;
        if (n == 0) return;
        if (n > straight) n = straight;
        if (c->io->in_flight == 0) c->busy_since_ns = base_clock_now_ns(c->clock);
        int taken = tier_io_submit(c->io, &c->outbox[c->outbox_first], n);
        MUST(taken >= 0 && (uint32_t)taken <= n);
        c->outbox_first = (c->outbox_first + (uint32_t)taken) % c->outbox_size;
        c->outbox_count -= (uint32_t)taken;
        if ((uint32_t)taken < n) return;
    }
}

static void load_free(struct tier_cache *c, struct tier_load *load)
{
    load->next_free = c->free_load;
    c->free_load = (uint32_t)(load - c->loads);
}

static void relaxed_store(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}

static void account(struct tier_cache *c, const struct tier_load *load)
{
    const char *kind = load->reqs[0].prefetch               ? "prefetch"
                       : c->flags[load->key] & TIER_KEY_LATE ? "late prefetch" : "demand";
    tier_story_flight(c->story, "reads", "read", load->begin_ns, load->end_ns, load->key,
                      load->record.bytes, kind);
    struct tier_load_stats *s = &c->layer_loads[load->key / c->experts];
    uint64_t ns = load->end_ns > load->begin_ns ? load->end_ns - load->begin_ns : 0;
    base_hist_add(&c->stats.read_latency, ns);
    base_hist_add(&s->latency, ns);
    tier_loads_add(&c->expert_loads, load->key, ns);
    if (s->count == 0 || ns < s->ns_min) relaxed_store(&s->ns_min, ns);
    if (ns > s->ns_max) relaxed_store(&s->ns_max, ns);
    relaxed_store(&s->ns_sum, s->ns_sum + ns);
    relaxed_store(&s->count, s->count + 1);
}

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
    tell_fate(c, key, "failed");
    base_log(BASE_LOG_ERROR, "tiers",
             "expert given up: %s layer=%" PRIu32 " expert=%" PRIu32 " file=%s offset=%" PRIu64,
             base_err_name(code), layer, key % c->experts, path, offset);
    /* It may still stand in a line: that bit goes when its turn comes. */
    c->flags[key] &= TIER_KEY_IN_LINE | TIER_KEY_IN_LINE << 1;
    c->flags[key] |= TIER_KEY_FAILED;
    tier_cache_unnote(c, key);
    c->failed(c->context, key);
    if (c->device && c->hbm.slot_of[key] != TIER_NO_SLOT) tier_cache_settle(c, key);
    if (c->dram.slot_of[key] != TIER_NO_SLOT) tier_cache_dram_give(c, c->dram.slot_of[key]);
}

/* A mirror keeps every record at the same offsets of several files: the slot stays as it is, only
 * the files change. False when no copy is left. */
static bool load_other_copy(struct tier_cache *c, struct tier_load *load, int why)
{
    const struct tier_extent *bad = &load->record.extents[load->error_extent];
    if (load->copy + 1 >= tier_store_copies(c->store)) return false;
    /* The first ones, then ever fewer: a folder that is gone fails at every read. */
    uint64_t count = ++c->stats.mirror_reads;
    if ((count & (count - 1)) == 0) {
        base_log(BASE_LOG_WARN, "tiers", "bad copy of an expert, another one is read: %s "
                 "layer=%" PRIu32 " expert=%" PRIu32 " file=%s offset=%" PRIu64 " count=%" PRIu64,
                 base_err_name(why), load->record.layer, load->record.index,
                 tier_store_file_path(c->store, bad->file), bad->offset, count);
    }
    load->copy++;
    load->tries = 1;
    tier_store_record_copy(c->store, load->key / c->experts, load->key % c->experts, load->copy,
                           &load->record);
    for (uint32_t i = 0; i < load->record.extent_count; i++) {
        load->reqs[i].file = c->file_first + load->record.extents[i].file;
    }
    return true;
}

/* All requests of a load are back. */
static void load_end(struct tier_cache *c, struct tier_load *load)
{
    uint32_t key = load->key, slot = load->slot;
    struct tier_slot *at = &c->dram.slots.at[slot];
    int rc = load->error;
    if (!needs_dram(c, key)) {
        tier_story_flight(c->story, "reads", "read", load->begin_ns, load->end_ns, key,
                          load->record.bytes, "displaced on its way");
        load_free(c, load);
        tier_cache_dram_give(c, slot);
        return;
    }
    if (rc < 0) {
        c->stats.read_errors++;
    } else if (c->verify_always || !(c->flags[key] & TIER_KEY_VERIFIED)) {
        uint64_t begin_ns = c->story->timeline ? base_clock_now_ns(c->clock) : 0;
        rc = tier_store_check(&load->record, tier_slots_memory(&c->dram.slots, slot));
        if (begin_ns) {
            tier_story_span(c->story, "check", begin_ns, base_clock_now_ns(c->clock), key);
        }
        load->error_extent = 0;
        if (rc < 0) c->stats.checksum_failures++;
    }
    if (rc < 0) {
        tier_story_flight(c->story, "reads", "read", load->begin_ns, load->end_ns, key,
                          load->record.bytes, "failed");
        if (load->tries++ < TIER_READ_TRIES || load_other_copy(c, load, rc)) {
            outbox_push(c, load);
            return;
        }
        const struct tier_extent *extent = &load->record.extents[load->error_extent];
        tier_cache_give_up(c, key, rc, extent->file, extent->offset);
        load_free(c, load);
        return;
    }
    c->flags[key] |= TIER_KEY_VERIFIED;
    prefetch_close(c, at);
    asked_end(c, at, load->end_ns);
    at->state = TIER_SLOT_READY;
    if (at->restore) at->prefetch = at->restore = false;    /* as if it had never left */
    account(c, load);
    load_free(c, load);
    tier_cache_settle(c, key);
}

static void request_done(struct tier_cache *c, struct tier_io_req *req)
{
    struct tier_load *load = req->owner;
    c->busy_bytes += req->bytes;
    uint32_t index = (uint32_t)(req - load->reqs);
    const struct tier_extent *extent = &load->record.extents[index];
    uint64_t need = tier_extent_read(extent).need;
    if (req->done_ns > load->end_ns) load->end_ns = req->done_ns;
    /* Fewer bytes than the extent has: the file ends before it should. */
    int rc = req->result < 0 ? (int)req->result : (uint64_t)req->result < need ? -EIO : 0;
    if (rc < 0 && load->error == 0) {
        load->error = rc;
        load->error_extent = index;
    }
    MUST(load->left > 0);
    if (--load->left > 0) return;
    uint32_t at = (uint32_t)(load - c->loads);
    load->next_free = NO_LOAD;
    if (c->arrived == NO_LOAD) {
        c->arrived = at;
    } else {
        c->loads[c->arrived_last].next_free = at;
    }
    c->arrived_last = at;
}

static void arrived_end(struct tier_cache *c)
{
    struct tier_load *load = &c->loads[c->arrived];
    uint64_t begin_ns = base_clock_now_ns(c->clock);
    c->arrived = load->next_free;
    load_end(c, load);
    c->taken_in++;
    c->take_in_ns += base_clock_now_ns(c->clock) - begin_ns;
}

static void watch(struct tier_cache *c, uint64_t now)
{
    if (c->stuck_after_ns == 0) return;
    for (uint32_t i = 0; i < c->load_count; i++) {
        struct tier_load *load = &c->loads[i];
        if (load->left == 0 || load->named_ns + c->stuck_after_ns > now) continue;
        load->named_ns = now;       /* again only after as long a time */
        c->stats.stuck_reads++;
        base_log(BASE_LOG_WARN, "tiers", "read does not come back layer=%" PRIu32 " expert=%" PRIu32
                 " file=%s offset=%" PRIu64, load->record.layer, load->record.index,
                 tier_store_file_path(c->store, load->record.extents[0].file),
                 load->record.extents[0].offset);
    }
}

static bool reap_reads(struct tier_cache *c, bool wait, uint64_t deadline_ns)
{
    struct tier_io_req *done[REAP_BATCH];
    bool any = false;
    for (;;) {
        int n = tier_io_reap(c->io, done, REAP_BATCH, wait && !any ? 1 : 0, deadline_ns);
        MUST(n >= 0);
        for (int i = 0; i < n; i++) request_done(c, done[i]);
        if (n > 0 && c->io->in_flight == 0) {
            c->busy_ns += done[n - 1]->done_ns - c->busy_since_ns;
        }
        any |= n > 0;
        if (n < REAP_BATCH) return any;
    }
}

bool tier_cache_reap(struct tier_cache *c, bool wait, uint64_t deadline_ns)
{
    bool copies = c->device && c->device->in_flight > 0, any = false;
    bool reads = c->io->in_flight > 0 || c->arrived != NO_LOAD;
    if (!copies && !reads) return false;
    bool one = wait;
    if (c->arrived != NO_LOAD) wait = false;
    if (wait && c->stuck_after_ns) {
        uint64_t now = base_clock_now_ns(c->clock), soon = now + c->stuck_after_ns;
        watch(c, now);
        if (soon < deadline_ns) deadline_ns = soon;
    }
    if (copies) {
        any = tier_mover_reap(c, wait && !reads, deadline_ns);
        if (any || !reads) wait = false;
    }
    if (wait && copies) {
        /* Two places to look at: not long at either. */
        uint64_t soon = base_clock_now_ns(c->clock) + BOTH_WAIT_NS;
        if (soon < deadline_ns) deadline_ns = soon;
    }
    any |= reap_reads(c, wait, deadline_ns);
    if (any) tier_cache_pump(c);
    while (c->arrived != NO_LOAD) {
        arrived_end(c);
        tier_cache_pump(c);
        any = true;
        if (one) break;
    }
    return any;
}

bool tier_cache_busy(const struct tier_cache *c)
{
    return c->io->in_flight > 0 || c->arrived != NO_LOAD || (c->device && c->device->in_flight > 0);
}

/* -- views ------------------------------------------------------------------------------------ */

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

const struct tier_failure *tier_cache_failure(const struct tier_cache *c, uint32_t key)
{
    for (uint32_t i = 0; i < c->failure_count; i++) {
        if (c->failures[i].key == key) return &c->failures[i];
    }
    return NULL;
}

/* -- create ----------------------------------------------------------------------------------- */

static uint64_t aligned(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

uint64_t tier_cache_hbm_slot_bytes(const struct tier_store *store)
{
    uint64_t most = 0;
    const uint64_t *sizes;
    for (uint32_t kind = 0; (sizes = tier_store_kind_bytes(store, kind)) != NULL; kind++) {
        uint64_t bytes = 0;
        for (int p = 0; p < TIER_PARTS; p++) bytes += aligned(sizes[p], DEV_ALIGN);
        if (bytes > most) most = bytes;
    }
    return aligned(most, TIER_PAGE);
}

uint64_t tier_cache_tables_bytes(uint32_t keys, uint64_t slots, uint64_t hbm_slots, uint32_t depth)
{
    uint64_t a_key = sizeof(uint32_t) * (hbm_slots ? 4 : 2) + sizeof(struct tier_key_use) + 1;
    uint64_t a_slot = sizeof(struct tier_slot) + sizeof(uint32_t);
    uint64_t a_load = sizeof(struct tier_load) + TIER_PARTS * sizeof(void *);
    return keys * a_key + (slots + hbm_slots) * a_slot + hbm_slots * sizeof(struct dev_copy) +
           LOADS_PER_READ * depth * a_load;
}

static int files_add(struct tier_cache *c, struct base_err *err)
{
    for (uint32_t f = 0; f < tier_store_files(c->store); f++) {
        int handle = tier_io_file_add(c->io, tier_store_file_path(c->store, f), err);
        if (handle < 0) return handle;
        if (f == 0) c->file_first = (uint32_t)handle;
        MUST((uint32_t)handle == c->file_first + f);
    }
    return 0;
}

static int seats_create(struct tier_seats *seats, uint32_t keys)
{
    seats->slot_of = malloc(keys * sizeof *seats->slot_of);
    seats->line.next = calloc(keys, sizeof *seats->line.next);
    seats->line.head = seats->line.tail = NO_KEY;
    if (!seats->slot_of || !seats->line.next) return -ENOMEM;
    for (uint32_t k = 0; k < keys; k++) seats->slot_of[k] = TIER_NO_SLOT;
    return 0;
}

static void seats_destroy(struct tier_seats *seats)
{
    tier_slots_destroy(&seats->slots);
    free(seats->slot_of);
    free(seats->line.next);
}

static int tables_create(struct tier_cache *c, uint32_t hbm_slots)
{
    uint32_t layers = tier_store_layers(c->store);
    c->load_count = LOADS_PER_READ * c->io->depth;
    c->outbox_size = c->load_count * TIER_PARTS;
    c->use = calloc(c->keys, sizeof *c->use);
    c->flags = calloc(c->keys, sizeof *c->flags);
    c->loads = calloc(c->load_count, sizeof *c->loads);
    c->outbox = calloc(c->outbox_size, sizeof(void *));
    c->layer_loads = calloc(layers, sizeof *c->layer_loads);
    c->copies = calloc(hbm_slots ? hbm_slots : 1, sizeof *c->copies);
    if (!c->use || !c->flags || !c->loads || !c->outbox || !c->layer_loads || !c->copies) {
        return -ENOMEM;
    }
    if (tier_loads_create(&c->expert_loads, c->keys) < 0) return -ENOMEM;
    for (uint32_t l = 0; l < layers; l++) base_hist_init(&c->layer_loads[l].latency);
    c->free_load = c->arrived = NO_LOAD;
    for (uint32_t i = c->load_count; i-- > 0;) load_free(c, &c->loads[i]);
    int rc = seats_create(&c->dram, c->keys);
    return rc == 0 && hbm_slots ? seats_create(&c->hbm, c->keys) : rc;
}

static void dram_moved(void *context, void *memory, size_t bytes, bool in_service)
{
    tier_io_memory_change(context, memory, bytes, in_service);
}

static void hbm_moved(void *context, void *memory, size_t bytes, bool in_service)
{
    if (!in_service) dev_memory_give(context, memory, bytes);
}

static int hbm_create(struct tier_cache *c, const struct tier_cache_args *args,
                      struct base_err *err)
{
    void *memory;
    /* Addresses for all it may grow to where the device has them. */
    uint32_t most = args->hbm_slots_most;
    int rc = dev_memory_alloc(args->device, most * args->hbm_slot_bytes, &memory, NULL);
    if (rc < 0) {
        most = args->hbm_slots;
        rc = dev_memory_alloc(args->device, most * args->hbm_slot_bytes, &memory, err);
    }
    if (rc < 0) return rc;
    rc = tier_slots_create_at(&c->hbm.slots, args->hbm_slots, most, args->hbm_slot_bytes, memory,
                              err);
    if (rc < 0) return rc;
    c->hbm.slots.moved = hbm_moved;
    c->hbm.slots.context = args->device;
    c->device = args->device;
    c->top = &c->hbm;
    /* One pool for both: the disk writes into it, the device copies out of it. Only what is in
     * service: the addresses beyond it have no memory, and would get some. */
    rc = dev_host_register(args->device, c->dram.slots.memory, c->dram.slots.bytes);
    if (rc == 0 || rc == -ENOTSUP) return 0;
    return base_err_set(err, rc, "tiers.dram.capacity: the device cannot pin the %" PRIu64
                        " bytes of its slots, which it copies from",
                        (uint64_t)c->dram.slots.bytes);
}

int tier_cache_create(struct tier_cache *c, const struct tier_cache_args *args,
                      struct base_err *err)
{
    *c = (struct tier_cache){
        .store = args->store, .io = args->io, .clock = args->clock,
        .verify_always = args->verify_always, .warm_compute = args->warm_compute,
        .stuck_after_ns = args->stuck_after_ns, .story = args->story,
        .failed = args->failed, .context = args->context,
        .top = &c->dram,
        .demand = { TIER_NO_SLOT, TIER_NO_SLOT }, .prefetch = { TIER_NO_SLOT, TIER_NO_SLOT },
    };
    uint64_t slot_bytes = tier_store_slot_bytes(args->store);
    c->experts = tier_store_experts(args->store);
    c->keys = tier_store_layers(args->store) * c->experts;
    base_hist_init(&c->stats.read_latency);
    base_hist_init(&c->stats.copy_latency);
    int rc = tables_create(c, args->hbm_slots ? args->hbm_slots_most : 0);
    if (rc < 0) {
        base_err_set(err, rc, "no memory for the tables of %" PRIu32 " experts", c->keys);
        goto fail;
    }
    rc = files_add(c, err);
    if (rc < 0) goto fail;
    rc = tier_slots_create(&c->dram.slots, args->slots, args->slots_most, slot_bytes, &args->hold,
                           err);
    if (rc < 0) goto fail;
    c->dram.slots.moved = dram_moved;
    c->dram.slots.context = c->io;
    tier_cache_prefetch_limit(c, args->prefetch_inflight);
    /* A refusal stands in the backend's note: reads work without, at a price. */
    tier_io_memory_add(c->io, c->dram.slots.memory, c->dram.slots.bytes,
                       c->dram.slots.most * slot_bytes);
    if (args->hbm_slots > 0) rc = hbm_create(c, args, err);
    if (rc < 0) goto fail;
    return 0;
fail:
    tier_cache_destroy(c);
    return rc;
}

void tier_cache_destroy(struct tier_cache *c)
{
    if (c->io) {
        struct tier_io_req *done[REAP_BATCH];
        while (c->io->in_flight > 0) tier_io_reap(c->io, done, REAP_BATCH, 1, UINT64_MAX);
    }
    if (c->device) {
        struct dev_copy *copies[REAP_BATCH];
        while (c->device->in_flight > 0) dev_reap(c->device, copies, REAP_BATCH, 1, UINT64_MAX);
        dev_host_unregister(c->device, c->dram.slots.memory);
    }
    seats_destroy(&c->dram);
    seats_destroy(&c->hbm);
    free(c->copies);
    free(c->use);
    free(c->flags);
    free(c->loads);
    free(c->outbox);
    free(c->layer_loads);
    tier_loads_destroy(&c->expert_loads);
    *c = (struct tier_cache){ 0 };
}
