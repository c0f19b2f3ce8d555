/* Prefetch: what prefetch.* comes to, which hints are taken, what became of them. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "tiering/policy.h"
#include "tiering/tiering_priv.h"

/* -- settings --------------------------------------------------------------------------------- */

static void top_policy(const struct tier *t, char name[32])
{
    base_option_choice(tier_option_of("policy.eviction"), t->config.eviction, name, 32);
}

/* Slots of the tightest partition beyond those that one acquire of it may need. */
static uint64_t slots_to_spare(const struct tier *t)
{
    uint64_t spare = UINT64_MAX;
    char policy[32];
    top_policy(t, policy);
    uint64_t need = tier_policy_find(policy)->global ? (uint64_t)t->top_k * t->layers : t->top_k;
    for (uint32_t l = 0; l < t->layers; l++) {
        uint64_t slots = tier_decide_slots_of_layer(t->decide, 0, l);
        uint64_t left = slots > need ? slots - need : 0;
        if (left < spare) spare = left;
    }
    return spare;
}

int tier_prefetch_settle(struct tier *t, bool first, struct base_err *err)
{
    const struct tier_config *c = &t->config;
    char policy[32];
    top_policy(t, policy);
    struct tier_governor_options options = {
        .read_bytes = t->expert_bytes, .inflight_bytes = c->prefetch_inflight,
        .share = c->prefetch_share > 0 ? c->prefetch_share : 1, .waste_max = c->prefetch_waste,
        .probability_min = c->prefetch_probability, .fixed = c->prefetch_governor == 1,
        .displaced = tier_policy_displaced(policy, t->top_k, t->experts),
    };
    uint64_t spare = slots_to_spare(t), wanted = c->prefetch_per_layer;
    tier_governor_init(&t->governor, &options);
    t->copy_pace = t->governor;
    t->copy_pace.options.even = true;
    t->prefetch = c->prefetch != 0;
    t->prefetch_per_layer = (uint32_t)(spare < wanted ? spare : wanted);
    t->prefetch_degraded = t->prefetch && spare < wanted;
    if (first && t->prefetch_degraded && c->prefetch == 1) {
        return base_err_set(err, BASE_EBUDGET, "prefetch.enabled: %" PRIu64 " experts a layer "
                            "(prefetch.experts_per_layer_max) beside top_k %" PRIu32 " need %"
                            PRIu64 " slots, and there are %" PRIu64 ": enlarge the top tier, or "
                            "set prefetch.enabled to auto, which takes what there is",
                            wanted, t->top_k, wanted + t->top_k, spare + t->top_k);
    }
    if (!t->prefetch) {
        snprintf(t->prefetch_note, sizeof t->prefetch_note, "off: prefetch.enabled is false");
    } else if (t->prefetch_per_layer == 0) {
        t->prefetch = false;
        snprintf(t->prefetch_note, sizeof t->prefetch_note, "off: top_k %" PRIu32 " needs every "
                 "one of the %" PRIu64 " slots, so none is left to read ahead into", t->top_k,
                 spare + t->top_k);
    } else {
        int n = snprintf(t->prefetch_note, sizeof t->prefetch_note, "up to %" PRIu32
                         " experts a layer", t->prefetch_per_layer);
        if (t->prefetch_degraded) {
            snprintf(t->prefetch_note + n, sizeof t->prefetch_note - (size_t)n,
                     ": %" PRIu64 " beside top_k %" PRIu32 " need %" PRIu64 " slots, and there "
                     "are %" PRIu64, wanted, t->top_k, wanted + t->top_k, spare + t->top_k);
        }
    }
    return 0;
}

bool tier_holds_all(const struct tier *t)
{
    uint64_t all = (uint64_t)t->layers * tier_store_held(t->store);
    return tier_decide_config_get(t->decide)->tiers[0].slots >= all;
}

/* -- hints ------------------------------------------------------------------------------------ */

/* The governor's credit grows with what reads have reached so far, measured while any were under
 * way. Before anything was measured it is full. */
