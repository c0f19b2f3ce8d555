/* The threads backend: a pool of readers with pread, for where io_uring is not allowed.
 *
 * One lock guards the queue, the finished list and the file table. A reader holds it only to take a
 * piece and to hand it back. The queue is bounded by io.depth, which the front enforces.
 */
#include "tiering/io_backend.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct threads_io {
    struct tier_io base;
    pthread_mutex_t lock;
    pthread_cond_t work;        /* the queue has something, or stop */
    pthread_cond_t finished;
    struct tier_io_queue queue;
    struct tier_io_list done;
    bool stop;
    unsigned thread_count;
    pthread_t threads[64];
};

static int threads_probe(struct base_err *err)
{
    (void)err;
    return 0;
}

static void *reader_main(void *context)
{
    struct threads_io *pool = context;
    struct tier_io_piece piece;

    pthread_mutex_lock(&pool->lock);
    while (!pool->stop) {
        if (!tier_io_queue_cut(&pool->queue, &piece)) {
            pthread_cond_wait(&pool->work, &pool->lock);
            continue;
        }
        struct tier_io_file file = pool->base.files->at[piece.req->file];
        pthread_mutex_unlock(&pool->lock);
        int64_t got = tier_io_pread_whole(&file, (char *)piece.req->to + piece.at, piece.bytes,
                                          piece.req->offset + piece.at);
        uint64_t now = base_clock_now_ns(pool->base.clock);
        pthread_mutex_lock(&pool->lock);
        if (tier_io_piece_settle(&piece, got)) {
            piece.req->done_ns = now;
            tier_io_list_push(&pool->done, piece.req);
            pthread_cond_signal(&pool->finished);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Readers finish the piece they are in; what still waits in the queue is dropped. */
static void threads_destroy(struct tier_io *io)
{
    struct threads_io *pool = (struct threads_io *)io;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    tier_io_base_fini(io);
    free(pool);
}

static int threads_create(struct tier_io **out, const struct tier_io_config *config,
                          struct base_clock *clock, struct base_err *err)
{
    struct threads_io *pool = calloc(1, sizeof *pool);
    int rc = pool ? tier_io_base_init(&pool->base, &tier_io_threads_ops, config, clock) : -ENOMEM;
    if (rc < 0) {
        free(pool);
        return base_err_set(err, rc, "io backend threads: out of memory");
    }
    pool->queue.piece_bytes = config->chunk - config->chunk % TIER_IO_ALIGN;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->finished, &monotonic);
    pthread_condattr_destroy(&monotonic);

    while (pool->thread_count < config->threads) {
        pthread_t *thread = &pool->threads[pool->thread_count];
        rc = -pthread_create(thread, NULL, reader_main, pool);
        if (rc < 0) {
            base_err_set(err, rc, "io.threads: only %u of %llu readers could be started: %s",
                         pool->thread_count, (unsigned long long)config->threads, strerror(-rc));
            threads_destroy(&pool->base);
            return rc;
        }
        pthread_setname_np(*thread, "tier-reader");
        pool->thread_count++;
    }
    snprintf(pool->base.note, sizeof pool->base.note, "threads: %u reader%s", pool->thread_count,
             pool->thread_count == 1 ? "" : "s");
    *out = &pool->base;
    return 0;
}

static int threads_file_add(struct tier_io *io, const char *path, struct base_err *err)
{
    struct threads_io *pool = (struct threads_io *)io;
    pthread_mutex_lock(&pool->lock);
    int rc = tier_io_files_open(io, path, err);
    pthread_mutex_unlock(&pool->lock);
    return rc;
}

static int threads_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    struct threads_io *pool = (struct threads_io *)io;
    pthread_mutex_lock(&pool->lock);
    for (unsigned i = 0; i < n; i++) {
        reqs[i]->result = tier_io_req_check(io, reqs[i]);
        if (reqs[i]->result < 0 || reqs[i]->bytes == 0) {
            reqs[i]->done_ns = reqs[i]->submit_ns;
            tier_io_list_push(&pool->done, reqs[i]);
        } else {
            tier_io_queue_push(&pool->queue, reqs[i]);
        }
    }
    if (n == 1 && pool->queue.piece_bytes >= reqs[0]->bytes) {
        pthread_cond_signal(&pool->work);
    } else {
        pthread_cond_broadcast(&pool->work);
    }
    pthread_mutex_unlock(&pool->lock);
    return (int)n;
}

/* Waits for a reader to finish something; false when the deadline passed. */
static bool wait_locked(struct threads_io *pool, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        pthread_cond_wait(&pool->finished, &pool->lock);
        return true;
    }
    struct timespec at = { .tv_sec = (time_t)(deadline_ns / 1000000000u),
                           .tv_nsec = (long)(deadline_ns % 1000000000u) };
    return pthread_cond_timedwait(&pool->finished, &pool->lock, &at) == 0;
}

static int threads_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                        uint64_t deadline_ns)
{
    struct threads_io *pool = (struct threads_io *)io;
    unsigned count = 0;
    bool in_time = true;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (count < max && pool->done.head) {
            done[count++] = tier_io_list_pop(&pool->done);
        }
        if (count >= min || !in_time) break;
        in_time = wait_locked(pool, deadline_ns);
    }
    pthread_mutex_unlock(&pool->lock);
    return (int)count;
}

static void threads_promote(struct tier_io *io, struct tier_io_req *req)
{
    struct threads_io *pool = (struct threads_io *)io;
    pthread_mutex_lock(&pool->lock);
    tier_io_queue_promote(&pool->queue, req);
    pthread_mutex_unlock(&pool->lock);
}

const struct tier_io_ops tier_io_threads_ops = {
    .name = "threads",
    .probe = threads_probe,
    .create = threads_create,
    .destroy = threads_destroy,
    .file_add = threads_file_add,
    .submit = threads_submit,
    .reap = threads_reap,
    .promote = threads_promote,
};
