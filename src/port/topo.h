/* Machine topology (library: hwloc): cores, NUMA nodes, memory, devices, and pinning. Cold; any
 * thread. */
#ifndef PORT_TOPO_H
#define PORT_TOPO_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

struct port_topo;

int port_topo_open(struct port_topo **out, struct base_err *err);
void port_topo_close(struct port_topo *topo);

unsigned port_topo_cores(const struct port_topo *topo);     /* this process may run on */
unsigned port_topo_numa_nodes(const struct port_topo *topo);
uint64_t port_topo_memory_bytes(const struct port_topo *topo);

/* Binds the calling thread to the index-th core (modulo their number). 0 or -errno; a refusal by
 * the container is not an error worth stopping for. */
int port_topo_bind_thread(const struct port_topo *topo, unsigned index);

/* NUMA nodes as a list of the system's numbers, "0" or "0,2-3". check: BASE_ECONFIG with what is
 * there when the text is no list or names a node that this process does not have. */
int port_topo_nodes_check(const struct port_topo *topo, const char *nodes, struct base_err *err);
/* Puts the pages of a range on these nodes (NULL = all of them), in turn where they are several;
 * those that have memory behind them move. 0; -ENOTSUP or -errno when the system refuses. */
int port_topo_place(const struct port_topo *topo, void *memory, size_t size, const char *nodes);

/* Writes what hangs where, a line each: NUMA nodes with their cpus and memory, each GPU with its
 * NUMA node, cpus and the NVMe disks beside it, each NVMe disk. */
int port_topo_describe(FILE *to, struct base_err *err);

#endif
