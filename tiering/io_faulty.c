/* The faulty wrapper: makes reads fail on purpose, from a seed.
 *
 *   io.faults:
 * "seed=7,eio=0.01,short=0.1,flip=0.001,stuck=0.0001,slow=0.02,stuck_for=2s,slow_for=20ms"
 *
 *   eio     the read fails, nothing is read
 *   short   the read reports fewer bytes than it should, what follows is overwritten
 *   flip    one bit of what was read is wrong
 *   stuck   the read is not reported for `stuck_for` (2 s unless set)
 *   slow    likewise for `slow_for` (20 ms unless set)
 *
 * The verdict on a request follows from the seed and the number of requests before it, never from
 * time. At most one fault befalls a request.
 */
#include "tiering/io_backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"

enum { BATCH = 32 };
enum fault { FAULT_NONE, FAULT_EIO, FAULT_SHORT, FAULT_FLIP, FAULT_STUCK, FAULT_SLOW, FAULT_COUNT };

static const char *const fault_keys[] = { "eio",  "short", "flip",      "stuck",
                                          "slow", "seed",  "stuck_for", "slow_for" };

struct faulty_io {
    struct tier_io base;
    struct tier_io *inner;
    uint64_t seed, number;      /* of the next request */
    double share[FAULT_COUNT];
    uint64_t stuck_ns, slow_ns;
    struct tier_io_list failed; /* never reached the disk */
    struct tier_io_req *held;   /* read; backend[4] = when it may be reported, earliest first */
};

/* Verdict in the low byte, random bits above it. */
static uint64_t judge(const struct faulty_io *f, uint64_t number)
{
    struct base_rng rng;
    base_rng_init(&rng, f->seed ^ (number * 0x9e3779b97f4a7c15u));
    double draw = base_rng_unit(&rng);
    uint64_t verdict = FAULT_NONE;
    for (int fault = FAULT_EIO; fault < FAULT_COUNT; fault++) {
        if (draw < f->share[fault]) {
            verdict = (uint64_t)fault;
            break;
        }
        draw -= f->share[fault];
    }
    return (base_rng_u64(&rng) & ~(uint64_t)0xff) | verdict;
}

/* Does to a finished read what was decided at its submission. */
static void spoil(struct faulty_io *f, struct tier_io_req *req)
{
    uint64_t random = req->backend[4] >> 8;
    enum fault fault = (enum fault)(req->backend[4] & 0xff);
    uint64_t delay = 0;
    f->base.injected += fault != FAULT_NONE;
    if (req->result > 0 && fault == FAULT_SHORT) {
        uint64_t kept = random % (uint64_t)req->result;
        memset((char *)req->to + kept, 0x5a, (size_t)((uint64_t)req->result - kept));
        req->result = (int64_t)kept;
    } else if (req->result > 0 && fault == FAULT_FLIP) {
        uint64_t bit = random % ((uint64_t)req->result * 8);
        ((unsigned char *)req->to)[bit / 8] ^= (unsigned char)(1u << bit % 8);
    } else if (fault == FAULT_STUCK) {
        delay = f->stuck_ns;
    } else if (fault == FAULT_SLOW) {
        delay = f->slow_ns;
    }
    req->backend[4] = delay ? req->submit_ns + delay : 0;
    tier_io_held_add(&f->held, req, 4);
}

static void faulty_destroy(struct tier_io *io)
{
    tier_io_destroy(((struct faulty_io *)io)->inner);
    free(io);
}

static int faulty_file_add(struct tier_io *io, const char *path, struct base_err *err)
{
    struct faulty_io *f = (struct faulty_io *)io;
    int handle = tier_io_file_add(f->inner, path, err);
    tier_io_mirror(io, f->inner);
    return handle;
}

static int faulty_memory_add(struct tier_io *io, void *memory, size_t bytes, size_t reserve)
{
    struct faulty_io *f = (struct faulty_io *)io;
    int rc = tier_io_memory_add(f->inner, memory, bytes, reserve);
    tier_io_mirror(io, f->inner);
    return rc;
}

static void faulty_memory_change(struct tier_io *io, void *memory, size_t bytes, bool in_service)
{
    tier_io_memory_change(((struct faulty_io *)io)->inner, memory, bytes, in_service);
}

static int faulty_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    struct faulty_io *f = (struct faulty_io *)io;
    unsigned at = 0;
    while (at < n) {
        /* A run of requests that go to the disk is handed on in one call. */
        unsigned end = at;
        for (; end < n; end++) {
            reqs[end]->backend[4] = judge(f, f->number + (end - at));
            if ((reqs[end]->backend[4] & 0xff) == FAULT_EIO) break;
        }
        unsigned run = end - at;
        unsigned taken = run > 0 ? (unsigned)tier_io_forward(f->inner, reqs + at, run) : 0;
        f->number += taken;
        at += taken;
        if (taken < run) break;
        if (end < n) {
            reqs[end]->result = -EIO;
            reqs[end]->done_ns = reqs[end]->submit_ns;
            tier_io_list_push(&f->failed, reqs[end]);
            f->number++;
            f->base.injected++;
            at++;
        }
    }
    return (int)at;
}

static void take_in(struct faulty_io *f, unsigned min, uint64_t deadline_ns)
{
    struct tier_io_req *done[BATCH];
    int count = tier_io_reap(f->inner, done, BATCH, min, deadline_ns);
    for (int i = 0; i < count; i++) {
        spoil(f, done[i]);
    }
}

