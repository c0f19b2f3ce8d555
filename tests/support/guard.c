#include "tests/support/guard.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/must.h"

enum { GUARD_BYTES = 64, GUARD_VALUE = 0xa5, BUFFERS_MAX = 1024 };

/* One mapping: guard bytes, data, then a page that may not be touched. */
struct buffer {
    uint8_t *map, *data;
    size_t map_bytes, bytes;
};

static struct buffer buffers[BUFFERS_MAX];
static unsigned buffer_count;

void *guard_get(size_t bytes, size_t slack)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inner = (GUARD_BYTES + bytes + slack + page - 1) / page * page;
    struct buffer *b = &buffers[buffer_count++];
    MUST(buffer_count <= BUFFERS_MAX);
    b->map_bytes = inner + page;
    b->map = mmap(NULL, b->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(b->map != MAP_FAILED);
    MUST(mprotect(b->map + inner, page, PROT_NONE) == 0);
    memset(b->map, GUARD_VALUE, inner);
    b->data = b->map + inner - slack - bytes;
    b->bytes = bytes;
    return b->data;
}

bool guard_end(void)
{
    bool whole = true;
    for (unsigned i = 0; i < buffer_count; i++) {
        struct buffer *b = &buffers[i];
        const uint8_t *end = b->map + b->map_bytes - (size_t)sysconf(_SC_PAGESIZE);
        for (const uint8_t *at = b->map; at < end; at++) {
            if ((at < b->data || at >= b->data + b->bytes) && *at != GUARD_VALUE)
                whole = false;
        }
        munmap(b->map, b->map_bytes);
    }
    buffer_count = 0;
    return whole;
}
