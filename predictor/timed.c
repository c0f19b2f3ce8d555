#include "predictor/timed.h"

#include "base/must.h"
#include "predictor/timed_priv.h"

static void settle(struct pred_timed *t, uint32_t key);
static void seat_waiting(struct pred_timed *t);

/* -- lists and links -------------------------------------------------------------------------- */

static void list_push(struct list *list, uint32_t key)
{
    list->nodes[key] = (struct node){ .prev = list->tail, .next = NO_KEY };
    if (list->tail == NO_KEY) {
        list->head = key;
    } else {
        list->nodes[list->tail].next = key;
    }
    list->tail = key;
}

static void list_remove(struct list *list, uint32_t key)
{
    struct node node = list->nodes[key];
    if (node.prev == NO_KEY) {
        list->head = node.next;
    } else {
        list->nodes[node.prev].next = node.next;
    }
    if (node.next == NO_KEY) {
        list->tail = node.prev;
    } else {
        list->nodes[node.next].prev = node.prev;
    }
}

static uint32_t list_pop(struct list *list)
{
    uint32_t key = list->head;
    if (key != NO_KEY) list_remove(list, key);
    return key;
}

static uint64_t transfer_ns(uint64_t bytes, uint64_t bandwidth)
{
    return bandwidth ? (uint64_t)((double)bytes * 1e9 / (double)bandwidth) : 0;
}

/* Puts a transfer on a link; returns how long it takes. */
static uint64_t link_send(struct link *link, uint32_t key, uint64_t earliest, uint64_t bytes,
                          uint64_t bandwidth)
{
    MUST(link->count < link->size);
    uint64_t start = earliest > link->free_ns ? earliest : link->free_ns;
    uint64_t ns = transfer_ns(bytes, bandwidth);
    link->free_ns = start + ns;
    link->ring[(link->first + link->count++) % link->size] =
        (struct flight){ .arrival_ns = link->free_ns, .key = key };
    return ns;
}

static uint64_t link_next(const struct link *link)
{
    return link->count > 0 ? link->ring[link->first].arrival_ns : UINT64_MAX;
}

static uint32_t link_take(struct link *link)
{
    uint32_t key = link->ring[link->first].key;
    link->first = (link->first + 1) % link->size;
    link->count--;
    return key;
}

/* -- slots ------------------------------------------------------------------------------------ */

static bool is_ready(const struct seat *seats, uint32_t key)
{
    return seats[key].state == SEAT_READY;
}

/* Where an expert is used: above, or in dram where it lies. */
static const struct seat *where(const struct pred_timed *t, uint32_t key)
{
    bool warm = t->config.decide.warm_compute &&
                (t->flags[key] & (WANT_HBM | WANT_DRAM)) == WANT_DRAM;
    return warm ? t->dram : t->top;
}

/* It shall be in dram, or must pass through it. */
static bool needs_dram(const struct pred_timed *t, uint32_t key)
{
    if (t->flags[key] & WANT_DRAM) return true;
    return t->flags[key] & WANT_HBM && !is_ready(t->hbm, key);
}

/* It has a slot, or waits for one to be read into. */
static bool has(const struct pred_timed *t, uint32_t key)
{
    return t->dram[key].state != SEAT_NONE || t->hbm[key].state != SEAT_NONE ||
           t->flags[key] & LINE_DRAM;
}

static void line_push(struct pred_timed *t, struct list *line, uint32_t key, uint8_t flag)
{
    if (t->flags[key] & flag) return;
    t->flags[key] |= flag;
    list_push(line, key);
}

static uint32_t line_pop(struct pred_timed *t, struct list *line, uint8_t flag)
{
    uint32_t key = list_pop(line);
    if (key != NO_KEY) t->flags[key] &= (uint8_t)~flag;
    return key;
}

/* Somebody waits for a read that is under way from now on. */
static void asked_begin(struct pred_timed *t, struct seat *at)
{
    at->asked = true;
    if (t->asked_reads++ == 0) t->asked_since_ns = t->now;
}

