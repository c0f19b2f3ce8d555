/* The governor keeps its budget, turns prefetch off where it does not pay and on again when it
 * does, and costs next to nothing where it never pays. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tiering/governor.h"

enum { READ = 1000, LOOKUPS = 64, SEEDS = 20 };

static struct tier_governor make(bool fixed)
{
    struct tier_governor g;
    struct tier_governor_options options = {
        .read_bytes = READ, .inflight_bytes = 4 * READ, .share = 0.5, .waste_max = 0.3,
        .probability_min = 0.1, .fixed = fixed,
    };
    tier_governor_init(&g, &options);
    return g;
}

/* A world in which a step stalls `without` ns, `with` while prefetch is on, and noise of a share
 * either way; prefetched bytes come to use by `precision`. */
struct world {
    double without, with, noise, precision;
    uint64_t stalled, ideal, steps, on;
};

static void run(struct tier_governor *g, struct world *w, struct base_rng *rng, unsigned steps)
{
    for (unsigned i = 0; i < steps; i++) {
        bool on = tier_governor_on(g);
        double swing = 1 + w->noise * (2 * base_rng_unit(rng) - 1);
        double stall = (on ? w->with : w->without) * swing;
        double best = (w->with < w->without ? w->with : w->without) * swing;
        struct tier_governor_account a = {
            .lookups = LOOKUPS, .stall_ns = (uint64_t)stall, .demand_bytes = 20 * READ,
        };
        if (on) {
            a.useful_bytes = (uint64_t)(10 * READ * w->precision);
            a.wasted_bytes = (uint64_t)(10 * READ * (1 - w->precision));
        }
        tier_governor_step(g, &a);
        w->stalled += (uint64_t)stall;
        w->ideal += (uint64_t)best;
        w->steps++;
        w->on += on;
    }
}

START_TEST(costs_little_where_it_never_pays)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct tier_governor g = make(false);
        struct world w = { .without = 1e6, .with = 1.2e6, .noise = 0.05, .precision = 0.5 };
        struct base_rng rng;
        base_rng_init(&rng, seed);
        run(&g, &w, &rng, 8000);
        double over = (double)w.stalled / (double)w.ideal - 1;
        ck_assert_msg(over < 0.01, "seed %llu: %.2f%% slower than without prefetch",
                      (unsigned long long)seed, 100 * over);
        ck_assert(!tier_governor_on(&g) || g.state == TIER_GOVERNOR_PROBE);
    }
}
END_TEST

START_TEST(keeps_what_pays)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct tier_governor g = make(false);
        struct world w = { .without = 1e6, .with = 0.7e6, .noise = 0.05, .precision = 0.9 };
        struct base_rng rng;
        base_rng_init(&rng, seed);
        run(&g, &w, &rng, 8000);
        ck_assert_msg((double)w.on > 0.95 * (double)w.steps, "seed %llu: on in %llu of %llu steps",
                      (unsigned long long)seed, (unsigned long long)w.on,
                      (unsigned long long)w.steps);
    }
}
END_TEST

START_TEST(follows_a_change)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct tier_governor g = make(false);
        struct world w = { .without = 1e6, .with = 0.7e6, .noise = 0.05, .precision = 0.9 };
        struct base_rng rng;
        base_rng_init(&rng, seed);
        run(&g, &w, &rng, 1000);
        ck_assert_int_eq(g.switches, 1);        /* it came, and stayed */
        w.with = 1.3e6;
        run(&g, &w, &rng, 4000);
        ck_assert_uint_ge(g.switches, 2);
        ck_assert(!tier_governor_on(&g) || g.state == TIER_GOVERNOR_PROBE);
        w.with = 0.6e6;
        run(&g, &w, &rng, 4000);
        ck_assert(tier_governor_on(&g) || g.state == TIER_GOVERNOR_PAUSE);
    }
}
END_TEST

