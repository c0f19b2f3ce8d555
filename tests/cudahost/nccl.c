#include "tests/cudahost/include/nccl.h"

#include <fcntl.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/nccl_stub.h"

enum { MAGIC = 0x6e63636c, RANKS_MAX = 8, POISON = 0xa5 };

enum what { ALL_REDUCE, ALL_GATHER, GROUP };
static const char *const names[] = { "ncclAllReduce", "ncclAllGather", "a group" };

/* What a rank brings to a collective, with its data behind it. A rank begins one when it has ended
 * the one before, for which all others had ended the one before that: two places are enough. */
struct post {
    uint64_t what, bytes, type;
    uint64_t sent[RANKS_MAX], wanted[RANKS_MAX];
    unsigned char data[(16u << 20) - (3 + 2 * RANKS_MAX) * sizeof(uint64_t)];
};
struct shared {
    _Atomic uint32_t attached;
    _Atomic uint64_t posted[RANKS_MAX]; /* collectives of each rank so far */
    struct post posts[][2];             /* [ranks] */
};

struct ncclComm {
    uint32_t magic;
    int ranks, rank;
    bool joined, finalized, blocking, aborted;
    unsigned pending;           /* times that it still answers "in progress" */
    unsigned refs;              /* by its work, and the caller's */
    uint64_t asked, done;
    ncclResult_t error;
    struct shared *shared;
    size_t shared_bytes;
    char path[128];
};

struct message {
    bool send;
    void *memory;
    size_t bytes;
    int peer;
};

/* Work of one communicator on a stream. */
struct work {
    ncclComm_t comm;
    enum what what;
    uint64_t number, bytes;
    int type;
    const void *send;
    void *recv;
    struct message messages[2 * RANKS_MAX];
    unsigned count;
    bool begun, never;
};

static struct base_rng rng;
static unsigned communicators, depth, late;
static struct work *group;
static cudaStream_t group_stream, side_stream;
static bool set_up, to_side;
static struct {
    bool async;
    int code;
    unsigned at;                /* 0: nothing */
} fault;

static void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void report(const char *format, ...)
{
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cudahost_tell(text);
}

void nccl_stub_end(void)
{
    if (communicators > 0) report("%u communicators are left", communicators);
    if (depth > 0) report("ncclGroupStart without its end");
    if (side_stream) cudaStreamDestroy(side_stream);
    communicators = depth = 0;
    side_stream = NULL;
}

void nccl_stub_seed(uint64_t seed)
{
    base_rng_init(&rng, seed);
    cudahost_at_reset = nccl_stub_end;
    set_up = true;
}

unsigned nccl_stub_late(void)
{
    return late;
}

void nccl_stub_side(bool side)
{
    to_side = side;
}

static void from_environment(void)
{
    const char *seed = getenv("CUDAHOST_SEED"), *stream = getenv("NCCL_STUB_STREAM");
    const char *fail = getenv("NCCL_STUB_FAIL");
    if (set_up) return;
    nccl_stub_seed(seed ? strtoull(seed, NULL, 10) : 1);
    to_side = stream && strcmp(stream, "side") == 0;
    if (!fail) return;
    fault.async = strncmp(fail, "async:", 6) == 0;
    if (sscanf(strchr(fail, ':') ? strchr(fail, ':') : "", ":%d@%u", &fault.code, &fault.at) != 2) {
        fprintf(stderr, "NCCL_STUB_FAIL=%s: call:CODE@N, async:CODE@N are known\n", fail);
        exit(70);
    }
}

/* A card works beside its host, whatever the host waits for; between two such calls it naps. */
static void time_passes(void)
{
    for (int i = 0; i < 8 && communicators > 0; i++)
        cudahost_works();
}

int MPI_Test(MPI_Request *request, int *flag, MPI_Status *status)
{
    time_passes();
    return PMPI_Test(request, flag, status);
}

static ncclResult_t answer(ncclComm_t comm)
{
    if (comm->blocking || base_rng_below(&rng, 3) > 0) return ncclSuccess;
    late++;
    comm->pending = 1 + (unsigned)base_rng_below(&rng, 4);
    return ncclInProgress;
}

/* Whether a call may be made at all. */
static bool enter(ncclComm_t comm, const char *call)
{
    if (!comm || comm->magic != MAGIC) {
        report("%s: no communicator", call);
        return false;
    }
    const bool busy = comm->pending > 0 || !comm->joined;
    if (busy) report("%s while the last call is in progress", call);
    if (comm->finalized) report("%s after ncclCommFinalize", call);
    return !busy && !comm->finalized;
}

