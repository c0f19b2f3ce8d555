#include "kernels/par.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/must.h"

/* Longer than the gap between two products of a layer, shorter than a demand read. */
#define SPIN_NS 20000u

enum { PAR_MAGIC = 0x70617231, SPIN_PAUSES = 32, LINE_BYTES = 64 };

struct worker {
    struct kern_par *par;
    pthread_t thread;
    unsigned index;
};

/* A round is one kern_par_run. `claim` holds the round in its upper half and in its lower half how
 * many chunks nobody took yet, so that a worker that wakes late can never take a chunk of a round
 * whose work and context it has not read: its compare-and-swap fails on the round, and a round that
 * is used up offers nothing.
 *
 * Work, context and chunks are written only while no chunk of the last round is unfinished, and are
 * published by the store to `claim`. */
struct kern_par {
    uint32_t magic;
    unsigned threads;
    struct worker *workers;         /* threads - 1 */
    unsigned started;
    void (*bind)(void *context, unsigned index);
    void *bind_context;
    _Alignas(LINE_BYTES) _Atomic(uint64_t) claim;
    _Alignas(LINE_BYTES) _Atomic(uint32_t) finished;    /* chunks of this round; futex */
    _Atomic(uint32_t) submitter_sleeps;
    _Alignas(LINE_BYTES) _Atomic(uint32_t) round;       /* futex of the workers */
    _Atomic(uint32_t) sleepers;
    _Atomic(uint32_t) bound;            /* workers that have called bind */
    _Atomic(bool) stopping;
    _Atomic(uint32_t) chunks;
    _Atomic(void *) context;
    void (*_Atomic work)(void *context, uint32_t chunk, unsigned thread);
};

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(_Atomic(uint32_t) *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic(uint32_t) *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Waits a little for *word to leave `seen`; false when it did not. */
static bool spin_while(_Atomic(uint32_t) *word, uint32_t seen)
{
    const uint64_t until = base_now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPIN_PAUSES; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen)
                return true;
            pause_cpu();
        }
    } while (base_now_ns() < until);
    return false;
}

/* Takes and runs chunks of `round` until none is left. */
static void chunks_run(struct kern_par *par, uint32_t round, unsigned thread)
{
    for (;;) {
        uint64_t claim = atomic_load_explicit(&par->claim, memory_order_acquire);
        const uint32_t left = (uint32_t)claim;
        if ((uint32_t)(claim >> 32) != round || left == 0)
            return;
        const uint32_t chunks = atomic_load_explicit(&par->chunks, memory_order_relaxed);
        void (*const work)(void *, uint32_t, unsigned) =
            atomic_load_explicit(&par->work, memory_order_relaxed);
        void *const context = atomic_load_explicit(&par->context, memory_order_relaxed);
        if (!atomic_compare_exchange_weak_explicit(&par->claim, &claim, claim - 1,
                                                   memory_order_acq_rel, memory_order_relaxed))
            continue;
        work(context, chunks - left, thread);
        const uint32_t finished = atomic_fetch_add(&par->finished, 1) + 1;
        if (finished == chunks && atomic_load(&par->submitter_sleeps))
            futex_wake(&par->finished, 1);
    }
}

static void *worker_main(void *argument)
{
    const struct worker *worker = argument;
    struct kern_par *par = worker->par;
    uint32_t seen = 0;
    if (par->bind)
        par->bind(par->bind_context, worker->index);
    atomic_fetch_add(&par->bound, 1);
    futex_wake(&par->bound, 1);
    for (;;) {
        if (!spin_while(&par->round, seen)) {
            atomic_fetch_add(&par->sleepers, 1);
            while (atomic_load(&par->round) == seen)
                futex_wait(&par->round, seen);
            atomic_fetch_sub(&par->sleepers, 1);
        }
        seen = atomic_load(&par->round);
        if (atomic_load(&par->stopping))
            return NULL;
        chunks_run(par, seen, worker->index);
    }
}

int kern_par_create(struct kern_par **out, unsigned threads,
                    void (*bind)(void *context, unsigned index), void *context)
{
    MUST(threads >= 1);
    struct kern_par *par = aligned_alloc(LINE_BYTES, sizeof *par);
    int rc = -ENOMEM;
    if (!par)
        return rc;
    *par = (struct kern_par){ .magic = PAR_MAGIC, .threads = threads, .bind = bind,
                              .bind_context = context };
    if (threads > 1) {
        par->workers = calloc(threads - 1, sizeof *par->workers);
        if (!par->workers) goto fail;
    }
    for (; par->started < threads - 1; par->started++) {
        struct worker *worker = &par->workers[par->started];
        *worker = (struct worker){ .par = par, .index = par->started + 1 };
        rc = -pthread_create(&worker->thread, NULL, worker_main, worker);
        if (rc < 0) goto fail;
    }
    /* bind may allocate; nobody allocates once the first piece of work runs. */
    uint32_t bound;
    while ((bound = atomic_load(&par->bound)) < par->started)
        futex_wait(&par->bound, bound);
    *out = par;
    return 0;
fail:
    kern_par_destroy(par);
    return rc;
}

void kern_par_destroy(struct kern_par *par)
{
    if (!par)
        return;
    MUST_MAGIC(par, PAR_MAGIC);
    atomic_store(&par->stopping, true);
    atomic_fetch_add(&par->round, 1);
    futex_wake(&par->round, INT_MAX);
    for (unsigned i = 0; i < par->started; i++)
        pthread_join(par->workers[i].thread, NULL);
    par->magic = 0;
    free(par->workers);
    free(par);
}

unsigned kern_par_threads(const struct kern_par *par)
{
    MUST_MAGIC(par, PAR_MAGIC);
    return par->threads;
}

void kern_par_run(struct kern_par *par, uint32_t chunks,
                  void (*work)(void *context, uint32_t chunk, unsigned thread), void *context)
{
    MUST_MAGIC(par, PAR_MAGIC);
    if (par->threads == 1 || chunks <= 1) {
        for (uint32_t chunk = 0; chunk < chunks; chunk++)
            work(context, chunk, 0);
        return;
    }
    const uint32_t round = atomic_load_explicit(&par->round, memory_order_relaxed) + 1;
    atomic_store_explicit(&par->work, work, memory_order_relaxed);
    atomic_store_explicit(&par->context, context, memory_order_relaxed);
    atomic_store_explicit(&par->chunks, chunks, memory_order_relaxed);
    atomic_store_explicit(&par->finished, 0, memory_order_relaxed);
    atomic_store_explicit(&par->claim, (uint64_t)round << 32 | chunks, memory_order_release);
    atomic_store(&par->round, round);
    /* A worker counts itself asleep before it looks at the round a last time, so either it sees
     * this round or we see it. */
    const uint32_t sleepers = atomic_load(&par->sleepers);
    if (sleepers > 0)
        futex_wake(&par->round, chunks - 1 < INT_MAX ? (int)(chunks - 1) : INT_MAX);
    chunks_run(par, round, 0);
    for (;;) {
        const uint32_t finished = atomic_load_explicit(&par->finished, memory_order_acquire);
        if (finished == chunks)
            return;
        if (spin_while(&par->finished, finished))
            continue;
        atomic_store(&par->submitter_sleeps, 1);
        while (atomic_load(&par->finished) == finished)
            futex_wait(&par->finished, finished);
        atomic_store(&par->submitter_sleeps, 0);
    }
}
