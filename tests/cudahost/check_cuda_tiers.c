/* Shows that the live tiers hand experts to kernels on the cuda device without the CPU waiting for
 * one: on the emulated machine every step launches kernels that read its leases, gives the leases
 * back at once, and goes on; slots are refilled as soon as the device's events allow, and what the
 * kernels read, whenever they run, is the expert, checksum for checksum. Over random capacities,
 * policies and orders; and without dev_mark's event or its wait a kernel reads the next owner.
 *
 *   check_cuda_tiers [--seeds N]       default 20 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "port/hash.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/include/cuda_runtime.h"
#include "tests/support/make_tiny.h"
#include "tiering/tiering.h"

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 3, STEPS = 60, SEEN_MAX = STEPS * EXPERTS };

static struct tier_store *store;

struct run {
    struct tier_config config;
    struct tier_io_config io;
    struct dev *dev;
    struct tier *tier;
    struct base_rng rng;
    unsigned char *seen[SEEN_MAX]; /* what the kernels read */
    struct tier_record records[SEEN_MAX];
    unsigned seen_count;
    char what[BASE_ERR_TEXT];
};

static void set(struct run *r, const char *key, const char *value)
{
    struct base_option_group groups[] = {
        { "tiers", tier_options, tier_option_count, &r->config },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &r->config },
        { "io", tier_io_options, tier_io_option_count, &r->io },
    };
    struct base_err err = { 0 };
    char pair[128];
    if (!key) {
        base_option_defaults(groups, 3);
        return;
    }
    snprintf(pair, sizeof pair, "%s=%s", key, value);
    if (base_option_set_pair(groups, 3, pair, &err) < 0)
        snprintf(r->what, sizeof r->what, "%s", err.text);
}

static const char *one_of(struct run *r, const char *const *list, unsigned count)
{
    return list[base_rng_below(&r->rng, count)];
}

static int run_open(struct run *r)
{
    static const char *const capacities[] = { "25%", "40%", "75%" };
    static const char *const policies[] = { "lru", "lfu", "slru", "s3fifo", "lru_global" };
    static const char *const inclusions[] = { "exclusive", "inclusive" };
    struct tier_footprint footprint;
    struct base_err err = { 0 };
    set(r, NULL, NULL);
    const char *inclusion = one_of(r, inclusions, 2);
    set(r, "tiers.inclusion", inclusion);
    set(r, "tiers.hbm.capacity", "25%");
    set(r, "tiers.dram.capacity", one_of(r, capacities, 3));
    set(r, "policy.eviction", one_of(r, policies, 5));
    set(r, "io.backend", "sim");
    set(r, "io.sim_latency", "1us");
    int rc = tier_footprint(&r->config, store, TOP_K, &footprint, &err);
    struct dev_config config = { .memory_bytes = footprint.slots_bytes[0] };
    if (rc == 0) rc = dev_create(&r->dev, dev_find("cuda"), &config, base_clock_real(), &err);
    struct tier_open_args args = {
        .config = &r->config, .io = &r->io, .store = store, .top_k = TOP_K, .device = r->dev
    };
    if (rc == 0) rc = tier_open(&r->tier, &args, &err);
    if (rc < 0) snprintf(r->what, sizeof r->what, "%s", err.text);
    return rc;
}

/* A kernel for each part of each lease, on the compute stream; nobody waits for it. */
static void launch(struct run *r, const struct tier_lease *lease)
{
    struct tier_record *record = &r->records[r->seen_count];
    size_t bytes = 0, at = 0;
    tier_store_record(store, lease->layer, lease->expert, record);
    for (int p = 0; p < TIER_PARTS; p++)
        bytes += record->part_bytes[p];
    unsigned char *to = r->seen[r->seen_count++] = malloc(bytes);
    for (int p = 0; p < TIER_PARTS; p++) {
        if (!lease->parts[p]) continue;
        cudahost_keep(to + at, lease->parts[p], record->part_bytes[p], dev_stream(r->dev));
        at += record->part_bytes[p];
    }
}

static void step(struct run *r)
{
    struct tier_lease leases[EXPERTS];
    uint32_t ids[EXPERTS], n = 1 + (uint32_t)base_rng_below(&r->rng, TOP_K);
    const uint32_t layer = (uint32_t)base_rng_below(&r->rng, LAYERS);
    for (uint32_t i = 0; i < EXPERTS; i++)
        ids[i] = i;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t j = i + (uint32_t)base_rng_below(&r->rng, EXPERTS - i), id = ids[i];
        ids[i] = ids[j];
        ids[j] = id;
    }
    for (uint32_t done = 0; done < n && !r->what[0];) {
        const uint32_t k = tier_acquire(r->tier, layer, ids + done, n - done, TIER_DECODE, leases);
        tier_wait(r->tier, leases, k, TIER_WAIT_ALL, UINT64_MAX);
        for (uint32_t i = 0; i < k; i++) {
            if (leases[i].status == 0)
                launch(r, &leases[i]);
            else
                snprintf(r->what, sizeof r->what, "a lease gave %d", leases[i].status);
        }
        tier_release(r->tier, leases, k);
        done += k;
    }
    tier_step_end(r->tier);
}

