/* tier-bench cache: what a lookup costs that finds its expert in memory, through the whole of
 * tier_acquire: decision, lease, counters; what an expert takes in the tables; how fast all opens.
 *
 * The experts are tiny, all the same bytes of one file, so that tables and slots have the number
 * they would have and nothing else takes time. A quarter of each layer is resident. Each acquire
 * asks for top-k of those, drawn anew: evenly, so that nothing helps the processor's caches, or
 * skewed, the r-th most popular with weight 1/r, as routers do. Layers go round as in a forward
 * pass, so the tables of a layer have left the inner caches when its turn comes again.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/le.h"
#include "base/rng.h"
#include "tiering/slots.h"
#include "tiering/tiering.h"
#include "tools/bench.h"

enum { SIDE = 8, MATRIX_BYTES = SIDE * SIDE * 2, OPENS = 3 };
enum { DRAW_EVEN, DRAW_SKEWED };

static struct {
    bool json, start;
    const char *dir, *policy, *draw;
    uint64_t layers, experts, top_k, lookups, sweep;
} flags = { .dir = ".", .policy = "lru", .draw = "even", .layers = 58, .experts = 256, .top_k = 8,
            .lookups = 1000000 };
static int draw_kind;
static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

struct result {
    double median_ns, p99_ns, mean_ns;  /* of one lookup */
    double release_ns;
    double bytes_per_expert;            /* of all tables but the slots' */
    double start_ms;                    /* store and tiers, with a ready index; 0 = not asked */
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

/* What the heap holds, large blocks included. */
static uint64_t heap_bytes(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

/* Every expert at the same place of a file of zeros. */
static int make_store(const char *folder, struct tier_store **store, struct base_err *err)
{
    char path[4300], zeros[3 * MATRIX_BYTES] = { 0 };
    const char *paths[] = { path };
    uint64_t count = flags.layers * flags.experts;
    struct tier_lib_table table = {
        .name = folder, .layers = (uint32_t)flags.layers, .experts = (uint32_t)flags.experts,
        .file_count = 1, .files = paths, .at = calloc(count, sizeof *table.at),
    };
    struct tier_lib_table one = table;
    snprintf(path, sizeof path, "%s/zeros", folder);
    FILE *file = fopen(path, "wbe");
    if (!file || fwrite(zeros, 1, sizeof zeros, file) != sizeof zeros || fclose(file) != 0) {
        free(table.at);
        return base_err_set(err, -EIO, "%s: cannot be written", path);
    }
    int rc = table.at ? 0 : base_err_set(err, -ENOMEM, "out of memory");
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        for (int p = 0; p < TIER_PARTS; p += 2) {
            table.at[i].parts[p].offset = (uint64_t)p / 2 * MATRIX_BYTES;
            table.at[i].parts[p].bytes = MATRIX_BYTES;
        }
    }
    one.layers = one.experts = 1;       /* they are all alike */
    if (rc == 0) rc = tier_lib_table_hash(&one, 1, err->text, sizeof err->text);
    for (uint64_t i = 1; rc == 0 && i < count; i++) table.at[i].hash = table.at[0].hash;
    if (rc == 0) rc = tier_lib_table_open(store, &table, err->text, sizeof err->text);
    free(table.at);
    return rc;
}

static void remove_model(const char *folder)
{
    static const char *const names[] = { "model.safetensors", "expertier.index", "zeros" };
    char path[4300];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

/* -- the measurement -------------------------------------------------------------------------- */

static int open_tiers(struct tier **tier, struct tier_store *store, const char *backend,
                      struct base_err *err)
{
    static struct tier_config config;
    static struct tier_io_config io;
    char pairs[3][128];
    struct base_option_group groups[] = {
        { "tiers", tier_options, tier_option_count, &config },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &config },
        { "io", tier_io_options, tier_io_option_count, &io },
    };
    base_option_defaults(groups, sizeof groups / sizeof groups[0]);
    snprintf(pairs[0], sizeof pairs[0], "policy.eviction=%s", flags.policy);
    snprintf(pairs[1], sizeof pairs[1], "io.backend=%s", backend);
    snprintf(pairs[2], sizeof pairs[2], "tiers.dram.pin=off");
    for (int i = 0; i < 3; i++) {
        int rc = base_option_set_pair(groups, sizeof groups / sizeof groups[0], pairs[i], err);
        if (rc < 0) return rc;
    }
    struct tier_open_args args = {
        .config = &config, .io = &io, .store = store, .top_k = (uint32_t)flags.top_k,
    };
    return tier_open(tier, &args, err);
}

/* Resident experts of a layer: what the default capacity gives it, its first ones. */
static uint32_t resident_experts(void)
{
    return (uint32_t)(0.25 * (double)flags.experts + 0.5);
}

/* What compute does to the processor's caches between two acquires: it reads other memory. */
static void sweep_caches(const uint64_t *memory)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < flags.sweep / sizeof *memory; i += 8) sum += memory[i];
    __asm__ volatile("" : : "r"(sum));
}

