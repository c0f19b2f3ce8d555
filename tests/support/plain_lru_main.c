/* plain_lru SLOTS <routing.jsonl: prints lookups and misses of LRU with so many slots a layer. */
#include <inttypes.h>
#include <stdlib.h>

#include "tests/support/plain_lru.h"

int main(int count, char **arguments)
{
    uint64_t lookups = 0, misses = 0;
    unsigned slots = count == 2 ? (unsigned)strtoul(arguments[1], NULL, 10) : 0;
    if (slots == 0 || plain_lru(stdin, slots, &lookups, &misses) < 0) return 2;
    printf("%" PRIu64 " %" PRIu64 "\n", lookups, misses);
    return 0;
}
