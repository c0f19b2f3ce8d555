#include "server/hub.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/must.h"

enum { NEWS = 0, EVENTS_MAX = 32 };     /* sessions are numbered from 1 */

static void poke(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    MUST(n == (ssize_t)sizeof one || errno == EAGAIN);  /* EAGAIN: already poked 2^64 times */
}

/* True when the connection has something to do. */
static bool is_ready(const struct srv_hub *hub, const struct srv_session *s)
{
    if (atomic_load(&s->ended) || s->hung_up || s->keep_alive_due || atomic_load(&hub->closing)) {
        return true;
    }
    return s->ask.stream ? srv_ring_used(&s->ring) > 0 : srv_ring_half_full(&s->ring);
}

static void hang_up(struct srv_hub *hub, uint64_t number)
{
    for (struct srv_session *s = hub->first; s; s = s->hub_next) {
        if (s->number == number && !s->hung_up) {
            s->hung_up = true;
            if (!atomic_load(&s->ended)) {
                atomic_store(&s->cancelled, true);
                hub->cancelled(hub->cancelled_context);
                srv_hub_count_up(hub, hangups);
            }
        }
    }
}

static void resume_ready(struct srv_hub *hub)
{
    uint64_t now = base_now_ns();
    for (struct srv_session *s = hub->first; s; s = s->hub_next) {
        if (!s->parked) {
            continue;
        }
        if (s->streams && now - s->quiet_since_ns >= hub->keep_alive_ns) {
            s->keep_alive_due = true;
        }
        if (is_ready(hub, s)) {
            s->parked = false;
            s->unpark(s->context);
        }
    }
}

static void *watch(void *context)
{
    struct srv_hub *hub = context;
    struct epoll_event events[EVENTS_MAX];
    int tick_ms = (int)(hub->keep_alive_ns / 2000000);
    tick_ms = tick_ms < 50 ? 50 : tick_ms > 1000 ? 1000 : tick_ms;
    bool any = false;
    while (!atomic_load(&hub->stop)) {
        int n = epoll_wait(hub->epoll_fd, events, EVENTS_MAX, any ? tick_ms : -1);
        MUST(n >= 0 || errno == EINTR);
        pthread_mutex_lock(&hub->lock);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == NEWS) {
                uint64_t count;
                ssize_t got = read(hub->news_fd, &count, sizeof count);
                (void)got;      /* EAGAIN after a spurious wake-up */
            } else {
                hang_up(hub, events[i].data.u64);
            }
        }
        resume_ready(hub);
        any = hub->count > 0;
        pthread_mutex_unlock(&hub->lock);
    }
    return NULL;
}

int srv_hub_open(struct srv_hub *hub, uint64_t keep_alive_ns, struct base_err *err)
{
    *hub = (struct srv_hub){ .epoll_fd = -1, .news_fd = -1, .keep_alive_ns = keep_alive_ns };
    pthread_mutex_init(&hub->lock, NULL);
    pthread_mutex_init(&hub->metrics_lock, NULL);
    base_hist_init(&hub->metrics.first_token_latency);
    base_hist_init(&hub->metrics.token_interval);
    base_hist_init(&hub->metrics.request_latency);
    hub->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    hub->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event news = { .events = EPOLLIN, .data.u64 = NEWS };
    if (hub->epoll_fd < 0 || hub->news_fd < 0 ||
        epoll_ctl(hub->epoll_fd, EPOLL_CTL_ADD, hub->news_fd, &news) < 0) {
        int rc = -errno;
        srv_hub_close(hub);
        return base_err_set(err, rc, "cannot watch connections: %s", strerror(-rc));
    }
    int rc = -pthread_create(&hub->thread, NULL, watch, hub);
    if (rc < 0) {
        srv_hub_close(hub);
        return base_err_set(err, rc, "cannot start the watch thread: %s", strerror(-rc));
    }
    hub->running = true;
    pthread_setname_np(hub->thread, "srv-watch");
    return 0;
}

