/* What targets share: mutations, files in memory, the check of a refusal. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/must.h"
#include "tests/fuzz/fuzz.h"

const char *fuzz_file(const uint8_t *bytes, size_t size)
{
    static char path[64];
    static int fd = -1;
    if (fd >= 0) close(fd);
    fd = memfd_create("fuzz", MFD_CLOEXEC);
    MUST(fd >= 0);
    for (size_t at = 0; at < size;) {
        ssize_t wrote = write(fd, bytes + at, size - at);
        MUST(wrote > 0);
        at += (size_t)wrote;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return path;
}

void fuzz_check_refusal(int rc, const struct base_err *err)
{
    MUST(rc < 0);
    MUST(err->code < 0);
    MUST(err->text[0]);
    for (const char *c = err->text; *c; c++) {
        MUST((unsigned char)*c >= 0x20 && *c != 0x7f);
    }
}

static size_t insert(uint8_t *bytes, size_t size, size_t room, size_t at, const void *piece,
                     size_t length)
{
    if (length > room - size) length = room - size;
    memmove(bytes + at + length, bytes + at, size - at);
    memcpy(bytes + at, piece, length);
    return size + length;
}

static size_t insert_word(struct base_rng *rng, uint8_t *bytes, size_t size, size_t room, size_t at)
{
    size_t count = 0;
    while (fuzz_words[count]) {
        count++;
    }
    if (count == 0) return size;
    const char *word = fuzz_words[base_rng_below(rng, count)];
    return insert(bytes, size, room, at, word, strlen(word));
}

/* A little-endian number of 1, 2, 4 or 8 bytes from those at which code breaks. */
static void put_number(struct base_rng *rng, uint8_t *bytes, size_t size, size_t at)
{
    uint64_t number = 1ull << base_rng_below(rng, 64);
    number += base_rng_below(rng, 3) - 1;
    if (base_rng_below(rng, 4) == 0) number = -number;
    size_t width = (size_t)1 << base_rng_below(rng, 4);
    if (width > size - at) width = size - at;
    memcpy(bytes + at, &number, width);
}

/* One byte many times: nesting, long keys, long numbers. */
static size_t insert_run(struct base_rng *rng, uint8_t *bytes, size_t size, size_t room, size_t at)
{
    uint8_t run[512];
    uint8_t byte = size > 0 && base_rng_below(rng, 2) ? bytes[base_rng_below(rng, size)]
                                                      : (uint8_t)base_rng_u64(rng);
    size_t length = 1 + base_rng_below(rng, sizeof run);
    memset(run, byte, length);
    return insert(bytes, size, room, at, run, length);
}

static size_t copy_range(struct base_rng *rng, uint8_t *bytes, size_t size, size_t room, size_t at)
{
    uint8_t piece[256];
    size_t from = base_rng_below(rng, size), length = 1 + base_rng_below(rng, sizeof piece);
    if (length > size - from) length = size - from;
    memcpy(piece, bytes + from, length);
    return insert(bytes, size, room, at, piece, length);
}

static size_t drop_range(struct base_rng *rng, uint8_t *bytes, size_t size, size_t at)
{
    size_t length = 1 + base_rng_below(rng, base_rng_below(rng, 4) ? 8 : size);
    if (length > size - at) length = size - at;
    memmove(bytes + at, bytes + at + length, size - at - length);
    return size - length;
}

static size_t mutate_once(struct base_rng *rng, uint8_t *bytes, size_t size, size_t room)
{
    size_t at = base_rng_below(rng, size + 1);
    if (at == size) {                   /* nothing under the hand: only growth makes sense */
        if (base_rng_below(rng, 2)) return insert_word(rng, bytes, size, room, at);
        return insert_run(rng, bytes, size, room, at);
    }
    switch (base_rng_below(rng, 9)) {
    case 0: bytes[at] ^= (uint8_t)(1u << base_rng_below(rng, 8)); return size;
    case 1: bytes[at] = (uint8_t)base_rng_u64(rng); return size;
    case 2: put_number(rng, bytes, size, at); return size;
    case 3:
    case 4: return insert_word(rng, bytes, size, room, at);
    case 5: return insert_run(rng, bytes, size, room, at);
    case 6: return copy_range(rng, bytes, size, room, at);
    case 7: return drop_range(rng, bytes, size, at);
    default: return base_rng_below(rng, 4) ? drop_range(rng, bytes, size, at) : at;
    }
}

size_t fuzz_mutate(struct base_rng *rng, uint8_t *bytes, size_t size, size_t room)
{
    uint64_t times = 1ull << base_rng_below(rng, 4);
    for (uint64_t i = 0; i < times; i++) {
        size = mutate_once(rng, bytes, size, room);
    }
    return size;
}
