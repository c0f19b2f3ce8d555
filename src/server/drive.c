#include "server/drive.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/must.h"

enum { IDLE_MS = 2, JOB_CHECK_MS = 100 };

static void poke(struct srv_drive *d)
{
    uint64_t one = 1;
    ssize_t n = write(d->wake_fd, &one, sizeof one);
    MUST(n == (ssize_t)sizeof one);
}

/* The engine side is done with a session. */
static void drop(struct srv_drive *d, struct srv_session *s)
{
    if (s->end_finish == ENG_FAILED && !atomic_load(&s->cancelled)) {
        atomic_fetch_add(&d->failed_generations, 1);
        atomic_fetch_add(&d->slow_clients, s->overrun);
    }
    atomic_fetch_sub(&d->held, 1);
    srv_session_unref(s);
}

static void end(struct srv_drive *d, struct srv_session *s, int code, const char *sentence)
{
    if (!atomic_load(&s->ended)) {
        srv_session_put_end(s, ENG_FAILED, code, sentence);
        d->news = true;
    }
}

static void on_piece(void *context, const struct eng_piece *piece)
{
    struct srv_session *s = context;
    if (atomic_load(&s->ended)) {
        return;                 /* given up earlier in this step */
    }
    bool heard = !atomic_load_explicit(&s->cancelled, memory_order_relaxed);
    if (heard && (piece->token >= 0 || piece->size > 0) && !srv_session_put_piece(s, piece)) {
        s->overrun = true;
        srv_session_put_end(s, ENG_FAILED, -ENOBUFS,
                            "the client read too slowly: the answer was ahead of it by more than "
                            "server.answer_buffer");
        return;
    }
    if (piece->finish != ENG_RUNNING) {
        srv_session_put_end(s, piece->finish, piece->error_code, piece->error);
    }
}

static int submit(struct srv_drive *d, struct srv_session *s)
{
    struct eng_request request = {
        .prompt = s->ask.ids,
        .prompt_tokens = (uint32_t)s->ask.id_count,
        .max_tokens = (uint32_t)s->ask.max_tokens,
        .sampling = s->ask.sampling,
        .stops = s->ask.stops,
        .stop_count = s->ask.stop_count,
        .ignore_eos = s->ask.ignore_eos,
        .logprobs = s->ask.logprobs,
        .on_piece = on_piece,
        .context = s,
    };
    struct base_err err = { 0 };
    int64_t id = eng_submit(d->engine, &request, &err);
    if (id >= 0) {
        s->request = (uint64_t)id;
        d->active[d->active_count++] = s;
        srv_session_put_accepted(s);
        d->news = true;
        return 0;
    }
    if (id == -EAGAIN && d->active_count > 0) {
        return -EAGAIN;         /* a place becomes free when one of those ends */
    }
    end(d, s, (int)id, err.text);
    drop(d, s);
    return (int)id;
}

/* Lets waiting sessions in, in the order in which they came, until the engine's queue is full. */
static void submit_waiting(struct srv_drive *d)
{
    for (struct srv_session *s; base_ring_many_pop(&d->submissions, &s);) {
        s->next = NULL;
        *d->waiting_end = s;
        d->waiting_end = &s->next;
    }
    while (d->waiting) {
        struct srv_session *s = d->waiting;
        struct srv_session *next = s->next;
        if (atomic_load(&s->cancelled)) {
            end(d, s, -ECANCELED, "the client left");
            drop(d, s);
        } else if (submit(d, s) == -EAGAIN && d->active_count > 0) {
            return;
        }
        d->waiting = next;
        if (!next) {
            d->waiting_end = &d->waiting;
        }
    }
}

/* Drops sessions that ended, and cancels those whose client left or cannot keep up. */
static void sweep(struct srv_drive *d)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < d->active_count; i++) {
        struct srv_session *s = d->active[i];
        bool cancelled = atomic_load(&s->cancelled) || s->overrun;
        if (!atomic_load(&s->ended) && !cancelled) {
            d->active[kept++] = s;
            continue;
        }
        d->news = true;
        if (cancelled) {
            eng_cancel(d->engine, s->request);
            end(d, s, -ECANCELED, "the client left");
        }
        drop(d, s);
    }
    d->active_count = kept;
}