static bool buffers(const char *call, const void *memory, size_t bytes, cudaStream_t stream)
{
    if (!cudahost_stream_known(stream)) {
        report("%s on what is no stream", call);
        return false;
    }
    if (bytes == 0 || cudahost_device_memory(memory, bytes)) return true;
    report("%s of %zu bytes that are not the card's", call, bytes);
    return false;
}

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    const char *first = a, *second = b;
    return first < second + b_bytes && second < first + a_bytes;
}

static size_t size_of(ncclDataType_t type)
{
    return type == ncclUint32 ? 4 : 1;
}

/* ------------------------------------------------------------------ when the stream is there -- */

static struct post *post_of(const struct work *w, int rank)
{
    return &w->comm->shared->posts[rank][w->number % 2];
}

/* Where the part lies that goes from a post to that rank. */
static size_t place_of(const struct post *post, int rank)
{
    size_t at = 0;
    for (int r = 0; r < rank; r++)
        at += post->sent[r];
    return at;
}

static void overwrite(const struct work *w, void *memory, size_t bytes)
{
    if (bytes == 0 || cudahost_device_memory(memory, bytes)) memset(memory, POISON, bytes);
    else report("%s: its buffers were given back under way", names[w->what]);
}

static void poison(const struct work *w)
{
    for (unsigned i = 0; i < w->count; i++)
        if (!w->messages[i].send) overwrite(w, w->messages[i].memory, w->messages[i].bytes);
    if (w->what != GROUP)
        overwrite(w, w->recv, w->bytes * (w->what == ALL_GATHER ? (size_t)w->comm->ranks : 1));
}

static void begin(struct work *w)
{
    struct post *post = post_of(w, w->comm->rank);
    post->what = w->what;
    post->bytes = w->what == GROUP ? 0 : w->bytes;
    post->type = (uint64_t)w->type;
    memset(post->sent, 0, sizeof post->sent);
    memset(post->wanted, 0, sizeof post->wanted);
    for (unsigned i = 0; i < w->count; i++) {
        const struct message *m = &w->messages[i];
        (m->send ? post->sent : post->wanted)[m->peer] = m->bytes;
    }
    for (unsigned i = 0; i < w->count; i++) {
        const struct message *m = &w->messages[i];
        if (m->send) memcpy(post->data + place_of(post, m->peer), m->memory, m->bytes);
    }
    if (w->what != GROUP) memcpy(post->data, w->send, w->bytes);
    poison(w);
    w->begun = true;
    atomic_store(&w->comm->shared->posted[w->comm->rank], w->number + 1);
}

/* Every rank sees the same, so all of them go on or none. */
static bool agree(const struct work *w)
{
    const int ranks = w->comm->ranks;
    for (int a = 0; a < ranks; a++) {
        const struct post *one = post_of(w, a), *first = post_of(w, 0);
        if (one->what != first->what || one->bytes != first->bytes || one->type != first->type) {
            report("rank 0 has %s of %llu bytes as its number %llu, rank %d %s of %llu",
                   names[first->what % 3], (unsigned long long)first->bytes,
                   (unsigned long long)w->number, a, names[one->what % 3],
                   (unsigned long long)one->bytes);
            return false;
        }
        for (int b = 0; b < ranks; b++) {
            if (one->sent[b] == post_of(w, b)->wanted[a]) continue;
            report("rank %d sends %llu bytes to rank %d, which receives %llu", a,
                   (unsigned long long)one->sent[b], b,
                   (unsigned long long)post_of(w, b)->wanted[a]);
            return false;
        }
    }
    return true;
}

static void end_work(struct work *w)
{
    const int ranks = w->comm->ranks, rank = w->comm->rank;
    uint32_t *sum = w->recv;
    if (!agree(w)) return;
    if (w->what == ALL_REDUCE) memset(sum, 0, w->bytes);
    for (int r = 0; r < ranks && w->what == ALL_REDUCE; r++) {
        const uint32_t *part = (const uint32_t *)(const void *)post_of(w, r)->data;
        for (size_t i = 0; i < w->bytes / sizeof *sum; i++)
            sum[i] += part[i];
    }
    for (int r = 0; r < ranks && w->what == ALL_GATHER; r++)
        memcpy((char *)w->recv + (size_t)r * w->bytes, post_of(w, r)->data, w->bytes);
    for (unsigned i = 0; i < w->count; i++) {
        const struct message *m = &w->messages[i];
        const struct post *from = post_of(w, m->peer);
        if (!m->send) memcpy(m->memory, from->data + place_of(from, rank), m->bytes);
    }
}

