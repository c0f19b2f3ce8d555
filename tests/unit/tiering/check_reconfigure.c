/* A core that is reconfigured while it works: what is leased stays, what it says it does is what it
 * holds, its events replayed give the same residents and counts, and a refused change changes
 * nothing. Random settings, events and changes; seeds are printed. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tiering/decide.h"

enum { LAYERS = 4, EXPERTS = 16, KEYS = LAYERS * EXPERTS, TOP_K = 3, LEASES_MAX = 6, SEEDS = 400 };

#define NEED(cond) \
    do { \
        if (!(cond)) ck_abort_msg("%s, seed %d", #cond, seed); \
    } while (0)
static int seed;

static const char *const policies[] = {
    "lru", "lru_global", "lfu", "lru_with_frequency", "lru_with_prediction",
    "slru", "s3fifo", "sieve", "arc", "pinned",
};
enum { POLICIES = sizeof policies / sizeof policies[0] };

struct lease {
    uint32_t layer, count, ids[EXPERTS];
};

struct world {
    struct tier_decide *live, *replayed;
    uint32_t tiers;
    bool inclusive, compute;
    bool here[2][KEYS];         /* as the actions say */
    uint64_t count[2];          /* residents after the last event */
    struct lease leases[LEASES_MAX];
    unsigned lease_count, leased[KEYS];
    uint64_t changes, refused, over_seen;
};

static uint64_t between(struct base_rng *rng, uint64_t low, uint64_t high)
{
    return low + base_rng_below(rng, high - low + 1);
}

static struct tier_decide_change draw(struct base_rng *rng, uint32_t tiers,
                                      uint32_t quotas[2][LAYERS])
{
    struct tier_decide_change c = {
        .adaptive = base_rng_below(rng, 4) == 0,
        .prefetch = base_rng_below(rng, 2),
        .half_life_tokens = (double)base_rng_below(rng, 30),
        .prefill_share = (double)between(rng, 0, 10) / 10,
    };
    for (uint32_t t = 0; t < tiers; t++) {
        const char *name = policies[base_rng_below(rng, POLICIES)];
        snprintf(c.tiers[t].policy, sizeof c.tiers[t].policy, "%s", name);
        c.tiers[t].slots = between(rng, LAYERS, KEYS + 4);
        if (base_rng_below(rng, 3)) continue;
        uint64_t sum = 0;
        for (uint32_t l = 0; l < LAYERS; l++) {
            quotas[t][l] = (uint32_t)between(rng, 1, EXPERTS);
            sum += quotas[t][l];
        }
        c.tiers[t].quotas = quotas[t];
        if (c.tiers[t].slots < sum && base_rng_below(rng, 4)) c.tiers[t].slots = sum;
    }
    return c;
}

static struct tier_decide *create(struct base_rng *rng, struct world *w)
{
    for (int tries = 0; tries < 1000; tries++) {
        uint32_t quotas[2][LAYERS];
        struct base_err err = { 0 };
        struct tier_decide *core;
        struct tier_decide_change c = draw(rng, w->tiers, quotas);
        struct tier_decide_config config = {
            .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K, .tier_count = w->tiers,
            .inclusive = w->inclusive,
            .warm_compute = w->compute, .adaptive = c.adaptive, .prefetch = c.prefetch,
            .half_life_tokens = c.half_life_tokens, .prefill_share = c.prefill_share,
        };
        memcpy(config.tiers, c.tiers, sizeof config.tiers);
        if (tier_decide_create(&core, &config, &err) < 0) continue;
        int rc = tier_decide_create(&w->replayed, &config, &err);
        ck_assert_int_eq(rc, 0);
        return core;
    }
    ck_abort_msg("no settings drawn from seed %d are taken", seed);
    return NULL;
}

/* What the actions of the last call did, step by step. */
static void follow(struct world *w)
{
    const struct tier_action *actions;
    uint32_t n = tier_decide_actions(w->live, &actions);
    for (uint32_t i = 0; i < n; i++) {
        const struct tier_action *a = &actions[i];
        uint32_t key = a->layer * EXPERTS + a->expert;
        switch (a->kind) {
        case TIER_LOAD:
            NEED(!w->here[a->tier][key]);
            w->here[a->tier][key] = true;
            break;
        case TIER_COPY_UP:
            NEED(w->here[1][key] && !w->here[0][key]);
            w->here[0][key] = true;
            w->here[1][key] = w->inclusive;
            break;
        case TIER_COPY_DOWN:
            NEED(w->here[0][key] && !w->here[1][key] && w->leased[key] == 0);
            w->here[0][key] = false;
            w->here[1][key] = true;
            break;
        case TIER_DROP:
            NEED(w->here[a->tier][key] && (a->tier == 1 || w->leased[key] == 0));
            NEED(!w->compute || w->here[0][key] || w->leased[key] == 0);
            w->here[a->tier][key] = false;
            break;
        }
    }
}

