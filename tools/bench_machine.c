/* tier-bench machine: what this machine and this model are on the virtual clock of tier-replay.
 *
 * Compute is measured on the engine itself, with every expert in memory, at several batch sizes: a
 * layer is the time from the release of one layer's experts to the acquire of the next, its experts
 * the time from acquire to release, the rest what a step takes beside them. Straight lines are laid
 * through the means. The disk is read as the tiers read it, whole experts at random places: one
 * at a time, and as many as io.depth allows.
 *
 * A disk is often shared, and what others do to it for a while is not it: rates are medians
 * of windows, and while more than one of them is far off all are measured again. So is compute by
 * rounds.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/must.h"
#include "base/out.h"
#include "base/rng.h"
#include "device/device.h"
#include "predictor/machine.h"
#include "tiering/cache.h"
#include "tools/bench.h"
#include "tools/bench_stack.h"
#include "tools/bench_steady.h"

enum { BATCHES = 4, STEPS_MAX = 4096, LONE_READS = 64, COPIES = 32, WINDOWS = 5, TRIES = 4 };
static const uint64_t window_ns = 400000000;

static struct bench_flags flags = { .model = "models/pebble", .rounds = 3, .seed = 1 };
static const char *output = "-";
static uint64_t tokens = 48;

/* -- compute ---------------------------------------------------------------------------------- */

/* Means of one batch size, in ns: the clock adds them up to a rate, so what now and then takes
 * long belongs to them. */
struct point {
    uint32_t batch;
    double layer, experts, distinct, step;
};

struct probe {
    struct bench_stack *bench;
    uint64_t acquired_ns, released_ns, counted; /* counted: full steps seen so far */
    double layer_ns, experts_ns, distinct;      /* of the running step */
    uint32_t layers, groups;
    double layer[STEPS_MAX], experts[STEPS_MAX], distinct_mean[STEPS_MAX];
    uint32_t steps;
};

/* A step that generated for the whole batch and did nothing else is kept. */
static void step_keep(struct probe *p)
{
    if (p->bench->steps > p->counted && p->layers > 0 && p->steps < STEPS_MAX) {
        p->layer[p->steps] = p->layer_ns / p->layers;
        p->experts[p->steps] = p->experts_ns / p->groups;
        p->distinct_mean[p->steps++] = p->distinct / p->groups;
    }
    p->counted = p->bench->steps;
    p->layer_ns = p->experts_ns = p->distinct = 0;
    p->layers = p->groups = 0;
}

static void on_event(void *context, const struct tier_event *event)
{
    struct probe *p = context;
    uint64_t now = base_now_ns();
    if (event->kind == TIER_EVENT_RELEASE) {
        p->experts_ns += (double)(now - p->acquired_ns);
        p->groups++;
        p->released_ns = now;
    } else if (event->kind == TIER_EVENT_ACQUIRE) {
        if (event->layer == 0) {
            step_keep(p);
        } else {
            p->layer_ns += (double)(now - p->released_ns);
            p->layers++;
        }
        p->distinct += event->granted;
        p->acquired_ns = now;
    }
}

