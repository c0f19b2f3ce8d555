/* A bounded ring of records between exactly two threads: one puts, one takes.
 *
 * A record is a fixed head and some bytes of text. Ordinary records leave SRV_RING_RESERVE bytes
 * free, so that the last record of an answer always finds room. Neither side locks or allocates
 * (taking appends the text to the taker's buffer).
 */
#ifndef SERVER_RING_H
#define SERVER_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum { SRV_RING_RESERVE = 2048 };

struct srv_record {
    uint32_t text_bytes;
    uint32_t kind;
    int32_t finish;
    int32_t code;
    int64_t token;
    uint64_t time_ns;
    float logprob;
    uint32_t reused;            /* prompt tokens that need not be computed */
};

struct srv_ring {
    char *data;
    uint32_t size;              /* a power of two */
    _Atomic uint32_t put;       /* bytes ever put, modulo 2^32 */
    _Atomic uint32_t taken;
};

/* `size` is rounded up to a power of two, at least twice the reserve. 0 or -ENOMEM. */
int srv_ring_init(struct srv_ring *ring, size_t size);
void srv_ring_fini(struct srv_ring *ring);

/* False when there is no room. A `last` record may use the reserve; its text is cut to fit. */
bool srv_ring_put(struct srv_ring *ring, const struct srv_record *record, const char *text,
                  bool last);

/* Takes one record and appends its text. False when empty. */
bool srv_ring_take(struct srv_ring *ring, struct srv_record *record, struct base_buf *text);

uint32_t srv_ring_used(const struct srv_ring *ring);
static inline bool srv_ring_half_full(const struct srv_ring *ring)
{
    return srv_ring_used(ring) > ring->size / 2;
}

#endif
