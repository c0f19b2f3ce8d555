#include "engine/prefix.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "port/hash.h"

struct eng_prefix_block {
    uint32_t before;            /* the known block before it, or NONE */
    uint32_t behind;            /* how many known blocks have it before them */
    uint32_t holders;
    uint32_t next;              /* of the same hash */
    uint32_t older, newer;      /* while idle */
    bool known;
};

static uint32_t heads_for(uint32_t blocks)
{
    uint32_t heads = 16;
    while (heads < blocks && heads < 1u << 31) {
        heads *= 2;
    }
    return heads;
}

uint64_t eng_prefix_bytes(uint32_t blocks, uint32_t block_tokens)
{
    return blocks * (sizeof(struct eng_prefix_block) + block_tokens * sizeof(uint32_t)) +
           heads_for(blocks) * sizeof(uint32_t);
}

int eng_prefix_init(struct eng_prefix *p, uint32_t blocks, uint32_t block_tokens)
{
    const uint32_t heads = heads_for(blocks);
    *p = (struct eng_prefix){ .block_tokens = block_tokens, .oldest = ENG_PREFIX_NONE,
                              .newest = ENG_PREFIX_NONE, .head_mask = heads - 1 };
    p->blocks = calloc(blocks, sizeof *p->blocks);
    p->tokens = malloc((size_t)blocks * block_tokens * sizeof *p->tokens);
    p->heads = malloc(heads * sizeof *p->heads);
    if (!p->blocks || !p->tokens || !p->heads) {
        eng_prefix_fini(p);
        return -ENOMEM;
    }
    memset(p->heads, 0xff, heads * sizeof *p->heads);   /* NONE */
    return 0;
}

void eng_prefix_fini(struct eng_prefix *p)
{
    free(p->blocks);
    free(p->tokens);
    free(p->heads);
    *p = (struct eng_prefix){ 0 };
}

static uint32_t *tokens_of(const struct eng_prefix *p, uint32_t id)
{
    return p->tokens + (size_t)id * p->block_tokens;
}

static uint32_t *head_of(const struct eng_prefix *p, uint32_t before, const uint32_t *tokens)
{
    const uint64_t odd = 0x9e3779b97f4a7c15;
    uint64_t hash = port_hash64(tokens, p->block_tokens * sizeof *tokens) ^ (before + 1) * odd;
    return &p->heads[(hash ^ hash >> 32) & p->head_mask];
}

uint32_t eng_prefix_find(const struct eng_prefix *p, uint32_t before, const uint32_t *tokens)
{
    uint32_t id = *head_of(p, before, tokens);
    while (id != ENG_PREFIX_NONE &&
           (p->blocks[id].before != before ||
            memcmp(tokens_of(p, id), tokens, p->block_tokens * sizeof *tokens) != 0)) {
        id = p->blocks[id].next;
    }
    return id;
}

void eng_prefix_add(struct eng_prefix *p, uint32_t id, uint32_t before, const uint32_t *tokens)
{
    struct eng_prefix_block *block = &p->blocks[id];
    uint32_t *head = head_of(p, before, tokens);
    MUST(!block->known);
    *block = (struct eng_prefix_block){ .before = before, .holders = 1, .next = *head,
                                        .older = ENG_PREFIX_NONE, .newer = ENG_PREFIX_NONE,
                                        .known = true };
    *head = id;
    memcpy(tokens_of(p, id), tokens, p->block_tokens * sizeof *tokens);
    if (before != ENG_PREFIX_NONE) {
        MUST(p->blocks[before].holders > 0);
        p->blocks[before].behind++;
    }
    p->known_count++;
}

/* Takes a block out of the line of idle ones. */
static void unlink_idle(struct eng_prefix *p, uint32_t id)
{
    struct eng_prefix_block *block = &p->blocks[id];
    *(block->older == ENG_PREFIX_NONE ? &p->oldest : &p->blocks[block->older].newer) = block->newer;
    *(block->newer == ENG_PREFIX_NONE ? &p->newest : &p->blocks[block->newer].older) = block->older;
    block->older = block->newer = ENG_PREFIX_NONE;
    p->idle_count--;
}

void eng_prefix_hold(struct eng_prefix *p, uint32_t id)
{
    MUST(p->blocks[id].known);
    if (p->blocks[id].holders++ == 0) unlink_idle(p, id);
}

void eng_prefix_release(struct eng_prefix *p, uint32_t id)
{
    struct eng_prefix_block *block = &p->blocks[id];
    MUST(block->known && block->holders > 0);
    if (--block->holders > 0) return;
    block->older = p->newest;
    *(p->newest == ENG_PREFIX_NONE ? &p->oldest : &p->blocks[p->newest].newer) = id;
    p->newest = id;
    p->idle_count++;
}

uint32_t eng_prefix_drop(struct eng_prefix *p)
{
    uint32_t id = p->oldest;
    if (id == ENG_PREFIX_NONE) return id;
    struct eng_prefix_block *block = &p->blocks[id];
    MUST(block->behind == 0);
    unlink_idle(p, id);
    uint32_t *at = head_of(p, block->before, tokens_of(p, id));
    while (*at != id) {
        at = &p->blocks[*at].next;
    }
    *at = block->next;
    if (block->before != ENG_PREFIX_NONE) p->blocks[block->before].behind--;
    block->known = false;
    p->known_count--;
    return id;
}
