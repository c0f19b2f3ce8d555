/* Map from 64-bit keys to 32-bit values, open addressing, fixed capacity.
 *
 * Linear probing in a table at most half full; removal closes the gap, so there are no tombstones
 * and no slow decay. Lives in memory of the caller, never allocates. One thread at a time. Values
 * are below BASE_MAP_NONE, which marks a free place.
 */
#ifndef BASE_MAP_H
#define BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BASE_MAP_NONE UINT32_MAX

struct base_map {
    uint64_t *keys;
    uint32_t *values;
    uint32_t mask;              /* places - 1 */
    uint32_t count;
    uint32_t capacity;
};

/* Bytes a map of that capacity (1 to 2^30) needs, at 8-byte alignment. */
size_t base_map_bytes(uint32_t capacity);
void base_map_init(struct base_map *map, void *memory, uint32_t capacity);
void base_map_clear(struct base_map *map);

/* Inserts or replaces; false when the key is new and `capacity` keys are there. */
bool base_map_put(struct base_map *map, uint64_t key, uint32_t value);
/* The value, or BASE_MAP_NONE. */
uint32_t base_map_get(const struct base_map *map, uint64_t key);
/* Removes the key and returns its value, or BASE_MAP_NONE. */
uint32_t base_map_remove(struct base_map *map, uint64_t key);

/* Walks all pairs in no order: start with *place = 0; false at the end. No changes meanwhile. */
bool base_map_next(const struct base_map *map, uint32_t *place, uint64_t *key, uint32_t *value);

#endif
