#include "tools/fetch.h"

#include <errno.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { FETCH_MAX = 64 << 20, WAIT_SECONDS = 10 };

/* "http://host:port" or "http://[::1]:port" -> host and port. */
static int split_url(const char *url, char *host, size_t host_size, char *port, size_t port_size)
{
    static const char scheme[] = "http://";
    if (strncmp(url, scheme, sizeof scheme - 1) == 0) {
        url += sizeof scheme - 1;
    } else if (strstr(url, "://")) {
        return -EINVAL;
    }
    const char *end = url + strcspn(url, "/");
    bool bracket = *url == '[';
    const char *host_end = bracket ? memchr(url, ']', (size_t)(end - url))
                                   : memchr(url, ':', (size_t)(end - url));
    const char *begin = url + bracket;
    host_end = host_end ? host_end : end;
    const char *colon = host_end + bracket;
    bool has_port = colon < end && *colon == ':';
    size_t host_bytes = (size_t)(host_end - begin);
    size_t port_bytes = has_port ? (size_t)(end - colon - 1) : 2;
    if (host_bytes == 0 || host_bytes >= host_size || port_bytes == 0 || port_bytes >= port_size) {
        return -EINVAL;
    }
    memcpy(host, begin, host_bytes);
    host[host_bytes] = '\0';
    memcpy(port, has_port ? colon + 1 : "80", port_bytes);
    port[port_bytes] = '\0';
    return 0;
}

static int connect_to(const char *host, const char *port)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found, *a;
    struct timeval limit = { .tv_sec = WAIT_SECONDS };
    if (getaddrinfo(host, port, &hints, &found) != 0) {
        return -EHOSTUNREACH;
    }
    int rc = -EHOSTUNREACH;
    for (a = found; a && rc < 0; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            rc = -errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        rc = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ? fd : -errno;
        if (rc < 0) close(fd);
    }
    freeaddrinfo(found);
    return rc;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct timeval limit = { .tv_sec = WAIT_SECONDS };
    if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    int rc = -errno;
    close(fd);
    return rc;
}

/* A body shorter than its head says was cut off on the way: 0, or BASE_ETORN. */
static int check_length(const char *head, size_t body_bytes, struct base_err *err)
{
    static const char name[] = "\r\ncontent-length:";
    for (const char *at = head; *at && strncmp(at, "\r\n\r\n", 4) != 0; at++) {
        if (strncasecmp(at, name, sizeof name - 1) != 0) continue;
        unsigned long long length = strtoull(at + sizeof name - 1, NULL, 10);
        if (body_bytes >= length) return 0;
        return base_err_set(err, BASE_ETORN, "the answer ends after %zu of its %llu bytes: the "
                            "server ended while it sent them", body_bytes, length);
    }
    return 0;
}

/* Reads until the server closes: HTTP/1.0 bodies end there. */
static int exchange(int fd, const char *host, const char *path, struct base_buf *all)
{
    char request[1024], piece[16384];
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.0\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host);
    if (size >= (int)sizeof request) return -ENAMETOOLONG;
    if (send(fd, request, (size_t)size, MSG_NOSIGNAL) != size) return -EIO;
    for (;;) {
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (n == 0) return base_buf_error(all);
        if (n < 0) return errno == EAGAIN ? -ETIMEDOUT : -errno;
        if (all->size + (size_t)n > FETCH_MAX) return -EFBIG;
        base_buf_append(all, piece, (size_t)n);
    }
}

int cli_fetch(const char *url, const char *path, struct base_buf *body, struct base_err *err)
{
    static const char local[] = "unix:";
    char host[256] = "localhost", port[16];
    struct base_buf all;
    bool is_local = strncmp(url, local, sizeof local - 1) == 0;
    if (!is_local && split_url(url, host, sizeof host, port, sizeof port) < 0) {
        return base_err_set(err, -EINVAL, "'%.200s' is no address of a server: it looks like "
                            "http://127.0.0.1:8000", url);
    }
    int fd = is_local ? connect_unix(url + sizeof local - 1) : connect_to(host, port);
    if (fd < 0) {
        return base_err_set(err, fd, "no server answers at %.200s (%s): is tier-server running? "
                            "--url says where", url, strerror(-fd));
    }
    base_buf_init(&all);
    int rc = exchange(fd, host, path, &all);
    close(fd);
    const char *head_end = rc == 0 && all.size ? strstr(all.data, "\r\n\r\n") : NULL;
    int status = 0;
    if (rc < 0) {
        base_err_set(err, rc, "%.200s%s: %s", url, path, strerror(-rc));
    } else if (!head_end || sscanf(all.data, "HTTP/1.%*d %d", &status) != 1) {
        rc = base_err_set(err, BASE_EFORMAT, "%.200s%s: what answers there speaks no HTTP", url,
                          path);
    } else {
        size_t bytes = (size_t)(all.data + all.size - head_end - 4);
        struct base_err inner = { 0 };
        rc = check_length(all.data, bytes, &inner);
        if (rc < 0) base_err_set(err, rc, "%.200s%s: %s", url, path, inner.text);
        if (rc == 0) base_buf_append(body, head_end + 4, bytes);
        if (rc == 0) rc = status;
    }
    base_buf_fini(&all);
    return rc;
}
