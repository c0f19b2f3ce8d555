#include "server/server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/must.h"
#include "engine/limits.h"
#include "server/admin_config.h"
#include "server/change.h"
#include "server/http.h"
#include "server/route.h"
#include "server/srv.h"

enum { BACKLOG = 128, SEND_BUFFER = 65536, CLOSE_FLUSH_MS = 1000 };
enum { ADMIN_THREADS = 1, ADMIN_CONNECTIONS = 8 };

#define BASE_OPTION_OWNER struct srv_config
const struct base_option srv_options[] = { SRV_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t srv_option_count = sizeof srv_options / sizeof srv_options[0];

#define BASE_METRIC_OWNER struct srv_metrics
const struct base_metric srv_metrics[] = { SRV_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t srv_metric_count = sizeof srv_metrics / sizeof srv_metrics[0];

/* Writes "http://host:port" with the port that was really bound. */
static void name_socket(struct srv_socket *to)
{
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char host[256] = "?", port[16] = "?";
    if (getsockname(to->fd, (struct sockaddr *)&bound, &size) == 0) {
        getnameinfo((struct sockaddr *)&bound, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
    }
    const char *format = strchr(host, ':') ? "http://[%s]:%s" : "http://%s:%s";
    snprintf(to->url, sizeof to->url, format, host, port);
}

static int bind_address(const struct addrinfo *address)
{
    int on = 1, send_bytes = SEND_BUFFER;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* Inherited by every connection: what the kernel may hold for a client that does not read is
     * bounded too, else such a client would look like a fast one for megabytes. */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

int srv_bind(struct srv_socket *to, const struct srv_config *config, struct base_err *err)
{
    char port[16];
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
    struct addrinfo *found;
    to->fd = -1;
    snprintf(port, sizeof port, "%llu", (unsigned long long)config->port);
    int rc = getaddrinfo(config->listen[0] ? config->listen : NULL, port, &hints, &found);
    if (rc != 0) {
        return base_err_set(err, -EINVAL,
                            "server.listen: '%s' is no address of this machine (%s); try 127.0.0.1 "
                            "or 0.0.0.0", config->listen, gai_strerror(rc));
    }
    rc = bind_address(found);
    freeaddrinfo(found);
    if (rc == -EADDRINUSE) {
        return base_err_set(err, rc, "port %s of %s is in use by another program: stop it or "
                            "choose another with --port (0 = any free one)", port,
                            config->listen);
    }
    if (rc < 0) {
        return base_err_set(err, rc, "cannot listen on %s port %s: %s", config->listen, port,
                            strerror(-rc));
    }
    to->fd = rc;
    name_socket(to);
    return 0;
}

uint64_t srv_beside(const void *config, const struct eng_stack *stack)
{
    const struct srv_config *c = config;
    struct base_err err;
    struct eng_limits limits;
    if (eng_limits_of(&limits, &stack->config.engine, &stack->shape, &err) < 0) return 0;
    const uint64_t tokens = limits.tokens_max;
    const uint64_t longest = tokens * model_tokenizer_longest(stack->tokenizer);
    const uint64_t text = longest < c->body_max ? longest : c->body_max;
    /* One at a time in each thread: its values, their texts, the prompt put together, its ids. */
    const uint64_t read = srv_values_max(limits.tokens_max) * SRV_VALUE_BYTES + 2 * c->body_max +
                          text * MODEL_ENCODE_BYTES;
    const uint64_t sent = SRV_BODIES * c->body_max +
                          c->connections_max * (SRV_BODY_SMALL + c->header_max);
    const uint64_t waiting = c->requests_max * (tokens * sizeof(uint32_t) + c->answer_buffer);
    return c->http_threads * read + sent + waiting;
}

static void on_cancelled(void *context)
{
    srv_drive_cancelled(context);
}

static int settings_copy(struct srv *srv, const struct srv_settings *from, struct base_err *err)
{
    srv->settings = malloc(sizeof *srv->settings);
    if (!srv->settings) return base_err_set(err, -ENOMEM, "out of memory");
    *srv->settings = *from;
    return 0;
}

int srv_open(struct srv **out, const struct srv_open_args *args, struct base_err *err)
{
    *out = NULL;
    struct srv *srv = calloc(1, sizeof *srv);
    if (!srv) {
        return base_err_set(err, -ENOMEM, "out of memory");
    }
    pthread_mutex_init(&srv->change_lock, NULL);
    pthread_mutex_init(&srv->settings_lock, NULL);
    srv->config = args->settings->server;
    srv->stack = args->stack;
    srv->command_line = args->command_line ? args->command_line : "";
    snprintf(srv->model_name, sizeof srv->model_name, "%s",
             srv->config.model_name[0] ? srv->config.model_name : args->stack->shape.name);
    srv->model = (struct srv_model){
        .name = srv->model_name,
        .tokenizer = args->stack->tokenizer,
        .chat = args->stack->chat,
        .vocab = args->stack->shape.vocab,
        .tokens_max = eng_tokens_max(args->stack->engine),
    };
    srv->started = (int64_t)time(NULL);
    srv->started_ns = base_now_ns();
    int rc = settings_copy(srv, args->settings, err);
    if (rc < 0) goto fail;
    rc = srv_hub_open(&srv->hub, srv->config.keep_alive, err);
    if (rc < 0) goto fail;
    srv->hub_open = true;
    srv->hub.cancelled = on_cancelled;
    srv->hub.cancelled_context = &srv->drive;
    srv->drive.idle = srv_change_idle;
    srv->drive.idle_context = srv;
    srv->drive.company_ns = args->settings->stack.engine.batch_wait;
    srv->drive.company_max = (unsigned)args->settings->stack.engine.max_num_seqs;
    rc = srv_drive_open(&srv->drive, args->stack->engine, &srv->hub,
                        (unsigned)srv->config.requests_max, err);
    if (rc < 0) goto fail;
    srv->drive_open = true;
    if (listen(args->socket->fd, BACKLOG) < 0) {
        rc = base_err_set(err, -errno, errno == EADDRINUSE
                              ? "%s is in use by another program: choose another --port"
                              : "cannot listen on %s", args->socket->url);
        goto fail;
    }
    if (args->admin_fd >= 0) {
        struct srv_http_args admin = { args->admin_fd, ADMIN_THREADS, ADMIN_CONNECTIONS,
                                       srv_admin_route };
        rc = srv_http_open(&srv->admin, srv, &admin, err);
        if (rc < 0) goto fail;
    }
    struct srv_http_args public = { args->socket->fd, (unsigned)srv->config.http_threads,
                                    (unsigned)srv->config.connections_max, srv_route };
    rc = srv_http_open(&srv->http, srv, &public, err);
    if (rc < 0) goto fail;
    *out = srv;
    return 0;
fail:
    srv_close(srv);
    return rc;
}

void srv_drain(struct srv *srv)
{
    atomic_store(&srv->draining, true);
}

bool srv_idle(struct srv *srv)
{
    return atomic_load(&srv->drive.held) == 0 && srv_hub_count(&srv->hub) == 0;
}

int srv_failed(struct srv *srv)
{
    return atomic_load(&srv->drive.failed);
}

void srv_close(struct srv *srv)
{
    if (!srv) {
        return;
    }
    atomic_store(&srv->draining, true);
    if (srv->drive_open) {
        srv_drive_stop(&srv->drive);
        /* Clients that read are told how it ended; the others are cut off. */
        for (int ms = 0; ms < CLOSE_FLUSH_MS && srv_hub_count(&srv->hub) > 0; ms += 10) {
            struct timespec pause = { .tv_nsec = 10000000 };
            nanosleep(&pause, NULL);
        }
    }
    if (srv->hub_open) {
        srv_hub_shut(&srv->hub);
    }
    srv_http_close(srv->admin);
    srv_http_close(srv->http);
    if (srv->hub_open) {
        srv_hub_close(&srv->hub);
    }
    /* Last: requests came, and clients left, as long as there were HTTP and watch threads. */
    if (srv->drive_open) {
        srv_drive_close(&srv->drive);
    }
    pthread_mutex_destroy(&srv->change_lock);
    pthread_mutex_destroy(&srv->settings_lock);
    free(srv->settings);
    free(srv);
}

void srv_snapshot(struct srv *srv, struct srv_metrics *out)
{
    pthread_mutex_lock(&srv->hub.metrics_lock);
    *out = srv->hub.metrics;
    pthread_mutex_unlock(&srv->hub.metrics_lock);
    out->active_generations = atomic_load(&srv->drive.held);
    out->slow_clients = atomic_load(&srv->drive.slow_clients);
    out->failed_generations = atomic_load(&srv->drive.failed_generations);
}
