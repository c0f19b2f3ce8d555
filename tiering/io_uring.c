/* The io_uring backend: O_DIRECT reads into registered buffers through registered files.
 *
 * A request is cut into pieces of io.chunk bytes; at most io.depth pieces are with the kernel. A
 * piece that comes back short, or with EINTR or EAGAIN, is sent again from where it stopped. All
 * tables are made at creation: submit and reap neither allocate nor lock.
 *
 * Registering memory makes the kernel fill in all its pages: minutes for a large tier. So a region
 * is registered in parts, each when the first read lands in it. A part of which some is out of
 * service is not registered: that would bring its pages back.
 */
#include "tiering/io_backend.h"

#include <errno.h>
#include <liburing.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/must.h"

enum {
    FILES_MAX = 1024,           /* registered; files beyond are used by descriptor */
    REGIONS_MAX = 64,
    TRIES_MAX = 1000,           /* of one piece without progress, then EIO */
    UNSENT_WAIT_NS = 1000000,
    BUFFERS_MAX = 16384,        /* the kernel takes no more */
};

/* Parts of a region: small enough that filling one in is no pause that anybody sees, and the kernel
 * takes at most 1 GiB in one registered buffer. */
static const uint64_t part_bytes_min = UINT64_C(16) << 20, part_bytes_max = UINT64_C(1) << 30;

struct piece_state {
    struct tier_io_piece piece;
    uint64_t done;              /* bytes of the piece that are there */
    unsigned tries;
};

/* Memory of one memory_add: buffers first_buffer.. of part_bytes each, the last one shorter. */
struct region {
    char *start;
    size_t bytes, reserve;
    size_t cut;                 /* bytes that are cut into parts: the reserve, or `bytes` */
    unsigned first_buffer;
};

enum part_state { PART_NEW, PART_REGISTERED, PART_REFUSED };

struct uring_io {
    struct tier_io base;
    struct io_uring ring;
    bool ring_made;
    unsigned files_registered;  /* size of the kernel's table, 0 = not registered */
    struct tier_io_queue queue;
    struct tier_io_window window;
    struct tier_io_list done;
    struct piece_state *pieces; /* [depth] */
    unsigned *free_pieces;
    unsigned free_count;
    unsigned region_count;
    struct region regions[REGIONS_MAX];
    uint64_t part_bytes;
    uint8_t parts[BUFFERS_MAX]; /* enum part_state of each registered buffer */
    uint64_t away[BUFFERS_MAX]; /* bytes of it that are out of service */
};

static long read_sysctl_disabled(void)
{
    FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "re");
    long value = -1;
    if (!file) return -1;
    if (fscanf(file, "%ld", &value) != 1) value = -1;
    fclose(file);
    return value;
}

/* Says why a ring could not be made, and what to set. */
static int explain_setup(int code, struct base_err *err)
{
    struct rlimit limit = { 0 };
    long disabled;
    switch (code) {
    case -EPERM:
        disabled = read_sysctl_disabled();
        if (disabled > 0) {
            return base_err_set(err, code, "io_uring is switched off by kernel.io_uring_disabled="
                                "%ld: run `sysctl kernel.io_uring_disabled=0`, or set io.backend "
                                "to threads", disabled);
        }
        return base_err_set(err, code, "io_uring is forbidden here, most likely by the container's "
                            "seccomp profile: allow io_uring_setup, io_uring_enter and "
                            "io_uring_register in it, or set io.backend to threads");
    case -ENOSYS:
        return base_err_set(err, code, "this kernel has no io_uring (Linux 5.6 or newer has): set "
                            "io.backend to threads");
    case -ENOMEM:
        getrlimit(RLIMIT_MEMLOCK, &limit);
        return base_err_set(err, code, "io_uring got no memory for its ring; the memlock limit is "
                            "%llu KiB: raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity in "
                            "systemd), or set io.backend to threads",
                            (unsigned long long)limit.rlim_cur / 1024);
    default:
        return base_err_set(err, code, "io_uring cannot be set up: %s; set io.backend to threads",
                            strerror(-code));
    }
}

static int uring_probe(struct base_err *err)
{
    struct io_uring ring;
    int rc = io_uring_queue_init(2, &ring, 0);
    if (rc < 0) return explain_setup(rc, err);
    struct io_uring_probe *known = io_uring_get_probe_ring(&ring);
    bool can_read = known && io_uring_opcode_supported(known, IORING_OP_READ);
    io_uring_free_probe(known);
    io_uring_queue_exit(&ring);
    return can_read ? 0 : explain_setup(-ENOSYS, err);
}