/* Medians of the rounds' means. */
static int measure_batch(struct bench_stack *b, struct probe *p, struct point *point,
                         struct base_err *err)
{
    double layer[BENCH_ROUNDS_MAX], experts[BENCH_ROUNDS_MAX], distinct[BENCH_ROUNDS_MAX],
        step[BENCH_ROUNDS_MAX];
    uint32_t layers = tier_store_layers(b->stack.store);
    b->batch = point->batch;
    for (uint64_t round = 0; round < flags.rounds; round++) {
        bench_reset(b);
        p->counted = 0;
        p->steps = 0;
        int rc = bench_generate(b, point->batch, 16, (uint32_t)tokens + 1,
                                flags.seed + round * 100 + point->batch, err);
        if (rc < 0) return rc;
        if (p->steps == 0) {
            return base_err_set(err, BASE_ECONFIG,
                                "no step generated for %u sequences at once: --tokens or "
                                "scheduler.max_num_seqs is too small for that",
                                point->batch);
        }
        layer[round] = experts[round] = distinct[round] = 0;
        for (uint32_t i = 0; i < p->steps; i++) {
            layer[round] += p->layer[i] / p->steps;
            experts[round] += p->experts[i] / p->steps;
            distinct[round] += p->distinct_mean[i] / p->steps;
        }
        step[round] = (double)b->step_ns / (double)b->steps -
                      layers * (layer[round] + experts[round]);
    }
    bench_steady_median(layer, flags.rounds, &point->layer);
    bench_steady_median(experts, flags.rounds, &point->experts);
    bench_steady_median(distinct, flags.rounds, &point->distinct);
    bench_steady_median(step, flags.rounds, &point->step);
    if (point->step < 0) point->step = 0;
    return 0;
}

/* Least squares of y over up to three columns; columns whose weight would be negative are left out,
 * the last one first. */
static void fit(const double (*x)[3], const double *y, int n, int columns, double *weights)
{
    bool used[3] = { columns > 0, columns > 1, columns > 2 };
    for (;;) {
        double a[3][4] = { { 0 } };
        int at[3], m = 0;
        for (int c = 0; c < 3; c++) {
            weights[c] = 0;
            if (used[c]) at[m++] = c;
        }
        for (int i = 0; i < n; i++) {
            for (int r = 0; r < m; r++) {
                for (int c = 0; c < m; c++)
                    a[r][c] += x[i][at[r]] * x[i][at[c]];
                a[r][m] += x[i][at[r]] * y[i];
            }
        }
        for (int r = 0; r < m; r++) {
            if (a[r][r] == 0) continue;
            for (int o = 0; o < m; o++) {
                if (o == r) continue;
                double f = a[o][r] / a[r][r];
                for (int c = r; c <= m; c++)
                    a[o][c] -= f * a[r][c];
            }
        }
        int worst = -1;
        for (int r = 0; r < m; r++) {
            weights[at[r]] = a[r][r] != 0 ? a[r][m] / a[r][r] : 0;
            if (weights[at[r]] < 0) worst = at[r];
        }
        if (worst < 0) return;
        used[worst] = false;
    }
}

static uint64_t whole(double ns)
{
    return ns > 0 ? (uint64_t)(ns + 0.5) : 0;
}

static void lines_lay(struct pred_machine *m, const struct point *points, int n, uint32_t top_k)
{
    double x[BATCHES][3], y[BATCHES], w[3];
    for (int i = 0; i < n; i++) {
        x[i][0] = 1;
        x[i][1] = points[i].batch;
        y[i] = points[i].layer;
    }
    fit((const double(*)[3])x, y, n, 2, w);
    m->layer_time = whole(w[0]);
    m->layer_token_time = whole(w[1]);
    for (int i = 0; i < n; i++)
        y[i] = points[i].step;
    fit((const double(*)[3])x, y, n, 2, w);
    m->step_time = whole(w[0]);
    m->step_token_time = whole(w[1]);
    for (int i = 0; i < n; i++) {
        x[i][0] = points[i].distinct;
        x[i][1] = 1;
        x[i][2] = points[i].batch * top_k;
        y[i] = points[i].experts;
    }
    fit((const double(*)[3])x, y, n, n > 2 ? 3 : n, w);
    m->expert_time = whole(w[0]);
    m->shared_time = whole(w[1]);
    m->expert_token_time = whole(w[2]);
}

static int measure_compute(struct bench_stack *b, struct probe *p, struct pred_machine *m,
                           struct base_err *err)
{
    struct point points[BATCHES];
    int n = 0, rc = bench_warm(b, err);
    uint64_t most = b->stack.config.engine.max_num_seqs;
    for (uint32_t batch = 1; rc == 0 && n < BATCHES && batch <= most; batch *= 2) {
        points[n] = (struct point){ .batch = batch };
        rc = measure_batch(b, p, &points[n++], err);
    }
    if (rc == 0) lines_lay(m, points, n, b->stack.shape.top_k);
    /* A card was refused: whatever the device, the CPU computed. */
    m->cpu_expert_time = m->expert_time;
    m->cpu_expert_token_time = m->expert_token_time;
    return rc;
}

