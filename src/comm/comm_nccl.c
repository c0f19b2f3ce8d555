/* Collectives between cards over NCCL: enqueued on the caller's stream, straight from and to its
 * buffers. The host waits for none of them.
 *
 * The communicator is non-blocking: a call of NCCL may answer "in progress", and nothing else may
 * be asked of it until it is not. Only so can a rank that never comes be given up.
 *
 * One communicator for each join: rank 0 makes its id, which the ranks hand on as hosts. Ranks of
 * one machine: over several nothing here was ever tried.
 *
 * libnccl is loaded when it is asked for: programs run on machines without it. An application that
 * brings NCCL along already has its own used.
 *
 * The tests run this file against a stand-in of NCCL and the emulated CUDA runtime, and with NCCL
 * itself on one card (tests/gpu); between several cards it has not run (docs/ranks.md).
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nccl.h>

#include "base/must.h"
#include "comm/comm_nccl.h"

#define NCCL_CALLS(X)                                                                             \
    X(GetVersion) X(GetUniqueId) X(CommInitRankConfig) X(CommGetAsyncError) X(CommFinalize)       \
    X(CommDestroy) X(CommAbort) X(GetErrorString) X(GetLastError) X(GroupStart) X(GroupEnd)       \
    X(AllReduce) X(AllGather) X(Send) X(Recv)

#define NCCL_FIELD(name) __typeof__(&nccl##name) name;
static struct {
    NCCL_CALLS(NCCL_FIELD)
} nccl;

struct comm_nccl {
    struct comm_cards base;
    ncclComm_t group;           /* NULL: not joined, or given up */
};

static const struct comm_cards_ops nccl_ops;

static struct comm_nccl *nccl_of(struct comm *comm)
{
    MUST(comm->cards->ops == &nccl_ops);
    return (struct comm_nccl *)(void *)comm->cards;
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

static int failed(struct comm *comm, ncclResult_t code)
{
    struct comm_nccl *n = nccl_of(comm);
    const char *last = n->group ? nccl.GetLastError(n->group) : NULL;
    snprintf(comm->library_error, sizeof comm->library_error, "NCCL: %.60s%s%.80s",
             nccl.GetErrorString(code), last && last[0] ? ": " : "", last ? last : "");
    return BASE_EDEVICE;
}

static void give_up(struct comm *comm)
{
    struct comm_nccl *n = nccl_of(comm);
    if (n->group) nccl.CommAbort(n->group);
    n->group = NULL;
}

/* Waits until what was asked of the communicator is under way. */
static int settle(struct comm *comm, ncclResult_t code)
{
    struct comm_nccl *n = nccl_of(comm);
    struct comm_wait wait = { 0 };
    while (code == ncclInProgress) {
        if (comm_cards_over(comm)) return -ECANCELED;
        if (!comm_wait_on(comm, &wait)) return -ETIMEDOUT;
        ncclResult_t asked = nccl.CommGetAsyncError(n->group, &code);
        if (asked != ncclSuccess) code = asked;
    }
    return code == ncclSuccess ? 0 : failed(comm, code);
}

/* What CUDA itself will say is left to it. */
static int nccl_check(struct comm *comm)
{
    ncclResult_t state = ncclSuccess, code = ncclSuccess;
    if (nccl_of(comm)->group) code = nccl.CommGetAsyncError(nccl_of(comm)->group, &state);
    if (code == ncclSuccess) code = state;
    if (code == ncclSuccess || code == ncclInProgress || code == ncclUnhandledCudaError) return 0;
    return failed(comm, code);
}

/* ------------------------------------------------------------------------------- collectives -- */

static int nccl_all_reduce(struct comm *comm, uint32_t *data, size_t count, void *stream)
{
    return settle(comm, nccl.AllReduce(data, data, count, ncclUint32, ncclSum,
                                       nccl_of(comm)->group, stream));
}

/* Words where it can be: fewer of them, moved as fast. */
static int nccl_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes,
                           void *stream)
{
    const bool words = bytes % sizeof(uint32_t) == 0;
    return settle(comm, nccl.AllGather(send, recv, words ? bytes / sizeof(uint32_t) : bytes,
                                       words ? ncclUint32 : ncclUint8, nccl_of(comm)->group,
                                       stream));
}

