/* What happened when, for a viewer: spans and marks in memory of a fixed size, written as Chrome
 * trace events (JSON), which Perfetto and chrome://tracing open.
 *
 * The newest `most` events are kept; older ones are overwritten, and counted. Each event stands
 * alone, so that losing one never makes another one wrong. One thread adds; adding neither blocks
 * nor allocates.
 */
#ifndef BASE_TIMELINE_H
#define BASE_TIMELINE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum base_timeline_kind {
    BASE_TIMELINE_SPAN,         /* of a thread: those of one track nest */
    BASE_TIMELINE_FLIGHT,       /* something under way beside the thread: they may overlap */
    BASE_TIMELINE_MARK,         /* a moment: begin_ns */
};

enum { BASE_TIMELINE_NONE = UINT32_MAX };

struct base_timeline_event {
    uint64_t begin_ns, end_ns;  /* of one clock */
    const char *name;           /* static; letters, digits, blanks and , . - _ alone, as below */
    const char *track;          /* static: "engine", "reads" */
    const char *fate;           /* static: how it ended; NULL = nothing to say */
    uint32_t layer, expert;     /* BASE_TIMELINE_NONE = of none */
    uint64_t count;             /* bytes or rows; 0 = not told */
    uint32_t kind;              /* enum base_timeline_kind */
    float share;                /* a probability; negative = not told */
};

struct base_timeline;

/* -ENOMEM. Memory is counted under the tag "profile". */
int base_timeline_create(struct base_timeline **out, size_t most);
void base_timeline_destroy(struct base_timeline *timeline);     /* NULL is accepted */
size_t base_timeline_bytes(size_t most);        /* that `most` events take */

void base_timeline_add(struct base_timeline *timeline, const struct base_timeline_event *event);

/* How many were ever added. Any thread. */
uint64_t base_timeline_count(const struct base_timeline *timeline);
uint64_t base_timeline_dropped(const struct base_timeline *timeline);   /* of them, overwritten */

/* Writes what is kept, oldest first, and how many were dropped. A sentence with the path on an
 * error; what is there of the file then is no valid JSON. Cold. */
int base_timeline_write(const struct base_timeline *timeline, const char *path,
                        struct base_err *err);

#endif