/* -- disk ------------------------------------------------------------------------------------- */

struct disk {
    struct bench_stack *bench;
    struct tier_io *io;
    struct base_rng rng;
    char *memory; /* a slot for each of `parallel` experts */
    struct tier_io_req (*reqs)[TIER_PARTS];
    uint32_t *left; /* requests of each that are not back */
    uint32_t parallel, first;
    uint64_t bytes, experts, reads;
    double slowest, fastest;            /* window, bytes a second */
    double check_ns, land_ns, copy_ns;  /* of an expert; 0: not done here */
    int error;
};

static void disk_send(struct disk *d, uint32_t place)
{
    const struct tier_store *store = d->bench->stack.store;
    struct tier_record record;
    struct tier_io_req *list[TIER_PARTS];
    tier_store_record(store, (uint32_t)base_rng_below(&d->rng, tier_store_layers(store)),
                      (uint32_t)base_rng_below(&d->rng, tier_store_experts(store)), &record);
    for (uint32_t i = 0; i < record.extent_count; i++) {
        struct tier_extent_read read = tier_extent_read(&record.extents[i]);
        d->reqs[place][i] = (struct tier_io_req){
            .file = d->first + record.extents[i].file,
            .offset = read.offset,
            .to = d->memory + place * tier_store_slot_bytes(store) + record.extents[i].slot_offset,
            .bytes = read.bytes,
            .owner = &d->left[place],
        };
        list[i] = &d->reqs[place][i];
        d->bytes += read.bytes;
    }
    d->reads += record.extent_count;
    d->experts++;
    d->left[place] = record.extent_count;
    MUST(tier_io_submit(d->io, list, record.extent_count) == (int)record.extent_count);
}

/* Waits for requests; returns a place whose expert is whole, or UINT32_MAX. */
static uint32_t disk_take(struct disk *d)
{
    struct tier_io_req *done[1];
    if (tier_io_reap(d->io, done, 1, 1, UINT64_MAX) < 1) return UINT32_MAX;
    if (done[0]->result < 0) d->error = (int)done[0]->result;
    uint32_t *left = done[0]->owner;
    return --*left == 0 ? (uint32_t)(left - d->left) : UINT32_MAX;
}

static double disk_lone(struct disk *d)
{
    double ns[LONE_READS];
    for (int i = 0; i < LONE_READS; i++) {
        uint64_t begin = base_now_ns();
        disk_send(d, 0);
        while (disk_take(d) != 0) {
        }
        ns[i] = (double)(base_now_ns() - begin);
    }
    return bench_steady_mean(ns, LONE_READS);
}

/* All places busy for a window; bytes a second. */
static double disk_full(struct disk *d)
{
    uint64_t begin = base_now_ns(), now = begin;
    d->bytes = d->experts = d->reads = 0;
    for (uint32_t i = 0; i < d->parallel; i++)
        disk_send(d, i);
    uint32_t open = d->parallel;
    while (open > 0) {
        uint32_t place = disk_take(d);
        if (place == UINT32_MAX) continue;
        now = base_now_ns();
        if (now - begin < window_ns && d->error == 0)
            disk_send(d, place);
        else
            open--;
    }
    return (double)d->bytes * 1e9 / (double)(now - begin);
}