/* Makes an empty table of registered files, so that files can come in later. */
static void register_files(struct uring_io *u)
{
    int none[FILES_MAX];
    struct rlimit limit;
    unsigned count = FILES_MAX;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < count) {
        count = (unsigned)limit.rlim_cur;
    }
    memset(none, 0xff, sizeof none);
    if (io_uring_register_files(&u->ring, none, count) == 0) u->files_registered = count;
}

static void uring_destroy(struct tier_io *io);

static int uring_create(struct tier_io **out, const struct tier_io_config *config,
                        struct base_clock *clock, struct base_err *err)
{
    struct uring_io *u = calloc(1, sizeof *u);
    int rc = u ? tier_io_base_init(&u->base, &tier_io_uring_ops, config, clock) : -ENOMEM;
    if (rc < 0) {
        free(u);
        return base_err_set(err, rc, "io backend io_uring: out of memory");
    }
    unsigned depth = u->base.depth;
    u->pieces = calloc(depth, sizeof *u->pieces);
    u->free_pieces = calloc(depth, sizeof *u->free_pieces);
    if (!u->pieces || !u->free_pieces) {
        rc = base_err_set(err, -ENOMEM, "io backend io_uring: out of memory");
        goto fail;
    }
    for (unsigned i = 0; i < depth; i++) {
        u->free_pieces[u->free_count++] = depth - 1 - i;
    }
    u->queue.piece_bytes = config->chunk - config->chunk % TIER_IO_ALIGN;

    /* One entry more than pieces: on kernels before 5.11 a wait with a deadline takes one. */
    rc = io_uring_queue_init(depth + 1, &u->ring, 0);
    if (rc < 0) {
        explain_setup(rc, err);
        goto fail;
    }
    u->ring_made = true;
    register_files(u);
    snprintf(u->base.note, sizeof u->base.note, "io_uring: depth %u%s", depth,
             u->files_registered ? "" : ", files not registered");
    *out = &u->base;
    return 0;
fail:
    uring_destroy(&u->base);
    return rc;
}

static int uring_file_add(struct tier_io *io, const char *path, struct base_err *err)
{
    struct uring_io *u = (struct uring_io *)io;
    int handle = tier_io_files_open(io, path, err);
    if (handle < 0 || (unsigned)handle >= u->files_registered) return handle;
    int fd = io->files->at[handle].fd;
    int rc = io_uring_register_files_update(&u->ring, (unsigned)handle, &fd, 1);
    /* From the first file that the kernel would not take on, descriptors are used. */
    if (rc != 1) u->files_registered = (unsigned)handle;
    return handle;
}

static void note_refusal(struct uring_io *u, int rc);

/* Registers one part of a region. What the kernel refuses is read into without. */
static void register_part(struct uring_io *u, const struct region *region, unsigned part)
{
    uint64_t from = part * u->part_bytes, left = region->cut - from;
    struct iovec buffer = { .iov_base = region->start + from,
                            .iov_len = left < u->part_bytes ? left : u->part_bytes };
    unsigned index = region->first_buffer + part;
    int rc = io_uring_register_buffers_update_tag(&u->ring, index, &buffer, NULL, 1);
    u->parts[index] = rc == 1 ? PART_REGISTERED : PART_REFUSED;
    if (rc < 0) note_refusal(u, rc);
}

/* Index of the registered buffer that holds the whole range, or -1. */
static int find_buffer(struct uring_io *u, const char *start, uint64_t bytes)
{
    for (unsigned i = 0; i < u->region_count; i++) {
        const struct region *region = &u->regions[i];
        if (start < region->start || start >= region->start + region->cut) continue;
        uint64_t first = (uint64_t)(start - region->start);
        unsigned part = (unsigned)(first / u->part_bytes);
        if (first + bytes > region->cut) return -1;
        if (part != (first + bytes - 1) / u->part_bytes) return -1;
        if (u->away[region->first_buffer + part] > 0) return -1;
        if (u->parts[region->first_buffer + part] == PART_NEW) register_part(u, region, part);
        if (u->parts[region->first_buffer + part] != PART_REGISTERED) return -1;
        return (int)(region->first_buffer + part);
    }
    return -1;
}

