/* The stand-in of NCCL (nccl.c), as tests see it. Ranks are processes; what they exchange goes over
 * a communicator of src/comm, when the emulated machine's stream comes to it.
 *
 * It keeps NCCL's rules and tells of every breach as a failure of the emulated machine
 * (cudahost_failure): a communicator that is not there, is finalized, or has a call in progress;
 * collectives that ranks ask for in another order or with other sizes; sends and receives outside a
 * group or without their counterpart; groups that do not end; streams that do not exist; buffers
 * that are not the card's; communicators that are left. */
#ifndef NCCL_STUB_H
#define NCCL_STUB_H

#include "comm/comm.h"

/* Before anything else. NULL at the end: tells of what is left. */
void nccl_stub_wire(struct comm *wire);
/* Calls that may answer "in progress" do so, in a seeded choice. */
void nccl_stub_seed(uint64_t seed);
/* How many calls answered so. */
unsigned nccl_stub_late(void);

#endif
