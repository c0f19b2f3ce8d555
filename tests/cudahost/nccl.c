#include "tests/cudahost/include/nccl.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/nccl_stub.h"

enum { MAGIC = 0x6e63636c, MESSAGES_MAX = 2 * COMM_RANKS_MAX };

enum what { ALL_REDUCE, ALL_GATHER, BROADCAST, GROUP };
static const char *const names[] = { "ncclAllReduce", "ncclAllGather", "ncclBroadcast", "a group" };

struct ncclComm {
    uint32_t magic;
    int ranks, rank;
    bool finalized, blocking;
    unsigned pending;           /* times that it still answers "in progress" */
    uint64_t asked;
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
    int type, root;
    const void *send;
    void *recv;
    struct message messages[MESSAGES_MAX];
    unsigned count;
};

static struct comm *wire;
static struct base_rng rng;
static unsigned communicators, depth, late;
static struct work *group;
static cudaStream_t group_stream;

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

void nccl_stub_wire(struct comm *to)
{
    if (!to && communicators > 0) report("%u communicators are left", communicators);
    if (!to && depth > 0) report("ncclGroupStart without its end");
    communicators = depth = 0;
    wire = to;
}

void nccl_stub_seed(uint64_t seed)
{
    base_rng_init(&rng, seed);
}

