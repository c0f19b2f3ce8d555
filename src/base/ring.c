#include "base/ring.h"

#include <string.h>

#include "base/must.h"

static const uint32_t capacity_max = 1u << 30;

static void check_shape(uint32_t capacity, uint32_t item_bytes)
{
    MUST(capacity >= 1 && capacity <= capacity_max && (capacity & (capacity - 1)) == 0);
    MUST(item_bytes >= 1 && item_bytes <= 4096);
}

size_t base_ring_bytes(uint32_t capacity, uint32_t item_bytes)
{
    check_shape(capacity, item_bytes);
    return (size_t)capacity * item_bytes;
}

void base_ring_init(struct base_ring *ring, void *memory, uint32_t capacity, uint32_t item_bytes)
{
    check_shape(capacity, item_bytes);
    memset(ring, 0, sizeof *ring);
    ring->items = memory;
    ring->mask = capacity - 1;
    ring->item_bytes = item_bytes;
}

static char *item_at(const struct base_ring *ring, uint32_t number)
{
    return ring->items + (size_t)(number & ring->mask) * ring->item_bytes;
}

/* The counters run on and wrap; their difference is what the ring holds. */
bool base_ring_push(struct base_ring *ring, const void *item)
{
    uint32_t pushed = atomic_load_explicit(&ring->pushed, memory_order_relaxed);
    if (pushed - ring->popped_seen > ring->mask) {
        ring->popped_seen = atomic_load_explicit(&ring->popped, memory_order_acquire);
        if (pushed - ring->popped_seen > ring->mask) return false;
    }
    memcpy(item_at(ring, pushed), item, ring->item_bytes);
    atomic_store_explicit(&ring->pushed, pushed + 1, memory_order_release);
    return true;
}

bool base_ring_pop(struct base_ring *ring, void *item)
{
    uint32_t popped = atomic_load_explicit(&ring->popped, memory_order_relaxed);
    if (popped == ring->pushed_seen) {
        ring->pushed_seen = atomic_load_explicit(&ring->pushed, memory_order_acquire);
        if (popped == ring->pushed_seen) return false;
    }
    memcpy(item, item_at(ring, popped), ring->item_bytes);
    atomic_store_explicit(&ring->popped, popped + 1, memory_order_release);
    return true;
}

uint32_t base_ring_count(const struct base_ring *ring)
{
    uint32_t popped = atomic_load_explicit(&ring->popped, memory_order_acquire);
    return atomic_load_explicit(&ring->pushed, memory_order_acquire) - popped;
}

/* A place of the many-pusher ring: its turn, then the item. The turn is the number of the push that
 * may fill it; one more than that when it is filled. (D. Vyukov's bounded queue.) */
static _Atomic uint32_t *turn_of(const struct base_ring_many *ring, uint32_t number)
{
    void *place = ring->places + (size_t)(number & ring->mask) * ring->place_bytes;
    return place;
}

static char *item_of(_Atomic uint32_t *turn)
{
    return (char *)turn + sizeof(uint64_t);
}

static uint32_t place_bytes_of(uint32_t item_bytes)
{
    return (uint32_t)sizeof(uint64_t) + ((item_bytes + 7) & ~7u);
}

size_t base_ring_many_bytes(uint32_t capacity, uint32_t item_bytes)
{
    check_shape(capacity, item_bytes);
    return (size_t)capacity * place_bytes_of(item_bytes);
}

void base_ring_many_init(struct base_ring_many *ring, void *memory, uint32_t capacity,
                         uint32_t item_bytes)
{
    check_shape(capacity, item_bytes);
    MUST(capacity >= 2);        /* with one place "free again" and "filled" are the same turn */
    memset(ring, 0, sizeof *ring);
    ring->places = memory;
    ring->mask = capacity - 1;
    ring->item_bytes = item_bytes;
    ring->place_bytes = place_bytes_of(item_bytes);
    for (uint32_t i = 0; i < capacity; i++) {
        atomic_init(turn_of(ring, i), i);
    }
}

bool base_ring_many_push(struct base_ring_many *ring, const void *item)
{
    uint32_t number = atomic_load_explicit(&ring->pushed, memory_order_relaxed);
    for (;;) {
        _Atomic uint32_t *turn = turn_of(ring, number);
        int32_t ahead = (int32_t)(atomic_load_explicit(turn, memory_order_acquire) - number);
        if (ahead < 0) return false;    /* still holds the item of one round before */
        if (ahead > 0) {                /* another thread was faster: look again */
            number = atomic_load_explicit(&ring->pushed, memory_order_relaxed);
            continue;
        }
        if (!atomic_compare_exchange_weak_explicit(&ring->pushed, &number, number + 1,
                                                   memory_order_relaxed, memory_order_relaxed)) {
            continue;
        }
        memcpy(item_of(turn), item, ring->item_bytes);
        atomic_store_explicit(turn, number + 1, memory_order_release);
        return true;
    }
}

bool base_ring_many_pop(struct base_ring_many *ring, void *item)
{
    uint32_t number = atomic_load_explicit(&ring->popped, memory_order_relaxed);
    _Atomic uint32_t *turn = turn_of(ring, number);
    if (atomic_load_explicit(turn, memory_order_acquire) != number + 1) return false;
    memcpy(item, item_of(turn), ring->item_bytes);
    atomic_store_explicit(turn, number + ring->mask + 1, memory_order_release);
    atomic_store_explicit(&ring->popped, number + 1, memory_order_relaxed);
    return true;
}

uint32_t base_ring_many_count(const struct base_ring_many *ring)
{
    uint32_t popped = atomic_load_explicit(&ring->popped, memory_order_relaxed);
    return atomic_load_explicit(&ring->pushed, memory_order_relaxed) - popped;
}
