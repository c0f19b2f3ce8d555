#include "base/out.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/temp.h"

enum { LINKS_MAX = 40, NAMES_TRIED_MAX = 100, ENDING_BYTES = sizeof ".12345678.tmp" - 1 };

/* Replaces the path by what its links lead to, be that there or not. */
static int follow(char path[PATH_MAX])
{
    char target[PATH_MAX], joined[2 * PATH_MAX];
    for (int i = 0; i < LINKS_MAX; i++) {
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0) return errno == EINVAL || errno == ENOENT ? 0 : -errno;
        target[n] = '\0';
        const char *slash = strrchr(path, '/');
        int folder = target[0] == '/' || !slash ? 0 : (int)(slash + 1 - path);
        int size = snprintf(joined, sizeof joined, "%.*s%s", folder, path, target);
        if (size >= PATH_MAX) return -ENAMETOOLONG;
        memcpy(path, joined, (size_t)size + 1);
    }
    return -ELOOP;
}

/* 1 = a file or nothing yet, 0 = something else that can be written, or -errno. */
static int is_file(const char *to)
{
    struct stat st, own;
    if (stat(to, &st) < 0) return errno == ENOENT ? 1 : -errno;
    if (S_ISDIR(st.st_mode)) return -EISDIR;
    if (!S_ISREG(st.st_mode)) return access(to, W_OK) < 0 ? -errno : 0;
    /* /dev/stdout: what else goes into that file must not be lost. */
    return fstat(STDOUT_FILENO, &own) < 0 || own.st_dev != st.st_dev || own.st_ino != st.st_ino;
}

int base_out_begin(struct base_out *out, const char *to, struct base_err *err)
{
    out->to = to;
    out->file = NULL;
    out->direct = true;
    out->path[0] = out->temporary[0] = '\0';
    if (strcmp(to, "-") == 0) return 0;
    int rc = strlen(to) >= PATH_MAX ? -ENAMETOOLONG : is_file(to);
    if (rc >= 0) {
        out->direct = rc == 0;
        snprintf(out->path, sizeof out->path, "%s", to);
        rc = out->direct ? 0 : follow(out->path);
    }
    if (rc == 0 && !out->direct) rc = base_file_place(out->path);
    if (rc == 0 && strlen(out->path) + ENDING_BYTES >= PATH_MAX) rc = -ENAMETOOLONG;
    if (rc == 0) return 0;
    return base_err_set(err, rc, "%.500s: cannot write: %s", to, base_err_name(rc));
}

static bool is_same(const char *path, const struct stat *input)
{
    struct stat st;
    return stat(path, &st) == 0 && st.st_dev == input->st_dev && st.st_ino == input->st_ino;
}

int base_out_spares(const struct base_out *out, const char *input, struct base_err *err)
{
    struct stat st;
    if (stat(input, &st) < 0 || !S_ISREG(st.st_mode)) return 0;
    if (strcmp(out->to, "-") != 0 && is_same(out->to, &st)) {
        return base_err_set(err, -EINVAL, "%.250s: this is %.250s, which is read: name another "
                            "file to write", out->to, input);
    }
    return 0;
}

/* Makes a file beside the result under a name that nobody had: a descriptor or -errno. What is cut
 * from a long name makes room for the ending. */
static int temporary_make(struct base_out *out)
{
    const char *slash = strrchr(out->path, '/');
    size_t size = strlen(out->path), folder = slash ? (size_t)(slash + 1 - out->path) : 0;
    if (size - folder > NAME_MAX - ENDING_BYTES) size = folder + NAME_MAX - ENDING_BYTES;
    int rc = -EEXIST;
    for (int i = 0; i < NAMES_TRIED_MAX && rc == -EEXIST; i++) {
        uint32_t number;
        if (getrandom(&number, sizeof number, 0) != sizeof number) return -EIO;
        snprintf(out->temporary, PATH_MAX, "%.*s.%08" PRIx32 ".tmp", (int)size, out->path, number);
        int fd = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            base_temp_add(out->temporary);
            return fd;
        }
        rc = -errno;
    }
    out->temporary[0] = '\0';
    return rc;
}

static int refused(const struct base_out *out, int rc, struct base_err *err)
{
    return base_err_set(err, rc, "%.500s: cannot write: %s", out->to, base_err_name(rc));
}

int base_out_make(struct base_out *out, struct base_err *err)
{
    int fd = out->direct ? -1 : temporary_make(out);
    if (out->direct) memcpy(out->temporary, out->path, strlen(out->path) + 1);
    else if (fd < 0) return refused(out, fd, err);
    else close(fd);
    return 0;
}

int base_out_open(struct base_out *out, struct base_err *err)
{
    struct stat st;
    bool own = out->direct && (strcmp(out->to, "-") == 0 ||
                               (stat(out->path, &st) == 0 && S_ISREG(st.st_mode)));
    if (own) {
        out->file = stdout;
        return 0;
    }
    if (out->direct) {
        out->file = fopen(out->path, "we");
        return out->file ? 0 : refused(out, -errno, err);
    }
    int fd = temporary_make(out);
    if (fd < 0) return refused(out, fd, err);
    out->file = fdopen(fd, "w");
    if (out->file) return 0;
    close(fd);
    return base_out_end(out, -ENOMEM, err);
}

int base_out_end(struct base_out *out, int rc, struct base_err *err)
{
    int code = 0;
    if (out->file) {
        errno = EIO;                                /* of an error before this one */
        if (fflush(out->file) != 0 || ferror(out->file)) code = -errno;
        if (code == 0 && !out->direct && fsync(fileno(out->file)) < 0) code = -errno;
        if (out->file != stdout && fclose(out->file) != 0 && code == 0) code = -errno;
    }
    out->file = NULL;
    if (rc >= 0) rc = code;
    if (!out->direct && out->temporary[0]) {
        if (rc == 0 && rename(out->temporary, out->path) < 0) rc = -errno;
        if (rc < 0) unlink(out->temporary);
        base_temp_drop(out->temporary);
        out->temporary[0] = '\0';
    }
    return rc == 0 ? 0 : refused(out, rc, err);
}
