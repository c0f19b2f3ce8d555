/* Shows that the cuda device moves the right bytes on the emulated machine, whose streams run as
 * late and in as odd an order as the rules allow; that it answers every error of the runtime with a
 * code and loses nothing; and that each wait and each event is needed: without it a run fails.
 *
 *   check_device_cuda [--seeds N]      default 20
 *
 * A run: copies up and down between random slots; what was reaped is compared at once and then
 * overwritten; kernels read slots that are refilled while they wait for their turn; the device is
 * ended with work under way. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/asan.h"
#include "base/rng.h"
#include "device/device.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/include/cuda_runtime.h"

enum { SLOT = 512, SLOTS = 100, KEPT = 64, STEPS = 400 };

struct run {
    struct base_rng rng;
    struct base_clock_virtual clock;
    struct dev *dev;
    unsigned char (*device)[SLOT], (*host)[SLOT];
    /* What a slot must hold, once nothing is on its way to it. */
    unsigned char device_wanted[SLOTS][SLOT], host_wanted[SLOTS][SLOT];
    bool device_busy[SLOTS], host_busy[SLOTS];
    struct dev_copy copies[2 * SLOTS];
    bool copy_used[2 * SLOTS];
    unsigned char kept[KEPT][SLOT], kept_wanted[KEPT][SLOT];
    unsigned kept_count;
    bool faults;
    char what[256];
};

static void wrong(struct run *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void wrong(struct run *r, const char *format, ...)
{
    va_list args;
    if (r->what[0]) return;
    va_start(args, format);
    vsnprintf(r->what, sizeof r->what, format, args);
    va_end(args);
}

static unsigned below(struct run *r, unsigned bound)
{
    return (unsigned)base_rng_below(&r->rng, bound);
}

static void scribble(struct run *r, unsigned char *at)
{
    for (int i = 0; i < SLOT; i++)
        at[i] = (unsigned char)base_rng_u64(&r->rng);
}

static unsigned slot_of(const struct run *r, const void *memory, bool device)
{
    const unsigned char *base = device ? r->device[0] : r->host[0];
    return (unsigned)(((const unsigned char *)memory - base) / SLOT);
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
        unsigned char *device = r->device[d] + begin, *host = r->host[h] + begin;
        copy->pieces[p] = copy->queue == DEV_UP ? (struct dev_piece){ device, host, end - begin }
                                                : (struct dev_piece){ host, device, end - begin };
        begin = end;
    }
    dev_submit(r->dev, copy);
}

/* What was reaped is there, and its source is the caller's again. */
static void copy_end(struct run *r, struct dev_copy *copy)
{
    const bool up = copy->queue == DEV_UP;
    const unsigned d = slot_of(r, up ? copy->pieces[0].to : copy->pieces[0].from, true);
    const unsigned h = slot_of(r, up ? copy->pieces[0].from : copy->pieces[0].to, false);
    unsigned char *to = up ? r->device[d] : r->host[h];
    unsigned char *wanted = up ? r->device_wanted[d] : r->host_wanted[h];
    r->copy_used[copy - r->copies] = r->device_busy[d] = r->host_busy[h] = false;
    if (copy->result == 0) {
        memcpy(wanted, up ? r->host_wanted[h] : r->device_wanted[d], SLOT);
        if (memcmp(to, wanted, SLOT) != 0)
            wrong(r, "a copy %s was reaped and its bytes are not there", up ? "up" : "down");
    } else if (copy->result != BASE_EDEVICE || !r->faults) {
        wrong(r, "a copy gave %d", copy->result);
    }
    if (copy->result == 0 && !up) return;
    /* A failed copy leaves anything behind, but nothing moves any more. */
    if (copy->result < 0 && !up) {
        scribble(r, r->host_wanted[h]);
        memcpy(r->host[h], r->host_wanted[h], SLOT);
        return;
    }
    if (copy->result < 0) memcpy(r->device_wanted[d], r->device[d], SLOT);
    scribble(r, r->host_wanted[h]);
    memcpy(r->host[h], r->host_wanted[h], SLOT);
}

static void reap(struct run *r, unsigned min)
{
    struct dev_copy *done[16];
    const int n = dev_reap(r->dev, done, 16, min, UINT64_MAX);
    if (n < (int)(min < r->dev->in_flight + (unsigned)n ? min : 0)) wrong(r, "reap gave %d", n);
    for (int i = 0; i < n; i++)
        copy_end(r, done[i]);
}