static void send_piece(struct uring_io *u, unsigned index)
{
    struct piece_state *state = &u->pieces[index];
    struct tier_io_req *req = state->piece.req;
    char *to = (char *)req->to + state->piece.at + state->done;
    unsigned bytes = (unsigned)(state->piece.bytes - state->done);
    uint64_t offset = req->offset + state->piece.at + state->done;
    bool registered = req->file < u->files_registered;
    int fd = registered ? (int)req->file : u->base.files->at[req->file].fd;

    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    MUST(sqe != NULL);          /* the ring has an entry for every piece */
    int buffer = find_buffer(u, to, bytes);
    if (buffer >= 0) {
        io_uring_prep_read_fixed(sqe, fd, to, bytes, offset, buffer);
    } else {
        io_uring_prep_read(sqe, fd, to, bytes, offset);
    }
    if (registered) sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = index;
}

static void flush(struct uring_io *u)
{
    if (io_uring_sq_ready(&u->ring) == 0) return;
    int rc = io_uring_submit(&u->ring);
    /* Refused for now: the entries stay in the ring and go with the next call. */
    MUST(rc >= 0 || rc == -EAGAIN || rc == -EBUSY || rc == -EINTR || rc == -ENOMEM);
}

/* Gives the kernel as many pieces as depth and window allow. */
static void issue(struct uring_io *u)
{
    while (u->free_count > 0 && !tier_io_queue_empty(&u->queue) &&
           tier_io_window_open(&u->window)) {
        unsigned index = u->free_pieces[--u->free_count];
        struct piece_state *state = &u->pieces[index];
        state->done = 0;
        state->tries = 0;
        tier_io_queue_cut(&u->queue, &state->piece);
        u->window.sent_bytes += state->piece.bytes;
        send_piece(u, index);
    }
    flush(u);
}

static int uring_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n)
{
    struct uring_io *u = (struct uring_io *)io;
    for (unsigned i = 0; i < n; i++) {
        reqs[i]->result = tier_io_req_check(io, reqs[i]);
        if (reqs[i]->result < 0 || reqs[i]->bytes == 0) {
            reqs[i]->done_ns = reqs[i]->submit_ns;
            tier_io_list_push(&u->done, reqs[i]);
        } else {
            u->window.left_bytes += reqs[i]->bytes;
            tier_io_queue_push(&u->queue, reqs[i]);
        }
    }
    issue(u);
    return (int)n;
}

/* True when the piece has to go to the kernel once more; `got` is then not final. */
static bool wants_more(struct uring_io *u, struct piece_state *state, int64_t *got)
{
    const struct tier_io_piece *piece = &state->piece;
    if (*got == -EINTR || *got == -EAGAIN) {
        if (++state->tries < TRIES_MAX) return true;
        *got = -EIO;
        return false;
    }
    if (*got < 0) return false;
    uint64_t end = state->done + (uint64_t)*got;
    if (end >= piece->bytes || *got == 0) {
        *got = (int64_t)end;
        return false;
    }
    const struct tier_io_file *file = &u->base.files->at[piece->req->file];
    uint64_t next = tier_io_resume_at(file, piece->req->offset + piece->at, end);
    if (next == UINT64_MAX) {
        *got = (int64_t)end;
        return false;
    }
    state->tries = next > state->done ? 0 : state->tries + 1;
    state->done = next;
    if (state->tries < TRIES_MAX) return true;
    *got = -EIO;
    return false;
}

/* Takes in everything the kernel has finished. */
static void collect(struct uring_io *u)
{
    struct io_uring_cqe *cqe;
    uint64_t now = 0;
    unsigned sent = u->base.depth - u->free_count;
    while (io_uring_peek_cqe(&u->ring, &cqe) == 0 && cqe) {
        uint64_t index = cqe->user_data;
        int64_t got = cqe->res;
        io_uring_cqe_seen(&u->ring, cqe);
        if (index >= u->base.depth) continue;       /* an old kernel's timeout entry */
        struct piece_state *state = &u->pieces[index];
        if (wants_more(u, state, &got)) {
            send_piece(u, (unsigned)index);
            continue;
        }
        u->free_pieces[u->free_count++] = (unsigned)index;
        u->window.sent_bytes -= state->piece.bytes;
        u->window.left_bytes -= state->piece.bytes;
        if (!tier_io_piece_settle(&state->piece, got)) continue;
        if (now == 0) now = base_clock_now_ns(u->base.clock);
        state->piece.req->done_ns = now;
        tier_io_list_push(&u->done, state->piece.req);
    }
    tier_io_window_seen(&u->window, sent, sent - (u->base.depth - u->free_count));
    issue(u);
}

