/* Batches composed from a trace of single sequences: what a server with several users might have
 * run. Nobody did run it, and the trace that comes out says so (source "composed").
 *
 * Requests arrive as an arrival file says: time, prompt tokens, generated tokens. Each plays the
 * next sequence of the trace, cut to those lengths. At most `users` run at once, the others wait
 * their turn. A step holds one token of everybody who generates and one chunk of the prompt of who
 * came first, as the engine's scheduler has it, and takes `step_ns` of the arrivals' time.
 *
 * Arrival files: CSV with the columns TIMESTAMP,ContextTokens,GeneratedTokens (Azure 2023), or
 * JSONL with timestamp in ms, input_length, output_length (Mooncake); .xz too.
 *
 * Tokens lie in unlinked temporary files (TMPDIR) meanwhile: memory does not grow with the
 * trace.
 */
#ifndef PREDICTOR_COMPOSE_H
#define PREDICTOR_COMPOSE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/err.h"
#include "predictor/trace.h"

enum { PRED_COMPOSE_USERS_MAX = 1024 };

struct pred_compose_options {
    const char *arrivals;       /* path */
    uint32_t users;             /* 1..PRED_COMPOSE_USERS_MAX */
    uint32_t chunk;             /* prompt tokens of one step, >= 1 */
    uint64_t step_ns;           /* > 0 */
    uint64_t requests;          /* at most; 0 = every sequence once */
};

struct pred_compose_stats {
    uint64_t sequences, requests, steps, tokens;
    uint32_t batch_max;         /* tokens generated in one step */
    double batch_mean;          /* of the steps that generate */
};

/* BASE_EFORMAT with the line of the arrival file, BASE_EMISMATCH for a trace that holds batches
 * already, -EINVAL for options out of range. */
int pred_compose(struct pred_trace_reader *from, const char *to,
                 const struct pred_compose_options *options, struct pred_compose_stats *stats,
                 struct base_err *err);

/* The trace says of itself that it was composed, or is made of one that was; whoever reports on it
 * says so too. */
static inline bool pred_trace_composed(const struct pred_trace_header *header)
{
    return strstr(header->source, "composed") != NULL;
}

#endif
