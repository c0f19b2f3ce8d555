/* What a timeline (base/timeline.h) is told of the tiers: reads, their checks, copies, waits by
 * cause, and hints with their fate. Nothing of it reaches a decision. Engine thread only; nothing
 * allocates after create; without a timeline each call is one test.
 *
 * A hint that brought an expert in is open until its fate is known:
 *
 *   useful      there when it was asked for
 *   late        on its way when it was asked for, or its read had not begun
 *   wasted      left without having been asked for
 *   cancelled   its layer passed, or it left, before its read began
 *   failed      could not be read
 *   open        none of these when the tiers were closed, or when it was hinted again
 *
 * The others are marks: "refused" by a bound, "not taken" by the core, "there" already.
 */
#ifndef TIERING_STORY_H
#define TIERING_STORY_H

#include <stdint.h>

#include "base/timeline.h"

struct tier_story {
    struct base_timeline *timeline;     /* borrowed; NULL = nobody wants to know */
    uint32_t experts, keys, layer_first;    /* layers are told as the model counts them */
    uint64_t *hinted_ns;                /* [keys]; 0 = no open hint */
    float *hinted_share;                /* [keys] */
};

/* -ENOMEM. Nothing to do without a timeline. */
int tier_story_create(struct tier_story *story, struct base_timeline *timeline, uint32_t layers,
                      uint32_t experts, uint32_t layer_first);
/* Tells the hints that are still open. Accepts a zeroed one. */
void tier_story_destroy(struct tier_story *story, uint64_t now_ns);

void tier_story_add_span(struct tier_story *story, const char *name, uint64_t begin_ns,
                         uint64_t end_ns, uint32_t key);
void tier_story_add_flight(struct tier_story *story, const char *track, const char *name,
                           uint64_t begin_ns, uint64_t end_ns, uint32_t key, uint64_t bytes,
                           const char *fate);
void tier_story_add_hint(struct tier_story *story, uint64_t now_ns, uint32_t key, float share,
                         const char *fate);
void tier_story_end_hint(struct tier_story *story, uint64_t now_ns, uint32_t key,
                         const char *fate);

/* On the engine thread's own track. */
static inline void tier_story_span(struct tier_story *story, const char *name, uint64_t begin_ns,
                                   uint64_t end_ns, uint32_t key)
{
    if (story->timeline) tier_story_add_span(story, name, begin_ns, end_ns, key);
}

/* Of reads and copies. */
static inline void tier_story_flight(struct tier_story *story, const char *track, const char *name,
                                     uint64_t begin_ns, uint64_t end_ns, uint32_t key,
                                     uint64_t bytes, const char *fate)
{
    if (story->timeline) {
        tier_story_add_flight(story, track, name, begin_ns, end_ns, key, bytes, fate);
    }
}

/* Fate NULL: it brought its expert in, and what becomes of it will be told. */
static inline void tier_story_hint(struct tier_story *story, uint64_t now_ns, uint32_t key,
                                   float share, const char *fate)
{
    if (story->timeline) tier_story_add_hint(story, now_ns, key, share, fate);
}

/* The open hint of this expert, if it has one, came to this. */
static inline void tier_story_fate(struct tier_story *story, uint64_t now_ns, uint32_t key,
                                   const char *fate)
{
    if (story->timeline && story->hinted_ns[key]) tier_story_end_hint(story, now_ns, key, fate);
}

#endif
