/* Files, lists and pieces: what every backend does the same way. */
#include "tiering/io_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/must.h"

enum { RESUMES_MAX = 64 };

void tier_io_file_close(struct tier_io_file *file)
{
    if (file->fd >= 0) close(file->fd);
    free(file->path);
    file->fd = -1;
    file->path = NULL;
}

static int open_file(struct tier_io_file *file, enum tier_io_direct direct, const char *path,
                     struct base_err *err)
{
    int flags = O_RDONLY | O_CLOEXEC;
    if (direct != TIER_IO_DIRECT_OFF) {
        file->fd = open(path, flags | O_DIRECT);
        if (file->fd < 0 && errno == EINVAL && direct == TIER_IO_DIRECT_ON) {
            return base_err_set(err, -EINVAL, "%s: its file system refuses O_DIRECT and io.direct "
                                "is on: set io.direct to auto or off, or move the file", path);
        }
        file->direct = file->fd >= 0;
    }
    if (file->fd < 0 && (direct == TIER_IO_DIRECT_OFF || errno == EINVAL)) {
        file->fd = open(path, flags);
    }
    if (file->fd < 0) {
        return base_err_set(err, -errno, "%s: cannot be opened for reading: %s", path,
                            strerror(errno));
    }
    struct stat st;
    off_t end = fstat(file->fd, &st) == 0 ? lseek(file->fd, 0, SEEK_END) : -1;
    if (end < 0) return base_err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return base_err_set(err, -EINVAL, "%s: is neither a file nor a block device", path);
    }
    file->bytes = (uint64_t)end;
    file->path = strdup(path);
    return file->path ? 0 : base_err_set(err, -ENOMEM, "%s: out of memory", path);
}

int tier_io_files_open(struct tier_io *io, const char *path, struct base_err *err)
{
    struct tier_io_files *files = io->files;
    if (files->count == files->capacity) {
        unsigned capacity = files->capacity ? 2 * files->capacity : 8;
        struct tier_io_file *at = realloc(files->at, capacity * sizeof *at);
        if (!at) return base_err_set(err, -ENOMEM, "%s: out of memory", path);
        files->at = at;
        files->capacity = capacity;
    }
    struct tier_io_file *file = &files->at[files->count];
    *file = (struct tier_io_file){ .fd = -1 };
    int rc = open_file(file, files->direct, path, err);
    if (rc < 0) {
        tier_io_file_close(file);
        return rc;
    }
    if (file->direct) io->direct = true;
    if (!file->direct && files->direct == TIER_IO_DIRECT_AUTO && !io->direct_refused) {
        io->direct_refused = true;
        size_t used = strlen(io->note);
        snprintf(io->note + used, sizeof io->note - used,
                 "; buffered: the file system of %.80s refuses O_DIRECT", path);
    }
    return (int)files->count++;
}

int tier_io_req_check(const struct tier_io *io, const struct tier_io_req *req)
{
    if (req->file >= io->files->count) return -EBADF;
    if (!io->files->at[req->file].direct) return 0;
    uint64_t bits = req->offset | req->bytes | (uint64_t)(uintptr_t)req->to;
    return bits % TIER_IO_ALIGN ? -EINVAL : 0;
}

uint64_t tier_io_resume_at(const struct tier_io_file *file, uint64_t offset, uint64_t done)
{
    if (offset + done >= file->bytes) return UINT64_MAX;
    return file->direct ? done - done % TIER_IO_ALIGN : done;
}

int64_t tier_io_pread_whole(const struct tier_io_file *file, void *to, uint64_t bytes,
                            uint64_t offset)
{
    uint64_t done = 0;
    for (unsigned stalls = 0; done < bytes && stalls < RESUMES_MAX;) {
        ssize_t got = pread(file->fd, (char *)to + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (got < 0) return -errno;
        uint64_t end = done + (uint64_t)got;
        if (end >= bytes) return (int64_t)bytes;
        uint64_t next = got == 0 ? UINT64_MAX : tier_io_resume_at(file, offset, end);
        if (next == UINT64_MAX) return (int64_t)end;
        if (next == done) stalls++;
        done = next;
    }
    return done >= bytes ? (int64_t)bytes : -EIO;
}

void tier_io_held_add(struct tier_io_req **held, struct tier_io_req *req, unsigned word)
{
    struct tier_io_req *before = NULL, *after = *held;
    while (after && after->backend[word] <= req->backend[word]) {
        before = after;
        after = tier_io_list_next(after);
    }
    req->backend[0] = (uint64_t)(uintptr_t)after;
    if (before) {
        before->backend[0] = (uint64_t)(uintptr_t)req;
    } else {
        *held = req;
    }
}

bool tier_io_list_remove(struct tier_io_list *list, struct tier_io_req *req)
{
    struct tier_io_req *before = NULL;
    for (struct tier_io_req *at = list->head; at; before = at, at = tier_io_list_next(at)) {
        if (at != req) continue;
        if (before) {
            before->backend[0] = at->backend[0];
        } else {
            list->head = tier_io_list_next(at);
        }
        if (list->tail == at) list->tail = before;
        return true;
    }
    return false;
}

void tier_io_queue_push(struct tier_io_queue *queue, struct tier_io_req *req)
{
    DMUST(req->bytes > 0);
    req->result = 0;
    req->backend[1] = 0;
    req->backend[2] = 0;
    req->backend[3] = req->bytes;
    tier_io_list_push(req->prefetch ? &queue->prefetch : &queue->demand, req);
}

void tier_io_queue_promote(struct tier_io_queue *queue, struct tier_io_req *req)
{
    if (tier_io_list_remove(&queue->prefetch, req)) tier_io_list_push(&queue->demand, req);
}

bool tier_io_queue_cut(struct tier_io_queue *queue, struct tier_io_piece *piece)
{
    struct tier_io_list *list = queue->demand.head ? &queue->demand : &queue->prefetch;
    struct tier_io_req *req = list->head;
    if (!req) return false;
    piece->req = req;
    piece->at = req->backend[1];
    /* All of about the same size: a last one of some pages costs as much as a larger one. */
    uint64_t left = req->bytes - piece->at;
    uint64_t count = (left + queue->piece_bytes - 1) / queue->piece_bytes;
    uint64_t even = (left / count + TIER_IO_ALIGN - 1) & ~(uint64_t)(TIER_IO_ALIGN - 1);
    piece->bytes = left < even ? left : even;
    req->backend[1] += piece->bytes;
    req->backend[2]++;
    if (req->backend[1] == req->bytes) tier_io_list_pop(list);
    return true;
}

void tier_io_window_seen(struct tier_io_window *window, unsigned sent, unsigned back)
{
    if (sent < 4 || back == 0) return;
    if (back == sent && window->crowds < 8) window->crowds++;
    if (back < sent / 2 && window->crowds > 0) window->crowds--;
}

bool tier_io_piece_settle(const struct tier_io_piece *piece, int64_t got)
{
    struct tier_io_req *req = piece->req;
    DMUST(req->backend[2] > 0);
    DMUST(got <= (int64_t)piece->bytes);
    req->backend[2]--;
    if (got < 0) {
        if (req->result == 0) req->result = got;
    } else if ((uint64_t)got < piece->bytes && piece->at + (uint64_t)got < req->backend[3]) {
        req->backend[3] = piece->at + (uint64_t)got;
    }
    if (req->backend[2] > 0 || req->backend[1] < req->bytes) return false;
    if (req->result == 0) req->result = (int64_t)req->backend[3];
    return true;
}
