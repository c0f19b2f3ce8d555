#include "port/hash.h"

#define XXH_STATIC_LINKING_ONLY         /* the layout of XXH3_state_t, to keep it in our memory */
#include <xxhash.h>

#include "base/must.h"

_Static_assert(sizeof(XXH3_state_t) <= sizeof(struct port_hash), "state must fit");
_Static_assert(_Alignof(XXH3_state_t) <= _Alignof(struct port_hash), "state must be aligned");

uint64_t port_hash64(const void *bytes, size_t size)
{
    return XXH3_64bits(bytes, size);
}

void port_hash_begin(struct port_hash *hash)
{
    XXH3_state_t *state = (void *)hash->state;
    XXH3_INITSTATE(state);
    MUST(XXH3_64bits_reset(state) == XXH_OK);
}

void port_hash_add(struct port_hash *hash, const void *bytes, size_t size)
{
    if (size == 0) return;              /* the library refuses a NULL range, even an empty one */
    MUST(XXH3_64bits_update((void *)hash->state, bytes, size) == XXH_OK);
}

uint64_t port_hash_end(const struct port_hash *hash)
{
    return XXH3_64bits_digest((const void *)hash->state);
}
