/* Inside of libtiering's own face, shared by lib.c and lib_table.c. */
#ifndef TIERING_LIB_PRIV_H
#define TIERING_LIB_PRIV_H

#include "base/err.h"
#include "tiering/libtiering.h"

/* Hands an error's sentence to the caller; returns `rc`. */
int tier_lib_why(int rc, const struct base_err *err, char *why, size_t why_bytes);

#endif
