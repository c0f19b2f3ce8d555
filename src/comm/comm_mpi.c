/* Ranks over MPI. Collectives are started and then tested for, never waited for inside the library:
 * only so can a rank that does not come be given up, and time be used meanwhile. */
#include <errno.h>
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/must.h"
#include "comm/comm.h"

struct comm_mpi {
    struct comm base;
    MPI_Comm group;             /* a copy of the world of our own */
    MPI_Comm alarms;            /* another, for words that nobody waits for; or none */
    MPI_Request heard;
    bool alarmed;
};

static struct comm_mpi *mpi_of(struct comm *comm)
{
    MUST(comm->ops == &comm_mpi_ops);
    return (struct comm_mpi *)(void *)comm;
}

static int failed(struct comm *comm, int code)
{
    int size = 0;
    char text[MPI_MAX_ERROR_STRING] = "";
    MPI_Error_string(code, text, &size);
    snprintf(comm->library_error, sizeof comm->library_error, "MPI: %.150s", text);
    return BASE_EDEVICE;
}

/* Takes a started collective to its end. */
static int finish(struct comm *comm, int code, MPI_Request *request)
{
    struct comm_wait wait = { 0 };
    int done = 0;
    if (code != MPI_SUCCESS) return failed(comm, code);
    for (;;) {
        code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) return failed(comm, code);
        if (done) return 0;
        if (!comm_wait_on(comm, &wait)) return -ETIMEDOUT;
    }
}

/* MPI counts in int: words where it can be, so that 8 GiB go at once. */
struct amount {
    MPI_Datatype type;
    size_t bytes;
};

static struct amount amount_of(size_t bytes)
{
    bool words = bytes % sizeof(uint32_t) == 0;
    return (struct amount){ words ? MPI_UINT32_T : MPI_BYTE, words ? sizeof(uint32_t) : 1 };
}

static int count_of(struct amount unit, size_t bytes)
{
    MUST(bytes % unit.bytes == 0 && bytes / unit.bytes <= INT_MAX);
    return (int)(bytes / unit.bytes);
}

/* Once a process, and for good: MPI cannot be begun again. The end is the process's. */
static void finalize(void)
{
    int begun = 0, over = 0;
    MPI_Initialized(&begun);
    MPI_Finalized(&over);
    if (begun && !over) MPI_Finalize();
}

static int initialize(struct base_err *err)
{
    int begun = 0, over = 0, have = 0;
    MPI_Initialized(&begun);
    MPI_Finalized(&over);
    if (over) return base_err_set(err, -EINVAL, "MPI has been ended already");
    if (begun) return 0;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &have) != MPI_SUCCESS ||
        have < MPI_THREAD_SERIALIZED) {
        return base_err_set(err, BASE_EDEVICE, "MPI cannot be begun with calls from more than one "
                            "thread, one at a time (MPI_THREAD_SERIALIZED)");
    }
    atexit(finalize);
    return 0;
}

static int mpi_open(struct comm **out, const struct comm_config *config, struct base_err *err)
{
    (void)config;
    int rank = 0, size = 0, local_rank = 0, local_size = 1, length = 0;
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int rc = initialize(err);
    if (rc < 0) return rc;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size > COMM_RANKS_MAX) {
        return base_err_set(err, BASE_ECONFIG, "%d ranks were started, at most %d can be", size,
                            COMM_RANKS_MAX);
    }
    struct comm_mpi *m = calloc(1, sizeof *m);
    if (!m) return base_err_set(err, -ENOMEM, "no memory for a rank");
    m->base.ops = &comm_mpi_ops;
    m->alarms = MPI_COMM_NULL;
    MPI_Comm local = MPI_COMM_NULL;
    if (MPI_Comm_dup(MPI_COMM_WORLD, &m->group) != MPI_SUCCESS ||
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local) !=
            MPI_SUCCESS) {
        free(m);
        return base_err_set(err, BASE_EDEVICE, "MPI: the group of ranks cannot be made");
    }
    MPI_Comm_set_errhandler(m->group, MPI_ERRORS_RETURN);
    MPI_Comm_rank(m->group, &rank);
    MPI_Comm_rank(local, &local_rank);
    MPI_Comm_size(local, &local_size);
    MPI_Comm_free(&local);
    m->base.rank = (unsigned)rank;
    m->base.size = (unsigned)size;
    m->base.local_rank = (unsigned)local_rank;
    m->base.local_size = (unsigned)local_size;
    MPI_Get_library_version(version, &length);
    for (char *at = version; *at; at++) {
        if (*at == ',' || *at == '\n') *at = '\0';
    }
    snprintf(m->base.note, sizeof m->base.note, "mpi: %d ranks, %d of them on this machine (%.60s)",
             size, local_size, version);
    *out = &m->base;
    return 0;
}

static int mpi_all_reduce(struct comm *comm, uint32_t *data, size_t count)
{
    MPI_Request request;
    MUST(count <= INT_MAX);
    int code = MPI_Iallreduce(MPI_IN_PLACE, data, (int)count, MPI_UINT32_T, MPI_SUM,
                              mpi_of(comm)->group, &request);
    return finish(comm, code, &request);
}

