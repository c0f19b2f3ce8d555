/* The decision core agrees with a slow, plain re-telling of its rules, over random events, tiers,
 * inclusion and phases; and what must never happen does not. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tiering/decide.h"

/* Check's own asserts write to a file each time they hold; there are millions here. */
#define NEED(cond) \
    do { \
        if (!(cond)) ck_abort_msg("%s, seed %d", #cond, seed); \
    } while (0)
static int seed;

/* -- the plain model: timestamps and scans, lru per layer or global --------------------------- */

enum { LAYERS = 3, EXPERTS = 12, KEYS = LAYERS * EXPERTS, MOVES = 512 };

struct cell_now {
    bool here[2];
    uint64_t used[2];           /* when touched or inserted, per tier */
    uint64_t owned[2];          /* prefill's: when it got or used it; 0 = decode's */
    unsigned pins, warm_uses;
    bool wanted;                /* granted by the running acquire */
    bool gone, hinted, decodes;
    float hint;
    unsigned hint_round;
};

struct model {
    unsigned tiers, top_slots[2][LAYERS];
    uint64_t slots[2];
    bool global[2], inclusive, prefetch, compute;
    double share;
    struct cell_now x[KEYS];
    uint64_t clock;
    unsigned rounds[LAYERS];
    unsigned high[2][LAYERS];   /* most slots ever used, per partition */
    uint64_t evictions[2], lookups[2], resident[2], cold[2], hint_used, in_place;
    struct tier_action moves[MOVES];
    unsigned move_count;
};

static unsigned part_slots(const struct model *m, unsigned tier, unsigned layer)
{
    if (m->global[tier]) return (unsigned)(m->slots[tier] < KEYS ? m->slots[tier] : KEYS);
    return m->top_slots[tier][layer];
}

static bool same_part(const struct model *m, unsigned tier, unsigned key, unsigned layer)
{
    return m->global[tier] || key / EXPERTS == layer;
}

static unsigned part_used(const struct model *m, unsigned tier, unsigned layer)
{
    unsigned n = 0;
    for (unsigned k = 0; k < KEYS; k++) n += m->x[k].here[tier] && same_part(m, tier, k, layer);
    return n;
}

static unsigned part_own(const struct model *m, unsigned tier, unsigned layer)
{
    unsigned n = 0;
    for (unsigned k = 0; k < KEYS; k++) {
        n += m->x[k].here[tier] && m->x[k].owned[tier] && same_part(m, tier, k, layer);
    }
    return n;
}

static unsigned prefill_slots(const struct model *m, unsigned tier, unsigned layer)
{
    unsigned n = (unsigned)(m->share * part_slots(m, tier, layer));
    return n ? n : 1;
}

static bool may_leave(const struct model *m, unsigned tier, unsigned k)
{
    const struct cell_now *x = &m->x[k];
    if (!x->here[tier]) return false;
    if (tier == 0) return x->pins == 0;
    if (m->compute && x->pins > 0 && !x->here[0]) return false;
    return !x->wanted && !(m->inclusive && x->here[0]);
}

/* It would be used where it lies. */
static bool is_warm(const struct model *m, unsigned k)
{
    return m->compute && m->x[k].here[1] && !m->x[k].here[0];
}

static int plain_victim(const struct model *m, unsigned tier, unsigned layer, bool prefill)
{
    int best = -1;
    if (prefill && part_own(m, tier, layer) >= prefill_slots(m, tier, layer)) {
        for (unsigned k = 0; k < KEYS; k++) {
            if (!same_part(m, tier, k, layer) || !may_leave(m, tier, k)) continue;
            if (!m->x[k].owned[tier]) continue;
            if (best < 0 || m->x[k].owned[tier] < m->x[best].owned[tier]) best = (int)k;
        }
        if (best >= 0) return best;
    }
    for (unsigned k = 0; k < KEYS; k++) {
        if (!same_part(m, tier, k, layer) || !may_leave(m, tier, k)) continue;
        if (best < 0 || m->x[k].used[tier] < m->x[best].used[tier]) best = (int)k;
    }
    return best;
}

static void move(struct model *m, enum tier_action_kind kind, unsigned tier, unsigned key)
{
    NEED(m->move_count < MOVES);
    m->moves[m->move_count++] = (struct tier_action){ kind, tier, key / EXPERTS, key % EXPERTS };
}

static void put(struct model *m, unsigned tier, unsigned key, bool prefill)
{
    struct cell_now *x = &m->x[key];
    x->here[tier] = true;
    x->used[tier] = ++m->clock;
    x->owned[tier] = prefill ? m->clock : 0;
    unsigned part = m->global[tier] ? 0 : key / EXPERTS, used = part_used(m, tier, key / EXPERTS);
    if (used > m->high[tier][part]) m->high[tier][part] = used;
}

static void drop_low(struct model *m, unsigned key)
{
    m->evictions[1]++;
    m->x[key].here[1] = false;
    m->x[key].warm_uses = 0;
    m->x[key].decodes = m->x[key].decodes && m->x[key].here[0];
    move(m, TIER_DROP, 1, key);
}

static void drop_top(struct model *m, unsigned key)
{
    struct cell_now *x = &m->x[key];
    unsigned layer = key / EXPERTS;
    m->evictions[0]++;
    x->here[0] = false;
    x->hinted = false;
    if (m->tiers == 2 && m->inclusive) {
        x->used[1] = ++m->clock;
        move(m, TIER_DROP, 0, key);
        return;
    }
    if (m->tiers == 2) {
        bool full = part_used(m, 1, layer) == part_slots(m, 1, layer);
        int v = full ? plain_victim(m, 1, layer, !x->decodes) : -1;
        if (v >= 0) drop_low(m, (unsigned)v);
        if (!full || v >= 0) {
            put(m, 1, key, !x->decodes);
            move(m, TIER_COPY_DOWN, 1, key);
            return;
        }
    }
    x->decodes = false;
    move(m, TIER_DROP, 0, key);
}

static void plain_admit(struct model *m, unsigned key, bool prefill)
{
    struct cell_now *x = &m->x[key];
    unsigned layer = key / EXPERTS;
    bool low = m->tiers == 2 && x->here[1], up = low;
    x->warm_uses = 0;
    if (low && !m->inclusive) x->here[1] = false, x->wanted = false;
    if (part_used(m, 0, layer) == part_slots(m, 0, layer)) {
        int v = plain_victim(m, 0, layer, prefill);
        NEED(v >= 0);
        drop_top(m, (unsigned)v);
    }
    if (m->tiers == 2 && m->inclusive && !low) {
        if (part_used(m, 1, layer) == part_slots(m, 1, layer)) {
            int v;
            while ((v = plain_victim(m, 1, layer, prefill)) < 0) {
                int spare = plain_victim(m, 0, layer, prefill);
                NEED(spare >= 0);
                drop_top(m, (unsigned)spare);
            }
            drop_low(m, (unsigned)v);
        }
        put(m, 1, key, prefill);
        move(m, TIER_LOAD, 1, key);
        up = true;
    }
    put(m, 0, key, prefill);
    move(m, up ? TIER_COPY_UP : TIER_LOAD, 0, key);
}

/* Inclusive: what is leased above and what is leased in place, with what other layers have above,
 * must find room in tier 1. */
static bool fits_below(const struct model *m, unsigned layer)
{
    unsigned need = 0, others = 0;
    for (unsigned k = 0; k < KEYS; k++) {
        const struct cell_now *x = &m->x[k];
        bool same = same_part(m, is_warm(m, k), k, layer);
        need += same && x->pins > 0 && !x->gone;
        others += !m->global[0] && m->global[1] && x->here[0] && k / EXPERTS != layer;
    }
    return need + others <= part_slots(m, 1, layer);
}

/* Tries the admissions of a prefix on a copy: the grant is the longest prefix that never meets a
 * partition of which nothing may leave. */
static bool fits(const struct model *now, unsigned layer, const uint32_t *ids, unsigned n,
                 bool prefill)
{
    static struct model m;
    m = *now;
    for (unsigned i = 0; i < n; i++) m.x[layer * EXPERTS + ids[i]].pins++;
    if (m.compute && m.inclusive && !fits_below(&m, layer)) return false;
    for (unsigned i = 0; i < n; i++) {
        struct cell_now *x = &m.x[layer * EXPERTS + ids[i]];
        if (x->here[0] || x->gone || is_warm(&m, layer * EXPERTS + ids[i])) continue;
        if (part_used(&m, 0, layer) == part_slots(&m, 0, layer)) {
            /* Prefill at its share takes only what is its own. */
            bool own_only = prefill && part_own(&m, 0, layer) >= prefill_slots(&m, 0, layer);
            int v = plain_victim(&m, 0, layer, prefill);
            if (v < 0 || (own_only && !m.x[v].owned[0])) return false;
            m.x[v].here[0] = false;
        }
        x->here[0] = true;
        x->owned[0] = prefill;
    }
    return true;
}

static unsigned plain_acquire(struct model *m, unsigned layer, const uint32_t *ids, unsigned n,
                              bool prefill, uint32_t *from, bool *in_place)
{
    unsigned k = 0, resident[2] = { 0, 0 };
    while (k < n && fits(m, layer, ids, k + 1, prefill)) k++;
    m->move_count = 0;
    m->rounds[layer]++;
    bool cold[2];
    for (unsigned t = 0; t < m->tiers; t++) {
        cold[t] = m->high[t][m->global[t] ? 0 : layer] < part_slots(m, t, layer);
    }
    for (unsigned i = 0; i < k; i++) {
        struct cell_now *x = &m->x[layer * EXPERTS + ids[i]];
        x->pins++;
        x->wanted = m->tiers == 2 && x->here[1];
    }
    for (unsigned i = 0; i < k; i++) {
        struct cell_now *x = &m->x[layer * EXPERTS + ids[i]];
        from[i] = x->here[0] ? 0 : m->tiers;
        in_place[i] = false;
        if (!x->here[0]) continue;
        resident[0]++;
        m->hint_used += x->hinted;
        x->hinted = false;
        x->used[0] = ++m->clock;
        if (x->owned[0]) x->owned[0] = prefill ? m->clock : 0;
        if (!prefill) x->owned[1] = 0, x->decodes = true;
    }
    for (unsigned i = 0; i < k; i++) {
        struct cell_now *x = &m->x[layer * EXPERTS + ids[i]];
        if (m->tiers == 1 || from[i] == 0 || !x->here[1]) continue;
        from[i] = 1;
        resident[1]++;
        x->used[1] = ++m->clock;
        if (x->owned[1]) x->owned[1] = prefill ? m->clock : 0;
        if (!m->compute) continue;
        in_place[i] = true;
        m->in_place++;
        x->warm_uses += !prefill;
        x->decodes |= !prefill;
    }
    for (unsigned t = 0; t < m->tiers; t++) {
        unsigned lookups = t == 0 ? k : k - resident[0];
        m->lookups[t] += lookups;
        m->resident[t] += resident[t];
        if (cold[t]) m->cold[t] += lookups;
    }
    for (unsigned i = 0; i < k; i++) {
        unsigned key = layer * EXPERTS + ids[i];
        if (m->x[key].here[0] || m->x[key].gone || in_place[i]) continue;
        plain_admit(m, key, prefill);
        if (!prefill) m->x[key].decodes = true;
    }
    for (unsigned key = 0; key < KEYS; key++) m->x[key].wanted = false;
    return k;
}

/* Of those that nobody reads any more, the one most used in place moves up. */
static void plain_release(struct model *m, unsigned layer, const uint32_t *ids, unsigned n)
{
    int best = -1;
    m->move_count = 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned key = layer * EXPERTS + ids[i];
        struct cell_now *x = &m->x[key];
        if (--x->pins > 0 || x->gone || !is_warm(m, key)) continue;
        if (x->warm_uses < TIER_DECIDE_WARM_USES) continue;
        if (best < 0 || x->warm_uses > m->x[best].warm_uses) best = (int)key;
    }
    if (best < 0) return;
    bool full = part_used(m, 0, layer) == part_slots(m, 0, layer);
    if (full && plain_victim(m, 0, layer, false) < 0) return;
    plain_admit(m, (unsigned)best, false);
    m->x[best].decodes = true;
}

