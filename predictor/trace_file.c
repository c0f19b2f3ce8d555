#include "predictor/trace_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/must.h"
#include "port/hash.h"

struct pred_trace_file {
    char path[PATH_MAX];
    uint8_t *header;
    size_t header_size;
    uint64_t trace_id, rotate_bytes, size_max;
    bool replace;
    int fd;
    uint32_t part;
    uint64_t offset;                /* good bytes of the open file */
    uint64_t chunk_number;          /* of the next chunk in this file */
    uint64_t record_number;         /* records in all files so far */
    uint64_t bytes_all;             /* of the files before this one */
    uint64_t lost_pending;          /* not yet named by a gap record */
    uint64_t oldest_ns;
    size_t used;                    /* payload bytes of the open chunk */
    uint64_t chunk_records;         /* in the open chunk, gap record not counted */
    int first_error;
    char first_error_text[200];
    struct pred_trace_file_state state;
    uint8_t chunk[PRED_CHUNK_HEADER_BYTES + PRED_CHUNK_PAYLOAD_MAX];
};

static void part_path(const struct pred_trace_file *file, uint32_t part, char *to, size_t size)
{
    if (part == 0) {
        snprintf(to, size, "%s", file->path);
    } else {
        snprintf(to, size, "%.*s.%" PRIu32, (int)(size - 12), file->path, part);
    }
}

static int write_whole(int fd, const uint8_t *bytes, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, bytes, size, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        if (n == 0) return -ENOSPC;
        bytes += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

/* Completes the header in front of `payload_bytes` of payload and returns the chunk's size. */
static size_t chunk_seal(uint8_t *chunk, size_t payload_bytes, uint64_t number,
                         uint64_t first_record)
{
    struct port_hash hash;
    base_le_store32(chunk, PRED_CHUNK_MAGIC);
    base_le_store32(chunk + 4, (uint32_t)payload_bytes);
    base_le_store64(chunk + 8, number);
    base_le_store64(chunk + 16, first_record);
    port_hash_begin(&hash);
    port_hash_add(&hash, chunk, 24);
    port_hash_add(&hash, chunk + PRED_CHUNK_HEADER_BYTES, payload_bytes);
    base_le_store64(chunk + 24, port_hash_end(&hash));
    return PRED_CHUNK_HEADER_BYTES + payload_bytes;
}

/* A file header and chunk 0 with the header record, at the begin of an empty file. */
static int write_head(const struct pred_trace_file *file, int fd, uint32_t part, uint64_t *offset)
{
    size_t room = PRED_FILE_HEADER_BYTES + PRED_CHUNK_HEADER_BYTES + 16 + file->header_size;
    uint8_t *bytes = calloc(1, room);
    if (!bytes) return -ENOMEM;
    memcpy(bytes, PRED_TRACE_MAGIC, 8);
    base_le_store32(bytes + 8, PRED_TRACE_VERSION);
    base_le_store32(bytes + 12, part);
    base_le_store64(bytes + 16, file->trace_id);
    base_le_store64(bytes + 24, port_hash64(bytes, 24));
    uint8_t *chunk = bytes + PRED_FILE_HEADER_BYTES;
    uint8_t *payload = chunk + PRED_CHUNK_HEADER_BYTES;
    struct pred_out out = { .at = payload, .end = bytes + room };
    pred_put_u8(&out, PRED_RECORD_HEADER);
    pred_put_varint(&out, file->header_size);
    pred_put(&out, file->header, file->header_size);
    MUST(!out.full);
    size_t size = PRED_FILE_HEADER_BYTES + chunk_seal(chunk, (size_t)(out.at - payload), 0, 0);
    int rc = write_whole(fd, bytes, size, 0);
    free(bytes);
    *offset = size;
    return rc;
}

/* Creates a part and writes its head; on failure nothing is left behind, but a device stays. */
static int part_create(struct pred_trace_file *file, uint32_t part, int *fd, uint64_t *offset)
{
    char path[PATH_MAX];
    part_path(file, part, path, sizeof path);
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (file->replace ? O_TRUNC : O_EXCL);
    *fd = open(path, flags, 0644);
    if (*fd < 0) return -errno;
    int rc = write_head(file, *fd, part, offset);
    if (rc == 0) return 0;
    struct stat st;
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode)) unlink(path);
    close(*fd);
    *fd = -1;
    return rc;
}

