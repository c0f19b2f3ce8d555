#include "port/topo.h"

#include <errno.h>
#include <hwloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/ledger.h"
#include "base/must.h"
#include "base/str.h"

struct port_topo {
    hwloc_topology_t topology;
    hwloc_cpuset_t *cores;      /* of each core, the part this process may run on */
    unsigned core_count;
    unsigned node_count;
    uint64_t memory_bytes;
};

static int list_cores(struct port_topo *topo, hwloc_const_cpuset_t allowed)
{
    int depth = hwloc_get_type_or_below_depth(topo->topology, HWLOC_OBJ_CORE);
    unsigned count = hwloc_get_nbobjs_by_depth(topo->topology, depth);
    topo->cores = calloc(count ? count : 1, sizeof *topo->cores);
    if (!topo->cores) return -ENOMEM;
    for (unsigned i = 0; i < count; i++) {
        hwloc_obj_t core = hwloc_get_obj_by_depth(topo->topology, depth, i);
        if (!hwloc_bitmap_intersects(core->cpuset, allowed)) continue;
        hwloc_cpuset_t set = hwloc_bitmap_alloc();
        if (!set) return -ENOMEM;
        topo->cores[topo->core_count++] = set;
        if (hwloc_bitmap_and(set, core->cpuset, allowed) < 0) return -ENOMEM;
    }
    return 0;
}

static int read_machine(struct port_topo *topo)
{
    hwloc_obj_t root = hwloc_get_root_obj(topo->topology);
    hwloc_cpuset_t allowed = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(topo->topology));
    hwloc_cpuset_t bound = hwloc_bitmap_alloc();
    int rc = -ENOMEM;
    if (!allowed || !bound) goto fail;
    /* taskset and the like narrow the process further than the machine's own limits do. */
    if (hwloc_get_cpubind(topo->topology, bound, HWLOC_CPUBIND_PROCESS) == 0 &&
        hwloc_bitmap_intersects(allowed, bound)) {
        hwloc_bitmap_and(allowed, allowed, bound);
    }
    rc = list_cores(topo, allowed);
    if (rc < 0) goto fail;
    int nodes = hwloc_get_nbobjs_by_type(topo->topology, HWLOC_OBJ_NUMANODE);
    topo->node_count = nodes > 0 ? (unsigned)nodes : 1;
    struct base_ledger_limit limit;
    base_ledger_limit(&limit, "");
    topo->memory_bytes = root->total_memory < limit.bytes ? root->total_memory : limit.bytes;
    rc = topo->core_count > 0 ? 0 : -ENODEV;
fail:
    hwloc_bitmap_free(bound);
    hwloc_bitmap_free(allowed);
    return rc;
}

int port_topo_open(struct port_topo **out, struct base_err *err)
{
    *out = NULL;
    struct port_topo *topo = calloc(1, sizeof *topo);
    if (!topo) return base_err_set(err, -ENOMEM, "no memory for the machine's topology");
    int rc = -ENOMEM;
    if (hwloc_topology_init(&topo->topology) < 0) {
        topo->topology = NULL;
        goto fail;
    }
    if (hwloc_topology_load(topo->topology) < 0) {
        rc = errno ? -errno : -EIO;
        goto fail;
    }
    rc = read_machine(topo);
    if (rc < 0) goto fail;
    *out = topo;
    return 0;
fail:
    port_topo_close(topo);
    return base_err_set(err, rc, "the machine's topology cannot be read: %s", base_err_name(rc));
}

void port_topo_close(struct port_topo *topo)
{
    if (!topo) return;
    for (unsigned i = 0; i < topo->core_count; i++) {
        hwloc_bitmap_free(topo->cores[i]);
    }
    free(topo->cores);
    if (topo->topology) hwloc_topology_destroy(topo->topology);
    free(topo);
}

unsigned port_topo_cores(const struct port_topo *topo)
{
    return topo->core_count;
}

unsigned port_topo_numa_nodes(const struct port_topo *topo)
{
    return topo->node_count;
}

uint64_t port_topo_memory_bytes(const struct port_topo *topo)
{
    return topo->memory_bytes;
}

int port_topo_bind_thread(const struct port_topo *topo, unsigned index)
{
    hwloc_const_cpuset_t core = topo->cores[index % topo->core_count];
    if (hwloc_set_cpubind(topo->topology, core, HWLOC_CPUBIND_THREAD) == 0) return 0;
    return errno == ENOSYS || errno == EXDEV ? -ENOTSUP : -errno;
}

/* The nodes that this process has. */
static hwloc_const_nodeset_t all_nodes(const struct port_topo *topo)
{
    return hwloc_topology_get_allowed_nodeset(topo->topology);
}

/* Parses a list; NULL if it is none. */
static hwloc_nodeset_t nodes_of(const char *nodes)
{
    hwloc_nodeset_t set = hwloc_bitmap_alloc();
    bool good = set && nodes[0] && strspn(nodes, "0123456789,-") == strlen(nodes) &&
                hwloc_bitmap_list_sscanf(set, nodes) == 0 && !hwloc_bitmap_iszero(set);
    if (good) return set;
    hwloc_bitmap_free(set);
    return NULL;
}

