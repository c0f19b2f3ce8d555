#include "tiering/recency.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"

/* With few experts a log of 1,024 places is packed at less than a hundredth of the acquires. With
 * many its bits stay in the processor's caches: four places an expert in the order, where there are
 * so many. */
enum { WINDOW_MIN = 1024, WINDOW_PER_EXPERT = 4, PLACES_PER_EXPERT = 2 };

static void limit(struct tier_recency *r)
{
    uint64_t window = (uint64_t)r->count * WINDOW_PER_EXPERT;
    if (window < WINDOW_MIN) window = WINDOW_MIN;
    r->end = window < r->places ? (uint32_t)window : r->places;
    MUST(r->head < r->end);
}

int tier_recency_init(struct tier_recency *r, uint32_t experts)
{
    uint64_t places = (uint64_t)experts * PLACES_PER_EXPERT;
    if (places < WINDOW_MIN) places = WINDOW_MIN;
    MUST(places <= UINT32_MAX - 63);
    *r = (struct tier_recency){ .places = (uint32_t)(places + 63) / 64 * 64 };
    r->at = malloc(experts * sizeof *r->at);
    r->log = malloc(r->places * sizeof *r->log);
    r->bits = calloc(r->places / 64, sizeof *r->bits);
    if (!r->at || !r->log || !r->bits) {
        tier_recency_fini(r);
        return -ENOMEM;
    }
    for (uint32_t e = 0; e < experts; e++) r->at[e] = TIER_NO_EXPERT;
    limit(r);
    return 0;
}

void tier_recency_fini(struct tier_recency *r)
{
    free(r->at);
    free(r->log);
    free(r->bits);
    *r = (struct tier_recency){ 0 };
}

void tier_recency_pack(struct tier_recency *r)
{
    uint32_t to = 0, words = (r->head + 63) / 64;
    for (uint32_t w = r->oldest / 64; w < words; w++) {
        for (uint64_t word = r->bits[w]; word; word &= word - 1) {
            uint32_t expert = r->log[w * 64 + (uint32_t)__builtin_ctzll(word)];
            r->log[to] = expert;
            r->at[expert] = to++;
        }
    }
    MUST(to == r->count);
    memset(r->bits, 0, words * sizeof *r->bits);
    memset(r->bits, 0xff, to / 64 * sizeof *r->bits);
    if (to % 64) r->bits[to / 64] = (UINT64_C(1) << to % 64) - 1;
    r->head = to;
    r->oldest = 0;
    limit(r);
}

uint32_t tier_recency_oldest(struct tier_recency *r, const struct tier_hold *held)
{
    uint32_t words = (r->head + 63) / 64;
    bool first = true;
    for (uint32_t w = r->oldest / 64; w < words; w++) {
        for (uint64_t word = r->bits[w]; word; word &= word - 1) {
            uint32_t place = w * 64 + (uint32_t)__builtin_ctzll(word);
            if (first) r->oldest = place;
            first = false;
            if (!held[r->log[place]].count) return r->log[place];
        }
    }
    return TIER_NO_EXPERT;
}
