#include "tiering/publish.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"

int tier_publish_create(struct tier_publish *p, size_t bytes)
{
    *p = (struct tier_publish){ .words = (bytes + 7) / 8 };
    p->at = calloc(p->words ? p->words : 1, sizeof *p->at);
    return p->at ? 0 : -ENOMEM;
}

void tier_publish_destroy(struct tier_publish *p)
{
    free(p->at);
    *p = (struct tier_publish){ 0 };
}

void tier_publish_begin(struct tier_publish *p)
{
    DMUST(p->sequence % 2 == 0);
    __atomic_store_n(&p->sequence, p->sequence + 1, __ATOMIC_RELAXED);
}

void tier_publish_put(struct tier_publish *p, size_t offset, const void *from, size_t bytes)
{
    MUST(offset % 8 == 0 && bytes % 8 == 0 && (offset + bytes) / 8 <= p->words);
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t word;
        memcpy(&word, (const char *)from + i * 8, 8);
        __atomic_store_n(&p->at[offset / 8 + i], word, __ATOMIC_RELEASE);
    }
}

void tier_publish_end(struct tier_publish *p)
{
    __atomic_store_n(&p->sequence, p->sequence + 1, __ATOMIC_RELEASE);
}

void tier_publish_get(const struct tier_publish *p, size_t offset, void *to, size_t bytes)
{
    MUST(offset % 8 == 0 && bytes % 8 == 0 && (offset + bytes) / 8 <= p->words);
    for (;;) {
        uint64_t before = __atomic_load_n(&p->sequence, __ATOMIC_ACQUIRE);
        for (size_t i = 0; i < bytes / 8; i++) {
            uint64_t word = __atomic_load_n(&p->at[offset / 8 + i], __ATOMIC_ACQUIRE);
            memcpy((char *)to + i * 8, &word, 8);
        }
        if (before % 2 == 0 && __atomic_load_n(&p->sequence, __ATOMIC_RELAXED) == before) return;
        sched_yield();
    }
}