static bool plain_hint(struct model *m, unsigned key, float p)
{
    struct cell_now *x = &m->x[key];
    unsigned layer = key / EXPERTS;
    m->move_count = 0;
    x->hint = p;
    x->hint_round = m->rounds[layer];
    if (!m->prefetch || x->here[0] || x->gone || x->pins > 0) return false;
    if (part_used(m, 0, layer) == part_slots(m, 0, layer)) {
        int v = plain_victim(m, 0, layer, false);
        if (v < 0) return false;
        const struct cell_now *y = &m->x[v];
        float worth = y->hint_round == m->rounds[(unsigned)v / EXPERTS] ? y->hint : 0;
        if (worth >= p) return false;
    }
    plain_admit(m, key, false);
    x->hinted = x->decodes = true;
    return true;
}

static void plain_forget(struct model *m, unsigned key)
{
    struct cell_now *x = &m->x[key];
    m->move_count = 0;
    if (x->gone) return;
    for (unsigned t = 0; t < m->tiers; t++) {
        if (x->here[t]) move(m, TIER_DROP, t, key);
        x->here[t] = false;
        x->owned[t] = 0;
    }
    x->gone = true;
    x->hinted = x->decodes = false;
}

/* -- both side by side ------------------------------------------------------------------------ */

struct pair {
    struct model m;
    struct tier_decide *d;
    bool shadow[2][KEYS];       /* residency as the actions alone would have it */
    uint32_t leased[64][EXPERTS];
    unsigned lease_layer[64], lease_n[64], leases;
};