static void asked_end(struct pred_timed *t, struct seat *at, uint64_t end_ns)
{
    if (!at->asked) return;
    at->asked = false;
    if (--t->asked_reads > 0 || end_ns < t->asked_since_ns) return;
    t->step_asked_ns += end_ns - t->asked_since_ns;
}

static void queue(struct pred_timed *t, uint32_t key)
{
    if (t->dram_free == 0) {
        line_push(t, &t->dram_line, key, LINE_DRAM);
        return;
    }
    t->dram_free--;
    struct seat *at = &t->dram[key];
    *at = (struct seat){ .state = SEAT_QUEUED, .prefetch = !(t->flags[key] & DEMAND) };
    if (at->prefetch) t->prefetch_open++;
    else asked_begin(t, at);
    list_push(at->prefetch ? &t->prefetch : &t->demand, key);
}

static void seat_waiting(struct pred_timed *t)
{
    while (t->dram_free > 0) {
        uint32_t key = line_pop(t, &t->dram_line, LINE_DRAM);
        if (key == NO_KEY) return;
        if (needs_dram(t, key) && t->dram[key].state == SEAT_NONE) queue(t, key);
    }
}

/* A prefetch that is under way ends being one: asked for, arrived or given up. */
static void prefetch_close(struct pred_timed *t, const struct seat *at)
{
    if (at->prefetch && at->state != SEAT_READY) t->prefetch_open--;
}

static void dram_give(struct pred_timed *t, uint32_t key)
{
    prefetch_close(t, &t->dram[key]);
    asked_end(t, &t->dram[key], t->now);
    t->dram[key] = (struct seat){ 0 };
    t->dram_free++;
    seat_waiting(t);
}

static void leave_dram(struct pred_timed *t, uint32_t key)
{
    struct seat *at = &t->dram[key];
    if (at->state == SEAT_NONE) return;
    if (at->prefetch && at->state != SEAT_QUEUED) {
        t->stats.prefetch_wasted_bytes += t->config.read_bytes[key / t->experts];
    }
    if (at->state == SEAT_READING) {
        prefetch_close(t, at);
        asked_end(t, at, t->now);
        at->prefetch = false;
        return;
    }
    if (at->state == SEAT_QUEUED) list_remove(at->prefetch ? &t->prefetch : &t->demand, key);
    dram_give(t, key);
}

/* -- copies ----------------------------------------------------------------------------------- */

static void copy_up(struct pred_timed *t, uint32_t key)
{
    if (t->hbm_free == 0) {
        line_push(t, &t->hbm_line, key, LINE_HBM);
        return;
    }
    uint64_t bytes = t->config.expert_bytes[key / t->experts];
    t->hbm_free--;
    t->hbm[key] = (struct seat){ .state = SEAT_READING, .moving = MOVING_UP,
                                 .prefetch = !(t->flags[key] & DEMAND) };
    t->dram[key].prefetch = false;
    t->stats.copy_up_bytes += bytes;
    if (t->hbm[key].prefetch) {
        t->flags[key] |= COPY_AHEAD;
        t->copies_ahead++;
    } else {
        t->stats.demand_copy_bytes += bytes;
    }
    uint64_t ns = link_send(&t->up, key, t->now + t->machine->copy_latency, bytes,
                            t->machine->copy_bandwidth);
    t->stats.copy_busy_ns += ns;
    t->copies++;
    t->copy_ns += ns;
}

static bool copy_down(struct pred_timed *t, uint32_t key)
{
    struct seat *at = &t->hbm[key];
    if (t->dram_free == 0) {
        t->stats.demotions_dropped++;
        return false;
    }
    uint64_t bytes = t->config.expert_bytes[key / t->experts];
    t->dram_free--;
    t->dram[key] = (struct seat){ .state = SEAT_READING, .moving = MOVING_DOWN };
    at->prefetch = false;
    at->moving = MOVING_DOWN;
    t->stats.copy_down_bytes += bytes;
    t->stats.copy_busy_ns += link_send(&t->down, key, t->now + t->machine->copy_latency, bytes,
                                       t->machine->copy_bandwidth);
    return true;
}