/* The median of windows that agree; without, says so and takes it all the same. */
static double disk_rate(struct disk *d)
{
    double windows[WINDOWS], rate = 0;
    for (int try = 1; try <= TRIES; try++) {
        for (int w = 0; w < WINDOWS; w++) windows[w] = disk_full(d);
        size_t off = bench_steady_median(windows, WINDOWS, &rate);
        if (off <= 1 || d->error < 0) break;
        fprintf(stderr, "the disk gave %.1f to %.1f MB/s, %zu of %d windows far from the median: "
                "%s\n", windows[0] / 1e6, windows[WINDOWS - 1] / 1e6, off, WINDOWS,
                try < TRIES ? "measured again"
                            : "something else is using it, do not rely on nvme.bandwidth");
    }
    d->slowest = windows[0];
    d->fastest = windows[WINDOWS - 1];
    return rate;
}

/* What the engine thread does with an expert that was read, as the tiers do it: XXH3 over bytes
 * that are in no cache of the processor, then, for some types, another order of its weights. And a
 * copy of it, for what memory gives. */
static double take_in(struct disk *d)
{
    const struct eng_stack *stack = &d->bench->stack;
    const struct tier_landing landing = eng_landing_hook(&d->bench->stack.landing);
    uint64_t slot_bytes = tier_store_slot_bytes(stack->store);
    double check[LONE_READS], land[LONE_READS], copy[LONE_READS], spread;
    struct tier_record record;
    tier_store_record(stack->store, 0, 0, &record);
    for (uint32_t i = 0; i < LONE_READS; i++) {
        char *slot = d->memory + i % d->parallel * slot_bytes;
        char *other = d->memory + (i + d->parallel / 2) % d->parallel * slot_bytes;
        void *parts[TIER_PARTS];
        for (int p = 0; p < TIER_PARTS; p++) {
            parts[p] = record.part_bytes[p] ? slot + record.part_offset[p] : NULL;
        }
        uint64_t begin = base_now_ns();
        /* Some expert's bytes, by now in tiles. */
        (void)tier_landing_check(&landing, &record, slot, NULL, NULL);
        uint64_t checked = base_now_ns();
        if (landing.land) landing.land(landing.context, 0, 0, parts);
        uint64_t landed = base_now_ns();
        if (other != slot) memcpy(other, slot, record.bytes);
        copy[i] = (double)(base_now_ns() - landed);
        check[i] = (double)(checked - begin);
        land[i] = (double)(landed - checked);
    }
    d->check_ns = bench_median(check, LONE_READS, &spread);
    d->land_ns = landing.land ? bench_median(land, LONE_READS, &spread) : 0;
    d->copy_ns = d->parallel > 1 ? bench_median(copy, LONE_READS, &spread) : 0;
    return d->check_ns + d->land_ns;
}

static int disk_open(struct disk *d, struct base_err *err)
{
    const struct tier_store *store = d->bench->stack.store;
    int rc = tier_io_create(&d->io, &d->bench->stack.config.io, base_clock_real(), err);
    if (rc < 0) return rc;
    for (uint32_t f = 0; f < tier_store_files(store); f++) {
        int handle = tier_io_file_add(d->io, tier_store_file_path(store, f), err);
        if (handle < 0) return handle;
        if (f == 0) d->first = (uint32_t)handle;
    }
    struct tier_record record;
    uint32_t experts = tier_store_experts(store), most = 1;
    for (uint32_t e = 0; e < tier_store_layers(store) * experts; e++) {
        tier_store_record(store, e / experts, e % experts, &record);
        if (record.extent_count > most) most = record.extent_count;
    }
    if (d->io->depth < most) {
        return base_err_set(err, BASE_ECONFIG,
                            "io.depth: %u is less than the %u reads of one "
                            "expert",
                            d->io->depth, most);
    }
    d->parallel = d->io->depth / most;
    size_t bytes = d->parallel * tier_store_slot_bytes(store);
    d->memory = aligned_alloc(4096, bytes);
    d->reqs = calloc(d->parallel, sizeof *d->reqs);
    d->left = calloc(d->parallel, sizeof *d->left);
    if (!d->memory || !d->reqs || !d->left) {
        return base_err_set(err, -ENOMEM, "no memory to read %u experts at once", d->parallel);
    }
    memset(d->memory, 0, bytes);
    base_rng_init(&d->rng, flags.seed);
    return 0;
}

