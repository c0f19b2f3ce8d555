/* Every policy names the victims that its rule, told over plain arrays, names; and on real routing
 * they rank as measured: Belady above all, the decayed lfu above lru. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tiering/decide.h"
#include "tiering/policy.h"

#define NEED(cond) \
    do { \
        if (!(cond)) ck_abort_msg("%s, policy %s, seed %d", #cond, name, seed); \
    } while (0)
static int seed;
static const char *name;

enum { EXPERTS = 72, HALF_LIFE = 3 };

/* -- plain models ----------------------------------------------------------------------------- */

struct row {                    /* experts in order, oldest first */
    uint32_t at[EXPERTS];
    uint32_t n;
};

struct plain {
    uint32_t slots;
    struct tier_hold held[EXPERTS];
    bool here[EXPERTS], began, filled;
    struct row rows[4];
    double count[EXPERTS], hint[EXPERTS], target;
    uint64_t stamp[EXPERTS], clock;
    unsigned uses[EXPERTS];
    uint32_t hand, coming;      /* TIER_NO_EXPERT = none */
};

static int row_find(const struct row *r, uint32_t e)
{
    for (uint32_t i = 0; i < r->n; i++) {
        if (r->at[i] == e) return (int)i;
    }
    return -1;
}

static bool row_take(struct row *r, uint32_t e)
{
    int i = row_find(r, e);
    if (i < 0) return false;
    memmove(&r->at[i], &r->at[i + 1], (r->n - (uint32_t)i - 1) * sizeof r->at[0]);
    r->n--;
    return true;
}

static void row_add(struct row *r, uint32_t e)
{
    r->at[r->n++] = e;
}

static uint32_t row_oldest(const struct plain *p, const struct row *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        if (!p->held[r->at[i]].count) return r->at[i];
    }
    return TIER_NO_EXPERT;
}

static void use(struct plain *p, uint32_t e)
{
    p->count[e] += 1;
    p->stamp[e] = ++p->clock;
}

static void decay(struct plain *p)
{
    for (uint32_t e = 0; e < EXPERTS; e++) {
        p->count[e] *= pow(0.5, 1.0 / HALF_LIFE);
        p->hint[e] = -1;
    }
}

static void nothing(struct plain *p)
{
    (void)p;
}

static void lru_touch(struct plain *p, uint32_t e)
{
    row_take(&p->rows[0], e);
    row_add(&p->rows[0], e);
}

static void lru_insert(struct plain *p, uint32_t e, bool used)
{
    (void)used;
    row_add(&p->rows[0], e);
}

static void lru_remove(struct plain *p, uint32_t e)
{
    row_take(&p->rows[0], e);
}

static uint32_t lru_victim(struct plain *p)
{
    return row_oldest(p, &p->rows[0]);
}

static void lfu_insert(struct plain *p, uint32_t e, bool used)
{
    p->stamp[e] = ++p->clock;
    if (used) p->count[e] += 1;
}

static void lfu_remove(struct plain *p, uint32_t e)
{
    (void)p, (void)e;
}

static double worth(const struct plain *p, uint32_t e)
{
    double share = p->count[e] * (1 - pow(0.5, 1.0 / HALF_LIFE));
    return p->hint[e] >= 0 ? p->hint[e] + share : share;
}

static uint32_t worth_victim(struct plain *p)
{
    uint32_t v = TIER_NO_EXPERT;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        if (!p->here[e] || p->held[e].count) continue;
        if (v == TIER_NO_EXPERT || worth(p, e) < worth(p, v) ||
            (worth(p, e) == worth(p, v) && p->stamp[e] < p->stamp[v])) {
            v = e;
        }
    }
    return v;
}

static void mixed_touch(struct plain *p, uint32_t e)
{
    use(p, e);
    lru_touch(p, e);
}

static void mixed_insert(struct plain *p, uint32_t e, bool used)
{
    lfu_insert(p, e, used);
    row_add(&p->rows[0], e);
}

