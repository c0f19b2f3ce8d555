/* A CUDA card: one arena of its memory, and a stream for each direction of copies beside the stream
 * that kernels run on.
 *
 *     up       copy, copy, ... ── event ──▶ reap: the bytes are there, who asked may launch
 *     down     copy, copy, ... ── event ──▶ reap: the host may read them
 *     compute  kernels ... ── mark ──▶ up: what is copied later waits for what reads now
 *              kernels, copies ── note ──▶ reach: the host may read what came down, and write again
 *                                         where copies up came from
 *
 * A copy is over when the event behind its pieces is; the caller learns it in reap, so kernels that
 * read it are launched after it and need no wait of their own. The other way round the caller does
 * not wait for kernels: it releases what they read while they run, and dev_mark notes how far the
 * compute stream had come. Copies up that are submitted later begin behind that mark.
 *
 * Errors: a copy that could not be asked for is that copy's failure. What CUDA calls sticky (the
 * context is gone: an illegal address, a launch failure, an uncorrectable memory error) makes the
 * device `lost`: everything in flight fails, everything submitted fails, `lost_why` says why, and
 * the process has to end.
 *
 * Sources are pinned (cudaHostRegister) once, the same pages that io_uring has as fixed buffers: a
 * read lands where the copy starts.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime.h>

#include "base/must.h"
#include "base/str.h"
#include "device/device.h"

enum {
    RING = 64, /* copies of one queue that the card knows of */
    HOST_REGIONS_MAX = 16,
    ARENA_ALIGN = 4096,
    POLL_NS = 20000,
};

/* Copies of one direction. Those beyond the ring wait in the backlog, in order. */
struct lane {
    cudaStream_t stream;
    cudaEvent_t events[RING];
    struct dev_copy *copies[RING];
    unsigned first, count;
    struct dev_copy *backlog, *backlog_tail;
};

struct cuda_dev {
    struct dev base;
    char *arena, *arena_base; /* aligned, as allocated */
    uint64_t arena_bytes, arena_used;
    cudaStream_t compute;
    cudaEvent_t mark, note;
    bool marked; /* since the up stream last waited */
    bool watched; /* the watch has begun, and the compute stream not come to an end since */
    int ordinal;
    struct lane lanes[DEV_QUEUE_COUNT];
    void *host_regions[HOST_REGIONS_MAX];
    unsigned host_region_count;
};

/* Codes that not every toolkit has a name for. */
enum {
    CODE_NVLINK_UNCORRECTABLE = 220,
    CODE_CONTAINED = 226,
    CODE_TENSOR_MEMORY_LEAK = 721,
    CODE_MPS_CLIENT_TERMINATED = 810,
    CODE_EXTERNAL_DEVICE = 911,
};

/* After these no call of the process succeeds any more (CUDA Runtime API, cudaError_t). */
static bool code_sticky(cudaError_t code)
{
    switch ((int)code) {
    case CODE_NVLINK_UNCORRECTABLE:
    case CODE_CONTAINED:
    case CODE_TENSOR_MEMORY_LEAK:
    case CODE_MPS_CLIENT_TERMINATED:
    case CODE_EXTERNAL_DEVICE:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
        return true;
    default:
        return false;
    }
}

/* Each thread has a current card. */
static void bind(const struct cuda_dev *c)
{
    static _Thread_local int bound; /* 0 to begin with, as CUDA has it */
    if (bound == c->ordinal) return;
    if (cudaSetDevice(c->ordinal) == cudaSuccess) bound = c->ordinal;
}

/* Ours for theirs; notes when the card is lost. Takes the error from where CUDA keeps the last
 * one. */
static int code_ours(struct cuda_dev *c, cudaError_t code, const char *what)
{
    if (code == cudaSuccess) return 0;
    cudaGetLastError();
    if (code_sticky(code) && !c->base.lost) {
        c->base.lost = true;
        snprintf(c->base.lost_why, sizeof c->base.lost_why,
                 "%sthe CUDA device cannot go on: %s gave %s (%s); the process has to be restarted",
                 c->base.whose, what, cudaGetErrorName(code), cudaGetErrorString(code));
    }
    return code == cudaErrorMemoryAllocation ? -ENOMEM : BASE_EDEVICE;
}

static int fail_set(struct base_err *err, struct cuda_dev *c, cudaError_t code, const char *what)
{
    return base_err_set(err, code_ours(c, code, what), "device cuda: %s: %s (%s)", what,
                        cudaGetErrorName(code), cudaGetErrorString(code));
}

/* ------------------------------------------------------------------------------------ waits -- */

static int watch(struct cuda_dev *c)
{
    const bool first = !c->watched;
    c->watched = true;
    return c->base.watch(c->base.watch_context, first);
}

