/* HBM emulated in host memory: a copy takes latency + bytes / bandwidth, one after another on each
 * queue.
 *
 * On the real clock a thread a queue does the copying, so that it runs beside compute as a device's
 * copy engine would, and what reads too early or reuses a source too soon is caught by the thread
 * sanitizer and by checksums. On a virtual clock there are no threads: bytes move when time has
 * come, in reap. Which copies fail follows from the seed and their number, never from time.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"
#include "device/device_memory.h"

struct sim_dev;

struct lane {
    struct sim_dev *dev;
    pthread_t thread;
    bool running;
    pthread_cond_t work;
    struct dev_copy *head, *tail;       /* not begun */
    uint64_t free_ns;                   /* when the copy before ends */
};

struct sim_dev {
    struct dev base;
    struct dev_memory memory;
    struct dev_config config;
    struct base_rng rng;
    bool threaded;
    pthread_mutex_t lock;               /* guards all below and the lanes' lists */
    pthread_cond_t arrived;
    struct lane lanes[DEV_QUEUE_COUNT];
    struct dev_copy *head, *tail;       /* done, not reaped */
    bool stop;
};

static void append(struct dev_copy **head, struct dev_copy **tail, struct dev_copy *copy)
{
    copy->next = NULL;
    if (*tail) {
        (*tail)->next = copy;
    } else {
        *head = copy;
    }
    *tail = copy;
}

static struct dev_copy *take(struct dev_copy **head, struct dev_copy **tail)
{
    struct dev_copy *copy = *head;
    *head = copy->next;
    if (!*head) *tail = NULL;
    return copy;
}

static uint64_t bytes_of(const struct dev_copy *copy)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < copy->piece_count; i++) bytes += copy->pieces[i].bytes;
    return bytes;
}

/* When the first copy of a lane is done, by the model. */
static uint64_t due_ns(const struct sim_dev *sim, const struct lane *lane,
                       const struct dev_copy *copy)
{
    uint64_t from = copy->submit_ns > lane->free_ns ? copy->submit_ns : lane->free_ns;
    double transfer = sim->config.bandwidth == 0
                          ? 0
                          : (double)bytes_of(copy) * 1e9 / (double)sim->config.bandwidth;
    return from + sim->config.latency_ns + (uint64_t)transfer;
}

static void move_bytes(struct dev_copy *copy)
{
    if (copy->result < 0) return;       /* it was decided that this one fails: nothing arrives */
    for (uint32_t i = 0; i < copy->piece_count; i++) {
        memcpy(copy->pieces[i].to, copy->pieces[i].from, copy->pieces[i].bytes);
    }
}

static void *lane_run(void *context)
{
    struct lane *lane = context;
    struct sim_dev *sim = lane->dev;
    struct base_clock *clock = base_clock_real();
    pthread_mutex_lock(&sim->lock);
    for (;;) {
        while (!lane->head && !sim->stop) pthread_cond_wait(&lane->work, &sim->lock);
        if (!lane->head) break;
        struct dev_copy *copy = take(&lane->head, &lane->tail);
        uint64_t due = due_ns(sim, lane, copy);
        pthread_mutex_unlock(&sim->lock);
        move_bytes(copy);
        if (base_clock_now_ns(clock) < due) clock->sleep_until_ns(clock, due);
        copy->done_ns = base_clock_now_ns(clock);
        pthread_mutex_lock(&sim->lock);
        lane->free_ns = copy->done_ns;
        append(&sim->head, &sim->tail, copy);
        pthread_cond_signal(&sim->arrived);
    }
    pthread_mutex_unlock(&sim->lock);
    return NULL;
}

static void sim_destroy(struct dev *dev)
{
    struct sim_dev *sim = (struct sim_dev *)dev;
    pthread_mutex_lock(&sim->lock);
    sim->stop = true;
    for (int q = 0; q < DEV_QUEUE_COUNT; q++) pthread_cond_signal(&sim->lanes[q].work);
    pthread_mutex_unlock(&sim->lock);
    for (int q = 0; q < DEV_QUEUE_COUNT; q++) {
        if (sim->lanes[q].running) pthread_join(sim->lanes[q].thread, NULL);
        pthread_cond_destroy(&sim->lanes[q].work);
    }
    pthread_cond_destroy(&sim->arrived);
    pthread_mutex_destroy(&sim->lock);
    dev_memory_unmap(&sim->memory);
    free(sim);
}

