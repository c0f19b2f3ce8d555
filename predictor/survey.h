/* What a trace looks like over its layers and over time: how often each expert is asked for, and
 * the resident rate of some policies window by window. Two readings; memory: a count an expert, the
 * cores, a few numbers a window. One thread.
 */
#ifndef PREDICTOR_SURVEY_H
#define PREDICTOR_SURVEY_H

#include <stdint.h>

#include "base/err.h"
#include "predictor/replay.h"

enum { PRED_SURVEY_WINDOWS = 80, PRED_SURVEY_CASES = 4 };

struct pred_survey {
    uint32_t layers, experts, windows; /* fewer windows where there are fewer acquires */
    uint64_t *uses;                    /* [layers x experts] lookups */
    uint64_t acquires, lookups;
    double window_tokens; /* acquires of a window, over the layers */
    double rates[PRED_SURVEY_CASES][PRED_SURVEY_WINDOWS]; /* resident share of the lookups */
};

/* Cases with slots, none of them Belady's; the reader is left at its begin. */
int pred_survey_run(struct pred_survey *survey, struct pred_trace_reader *reader,
                    const struct pred_case *cases, uint32_t count,
                    const struct pred_replay_progress *progress, struct base_err *err);
void pred_survey_fini(struct pred_survey *survey);

#endif
