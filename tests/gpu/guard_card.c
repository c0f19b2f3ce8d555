/* tests/support/guard.h in memory that both sides reach: the cases of tests/cudahost run as they
 * are on a card. Guard bytes stand before and behind each buffer; with CARD_EXACT set nothing
 * stands behind it, so that compute-sanitizer sees the first byte beyond. */
#include "tests/support/guard.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "tests/gpu/card.h"

enum { FRONT = 4096, BEHIND = 4096, GUARD_VALUE = 0xa5, BUFFERS_MAX = 1024 };

struct buffer {
    uint8_t *memory, *data;
    size_t memory_bytes, bytes;
    bool own; /* else of the pool */
};

static struct buffer buffers[BUFFERS_MAX];
static unsigned buffer_count;
static uint8_t *pool;
static size_t pool_used;
static const size_t pool_bytes = (size_t)256 << 20;

void *guard_get(size_t bytes, size_t slack)
{
    const bool exact = getenv("CARD_EXACT") != NULL;
    /* As there: data ends `slack` bytes before the end, which is a multiple of 256. */
    const size_t inner = (bytes + slack + 255) / 256 * 256;
    struct buffer *b = &buffers[buffer_count++];
    MUST(buffer_count <= BUFFERS_MAX);
    b->memory_bytes = FRONT + inner + (exact ? 0 : BEHIND);
    b->own = exact;
    if (exact) {
        CARD(cudaMallocManaged((void **)&b->memory, b->memory_bytes, cudaMemAttachGlobal));
    } else {
        if (!pool) CARD(cudaMallocManaged((void **)&pool, pool_bytes, cudaMemAttachGlobal));
        MUST(pool_used + b->memory_bytes <= pool_bytes);
        b->memory = pool + pool_used;
        pool_used += b->memory_bytes;
    }
    memset(b->memory, GUARD_VALUE, b->memory_bytes);
    b->data = b->memory + FRONT + inner - slack - bytes;
    b->bytes = bytes;
    return b->data;
}

bool guard_end(void)
{
    bool whole = true;
    for (unsigned i = 0; i < buffer_count; i++) {
        struct buffer *b = &buffers[i];
        for (const uint8_t *at = b->memory; at < b->memory + b->memory_bytes; at++) {
            if ((at < b->data || at >= b->data + b->bytes) && *at != GUARD_VALUE) whole = false;
        }
        if (b->own) CARD(cudaFree(b->memory));
    }
    buffer_count = 0;
    pool_used = 0;
    return whole;
}
