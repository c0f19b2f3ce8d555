/* The null backend: every read is done at once and leaves memory as it is. It shows what our own
 * code costs. */
#include "tiering/io_backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct null_io {
    struct tier_io base;
    struct tier_io_list done;
};

static int null_probe(struct base_err *err)
{
    (void)err;
    return 0;
}

static void null_destroy(struct tier_io *io)
{
    tier_io_base_fini(io);
    free(io);
}

static int null_create(struct tier_io **out, const struct tier_io_config *config,
                       struct base_clock *clock, struct base_err *err)
{
    struct null_io *null = calloc(1, sizeof *null);
    int rc = null ? tier_io_base_init(&null->base, &tier_io_null_ops, config, clock) : -ENOMEM;
    if (rc < 0) {
        free(null);
        return base_err_set(err, rc, "io backend null: out of memory");
    }
    snprintf(null->base.note, sizeof null->base.note, "null: reads nothing");
    *out = &null->base;
    return 0;
}

static int null_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    struct null_io *null = (struct null_io *)io;
    for (unsigned i = 0; i < n; i++) {
        int refused = tier_io_req_check(io, reqs[i]);
        reqs[i]->result = refused < 0 ? refused : (int64_t)reqs[i]->bytes;
        reqs[i]->done_ns = reqs[i]->submit_ns;
        tier_io_list_push(&null->done, reqs[i]);
    }
    return (int)n;
}

static int null_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                     uint64_t deadline_ns)
{
    struct null_io *null = (struct null_io *)io;
    (void)min;
    (void)deadline_ns;
    unsigned count = 0;
    while (count < max && null->done.head) {
        done[count++] = tier_io_list_pop(&null->done);
    }
    return (int)count;
}

const struct tier_io_ops tier_io_null_ops = {
    .name = "null",
    .probe = null_probe,
    .create = null_create,
    .destroy = null_destroy,
    .file_add = tier_io_files_open,
    .submit = null_submit,
    .reap = null_reap,
};
