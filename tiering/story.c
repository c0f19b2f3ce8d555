#include "tiering/story.h"

#include <errno.h>
#include <stdlib.h>

int tier_story_create(struct tier_story *story, struct base_timeline *timeline, uint32_t layers,
                      uint32_t experts, uint32_t layer_first)
{
    *story = (struct tier_story){ .experts = experts, .keys = layers * experts,
                                   .layer_first = layer_first };
    if (!timeline) return 0;
    story->hinted_ns = calloc(story->keys, sizeof *story->hinted_ns);
    story->hinted_share = calloc(story->keys, sizeof *story->hinted_share);
    if (!story->hinted_ns || !story->hinted_share) {
        tier_story_destroy(story, 0);
        return -ENOMEM;
    }
    story->timeline = timeline;
    return 0;
}

void tier_story_destroy(struct tier_story *story, uint64_t now_ns)
{
    for (uint32_t key = 0; story->timeline && key < story->keys; key++) {
        tier_story_fate(story, now_ns, key, "open");
    }
    free(story->hinted_ns);
    free(story->hinted_share);
    *story = (struct tier_story){ 0 };
}

static struct base_timeline_event event_of(const struct tier_story *story,
                                           enum base_timeline_kind kind, const char *track,
                                           const char *name, uint32_t key)
{
    return (struct base_timeline_event){
        .kind = kind, .track = track, .name = name, .share = -1,
        .layer = key == BASE_TIMELINE_NONE ? BASE_TIMELINE_NONE
                                           : story->layer_first + key / story->experts,
        .expert = key == BASE_TIMELINE_NONE ? BASE_TIMELINE_NONE : key % story->experts,
    };
}

void tier_story_add_span(struct tier_story *story, const char *name, uint64_t begin_ns,
                         uint64_t end_ns, uint32_t key)
{
    struct base_timeline_event e = event_of(story, BASE_TIMELINE_SPAN, "engine", name, key);
    e.begin_ns = begin_ns;
    e.end_ns = end_ns;
    base_timeline_add(story->timeline, &e);
}

void tier_story_add_flight(struct tier_story *story, const char *track, const char *name,
                           uint64_t begin_ns, uint64_t end_ns, uint32_t key, uint64_t bytes,
                           const char *fate)
{
    struct base_timeline_event e = event_of(story, BASE_TIMELINE_FLIGHT, track, name, key);
    e.begin_ns = begin_ns;
    e.end_ns = end_ns;
    e.count = bytes;
    e.fate = fate;
    base_timeline_add(story->timeline, &e);
}

void tier_story_add_hint(struct tier_story *story, uint64_t now_ns, uint32_t key, float share,
                         const char *fate)
{
    if (!fate) {
        tier_story_fate(story, now_ns, key, "open");
        story->hinted_ns[key] = now_ns;
        story->hinted_share[key] = share;
        return;
    }
    struct base_timeline_event e = event_of(story, BASE_TIMELINE_MARK, "hints", "hint", key);
    e.begin_ns = e.end_ns = now_ns;
    e.share = share;
    e.fate = fate;
    base_timeline_add(story->timeline, &e);
}

void tier_story_end_hint(struct tier_story *story, uint64_t now_ns, uint32_t key, const char *fate)
{
    struct base_timeline_event e = event_of(story, BASE_TIMELINE_FLIGHT, "hints", "hint", key);
    e.begin_ns = story->hinted_ns[key];
    e.end_ns = now_ns;
    e.share = story->hinted_share[key];
    e.fate = fate;
    story->hinted_ns[key] = 0;
    base_timeline_add(story->timeline, &e);
}
