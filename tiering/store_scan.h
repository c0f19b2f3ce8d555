/* Work over all experts with several threads: building an index, verifying, packing.
 * For the store's own files. */
#ifndef TIERING_STORE_SCAN_H
#define TIERING_STORE_SCAN_H

#include "port/hash.h"
#include "tiering/store.h"

enum { TIER_SCAN_THREADS_MAX = 64, TIER_SCAN_BUFFER = 1 << 20 };

struct tier_scan {
    unsigned threads;
    uint64_t count;             /* of items */
    uint64_t bytes_total;       /* for the progress report */
    const struct tier_store_progress *progress;     /* may be NULL */
    size_t buffer_bytes;        /* page-aligned memory of each worker; 0 = TIER_SCAN_BUFFER */
    /* Does one item, on any thread, in rising order of items; returns its bytes or a negative
     * code, which stops all. */
    int64_t (*visit)(void *context, uint64_t item, unsigned char *buffer, struct base_err *err);
    void *context;
};

/* 0, -ECANCELED when the progress's `stop` said so, or the first failure. */
int tier_scan_run(const struct tier_scan *scan, struct base_err *err);

/* Reads a range through the buffer and adds it to `hash`. `nan_at` may be NULL; else it gets the
 * place of the first FP8 NaN code, or UINT64_MAX. 0 or as tier_store_pread. */
int tier_scan_range(int fd, uint64_t offset, uint64_t bytes, unsigned char *buffer,
                    struct port_hash *hash, uint64_t *nan_at);

/* Opens the files for reading; -1 where there is none to close. */
int tier_scan_open(int *fds, uint32_t count, const char *(*path)(void *context, uint32_t file),
                   void *context, struct base_err *err);
void tier_scan_close(int *fds, uint32_t count);

#endif
