#include "engine/placement.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "port/hash.h"
#include "port/json.h"
#include "predictor/trace.h"

enum { JSON_MAX = 256 << 20 };

static int make(struct eng_placement *p, uint32_t layers, uint32_t experts, uint32_t ranks)
{
    MUST(ranks >= 1 && ranks <= 64);
    *p = (struct eng_placement){ .layers = layers, .experts = experts, .ranks = ranks };
    p->holders = calloc((size_t)layers * experts + 1, sizeof *p->holders);
    return p->holders ? 0 : -ENOMEM;
}

void eng_placement_fini(struct eng_placement *p)
{
    free(p->holders);
    *p = (struct eng_placement){ 0 };
}

uint64_t eng_placement_hash(const struct eng_placement *p)
{
    return port_hash64(p->holders, (size_t)p->layers * p->experts * sizeof *p->holders);
}

static uint32_t rest_each(uint32_t experts, uint32_t replicas, uint32_t ranks)
{
    return (experts - replicas + ranks - 1) / ranks;
}

int eng_placement_round_robin(struct eng_placement *p, uint32_t layers, uint32_t experts,
                              uint32_t ranks)
{
    int rc = make(p, layers, experts, ranks);
    if (rc < 0) return rc;
    for (uint32_t l = 0; l < layers; l++) {
        for (uint32_t e = 0; e < experts; e++) {
            p->holders[l * experts + e] = UINT64_C(1) << (e + l) % ranks;
        }
    }
    p->held = rest_each(experts, 0, ranks);
    snprintf(p->note, sizeof p->note, "round robin: %" PRIu32 " of %" PRIu32 " experts a layer "
             "on each of %" PRIu32 " ranks", p->held, experts, ranks);
    return 0;
}

struct loaded {
    uint64_t load;
    uint32_t expert;
};

static int hotter(const void *a, const void *b)
{
    const struct loaded *x = a, *y = b;
    if (x->load != y->load) return x->load < y->load ? 1 : -1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

/* One layer; `order` is hottest first, `before` what the ranks have from the layers so far: it
 * breaks ties, so that the rank that got a layer's hottest expert does not get the next one's. */
static void deal(struct eng_placement *p, uint32_t layer, const struct loaded *order,
                 uint64_t before[64])
{
    uint64_t load[64] = { 0 }, all = p->ranks == 64 ? UINT64_MAX : (UINT64_C(1) << p->ranks) - 1;
    uint32_t count[64] = { 0 };
    uint64_t *holders = p->holders + (size_t)layer * p->experts;
    uint32_t room = rest_each(p->experts, p->replicas, p->ranks);
    for (uint32_t i = 0; i < p->experts; i++) {
        if (i < p->replicas) {
            holders[order[i].expert] = all;
            continue;
        }
        uint32_t best = p->ranks;
        for (uint32_t r = 0; r < p->ranks; r++) {
            if (count[r] == room) continue;
            if (best == p->ranks || load[r] < load[best] ||
                (load[r] == load[best] && before[r] < before[best])) best = r;
        }
        holders[order[i].expert] = UINT64_C(1) << best;
        load[best] += order[i].load;
        count[best]++;
    }
    for (uint32_t r = 0; r < p->ranks; r++) {
        before[r] += load[r];
    }
}

int eng_placement_by_load(struct eng_placement *p, uint32_t layers, uint32_t experts,
                          uint32_t ranks, uint32_t replicas, const uint64_t *load)
{
    MUST(replicas <= experts);
    uint64_t before[64] = { 0 };
    int rc = make(p, layers, experts, ranks);
    struct loaded *order = calloc(experts + 1, sizeof *order);
    if (rc == 0 && !order) rc = -ENOMEM;
    if (rc == 0) {
        p->replicas = replicas;
        p->held = replicas + rest_each(experts, replicas, ranks);
    }
    for (uint32_t l = 0; rc == 0 && l < layers; l++) {
        for (uint32_t e = 0; e < experts; e++) {
            order[e] = (struct loaded){ load[(size_t)l * experts + e], e };
        }
        qsort(order, experts, sizeof *order, hotter);
        deal(p, l, order, before);
    }
    if (rc == 0) {
        snprintf(p->note, sizeof p->note, "by load: %" PRIu32 " of %" PRIu32 " experts a layer on "
                 "each of %" PRIu32 " ranks, %" PRIu32 " of them on all; the busiest rank has "
                 "%.3f times its share", p->held, experts, ranks, replicas,
                 eng_placement_skew(p, load));
    } else {
        eng_placement_fini(p);
    }
    free(order);
    return rc;
}

double eng_placement_skew(const struct eng_placement *p, const uint64_t *load)
{
    double of[64] = { 0 }, sum = 0, most = 0;
    for (size_t i = 0; i < (size_t)p->layers * p->experts; i++) {
        int holders = __builtin_popcountll(p->holders[i]);
        for (uint32_t r = 0; r < p->ranks; r++) {
            if (p->holders[i] >> r & 1) of[r] += (double)load[i] / holders;
        }
        sum += (double)load[i];
    }
    for (uint32_t r = 0; r < p->ranks; r++) {
        most = of[r] > most ? of[r] : most;
    }
    return sum > 0 ? most * p->ranks / sum : 1;
}

/* ----------------------------------------------------------------------------- measured load -- */

static int read_trace(struct pred_trace_reader *reader, const char *path, uint64_t *load,
                      uint32_t layers, uint32_t experts, struct base_err *err)
{
    const struct pred_trace_header *h = pred_trace_reader_header(reader);
    struct pred_trace_item item;
    int rc;
    if (h->layers != layers || h->experts != experts) {
        return base_err_set(err, BASE_EMISMATCH, "ranks.placement: %s is a trace of %" PRIu32
                            " layers with %" PRIu32 " experts, the model has %" PRIu32 " with %"
                            PRIu32, path, h->layers, h->experts, layers, experts);
    }
    while ((rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err)) > 0) {
        size_t row = (size_t)item.step.token_count * h->top_k;
        for (uint32_t l = 0; l < layers; l++) {
            for (size_t i = 0; i < row; i++) {
                uint32_t id = item.step.expert_ids[l * row + i];
                if (id < experts) load[(size_t)l * experts + id]++;
            }
        }
    }
    return rc;
}

