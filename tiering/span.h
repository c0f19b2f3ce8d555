/* Time during which anything of a kind is under way: the union of what overlaps, not the sum.
 *
 * Told in order: begin when the first one starts, seen at every end, end once none is left. One
 * thread.
 */
#ifndef TIERING_SPAN_H
#define TIERING_SPAN_H

#include <stdbool.h>
#include <stdint.h>

struct tier_span {
    bool open;
    uint64_t begin_ns, last_ns;     /* of the stretch that is open: its begin, the latest end */
    uint64_t ns;                    /* in all, without it */
};

/* In all, up to the latest end: at any moment that of a kind is no more than that of several kinds
 * which it is one of. */
static inline uint64_t tier_span_ns(const struct tier_span *span)
{
    return span->ns + (span->open ? span->last_ns - span->begin_ns : 0);
}

static inline void tier_span_begin(struct tier_span *span, uint64_t now_ns)
{
    if (span->open) return;
    span->open = true;
    span->begin_ns = span->last_ns = now_ns;
}

static inline void tier_span_seen(struct tier_span *span, uint64_t end_ns)
{
    if (end_ns > span->last_ns) span->last_ns = end_ns;
}

static inline void tier_span_end(struct tier_span *span)
{
    if (!span->open) return;
    span->open = false;
    span->ns += span->last_ns - span->begin_ns;
}

#endif
