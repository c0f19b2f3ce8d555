/* A toy engine on libtiering: it has experts in a file of its own, or those of a prepared model
 * folder, and "runs" each one by adding up its bytes. Prints the hit rates.
 *     cc toy_engine.c $(pkg-config --cflags --libs libtiering) -o toy_engine
 *     ./toy_engine FILE                     makes FILE, a toy model, and uses it
 *     ./toy_engine --folder DIR             uses what `tier-pack index DIR` has prepared
 */
#include <errno.h>
#include <inttypes.h>
#include <libtiering.h>
#include <stdio.h>
#include <string.h>

enum { LAYERS = 4, EXPERTS = 32, TOP_K = 4, TOKENS = 2000 };

static char why[640];

static int fail(const char *what)
{
    fprintf(stderr, "toy_engine: %s: %s\n", what, why);
    return 1;
}

/* Expert e of layer l is 1000 + 8 l + e bytes of value l * EXPERTS + e, as two parts. */
static struct tier_store *toy_store(const char *path)
{
    static struct tier_lib_expert experts[LAYERS * EXPERTS];
    struct tier_lib_table table = { .name = "toy", .layers = LAYERS, .experts = EXPERTS,
                                    .file_count = 1, .files = &path, .at = experts };
    struct tier_store *store = NULL;
    uint64_t at = 0;
    FILE *file = fopen(path, "wb");
    for (uint32_t i = 0; file && i < LAYERS * EXPERTS; i++) {
        uint64_t bytes = 1000 + 8 * (i / EXPERTS) + i % EXPERTS;
        for (uint64_t b = 0; b < bytes; b++) putc((int)i, file);
        experts[i].parts[0] = (struct tier_lib_piece){ .offset = at, .bytes = 600 };
        experts[i].parts[2] = (struct tier_lib_piece){ .offset = at + 600, .bytes = bytes - 600 };
        at += bytes;
    }
    if (!file || fclose(file) != 0) {
        snprintf(why, sizeof why, "%s: %s", path, strerror(errno));
        return NULL;
    }
    /* A real engine does this once for a model and keeps the hashes. */
    if (tier_lib_table_hash(&table, 2, why, sizeof why) < 0) return NULL;
    return tier_lib_table_open(&store, &table, why, sizeof why) < 0 ? NULL : store;
}

/* What stands for the router: three experts that change every 50 tokens, and any other one. */
static void route(uint32_t token, uint32_t layer, uint32_t experts, uint32_t ids[TOP_K])
{
    uint32_t noise = (token * 2654435761u + layer * 40503u) >> 16;
    for (uint32_t i = 0; i < TOP_K; i++) ids[i] = (layer * 7 + token / 50 + i) % experts;
    ids[TOP_K - 1] = (ids[TOP_K - 1] + noise % (experts - TOP_K + 1)) % experts;
}

/* One layer of one token: an expert is used as soon as it is there. Returns the sum of bytes. */
static int64_t layer_run(struct tier *tier, const struct tier_store *store, uint32_t layer,
                         const uint32_t ids[TOP_K])
{
    struct tier_lease leases[TOP_K];
    int64_t sum = 0;
    for (uint32_t done = 0, k; done < TOP_K; done += k) {
        /* Reads are on their way when this returns; whatever needs no routed expert comes next. */
        k = tier_acquire(tier, layer, ids + done, TOP_K - done, TIER_DECODE, leases);
        for (uint32_t used = 0; used < k; used++) {
            tier_wait(tier, leases + used, k - used, TIER_WAIT_ANY, UINT64_MAX);
            uint32_t i = used;
            while (leases[i].status == -EINPROGRESS) i++;
            struct tier_lease ready = leases[i];
            leases[i] = leases[used], leases[used] = ready;
            if (ready.status < 0) {
                tier_failure_text(tier, layer, ready.expert, why, sizeof why);
                tier_wait(tier, leases, k, TIER_WAIT_ALL, UINT64_MAX);
                tier_release(tier, leases, k);
                return 0;
            }
            const uint64_t *bytes = tier_store_part_bytes(store, layer, ready.expert);
            for (int p = 0; p < TIER_PARTS; p++) {
                const unsigned char *part = ready.parts[p];
                for (uint64_t b = 0; b < bytes[p]; b++) sum += part[b];
            }
        }
        tier_release(tier, leases, k);
    }
    return sum;
}

int main(int count, char **arguments)
{
    const char *settings[] = { "tiers.dram.capacity=25%", "policy.eviction=lfu" };
    struct tier_lib_options options = { .settings = settings, .setting_count = 2, .top_k = TOP_K };
    struct tier_store *store = NULL;
    struct tier_lib_stats stats;
    struct tier *tier;
    snprintf(why, sizeof why, "usage: toy_engine FILE | --folder DIR");
    if (count == 3) tier_lib_folder_open(&store, arguments[2], NULL, why, sizeof why);
    if (count == 2) store = toy_store(arguments[1]);
    if (!store) return fail("no store");
    options.store = store;
    if (tier_lib_open(&tier, &options, why, sizeof why) < 0) return fail("no tiers");
    uint32_t layers = tier_store_layers(store), experts = tier_store_experts(store);
    int64_t sum = 0;
    for (uint32_t token = 0; token < TOKENS; token++, tier_step_end(tier)) {
        for (uint32_t layer = 0; layer < layers; layer++) {
            uint32_t ids[TOP_K];
            route(token, layer, experts, ids);
            sum += layer_run(tier, store, layer, ids);
            if (why[0]) return fail("an expert is lost");
        }
    }
    tier_lib_stats_get(tier, &stats, sizeof stats);
    const struct tier_lib_tier *top = &stats.tiers[0];
    printf("sum %" PRId64 " lookups %" PRIu64 " hits %" PRIu64 " (%.1f%%) reads %" PRIu64 "\n", sum,
           top->lookups, top->hits, 100.0 * (double)top->hits / (double)top->lookups,
           stats.demand_reads);
    tier_close(tier);
    tier_store_close(store);
    return 0;
}