/* Carries the actions out on a shadow: each must be possible when its turn comes. */
static void carry_out(struct pair *p)
{
    const struct tier_action *a;
    uint32_t n = tier_decide_actions(p->d, &a);
    NEED(n == p->m.move_count);
    for (uint32_t i = 0; i < n; i++) {
        const struct tier_action *b = &p->m.moves[i];
        NEED(a[i].kind == b->kind);
        NEED(a[i].tier == b->tier);
        NEED(a[i].layer == b->layer);
        NEED(a[i].expert == b->expert);
        unsigned key = b->layer * EXPERTS + b->expert, t = b->tier, count = 0;
        if (b->kind == TIER_DROP) {
            NEED(p->shadow[t][key]);
            p->shadow[t][key] = false;
            continue;
        }
        NEED(!p->shadow[t][key]);
        p->shadow[t][key] = true;
        if (b->kind == TIER_COPY_UP) {
            NEED(p->shadow[1][key]);
            if (!p->m.inclusive) p->shadow[1][key] = false;
        } else if (b->kind == TIER_COPY_DOWN) {
            NEED(p->shadow[0][key]);
            p->shadow[0][key] = false;
        }
        for (unsigned k = 0; k < KEYS; k++) {
            count += p->shadow[t][k] && same_part(&p->m, t, k, b->layer);
        }
        NEED(count <= part_slots(&p->m, t, b->layer) + (t == 1 && !p->m.inclusive));
    }
}

