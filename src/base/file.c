#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

enum { FIRST_ROOM = 64 * 1024 };

/* Room for the size that the file claims, or a first guess for what claims none (a pipe, /proc). */
static int first_room(int fd, size_t size_max, size_t *room)
{
    struct stat status;
    if (fstat(fd, &status) < 0) return -errno;
    if (S_ISDIR(status.st_mode)) return -EISDIR;
    size_t claimed = status.st_size > 0 ? (size_t)status.st_size : FIRST_ROOM;
    if (S_ISREG(status.st_mode) && (size_t)status.st_size > size_max) return -EFBIG;
    *room = (claimed < size_max ? claimed : size_max) + 1;
    return 0;
}

static int read_all(int fd, size_t size_max, char **bytes, size_t *size)
{
    size_t room = 0, used = 0;
    int rc = first_room(fd, size_max, &room);
    if (rc < 0) return rc;
    char *data = malloc(room + 1);
    if (!data) return -ENOMEM;
    for (;;) {
        ssize_t got = read(fd, data + used, room - used);
        if (got < 0 && errno == EINTR) continue;
        rc = got < 0 ? -errno : 0;
        if (got <= 0) break;
        used += (size_t)got;
        rc = -EFBIG;
        if (used > size_max) break;
        if (used < room) continue;
        /* The file had more than it claimed: go on with twice the room, one byte past the limit. */
        room = room <= size_max / 2 ? room * 2 : size_max + 1;
        char *more = realloc(data, room + 1);
        rc = -ENOMEM;
        if (!more) break;
        data = more;
    }
    if (rc < 0) {
        free(data);
        return rc;
    }
    data[used] = '\0';
    *bytes = data;
    *size = used;
    return 0;
}

int base_file_read(char **bytes, size_t *size, const char *path, size_t size_max,
                   struct base_err *err)
{
    *bytes = NULL;
    *size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int code = -errno;
        return base_err_set(err, code, "%s: %s", path, strerror(-code));
    }
    int rc = read_all(fd, size_max, bytes, size);
    close(fd);
    if (rc == -EFBIG) {
        char limit[32];
        base_str_bytes(limit, sizeof limit, size_max);
        return base_err_set(err, rc, "%s: larger than %s, the most that is expected of such a file",
                            path, limit);
    }
    if (rc < 0) return base_err_set(err, rc, "%s: %s", path, strerror(-rc));
    return 0;
}

int base_file_place(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int rc = !folder ? -ENOMEM : access(folder, W_OK | X_OK) == 0 ? 0 : -errno;
    free(folder);
    return rc;
}

int base_file_place_check(const char *path, struct base_err *err)
{
    const char *slash = strrchr(path, '/');
    int rc = base_file_place(path), size = slash ? (int)(slash - path) + 1 : 1;
    if (rc == 0) return 0;
    return base_err_set(err, rc, "%s: nothing can be saved in %.*s: %s", path, size,
                        slash ? path : ".", strerror(-rc));
}

bool base_file_no_locks(int code)
{
    return code == EBADF || code == ENOLCK || code == EOPNOTSUPP;
}
