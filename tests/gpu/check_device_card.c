/* Shows on a card that src/device/device_cuda.c moves the right bytes, that a slot is not refilled
 * while a kernel reads it (and that without dev_mark it would be), that a failed copy is that
 * copy's failure and an illegal address the device's end, and how much of copying hides behind a
 * kernel.
 *
 *   check_device_card [--seeds N] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/rng.h"
#include "device/device.h"
#include "tests/gpu/card.h"

enum { SLOT = 96 * 1024, SLOTS = 64, KEPT = 32, STEPS = 600 };

static unsigned char device_wanted[SLOTS][SLOT], host_wanted[SLOTS][SLOT], seen[SLOT];
static unsigned char kept_wanted[KEPT][SLOT], kept_seen[KEPT][SLOT];

struct run {
    struct base_rng rng;
    struct dev *dev;
    unsigned char *device, *host, *kept;
    bool device_busy[SLOTS], host_busy[SLOTS];
    struct dev_copy copies[2 * SLOTS];
    bool copy_used[2 * SLOTS];
    unsigned kept_count, copies_done;
    char what[200];
};

static void result_give(const char *name, bool ok, const char *note)
{
    struct card_row row = { .stage = "device", .ok = ok };
    snprintf(row.name, sizeof row.name, "%s", name);
    snprintf(row.note, sizeof row.note, "%s", note);
    card_row_give(&row);
}

static unsigned below(struct run *r, unsigned bound)
{
    return (unsigned)base_rng_below(&r->rng, bound);
}

static void scribble(struct run *r, unsigned h)
{
    for (size_t i = 0; i < SLOT; i += 8) {
        const uint64_t word = base_rng_u64(&r->rng);
        memcpy(&host_wanted[h][i], &word, 8);
    }
    memcpy(r->host + (size_t)h * SLOT, host_wanted[h], SLOT);
}

static void copy_submit(struct run *r, unsigned d, bool up)
{
    const unsigned h = below(r, SLOTS), pieces = 1 + below(r, 3);
    unsigned at = 0;
    if (r->device_busy[d] || r->host_busy[h]) return;
    while (r->copy_used[at])
        at++;
    struct dev_copy *copy = &r->copies[at];
    r->copy_used[at] = r->device_busy[d] = r->host_busy[h] = true;
    *copy = (struct dev_copy){ .queue = up ? DEV_UP : DEV_DOWN, .piece_count = pieces };
    for (unsigned p = 0, begin = 0; p < pieces; p++) {
        const unsigned end = p + 1 == pieces ? SLOT : begin + below(r, SLOT / pieces);
        unsigned char *card = r->device + (size_t)d * SLOT + begin;
        unsigned char *host = r->host + (size_t)h * SLOT + begin;
        copy->pieces[p] = up ? (struct dev_piece){ card, host, end - begin }
                             : (struct dev_piece){ host, card, end - begin };
        begin = end;
    }
    dev_submit(r->dev, copy);
}

static void copy_end(struct run *r, struct dev_copy *copy)
{
    const bool up = copy->queue == DEV_UP;
    const unsigned char *card = up ? copy->pieces[0].to : copy->pieces[0].from;
    const unsigned char *host = up ? copy->pieces[0].from : copy->pieces[0].to;
    const size_t d = (size_t)(card - r->device) / SLOT, h = (size_t)(host - r->host) / SLOT;
    r->copy_used[copy - r->copies] = r->device_busy[d] = r->host_busy[h] = false;
    r->copies_done++;
    if (copy->result != 0) {
        snprintf(r->what, sizeof r->what, "a copy gave %d: %.120s", copy->result, r->dev->lost_why);
        return;
    }
    if (up) {
        memcpy(device_wanted[d], host_wanted[h], SLOT);
        scribble(r, (unsigned)h); /* the source is ours again */
    } else {
        memcpy(host_wanted[h], device_wanted[d], SLOT);
        if (memcmp(r->host + h * SLOT, host_wanted[h], SLOT) != 0)
            snprintf(r->what, sizeof r->what, "a copy down was reaped and its bytes are not there");
    }
}