static void compare(struct pair *p)
{
    carry_out(p);
    for (unsigned t = 0; t < p->m.tiers; t++) {
        unsigned total = 0;
        for (unsigned k = 0; k < KEYS; k++) {
            bool here = tier_decide_resident(p->d, t, k / EXPERTS, k % EXPERTS);
            NEED(here == p->m.x[k].here[t]);
            NEED(here == p->shadow[t][k]);
            total += here;
        }
        NEED(total == tier_decide_resident_count(p->d, t));
        for (unsigned l = 0; l < LAYERS; l++) {
            NEED(part_used(&p->m, t, l) <= part_slots(&p->m, t, l));
        }
    }
    for (unsigned k = 0; k < KEYS && p->m.tiers == 2; k++) {
        if (p->m.inclusive) {
            NEED(!p->shadow[0][k] || p->shadow[1][k]);
        } else {
            NEED(!p->shadow[0][k] || !p->shadow[1][k]);
        }
        NEED(p->m.x[k].pins == 0 || p->m.x[k].gone || p->shadow[0][k] ||
             (p->m.compute && p->shadow[1][k]));
    }
}

static void pair_open(struct pair *p, struct base_rng *rng)
{
    struct tier_decide_config c = {
        .layers = LAYERS, .experts = EXPERTS, .top_k = 3, .half_life_tokens = 16,
    };
    static uint32_t quotas[2][LAYERS];
    memset(p, 0, sizeof *p);
    struct model *m = &p->m;
    m->tiers = c.tier_count = 1 + (unsigned)base_rng_below(rng, 2);
    m->inclusive = c.inclusive = m->tiers == 2 && base_rng_below(rng, 2);
    m->compute = c.warm_compute = m->tiers == 2 && base_rng_below(rng, 2);
    m->prefetch = c.prefetch = base_rng_below(rng, 4) != 0;
    m->share = c.prefill_share = (double)base_rng_below(rng, 5) / 4;
    for (unsigned t = 0; t < m->tiers; t++) {
        bool global = base_rng_below(rng, 3) == 0, uneven = base_rng_below(rng, 2);
        m->global[t] = global;
        strcpy(c.tiers[t].policy, global ? "lru_global" : "lru");
        m->slots[t] = LAYERS + base_rng_below(rng, LAYERS * EXPERTS);
        uint64_t sum = 0;
        for (unsigned l = 0; l < LAYERS; l++) {
            unsigned q = 1 + (unsigned)base_rng_below(rng, EXPERTS);
            quotas[t][l] = q;
            sum += q;
        }
        if (uneven) m->slots[t] = sum, c.tiers[t].quotas = quotas[t];
        c.tiers[t].slots = m->slots[t];
        for (unsigned l = 0; l < LAYERS; l++) {
            unsigned even = (unsigned)(m->slots[t] / LAYERS + (l < m->slots[t] % LAYERS));
            unsigned q = uneven ? quotas[t][l] : even;
            m->top_slots[t][l] = q < EXPERTS ? q : EXPERTS;
        }
    }
    struct base_err err = { 0 };
    int rc = tier_decide_create(&p->d, &c, &err);
    if (m->inclusive && rc == BASE_EBUDGET) {
        pair_open(p, rng);      /* hbm above dram: rightly refused; draw again */
        return;
    }
    ck_assert_msg(rc == 0, "%s", err.text);
}

static void pair_acquire(struct pair *p, struct base_rng *rng)
{
    unsigned layer = (unsigned)base_rng_below(rng, LAYERS),
             n = 1 + (unsigned)base_rng_below(rng, 5);
    bool prefill = base_rng_below(rng, 3) == 0;
    if (prefill) n = 1 + (unsigned)base_rng_below(rng, EXPERTS);
    uint32_t ids[EXPERTS], from[EXPERTS];
    struct tier_found found[EXPERTS];
    for (uint32_t i = 0; i < EXPERTS; i++) ids[i] = i;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = i + (uint32_t)base_rng_below(rng, EXPERTS - i), id = ids[i];
        ids[i] = ids[j];
        ids[j] = id;
    }
    bool in_place[EXPERTS];
    unsigned k = plain_acquire(&p->m, layer, ids, n, prefill, from, in_place);
    uint32_t got = tier_decide_acquire(p->d, layer, ids, n, prefill ? TIER_PREFILL : TIER_DECODE,
                                       found);
    NEED(got == k);
    if (p->leases == 0) NEED(k > 0);
    for (unsigned i = 0; i < k; i++) {
        NEED(found[i].from == from[i]);
        NEED(found[i].in_place == in_place[i]);
    }
    if (k == 0) return;
    memcpy(p->leased[p->leases], ids, k * sizeof ids[0]);
    p->lease_layer[p->leases] = layer;
    p->lease_n[p->leases++] = k;
}

