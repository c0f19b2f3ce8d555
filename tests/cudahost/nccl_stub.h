/* The stand-in of NCCL (nccl.c), as tests see it. Ranks are processes of one machine; what they
 * exchange lies in a file that all of them map: no rank's host is needed for another's card.
 *
 * A collective is work of the emulated stream: when the stream comes to it, this rank's part is
 * read, what it receives is overwritten, and the stream stays there until every rank's has come as
 * far; the host goes on. While a host waits for MPI its card works, too.
 *
 * It keeps NCCL's rules and tells of every breach as a failure of the emulated machine
 * (cudahost_failure): a communicator that is not there, is finalized, or has a call in progress;
 * collectives that ranks ask for in another order or with other sizes; sends and receives outside a
 * group or without their counterpart; groups that do not end, or over two streams or communicators;
 * streams that do not exist; buffers that are not the card's, or overlap; communicators that are
 * ended with work under way, or left.
 *
 * From the environment, for programs as they are:
 *   CUDAHOST_SEED=N              as of the machine
 *   NCCL_STUB_FAIL=call:CODE@N   the N-th collective (from 1) is refused with this ncclResult_t;
 *                  async:CODE@N  it is taken, never ends, and the communicator then tells of CODE
 *   NCCL_STUB_STREAM=side        all work runs on a stream of its own, as if the caller had passed
 *                                the wrong one */
#ifndef NCCL_STUB_H
#define NCCL_STUB_H

#include <stdbool.h>
#include <stdint.h>

/* Calls that may answer "in progress" do so, in a seeded choice. */
void nccl_stub_seed(uint64_t seed);
/* How many calls answered so. */
unsigned nccl_stub_late(void);
/* As NCCL_STUB_STREAM. */
void nccl_stub_side(bool side);
/* Tells of what is left; every reset of the machine does. */
void nccl_stub_end(void);

#endif
