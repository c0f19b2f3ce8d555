/* The throttle wrapper: makes a real disk as slow as one wants, for experiments.
 *
 * Requests pass a link of the set bandwidth one after another, demand before prefetch, and arrive
 * the set latency later. The link's time goes on between calls: what it would have begun in the
 * meantime is begun at the next call, as of then.
 */
#include "tiering/io_backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 32 };

struct throttle_io {
    struct tier_io base;
    struct tier_io *inner;
    uint64_t latency_ns, bandwidth;     /* 0 = no limit */
    uint64_t link_free_ns;
    struct tier_io_list demand, prefetch;       /* before the link */
    struct tier_io_req *held;           /* read, but not there yet; by time of arrival */
};

static struct tier_io_req *first_waiting(const struct throttle_io *t)
{
    return t->demand.head ? t->demand.head : t->prefetch.head;
}

static uint64_t start_of(const struct throttle_io *t, const struct tier_io_req *req)
{
    return req->submit_ns > t->link_free_ns ? req->submit_ns : t->link_free_ns;
}

/* Lets through what the link has had time for by now. */
static void pass(struct throttle_io *t, uint64_t now)
{
    struct tier_io_req *req;
    while ((req = first_waiting(t)) != NULL && t->inner->in_flight < t->inner->depth) {
        uint64_t start = start_of(t, req);
        if (start > now) return;
        tier_io_list_pop(t->demand.head ? &t->demand : &t->prefetch);
        uint64_t transfer =
            t->bandwidth ? (uint64_t)((double)req->bytes * 1e9 / (double)t->bandwidth) : 0;
        t->link_free_ns = start + transfer;
        req->backend[5] = t->link_free_ns + t->latency_ns;
        tier_io_forward(t->inner, &req, 1);
    }
}

/* Takes in what the disk has finished; waits for at most one read. */
static void take_in(struct throttle_io *t, unsigned min, uint64_t deadline_ns)
{
    struct tier_io_req *done[BATCH];
    int count = tier_io_reap(t->inner, done, BATCH, min, deadline_ns);
    t->base.injected = t->inner->injected;
    for (int i = 0; i < count; i++) {
        tier_io_held_add(&t->held, done[i], 5);
    }
}

static void throttle_destroy(struct tier_io *io)
{
    tier_io_destroy(((struct throttle_io *)io)->inner);
    free(io);
}

static int throttle_file_add(struct tier_io *io, const char *path, struct base_err *err)
{
    struct throttle_io *t = (struct throttle_io *)io;
    int handle = tier_io_file_add(t->inner, path, err);
    tier_io_mirror(io, t->inner);
    return handle;
}

static int throttle_memory_add(struct tier_io *io, void *memory, size_t bytes, size_t reserve)
{
    struct throttle_io *t = (struct throttle_io *)io;
    int rc = tier_io_memory_add(t->inner, memory, bytes, reserve);
    tier_io_mirror(io, t->inner);
    return rc;
}

static void throttle_memory_change(struct tier_io *io, void *memory, size_t bytes, bool in_service)
{
    tier_io_memory_change(((struct throttle_io *)io)->inner, memory, bytes, in_service);
}

static int throttle_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    struct throttle_io *t = (struct throttle_io *)io;
    uint64_t now = base_clock_now_ns(io->clock);
    pass(t, now);
    for (unsigned i = 0; i < n; i++) {
        tier_io_list_push(reqs[i]->prefetch ? &t->prefetch : &t->demand, reqs[i]);
    }
    pass(t, now);
    return (int)n;
}

static int throttle_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                         uint64_t deadline_ns)
{
    struct throttle_io *t = (struct throttle_io *)io;
    unsigned count = 0;
    for (;;) {
        uint64_t now = base_clock_now_ns(io->clock);
        pass(t, now);
        take_in(t, 0, 0);
        while (count < max && t->held && t->held->backend[5] <= now) {
            struct tier_io_req *req = t->held;
            t->held = tier_io_list_next(req);
            if (req->done_ns < req->backend[5]) req->done_ns = req->backend[5];
            done[count++] = req;
        }
        if (count >= min || now >= deadline_ns) return (int)count;

        /* Sleep until something can happen: an arrival, the link free again, or the disk. */
        uint64_t until = deadline_ns;
        struct tier_io_req *next = first_waiting(t);
        if (t->held && t->held->backend[5] < until) until = t->held->backend[5];
        if (next && t->inner->in_flight < t->inner->depth && start_of(t, next) < until) {
            until = start_of(t, next);
        }
        if (t->inner->in_flight > 0) {
            take_in(t, 1, until);
        } else {
            io->clock->sleep_until_ns(io->clock, until);
        }
    }
}

static void throttle_promote(struct tier_io *io, struct tier_io_req *req)
{
    struct throttle_io *t = (struct throttle_io *)io;
    if (tier_io_list_remove(&t->prefetch, req)) {
        tier_io_list_push(&t->demand, req);
    } else if (t->inner->ops->promote) {
        t->inner->ops->promote(t->inner, req);
    }
}

static int throttle_probe(struct base_err *err)
{
    (void)err;
    return 0;
}

/* Wrappers are made by their wrap function, never from the registry. */
static int throttle_create(struct tier_io **out, const struct tier_io_config *config,
                           struct base_clock *clock, struct base_err *err)
{
    (void)out;
    (void)config;
    (void)clock;
    return base_err_set(err, -EINVAL, "throttle wraps a backend, it is none itself");
}

static const struct tier_io_ops throttle_ops = {
    .name = "throttle",
    .probe = throttle_probe,
    .create = throttle_create,
    .destroy = throttle_destroy,
    .file_add = throttle_file_add,
    .submit = throttle_submit,
    .reap = throttle_reap,
    .memory_add = throttle_memory_add,
    .memory_change = throttle_memory_change,
    .promote = throttle_promote,
};

int tier_io_throttle_wrap(struct tier_io **io, const struct tier_io_config *config,
                          struct base_err *err)
{
    struct throttle_io *t = calloc(1, sizeof *t);
    if (!t) {
        tier_io_destroy(*io);
        return base_err_set(err, -ENOMEM, "io throttle: out of memory");
    }
    t->base.ops = &throttle_ops;
    t->inner = *io;
    t->latency_ns = config->throttle_latency;
    t->bandwidth = config->throttle_bandwidth;
    tier_io_mirror(&t->base, t->inner);
    *io = &t->base;
    return 0;
}
