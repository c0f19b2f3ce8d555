/* Cold demand through the whole of the tiers, for tier-bench io --tiers: every expert is one record
 * as in a pack, a whole piece that begins on a page, and none is resident when it is asked for. */
#ifndef TOOLS_BENCH_IO_TIER_H
#define TOOLS_BENCH_IO_TIER_H

#include <signal.h>
#include <stdint.h>

#include "base/err.h"
#include "tiering/tiering.h"

struct bench_tier_args {
    const struct tier_io_config *io;
    struct tier_store *store;
    uint32_t depth;             /* experts asked for at once, and reads in flight */
    uint64_t time_ns, seed;
    const volatile sig_atomic_t *interrupted;
};

/* The records of a file as a store: file_bytes / record_bytes experts in one layer. Reads it once,
 * for their hashes. */
int bench_tier_store(struct tier_store **out, const char *path, uint64_t file_bytes,
                     uint64_t record_bytes, struct base_err *err);

/* Keeps `depth` experts asked for during the set time; each is awaited, checked against its hash,
 * released, and another one asked for. Bytes a second, and the io's note. */
int bench_tier_rate(const struct bench_tier_args *args, double *rate, char *note, size_t note_bytes,
                    struct base_err *err);

#endif