static void pair_release(struct pair *p, unsigned i)
{
    unsigned layer = p->lease_layer[i], n = p->lease_n[i];
    tier_decide_release(p->d, layer, p->leased[i], n);
    plain_release(&p->m, layer, p->leased[i], n);
    p->leases--;
    memcpy(p->leased[i], p->leased[p->leases], sizeof p->leased[i]);
    p->lease_layer[i] = p->lease_layer[p->leases];
    p->lease_n[i] = p->lease_n[p->leases];
}

static void pair_count(struct pair *p)
{
    for (unsigned t = 0; t < p->m.tiers; t++) {
        struct tier_counts sum = { 0 };
        uint64_t layer_lookups = 0, layer_evictions = 0;
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            const struct tier_counts *n = tier_decide_counts(p->d, t, c);
            NEED(n->lookups == n->resident + n->misses);
            sum.lookups += n->lookups;
            sum.resident += n->resident;
            sum.evictions += n->evictions;
            sum.prefetch_used += n->prefetch_used;
            sum.in_place += n->in_place;
        }
        for (unsigned l = 0; l < LAYERS; l++) {
            layer_lookups += tier_decide_layer_counts(p->d, t, l)->lookups;
            layer_evictions += tier_decide_layer_counts(p->d, t, l)->evictions;
        }
        NEED(sum.lookups == p->m.lookups[t]);
        NEED(layer_lookups == p->m.lookups[t]);
        NEED(sum.resident == p->m.resident[t]);
        NEED(sum.evictions == p->m.evictions[t]);
        NEED(layer_evictions == p->m.evictions[t]);
        NEED(tier_decide_counts(p->d, t, TIER_CELL_COLD)->lookups == p->m.cold[t]);
        if (t == 0) NEED(sum.prefetch_used == p->m.hint_used);
        NEED(sum.in_place == (t == 1 ? p->m.in_place : 0));
    }
}

START_TEST(agrees_with_the_plain_model)
{
    static struct pair p;
    struct base_rng rng;
    seed = _i;
    base_rng_init(&rng, (uint64_t)seed);
    pair_open(&p, &rng);
    for (unsigned step = 0; step < 1500; step++) {
        uint64_t what = base_rng_below(&rng, 100);
        unsigned key = (unsigned)base_rng_below(&rng, KEYS);
        if (what < 55) {
            while (p.leases && (p.leases > 3 || base_rng_below(&rng, 4))) {
                pair_release(&p, 0);
                compare(&p);
            }
            pair_acquire(&p, &rng);
        } else if (what < 99) {
            float prob = (float)base_rng_below(&rng, 9) / 8;
            bool taken = plain_hint(&p.m, key, prob);
            NEED(taken ==
                 tier_decide_hint(p.d, key / EXPERTS, key % EXPERTS, prob, 1));
        } else if (base_rng_below(&rng, 3) == 0) {
            plain_forget(&p.m, key);
            tier_decide_forget(p.d, key / EXPERTS, key % EXPERTS);
        } else {
            continue;
        }
        compare(&p);
    }
    pair_count(&p);
    tier_decide_destroy(p.d);
}
END_TEST

/* -- every policy: what must never happen ----------------------------------------------------- */

struct shadow {
    bool here[2][KEYS];
    unsigned pins[KEYS], slots[2];
    bool inclusive, compute, gone[KEYS];
};

static void shadow_apply(struct shadow *s, const struct tier_decide *d, unsigned tiers)
{
    const struct tier_action *a;
    uint32_t n = tier_decide_actions(d, &a);
    unsigned count[2] = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        unsigned key = a[i].layer * EXPERTS + a[i].expert, t = a[i].tier;
        bool drop = a[i].kind == TIER_DROP;
        NEED(s->here[t][key] == drop);
        s->here[t][key] = !drop;
        if (a[i].kind == TIER_COPY_DOWN) {
            NEED(s->here[0][key]);
            s->here[0][key] = false;
        }
        if (a[i].kind == TIER_COPY_UP) {
            NEED(s->here[1][key]);
            s->here[1][key] = s->inclusive;
        }
    }
    for (unsigned key = 0; key < KEYS; key++) {
        for (unsigned t = 0; t < tiers; t++) {
            NEED(s->here[t][key] == tier_decide_resident(d, t, key / EXPERTS, key % EXPERTS));
            count[t] += s->here[t][key];
        }
        NEED(s->pins[key] == 0 || s->gone[key] || s->here[0][key] ||
             (s->compute && s->here[1][key]));
        NEED(!s->inclusive || !s->here[0][key] || s->here[1][key]);
        NEED(s->inclusive || !s->here[0][key] || !s->here[1][key]);
    }
    for (unsigned t = 0; t < tiers; t++) NEED(count[t] <= s->slots[t]);
}

