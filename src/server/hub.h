/* The sessions that have a connection, and the thread that watches over them: it resumes parked
 * connections when the engine has news, sees clients hang up, and keeps quiet streams alive.
 *
 * One lock, taken by HTTP threads and the watch thread only, never by the engine thread, which
 * tells its news by writing to an eventfd once a step.
 */
#ifndef SERVER_HUB_H
#define SERVER_HUB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "server/server.h"
#include "server/session.h"

struct srv_hub {
    pthread_mutex_t lock;
    struct srv_session *first;
    unsigned count;
    uint64_t next_number;
    int epoll_fd;
    int news_fd;
    pthread_t thread;
    bool running;
    atomic_bool stop;
    atomic_bool closing;
    uint64_t keep_alive_ns;
    /* Wakes the engine thread after a session was cancelled. */
    void (*cancelled)(void *context);
    void *cancelled_context;
    pthread_mutex_t metrics_lock;
    struct srv_metrics metrics;
};

int srv_hub_open(struct srv_hub *hub, uint64_t keep_alive_ns, struct base_err *err);
/* Every session must have left. */
void srv_hub_close(struct srv_hub *hub);

/* Connection: begins watching. `unpark(context)` resumes the connection. */
void srv_hub_join(struct srv_hub *hub, struct srv_session *session, int fd,
                  void (*unpark)(void *context), void *context);
/* Connection is gone: stops watching, cancels what still runs, drops the connection's reference. */
void srv_hub_leave(struct srv_hub *hub, struct srv_session *session);
/* Calls `park(context)` and returns true, unless there is something to do at once. */
bool srv_hub_park(struct srv_hub *hub, struct srv_session *session, void (*park)(void *context),
                  void *context);
/* The stream has begun: from now on it is kept alive. Before, there is nothing to say it in. */
void srv_hub_stream(struct srv_hub *hub, struct srv_session *session);
/* Nothing waits any more: every parked connection is resumed and none parks again. */
void srv_hub_shut(struct srv_hub *hub);
unsigned srv_hub_count(struct srv_hub *hub);
/* True once, when a quiet stream should say something. */
bool srv_hub_keep_alive_due(struct srv_hub *hub, struct srv_session *session);
/* The stream has said something: it is quiet from now on, not from a token without text. */
void srv_hub_spoke(struct srv_hub *hub, struct srv_session *session);

/* Engine thread: some session has news. */
void srv_hub_news(struct srv_hub *hub);

/* Changes metrics: srv_hub_count_up(hub, requests). */
#define srv_hub_count_up(hub, field) \
    do { \
        pthread_mutex_lock(&(hub)->metrics_lock); \
        (hub)->metrics.field++; \
        pthread_mutex_unlock(&(hub)->metrics_lock); \
    } while (0)

#endif
