/* Reads a file with O_DIRECT from eight threads, pieces of 2 MiB: what a folder's disk gives.
 *
 *   bench_disk FOLDER */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/gpu/card.h"

enum { THREADS = 8, PIECE = 2 << 20, PIECES = 1024 };

static int file = -1;
static atomic_uint next_piece;
static atomic_bool failed;

static void *reader(void *unused)
{
    char *to = aligned_alloc(4096, PIECE);
    (void)unused;
    for (;;) {
        const unsigned i = atomic_fetch_add(&next_piece, 1);
        if (i >= PIECES || !to) break;
        if (pread(file, to, PIECE, (off_t)i * PIECE) != PIECE) atomic_store(&failed, true);
    }
    free(to);
    return NULL;
}

static bool file_write(const char *path)
{
    char *from = aligned_alloc(4096, PIECE);
    const int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    bool ok = fd >= 0 && from;
    for (unsigned i = 0; i < PIECES && ok; i++) {
        memset(from, (int)i, PIECE);
        ok = write(fd, from, PIECE) == PIECE;
    }
    ok = ok && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    free(from);
    return ok;
}

int main(int argc, char **argv)
{
    struct card_row row = { .stage = "disk", .name = "reads of 2 MiB, 8 at a time", .ok = true };
    char path[4096];
    pthread_t threads[THREADS];
    if (argc != 2) {
        fprintf(stderr, "usage: bench_disk FOLDER\n");
        return 2;
    }
    snprintf(path, sizeof path, "%s/bench_disk.%ld", argv[1], (long)getpid());
    if (!file_write(path)) {
        printf("skipped: cannot write 2 GiB to %s: %s\n", argv[1], strerror(errno));
        unlink(path);
        return 77;
    }
    file = open(path, O_RDONLY | O_DIRECT);
    unlink(path);
    if (file < 0) {
        printf("skipped: no O_DIRECT in %s: %s\n", argv[1], strerror(errno));
        return 77;
    }
    const uint64_t begin = base_now_ns();
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, reader, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    row.us = (double)(base_now_ns() - begin) * 1e-3 / PIECES;
    row.bytes = PIECE;
    row.ok = !atomic_load(&failed);
    card_row_give(&row);
    return row.ok ? 0 : 1;
}