static void hbm_give(struct pred_timed *t, uint32_t key)
{
    t->hbm[key] = (struct seat){ 0 };
    t->hbm_free++;
    while (t->hbm_free > 0) {
        uint32_t next = line_pop(t, &t->hbm_line, LINE_HBM);
        if (next == NO_KEY) return;
        settle(t, next);
    }
}

/* Brings the bytes one step nearer to what the core wants of an expert: cache.c's settle. */
static void settle(struct pred_timed *t, uint32_t key)
{
    if (t->tiers == 2) {
        struct seat *at = &t->hbm[key];
        bool wanted = t->flags[key] & WANT_HBM;
        if (at->moving == MOVING_UP || at->moving == MOVING_DOWN) return;
        if (at->state == SEAT_NONE && wanted) {
            if (is_ready(t->dram, key)) copy_up(t, key);
            return;
        }
        if (at->state != SEAT_NONE && !wanted) {
            bool down = t->flags[key] & WANT_DRAM && t->dram[key].state == SEAT_NONE;
            if (down && at->state == SEAT_READY && copy_down(t, key)) return;
            hbm_give(t, key);
        }
    }
    if (!needs_dram(t, key)) leave_dram(t, key);
}

/* -- what the core wants ---------------------------------------------------------------------- */

static void demand(struct pred_timed *t, uint32_t key)
{
    t->flags[key] |= DEMAND;
    if (t->tiers == 2 && t->hbm[key].state != SEAT_NONE && t->hbm[key].prefetch) {
        t->flags[key] |= LATE;
        t->hbm[key].prefetch = false;
    }
    struct seat *at = &t->dram[key];
    if (at->state == SEAT_NONE) {
        if (needs_dram(t, key)) queue(t, key);
        return;
    }
    if (!at->prefetch) return;
    if (at->state == SEAT_QUEUED) {
        list_remove(&t->prefetch, key);
        list_push(&t->demand, key);
    } else if (at->state == SEAT_READING) {
        t->flags[key] |= LATE;
    }
    if (at->state != SEAT_READY) asked_begin(t, at);
    prefetch_close(t, at);
    at->prefetch = false;
}

static void move(struct pred_timed *t, uint32_t key, uint8_t in, uint8_t out, bool fetch,
                 bool is_demand)
{
    t->flags[key] = (uint8_t)((t->flags[key] | in) & ~out);
    if (out & (t->tiers == 2 ? WANT_HBM : WANT_DRAM)) {
        /* What a hint moved up and nobody asked for. */
        if (t->flags[key] & HINTED && t->top[key].state >= SEAT_READING) {
            t->stats.wasted_bytes += t->config.expert_bytes[key / t->experts];
        }
        t->flags[key] &= (uint8_t)~(DEMAND | LATE | HINTED);
    }
    if (is_demand && in & (t->tiers == 2 ? WANT_HBM : WANT_DRAM)) t->flags[key] |= DEMAND;
    settle(t, key);
    if (!fetch || !needs_dram(t, key)) return;
    if (is_demand) {
        demand(t, key);
    } else if (t->dram[key].state == SEAT_NONE) {
        queue(t, key);
    }
}

static void carry_out(struct pred_timed *t, bool is_demand)
{
    const struct tier_action *actions;
    uint32_t n = tier_decide_actions(t->decide, &actions);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = actions[i].layer * t->experts + actions[i].expert;
        uint8_t in = 0, out = 0;
        switch (actions[i].kind) {
        case TIER_LOAD:
            in = (uint8_t)(1 << actions[i].tier);
            break;
        case TIER_COPY_UP:
            in = 1;
            if (!t->config.decide.inclusive) out = 2;
            break;
        case TIER_COPY_DOWN:
            in = 2;
            out = 1;
            break;
        case TIER_DROP:
            out = (uint8_t)(1 << actions[i].tier);
            break;
        }
        bool fetch = actions[i].kind == TIER_LOAD || actions[i].kind == TIER_COPY_UP;
        uint8_t to = t->tiers == 2 ? 1 : WANT_DRAM;
        move(t, key, (uint8_t)(in * to), (uint8_t)(out * to), fetch, is_demand);
    }
}