static cudaError_t event_state(void *event)
{
    return cudaEventQuery(event);
}

static cudaError_t stream_state(void *stream)
{
    return cudaStreamQuery(stream);
}

/* Until the stream or event is through, with somebody looking whether that can come to be. */
static cudaError_t wait_watched(struct cuda_dev *c, cudaError_t (*state)(void *of), void *of,
                                bool *in_vain)
{
    cudaError_t code;
    while ((code = state(of)) == cudaErrorNotReady) {
        if (watch(c) < 0) *in_vain = true;
    }
    c->watched = false;
    return code;
}

/* A stream that may wait for the compute stream, or is it. */
static cudaError_t stream_wait(struct cuda_dev *c, cudaStream_t stream)
{
    bool in_vain = false;
    if (!c->base.watch) return cudaStreamSynchronize(stream);
    return wait_watched(c, stream_state, stream, &in_vain);
}

static void cuda_destroy(struct dev *dev)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    /* What is in flight still reads and writes memory that is given back here. */
    for (int q = 0; q < DEV_QUEUE_COUNT; q++) {
        struct lane *lane = &c->lanes[q];
        if (lane->stream) stream_wait(c, lane->stream);
    }
    if (c->compute) stream_wait(c, c->compute);
    for (int q = 0; q < DEV_QUEUE_COUNT; q++) {
        struct lane *lane = &c->lanes[q];
        for (int i = 0; i < RING; i++) {
            if (lane->events[i]) cudaEventDestroy(lane->events[i]);
        }
        if (lane->stream) cudaStreamDestroy(lane->stream);
    }
    if (c->mark) cudaEventDestroy(c->mark);
    if (c->note) cudaEventDestroy(c->note);
    if (c->compute) cudaStreamDestroy(c->compute);
    for (unsigned i = 0; i < c->host_region_count; i++)
        cudaHostUnregister(c->host_regions[i]);
    cudaFree(c->arena_base);
    free(c);
}

static int streams_create(struct cuda_dev *c, struct base_err *err)
{
    cudaError_t code = cudaStreamCreateWithFlags(&c->compute, cudaStreamNonBlocking);
    if (code == cudaSuccess) code = cudaEventCreateWithFlags(&c->mark, cudaEventDisableTiming);
    if (code == cudaSuccess) code = cudaEventCreateWithFlags(&c->note, cudaEventDisableTiming);
    for (int q = 0; q < DEV_QUEUE_COUNT && code == cudaSuccess; q++) {
        struct lane *lane = &c->lanes[q];
        code = cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking);
        for (int i = 0; i < RING && code == cudaSuccess; i++) {
            code = cudaEventCreateWithFlags(&lane->events[i], cudaEventDisableTiming);
        }
    }
    return code == cudaSuccess ? 0 : fail_set(err, c, code, "making streams and events");
}

