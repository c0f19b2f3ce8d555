/* Paged latent KV cache: for each layer one row [kv_lora + rope] a token, in blocks of
 * `block_tokens` tokens. A block id stands for the same tokens in every layer.
 *
 *   memory  [block][layer][block_tokens][kv_lora + rope]
 *
 * A sequence has a list of block ids; free ones lie on a stack. With eng_kv_share full blocks
 * become known by their text (prefix.h) and are held by every sequence that begins so; one that
 * nobody holds is room as free ones are, and is taken when there are none. Engine thread only; no
 * allocation after init and share.
 */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/prefix.h"

struct eng_kv {
    uint32_t layers, width, block_tokens;
    uint32_t blocks_per_seq;    /* longest list of one sequence */
    bool bf16;
    size_t layer_bytes;         /* of one block in one layer */
    uint32_t blocks;
    char *memory;               /* of the device where the CPU does not compute */
    bool borrowed;
    uint32_t *free_ids;
    uint32_t free_count;
    uint32_t used_max;          /* ids from here up were never taken */
    bool shares;
    bool prompts_only;          /* blocks with generated tokens do not become known */
    struct eng_prefix prefix;   /* if it shares */
};

/* Bytes of one block over all layers. */
size_t eng_kv_block_bytes(uint32_t layers, uint32_t width, uint32_t block_tokens, bool bf16);

int eng_kv_init(struct eng_kv *kv, uint32_t layers, uint32_t width, uint32_t block_tokens,
                bool bf16, uint32_t blocks, uint32_t blocks_per_seq);
/* The same with blocks in memory that the caller has, which is never touched here. */
int eng_kv_init_at(struct eng_kv *kv, uint32_t layers, uint32_t width, uint32_t block_tokens,
                   bool bf16, uint32_t blocks, uint32_t blocks_per_seq, void *memory);
/* From now on blocks are known by their text. `prompts_only`: a token that was generated has other
 * bits than the same one in a prompt. Once, after init; -ENOMEM. */
int eng_kv_share(struct eng_kv *kv, bool prompts_only);
void eng_kv_fini(struct eng_kv *kv);

/* Bytes that are in memory because they were written. */
size_t eng_kv_touched_bytes(const struct eng_kv *kv);

/* Blocks that can be taken: free ones, and known ones that nobody holds. */
static inline uint32_t eng_kv_room(const struct eng_kv *kv)
{
    return kv->free_count + (kv->shares ? kv->prefix.idle_count : 0);
}
/* The id of a block that nobody has, or -1. */
int64_t eng_kv_take(struct eng_kv *kv);
void eng_kv_give(struct eng_kv *kv, const uint32_t *ids, uint32_t count);

static inline void *eng_kv_block(const struct eng_kv *kv, uint32_t id, uint32_t layer)
{
    return kv->memory + ((size_t)id * kv->layers + layer) * kv->layer_bytes;
}
static inline uint32_t eng_kv_blocks_for(const struct eng_kv *kv, uint32_t tokens)
{
    return (tokens + kv->block_tokens - 1) / kv->block_tokens;
}

#endif
