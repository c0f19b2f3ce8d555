/* The cache's tables, its slots and the device's memory: made, measured, given back. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/must.h"
#include "tiering/cache_priv.h"

static uint64_t aligned(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

uint64_t tier_cache_hbm_slot_bytes(const struct tier_store *store)
{
    uint64_t most = 0;
    const uint64_t *sizes;
    for (uint32_t kind = 0; (sizes = tier_store_kind_bytes(store, kind)) != NULL; kind++) {
        uint64_t bytes = 0;
        for (int p = 0; p < TIER_PARTS; p++) bytes += aligned(sizes[p], DEV_ALIGN);
        if (bytes > most) most = bytes;
    }
    return aligned(most, TIER_PAGE);
}

uint64_t tier_cache_tables_bytes(uint32_t keys, uint64_t slots, uint64_t hbm_slots, uint32_t depth)
{
    uint64_t a_key = sizeof(uint32_t) * (hbm_slots ? 5 : 3) + sizeof(struct tier_key_use) + 1;
    uint64_t a_slot = sizeof(struct tier_slot) + sizeof(uint32_t);
    uint64_t a_load = sizeof(struct tier_load) + TIER_PARTS * sizeof(void *);
    return keys * a_key + (slots + hbm_slots) * a_slot + hbm_slots * sizeof(struct dev_copy) +
           TIER_LOADS_PER_READ * depth * a_load;
}

static int files_add(struct tier_cache *c, struct base_err *err)
{
    for (uint32_t f = 0; f < tier_store_files(c->store); f++) {
        int handle = tier_io_file_add(c->io, tier_store_file_path(c->store, f), err);
        if (handle < 0) return handle;
        if (f == 0) c->file_first = (uint32_t)handle;
        MUST((uint32_t)handle == c->file_first + f);
    }
    return 0;
}

static int seats_create(struct tier_seats *seats, uint32_t keys)
{
    seats->slot_of = malloc(keys * sizeof *seats->slot_of);
    seats->line.next = calloc(keys, sizeof *seats->line.next);
    seats->line.head = seats->line.tail = TIER_NO_KEY;
    if (!seats->slot_of || !seats->line.next) return -ENOMEM;
    for (uint32_t k = 0; k < keys; k++) seats->slot_of[k] = TIER_NO_SLOT;
    return 0;
}

static void seats_destroy(struct tier_seats *seats)
{
    tier_slots_destroy(&seats->slots);
    free(seats->slot_of);
    free(seats->line.next);
}

static int tables_create(struct tier_cache *c, uint32_t hbm_slots)
{
    uint32_t layers = tier_store_layers(c->store);
    c->load_count = TIER_LOADS_PER_READ * c->io->depth;
    c->outbox_size = c->load_count * TIER_PARTS;
    c->use = calloc(c->keys, sizeof *c->use);
    c->flags = calloc(c->keys, sizeof *c->flags);
    c->asked = calloc(c->keys, sizeof *c->asked);
    c->loads = calloc(c->load_count, sizeof *c->loads);
    c->outbox = calloc(c->outbox_size, sizeof(void *));
    c->layer_loads = calloc(layers, sizeof *c->layer_loads);
    c->dev_copies = calloc(hbm_slots ? hbm_slots : 1, sizeof *c->dev_copies);
    if (!c->use || !c->flags || !c->asked || !c->loads || !c->outbox || !c->layer_loads ||
        !c->dev_copies) {
        return -ENOMEM;
    }
    if (tier_loads_create(&c->expert_loads, c->keys) < 0) return -ENOMEM;
    for (uint32_t l = 0; l < layers; l++) base_hist_init(&c->layer_loads[l].latency);
    c->free_load = c->arrived = TIER_NO_LOAD;
    for (uint32_t i = c->load_count; i-- > 0;) tier_load_free(c, &c->loads[i]);
    int rc = seats_create(&c->dram, c->keys);
    return rc == 0 && hbm_slots ? seats_create(&c->hbm, c->keys) : rc;
}

static void dram_moved(void *context, void *memory, size_t bytes, bool in_service)
{
    tier_io_memory_change(context, memory, bytes, in_service);
}

static void hbm_moved(void *context, void *memory, size_t bytes, bool in_service)
{
    if (!in_service) dev_memory_give(context, memory, bytes);
}

static int hbm_create(struct tier_cache *c, const struct tier_cache_args *args,
                      struct base_err *err)
{
    void *memory;
    /* Addresses for all it may grow to where the device has them. */
    uint32_t most = args->hbm_slots_most;
    int rc = dev_memory_alloc(args->device, most * args->hbm_slot_bytes, &memory, NULL);
    if (rc < 0) {
        most = args->hbm_slots;
        rc = dev_memory_alloc(args->device, most * args->hbm_slot_bytes, &memory, err);
    }
    if (rc < 0) return rc;
    rc = tier_slots_create_at(&c->hbm.slots, args->hbm_slots, most, args->hbm_slot_bytes, memory,
                              err);
    if (rc < 0) return rc;
    c->hbm.slots.moved = hbm_moved;
    c->hbm.slots.context = args->device;
    c->device = args->device;
    c->top = &c->hbm;
    /* One pool for both: the disk writes into it, the device copies out of it. Only what is in
     * service: the addresses beyond it have no memory, and would get some. */
    rc = dev_host_register(args->device, c->dram.slots.memory, c->dram.slots.bytes);
    if (rc == 0 || rc == -ENOTSUP) return 0;
    return base_err_set(err, rc, "tiers.dram.capacity: the device cannot pin the %" PRIu64
                        " bytes of its slots, which it copies from",
                        (uint64_t)c->dram.slots.bytes);
}

