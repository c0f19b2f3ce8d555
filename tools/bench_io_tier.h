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
    uint32_t depth;             /* reads in flight */
    uint64_t time_ns, seed;
    const volatile sig_atomic_t *interrupted;
};

/* The records of a file as a store: file_bytes / record_bytes experts in one layer. Reads it once,
 * for their hashes. */
int bench_tier_store(struct tier_store **out, const char *path, uint64_t file_bytes,
                     uint64_t record_bytes, struct base_err *err);

/* Bytes a second. The first pass fills every slot once: its memory is zeroed by the system and
 * registered meanwhile, a cost of the first moment that no later read has. */
struct bench_tier_rates {
    double first_pass, steady;
};

/* Keeps twice `depth` experts asked for, so that as many reads are in flight while others are
 * checked, first until every slot was written, then during the set time;
 * each is awaited, checked against its hash, released, and another one asked for. And the io's
 * note. */
int bench_tier_rate(const struct bench_tier_args *args, struct bench_tier_rates *rates, char *note,
                    size_t note_bytes, struct base_err *err);

#endif
