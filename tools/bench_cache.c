/* tier-bench cache: what a lookup costs that finds its expert in memory, through the whole of
 * tier_acquire: decision, lease, counters.
 *
 * The experts are 128-byte matrices of a model made for the purpose in a temporary folder, so that
 * tables and slots have the number they would have and nothing else takes time. Each layer is asked
 * for experts that are resident, another set each time; layers go round as in a forward pass, so
 * the tables of a layer have left the inner caches when its turn comes again.
 */
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/le.h"
#include "base/rng.h"
#include "tiering/tiering.h"
#include "tools/bench.h"

enum { SIDE = 8, MATRIX_BYTES = SIDE * SIDE * 2, SETS = 4 };

static struct {
    bool json;
    const char *dir, *policy;
    uint64_t layers, experts, top_k, rounds;
} flags = { .dir = ".", .policy = "lru", .layers = 58, .experts = 256, .top_k = 8, .rounds = 2000 };

struct result {
    double median_ns, p99_ns, mean_ns;  /* of one lookup */
    double release_ns;
    uint64_t lookups, allocated_bytes;
};

/* -- the model -------------------------------------------------------------------------------- */

static int write_model(const char *path, struct base_err *err)
{
    static const char *const names[] = { "gate_proj", "up_proj", "down_proj" };
    struct base_buf header;
    uint64_t at = 0;
    int rc = 0;
    base_buf_init(&header);
    base_buf_puts(&header, "{");
    for (uint64_t i = 0; i < flags.layers * flags.experts * 3; i++) {
        base_buf_printf(&header, "%s\"model.layers.%" PRIu64 ".mlp.experts.%" PRIu64 ".%s.weight\":"
                        "{\"dtype\":\"BF16\",\"shape\":[%d,%d],\"data_offsets\":[%" PRIu64
                        ",%" PRIu64 "]}", i ? "," : "", i / 3 / flags.experts,
                        i / 3 % flags.experts, names[i % 3], SIDE, SIDE, at, at + MATRIX_BYTES);
        at += MATRIX_BYTES;
    }
    base_buf_puts(&header, "}");
    while (header.size % 8) base_buf_puts(&header, " ");
    FILE *file = base_buf_error(&header) == 0 ? fopen(path, "wbe") : NULL;
    char size[8], matrix[MATRIX_BYTES] = { 0 };
    base_le_store64(size, header.size);
    if (file) {
        fwrite(size, 1, sizeof size, file);
        fwrite(header.data, 1, header.size, file);
        for (uint64_t i = 0; i < at / MATRIX_BYTES; i++) {
            base_le_store64(matrix, i);
            fwrite(matrix, 1, sizeof matrix, file);
        }
    }
    if (!file || ferror(file)) rc = -EIO;
    if (file && fclose(file) != 0) rc = -EIO;
    base_buf_fini(&header);
    return rc < 0 ? base_err_set(err, rc, "%s: cannot be written", path) : 0;
}

static int make_store(const char *folder, struct tier_store **store, struct base_err *err)
{
    char path[4300];
    struct model_shape shape = {
        .layers = (uint32_t)flags.layers, .experts = (uint32_t)flags.experts,
        .top_k = (uint32_t)flags.top_k, .moe_layer_freq = 1, .hidden = SIDE, .expert_width = SIDE,
    };
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    int rc = write_model(path, err);
    if (rc == 0) rc = tier_store_index(folder, NULL, &shape, 1, NULL, err);
    return rc == 0 ? tier_store_open(store, folder, NULL, &shape, err) : rc;
}

static void remove_model(const char *folder)
{
    static const char *const names[] = { "model.safetensors", "expertier.index" };
    char path[4300];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

/* -- the measurement -------------------------------------------------------------------------- */

static int open_tiers(struct tier **tier, struct tier_store *store, struct base_err *err)
{
    static struct tier_config config;
    static struct tier_io_config io;
    char pair[128];
    struct base_option_group groups[] = {
        { "tiers", tier_options, tier_option_count, &config },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &config },
        { "io", tier_io_options, tier_io_option_count, &io },
    };
    base_option_defaults(groups, sizeof groups / sizeof groups[0]);
    snprintf(pair, sizeof pair, "policy.eviction=%s", flags.policy);
    int rc = base_option_set_pair(groups, sizeof groups / sizeof groups[0], pair, err);
    if (rc < 0) return rc;
    struct tier_open_args args = {
        .config = &config, .io = &io, .store = store, .top_k = (uint32_t)flags.top_k,
    };
    return tier_open(tier, &args, err);
}

/* SETS sets of top_k experts each, spread over the layer; at 25% they fit side by side if a layer
 * has 16 x top_k experts. */
static void fill_ids(uint32_t *ids, uint32_t layer, uint32_t set)
{
    uint32_t experts = (uint32_t)flags.experts, top_k = (uint32_t)flags.top_k;
    for (uint32_t i = 0; i < top_k; i++) {
        ids[i] = ((i * SETS + set) * (experts / (SETS * top_k)) + layer) % experts;
    }
}

