/* Ranks: several processes that serve one model together, and the collectives between them.
 *
 *     self   one process, nothing to exchange
 *     mpi    any number of processes (library: Open MPI), buffers in host memory
 *     nccl   mpi, and beside it collectives between cards (cards.h)
 *
 * Every rank calls the same collectives in the same order with the same sizes. None of them rounds:
 * the sums are of integers. A call returns when this rank's part is done: its buffers are free and
 * what it receives is there.
 *
 * A collective never fails into the caller. A rank that does not join within the patience has ended
 * or hangs; then no rank can go on, so this one says what it knows, ends the job and exits. The
 * same for any error of the library.
 *
 * One thread at a time per object, not always the same one; stats from any thread. Nothing here
 * allocates after open, but what the library does inside.
 */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metric.h"
#include "base/option.h"

#define COMM_OPTIONS(O)                                                                           \
    O(kind, ENUM, "ranks.comm", "auto", "auto|self|mpi|nccl", "",                                 \
      "what ranks speak through: mpi between processes, nccl between the cards of one machine "   \
      "(tiers.hbm.device: cuda) beside mpi; auto = mpi where a launcher (mpirun, srun) started "  \
      "several processes, else self")                                                             \
    O(timeout, TIME, "ranks.timeout", "8s", "100ms..1h", "",                                      \
      "a rank that keeps the others waiting this long while they serve is given up, and all of "  \
      "them end")

struct comm_config {
    BASE_OPTION_STRUCT(COMM_OPTIONS)
};
extern const struct base_option comm_options[];
extern const size_t comm_option_count;

/* The values of ranks.comm, in their order. */
enum comm_choice { COMM_AUTO, COMM_SELF, COMM_MPI, COMM_NCCL };

enum { COMM_RANKS_MAX = 64, COMM_EXIT_CODE = 70 };

enum comm_call {
    COMM_ALL_REDUCE,
    COMM_ALL_GATHER,
    COMM_BROADCAST,
    COMM_ALL_TO_ALL,
    COMM_BARRIER,
    COMM_CALL_COUNT
};
const char *comm_call_name(enum comm_call call);        /* "all_gather" */

struct comm;

/* Each returns 0; -ETIMEDOUT when the patience ran out; BASE_EDEVICE, or another negative code. */
struct comm_ops {
    const char *name;
    int (*open)(struct comm **out, const struct comm_config *config, struct base_err *err);
    int (*all_reduce)(struct comm *comm, uint32_t *data, size_t count);
    int (*all_gather)(struct comm *comm, const void *send, void *recv, size_t bytes);
    int (*broadcast)(struct comm *comm, void *data, size_t bytes, unsigned root);
    int (*all_to_all)(struct comm *comm, const void *send, const size_t *send_bytes, void *recv,
                      const size_t *recv_bytes);
    int (*barrier)(struct comm *comm);
    /* Optional, together: a word to all ranks that none of them waits for. listen comes first, on
     * every rank. */
    int (*listen)(struct comm *comm, struct base_err *err);
    void (*alarm)(struct comm *comm);
    bool (*alarmed)(struct comm *comm);
    /* Ends the job as the library can; returns when it cannot. */
    void (*abort)(struct comm *comm, int code);
    void (*close)(struct comm *comm);
};

/* Who a rank is, for the sentence that gives it up. */
struct comm_peer {
    char host[64];
    int64_t pid;
};

/* First member of every implementation; read-only for callers but for `idle`. */
struct comm {
    const struct comm_ops *ops;
    unsigned rank, size;
    unsigned local_rank, local_size;    /* among the ranks of this machine */
    struct comm_cards *cards;           /* NULL: no collectives between cards (cards.h) */
    char note[200];                     /* what it is, for the report at start */
    /* Called now and then while a collective waits for other ranks; may be NULL. */
    void (*idle)(void *context);
    void *idle_context;
    uint64_t timeout_ns, patience_ns;   /* of the configuration; of the next calls */
    struct comm_peer peers[COMM_RANKS_MAX];
    char library_error[160];            /* what the library said last */
    uint64_t sequence;                  /* collectives begun */
    _Atomic uint64_t calls[COMM_CALL_COUNT], bytes[COMM_CALL_COUNT], ns[COMM_CALL_COUNT];
};

/* BASE_ECONFIG when the build or the launch does not allow what is asked for. Blocks until every
 * rank is there. */
int comm_open(struct comm **out, const struct comm_config *config, struct base_err *err);
/* In order: every rank calls it, and waits for the others. Accepts NULL. */
void comm_close(struct comm *comm);
/* This rank cannot go on: ends all ranks. Returns only for one rank. */
void comm_abort(struct comm *comm, const char *why);

/* How long the next calls wait for the other ranks; 0 = ranks.timeout. Opening a model takes
 * minutes on one rank and seconds on another. */
void comm_patience(struct comm *comm, uint64_t ns);

/* data[count] becomes the sum over the ranks, modulo 2^32. */
void comm_all_reduce(struct comm *comm, uint32_t *data, size_t count);
/* recv[size][bytes], in order of ranks; send may lie in its place. */
void comm_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes);
void comm_broadcast(struct comm *comm, void *data, size_t bytes, unsigned root);
/* The same for a rank that waits for work: the time is not counted. */
void comm_listen(struct comm *comm, void *data, size_t bytes, unsigned root);
/* send: what goes to rank 0, then to rank 1, ...; recv alike. bytes[size] of each, its own too. */
void comm_all_to_all(struct comm *comm, const void *send, const size_t *send_bytes, void *recv,
                     const size_t *recv_bytes);
void comm_barrier(struct comm *comm);

/* Bytes are those that this rank received from others. */
#define COMM_METRICS(M)                                                                           \
    M(calls, COUNTER, "", "collectives of this kind")                                             \
    M(received_bytes, COUNTER, "bytes", "bytes that this rank received in them")                  \
    M(seconds, REAL, "seconds", "time in them, waiting for other ranks included")

struct comm_metrics {
    BASE_METRIC_STRUCT(COMM_METRICS)
};
extern const struct base_metric comm_metrics[];
extern const size_t comm_metric_count;

/* Any thread; [COMM_CALL_COUNT]. Zeros for NULL. */
void comm_stats(const struct comm *comm, struct comm_metrics *out);
/* All collectives together, in nanoseconds. */
uint64_t comm_ns(const struct comm *comm);

/* -- for implementations ---------------------------------------------------------------------- */

/* A wait for other ranks: false = the patience is over. Yields, then sleeps, and calls idle. */
struct comm_wait {
    uint64_t began_ns;
    unsigned turns;
};
bool comm_wait_on(struct comm *comm, struct comm_wait *wait);
/* The same without idle: where the caller is not to be entered again. */
bool comm_wait_quietly(struct comm *comm, struct comm_wait *wait);
/* Adds a collective to the numbers. */
void comm_count(struct comm *comm, enum comm_call call, uint64_t bytes, uint64_t ns);
/* `what` ("all_gather 5163") came to nothing: -ETIMEDOUT when ranks did not join it, another code
 * when it failed. Says so, with what is known of the others, and ends the job. */
_Noreturn void comm_lose(struct comm *comm, const char *what, int code);

extern const struct comm_ops comm_self_ops;
#ifdef EXPERTIER_MPI
extern const struct comm_ops comm_mpi_ops;
#endif

#endif
