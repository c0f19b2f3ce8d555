/* Collectives between cards: buffers in device memory, as work of a stream, for ranks with a card
 * each on one machine (ranks.comm: nccl; library: NCCL).
 *
 *     host     enqueue ............ enqueue ......... wait for the stream: watch, watch, watch
 *     stream   kernels ─ collective ─ kernels ─ collective ─ ... ─ note
 *
 * Stream order is all the order there is: what is sent was written by work before, what comes is
 * there for work behind. Every rank enqueues the same collectives in the same order with the same
 * sizes, a rank whose step failed, too; what the host itself has to say goes over comm.h as ever.
 *
 * Whoever waits for such a stream calls comm_cards_watch meanwhile: a rank that does not come, or
 * an error of the library, ends the job with a sentence, as comm.h has it. A rank whose card is
 * lost cannot come but can still speak: it raises the alarm, the others give the collectives up,
 * and all meet on the host.
 *
 * One thread at a time, that of the stream. Nothing here allocates after join, but what the library
 * does inside.
 */
#ifndef COMM_CARDS_H
#define COMM_CARDS_H

#include "comm/comm.h"

/* The configuration wants them; comm may be NULL. */
bool comm_has_cards(const struct comm *comm);
/* Collective. With the card that the calling thread has (cudaSetDevice); blocks until every rank is
 * there. BASE_EDEVICE with the library's sentence. */
int comm_cards_join(struct comm *comm, struct base_err *err);
/* The streams that were given are done, or in_order is false: then nobody is waited for, and what
 * is under way ends with anything in its buffers. Accepts those that never joined. */
void comm_cards_leave(struct comm *comm, bool in_order);

/* As of comm.h, with buffers of the card; those of one call do not overlap, but for all_gather's
 * own part, and all_reduce's, which is the same one. Each returns 0 when it is under way;
 * -ECANCELED after an alarm; another negative code where the library refuses, which leaves the
 * others waiting: comm_cards_lose, or, with a card that is lost, comm_cards_alarm is due. */
int comm_cards_all_reduce(struct comm *comm, uint32_t *data, size_t count, void *stream);
int comm_cards_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes,
                          void *stream);
int comm_cards_all_to_all(struct comm *comm, const void *send, const size_t *send_bytes, void *recv,
                          const size_t *recv_bytes, void *stream);

/* To be called over and over while the stream is waited for, `first` at the beginning of each wait.
 * Naps, longer from time to time. -ECANCELED after an alarm: the stream comes to its end, but what
 * is in its buffers is not what it should be. Does not return where a rank is lost. */
int comm_cards_watch(struct comm *comm, bool first);

/* This rank's card takes no work any more: the others give up what is under way. */
void comm_cards_alarm(struct comm *comm);
/* What one of the calls above returned, when the card is not to blame: ends all ranks. */
void comm_cards_lose(struct comm *comm, int code);

/* -- for implementations ---------------------------------------------------------------------- */

struct comm_cards_ops {
    const char *name;
    int (*join)(struct comm *comm, struct base_err *err);
    void (*leave)(struct comm *comm, bool in_order);
    int (*all_reduce)(struct comm *comm, uint32_t *data, size_t count, void *stream);
    int (*all_gather)(struct comm *comm, const void *send, void *recv, size_t bytes, void *stream);
    int (*all_to_all)(struct comm *comm, const void *send, const size_t *send_bytes, void *recv,
                      const size_t *recv_bytes, void *stream);
    /* What happened to what is under way. */
    int (*check)(struct comm *comm);
    /* What is under way ends at once, whatever the other ranks do. */
    void (*give_up)(struct comm *comm);
    void (*close)(struct comm *comm);
};

/* First member of every implementation. */
struct comm_cards {
    const struct comm_cards_ops *ops;
    struct comm_wait wait;              /* of the stream */
    enum comm_call last;                /* begun last, and its number */
    uint64_t last_number;
    bool joined, over;                  /* over: after an alarm */
};

/* True after an alarm; what was under way is given up then. */
bool comm_cards_over(struct comm *comm);

#endif
