/* Random collectives whose results every rank can tell beforehand. */
#ifndef TESTS_UNIT_COMM_COLLECTIVES_H
#define TESTS_UNIT_COMM_COLLECTIVES_H

#include "comm/comm.h"

/* So many rounds of each kind, then a barrier. Returns how many were wrong on this rank, after
 * saying which. */
unsigned collectives_check(struct comm *comm, unsigned rounds, bool say);

#endif