static void end_all(struct srv_drive *d, int code, const char *sentence)
{
    for (unsigned i = 0; i < d->active_count; i++) {
        eng_cancel(d->engine, d->active[i]->request);
        end(d, d->active[i], code, sentence);
        drop(d, d->active[i]);
    }
    d->active_count = 0;
    while (d->waiting) {
        struct srv_session *s = d->waiting;
        d->waiting = s->next;
        end(d, s, code, sentence);
        drop(d, s);
    }
    d->waiting_end = &d->waiting;
    for (struct srv_session *s; base_ring_many_pop(&d->submissions, &s);) {
        end(d, s, code, sentence);
        drop(d, s);
    }
}

static void run_job(struct srv_drive *d)
{
    struct srv_drive_job *job = atomic_exchange(&d->job, NULL);
    if (!job) return;
    job->run(job);
    sem_post(&job->done);       /* last: it is the waiter's memory */
}

static void take_pokes(struct srv_drive *d)
{
    uint64_t count;
    while (read(d->wake_fd, &count, sizeof count) < 0) {
        MUST(errno == EINTR);
    }
}

/* The first request after a rest: whoever comes within company_ns begins with it. */
static void await_company(struct srv_drive *d)
{
    const uint64_t until_ns = base_now_ns() + d->company_ns;
    struct pollfd wake = { .fd = d->wake_fd, .events = POLLIN };
    while (!atomic_load(&d->stop) && d->active_count > 0 && d->active_count < d->company_max) {
        const uint64_t now_ns = base_now_ns();
        if (now_ns >= until_ns) return;
        const uint64_t idle_ns = eng_idle(d->engine) * UINT64_C(1000000);
        const uint64_t left_ns = until_ns - now_ns < idle_ns ? until_ns - now_ns : idle_ns;
        struct timespec left = { .tv_sec = (time_t)(left_ns / 1000000000),
                                 .tv_nsec = (long)(left_ns % 1000000000) };
        if (ppoll(&wake, 1, &left, NULL) <= 0) continue;
        take_pokes(d);
        run_job(d);
        submit_waiting(d);
        if (atomic_exchange(&d->cancels, false)) sweep(d);
    }
}

/* Lets the tiers use the time, then sleeps until there is something to do for them or others. */
static void idle(struct srv_drive *d)
{
    uint32_t ms = eng_idle(d->engine);
    struct pollfd wake = { .fd = d->wake_fd, .events = POLLIN };
    if (d->idle && d->idle(d->idle_context) && ms > IDLE_MS) ms = IDLE_MS;
    if (ms < UINT32_MAX && poll(&wake, 1, (int)ms) <= 0) return;
    take_pokes(d);
}

static void *drive(void *context)
{
    struct srv_drive *d = context;
    while (!atomic_load(&d->stop)) {
        const bool rested = d->active_count == 0;
        run_job(d);
        submit_waiting(d);
        if (atomic_exchange(&d->cancels, false)) {
            sweep(d);
        }
        if (rested && d->company_ns > 0) await_company(d);
        if (atomic_load(&d->stop)) break;
        int alive = 0;
        if (d->active_count > 0) {
            alive = eng_step(d->engine);
            d->news = true;
            sweep(d);
        }
        if (alive < 0) {
            const char *why = eng_failure(d->engine);
            base_log(BASE_LOG_ERROR, "server", "the engine stopped: %s",
                     why ? why : base_err_name(alive));
            atomic_store(&d->failed, alive);
            end_all(d, alive, why ? why : "the engine stopped and the server has to be restarted");
        }
        if (d->news) {
            d->news = false;
            srv_hub_news(d->hub);
        }
        /* Whoever stops it may have poked while it awaited company. */
        if (d->active_count == 0 && !d->waiting && !atomic_load(&d->stop)) {
            idle(d);
        }
    }
    atomic_store(&d->over, true);
    end_all(d, -ESHUTDOWN, "the server stopped before the answer was complete");
    while (atomic_load(&d->held) > 0) {     /* they counted themselves before they saw `stop` */
        sched_yield();
        end_all(d, -ESHUTDOWN, "the server stopped before the answer was complete");
    }
    srv_hub_news(d->hub);
    return NULL;
}

