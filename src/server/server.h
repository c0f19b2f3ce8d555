/* The HTTP server: OpenAI's API, health, metrics and tier statistics over one engine stack.
 *
 *   HTTP threads ──(bounded queue)──> engine thread ──(one bounded ring a request)──> HTTP threads
 *   (libmicrohttpd)                   eng_step in a loop          ^
 *         ^                                                       │ one eventfd a step
 *         └──────── resumes parked connections ─────────── watch thread (hang-ups, timers)
 *
 * HTTP threads never call the engine; the engine thread never takes a lock, never waits for a
 * client and never touches HTTP. A client that reads too slowly loses its request, not the others'
 * time; a client that hangs up frees its sequence within one step.
 *
 * open, drain and close from one thread (main); the rest from any thread.
 */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/hist.h"
#include "base/metric.h"
#include "base/option.h"
#include "engine/stack.h"

#define SRV_OPTIONS(O)                                                                            \
    O(listen, TEXTLINE, "server.listen", "127.0.0.1", "", "",                                     \
      "address to listen on; there is no authentication: put a proxy before anything public")     \
    O(port, UINT, "server.port", "8000", "0..65535", "", "TCP port; 0 = any free one")            \
    O(admin_listen, TEXTLINE, "server.admin_listen", "auto", "", "",                              \
      "unix socket for /tier/config: a path, off, or auto = PORT.sock in the runtime folder")     \
    O(model_name, TEXTLINE, "server.model_name", "", "", "",                                      \
      "name of the model in the API; empty = the model folder's name")                            \
    O(cors_origins, TEXTLINE, "server.cors_origins", "", "", "",                                  \
      "web pages that may call the API: origins like http://localhost:3000 with commas between "  \
      "them, * = any; empty = none")                                                              \
    O(http_threads, UINT, "server.http_threads", "2", "1..64", "threads",                         \
      "threads that read requests and write answers")                                             \
    O(connections_max, UINT, "server.connections_max", "256", "8..65536", "connections",          \
      "open connections; further ones wait in the kernel's backlog")                              \
    O(requests_max, UINT, "server.requests_max", "64", "1..4096", "requests",                     \
      "requests running or waiting; further ones are refused with 429")                           \
    O(header_max, BYTES, "server.header_max", "32KiB", "8KiB..1MiB", "bytes",                     \
      "largest request header")                                                                   \
    O(body_max, BYTES, "server.body_max", "4MiB", "1KiB..64MiB", "bytes", "largest request body") \
    O(answer_buffer, BYTES, "server.answer_buffer", "64KiB", "8KiB..16MiB", "bytes",              \
      "text a client may lag behind before its request is given up")                              \
    O(idle_timeout, TIME, "server.idle_timeout", "60s", "1s..1h", "",                             \
      "a connection on which nothing moves for this long is closed")                              \
    O(keep_alive, TIME, "server.keep_alive", "10s", "100ms..1h", "",                              \
      "a stream that has nothing to say sends a comment line this often")                         \
    O(drain_timeout, TIME, "server.drain_timeout", "30s", "0..1h", "",                            \
      "how long running requests may go on after SIGTERM")

struct srv_config {
    BASE_OPTION_STRUCT(SRV_OPTIONS)
};
extern const struct base_option srv_options[];
extern const size_t srv_option_count;

#define SRV_METRICS(M)                                                                            \
    M(requests, COUNTER, "", "HTTP requests answered or abandoned")                               \
    M(generations, COUNTER, "", "completion and chat requests taken in")                          \
    M(streams, COUNTER, "", "of those, answered as event streams")                                \
    M(client_errors, COUNTER, "", "requests answered with a 4xx status")                          \
    M(server_errors, COUNTER, "", "requests answered with a 5xx status")                          \
    M(refused_requests, COUNTER, "requests", "requests refused because server.requests_max ran")  \
    M(hangups, COUNTER, "", "generations whose client left before the end")                       \
    M(slow_clients, COUNTER, "", "generations given up because the client did not read")          \
    M(failed_generations, COUNTER, "", "generations that ended with an error of the engine")      \
    M(active_generations, GAUGE, "", "generations running or waiting")                            \
    M(refused_changes, COUNTER, "", "changes of settings that were refused")                      \
    M(received_bytes, COUNTER, "bytes", "request bodies")                                         \
    M(first_token_latency, HIST, "seconds", "from the request to its first token")                \
    M(token_interval, HIST, "seconds", "between two tokens of one answer")                        \
    M(request_latency, HIST, "seconds", "from the request to its last token")

struct srv_metrics {
    BASE_METRIC_STRUCT(SRV_METRICS)
};
extern const struct base_metric srv_metrics[];
extern const size_t srv_metric_count;

/* A socket bound to server.listen and server.port but not listening yet, so that a port in use is
 * known before a model is read. Closed by the caller until srv_open took it over. */
struct srv_socket {
    int fd;
    char url[320];              /* "http://127.0.0.1:8000" with the real port */
};
int srv_bind(struct srv_socket *to, const struct srv_config *config, struct base_err *err);

struct srv;
struct srv_settings;

struct srv_open_args {
    const struct srv_settings *settings;    /* server/settings.h */
    struct eng_stack *stack;            /* borrowed; its engine belongs to the server until close */
    const struct srv_socket *socket;    /* taken over when open succeeds */
    int admin_fd;                       /* a listening unix socket, taken over too; -1 = none */
    const char *command_line;           /* KEY=VALUE a line, over every file; borrowed */
};

/* What requests may take while they are sent, read and wait, at most: for eng_stack_args.beside,
 * with the settings of the server (struct srv_config) as context. */
uint64_t srv_beside(const void *config, const struct eng_stack *stack);

/* Starts the threads and listens. 0 or a negative code with a sentence. */
int srv_open(struct srv **out, const struct srv_open_args *args, struct base_err *err);

/* From now on new generations are refused with 503; running ones go on. /health says "draining". */
void srv_drain(struct srv *srv);
/* No generation runs or waits. */
bool srv_idle(struct srv *srv);
/* 0, or the code with which the engine stopped for good (its sentence was logged). */
int srv_failed(struct srv *srv);

/* Ends what still runs (its clients are told), then the threads. Accepts NULL. */
void srv_close(struct srv *srv);

void srv_snapshot(struct srv *srv, struct srv_metrics *out);

/* Appends every metric of every module to a reference page. */
void srv_metric_reference(struct base_buf *to);

#endif