static void reap(struct run *r, unsigned min)
{
    struct dev_copy *done[16];
    const int n = dev_reap(r->dev, done, 16, min, UINT64_MAX);
    for (int i = 0; i < n; i++)
        copy_end(r, done[i]);
}

/* A slow kernel reads a slot that is asked to be filled again at once. */
static void kernel_launch(struct run *r, bool mark)
{
    const unsigned d = below(r, SLOTS);
    if (r->kept_count == KEPT || r->device_busy[d]) return;
    memcpy(kept_wanted[r->kept_count], device_wanted[d], SLOT);
    card_keep(r->kept + (size_t)r->kept_count * SLOT, r->device + (size_t)d * SLOT, SLOT, 300000,
              dev_stream(r->dev));
    r->kept_count++;
    if (mark) dev_mark(r->dev);
    copy_submit(r, d, true);
}

static bool run_open(struct run *r, uint64_t seed)
{
    struct dev_config config = { .memory_bytes = (uint64_t)(SLOTS + KEPT + 1) * SLOT };
    struct base_err err = { 0 };
    void *slots, *kept;
    base_rng_init(&r->rng, seed);
    int rc = dev_create(&r->dev, dev_find("cuda"), &config, base_clock_real(), &err);
    if (rc == 0) rc = dev_memory_alloc(r->dev, (size_t)SLOTS * SLOT, &slots, &err);
    if (rc == 0) rc = dev_memory_alloc(r->dev, (size_t)KEPT * SLOT, &kept, &err);
    if (rc < 0) {
        snprintf(r->what, sizeof r->what, "%.190s", err.text);
        return false;
    }
    r->device = slots;
    r->kept = kept;
    r->host = aligned_alloc(4096, (size_t)SLOTS * SLOT);
    rc = dev_host_register(r->dev, r->host, (size_t)SLOTS * SLOT);
    if (rc < 0) snprintf(r->what, sizeof r->what, "pinning gave %d", rc);
    for (unsigned i = 0; i < SLOTS && rc == 0; i++) {
        scribble(r, i);
        memcpy(device_wanted[i], host_wanted[i], SLOT);
        CARD(
            cudaMemcpy(r->device + (size_t)i * SLOT, host_wanted[i], SLOT, cudaMemcpyHostToDevice));
    }
    return rc == 0;
}

/* Slots that a kernel saw otherwise than they were when it was launched; -1: something else is
 * wrong, told in `what`. */
static int run(uint64_t seed, bool mark, char *what, size_t size, unsigned *copies)
{
    struct run *r = calloc(1, sizeof *r);
    int torn = 0;
    if (run_open(r, seed)) {
        for (int step = 0; step < STEPS && !r->what[0]; step++) {
            const unsigned burst = below(r, 50) ? 1 : 80; /* beyond the ring, too */
            for (unsigned i = 0; i < burst; i++) {
                const unsigned slot = below(r, SLOTS);
                copy_submit(r, slot, below(r, 3) > 0);
            }
            if (below(r, 8) == 0) kernel_launch(r, mark);
            if (below(r, 3) == 0) reap(r, below(r, 3));
        }
        while (r->dev->in_flight > 0 && !r->what[0])
            reap(r, 1);
        CARD(cudaDeviceSynchronize());
        CARD(cudaMemcpy(kept_seen, r->kept, sizeof kept_seen, cudaMemcpyDeviceToHost));
        for (unsigned i = 0; i < r->kept_count; i++)
            torn += memcmp(kept_seen[i], kept_wanted[i], SLOT) != 0;
        for (unsigned i = 0; i < SLOTS && !r->what[0]; i++) {
            CARD(cudaMemcpy(seen, r->device + (size_t)i * SLOT, SLOT, cudaMemcpyDeviceToHost));
            if (memcmp(seen, device_wanted[i], SLOT) != 0)
                snprintf(r->what, sizeof r->what, "slot %u is not what its last copy gave", i);
        }
    }
    *copies += r->copies_done;
    dev_destroy(r->dev);
    snprintf(what, size, "%s", r->what);
    const bool good = !r->what[0];
    free(r->host);
    free(r);
    return good ? torn : -1;
}

