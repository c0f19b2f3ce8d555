/* Bump arena over memory of the caller: blocks are taken one after another and given back at once.
 *
 *     memory                used                        size
 *     |block|zone|block|zone|............................|
 *
 * For scratch of a step or a request. Under ASan a poisoned zone stands behind every block and all
 * that is not taken is poisoned, so that a stray access stops the program; elsewhere there are no
 * zones. One thread at a time. A block costs a few additions; contents are not cleared.
 */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

#include "base/asan.h"

enum { BASE_ARENA_ZONE = BASE_ASAN ? 32 : 0 };

struct base_arena {
    char *memory;
    size_t size;
    size_t used;
    size_t used_max;            /* most ever used between two resets */
};

void base_arena_init(struct base_arena *arena, void *memory, size_t size);
/* Takes the poison off before the memory goes back to its owner. */
void base_arena_fini(struct base_arena *arena);

/* NULL when it does not fit. `align` is a power of two. */
void *base_arena_take(struct base_arena *arena, size_t size, size_t align);

/* Gives everything back, or all that was taken after `mark` was read from base_arena_mark. */
void base_arena_reset(struct base_arena *arena);
static inline size_t base_arena_mark(const struct base_arena *arena)
{
    return arena->used;
}
void base_arena_rewind(struct base_arena *arena, size_t mark);

/* The most that one block can use up, for sizing an arena exactly. */
static inline size_t base_arena_room(size_t size, size_t align)
{
    return size + align - 1 + BASE_ARENA_ZONE;
}

#endif
