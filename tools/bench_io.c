/* tier-bench io: random reads through our backends and through fio, on the same file.
 *
 * Rounds are interleaved and turn the order, so that a disk whose speed drifts does not favour one.
 * fio_fraction of a cell is the median over the rounds of io_uring's rate over fio's in the same
 * round; the one of the whole is the worst cell's. Ours read into huge pages, as the tiers do; fio
 * gets them where the system has set some aside (vm.nr_hugepages), else pages of 4 KiB.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "port/json.h"
#include "tiering/io.h"
#include "tools/bench.h"
#include "tools/bench_io_tier.h"

enum { LIST_MAX = 16, ROUNDS_MAX = 25, PAGE = 4096, HUGE_PAGE = 2 << 20, PAUSE_US = 500000 };

enum way { WAY_URING, WAY_THREADS_ONE, WAY_THREADS_MANY, WAY_FIO, WAY_FIO_ONE, WAY_COUNT };
static const char *const way_names[] = { "io_uring", "threads_1", "threads_n", "fio", "fio_1" };

static struct {
    bool json, quiet, no_fio, tiers;
    const char *file, *dir, *sizes, *depths;
    uint64_t bytes, rounds, time_ns, seed;
} flags = { .dir = ".", .sizes = "512KiB,2MiB", .depths = "1,8,32", .bytes = UINT64_C(2) << 30,
            .rounds = 5, .time_ns = 1000000000, .seed = 1 };

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

struct bench {
    const char *path;
    char temp[4096];            /* set when we made the file */
    uint64_t file_bytes;
    uint64_t sizes[LIST_MAX], depths[LIST_MAX];
    unsigned size_count, depth_count;
    char fio_version[64], fio_skipped[200];
    char notes[WAY_COUNT][200];
    bool fio_huge;              /* fio reads into huge pages */
    uint64_t seed;
    struct tier_store *store;   /* with --tiers: the file's records, of store_size bytes each */
    uint64_t store_size;
};

struct cell {
    uint64_t size, depth;
    double rate[WAY_COUNT][ROUNDS_MAX];         /* bytes/s; 0 = not measured */
    double first_pass[ROUNDS_MAX];              /* of io_uring through the tiers */
    double median[WAY_COUNT], first_pass_median;
    double fio_fraction;        /* 0 = fio did not run */
    double one_reader_ratio;    /* of io_uring to one reader of the threads backend */
    double depth_gain;          /* of fio at this depth to fio at depth 1: the disk's own */
};

static int parse_list(const char *text, bool bytes, uint64_t *list, unsigned *count)
{
    char copy[512], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *item = strtok_r(copy, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        uint64_t value;
        int rc = bytes ? base_str_bytes_parse(item, &value) : base_str_u64_parse(item, &value);
        if (rc < 0 || value == 0 || *count == LIST_MAX) return -EINVAL;
        list[(*count)++] = value;
    }
    return *count > 0 ? 0 : -EINVAL;
}

/* Random bytes, so that nothing below can take a short cut through zeros or holes. */
static int fill_file(int fd, uint64_t bytes, struct base_err *err, const char *path)
{
    enum { CHUNK = 4 << 20 };
    struct cli_progress bar;
    struct base_rng rng;
    uint64_t *chunk = malloc(CHUNK);
    int rc = chunk ? 0 : -ENOMEM;
    base_rng_init(&rng, flags.seed);
    for (size_t i = 0; chunk && i < CHUNK / 8; i++) {
        chunk[i] = base_rng_u64(&rng);
    }
    cli_progress_begin(&bar, "writing the test file", flags.quiet);
    for (uint64_t at = 0; rc == 0 && at < bytes; at += CHUNK) {
        chunk[0] = at;          /* no two pages alike */
        for (size_t i = 0; i < CHUNK / 8; i += PAGE / 8) {
            chunk[i] ^= at + i;
        }
        size_t part = bytes - at < CHUNK ? (size_t)(bytes - at) : CHUNK;
        ssize_t put = pwrite(fd, chunk, part, (off_t)at);
        if (put != (ssize_t)part) rc = put < 0 ? -errno : -ENOSPC;
        if (interrupted) rc = -ECANCELED;
        cli_progress_bytes(&bar, at + part, bytes);
    }
    if (rc == 0 && fsync(fd) < 0) rc = -errno;
    cli_progress_end(&bar);
    free(chunk);
    return rc < 0 ? base_err_set(err, rc, "%s: cannot be written: %s", path, strerror(-rc)) : 0;
}

