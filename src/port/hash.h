/* XXH3 checksums (library: xxHash). Any thread; the one-shot forms neither allocate nor block. */
#ifndef PORT_HASH_H
#define PORT_HASH_H

#include <stddef.h>
#include <stdint.h>

/* XXH3-64 with seed 0 of one range. */
uint64_t port_hash64(const void *bytes, size_t size);

/* The same over several ranges one after another. State of about 576 bytes, caller's memory. */
struct port_hash {
    _Alignas(64) unsigned char state[640];
};
void port_hash_begin(struct port_hash *hash);
void port_hash_add(struct port_hash *hash, const void *bytes, size_t size);
uint64_t port_hash_end(const struct port_hash *hash);

#endif