static void random_runs(uint64_t seeds)
{
    char what[200] = "", note[220];
    unsigned copies = 0;
    int torn = 0;
    uint64_t seed = 1;
    for (; seed <= seeds && torn == 0; seed++)
        torn = run(seed, true, what, sizeof what, &copies);
    if (torn != 0)
        snprintf(note, sizeof note, "seed %llu: %s", (unsigned long long)seed - 1,
                 torn < 0 ? what : "a kernel read slot bytes of its next owner");
    else
        snprintf(note, sizeof note, "%llu seeds, %u copies", (unsigned long long)seeds, copies);
    result_give("copies, kernels, refills", torn == 0, note);
    if (torn != 0) return;
    const int without = run(1, false, what, sizeof what, &copies);
    snprintf(note, sizeof note, "%d kernels read bytes of the next owner (some must)", without);
    result_give("the same without dev_mark", without > 0, without < 0 ? what : note);
}

static void refusals(void)
{
    struct dev *dev = NULL;
    struct base_err err = { 0 };
    struct dev_config config = { .memory_bytes = 4096, .ordinal = 99 };
    int rc = dev_create(&dev, dev_find("cuda"), &config, base_clock_real(), &err);
    result_give("refuses a card that is not there", rc == BASE_EDEVICE && !dev, err.text);
    config = (struct dev_config){ .memory_bytes = (uint64_t)1 << 42 };
    err = (struct base_err){ 0 };
    rc = dev_create(&dev, dev_find("cuda"), &config, base_clock_real(), &err);
    result_give("refuses more memory than there is", rc == BASE_EBUDGET && !dev, err.text);
}

/* ---- overlap ---- */

struct overlap {
    struct dev *dev;
    char *slots, *read, *host;
    size_t bytes, read_bytes;
    unsigned count, launches;
};

