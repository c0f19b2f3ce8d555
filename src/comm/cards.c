#include "comm/cards.h"

#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/must.h"

bool comm_has_cards(const struct comm *comm)
{
    return comm && comm->cards && comm->size > 1;
}

int comm_cards_join(struct comm *comm, struct base_err *err)
{
    MUST(!comm->cards->joined);
    int rc = comm->ops->listen ? comm->ops->listen(comm, err) : 0;
    if (rc == 0) rc = comm->cards->ops->join(comm, err);
    comm->cards->joined = rc == 0;
    return rc;
}

void comm_cards_leave(struct comm *comm, bool in_order)
{
    if (!comm || !comm->cards || !comm->cards->joined) return;
    comm->cards->ops->leave(comm, in_order && !comm->cards->over);
    comm->cards->joined = false;
}

/* ------------------------------------------------------------------------------ collectives -- */

bool comm_cards_over(struct comm *comm)
{
    struct comm_cards *cards = comm->cards;
    if (cards->over || !comm->ops->alarmed || !comm->ops->alarmed(comm)) return cards->over;
    cards->over = true;
    cards->ops->give_up(comm);
    return true;
}

/* The time is the host's: the collective itself runs on the stream. */
static uint64_t begin(struct comm *comm, enum comm_call call)
{
    MUST(comm->cards->joined);
    comm->cards->last = call;
    comm->cards->last_number = ++comm->sequence;
    return base_now_ns();
}

static int end(struct comm *comm, uint64_t bytes, uint64_t began_ns, int rc)
{
    if (rc == 0) comm_count(comm, comm->cards->last, bytes, base_now_ns() - began_ns);
    return rc;
}

int comm_cards_all_reduce(struct comm *comm, uint32_t *data, size_t count, void *stream)
{
    const uint64_t began_ns = begin(comm, COMM_ALL_REDUCE);
    if (comm->cards->over) return -ECANCELED;
    int rc = count ? comm->cards->ops->all_reduce(comm, data, count, stream) : 0;
    return end(comm, count * sizeof *data, began_ns, rc);
}

int comm_cards_all_gather(struct comm *comm, const void *send, void *recv, size_t bytes,
                          void *stream)
{
    const uint64_t began_ns = begin(comm, COMM_ALL_GATHER);
    if (comm->cards->over) return -ECANCELED;
    int rc = bytes ? comm->cards->ops->all_gather(comm, send, recv, bytes, stream) : 0;
    return end(comm, (comm->size - 1) * bytes, began_ns, rc);
}

int comm_cards_all_to_all(struct comm *comm, const void *send, const size_t *send_bytes, void *recv,
                          const size_t *recv_bytes, void *stream)
{
    const uint64_t began_ns = begin(comm, COMM_ALL_TO_ALL);
    uint64_t bytes = 0;
    MUST(send_bytes[comm->rank] == recv_bytes[comm->rank]);
    if (comm->cards->over) return -ECANCELED;
    for (unsigned r = 0; r < comm->size; r++)
        bytes += r == comm->rank ? 0 : recv_bytes[r];
    int rc = comm->cards->ops->all_to_all(comm, send, send_bytes, recv, recv_bytes, stream);
    return end(comm, bytes, began_ns, rc);
}

/* -------------------------------------------------------------------------------- the watch -- */

static void lose(struct comm *comm, const char *where, int code)
{
    const struct comm_cards *cards = comm->cards;
    char what[120];
    snprintf(what, sizeof what, "%s %llu%s", comm_call_name(cards->last),
             (unsigned long long)cards->last_number, where);
    comm_lose(comm, what, code);
}

int comm_cards_watch(struct comm *comm, bool first)
{
    static const char where[] = " on the card's stream, or one before it,";
    struct comm_cards *cards = comm->cards;
    if (first) cards->wait = (struct comm_wait){ 0 };
    if (!cards->joined) return 0;
    if (!comm_cards_over(comm)) {
        int rc = cards->ops->check(comm);
        if (rc < 0) lose(comm, where, rc);
    }
    if (!comm_wait_quietly(comm, &cards->wait)) lose(comm, where, -ETIMEDOUT);
    return cards->over ? -ECANCELED : 0;
}

void comm_cards_alarm(struct comm *comm)
{
    if (!comm_has_cards(comm) || comm->cards->over || !comm->cards->joined) return;
    comm->cards->over = true;
    if (comm->ops->alarm) comm->ops->alarm(comm);
    comm->cards->ops->give_up(comm);
}

void comm_cards_lose(struct comm *comm, int code)
{
    lose(comm, "", code);
}