static void check_seen(struct run *r)
{
    if (cudaDeviceSynchronize() != cudaSuccess)
        snprintf(r->what, sizeof r->what, "the device reports an error");
    for (unsigned i = 0; i < r->seen_count && !r->what[0]; i++) {
        struct port_hash hash;
        size_t bytes = 0;
        for (int p = 0; p < TIER_PARTS; p++)
            bytes += r->records[i].part_bytes[p];
        port_hash_begin(&hash);
        port_hash_add(&hash, r->seen[i], bytes);
        if (port_hash_end(&hash) != r->records[i].hash)
            snprintf(r->what, sizeof r->what, "kernels %u of %u read other bytes than the expert's",
                     i, r->seen_count);
    }
}

/* NULL, or what went wrong; adds to the copies that were made. */
static const char *run(uint64_t seed, uint64_t *copies)
{
    static char text[BASE_ERR_TEXT];
    struct run *r = calloc(1, sizeof *r);
    cudahost_seed(seed);
    cudahost_failure();
    base_rng_init(&r->rng, seed);
    if (run_open(r) == 0) {
        struct tier_snapshot snapshot;
        for (int i = 0; i < STEPS && !r->what[0]; i++)
            step(r);
        check_seen(r);
        tier_snapshot(r->tier, &snapshot);
        *copies += snapshot.io.copies_up;
    }
    tier_close(r->tier);
    dev_destroy(r->dev);
    if (cudahost_reset() > 0) snprintf(r->what, sizeof r->what, "something was not given back");
    const char *failure = cudahost_failure();
    if (failure) snprintf(r->what, sizeof r->what, "%s", failure);
    snprintf(text, sizeof text, "%s", r->what);
    for (unsigned i = 0; i < r->seen_count; i++)
        free(r->seen[i]);
    free(r);
    return text[0] ? text : NULL;
}

static unsigned mutations(void)
{
    static char sites[CUDAHOST_SITES_MAX][64];
    const char *const *names;
    uint64_t copies = 0;
    unsigned noticed = 0;
    const unsigned count = cudahost_sites(&names);
    for (unsigned i = 0; i < count; i++)
        snprintf(sites[i], sizeof sites[i], "%s", names[i]);
    for (unsigned i = 0; i < count; i++) {
        const char *what = NULL;
        cudahost_site_mute(sites[i]);
        for (uint64_t seed = 1; seed <= 6 && !what; seed++)
            what = run(seed, &copies);
        cudahost_site_mute(NULL);
        if (what) printf("ok   without %s: %s\n", sites[i], what);
        noticed += what != NULL;
    }
    /* Record and wait of the mark, record and query of a copy's end; what only ends need is the
     * affair of check_device_cuda. */
    printf("%u of %u events and waits removed in turn are missed by the tiers (at least 4)\n",
           noticed, count);
    return noticed < 4;
}

int main(int argc, char **argv)
{
    const uint64_t seeds =
        argc == 3 && !strcmp(argv[1], "--seeds") ? strtoull(argv[2], NULL, 10) : 20;
    struct tiny_options options = tiny_defaults();
    struct model_shape shape;
    struct base_err err = { 0 };
    char dir[3000];
    unsigned failed = 0;
    uint64_t copies = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    options.layers = LAYERS + 1;
    options.dense_layers = 1;
    options.experts = EXPERTS;
    options.top_k = TOP_K;
    options.groups = options.top_groups = 1;
    tiny_folder(dir, sizeof dir, "check_cuda_tiers");
    tiny_write(dir, &options);
    int rc = model_shape_load(&shape, dir, &err);
    if (rc == 0) rc = tier_store_index(dir, NULL, &shape, 1, NULL, &err);
    if (rc == 0) rc = tier_store_open(&store, dir, NULL, &shape, &err);
    if (rc < 0) printf("FAIL %s\n", err.text);
    for (uint64_t seed = 1; rc == 0 && seed <= seeds && failed < 5; seed++) {
        const char *what = run(seed, &copies);
        if (!what) continue;
        printf("FAIL seed %llu: %s\n", (unsigned long long)seed, what);
        failed++;
    }
    if (rc == 0 && !failed) {
        printf("ok   %llu seeds, %llu experts copied up\n", (unsigned long long)seeds,
               (unsigned long long)copies);
        failed = mutations();
    }
    tier_store_close(store);
    tiny_remove(dir);
    return failed || rc < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
