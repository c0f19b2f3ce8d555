#include "predictor/future.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/must.h"

enum { GROW = 4 << 20 };            /* lookups by which the file grows: 16 MiB */
enum { KEPT = 1 << 20 };            /* lookups behind the running one that stay in memory: 4 MiB */

struct last {
    uint64_t lookup;                /* number of its latest lookup + 1; 0 = none */
    uint64_t position;
};

struct pred_future {
    uint32_t layers, experts;
    int fd;
    uint32_t *distances;            /* [room], 0 = never again */
    uint64_t room, count;
    uint64_t position, at;          /* acquires and lookups passed in the running pass */
    uint64_t let_go;                /* lookups of it that were let go, up to here */
    struct last *last;              /* [layers x experts] */
    uint64_t *next;                 /* [layers x experts], second pass */
};

int pred_future_create(struct pred_future **out, uint32_t layers, uint32_t experts,
                       struct base_err *err)
{
    *out = NULL;
    struct pred_future *f = calloc(1, sizeof *f);
    if (!f) return base_err_set(err, -ENOMEM, "no memory for next uses");
    int rc = -ENOMEM;
    f->layers = layers;
    f->experts = experts;
    f->last = calloc((size_t)layers * experts, sizeof f->last[0]);
    f->next = malloc((size_t)layers * experts * sizeof f->next[0]);
    const char *dir = getenv("TMPDIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/expertier-future-XXXXXX", dir && *dir ? dir : "/tmp");
    f->fd = mkstemp(path);
    if (f->fd < 0) {
        rc = -errno;
        goto fail;
    }
    unlink(path);
    if (!f->last || !f->next) goto fail;
    memset(f->next, 0xff, (size_t)layers * experts * sizeof f->next[0]);   /* never used */
    *out = f;
    return 0;
fail:
    base_err_set(err, rc, "%s: cannot keep next uses for Belady there: %s (TMPDIR names another "
                 "folder)", path, base_err_name(rc));
    pred_future_destroy(f);
    return rc;
}

void pred_future_destroy(struct pred_future *f)
{
    if (!f) return;
    if (f->distances) munmap(f->distances, f->room * sizeof f->distances[0]);
    if (f->fd >= 0) close(f->fd);
    free(f->last);
    free(f->next);
    free(f);
}

static int grow(struct pred_future *f, struct base_err *err)
{
    uint64_t room = f->room + GROW;
    size_t bytes = room * sizeof f->distances[0];
    /* posix_fallocate, because a full disk would else show itself as SIGBUS. */
    int rc = -posix_fallocate(f->fd, (off_t)(f->room * sizeof f->distances[0]),
                              GROW * sizeof f->distances[0]);
    if (rc < 0) {
        return base_err_set(err, rc, "cannot keep %llu next uses for Belady in TMPDIR: %s",
                            (unsigned long long)room, base_err_name(rc));
    }
    void *map = f->distances
                    ? mremap(f->distances, f->room * sizeof f->distances[0], bytes, MREMAP_MAYMOVE)
                    : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    if (map == MAP_FAILED) {
        rc = -errno;
        return base_err_set(err, rc, "cannot map %zu bytes of next uses: %s", bytes,
                            base_err_name(rc));
    }
    f->distances = map;
    f->room = room;
    return 0;
}

/* What lies far behind goes back to the file, so that memory does not grow with the trace. */
static void let_go(struct pred_future *f, uint64_t passed)
{
    if (passed - f->let_go < 2 * (uint64_t)KEPT) return;
    f->let_go = (passed - KEPT) / KEPT * KEPT;  /* whole pages */
    madvise(f->distances, f->let_go * sizeof f->distances[0], MADV_DONTNEED);
}

int pred_future_add(struct pred_future *f, uint32_t layer, const uint32_t *ids, uint32_t n,
                    struct base_err *err)
{
    while (f->count + n > f->room) {
        int rc = grow(f, err);
        if (rc < 0) return rc;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct last *last = &f->last[(size_t)layer * f->experts + ids[i]];
        if (last->lookup > 0) {
            uint64_t distance = f->position - last->position;
            f->distances[last->lookup - 1] =
                distance < UINT32_MAX ? (uint32_t)distance : UINT32_MAX;
        }
        /* As of the begin of the second pass: for what is resident before its first lookup. One
         * later than it is, so that it lies ahead of an empty core. */
        if (last->lookup == 0) f->next[(size_t)layer * f->experts + ids[i]] = f->position + 1;
        f->distances[f->count] = 0;
        *last = (struct last){ .lookup = ++f->count, .position = f->position };
    }
    let_go(f, f->count);
    f->position++;
    return 0;
}

void pred_future_begin(struct pred_future *f)
{
    f->position = f->at = f->let_go = 0;
    if (f->distances) madvise(f->distances, f->room * sizeof f->distances[0], MADV_DONTNEED);
}

void pred_future_load(struct pred_future *f, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    MUST(f->at + n <= f->count);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t distance = f->distances[f->at++];
        f->next[(size_t)layer * f->experts + ids[i]] =
            distance == 0 ? UINT64_MAX : f->position + distance;
    }
    let_go(f, f->at);
    f->position++;
}

uint64_t pred_future_next(void *future, uint32_t layer, uint32_t expert, uint64_t now)
{
    (void)now;
    const struct pred_future *f = future;
    uint64_t next = f->next[(size_t)layer * f->experts + expert];
    return next == UINT64_MAX ? next : next * f->experts;
}