/* Popular ones are spread over the layer, as a router's are. */
static void draw_ids(uint32_t *ids, uint32_t layer, struct base_rng *rng)
{
    uint32_t resident = resident_experts();
    for (uint32_t i = 0; i < flags.top_k; i++) {
        for (bool again = true; again;) {
            uint64_t at = base_rng_below(rng, resident);
            if (draw_kind == DRAW_SKEWED) {
                uint64_t rank = (uint64_t)(pow((double)resident + 1, base_rng_unit(rng)) - 1);
                at = (rank * 2654435761u + layer * 40503u) % resident;
            }
            ids[i] = (uint32_t)at;
            again = false;
            for (uint32_t j = 0; j < i; j++) again |= ids[j] == ids[i];
        }
    }
}

static int warm(struct tier *tier, uint32_t *ids, struct tier_lease *leases)
{
    uint32_t resident = resident_experts();
    for (uint32_t l = 0; l < flags.layers; l++) {
        for (uint32_t at = 0; at < resident; at += (uint32_t)flags.top_k) {
            uint32_t n = 0;
            for (; n < flags.top_k && at + n < resident; n++) ids[n] = at + n;
            if (tier_acquire(tier, l, ids, n, TIER_DECODE, leases) != n) return -EBUSY;
            tier_wait(tier, leases, n, TIER_WAIT_ALL, UINT64_MAX);
            tier_release(tier, leases, n);
        }
    }
    return 0;
}