static bool work_call(void *context)
{
    struct work *w = context;
    ncclComm_t comm = w->comm;
    if (comm->aborted) {
        poison(w);
        return true;
    }
    /* In the order in which the host asked, on whatever streams. */
    if (w->never || comm->done != w->number) return false;
    if (!w->begun) begin(w);
    for (int r = 0; r < comm->ranks; r++)
        if (atomic_load(&comm->shared->posted[r]) <= w->number) return false;
    if (base_rng_below(&rng, 2)) return false;
    end_work(w);
    comm->done++;
    return true;
}

static void unref(ncclComm_t comm)
{
    if (--comm->refs > 0) return;
    munmap(comm->shared, comm->shared_bytes);
    free(comm);
}

static void work_drop(void *context)
{
    struct work *w = context;
    unref(w->comm);
    free(w);
}

static ncclResult_t queue(struct work *w, cudaStream_t stream)
{
    ncclComm_t comm = w->comm;
    const bool fails = fault.at > 0 && --fault.at == 0;
    if (cudahost_lost() || (fails && !fault.async)) {
        free(w);
        return cudahost_lost() ? ncclUnhandledCudaError : (ncclResult_t)fault.code;
    }
    if (to_side && !side_stream) cudaStreamCreateWithFlags(&side_stream, cudaStreamNonBlocking);
    w->number = comm->asked++;
    w->never = fails;
    if (fails) comm->error = (ncclResult_t)fault.code;
    comm->refs++;
    cudahost_call(names[w->what], to_side ? side_stream : stream, work_call, w, work_drop);
    return answer(comm);
}

static struct work *work_of(ncclComm_t comm, enum what what)
{
    struct work *w = calloc(1, sizeof *w);
    w->comm = comm;
    w->what = what;
    return w;
}

static ncclResult_t collective(enum what what, const void *send, void *recv, size_t count,
                               ncclDataType_t type, ncclComm_t comm, cudaStream_t stream)
{
    const size_t bytes = count * size_of(type);
    if (!enter(comm, names[what])) return ncclInvalidUsage;
    const size_t received = what == ALL_GATHER ? bytes * (size_t)comm->ranks : bytes;
    const char *own = (char *)recv + (what == ALL_GATHER ? bytes * (size_t)comm->rank : 0);
    if (depth > 0) report("%s in a group: the stand-in has none of these", names[what]);
    if (what == ALL_REDUCE && type != ncclUint32) report("the stand-in adds up ncclUint32 alone");
    if (bytes > sizeof ((struct post *)0)->data) report("%zu bytes are too many here", bytes);
    if (!buffers(names[what], recv, received, stream) ||
        !buffers(names[what], send, bytes, stream)) return ncclInvalidArgument;
    if (send != own && overlap(send, bytes, recv, received)) {
        report("%s: what is sent overlaps what is received", names[what]);
        return ncclInvalidArgument;
    }
    struct work *w = work_of(comm, what);
    w->bytes = bytes;
    w->type = type;
    w->send = send;
    w->recv = recv;
    return queue(w, stream);
}

/* -------------------------------------------------------------------------------------- NCCL -- */

ncclResult_t ncclGetVersion(int *version)
{
    *version = 22809;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    const char *folder = getenv("TMPDIR");
    if (!folder) folder = "/tmp";
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%.100s/nccl-stub-XXXXXX", folder);
    const int file = mkstemp(id->internal);
    if (file < 0) return ncclSystemError;
    close(file);
    return ncclSuccess;
}