static int make_file(struct bench *bench, struct base_err *err)
{
    struct statvfs fs;
    char need[16], have[16];
    snprintf(bench->temp, sizeof bench->temp, "%s/tier-bench-XXXXXX", flags.dir);
    if (statvfs(flags.dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < flags.bytes) {
        bench->temp[0] = '\0';
        return base_err_set(err, -ENOSPC, "%s: has %s free, the test file takes %s: see --dir and "
                            "--bytes", flags.dir,
                            base_str_bytes(have, sizeof have, (uint64_t)fs.f_bavail * fs.f_frsize),
                            base_str_bytes(need, sizeof need, flags.bytes));
    }
    int fd = mkstemp(bench->temp);
    if (fd < 0) {
        bench->temp[0] = '\0';
        return base_err_set(err, -errno, "%s: no file can be made here: %s", flags.dir,
                            strerror(errno));
    }
    int rc = fill_file(fd, flags.bytes, err, bench->temp);
    close(fd);
    bench->path = bench->temp;
    return rc;
}

/* Of the file that is there, or will be made. */
static int measure_size(struct bench *bench, struct base_err *err)
{
    int fd = bench->path ? open(bench->path, O_RDONLY | O_CLOEXEC) : -1;
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    bench->file_bytes = bench->path ? (uint64_t)end : flags.bytes;
    if (bench->path && end < 0) base_err_set(err, -errno, "%s: %s", bench->path, strerror(errno));
    if (fd >= 0) close(fd);
    return bench->path && end < 0 ? -EIO : 0;
}

/* The first size that cannot be read, or 0. */
static uint64_t bad_size(const struct bench *bench)
{
    for (unsigned i = 0; i < bench->size_count; i++) {
        uint64_t size = bench->sizes[i];
        if (size % PAGE != 0 || size > bench->file_bytes / 4) return size;
    }
    return 0;
}

static void configure(struct tier_io_config *config, enum way way, uint64_t size, uint64_t depth)
{
    struct base_option_group group = { "io", tier_io_options, tier_io_option_count, config };
    base_option_defaults(&group, 1);
    config->backend = way == WAY_URING ? 1 : 2;
    config->depth = depth;
    config->threads = way == WAY_THREADS_ONE ? 1 : depth < 16 ? depth : 16;
    config->direct = TIER_IO_DIRECT_AUTO;
    /* Block sizes are compared as they are: the kernel is asked for whole reads, as by fio. */
    config->chunk = size;
}

/* Keeps `depth` reads in flight for the set time; bytes/s, or negative. */
static double read_for(struct bench *bench, struct tier_io *io, uint64_t size, unsigned depth,
                       unsigned char *memory)
{
    struct tier_io_req *reqs = calloc(depth, sizeof *reqs), *done[64];
    struct base_rng rng;
    uint64_t blocks = bench->file_bytes / size, bytes = 0;
    double rate = -1;
    if (!reqs) return rate;
    base_rng_init(&rng, bench->seed++);
    uint64_t begin = base_now_ns(), end = begin + flags.time_ns, now = begin;
    for (unsigned i = 0; i < depth; i++) {
        struct tier_io_req *req = &reqs[i];
        req->to = memory + (uint64_t)i * size;
        req->bytes = size;
        req->offset = base_rng_below(&rng, blocks) * size;
        tier_io_submit(io, &req, 1);
    }
    while (io->in_flight > 0) {
        int count = tier_io_reap(io, done, 64, 1, UINT64_MAX);
        now = base_now_ns();
        bool more = now < end && !interrupted;
        for (int i = 0; i < count; i++) {
            if (done[i]->result != (int64_t)size) goto end;
            bytes += size;
            done[i]->offset = base_rng_below(&rng, blocks) * size;
        }
        if (more && count > 0) tier_io_submit(io, done, (unsigned)count);
    }
    /* As fio counts: all reads, over the time until the last one is back. */
    rate = (double)bytes * 1e9 / (double)(now - begin);
end:
    while (io->in_flight > 0) {
        tier_io_reap(io, done, 64, 1, UINT64_MAX);
    }
    free(reqs);
    return rate;
}

static int run_tiers(struct bench *bench, enum way way, struct cell *cell, unsigned round,
                     struct base_err *err)
{
    uint64_t size = cell->size, depth = cell->depth;
    struct tier_io_config config;
    configure(&config, way, size, depth);
    if (bench->store_size != size) {
        tier_store_close(bench->store);
        bench->store = NULL;
        int rc = bench_tier_store(&bench->store, bench->path, bench->file_bytes, size, err);
        if (rc < 0) return rc;
        bench->store_size = size;
    }
    struct bench_tier_args args = {
        .io = &config, .store = bench->store, .depth = (uint32_t)depth, .time_ns = flags.time_ns,
        .seed = bench->seed++, .interrupted = &interrupted,
    };
    struct bench_tier_rates rates;
    int rc = bench_tier_rate(&args, &rates, bench->notes[way], sizeof bench->notes[way], err);
    cell->rate[way][round] = rates.steady;
    if (way == WAY_URING) cell->first_pass[round] = rates.first_pass;
    return rc;
}

static int run_ours(struct bench *bench, enum way way, struct cell *cell, unsigned round,
                    struct base_err *err)
{
    static struct base_mem_tag tag = { .name = "bench" };
    uint64_t size = cell->size, depth = cell->depth;
    double *rate = &cell->rate[way][round];
    struct tier_io_config config;
    struct tier_io *io;
    if (flags.tiers) return run_tiers(bench, way, cell, round, err);
    configure(&config, way, size, depth);
    int rc = tier_io_create(&io, &config, base_clock_real(), err);
    if (rc < 0) {
        /* A way that is not allowed here is left out, and the note says why. */
        snprintf(bench->notes[way], sizeof bench->notes[way], "%.190s", err->text);
        *err = (struct base_err){ 0 };
        *rate = 0;
        return 0;
    }
    size_t bytes = depth * size < HUGE_PAGE ? HUGE_PAGE : depth * size;
    unsigned char *memory = base_mem_alloc(&tag, bytes, PAGE);
    if (memory) memset(memory, 1, bytes);       /* as fio does before its clock starts */
    rc = memory ? tier_io_file_add(io, bench->path, err) : -ENOMEM;
    if (rc >= 0) {
        tier_io_memory_add(io, memory, depth * size, depth * size);
        snprintf(bench->notes[way], sizeof bench->notes[way], "%s", io->note);
        *rate = read_for(bench, io, size, (unsigned)depth, memory);
        if (*rate < 0) rc = base_err_set(err, -EIO, "%s: a read of %llu bytes failed", bench->path,
                                         (unsigned long long)size);
    } else {
        base_err_set(err, rc, "no memory for %llu reads", (unsigned long long)depth);
    }
    tier_io_destroy(io);
    base_mem_free(&tag, memory, bytes);
    return rc < 0 ? rc : 0;
}

/* The file's name for fio inside a shell's single quotes; fio itself splits names at colons. */
static void quote(const char *path, char *to, size_t size)
{
    size_t at = 0;
    for (; *path && at + 8 < size; path++) {
        if (*path == '\'') {
            at += (size_t)snprintf(to + at, size - at, "'\\''");
        } else {
            if (*path == ':') to[at++] = '\\';
            to[at++] = *path;
        }
    }
    to[at] = '\0';
}

static void find_fio(struct bench *bench)
{
    FILE *pipe = flags.no_fio ? NULL : popen("fio --version 2>/dev/null", "r");
    if (pipe && fgets(bench->fio_version, sizeof bench->fio_version, pipe)) {
        bench->fio_version[strcspn(bench->fio_version, "\n")] = '\0';
    }
    if (pipe) pclose(pipe);
    if (!bench->fio_version[0]) {
        snprintf(bench->fio_skipped, sizeof bench->fio_skipped, "%s",
                 flags.no_fio ? "--no-fio" : "fio is not installed: install the package fio");
    }
}

/* Whether the system has huge pages set aside for so many bytes. */
static bool huge_free(uint64_t bytes)
{
    unsigned long long free_pages = 0, kib = 0;
    char line[256];
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "HugePages_Free: %llu", &free_pages);
        sscanf(line, "Hugepagesize: %llu kB", &kib);
    }
    if (file) fclose(file);
    return free_pages * kib * 1024 >= bytes;
}

