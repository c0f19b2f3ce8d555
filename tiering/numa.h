/* On which NUMA nodes the dram slots lie (tiers.dram.numa): left to the kernel, which takes the
 * node of whoever writes first; in turn over all nodes; or on those that are named.
 *
 * Cold; the thread that opens and changes the tiers.
 */
#ifndef TIERING_NUMA_H
#define TIERING_NUMA_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "port/topo.h"

struct tier_numa {
    struct port_topo *topo;     /* NULL: nothing to place */
    char nodes[64];             /* named ones; empty = all */
    bool required;              /* a refusal of the system is an error */
    bool degraded;
    char note[200];             /* for the start report */
};

/* `choice` is the option's text. BASE_ECONFIG if it is none, or names a node that is not there. */
int tier_numa_open(struct tier_numa *numa, const char *choice, struct base_err *err);
void tier_numa_close(struct tier_numa *numa);       /* accepts a zeroed one */

/* Places memory that comes into service, before it is written. -errno only where the choice was
 * explicit; else it is noted. */
int tier_numa_place(void *numa, void *memory, size_t bytes);

#endif
