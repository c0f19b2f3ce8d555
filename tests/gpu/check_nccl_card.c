/* Shows on a card that src/comm/comm_nccl.c gets from the real NCCL what collectives are defined to
 * give, on a stream between kernels' work, with one rank and with two; that an alarm frees a stream
 * which waits for a rank that will not come; and that such a rank is given up in time.
 *
 * Two ranks have one card here, which NCCL takes for two machines (NCCL_HOSTID): what they exchange
 * goes over sockets, and the card gives them turns. So nothing here says how fast NCCL is, nor that
 * it agrees with NVLink.
 *
 *   check_nccl_card            skipped (77) where no libnccl is found */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "comm/comm_nccl.h"
#include "tests/gpu/card.h"
#include "tests/support/card_collectives.h"

enum { RANKS_MAX = 2, SLOT = 4096, ROUNDS = 40 };

/* ------------------------------------------------------------------- ranks: forked processes -- */

/* The host's collectives over memory that the processes share, one after the other. */
struct meeting {
    _Atomic uint32_t here[2], turn;     /* of a turn: who has come, two turns apart */
    _Atomic bool alarm;
    unsigned char slots[RANKS_MAX][SLOT];
};
static struct meeting *meeting;

/* When all are here the turn ends. */
static int meet(struct comm *comm)
{
    struct comm_wait wait = { 0 };
    const uint32_t turn = atomic_load(&meeting->turn);
    if (atomic_fetch_add(&meeting->here[turn % 2], 1) + 1 == comm->size) {
        atomic_store(&meeting->here[turn % 2], 0);
        atomic_store(&meeting->turn, turn + 1);
    }
    while (atomic_load(&meeting->turn) == turn)
        if (!comm_wait_on(comm, &wait)) return -ETIMEDOUT;
    return 0;
}

static int fork_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes)
{
    if (bytes > SLOT) return -EMSGSIZE;
    memcpy(meeting->slots[comm->rank], send, bytes);
    int rc = meet(comm);
    for (unsigned r = 0; r < comm->size; r++)
        memcpy((char *)recv + r * bytes, meeting->slots[r], bytes);
    return rc < 0 ? rc : meet(comm);
}

static int fork_broadcast(struct comm *comm, void *data, size_t bytes, unsigned root)
{
    unsigned char all[RANKS_MAX][SLOT];
    int rc = fork_all_gather(comm, data, all, bytes);
    memcpy(data, (char *)all + root * bytes, bytes);
    return rc;
}

static int fork_listen(struct comm *comm, struct base_err *err)
{
    (void)comm, (void)err;
    return 0;
}

static void fork_alarm(struct comm *comm)
{
    (void)comm;
    atomic_store(&meeting->alarm, true);
}

static bool fork_alarmed(struct comm *comm)
{
    (void)comm;
    return atomic_load(&meeting->alarm);
}

static void fork_abort(struct comm *comm, int code)
{
    (void)comm;
    _exit(code);
}

static void fork_close(struct comm *comm)
{
    (void)comm;
}

static const struct comm_ops fork_ops = {
    .name = "fork",
    .all_gather = fork_all_gather,
    .broadcast = fork_broadcast,
    .listen = fork_listen,
    .alarm = fork_alarm,
    .alarmed = fork_alarmed,
    .abort = fork_abort,
    .close = fork_close,
};

/* ------------------------------------------------------------------------------------ cases -- */

enum { SPIN_NS = 50000 };

/* Slow, so that what does not wait for it comes too early. */
static void keep(void *to, const void *from, size_t bytes, void *stream)
{
    card_keep(to, from, bytes, SPIN_NS, stream);
}

static unsigned collectives(struct comm *comm, struct dev *dev)
{
    struct comm_metrics stats[COMM_CALL_COUNT];
    double calls = 0, seconds = 0;
    const unsigned wrong = card_collectives_check(comm, dev, keep, ROUNDS, true);
    comm_stats(comm, stats);
    for (int c = 0; c < COMM_CALL_COUNT; c++) {
        calls += (double)stats[c].calls;
        seconds += stats[c].seconds;
    }
    printf("rank %u: %.0f collectives, %.1f us of the host each\n", comm->rank, calls,
           1e6 * seconds / calls);
    return wrong;
}

static cudaStream_t another;

static void keep_astray(void *to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    card_keep(to, from, bytes, SPIN_NS, another);
}

/* Kernels on another stream than the collectives: else the rounds above would show nothing. */
static unsigned another_stream_is_noticed(struct comm *comm, struct dev *dev)
{
    CARD(cudaStreamCreateWithFlags(&another, cudaStreamNonBlocking));
    const unsigned wrong = card_collectives_check(comm, dev, keep_astray, ROUNDS, false);
    CARD(cudaDeviceSynchronize());
    CARD(cudaStreamDestroy(another));
    return wrong == 0;
}

static int watch(void *context, bool first)
{
    return comm_cards_watch(context, first);
}