static int faulty_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                       uint64_t deadline_ns)
{
    struct faulty_io *f = (struct faulty_io *)io;
    unsigned count = 0;
    for (;;) {
        take_in(f, 0, 0);
        uint64_t now = base_clock_now_ns(io->clock);
        while (count < max && f->failed.head) {
            done[count++] = tier_io_list_pop(&f->failed);
        }
        while (count < max && f->held && f->held->backend[4] <= now) {
            struct tier_io_req *req = f->held;
            f->held = tier_io_list_next(req);
            if (req->done_ns < req->backend[4]) req->done_ns = now;
            done[count++] = req;
        }
        if (count >= min || now >= deadline_ns) return (int)count;

        uint64_t until = deadline_ns;
        if (f->held && f->held->backend[4] < until) until = f->held->backend[4];
        if (f->inner->in_flight > 0) {
            take_in(f, 1, until);
        } else {
            io->clock->sleep_until_ns(io->clock, until);
        }
    }
}

static void faulty_promote(struct tier_io *io, struct tier_io_req *req)
{
    struct faulty_io *f = (struct faulty_io *)io;
    if (f->inner->ops->promote) f->inner->ops->promote(f->inner, req);
}

static int faulty_probe(struct base_err *err)
{
    (void)err;
    return 0;
}

/* Wrappers are made by their wrap function, never from the registry. */
static int faulty_create(struct tier_io **out, const struct tier_io_config *config,
                         struct base_clock *clock, struct base_err *err)
{
    (void)out;
    (void)config;
    (void)clock;
    return base_err_set(err, -EINVAL, "faulty wraps a backend, it is none itself");
}

static const struct tier_io_ops faulty_ops = {
    .name = "faulty",
    .probe = faulty_probe,
    .create = faulty_create,
    .destroy = faulty_destroy,
    .file_add = faulty_file_add,
    .submit = faulty_submit,
    .reap = faulty_reap,
    .memory_add = faulty_memory_add,
    .memory_change = faulty_memory_change,
    .promote = faulty_promote,
};

static int parse_one(struct faulty_io *f, const char *key, const char *value, struct base_err *err)
{
    enum { KEY_COUNT = sizeof fault_keys / sizeof fault_keys[0] };
    int at = 0;
    while (at < KEY_COUNT && strcmp(fault_keys[at], key) != 0) {
        at++;
    }
    int rc;
    if (at + 1 < FAULT_COUNT) {
        rc = base_str_share_parse(value, &f->share[at + 1]);
    } else if (at == FAULT_COUNT - 1) {
        rc = base_str_u64_parse(value, &f->seed);
    } else if (at < KEY_COUNT) {
        rc = base_str_duration_parse(value, at == FAULT_COUNT ? &f->stuck_ns : &f->slow_ns);
    } else {
        const char *near = base_str_nearest(key, fault_keys, KEY_COUNT);
        return base_err_set(err, BASE_ECONFIG, "io.faults: \"%s\" is no fault%s%s (known: eio, "
                            "short, flip, stuck, slow, seed, stuck_for, slow_for)", key,
                            near ? "; did you mean " : "", near ? near : "");
    }
    return rc == 0 ? 0
                   : base_err_set(err, BASE_ECONFIG, "io.faults: %s=%s: wanted %s", key, value,
                                  at + 1 < FAULT_COUNT        ? "a share from 0 to 1"
                                  : at == FAULT_COUNT - 1     ? "a whole number"
                                                              : "a time such as 20ms");
}

static int parse_faults(struct faulty_io *f, const char *text, struct base_err *err)
{
    char copy[BASE_OPTION_TEXT];
    char *rest = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *item = strtok_r(copy, ", ", &rest); item; item = strtok_r(NULL, ", ", &rest)) {
        char *equals = strchr(item, '=');
        if (!equals) {
            return base_err_set(err, BASE_ECONFIG, "io.faults: \"%s\" lacks a value: write "
                                "name=share, such as eio=0.01", item);
        }
        *equals = '\0';
        int rc = parse_one(f, item, equals + 1, err);
        if (rc < 0) return rc;
    }
    double sum = 0;
    for (int fault = FAULT_EIO; fault < FAULT_COUNT; fault++) {
        sum += f->share[fault];
    }
    return sum <= 1 ? 0
                    : base_err_set(err, BASE_ECONFIG, "io.faults: the shares add up to %g, at most "
                                   "1 is possible", sum);
}

int tier_io_faulty_wrap(struct tier_io **io, const struct tier_io_config *config,
                        struct base_err *err)
{
    struct faulty_io *f = calloc(1, sizeof *f);
    int rc = f ? 0 : base_err_set(err, -ENOMEM, "io.faults: out of memory");
    if (rc < 0) goto fail;
    f->base.ops = &faulty_ops;
    f->inner = *io;
    f->seed = 1;
    f->stuck_ns = UINT64_C(2000000000);
    f->slow_ns = UINT64_C(20000000);
    rc = parse_faults(f, config->faults, err);
    if (rc < 0) goto fail;
    tier_io_mirror(&f->base, f->inner);
    *io = &f->base;
    return 0;
fail:
    tier_io_destroy(*io);
    *io = NULL;
    free(f);
    return rc;
}
