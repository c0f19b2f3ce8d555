/* A device: memory of its own, and copies into and out of it. No arithmetic here.
 *
 * Kinds (registry order): sim (HBM emulated in host memory, copies at a set bandwidth), host (the
 * CPU is the device: copies are done at once), cuda (a card; in builds with the CUDA toolkit).
 * libtiering takes a device from its caller, so others can be brought along.
 *
 * A copy is a list of pieces that go in one direction on one queue. Copies on a queue happen one
 * after the other, the queues beside each other and beside whatever the caller does meanwhile.
 *
 * Ownership: copies belong to the caller and must live until reaped, as must the memory on both
 * sides; every submitted copy is reaped exactly once, with `result` 0 or a negative code. One
 * thread per device object. submit and reap do not allocate.
 */
#ifndef DEVICE_DEVICE_H
#define DEVICE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"

enum { DEV_PIECES_MAX = 6, DEV_ALIGN = 256 };

enum dev_queue { DEV_UP, DEV_DOWN, DEV_QUEUE_COUNT };   /* host -> device, device -> host */

struct dev_piece {
    void *to;
    const void *from;
    size_t bytes;
};

struct dev_copy {
    enum dev_queue queue;
    uint32_t piece_count;
    struct dev_piece pieces[DEV_PIECES_MAX];
    void *owner;                /* the caller's */
    /* set by the device */
    int result;                 /* 0, BASE_EDEVICE */
    uint64_t submit_ns, done_ns;
    struct dev_copy *next;
};

struct dev_config {
    uint64_t memory_bytes;      /* what the device has; allocations beyond are refused */
    double headroom_share;      /* of a card's memory, stays free beside that (cuda) */
    unsigned ordinal;           /* which card (cuda) */
    bool ordinal_wraps;         /* modulo those that this process sees */
    uint64_t bandwidth;         /* bytes per second each way; 0 = as fast as memory (sim) */
    uint64_t latency_ns;        /* of each copy (sim) */
    double fault_share;         /* of copies that fail, drawn from the seed (sim, tests) */
    uint64_t seed;
};

struct dev;

struct dev_ops {
    const char *name;
    int (*create)(struct dev **out, const struct dev_config *config, struct base_clock *clock,
                  struct base_err *err);
    void (*destroy)(struct dev *dev);
    /* 4096-aligned; freed with the device. */
    int (*memory_alloc)(struct dev *dev, size_t bytes, void **out, struct base_err *err);
    /* Optional: whole pages of it whose content is not needed any more; they come back empty with
     * the next copy that lands there. */
    void (*memory_give)(struct dev *dev, void *memory, size_t bytes);
    /* Optional: host memory that copies come from, pinned once. */
    int (*host_register)(struct dev *dev, void *memory, size_t bytes);
    void (*host_unregister)(struct dev *dev, void *memory);
    /* Optional, together: see dev_stream and those below it. */
    void *(*stream)(struct dev *dev);
    void (*mark)(struct dev *dev);
    int (*stream_copy)(struct dev *dev, enum dev_queue way, void *to, const void *from,
                       size_t bytes);
    int (*stream_note)(struct dev *dev);
    int (*stream_reach)(struct dev *dev);
    int (*stream_settle)(struct dev *dev);
    void (*submit)(struct dev *dev, struct dev_copy *copy);
    int (*reap)(struct dev *dev, struct dev_copy **done, unsigned max, unsigned min,
                uint64_t deadline_ns);
};

/* First member of every device. */
struct dev {
    const struct dev_ops *ops;
    struct base_clock *clock;
    unsigned in_flight;
    bool host_readable;         /* the CPU may read its memory: kernels on the CPU can use it */
    bool lost;                  /* nothing on it succeeds any more; lost_why says why, in a */
    char lost_why[300];         /* sentence, and the process has to end */
    char whose[16];             /* what such sentences begin with, e.g. "rank 1: "; "" = nothing */
    char note[200];             /* what it is, for the start report */
    char card[40];              /* no two cards of a machine are called alike; "" = no card */
    char kind[16];              /* cards of one kind give the same bits, e.g. "compute 9.0" */
    /* What the stream was asked for may wait for other processes: called over and over while this
     * one waits for it, `first` at the beginning; naps, and does not return when it is in vain.
     * Negative: what the stream did is not what it should be, and dev_stream_reach gives
     * BASE_EDEVICE when it is through. May be NULL. */
    int (*watch)(void *context, bool first);
    void *watch_context;
};

/* "sim", "host", "cuda". NULL if no device is called so in this build. */
const struct dev_ops *dev_find(const char *name);

int dev_create(struct dev **out, const struct dev_ops *ops, const struct dev_config *config,
               struct base_clock *clock, struct base_err *err);
/* Waits for copies in flight, which are then lost; frees the memory. Accepts NULL. */
void dev_destroy(struct dev *dev);

/* 0; BASE_EBUDGET beyond memory_bytes, -ENOMEM. */
int dev_memory_alloc(struct dev *dev, size_t bytes, void **out, struct base_err *err);
/* Gives pages back to the system; false where the device keeps what it has. */
bool dev_memory_give(struct dev *dev, void *memory, size_t bytes);
int dev_host_register(struct dev *dev, void *memory, size_t bytes);    /* -ENOTSUP: no need */
/* What was registered, before it is freed; waits for nothing. */
void dev_host_unregister(struct dev *dev, void *memory);

/* The stream that kernels run on (a cudaStream_t), or NULL: the CPU computes. To be asked for in
 * the thread that launches. */
void *dev_stream(struct dev *dev);
/* A copy in that stream's order, between device memory and registered host memory. Host memory
 * that is copied up must stay as it is, and what comes down may be read, from when the stream has
 * been reached behind it. These give 0 or BASE_EDEVICE, and only where there is a stream. */
int dev_stream_copy(struct dev *dev, enum dev_queue way, void *to, const void *from, size_t bytes);
/* Notes how far the stream has been asked; reach waits until it has come to the last note. */
int dev_stream_note(struct dev *dev);
int dev_stream_reach(struct dev *dev);
/* Waits for all that the stream was asked for. What failed of it comes out here at the latest. */
int dev_stream_settle(struct dev *dev);
/* Kernels launched on that stream so far may still read device memory: copies up that are submitted
 * from now on begin after them. Costs nothing where there is no stream. */
void dev_mark(struct dev *dev);

void dev_submit(struct dev *dev, struct dev_copy *copy);
/* Moves finished copies to `done`, in order per queue. Waits until at least `min` finished or the
 * absolute deadline passed; min = 0 polls. Returns their number. */
int dev_reap(struct dev *dev, struct dev_copy **done, unsigned max, unsigned min,
             uint64_t deadline_ns);

extern const struct dev_ops dev_sim_ops, dev_host_ops;
#ifdef EXPERTIER_CUDA
extern const struct dev_ops dev_cuda_ops;
#endif

#endif