/* Rank 0's stream waits for a collective that rank 1 never asks for. */
static void wait_in_vain(struct comm *comm, struct dev *dev)
{
    struct base_err err = { 0 };
    void *memory;
    if (dev_memory_alloc(dev, SLOT, &memory, &err) < 0 || comm_cards_join(comm, &err) < 0) {
        printf("rank %u: %s\n", comm->rank, err.text);
        exit(EXIT_FAILURE);
    }
    dev->watch = watch;
    dev->watch_context = comm;
    /* One that both come to, so that connections are made. */
    if (comm_cards_all_reduce(comm, memory, SLOT / 4, dev_stream(dev)) < 0 ||
        dev_stream_settle(dev) < 0) exit(EXIT_FAILURE);
    if (comm->rank == 0) {
        if (comm_cards_all_reduce(comm, memory, SLOT / 4, dev_stream(dev)) < 0) exit(EXIT_FAILURE);
        dev_stream_note(dev);
    }
}

static unsigned alarm_frees_the_stream(struct comm *comm, struct dev *dev)
{
    unsigned wrong = 0;
    wait_in_vain(comm, dev);
    if (comm->rank == 1) {
        usleep(300000);
        comm_cards_alarm(comm);
    } else {
        const uint64_t began_ns = base_now_ns();
        const int rc = dev_stream_reach(dev);
        const double ms = (double)(base_now_ns() - began_ns) / 1e6;
        wrong = rc != BASE_EDEVICE || ms < 100 || ms > 3000 || dev_stream_settle(dev) < 0 ||
                dev->lost;
        printf("rank 0: the stream was free %.0f ms after the wait began, with %d\n", ms, rc);
    }
    comm_cards_leave(comm, false);
    dev->watch = NULL;
    return wrong;
}

static unsigned a_rank_is_given_up(struct comm *comm, struct dev *dev)
{
    wait_in_vain(comm, dev);
    if (comm->rank == 1) {
        sleep(6);
        _exit(0);
    }
    comm_patience(comm, UINT64_C(1000000000));
    dev_stream_reach(dev);      /* ends the process */
    return 1;
}

struct test {
    const char *name;
    unsigned ranks;
    unsigned (*run)(struct comm *comm, struct dev *dev);
    int code;                   /* with which rank 0 ends */
    unsigned within_s;
};

static int run_rank(const struct test *t, unsigned rank)
{
    static struct comm comm;
    struct base_err err = { 0 };
    struct dev *dev;
    char host[16];
    snprintf(host, sizeof host, "machine-%u", rank);
    setenv("NCCL_HOSTID", host, 1);
    comm = (struct comm){ .ops = &fork_ops, .rank = rank, .size = t->ranks, .local_rank = rank,
                          .local_size = t->ranks, .timeout_ns = UINT64_C(60000000000) };
    snprintf(comm.peers[rank].host, sizeof comm.peers[0].host, "here");
    comm_patience(&comm, 0);
    const struct dev_config config = { .memory_bytes = card_collectives_bytes(&comm) + (1u << 20) };
    if (comm_nccl_attach(&comm, &err) < 0 ||
        dev_create(&dev, dev_find("cuda"), &config, base_clock_real(), &err) < 0) {
        printf("rank %u: %s\n", rank, err.text);
        return EXIT_FAILURE;
    }
    const unsigned wrong = t->run(&comm, dev);
    dev_destroy(dev);
    comm_close(&comm);
    return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}

static bool run_test(const struct test *t)
{
    pid_t pids[RANKS_MAX];
    int status[RANKS_MAX];
    const uint64_t began_ns = base_now_ns();
    memset(meeting, 0, sizeof *meeting);
    fflush(stdout);
    for (unsigned r = 0; r < t->ranks; r++) {
        pids[r] = fork();
        if (pids[r] == 0) {
            const int code = run_rank(t, r);
            fflush(stdout);
            _exit(code);
        }
    }
    for (unsigned r = 0; r < t->ranks; r++)
        waitpid(pids[r], &status[r], 0);
    const double s = (double)(base_now_ns() - began_ns) / 1e9;
    bool ok = WIFEXITED(status[0]) && WEXITSTATUS(status[0]) == t->code && s <= t->within_s;
    for (unsigned r = 1; r < t->ranks; r++)
        ok = ok && WIFEXITED(status[r]) && WEXITSTATUS(status[r]) == 0;
    struct card_row row = { .stage = "device", .ok = ok };
    snprintf(row.name, sizeof row.name, "%s", t->name);
    snprintf(row.note, sizeof row.note, "%u rank%s, %.1f s, rank 0 ends with %d", t->ranks,
             t->ranks == 1 ? "" : "s on one card over sockets", s,
             WIFEXITED(status[0]) ? WEXITSTATUS(status[0]) : -1);
    card_row_give(&row);
    return ok;
}

int main(void)
{
    static const struct test tests[] = {
        { "nccl: collectives of one rank", 1, collectives, 0, 60 },
        { "nccl: collectives of two ranks", 2, collectives, 0, 60 },
        { "nccl: another stream is noticed", 1, another_stream_is_noticed, 0, 60 },
        { "nccl: an alarm frees the stream", 2, alarm_frees_the_stream, 0, 60 },
        { "nccl: a rank is given up", 2, a_rank_is_given_up, COMM_EXIT_CODE, 60 },
    };
    struct base_err err = { 0 };
    const int version = comm_nccl_version(&err);
    unsigned failed = 0;
    if (version < 0) {
        printf("skipped: %s\n", err.text);
        return 77;
    }
    printf("libnccl %d.%d.%d\n", version / 10000, version / 100 % 100, version % 100);
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
    setenv("NCCL_IB_DISABLE", "1", 0);
    meeting = mmap(NULL, sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                   -1, 0);
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++)
        failed += !run_test(&tests[i]);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
