#include "tiering/store_scan.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tiering/store_files.h"

enum { REPORT_NS = 50000000 };

struct scan_state {
    const struct tier_scan *scan;
    atomic_uint_fast64_t next;
    atomic_bool stop;
    pthread_mutex_t lock;       /* for what follows, and for the progress's calls */
    uint64_t done_bytes, reported_ns;
    int rc;
    struct base_err err;
};

static void fail(struct scan_state *state, int rc, const struct base_err *err)
{
    pthread_mutex_lock(&state->lock);
    if (state->rc == 0) {
        state->rc = rc;
        state->err = *err;
    }
    pthread_mutex_unlock(&state->lock);
    atomic_store(&state->stop, true);
}

/* Counts an item in and reports now and then. */
static void account(struct scan_state *state, uint64_t bytes)
{
    const struct tier_store_progress *progress = state->scan->progress;
    uint64_t now = base_now_ns();
    pthread_mutex_lock(&state->lock);
    state->done_bytes += bytes;
    if (progress && now - state->reported_ns >= REPORT_NS) {
        state->reported_ns = now;
        if (progress->report) {
            progress->report(progress->context, state->done_bytes, state->scan->bytes_total);
        }
    }
    if (progress && progress->stop && progress->stop(progress->context) && state->rc == 0) {
        state->rc = base_err_set(&state->err, -ECANCELED, "stopped on request");
        atomic_store(&state->stop, true);
    }
    pthread_mutex_unlock(&state->lock);
}

static void *worker_main(void *context)
{
    struct scan_state *state = context;
    const struct tier_scan *scan = state->scan;
    size_t bytes = scan->buffer_bytes ? scan->buffer_bytes : TIER_SCAN_BUFFER;
    struct base_err err = { 0 };
    unsigned char *buffer = aligned_alloc(TIER_PAGE, (bytes + TIER_PAGE - 1) & ~(size_t)4095);
    if (!buffer) {
        fail(state, base_err_set(&err, -ENOMEM, "no memory for a buffer of %zu bytes", bytes),
             &err);
    }
    while (!atomic_load(&state->stop)) {
        uint64_t item = atomic_fetch_add(&state->next, 1);
        if (item >= scan->count) break;
        int64_t done = scan->visit(scan->context, item, buffer, &err);
        if (done < 0) {
            fail(state, (int)done, &err);
            break;
        }
        account(state, (uint64_t)done);
    }
    free(buffer);
    return NULL;
}

int tier_scan_run(const struct tier_scan *scan, struct base_err *err)
{
    struct scan_state state = { .scan = scan, .lock = PTHREAD_MUTEX_INITIALIZER };
    pthread_t threads[TIER_SCAN_THREADS_MAX];
    unsigned wanted = scan->threads ? scan->threads : 1, started = 0;
    if (wanted > TIER_SCAN_THREADS_MAX) wanted = TIER_SCAN_THREADS_MAX;
    if (wanted > scan->count) wanted = (unsigned)scan->count;

    /* This thread is one of the workers: the scan goes on even where no other can be started. */
    while (started + 1 < wanted) {
        if (pthread_create(&threads[started], NULL, worker_main, &state) != 0) break;
        started++;
    }
    worker_main(&state);
    for (unsigned i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_mutex_destroy(&state.lock);
    if (state.rc < 0) return base_err_set(err, state.rc, "%s", state.err.text);
    if (scan->progress && scan->progress->report) {
        scan->progress->report(scan->progress->context, state.done_bytes, scan->bytes_total);
    }
    return 0;
}

/* E4M3 has no infinities: 0x7f and 0xff are its only NaNs. Eight bytes at a time: the low seven
 * bits of a byte plus one reach the eighth exactly when all seven are set. */
static uint64_t find_nan(const unsigned char *bytes, uint64_t size)
{
    uint64_t at = 0;
    for (; at + 8 <= size; at += 8) {
        uint64_t word;
        memcpy(&word, bytes + at, sizeof word);
        uint64_t carry = (word & UINT64_C(0x7f7f7f7f7f7f7f7f)) + UINT64_C(0x0101010101010101);
        if (carry & UINT64_C(0x8080808080808080)) break;
    }
    for (; at < size; at++) {
        if ((bytes[at] & 0x7f) == 0x7f) return at;
    }
    return UINT64_MAX;
}

int tier_scan_range(int fd, uint64_t offset, uint64_t bytes, unsigned char *buffer,
                    struct port_hash *hash, uint64_t *nan_at)
{
    if (nan_at) *nan_at = UINT64_MAX;
    for (uint64_t at = 0; at < bytes;) {
        uint64_t part = bytes - at < TIER_SCAN_BUFFER ? bytes - at : TIER_SCAN_BUFFER;
        int rc = tier_store_pread(fd, buffer, part, offset + at);
        if (rc < 0) return rc;
        port_hash_add(hash, buffer, part);
        if (nan_at && *nan_at == UINT64_MAX) {
            uint64_t found = find_nan(buffer, part);
            if (found != UINT64_MAX) *nan_at = at + found;
        }
        at += part;
    }
    return 0;
}

int tier_scan_open(int *fds, uint32_t count, const char *(*path)(void *context, uint32_t file),
                   void *context, struct base_err *err)
{
    for (uint32_t i = 0; i < count; i++) {
        fds[i] = -1;
    }
    for (uint32_t i = 0; i < count; i++) {
        const char *name = path(context, i);
        fds[i] = open(name, O_RDONLY | O_CLOEXEC);
        if (fds[i] < 0) return base_err_set(err, -errno, "%s: %s", name, strerror(errno));
        posix_fadvise(fds[i], 0, 0, POSIX_FADV_SEQUENTIAL);
    }
    return 0;
}

void tier_scan_close(int *fds, uint32_t count)
{
    for (uint32_t i = 0; fds && i < count; i++) {
        if (fds[i] >= 0) close(fds[i]);
    }
}
