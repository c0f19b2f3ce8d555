/* Ranks over NCCL, for who brings the way in which they find each other. */
#ifndef COMM_COMM_NCCL_H
#define COMM_COMM_NCCL_H

#include "comm/comm.h"

/* Takes `boot` over: closed with the rank, and at once on an error. The card is the rank's number
 * on its machine, modulo the cards there. BASE_EDEVICE with CUDA's or NCCL's sentence; -ENOENT when
 * there is no libnccl. */
int comm_nccl_open(struct comm **out, struct comm *boot, const struct comm_config *config,
                   struct base_err *err);

/* Finds libnccl and all calls of it that are used: its version (22809), or -ENOENT. */
int comm_nccl_version(struct base_err *err);

#endif