/* What of `d` is memory is given back. */
static int measure_disk(struct bench_stack *b, struct pred_machine *m, struct disk *out,
                        struct base_err *err)
{
    struct disk d = { .bench = b };
    int rc = disk_open(&d, err);
    if (rc >= 0) {
        double lone = disk_lone(&d), rate = disk_rate(&d);
        m->read_bytes = d.bytes / d.experts;
        m->expert_reads = (d.reads + d.experts / 2) / d.experts;
        m->nvme_bandwidth = (uint64_t)rate;
        m->nvme_latency = whole(lone - (double)m->read_bytes * 1e9 / rate);
        m->nvme_depth = d.io->depth;
        m->nvme_take_in = whole(take_in(&d));
        *out = d;
        if (d.error < 0) rc = base_err_set(err, d.error, "the model's files could not be read");
    }
    tier_io_destroy(d.io);
    free(d.memory);
    free(d.reqs);
    free(d.left);
    return rc;
}

/* -- copies ----------------------------------------------------------------------------------- */

/* An expert at a time, up, on the device that the configuration names. */
static int measure_copies(struct bench_stack *b, struct pred_machine *m, struct base_err *err)
{
    const struct tier_config *config = &b->stack.config.tier;
    uint64_t bytes = tier_store_expert_bytes(b->stack.store), size = (bytes + 4095) / 4096 * 4096;
    struct dev_config device = { .memory_bytes = size, .bandwidth = config->hbm_bandwidth };
    struct dev *dev;
    double ns[COPIES], spread;
    void *to, *from = aligned_alloc(4096, size);
    if (!from) return base_err_set(err, -ENOMEM, "no memory to copy an expert from");
    memset(from, 1, size);
    int rc = dev_create(&dev, dev_find(config->hbm_device == 0 ? "sim" : "host"), &device,
                        base_clock_real(), err);
    if (rc == 0) rc = dev_memory_alloc(dev, size, &to, err);
    for (int i = 0; rc == 0 && i < COPIES; i++) {
        struct dev_copy copy = { .queue = DEV_UP,
                                 .piece_count = 1,
                                 .pieces = { { .to = to, .from = from, .bytes = bytes } } };
        struct dev_copy *done[1];
        uint64_t begin = base_now_ns();
        dev_submit(dev, &copy);
        if (dev_reap(dev, done, 1, 1, UINT64_MAX) != 1) rc = BASE_EDEVICE;
        ns[i] = (double)(base_now_ns() - begin);
    }
    if (rc == 0) {
        m->copy_bandwidth = (uint64_t)((double)bytes * 1e9 / bench_median(ns, COPIES, &spread));
        m->copy_latency = 0; /* it is in the rate */
    }
    dev_destroy(dev);
    free(from);
    return rc;
}

/* -- the file --------------------------------------------------------------------------------- */

/* Bytes a nanosecond are GB/s. */
static void take_in_write(FILE *to, const struct pred_machine *m, const struct disk *d)
{
    double bytes = (double)m->expert_bytes;
    fprintf(to, "# An expert of %.2f MB is taken in at %.2f GB/s of XXH3", bytes / 1e6,
            bytes / d->check_ns);
    if (d->land_ns > 0) fprintf(to, " and %.2f GB/s of rearranging", bytes / d->land_ns);
    if (d->copy_ns > 0) fprintf(to, "; memcpy has %.2f", bytes / d->copy_ns);
    fprintf(to, ".\n");
}