static void check(struct world *w)
{
    const struct tier_decide_config *config = tier_decide_config_get(w->live);
    for (uint32_t t = 0; t < w->tiers; t++) {
        uint64_t count = 0, over = tier_decide_over(w->live, t), held = 0;
        for (uint32_t k = 0; k < KEYS; k++) {
            bool here = tier_decide_resident(w->live, t, k / EXPERTS, k % EXPERTS);
            NEED(here == w->here[t][k]);
            NEED(here == tier_decide_resident(w->replayed, t, k / EXPERTS, k % EXPERTS));
            NEED(t == 1 || w->leased[k] == 0 || here || (w->compute && w->here[1][k]));
            NEED(!w->inclusive || t == 1 || !here || w->here[1][k]);
            NEED(w->inclusive || t == 1 || !here || !w->here[1][k]);
            count += here;
            held += w->leased[k] > 0;
        }
        NEED(count == tier_decide_resident_count(w->live, t));
        NEED(count <= config->tiers[t].slots + over);
        NEED(over <= held);
        /* The tier as a whole outgrows its size only by what it held when it shrank. */
        NEED(count <= config->tiers[t].slots || count <= w->count[t]);
        w->count[t] = count;
        w->over_seen += over > 0;
    }
}

static void replay(struct world *w, const struct tier_event *event)
{
    struct base_err err = { 0 };
    int rc = tier_decide_apply(w->replayed, event, &err);
    if (rc < 0) ck_abort_msg("seed %d: %s", seed, err.text);
}

static void acquire(struct base_rng *rng, struct world *w)
{
    struct lease *lease = &w->leases[w->lease_count];
    struct tier_found found[EXPERTS];
    enum tier_phase phase = base_rng_below(rng, 3) ? TIER_DECODE : TIER_PREFILL;
    uint32_t n = (uint32_t)between(rng, 1, phase == TIER_DECODE ? TOP_K : 8), ids[EXPERTS];
    if (w->lease_count == LEASES_MAX) return;
    for (uint32_t e = 0; e < EXPERTS; e++) ids[e] = e;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = (uint32_t)between(rng, i, EXPERTS - 1), e = ids[i];
        ids[i] = ids[j];
        ids[j] = e;
    }
    lease->layer = (uint32_t)base_rng_below(rng, LAYERS);
    lease->count = tier_decide_acquire(w->live, lease->layer, ids, n, phase, found);
    memcpy(lease->ids, ids, sizeof ids);
    follow(w);
    for (uint32_t i = 0; i < lease->count; i++) w->leased[lease->layer * EXPERTS + ids[i]]++;
    replay(w, &(struct tier_event){ .kind = TIER_EVENT_ACQUIRE, .phase = phase, .count = n,
                                    .layer = lease->layer, .ids = ids, .granted = lease->count });
    if (lease->count > 0) w->lease_count++;
}

static void release(struct world *w, unsigned which)
{
    struct lease lease = w->leases[which];
    w->leases[which] = w->leases[--w->lease_count];
    for (uint32_t i = 0; i < lease.count; i++) w->leased[lease.layer * EXPERTS + lease.ids[i]]--;
    tier_decide_release(w->live, lease.layer, lease.ids, lease.count);
    follow(w);
    replay(w, &(struct tier_event){ .kind = TIER_EVENT_RELEASE, .layer = lease.layer,
                                    .ids = lease.ids, .count = lease.count });
}

static void hint(struct base_rng *rng, struct world *w)
{
    uint32_t layer = (uint32_t)base_rng_below(rng, LAYERS);
    uint32_t expert = (uint32_t)base_rng_below(rng, EXPERTS);
    float p = (float)base_rng_below(rng, 100) / 100;
    bool taken = tier_decide_hint(w->live, layer, expert, p, 1);
    follow(w);
    replay(w, &(struct tier_event){ .kind = TIER_EVENT_HINT, .layer = layer, .ids = &expert,
                                    .count = 1, .probability = p, .distance = 1,
                                    .admitted = taken });
}

static void change(struct base_rng *rng, struct world *w)
{
    uint32_t quotas[2][LAYERS];
    char text[TIER_DECIDE_TEXT_MAX];
    struct base_err err = { 0 };
    struct tier_decide_change c = draw(rng, w->tiers, quotas);
    int rc = tier_decide_change_format(&c, LAYERS, w->tiers, text, sizeof text);
    ck_assert_int_eq(rc, 0);
    rc = tier_decide_reconfigure(w->live, &c, &err);
    if (rc < 0) {
        NEED((rc == BASE_ECONFIG || rc == BASE_EBUDGET) && err.text[0]);
        w->refused++;
        return;
    }
    w->changes++;
    follow(w);
    replay(w, &(struct tier_event){ .kind = TIER_EVENT_SETTING, .text = text });
}

