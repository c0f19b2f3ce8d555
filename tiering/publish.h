/* A block of words that one thread writes and any thread copies whole: a sequence lock in which
 * neither side ever waits for the other's scheduling, except a reader while a write of a few
 * microseconds is under way.
 *
 * Every word is stored with release and loaded with acquire order. A reader that saw one word of a
 * write therefore sees the odd count that was stored before it, and tries again.
 */
#ifndef TIERING_PUBLISH_H
#define TIERING_PUBLISH_H

#include <stddef.h>
#include <stdint.h>

struct tier_publish {
    uint64_t sequence;          /* odd while a write is under way */
    size_t words;
    uint64_t *at;
};

/* `bytes` is rounded up to words. 0 or -ENOMEM. */
int tier_publish_create(struct tier_publish *publish, size_t bytes);
void tier_publish_destroy(struct tier_publish *publish);

/* The writer: begin, any number of puts at word-aligned offsets, end. */
void tier_publish_begin(struct tier_publish *publish);
void tier_publish_put(struct tier_publish *publish, size_t offset, const void *from, size_t bytes);
void tier_publish_end(struct tier_publish *publish);

/* Any thread: copies `bytes` from `offset` as one write left them. */
void tier_publish_get(const struct tier_publish *publish, size_t offset, void *to, size_t bytes);

#endif
