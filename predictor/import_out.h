/* What both importers share: the trace under its temporary name, positions within sequences. */
#ifndef PREDICTOR_IMPORT_OUT_H
#define PREDICTOR_IMPORT_OUT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/map.h"
#include "base/out.h"
#include "predictor/import.h"
#include "predictor/text_in.h"
#include "predictor/trace.h"

/* Gate weights lie between this and its negative: far beyond any, and sums of them are finite. */
#define PRED_IMPORT_WEIGHT_MAX 1e30

/* Most tokens that one step of this model can hold in a trace. */
uint32_t pred_import_step_tokens_max(const struct pred_trace_header *header);

struct pred_import_out {
    struct base_out out;
    struct pred_trace_writer *writer;   /* NULL until begun */
};

/* Before anything is read: could `to` be written, and is it not `from`? 0 or a code with its
 * sentence; touches nothing. */
int pred_import_out_check(const char *from, const char *to, struct base_err *err);

/* Begins a trace with this header under a temporary name (base/out.h; a device is written as it is,
 * a pipe is refused). `weights`: gate weights will come, and are kept exactly. */
int pred_import_out_begin(struct pred_import_out *out, const char *to,
                          const struct pred_trace_header *header, bool weights,
                          struct base_err *err);
/* For what is made of another trace: keeps what that one says of itself, but for the core's
 * configuration, which goes with the events. Its source becomes "MADE of ...", its origin. */
void pred_import_out_derive(struct pred_trace_header *to, const char *made,
                            const struct pred_trace_header *from);

/* After rc = 0: closes, syncs and renames. After an error: removes what was written. Returns rc, or
 * the code of what went wrong at the end. */
int pred_import_out_end(struct pred_import_out *out, int rc, struct base_err *err);

/* Sequence number -> tokens seen of it. */
struct pred_positions {
    struct base_map map;
    void *memory;
    uint32_t capacity;
};
int pred_positions_next(struct pred_positions *positions, uint64_t seq, uint32_t *position);
/* The number kept for a sequence; a new one is given `fresh`. Uses the map for this alone. */
int pred_positions_number(struct pred_positions *positions, uint64_t seq, uint32_t fresh,
                          uint32_t *number);
void pred_positions_fini(struct pred_positions *positions);

/* "path:line: sentence" as BASE_EFORMAT. */
int pred_import_bad(const struct pred_text_in *in, struct base_err *err, const char *format, ...)
    BASE_PRINTF(3, 4);

#endif
