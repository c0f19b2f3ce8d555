#include "tiering/io_backend.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"

#define BASE_OPTION_OWNER struct tier_io_config
const struct base_option tier_io_options[] = { TIER_IO_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t tier_io_option_count = sizeof tier_io_options / sizeof tier_io_options[0];

/* In the order of io.backend's choices after "auto"; auto considers the first two. */
static const struct tier_io_ops *const backends[] = {
#ifdef TIERING_HAVE_URING
    &tier_io_uring_ops,
#else
    NULL,
#endif
    &tier_io_threads_ops,
    &tier_io_sim_ops,
    &tier_io_null_ops,
};
enum { BACKEND_AUTO, BACKEND_URING, BACKEND_THREADS };

static int create_named(struct tier_io **out, const struct tier_io_ops *ops,
                        const struct tier_io_config *config, struct base_clock *clock,
                        struct base_err *err)
{
    if (!ops) {
        return base_err_set(err, -ENOSYS,
                            "io.backend: this build has no io_uring: install liburing "
                            "2.1 or newer with its headers and build again, or use threads");
    }
    int rc = ops->probe(err);
    return rc < 0 ? rc : ops->create(out, config, clock, err);
}

static int create_auto(struct tier_io **out, const struct tier_io_config *config,
                       struct base_clock *clock, struct base_err *err)
{
    struct base_err why = { 0 };
    int rc = create_named(out, backends[BACKEND_URING - 1], config, clock, &why);
    if (rc == 0) return 0;
    rc = create_named(out, backends[BACKEND_THREADS - 1], config, clock, err);
    if (rc < 0) return rc;
    struct tier_io *io = *out;
    io->backend_refused = true;
    snprintf(io->note, sizeof io->note, "threads, because %.*s", (int)sizeof io->note - 20,
             why.text);
    return 0;
}

int tier_io_create(struct tier_io **out, const struct tier_io_config *config,
                   struct base_clock *clock, struct base_err *err)
{
    MUST(config->backend >= 0 && (size_t)config->backend <= sizeof backends / sizeof backends[0]);
    MUST(clock != NULL);
    struct tier_io *io = NULL;
    *out = NULL;
    int rc = config->backend == BACKEND_AUTO
                 ? create_auto(&io, config, clock, err)
                 : create_named(&io, backends[config->backend - 1], config, clock, err);
    if (rc < 0) return rc;
    if (config->faults[0]) {
        rc = tier_io_faulty_wrap(&io, config, err);
        if (rc < 0) return rc;
    }
    if (config->throttle_bandwidth > 0 || config->throttle_latency > 0) {
        rc = tier_io_throttle_wrap(&io, config, err);
        if (rc < 0) return rc;
    }
    *out = io;
    return 0;
}

void tier_io_destroy(struct tier_io *io)
{
    if (io) io->ops->destroy(io);
}

int tier_io_file_add(struct tier_io *io, const char *path, struct base_err *err)
{
    return io->ops->file_add(io, path, err);
}

const char *tier_io_file_path(const struct tier_io *io, uint32_t file)
{
    return file < io->files->count ? io->files->at[file].path : "(unknown file)";
}

int tier_io_forward(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    DMUST(io->in_flight <= io->depth);
    unsigned room = io->depth - io->in_flight;
    int taken = io->ops->submit(io, reqs, n < room ? n : room);
    DMUST(taken >= 0);
    io->in_flight += (unsigned)taken;
    return taken;
}

int tier_io_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    uint64_t now = base_clock_now_ns(io->clock);
    for (unsigned i = 0; i < n; i++) {
        reqs[i]->submit_ns = now;
    }
    return tier_io_forward(io, reqs, n);
}

int tier_io_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                 uint64_t deadline_ns)
{
    if (min > io->in_flight) min = io->in_flight;
    if (min > max) min = max;
    if (io->in_flight == 0) return 0;
    int count = io->ops->reap(io, done, max, min, deadline_ns);
    DMUST(count >= 0 && (unsigned)count <= io->in_flight);
    io->in_flight -= (unsigned)count;
    return count;
}

void tier_io_feed(struct tier_io *io)
{
    if (io->in_flight > 0) tier_io_reap(io, NULL, 0, 0, 0);
}

int tier_io_memory_add(struct tier_io *io, void *memory, size_t bytes, size_t reserve)
{
    if (!io->ops->memory_add) return -ENOTSUP;
    if (io->in_flight > 0) return -EBUSY;
    return io->ops->memory_add(io, memory, bytes, reserve);
}

void tier_io_memory_change(struct tier_io *io, void *memory, size_t bytes, bool in_service)
{
    if (io->ops->memory_change) io->ops->memory_change(io, memory, bytes, in_service);
}

void tier_io_promote(struct tier_io *io, struct tier_io_req *req)
{
    if (!req->prefetch) return;
    if (io->ops->promote) io->ops->promote(io, req);
    req->prefetch = false;
}

int tier_io_base_init(struct tier_io *io, const struct tier_io_ops *ops,
                      const struct tier_io_config *config, struct base_clock *clock)
{
    MUST(ops->probe && ops->create && ops->destroy && ops->file_add && ops->submit && ops->reap);
    io->ops = ops;
    io->clock = clock;
    io->depth = (unsigned)config->depth;
    io->files = calloc(1, sizeof *io->files);
    if (!io->files) return -ENOMEM;
    io->files->direct = (enum tier_io_direct)config->direct;
    return 0;
}

void tier_io_base_fini(struct tier_io *io)
{
    struct tier_io_files *files = io->files;
    if (!files) return;
    for (unsigned i = 0; i < files->count; i++) {
        tier_io_file_close(&files->at[i]);
    }
    free(files->at);
    free(files);
    io->files = NULL;
}

void tier_io_mirror(struct tier_io *wrapper, const struct tier_io *inner)
{
    wrapper->clock = inner->clock;
    wrapper->files = inner->files;
    wrapper->depth = inner->depth;
    wrapper->direct = inner->direct;
    wrapper->backend_refused = inner->backend_refused;
    wrapper->direct_refused = inner->direct_refused;
    wrapper->buffers_refused = inner->buffers_refused;
    snprintf(wrapper->note, sizeof wrapper->note, "%.60s over %.130s", wrapper->ops->name,
             inner->note);
}
