#include "tiering/loads.h"

#include <errno.h>
#include <stdlib.h>

enum { OCTAVES = 16, FIRST_US = 16 };
#define NIBBLES_WITHOUT_LOW_BIT UINT64_C(0x7777777777777777)

int tier_loads_create(struct tier_loads *l, uint32_t keys)
{
    l->size = keys < TIER_LOADS_MAX ? keys : TIER_LOADS_MAX;
    l->at = calloc(l->size ? l->size : 1, sizeof *l->at);
    return l->at ? 0 : -ENOMEM;
}

void tier_loads_destroy(struct tier_loads *l)
{
    free(l->at);
    *l = (struct tier_loads){ 0 };
}

static void put(uint32_t *to, uint32_t value)
{
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

static void add(uint32_t *to)
{
    if (*to < UINT32_MAX) put(to, *to + 1);
}

/* The expert's entry, or NULL while another one holds its place. */
static struct tier_loads_entry *entry_of(struct tier_loads *l, uint32_t key)
{
    struct tier_loads_entry *e = &l->at[key % l->size];
    if (e->key == key || e->worth == 0) {
        if (e->key != key) {
            put(&e->key, key);
            put(&e->misses, 0);
            put(&e->loads, 0);
            put(&e->us_min, 0);
            put(&e->us_max, 0);
            __atomic_store_n(&e->us_sum, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&e->octaves, 0, __ATOMIC_RELAXED);
        }
        add(&e->worth);
        return e;
    }
    put(&e->worth, e->worth - 1);
    return NULL;
}

void tier_loads_miss(struct tier_loads *l, uint32_t key)
{
    struct tier_loads_entry *e = entry_of(l, key);
    if (e) add(&e->misses);
}

void tier_loads_add(struct tier_loads *l, uint32_t key, uint64_t ns)
{
    struct tier_loads_entry *e = entry_of(l, key);
    uint64_t us = ns / 1000, octaves;
    unsigned octave = 0;
    if (!e) return;
    uint32_t whole = us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
    if (e->loads == 0 || whole < e->us_min) put(&e->us_min, whole);
    if (whole > e->us_max) put(&e->us_max, whole);
    __atomic_store_n(&e->us_sum, e->us_sum + us, __ATOMIC_RELAXED);
    add(&e->loads);
    while (octave < OCTAVES - 1 && us >= (uint64_t)FIRST_US << octave) octave++;
    octaves = e->octaves;
    if ((octaves >> 4 * octave & 15) == 15) octaves = octaves >> 1 & NIBBLES_WITHOUT_LOW_BIT;
    __atomic_store_n(&e->octaves, octaves + (UINT64_C(1) << 4 * octave), __ATOMIC_RELAXED);
}

struct tier_loads_entry tier_loads_get(const struct tier_loads *l, uint32_t key)
{
    const struct tier_loads_entry *e = &l->at[key % l->size];
    struct tier_loads_entry copy = {
        .key = __atomic_load_n(&e->key, __ATOMIC_RELAXED),
        .worth = __atomic_load_n(&e->worth, __ATOMIC_RELAXED),
        .misses = __atomic_load_n(&e->misses, __ATOMIC_RELAXED),
        .loads = __atomic_load_n(&e->loads, __ATOMIC_RELAXED),
        .us_min = __atomic_load_n(&e->us_min, __ATOMIC_RELAXED),
        .us_max = __atomic_load_n(&e->us_max, __ATOMIC_RELAXED),
        .us_sum = __atomic_load_n(&e->us_sum, __ATOMIC_RELAXED),
        .octaves = __atomic_load_n(&e->octaves, __ATOMIC_RELAXED),
    };
    return copy.key == key ? copy : (struct tier_loads_entry){ .key = key };
}

uint64_t tier_loads_quantile_us(const struct tier_loads_entry *e, double share)
{
    uint64_t sum = 0, below = 0;
    for (unsigned o = 0; o < OCTAVES; o++) sum += e->octaves >> 4 * o & 15;
    for (unsigned o = 0; o < OCTAVES && sum > 0; o++) {
        below += e->octaves >> 4 * o & 15;
        if ((double)below < share * (double)sum || below == 0) continue;
        uint64_t edge = (uint64_t)FIRST_US << o;
        return o == OCTAVES - 1 || edge > e->us_max ? e->us_max : edge;
    }
    return 0;
}