static void credit_earn(struct tier *t)
{
    uint64_t now = base_clock_now_ns(t->clock), read_ns = tier_span_ns(&t->cache.reads);
    if (read_ns > 0) {
        double rate = (double)t->cache.read_bytes / (double)read_ns;
        tier_governor_earn(&t->governor, (uint64_t)(rate * (double)(now - t->credit_ns)));
    } else {
        tier_governor_earn(&t->governor, UINT64_MAX);
    }
    t->credit_ns = now;
}

/* A read ahead needs credit and an idle place in the queue; a copy ahead only the place: the lane
 * up has no other traffic than experts that were asked for. Both must be worth it. */
static bool may_fetch_ahead(struct tier *t, const struct tier_hint *h, bool below)
{
    const struct tier_cache *c = &t->cache;
    if (!t->prefetch || t->layer_hinted[h->layer] >= t->prefetch_per_layer) return false;
    uint32_t open = below ? c->copies_ahead : c->prefetch_open;
    uint32_t idle = open < c->prefetch_open_max ? c->prefetch_open_max - open : 0;
    const struct tier_governor *pace = below ? &t->copy_pace : &t->governor;
    if ((double)h->probability < tier_governor_worth(pace, h->distance, open)) return false;
    if (!below) return tier_governor_admit(&t->governor, h->probability, idle);
    return idle > 0 && tier_governor_on(&t->governor) &&
           (double)h->probability >= t->governor.probability;
}

/* True if the core let the expert in. */
static bool tell(struct tier *t, const struct tier_hint *h)
{
    bool taken = tier_decide_hint(t->decide, h->layer, h->expert, h->probability, h->distance);
    tier_carry_out(t, true, false);
    t->layer_hinted[h->layer] += taken;
    tier_observe(t, &(struct tier_event){
        .kind = TIER_EVENT_HINT, .layer = h->layer, .count = 1, .ids = &h->expert,
        .probability = h->probability, .distance = h->distance, .admitted = taken,
    });
    return taken;
}

/* Of an expert that the core has in the top tier. */
static void hint_resident(struct tier *t, const struct tier_hint *h, bool has, uint64_t now_ns)
{
    /* The same again tells nobody anything. */
    if (tier_decide_hinted(t->decide, h->layer, h->expert) == h->probability) return;
    t->hint_count++;
    t->layer_hints[h->layer]++;
    tell(t, h);
    if (!has) return;
    tier_story_hint(&t->story, now_ns, h->layer * t->experts + h->expert, h->probability, "there");
}

/* Of one that is not there, or that the core has without a byte of it: its prefetch was cancelled,
 * or a warm start has not come to it. True if the core let it in. */
static bool hint_absent(struct tier *t, const struct tier_hint *h, bool top, bool has,
                        uint64_t now_ns)
{
    uint32_t key = h->layer * t->experts + h->expert;
    /* Where a demotion was dropped, or a prefetch cancelled, only a read brings it. */
    bool below = t->tiers == 2 && has && tier_decide_resident(t->decide, 1, h->layer, h->expert);
    t->hint_count += !top;
    t->layer_hints[h->layer] += !top;
    if (!may_fetch_ahead(t, h, below)) {
        t->prefetch_refused += t->prefetch;
        tier_story_hint(&t->story, now_ns, key, h->probability, "refused");
        return false;
    }
    bool taken = !top && tell(t, h);
    tier_story_hint(&t->story, now_ns, key, h->probability, top || taken ? NULL : "not taken");
    if (top) {
        tier_cache_read_ahead(&t->cache, key);
        t->layer_hinted[h->layer]++;
    }
    return taken;
}

void tier_step_prompt(struct tier *t)
{
    MUST(t->magic == TIER_MAGIC);
    t->governor.prompt = t->copy_pace.prompt = true;
}