static void shadow_open(struct shadow *s, struct tier_decide **d, struct base_rng *rng)
{
    static const char *const names[] = { "lru", "lru_global", "lfu", "lru_with_frequency", "arc",
                                         "lru_with_prediction", "slru", "s3fifo", "sieve",
                                         "pinned" };
    struct tier_decide_config c = {
        .layers = LAYERS, .experts = EXPERTS, .top_k = 3, .half_life_tokens = 4,
        .tier_count = 1 + (unsigned)base_rng_below(rng, 2), .prefetch = true,
        .prefill_share = base_rng_unit(rng), .inclusive = base_rng_below(rng, 2),
    };
    memset(s, 0, sizeof *s);
    s->inclusive = c.tier_count == 2 && c.inclusive;
    s->compute = c.warm_compute = c.tier_count == 2 && base_rng_below(rng, 2);
    for (unsigned t = 0; t < c.tier_count; t++) {
        strcpy(c.tiers[t].policy, names[base_rng_below(rng, 10)]);
        c.tiers[t].slots = s->slots[t] = LAYERS + (unsigned)base_rng_below(rng, KEYS - LAYERS);
    }
    if (tier_decide_create(d, &c, NULL) < 0) shadow_open(s, d, rng);    /* inclusive, too small */
}

START_TEST(no_policy_breaks_the_rules)
{
    struct shadow s;
    struct tier_decide *d;
    struct base_rng rng;
    seed = _i;
    base_rng_init(&rng, (uint64_t)seed);
    shadow_open(&s, &d, &rng);
    for (unsigned step = 0; step < 1000; step++) {
        uint32_t layer = (uint32_t)base_rng_below(&rng, LAYERS), ids[EXPERTS];
        uint32_t n = 0, k, base = layer * EXPERTS, one = (uint32_t)base_rng_below(&rng, EXPERTS);
        struct tier_found found[EXPERTS];
        bool acted = true;
        switch (base_rng_below(&rng, 8)) {
        case 0:
        case 1:
            tier_decide_hint(d, layer, one, (float)base_rng_unit(&rng), 1);
            break;
        case 2:
            acted = false;      /* done at each release */
            for (uint32_t i = 0; i < EXPERTS; i++) {
                while (s.pins[base + i] > 0) {
                    tier_decide_release(d, layer, &i, 1);
                    s.pins[base + i]--;
                    shadow_apply(&s, d, s.slots[1] ? 2 : 1);
                }
            }
            break;
        case 3:
            acted = base_rng_below(&rng, 40) == 0;
            if (!acted) break;
            tier_decide_forget(d, layer, one);
            s.gone[base + one] = true;
            break;
        default:
            for (uint32_t i = 0; i < EXPERTS; i++) {
                if (base_rng_below(&rng, 4) == 0) ids[n++] = i;
            }
            k = tier_decide_acquire(d, layer, ids, n, step % 3 ? TIER_DECODE : TIER_PREFILL, found);
            for (uint32_t i = 0; i < k; i++) s.pins[base + ids[i]]++;
        }
        if (acted) shadow_apply(&s, d, s.slots[1] ? 2 : 1);
    }
    tier_decide_destroy(d);
}
END_TEST

/* -- single rules ----------------------------------------------------------------------------- */

static struct tier_decide_config config_of(uint32_t layers, uint32_t experts, uint32_t top_k,
                                           uint64_t slots, const char *policy)
{
    struct tier_decide_config c = {
        .layers = layers, .experts = experts, .top_k = top_k, .tier_count = 1,
        .half_life_tokens = 16, .prefill_share = 0.5, .strict = true, .prefetch = true,
    };
    c.tiers[0].slots = slots;
    strcpy(c.tiers[0].policy, policy);
    return c;
}

START_TEST(small_budgets_are_refused_with_the_arithmetic)
{
    struct tier_decide *d;
    struct base_err err = { 0 };
    struct tier_decide_config c = config_of(7, 64, 6, 41, "lru");
    ck_assert_int_eq(tier_decide_create(&d, &c, &err), BASE_EBUDGET);
    ck_assert_ptr_null(d);
    ck_assert_ptr_nonnull(strstr(err.text, "42"));
    c = config_of(7, 64, 6, 41, "lru_global");
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_decide_create(&d, &c, &err), BASE_EBUDGET);
    ck_assert_ptr_nonnull(strstr(err.text, "7 layers x top_k 6 = 42"));
    c.strict = false;
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    tier_decide_destroy(d);
    c = config_of(7, 64, 6, 42, "lru");
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    tier_decide_destroy(d);
}
END_TEST

