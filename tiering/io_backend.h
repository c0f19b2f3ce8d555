/* What the io backends share; for backends and wrappers only, callers include io.h.
 *
 * Requests are linked through their own scratch words, so queues need no memory:
 *
 *     backend[0]     next request of the list it is in
 *     backend[1..3]  pieces: bytes handed out, pieces under way, end of file seen
 *     backend[4]     faulty's verdict, then its time of release
 *     backend[5]     throttle's time of arrival
 *
 * Nothing here locks; a backend with threads guards its queue itself.
 */
#ifndef TIERING_IO_BACKEND_H
#define TIERING_IO_BACKEND_H

#include "tiering/io.h"

enum { TIER_IO_ALIGN = 4096 };

extern const struct tier_io_ops tier_io_uring_ops, tier_io_threads_ops, tier_io_sim_ops,
    tier_io_null_ops;

/* Puts a wrapper around `inner`, which it then owns (also when it fails). */
int tier_io_faulty_wrap(struct tier_io **io, const struct tier_io_config *config,
                        struct base_err *err);
int tier_io_throttle_wrap(struct tier_io **io, const struct tier_io_config *config,
                          struct base_err *err);
/* Copies what a wrapper shows of the object it wraps: direct, note and so on. */
void tier_io_mirror(struct tier_io *wrapper, const struct tier_io *inner);

/* Sets up the base of a backend. 0 or -ENOMEM. */
int tier_io_base_init(struct tier_io *io, const struct tier_io_ops *ops,
                      const struct tier_io_config *config, struct base_clock *clock);
void tier_io_base_fini(struct tier_io *io);

/* Hands requests to ops->submit, as many as there is room for, and counts them. */
int tier_io_forward(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n);

struct tier_io_file {
    char *path;
    int fd;
    uint64_t bytes;             /* when it was opened */
    bool direct;
};

struct tier_io_files {
    enum tier_io_direct direct;
    unsigned count, capacity;
    struct tier_io_file *at;
};

void tier_io_file_close(struct tier_io_file *file);
/* Opens for reading, with O_DIRECT if the config wants it and the file system takes it. */
int tier_io_files_open(struct tier_io *io, const char *path, struct base_err *err);

/* 0, or the -errno with which a request is settled at once: unknown file, misaligned for
 * O_DIRECT. */
int tier_io_req_check(const struct tier_io *io, const struct tier_io_req *req);

/* After `done` bytes from `offset` on: where in the read to go on, or UINT64_MAX at end of file.
 * O_DIRECT cannot go on in the middle of a block: it reads that block again. */
uint64_t tier_io_resume_at(const struct tier_io_file *file, uint64_t offset, uint64_t done);

/* pread until all is there: bytes (short only at end of file) or -errno. */
int64_t tier_io_pread_whole(const struct tier_io_file *file, void *to, uint64_t bytes,
                            uint64_t offset);

/* First in, first out. */
struct tier_io_list {
    struct tier_io_req *head, *tail;
};

static inline struct tier_io_req *tier_io_list_next(const struct tier_io_req *req)
{
    return (struct tier_io_req *)(uintptr_t)req->backend[0];
}

static inline void tier_io_list_push(struct tier_io_list *list, struct tier_io_req *req)
{
    req->backend[0] = 0;
    if (list->tail) {
        list->tail->backend[0] = (uint64_t)(uintptr_t)req;
    } else {
        list->head = req;
    }
    list->tail = req;
}

static inline struct tier_io_req *tier_io_list_pop(struct tier_io_list *list)
{
    struct tier_io_req *req = list->head;
    if (!req) return NULL;
    list->head = tier_io_list_next(req);
    if (!list->head) list->tail = NULL;
    return req;
}

/* True if it was there. */
bool tier_io_list_remove(struct tier_io_list *list, struct tier_io_req *req);

/* Adds a request to a chain that ascends by backend[word], behind its equals. */
void tier_io_held_add(struct tier_io_req **held, struct tier_io_req *req, unsigned word);

/* Requests that wait to start, cut into pieces of at most `piece_bytes`: demand before prefetch. */
struct tier_io_queue {
    struct tier_io_list demand, prefetch;
    uint64_t piece_bytes;
};

/* How many bytes the kernel is given at once.
 *
 * A virtual disk may answer nothing until it has done all it was given, and then everything in one
 * crowd: whoever computes on what arrives has the whole of it to do at the end, while the disk is
 * idle. Where answers come like that, the kernel has a third of what is left to read at most, so
 * that crowds get smaller towards the end. Where they come one by one, it has all of it. */
struct tier_io_window {
    uint64_t left_bytes;        /* of requests taken, what is not back */
    uint64_t sent_bytes;        /* of these, with the kernel */
    unsigned crowds;            /* how sure it is that answers come in crowds, 0 to 8 */
};

static inline bool tier_io_window_open(const struct tier_io_window *window)
{
    const uint64_t least = UINT64_C(4) << 20;   /* 2 ms of a fast virtual disk */
    uint64_t share = window->left_bytes / 3;
    return window->crowds < 4 || window->sent_bytes < (share > least ? share : least);
}

/* Of `sent` pieces that the kernel had, `back` were seen to be done at one look. */
void tier_io_window_seen(struct tier_io_window *window, unsigned sent, unsigned back);

struct tier_io_piece {
    struct tier_io_req *req;
    uint64_t at;                /* from the request's begin */
    uint64_t bytes;
};

void tier_io_queue_push(struct tier_io_queue *queue, struct tier_io_req *req);
void tier_io_queue_promote(struct tier_io_queue *queue, struct tier_io_req *req);
/* The next piece; false when nothing waits. */
bool tier_io_queue_cut(struct tier_io_queue *queue, struct tier_io_piece *piece);
static inline bool tier_io_queue_empty(const struct tier_io_queue *queue)
{
    return !queue->demand.head && !queue->prefetch.head;
}
/* Accounts a finished piece; true when that was the request's last one (`result` is set then). */
bool tier_io_piece_settle(const struct tier_io_piece *piece, int64_t got);

#endif
