/* How long single experts take to come from nvme, and which are missed most: a table of a fixed
 * size beside the layers' histograms.
 *
 * Up to TIER_LOADS_MAX experts have an entry of their own. With more, those that share a place
 * fight for it: each load of another one takes one from the owner's worth, and at 0 the place
 * changes hands; so who loads often has it. Times are kept in 16 octaves from 16 us on, as nibbles:
 * when one is full all are halved, so that what is recent weighs more. A percentile is at most
 * twice too high.
 *
 * One writer (the engine thread), any reader: relaxed atomics.
 */
#ifndef TIERING_LOADS_H
#define TIERING_LOADS_H

#include <stdint.h>

enum { TIER_LOADS_MAX = 16384 };

struct tier_loads_entry {
    uint32_t key, worth;
    uint32_t misses, loads;     /* lookups that found it in no tier; reads of it that ended well */
    uint32_t us_min, us_max;
    uint64_t us_sum;
    uint64_t octaves;
};

struct tier_loads {
    struct tier_loads_entry *at;
    uint32_t size;
};

int tier_loads_create(struct tier_loads *loads, uint32_t keys);     /* 0 or -ENOMEM */
void tier_loads_destroy(struct tier_loads *loads);
void tier_loads_miss(struct tier_loads *loads, uint32_t key);
void tier_loads_add(struct tier_loads *loads, uint32_t key, uint64_t ns);
/* A copy of the expert's entry; all zero when it has none. */
struct tier_loads_entry tier_loads_get(const struct tier_loads *loads, uint32_t key);
/* Upper edge of the octave in which the `share` quantile lies, at most us_max; 0 when empty. */
uint64_t tier_loads_quantile_us(const struct tier_loads_entry *entry, double share);

#endif