static void run(int number, uint64_t *changes, uint64_t *refused, uint64_t *over)
{
    struct base_rng rng;
    struct world w = { .tiers = 1 + (uint32_t)number % 2, .inclusive = number % 4 == 3,
                       .compute = number % 2 && number % 8 > 4 };
    seed = number;
    base_rng_init(&rng, (uint64_t)number);
    w.live = create(&rng, &w);
    for (int step = 0; step < 600; step++) {
        uint64_t what = base_rng_below(&rng, 20);
        if (what < 9) acquire(&rng, &w);
        else if (what < 16 && w.lease_count) release(&w, base_rng_below(&rng, w.lease_count));
        else if (what < 19) hint(&rng, &w);
        else change(&rng, &w);
        check(&w);
    }
    while (w.lease_count > 0) release(&w, 0);
    check(&w);
    for (uint32_t t = 0; t < w.tiers; t++) {
        NEED(tier_decide_over(w.live, t) == 0);
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            const struct tier_counts *a = tier_decide_counts(w.live, t, c);
            NEED(memcmp(a, tier_decide_counts(w.replayed, t, c), sizeof *a) == 0);
        }
    }
    tier_decide_destroy(w.live);
    tier_decide_destroy(w.replayed);
    *changes += w.changes;
    *refused += w.refused;
    *over += w.over_seen;
}

START_TEST(holds_what_it_says_and_replays)
{
    uint64_t changes = 0, refused = 0, over = 0;
    for (int number = 1; number <= SEEDS; number++) run(number, &changes, &refused, &over);
    printf("seeds 1..%d: %llu changes, %llu refused, leases held more than the slots at %llu "
           "moments\n", SEEDS, (unsigned long long)changes, (unsigned long long)refused,
           (unsigned long long)over);
    ck_assert_uint_gt(changes, 2000);
    ck_assert_uint_gt(refused, 100);
    ck_assert_uint_gt(over, 100);
}
END_TEST

static struct tier_decide *small_core(const char *policy, uint64_t slots)
{
    struct tier_decide *core;
    struct base_err err = { 0 };
    struct tier_decide_config config = {
        .layers = 2, .experts = 8, .top_k = 1, .tier_count = 1, .prefill_share = 1,
        .half_life_tokens = 16, .tiers = { { .slots = slots } },
    };
    snprintf(config.tiers[0].policy, sizeof config.tiers[0].policy, "%s", policy);
    ck_assert_int_eq(tier_decide_create(&core, &config, &err), 0);
    return core;
}

static void use(struct tier_decide *core, uint32_t layer, uint32_t expert)
{
    struct tier_found found;
    ck_assert_uint_eq(tier_decide_acquire(core, layer, &expert, 1, TIER_DECODE, &found), 1);
    tier_decide_release(core, layer, &expert, 1);
}