int pred_trace_file_open(struct pred_trace_file **out, const struct pred_trace_file_args *args,
                         struct base_err *err)
{
    *out = NULL;
    struct pred_trace_file *file = calloc(1, sizeof *file);
    if (!file) return -ENOMEM;
    int rc = -ENAMETOOLONG;
    file->fd = -1;
    if ((size_t)snprintf(file->path, sizeof file->path, "%s", args->path) + 12 >= PATH_MAX) {
        goto fail;
    }
    file->trace_id = args->trace_id;
    file->rotate_bytes = args->rotate_bytes;
    file->size_max = args->size_max;
    file->replace = args->replace;
    file->header_size = args->header_size;
    file->header = malloc(args->header_size);
    rc = -ENOMEM;
    if (!file->header) goto fail;
    memcpy(file->header, args->header, args->header_size);
    rc = part_create(file, 0, &file->fd, &file->offset);
    if (rc < 0) goto fail;
    file->chunk_number = 1;
    file->record_number = 1;
    atomic_store(&file->state.files, 1);
    atomic_store(&file->state.written_bytes, file->offset);
    *out = file;
    return 0;
fail:
    if (rc == -EEXIST) {
        base_err_set(err, rc, "%s: this file exists already; name another one or remove it: traces "
                     "are never overwritten", args->path);
    } else {
        base_err_set(err, rc, "%s: cannot begin a trace here: %s", args->path, base_err_name(rc));
    }
    free(file->header);
    free(file);
    return rc;
}

static void error_note(struct pred_trace_file *file, int rc, const char *what)
{
    if (file->first_error != 0) return;
    file->first_error = rc;
    snprintf(file->first_error_text, sizeof file->first_error_text, "%s: %s", what,
             base_err_name(rc));
    base_log(BASE_LOG_WARN, "trace", "%.300s: %s; records are being lost", file->path,
             file->first_error_text);
}

static int append(struct pred_trace_file *file, size_t size)
{
    uint64_t limit = file->size_max;
    if (limit > 0 && file->bytes_all + file->offset + size > limit) return -EFBIG;
    int rc = write_whole(file->fd, file->chunk, size, file->offset);
    if (rc < 0) {
        /* Never leave half a chunk in the middle. Where even this fails the next chunk is written
         * over it. */
        if (ftruncate(file->fd, (off_t)file->offset) < 0) return rc;
        return rc;
    }
    file->offset += size;
    file->chunk_number++;
    atomic_fetch_add(&file->state.written_bytes, size);
    return 0;
}

/* Begins the next part once the file has its size. A failure keeps the open file going. */
static void rotate(struct pred_trace_file *file)
{
    int fd;
    uint64_t offset;
    int rc = part_create(file, file->part + 1, &fd, &offset);
    if (rc < 0) {
        error_note(file, rc, "cannot begin the next part");
        file->rotate_bytes = 0;
        return;
    }
    uint8_t *payload = file->chunk + PRED_CHUNK_HEADER_BYTES;
    payload[0] = PRED_RECORD_NEXT;
    payload[1] = 0;
    rc = append(file, chunk_seal(file->chunk, 2, file->chunk_number, file->record_number));
    if (rc < 0) {
        char path[PATH_MAX];
        error_note(file, rc, "cannot close a part");
        part_path(file, file->part + 1, path, sizeof path);
        unlink(path);
        close(fd);
        file->rotate_bytes = 0;
        return;
    }
    close(file->fd);
    file->fd = fd;
    file->part++;
    file->bytes_all += file->offset;
    file->offset = offset;
    file->chunk_number = 1;
    file->record_number++;
    atomic_fetch_add(&file->state.written_bytes, offset);
    atomic_fetch_add(&file->state.files, 1);
}

