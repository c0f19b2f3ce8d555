/* Tuner: which cache settings a server should have for the routing that was recorded.
 *
 * The sequences of the traces are dealt into two halves in the order in which they come up: one to
 * tune on, one held out. Every candidate runs through the decision core on the tuned half's
 * routing. What it costs is the bytes that were not in memory and had to be read, or, given a
 * machine's description, the time of the steps on its virtual clock; only the clock can tell what
 * prediction and prefetch are worth, so they are searched there alone.
 *
 * Search: one knob after another, each tried beside the best so far (coordinate descent). On the
 * clock policies and predictors are tried on the first steps, the best of them on all.
 *
 * What a predictor has learned before it is judged never comes from what it is judged on. On the
 * tuned half one quarter of all sequences is learned and the other run, then the other way round;
 * on the held-out half the tuned one was learned. Both go on learning, as a server does.
 *
 * The winner is then compared with the base on the held-out half, sequence by sequence, and is
 * taken only where a bootstrap over the sequences leaves no doubt. Memory: the cores of one round
 * of candidates, at most three predictors, and a few numbers for each candidate and sequence.
 *
 * Same traces and base, same answer. One thread.
 */
#ifndef PREDICTOR_TUNE_H
#define PREDICTOR_TUNE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/machine.h"
#include "predictor/replay.h"
#include "predictor/trace.h"

/* What is searched. */
struct pred_tune_setting {
    char policy[32];
    double half_life_tokens;
    double prefill_share;
    bool adaptive;                      /* quotas of the layers follow what is missed; else equal */
    /* On the clock only. */
    char predictor[32];                 /* "" = none; then what follows has no effect */
    uint32_t lead;                      /* layers ahead that are predicted */
    uint32_t per_layer;                 /* experts read ahead for a layer at most */
    double bandwidth_share;             /* that prefetch may use */
    uint64_t inflight;                  /* bytes of prefetch under way at most */
};

/* What is not. */
struct pred_tune_cache {
    uint32_t tier_count;
    uint64_t slots[TIER_RESIDENT_TIERS_MAX];
    bool inclusive, warm_compute;
    char policy_below[32];              /* of the lower of two tiers; "" = as above */
};

enum pred_tune_prefetch { PRED_TUNE_NEVER, PRED_TUNE_ALWAYS, PRED_TUNE_AUTO };

/* What is not searched of prediction: predictor.*, prefetch.* */
struct pred_tune_advice {
    enum pred_tune_prefetch prefetch;   /* prefetch.enabled */
    uint32_t hints_max, rows_max, tokens_max;
    uint32_t lead_min;                  /* gates that look ahead need as much */
    double probability_min;             /* of a hint */
    bool whole_pass;
    double prefetch_probability_min, waste_max;
    bool fixed;                         /* prefetch.governor */
};

enum { PRED_TUNE_PATH_MAX = 10, PRED_TUNE_WINDOW = 16 };

/* Sums over all sequences of one part. */
struct pred_tune_sum {
    double lookups, reads;              /* reads: lookups that no tier in memory could serve */
    double cost;                        /* bytes read, or nanoseconds */
    /* On the clock: lookups that could be read where they run; bytes that were read from nvme and
     * copied up, ahead of need or not. */
    double hits, bytes;
    double tokens;                      /* of the part */
};

/* base, then one knob after another turned to where the winner has it. */
struct pred_tune_step {
    const char *knob;                   /* YAML key; NULL for the base */
    struct pred_tune_setting setting;
    struct pred_tune_sum tuned, held_out;
};

struct pred_tune_result {
    uint64_t sequences, held_out_sequences, candidates;
    bool on_clock;                      /* costs are nanoseconds; else bytes, */
    bool known_bytes;                   /* or experts where nobody knows their bytes */
    struct pred_tune_step path[PRED_TUNE_PATH_MAX];
    uint32_t path_count;
    /* Share of the base's cost that the winner saves on the held-out half, and 95% of the
     * bootstrap's samples. */
    double saved, saved_low, saved_high;
    bool better;                        /* saved_low > 0: the winner is worth writing */
    /* Share of the held-out half's windows of PRED_TUNE_WINDOW tokens that the other half has too;
     * below 0 where no token ids are known. */
    double shared_text;
};

/* done and total are of the whole search, in units of its own. */
struct pred_tune_progress {
    void (*report)(void *context, const char *what, double done, double total);
    /* Before the search: this trace was read to its end, its reader's health is complete. Once a
     * trace. May be NULL. */
    void (*read)(void *context, uint32_t trace);
    void *context;
};

struct pred_tune_args {
    struct pred_trace_reader *const *traces;
    uint32_t trace_count;
    struct pred_tune_cache cache;
    struct pred_tune_advice advice;
    struct pred_tune_setting base;
    const struct pred_machine *machine; /* NULL: bytes count */
    const struct pred_tune_progress *progress;  /* may be NULL */
};

/* BASE_EMISMATCH when the traces are of different models, BASE_ECONFIG when there is nothing to
 * hold out, the base is no cache or the machine's description lacks something. With a machine, the
 * parts are kept as traces under TMPDIR meanwhile. The traces are read several times. */
int pred_tune_run(const struct pred_tune_args *args, struct pred_tune_result *result,
                  struct base_err *err);

#endif