START_TEST(waste_raises_what_is_asked)
{
    struct tier_governor g = make(false);
    struct world w = { .without = 1e6, .with = 0.7e6, .precision = 0.1 };
    struct base_rng rng;
    base_rng_init(&rng, 1);
    /* 9 wasted for 21 needed: more than 0.3. */
    run(&g, &w, &rng, 200);
    double high = g.probability;
    ck_assert_msg(high > 0.5, "%.3f", high);
    ck_assert(!tier_governor_admit(&g, (float)(high - 0.01), 4));
    w.precision = 1;
    run(&g, &w, &rng, 1000);
    ck_assert_msg(g.probability < 0.11 && g.probability >= 0.1, "%.3f", g.probability);
}
END_TEST

/* Never more than what was earned by share and what may be in flight, for any calls, but for what
 * is as good as sure. */
START_TEST(budget_holds)
{
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct tier_governor g = make(seed % 2);
        struct base_rng rng;
        double earned = 0, taken = 0;
        g.state = TIER_GOVERNOR_ON;
        base_rng_init(&rng, seed);
        for (int i = 0; i < 2000; i++) {
            uint64_t bytes = base_rng_below(&rng, 3 * READ);
            if (base_rng_unit(&rng) < 0.5) {
                tier_governor_earn(&g, bytes);
                earned += 0.5 * (double)bytes;
            }
            uint32_t idle = (uint32_t)base_rng_below(&rng, 3);
            float p = (float)base_rng_unit(&rng);
            bool sure = (double)p >= 0.9, may = tier_governor_admit(&g, p, idle);
            ck_assert(!may || (idle > 0 && p >= 0.1f));
            ck_assert(!sure || may == (idle > 0));
            if (may && !sure) taken += READ;
            ck_assert_msg(taken <= earned + 4 * READ, "seed %llu", (unsigned long long)seed);
        }
        ck_assert(taken > 0);
    }
}
END_TEST

static void pace(struct tier_governor *g, double idle, double fetch, double work, double quiet)
{
    tier_governor_pace(g, &(struct tier_governor_pace){ idle, fetch, work, quiet });
}

/* What is as good as sure is read in any state, until even little of that is wasted. */
START_TEST(sure_is_read_in_any_state)
{
    struct tier_governor g = make(false);
    struct world w = { .without = 1e6, .with = 1.5e6, .precision = 1 };
    struct tier_governor_account wasted = {
        .lookups = LOOKUPS, .stall_ns = 1000000, .demand_bytes = 100 * READ, .wasted_bytes = READ,
    };
    struct base_rng rng;
    int off = 0;
    base_rng_init(&rng, 1);
    for (int i = 0; i < 500; i++) {
        run(&g, &w, &rng, 1);
        off += !tier_governor_on(&g);
        ck_assert(tier_governor_admit(&g, 0.95f, 1));
        ck_assert(!tier_governor_admit(&g, 0.95f, 0));
        ck_assert(tier_governor_on(&g) || !tier_governor_admit(&g, 0.89f, 1));
    }
    ck_assert_int_gt(off, 400);
    ck_assert_double_eq(g.sure, 0.9);
    for (int i = 0; i < 500; i++) tier_governor_step(&g, &wasted);
    ck_assert_msg(g.sure > 0.95, "%.3f", g.sure);
    ck_assert(!tier_governor_admit(&g, 0.95f, 1));
    ck_assert_double_eq(g.probability, 0.1);    /* 1% is little for what is not sure */
    run(&g, &w, &rng, 500);
    ck_assert(tier_governor_admit(&g, 0.95f, 1));
    g.state = TIER_GOVERNOR_OFF;
    /* A prompt's waves may make it leave before its turn. */
    g.prompt = true;
    ck_assert(!tier_governor_admit(&g, 0.95f, 1));
    pace(&g, 0, 100, 0, 0.5);
    ck_assert_double_eq(tier_governor_worth(&g, 1, 0), 1);
    g.prompt = false;
    ck_assert(tier_governor_admit(&g, 0.95f, 1));
    g.options.even = true;
    ck_assert(!tier_governor_admit(&g, 0.95f, 1));
}
END_TEST