int port_topo_nodes_check(const struct port_topo *topo, const char *nodes, struct base_err *err)
{
    char have[64];
    hwloc_nodeset_t set = nodes_of(nodes);
    hwloc_bitmap_list_snprintf(have, sizeof have, all_nodes(topo));
    if (!set) {
        return base_err_set(err, BASE_ECONFIG, "\"%s\" is no list of NUMA nodes: write numbers "
                            "like 0 or 0,2-3; this process has %s", nodes, have);
    }
    bool good = hwloc_bitmap_isincluded(set, all_nodes(topo));
    hwloc_bitmap_free(set);
    if (good) return 0;
    return base_err_set(err, BASE_ECONFIG, "not all of the NUMA nodes %s are there: this process "
                        "has %s", nodes, have);
}

int port_topo_place(const struct port_topo *topo, void *memory, size_t size, const char *nodes)
{
    if (topo->node_count == 1 || size == 0) return 0;       /* it cannot lie elsewhere */
    hwloc_nodeset_t set = nodes ? nodes_of(nodes) : hwloc_bitmap_dup(all_nodes(topo));
    if (!set) return nodes ? -EINVAL : -ENOMEM;
    hwloc_membind_policy_t policy =
        hwloc_bitmap_weight(set) > 1 ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_BIND;
    int flags = HWLOC_MEMBIND_BYNODESET | HWLOC_MEMBIND_MIGRATE;
    int rc = hwloc_set_area_membind(topo->topology, memory, size, set, policy, flags);
    if (rc < 0) rc = errno == ENOSYS || errno == EXDEV ? -ENOTSUP : -errno;
    hwloc_bitmap_free(set);
    return rc;
}

/* ----------------------------------------------------------------------------------- devices -- */

enum { CLASS_DISPLAY = 0x03, CLASS_ACCELERATOR = 0x12, VENDOR_NVIDIA = 0x10de };

/* "numa node 0, cores 0-55": where a device hangs. */
static void put_place(FILE *to, hwloc_obj_t io, hwloc_topology_t topology)
{
    char nodes[128] = "?", cores[256] = "?";
    hwloc_obj_t near = hwloc_get_non_io_ancestor_obj(topology, io);
    if (near && near->nodeset) hwloc_bitmap_list_snprintf(nodes, sizeof nodes, near->nodeset);
    if (near && near->cpuset) hwloc_bitmap_list_snprintf(cores, sizeof cores, near->cpuset);
    fprintf(to, "numa node %s, cpus %s", nodes, cores);
}

/* The names of block devices that hang where `io` does; or anywhere else. */
static unsigned put_disks(FILE *to, hwloc_obj_t io, hwloc_topology_t topology, bool beside)
{
    unsigned count = 0;
    hwloc_obj_t near = hwloc_get_non_io_ancestor_obj(topology, io), disk = NULL;
    while ((disk = hwloc_get_next_osdev(topology, disk))) {
        if (disk->attr->osdev.type != HWLOC_OBJ_OSDEV_BLOCK) continue;
        if (strncmp(disk->name, "nvme", 4) != 0) continue;
        hwloc_obj_t there = hwloc_get_non_io_ancestor_obj(topology, disk);
        if ((hwloc_bitmap_isequal(near->nodeset, there->nodeset) != 0) != beside) continue;
        fprintf(to, "%s %s", count++ ? "," : "", disk->name);
    }
    return count;
}

static void put_gpus(FILE *to, hwloc_topology_t topology)
{
    hwloc_obj_t pci = NULL;
    unsigned count = 0;
    while ((pci = hwloc_get_next_pcidev(topology, pci))) {
        const struct hwloc_pcidev_attr_s *a = &pci->attr->pcidev;
        bool display = a->class_id >> 8 == CLASS_DISPLAY && a->vendor_id == VENDOR_NVIDIA;
        if (!display && a->class_id >> 8 != CLASS_ACCELERATOR) continue;
        fprintf(to, "gpu %u at %04x:%02x:%02x.%x: ", count++, a->domain, a->bus, a->dev, a->func);
        put_place(to, pci, topology);
        fprintf(to, "; nvme beside it:");
        if (put_disks(to, pci, topology, true) == 0) fprintf(to, " none");
        fputc('\n', to);
    }
    if (count == 0) fprintf(to, "gpu: none\n");
}

static void put_all_disks(FILE *to, hwloc_topology_t topology)
{
    hwloc_obj_t disk = NULL;
    while ((disk = hwloc_get_next_osdev(topology, disk))) {
        if (disk->attr->osdev.type != HWLOC_OBJ_OSDEV_BLOCK) continue;
        if (strncmp(disk->name, "nvme", 4) != 0) continue;
        fprintf(to, "%s: ", disk->name);
        put_place(to, disk, topology);
        fputc('\n', to);
    }
}

static void put_nodes(FILE *to, hwloc_topology_t topology)
{
    hwloc_obj_t node = NULL;
    char cpus[256], memory[16];
    while ((node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node))) {
        hwloc_bitmap_list_snprintf(cpus, sizeof cpus, node->cpuset);
        fprintf(to, "numa node %u: cpus %s, %s\n", node->os_index, cpus,
                base_str_bytes(memory, sizeof memory, node->attr->numanode.local_memory));
    }
}

int port_topo_describe(FILE *to, struct base_err *err)
{
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology) < 0) {
        return base_err_set(err, -ENOMEM, "no memory for the machine's topology");
    }
    /* Devices are left out where nobody asks: looking for them takes a while. */
    hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    if (hwloc_topology_load(topology) < 0) {
        int rc = errno ? -errno : -EIO;
        hwloc_topology_destroy(topology);
        return base_err_set(err, rc, "the machine's devices cannot be read: %s",
                            base_err_name(rc));
    }
    put_nodes(to, topology);
    put_gpus(to, topology);
    put_all_disks(to, topology);
    hwloc_topology_destroy(topology);
    return 0;
}