static int compare_times(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void summarize(struct result *r, uint32_t *times, uint64_t n, uint64_t release_ns)
{
    uint64_t sum = 0, top_k = flags.top_k;
    qsort(times, n, sizeof *times, compare_times);
    for (uint64_t i = 0; i < n; i++) sum += times[i];
    r->median_ns = (double)times[n / 2] / (double)top_k;
    r->p99_ns = (double)times[n * 99 / 100] / (double)top_k;
    r->mean_ns = (double)sum / (double)(n * top_k);
    r->release_ns = (double)release_ns / (double)(n * top_k);
    r->lookups = n * top_k;
}

static int measure(struct tier *tier, struct result *result, struct base_err *err)
{
    uint32_t top_k = (uint32_t)flags.top_k;
    uint64_t count = flags.lookups / top_k, release_ns = 0;
    uint32_t *times = calloc(count, sizeof *times), *ids = calloc(top_k, sizeof *ids);
    struct tier_lease *leases = calloc(top_k, sizeof *leases);
    uint64_t *other = malloc(flags.sweep + 8);
    struct base_rng rng;
    base_rng_init(&rng, 1);
    if (other) memset(other, 1, flags.sweep);
    int rc = times && ids && leases && other ? warm(tier, ids, leases) : -ENOMEM;
    if (rc < 0) base_err_set(err, rc, "cannot warm the tiers: %s", base_err_name(rc));
    uint64_t before = heap_bytes();
    for (uint64_t n = 0; rc == 0 && n < count; n++) {
        uint32_t layer = (uint32_t)(n % flags.layers);
        draw_ids(ids, layer, &rng);
        sweep_caches(other);
        uint64_t begin = base_now_ns();
        uint32_t k = tier_acquire(tier, layer, ids, top_k, TIER_DECODE, leases);
        uint64_t middle = base_now_ns();
        tier_release(tier, leases, k);
        release_ns += base_now_ns() - middle;
        times[n] = (uint32_t)(middle - begin);
        for (uint32_t i = 0; i < top_k; i++) {
            if (i < k && leases[i].status == 0) continue;
            rc = base_err_set(err, BASE_EMISMATCH, "expert %u of layer %u was not resident", ids[i],
                              layer);
            break;
        }
        if (rc == 0 && interrupted) rc = base_err_set(err, -ECANCELED, "stopped on request");
    }
    result->allocated_bytes = heap_bytes() - before;
    if (rc == 0) summarize(result, times, count, release_ns);
    free(times);
    free(other);
    free(ids);
    free(leases);
    return rc;
}

/* Opens store and tiers of a checkpoint that has its index; the best of several times. */
static int measure_start(const char *folder, struct result *result, struct base_err *err)
{
    char path[4300];
    struct model_shape shape = {
        .layers = (uint32_t)flags.layers, .experts = (uint32_t)flags.experts,
        .top_k = (uint32_t)flags.top_k, .moe_layer_freq = 1, .hidden = SIDE, .expert_width = SIDE,
    };
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    int rc = write_model(path, err);
    if (rc == 0) rc = tier_store_index(folder, NULL, &shape, 1, NULL, err);
    for (int i = 0; rc == 0 && i < OPENS; i++) {
        struct tier_store *store = NULL;
        struct tier *tier = NULL;
        uint64_t begin = base_now_ns();
        rc = tier_store_open(&store, folder, NULL, &shape, err);
        if (rc == 0) rc = open_tiers(&tier, store, "auto", err);
        double ms = (double)(base_now_ns() - begin) * 1e-6;
        if (i == 0 || ms < result->start_ms) result->start_ms = ms;
        tier_close(tier);
        tier_store_close(store);
    }
    return rc;
}

static void report(const struct result *r)
{
    if (flags.json) {
        printf("{\"layers\":%" PRIu64 ",\"experts\":%" PRIu64 ",\"top_k\":%" PRIu64
               ",\"policy\":\"%s\",\"draw\":\"%s\",\"lookups\":%" PRIu64
               ",\"lookup_ns\":{\"median\":%.1f,\"p99\":%.1f,\"mean\":%.1f},\"release_ns\":%.1f,"
               "\"allocated_bytes\":%" PRIu64 ",\"bytes_per_expert\":%.1f,\"start_ms\":%.1f}\n",
               flags.layers, flags.experts, flags.top_k, flags.policy, flags.draw, r->lookups,
               r->median_ns, r->p99_ns, r->mean_ns, r->release_ns, r->allocated_bytes,
               r->bytes_per_expert, r->start_ms);
        return;
    }
    printf("%" PRIu64 " layers of %" PRIu64 " experts, a quarter resident, top-%" PRIu64
           " drawn %s, policy %s\n", flags.layers, flags.experts, flags.top_k,
           draw_kind == DRAW_EVEN ? "evenly" : "skewed", flags.policy);
    printf("a lookup that hits: median %.1f ns, p99 %.1f ns, mean %.1f ns; its release %.1f ns\n",
           r->median_ns, r->p99_ns, r->mean_ns, r->release_ns);
    printf("%" PRIu64 " lookups, %" PRIu64 " bytes allocated meanwhile; tables besides slots: %.1f "
           "bytes an expert\n", r->lookups, r->allocated_bytes, r->bytes_per_expert);
    if (flags.start) printf("opened with a ready index in %.1f ms\n", r->start_ms);
}

static int bench(const char *folder, struct result *result, struct base_err *err)
{
    struct tier_store *store = NULL;
    struct tier *tier = NULL;
    uint64_t before = heap_bytes();
    int rc = make_store(folder, &store, err);
    if (rc == 0) rc = open_tiers(&tier, store, "null", err);
    if (rc == 0) {
        /* The table of slots has places for as many as there are experts: there may be so many
         * one day. What does not grow with the experts is small beside them. */
        uint64_t a_slot = sizeof(struct tier_slot) + sizeof(uint32_t);
        result->bytes_per_expert = (double)(heap_bytes() - before) /
                                   (double)(flags.layers * flags.experts) - (double)a_slot;
        rc = measure(tier, result, err);
    }
    tier_close(tier);
    tier_store_close(store);
    if (rc == 0 && flags.start) rc = measure_start(folder, result, err);
    return rc;
}

static int run(int count, char **arguments)
{
    char folder[4200];
    struct base_err err = { 0 };
    struct result result = { 0 };
    (void)count, (void)arguments;
    draw_kind = strcmp(flags.draw, "skewed") == 0;
    if (!draw_kind && strcmp(flags.draw, "even") != 0) {
        return cli_misuse("--draw %s: it can be even or skewed", flags.draw);
    }
    if (flags.layers < 1 || flags.top_k < 1 || flags.lookups < flags.top_k ||
        flags.experts < 8 * flags.top_k || flags.layers * flags.experts > 2000000) {
        return cli_misuse("a layer should have at least 8 x top-k experts, the model at most 2 "
                          "million, and there should be lookups");
    }
    snprintf(folder, sizeof folder, "%s/tier-bench-cache-XXXXXX", flags.dir);
    if (!mkdtemp(folder)) {
        base_err_set(&err, -errno, "%s: no temporary folder can be made there: %s", flags.dir,
                     strerror(errno));
        return cli_fail(1, &err);
    }
    /* The folder goes away also when the user has enough. */
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    int rc = bench(folder, &result, &err);
    if (rc == 0) report(&result);
    remove_model(folder);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag cache_flags[] = {
    { "layers", CLI_UINT, &flags.layers, "N", "layers with experts (58)" },
    { "experts", CLI_UINT, &flags.experts, "N", "experts of a layer (256)" },
    { "top-k", CLI_UINT, &flags.top_k, "N", "experts of one acquire (8)" },
    { "policy", CLI_TEXT, &flags.policy, "NAME", "policy.eviction to use (lru)" },
    { "draw", CLI_TEXT, &flags.draw, "HOW", "even or skewed (even)" },
    { "lookups", CLI_UINT, &flags.lookups, "N", "how many (1000000)" },
    { "sweep", CLI_BYTES, &flags.sweep, "SIZE",
      "other memory that is read between two acquires, as compute does (0)" },
    { "start", CLI_SWITCH, &flags.start, NULL, "time the opening with a ready index too" },
    { "dir", CLI_TEXT, &flags.dir, "DIR", "where the test model is made (the current folder)" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the result as JSON" },
    { 0 },
};

const struct cli_command bench_cache_command = {
    .name = "cache",
    .arguments = "",
    .text = "what a lookup costs that finds its expert in memory",
    .details = "Makes tables for many tiny experts, warms a quarter of them, and measures acquire "
               "and release\n"
               "on the hit path. Times are per lookup; those of an acquire are divided by top-k, "
               "clock included.",
    .flags = cache_flags,
    .run = run,
};