static uint32_t mixed_victim(struct plain *p)
{
    const struct row *r = &p->rows[0];
    uint32_t v = TIER_NO_EXPERT;
    for (uint32_t i = 0; i < r->n; i++) {
        uint32_t e = r->at[i];
        if (i >= (r->n + 1) / 2 && v != TIER_NO_EXPERT) break;
        if (!p->held[e].count && (v == TIER_NO_EXPERT || p->count[e] < p->count[v])) v = e;
    }
    return v;
}

/* rows[0] probation, rows[1] protected */
static void slru_touch(struct plain *p, uint32_t e)
{
    uint32_t most = p->slots * 4 / 5;
    if (row_take(&p->rows[1], e)) {
        row_add(&p->rows[1], e);
        return;
    }
    row_take(&p->rows[0], e);
    row_add(&p->rows[most ? 1 : 0], e);
    if (p->rows[1].n <= most) return;
    uint32_t oldest = p->rows[1].at[0];
    row_take(&p->rows[1], oldest);
    row_add(&p->rows[0], oldest);
}

static void two_remove(struct plain *p, uint32_t e)
{
    if (!row_take(&p->rows[0], e)) row_take(&p->rows[1], e);
}

static uint32_t two_victim(struct plain *p)
{
    uint32_t v = row_oldest(p, &p->rows[0]);
    return v != TIER_NO_EXPERT ? v : row_oldest(p, &p->rows[1]);
}

/* rows[0] moving, rows[1] fixed */
static void pinned_begin(struct plain *p)
{
    p->began = true;
}

static void pinned_touch(struct plain *p, uint32_t e)
{
    int row = row_find(&p->rows[1], e) >= 0;
    two_remove(p, e);
    row_add(&p->rows[row], e);
}

static void pinned_insert(struct plain *p, uint32_t e, bool used)
{
    row_add(&p->rows[!p->began && !used], e);
}

static void sieve_touch(struct plain *p, uint32_t e)
{
    p->uses[e] = 1;
}

static void sieve_insert(struct plain *p, uint32_t e, bool used)
{
    (void)used;
    p->uses[e] = 0;
    row_add(&p->rows[0], e);
}

static void sieve_remove(struct plain *p, uint32_t e)
{
    uint32_t at = (uint32_t)row_find(&p->rows[0], e);
    if (p->hand == e) p->hand = at + 1 < p->rows[0].n ? p->rows[0].at[at + 1] : TIER_NO_EXPERT;
    row_take(&p->rows[0], e);
}

static uint32_t sieve_victim(struct plain *p)
{
    const struct row *r = &p->rows[0];
    if (row_oldest(p, r) == TIER_NO_EXPERT) return TIER_NO_EXPERT;
    uint32_t i = p->hand == TIER_NO_EXPERT ? 0 : (uint32_t)row_find(r, p->hand);
    for (;; i = (i + 1) % r->n) {
        uint32_t e = r->at[i];
        if (p->held[e].count) continue;
        if (!p->uses[e]) return p->hand = e;
        p->uses[e] = 0;
    }
}

/* rows: 0 small, 1 main, 2 ghost */
static void s3_touch(struct plain *p, uint32_t e)
{
    if (p->uses[e] < 3) p->uses[e]++;
}

static uint32_t s3_small(const struct plain *p)
{
    return p->slots / 10 ? p->slots / 10 : 1;
}

static void s3_insert(struct plain *p, uint32_t e, bool used)
{
    bool ghost = row_take(&p->rows[2], e);
    (void)used;
    p->uses[e] = 0;
    bool fill = !p->filled && p->rows[0].n >= s3_small(p);
    row_add(&p->rows[ghost || fill ? 1 : 0], e);
}

static void s3_remove(struct plain *p, uint32_t e)
{
    p->filled = true;
    if (row_take(&p->rows[1], e)) return;
    row_take(&p->rows[0], e);
    row_add(&p->rows[2], e);
    if (p->rows[2].n > p->slots - p->slots / 10) row_take(&p->rows[2], p->rows[2].at[0]);
}

