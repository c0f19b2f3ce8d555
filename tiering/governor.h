/* The governor of prefetch: how many bytes may be read ahead now, and which probability is worth a
 * read.
 *
 *      admit(p, idle)   before each read ahead: credit, an idle place in the queue, a probability
 *                       that is worth it; takes the credit
 *      earn(bytes)      credit for what the disk could have read since the last call
 *      step(account)    what the last step saw: bytes that came to use, came late, were wasted
 *
 * Prefetch is worth having when steps stall less with it than without, so that is what decides.
 * Steps are gathered into windows; every few windows one runs the other way round, and its stall a
 * lookup is compared with that of its two neighbours:
 *
 *      off [probe] ...               the beginning: it comes once it has shown that it pays
 *      on  on  on [pause] on ...     prefetch pays: the next pause is twice as far off
 *      off off off [probe] off ...   it does not: the next probe is twice as far off
 *
 * A probe that stalls far more than the window before it ends half way.
 *
 * A read ahead pays where it hides in time that nothing else fills, so a saturated disk admits
 * next to nothing from the start (worth). Beside that the least probability follows the bytes: it
 * rises while more was wasted than `waste_max` allows for each byte that was needed, and falls
 * again to its floor when there is room.
 *
 * Pure: no clock, no IO, no allocation. The live tiers and the replay on a virtual clock run this
 * very code. What it changes is told as the text of a setting, so that a trace says when prefetch
 * was off and why; replay of recorded hints never asks it.
 */
#ifndef TIERING_GOVERNOR_H
#define TIERING_GOVERNOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tier_governor_options {
    uint64_t read_bytes;        /* of one expert */
    uint64_t inflight_bytes;    /* most credit; at least one read */
    double share;               /* of the read bandwidth, (0, 1] */
    double waste_max;           /* wasted bytes for each byte that steps needed, >= 0 */
    double probability_min;     /* never worth less than this */
    bool fixed;                 /* stays on, at the floor */
};

/* What one step saw. Bytes count once, when their fate is known. */
struct tier_governor_account {
    uint64_t lookups;
    uint64_t stall_ns;          /* waits, and work of prefetch that the step had to do itself */
    uint64_t demand_bytes;      /* read because a step asked */
    uint64_t useful_bytes;      /* read ahead and there when asked for */
    uint64_t late_bytes;        /* read ahead, asked for while under way */
    uint64_t wasted_bytes;      /* read ahead, gone unused */
};

enum tier_governor_state {
    TIER_GOVERNOR_ON,
    TIER_GOVERNOR_PAUSE,        /* on, but for a window without, to compare */
    TIER_GOVERNOR_OFF,
    TIER_GOVERNOR_PROBE,        /* off, but for a window with it, to compare */
};

struct tier_governor {
    struct tier_governor_options options;
    enum tier_governor_state state;
    double probability;         /* least that is worth a read */
    double credit;              /* bytes */
    double idle_ns, fetch_ns;   /* means of late; 0 = not known */
    /* of the running window */
    uint32_t steps;
    struct tier_governor_account window;
    /* of the comparison */
    uint32_t windows_left;      /* until the next pause or probe */
    uint32_t patience;          /* windows between two of them */
    bool judging;               /* the window after a pause or probe runs */
    double stall_before, stall_trial;   /* ns a lookup */
    double stall_with, stall_without;   /* as last compared; below 0 = never */
    uint64_t switches;
};

void tier_governor_init(struct tier_governor *governor,
                        const struct tier_governor_options *options);

/* The disk could have read so many bytes since the last call. */
void tier_governor_earn(struct tier_governor *governor, uint64_t bytes);

/* What the steps leave room for, told at the end of each: between two acquires nothing was waited
 * for during `idle_ns`; an expert takes `fetch_ns` to come. */
void tier_governor_pace(struct tier_governor *governor, double idle_ns, double fetch_ns);

/* The least probability at which fetching an expert ahead saves more than it costs, `distance`
 * acquires before its own and behind `ahead` others that are under way. Fetched in time that is
 * idle anyway it costs nothing; idle time before an acquire nearer than its own counts half, for
 * that one's misses may find it in their way. What does not fit in there only moves a wait
 * forward, and is lost if the expert is not asked for. 1 before anything was measured, 0 when
 * fixed. */
double tier_governor_worth(const struct tier_governor *governor, uint32_t distance,
                           uint32_t ahead);

/* May an expert of this probability be read ahead now? `idle`: reads that the queue could take
 * without any demand read waiting for them. Takes the credit when it may. */
bool tier_governor_admit(struct tier_governor *governor, float probability, uint32_t idle);

/* Ends a step. True when a setting changed that a trace should hold. */
bool tier_governor_step(struct tier_governor *governor,
                        const struct tier_governor_account *account);

/* Reads ahead are made at present. */
static inline bool tier_governor_on(const struct tier_governor *governor)
{
    return governor->state == TIER_GOVERNOR_ON || governor->state == TIER_GOVERNOR_PROBE;
}

const char *tier_governor_state_name(enum tier_governor_state state);

/* "prefetch.governor=off, from probability 0.40, stall 1.2 us a lookup with it, 1.1 without". */
int tier_governor_text(const struct tier_governor *governor, char *to, size_t size);

#endif