/* Waits for one completion; false when the deadline has passed. */
static bool wait_one(struct uring_io *u, uint64_t deadline_ns)
{
    struct io_uring_cqe *cqe;
    bool unsent = io_uring_sq_ready(&u->ring) > 0;
    if (deadline_ns == UINT64_MAX && !unsent) {
        io_uring_wait_cqe(&u->ring, &cqe);
        return true;
    }
    uint64_t now = base_clock_now_ns(u->base.clock);
    if (now >= deadline_ns) return false;
    uint64_t left = deadline_ns - now;
    /* The kernel was short of something: try again soon, nothing may be under way to wake us. */
    if (unsent && left > UNSENT_WAIT_NS) left = UNSENT_WAIT_NS;
    struct __kernel_timespec wait = { .tv_sec = (long long)(left / 1000000000u),
                                      .tv_nsec = (long long)(left % 1000000000u) };
    return io_uring_wait_cqes(&u->ring, &cqe, 1, &wait, NULL) != -ETIME ||
           unsent;
}

static int uring_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                      uint64_t deadline_ns)
{
    struct uring_io *u = (struct uring_io *)io;
    unsigned count = 0;
    bool in_time = true;
    for (;;) {
        collect(u);
        while (count < max && u->done.head) {
            done[count++] = tier_io_list_pop(&u->done);
        }
        if (count >= min || !in_time) return (int)count;
        in_time = wait_one(u, deadline_ns);
    }
}

/* The kernel writes into requests' memory until it has finished: wait for what it has. */
static void uring_destroy(struct tier_io *io)
{
    struct uring_io *u = (struct uring_io *)io;
    if (u->ring_made) {
        u->queue.demand = u->queue.prefetch = (struct tier_io_list){ 0 };
        while (u->free_count < io->depth) {
            wait_one(u, UINT64_MAX);
            collect(u);
        }
        io_uring_queue_exit(&u->ring);
    }
    free(u->pieces);
    free(u->free_pieces);
    tier_io_base_fini(io);
    free(u);
}

static uint64_t regions_bytes(const struct uring_io *u)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < u->region_count; i++) {
        bytes += u->regions[i].bytes;
    }
    return bytes;
}

/* Cuts all regions into parts anew; returns how many. */
static unsigned cut_regions(struct uring_io *u, uint64_t part_bytes, bool reserve)
{
    unsigned count = 0;
    u->part_bytes = part_bytes;
    for (unsigned i = 0; i < u->region_count; i++) {
        struct region *region = &u->regions[i];
        region->first_buffer = count;
        region->cut = reserve ? region->reserve : region->bytes;
        count += (unsigned)((region->cut + part_bytes - 1) / part_bytes);
    }
    return count;
}

/* Bytes of a part that lie in a range of the region. */
static uint64_t overlap(const struct uring_io *u, const struct region *region, unsigned part,
                        uint64_t from, uint64_t to)
{
    uint64_t first = part * u->part_bytes, end = first + u->part_bytes;
    if (end > region->cut) end = region->cut;
    if (first < from) first = from;
    if (end > to) end = to;
    return end > first ? end - first : 0;
}

/* What lies behind the memory of each region is out of service yet. */
static void count_away(struct uring_io *u)
{
    for (unsigned i = 0; i < u->region_count; i++) {
        const struct region *region = &u->regions[i];
        for (unsigned p = 0; p * u->part_bytes < region->cut; p++) {
            u->away[region->first_buffer + p] = overlap(u, region, p, region->bytes, region->cut);
        }
    }
}

/* Registers all regions anew: the kernel knows only one table. With `empty` it gets a table of
 * nothing, which is filled as parts are used; kernels before 5.13 have no such table. */
static int register_regions(struct uring_io *u, bool empty)
{
    uint64_t part_bytes = empty ? part_bytes_min : part_bytes_max;
    unsigned count = cut_regions(u, part_bytes, empty);
    while (part_bytes < part_bytes_max && count > BUFFERS_MAX) {
        part_bytes *= 2;
        count = cut_regions(u, part_bytes, empty);
    }
    if (count > BUFFERS_MAX) return -ENOSPC;
    count_away(u);
    struct iovec *buffers = calloc(count, sizeof *buffers);
    if (!buffers) return -ENOMEM;
    for (unsigned i = 0; i < u->region_count && !empty; i++) {
        const struct region *region = &u->regions[i];
        struct iovec *buffer = &buffers[region->first_buffer];
        for (uint64_t from = 0; from < region->bytes; from += part_bytes, buffer++) {
            uint64_t left = region->bytes - from;
            *buffer = (struct iovec){ region->start + from, left < part_bytes ? left : part_bytes };
        }
    }
    int rc = io_uring_register_buffers(&u->ring, buffers, count);
    memset(u->parts, empty ? PART_NEW : PART_REGISTERED, count);
    free(buffers);
    return rc;
}