/* Seconds of `launches` kernels that read HBM, of `count` copies up, or of both. */
static double overlap_run(struct overlap *o, bool kernels, bool copying, bool *ok)
{
    struct dev_copy copies[32];
    const uint64_t begin = base_now_ns();
    for (unsigned i = 0; i < o->count && copying; i++) {
        copies[i] = (struct dev_copy){
            .queue = DEV_UP,
            .piece_count = 1,
            .pieces = { { o->slots + i % 4 * o->bytes, o->host + i % 4 * o->bytes, o->bytes } },
        };
        dev_submit(o->dev, &copies[i]);
    }
    for (unsigned i = 0; i < o->launches && kernels; i++)
        card_read(o->read, o->read_bytes, o->read, dev_stream(o->dev));
    for (unsigned left = copying ? o->count : 0; left > 0;) {
        struct dev_copy *done[8];
        const int n = dev_reap(o->dev, done, 8, 1, UINT64_MAX);
        for (int i = 0; i < n; i++)
            *ok = *ok && done[i]->result == 0;
        left -= (unsigned)n;
    }
    CARD(cudaStreamSynchronize(dev_stream(o->dev)));
    return (double)(base_now_ns() - begin) * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void overlap(void)
{
    struct overlap o = { .bytes = 44 << 20, .count = 16, .read_bytes = (size_t)256 << 20 };
    struct dev_config config = { .memory_bytes = 4 * o.bytes + o.read_bytes + (1 << 20) };
    struct base_err err = { 0 };
    void *slots, *read;
    char note[200];
    bool ok = true;
    int rc = dev_create(&o.dev, dev_find("cuda"), &config, base_clock_real(), &err);
    if (rc == 0) rc = dev_memory_alloc(o.dev, 4 * o.bytes, &slots, &err);
    if (rc == 0) rc = dev_memory_alloc(o.dev, o.read_bytes, &read, &err);
    if (rc < 0) {
        result_give("copies behind kernels", false, err.text);
        dev_destroy(o.dev);
        return;
    }
    o.slots = slots;
    o.read = read;
    o.host = aligned_alloc(2 << 20, 4 * o.bytes);
    memset(o.host, 1, 4 * o.bytes);
    ok = dev_host_register(o.dev, o.host, 4 * o.bytes) == 0;
    /* Kernels for about as long as the copies last. */
    o.launches = 20;
    overlap_run(&o, true, true, &ok);
    const double twenty = overlap_run(&o, true, false, &ok);
    const double all = overlap_run(&o, false, true, &ok);
    o.launches = (unsigned)(20 * all / twenty) + 1;
    double kernels[5], copies[5], both[5];
    for (int i = 0; i < 5; i++) {
        kernels[i] = overlap_run(&o, true, false, &ok);
        copies[i] = overlap_run(&o, false, true, &ok);
        both[i] = overlap_run(&o, true, true, &ok);
    }
    qsort(kernels, 5, sizeof *kernels, by_value);
    qsort(copies, 5, sizeof *copies, by_value);
    qsort(both, 5, sizeof *both, by_value);
    const double shorter = kernels[2] < copies[2] ? kernels[2] : copies[2];
    const double hidden = (kernels[2] + copies[2] - both[2]) / shorter;
    snprintf(note, sizeof note,
             "hidden %.2f: kernels %.1f ms, 16 experts up %.1f ms (%.1f GB/s), both %.1f ms",
             hidden, kernels[2] * 1e3, copies[2] * 1e3, 16.0 * (double)o.bytes / copies[2] * 1e-9,
             both[2] * 1e3);
    result_give("copies behind kernels", ok && hidden > 0.5, note);
    dev_destroy(o.dev);
    free(o.host);
}

/* ---- errors; after the second one the process is over ---- */

static void failures(void)
{
    struct dev_config config = { .memory_bytes = 1 << 20 };
    struct base_err err = { 0 };
    struct dev *dev = NULL;
    struct dev_copy copy = { .queue = DEV_UP, .piece_count = 1 }, *done[1];
    void *memory;
    static char source[4096];
    int rc = dev_create(&dev, dev_find("cuda"), &config, base_clock_real(), &err);
    if (rc == 0) rc = dev_memory_alloc(dev, 4096, &memory, &err);
    if (rc < 0) {
        result_give("failures", false, err.text);
        return;
    }
    /* Far beyond what is mapped. */
    copy.pieces[0] = (struct dev_piece){ (char *)memory + ((uint64_t)1 << 45), source, 4096 };
    dev_submit(dev, &copy);
    dev_reap(dev, done, 1, 1, UINT64_MAX);
    const bool one = copy.result == BASE_EDEVICE && !dev->lost;
    copy = (struct dev_copy){ .queue = DEV_UP,
                              .piece_count = 1,
                              .pieces = { { memory, source, 4096 } } };
    dev_submit(dev, &copy);
    dev_reap(dev, done, 1, 1, UINT64_MAX);
    result_give("a bad copy fails alone", one && copy.result == 0, dev->lost_why);
    card_keep(memory, NULL, 4096, 0, dev_stream(dev));
    dev_mark(dev);
    copy = (struct dev_copy){ .queue = DEV_UP,
                              .piece_count = 1,
                              .pieces = { { memory, source, 4096 } } };
    cudaDeviceSynchronize();
    dev_submit(dev, &copy);
    dev_reap(dev, done, 1, 1, UINT64_MAX);
    result_give("an illegal address ends the device", copy.result == BASE_EDEVICE && dev->lost,
                dev->lost_why);
    dev_destroy(dev);
}

int main(int argc, char **argv)
{
    struct cudaDeviceProp prop;
    const uint64_t seeds =
        argc == 3 && !strcmp(argv[1], "--seeds") ? strtoull(argv[2], NULL, 10) : 10;
    card_open(&prop);
    refusals();
    random_runs(seeds);
    overlap();
    failures();
    return card_rows_bad() ? EXIT_FAILURE : EXIT_SUCCESS;
}