START_TEST(what_cannot_work_is_refused)
{
    struct tier_decide *d;
    struct base_err err = { 0 };
    struct tier_decide_config c = config_of(7, 64, 6, 112, "lrru");
    ck_assert_int_eq(tier_decide_create(&d, &c, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "lrru"));
    c = config_of(7, 64, 6, 112, "belady");
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), BASE_ECONFIG);
    c = config_of(7, 0, 6, 112, "lru");
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), BASE_ECONFIG);
    c = config_of(2, 64, 6, 32, "lru");
    c.tier_count = 2;
    c.inclusive = true;
    c.tiers[1] = c.tiers[0];
    c.tiers[1].slots = 30;
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_decide_create(&d, &c, &err), BASE_EBUDGET);
    ck_assert_ptr_nonnull(strstr(err.text, "inclusive"));
}
END_TEST

/* Prefill in waves through half the slots leaves decode's hot half alone. */
START_TEST(prefill_leaves_decode_its_share)
{
    struct tier_decide *d;
    struct tier_decide_config c = config_of(1, 64, 4, 16, "lru");
    struct tier_found found[64];
    uint32_t hot[16], chunk[32];
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    for (uint32_t i = 0; i < 16; i++) hot[i] = i;
    for (uint32_t i = 0; i < 32; i++) chunk[i] = 32 + i;
    ck_assert_uint_eq(tier_decide_acquire(d, 0, hot, 16, TIER_DECODE, found), 16);
    tier_decide_release(d, 0, hot, 16);
    for (uint32_t done = 0; done < 32;) {
        uint32_t k = tier_decide_acquire(d, 0, chunk + done, 32 - done, TIER_PREFILL, found);
        ck_assert_uint_eq(k, 8);        /* half of 16 */
        tier_decide_release(d, 0, chunk + done, k);
        done += k;
    }
    /* The eight used last by decode are still here; a decode use makes one of prefill's
     * decode's. */
    for (uint32_t i = 8; i < 16; i++) ck_assert(tier_decide_resident(d, 0, 0, i));
    ck_assert_uint_eq(tier_decide_acquire(d, 0, &chunk[31], 1, TIER_DECODE, found), 1);
    ck_assert_uint_eq(found[0].from, 0);
    tier_decide_release(d, 0, &chunk[31], 1);
    uint32_t k = tier_decide_acquire(d, 0, chunk, 16, TIER_PREFILL, found);
    ck_assert_uint_eq(k, 8);
    ck_assert(tier_decide_resident(d, 0, 0, chunk[31]));
    tier_decide_release(d, 0, chunk, k);
    tier_decide_destroy(d);
}
END_TEST

/* An expert without a hint still has its habit, which a weak hint does not displace. */
START_TEST(hints_are_weighed_against_use)
{
    struct tier_decide *d;
    struct tier_decide_config c = config_of(1, 8, 1, 1, "lru_with_prediction");
    struct tier_found found[1];
    uint32_t one = 0;
    c.half_life_tokens = 16;
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    for (int i = 0; i < 16; i++) {                          /* used half of the time, by weight */
        ck_assert_uint_eq(tier_decide_acquire(d, 0, &one, 1, TIER_DECODE, found), 1);
        tier_decide_release(d, 0, &one, 1);
    }
    ck_assert(!tier_decide_hint(d, 0, 2, 0.4f, 1));
    ck_assert(tier_decide_resident(d, 0, 0, 0));
    ck_assert(!tier_decide_hint(d, 0, 0, 0.3f, 1));         /* is here, and known to be likelier */
    ck_assert(!tier_decide_hint(d, 0, 2, 0.7f, 1));
    ck_assert(tier_decide_hint(d, 0, 2, 0.9f, 1));
    ck_assert(tier_decide_resident(d, 0, 0, 2) && !tier_decide_resident(d, 0, 0, 0));
    tier_decide_destroy(d);
}
END_TEST

START_TEST(hints_admit_only_the_likelier)
{
    struct tier_decide *d;
    struct tier_decide_config c = config_of(1, 8, 2, 2, "lru");
    struct tier_found found[2];
    uint32_t ids[2] = { 0, 1 }, two = 2;
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    ck_assert(tier_decide_hint(d, 0, 4, 0.0f, 1));          /* a free slot costs nobody */
    ck_assert_uint_eq(tier_decide_acquire(d, 0, ids, 2, TIER_DECODE, found), 2);
    ck_assert(!tier_decide_hint(d, 0, 2, 1.0f, 1));         /* all leased */
    tier_decide_release(d, 0, ids, 2);
    ck_assert(!tier_decide_hint(d, 0, 0, 0.6f, 1));         /* is here already */
    ck_assert(!tier_decide_hint(d, 0, 2, 0.6f, 1));         /* 0 would leave: as likely */
    ck_assert(tier_decide_hint(d, 0, 2, 0.7f, 1));
    ck_assert(!tier_decide_resident(d, 0, 0, 0));
    ck_assert_uint_eq(tier_decide_acquire(d, 0, &two, 1, TIER_DECODE, found), 1);
    ck_assert_uint_eq(found[0].from, 0);
    uint64_t admitted = 0, used = 0;
    for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
        admitted += tier_decide_counts(d, 0, cell)->prefetch_admissions;
        used += tier_decide_counts(d, 0, cell)->prefetch_used;
    }
    ck_assert_uint_eq(admitted, 2);
    ck_assert_uint_eq(used, 1);
    tier_decide_destroy(d);
}
END_TEST