static bool attach(ncclComm_t comm)
{
    const int file = open(comm->path, O_RDWR | O_CLOEXEC);
    comm->shared_bytes = sizeof *comm->shared + (size_t)comm->ranks * sizeof comm->shared->posts[0];
    if (file < 0 || ftruncate(file, (off_t)comm->shared_bytes) < 0) return false;
    comm->shared = mmap(NULL, comm->shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (comm->shared == MAP_FAILED) return false;
    atomic_fetch_add(&comm->shared->attached, 1);
    return true;
}

/* The file is there until every rank has it. */
static void look_for_others(ncclComm_t comm)
{
    if (comm->joined || atomic_load(&comm->shared->attached) < (uint32_t)comm->ranks) return;
    comm->joined = true;
    if (comm->rank == 0) unlink(comm->path);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    from_environment();
    if (config->magic != 0xcafebeefu || config->size != sizeof *config) {
        report("ncclConfig_t was not initialized");
        return ncclInvalidArgument;
    }
    if (ranks > RANKS_MAX || rank < 0 || rank >= ranks) {
        report("rank %d of %d", rank, ranks);
        return ncclInvalidArgument;
    }
    ncclComm_t comm = calloc(1, sizeof *comm);
    *comm = (struct ncclComm){ .magic = MAGIC, .ranks = ranks, .rank = rank, .refs = 1,
                               .blocking = config->blocking != 0 };
    memcpy(comm->path, id.internal, sizeof comm->path);
    if (!attach(comm)) {
        free(comm);
        return ncclSystemError;
    }
    communicators++;
    *out = comm;
    look_for_others(comm);
    while (comm->blocking && !comm->joined)
        look_for_others(comm);
    return comm->joined ? answer(comm) : ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    if (!comm || comm->magic != MAGIC) {
        report("ncclCommGetAsyncError: no communicator");
        return ncclInvalidArgument;
    }
    look_for_others(comm);
    time_passes();
    *error = comm->pending > 0 || !comm->joined ? ncclInProgress : comm->error;
    comm->pending -= comm->pending > 0;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    if (!enter(comm, "ncclCommFinalize")) return ncclInvalidUsage;
    ncclResult_t code = answer(comm);
    comm->finalized = true;
    return code;
}

static ncclResult_t end(ncclComm_t comm, const char *call)
{
    if (!comm || comm->magic != MAGIC) {
        report("%s: no communicator", call);
        return ncclInvalidArgument;
    }
    if (comm->rank == 0 && !comm->joined) unlink(comm->path);
    comm->magic = 0;
    comm->aborted = true;
    communicators--;
    unref(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (comm && comm->magic == MAGIC) {
        if (comm->pending > 0 || !comm->finalized)
            report("ncclCommDestroy of what is not finalized");
        if (comm->refs > 1) report("ncclCommDestroy with work under way");
    }
    return end(comm, "ncclCommDestroy");
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    return end(comm, "ncclCommAbort");
}

const char *ncclGetErrorString(ncclResult_t result)
{
    switch (result) {
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    default: return "another error";
    }
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (depth == 0) {
        report("ncclGroupEnd without a start");
        return ncclInvalidUsage;
    }
    if (--depth > 0 || !group) return ncclSuccess;
    struct work *w = group;
    group = NULL;
    for (unsigned i = 0; i < w->count; i++) {
        for (unsigned k = 0; k < w->count; k++) {
            const struct message *a = &w->messages[i], *b = &w->messages[k];
            if (a->send && !b->send && overlap(a->memory, a->bytes, b->memory, b->bytes))
                report("a group: what is sent overlaps what is received");
        }
    }
    return queue(w, group_stream);
}

static ncclResult_t message(const char *call, bool send, void *memory, size_t count,
                            ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    const size_t bytes = count * size_of(type);
    if (!enter(comm, call)) return ncclInvalidUsage;
    if (depth == 0) {
        report("%s outside a group waits for ever for its counterpart", call);
        return ncclInvalidUsage;
    }
    if (peer < 0 || peer >= comm->ranks) {
        report("%s with rank %d", call, peer);
        return ncclInvalidArgument;
    }
    if (!buffers(call, memory, bytes, stream)) return ncclInvalidArgument;
    if (!group) {
        group = work_of(comm, GROUP);
        group_stream = stream;
    }
    if (group->comm != comm || group_stream != stream)
        report("%s: a group over two streams or communicators", call);
    for (unsigned i = 0; i < group->count; i++) {
        if (group->messages[i].send == send && group->messages[i].peer == peer) {
            report("%s: twice with rank %d in one group", call, peer);
            return ncclInvalidUsage;
        }
    }
    group->messages[group->count++] = (struct message){ send, memory, bytes, peer };
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return message("ncclSend", true, (void *)(uintptr_t)send, count, type, peer, comm, stream);
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return message("ncclRecv", false, recv, count, type, peer, comm, stream);
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    if (op != ncclSum) report("the stand-in knows sums alone");
    return collective(ALL_REDUCE, send, recv, count, type, comm, stream);
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    return collective(ALL_GATHER, send, recv, count, type, comm, stream);
}
