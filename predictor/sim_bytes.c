/* One heap serves both kinds: its top is who leaves next. lru ranks by time of last use, so the
 * smallest leaves; belady by the inverted position of the next use, so the furthest does. */
#include "predictor/sim_bytes.h"

#include <errno.h>
#include <stdlib.h>

#include "base/must.h"

#define NOT_RESIDENT UINT32_MAX

struct pred_sim_bytes {
    uint32_t experts;
    const uint64_t *expert_bytes;
    uint64_t budget, used, clock, acquire;
    struct pred_future *future;
    bool evicted;
    uint32_t size;              /* of the heap */
    uint32_t *heap;             /* keys */
    uint32_t *place;            /* [keys], NOT_RESIDENT while absent */
    uint64_t *rank;             /* [keys] */
    uint64_t *acquired;         /* [keys] number of its last acquire */
};

int pred_sim_bytes_create(struct pred_sim_bytes **out, uint32_t layers, uint32_t experts,
                          const uint64_t *expert_bytes, uint64_t budget_bytes,
                          struct pred_future *future)
{
    *out = NULL;
    struct pred_sim_bytes *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    size_t keys = (size_t)layers * experts;
    s->experts = experts;
    s->expert_bytes = expert_bytes;
    s->budget = budget_bytes;
    s->future = future;
    s->heap = calloc(keys, sizeof s->heap[0]);
    s->place = malloc(keys * sizeof s->place[0]);
    s->rank = calloc(keys, sizeof s->rank[0]);
    s->acquired = calloc(keys, sizeof s->acquired[0]);
    if (!s->heap || !s->place || !s->rank || !s->acquired) {
        pred_sim_bytes_destroy(s);
        return -ENOMEM;
    }
    for (size_t i = 0; i < keys; i++) s->place[i] = NOT_RESIDENT;
    *out = s;
    return 0;
}

void pred_sim_bytes_destroy(struct pred_sim_bytes *s)
{
    if (!s) return;
    free(s->heap);
    free(s->place);
    free(s->rank);
    free(s->acquired);
    free(s);
}

/* Ties (experts never used again) go by key, so that the same trace gives the same victims. */
static bool leaves_before(const struct pred_sim_bytes *s, uint32_t a, uint32_t b)
{
    return s->rank[a] != s->rank[b] ? s->rank[a] < s->rank[b] : a < b;
}

static void heap_set(struct pred_sim_bytes *s, uint32_t at, uint32_t key)
{
    s->heap[at] = key;
    s->place[key] = at;
}

static void heap_up(struct pred_sim_bytes *s, uint32_t at)
{
    uint32_t key = s->heap[at];
    while (at > 0 && leaves_before(s, key, s->heap[(at - 1) / 2])) {
        heap_set(s, at, s->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_set(s, at, key);
}

static void heap_down(struct pred_sim_bytes *s, uint32_t at)
{
    uint32_t key = s->heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= s->size) break;
        if (child + 1 < s->size && leaves_before(s, s->heap[child + 1], s->heap[child])) child++;
        if (!leaves_before(s, s->heap[child], key)) break;
        heap_set(s, at, s->heap[child]);
        at = child;
    }
    heap_set(s, at, key);
}

static void use(struct pred_sim_bytes *s, uint32_t layer, uint32_t expert)
{
    uint32_t key = layer * s->experts + expert;
    s->rank[key] =
        s->future ? UINT64_MAX - pred_future_next(s->future, layer, expert, 0) : s->clock++;
    s->acquired[key] = s->acquire;
    if (s->place[key] == NOT_RESIDENT) {
        s->used += s->expert_bytes[layer];
        heap_set(s, s->size++, key);
    }
    heap_up(s, s->place[key]);
    heap_down(s, s->place[key]);
}

static void remove_top(struct pred_sim_bytes *s)
{
    uint32_t key = s->heap[0];
    s->place[key] = NOT_RESIDENT;
    s->used -= s->expert_bytes[key / s->experts];
    uint32_t moved = s->heap[--s->size];
    if (s->size == 0) return;
    heap_set(s, 0, moved);
    heap_down(s, 0);
}

/* Belady: experts of the running acquire step aside while any other can leave. */
static uint32_t shrink(struct pred_sim_bytes *s, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    uint32_t evictions = 0, aside = 0;
    while (s->used > s->budget && s->size > 0) {
        uint32_t key = s->heap[0];
        if (s->future && s->acquired[key] == s->acquire && aside < n && aside < s->size) {
            /* Belongs to the running acquire: behind everybody until the others are through. */
            s->rank[key] = UINT64_MAX;
            heap_down(s, 0);
            aside++;
            continue;
        }
        remove_top(s);
        evictions++;
    }
    for (uint32_t i = 0; aside > 0 && i < n; i++) {
        uint32_t key = layer * s->experts + ids[i];
        if (s->place[key] == NOT_RESIDENT) continue;
        s->rank[key] = UINT64_MAX - pred_future_next(s->future, layer, ids[i], 0);
        heap_up(s, s->place[key]);
    }
    return evictions;
}

void pred_sim_bytes_acquire(struct pred_sim_bytes *s, uint32_t layer, const uint32_t *ids,
                            uint32_t n, struct pred_sim_bytes_step *step)
{
    uint32_t base = layer * s->experts;
    *step = (struct pred_sim_bytes_step){ .cold = !s->evicted };
    s->acquire++;
    for (uint32_t i = 0; i < n; i++) step->resident += s->place[base + ids[i]] != NOT_RESIDENT;
    /* Hits are touched before anything comes in, as in the decision core. */
    for (uint32_t i = 0; i < n; i++) {
        if (s->place[base + ids[i]] != NOT_RESIDENT) use(s, layer, ids[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (s->acquired[base + ids[i]] != s->acquire) use(s, layer, ids[i]);
    }
    step->evictions = shrink(s, layer, ids, n);
    if (step->evictions > 0) s->evicted = true;
}
