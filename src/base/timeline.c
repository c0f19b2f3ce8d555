#include "base/timeline.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"

enum { TRACKS_MAX = 16, TIMELINE_MAGIC = 0x74696d65 };

static struct base_mem_tag profile_tag = { .name = "profile" };

struct base_timeline {
    uint32_t magic;
    size_t most;
    uint64_t count;             /* ever added; relaxed atomic: one writer, any reader */
    struct base_timeline_event *events;     /* [most]: event i is at i % most */
};

size_t base_timeline_bytes(size_t most)
{
    return most * sizeof(struct base_timeline_event);
}

int base_timeline_create(struct base_timeline **out, size_t most)
{
    MUST(most > 0);
    struct base_timeline *timeline = malloc(sizeof *timeline);
    if (!timeline) return -ENOMEM;
    *timeline = (struct base_timeline){ .magic = TIMELINE_MAGIC, .most = most };
    timeline->events = base_mem_alloc(&profile_tag, base_timeline_bytes(most), 64);
    if (!timeline->events) {
        free(timeline);
        return -ENOMEM;
    }
    *out = timeline;
    return 0;
}

void base_timeline_destroy(struct base_timeline *timeline)
{
    if (!timeline) return;
    MUST_MAGIC(timeline, TIMELINE_MAGIC);
    base_mem_free(&profile_tag, timeline->events, base_timeline_bytes(timeline->most));
    timeline->magic = 0;
    free(timeline);
}

void base_timeline_add(struct base_timeline *timeline, const struct base_timeline_event *event)
{
    MUST_MAGIC(timeline, TIMELINE_MAGIC);
    uint64_t count = timeline->count;
    timeline->events[count % timeline->most] = *event;
    __atomic_store_n(&timeline->count, count + 1, __ATOMIC_RELAXED);
}

uint64_t base_timeline_count(const struct base_timeline *timeline)
{
    return __atomic_load_n(&timeline->count, __ATOMIC_RELAXED);
}

uint64_t base_timeline_dropped(const struct base_timeline *timeline)
{
    return timeline->count > timeline->most ? timeline->count - timeline->most : 0;
}

/* -- writing ---------------------------------------------------------------------------------- */

struct writer {
    FILE *to;
    uint64_t origin_ns;
    const char *tracks[TRACKS_MAX];
    unsigned track_count;
};

static unsigned track_of(struct writer *w, const char *name)
{
    for (unsigned i = 0; i < w->track_count; i++) {
        if (strcmp(w->tracks[i], name) == 0) return i + 1;
    }
    MUST(w->track_count < TRACKS_MAX);
    w->tracks[w->track_count++] = name;
    return w->track_count;
}

/* Microseconds, which the format counts in, to the nanosecond. */
static void put_time(struct writer *w, const char *key, uint64_t ns)
{
    fprintf(w->to, ",\"%s\":%" PRIu64 ".%03u", key, ns / 1000, (unsigned)(ns % 1000));
}

static void put_arguments(struct writer *w, const struct base_timeline_event *e)
{
    const char *comma = "";
    fputs(",\"args\":{", w->to);
    if (e->layer != BASE_TIMELINE_NONE) {
        fprintf(w->to, "\"layer\":%" PRIu32, e->layer);
        comma = ",";
    }
    if (e->expert != BASE_TIMELINE_NONE) {
        fprintf(w->to, "%s\"expert\":%" PRIu32, comma, e->expert);
        comma = ",";
    }
    if (e->count > 0) {
        fprintf(w->to, "%s\"count\":%" PRIu64, comma, e->count);
        comma = ",";
    }
    if (e->share >= 0) {
        fprintf(w->to, "%s\"probability\":%.4f", comma, (double)e->share);
        comma = ",";
    }
    if (e->fate) fprintf(w->to, "%s\"fate\":\"%s\"", comma, e->fate);
    fputs("}", w->to);
}

static void put_head(struct writer *w, const struct base_timeline_event *e, const char *phase,
                     uint64_t at_ns)
{
    fprintf(w->to, ",\n{\"name\":\"%s\",\"cat\":\"%s\",\"ph\":\"%s\",\"pid\":1,\"tid\":%u", e->name,
            e->track, phase, track_of(w, e->track));
    put_time(w, "ts", at_ns - w->origin_ns);
}

static void put_event(struct writer *w, const struct base_timeline_event *e, uint64_t id)
{
    uint64_t end_ns = e->end_ns > e->begin_ns ? e->end_ns : e->begin_ns;
    switch ((enum base_timeline_kind)e->kind) {
    case BASE_TIMELINE_SPAN:
        put_head(w, e, "X", e->begin_ns);
        put_time(w, "dur", end_ns - e->begin_ns);
        break;
    case BASE_TIMELINE_FLIGHT:
        put_head(w, e, "b", e->begin_ns);
        fprintf(w->to, ",\"id\":\"%" PRIu64 "\"", id);
        put_arguments(w, e);
        fputs("}", w->to);
        put_head(w, e, "e", end_ns);
        fprintf(w->to, ",\"id\":\"%" PRIu64 "\"", id);
        break;
    case BASE_TIMELINE_MARK:
        put_head(w, e, "i", e->begin_ns);
        fputs(",\"s\":\"t\"", w->to);
        break;
    }
    put_arguments(w, e);
    fputs("}", w->to);
}

int base_timeline_write(const struct base_timeline *timeline, const char *path,
                        struct base_err *err)
{
    MUST_MAGIC(timeline, TIMELINE_MAGIC);
    struct writer w = { .to = fopen(path, "we"), .origin_ns = UINT64_MAX };
    if (!w.to) return base_err_set(err, -errno, "%s: %s", path, strerror(errno));
    uint64_t dropped = base_timeline_dropped(timeline);
    for (uint64_t i = dropped; i < timeline->count; i++) {
        uint64_t begin_ns = timeline->events[i % timeline->most].begin_ns;
        if (begin_ns < w.origin_ns) w.origin_ns = begin_ns;
    }
    fprintf(w.to, "{\"displayTimeUnit\":\"ns\",\"otherData\":{\"events\":%" PRIu64
            ",\"dropped\":%" PRIu64 "},\"traceEvents\":[\n"
            "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{\"name\":\"expertier\"}}",
            timeline->count - dropped, dropped);
    for (uint64_t i = dropped; i < timeline->count; i++) {
        put_event(&w, &timeline->events[i % timeline->most], i);
    }
    for (unsigned i = 0; i < w.track_count; i++) {
        fprintf(w.to, ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":%u,\"args\":"
                "{\"name\":\"%s\"}}", i + 1, w.tracks[i]);
    }
    fputs("\n]}\n", w.to);
    bool bad = ferror(w.to) != 0;
    if (fclose(w.to) != 0 || bad) {
        return base_err_set(err, -EIO, "%s: the timeline cannot be written: %s", path,
                            strerror(errno));
    }
    return 0;
}