/* -- reads ------------------------------------------------------------------------------------ */

static void read_begin(struct pred_timed *t, uint32_t key)
{
    struct seat *at = &t->dram[key];
    uint64_t bytes = t->config.read_bytes[key / t->experts];
    at->state = SEAT_READING;
    tier_span_begin(&t->busy, t->now);
    t->reads_in_flight += (uint32_t)t->machine->expert_reads;
    if (at->prefetch) {
        t->stats.prefetch_reads++;
        t->stats.prefetch_bytes += bytes;
    } else {
        t->stats.demand_reads++;
        t->stats.demand_bytes += bytes;
    }
    t->stats.read_busy_ns += link_send(&t->reads, key, t->now + t->machine->nvme_latency, bytes,
                                       t->machine->nvme_bandwidth);
}

static void pump(struct pred_timed *t)
{
    uint32_t depth = (uint32_t)t->machine->nvme_depth;
    while (t->reads_in_flight < depth) {
        uint32_t key = list_pop(&t->demand);
        if (key == NO_KEY) {
            if (t->reads_in_flight >= (depth + 1) / 2) return;
            key = list_pop(&t->prefetch);
            if (key == NO_KEY) return;
        }
        read_begin(t, key);
    }
}

static void read_end(struct pred_timed *t, uint32_t key, uint64_t arrival_ns)
{
    struct seat *at = &t->dram[key];
    asked_end(t, at, arrival_ns);
    t->reads_in_flight -= (uint32_t)t->machine->expert_reads;
    t->busy_bytes += t->config.read_bytes[key / t->experts];
    tier_span_seen(&t->busy, arrival_ns);
    if (t->reads_in_flight == 0) tier_span_end(&t->busy);
    if (!needs_dram(t, key)) {
        dram_give(t, key);
        return;
    }
    prefetch_close(t, at);
    at->state = SEAT_READY;
    settle(t, key);
}

static void up_end(struct pred_timed *t, uint32_t key)
{
    if (t->flags[key] & COPY_AHEAD) t->copies_ahead--;
    t->flags[key] &= (uint8_t)~COPY_AHEAD;
    t->hbm[key].moving = STILL;
    t->hbm[key].state = SEAT_READY;
    settle(t, key);
}

static void down_end(struct pred_timed *t, uint32_t key)
{
    t->hbm[key].moving = STILL;
    t->dram[key].state = SEAT_READY;
    t->dram[key].moving = STILL;
    settle(t, key);
}

/* The earliest arrival on any link. */
static uint64_t next_ns(const struct pred_timed *t)
{
    uint64_t next = link_next(&t->reads), up = link_next(&t->up), down = link_next(&t->down);
    if (up < next) next = up;
    return down < next ? down : next;
}

/* Takes in what has arrived by now; returns what that took of the computing thread's time. */
static uint64_t reap(struct pred_timed *t)
{
    uint64_t began = t->now, next;
    while ((next = next_ns(t)) <= t->now) {
        if (link_next(&t->reads) == next) {
            t->now += t->machine->nvme_take_in;
            read_end(t, link_take(&t->reads), next);
        } else if (link_next(&t->up) == next) {
            up_end(t, link_take(&t->up));
        } else {
            down_end(t, link_take(&t->down));
        }
    }
    pump(t);
    return t->now - began;
}

/* -- the face --------------------------------------------------------------------------------- */

uint64_t pred_timed_now(const struct pred_timed *t)
{
    return t->now;
}

void pred_timed_compute(struct pred_timed *t, uint32_t layer, uint64_t ns)
{
    t->now += ns;
    ns += reap(t);
    t->stats.compute_ns += ns;
    if (layer < t->layers) t->layer_stats[layer].compute_ns += ns;
}

static enum tier_cell cell_counted(const struct pred_timed *t, const uint64_t *before)
{
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        if (tier_decide_counts(t->decide, 0, (enum tier_cell)c)->lookups > before[c]) {
            return (enum tier_cell)c;
        }
    }
    return TIER_CELL_DECODE;
}

