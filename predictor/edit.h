/* Traces made from traces: parts of one, several in a row. The routing is copied with the gaps in
 * it; a result that is not the whole holds no cache events, since they would no longer tell the
 * truth. What the original says of itself (how tokens were kept, which share of the sequences) the
 * result says too, and that it is "part of" or "merge of" what that was from. The result
 * appears under its name only when it is whole (base/out.h), and never takes the place of a file
 * that is read: -EINVAL with a sentence. */
#ifndef PREDICTOR_EDIT_H
#define PREDICTOR_EDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/replay.h"
#include "predictor/trace.h"

/* Which tokens are kept. */
struct pred_selection {
    uint64_t modulo, rest;      /* sequences with seq % modulo == rest; modulo 0 = all */
    uint64_t seq_first, seq_last;
    uint64_t step_first, step_last;     /* by their number in the trace, from 0 */
    double share;               /* of the sequences, by a seeded hash; 1 = all */
    uint64_t seed;
    int phase;                  /* enum tier_phase, or -1 */
    bool until_damage;          /* where the trace cannot be read on, what was read is the whole */
};

struct pred_edit_stats {
    uint64_t steps, tokens, tokens_left_out;
    uint64_t steps_read;        /* by select, kept or not */
    struct base_err damage;     /* with until_damage: why it ends there; code 0 = it does not */
};

int pred_edit_select(struct pred_trace_reader *from, const char *to,
                     const struct pred_selection *selection, struct pred_edit_stats *stats,
                     const struct pred_replay_progress *progress, struct base_err *err);

/* Appends whole traces of one model; their sequences are numbered anew, without holes.
 * BASE_EMISMATCH when the shapes differ. */
int pred_edit_merge(struct pred_trace_reader *const *from, uint32_t count, const char *to,
                    struct pred_edit_stats *stats, const struct pred_replay_progress *progress,
                    struct base_err *err);

enum pred_export_format { PRED_EXPORT_JSONL, PRED_EXPORT_CSV };

/* Writes the routing as text that import reads back, "-" being standard output; csv wants one
 * sequence's tokens in a step. */
int pred_edit_export(struct pred_trace_reader *from, const char *to, enum pred_export_format format,
                     struct pred_edit_stats *stats, const struct pred_replay_progress *progress,
                     struct base_err *err);

/* What a trace holds, for `info`. */
struct pred_trace_summary {
    uint64_t steps, tokens[TIER_PHASE_COUNT], sequences;
    uint64_t events[8];         /* by enum tier_event_kind */
    uint64_t counts, gaps;
    uint64_t unknown_tokens;
    uint64_t step_ns;
};
int pred_trace_summarize(struct pred_trace_reader *from, struct pred_trace_summary *summary,
                         const struct pred_replay_progress *progress, struct base_err *err);

#endif