static int sim_create(struct dev **out, const struct dev_config *config, struct base_clock *clock,
                      struct base_err *err)
{
    struct sim_dev *sim = calloc(1, sizeof *sim);
    pthread_condattr_t monotonic;
    char rate[16];
    if (!sim) return base_err_set(err, -ENOMEM, "no memory for device sim");
    sim->config = *config;
    sim->memory.bytes_max = config->memory_bytes;
    sim->threaded = clock == base_clock_real();
    sim->base.host_readable = true;
    base_rng_init(&sim->rng, config->seed);
    snprintf(sim->base.note, sizeof sim->base.note, "simulated: host memory, copies at %s/s",
             config->bandwidth ? base_str_bytes(rate, sizeof rate, config->bandwidth) : "memory's");
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&sim->lock, NULL);
    pthread_cond_init(&sim->arrived, &monotonic);
    pthread_condattr_destroy(&monotonic);
    for (int q = 0; q < DEV_QUEUE_COUNT; q++) {
        sim->lanes[q].dev = sim;
        pthread_cond_init(&sim->lanes[q].work, NULL);
    }
    for (int q = 0; sim->threaded && q < DEV_QUEUE_COUNT; q++) {
        int rc = pthread_create(&sim->lanes[q].thread, NULL, lane_run, &sim->lanes[q]);
        if (rc != 0) {
            sim_destroy(&sim->base);
            return base_err_set(err, -rc, "device sim: no thread for its copies");
        }
        sim->lanes[q].running = true;
    }
    *out = &sim->base;
    return 0;
}

static int sim_memory_alloc(struct dev *dev, size_t bytes, void **out, struct base_err *err)
{
    return dev_memory_map(&((struct sim_dev *)dev)->memory, bytes, out, err);
}

static void sim_memory_give(struct dev *dev, void *memory, size_t bytes)
{
    (void)dev;
    dev_memory_drop(memory, bytes);
}

static void sim_submit(struct dev *dev, struct dev_copy *copy)
{
    struct sim_dev *sim = (struct sim_dev *)dev;
    struct lane *lane = &sim->lanes[copy->queue];
    copy->result = base_rng_unit(&sim->rng) < sim->config.fault_share ? BASE_EDEVICE : 0;
    pthread_mutex_lock(&sim->lock);
    append(&lane->head, &lane->tail, copy);
    pthread_cond_signal(&lane->work);
    pthread_mutex_unlock(&sim->lock);
}

/* Virtual time: moves what is due by `now`, the earlier first; when the next one is due. */
static uint64_t advance(struct sim_dev *sim, uint64_t now)
{
    for (;;) {
        struct lane *first = NULL;
        uint64_t due = UINT64_MAX;
        for (int q = 0; q < DEV_QUEUE_COUNT; q++) {
            struct lane *lane = &sim->lanes[q];
            if (!lane->head) continue;
            uint64_t at = due_ns(sim, lane, lane->head);
            if (at < due) {
                due = at;
                first = lane;
            }
        }
        if (!first || due > now) return due;
        struct dev_copy *copy = take(&first->head, &first->tail);
        move_bytes(copy);
        copy->done_ns = first->free_ns = due;
        append(&sim->head, &sim->tail, copy);
    }
}

/* Waits until something arrived; false once the deadline has passed. Called locked. */
static bool wait_arrival(struct sim_dev *sim, uint64_t deadline_ns, uint64_t due)
{
    if (!sim->threaded) {
        struct base_clock *clock = sim->base.clock;
        if (base_clock_now_ns(clock) >= deadline_ns) return false;
        clock->sleep_until_ns(clock, due < deadline_ns ? due : deadline_ns);
        return true;
    }
    if (deadline_ns == UINT64_MAX) return pthread_cond_wait(&sim->arrived, &sim->lock) == 0;
    struct timespec until = { .tv_sec = (time_t)(deadline_ns / 1000000000u),
                              .tv_nsec = (long)(deadline_ns % 1000000000u) };
    return pthread_cond_timedwait(&sim->arrived, &sim->lock, &until) == 0;
}

static int sim_reap(struct dev *dev, struct dev_copy **done, unsigned max, unsigned min,
                    uint64_t deadline_ns)
{
    struct sim_dev *sim = (struct sim_dev *)dev;
    unsigned count = 0;
    bool in_time = true;
    pthread_mutex_lock(&sim->lock);
    for (;;) {
        uint64_t due = 0;
        if (!sim->threaded) due = advance(sim, base_clock_now_ns(dev->clock));
        while (count < max && sim->head) done[count++] = take(&sim->head, &sim->tail);
        if (count >= min || !in_time) break;
        in_time = wait_arrival(sim, deadline_ns, due);
    }
    pthread_mutex_unlock(&sim->lock);
    return (int)count;
}

const struct dev_ops dev_sim_ops = {
    .name = "sim",
    .create = sim_create,
    .destroy = sim_destroy,
    .memory_alloc = sim_memory_alloc,
    .memory_give = sim_memory_give,
    .submit = sim_submit,
    .reap = sim_reap,
};
