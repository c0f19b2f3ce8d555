/* Ranks over NCCL: one card a process. Buffers of the caller lie in host memory and go through
 * pinned memory and the card:
 *
 *     host ── up ──> card ── collective ──> card ── down ──> host     all on one stream of its own
 *
 * so that stream order is the only order needed, and one event at the end says that all is done.
 *
 * The communicator is non-blocking: a call of NCCL may answer "in progress", and nothing else may
 * be asked of it until it is not. Only so can a rank that never comes be given up.
 *
 * libnccl is loaded when it is asked for: programs run on machines without it. An application that
 * brings NCCL along already has its own used.
 *
 * No NCCL has run between real cards here: the tests run this file against a stand-in of NCCL and
 * the emulated CUDA runtime (docs/ranks.md).
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime.h>
#include <nccl.h>

#include "base/must.h"
#include "comm/comm_nccl.h"

#define NCCL_CALLS(X)                                                                             \
    X(GetVersion) X(GetUniqueId) X(CommInitRankConfig) X(CommGetAsyncError) X(CommFinalize)       \
    X(CommDestroy) X(CommAbort) X(GetErrorString) X(GetLastError) X(GroupStart) X(GroupEnd)       \
    X(AllReduce) X(AllGather) X(Broadcast) X(Send) X(Recv)

#define NCCL_FIELD(name) __typeof__(&nccl##name) name;
static struct {
    NCCL_CALLS(NCCL_FIELD)
} nccl;

struct comm_nccl {
    struct comm base;
    struct comm *boot;
    ncclComm_t group;
    int device;
    cudaStream_t stream;
    cudaEvent_t done;
    /* Staging, in two halves: what is sent, what is received. */
    char *card, *host, *host_base;
    size_t half;
};

enum { ALIGN = 4096, HALF_LEAST = 1 << 20 };

static struct comm_nccl *nccl_of(struct comm *comm)
{
    MUST(comm->ops == &comm_nccl_ops);
    return (struct comm_nccl *)(void *)comm;
}

/* ---------------------------------------------------------------------------------- library -- */

static void *find(void *library, const char *name)
{
    void *call = dlsym(RTLD_DEFAULT, name);
    return call || !library ? call : dlsym(library, name);
}