static uint32_t s3_from_small(struct plain *p)
{
    struct row old = p->rows[0];
    for (uint32_t i = 0; i < old.n; i++) {
        uint32_t e = old.at[i];
        if (p->held[e].count) continue;
        if (p->uses[e] < 2) return e;
        row_take(&p->rows[0], e);
        row_add(&p->rows[1], e);
        p->uses[e] = 0;
    }
    return TIER_NO_EXPERT;
}

static uint32_t s3_from_main(struct plain *p)
{
    while (row_oldest(p, &p->rows[1]) != TIER_NO_EXPERT) {
        uint32_t e = row_oldest(p, &p->rows[1]);
        if (p->uses[e] == 0) return e;
        p->uses[e]--;
        row_take(&p->rows[1], e);
        row_add(&p->rows[1], e);
    }
    return TIER_NO_EXPERT;
}

static uint32_t s3_victim(struct plain *p)
{
    uint32_t v;
    if (p->rows[1].n > p->slots - s3_small(p) || p->rows[0].n == 0) {
        v = s3_from_main(p);
        if (v == TIER_NO_EXPERT) v = s3_from_small(p);
    } else {
        v = s3_from_small(p);
    }
    return v != TIER_NO_EXPERT ? v : s3_from_main(p);
}

/* rows: 0 T1, 1 T2, 2 B1, 3 B2 */
static void arc_touch(struct plain *p, uint32_t e)
{
    two_remove(p, e);
    row_add(&p->rows[1], e);
}

static void arc_incoming(struct plain *p, uint32_t e, bool used)
{
    double b1 = p->rows[2].n, b2 = p->rows[3].n;
    p->coming = e;
    if (!used) return;
    if (row_find(&p->rows[2], e) >= 0) p->target = fmin(p->slots, p->target + fmax(1, b2 / b1));
    if (row_find(&p->rows[3], e) >= 0) p->target = fmax(0, p->target - fmax(1, b1 / b2));
}

static void arc_insert(struct plain *p, uint32_t e, bool used)
{
    (void)used;
    bool known = row_take(&p->rows[2], e) || row_take(&p->rows[3], e);
    row_add(&p->rows[known], e);
    p->coming = TIER_NO_EXPERT;
}

static void arc_remove(struct plain *p, uint32_t e)
{
    struct row *r = p->rows;
    uint32_t x = p->coming;
    bool known = row_find(&r[2], x) >= 0 || row_find(&r[3], x) >= 0;
    uint32_t more = x != TIER_NO_EXPERT && !known;
    row_add(row_take(&r[0], e) ? &r[2] : (row_take(&r[1], e), &r[3]), e);
    while (r[2].n > 0 && r[0].n + r[2].n + more > p->slots) row_take(&r[2], r[2].at[0]);
    while (r[3].n > 0 && r[0].n + r[1].n + r[2].n + r[3].n + more > 2 * p->slots) {
        row_take(&r[3], r[3].at[0]);
    }
}

static uint32_t arc_victim(struct plain *p)
{
    double t1 = p->rows[0].n;
    bool in_b2 = row_find(&p->rows[3], p->coming) >= 0;
    int from = t1 >= 1 && ((in_b2 && t1 == p->target) || t1 > p->target) ? 0 : 1;
    uint32_t v = row_oldest(p, &p->rows[from]);
    return v != TIER_NO_EXPERT ? v : row_oldest(p, &p->rows[!from]);
}

