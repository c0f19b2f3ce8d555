/* The engine thread: the only one that calls the engine.
 *
 *     loop: take a job, submissions and cancellations, run one step, tell the hub; sleep when idle
 *
 * A request that finds it idle may wait a little for company (company_ns): prompts of one step read
 * the experts that they share once.
 *
 * Between steps it may allocate (the engine copies a prompt); inside a step it only puts records
 * into rings. It never waits for a client.
 */
#ifndef SERVER_DRIVE_H
#define SERVER_DRIVE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/err.h"
#include "base/ring.h"
#include "server/hub.h"
#include "server/session.h"

/* Something else to do on this thread, between two steps. */
struct srv_drive_job {
    void (*run)(struct srv_drive_job *job);
    sem_t done;                 /* the drive's */
};

struct srv_drive {
    struct eng *engine;
    /* Set before open. Called when there is nothing to do: true = again soon, unasked. */
    bool (*idle)(void *context);
    void *idle_context;
    uint64_t company_ns;        /* how long the first request waits for others */
    unsigned company_max;       /* with so many there is nobody left to wait for */
    _Atomic(struct srv_drive_job *) job;
    atomic_bool over;           /* the thread takes no jobs any more */
    struct srv_hub *hub;
    unsigned held_max;
    struct base_ring_many submissions;  /* of struct srv_session * */
    void *submission_memory;
    int wake_fd;
    pthread_t thread;
    bool running;
    atomic_bool stop;
    atomic_bool cancels;        /* some session was cancelled */
    atomic_uint held;           /* sessions this side holds a reference to */
    atomic_int failed;          /* the code with which the engine gave up */
    /* Counted here, where it happens: a stuck client never comes to count itself. */
    atomic_ullong slow_clients, failed_generations;
    /* Engine thread only. */
    struct srv_session **active;        /* [held_max] */
    unsigned active_count;
    struct srv_session *waiting, **waiting_end;
    bool news;
};

int srv_drive_open(struct srv_drive *drive, struct eng *engine, struct srv_hub *hub,
                   unsigned held_max, struct base_err *err);
/* Tells every session that the server stops, then ends the thread. Others may go on to call what is
 * below: they are refused. */
void srv_drive_stop(struct srv_drive *drive);
/* Stops it if that was not done. Nobody else may call anything any more. */
void srv_drive_close(struct srv_drive *drive);

/* Runs a job on the engine thread and waits for it; one at a time. 0, or -ESHUTDOWN: it was not
 * run. Any thread but the engine's. */
int srv_drive_run(struct srv_drive *drive, struct srv_drive_job *job);

/* Any thread. Hands over the engine side's reference. -EBUSY when held_max sessions are there,
 * -ESHUTDOWN when the engine has failed or the drive was stopped; the reference then stays with the
 * caller. */
int srv_drive_submit(struct srv_drive *drive, struct srv_session *session);
/* Any thread: some session's `cancelled` was set. */
void srv_drive_cancelled(struct srv_drive *drive);

#endif
