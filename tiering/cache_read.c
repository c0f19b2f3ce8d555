/* Reads of experts: handed to the backend, taken back, checked, read again. */
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"
#include "base/must.h"
#include "tiering/cache_priv.h"
#include "tiering/mover.h"

enum { BOTH_WAIT_NS = 50000 };

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
    tier_queue_remove(c, q, slot);
    return slot;
}

void tier_cache_pump(struct tier_cache *c)
{
    for (;;) {
        uint32_t room = c->io->depth - c->io->in_flight;
        while (c->outbox_count < room && c->free_load != TIER_NO_LOAD) {
            uint32_t slot = next_slot(c);
            if (slot == TIER_NO_SLOT) break;
            load_begin(c, slot);
        }
        uint32_t n = c->outbox_count < room ? c->outbox_count : room;
        uint32_t straight = c->outbox_size - c->outbox_first;
        if (n == 0) return;
        if (n > straight) n = straight;
        if (!c->reads.open) {
            uint64_t now = base_clock_now_ns(c->clock);
            tier_span_begin(&c->reads, now);
            tier_span_begin(&c->transfers, now);
        }
        int taken = tier_io_submit(c->io, &c->outbox[c->outbox_first], n);
        MUST(taken >= 0 && (uint32_t)taken <= n);
        c->outbox_first = (c->outbox_first + (uint32_t)taken) % c->outbox_size;
        c->outbox_count -= (uint32_t)taken;
        if ((uint32_t)taken < n) return;
    }
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

/* Good bytes become what is read under a lease. */
static void land(struct tier_cache *c, uint32_t key, uint32_t slot)
{
    const struct tier_slot *at = &c->dram.slots.at[slot];
    char *memory = tier_slots_memory(&c->dram.slots, slot);
    void *parts[TIER_PARTS];
    if (!c->landing.land) return;
    MUST(at->state == TIER_SLOT_READING && at->key == key);
    for (int p = 0; p < TIER_PARTS; p++) {
        parts[p] = at->part_offset[p] == UINT32_MAX ? NULL : memory + at->part_offset[p];
    }
    uint64_t begin_ns = base_clock_now_ns(c->clock);
    c->landing.land(c->landing.context, key / c->experts, key % c->experts, parts);
    uint64_t end_ns = base_clock_now_ns(c->clock);
    c->landing_ns += end_ns - begin_ns;
    tier_story_span(c->story, "repack", begin_ns, end_ns, key);
}

/* Checking and landing take as long as a fast disk takes for what it was given: meanwhile it gets
 * more. */
static void feed_disk(void *context)
{
    struct tier_cache *c = context;
    tier_io_feed(c->io);
}

/* All requests of a load are back. */
static void load_end(struct tier_cache *c, struct tier_load *load)
{
    uint32_t key = load->key, slot = load->slot;
    struct tier_slot *at = &c->dram.slots.at[slot];
    int rc = load->error;
    if (!tier_cache_needs_dram(c, key)) {
        tier_story_flight(c->story, "reads", "read", load->begin_ns, load->end_ns, key,
                          load->record.bytes, "displaced on its way");
        tier_load_free(c, load);
        tier_cache_dram_give(c, slot);
        return;
    }
    if (rc < 0) {
        c->stats.read_errors++;
    } else if (c->verify_always || !(c->flags[key] & TIER_KEY_VERIFIED)) {
        uint64_t begin_ns = c->story->timeline ? base_clock_now_ns(c->clock) : 0;
        rc = tier_landing_check(&c->landing, &load->record,
                                tier_slots_memory(&c->dram.slots, slot), feed_disk, c);
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
        tier_load_free(c, load);
        return;
    }
    c->flags[key] |= TIER_KEY_VERIFIED;
    land(c, key, slot);
    feed_disk(c);
    tier_cache_prefetch_close(c, at);
    tier_cache_asked_end(c, at, load->end_ns);
    at->state = TIER_SLOT_READY;
    if (at->restore) {
        /* As if it had never left: what goes on to hbm is no prefetch there either. */
        at->prefetch = false;
        at->restore = c->flags[key] & TIER_KEY_HBM;
    }
    account(c, load);
    tier_load_free(c, load);
    tier_cache_settle(c, key);
}

static void request_done(struct tier_cache *c, struct tier_io_req *req)
{
    struct tier_load *load = req->owner;
    c->read_bytes += req->bytes;
    tier_span_seen(&c->reads, req->done_ns);
    tier_span_seen(&c->transfers, req->done_ns);
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
    load->next_free = TIER_NO_LOAD;
    if (c->arrived == TIER_NO_LOAD) {
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
    uint32_t key = load->key;
    c->arrived = load->next_free;
    load_end(c, load);
    uint64_t end_ns = base_clock_now_ns(c->clock);
    c->taken_in++;
    c->take_in_ns += end_ns - begin_ns;
    /* Check and landing belong to the way of the bytes; the time in which they lay here does
     * not. */
    if (!c->transfers.open) c->transfers.ns += end_ns - begin_ns;
    tier_cache_answered(c, key);
}

/* The clock in units of 1.024 us, a bit for where the bytes lay and one to tell it from 0: lookups
 * that take longer than 18 minutes are told wrong. */
static uint32_t asked_stamp(uint64_t now_ns)
{
    return (uint32_t)(now_ns >> 10) << 2;
}

void tier_cache_asked(struct tier_cache *c, uint32_t key, uint64_t now_ns)
{
    bool in_dram = c->device && tier_seats_ready(&c->dram, key);
    c->asked[key] = asked_stamp(now_ns) | (uint32_t)in_dram << 1 | 1;
}

/* Up to now, not to when its bytes arrived: a copy may have ended before the lookup without this
 * thread having seen it, and a time before the stamp would count as 18 minutes behind it. */
void tier_cache_answered(struct tier_cache *c, uint32_t key)
{
    uint32_t asked = c->asked[key];
    if (asked == 0 || !tier_cache_ready(c, key)) return;
    uint64_t units = (asked_stamp(base_clock_now_ns(c->clock)) - (asked & ~3u)) >> 2;
    base_hist_add(&c->answer_latency[asked >> 1 & 1], units << 10);
    c->asked[key] = 0;
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
    struct tier_io_req *done[TIER_REAP_BATCH];
    bool any = false;
    for (;;) {
        int n = tier_io_reap(c->io, done, TIER_REAP_BATCH, wait && !any ? 1 : 0, deadline_ns);
        MUST(n >= 0);
        for (int i = 0; i < n; i++) request_done(c, done[i]);
        if (c->io->in_flight == 0) tier_span_end(&c->reads);
        any |= n > 0;
        if (n < TIER_REAP_BATCH) return any;
    }
}

bool tier_cache_reap(struct tier_cache *c, bool wait, uint64_t deadline_ns)
{
    bool copies = c->device && c->device->in_flight > 0, any = false;
    bool reads = c->io->in_flight > 0 || c->arrived != TIER_NO_LOAD;
    if (!copies && !reads) return false;
    bool one = wait;
    if (c->arrived != TIER_NO_LOAD) wait = false;
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
    if (!c->reads.open && !c->copies.open) tier_span_end(&c->transfers);
    if (any) tier_cache_pump(c);
    while (c->arrived != TIER_NO_LOAD) {
        arrived_end(c);
        tier_cache_pump(c);
        any = true;
        if (one) break;
    }
    return any;
}

bool tier_cache_busy(const struct tier_cache *c)
{
    return c->io->in_flight > 0 || c->arrived != TIER_NO_LOAD ||
           (c->device && c->device->in_flight > 0);
}
