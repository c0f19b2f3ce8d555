#include "tiering/store_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

int tier_store_file_replace(const char *path, const void *bytes, size_t size, struct base_err *err)
{
    char *temp = NULL;
    if (asprintf(&temp, "%s.%ld.tmp", path, (long)getpid()) < 0) {
        return base_err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int rc = fd < 0 ? -errno : write_whole(fd, bytes, size);
    if (fd >= 0 && close(fd) < 0 && rc == 0) rc = -errno;
    if (rc == 0 && rename(temp, path) < 0) rc = -errno;
    if (rc == 0) {
        rc = tier_store_folder_sync(path);
    } else if (fd >= 0) {
        unlink(temp);
    }
    free(temp);
    if (rc == -EROFS || rc == -EACCES || rc == -EPERM) {
        return base_err_set(err, rc, "%s: cannot be written: %s; name another place with `--index "
                            "FILE` or tiers.nvme.index", path, strerror(-rc));
    }
    if (rc < 0) base_err_set(err, rc, "%s: cannot be written: %s", path, strerror(-rc));
    return rc;
}

int tier_store_header_hash(int fd, uint64_t file_bytes, bool pack, uint64_t *hash)
{
    unsigned char chunk[CHUNK];
    struct port_hash state;
    uint64_t bytes = TIER_PAGE;
    if (!pack) {
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
    *hash = port_hash_end(&state);
    return 0;
}

static int stale(const char *path, const char *index_path, bool pack, const char *what,
                 struct base_err *err)
{
    return base_err_set(err, BASE_ESTALE, "%s: %s since %s was made: run `tier-pack %s` again", path,
                        what, index_path, pack ? "repack" : "index");
}

int tier_store_file_check(const char *path, const struct tier_format_file *entry, bool pack,
                          const char *index_path, struct base_err *err)
{
    struct stat st;
    char what[96];
    uint64_t hash;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        int rc = -errno;
        if (fd >= 0) close(fd);
        if (rc == -ENOENT) return stale(path, index_path, pack, "is gone", err);
        return base_err_set(err, rc, "%s: %s", path, strerror(-rc));
    }
    int64_t mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    int rc = 0;
    if ((uint64_t)st.st_size != entry->bytes) {
        snprintf(what, sizeof what, "its size changed from %llu to %llu bytes",
                 (unsigned long long)entry->bytes, (unsigned long long)st.st_size);
        rc = stale(path, index_path, pack, what, err);
    } else if (entry->role == TIER_FILE_DATA && mtime_ns != entry->mtime_ns) {
        rc = stale(path, index_path, pack, "it was written to", err);
    } else {
        rc = tier_store_header_hash(fd, entry->bytes, pack, &hash);
        if (rc < 0 && rc != -ENODATA) {
            rc = base_err_set(err, rc, "%s: cannot be read: %s", path, strerror(-rc));
        } else if (rc == -ENODATA || hash != entry->header_hash) {
            rc = stale(path, index_path, pack, "its header changed", err);
        }
    }
    close(fd);
    return rc;
}
