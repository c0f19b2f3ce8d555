#include "predictor/text_in.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "port/xz.h"

enum { IN_BYTES = 256 << 10, OUT_BYTES = 1 << 20 };
#define XZ_MEMORY_MAX (UINT64_C(512) << 20)

struct pred_text_in {
    char path[512];
    int fd;
    bool packed, ended;
    uint64_t total_bytes, done_bytes, line;
    struct port_xz *xz;
    uint8_t *in;
    const void *in_at;              /* what is still packed: [in_at, in_at + in_size) */
    size_t in_size;
    char *out;                      /* unpacked text, [begin, end) not yet given out */
    size_t begin, end, room;
};

static int fail(const struct pred_text_in *t, int rc, const char *what, struct base_err *err)
{
    return base_err_set(err, rc, "%s: %s", t->path, what);
}

int pred_text_in_open(struct pred_text_in **out, const char *path, struct base_err *err)
{
    uint8_t first[6] = { 0 };
    struct stat st;
    *out = NULL;
    struct pred_text_in *t = calloc(1, sizeof *t);
    if (!t) return -ENOMEM;
    int rc = -ENOMEM;
    snprintf(t->path, sizeof t->path, "%s", path);
    t->room = OUT_BYTES;
    t->in = malloc(IN_BYTES);
    t->out = malloc(t->room + 1);
    t->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (t->fd < 0 || fstat(t->fd, &st) < 0) {
        rc = -errno;
        goto fail;
    }
    if (!t->in || !t->out) goto fail;
    t->total_bytes = (uint64_t)st.st_size;
    ssize_t had = pread(t->fd, first, sizeof first, 0);
    t->packed = had > 0 && port_xz_begins(first, (size_t)had);
    if (t->packed && port_xz_create(&t->xz, XZ_MEMORY_MAX) < 0) goto fail;
    *out = t;
    return 0;
fail:
    base_err_set(err, rc, "%s: cannot open: %s", path, base_err_name(rc));
    pred_text_in_close(t);
    return rc;
}

void pred_text_in_close(struct pred_text_in *t)
{
    if (!t) return;
    port_xz_destroy(t->xz);
    if (t->fd >= 0) close(t->fd);
    free(t->in);
    free(t->out);
    free(t);
}

/* Reads packed or plain bytes: their number, 0 at the end. */
static int64_t read_file(struct pred_text_in *t, void *to, size_t size, struct base_err *err)
{
    ssize_t n;
    do n = read(t->fd, to, size);
    while (n < 0 && errno == EINTR);
    if (n < 0) return fail(t, -errno, strerror(errno), err);
    t->done_bytes += (uint64_t)n;
    return n;
}

static int64_t unpack(struct pred_text_in *t, char *to, size_t size, struct base_err *err)
{
    struct port_xz_io io = { .out = to, .out_size = size };
    int rc = 0;
    while (rc == 0 && io.out_size == size) {
        if (t->in_size == 0) {
            int64_t n = read_file(t, t->in, IN_BYTES, err);
            if (n < 0) return n;
            t->in_at = t->in;
            t->in_size = (size_t)n;
            io.in_ends = n == 0;
        }
        io.in = t->in_at;
        io.in_size = t->in_size;
        rc = port_xz_unpack(t->xz, &io);
        t->in_at = io.in;
        t->in_size = io.in_size;
    }
    if (rc == -ENOMEM) return fail(t, rc, "unpacking needs over 512 MiB", err);
    if (rc == BASE_ETORN) return fail(t, BASE_EFORMAT, "the .xz data ends too early", err);
    if (rc < 0) return fail(t, BASE_EFORMAT, "the .xz data is damaged", err);
    return (int64_t)(size - io.out_size);
}

/* More text behind what is there, moved to the front first. */
static int refill(struct pred_text_in *t, struct base_err *err)
{
    memmove(t->out, t->out + t->begin, t->end - t->begin);
    t->end -= t->begin;
    t->begin = 0;
    if (t->end == t->room) {
        if (t->room >= PRED_LINE_MAX) {
            return base_err_set(err, BASE_EFORMAT,
                                "%s:%" PRIu64 ": this line is longer than 16 MiB", t->path,
                                t->line + 1);
        }
        char *grown = realloc(t->out, t->room * 2 + 1);
        if (!grown) return -ENOMEM;
        t->out = grown;
        t->room *= 2;
    }
    size_t size = t->room - t->end;
    int64_t n = t->packed ? unpack(t, t->out + t->end, size, err)
                          : read_file(t, t->out + t->end, size, err);
    if (n < 0) return (int)n;
    t->end += (size_t)n;
    t->ended = n == 0;
    return 0;
}

int pred_text_in_next(struct pred_text_in *t, char **line, size_t *size, struct base_err *err)
{
    size_t searched = 0;
    char *newline;
    while ((newline = memchr(t->out + t->begin + searched, '\n', t->end - t->begin - searched)) ==
               NULL &&
           !t->ended) {
        searched = t->end - t->begin;
        int rc = refill(t, err);
        if (rc < 0) return rc;
    }
    if (!newline && t->begin == t->end) return 0;
    char *end = newline ? newline : t->out + t->end;
    *line = t->out + t->begin;
    *size = (size_t)(end - *line);
    t->begin = (size_t)(end - t->out) + (newline ? 1 : 0);
    if (*size > 0 && (*line)[*size - 1] == '\r') --*size;
    (*line)[*size] = '\0';
    t->line++;
    return 1;
}

const char *pred_text_in_path(const struct pred_text_in *t)
{
    return t->path;
}

uint64_t pred_text_in_line(const struct pred_text_in *t)
{
    return t->line;
}

uint64_t pred_text_in_done_bytes(const struct pred_text_in *t)
{
    return t->done_bytes;
}

uint64_t pred_text_in_total_bytes(const struct pred_text_in *t)
{
    return t->total_bytes;
}
