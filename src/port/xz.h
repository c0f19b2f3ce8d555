/* Unpacking of .xz streams (library: liblzma), piece by piece. One stream belongs to one thread. */
#ifndef PORT_XZ_H
#define PORT_XZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct port_xz;

/* Whether a file that begins with these bytes is an .xz file (six are enough). */
bool port_xz_begins(const void *bytes, size_t size);

/* Streams that need more than `memory_max` to unpack are refused with -ENOMEM. */
int port_xz_create(struct port_xz **out, uint64_t memory_max);
void port_xz_destroy(struct port_xz *xz);

/* What goes in and comes out of one call; both ranges move on by what was used of them. */
struct port_xz_io {
    const void *in;
    size_t in_size;
    bool in_ends;               /* nothing follows `in` */
    void *out;
    size_t out_size;
};

/* Goes on until `in` is empty or `out` is full: 0, or 1 when the last stream has ended, which is
 * said only after `in_ends`. BASE_EFORMAT for damaged bytes, BASE_ETORN when they end too early,
 * -ENOMEM. */
int port_xz_unpack(struct port_xz *xz, struct port_xz_io *io);

#endif
