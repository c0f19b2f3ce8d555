/* Which KV blocks hold the beginnings of which texts, so that a request that begins alike takes
 * them instead of computing them again.
 *
 *      "In the begin" ── "ning God cre" ── "ated the hea"     a full block is known by its tokens
 *                    └── "ning was the"                       and by the known block before it
 *
 * Equal tokens after equal tokens have the same bits in the KV cache, however they were batched, so
 * blocks are known by their text alone. Only full blocks are: nothing writes to them any more, and
 * any number of sequences may hold them at once.
 *
 * A block that nobody holds is idle: it stays known until its room is wanted, those that have been
 * idle longest first. Who holds a block holds all before it, and lets go of the last first; so a
 * block is never idle for longer than one behind it, and what is dropped has nothing behind it.
 *
 * Engine thread only; no allocation after init. find is O(tokens of a block), the rest O(1).
 */
#ifndef ENGINE_PREFIX_H
#define ENGINE_PREFIX_H

#include <stdint.h>

/* No block: before the first, or not found. */
#define ENG_PREFIX_NONE UINT32_MAX

struct eng_prefix_block;

struct eng_prefix {
    uint32_t block_tokens;
    uint32_t known_count, idle_count;
    uint32_t oldest, newest;            /* of the idle ones */
    struct eng_prefix_block *blocks;    /* by id */
    uint32_t *tokens;                   /* [blocks x block_tokens], of known ones */
    uint32_t *heads;                    /* by hash: the first known block of it */
    uint32_t head_mask;
};

/* Blocks have ids below `blocks`. */
int eng_prefix_init(struct eng_prefix *prefix, uint32_t blocks, uint32_t block_tokens);
void eng_prefix_fini(struct eng_prefix *prefix);        /* accepts one that init did not fill */
/* What init takes of memory. */
uint64_t eng_prefix_bytes(uint32_t blocks, uint32_t block_tokens);

/* The known block with these tokens [block_tokens] after the known block `before` (NONE: a text
 * begins with it), or NONE. */
uint32_t eng_prefix_find(const struct eng_prefix *prefix, uint32_t before, const uint32_t *tokens);
/* A block becomes known, held once by the caller. find must have said NONE. */
void eng_prefix_add(struct eng_prefix *prefix, uint32_t id, uint32_t before,
                    const uint32_t *tokens);
/* One more holds a known block, or one fewer. */
void eng_prefix_hold(struct eng_prefix *prefix, uint32_t id);
void eng_prefix_release(struct eng_prefix *prefix, uint32_t id);
/* The block that has been idle longest, no longer known; NONE where none is idle. */
uint32_t eng_prefix_drop(struct eng_prefix *prefix);

#endif
