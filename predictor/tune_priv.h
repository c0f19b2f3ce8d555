/* Inside of the tuner: tune.c searches and judges, tune_eval.c runs candidates, tune_clock.c runs
 * them on the virtual clock, tune_parts.c deals the sequences. */
#ifndef PREDICTOR_TUNE_PRIV_H
#define PREDICTOR_TUNE_PRIV_H

#include "predictor/feed.h"
#include "predictor/predictor.h"
#include "predictor/tune.h"

enum { PRED_TUNE_CANDIDATES_MAX = 128 };

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

/* The two quarters that are tuned on, and the half that is held out. */
enum pred_tune_piece {
    PRED_TUNE_QUARTER_0,
    PRED_TUNE_QUARTER_1,
    PRED_TUNE_HELD,
    PRED_TUNE_PIECES,
};
static inline enum pred_tune_piece pred_tune_piece_of(uint32_t number)
{
    return number % 2 ? PRED_TUNE_HELD : number % 4 ? PRED_TUNE_QUARTER_1 : PRED_TUNE_QUARTER_0;
}

/* One candidate while it runs, and what it cost. */
struct pred_tune_try {
    struct pred_tune_setting setting;
    struct tier_decide *decide; /* NULL: a server would refuse it */
    double *cost;               /* [sequences] */
    struct pred_tune_sum sum;
};

struct pred_tune {
    const struct pred_tune_args *args;
    const struct pred_trace_header *header; /* of the first trace */
    struct pred_tune_result *result;
    struct pred_tune_parts parts;
    struct pred_union joined;
    struct tier_found *found;
    struct pred_step step;      /* a part's tokens of the running step */
    uint32_t room, *numbers;    /* [room] */
    /* On the clock: where the pieces are kept ("" = nowhere), as traces, their steps, and what a
     * predictor learned before it runs over each. */
    char folder[160], paths[PRED_TUNE_PIECES][200];
    struct pred_trace_reader *pieces[PRED_TUNE_PIECES];
    uint64_t steps[PRED_TUNE_PIECES];
    struct pred_predictor *learned[PRED_TUNE_PIECES];
    double work_done, work_planned, work_piece;     /* for the progress */
    const char *what;
    struct pred_tune_try tries[PRED_TUNE_CANDIDATES_MAX];
    uint32_t count;
};

/* The tokens of a step that belong to some pieces (a mask of 1 << piece), in t->step; weights only
 * where there are some. -ENOMEM. */
int pred_tune_step_take(struct pred_tune *t, const struct pred_step *from, uint32_t trace,
                        unsigned pieces, struct pred_step *to);

/* Runs all candidates over one part, or (steps_max > 0, on the clock) over the first steps of each
 * of its pieces. A candidate that a server would refuse has no core afterwards, until
 * pred_tune_tries_end; the first one is somebody's configuration and must do. */
int pred_tune_evaluate(struct pred_tune *t, enum pred_tune_part part, uint64_t steps_max,
                       const char *what, struct base_err *err);
void pred_tune_tries_end(struct pred_tune *t);

/* Experts of a layer that the setting would read ahead at most, as a server would have it; 0 = it
 * prefetches nothing. False: a server would refuse it. */
bool pred_tune_per_layer(const struct pred_tune *t, const struct pred_tune_setting *setting,
                         uint32_t *per_layer);

/* Tells how far the search is: `share` of the running piece of work is done. */
void pred_tune_report(const struct pred_tune *t, double share);

/* ------------------------------------------------------------------- on the clock: tune_clock.c */

int pred_tune_clock_begin(struct pred_tune *t, struct base_err *err);
void pred_tune_clock_end(struct pred_tune *t);
int pred_tune_clock_evaluate(struct pred_tune *t, enum pred_tune_part part, uint64_t steps_max,
                             struct base_err *err);
/* How much work that is: steps of one case. */
double pred_tune_clock_work(const struct pred_tune *t, enum pred_tune_part part,
                            uint64_t steps_max, uint32_t cases, uint32_t predictors);

#endif