static int compare_times(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static int measure(struct tier *tier, struct result *result, struct base_err *err)
{
    uint32_t layers = (uint32_t)flags.layers, top_k = (uint32_t)flags.top_k;
    uint64_t count = flags.rounds * layers, n = 0, release_ns = 0, sum = 0;
    uint32_t *times = calloc(count, sizeof *times), *ids = calloc(top_k, sizeof *ids);
    struct tier_lease *leases = calloc(top_k, sizeof *leases);
    int rc = times && ids && leases ? 0 : base_err_set(err, -ENOMEM, "out of memory");
    uint64_t before = 0;
    for (uint64_t round = 0; rc == 0 && round < flags.rounds + SETS; round++) {
        bool warm = round >= SETS;
        if (round == SETS) before = mallinfo2().uordblks;
        for (uint32_t l = 0; rc == 0 && l < layers; l++) {
            fill_ids(ids, l, (uint32_t)(round % SETS));
            uint64_t begin = base_now_ns();
            uint32_t k = tier_acquire(tier, l, ids, top_k, TIER_DECODE, leases);
            uint64_t middle = base_now_ns();
            if (!warm) tier_wait(tier, leases, k, TIER_WAIT_ALL, UINT64_MAX);
            uint64_t release = base_now_ns();
            tier_release(tier, leases, k);
            for (uint32_t i = 0; warm && i < k; i++) {
                if (leases[i].status == 0) continue;
                rc = base_err_set(err, BASE_EMISMATCH,
                                  "expert %u of layer %u was not resident: the "
                                  "layer has too few slots for this benchmark",
                                  ids[i], l);
            }
            if (!warm) continue;
            release_ns += base_now_ns() - release;
            sum += middle - begin;
            times[n++] = (uint32_t)(middle - begin);
        }
    }
    if (rc == 0) {
        qsort(times, n, sizeof *times, compare_times);
        *result = (struct result){
            .median_ns = (double)times[n / 2] / top_k,
            .p99_ns = (double)times[n * 99 / 100] / top_k,
            .mean_ns = (double)sum / (double)(n * top_k),
            .release_ns = (double)release_ns / (double)(n * top_k),
            .lookups = n * top_k,
            .allocated_bytes = mallinfo2().uordblks - before,
        };
    }
    free(times);
    free(ids);
    free(leases);
    return rc;
}

static void report(const struct result *r)
{
    if (flags.json) {
        printf("{\"layers\":%" PRIu64 ",\"experts\":%" PRIu64 ",\"top_k\":%" PRIu64
               ",\"policy\":\"%s\",\"lookups\":%" PRIu64 ",\"lookup_ns\":{\"median\":%.1f,"
               "\"p99\":%.1f,\"mean\":%.1f},\"release_ns\":%.1f,\"allocated_bytes\":%" PRIu64 "}\n",
               flags.layers, flags.experts, flags.top_k, flags.policy, r->lookups, r->median_ns,
               r->p99_ns, r->mean_ns, r->release_ns, r->allocated_bytes);
        return;
    }
    printf("%" PRIu64 " layers of %" PRIu64 " experts, top-%" PRIu64 ", policy %s\n", flags.layers,
           flags.experts, flags.top_k, flags.policy);
    printf("a lookup that hits: median %.1f ns, p99 %.1f ns, mean %.1f ns; its release %.1f ns\n",
           r->median_ns, r->p99_ns, r->mean_ns, r->release_ns);
    printf("%" PRIu64 " lookups, %" PRIu64 " bytes allocated meanwhile\n", r->lookups,
           r->allocated_bytes);
}

static int run(int count, char **arguments)
{
    char folder[4200];
    struct base_err err = { 0 };
    struct tier_store *store = NULL;
    struct tier *tier = NULL;
    struct result result;
    (void)count, (void)arguments;
    if (flags.layers < 1 || flags.top_k < 1 || flags.rounds < 1 ||
        flags.experts < SETS * SETS * flags.top_k || flags.layers * flags.experts > 2000000) {
        return cli_misuse("a layer should have at least %d x top-k experts, the model at most 2 "
                          "million", SETS * SETS);
    }
    snprintf(folder, sizeof folder, "%s/tier-bench-cache-XXXXXX", flags.dir);
    if (!mkdtemp(folder)) {
        base_err_set(&err, -errno, "%s: no temporary folder can be made there: %s", flags.dir,
                     strerror(errno));
        return cli_fail(1, &err);
    }
    int rc = make_store(folder, &store, &err);
    if (rc == 0) rc = open_tiers(&tier, store, &err);
    if (rc == 0) rc = measure(tier, &result, &err);
    if (rc == 0) report(&result);
    tier_close(tier);
    tier_store_close(store);
    remove_model(folder);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag cache_flags[] = {
    { "layers", CLI_UINT, &flags.layers, "N", "layers with experts (58)" },
    { "experts", CLI_UINT, &flags.experts, "N", "experts of a layer (256)" },
    { "top-k", CLI_UINT, &flags.top_k, "N", "experts of one acquire (8)" },
    { "policy", CLI_TEXT, &flags.policy, "NAME", "policy.eviction to use (lru)" },
    { "rounds", CLI_UINT, &flags.rounds, "N", "passes over all layers (2000)" },
    { "dir", CLI_TEXT, &flags.dir, "DIR", "where the test model is made (the current folder)" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the result as JSON" },
    { 0 },
};

const struct cli_command bench_cache_command = {
    .name = "cache",
    .arguments = "",
    .text = "what a lookup costs that finds its expert in memory",
    .details = "Makes a model of many tiny experts, warms a quarter of them, and measures acquire "
               "and release\n"
               "on the hit path. Times are per lookup; those of an acquire are divided by top-k, "
               "clock included.",
    .flags = cache_flags,
    .run = run,
};