static const struct rule {
    const char *name;
    void (*begin)(struct plain *p);
    void (*touch)(struct plain *p, uint32_t e);
    void (*incoming)(struct plain *p, uint32_t e, bool used);
    void (*insert)(struct plain *p, uint32_t e, bool used);
    void (*remove)(struct plain *p, uint32_t e);
    uint32_t (*victim)(struct plain *p);
    bool worth;                 /* equal worth is as good: sums may differ in the last bit */
} rules[] = {
    { "lru", nothing, lru_touch, NULL, lru_insert, lru_remove, lru_victim, false },
    { "lru_global", nothing, lru_touch, NULL, lru_insert, lru_remove, lru_victim, false },
    { "lfu", decay, use, NULL, lfu_insert, lfu_remove, worth_victim, true },
    { "lru_with_frequency", decay, mixed_touch, NULL, mixed_insert, lru_remove, mixed_victim,
      true },
    { "lru_with_prediction", decay, use, NULL, lfu_insert, lfu_remove, worth_victim, true },
    { "slru", nothing, slru_touch, NULL, lru_insert, two_remove, two_victim, false },
    { "pinned", pinned_begin, pinned_touch, NULL, pinned_insert, two_remove, two_victim, false },
    { "sieve", nothing, sieve_touch, NULL, sieve_insert, sieve_remove, sieve_victim, false },
    { "s3fifo", nothing, s3_touch, NULL, s3_insert, s3_remove, s3_victim, false },
    { "arc", nothing, arc_touch, arc_incoming, arc_insert, arc_remove, arc_victim, false },
};
enum { RULES = sizeof rules / sizeof rules[0], SEEDS = 20 };

/* -- side by side ----------------------------------------------------------------------------- */

static uint32_t residents(const struct plain *p)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < EXPERTS; e++) n += p->here[e];
    return n;
}

static uint32_t agreed_victim(struct plain *p, const struct rule *rule, struct tier_policy *policy)
{
    uint32_t v = policy->ops->victim(policy), w = rule->victim(p);
    NEED(policy->ops->victim(policy) == v);
    if (v == w) return v;
    NEED(rule->worth && v != TIER_NO_EXPERT && w != TIER_NO_EXPERT && !p->held[v].count);
    NEED(fabs(worth(p, v) - worth(p, w)) < 1e-9);
    return v;
}

static void leave(struct plain *p, const struct rule *rule, struct tier_policy *policy, uint32_t e)
{
    policy->ops->remove(policy, e);
    rule->remove(p, e);
    p->here[e] = false;
}

static void enter(struct plain *p, const struct rule *rule, struct tier_policy *policy, uint32_t e,
                  bool used)
{
    if (residents(p) == p->slots) {
        if (policy->ops->incoming) policy->ops->incoming(policy, e, used);
        if (rule->incoming) rule->incoming(p, e, used);
        uint32_t v = agreed_victim(p, rule, policy);
        if (v == TIER_NO_EXPERT) return;
        leave(p, rule, policy, v);
    }
    policy->ops->insert(policy, e, used);
    rule->insert(p, e, used);
    p->here[e] = true;
}