static int mpi_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes)
{
    MPI_Request request;
    struct amount unit = amount_of(bytes);
    int count = count_of(unit, bytes);
    const void *own = (const char *)recv + comm->rank * bytes;
    int code = MPI_Iallgather(send == own ? MPI_IN_PLACE : send, count, unit.type, recv, count,
                              unit.type, mpi_of(comm)->group, &request);
    return finish(comm, code, &request);
}

static int mpi_broadcast(struct comm *comm, void *data, size_t bytes, unsigned root)
{
    MPI_Request request;
    struct amount unit = amount_of(bytes);
    int code = MPI_Ibcast(data, count_of(unit, bytes), unit.type, (int)root, mpi_of(comm)->group,
                          &request);
    return finish(comm, code, &request);
}

static int mpi_all_to_all(struct comm *comm, const void *send, const size_t *send_bytes,
                          void *recv, const size_t *recv_bytes)
{
    MPI_Request request;
    size_t all = 0, sent = 0, received = 0;
    int counts[2][COMM_RANKS_MAX], places[2][COMM_RANKS_MAX];
    for (unsigned r = 0; r < comm->size; r++) {
        all |= send_bytes[r] | recv_bytes[r];
    }
    struct amount unit = amount_of(all);
    for (unsigned r = 0; r < comm->size; r++) {
        counts[0][r] = count_of(unit, send_bytes[r]);
        counts[1][r] = count_of(unit, recv_bytes[r]);
        places[0][r] = count_of(unit, sent);
        places[1][r] = count_of(unit, received);
        sent += send_bytes[r];
        received += recv_bytes[r];
    }
    int code = MPI_Ialltoallv(send, counts[0], places[0], unit.type, recv, counts[1], places[1],
                              unit.type, mpi_of(comm)->group, &request);
    return finish(comm, code, &request);
}

static int mpi_barrier(struct comm *comm)
{
    MPI_Request request;
    int code = MPI_Ibarrier(mpi_of(comm)->group, &request);
    return finish(comm, code, &request);
}

/* ----------------------------------------------------------------------------------- alarms -- */

static char alarm_word;

static int mpi_listen(struct comm *comm, struct base_err *err)
{
    struct comm_mpi *m = mpi_of(comm);
    if (m->alarms != MPI_COMM_NULL) return 0;
    if (MPI_Comm_dup(m->group, &m->alarms) != MPI_SUCCESS ||
        MPI_Irecv(&alarm_word, 1, MPI_BYTE, MPI_ANY_SOURCE, 0, m->alarms, &m->heard) !=
            MPI_SUCCESS) {
        return base_err_set(err, BASE_EDEVICE, "MPI: the ranks cannot listen to alarms");
    }
    return 0;
}

/* A byte is sent at once, whether or not the other one ever looks. */
static void mpi_alarm(struct comm *comm)
{
    static const char word = 1;
    struct comm_mpi *m = mpi_of(comm);
    for (unsigned r = 0; r < comm->size; r++) {
        MPI_Request request;
        if (r != comm->rank &&
            MPI_Isend(&word, 1, MPI_BYTE, (int)r, 0, m->alarms, &request) == MPI_SUCCESS)
            MPI_Request_free(&request);
    }
}

static bool mpi_alarmed(struct comm *comm)
{
    struct comm_mpi *m = mpi_of(comm);
    int done = 0;
    if (m->alarmed || m->alarms == MPI_COMM_NULL) return m->alarmed;
    m->alarmed = MPI_Test(&m->heard, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done;
    return m->alarmed;
}

static void stop_listening(struct comm_mpi *m)
{
    if (m->alarms == MPI_COMM_NULL) return;
    if (!m->alarmed) {
        MPI_Cancel(&m->heard);
        MPI_Wait(&m->heard, MPI_STATUS_IGNORE);
    }
    MPI_Comm_free(&m->alarms);
}

static void mpi_abort(struct comm *comm, int code)
{
    /* Open MPI's mpirun ends a job of which a process ends without MPI_Finalize. MPI_Abort would
     * send it a text first, and 4.1.4 reads that from memory it has given back: mpirun then
     * crashes or hangs now and then, and leaves a rank that is stopped behind. */
    if (getenv("OMPI_COMM_WORLD_RANK")) _exit(code);
    MPI_Abort(mpi_of(comm)->group, code);
}

static void mpi_close(struct comm *comm)
{
    struct comm_mpi *m = mpi_of(comm);
    stop_listening(m);
    MPI_Comm_free(&m->group);
    free(m);
}

const struct comm_ops comm_mpi_ops = {
    .name = "mpi",
    .open = mpi_open,
    .all_reduce = mpi_all_reduce,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .all_to_all = mpi_all_to_all,
    .barrier = mpi_barrier,
    .listen = mpi_listen,
    .alarm = mpi_alarm,
    .alarmed = mpi_alarmed,
    .abort = mpi_abort,
    .close = mpi_close,
};
