/* Prediction beside the engine: which predictor learns from the steps, and when its hints go to the
 * tiers.
 *
 *      begin   tokens of the step are known          ──> tier_hint
 *      before  gates were asked in the dense layer
 *              before the first with experts         ──> tier_hint for the first layers
 *      own     a layer's gate was asked with what
 *              enters it, before its attention       ──> tier_hint for this layer
 *      routed  a gate has spoken, its demand reads
 *              have left                             ──> tier_hint for layers ahead
 *      end     the predictor learns; now and then a thread of its own saves it
 *
 * Hints are events of the trace, so replay does not depend on what was predicted or when. While the
 * predictor is being saved it stands still: steps go on and hints are given, nothing is learned.
 *
 * Engine thread, except snapshot (any). After open nothing here allocates or blocks.
 */
#ifndef ENGINE_ADVICE_H
#define ENGINE_ADVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metric.h"
#include "base/option.h"
#include "engine/scheduler.h"
#include "model/shape.h"
#include "tiering/tiering.h"

#define ENG_ADVICE_OPTIONS(O)                                                                     \
    O(kind, ENUM, "predictor.kind", "blend",                                                       \
      "none|frequency|previous_token|token_table|transition|context|lookahead|blend",             \
      "", "what predicts the experts of layers ahead; none = no hints, no prefetch")              \
    O(path, TEXTLINE, "predictor.path", "", "", "",                                               \
      "file to keep what was learned in: read at start if it is there, written when the engine "  \
      "closes and every predictor.save_every; empty = learn anew at each start")                  \
    O(save_every, TIME, "predictor.save_every", "10min", "1s..", "",                              \
      "how often predictor.path is written while there are steps")                                \
    O(lead, UINT, "predictor.lead", "2", "1..64", "layers",                                       \
      "how many layers ahead of its gate a layer is predicted: more gives reads more time, less " \
      "gives likelier experts")                                                                   \
    O(whole_pass, BOOL, "predictor.whole_pass", "false", "", "",                                  \
      "predict all layers as soon as the tokens of a step are known")                             \
    O(hints, UINT, "predictor.hints_max", "16", "1..1024", "experts",                             \
      "most hints for one layer")                                                                 \
    O(probability, SHARE, "predictor.probability_min", "2%", "", "",                              \
      "an expert less likely than this is no hint")                                               \
    O(rows, UINT, "predictor.rows_max", "16", "1..4096", "tokens",                                \
      "tokens of a step that are predicted and learned from")                                     \
    O(tokens, UINT, "predictor.tokens_max", "16384", "8..1048576", "tokens",                      \
      "tokens, and pairs of tokens, that tables keep apart")                                      \
    O(ahead, ENUM, "predictor.lookahead", "auto", "0|1|2|3|4|auto", "layers",                     \
      "how many layers ahead the model's own gates are asked with the hidden state of the one "   \
      "that runs, for the predictors lookahead and blend; 0 = not; auto = 1 for those two where " \
      "the CPU computes, else 0")                                                                 \
    O(ahead_shared, BOOL, "predictor.lookahead_shared", "false", "", "",                          \
      "add the shared experts' output to that state first; hints then wait for it")               \
    O(ahead_own, BOOL, "predictor.lookahead_own", "false", "", "",                                \
      "ask each layer's own gate with what enters it, too: likelier hints than from a layer "     \
      "before, in time for reads beside its attention")                                           \
    O(learn, BOOL, "predictor.learn", "true", "", "",                                             \
      "learn while serving; false keeps what predictor.path holds as it is")

struct eng_advice_config {
    BASE_OPTION_STRUCT(ENG_ADVICE_OPTIONS)
};
extern const struct base_option eng_advice_options[];
extern const size_t eng_advice_option_count;

/* Layers ahead that gates are asked; `card`: the engine computes on one. */
uint32_t eng_advice_ahead(const struct eng_advice_config *config, bool card);

/* Refuses predictor.* and prefetch.* settings that could not take effect: BASE_ECONFIG and why.
 * `groups` are all groups of the stack. */