uint32_t tier_hint(struct tier *t, const struct tier_hint *hints, uint32_t n)
{
    MUST(t->magic == TIER_MAGIC);
    uint32_t admitted = 0;
    uint64_t begin_ns = base_clock_now_ns(t->clock);
    if (t->prefetch) credit_earn(t);
    /* Of what is there first: who would leave is known before anything comes. */
    for (int absent = 0; absent < 2; absent++) {
        for (uint32_t i = 0; i < n; i++) {
            const struct tier_hint *h = &hints[i];
            MUST(h->layer < t->layers && h->expert < t->experts);
            bool top = tier_decide_resident(t->decide, 0, h->layer, h->expert);
            bool has = tier_cache_has(&t->cache, h->layer * t->experts + h->expert);
            if (!absent && top) hint_resident(t, h, has, begin_ns);
            if (absent && !(top && has)) admitted += hint_absent(t, h, top, has, begin_ns);
        }
    }
    if (admitted > 0 || t->cache.prefetch.head != TIER_NO_SLOT) tier_cache_pump(&t->cache);
    if (n > 0) t->hint_ns += base_clock_now_ns(t->clock) - begin_ns;
    return admitted;
}

/* Between two acquires of the step, what nothing that was asked for was under way; how long an
 * expert takes to come. */
static void pace(struct tier *t)
{
    const struct tier_cache *c = &t->cache;
    double acquires = (double)t->step_acquires, waited = 0;
    double step = (double)(base_clock_now_ns(t->clock) - t->step_began_ns);
    uint64_t read_ns = tier_span_ns(&c->reads);
    if (t->step_acquires == 0) return;
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) waited += (double)t->step_waits_ns[w];
    if (read_ns > 0 && c->taken_in > 0) {
        double asked = (double)(c->asked_ns - t->marks.asked_ns);
        struct tier_governor_pace reads = {
            .idle_ns = (step - asked) / acquires,
            .fetch_ns = (double)t->expert_bytes * (double)read_ns / (double)c->read_bytes,
            .work_ns = (double)c->take_in_ns / (double)c->taken_in,
            .quiet = (double)t->step_quiet / acquires,
        };
        tier_governor_pace(&t->governor, &reads);
    }
    if (c->stats.copies_up > 0) {
        struct tier_governor_pace copies = {
            .idle_ns = (step - waited) / acquires,
            .fetch_ns = (double)c->stats.copy_ns /
                        (double)(c->stats.copies_up + c->stats.copies_down),
            .quiet = (double)t->step_still / acquires,
        };
        tier_governor_pace(&t->copy_pace, &copies);
    }
}

static void govern(struct tier *t, const struct tier_account_marks *now)
{
    struct tier_governor_account account = {
        .lookups = now->lookups - t->marks.lookups,
        .stall_ns = t->hint_ns,
        .demand_bytes = now->demand_bytes - t->marks.demand_bytes,
        .useful_bytes = (now->useful - t->marks.useful) * t->expert_bytes,
        .late_bytes = (now->late - t->marks.late) * t->expert_bytes,
        .wasted_bytes = now->wasted_bytes - t->marks.wasted_bytes,
    };
    for (int w = 0; w < TIER_WAIT_CAUSE_COUNT; w++) account.stall_ns += t->step_waits_ns[w];
    pace(t);
    if (tier_governor_step(&t->governor, &account)) {
        char text[160];
        tier_governor_text(&t->governor, text, sizeof text);
        tier_observe(t, &(struct tier_event){ .kind = TIER_EVENT_SETTING, .text = text });
    }
}

void tier_prefetch_account(struct tier *t)
{
    const struct tier_cache_stats *s = &t->cache.stats;
    struct tier_account_marks now = {
        .demand_bytes = s->demand_bytes + s->demand_copy_bytes,
        .useful = s->prefetch_useful, .late = s->prefetch_late,
        .wasted_bytes = s->prefetch_wasted_bytes, .asked_ns = t->cache.asked_ns,
    };
    for (int c = 0; c < TIER_CELL_COUNT; c++) {
        now.lookups += tier_decide_counts(t->decide, 0, c)->lookups;
    }
    if (t->prefetch) govern(t, &now);
    /* While it is off too: switched on, it begins with the next step. */
    t->marks = now;
    t->step_acquires = t->step_quiet = t->step_still = t->hint_ns = 0;
    t->governor.prompt = t->copy_pace.prompt = false;
}
