/* The file side of the trace writer: records into checksummed chunks, chunks into files.
 *
 * A chunk that the disk does not take whole is cut off again and its records are lost, counted, and
 * named by a gap record at the head of the next chunk; so the file never has a damaged middle.
 * Used by one thread at a time: the writer's own, after open. Blocks as the disk does.
 */
#ifndef PREDICTOR_TRACE_FILE_H
#define PREDICTOR_TRACE_FILE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "predictor/trace_format.h"

struct pred_trace_file;

struct pred_trace_file_args {
    const char *path;
    const uint8_t *header;          /* the encoded header record's payload; copied */
    size_t header_size;
    uint64_t trace_id;
    uint64_t rotate_bytes, size_max;    /* 0 = none */
    bool replace;
};

int pred_trace_file_open(struct pred_trace_file **out, const struct pred_trace_file_args *args,
                         struct base_err *err);

/* Room for a whole record of `size` bytes in the open chunk, which is written first if need be.
 * The caller fills it and calls commit. */
uint8_t *pred_trace_file_reserve(struct pred_trace_file *file, size_t size);
void pred_trace_file_commit(struct pred_trace_file *file, size_t size);

/* Writes the open chunk, if it has anything. */
void pred_trace_file_flush(struct pred_trace_file *file);
/* When the oldest record of the open chunk came in; 0 if there is none. */
uint64_t pred_trace_file_oldest_ns(const struct pred_trace_file *file);

struct pred_trace_file_state {
    _Atomic uint64_t lost_records, written_bytes, files;
};
const struct pred_trace_file_state *pred_trace_file_state(const struct pred_trace_file *file);

/* Adds the end mark (with `lost_before`, what never came this far), syncs, closes, frees.
 * Returns 0, or the first error that lost records. Accepts NULL. */
int pred_trace_file_close(struct pred_trace_file *file, uint64_t lost_before, struct base_err *err);

#endif
