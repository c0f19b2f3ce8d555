#include "base/arena.h"

#include <stdint.h>

#include "base/must.h"

void base_arena_init(struct base_arena *arena, void *memory, size_t size)
{
    *arena = (struct base_arena){ .memory = memory, .size = size };
    BASE_ASAN_POISON(memory, size);
}

void base_arena_fini(struct base_arena *arena)
{
    if (arena->memory) BASE_ASAN_UNPOISON(arena->memory, arena->size);
    *arena = (struct base_arena){ .memory = NULL };
}

void *base_arena_take(struct base_arena *arena, size_t size, size_t align)
{
    DMUST(align > 0 && (align & (align - 1)) == 0);
    /* Aligned by address, not by offset: the caller's memory may begin anywhere. */
    uintptr_t next = (uintptr_t)arena->memory + arena->used;
    size_t pad = (size_t)(-next & (align - 1));
    size_t room = arena->size - arena->used, zone = BASE_ARENA_ZONE;
    if (pad > room || size > room - pad || zone > room - pad - size) return NULL;
    char *block = arena->memory + arena->used + pad;
    arena->used += pad + size + zone;
    if (arena->used > arena->used_max) arena->used_max = arena->used;
    BASE_ASAN_UNPOISON(block, size);
    return block;
}

void base_arena_reset(struct base_arena *arena)
{
    base_arena_rewind(arena, 0);
}

void base_arena_rewind(struct base_arena *arena, size_t mark)
{
    MUST(mark <= arena->used);
    BASE_ASAN_POISON(arena->memory + mark, arena->used - mark);
    arena->used = mark;
}