int comm_nccl_version(struct base_err *err)
{
    int version = 0;
    void *library = NULL;
    if (!dlsym(RTLD_DEFAULT, "ncclGetVersion")) {
        library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
        if (!library) return base_err_set(err, -ENOENT, "ranks.comm: nccl: %s", dlerror());
    }
#define NCCL_FIND(name)                                                                           \
    *(void **)(void *)&nccl.name = find(library, "nccl" #name);                                   \
    if (!nccl.name) {                                                                             \
        return base_err_set(err, -ENOENT, "ranks.comm: nccl: this libnccl has no nccl" #name      \
                            ", which NCCL 2.14 and later have");                                  \
    }
    NCCL_CALLS(NCCL_FIND)
    return nccl.GetVersion(&version) == ncclSuccess ? version : -ENOENT;
}

/* ----------------------------------------------------------------------------------- errors -- */

static int cuda_check(struct comm *comm, cudaError_t code)
{
    if (code == cudaSuccess) return 0;
    snprintf(comm->library_error, sizeof comm->library_error, "CUDA: %s (%.100s)",
             cudaGetErrorName(code), cudaGetErrorString(code));
    return BASE_EDEVICE;
}

static int nccl_failed(struct comm_nccl *n, ncclResult_t code)
{
    const char *last = n->group ? nccl.GetLastError(n->group) : NULL;
    snprintf(n->base.library_error, sizeof n->base.library_error, "NCCL: %.60s%s%.80s",
             nccl.GetErrorString(code), last && last[0] ? ": " : "", last ? last : "");
    return BASE_EDEVICE;
}

/* Waits until what was asked of the communicator is under way. */
static int nccl_check(struct comm_nccl *n, ncclResult_t code)
{
    struct comm_wait wait = { 0 };
    if (code == ncclSuccess) return 0;
    if (code != ncclInProgress) return nccl_failed(n, code);
    for (;;) {
        ncclResult_t state = ncclSuccess;
        code = nccl.CommGetAsyncError(n->group, &state);
        if (code != ncclSuccess) return nccl_failed(n, code);
        if (state == ncclSuccess) return 0;
        if (state != ncclInProgress) return nccl_failed(n, state);
        if (!comm_wait_on(&n->base, &wait)) return -ETIMEDOUT;
    }
}

/* ----------------------------------------------------------------------------------- staging -- */

static void room_free(struct comm_nccl *n)
{
    cudaFree(n->card);
    if (n->host) cudaHostUnregister(n->host);
    free(n->host_base);
    n->card = n->host = n->host_base = NULL;
    n->half = 0;
}

/* Room for so many bytes each way. Nothing is under way when it grows. */
static int room(struct comm_nccl *n, size_t bytes)
{
    if (bytes <= n->half) return 0;
    size_t half = HALF_LEAST;
    while (half < bytes) {
        half *= 2;
    }
    room_free(n);
    int rc = cuda_check(&n->base, cudaMalloc((void **)&n->card, 2 * half));
    n->host_base = aligned_alloc(ALIGN, 2 * half);
    if (rc == 0 && !n->host_base) rc = -ENOMEM;
    if (rc == 0) {
        rc = cuda_check(&n->base, cudaHostRegister(n->host_base, 2 * half,
                                                   cudaHostRegisterPortable));
        if (rc == 0) n->host = n->host_base;
    }
    if (rc == 0) n->half = half;
    return rc;
}

/* The bytes go to the card's first half. */
static int up(struct comm_nccl *n, const void *from, size_t send, size_t recv)
{
    /* A thread has a card of its own choice; collectives may come from several, in turn. */
    int rc = cuda_check(&n->base, cudaSetDevice(n->device));
    if (rc == 0) rc = room(n, send > recv ? send : recv);
    if (rc < 0 || send == 0) return rc;
    memcpy(n->host, from, send);
    return cuda_check(&n->base, cudaMemcpyAsync(n->card, n->host, send, cudaMemcpyHostToDevice,
                                                n->stream));
}

/* After the collective: the bytes come from the card's second half, when all before is done. */
static int down(struct comm_nccl *n, void *to, size_t bytes)
{
    struct comm_wait wait = { 0 };
    int rc = 0;
    if (bytes > 0) {
        rc = cuda_check(&n->base, cudaMemcpyAsync(n->host + n->half, n->card + n->half, bytes,
                                                  cudaMemcpyDeviceToHost, n->stream));
    }
    if (rc == 0) rc = cuda_check(&n->base, cudaEventRecord(n->done, n->stream));
    while (rc == 0) {
        cudaError_t code = cudaEventQuery(n->done);
        if (code == cudaSuccess) break;
        if (code != cudaErrorNotReady) return cuda_check(&n->base, code);
        ncclResult_t state = ncclSuccess;
        if (nccl.CommGetAsyncError(n->group, &state) == ncclSuccess && state != ncclSuccess &&
            state != ncclInProgress) return nccl_failed(n, state);
        if (!comm_wait_on(&n->base, &wait)) return -ETIMEDOUT;
    }
    if (rc == 0 && bytes > 0) memcpy(to, n->host + n->half, bytes);
    return rc;
}

/* ------------------------------------------------------------------------------- collectives -- */

static int nccl_all_reduce(struct comm *comm, uint32_t *data, size_t count)
{
    struct comm_nccl *n = nccl_of(comm);
    size_t bytes = count * sizeof *data;
    int rc = up(n, data, bytes, bytes);
    if (rc == 0) {
        rc = nccl_check(n, nccl.AllReduce(n->card, n->card + n->half, count, ncclUint32, ncclSum,
                                          n->group, n->stream));
    }
    return rc < 0 ? rc : down(n, data, bytes);
}

static int nccl_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes)
{
    struct comm_nccl *n = nccl_of(comm);
    int rc = up(n, send, bytes, comm->size * bytes);
    if (rc == 0) {
        rc = nccl_check(n, nccl.AllGather(n->card, n->card + n->half, bytes, ncclUint8, n->group,
                                          n->stream));
    }
    return rc < 0 ? rc : down(n, recv, comm->size * bytes);
}

static int nccl_broadcast(struct comm *comm, void *data, size_t bytes, unsigned root)
{
    struct comm_nccl *n = nccl_of(comm);
    int rc = up(n, data, comm->rank == root ? bytes : 0, bytes);
    if (rc == 0) {
        rc = nccl_check(n, nccl.Broadcast(n->card, n->card + n->half, bytes, ncclUint8, (int)root,
                                          n->group, n->stream));
    }
    return rc < 0 ? rc : down(n, data, bytes);
}

static int nccl_all_to_all(struct comm *comm, const void *send, const size_t *send_bytes,
                           void *recv, const size_t *recv_bytes)
{
    struct comm_nccl *n = nccl_of(comm);
    size_t sent = 0, received = 0;
    for (unsigned r = 0; r < comm->size; r++) {
        sent += send_bytes[r];
        received += recv_bytes[r];
    }
    int rc = up(n, send, sent, received);
    if (rc < 0) return rc;
    /* In one group: sends and receives need each other. Errors come with its end. */
    ncclResult_t code = nccl.GroupStart(), first = code;
    sent = received = 0;
    for (unsigned r = 0; r < comm->size; r++) {
        if (send_bytes[r] > 0) {
            code = nccl.Send(n->card + sent, send_bytes[r], ncclUint8, (int)r, n->group,
                             n->stream);
            if (first == ncclSuccess && code != ncclInProgress) first = code;
        }
        if (recv_bytes[r] > 0) {
            code = nccl.Recv(n->card + n->half + received, recv_bytes[r], ncclUint8, (int)r,
                             n->group, n->stream);
            if (first == ncclSuccess && code != ncclInProgress) first = code;
        }
        sent += send_bytes[r];
        received += recv_bytes[r];
    }
    code = nccl.GroupEnd();
    if (first != ncclSuccess) return nccl_failed(n, first);
    rc = nccl_check(n, code);
    return rc < 0 ? rc : down(n, recv, received);
}