static void one_acquire(struct plain *p, const struct rule *rule, struct tier_policy *policy,
                        struct base_rng *rng, uint64_t now)
{
    uint32_t ids[EXPERTS], n = 1 + (uint32_t)base_rng_below(rng, p->slots < 4 ? p->slots : 4);
    bool hit[EXPERTS] = { false };
    for (uint32_t i = 0; i < n;) {
        /* Skewed, so that there are hits to count. */
        double u = base_rng_unit(rng);
        uint32_t e = (uint32_t)(u * u * EXPERTS), j = 0;
        while (j < i && ids[j] != e) j++;
        if (j == i) ids[i++] = e;
    }
    if (policy->ops->begin) policy->ops->begin(policy, now);
    rule->begin(p);
    for (uint32_t i = 0; i < n; i++) p->held[ids[i]].count++;
    for (uint32_t i = 0; i < n; i++) {
        hit[i] = p->here[ids[i]];
        if (!hit[i]) continue;
        policy->ops->touch(policy, &ids[i], 1);
        rule->touch(p, ids[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!hit[i]) enter(p, rule, policy, ids[i], true);
    }
    for (uint32_t i = 0; i < n; i++) p->held[ids[i]].count--;
}

/* Resident or not, what is worth more by the rule is worth more to the policy. */
static void worth_agrees(const struct plain *p, const struct tier_policy *policy, uint32_t a,
                         uint32_t b)
{
    double more = worth(p, a) - worth(p, b);
    if (!policy->ops->worth || fabs(more) < 1e-9) return;
    double said = policy->ops->worth(policy, a) - policy->ops->worth(policy, b);
    ck_assert_msg((said > 0) == (more > 0), "%s, seed %d: experts %u and %u", name, seed, a, b);
}

START_TEST(agrees_with_its_rule)
{
    const struct rule *rule = &rules[_i % RULES];
    struct plain p = { .hand = TIER_NO_EXPERT, .coming = TIER_NO_EXPERT };
    struct tier_policy *policy;
    struct base_rng rng;
    seed = _i / RULES;
    name = rule->name;
    base_rng_init(&rng, (uint64_t)_i);
    /* A few slots, or more than policies look through one by one. */
    p.slots = 1 + (uint32_t)base_rng_below(&rng, seed % 2 ? 20 : 64);
    for (uint32_t e = 0; e < EXPERTS; e++) p.hint[e] = -1;
    struct tier_policy_options options = {
        .expert_count = EXPERTS, .slots = p.slots, .half_life = HALF_LIFE, .held = p.held,
        .layer_experts = EXPERTS,
    };
    ck_assert_int_eq(tier_policy_create(&policy, tier_policy_find(name), &options), 0);
    for (uint32_t e = 0; e < p.slots / 3; e++) enter(&p, rule, policy, e, false);   /* restored */
    for (uint64_t now = 0; now < 3000; now++) {
        uint32_t e = (uint32_t)base_rng_below(&rng, EXPERTS);
        switch (base_rng_below(&rng, 12)) {
        case 0:                 /* leased by another for a while */
            p.held[e].count = p.held[e].count ? 0 : p.here[e];
            break;
        case 1:                 /* fetched ahead of need */
            if (!p.here[e]) enter(&p, rule, policy, e, false);
            break;
        case 2:                 /* lost */
            if (p.here[e] && base_rng_below(&rng, 4) == 0) leave(&p, rule, policy, e);
            if (!p.here[e]) p.held[e].count = 0;
            break;
        case 3:                 /* used in the tier above */
            if (p.here[e] || !policy->ops->seen) break;
            policy->ops->seen(policy, e);
            p.count[e] += 1;
            break;
        case 4:
            if (!policy->ops->hint) break;
            p.hint[e] = (double)base_rng_below(&rng, 9) / 8;
            policy->ops->hint(policy, e, (float)p.hint[e]);
            worth_agrees(&p, policy, e, (uint32_t)base_rng_below(&rng, EXPERTS));
            break;
        default:
            one_acquire(&p, rule, policy, &rng, now);
        }
    }
    tier_policy_destroy(policy);
}
END_TEST

/* Counts that grow towards the end of a double's range are scaled, and nobody notices. */
START_TEST(short_half_lives_stay_exact)
{
    static const char *const names[] = { "lfu", "lru_with_frequency", "lru_with_prediction" };
    struct tier_hold held[EXPERTS] = { 0 };
    for (int i = 0; i < 3; i++) {
        struct tier_policy *policy;
        struct tier_policy_options options = {
            .expert_count = EXPERTS, .slots = 3, .half_life = 0.02, .held = held,
            .layer_experts = EXPERTS,
        };
        name = names[i];
        ck_assert_int_eq(tier_policy_create(&policy, tier_policy_find(name), &options), 0);
        for (uint32_t e = 0; e < 3; e++) policy->ops->insert(policy, e, true);
        for (uint64_t now = 0; now < 5000; now++) {
            /* With such a half-life only the last use counts: the order is that of lru. */
            policy->ops->begin(policy, now);
            uint32_t v = policy->ops->victim(policy);
            ck_assert_uint_eq(v, now % 3);
            policy->ops->touch(policy, &v, 1);
        }
        tier_policy_destroy(policy);
    }
}
END_TEST

START_TEST(what_is_wrong_is_refused)
{
    struct tier_hold held[1] = { 0 };
    struct tier_policy *policy;
    struct tier_policy_options options = {
        .expert_count = 1, .slots = 1, .half_life = 1, .held = held, .layer_experts = 1,
    };
    ck_assert_ptr_null(tier_policy_find("lrru"));
    for (size_t i = 0; tier_policy_name(i); i++) {
        const struct tier_policy_ops *ops = tier_policy_find(tier_policy_name(i));
        ck_assert_ptr_nonnull(ops);
        /* Only the future needs more than this. */
        int rc = tier_policy_create(&policy, ops, &options);
        ck_assert_int_eq(rc, ops->replay_only ? -EINVAL : 0);
        tier_policy_destroy(policy);
        options.slots = 0;
        ck_assert_int_eq(tier_policy_create(&policy, ops, &options), -EINVAL);
        ck_assert_ptr_null(policy);
        options.slots = 1;
    }
}
END_TEST

/* -- real routing ----------------------------------------------------------------------------- */

enum { G_LAYERS = 24, G_EXPERTS = 32, G_TOP = 4, G_EVENTS_MAX = 30000 * G_LAYERS };

static uint8_t (*routes)[G_TOP];
static uint64_t (*nexts)[G_TOP];
static size_t route_count;

/* Every number list of "experts", in order. */
static void read_routes(FILE *from)
{
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, from) > 0) {
        char *at = strstr(line, "\"experts\"");
        if (!at || !strchr(at, '[')) continue;          /* the header has a number there */
        if (route_count == G_EVENTS_MAX * (size_t)G_TOP) break;     /* enough to rank them */
        for (at = strchr(at, '['); *at;) {
            if (*at >= '0' && *at <= '9') {
                if (route_count == G_EVENTS_MAX * (size_t)G_TOP) abort();
                ((uint8_t *)routes)[route_count++] = (uint8_t)strtoul(at, &at, 10);
            } else {
                at++;
            }
        }
    }
    free(line);
    route_count /= G_TOP;
}