static int machine_write(const struct bench_stack *b, struct pred_machine *m, const struct disk *d,
                         struct base_err *err)
{
    struct base_option_group group = { "machine", pred_machine_options, pred_machine_option_count,
                                       m };
    struct base_out out;
    double memory_rate = bench_memory_rate(b->threads);
    int rc = base_out_begin(&out, output, err);
    if (rc == 0) rc = base_out_open(&out, err);
    if (rc < 0) return rc;
    FILE *to = out.file;
    fputs("# Measured by tier-bench machine", to);
    if (memory_rate > 0) {
        fprintf(to, "; memory reads %.1f GB/s on %u threads", memory_rate / 1e9, b->threads);
    }
    fputs(".\n", to);
    fprintf(to, "# Reads: median of %d windows of %.1f to %.1f MB/s.\n", WINDOWS,
            d->slowest / 1e6, d->fastest / 1e6);
    take_in_write(to, m, d);
    base_option_print_yaml(to, &group, 1, true);
    return base_out_end(&out, 0, err);
}

/* Before the measuring: could the description be written, and is it not the YAML that is read? */
static int check_output(struct base_err *err)
{
    struct base_out out;
    int rc = base_out_begin(&out, output, err);
    return rc == 0 && flags.config ? base_out_spares(&out, flags.config, err) : rc;
}

static int run(int count, char **arguments)
{
    static struct bench_stack bench;
    static struct probe probe;
    struct disk disk = { 0 };
    struct pred_machine machine;
    struct base_err err = { 0 };
    (void)count;
    (void)arguments;
    if (flags.rounds < 1 || flags.rounds > BENCH_ROUNDS_MAX) {
        return cli_misuse("--rounds: 1 to %d", BENCH_ROUNDS_MAX);
    }
    if (tokens < 2 || tokens > 100000) return cli_misuse("--tokens: 2 to 100000");
    probe.bench = &bench;
    flags.observer = (struct tier_observer){ on_event, &probe };
    int rc = check_output(&err);
    if (rc == 0) rc = pred_machine_load(&machine, NULL, &err);
    if (rc == 0) rc = bench_open(&bench, &flags, &err);
    if (rc == 0 && bench.stack.device) {
        rc = base_err_set(&err, BASE_ECONFIG, "tiers.hbm.device: what a card computes and is sent "
                          "is not measured here: describe it by hand, as configs/machines does, "
                          "and measure the disk with tiers.hbm.capacity=0 and the device sim");
    }
    if (rc == 0) {
        snprintf(machine.name, sizeof machine.name, "this machine with %s, %u threads",
                 bench.stack.shape.name, bench.threads);
        machine.expert_bytes = tier_store_expert_bytes(bench.stack.store);
        rc = measure_compute(&bench, &probe, &machine, &err);
    }
    if (rc == 0) rc = measure_disk(&bench, &machine, &disk, &err);
    if (rc == 0 && strcmp(bench.stack.config.tier.hbm_capacity, "0") != 0) {
        rc = measure_copies(&bench, &machine, &err);
    }
    if (rc == 0) rc = machine_write(&bench, &machine, &disk, &err);
    bench_close(&bench);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag machine_flags[] = {
    { "output|o", CLI_TEXT, &output, "FILE", "the description to write (standard output)" },
    { "model", CLI_TEXT, &flags.model, "DIR", "the model (models/pebble)" },
    { "tokens", CLI_UINT, &tokens, "N", "tokens generated in a round (48)" },
    { "rounds", CLI_UINT, &flags.rounds, "N", "rounds of each batch size (3)" },
    { "seed", CLI_UINT, &flags.seed, "N", "seed of prompts, sampling and reads (1)" },
    { "config", CLI_TEXT, &flags.config, "FILE", "YAML settings; see tier-server --options" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE",
      "one setting, over the file's; may be repeated" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "show no progress" },
    { 0 },
};

const struct cli_command bench_machine_command = {
    .name = "machine",
    .arguments = "",
    .text = "describe this machine for tier-replay run --machine",
    .details = "Measures compute by layer and batch with every expert in memory, reads of whole "
               "experts from the\n"
               "model's files through the configured IO (io.throttle_* included), and copies where "
               "tiers.hbm.capacity\n"
               "is set. The YAML it writes is what tier-replay's virtual clock reads. Cards are\n"
               "not measured.",
    .flags = machine_flags,
    .run = run,
};
