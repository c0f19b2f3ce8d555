/* The acquires of a trace, one after another: what every what-if replay is driven by.
 *
 * A trace of a server holds acquires as they were granted, in waves; the feed joins the waves back
 * into what was asked for, so that another cache may cut it otherwise. A trace without events
 * (imports, sampled traces) gives one acquire for each layer and phase of a step: the distinct
 * experts of its tokens, strongest first (sum of gate weights, else of ranks; ties by id), decode
 * before prefill.
 *
 * One thread. Memory: one step and one acquire.
 */
#ifndef PREDICTOR_FEED_H
#define PREDICTOR_FEED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/trace.h"

struct pred_feed;

struct pred_acquire {
    uint32_t layer;
    enum tier_phase phase;
    uint32_t count;
    const uint32_t *ids;        /* distinct, strongest first; until the next call */
    /* The step it belongs to, when it was made from one; NULL when it comes from events. */
    const struct pred_step *step;
};

/* The reader is borrowed and read from where it stands. */
int pred_feed_create(struct pred_feed **out, struct pred_trace_reader *reader,
                     struct base_err *err);
void pred_feed_destroy(struct pred_feed *feed);

/* 1 with the next acquire, 0 at the end, or the reader's negative code. */
int pred_feed_next(struct pred_feed *feed, struct pred_acquire *acquire, struct base_err *err);

/* The trace holds the server's own acquires. Known after the first call of next. */
bool pred_feed_from_events(const struct pred_feed *feed);

/* How many gaps were passed over so far. */
uint64_t pred_feed_gaps(const struct pred_feed *feed);

/* The distinct experts of some tokens of a step in one layer, strongest first. A helper with
 * scratch of its own, for everything that turns routing into acquires. */
struct pred_union {
    uint32_t experts, top_k;
    uint32_t stamp;
    uint32_t *stamps;           /* [experts] */
    double *scores;             /* [experts] */
    uint32_t *ids;              /* [experts] */
};
int pred_union_init(struct pred_union *u, uint32_t experts, uint32_t top_k);
void pred_union_fini(struct pred_union *u);
/* Ids of the layer over tokens of `phase`; u->ids holds them until the next call. */
uint32_t pred_union_of(struct pred_union *u, const struct pred_step *step, uint32_t layer,
                       enum tier_phase phase);

#endif