static void count(struct pred_timed_counts *to, uint32_t lookups, uint32_t hits, uint32_t late)
{
    to->lookups += lookups;
    to->hits += hits;
    to->late += late;
    to->misses += lookups - hits - late;
}

/* Prefetches for a layer that got all it asked for and that have not begun come too late to help.
 */
static void layer_passed(struct pred_timed *t, uint32_t layer)
{
    uint32_t key = t->prefetch.head;
    while (key != NO_KEY) {
        uint32_t next = t->prefetch.nodes[key].next;
        if (key / t->experts == layer) {
            list_remove(&t->prefetch, key);
            dram_give(t, key);
            t->stats.prefetch_cancelled++;
        }
        key = next;
    }
}

/* Who waited in line may have got a slot. */
static void send_seated(struct pred_timed *t)
{
    if (t->demand.head != NO_KEY) pump(t);
}

/* A hint's expert is looked up for the first time. */
static void hint_used(struct pred_timed *t, uint32_t key, bool ready)
{
    if (!(t->flags[key] & HINTED)) return;
    uint64_t bytes = t->config.expert_bytes[key / t->experts];
    t->flags[key] &= (uint8_t)~HINTED;
    struct pred_timed_layer *layer = &t->layer_stats[key / t->experts];
    *(ready ? &t->stats.useful_bytes : &t->stats.late_bytes) += bytes;
    *(ready ? &layer->useful_bytes : &layer->late_bytes) += bytes;
}

/* One whose copy down is on its way comes by itself. */
static void use_in_place(struct pred_timed *t, uint32_t key)
{
    if (is_ready(t->dram, key)) {
        t->dram[key].prefetch = false;
    } else if (t->hbm[key].state == SEAT_NONE) {
        demand(t, key);
    }
}

void pred_timed_step_prompt(struct pred_timed *t)
{
    t->governor.prompt = t->copy_pace.prompt = true;
}

uint32_t pred_timed_acquire(struct pred_timed *t, uint32_t layer, const uint32_t *ids, uint32_t n,
                            enum tier_phase phase)
{
    uint64_t before[TIER_CELL_COUNT];
    uint32_t base = layer * t->experts, resident = 0, hits = 0, in_place = 0;
    uint32_t asked = t->asked_reads;
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        before[c] = tier_decide_counts(t->decide, 0, (enum tier_cell)c)->lookups;
    }
    if (t->step_acquires++ == 0) t->step_began_ns = t->now;
    if (phase == TIER_PREFILL) pred_timed_step_prompt(t);
    uint32_t k = tier_decide_acquire(t->decide, layer, ids, n, phase, t->found);
    carry_out(t, true);
    for (uint32_t i = 0; i < k; i++) {
        uint32_t key = base + ids[i];
        bool ready = is_ready(t->top, key);
        if (t->found[i].from == 0) {
            resident++;
            hits += ready;
            hint_used(t, key, ready);
            if (ready) {
                t->top[key].prefetch = false;
            } else {
                demand(t, key);
            }
        } else if (t->found[i].in_place) {
            t->stats.below_lookups++;
            t->stats.below_hits += is_ready(t->dram, key);
            t->stats.in_place++;
            in_place += is_ready(t->dram, key);
            use_in_place(t, key);
        } else if (t->tiers == 2) {
            t->stats.below_lookups++;
            t->stats.below_hits += t->found[i].from == 1 && (is_ready(t->dram, key) || ready ||
                                                             t->hbm[key].moving == MOVING_UP);
        }
    }
    t->step_quiet += t->asked_reads == asked;
    t->step_still += hits + in_place == k;
    pump(t);
    count(&t->stats.cells[cell_counted(t, before)], k, hits, resident - hits);
    count(&t->layer_stats[layer].counts, k, hits, resident - hits);
    t->hinted[layer] = 0;
    if (k == n) layer_passed(t, layer);
    send_seated(t);
    return k;
}

