/* Collectives between cards over NCCL, for any way in which the ranks find each other. */
#ifndef COMM_COMM_NCCL_H
#define COMM_COMM_NCCL_H

#include "comm/cards.h"

/* comm->cards are NCCL's from now on; closed with the rank. BASE_ECONFIG where the ranks lie on
 * several machines; -ENOENT when there is no libnccl. */
int comm_nccl_attach(struct comm *comm, struct base_err *err);

/* Finds libnccl and all calls of it that are used: its version (22809), or -ENOENT. */
int comm_nccl_version(struct base_err *err);

#endif
