#include "tiering/governor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"

enum {
    WINDOW_STEPS = 16,
    SETTLE_STEPS = 4,           /* of a window: still under the one before, not counted */
    PROBE_STEPS = 8,            /* of a probe, after which one that does clear harm ends */
    PATIENCE_MIN = 2,
    PATIENCE_MAX = 64,
};
/* Prefetch goes when steps stall more than this with it, and comes when they stall less than that:
 * between the two lies noise. */
#define GOES_ABOVE 1.01
#define COMES_BELOW 0.97
#define HARMS_ABOVE 1.15
#define RISE 0.2                /* of the way to 1 that the least probability rises at once */
#define FALL 0.9
/* Worth a read that no idle time hides, governed or not. With a model's own gates asked ahead such
 * reads let one sequence have 0.91 of a virtual disk's rate instead of 0.81; from 0.8 on they gave
 * nothing (docs/benchmarks.md). */
#define SURE 0.9
#define SURE_WASTE 0.005        /* wasted bytes for each byte needed, of what is sure */
#define PACE_PART 0.125         /* of a step in the means of idle and fetch time */
#define IDLE_STEP 0.05          /* of a fetch: what idle time may grow by from nothing */

void tier_governor_init(struct tier_governor *g, const struct tier_governor_options *options)
{
    MUST(options->read_bytes > 0 && options->share > 0);
    *g = (struct tier_governor){
        .options = *options, .state = options->fixed ? TIER_GOVERNOR_ON : TIER_GOVERNOR_OFF,
        .probability = options->probability_min, .sure = SURE,
        .windows_left = 1, .patience = PATIENCE_MIN,
        .stall_with = -1, .stall_without = -1,
    };
    if (g->options.inflight_bytes < options->read_bytes) {
        g->options.inflight_bytes = options->read_bytes;
    }
    g->credit = (double)g->options.inflight_bytes;
}

void tier_governor_earn(struct tier_governor *g, uint64_t bytes)
{
    g->credit += g->options.share * (double)bytes;
    if (g->credit > (double)g->options.inflight_bytes) {
        g->credit = (double)g->options.inflight_bytes;
    }
}

void tier_governor_pace(struct tier_governor *g, const struct tier_governor_pace *step)
{
    struct tier_governor_pace *mean = &g->pace[g->prompt];
    if (!(step->idle_ns >= 0) || !(step->fetch_ns > 0)) return;
    double part = mean->fetch_ns > 0 ? PACE_PART : 1, idle = step->idle_ns;
    /* A thread that had to wait for its processor looks idle too; once in a while means nothing. */
    double most = 2 * mean->idle_ns + step->fetch_ns * IDLE_STEP;
    if (mean->fetch_ns > 0 && idle > most) idle = most;
    mean->idle_ns += (idle - mean->idle_ns) * part;
    mean->fetch_ns += (step->fetch_ns - mean->fetch_ns) * part;
    mean->work_ns += (step->work_ns - mean->work_ns) * part;
    mean->quiet += (step->quiet - mean->quiet) * part;
}

static bool may_be_sure(const struct tier_governor *g)
{
    return !g->options.even && !g->prompt;
}

double tier_governor_worth(const struct tier_governor *g, uint32_t distance, uint32_t ahead)
{
    const struct tier_governor_pace *p = &g->pace[g->prompt];
    if (g->options.fixed) return 0;
    if (p->fetch_ns <= 0) return 1;
    /* The acquires between want their own experts: what is on its way then is in their way. */
    uint32_t between = distance > 1 ? distance - 1 : 0;
    double room = p->idle_ns * (1 + between * p->quiet) - p->fetch_ns * ahead;
    double lost = room > p->fetch_ns ? 0 : room > 0 ? p->fetch_ns - room : p->fetch_ns;
    double worth = (lost + p->work_ns) / (p->fetch_ns + p->work_ns);
    if (may_be_sure(g) && worth > g->sure) worth = g->sure;
    return worth + g->options.displaced;
}

bool tier_governor_admit(struct tier_governor *g, float probability, uint32_t idle)
{
    if (idle == 0) return false;
    if (may_be_sure(g) && (double)probability >= g->sure) return true;
    if (!tier_governor_on(g) || !((double)probability >= g->probability) ||
        g->credit < (double)g->options.read_bytes) {
        return false;
    }
    g->credit -= (double)g->options.read_bytes;
    return true;
}

/* A bound follows what was wasted. Waste shows late, so steps are small. */
static void follow(double *bound, double lowest, double wasted, double allowed)
{
    if (wasted > allowed) {
        *bound = fmin(*bound + (1 - *bound) * RISE, 0.99);
    } else if (wasted < 0.7 * allowed) {
        *bound = fmax(*bound * FALL, lowest);
    }
}

