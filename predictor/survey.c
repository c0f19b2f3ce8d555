#include "predictor/survey.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "predictor/feed.h"
#include "predictor/waves.h"

enum { PROGRESS_EVERY = 16384 };

struct run {
    struct pred_survey *survey;
    struct pred_trace_reader *reader;
    struct tier_decide *cores[PRED_SURVEY_CASES];
    struct tier_found *found;
    uint32_t count;
    uint64_t lookups[PRED_SURVEY_WINDOWS], resident[PRED_SURVEY_CASES][PRED_SURVEY_WINDOWS];
};

static uint32_t resident_of(struct run *run, struct tier_decide *core, const struct pred_acquire *a)
{
    uint32_t resident = 0;
    pred_waves(core, a->layer, a->ids, a->count, a->count, a->phase, run->found);
    for (uint32_t i = 0; i < a->count; i++) resident += run->found[i].from == 0;
    return resident;
}

static void take(struct run *run, const struct pred_acquire *a, bool counting, uint64_t number)
{
    struct pred_survey *s = run->survey;
    if (counting) {
        for (uint32_t i = 0; i < a->count; i++) {
            s->uses[(size_t)a->layer * s->experts + a->ids[i]]++;
        }
        s->acquires++;
        s->lookups += a->count;
        return;
    }
    MUST(number < s->acquires);     /* the reader gives each pass the same */
    uint64_t window = number * s->windows / s->acquires;
    run->lookups[window] += a->count;
    for (uint32_t c = 0; c < run->count; c++) {
        run->resident[c][window] += resident_of(run, run->cores[c], a);
    }
}

static int read_all(struct run *run, bool counting, const struct pred_replay_progress *progress,
                    struct base_err *err)
{
    struct pred_feed *feed;
    struct pred_acquire a;
    uint64_t number = 0;
    int rc = pred_feed_create(&feed, run->reader, err);
    if (rc < 0) return rc;
    while ((rc = pred_feed_next(feed, &a, err)) > 0) {
        take(run, &a, counting, number++);
        if (progress && number % PROGRESS_EVERY == 0) {
            struct pred_trace_health health;
            pred_trace_reader_health(run->reader, &health);
            progress->report(progress->context, "surveying", health.read_bytes, health.file_bytes);
        }
    }
    pred_feed_destroy(feed);
    return rc < 0 ? rc : pred_trace_reader_rewind(run->reader, err);
}

static int cores_create(struct run *run, const struct pred_case *cases, struct base_err *err)
{
    const struct pred_trace_header *h = pred_trace_reader_header(run->reader);
    for (uint32_t c = 0; c < run->count; c++) {
        struct tier_decide_config config = {
            .layers = h->layers,
            .experts = h->experts,
            .top_k = h->top_k,
            .tier_count = 1,
            .tiers = { { .slots = cases[c].slots } },
            .half_life_tokens = cases[c].half_life_tokens,
            .prefill_share = cases[c].prefill_share,
        };
        memcpy(config.tiers[0].policy, cases[c].policy, sizeof config.tiers[0].policy);
        int rc = tier_decide_create(&run->cores[c], &config, err);
        if (rc < 0) return rc;
    }
    return 0;
}

int pred_survey_run(struct pred_survey *s, struct pred_trace_reader *reader,
                    const struct pred_case *cases, uint32_t count,
                    const struct pred_replay_progress *progress, struct base_err *err)
{
    const struct pred_trace_header *h = pred_trace_reader_header(reader);
    struct run run = { .survey = s, .reader = reader, .count = count };
    MUST(count <= PRED_SURVEY_CASES);
    *s = (struct pred_survey){ .layers = h->layers, .experts = h->experts };
    s->uses = calloc((size_t)h->layers * h->experts, sizeof s->uses[0]);
    run.found = calloc(h->experts, sizeof run.found[0]);
    int rc = s->uses && run.found ? 0 : base_err_set(err, -ENOMEM, "no memory to survey");
    if (rc == 0) rc = cores_create(&run, cases, err);
    if (rc == 0) rc = read_all(&run, true, progress, err);
    if (rc == 0 && s->acquires > 0) {
        s->windows =
            s->acquires < PRED_SURVEY_WINDOWS ? (uint32_t)s->acquires : PRED_SURVEY_WINDOWS;
        s->window_tokens = (double)s->acquires / s->windows / h->layers;
        rc = read_all(&run, false, progress, err);
    }
    for (uint32_t c = 0; c < count; c++) {
        for (uint32_t w = 0; w < s->windows; w++) {
            s->rates[c][w] = (double)run.resident[c][w] / (double)run.lookups[w];
        }
        tier_decide_destroy(run.cores[c]);
    }
    free(run.found);
    return rc;
}

void pred_survey_fini(struct pred_survey *s)
{
    free(s->uses);
    s->uses = NULL;
}
