#include "predictor/tables.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "predictor/lanes.h"

enum {
    POPULARITY_TOKENS = 4096,   /* the moving average's memory */
    ODDS_EVERY = 16,            /* tokens after which log-odds are computed again */
    KEY_SEEN_MAX = 1024,        /* the same for a key's layer */
};
/* Steps of learned rows: the first, how fast they shrink with use, the last. */
#define ROW_STEP 0.7f
#define ROW_SHRINK 0.8f
#define ROW_STEP_MIN 0.01f

/* ------------------------------------------------------------------------------ popularity -- */

int pred_popularity_init(struct pred_popularity *pop, const struct pred_shape *shape)
{
    size_t n = (size_t)shape->layers * shape->experts;
    *pop = (struct pred_popularity){ .layers = shape->layers, .experts = shape->experts };
    pop->p = malloc(n * sizeof pop->p[0]);
    pop->odds = malloc(n * sizeof pop->odds[0]);
    pop->seen = calloc(shape->layers, sizeof pop->seen[0]);
    if (!pop->p || !pop->odds || !pop->seen) return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        pop->p[i] = pop->odds[i] = (float)shape->top_k / (float)shape->experts;
    }
    pred_lanes()->odds(pop->odds, (uint32_t)n);
    return 0;
}

void pred_popularity_fini(struct pred_popularity *pop)
{
    free(pop->p);
    free(pop->odds);
    free(pop->seen);
}

void pred_popularity_learn(struct pred_popularity *pop, uint32_t layer, const uint32_t *ids,
                           uint32_t top_k)
{
    float *p = pop->p + (size_t)layer * pop->experts;
    if (pop->seen[layer] < UINT32_MAX - ODDS_EVERY) pop->seen[layer]++;
    else pop->seen[layer] -= ODDS_EVERY - 1;    /* some months of tokens: it stays there */
    uint32_t seen = pop->seen[layer];
    uint32_t memory = seen < POPULARITY_TOKENS ? seen + 32 : POPULARITY_TOKENS;
    if (memory > POPULARITY_TOKENS) memory = POPULARITY_TOKENS;
    float rate = 1.0f / (float)memory;
    pred_lanes()->scale(p, 1.0f - rate, pop->experts);
    for (uint32_t k = 0; k < top_k; k++) p[ids[k]] += rate;
    if (seen % ODDS_EVERY != 0) return;
    float *odds = pop->odds + (size_t)layer * pop->experts;
    memcpy(odds, p, pop->experts * sizeof odds[0]);
    pred_lanes()->odds(odds, pop->experts);
}

unsigned pred_popularity_blocks(const struct pred_popularity *pop, struct pred_block *blocks)
{
    size_t n = (size_t)pop->layers * pop->experts;
    blocks[0] = (struct pred_block){ pop->p, n * sizeof pop->p[0] };
    blocks[1] = (struct pred_block){ pop->odds, n * sizeof pop->odds[0] };
    blocks[2] = (struct pred_block){ pop->seen, pop->layers * sizeof pop->seen[0] };
    return 3;
}

/* ------------------------------------------------------------------------------------ rows -- */

int pred_rows_init(struct pred_rows *rows, const struct pred_shape *shape)
{
    size_t n = (size_t)shape->layers * shape->experts;
    *rows = (struct pred_rows){ .layers = shape->layers, .experts = shape->experts };
    rows->weights = calloc(n * shape->experts, sizeof rows->weights[0]);
    rows->seen = calloc(n, sizeof rows->seen[0]);
    return rows->weights && rows->seen ? 0 : -ENOMEM;
}

void pred_rows_fini(struct pred_rows *rows)
{
    free(rows->weights);
    free(rows->seen);
}

void pred_rows_add(const struct pred_rows *rows, uint32_t layer, const uint32_t *given,
                   uint32_t top_k, float *scores)
{
    const float *table = rows->weights + (size_t)layer * rows->experts * rows->experts;
    pred_lanes()->add_rows(scores, table, given, top_k, rows->experts);
}

