/* Our seeds and words for libFuzzer, which then needs neither corpus nor dictionary files. */
#include <stdbool.h>

#include "tests/fuzz/fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t room, unsigned int seed);

static unsigned seed_count(void)
{
    static uint8_t scratch[FUZZ_BYTES_MAX];
    static unsigned count;
    static bool counted;
    while (!counted && fuzz_seed(count, scratch, sizeof scratch) > 0) {
        count++;
    }
    counted = true;
    return count;
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t room, unsigned int seed)
{
    struct base_rng rng;
    base_rng_init(&rng, seed);
    if (room > FUZZ_BYTES_MAX) room = FUZZ_BYTES_MAX;
    if (size > room) size = room;
    switch (base_rng_below(&rng, 16)) {
    case 0: {
        size_t fresh = fuzz_seed((unsigned)base_rng_below(&rng, seed_count()), bytes, room);
        return fresh > 0 ? fresh : size;
    }
    case 1:
    case 2:
    case 3:
    case 4: return fuzz_mutate(&rng, bytes, size, room);
    default: return LLVMFuzzerMutate(bytes, size, room);
    }
}
