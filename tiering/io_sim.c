/* The sim backend: a disk with a latency and a bandwidth, on the real clock or a virtual one.
 *
 * The bytes are really read, with pread, at the moment the model says that the read is done. Which
 * of the reads in flight is done next is drawn from the seed, so that code which hangs on the order
 * of arrival shows it; seven times in eight a demand read is drawn before any prefetch read.
 */
#include "tiering/io_backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"

struct sim_io {
    struct tier_io base;
    struct base_rng rng;
    uint64_t latency_ns, bandwidth;
    uint64_t link_free_ns;      /* when the last transfer ended */
    struct tier_io_req *served; /* the one under transfer */
    uint64_t served_ns;         /* when it ends */
    unsigned waiting_count;
    struct tier_io_req **waiting;
    struct tier_io_list done;
};

static int sim_probe(struct base_err *err)
{
    (void)err;
    return 0;
}

static void sim_destroy(struct tier_io *io)
{
    tier_io_base_fini(io);
    free(((struct sim_io *)io)->waiting);
    free(io);
}

static int sim_create(struct tier_io **out, const struct tier_io_config *config,
                      struct base_clock *clock, struct base_err *err)
{
    struct sim_io *sim = calloc(1, sizeof *sim);
    int rc = sim ? tier_io_base_init(&sim->base, &tier_io_sim_ops, config, clock) : -ENOMEM;
    if (rc == 0) sim->waiting = calloc(sim->base.depth, sizeof(void *));
    if (rc == 0 && !sim->waiting) rc = -ENOMEM;
    if (rc < 0) {
        if (sim) sim_destroy(&sim->base);
        return base_err_set(err, rc, "io backend sim: out of memory");
    }
    /* The model's own timing stands for the disk's: the page cache may help to deliver the
     * bytes. */
    sim->base.files->direct = TIER_IO_DIRECT_OFF;
    base_rng_init(&sim->rng, config->seed);
    sim->latency_ns = config->sim_latency;
    sim->bandwidth = config->sim_bandwidth;
    snprintf(sim->base.note, sizeof sim->base.note,
             "sim: simulated disk, random order, seed %llu", (unsigned long long)config->seed);
    *out = &sim->base;
    return 0;
}

static bool has_demand(const struct sim_io *sim)
{
    for (unsigned i = 0; i < sim->waiting_count; i++) {
        if (!sim->waiting[i]->prefetch) return true;
    }
    return false;
}

/* Takes the next request to transfer out of those that wait. */
static void serve_next(struct sim_io *sim)
{
    bool demand_only = has_demand(sim) && base_rng_below(&sim->rng, 8) != 0;
    unsigned at;
    do {
        at = (unsigned)base_rng_below(&sim->rng, sim->waiting_count);
    } while (demand_only && sim->waiting[at]->prefetch);
    struct tier_io_req *req = sim->waiting[at];
    sim->waiting[at] = sim->waiting[--sim->waiting_count];

    /* Latencies of queued reads overlap, their transfers do not. */
    uint64_t start = req->submit_ns + sim->latency_ns;
    if (start < sim->link_free_ns) start = sim->link_free_ns;
    sim->served = req;
    sim->served_ns =
        start + (uint64_t)((double)req->bytes * 1e9 / (double)sim->bandwidth);
    sim->link_free_ns = sim->served_ns;
}

static void finish(struct sim_io *sim, struct tier_io_req *req, uint64_t when)
{
    int refused = tier_io_req_check(&sim->base, req);
    req->result = refused < 0 ? refused
                              : tier_io_pread_whole(&sim->base.files->at[req->file], req->to,
                                                    req->bytes, req->offset);
    req->done_ns = when;
    tier_io_list_push(&sim->done, req);
}

/* Moves the model up to `now`. */
static void advance(struct sim_io *sim, uint64_t now)
{
    for (;;) {
        if (!sim->served && sim->waiting_count > 0) serve_next(sim);
        if (!sim->served || sim->served_ns > now) return;
        struct tier_io_req *req = sim->served;
        sim->served = NULL;
        finish(sim, req, sim->served_ns);
    }
}

static int sim_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    struct sim_io *sim = (struct sim_io *)io;
    advance(sim, base_clock_now_ns(io->clock));
    for (unsigned i = 0; i < n; i++) {
        sim->waiting[sim->waiting_count++] = reqs[i];
    }
    return (int)n;
}

static int sim_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                    uint64_t deadline_ns)
{
    struct sim_io *sim = (struct sim_io *)io;
    unsigned count = 0;
    for (;;) {
        uint64_t now = base_clock_now_ns(io->clock);
        advance(sim, now);
        while (count < max && sim->done.head) {
            done[count++] = tier_io_list_pop(&sim->done);
        }
        if (count >= min || now >= deadline_ns || !sim->served) return (int)count;
        uint64_t until = sim->served_ns < deadline_ns ? sim->served_ns : deadline_ns;
        io->clock->sleep_until_ns(io->clock, until);
    }
}

const struct tier_io_ops tier_io_sim_ops = {
    .name = "sim",
    .probe = sim_probe,
    .create = sim_create,
    .destroy = sim_destroy,
    .file_add = tier_io_files_open,
    .submit = sim_submit,
    .reap = sim_reap,
};