void pred_rows_learn(struct pred_rows *rows, uint32_t layer, const uint32_t *given, uint32_t top_k,
                     const float *errors, float share)
{
    const struct pred_lanes *lanes = pred_lanes();
    for (uint32_t j = 0; j < top_k; j++) {
        size_t at = (size_t)layer * rows->experts + given[j];
        float *row = rows->weights + at * rows->experts;
        float step = ROW_STEP / sqrtf(1.0f + (float)rows->seen[at] * ROW_SHRINK);
        if (step < ROW_STEP_MIN) step = ROW_STEP_MIN;
        if (rows->seen[at] < UINT32_MAX) rows->seen[at]++;
        lanes->descend(row, share * step, errors, rows->experts);
    }
}

unsigned pred_rows_blocks(const struct pred_rows *rows, struct pred_block *blocks)
{
    size_t n = (size_t)rows->layers * rows->experts;
    blocks[0] = (struct pred_block){ rows->weights, n * rows->experts * sizeof rows->weights[0] };
    blocks[1] = (struct pred_block){ rows->seen, n * sizeof rows->seen[0] };
    return 2;
}

void pred_errors(float *scores, uint32_t experts, const uint32_t *ids, uint32_t top_k)
{
    pred_lanes()->sigmoid(scores, experts);
    for (uint32_t k = 0; k < top_k; k++) scores[ids[k]] -= 1.0f;
}

/* ----------------------------------------------------------------------------------- keyed -- */

int pred_keyed_init(struct pred_keyed *keyed, const struct pred_shape *shape, uint32_t keys_max)
{
    uint32_t kept = shape->experts < PRED_KEYED_KEPT ? shape->experts : PRED_KEYED_KEPT;
    uint32_t sets = (keys_max + PRED_KEYED_WAYS - 1) / PRED_KEYED_WAYS;
    size_t places = (size_t)sets * PRED_KEYED_WAYS, rows = places * shape->layers;
    *keyed = (struct pred_keyed){ .layers = shape->layers, .kept = kept, .sets = sets };
    keyed->keys = calloc(places, sizeof keyed->keys[0]);
    keyed->seen = calloc(rows, sizeof keyed->seen[0]);
    keyed->counts = calloc(rows * kept, sizeof keyed->counts[0]);
    if (!keyed->keys || !keyed->seen || !keyed->counts) return -ENOMEM;
    if (kept == shape->experts) return 0;
    keyed->experts = calloc(rows * kept, sizeof keyed->experts[0]);
    return keyed->experts ? 0 : -ENOMEM;
}

void pred_keyed_fini(struct pred_keyed *keyed)
{
    free(keyed->keys);
    free(keyed->seen);
    free(keyed->experts);
    free(keyed->counts);
}

static size_t set_of(const struct pred_keyed *keyed, uint64_t key)
{
    uint64_t hash = (key ^ key >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)((hash >> 20) % keyed->sets) * PRED_KEYED_WAYS;
}

/* The key's place, or SIZE_MAX. */
static size_t place_of(struct pred_keyed *keyed, uint64_t key)
{
    if (keyed->keys[keyed->latest] == key) return keyed->latest;
    size_t set = set_of(keyed, key);
    for (size_t i = set; i < set + PRED_KEYED_WAYS; i++) {
        if (keyed->keys[i] == key) return keyed->latest = i;
    }
    return SIZE_MAX;
}

/* The finaliser of MurmurHash3. */
static uint32_t mixed(uint32_t x)
{
    x = (x ^ x >> 16) * UINT32_C(0x85ebca6b);
    x = (x ^ x >> 13) * UINT32_C(0xc2b2ae35);
    return x ^ x >> 16;
}

/* Layer 0 of a place as if its key had been seen once less: counts shrink with `seen`, so that
 * their shares stay and none is above it. Which of them round down is drawn from all of the counts:
 * they are others each time, and the same wherever the same was learned. */
static void wear(struct pred_keyed *keyed, size_t place)
{
    uint16_t *seen = keyed->seen + place * keyed->layers;
    uint16_t *counts = keyed->counts + place * keyed->layers * keyed->kept;
    uint32_t all = seen[0];
    for (uint32_t i = 0; i < keyed->kept; i++) all = mixed(all + counts[i]);
    for (uint32_t i = 0; i < keyed->kept; i++) {
        all = mixed(all + i);
        const uint32_t drawn = all % seen[0];
        counts[i] = (uint16_t)((counts[i] * (seen[0] - 1u) + drawn) / seen[0]);
    }
    seen[0]--;
}

