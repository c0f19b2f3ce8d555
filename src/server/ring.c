#include "server/ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"

_Static_assert(sizeof(struct srv_record) == 40, "records are packed side by side");

int srv_ring_init(struct srv_ring *ring, size_t size)
{
    MUST(size <= (size_t)1 << 30);
    uint32_t rounded = 2 * SRV_RING_RESERVE;
    while (rounded < size) {
        rounded *= 2;
    }
    *ring = (struct srv_ring){ .data = malloc(rounded), .size = rounded };
    return ring->data ? 0 : -ENOMEM;
}

void srv_ring_fini(struct srv_ring *ring)
{
    free(ring->data);
    ring->data = NULL;
}

static void copy_in(struct srv_ring *ring, uint32_t at, const void *from, uint32_t bytes)
{
    uint32_t place = at & (ring->size - 1);
    uint32_t first = bytes < ring->size - place ? bytes : ring->size - place;
    if (first > 0) {
        memcpy(ring->data + place, from, first);
    }
    if (bytes > first) {
        memcpy(ring->data, (const char *)from + first, bytes - first);
    }
}

static void copy_out(const struct srv_ring *ring, uint32_t at, void *to, uint32_t bytes)
{
    uint32_t place = at & (ring->size - 1);
    uint32_t first = bytes < ring->size - place ? bytes : ring->size - place;
    memcpy(to, ring->data + place, first);
    memcpy((char *)to + first, ring->data, bytes - first);
}

/* Longest beginning of `text` within `bytes` that does not end inside a character. */
static uint32_t cut_text(const char *text, uint32_t bytes)
{
    while (bytes > 0 && ((unsigned char)text[bytes] & 0xc0) == 0x80) {
        bytes--;
    }
    return bytes;
}

bool srv_ring_put(struct srv_ring *ring, const struct srv_record *record, const char *text,
                  bool last)
{
    uint32_t put = atomic_load_explicit(&ring->put, memory_order_relaxed);
    uint32_t taken = atomic_load_explicit(&ring->taken, memory_order_acquire);
    uint32_t room = ring->size - (put - taken);
    struct srv_record head = *record;
    if (last) {
        MUST(room >= sizeof head);
        if (head.text_bytes > room - sizeof head) {
            head.text_bytes = cut_text(text, room - (uint32_t)sizeof head);
        }
    } else if ((uint64_t)head.text_bytes + sizeof head + SRV_RING_RESERVE > room) {
        return false;
    }
    copy_in(ring, put, &head, sizeof head);
    copy_in(ring, put + (uint32_t)sizeof head, text, head.text_bytes);
    atomic_store_explicit(&ring->put, put + (uint32_t)sizeof head + head.text_bytes,
                          memory_order_release);
    return true;
}

bool srv_ring_take(struct srv_ring *ring, struct srv_record *record, struct base_buf *text)
{
    uint32_t taken = atomic_load_explicit(&ring->taken, memory_order_relaxed);
    uint32_t put = atomic_load_explicit(&ring->put, memory_order_acquire);
    if (put == taken) {
        return false;
    }
    copy_out(ring, taken, record, sizeof *record);
    uint32_t at = (taken + (uint32_t)sizeof *record) & (ring->size - 1);
    uint32_t bytes = record->text_bytes;
    uint32_t first = bytes < ring->size - at ? bytes : ring->size - at;
    base_buf_append(text, ring->data + at, first);
    base_buf_append(text, ring->data, bytes - first);
    atomic_store_explicit(&ring->taken, taken + (uint32_t)sizeof *record + bytes,
                          memory_order_release);
    return true;
}

uint32_t srv_ring_used(const struct srv_ring *ring)
{
    return atomic_load_explicit(&ring->put, memory_order_acquire) -
           atomic_load_explicit(&ring->taken, memory_order_acquire);
}