START_TEST(restore_fills_free_slots_only)
{
    struct tier_decide *d;
    struct tier_decide_config c = config_of(1, 8, 2, 3, "lru");
    uint32_t ids[4] = { 5, 1, 5, 2 };
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    ck_assert_uint_eq(tier_decide_restore(d, 0, 0, ids, NULL, 4), 3);
    ck_assert_uint_eq(tier_decide_restore(d, 0, 0, (uint32_t[]){ 7 }, NULL, 1), 0);
    ck_assert_uint_eq(tier_decide_resident_count(d, 0), 3);
    ck_assert_uint_eq(tier_decide_counts(d, 0, TIER_CELL_COLD)->lookups, 0);
    /* The one given last stays longest. */
    struct tier_found found;
    ck_assert_uint_eq(tier_decide_acquire(d, 0, (uint32_t[]){ 7 }, 1, TIER_DECODE, &found), 1);
    ck_assert(!tier_decide_resident(d, 0, 0, 5));
    tier_decide_destroy(d);
}
END_TEST

START_TEST(wrong_events_are_refused)
{
    struct tier_decide *d;
    struct tier_decide_config c = config_of(2, 8, 2, 8, "lru");
    uint32_t ids[2] = { 3, 3 };
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    struct tier_event e = { .kind = TIER_EVENT_ACQUIRE, .phase = TIER_DECODE, .count = 2,
                            .granted = 2, .ids = ids };
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), BASE_EFORMAT);
    ids[1] = 8;
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), BASE_EFORMAT);
    ids[1] = 7;
    e.layer = 2;
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), BASE_EFORMAT);
    e.layer = 1;
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), 0);
    e.kind = TIER_EVENT_RELEASE;
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), 0);
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), BASE_EFORMAT);
    e.kind = TIER_EVENT_ACQUIRE;
    e.granted = 1;
    struct base_err err = { 0 };
    ck_assert_int_eq(tier_decide_apply(d, &e, &err), BASE_EMISMATCH);
    ck_assert_ptr_nonnull(strstr(err.text, "1 were granted"));
    tier_decide_destroy(d);
}
END_TEST

/* What a file says may end in a sentence, never in an assertion. */
START_TEST(leases_beyond_counting_are_refused)
{
    struct tier_decide *d;
    struct tier_decide_config c = config_of(2, 8, 2, 8, "lru");
    struct tier_event e = { .kind = TIER_EVENT_ACQUIRE, .phase = TIER_DECODE, .layer = 1,
                            .count = 2, .granted = 2, .ids = (uint32_t[]){ 3, 5 } };
    struct base_err err = { 0 };
    ck_assert_int_eq(tier_decide_create(&d, &c, NULL), 0);
    for (uint32_t i = 0; i < UINT16_MAX; i++) ck_assert_int_eq(tier_decide_apply(d, &e, NULL), 0);
    ck_assert_int_eq(tier_decide_apply(d, &e, &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "acquire of expert 3 of moe layer 1, which is leased 65535 times: "
                               "more than can be counted");
    e.kind = TIER_EVENT_RELEASE;
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), 0);
    e.kind = TIER_EVENT_ACQUIRE;
    ck_assert_int_eq(tier_decide_apply(d, &e, NULL), 0);
    tier_decide_destroy(d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("decide");
    TCase *rules = tcase_create("rules");
    tcase_add_test(rules, small_budgets_are_refused_with_the_arithmetic);
    tcase_add_test(rules, what_cannot_work_is_refused);
    tcase_add_test(rules, prefill_leaves_decode_its_share);
    tcase_add_test(rules, hints_admit_only_the_likelier);
    tcase_add_test(rules, hints_are_weighed_against_use);
    tcase_add_test(rules, restore_fills_free_slots_only);
    tcase_add_test(rules, wrong_events_are_refused);
    tcase_add_test(rules, leases_beyond_counting_are_refused);
    suite_add_tcase(suite, rules);
    TCase *model = tcase_create("model");
    tcase_add_loop_test(model, agrees_with_the_plain_model, 1, 121);    /* _i is the seed */
    tcase_add_loop_test(model, no_policy_breaks_the_rules, 1, 201);
    tcase_set_timeout(model, 60);
    suite_add_tcase(suite, model);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
