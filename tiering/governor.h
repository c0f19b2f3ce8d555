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
 * A read ahead pays where it hides in time that nothing else fills (worth). One that is as good as
 * sure is made anyway, only earlier: neither off nor credit holds it back, so that a disk that is
 * asked all the time never runs dry. The least probability follows the bytes: it rises while more
 * was wasted than `waste_max` allows for each byte that was needed, and falls again to its floor
 * when there is room. Beside a disk that loses nothing in bursts what is sure gains nothing, so
 * what counts as sure follows its own, far smaller waste.
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
    double share;               /* of the read bandwidth, (0, 1], for what is not sure */
    double waste_max;           /* wasted bytes for each byte that steps needed, >= 0 */
    double probability_min;     /* never worth less than this */
    double displaced;           /* chance that what leaves for a fetch would have been asked for,
                                 * where the policy does not weigh that itself */
    bool even;                  /* gives as much in bursts as without a pause: no disk does */
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
    TIER_GOVERNOR_OFF,          /* but for what is as good as sure */
    TIER_GOVERNOR_PROBE,        /* off, but for a window with it, to compare */
};

/* What steps leave room for. Those with a prompt compute far longer between two acquires. */
struct tier_governor_pace {
    double idle_ns;             /* between two acquires, with nothing under way that is asked for */
    double fetch_ns;            /* that an expert takes to come */
    double work_ns;             /* of it for the computing thread: checks, bookkeeping */
    double quiet;               /* share of the acquires that asked for nothing to come this way */
};

struct tier_governor {
    struct tier_governor_options options;
    enum tier_governor_state state;
    double probability;         /* least that is worth a read */
    double sure;                /* least that is as good as sure */
    double credit;              /* bytes */
    struct tier_governor_pace pace[2];  /* means of late, of steps [with a prompt]; fetch_ns 0 = not
                                         * known */
    bool prompt;                /* the step that runs has one: what is read ahead may leave again
                                 * before the waves of experts come to it, so nothing is sure */
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

/* Told at the end of each step. The caller sets governor->prompt as soon as it knows that a step
 * has one, and clears it behind this. */
void tier_governor_pace(struct tier_governor *governor, const struct tier_governor_pace *step);

/* The least probability at which fetching an expert ahead saves more than it costs, `distance`
 * acquires before its own and behind `ahead` others that are under way. Fetched in time that is
 * idle anyway it costs nothing but the work of taking it in; idle time before an acquire nearer
 * than its own is there only if that one asks for nothing. What does not fit in there only moves a
 * wait forward, and is lost if the expert is not asked for; but a disk that never runs dry gives
 * more than one that is asked in bursts, so what is sure is worth it anyway. 1 or more before
 * anything was measured and where nothing is worth it, 0 when fixed. */
double tier_governor_worth(const struct tier_governor *governor, uint32_t distance,
                           uint32_t ahead);

/* May an expert of this probability be read ahead now? `idle`: reads that the queue could take
 * without any demand read waiting for them. Takes the credit when it may, unless it is as good as
 * sure. */
bool tier_governor_admit(struct tier_governor *governor, float probability, uint32_t idle);

/* Ends a step. True when a setting changed that a trace should hold. */
bool tier_governor_step(struct tier_governor *governor,
                        const struct tier_governor_account *account);

/* Reads ahead are made at present of what is not sure. */
static inline bool tier_governor_on(const struct tier_governor *governor)
{
    return governor->state == TIER_GOVERNOR_ON || governor->state == TIER_GOVERNOR_PROBE;
}

const char *tier_governor_state_name(enum tier_governor_state state);

/* "prefetch.governor=off, from probability 0.400, sure from 0.900, stall 1.2 us a lookup with it,
 * 1.1 without". */
int tier_governor_text(const struct tier_governor *governor, char *to, size_t size);

#endif