void pred_trace_file_flush(struct pred_trace_file *file)
{
    if (file->chunk_records == 0) return;
    uint64_t records = file->chunk_records + (file->lost_pending > 0 ? 1 : 0);
    size_t payload = file->used;
    if (file->lost_pending > 0) {
        /* The gap stands before what came after it. */
        uint8_t gap[16];
        struct pred_out out = { .at = gap + 2, .end = gap + sizeof gap };
        pred_put_varint(&out, file->lost_pending);
        gap[0] = PRED_RECORD_GAP;
        gap[1] = (uint8_t)(out.at - gap - 2);
        size_t size = (size_t)(out.at - gap);
        uint8_t *at = file->chunk + PRED_CHUNK_HEADER_BYTES;
        memmove(at + size, at, payload);
        memcpy(at, gap, size);
        payload += size;
    }
    int rc =
        append(file, chunk_seal(file->chunk, payload, file->chunk_number, file->record_number));
    if (rc < 0) {
        bool limit = file->size_max > 0 && rc == -EFBIG;
        error_note(file, rc, limit ? "trace.size_max is reached" : "cannot write");
        file->lost_pending += file->chunk_records;
        atomic_fetch_add(&file->state.lost_records, file->chunk_records);
    } else {
        file->lost_pending = 0;
        file->record_number += records;
    }
    file->used = 0;
    file->chunk_records = 0;
    file->oldest_ns = 0;
    if (rc == 0 && file->rotate_bytes > 0 && file->offset >= file->rotate_bytes) rotate(file);
}

uint8_t *pred_trace_file_reserve(struct pred_trace_file *file, size_t size)
{
    MUST(size <= PRED_RECORD_MAX);
    if (file->used + size > PRED_CHUNK_PAYLOAD_GOAL) pred_trace_file_flush(file);
    return file->chunk + PRED_CHUNK_HEADER_BYTES + file->used;
}

void pred_trace_file_commit(struct pred_trace_file *file, size_t size)
{
    if (file->chunk_records == 0) file->oldest_ns = base_now_ns();
    file->used += size;
    file->chunk_records++;
}

uint64_t pred_trace_file_oldest_ns(const struct pred_trace_file *file)
{
    return file->oldest_ns;
}

const struct pred_trace_file_state *pred_trace_file_state(const struct pred_trace_file *file)
{
    return &file->state;
}

int pred_trace_file_close(struct pred_trace_file *file, uint64_t lost_before, struct base_err *err)
{
    if (!file) return 0;
    pred_trace_file_flush(file);
    file->size_max = 0;                         /* the end mark is always allowed */
    struct pred_out out = { .at = pred_trace_file_reserve(file, 32) };
    uint8_t *record = out.at;
    out.at += 2;
    out.end = record + 32;
    pred_put_varint(&out, file->record_number);
    pred_put_varint(&out, lost_before + atomic_load(&file->state.lost_records));
    record[0] = PRED_RECORD_END;
    record[1] = (uint8_t)(out.at - record - 2);
    pred_trace_file_commit(file, (size_t)(out.at - record));
    file->rotate_bytes = 0;
    pred_trace_file_flush(file);
    if (file->fd >= 0 && fsync(file->fd) < 0 && errno != EINVAL) {
        error_note(file, -errno, "cannot sync");
    }
    if (file->fd >= 0 && close(file->fd) < 0) error_note(file, -errno, "cannot close");
    int rc = file->first_error;
    if (rc < 0) base_err_set(err, rc, "%.300s: %s", file->path, file->first_error_text);
    free(file->header);
    free(file);
    return rc;
}