static void find_nexts(void)
{
    uint64_t next[G_LAYERS][G_EXPERTS];
    memset(next, 0xff, sizeof next);
    for (size_t i = route_count; i-- > 0;) {
        for (int j = 0; j < G_TOP; j++) nexts[i][j] = next[i % G_LAYERS][routes[i][j]];
        for (int j = 0; j < G_TOP; j++) next[i % G_LAYERS][routes[i][j]] = i;
    }
}

static uint64_t next_use(void *context, uint32_t layer, uint32_t expert, uint64_t now)
{
    (void)context;
    if (now % G_LAYERS != layer) ck_abort_msg("asked for a layer outside the running acquire");
    for (int j = 0; j < G_TOP; j++) {
        if (routes[now][j] == expert) return nexts[now][j];
    }
    ck_abort_msg("asked for an expert outside the running acquire");
}

static double resident_rate(const char *policy, uint32_t slots, uint64_t *resident)
{
    struct tier_decide *d;
    struct base_err err = { 0 };
    struct tier_found found[G_TOP];
    struct tier_decide_config c = {
        .layers = G_LAYERS, .experts = G_EXPERTS, .top_k = G_TOP, .tier_count = 1,
        .half_life_tokens = 16, .prefill_share = 1, .strict = true, .next_use = next_use,
    };
    c.tiers[0].slots = slots * G_LAYERS;
    snprintf(c.tiers[0].policy, sizeof c.tiers[0].policy, "%s", policy);
    ck_assert_msg(tier_decide_create(&d, &c, &err) == 0, "%s", err.text);
    for (size_t i = 0; i < route_count; i++) {
        uint32_t ids[G_TOP], layer = (uint32_t)(i % G_LAYERS);
        for (int j = 0; j < G_TOP; j++) ids[j] = routes[i][j];
        if (tier_decide_acquire(d, layer, ids, G_TOP, TIER_DECODE, found) != G_TOP) abort();
        tier_decide_release(d, layer, ids, G_TOP);
    }
    *resident = 0;
    for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
        *resident += tier_decide_counts(d, 0, cell)->resident;
    }
    tier_decide_destroy(d);
    return 100.0 * (double)*resident / (double)(route_count * G_TOP);
}