START_TEST(fixed_stays)
{
    struct tier_governor g = make(true);
    struct world w = { .without = 1e6, .with = 2e6, .precision = 0 };
    struct base_rng rng;
    char text[160];
    base_rng_init(&rng, 1);
    run(&g, &w, &rng, 3000);
    ck_assert(tier_governor_on(&g) && g.probability == 0.1);
    ck_assert_int_gt(tier_governor_text(&g, text, sizeof text), 0);
    ck_assert_str_eq(text, "prefetch.governor=fixed, from probability 0.100, sure from 0.900");
}
END_TEST

/* A change is told exactly when a trace would lack it. */
START_TEST(changes_are_told)
{
    struct tier_governor g = make(false);
    struct base_rng rng;
    base_rng_init(&rng, 3);
    for (int i = 0; i < 3000; i++) {
        enum tier_governor_state state = g.state;
        double probability = g.probability, sure = g.sure;
        struct tier_governor_account a = {
            .lookups = LOOKUPS, .stall_ns = base_rng_below(&rng, 1000000),
            .demand_bytes = READ, .wasted_bytes = base_rng_below(&rng, READ),
        };
        bool told = tier_governor_step(&g, &a);
        ck_assert_int_eq(told, state != g.state || probability != g.probability || sure != g.sure);
    }
    ck_assert_uint_gt(g.switches, 0);
}
END_TEST

/* A fetch ahead that hides in idle time is worth it at any odds, one that only moves a wait forward
 * where it is as good as sure, and at none where bursts cost nothing; in between the odds must be
 * better the less of it is hidden. */
START_TEST(worth_follows_idle_time)
{
    struct tier_governor g = make(false), fixed = make(true);
    ck_assert_double_eq(tier_governor_worth(&g, 1, 0), 1);      /* nothing measured yet */
    ck_assert_double_eq(tier_governor_worth(&fixed, 1, 0), 0);
    pace(&g, 30, 100, 0, 0.5);
    ck_assert_double_eq_tol(tier_governor_worth(&g, 1, 0), 0.7, 1e-9);
    /* An acquire that is about to come is not infinitely far. */
    ck_assert_double_eq(tier_governor_worth(&g, 0, 0), tier_governor_worth(&g, 1, 0));
    /* Idle time before a nearer acquire is there half the time. */
    ck_assert_double_eq_tol(tier_governor_worth(&g, 2, 0), 0.55, 1e-9);
    ck_assert_double_eq(tier_governor_worth(&g, 7, 0), 0);      /* 120 ns for 100 */
    ck_assert_double_eq_tol(tier_governor_worth(&g, 7, 1), 0.8, 1e-9);  /* behind another: 20 */
    ck_assert_double_eq(tier_governor_worth(&g, 2, 1), 0.9);
    g.options.displaced = 0.05;
    ck_assert_double_eq_tol(tier_governor_worth(&g, 2, 1), 0.95, 1e-9);
    g.options.displaced = 0;
    g.options.even = true;
    ck_assert_double_eq(tier_governor_worth(&g, 2, 1), 1);
    /* The disk fills up: soon nothing is worth it but what is certain. */
    for (int i = 0; i < 100; i++) pace(&g, 1, 100, 0, 0.5);
    ck_assert_double_gt(tier_governor_worth(&g, 1, 0), 0.98);
    g.options.even = false;
    ck_assert_double_eq(tier_governor_worth(&g, 1, 0), 0.9);
    /* What cannot be a time changes nothing. */
    struct tier_governor before = g;
    pace(&g, 5, 0, 0, 0.5);
    pace(&g, -1, 100, 0, 0.5);
    ck_assert_mem_eq(&before, &g, sizeof g);
}
END_TEST

