#include "tiering/numa.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

int tier_numa_open(struct tier_numa *n, const char *choice, struct base_err *err)
{
    bool all = strcmp(choice, "interleave") == 0, automatic = strcmp(choice, "auto") == 0;
    *n = (struct tier_numa){ .required = !automatic };
    if (strcmp(choice, "none") == 0) {
        snprintf(n->note, sizeof n->note, "not placed: tiers.dram.numa is none");
        return 0;
    }
    struct base_err why = { 0 };
    int rc = port_topo_open(&n->topo, &why);
    if (rc < 0 && automatic) {
        n->degraded = true;
        snprintf(n->note, sizeof n->note, "not placed: %.150s", why.text);
        return 0;
    }
    if (rc < 0) return base_err_set(err, rc, "tiers.dram.numa: %s: %s", choice, why.text);
    if (!all && !automatic) {
        rc = port_topo_nodes_check(n->topo, choice, &why);
        if (rc == 0 && base_str_format(n->nodes, sizeof n->nodes, "%s", choice) < 0) {
            rc = BASE_ECONFIG;
        }
        if (rc < 0) {
            tier_numa_close(n);
            return base_err_set(err, rc, "tiers.dram.numa: %s%s", why.text,
                                why.text[0] ? "; or write auto, interleave or none"
                                            : "a list of more than 63 bytes");
        }
    }
    unsigned count = port_topo_numa_nodes(n->topo);
    if (count == 1) {
        snprintf(n->note, sizeof n->note, "one NUMA node: all memory lies there");
        port_topo_close(n->topo);
        n->topo = NULL;
    } else if (n->nodes[0]) {
        snprintf(n->note, sizeof n->note, "on the NUMA nodes %s of %u", n->nodes, count);
    } else {
        snprintf(n->note, sizeof n->note, "in turn over %u NUMA nodes", count);
    }
    return 0;
}

void tier_numa_close(struct tier_numa *n)
{
    port_topo_close(n->topo);
    n->topo = NULL;
}

int tier_numa_place(void *numa, void *memory, size_t bytes)
{
    struct tier_numa *n = numa;
    if (!n->topo) return 0;
    int rc = port_topo_place(n->topo, memory, bytes, n->nodes[0] ? n->nodes : NULL);
    if (rc == 0 || n->required) return rc;
    n->degraded = true;
    snprintf(n->note, sizeof n->note, "not placed: the system refuses it: %s", base_err_name(rc));
    return 0;
}