static void keep(ncclResult_t *first, ncclResult_t code)
{
    if (*first == ncclSuccess && code != ncclInProgress) *first = code;
}

/* Its own part, too: a copy on the stream, by NCCL. */
static int nccl_all_to_all(struct comm *comm, const void *send, const size_t *send_bytes,
                           void *recv, const size_t *recv_bytes, void *stream)
{
    const ncclComm_t group = nccl_of(comm)->group;
    const char *from = send;
    char *to = recv;
    size_t all = 0;
    for (unsigned r = 0; r < comm->size; r++)
        all += send_bytes[r] + recv_bytes[r];
    if (all == 0) return 0;
    ncclResult_t first = nccl.GroupStart();
    if (first != ncclSuccess) return failed(comm, first);
    for (unsigned r = 0; r < comm->size; r++) {
        if (send_bytes[r] > 0)
            keep(&first, nccl.Send(from, send_bytes[r], ncclUint8, (int)r, group, stream));
        if (recv_bytes[r] > 0)
            keep(&first, nccl.Recv(to, recv_bytes[r], ncclUint8, (int)r, group, stream));
        from += send_bytes[r];
        to += recv_bytes[r];
    }
    const ncclResult_t ended = nccl.GroupEnd();
    return first != ncclSuccess ? failed(comm, first) : settle(comm, ended);
}

/* ------------------------------------------------------------------------------ join, leave -- */

static int nccl_join(struct comm *comm, struct base_err *err)
{
    struct comm_nccl *n = nccl_of(comm);
    struct {
        ncclUniqueId id;
        uint32_t code;
    } first = { .code = ncclSuccess };
    ncclConfig_t settings = NCCL_CONFIG_INITIALIZER;
    if (comm->rank == 0) first.code = nccl.GetUniqueId(&first.id);
    comm_broadcast(comm, &first, sizeof first, 0);
    int rc = first.code == ncclSuccess ? 0 : failed(comm, (ncclResult_t)first.code);
    settings.blocking = 0;
    if (rc == 0) {
        rc = settle(comm, nccl.CommInitRankConfig(&n->group, (int)comm->size, first.id,
                                                  (int)comm->rank, &settings));
    }
    if (rc == 0) return 0;
    give_up(comm);
    return base_err_set(err, rc, "ranks.comm: nccl: rank %u of %u cannot join the others: %s",
                        comm->rank, comm->size,
                        comm->library_error[0] ? comm->library_error : base_err_name(rc));
}

static void nccl_leave(struct comm *comm, bool in_order)
{
    struct comm_nccl *n = nccl_of(comm);
    if (n->group && in_order && settle(comm, nccl.CommFinalize(n->group)) == 0) {
        nccl.CommDestroy(n->group);
        n->group = NULL;
    }
    give_up(comm);
}

static void nccl_close(struct comm *comm)
{
    struct comm_nccl *n = nccl_of(comm);
    give_up(comm);
    comm->cards = NULL;
    free(n);
}

int comm_nccl_attach(struct comm *comm, struct base_err *err)
{
    if (comm->local_size != comm->size) {
        return base_err_set(err, BASE_ECONFIG, "ranks.comm: nccl takes the ranks of one machine, "
                            "and %u of %u are elsewhere: take mpi",
                            comm->size - comm->local_size, comm->size);
    }
    int version = comm_nccl_version(err);
    if (version < 0) return version;
    struct comm_nccl *n = calloc(1, sizeof *n);
    if (!n) return base_err_set(err, -ENOMEM, "no memory for a rank");
    n->base.ops = &nccl_ops;
    comm->cards = &n->base;
    size_t used = strlen(comm->note);
    snprintf(comm->note + used, sizeof comm->note - used, "; between cards nccl %d.%d.%d",
             version / 10000, version / 100 % 100, version % 100);
    return 0;
}

static const struct comm_cards_ops nccl_ops = {
    .name = "nccl",
    .join = nccl_join,
    .leave = nccl_leave,
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .all_to_all = nccl_all_to_all,
    .check = nccl_check,
    .give_up = give_up,
    .close = nccl_close,
};
