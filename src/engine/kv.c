#include "engine/kv.h"

#include <errno.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/must.h"

static struct base_mem_tag kv_tag = { .name = "kv" };

size_t eng_kv_block_bytes(uint32_t layers, uint32_t width, uint32_t block_tokens, bool bf16)
{
    return (size_t)layers * block_tokens * width * (bf16 ? 2 : 4);
}

int eng_kv_init_at(struct eng_kv *kv, uint32_t layers, uint32_t width, uint32_t block_tokens,
                   bool bf16, uint32_t blocks, uint32_t blocks_per_seq, void *memory)
{
    *kv = (struct eng_kv){ .layers = layers, .width = width, .block_tokens = block_tokens,
                           .bf16 = bf16, .blocks = blocks, .blocks_per_seq = blocks_per_seq };
    kv->layer_bytes = eng_kv_block_bytes(1, width, block_tokens, bf16);
    kv->free_ids = malloc(blocks * sizeof *kv->free_ids);
    if (!kv->free_ids) return -ENOMEM;
    kv->memory = memory;
    kv->borrowed = true;
    /* Low ids on top of the stack, so that few sequences keep to few pages. */
    for (uint32_t i = 0; i < blocks; i++) {
        kv->free_ids[i] = blocks - 1 - i;
    }
    kv->free_count = blocks;
    return 0;
}

int eng_kv_init(struct eng_kv *kv, uint32_t layers, uint32_t width, uint32_t block_tokens,
                bool bf16, uint32_t blocks, uint32_t blocks_per_seq)
{
    int rc = eng_kv_init_at(kv, layers, width, block_tokens, bf16, blocks, blocks_per_seq, NULL);
    if (rc < 0) return rc;
    /* Pages appear when they are first written: a short chat never touches most of them. */
    kv->memory = base_mem_alloc(&kv_tag, kv->layer_bytes * layers * blocks, 64);
    kv->borrowed = false;
    return kv->memory ? 0 : -ENOMEM;
}

int eng_kv_share(struct eng_kv *kv, bool prompts_only)
{
    kv->prompts_only = prompts_only;
    int rc = eng_prefix_init(&kv->prefix, kv->blocks, kv->block_tokens);
    kv->shares = rc == 0;
    return rc;
}

void eng_kv_fini(struct eng_kv *kv)
{
    eng_prefix_fini(&kv->prefix);
    if (!kv->borrowed) {
        base_mem_free(&kv_tag, kv->memory, kv->layer_bytes * kv->layers * kv->blocks);
    }
    free(kv->free_ids);
    *kv = (struct eng_kv){ 0 };
}

int64_t eng_kv_take(struct eng_kv *kv)
{
    if (kv->free_count == 0) {
        uint32_t dropped = kv->shares ? eng_prefix_drop(&kv->prefix) : ENG_PREFIX_NONE;
        return dropped == ENG_PREFIX_NONE ? -1 : (int64_t)dropped;
    }
    uint32_t id = kv->free_ids[--kv->free_count];
    if (id >= kv->used_max) kv->used_max = id + 1;
    return id;
}

size_t eng_kv_touched_bytes(const struct eng_kv *kv)
{
    size_t block = kv->layer_bytes * kv->layers;
    return base_mem_touched(block * kv->blocks, block * kv->used_max);
}

void eng_kv_give(struct eng_kv *kv, const uint32_t *ids, uint32_t count)
{
    MUST(kv->free_count + count <= kv->blocks);
    for (uint32_t i = count; i-- > 0;) {
        kv->free_ids[kv->free_count++] = ids[i];
    }
}