bool pred_timed_ready(const struct pred_timed *t, uint32_t layer, uint32_t expert)
{
    uint32_t key = layer * t->experts + expert;
    return is_ready(where(t, key), key);
}

bool pred_timed_in_place(const struct pred_timed *t, uint32_t layer, uint32_t expert)
{
    return where(t, layer * t->experts + expert) != t->top;
}

/* What the first of them waits for. */
static enum tier_wait_cause cause_of(const struct pred_timed *t, uint32_t key)
{
    if (t->flags[key] & LATE) return TIER_WAIT_LATE;
    if (t->tiers == 2 && t->hbm[key].state != SEAT_NONE) return TIER_WAIT_COPY;
    if (t->dram[key].state == SEAT_NONE || is_ready(t->dram, key)) return TIER_WAIT_SLOT;
    return TIER_WAIT_DEMAND;
}

void pred_timed_wait(struct pred_timed *t, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    bool any = false;
    MUST(n > 0);
    while (!any) {
        uint64_t from = t->now, next = next_ns(t);
        enum tier_wait_cause cause = cause_of(t, layer * t->experts + ids[0]);
        MUST(next != UINT64_MAX); /* else nothing could ever end this wait */
        if (next > t->now) t->now = next;
        reap(t);
        t->stats.wait_ns[cause] += t->now - from;
        t->layer_stats[layer].wait_ns += t->now - from;
        for (uint32_t i = 0; i < n; i++)
            any |= pred_timed_ready(t, layer, ids[i]);
    }
}

void pred_timed_release(struct pred_timed *t, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    tier_decide_release(t->decide, layer, ids, n);
    carry_out(t, true); /* what was used in place often enough moves up */
    send_seated(t);
}

/* -- hints ------------------------------------------------------------------------------------ */

/* Credit grows with what reads have reached so far; before anything was measured it is full. */
static void credit_earn(struct pred_timed *t)
{
    uint64_t busy_ns = tier_span_ns(&t->busy);
    if (busy_ns > 0) {
        double rate = (double)t->busy_bytes / (double)busy_ns;
        tier_governor_earn(&t->governor, (uint64_t)(rate * (double)(t->now - t->earned_ns)));
    } else {
        tier_governor_earn(&t->governor, UINT64_MAX);
    }
    t->earned_ns = t->now;
}

/* A read ahead needs credit and an idle place in the queue; a copy ahead only the place: the lane
 * up has no other traffic than experts that were asked for. */
static bool may_fetch_ahead(struct pred_timed *t, const struct tier_hint *h, bool below)
{
    if (!t->config.decide.prefetch || t->hinted[h->layer] >= t->config.prefetch_per_layer) {
        return false;
    }
    uint32_t open = below ? t->copies_ahead : t->prefetch_open;
    uint32_t idle = open < t->prefetch_open_max ? t->prefetch_open_max - open : 0;
    struct tier_governor *pace = below ? &t->copy_pace : &t->governor;
    if ((double)h->probability < tier_governor_worth(pace, h->distance, open)) return false;
    if (!below) return tier_governor_admit(&t->governor, h->probability, idle);
    return idle > 0 && tier_governor_on(&t->governor) &&
           (double)h->probability >= t->governor.probability;
}

/* Of an expert that the core has in the top tier. */
static void hint_resident(struct pred_timed *t, const struct tier_hint *h)
{
    if (tier_decide_hinted(t->decide, h->layer, h->expert) == h->probability) return;
    t->stats.hints++;
    tier_decide_hint(t->decide, h->layer, h->expert, h->probability, h->distance);
    carry_out(t, false);
}

/* Of one that is not there, or that the core has without a byte of it. */
static bool hint_absent(struct pred_timed *t, const struct tier_hint *h, bool top)
{
    uint32_t key = h->layer * t->experts + h->expert;
    bool below = t->tiers == 2 && has(t, key) &&
                 tier_decide_resident(t->decide, 1, h->layer, h->expert);
    t->stats.hints += !top;
    if (!may_fetch_ahead(t, h, below)) {
        t->stats.hints_refused++;
        return false;
    }
    if (top) {
        queue(t, key);
        t->hinted[h->layer]++;
        return false;
    }
    bool taken = tier_decide_hint(t->decide, h->layer, h->expert, h->probability, h->distance);
    carry_out(t, false);
    if (!taken) return false;
    t->flags[key] |= HINTED;
    t->hinted[h->layer]++;
    t->stats.hints_admitted++;
    t->stats.hinted_bytes += t->config.expert_bytes[h->layer];
    return true;
}