static int run_fio(struct bench *bench, uint64_t size, uint64_t depth, double *rate,
                   struct base_err *err)
{
    char command[9000], name[4096], *text = NULL;
    size_t used = 0, got;
    quote(bench->path, name, sizeof name);
    bool direct = !strstr(bench->notes[WAY_URING], "buffered");
    bool fixed = !strstr(bench->notes[WAY_URING], "not registered");
    bench->fio_huge = huge_free(depth * size + 2 * HUGE_PAGE);
    /* A thousandth of a second is fio's finest unit of time. */
    snprintf(command, sizeof command,
             "fio --name=tier-bench --filename='%s' --rw=randread --ioengine=io_uring --direct=%d "
             "--bs=%llu --iodepth=%llu --size=%llu --time_based --runtime=%llums --norandommap "
             "--randrepeat=0 --group_reporting --output-format=json %s %s 2>&1", name, direct,
             (unsigned long long)size, (unsigned long long)depth,
             (unsigned long long)(bench->file_bytes / size * size),
             (unsigned long long)(flags.time_ns / 1000000),
             fixed ? "--fixedbufs --registerfiles" : "",
             bench->fio_huge ? "--mem=mmaphuge" : "");
    FILE *pipe = popen(command, "r");
    if (!pipe) return base_err_set(err, -errno, "fio: %s", strerror(errno));
    do {
        char *grown = realloc(text, used + 65536);
        if (!grown) break;
        text = grown;
        got = fread(text + used, 1, 65535, pipe);
        used += got;
    } while (got > 0);
    int status = pclose(pipe);