/* Only layer 0 decides about places: it is learned first, the other layers follow it. */
static size_t place_take(struct pred_keyed *keyed, uint64_t key)
{
    size_t set = set_of(keyed, key), least = set;
    for (size_t i = set; i < set + PRED_KEYED_WAYS; i++) {
        if (keyed->keys[i] == 0) {
            least = i;
            break;
        }
        if (keyed->seen[i * keyed->layers] < keyed->seen[least * keyed->layers]) least = i;
    }
    /* The one that would leave is worn down first: a key seen often survives many newcomers. */
    uint16_t *seen = keyed->seen + least * keyed->layers;
    if (keyed->keys[least] != 0 && seen[0] > 1) {
        wear(keyed, least);
        return SIZE_MAX;
    }
    size_t rows = keyed->layers;
    keyed->keys[least] = key;
    memset(seen, 0, rows * sizeof seen[0]);
    memset(keyed->counts + least * rows * keyed->kept, 0,
           rows * keyed->kept * sizeof keyed->counts[0]);
    return least;
}

static void count_expert(uint16_t *experts, uint16_t *counts, uint32_t kept, uint32_t expert)
{
    int at = pred_lanes()->find(experts, counts, (uint16_t)expert, kept);
    if (at >= 0) {
        if (counts[at] < UINT16_MAX) counts[at]++;  /* a loaded file may say anything */
        return;
    }
    uint32_t least = 0;
    for (uint32_t i = 1; i < kept && counts[least] > 0; i++) {
        if (counts[i] < counts[least]) least = i;
    }
    if (counts[least] > 1) {
        counts[least]--;
    } else {
        experts[least] = (uint16_t)expert;
        counts[least] = 1;
    }
}

void pred_keyed_learn(struct pred_keyed *keyed, uint64_t key, uint32_t layer, const uint32_t *ids,
                      uint32_t top_k)
{
    MUST(key != 0);
    size_t place = place_of(keyed, key);
    if (place == SIZE_MAX && layer == 0) place = place_take(keyed, key);
    if (place == SIZE_MAX) return;
    size_t row = place * keyed->layers + layer;
    uint16_t *counts = keyed->counts + row * keyed->kept;
    for (uint32_t k = 0; k < top_k; k++) {
        if (keyed->experts) {
            count_expert(keyed->experts + row * keyed->kept, counts, keyed->kept, ids[k]);
        } else {
            if (counts[ids[k]] < UINT16_MAX) counts[ids[k]]++;
        }
    }
    if (++keyed->seen[row] < KEY_SEEN_MAX) return;
    keyed->seen[row] /= 2;
    for (uint32_t i = 0; i < keyed->kept; i++) counts[i] /= 2;
}

uint32_t pred_keyed_sharpen(struct pred_keyed *keyed, uint64_t key, uint32_t layer,
                            float weight, float *p, uint32_t experts)
{
    size_t place = place_of(keyed, key);
    if (place == SIZE_MAX) return 0;
    size_t row = place * keyed->layers + layer;
    uint32_t seen = keyed->seen[row];
    if (seen == 0) return 0;
    const uint16_t *counts = keyed->counts + row * keyed->kept;
    float scale = 1.0f / ((float)seen + weight);
    if (!keyed->experts) {
        pred_lanes()->blend_counts(p, weight * scale, counts, scale, experts);
        return seen;
    }
    const uint16_t *ids = keyed->experts + row * keyed->kept;
    pred_lanes()->scale(p, weight * scale, experts);
    for (uint32_t i = 0; i < keyed->kept; i++) {
        /* Ids may come from a loaded file. */
        if (counts[i] > 0 && ids[i] < experts) p[ids[i]] += (float)counts[i] * scale;
    }
    return seen;
}

unsigned pred_keyed_blocks(const struct pred_keyed *keyed, struct pred_block *blocks)
{
    size_t places = (size_t)keyed->sets * PRED_KEYED_WAYS, rows = places * keyed->layers;
    blocks[0] = (struct pred_block){ keyed->keys, places * sizeof keyed->keys[0] };
    blocks[1] = (struct pred_block){ keyed->seen, rows * sizeof keyed->seen[0] };
    blocks[2] = (struct pred_block){ keyed->counts, rows * keyed->kept * sizeof keyed->counts[0] };
    if (!keyed->experts) return 3;
    blocks[3] =
        (struct pred_block){ keyed->experts, rows * keyed->kept * sizeof keyed->experts[0] };
    return 4;
}