int tier_cache_create(struct tier_cache *c, const struct tier_cache_args *args,
                      struct base_err *err)
{
    *c = (struct tier_cache){
        .store = args->store, .io = args->io, .clock = args->clock,
        .verify_always = args->verify_always, .warm_compute = args->warm_compute,
        .stuck_after_ns = args->stuck_after_ns, .story = args->story,
        .landing = args->landing,
        .failed = args->failed, .context = args->context,
        .top = &c->dram,
        .demand = { TIER_NO_SLOT, TIER_NO_SLOT }, .prefetch = { TIER_NO_SLOT, TIER_NO_SLOT },
    };
    uint64_t slot_bytes = tier_store_slot_bytes(args->store);
    c->experts = tier_store_experts(args->store);
    c->keys = tier_store_layers(args->store) * c->experts;
    base_hist_init(&c->stats.read_latency);
    base_hist_init(&c->stats.copy_latency);
    for (int i = 0; i < 2; i++) base_hist_init(&c->answer_latency[i]);
    int rc = tables_create(c, args->hbm_slots ? args->hbm_slots_most : 0);
    if (rc < 0) {
        base_err_set(err, rc, "no memory for the tables of %" PRIu32 " experts", c->keys);
        goto fail;
    }
    rc = files_add(c, err);
    if (rc < 0) goto fail;
    rc = tier_slots_create(&c->dram.slots, args->slots, args->slots_most, slot_bytes, &args->hold,
                           err);
    if (rc < 0) goto fail;
    c->dram.slots.moved = dram_moved;
    c->dram.slots.context = c->io;
    tier_cache_prefetch_limit(c, args->prefetch_inflight);
    /* A refusal stands in the backend's note: reads work without, at a price. */
    tier_io_memory_add(c->io, c->dram.slots.memory, c->dram.slots.bytes,
                       c->dram.slots.most * slot_bytes);
    if (args->hbm_slots > 0) rc = hbm_create(c, args, err);
    if (rc < 0) goto fail;
    return 0;
fail:
    tier_cache_destroy(c);
    return rc;
}

void tier_cache_destroy(struct tier_cache *c)
{
    if (c->io) {
        struct tier_io_req *done[TIER_REAP_BATCH];
        while (c->io->in_flight > 0) tier_io_reap(c->io, done, TIER_REAP_BATCH, 1, UINT64_MAX);
    }
    if (c->device) {
        struct dev_copy *copies[TIER_REAP_BATCH];
        while (c->device->in_flight > 0) {
            dev_reap(c->device, copies, TIER_REAP_BATCH, 1, UINT64_MAX);
        }
        dev_host_unregister(c->device, c->dram.slots.memory);
    }
    seats_destroy(&c->dram);
    seats_destroy(&c->hbm);
    free(c->dev_copies);
    free(c->use);
    free(c->flags);
    free(c->asked);
    free(c->loads);
    free(c->outbox);
    free(c->layer_loads);
    tier_loads_destroy(&c->expert_loads);
    *c = (struct tier_cache){ 0 };
}