    struct port_json *root = NULL;
    const char *begin = text && used ? memchr(text, '{', used) : NULL;
    int rc = -EIO;
    if (status == 0 && begin) {
        rc = port_json_parse(&root, begin, used - (size_t)(begin - text), "fio", err);
    }
    if (rc == 0) {
        const struct port_json *job = port_json_at(port_json_get(root, "jobs"), 0);
        const struct port_json *read = port_json_get(job, "read");
        rc = read ? port_json_double(read, "bw_bytes", true, 0, rate, "fio.jobs[0].read", err)
                  : -EIO;
    }
    if (rc < 0) base_err_set(err, rc, "fio failed with status %d; --no-fio leaves it out", status);
    port_json_free(root);
    free(text);
    return rc;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(const double *values, unsigned count)
{
    double sorted[ROUNDS_MAX];
    memcpy(sorted, values, count * sizeof *values);
    qsort(sorted, count, sizeof *sorted, ascending);
    return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

/* Median over the rounds of one way's rate over another's. */
static double median_ratio(const struct cell *cell, enum way way, enum way other, unsigned rounds)
{
    double ratios[ROUNDS_MAX];
    unsigned count = 0;
    for (unsigned round = 0; round < rounds; round++) {
        if (cell->rate[way][round] <= 0 || cell->rate[other][round] <= 0) continue;
        ratios[count++] = cell->rate[way][round] / cell->rate[other][round];
    }
    return count ? median(ratios, count) : 0;
}

static int run_way(struct bench *bench, struct cell *cell, enum way way, unsigned round,
                   struct base_err *err)
{
    uint64_t depth = way == WAY_FIO_ONE ? 1 : cell->depth;
    if (way != WAY_FIO && way != WAY_FIO_ONE) return run_ours(bench, way, cell, round, err);
    if (bench->fio_skipped[0] || (way == WAY_FIO_ONE && !flags.tiers)) return 0;
    return run_fio(bench, cell->size, depth, &cell->rate[way][round], err);
}

static int run_cell(struct bench *bench, struct cell *cell, struct base_err *err)
{
    unsigned rounds = (unsigned)flags.rounds;
    /* What is compared runs next to each other, in either order. */
    static const enum way order[] = { WAY_THREADS_ONE, WAY_URING, WAY_FIO, WAY_FIO_ONE,
                                      WAY_THREADS_MANY };
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned i = 0; i < WAY_COUNT; i++) {
            /* Disks of virtual machines save up credit while nobody reads, and fio takes its time
             * to start: let everybody begin after the same rest. */
            usleep(PAUSE_US);
            int rc = run_way(bench, cell, order[round % 2 ? WAY_COUNT - 1 - i : i], round, err);
            if (rc == 0 && interrupted) rc = base_err_set(err, -ECANCELED, "stopped on request");
            if (rc < 0) return rc;
        }
    }
    for (unsigned way = 0; way < WAY_COUNT; way++) {
        cell->median[way] = median(cell->rate[way], rounds);
    }
    cell->first_pass_median = median(cell->first_pass, rounds);
    cell->fio_fraction = median_ratio(cell, WAY_URING, WAY_FIO, rounds);
    cell->one_reader_ratio = median_ratio(cell, WAY_URING, WAY_THREADS_ONE, rounds);
    cell->depth_gain = median_ratio(cell, WAY_FIO, WAY_FIO_ONE, rounds);
    return 0;
}