/* In runs with failing calls some marks are among them, on purpose: they are few. */
static void mark(struct run *r)
{
    const unsigned fail_at = cudahost_machine.fail_at;
    const int code = cudahost_machine.fail_code;
    const bool fails = r->faults && below(r, 4) == 0;
    if (fails) {
        cudahost_machine.fail_at = 1;
        cudahost_machine.fail_code = cudaErrorInvalidValue;
    }
    dev_mark(r->dev);
    if (!fails) return;
    cudahost_machine.fail_at = fail_at;
    cudahost_machine.fail_code = code;
}

/* A kernel reads a slot; from the mark on the slot may be filled again. */
static void kernel_launch(struct run *r)
{
    const unsigned d = below(r, SLOTS);
    if (r->kept_count == KEPT || r->device_busy[d] || r->dev->lost) return;
    memcpy(r->kept_wanted[r->kept_count], r->device_wanted[d], SLOT);
    cudahost_keep(r->kept[r->kept_count], r->device[d], SLOT, dev_stream(r->dev));
    r->kept_count += cudaGetLastError() == cudaSuccess; /* else it was not launched */
    mark(r);
    if (below(r, 2)) copy_submit(r, d, true);
}

static void check_kept(struct run *r)
{
    if (r->dev->lost) return;
    cudahost_machine.fail_at = 0;
    if (cudaDeviceSynchronize() != cudaSuccess) wrong(r, "the device reports an error");
    for (unsigned i = 0; i < r->kept_count; i++)
        if (memcmp(r->kept[i], r->kept_wanted[i], SLOT) != 0)
            wrong(r, "a kernel read slot bytes of its next owner");
}

static int run_open(struct run *r, uint64_t seed)
{
    struct dev_config config = { .memory_bytes = sizeof r->device_wanted };
    struct base_err err = { 0 };
    void *memory;
    base_rng_init(&r->rng, seed);
    base_clock_virtual_init(&r->clock, 1);
    int rc = dev_create(&r->dev, dev_find("cuda"), &config, &r->clock.clock, &err);
    if (rc == 0) rc = dev_memory_alloc(r->dev, sizeof r->device_wanted, &memory, &err);
    if (rc < 0) {
        if (!r->faults || !err.text[0]) wrong(r, "%s", err.text);
        return rc;
    }
    r->device = memory;
    r->host = calloc(SLOTS, SLOT);
    for (int i = 0; i < SLOTS; i++) {
        scribble(r, r->host_wanted[i]);
        memcpy(r->host[i], r->host_wanted[i], SLOT);
        memcpy(r->device_wanted[i], r->device[i], SLOT);
    }
    rc = dev_host_register(r->dev, r->host, sizeof r->host_wanted);
    if (rc < 0 && !r->faults) wrong(r, "pinning gave %d", rc);
    return rc;
}

/* NULL, or what went wrong. `fail_at`, `code`: one call of the runtime fails. */
static const char *run(uint64_t seed, unsigned fail_at, int code)
{
    static char text[256];
    struct run *r = calloc(1, sizeof *r);
    cudahost_seed(seed);
    cudahost_failure();
    r->faults = fail_at > 0;
    cudahost_machine.fail_at = fail_at;
    cudahost_machine.fail_code = code;
    if (run_open(r, seed) == 0) {
        for (int step = 0; step < STEPS && !r->what[0]; step++) {
            /* Bursts, so that the backlog behind the ring is used too. */
            const unsigned burst = below(r, 50) ? 1 : 90;
            for (unsigned i = 0; i < burst; i++) {
                const unsigned slot = below(r, SLOTS);
                copy_submit(r, slot, below(r, 3) > 0);
            }
            if (below(r, 4) == 0) kernel_launch(r);
            if (below(r, 3) == 0) reap(r, below(r, 3));
        }
        if (seed % 2) { /* else it is ended with all that under way */
            while (r->dev->in_flight > 0 && !r->what[0])
                reap(r, 1);
            check_kept(r);
            for (int i = 0; i < SLOTS; i++)
                if (memcmp(r->device[i], r->device_wanted[i], SLOT) != 0)
                    wrong(r, "slot %d changed after its copy was reaped", i);
        }
        if (r->dev->lost && !r->dev->lost_why[0])
            wrong(r, "the device is lost and does not say why");
    }
    dev_destroy(r->dev);
    const unsigned left = cudahost_reset();
    const char *failure = cudahost_failure();
    if (failure) wrong(r, "%s", failure);
    if (left > 0) wrong(r, "%u streams, events or pieces of memory were not given back", left);
    snprintf(text, sizeof text, "%s", r->what);
    const bool good = !r->what[0];
    free(r->host);
    free(r);
    return good ? NULL : text;
}