/* What the computing thread must do for each fetch hides nowhere. */
START_TEST(worth_counts_work)
{
    struct tier_governor g = make(false);
    pace(&g, 1000, 100, 25, 1);
    ck_assert_double_eq_tol(tier_governor_worth(&g, 1, 0), 0.2, 1e-9);
    ck_assert_double_eq_tol(tier_governor_worth(&g, 3, 0), 0.2, 1e-9);
    g = make(false);
    pace(&g, 50, 100, 25, 0);
    ck_assert_double_eq_tol(tier_governor_worth(&g, 1, 0), 0.6, 1e-9);
    ck_assert_double_eq_tol(tier_governor_worth(&g, 2, 0), 0.6, 1e-9);  /* never quiet between */
}
END_TEST

/* A prompt computes for long, which tells nothing of the steps behind it; nor does a slow one. */
START_TEST(idle_time_is_that_of_its_kind_of_step)
{
    struct tier_governor g = make(false);
    g.prompt = true;
    pace(&g, 1000, 100, 0, 0.5);
    ck_assert_double_eq(tier_governor_worth(&g, 1, 0), 0);
    g.prompt = false;
    ck_assert_double_eq(tier_governor_worth(&g, 1, 0), 1);      /* of these nothing is known yet */
    pace(&g, 10, 100, 0, 0.5);
    ck_assert_double_eq_tol(tier_governor_worth(&g, 1, 0), 0.9, 1e-9);
    pace(&g, 5000, 100, 0, 0.5);
    ck_assert_double_gt(tier_governor_worth(&g, 1, 0), 0.87);
    for (int i = 0; i < 100; i++) pace(&g, 5000, 100, 0, 0.5);
    ck_assert_double_eq(tier_governor_worth(&g, 1, 0), 0);      /* many do */
}
END_TEST

/* Off until a probe has shown that it pays; a probe that does clear harm ends early. */
START_TEST(starts_off_and_probes)
{
    struct tier_governor g = make(false);
    struct world w = { .without = 1e6, .with = 1.5e6, .precision = 1 };
    struct base_rng rng;
    uint64_t on = 0, first = 0;
    base_rng_init(&rng, 1);
    ck_assert(!tier_governor_on(&g) && !tier_governor_admit(&g, 0.89f, 4));
    run(&g, &w, &rng, 200);
    ck_assert_uint_gt(w.on, 0);
    ck_assert_msg(w.on <= 20, "on in %llu of 200 steps", (unsigned long long)w.on);
    g = make(false);
    w = (struct world){ .without = 1e6, .with = 0.7e6, .precision = 1 };
    for (uint64_t step = 0; step < 200; step++) {
        on += tier_governor_on(&g);
        if (tier_governor_on(&g) && first == 0) first = step;
        run(&g, &w, &rng, 1);
    }
    ck_assert_uint_gt(first, 0);
    ck_assert_msg(first <= 16 && on >= 150, "first at %llu, on in %llu of 200 steps",
                  (unsigned long long)first, (unsigned long long)on);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("governor");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 120);      /* sanitizers, a busy machine */
    tcase_add_test(t, costs_little_where_it_never_pays);
    tcase_add_test(t, starts_off_and_probes);
    tcase_add_test(t, keeps_what_pays);
    tcase_add_test(t, worth_follows_idle_time);
    tcase_add_test(t, worth_counts_work);
    tcase_add_test(t, idle_time_is_that_of_its_kind_of_step);
    tcase_add_test(t, follows_a_change);
    tcase_add_test(t, waste_raises_what_is_asked);
    tcase_add_test(t, budget_holds);
    tcase_add_test(t, sure_is_read_in_any_state);
    tcase_add_test(t, fixed_stays);
    tcase_add_test(t, changes_are_told);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