static void print_json(const struct bench *bench, const struct cell *cells, unsigned count)
{
    struct base_buf out;
    double worst = 0;
    base_buf_init(&out);
    base_buf_puts(&out, "{\"file_bytes\":");
    base_buf_printf(&out, "%llu,\"rounds\":%llu,\"round_seconds\":%g,\"cells\":[",
                    (unsigned long long)bench->file_bytes, (unsigned long long)flags.rounds,
                    (double)flags.time_ns / 1e9);
    for (unsigned i = 0; i < count; i++) {
        const struct cell *cell = &cells[i];
        base_buf_printf(&out, "%s{\"size\":%llu,\"depth\":%llu", i ? "," : "",
                        (unsigned long long)cell->size, (unsigned long long)cell->depth);
        for (unsigned way = 0; way < WAY_COUNT; way++) {
            if (cell->median[way] <= 0) continue;
            base_buf_printf(&out, ",\"%s\":{\"bytes_per_second\":%.0f,\"rounds\":[",
                            way_names[way], cell->median[way]);
            for (unsigned round = 0; round < flags.rounds; round++) {
                base_buf_printf(&out, "%s%.0f", round ? "," : "", cell->rate[way][round]);
            }
            base_buf_puts(&out, "]}");
        }
        if (cell->first_pass_median > 0) {
            base_buf_printf(&out, ",\"first_pass_bytes_per_second\":%.0f",
                            cell->first_pass_median);
        }
        if (cell->one_reader_ratio > 0) {
            base_buf_printf(&out, ",\"one_reader_ratio\":%.4f", cell->one_reader_ratio);
        }
        if (cell->depth_gain > 0) {
            base_buf_printf(&out, ",\"fio_depth_gain\":%.4f", cell->depth_gain);
        }
        if (cell->fio_fraction > 0) {
            base_buf_printf(&out, ",\"fio_fraction\":%.4f", cell->fio_fraction);
            if (worst == 0 || cell->fio_fraction < worst) worst = cell->fio_fraction;
        }
        base_buf_puts(&out, "}");
    }
    base_buf_puts(&out, "],\"notes\":{");
    for (unsigned way = 0; way < WAY_FIO; way++) {
        base_buf_printf(&out, "%s\"%s\":\"", way ? "," : "", way_names[way]);
        base_buf_json_escape(&out, bench->notes[way], strlen(bench->notes[way]));
        base_buf_puts(&out, "\"");
    }
    base_buf_puts(&out, "},");
    if (worst > 0) {
        base_buf_printf(&out, "\"fio\":\"%s\",\"fio_pages\":\"%s\",\"fio_fraction\":%.4f}",
                        bench->fio_version, bench->fio_huge ? "2MiB" : "4KiB", worst);
    } else {
        base_buf_printf(&out, "\"fio_skipped\":\"%s\"}", bench->fio_skipped);
    }
    if (base_buf_error(&out) == 0) puts(out.data);
    base_buf_fini(&out);
}

