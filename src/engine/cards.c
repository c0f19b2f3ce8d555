#include "engine/cards.h"

#include <stdio.h>
#include <string.h>

#include "comm/cards.h"
#include "engine/ranks.h"
#include "port/hash.h"

static int own_card(struct comm *comm, const struct dev *dev, struct base_err *err)
{
    struct place {
        char host[sizeof comm->peers[0].host], card[sizeof dev->card];
    } own = { 0 }, all[COMM_RANKS_MAX];
    memcpy(own.host, comm->peers[comm->rank].host, sizeof own.host);
    memcpy(own.card, dev->card, sizeof own.card);
    comm_all_gather(comm, &own, all, sizeof own);
    for (unsigned r = 0; r < comm->size; r++) {
        if (r == comm->rank || memcmp(&all[r], &own, sizeof own) != 0) continue;
        return base_err_set(err, BASE_ECONFIG, "ranks %u and %u have the same card (%s): there are "
                            "fewer cards on %s than ranks", r < comm->rank ? r : comm->rank,
                            r < comm->rank ? comm->rank : r, dev->note, own.host);
    }
    return 0;
}

static int watch(void *context, bool first)
{
    return comm_cards_watch(context, first);
}

int eng_cards_join(struct dev *dev, struct comm *comm, struct base_err *err)
{
    int rc = eng_ranks_agree(comm, "kind of card", port_hash64(dev->kind, strlen(dev->kind)), err);
    if (rc < 0 || !comm) return rc;
    if (comm->size > 1) snprintf(dev->whose, sizeof dev->whose, "rank %u: ", comm->rank);
    rc = own_card(comm, dev, err);
    if (rc < 0 || !comm_has_cards(comm)) return rc;
    dev_stream(dev);            /* this thread's card is the device's */
    rc = comm_cards_join(comm, err);
    if (rc < 0) return rc;
    dev->watch = watch;
    dev->watch_context = comm;
    return 0;
}

void eng_cards_leave(struct dev *dev, struct comm *comm, bool in_order)
{
    if (!dev || !dev->watch) return;
    comm_cards_leave(comm, in_order && !dev->lost);
    dev->watch = NULL;
}
