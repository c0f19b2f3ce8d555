#include "tiering/store_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/le.h"
#include "port/hash.h"

enum { CHUNK = 1 << 16 };

char *tier_store_path(const char *dir, const char *path)
{
    char *whole = NULL;
    if (path && path[0]) return strdup(path);
    return asprintf(&whole, "%s/expertier.index", dir) < 0 ? NULL : whole;
}

int tier_store_pread(int fd, void *to, uint64_t bytes, uint64_t offset)
{
    uint64_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(fd, (char *)to + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        if (got == 0) return -ENODATA;
        done += (uint64_t)got;
    }
    return 0;
}

int tier_store_folder_sync(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    if (!folder) return -ENOMEM;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    /* Some file systems know no fsync of a folder; there the rename is all one can have. */
    if (rc == -EINVAL || rc == -ENOTSUP) rc = 0;
    if (fd >= 0) close(fd);
    free(folder);
    return rc;
}

static int write_whole(int fd, const void *bytes, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t put = write(fd, (const char *)bytes + done, size - done);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return -errno;
        done += (size_t)put;
    }
    return fsync(fd) < 0 ? -errno : 0;
}

/* Opens the temp file empty and locked. Its name is fixed, so that a killed run leaves at most one
 * behind, which the next run takes over. */
static int open_temp(const char *temp)
{
    struct stat held, named;
    for (;;) {
        int fd = open(temp, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0) return -errno;
        int rc = flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &held) < 0 ? -errno : 0;
        /* Between open and lock, the one who had it may have renamed it into place. */
        bool ours = rc == 0 && stat(temp, &named) == 0 && named.st_ino == held.st_ino;
        if (ours && ftruncate(fd, 0) < 0) rc = -errno;
        if (ours && rc == 0) return fd;
        close(fd);
        if (rc < 0) return rc == -EWOULDBLOCK ? -EBUSY : rc;
    }
}

static int write_refused(const char *path, int rc, struct base_err *err)
{
    if (rc == -EBUSY) {
        return base_err_set(err, rc, "%s: another process is writing it", path);
    }
    if (rc == -ENOMEM || rc == -ENOSPC || rc == -EDQUOT || rc == -EIO) {
        return base_err_set(err, rc, "%s: cannot be written: %s", path, strerror(-rc));
    }
    return base_err_set(err, rc, "%s: cannot be written: %s; name another place with `--index "
                        "FILE` or tiers.nvme.index", path, strerror(-rc));
}

int tier_store_file_probe(const char *path, struct base_err *err)
{
    struct stat st;
    char *temp = NULL, *other = NULL;
    int rc = asprintf(&temp, "%s.tmp", path) < 0 || asprintf(&other, "%s.XXXXXX", path) < 0
                 ? -ENOMEM : 0;
    if (rc == 0 && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) rc = -EISDIR;
    /* One that a killed run of somebody else left. */
    if (rc == 0 && access(temp, W_OK) < 0 && errno != ENOENT) rc = -errno;
    if (rc == 0) {
        /* Not the temp file itself: who is about to write it would find it locked. */
        int fd = mkostemp(other, O_CLOEXEC);
        rc = fd < 0 ? -errno : 0;
        if (fd >= 0) {
            unlink(other);
            close(fd);
        }
    }
    free(temp);
    free(other);
    return rc < 0 ? write_refused(path, rc, err) : 0;
}

int tier_store_file_replace(const char *path, const void *bytes, size_t size, struct base_err *err)
{
    char *temp = NULL;
    if (asprintf(&temp, "%s.tmp", path) < 0) {
        return base_err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    int fd = open_temp(temp);
    int rc = fd < 0 ? fd : write_whole(fd, bytes, size);
    if (rc == 0 && rename(temp, path) < 0) rc = -errno;
    if (rc == 0) {
        rc = tier_store_folder_sync(path);
    } else if (fd >= 0) {
        unlink(temp);
    }
    if (fd >= 0) close(fd);
    free(temp);
    return rc < 0 ? write_refused(path, rc, err) : 0;
}

int tier_store_header_hash(int fd, uint64_t file_bytes, enum tier_file_kind kind, uint64_t *hash)
{
    unsigned char chunk[CHUNK];
    struct port_hash state;
    uint64_t bytes = TIER_PAGE;
    if (kind != TIER_KIND_PACK) {
        int rc = tier_store_pread(fd, chunk, 8, 0);
        if (rc < 0) return rc;
        bytes = base_le_load64(chunk);
        if (file_bytes < 8 || bytes > file_bytes - 8) return -ENODATA;
        bytes += 8;
    }
    port_hash_begin(&state);
    for (uint64_t at = 0; at < bytes;) {
        uint64_t part = bytes - at < CHUNK ? bytes - at : CHUNK;
        int rc = tier_store_pread(fd, chunk, part, at);
        if (rc < 0) return rc;
        port_hash_add(&state, chunk, part);
        at += part;
    }
    for (uint64_t quarter = 0; kind == TIER_KIND_SOURCE && quarter < 4; quarter++) {
        uint64_t at = bytes + (file_bytes - bytes) / 4 * quarter;
        uint64_t part = file_bytes - at < TIER_PAGE ? file_bytes - at : TIER_PAGE;
        int rc = tier_store_pread(fd, chunk, part, at);
        if (rc < 0) return rc;
        port_hash_add(&state, chunk, part);
    }
    *hash = port_hash_end(&state);
    return 0;
}

static int stale(const char *path, const char *index_path, enum tier_file_kind kind,
                 const char *what, struct base_err *err)
{
    return base_err_set(err, BASE_ESTALE, "%s: %s since %s was made: run `tier-pack %s` again",
                        path, what, index_path, kind == TIER_KIND_SHARD ? "index" : "repack");
}

int tier_store_file_check(const char *path, const struct tier_format_file *entry,
                          enum tier_file_kind kind, const char *index_path, struct base_err *err)
{
    struct stat st;
    char what[96];
    uint64_t hash;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        int rc = -errno;
        if (fd >= 0) close(fd);
        if (rc == -ENOENT) return stale(path, index_path, kind, "is gone", err);
        return base_err_set(err, rc, "%s: %s", path, strerror(-rc));
    }
    int64_t mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    int rc = 0;
    if ((uint64_t)st.st_size != entry->bytes) {
        snprintf(what, sizeof what, "its size changed from %llu to %llu bytes",
                 (unsigned long long)entry->bytes, (unsigned long long)st.st_size);
        rc = stale(path, index_path, kind, what, err);
    } else if (kind == TIER_KIND_SHARD && mtime_ns != entry->mtime_ns) {
        rc = stale(path, index_path, kind, "it was written to", err);
    } else {
        rc = tier_store_header_hash(fd, entry->bytes, kind, &hash);
        if (rc < 0 && rc != -ENODATA) {
            rc = base_err_set(err, rc, "%s: cannot be read: %s", path, strerror(-rc));
        } else if (rc == -ENODATA || hash != entry->header_hash) {
            rc = stale(path, index_path, kind,
                       kind == TIER_KIND_SOURCE ? "its header or weights changed"
                                                : "its header changed", err);
        }
    }
    close(fd);
    return rc;
}