static void print_text(const struct bench *bench, const struct cell *cells, unsigned count)
{
    static const char *const headings[] = {
        "size", "depth", "io_uring MiB/s", "1 thread MiB/s", "n threads MiB/s", "fio MiB/s",
        "io_uring/fio", "io_uring/1 thread", "fio depth 1 MiB/s", "first pass MiB/s",
    };
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    struct cli_table *table;
    unsigned columns = flags.tiers ? COLUMNS : COLUMNS - 2;
    if (cli_table_create(&table, columns, headings) < 0) return;
    for (unsigned i = 0; i < count; i++) {
        const struct cell *cell = &cells[i];
        char text[COLUMNS][24];
        const char *row[COLUMNS];
        double values[COLUMNS] = { 0 };
        for (unsigned way = 0; way <= WAY_FIO; way++) {
            values[2 + way] = cell->median[way] / (1 << 20);
        }
        values[6] = cell->fio_fraction;
        values[7] = cell->one_reader_ratio;
        values[8] = cell->median[WAY_FIO_ONE] / (1 << 20);
        values[9] = cell->first_pass_median / (1 << 20);
        base_str_bytes(text[0], sizeof text[0], cell->size);
        snprintf(text[1], sizeof text[1], "%llu", (unsigned long long)cell->depth);
        for (unsigned k = 2; k < COLUMNS; k++) {
            bool ratio = k == 6 || k == 7;
            snprintf(text[k], sizeof text[k], values[k] > 0 ? ratio ? "%.3f" : "%.0f" : "-",
                     values[k]);
        }
        for (unsigned k = 0; k < columns; k++) row[k] = text[k];
        cli_table_row(table, row);
    }
    cli_table_print(table, stdout);
    cli_table_destroy(table);
    printf("\nmedians of %llu interleaved rounds of %g s; %s\n", (unsigned long long)flags.rounds,
           (double)flags.time_ns / 1e9, bench->notes[WAY_URING]);
    if (bench->fio_skipped[0]) {
        printf("without fio: %s\n", bench->fio_skipped);
    } else if (!bench->fio_huge) {
        printf("fio read into pages of 4 KiB: vm.nr_hugepages sets none aside\n");
    }
}

