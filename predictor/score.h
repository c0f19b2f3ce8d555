/* How good predictors are where it counts: on the misses of a cache.
 *
 * Tables are learned on one trace and frozen, then scored on another. The cache is the per-layer
 * decayed frequency one (lfu, half-life 16): for each token and layer the n most likely experts
 * that are NOT resident are prefetched (on paper; the cache does not see it). covered[n]    share
 * of the misses that were among them precision[n]  share of them that were misses recall_k      of
 * top_k chosen experts, how many were among the top_k (2 top_k) most likely of all A step of
 * several tokens is one event: an expert's score is its highest over the tokens. */
#ifndef PREDICTOR_SCORE_H
#define PREDICTOR_SCORE_H

#include "base/err.h"
#include "predictor/predictor.h"
#include "predictor/replay.h"

enum { PRED_SCORE_DEPTHS = 3 };
extern const uint32_t pred_score_depths[PRED_SCORE_DEPTHS];     /* 1, 2, 4 */

struct pred_score {
    char name[32];
    uint64_t chosen, in_k, in_2k;           /* experts chosen, and among the most likely */
    uint64_t prefetched[PRED_SCORE_DEPTHS], useful[PRED_SCORE_DEPTHS];
    size_t table_bytes;
    double predict_ns;                      /* a layer of a token, tables frozen */
};

struct pred_score_total {
    uint64_t events, lookups, misses;
    uint64_t train_tokens, test_tokens;
};

struct pred_score_args {
    struct pred_trace_reader *train, *test; /* the same shape and model; may not be one reader */
    const char *const *names;
    uint32_t count;
    double capacity;            /* share of a layer's experts */
    uint32_t lead; /* layers ahead: 0 = all layers before are known, 1 = but the last */
    const struct pred_replay_progress *progress;
};

/* scores[count]. BASE_EMISMATCH when the traces differ in shape, -ENOENT for an unknown name. */
int pred_score_run(const struct pred_score_args *args, struct pred_score *scores,
                   struct pred_score_total *total, struct base_err *err);

#endif
