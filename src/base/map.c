#include "base/map.h"

#include <string.h>

#include "base/must.h"

static const uint32_t capacity_max = 1u << 30;

static size_t place_count(uint32_t capacity)
{
    size_t places = 4;
    while (places < 2 * (size_t)capacity) {
        places *= 2;
    }
    return places;
}

/* Keys are dense in some bits and empty in others: mix all of them (the finisher of splitmix64). */
static uint32_t home_of(const struct base_map *map, uint64_t key)
{
    key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9u;
    key = (key ^ (key >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(key ^ (key >> 31)) & map->mask;
}

size_t base_map_bytes(uint32_t capacity)
{
    MUST(capacity >= 1 && capacity <= capacity_max);
    return place_count(capacity) * (sizeof(uint64_t) + sizeof(uint32_t));
}

void base_map_init(struct base_map *map, void *memory, uint32_t capacity)
{
    MUST(capacity >= 1 && capacity <= capacity_max);
    size_t places = place_count(capacity);
    map->keys = memory;
    map->values = (uint32_t *)(map->keys + places);
    map->mask = (uint32_t)(places - 1);
    map->capacity = capacity;
    base_map_clear(map);
}

void base_map_clear(struct base_map *map)
{
    memset(map->values, 0xff, ((size_t)map->mask + 1) * sizeof *map->values);
    map->count = 0;
}

/* The key's place, or the free place where it would go. There always is one: half are free. */
static uint32_t find(const struct base_map *map, uint64_t key)
{
    uint32_t place = home_of(map, key);
    while (map->values[place] != BASE_MAP_NONE && map->keys[place] != key) {
        place = (place + 1) & map->mask;
    }
    return place;
}

bool base_map_put(struct base_map *map, uint64_t key, uint32_t value)
{
    MUST(value != BASE_MAP_NONE);
    uint32_t place = find(map, key);
    if (map->values[place] == BASE_MAP_NONE) {
        if (map->count == map->capacity) return false;
        map->keys[place] = key;
        map->count++;
    }
    map->values[place] = value;
    return true;
}

uint32_t base_map_get(const struct base_map *map, uint64_t key)
{
    return map->values[find(map, key)];
}

uint32_t base_map_remove(struct base_map *map, uint64_t key)
{
    uint32_t hole = find(map, key);
    uint32_t removed = map->values[hole];
    if (removed == BASE_MAP_NONE) return removed;
    map->count--;
    /* Move back every later key of the run that may stand in the hole: one whose home does not lie
     * between the hole (exclusive) and its own place. */
    for (uint32_t place = hole;;) {
        place = (place + 1) & map->mask;
        if (map->values[place] == BASE_MAP_NONE) break;
        uint32_t home = home_of(map, map->keys[place]);
        if (((place - home) & map->mask) < ((place - hole) & map->mask)) continue;
        map->keys[hole] = map->keys[place];
        map->values[hole] = map->values[place];
        hole = place;
    }
    map->values[hole] = BASE_MAP_NONE;
    return removed;
}

bool base_map_next(const struct base_map *map, uint32_t *place, uint64_t *key, uint32_t *value)
{
    for (; *place <= map->mask; ++*place) {
        if (map->values[*place] == BASE_MAP_NONE) continue;
        *key = map->keys[*place];
        *value = map->values[*place];
        ++*place;
        return true;
    }
    return false;
}
