/* Tuner: which cache settings a server should have for the routing that was recorded.
 *
 * The sequences of the traces are dealt into two halves in the order in which they come up: one to
 * tune on, one held out. Every candidate runs through the decision core on the tuned half's
 * routing. What it costs is the bytes that were not in memory and had to be read, or, given a
 * machine's description, the time of the steps on its virtual clock. The winner is then compared
 * with the base on the held-out half, sequence by sequence, and is taken only where a bootstrap
 * over the sequences leaves no doubt. Memory: the cores of one round of candidates and a few
 * numbers for each candidate and sequence.
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
};

/* What is not. */
struct pred_tune_cache {
    uint32_t tier_count;
    uint64_t slots[TIER_RESIDENT_TIERS_MAX];
    bool inclusive;
    char policy_below[32];              /* of the lower of two tiers; "" = as above */
};

enum { PRED_TUNE_PATH_MAX = 5, PRED_TUNE_WINDOW = 16 };

/* Sums over all sequences of one part. */
struct pred_tune_sum {
    double lookups, reads;              /* reads: lookups that no tier in memory could serve */
    double cost;                        /* bytes read, or nanoseconds */
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

struct pred_tune_args {
    struct pred_trace_reader *const *traces;
    uint32_t trace_count;
    struct pred_tune_cache cache;
    struct pred_tune_setting base;
    const struct pred_machine *machine; /* NULL: bytes count */
    const struct pred_replay_progress *progress;    /* may be NULL */
};

/* BASE_EMISMATCH when the traces are of different models, BASE_ECONFIG when there is nothing to
 * hold out, the base is no cache or the machine's description lacks something. With a machine, each
 * half is kept as a trace under TMPDIR meanwhile. The traces are read several times. */
int pred_tune_run(const struct pred_tune_args *args, struct pred_tune_result *result,
                  struct base_err *err);

/* -------------------------------------------------- inside: tune.c and tune_parts.c -------- */

/* Which sequence belongs where. */
struct pred_tune_parts {
    void *numbers;                      /* [traces] maps of sequence numbers */
    uint32_t trace_count, sequences;
    uint64_t prefill_tokens;
    double tokens[2];                   /* of each part */
    double shared_text;
};
enum pred_tune_part { PRED_TUNE_TUNED, PRED_TUNE_HELD_OUT };

/* Reads the traces once or twice and leaves them at their begin. */
int pred_tune_parts_init(struct pred_tune_parts *parts, const struct pred_tune_args *args,
                         struct base_err *err);
void pred_tune_parts_fini(struct pred_tune_parts *parts);
/* Its number over all traces; even ones are tuned on, odd ones held out. */
uint32_t pred_tune_parts_number(const struct pred_tune_parts *parts, uint32_t trace, uint64_t seq);

#endif