int srv_drive_open(struct srv_drive *d, struct eng *engine, struct srv_hub *hub, unsigned held_max,
                   struct base_err *err)
{
    *d = (struct srv_drive){ .engine = engine, .hub = hub, .held_max = held_max, .wake_fd = -1,
                             .idle = d->idle, .idle_context = d->idle_context,
                             .company_ns = d->company_ns, .company_max = d->company_max };
    d->waiting_end = &d->waiting;
    d->active = calloc(held_max, sizeof *d->active);
    uint32_t places = 2;
    while (places < held_max) {
        places *= 2;
    }
    d->submission_memory = malloc(base_ring_many_bytes(places, sizeof(struct srv_session *)));
    if (!d->active || !d->submission_memory) {
        srv_drive_close(d);
        return base_err_set(err, -ENOMEM, "out of memory for %u requests", held_max);
    }
    base_ring_many_init(&d->submissions, d->submission_memory, places,
                        sizeof(struct srv_session *));
    int rc = 0;
    d->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (d->wake_fd < 0) {
        rc = -errno;
        srv_drive_close(d);
        return base_err_set(err, rc, "cannot make an eventfd: %s", strerror(-rc));
    }
    rc = -pthread_create(&d->thread, NULL, drive, d);
    if (rc < 0) {
        srv_drive_close(d);
        return base_err_set(err, rc, "cannot start the engine thread: %s", strerror(-rc));
    }
    d->running = true;
    pthread_setname_np(d->thread, "engine");
    return 0;
}

void srv_drive_stop(struct srv_drive *d)
{
    if (d->running) {
        atomic_store(&d->stop, true);
        poke(d);
        pthread_join(d->thread, NULL);
        d->running = false;
    }
}

void srv_drive_close(struct srv_drive *d)
{
    srv_drive_stop(d);
    if (d->wake_fd >= 0) {
        close(d->wake_fd);
        d->wake_fd = -1;
    }
    free(d->submission_memory);
    d->submission_memory = NULL;
    free(d->active);
    d->active = NULL;
}

static void soon(struct timespec *at, unsigned ms)
{
    clock_gettime(CLOCK_REALTIME, at);
    at->tv_nsec += (long)ms * 1000000;
    at->tv_sec += at->tv_nsec / 1000000000;
    at->tv_nsec %= 1000000000;
}

int srv_drive_run(struct srv_drive *d, struct srv_drive_job *job)
{
    struct srv_drive_job *expected = NULL;
    struct timespec at;
    if (atomic_load(&d->over)) return -ESHUTDOWN;
    sem_init(&job->done, 0, 0);
    MUST(atomic_compare_exchange_strong(&d->job, &expected, job));
    poke(d);
    for (;;) {
        soon(&at, JOB_CHECK_MS);
        if (sem_timedwait(&job->done, &at) == 0) break;
        expected = job;
        /* The thread ended before it saw the job: nobody will run it. */
        if (atomic_load(&d->over) && atomic_compare_exchange_strong(&d->job, &expected, NULL)) {
            sem_destroy(&job->done);
            return -ESHUTDOWN;
        }
    }
    sem_destroy(&job->done);
    return 0;
}

int srv_drive_submit(struct srv_drive *d, struct srv_session *s)
{
    if (atomic_load(&d->failed) < 0) {
        return -ESHUTDOWN;
    }
    if (atomic_fetch_add(&d->held, 1) >= d->held_max) {
        atomic_fetch_sub(&d->held, 1);
        return -EBUSY;
    }
    /* Counted first: the thread either is not told to stop yet and sees the count when it is, or
     * this sees that it was. */
    if (atomic_load(&d->stop)) {
        atomic_fetch_sub(&d->held, 1);
        return -ESHUTDOWN;
    }
    MUST(base_ring_many_push(&d->submissions, &s));    /* it has room for held_max */
    poke(d);
    return 0;
}

void srv_drive_cancelled(struct srv_drive *d)
{
    atomic_store(&d->cancels, true);
    poke(d);
}