static int measure(struct bench *bench, struct base_err *err)
{
    struct cell *cells = calloc((size_t)bench->size_count * bench->depth_count, sizeof *cells);
    unsigned count = 0;
    int rc = cells ? 0 : base_err_set(err, -ENOMEM, "out of memory");
    for (unsigned s = 0; rc == 0 && s < bench->size_count; s++) {
        for (unsigned d = 0; rc == 0 && d < bench->depth_count; d++) {
            struct cell *cell = &cells[count++];
            cell->size = bench->sizes[s];
            cell->depth = bench->depths[d];
            rc = run_cell(bench, cell, err);
            if (rc == 0 && !flags.quiet) {
                fprintf(stderr, "size=%llu depth=%llu io_uring=%.0fMiB/s fio=%.0fMiB/s\n",
                        (unsigned long long)cell->size, (unsigned long long)cell->depth,
                        cell->median[WAY_URING] / (1 << 20), cell->median[WAY_FIO] / (1 << 20));
            }
        }
    }
    if (rc == 0) (flags.json ? print_json : print_text)(bench, cells, count);
    free(cells);
    return rc;
}

static int run(int count, char **arguments)
{
    struct bench bench = { .path = flags.file, .seed = flags.seed };
    struct base_err err = { 0 };
    (void)count;
    (void)arguments;
    if (parse_list(flags.sizes, true, bench.sizes, &bench.size_count) < 0) {
        return cli_misuse("--size %s: wanted sizes such as 512KiB,2MiB", flags.sizes);
    }
    if (parse_list(flags.depths, false, bench.depths, &bench.depth_count) < 0) {
        return cli_misuse("--depth %s: wanted numbers such as 1,8,32", flags.depths);
    }
    for (unsigned i = 0; i < bench.depth_count; i++) {
        if (bench.depths[i] > 4096) return cli_misuse("--depth: at most 4096 reads in flight");
    }
    if (flags.rounds < 1 || flags.rounds > ROUNDS_MAX) {
        return cli_misuse("--rounds: 1 to %d", ROUNDS_MAX);
    }
    int rc = measure_size(&bench, &err);
    if (rc < 0) return cli_fail(1, &err);
    uint64_t bad = bad_size(&bench);
    if (bad > 0) {
        return cli_misuse("--size %llu: reads are multiples of 4096 and at most a quarter of the "
                          "file (%llu bytes)", (unsigned long long)bad,
                          (unsigned long long)bench.file_bytes);
    }
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    find_fio(&bench);
    if (!bench.path) rc = make_file(&bench, &err);
    if (rc == 0) rc = measure(&bench, &err);
    tier_store_close(bench.store);
    if (bench.temp[0]) unlink(bench.temp);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag io_flags[] = {
    { "file", CLI_TEXT, &flags.file, "FILE", "read this file; without it one is made and removed" },
    { "dir", CLI_TEXT, &flags.dir, "DIR", "where the test file is made (the current folder)" },
    { "bytes", CLI_BYTES, &flags.bytes, "SIZE", "size of the test file (2GiB)" },
    { "size", CLI_TEXT, &flags.sizes, "LIST", "sizes of a read (512KiB,2MiB)" },
    { "depth", CLI_TEXT, &flags.depths, "LIST", "reads in flight (1,8,32)" },
    { "rounds", CLI_UINT, &flags.rounds, "N", "rounds of each measurement (5)" },
    { "time", CLI_TIME, &flags.time_ns, "TIME", "time of a round (1s)" },
    { "seed", CLI_UINT, &flags.seed, "N", "seed of the places that are read (1)" },
    { "tiers", CLI_SWITCH, &flags.tiers, NULL,
      "read through the tiers: cold experts, one record each as in a pack, hashes checked" },
    { "no-fio", CLI_SWITCH, &flags.no_fio, NULL, "leave fio out" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the result as JSON" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "show no progress" },
    { 0 },
};

const struct cli_command bench_io_command = {
    .name = "io",
    .arguments = "",
    .text = "random reads through our backends, compared with fio",
    .details = "Reads random aligned blocks with O_DIRECT through io_uring and through threads "
               "(one, and as\n"
               "many as reads in flight, at most 16), and with fio's io_uring engine where fio is "
               "installed.",
    .flags = io_flags,
    .run = run,
};
