#include "predictor/feed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"

struct pred_feed {
    struct pred_trace_reader *reader;
    const struct pred_trace_header *header;
    struct pred_trace_item item;
    struct pred_union joined;
    bool started, from_events, ended;
    uint64_t gaps;
    /* from steps: where we are in item.step */
    uint32_t layer, phase_index;
    bool in_step;
    /* from events: the acquire that is shown, and what of it is still to be asked again */
    uint32_t *asked, *rest;
    uint32_t rest_count, rest_layer;
    enum tier_phase rest_phase;
};

/* ---------------------------------------------------------------------------------- unions -- */

int pred_union_init(struct pred_union *u, uint32_t experts, uint32_t top_k)
{
    *u = (struct pred_union){ .experts = experts, .top_k = top_k };
    u->stamps = calloc(experts, sizeof u->stamps[0]);
    u->scores = calloc(experts, sizeof u->scores[0]);
    u->ids = calloc(experts, sizeof u->ids[0]);
    if (u->stamps && u->scores && u->ids) return 0;
    pred_union_fini(u);
    return -ENOMEM;
}

void pred_union_fini(struct pred_union *u)
{
    free(u->stamps);
    free(u->scores);
    free(u->ids);
    *u = (struct pred_union){ 0 };
}

static int stronger_first(const void *a, const void *b, void *context)
{
    const double *scores = context;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (scores[x] != scores[y]) return scores[x] > scores[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

uint32_t pred_union_of(struct pred_union *u, const struct pred_step *step, uint32_t layer,
                       enum tier_phase phase)
{
    uint32_t count = 0, tokens = 0, only = 0;
    size_t base = (size_t)layer * step->token_count;
    for (uint32_t i = 0; i < step->token_count; i++) {
        if (step->phases[i] != phase) continue;
        if (step->expert_ids[(base + i) * u->top_k] == PRED_NO_EXPERT) continue;
        tokens++;
        only = i;
    }
    if (tokens <= 1) {
        if (tokens == 1) {
            memcpy(u->ids, step->expert_ids + (base + only) * u->top_k,
                   u->top_k * sizeof u->ids[0]);
        }
        return tokens * u->top_k;
    }
    u->stamp++;
    for (uint32_t i = 0; i < step->token_count; i++) {
        if (step->phases[i] != phase) continue;
        const uint32_t *ids = step->expert_ids + (base + i) * u->top_k;
        if (ids[0] == PRED_NO_EXPERT) continue;
        for (uint32_t k = 0; k < u->top_k; k++) {
            double score = u->top_k - k;
            if (step->expert_weights) score = step->expert_weights[(base + i) * u->top_k + k];
            if (u->stamps[ids[k]] != u->stamp) {
                u->stamps[ids[k]] = u->stamp;
                u->scores[ids[k]] = 0;
                u->ids[count++] = ids[k];
            }
            u->scores[ids[k]] += score;
        }
    }
    qsort_r(u->ids, count, sizeof u->ids[0], stronger_first, u->scores);
    return count;
}

/* ------------------------------------------------------------------------------------ feed -- */

int pred_feed_create(struct pred_feed **out, struct pred_trace_reader *reader, struct base_err *err)
{
    *out = NULL;
    struct pred_feed *f = calloc(1, sizeof *f);
    if (!f) return base_err_set(err, -ENOMEM, "no memory to replay");
    f->reader = reader;
    f->header = pred_trace_reader_header(reader);
    f->asked = calloc(f->header->experts, sizeof f->asked[0]);
    f->rest = calloc(f->header->experts, sizeof f->rest[0]);
    int rc = pred_union_init(&f->joined, f->header->experts, f->header->top_k);
    if (rc < 0 || !f->asked || !f->rest) {
        pred_feed_destroy(f);
        return base_err_set(err, -ENOMEM, "no memory to replay");
    }
    *out = f;
    return 0;
}

void pred_feed_destroy(struct pred_feed *f)
{
    if (!f) return;
    pred_union_fini(&f->joined);
    free(f->asked);
    free(f->rest);
    free(f);
}

bool pred_feed_from_events(const struct pred_feed *f)
{
    return f->from_events;
}

uint64_t pred_feed_gaps(const struct pred_feed *f)
{
    return f->gaps;
}

/* A step of one token: its routing as it is. */
static bool from_token(struct pred_feed *f, struct pred_acquire *acquire)
{
    const struct pred_step *step = &f->item.step;
    while (f->layer < f->header->layers) {
        uint32_t layer = f->layer++;
        const uint32_t *ids = step->expert_ids + (size_t)layer * f->header->top_k;
        if (ids[0] == PRED_NO_EXPERT) continue;
        *acquire = (struct pred_acquire){ .layer = layer, .phase = (enum tier_phase)step->phases[0],
                                          .count = f->header->top_k, .ids = ids, .step = step };
        return true;
    }
    f->in_step = false;
    return false;
}

/* Takes the next acquire out of the running step. */
static bool from_step(struct pred_feed *f, struct pred_acquire *acquire)
{
    if (f->item.step.token_count == 1) return from_token(f, acquire);
    static const enum tier_phase order[] = { TIER_DECODE, TIER_PREFILL };
    while (f->layer < f->header->layers) {
        while (f->phase_index < 2) {
            enum tier_phase phase = order[f->phase_index++];
            uint32_t n = pred_union_of(&f->joined, &f->item.step, f->layer, phase);
            if (n == 0) continue;
            *acquire = (struct pred_acquire){ .layer = f->layer, .phase = phase, .count = n,
                                              .ids = f->joined.ids, .step = &f->item.step };
            return true;
        }
        f->layer++;
        f->phase_index = 0;
    }
    f->in_step = false;
    return false;
}

/* An acquire event: true when it asks for something new, false when it only asks again for what an
 * earlier one was not granted. */
static bool from_event(struct pred_feed *f, const struct tier_event *event,
                       struct pred_acquire *acquire)
{
    bool again = f->rest_count > 0 && event->layer == f->rest_layer &&
                 event->phase == f->rest_phase && event->count == f->rest_count &&
                 memcmp(event->ids, f->rest, event->count * sizeof event->ids[0]) == 0;
    f->rest_count = event->count - event->granted;
    f->rest_layer = event->layer;
    f->rest_phase = event->phase;
    memcpy(f->rest, event->ids + event->granted, f->rest_count * sizeof f->rest[0]);
    if (again || event->count == 0) return false;
    memcpy(f->asked, event->ids, event->count * sizeof f->asked[0]);
    *acquire = (struct pred_acquire){ .layer = event->layer, .phase = event->phase,
                                      .count = event->count, .ids = f->asked };
    return true;
}

int pred_feed_next(struct pred_feed *f, struct pred_acquire *acquire, struct base_err *err)
{
    for (;;) {
        if (f->in_step && from_step(f, acquire)) return 1;
        int rc = pred_trace_reader_next(f->reader, PRED_WANT_ALL, &f->item, err);
        if (rc <= 0) return rc;
        if (f->item.kind == PRED_ITEM_GAP) {
            f->gaps++;
            f->rest_count = 0;
        } else if (f->item.kind == PRED_ITEM_EVENT && f->item.event.kind == TIER_EVENT_ACQUIRE) {
            f->from_events = true;
            if (from_event(f, &f->item.event, acquire)) return 1;
        } else if (f->item.kind == PRED_ITEM_STEP && !f->from_events) {
            f->in_step = true;
            f->layer = f->phase_index = 0;
        }
    }
}