static bool follow_waste(struct tier_governor *g)
{
    const struct tier_governor_account *w = &g->window;
    double needed = (double)(w->demand_bytes + w->useful_bytes + w->late_bytes);
    double wasted = (double)w->wasted_bytes, probability = g->probability, sure = g->sure;
    bool on = tier_governor_on(g);
    /* Where nothing else is read, waste is of what was sure. */
    if (!on || probability >= sure) follow(&g->sure, SURE, wasted, SURE_WASTE * needed);
    if (on) {
        follow(&g->probability, g->options.probability_min, wasted, g->options.waste_max * needed);
    }
    return g->probability != probability || g->sure != sure;
}

static void turn(struct tier_governor *g, enum tier_governor_state state, uint32_t patience)
{
    g->state = state;
    g->patience = patience < PATIENCE_MAX ? patience : PATIENCE_MAX;
    g->windows_left = g->patience;
}

/* The window after a trial is over: did the trial do better than its neighbours? */
static void judge(struct tier_governor *g, double stall_after)
{
    double base = (g->stall_before + stall_after) / 2, trial = g->stall_trial;
    g->judging = false;
    if (g->state == TIER_GOVERNOR_ON) {
        g->stall_with = base;
        g->stall_without = trial;
        bool stays = base <= trial * GOES_ABOVE;
        turn(g, stays ? TIER_GOVERNOR_ON : TIER_GOVERNOR_OFF,
             stays ? 2 * g->patience : PATIENCE_MIN);
        g->switches += !stays;
    } else {
        g->stall_with = trial;
        g->stall_without = base;
        bool comes = trial < base * COMES_BELOW;
        turn(g, comes ? TIER_GOVERNOR_ON : TIER_GOVERNOR_OFF,
             comes ? PATIENCE_MIN : 2 * g->patience);
        g->switches += comes;
    }
}

static double window_stall(const struct tier_governor *g)
{
    return (double)g->window.stall_ns / (g->window.lookups > 0 ? (double)g->window.lookups : 1);
}

/* A probe that stalls far more than the window before it need not run to its end. */
static bool probe_harms(const struct tier_governor *g)
{
    return g->state == TIER_GOVERNOR_PROBE && g->steps >= PROBE_STEPS &&
           window_stall(g) > g->stall_before * HARMS_ABOVE;
}

static void window_end(struct tier_governor *g)
{
    double stall = window_stall(g);
    switch (g->state) {
    case TIER_GOVERNOR_PAUSE:
    case TIER_GOVERNOR_PROBE:
        g->stall_trial = stall;
        /* The first time it comes at once: many answers are short, and a pause will check it. */
        if (g->stall_with < 0 && stall < g->stall_before * COMES_BELOW) {
            g->stall_with = stall;
            g->stall_without = g->stall_before;
            turn(g, TIER_GOVERNOR_ON, PATIENCE_MIN);
            g->switches++;
            return;
        }
        g->state = g->state == TIER_GOVERNOR_PAUSE ? TIER_GOVERNOR_ON : TIER_GOVERNOR_OFF;
        g->judging = true;
        return;
    case TIER_GOVERNOR_ON:
    case TIER_GOVERNOR_OFF:
        if (g->judging) {
            judge(g, stall);
            return;
        }
        if (--g->windows_left > 0) return;
        g->stall_before = stall;
        g->state = g->state == TIER_GOVERNOR_ON ? TIER_GOVERNOR_PAUSE : TIER_GOVERNOR_PROBE;
        return;
    }
}

bool tier_governor_step(struct tier_governor *g, const struct tier_governor_account *a)
{
    if (g->options.fixed || a->lookups == 0) return false;
    if (++g->steps > SETTLE_STEPS) {
        g->window.lookups += a->lookups;
        g->window.stall_ns += a->stall_ns;
    }
    g->window.demand_bytes += a->demand_bytes;
    g->window.useful_bytes += a->useful_bytes;
    g->window.late_bytes += a->late_bytes;
    g->window.wasted_bytes += a->wasted_bytes;
    if (g->steps < WINDOW_STEPS && !probe_harms(g)) return false;
    enum tier_governor_state before = g->state;
    bool changed = follow_waste(g);
    window_end(g);
    g->steps = 0;
    memset(&g->window, 0, sizeof g->window);
    return changed || g->state != before;
}

const char *tier_governor_state_name(enum tier_governor_state state)
{
    static const char *const names[] = { "on", "pause", "off", "probe" };
    return names[state];
}

int tier_governor_text(const struct tier_governor *g, char *to, size_t size)
{
    int n = snprintf(to, size, "prefetch.governor=%s, from probability %.3f, sure from %.3f",
                     g->options.fixed ? "fixed" : tier_governor_state_name(g->state),
                     g->probability, g->sure);
    if (n < 0 || (size_t)n >= size || g->stall_with < 0) return n;
    return n + snprintf(to + n, size - (size_t)n,
                        ", stall %.1f us a lookup with it, %.1f without", g->stall_with / 1e3,
                        g->stall_without / 1e3);
}