/* The arena leaves a share of the card free for others: activations, libraries, contexts. */
static int arena_create(struct cuda_dev *c, const struct dev_config *config, const char *card,
                        struct base_err *err)
{
    size_t unused, total;
    char want[16], have[16], spare[16];
    cudaError_t code = cudaMemGetInfo(&unused, &total);
    if (code != cudaSuccess) return fail_set(err, c, code, "asking for free memory");
    const uint64_t headroom = (uint64_t)(config->headroom_share * (double)total);
    const uint64_t room = unused > headroom ? unused - headroom : 0;
    c->arena_bytes = config->memory_bytes;
    if (c->arena_bytes + ARENA_ALIGN > room) {
        return base_err_set(err, BASE_EBUDGET,
                            "device cuda: %s has %s free, of which %s stay free as headroom: the "
                            "%s asked of it do not fit",
                            card, base_str_bytes(have, sizeof have, unused),
                            base_str_bytes(spare, sizeof spare, headroom),
                            base_str_bytes(want, sizeof want, c->arena_bytes));
    }
    void *memory;
    code = cudaMalloc(&memory, c->arena_bytes + ARENA_ALIGN);
    if (code != cudaSuccess) return fail_set(err, c, code, "allocating its arena");
    c->arena_base = memory;
    c->arena = (char *)(((uintptr_t)memory + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN);
    return 0;
}

static int cuda_create(struct dev **out, const struct dev_config *config, struct base_clock *clock,
                       struct base_err *err)
{
    struct cuda_dev *c = calloc(1, sizeof *c);
    struct cudaDeviceProp card;
    char bytes[16];
    int count = 0;
    (void)clock;
    if (!c) return base_err_set(err, -ENOMEM, "no memory for device cuda");
    cudaError_t code = cudaGetDeviceCount(&count);
    int rc = 0;
    if (code != cudaSuccess) {
        rc = base_err_set(err, code_ours(c, code, "looking for a card"),
                          "device cuda: no card was found that this machine's driver can use: %s "
                          "(%s)",
                          cudaGetErrorName(code), cudaGetErrorString(code));
        goto fail;
    }
    c->ordinal = (int)config->ordinal;
    if (config->ordinal_wraps) c->ordinal %= count;
    if (c->ordinal >= count) {
        rc =
            base_err_set(err, BASE_EDEVICE, "device cuda: there is no card %u, this machine has %d",
                         config->ordinal, count);
        goto fail;
    }
    code = cudaSetDevice(c->ordinal);
    if (code == cudaSuccess) code = cudaGetDeviceProperties(&card, c->ordinal);
    if (code != cudaSuccess) {
        rc = fail_set(err, c, code, "opening the card");
        goto fail;
    }
    rc = arena_create(c, config, card.name, err);
    if (rc == 0) rc = streams_create(c, err);
    if (rc < 0) goto fail;
    snprintf(c->base.note, sizeof c->base.note, "cuda: card %d, %.100s, compute %d.%d, %s taken",
             c->ordinal, card.name, card.major, card.minor,
             base_str_bytes(bytes, sizeof bytes, c->arena_bytes));
    snprintf(c->base.kind, sizeof c->base.kind, "compute %d.%d", card.major, card.minor);
    for (size_t i = 0; i < sizeof card.uuid.bytes; i++)
        snprintf(c->base.card + 2 * i, 3, "%02x", (unsigned char)card.uuid.bytes[i]);
    *out = &c->base;
    return 0;
fail:
    cuda_destroy(&c->base);
    return rc;
}

static int cuda_memory_alloc(struct dev *dev, size_t bytes, void **out, struct base_err *err)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    const uint64_t begin = (c->arena_used + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    char want[16], have[16];
    *out = NULL;
    if (begin > c->arena_bytes || bytes > c->arena_bytes - begin) {
        return base_err_set(err, BASE_EBUDGET, "the device has %s left, not the %s asked of it",
                            base_str_bytes(have, sizeof have, c->arena_bytes - c->arena_used),
                            base_str_bytes(want, sizeof want, bytes));
    }
    *out = c->arena + begin;
    c->arena_used = begin + bytes;
    return 0;
}

static int cuda_host_register(struct dev *dev, void *memory, size_t bytes)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    if (c->host_region_count == HOST_REGIONS_MAX) return -ENOSPC;
    cudaError_t code = cudaHostRegister(memory, bytes, cudaHostRegisterPortable);
    if (code != cudaSuccess) return code_ours(c, code, "pinning host memory");
    c->host_regions[c->host_region_count++] = memory;
    return 0;
}

static void cuda_host_unregister(struct dev *dev, void *memory)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    for (unsigned i = 0; i < c->host_region_count; i++) {
        if (c->host_regions[i] != memory) continue;
        c->host_regions[i] = c->host_regions[--c->host_region_count];
        code_ours(c, cudaHostUnregister(memory), "letting go of host memory");
        return;
    }
}

static void *cuda_stream(struct dev *dev)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    bind(c);
    return c->compute;
}

static int cuda_stream_copy(struct dev *dev, enum dev_queue way, void *to, const void *from,
                            size_t bytes)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    const bool up = way == DEV_UP;
    cudaError_t code = cudaMemcpyAsync(
        to, from, bytes, up ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, c->compute);
    return code_ours(c, code, "starting a copy on the compute stream") < 0 ? BASE_EDEVICE : 0;
}

static int cuda_stream_note(struct dev *dev)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    cudaError_t code = cudaEventRecord(c->note, c->compute);
    return code_ours(c, code, "noting the compute stream's place") < 0 ? BASE_EDEVICE : 0;
}

static int cuda_stream_reach(struct dev *dev)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    bool in_vain = false;
    cudaError_t code = c->base.watch ? wait_watched(c, event_state, c->note, &in_vain)
                                     : cudaEventSynchronize(c->note);
    const int rc = code_ours(c, code, "waiting for the compute stream");
    return rc < 0 || in_vain ? BASE_EDEVICE : 0;
}

static int cuda_stream_settle(struct dev *dev)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    bind(c);
    cudaError_t code = stream_wait(c, c->compute);
    return code_ours(c, code, "finishing the compute stream") < 0 ? BASE_EDEVICE : 0;
}

static void cuda_mark(struct dev *dev)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    cudaError_t code = cudaEventRecord(c->mark, c->compute);
    if (code == cudaSuccess) {
        c->marked = true;
        return;
    }
    code_ours(c, code, "marking the compute stream");
    /* Nothing tells the up stream how far kernels are: they have to be through with it. */
    stream_wait(c, c->compute);
}

/* Gives the head of the backlog to the card. The event is recorded whatever happened to the pieces:
 * those that were taken still run. */