/* Raises the limit of locked memory as far as this process may. */
static bool raise_memlock(void)
{
    struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY }, limit;
    if (setrlimit(RLIMIT_MEMLOCK, &unlimited) == 0) return true;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur == limit.rlim_max) return false;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(RLIMIT_MEMLOCK, &limit) == 0;
}

static bool has_ipc_lock(void)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };
    return syscall(SYS_capget, &header, data) == 0 && (data[0].effective & 1u << CAP_IPC_LOCK);
}

/* Whether so much memory may be locked, with the limit raised as far as this process may. */
static bool memlock_allows(uint64_t bytes)
{
    struct rlimit limit;
    if (has_ipc_lock()) return true;                /* the limit does not bind us */
    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0) return false;
    if (limit.rlim_cur >= bytes) return true;       /* RLIM_INFINITY is the largest number */
    return raise_memlock() && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur >= bytes;
}

static void note_refusal(struct uring_io *u, int rc)
{
    struct tier_io *io = &u->base;
    struct rlimit limit = { 0 };
    size_t used = strlen(io->note);
    if (io->buffers_refused) return;
    io->buffers_refused = true;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (rc == -ENOMEM) {
        snprintf(io->note + used, sizeof io->note - used,
                 "; buffers not registered: memlock limit is %llu KiB, set `ulimit -l unlimited` "
                 "or LimitMEMLOCK=infinity", (unsigned long long)limit.rlim_cur / 1024);
    } else {
        snprintf(io->note + used, sizeof io->note - used, "; buffers not registered: %s",
                 strerror(-rc));
    }
}

static int uring_memory_add(struct tier_io *io, void *memory, size_t bytes, size_t reserve)
{
    struct uring_io *u = (struct uring_io *)io;
    if (bytes == 0) return -EINVAL;
    if (u->region_count == REGIONS_MAX) return -ENOSPC;
    if (u->region_count > 0) io_uring_unregister_buffers(&u->ring);
    u->regions[u->region_count++] = (struct region){
        .start = memory, .bytes = bytes, .reserve = reserve,
    };
    /* Where the limit on locked memory may be too small we want to know now, not in the middle of a
     * request: then everything is registered at once. */
    int rc = memlock_allows(regions_bytes(u)) ? register_regions(u, true) : -ENOMEM;
    if (rc < 0) rc = register_regions(u, false);
    if (rc >= 0) return 0;

    note_refusal(u, rc);
    u->region_count--;
    /* The earlier ones fitted before. */
    if (u->region_count > 0 && register_regions(u, false) < 0) u->region_count = 0;
    return rc;
}

/* Lets go of a registered part: its pages are the kernel's until the last read into it is done. */
static void drop_part(struct uring_io *u, unsigned index)
{
    struct iovec none = { 0 };
    u->parts[index] = PART_NEW;
    if (io_uring_register_buffers_update_tag(&u->ring, index, &none, NULL, 1) == 1) return;
    /* A kernel before 5.13: all or nothing. It waits for the reads in flight. */
    io_uring_unregister_buffers(&u->ring);
    u->region_count = 0;
    note_refusal(u, -EOPNOTSUPP);
}

static void uring_memory_change(struct tier_io *io, void *memory, size_t bytes, bool in_service)
{
    struct uring_io *u = (struct uring_io *)io;
    char *start = memory;
    for (unsigned i = 0; i < u->region_count; i++) {
        const struct region *region = &u->regions[i];
        if (start < region->start || start >= region->start + region->cut) continue;
        uint64_t from = (uint64_t)(start - region->start), to = from + bytes;
        for (uint64_t p = from / u->part_bytes; p * u->part_bytes < to; p++) {
            uint64_t part = overlap(u, region, (unsigned)p, from, to);
            if (part == 0) break;
            unsigned index = region->first_buffer + (unsigned)p;
            MUST(!in_service || u->away[index] >= part);
            u->away[index] += in_service ? -part : part;
            if (u->away[index] > 0 && u->parts[index] == PART_REGISTERED) drop_part(u, index);
            if (u->region_count == 0) return;
        }
        return;
    }
}

static void uring_promote(struct tier_io *io, struct tier_io_req *req)
{
    tier_io_queue_promote(&((struct uring_io *)io)->queue, req);
}

const struct tier_io_ops tier_io_uring_ops = {
    .name = "io_uring",
    .probe = uring_probe,
    .create = uring_create,
    .destroy = uring_destroy,
    .file_add = uring_file_add,
    .submit = uring_submit,
    .reap = uring_reap,
    .memory_add = uring_memory_add,
    .memory_change = uring_memory_change,
    .promote = uring_promote,
};
