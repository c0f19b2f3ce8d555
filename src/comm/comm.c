#include "comm/comm.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/must.h"
#include "base/str.h"
#include "comm/cards.h"
#include "comm/comm_nccl.h"

#define BASE_OPTION_OWNER struct comm_config
const struct base_option comm_options[] = { COMM_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t comm_option_count = sizeof comm_options / sizeof comm_options[0];

#define BASE_METRIC_OWNER struct comm_metrics
const struct base_metric comm_metrics[] = { COMM_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t comm_metric_count = sizeof comm_metrics / sizeof comm_metrics[0];

static const char *const call_names[COMM_CALL_COUNT] = {
    "all_reduce", "all_gather", "broadcast", "all_to_all", "barrier",
};

const char *comm_call_name(enum comm_call call)
{
    return call_names[call];
}

/* ------------------------------------------------------------------------------ open, close -- */

/* What the launchers that people use tell a process: Open MPI, MPICH and Slurm's PMI-2, PMIx. */
static bool launched(void)
{
    static const char *const sizes[] = { "OMPI_COMM_WORLD_SIZE", "PMI_SIZE" };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const char *text = getenv(sizes[i]);
        if (text) return strtoul(text, NULL, 10) > 1;
    }
    /* PMIx has a rank for a single process, too; how many there are says its launcher. */
    const char *step = getenv("SLURM_STEP_NUM_TASKS");
    return getenv("PMIX_RANK") && !(step && strtoul(step, NULL, 10) == 1);
}

static const struct comm_ops *find(const struct comm_config *config, struct base_err *err)
{
    enum comm_choice kind = (enum comm_choice)config->kind;
    if (kind == COMM_AUTO) kind = launched() ? COMM_MPI : COMM_SELF;
    if (kind == COMM_SELF && launched()) {
        base_err_set(err, BASE_ECONFIG, "ranks.comm: self, but a launcher started several "
                     "processes: each would serve the whole model; take mpi, or start one");
        return NULL;
    }
    if (kind == COMM_SELF) return &comm_self_ops;
#ifdef EXPERTIER_MPI
    if (kind == COMM_MPI) return &comm_mpi_ops;
#else
    if (kind == COMM_MPI) {
        base_err_set(err, BASE_ECONFIG, "ranks.comm: this build has no MPI, which several "
                     "processes need: configure it again where Open MPI is (Debian package "
                     "libopenmpi-dev), or start one process");
        return NULL;
    }
#endif
#if defined EXPERTIER_NCCL && defined EXPERTIER_MPI
    return &comm_mpi_ops;       /* between hosts; NCCL is attached to it */
#else
    base_err_set(err, BASE_ECONFIG, "ranks.comm: this build has no NCCL: configure it where "
                 "nccl.h, libnccl, the CUDA toolkit and Open MPI are, or take mpi");
    return NULL;
#endif
}

int comm_open(struct comm **out, const struct comm_config *config, struct base_err *err)
{
    *out = NULL;
    const struct comm_ops *ops = find(config, err);
    if (!ops) return BASE_ECONFIG;
    int rc = ops->open(out, config, err);
    if (rc < 0) return rc;
    struct comm *comm = *out;
    comm->timeout_ns = config->timeout;
#ifdef EXPERTIER_NCCL
    if (config->kind == COMM_NCCL) rc = comm_nccl_attach(comm, err);
    if (rc < 0) {
        comm_close(comm);
        *out = NULL;
        return rc;
    }
#endif
    MUST(comm->ops == ops && comm->rank < comm->size && comm->size <= COMM_RANKS_MAX);
    struct comm_peer self = { .pid = getpid() };
    gethostname(self.host, sizeof self.host - 1);
    comm_patience(comm, 600 * UINT64_C(1000000000));
    comm_all_gather(comm, &self, comm->peers, sizeof self);
    comm_patience(comm, 0);
    return 0;
}

void comm_close(struct comm *comm)
{
    if (!comm) return;
    if (comm->cards) comm->cards->ops->close(comm);
    /* The library would wait for a rank that hangs for ever, and say nothing. */
    comm_patience(comm, 0);
    int rc = comm->ops->barrier(comm);
    if (rc < 0) comm_lose(comm, "the end", rc);
    comm->ops->close(comm);
}

static void end_job(struct comm *comm)
{
    if (comm->size == 1) return;
    /* The library may hang with the rank that is gone. */
    signal(SIGALRM, SIG_DFL);
    alarm(2);
    comm_cards_leave(comm, false);
    comm->ops->abort(comm, COMM_EXIT_CODE);
    _exit(COMM_EXIT_CODE);
}

void comm_abort(struct comm *comm, const char *why)
{
    if (!comm || comm->size == 1) return;
    base_log(BASE_LOG_ERROR, "ranks", "rank %u of %u ends, and all others with it: %s", comm->rank,
             comm->size, why);
    end_job(comm);
}

/* ------------------------------------------------------------------------------------- loss -- */

/* What can be seen of a process of this machine: "ended", "stopped", "alive". */
static const char *state_of(const struct comm_peer *peer)
{
    char path[64], line[256] = "";
    snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", peer->pid);
    FILE *from = fopen(path, "re");
    if (!from) return "has ended";
    size_t size = fread(line, 1, sizeof line - 1, from);
    fclose(from);
    line[size] = '\0';
    const char *state = strrchr(line, ')');
    if (!state || state[1] == '\0') return "has ended";
    switch (state[2]) {
    case 'Z':
    case 'X': return "has ended";
    case 'T':
    case 't': return "is stopped";
    case 'D': return "waits for a device";
    default: return "is alive";
    }
}

void comm_lose(struct comm *comm, const char *what, int code)
{
    char waited[16], who[400] = "";
    size_t used = 0;
    const struct comm_peer *self = &comm->peers[comm->rank];
    for (unsigned r = 0; r < comm->size && used < sizeof who; r++) {
        const struct comm_peer *peer = &comm->peers[r];
        bool here = strcmp(peer->host, self->host) == 0;
        if (r == comm->rank || peer->pid == 0) continue;
        used += (size_t)snprintf(who + used, sizeof who - used, "; rank %u (process %" PRId64
                                 " on %s) %s", r, peer->pid, peer->host,
                                 here ? state_of(peer) : "cannot be seen from here");
    }
    if (code == -ETIMEDOUT) {
        base_log(BASE_LOG_ERROR, "ranks", "rank %u of %u: %s was not joined by every rank within "
                 "%s (ranks.timeout): one has ended or hangs, and this rank ends%s", comm->rank,
                 comm->size, what, base_str_duration(waited, sizeof waited, comm->patience_ns),
                 who);
    } else {
        base_log(BASE_LOG_ERROR, "ranks", "rank %u of %u: %s failed, and this rank ends: %s%s",
                 comm->rank, comm->size, what,
                 comm->library_error[0] ? comm->library_error : base_err_name(code), who);
    }
    end_job(comm);
    MUST(!"one rank has nobody to lose");
    abort();
}

static bool wait_on(struct comm *comm, struct comm_wait *wait, bool idle)
{
    enum { YIELDS = 500, CHECK_EVERY = 64, NAP_NS = 20000, NAP_MOST_NS = 500000 };
    if (wait->turns++ == 0) wait->began_ns = base_now_ns();
    if (wait->turns < YIELDS && wait->turns % CHECK_EVERY != 0) {
        sched_yield();
        return true;
    }
    uint64_t waited = base_now_ns() - wait->began_ns;
    if (waited > comm->patience_ns) return false;
    if (wait->turns < YIELDS) return true;
    if (idle && comm->idle) comm->idle(comm->idle_context);
    /* A hundredth of what was waited so far is what a nap may add. */
    uint64_t nap = waited / 100;
    nap = nap < NAP_NS ? NAP_NS : nap > NAP_MOST_NS ? NAP_MOST_NS : nap;
    struct timespec pause = { .tv_nsec = (long)nap };
    nanosleep(&pause, NULL);
    return true;
}

bool comm_wait_on(struct comm *comm, struct comm_wait *wait)
{
    return wait_on(comm, wait, true);
}

bool comm_wait_quietly(struct comm *comm, struct comm_wait *wait)
{
    return wait_on(comm, wait, false);
}

void comm_patience(struct comm *comm, uint64_t ns)
{
    comm->patience_ns = ns ? ns : comm->timeout_ns;
}

/* ------------------------------------------------------------------------------ collectives -- */

static uint64_t begin(struct comm *comm)
{
    comm->sequence++;
    return base_now_ns();
}

static void add(_Atomic uint64_t *to, uint64_t n)
{
    atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

void comm_count(struct comm *comm, enum comm_call call, uint64_t bytes, uint64_t ns)
{
    add(&comm->calls[call], 1);
    add(&comm->bytes[call], bytes);
    add(&comm->ns[call], ns);
}

static void end(struct comm *comm, enum comm_call call, uint64_t bytes, uint64_t began_ns, int rc)
{
    if (rc < 0) {
        char what[48];
        snprintf(what, sizeof what, "%s %" PRIu64, call_names[call], comm->sequence);
        comm_lose(comm, what, rc);
    }
    comm_count(comm, call, bytes, base_now_ns() - began_ns);
}

void comm_all_reduce(struct comm *comm, uint32_t *data, size_t count)
{
    uint64_t began_ns = begin(comm);
    int rc = count ? comm->ops->all_reduce(comm, data, count) : 0;
    end(comm, COMM_ALL_REDUCE, comm->size > 1 ? count * sizeof *data : 0, began_ns, rc);
}

void comm_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes)
{
    uint64_t began_ns = begin(comm);
    int rc = bytes ? comm->ops->all_gather(comm, send, recv, bytes) : 0;
    end(comm, COMM_ALL_GATHER, (comm->size - 1) * bytes, began_ns, rc);
}

void comm_broadcast(struct comm *comm, void *data, size_t bytes, unsigned root)
{
    MUST(root < comm->size);
    uint64_t began_ns = begin(comm);
    int rc = bytes ? comm->ops->broadcast(comm, data, bytes, root) : 0;
    end(comm, COMM_BROADCAST, root == comm->rank ? 0 : bytes, began_ns, rc);
}

void comm_listen(struct comm *comm, void *data, size_t bytes, unsigned root)
{
    MUST(root < comm->size && bytes > 0);
    begin(comm);
    int rc = comm->ops->broadcast(comm, data, bytes, root);
    end(comm, COMM_BROADCAST, root == comm->rank ? 0 : bytes, base_now_ns(), rc);
}

void comm_all_to_all(struct comm *comm, const void *send, const size_t *send_bytes, void *recv,
                     const size_t *recv_bytes)
{
    uint64_t began_ns = begin(comm), bytes = 0;
    MUST(send_bytes[comm->rank] == recv_bytes[comm->rank]);
    for (unsigned r = 0; r < comm->size; r++) {
        bytes += r == comm->rank ? 0 : recv_bytes[r];
    }
    int rc = comm->ops->all_to_all(comm, send, send_bytes, recv, recv_bytes);
    end(comm, COMM_ALL_TO_ALL, bytes, began_ns, rc);
}

void comm_barrier(struct comm *comm)
{
    uint64_t began_ns = begin(comm);
    end(comm, COMM_BARRIER, 0, began_ns, comm->ops->barrier(comm));
}

/* -------------------------------------------------------------------------------- counters -- */

void comm_stats(const struct comm *comm, struct comm_metrics *out)
{
    for (int c = 0; c < COMM_CALL_COUNT; c++) {
        out[c] = (struct comm_metrics){ 0 };
        if (!comm) continue;
        out[c].calls = atomic_load_explicit(&comm->calls[c], memory_order_relaxed);
        out[c].received_bytes = atomic_load_explicit(&comm->bytes[c], memory_order_relaxed);
        out[c].seconds = (double)atomic_load_explicit(&comm->ns[c], memory_order_relaxed) / 1e9;
    }
}

uint64_t comm_ns(const struct comm *comm)
{
    uint64_t ns = 0;
    for (int c = 0; comm && c < COMM_CALL_COUNT; c++) {
        ns += atomic_load_explicit(&comm->ns[c], memory_order_relaxed);
    }
    return ns;
}