static void launch(struct cuda_dev *c, struct lane *lane, struct dev_copy *copy)
{
    const unsigned at = (lane->first + lane->count++) % RING;
    const bool up = copy->queue == DEV_UP;
    cudaError_t code = cudaSuccess;
    lane->copies[at] = copy;
    copy->result = 0;
    if (up && c->marked) {
        code = cudaStreamWaitEvent(lane->stream, c->mark, 0);
        if (code == cudaSuccess) c->marked = false;
    }
    for (uint32_t i = 0; i < copy->piece_count && code == cudaSuccess; i++) {
        const struct dev_piece *piece = &copy->pieces[i];
        code = cudaMemcpyAsync(piece->to, piece->from, piece->bytes,
                               up ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, lane->stream);
    }
    if (code != cudaSuccess) copy->result = code_ours(c, code, "starting a copy");
    code = cudaEventRecord(lane->events[at], lane->stream);
    if (code != cudaSuccess) {
        code_ours(c, code, "recording the end of a copy");
        copy->result = BASE_EDEVICE;
        /* Without its event nobody can tell when the pieces are over: wait for them here. */
        stream_wait(c, lane->stream);
    }
    if (copy->result < 0) copy->result = BASE_EDEVICE;
}

static void pump(struct cuda_dev *c, struct lane *lane)
{
    while (lane->backlog && lane->count < RING) {
        struct dev_copy *copy = lane->backlog;
        lane->backlog = copy->next;
        copy->next = NULL;
        launch(c, lane, copy);
    }
}

static void cuda_submit(struct dev *dev, struct dev_copy *copy)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    struct lane *lane = &c->lanes[copy->queue];
    bind(c);
    if (lane->backlog)
        lane->backlog_tail->next = copy;
    else
        lane->backlog = copy;
    lane->backlog_tail = copy;
    pump(c, lane);
}

/* Is the oldest copy of the lane over? On a lost card everything is, and failed. */
static bool head_over(struct cuda_dev *c, struct lane *lane)
{
    struct dev_copy *copy = lane->copies[lane->first];
    cudaError_t code = cudaEventQuery(lane->events[lane->first]);
    if (code == cudaErrorNotReady && !c->base.lost) return false;
    if (code != cudaSuccess) {
        code_ours(c, code, "asking whether a copy is over");
        copy->result = BASE_EDEVICE;
        /* An error that is not sticky says nothing about the copy: its bytes may still move. */
        if (!c->base.lost) stream_wait(c, lane->stream);
    }
    return true;
}

static unsigned lane_collect(struct cuda_dev *c, struct lane *lane, struct dev_copy **done,
                             unsigned max)
{
    unsigned count = 0;
    while (count < max && lane->count > 0 && head_over(c, lane)) {
        struct dev_copy *copy = lane->copies[lane->first];
        copy->done_ns = base_clock_now_ns(c->base.clock);
        lane->first = (lane->first + 1) % RING;
        lane->count--;
        done[count++] = copy;
        pump(c, lane);
    }
    return count;
}

/* Copies up wait for marks of the compute stream, and it for others; until it is through, the watch
 * naps. */
static bool watch_nap(struct cuda_dev *c)
{
    if (!c->base.watch) return false;
    if (cudaStreamQuery(c->compute) != cudaErrorNotReady) {
        c->watched = false;
        return false;
    }
    watch(c);
    return true;
}

static int cuda_reap(struct dev *dev, struct dev_copy **done, unsigned max, unsigned min,
                     uint64_t deadline_ns)
{
    struct cuda_dev *c = (struct cuda_dev *)dev;
    unsigned count = 0;
    for (;;) {
        for (int q = 0; q < DEV_QUEUE_COUNT; q++) {
            count += lane_collect(c, &c->lanes[q], done + count, max - count);
        }
        const uint64_t now = base_clock_now_ns(dev->clock);
        if (count >= min || now >= deadline_ns) return (int)count;
        if (watch_nap(c)) continue;
        const uint64_t next = now + POLL_NS;
        dev->clock->sleep_until_ns(dev->clock, next < deadline_ns ? next : deadline_ns);
    }
}

const struct dev_ops dev_cuda_ops = {
    .name = "cuda",
    .create = cuda_create,
    .destroy = cuda_destroy,
    .memory_alloc = cuda_memory_alloc,
    .host_register = cuda_host_register,
    .host_unregister = cuda_host_unregister,
    .stream = cuda_stream,
    .mark = cuda_mark,
    .stream_copy = cuda_stream_copy,
    .stream_note = cuda_stream_note,
    .stream_reach = cuda_stream_reach,
    .stream_settle = cuda_stream_settle,
    .submit = cuda_submit,
    .reap = cuda_reap,
};