uint32_t pred_timed_hint(struct pred_timed *t, const struct tier_hint *hints, uint32_t n)
{
    uint32_t admitted = 0;
    if (t->config.decide.prefetch) credit_earn(t);
    /* Of what is there first: who would leave is known before anything comes. */
    for (int absent = 0; absent < 2; absent++) {
        for (uint32_t i = 0; i < n; i++) {
            const struct tier_hint *h = &hints[i];
            bool top = tier_decide_resident(t->decide, 0, h->layer, h->expert);
            if (!absent && top) hint_resident(t, h);
            if (absent && !(top && has(t, h->layer * t->experts + h->expert))) {
                admitted += hint_absent(t, h, top);
            }
        }
    }
    if (admitted > 0 || t->prefetch.head != NO_KEY) pump(t);
    return admitted;
}

/* Between two acquires of the step, what nothing that was asked for was under way. */
static void pace(struct pred_timed *t)
{
    const struct pred_timed_stats *s = &t->stats;
    if (t->step_acquires == 0) return;
    double acquires = (double)t->step_acquires, bytes = (double)t->config.governor.read_bytes;
    double step = (double)(t->now - t->step_began_ns), busy = (double)tier_span_ns(&t->busy);
    if (busy > 0) {
        struct tier_governor_pace reads = {
            .idle_ns = (step - (double)t->step_asked_ns) / acquires,
            .fetch_ns = bytes * busy / (double)t->busy_bytes,
            .work_ns = (double)t->machine->nvme_take_in,
            .quiet = (double)t->step_quiet / acquires,
        };
        tier_governor_pace(&t->governor, &reads);
    }
    if (s->copy_up_bytes > 0) {
        struct tier_governor_pace copies = {
            .idle_ns = (step - (double)t->step_wait_ns) / acquires,
            .fetch_ns = (double)t->copy_ns / (double)t->copies,
            .quiet = (double)t->step_still / acquires,
        };
        tier_governor_pace(&t->copy_pace, &copies);
    }
    t->step_acquires = t->step_quiet = t->step_still = 0;
    t->governor.prompt = t->copy_pace.prompt = false;
    t->step_asked_ns = 0;
}

void pred_timed_step_end(struct pred_timed *t)
{
    const struct pred_timed_stats *m = &t->marks;
    struct pred_timed_stats *s = &t->stats;
    struct tier_governor_account account = {
        .demand_bytes = s->demand_bytes - m->demand_bytes + s->demand_copy_bytes -
                        m->demand_copy_bytes,
        .useful_bytes = s->useful_bytes - m->useful_bytes,
        .late_bytes = s->late_bytes - m->late_bytes,
        .wasted_bytes = s->wasted_bytes - m->wasted_bytes,
    };
    s->steps++;
    if (!t->config.decide.prefetch) return;
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        account.lookups += s->cells[c].lookups - m->cells[c].lookups;
    }
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) {
        account.stall_ns += s->wait_ns[w] - m->wait_ns[w];
    }
    t->step_wait_ns = account.stall_ns;
    pace(t);
    s->governed_steps += !tier_governor_on(&t->governor);
    tier_governor_step(&t->governor, &account);
    s->governor_switches = t->governor.switches;
    t->marks = *s;
}

/* -- views ------------------------------------------------------------------------------------ */

const struct tier_decide *pred_timed_decide(const struct pred_timed *t)
{
    return t->decide;
}

const struct pred_timed_stats *pred_timed_stats_get(const struct pred_timed *t)
{
    return &t->stats;
}

const struct pred_timed_layer *pred_timed_layers(const struct pred_timed *t)
{
    return t->layer_stats;
}
