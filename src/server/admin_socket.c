#include "server/admin_socket.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/str.h"

enum { BACKLOG = 16 };

_Static_assert(sizeof((struct sockaddr_un){ 0 }.sun_path) == SRV_ADMIN_PATH, "a whole address");

static int auto_path(char *to, size_t size, unsigned port)
{
    const char *service = getenv("RUNTIME_DIRECTORY"), *user = getenv("XDG_RUNTIME_DIR");
    if (service && service[0] == '/') {
        /* systemd gives a list when the unit names several. */
        return base_str_format(to, size, "%.*s/%u.sock", (int)strcspn(service, ":"), service, port);
    }
    if (user && user[0] == '/') {
        return base_str_format(to, size, "%s/expertier/%u.sock", user, port);
    }
    return base_str_format(to, size, "/tmp/expertier-%u/%u.sock", (unsigned)getuid(), port);
}

int srv_admin_socket_path(char to[SRV_ADMIN_PATH], const struct srv_config *config, unsigned port,
                          struct base_err *err)
{
    const char *listen = config->admin_listen;
    to[0] = '\0';
    if (strcmp(listen, "off") == 0) return 0;
    int rc;
    if (strcmp(listen, "auto") == 0) {
        rc = auto_path(to, SRV_ADMIN_PATH, port);
    } else if (listen[0] == '/') {
        rc = base_str_format(to, SRV_ADMIN_PATH, "%s", listen);
    } else {
        return base_err_set(err, BASE_ECONFIG, "server.admin_listen: '%s' is neither auto, off nor "
                            "the absolute path of a unix socket", listen);
    }
    if (rc >= 0) return 0;
    return base_err_set(err, BASE_ECONFIG, "server.admin_listen: the path of a unix socket has at "
                        "most %d bytes", SRV_ADMIN_PATH - 1);
}

/* The folder must be ours alone: whoever can write there could put another socket in our place. */
static int have_folder(const char *path, bool make, struct base_err *err)
{
    char folder[SRV_ADMIN_PATH];
    struct stat info;
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    if (folder[0] == '\0') return 0;
    if (make && mkdir(folder, 0700) < 0 && errno != EEXIST) {
        return base_err_set(err, -errno, "server.admin_listen: cannot make the folder %s: %s; set "
                            "another path, or off", folder, strerror(errno));
    }
    /* One that we make is known by its name to others, who must not have put a link there; where a
     * given path leads is its owner's business (/var/run is a link). */
    if ((make ? lstat(folder, &info) : stat(folder, &info)) < 0) {
        return base_err_set(err, -errno, "server.admin_listen: the folder %s: %s; make it, or set "
                            "another path", folder, strerror(errno));
    }
    bool sticky = info.st_mode & S_ISVTX;
    bool others = (info.st_mode & (S_IWGRP | S_IWOTH)) && !sticky;
    bool ours = info.st_uid == getuid() || info.st_uid == 0;
    if (S_ISDIR(info.st_mode) && ours && !others) return 0;
    return base_err_set(err, -EPERM, "server.admin_listen: %s is not a folder that only this user "
                        "can write to; %sset another path", folder, make ? "remove it, or " : "");
}

/* Somebody listens on it. */
static bool answers(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool yes = fd >= 0 && (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ||
                           errno == EAGAIN);
    if (fd >= 0) close(fd);
    return yes;
}

static bool is_socket(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0 && S_ISSOCK(info.st_mode);
}

int srv_admin_socket_open(const char *path, bool make_folder, struct base_err *err)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int rc = have_folder(path, make_folder, err);
    if (rc < 0) return rc;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (is_socket(path)) {
        if (answers(&address)) {
            return base_err_set(err, -EADDRINUSE, "server.admin_listen: another server listens on "
                                "%s: set another path, or off", path);
        }
        unlink(path);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return base_err_set(err, -errno, "cannot make a socket: %s", strerror(errno));
    mode_t mask = umask(0177);
    rc = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0
             ? -errno : 0;
    umask(mask);
    if (rc == 0) return fd;
    close(fd);
    return base_err_set(err, rc, "server.admin_listen: cannot listen on %s: %s", path,
                        strerror(-rc));
}
