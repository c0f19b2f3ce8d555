/* An independent LRU simulator: what our lru is compared with. */
#ifndef TESTS_SUPPORT_PLAIN_LRU_H
#define TESTS_SUPPORT_PLAIN_LRU_H

#include <stdint.h>
#include <stdio.h>

/* Reads routing in JSONL (docs/formats.md), up to 64 layers of 64 experts, with so many slots a
 * layer; adds up. 0, or -1 without a header. */
int plain_lru(FILE *jsonl, unsigned slots, uint64_t *lookups, uint64_t *misses);

#endif