/* LRU told once more, knowing nothing of the core: the time of last use, and a scan. */
static uint64_t independent_lru(uint32_t slots)
{
    static uint64_t used[G_LAYERS][G_EXPERTS];
    uint64_t hits = 0, now = 1;
    memset(used, 0, sizeof used);
    for (size_t i = 0; i < route_count; i++) {
        uint64_t *u = used[i % G_LAYERS], event = now;
        for (int j = 0; j < G_TOP; j++) {
            if (!u[routes[i][j]]) continue;
            u[routes[i][j]] = now++;
            hits++;
        }
        for (int j = 0; j < G_TOP; j++) {
            uint32_t count = 0, old = G_EXPERTS, e = routes[i][j];
            if (u[e] >= event) continue;
            for (uint32_t k = 0; k < G_EXPERTS; k++) {
                bool safe = false;
                count += u[k] > 0;
                for (int m = 0; m < G_TOP; m++) safe |= routes[i][m] == k;
                if (u[k] && !safe && (old == G_EXPERTS || u[k] < u[old])) old = k;
            }
            if (count == slots) u[old] = 0;
            u[e] = now++;
        }
    }
    return hits;
}

START_TEST(policies_rank_as_measured)
{
    static const uint32_t slots[] = { 8, 12, 16 };      /* 25, 37.5 and 50% of 32 */
    const char *data = getenv("EXPERTIER_DATA");
    char command[600];
    snprintf(command, sizeof command, "xz -dc '%s/routing/gptoss20b_dev.jsonl.xz' 2>/dev/null",
             data ? data : "");
    FILE *from = popen(command, "r");
    routes = calloc(G_EVENTS_MAX, sizeof *routes);
    nexts = calloc(G_EVENTS_MAX, sizeof *nexts);
    if (from) read_routes(from);
    if (from) pclose(from);
    if (route_count == 0) {
        printf("skipped policies_rank_as_measured: needs xz and EXPERTIER_DATA, a folder with "
               "routing/gptoss20b_dev.jsonl.xz\n");
        return;
    }
    find_nexts();
    for (int s = 0; s < 3; s++) {
        uint64_t resident, best, lru_resident;
        double lru = resident_rate("lru", slots[s], &lru_resident), lfu = 0;
        double belady = resident_rate("belady", slots[s], &best);
        printf("%u of %d slots: belady %.2f lru %.2f", slots[s], G_EXPERTS, belady, lru);
        ck_assert_uint_eq(lru_resident, independent_lru(slots[s]));
        for (size_t i = 0; tier_policy_name(i); i++) {
            const struct tier_policy_ops *ops = tier_policy_find(tier_policy_name(i));
            if (ops->replay_only || ops->global || strcmp(ops->name, "lru") == 0) continue;
            double rate = resident_rate(ops->name, slots[s], &resident);
            printf(" %s %.2f", ops->name, rate);
            ck_assert_uint_le(resident, best);
            if (strcmp(ops->name, "lfu") == 0) lfu = rate;
        }
        printf("\n");
        if (s == 0) ck_assert_double_ge(lfu, lru + 1);
    }
    free(routes);
    free(nexts);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("policies");
    TCase *all = tcase_create("rules");
    tcase_add_loop_test(all, agrees_with_its_rule, 0, RULES * SEEDS);
    tcase_add_test(all, short_half_lives_stay_exact);
    tcase_add_test(all, what_is_wrong_is_refused);
    tcase_set_timeout(all, 60);
    suite_add_tcase(suite, all);
    TCase *real = tcase_create("real");
    tcase_add_test(real, policies_rank_as_measured);
    tcase_set_timeout(real, 100);
    suite_add_tcase(suite, real);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