unsigned nccl_stub_late(void)
{
    return late;
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
    if (comm->pending > 0) report("%s while the last call is in progress", call);
    if (comm->finalized) report("%s after ncclCommFinalize", call);
    return comm->pending == 0 && !comm->finalized;
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

static size_t size_of(ncclDataType_t type)
{
    return type == ncclUint32 ? 4 : 1;
}

/* ------------------------------------------------------------------ when the stream is there -- */

static bool agree(const struct work *w)
{
    uint64_t own[5] = { w->what, w->number, w->what == GROUP ? 0 : w->bytes, (uint64_t)w->type,
                        (uint64_t)w->root };
    uint64_t all[COMM_RANKS_MAX][5];
    comm_all_gather(wire, own, all, sizeof own);
    for (unsigned r = 0; r < wire->size; r++) {
        if (memcmp(all[r], own, sizeof own) == 0) continue;
        report("rank %u has %s of %llu bytes as its number %llu, rank %u %s of %llu",
                        wire->rank, names[w->what], (unsigned long long)w->bytes,
                        (unsigned long long)w->number, r,
                        all[r][0] <= GROUP ? names[all[r][0]] : "?", (unsigned long long)all[r][2]);
    }
    /* Every rank sees the same table, so all of them go on or none. */
    for (unsigned r = 1; r < wire->size; r++) {
        if (memcmp(all[r], all[0], sizeof own) != 0) return false;
    }
    return true;
}

static void exchange(struct work *w)
{
    size_t sizes[2][COMM_RANKS_MAX] = { { 0 } }, all[COMM_RANKS_MAX][2][COMM_RANKS_MAX];
    size_t at[2][COMM_RANKS_MAX], sums[2] = { 0 };
    for (unsigned i = 0; i < w->count; i++) {
        sizes[!w->messages[i].send][w->messages[i].peer] += w->messages[i].bytes;
    }
    comm_all_gather(wire, sizes, all, sizeof sizes);
    for (unsigned a = 0; a < wire->size; a++) {
        for (unsigned b = 0; b < wire->size; b++) {
            if (all[a][0][b] == all[b][1][a]) continue;
            report("rank %u sends %zu bytes to rank %u, which receives %zu", a,
                            all[a][0][b], b, all[b][1][a]);
            return;             /* and so does everybody else */
        }
    }
    for (int way = 0; way < 2; way++) {
        for (unsigned r = 0; r < wire->size; r++) {
            at[way][r] = sums[way];
            sums[way] += sizes[way][r];
        }
    }
    char *packed = malloc(sums[0] + 1), *come = malloc(sums[1] + 1);
    for (unsigned i = 0; i < w->count; i++) {
        const struct message *m = &w->messages[i];
        if (m->send) memcpy(packed + at[0][m->peer], m->memory, m->bytes);
    }
    comm_all_to_all(wire, packed, sizes[0], come, sizes[1]);
    for (unsigned i = 0; i < w->count; i++) {
        const struct message *m = &w->messages[i];
        if (!m->send) memcpy(m->memory, come + at[1][m->peer], m->bytes);
    }
    free(packed);
    free(come);
}

static void work_run(void *context)
{
    struct work *w = context;
    if (!agree(w)) return;
    switch (w->what) {
    case ALL_REDUCE:
        memmove(w->recv, w->send, w->bytes);
        comm_all_reduce(wire, w->recv, w->bytes / 4);
        break;
    case ALL_GATHER: comm_all_gather(wire, w->send, w->recv, w->bytes); break;
    case BROADCAST:
        if (wire->rank == (unsigned)w->root) memmove(w->recv, w->send, w->bytes);
        comm_broadcast(wire, w->recv, w->bytes, (unsigned)w->root);
        break;
    case GROUP: exchange(w); break;
    }
}

static ncclResult_t queue(struct work *w, cudaStream_t stream)
{
    ncclComm_t comm = w->comm;
    w->number = comm->asked++;
    cudahost_call(names[w->what], stream, work_run, w, free);
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
                               ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * size_of(type);
    if (!enter(comm, names[what])) return ncclInvalidUsage;
    size_t received = what == ALL_GATHER ? bytes * (size_t)comm->ranks : bytes;
    if (depth > 0) report("%s in a group: the stand-in has none of these", names[what]);
    if (what == ALL_REDUCE && type != ncclUint32) {
        report("the stand-in adds up ncclUint32 alone");
    }
    if (root < 0 || root >= comm->ranks) {
        report("%s from rank %d", names[what], root);
        return ncclInvalidArgument;
    }
    bool sends = what != BROADCAST || comm->rank == root;
    if (!buffers(names[what], recv, received, stream) ||
        (sends && !buffers(names[what], send, bytes, stream))) return ncclInvalidArgument;
    struct work *w = work_of(comm, what);
    w->bytes = bytes;
    w->type = type;
    w->root = root;
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
    for (size_t i = 0; i < sizeof id->internal; i++) {
        id->internal[i] = (char)(1 + base_rng_below(&rng, 100));
    }
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    ncclUniqueId all[COMM_RANKS_MAX];
    if (config->magic != 0xcafebeefu || config->size != sizeof *config) {
        report("ncclConfig_t was not initialized");
        return ncclInvalidArgument;
    }
    if (ranks != (int)wire->size || rank != (int)wire->rank) {
        report("rank %d of %d, but it is rank %u of %u", rank, ranks, wire->rank,
                        wire->size);
    }
    comm_all_gather(wire, &id, all, sizeof id);
    for (unsigned r = 0; r < wire->size; r++) {
        if (memcmp(&all[r], &id, sizeof id) != 0) report("ranks have different ids");
    }
    ncclComm_t comm = calloc(1, sizeof *comm);
    *comm = (struct ncclComm){ .magic = MAGIC, .ranks = ranks, .rank = rank,
                               .blocking = config->blocking != 0 };
    communicators++;
    *out = comm;
    return answer(comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    if (!comm || comm->magic != MAGIC) {
        report("ncclCommGetAsyncError: no communicator");
        return ncclInvalidArgument;
    }
    *error = comm->pending > 0 ? ncclInProgress : ncclSuccess;
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
    comm->magic = 0;
    communicators--;
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (comm && comm->magic == MAGIC && (comm->pending > 0 || !comm->finalized)) {
        report("ncclCommDestroy of what is not finalized");
    }
    return end(comm, "ncclCommDestroy");
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    return end(comm, "ncclCommAbort");
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclInvalidUsage ? "invalid usage" : "another error";
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
    return queue(w, group_stream);
}

static ncclResult_t message(const char *call, bool send, void *memory, size_t count,
                            ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * size_of(type);
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
    if (group->comm != comm || group_stream != stream) {
        report("%s: a group over two streams or communicators", call);
    }
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
    return collective(ALL_REDUCE, send, recv, count, type, 0, comm, stream);
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    return collective(ALL_GATHER, send, recv, count, type, 0, comm, stream);
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream)
{
    return collective(BROADCAST, send, recv, count, type, root, comm, stream);
}
