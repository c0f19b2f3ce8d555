#include "predictor/replay.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum { PROGRESS_EVERY = 16384 };    /* events */

static void counts_of(const struct tier_decide *decide, uint32_t tiers,
                      struct pred_trace_counts *out)
{
    memset(out, 0, sizeof *out);
    out->tier_count = tiers;
    for (uint32_t t = 0; t < tiers; t++) {
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            out->cells[t][c] = *tier_decide_counts(decide, t, (enum tier_cell)c);
        }
    }
}

static bool same_counts(const struct pred_trace_counts *a, const struct pred_trace_counts *b)
{
    if (a->tier_count != b->tier_count) return false;
    for (uint32_t t = 0; t < a->tier_count; t++) {
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            const struct tier_counts *x = &a->cells[t][c], *y = &b->cells[t][c];
            if (x->lookups != y->lookups || x->resident != y->resident || x->misses != y->misses ||
                x->evictions != y->evictions || x->admissions != y->admissions ||
                x->prefetch_admissions != y->prefetch_admissions ||
                x->prefetch_used != y->prefetch_used || x->in_place != y->in_place) {
                return false;
            }
        }
    }
    return true;
}

static int refuse_inexact(const struct pred_trace_header *header, struct base_err *err)
{
    if (header->decide.tier_count == 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "it holds no events of a server's cache (it is from: %s): there is "
                            "nothing to compare with; run it without --as-recorded",
                            header->source);
    }
    if (header->sample < 1) {
        return base_err_set(err, BASE_ECONFIG,
                            "it holds a sample of the sequences (%g%%) and no cache "
                            "events: only what-if replay is possible",
                            header->sample * 100);
    }
    if (header->part > 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "it is part %" PRIu32 " of a rotated trace: what was "
                            "resident at its begin is not known; name the first part",
                            header->part);
    }
    return 0;
}

static void compare(struct pred_exact *exact, const struct tier_decide *decide,
                    const struct pred_trace_counts *live)
{
    struct pred_trace_counts replayed;
    counts_of(decide, exact->tier_count, &replayed);
    if (exact->same) {                  /* else the first difference stays */
        exact->replayed = replayed;
        exact->live = *live;
    }
    exact->checks++;
    if (same_counts(live, &replayed)) return;
    if (exact->same) exact->differing_step = exact->steps;
    exact->differing++;
    exact->same = false;
}

static int exact_item(struct pred_exact *exact, struct tier_decide *decide,
                      const struct pred_trace_item *item, struct base_err *err)
{
    switch (item->kind) {
    case PRED_ITEM_GAP:
        return base_err_set(err, BASE_ECONFIG, "%" PRIu64 " records were lost after event %" PRIu64
                            ": a trace with gaps cannot be replayed exactly", item->lost,
                            exact->events);
    case PRED_ITEM_STEP:
        exact->steps++;
        return 0;
    case PRED_ITEM_COUNTS:
        compare(exact, decide, &item->counts);
        return 0;
    case PRED_ITEM_EVENT:
        exact->events++;
        if (tier_decide_apply(decide, &item->event, err) < 0) {
            base_err_prefix(err, "event %" PRIu64 " (after step %" PRIu64 ")", exact->events,
                            exact->steps);
            return err->code;
        }
        return 0;
    }
    return 0;
}

int pred_replay_exact(struct pred_trace_reader *reader, struct pred_exact *exact,
                      const struct pred_replay_progress *progress, struct base_err *err)
{
    const struct pred_trace_header *header = pred_trace_reader_header(reader);
    struct pred_trace_item item;
    struct pred_trace_health health;
    struct tier_decide *decide;
    memset(exact, 0, sizeof *exact);
    exact->tier_count = header->decide.tier_count;
    exact->same = true;
    int rc = refuse_inexact(header, err);
    if (rc < 0) return rc;
    rc = tier_decide_create(&decide, &header->decide, err);
    if (rc < 0) return rc;
    while ((rc = pred_trace_reader_next(reader, PRED_WANT_ALL, &item, err)) > 0) {
        rc = exact_item(exact, decide, &item, err);
        if (rc < 0) break;
        if (progress && exact->events % PROGRESS_EVERY == 0) {
            pred_trace_reader_health(reader, &health);
            progress->report(progress->context, "replaying", health.read_bytes, health.file_bytes);
        }
    }
    tier_decide_destroy(decide);
    if (rc < 0) return rc;
    if (exact->checks == 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "the trace holds no live counts (the server was killed "
                            "before it wrote any): there is nothing to compare with");
    }
    return 0;
}