/* The n-th call fails, for every n of a run and for errors that are sticky and that are not. */
static const char *run_faults(uint64_t seed, unsigned calls, unsigned stride)
{
    static const int codes[] = { cudaErrorInvalidValue, cudaErrorIllegalAddress,
                                 cudaErrorContained };
    static char text[320];
    for (unsigned n = 1 + (unsigned)seed % stride; n <= calls; n += stride) {
        for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++) {
            const char *what = run(seed, n, codes[i]);
            if (!what) continue;
            snprintf(text, sizeof text, "call %u gives %d: %s", n, codes[i], what);
            return text;
        }
    }
    return NULL;
}

static const char *run_all(uint64_t seed, unsigned calls, unsigned stride)
{
    const char *what = run(seed, 0, 0);
    return what ? what : run_faults(seed, calls, stride);
}

static unsigned expect_refusal(const char *name, const struct dev_config *config, int wanted,
                               const char *part)
{
    struct dev *dev = NULL;
    struct base_err err = { 0 };
    const int rc = dev_create(&dev, dev_find("cuda"), config, base_clock_real(), &err);
    const bool good = rc == wanted && strstr(err.text, part) && !dev && cudahost_reset() == 0;
    printf("%s %s: %s\n", good ? "ok  " : "FAIL", name, err.text);
    dev_destroy(dev);
    return !good;
}

static unsigned refusals(void)
{
    struct dev_config config = { .memory_bytes = 48u << 20, .headroom_share = 0.5 };
    unsigned failed = expect_refusal("headroom", &config, BASE_EBUDGET, "32 MiB stay free");
    config = (struct dev_config){ .memory_bytes = 4096, .ordinal = 3 };
    failed += expect_refusal("ordinal", &config, BASE_EDEVICE, "no card 3, this machine has 1");
    config.ordinal = 0;
    cudahost_machine.devices = 0;
    failed += expect_refusal("no card", &config, BASE_EDEVICE, "cudaErrorNoDevice");
    return failed;
}

static unsigned mutations(uint64_t seeds)
{
    static char sites[CUDAHOST_SITES_MAX][64];
    const char *const *names;
    unsigned unnoticed = 0;
    const unsigned count = cudahost_sites(&names);
    for (unsigned i = 0; i < count; i++)
        snprintf(sites[i], sizeof sites[i], "%s", names[i]);
    for (unsigned i = 0; i < count; i++) {
        const char *what = NULL;
        cudahost_site_mute(sites[i]);
        for (uint64_t seed = 1; seed <= seeds && !what; seed++)
            what = run_all(seed, 1500, 61);
        cudahost_site_mute(NULL);
        printf("%s without %s: %s\n", what ? "ok  " : "FAIL", sites[i],
               what ? what : "every run passes");
        unnoticed += !what;
    }
    printf("%u events and waits removed in turn, %u not noticed\n", count, unnoticed);
    return count > 0 ? unnoticed : 1;
}

int main(int argc, char **argv)
{
    uint64_t seeds = argc == 3 && !strcmp(argv[1], "--seeds") ? strtoull(argv[2], NULL, 10) : 20;
    unsigned failed = refusals();
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (uint64_t seed = 1; seed <= seeds && failed < 5; seed++) {
        const char *what = run_all(seed, 1500, 61);
        if (!what) continue;
        printf("FAIL seed %llu: %s\n", (unsigned long long)seed, what);
        failed++;
    }
    if (!failed) printf("ok   %llu seeds, each with failing calls\n", (unsigned long long)seeds);
    /* A missing wait lets kernels run into freed memory: the address sanitizer would notice it by
     * ending the program, at the first one. */
    if (!failed && BASE_ASAN) printf("skipped here: events and waits removed in turn\n");
    else if (!failed) failed = mutations(seeds < 20 ? 20 : seeds);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
