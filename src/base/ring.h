/* Bounded queues between threads, lock-free, of items of one size copied in and out.
 *
 * base_ring: one thread pushes, one pops. base_ring_many: any number push, one pops; each item has
 * a turn number that says whether its place is free or filled, so a slow pusher delays only those
 * behind it. Order is that of the pushes (of one thread, where there are many).
 *
 * Capacity is a power of two. Memory is the caller's, aligned to 8. Push and pop never wait: a full
 * queue says so, an empty one too; who wants to sleep brings his own bell. What was written before
 * a push is seen after its pop.
 */
#ifndef BASE_RING_H
#define BASE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes between the two ends, or their threads would fight for one cache line. */
enum { BASE_RING_APART = 64 };

struct base_ring {
    char *items;
    uint32_t mask, item_bytes;
    char apart_front[BASE_RING_APART];
    _Atomic uint32_t pushed;
    uint32_t popped_seen;       /* the pusher's last look at `popped` */
    char apart_ends[BASE_RING_APART];
    _Atomic uint32_t popped;
    uint32_t pushed_seen;
    char apart_back[BASE_RING_APART];
};

size_t base_ring_bytes(uint32_t capacity, uint32_t item_bytes);
void base_ring_init(struct base_ring *ring, void *memory, uint32_t capacity, uint32_t item_bytes);
bool base_ring_push(struct base_ring *ring, const void *item);
bool base_ring_pop(struct base_ring *ring, void *item);
/* Exact for either end's thread as long as the other rests; else a recent value. */
uint32_t base_ring_count(const struct base_ring *ring);

struct base_ring_many {
    char *places;
    uint32_t mask, item_bytes, place_bytes;
    char apart_front[BASE_RING_APART];
    _Atomic uint32_t pushed;
    char apart_ends[BASE_RING_APART];
    _Atomic uint32_t popped;
    char apart_back[BASE_RING_APART];
};

size_t base_ring_many_bytes(uint32_t capacity, uint32_t item_bytes);
void base_ring_many_init(struct base_ring_many *ring, void *memory, uint32_t capacity,
                         uint32_t item_bytes);
bool base_ring_many_push(struct base_ring_many *ring, const void *item);
bool base_ring_many_pop(struct base_ring_many *ring, void *item);
uint32_t base_ring_many_count(const struct base_ring_many *ring);

#endif