static int read_report(const struct port_json *root, const char *path, uint64_t *load,
                       uint32_t layers, uint32_t experts, struct base_err *err)
{
    const struct port_json *list = port_json_get(root, "experts");
    int64_t first = INT64_MAX, layer = 0, expert = 0, lookups = 0;
    size_t count = port_json_count(list);
    if (count != (size_t)layers * experts) {
        return base_err_set(err, BASE_EMISMATCH, "ranks.placement: %s lists %zu experts, the model "
                            "has %" PRIu32 " x %" PRIu32 "; take tier-stats --json --by expert "
                            "--limit 0", path, count, layers, experts);
    }
    /* The report counts the model's layers; those with experts begin at the smallest. */
    for (size_t i = 0; i < count; i++) {
        layer = port_json_as_i64(port_json_get(port_json_at(list, i), "layer"));
        if (layer < first) first = layer;
    }
    for (size_t i = 0; i < count; i++) {
        const struct port_json *at = port_json_at(list, i);
        int rc = port_json_i64(at, "layer", true, first, first + layers - 1, 0, &layer, path, err);
        if (rc == 0) rc = port_json_i64(at, "expert", true, 0, experts - 1, 0, &expert, path, err);
        if (rc == 0) rc = port_json_i64(at, "lookups", true, 0, INT64_MAX, 0, &lookups, path, err);
        if (rc < 0) return rc;
        load[(size_t)(layer - first) * experts + (size_t)expert] = (uint64_t)lookups;
    }
    return 0;
}

int eng_placement_read_load(const char *path, uint64_t *load, uint32_t layers, uint32_t experts,
                            struct base_err *err)
{
    struct pred_trace_reader *reader = NULL;
    struct port_json *root = NULL;
    uint64_t sum = 0;
    char first = 0;
    FILE *from = fopen(path, "rbe");
    if (!from) {
        return base_err_set(err, -errno, "ranks.placement: cannot read %s: %s", path,
                            strerror(errno));
    }
    bool report = fread(&first, 1, 1, from) == 1 && first == '{';
    fclose(from);
    memset(load, 0, (size_t)layers * experts * sizeof *load);
    int rc = report ? port_json_load(&root, path, JSON_MAX, err)
                    : pred_trace_reader_open(&reader, path, err);
    if (rc == 0) {
        rc = report ? read_report(root, path, load, layers, experts, err)
                    : read_trace(reader, path, load, layers, experts, err);
    }
    for (size_t i = 0; i < (size_t)layers * experts; i++) {
        sum += load[i];
    }
    if (rc >= 0 && sum == 0) {
        rc = base_err_set(err, BASE_EMISMATCH, "ranks.placement: %s says nothing about load: no "
                          "expert was ever asked for", path);
    }
    port_json_free(root);
    pred_trace_reader_close(reader);
    return rc < 0 ? rc : 0;
}
