/* Little-endian loads and stores at any alignment: the byte order of every file we read or
 * write. */
#ifndef BASE_LE_H
#define BASE_LE_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Expertier reads weights in place and so needs a little-endian machine"
#endif

#define BASE_LE_PAIR(bits) \
    static inline uint##bits##_t base_le_load##bits(const void *from) \
    { \
        uint##bits##_t value; \
        memcpy(&value, from, sizeof value); \
        return value; \
    } \
    static inline void base_le_store##bits(void *to, uint##bits##_t value) \
    { \
        memcpy(to, &value, sizeof value); \
    }

BASE_LE_PAIR(16)
BASE_LE_PAIR(32)
BASE_LE_PAIR(64)

#undef BASE_LE_PAIR

#endif