int eng_advice_check(const struct eng_advice_config *config,
                     const struct base_option_group *groups, size_t count, struct base_err *err);

struct eng_advice;
struct eng_ranks;

/* Hints go out for the experts that this rank holds (`ranks` NULL: all).
 * *out is NULL when predictor.kind is none. Reads predictor.path if it is there; one that was saved
 * for another model, by the hash of its weights, or with other settings is refused, and so is a
 * path whose folder cannot be written when something is to be learned. `card` as above. */
int eng_advice_open(struct eng_advice **out, const struct eng_advice_config *config, bool card,
                    const struct model_shape *shape, const struct tier_store *store,
                    struct tier *tier, const struct eng_ranks *ranks, struct base_err *err);
/* Saves and frees. Accepts NULL. */
void eng_advice_close(struct eng_advice *advice);

/* Bytes that open takes, without opening. */
uint64_t eng_advice_footprint(const struct eng_advice_config *config, bool card,
                              const struct model_shape *shape, uint32_t moe_layers);

/* While every expert has a slot nothing is predicted or learned. */
void eng_advice_begin(struct eng_advice *advice, const struct eng_batch *batch);
/* ids: the routing of this moe layer, [rows of the batch x top_k]. */
void eng_advice_routed(struct eng_advice *advice, uint32_t moe_layer, const uint32_t *ids);
void eng_advice_end(struct eng_advice *advice);

/* What lookahead.c works in: rows of the batch. */
struct eng_lookahead_room {
    uint32_t layers;            /* ahead */
    bool shared, own;
    float *normed;              /* [rows x hidden] */
    float *margins;             /* [rows x experts] */
};
/* False: nobody wants gates of this step. NULL is nobody. */
bool eng_advice_looks_ahead(struct eng_advice *advice, struct eng_lookahead_room *room);
bool eng_advice_after_shared(const struct eng_advice *advice);
/* room.margins are those of a later layer, seen from `moe_layer`, worked on since begin_ns. Before
 * routed of moe_layer; of -1, the dense layer before the first with experts, before
 * eng_advice_before. */
void eng_advice_gate(struct eng_advice *advice, int32_t moe_layer, uint32_t later,
                     uint64_t begin_ns);
/* Layer -1 has asked its gates: hints by what they said. */
void eng_advice_before(struct eng_advice *advice);
/* The same of moe_layer's own gate, right before its attention. */
void eng_advice_own(struct eng_advice *advice, uint32_t moe_layer, uint64_t begin_ns);
/* For measurements: the adviser, NULL for NULL. */
struct pred_adviser *eng_advice_adviser(struct eng_advice *advice);

#define ENG_ADVICE_METRICS(M)                                                                     \
    M(hints, COUNTER, "", "distinct experts of a step's layers that were predicted")              \
    M(right, COUNTER, "", "of those, asked for in that layer of that step")                       \
    M(asked, COUNTER, "", "distinct experts asked for where there were predictions")              \
    M(learned_tokens, COUNTER, "tokens", "tokens learned from")                                   \
    M(predict_seconds, REAL, "seconds", "time spent on predictions and hints")                    \
    M(learn_seconds, REAL, "seconds", "time spent on learning")                                   \
    M(lookahead_seconds, REAL, "seconds", "part of predict_seconds: gates asked ahead")           \
    M(table_bytes, GAUGE, "bytes", "memory of the predictor and of what it works in")             \
    M(saves, COUNTER, "", "times that the predictor was saved")                                   \
    M(failed_saves, COUNTER, "", "times that saving failed")

struct eng_advice_metrics {
    BASE_METRIC_STRUCT(ENG_ADVICE_METRICS)
};
extern const struct base_metric eng_advice_metrics[];
extern const size_t eng_advice_metric_count;

/* Any thread; zeros for NULL. */
void eng_advice_snapshot(struct eng_advice *advice, struct eng_advice_metrics *out);
/* "blend, 31.2 MiB, read from FILE": for the report at start. Lives as long as the advice. */
const char *eng_advice_note(const struct eng_advice *advice);

#endif
