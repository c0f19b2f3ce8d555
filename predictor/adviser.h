/* The adviser turns what is known of a running step into hints. The engine and the replay run this
 * very code.
 *
 *      begin(rows)           the tokens of the step are known, nothing of their routing yet:
 *                            hints for layers 0 .. lead-1, or for all of them (whole_pass)
 *      before()              gates were asked in the dense layer before the first layer with
 *                            experts: the first hints again, by what is known now
 *      routed(layer, ids)    a gate has spoken: hints for the next `lead` layers by all that is
 *                            known now; what was refused before may be taken this time
 *      own(layer, margins)   the layer's own gate was asked right before its attention: hints for
 *                            this layer alone
 *      end(how)              the predictor learns from the step
 *
 * Rows are the step's tokens. At most rows_max of them are followed: those of decode, then of
 * prefill evenly spread ones, down to the last. All followed rows are learned from; prefill's are
 * predicted only when the whole step is followed, since hints of a sample would mislead.
 *
 * An expert's probability is that any row is routed to it: 1 - prod(1 - p of a row). It is then
 * calibrated by what became of earlier hints: the share that came true among those that said about
 * the same from as far ahead. So hints of different layers compare, and p times an expert's bytes
 * is what a read ahead is worth. Hints of a call stand in falling order of that, then nearer layers
 * first.
 *
 * Memory is sized at create; after it nothing allocates. One thread. The same calls give the same
 * hints.
 */
#ifndef PREDICTOR_ADVISER_H
#define PREDICTOR_ADVISER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/predictor.h"
#include "tiering/event.h"
#include "tiering/tiering.h"

struct pred_adviser_options {
    uint32_t lead;              /* layers ahead that hints reach, >= 1 */
    uint32_t hints_max;         /* for one layer, >= 1 */
    double probability_min;     /* of a hint */
    uint32_t rows_max;          /* followed tokens of a step, >= 1 */
    bool whole_pass;            /* hints for all layers before the pass begins */
    uint32_t ahead;             /* layers that gates look ahead, at most PRED_AHEAD_MAX; 0 = none */
    bool own;                   /* gates are asked right before their layers */
};

enum pred_adviser_end {
    PRED_LEARN,
    PRED_FOLLOW,                /* tables stay as they are, recency goes on */
    PRED_STAND_STILL,           /* the predictor's state is not touched: somebody saves it */
};

struct pred_adviser_stats {
    uint64_t steps, rows, learned_rows;
    uint64_t hints;             /* distinct (layer, expert) of a step that were hinted */
    uint64_t right;             /* of them: asked for in that layer */
    uint64_t asked;             /* distinct experts asked for where hints were given */
};

struct pred_adviser;

/* The predictor is borrowed; its shape counts. -EINVAL for options out of range, -ENOMEM. */
int pred_adviser_create(struct pred_adviser **out, struct pred_predictor *predictor,
                        const struct pred_adviser_options *options);
void pred_adviser_destroy(struct pred_adviser *adviser);        /* accepts NULL */
size_t pred_adviser_bytes(const struct pred_adviser *adviser);

/* Replay, for a predictor that is replay_only: the whole routing of the step that begins next, as
 * pred_step.expert_ids has it; the caller's until begin returns. */
void pred_adviser_foretell(struct pred_adviser *adviser, const uint32_t *ids);

/* A step of `count` rows begins: their sequences, tokens (PRED_NO_TOKEN = unknown; NULL = all
 * are) and phases (enum tier_phase). Nothing of them is kept. Returns the number of hints; they
 * live until the next call. */
uint32_t pred_adviser_begin(struct pred_adviser *adviser, const uint64_t *seqs,
                            const uint32_t *tokens, const uint8_t *phases, uint32_t count,
                            const struct tier_hint **hints);

/* Before `routed` of a layer: what the gate of a later one says of this layer's hidden state, as
 * margins (predictor.h) [rows x experts]; `options.ahead` layers on at most. Layer -1: the dense
 * one before layer 0. False: nobody would hear it, since the step is not followed whole. */
bool pred_adviser_wants(const struct pred_adviser *adviser);
void pred_adviser_gate(struct pred_adviser *adviser, int32_t layer, uint32_t later,
                       const float *margins);
/* After the gates that layer -1 asks; before anything is routed. */
uint32_t pred_adviser_before(struct pred_adviser *adviser, const struct tier_hint **hints);
/* After `routed` of the layer before, with `options.own`: what a layer's gate says of what enters
 * it. */
uint32_t pred_adviser_own(struct pred_adviser *adviser, uint32_t layer, const float *margins,
                          const struct tier_hint **hints);

/* Told of each prediction of a row: log-odds of all experts. For measurements. */
bool pred_adviser_watched(const struct pred_adviser *adviser);
void pred_adviser_watch(struct pred_adviser *adviser,
                        void (*watch)(void *context, const struct pred_context *row,
                                      uint32_t layer, const float *scores), void *context);

/* The gate of a layer has spoken for all rows: ids [rows x top_k], strongest first; PRED_NO_EXPERT
 * in the first of a row: it was not routed. Layers come in ascending order, each at most once. */
uint32_t pred_adviser_routed(struct pred_adviser *adviser, uint32_t layer, const uint32_t *ids,
                             const struct tier_hint **hints);

/* The step is over: the predictor observes it, and what the next tokens' contexts need is kept. */
void pred_adviser_end(struct pred_adviser *adviser, enum pred_adviser_end how);

const struct pred_adviser_stats *pred_adviser_stats(const struct pred_adviser *adviser);

#endif