static void set(struct tier_decide *core, const char *policy, uint64_t slots)
{
    struct base_err err = { 0 };
    struct tier_decide_change change = { .prefill_share = 1, .half_life_tokens = 16,
                                         .tiers = { { .slots = slots } } };
    snprintf(change.tiers[0].policy, sizeof change.tiers[0].policy, "%s", policy);
    int rc = tier_decide_reconfigure(core, &change, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

/* Whatever the kinds, the new policy lets go first of what the old one would have. But for s3fifo:
 * which of its queues gives depends on its size. */
START_TEST(order_is_inherited)
{
    for (int from = 0; from < POLICIES; from++) {
        const char *to = policies[_i];
        if (strcmp(policies[from], "s3fifo") == 0 || strcmp(to, "s3fifo") == 0) continue;
        struct tier_decide *core = small_core(policies[from], 8);
        if (strcmp(policies[from], to) == 0) to = strcmp(to, "lru") ? "lru" : "sieve";
        for (uint32_t e = 0; e < 4; e++) use(core, 0, e), use(core, 1, e);
        struct tier_decide *twin = small_core(policies[from], 8);
        for (uint32_t e = 0; e < 4; e++) use(twin, 0, e), use(twin, 1, e);
        set(core, to, 8);
        ck_assert_uint_eq(tier_decide_resident_count(core, 0), 8);
        set(core, to, 4);
        set(twin, policies[from], 4);
        for (uint32_t k = 0; k < 16; k++) {
            ck_assert_msg(tier_decide_resident(core, 0, k / 8, k % 8) ==
                          tier_decide_resident(twin, 0, k / 8, k % 8), "%s -> %s: expert %u",
                          policies[from], to, k);
        }
        tier_decide_destroy(core);
        tier_decide_destroy(twin);
    }
}
END_TEST

/* The same kind of policy keeps what it counted: a hot expert survives a smaller cache. */
START_TEST(counts_survive_another_size)
{
    struct tier_decide *core = small_core("lfu", 8);
    for (int i = 0; i < 5; i++) use(core, 0, 7);
    for (uint32_t e = 0; e < 3; e++) use(core, 0, e);
    set(core, "lfu", 2);
    ck_assert(tier_decide_resident(core, 0, 0, 7));
    set(core, "lfu", 8);
    for (uint32_t e = 0; e < 3; e++) use(core, 0, e);
    use(core, 0, 3);
    ck_assert(tier_decide_resident(core, 0, 0, 7));
    tier_decide_destroy(core);
}
END_TEST

/* One layer goes round in 6 experts, the other in 3, now these and now those: the first needs the
 * slots. */
START_TEST(adaptive_quotas_follow_what_is_missed)
{
    struct tier_decide *cores[2];
    struct base_err err = { 0 };
    uint64_t resident[2] = { 0 };
    for (int adaptive = 0; adaptive < 2; adaptive++) {
        struct tier_decide_config config = {
            .layers = 2, .experts = 16, .top_k = 1, .tier_count = 1, .prefill_share = 1,
            .adaptive = adaptive, .tiers = { { .slots = 10, .policy = "lru" } },
        };
        ck_assert_int_eq(tier_decide_create(&cores[adaptive], &config, &err), 0);
        for (uint32_t i = 0; i < 6000; i++) {
            use(cores[adaptive], 0, i % 6);
            use(cores[adaptive], 1, i % 3 + i / 1000 % 5 * 3);
        }
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            resident[adaptive] += tier_decide_counts(cores[adaptive], 0, c)->resident;
        }
    }
    ck_assert_uint_eq(tier_decide_slots_of_layer(cores[0], 0, 0), 5);
    ck_assert_uint_gt(tier_decide_slots_of_layer(cores[1], 0, 0), 5);
    ck_assert_uint_eq(tier_decide_slots_of_layer(cores[1], 0, 0) +
                      tier_decide_slots_of_layer(cores[1], 0, 1), 10);
    ck_assert_uint_gt(resident[1], resident[0] + 2000);
    for (int i = 0; i < 2; i++) tier_decide_destroy(cores[i]);
}
END_TEST

START_TEST(bad_texts_are_refused)
{
    static const char *const bad[] = {
        "decide.tiers=", "decide.tiers=8/lru", "decide.tiers=8/lru/-", "decide.tiers=x/lru/-",
        "decide.tiers=8/lru/4x1 decide.adaptive=0 decide.half_life=1 decide.prefill_share=1 "
        "decide.prefetch=0",
        "decide.tiers=8/lru/4x3 decide.adaptive=0 decide.half_life=1 decide.prefill_share=1 "
        "decide.prefetch=0",
        "decide.tiers=8/lru/- decide.adaptive=2 decide.half_life=1 decide.prefill_share=1 "
        "decide.prefetch=0",
        "decide.tiers=8/lru/- decide.adaptive=0 decide.half_life=nan decide.prefill_share=1 "
        "decide.prefetch=0",
        "decide.tiers=8/no_such/- decide.adaptive=0 decide.half_life=1 decide.prefill_share=1 "
        "decide.prefetch=0",
        "decide.tiers=8/lru/- decide.adaptive=0 decide.half_life=1 decide.prefill_share=1 "
        "decide.prefetch=0 ",
        "decide.tiers=0/lru/- decide.adaptive=0 decide.half_life=1 decide.prefill_share=1 "
        "decide.prefetch=0",
    };
    struct tier_decide *core = small_core("lru", 8);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct base_err err = { 0 };
        struct tier_event event = { .kind = TIER_EVENT_SETTING, .text = bad[i] };
        ck_assert_msg(tier_decide_apply(core, &event, &err) == BASE_EFORMAT, "%s", bad[i]);
        ck_assert_uint_eq(tier_decide_slots_of_layer(core, 0, 0), 4);
    }
    struct base_err err = { 0 };
    struct tier_event note = { .kind = TIER_EVENT_SETTING, .text = "somebody.else=1" };
    ck_assert_int_eq(tier_decide_apply(core, &note, &err), 0);
    tier_decide_destroy(core);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("reconfigure");
    TCase *tests = tcase_create("reconfigure");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, holds_what_it_says_and_replays);
    tcase_add_loop_test(tests, order_is_inherited, 0, POLICIES);
    tcase_add_test(tests, counts_survive_another_size);
    tcase_add_test(tests, adaptive_quotas_follow_what_is_missed);
    tcase_add_test(tests, bad_texts_are_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