/* NCCL has none: whoever has the sum knows that all were there. */
static int nccl_barrier(struct comm *comm)
{
    uint32_t one = 1;
    return nccl_all_reduce(comm, &one, 1);
}

/* ------------------------------------------------------------------------------ open, close -- */

static void nccl_abort(struct comm *comm, int code)
{
    struct comm_nccl *n = nccl_of(comm);
    if (n->group) nccl.CommAbort(n->group);
    n->boot->ops->abort(n->boot, code);
}

static void nccl_close(struct comm *comm)
{
    struct comm_nccl *n = nccl_of(comm);
    cudaSetDevice(n->device);
    if (n->group) {
        if (nccl_check(n, nccl.CommFinalize(n->group)) == 0) nccl.CommDestroy(n->group);
        else nccl.CommAbort(n->group);
    }
    room_free(n);
    if (n->done) cudaEventDestroy(n->done);
    if (n->stream) cudaStreamDestroy(n->stream);
    comm_close(n->boot);
    free(n);
}

static int choose_card(struct comm_nccl *n)
{
    int cards = 0;
    int rc = cuda_check(&n->base, cudaGetDeviceCount(&cards));
    if (rc < 0) return rc;
    n->device = (int)n->base.local_rank % cards;
    rc = cuda_check(&n->base, cudaSetDevice(n->device));
    if (rc == 0) {
        rc = cuda_check(&n->base, cudaStreamCreateWithFlags(&n->stream, cudaStreamNonBlocking));
    }
    if (rc == 0) {
        rc = cuda_check(&n->base, cudaEventCreateWithFlags(&n->done, cudaEventDisableTiming));
    }
    return rc < 0 ? rc : room(n, HALF_LEAST);
}

static int join(struct comm_nccl *n)
{
    ncclUniqueId id;
    ncclConfig_t settings = NCCL_CONFIG_INITIALIZER;
    memset(&id, 0, sizeof id);
    if (n->base.rank == 0) {
        ncclResult_t code = nccl.GetUniqueId(&id);
        if (code != ncclSuccess) return nccl_failed(n, code);
    }
    comm_broadcast(n->boot, &id, sizeof id, 0);
    settings.blocking = 0;
    return nccl_check(n, nccl.CommInitRankConfig(&n->group, (int)n->base.size, id,
                                                 (int)n->base.rank, &settings));
}

int comm_nccl_open(struct comm **out, struct comm *boot, const struct comm_config *config,
                   struct base_err *err)
{
    int version = comm_nccl_version(err);
    struct comm_nccl *n = version < 0 ? NULL : calloc(1, sizeof *n);
    if (!n) {
        comm_close(boot);
        return version < 0 ? version : base_err_set(err, -ENOMEM, "no memory for a rank");
    }
    n->base = (struct comm){ .ops = &comm_nccl_ops, .rank = boot->rank, .size = boot->size,
                             .local_rank = boot->local_rank, .local_size = boot->local_size,
                             .timeout_ns = config->timeout };
    n->boot = boot;
    comm_patience(boot, UINT64_C(600) * 1000000000);
    comm_patience(&n->base, UINT64_C(600) * 1000000000);
    int rc = choose_card(n);
    if (rc == 0) rc = join(n);
    if (rc < 0) {
        base_err_set(err, rc, "ranks.comm: nccl: rank %u of %u: %s", n->base.rank, n->base.size,
                     n->base.library_error[0] ? n->base.library_error : base_err_name(rc));
        nccl_close(&n->base);
        return rc;
    }
    snprintf(n->base.note, sizeof n->base.note, "nccl %d.%d.%d: %u ranks, %u of them on this "
             "machine, this one on card %d; found by %.60s", version / 10000, version / 100 % 100,
             version % 100, n->base.size, n->base.local_size, n->device, boot->ops->name);
    *out = &n->base;
    return 0;
}

static int nccl_open(struct comm **out, const struct comm_config *config, struct base_err *err)
{
    struct comm *boot;
    int rc = comm_mpi_ops.open(&boot, config, err);
    if (rc < 0) return rc;
    boot->timeout_ns = config->timeout;
    return comm_nccl_open(out, boot, config, err);
}

const struct comm_ops comm_nccl_ops = {
    .name = "nccl",
    .open = nccl_open,
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .broadcast = nccl_broadcast,
    .all_to_all = nccl_all_to_all,
    .barrier = nccl_barrier,
    .abort = nccl_abort,
    .close = nccl_close,
};