void srv_hub_close(struct srv_hub *hub)
{
    if (hub->running) {
        atomic_store(&hub->stop, true);
        poke(hub->news_fd);
        pthread_join(hub->thread, NULL);
        hub->running = false;
    }
    MUST(!hub->first);
    if (hub->epoll_fd >= 0) close(hub->epoll_fd);
    if (hub->news_fd >= 0) close(hub->news_fd);
    hub->epoll_fd = hub->news_fd = -1;
    pthread_mutex_destroy(&hub->lock);
    pthread_mutex_destroy(&hub->metrics_lock);
}

void srv_hub_join(struct srv_hub *hub, struct srv_session *s, int fd,
                  void (*unpark)(void *context), void *context)
{
    pthread_mutex_lock(&hub->lock);
    s->number = ++hub->next_number;
    s->unpark = unpark;
    s->context = context;
    s->fd = fd;
    s->joined = true;
    s->hub_next = hub->first;
    if (hub->first) {
        hub->first->hub_previous = s;
    }
    hub->first = s;
    hub->count++;
    /* A client that shuts down its sending side counts as gone: no HTTP client does that while it
     * waits for an answer, and a crash looks just the same. */
    struct epoll_event event = { .events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = s->number };
    if (epoll_ctl(hub->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        s->fd = -1;             /* not watched: a hang-up shows when the next piece is written */
    }
    pthread_mutex_unlock(&hub->lock);
    poke(hub->news_fd);
}

void srv_hub_leave(struct srv_hub *hub, struct srv_session *s)
{
    pthread_mutex_lock(&hub->lock);
    MUST(!s->parked);
    if (s->joined) {
        if (s->fd >= 0) {
            epoll_ctl(hub->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
        }
        if (s->hub_previous) {
            s->hub_previous->hub_next = s->hub_next;
        } else {
            hub->first = s->hub_next;
        }
        if (s->hub_next) {
            s->hub_next->hub_previous = s->hub_previous;
        }
        s->joined = false;
        hub->count--;
    }
    bool left_early = !atomic_load(&s->ended) && !atomic_exchange(&s->cancelled, true);
    pthread_mutex_unlock(&hub->lock);
    if (left_early) {
        srv_hub_count_up(hub, hangups);
        hub->cancelled(hub->cancelled_context);
    }
    srv_session_unref(s);
}

bool srv_hub_park(struct srv_hub *hub, struct srv_session *s, void (*park)(void *context),
                  void *context)
{
    pthread_mutex_lock(&hub->lock);
    bool parks = !is_ready(hub, s);
    if (parks) {
        s->parked = true;
        park(context);
    }
    pthread_mutex_unlock(&hub->lock);
    return parks;
}

void srv_hub_stream(struct srv_hub *hub, struct srv_session *s)
{
    pthread_mutex_lock(&hub->lock);
    s->streams = true;
    s->quiet_since_ns = base_now_ns();
    pthread_mutex_unlock(&hub->lock);
}

void srv_hub_shut(struct srv_hub *hub)
{
    atomic_store(&hub->closing, true);
    pthread_mutex_lock(&hub->lock);
    resume_ready(hub);          /* here: the HTTP library must not be stopped with one parked */
    pthread_mutex_unlock(&hub->lock);
}

unsigned srv_hub_count(struct srv_hub *hub)
{
    pthread_mutex_lock(&hub->lock);
    unsigned count = hub->count;
    pthread_mutex_unlock(&hub->lock);
    return count;
}

bool srv_hub_keep_alive_due(struct srv_hub *hub, struct srv_session *s)
{
    pthread_mutex_lock(&hub->lock);
    bool due = s->keep_alive_due;
    s->keep_alive_due = false;
    pthread_mutex_unlock(&hub->lock);
    return due;
}

void srv_hub_spoke(struct srv_hub *hub, struct srv_session *s)
{
    pthread_mutex_lock(&hub->lock);
    s->quiet_since_ns = base_now_ns();
    s->keep_alive_due = false;
    pthread_mutex_unlock(&hub->lock);
}

void srv_hub_news(struct srv_hub *hub)
{
    poke(hub->news_fd);
}
