/* Reading extents from files into memory: one interface, several backends.
 *
 * Backends (registry order): io_uring (O_DIRECT, registered files and buffers), threads (pread in a
 * pool), sim (virtual time, random order), null (completes at once, reads nothing). Wrappers that
 * sit on any of them: faulty (seeded errors, short reads, bit flips, stuck reads) and throttle
 * (bandwidth and latency limit).
 *
 * Demand before prefetch: requests marked `prefetch` start only when no other one waits to start.
 *
 * Ownership: requests belong to the caller and must live until reaped; every submitted request is
 * reaped exactly once, with `result` = bytes read or -errno. Short reads are finished inside the
 * backend; a result below `bytes` means end of file. Order of completion is free.
 * One thread per io object. submit and reap neither allocate nor lock in io_uring.
 */
#ifndef TIERING_IO_H
#define TIERING_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/option.h"

enum tier_io_direct { TIER_IO_DIRECT_AUTO, TIER_IO_DIRECT_ON, TIER_IO_DIRECT_OFF };

#define TIER_IO_OPTIONS(O)                                                                        \
    O(backend, ENUM, "io.backend", "auto", "auto|io_uring|threads|sim|null", "",                  \
      "how expert bytes are read; auto takes io_uring where the kernel allows it, else threads")  \
    O(depth, UINT, "io.depth", "32", "1..4096", "reads", "most reads in flight at once")          \
    O(threads, UINT, "io.threads", "4", "1..64", "threads", "readers of the threads backend")     \
    O(direct, ENUM, "io.direct", "auto", "auto|on|off", "",                                       \
      "O_DIRECT: auto falls back to buffered reads where the file system refuses it, and says so") \
    O(chunk, BYTES, "io.chunk", "1MiB", "64KiB..64MiB", "bytes",                                  \
      "larger reads are cut into pieces of this size so that they share the disk")                \
    O(seed, UINT, "io.sim_seed", "1", "", "", "sim backend: seed of its completion order")         \
    O(sim_latency, TIME, "io.sim_latency", "80us", "", "", "sim backend: latency of a read")       \
    O(sim_bandwidth, BYTES, "io.sim_bandwidth", "2GiB", "1MiB..", "bytes/s",                      \
      "sim backend: bytes per second")                                                            \
    O(throttle_bandwidth, BYTES, "io.throttle_bandwidth", "0", "", "bytes/s",                     \
      "slow real reads down to this rate (experiments); 0 = off")                                 \
    O(throttle_latency, TIME, "io.throttle_latency", "0", "", "",                                 \
      "add this to every read (experiments)")                                                     \
    O(faults, TEXTLINE, "io.faults", "", "", "",                                                  \
      "inject faults, e.g. \"seed=7,eio=0.01,flip=0.001,short=0.1,stuck=0.0001\" (tests)")

struct tier_io_config {
    BASE_OPTION_STRUCT(TIER_IO_OPTIONS)
};

/* One read. The caller fills the first part and sets `result` to nothing. */
struct tier_io_req {
    uint32_t file;              /* handle from tier_io_file_add */
    uint64_t offset; /* with direct IO: file offset, length and memory multiples of 4096 */
    void *to;
    size_t bytes;
    bool prefetch;              /* nobody waits for it yet; backends may order it behind */
    void *owner;                /* the caller's */
    /* set by the backend */
    int64_t result;             /* bytes read, or -errno */
    uint64_t submit_ns, done_ns;
    uint64_t backend[6];        /* the backend's scratch while in flight */
};

struct tier_io;

struct tier_io_ops {
    const char *name;
    /* 0 if it can work on this machine, else -errno with a sentence that says what to set. */
    int (*probe)(struct base_err *err);
    int (*create)(struct tier_io **out, const struct tier_io_config *config,
                  struct base_clock *clock, struct base_err *err);
    void (*destroy)(struct tier_io *io);
    /* Opens a file for reading; returns its handle >= 0. */
    int (*file_add)(struct tier_io *io, const char *path, struct base_err *err);
    /* Takes requests until the queue is full: returns how many it took, 0..n. */
    int (*submit)(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n);
    /* Moves finished requests to `done`. Waits until at least `min` finished or the deadline
     * (absolute, UINT64_MAX = never) passed; min = 0 polls. Returns their number. */
    int (*reap)(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                uint64_t deadline_ns);
    /* Optional: memory that reads will land in, registered once (fixed buffers); `reserve` bytes of
     * addresses from `memory` on may come into service later. */
    int (*memory_add)(struct tier_io *io, void *memory, size_t bytes, size_t reserve);
    /* Optional: a range of that went out of service, and no read lands there any more, or came
     * (back) into service. */
    void (*memory_change)(struct tier_io *io, void *memory, size_t bytes, bool in_service);
    /* Optional: somebody waits for this prefetch request now. */
    void (*promote)(struct tier_io *io, struct tier_io_req *req);
};

struct tier_io_files;

/* First member of every backend's object. */
struct tier_io {
    const struct tier_io_ops *ops;
    struct base_clock *clock;
    struct tier_io_files *files;    /* a wrapper shares the ones it wraps */
    unsigned in_flight;
    unsigned depth;
    bool direct;                /* requests must be 4096-aligned */
    bool backend_refused;       /* auto had to take threads: reported as degraded */
    bool direct_refused;        /* auto fell back to buffered reads: reported as degraded */
    bool buffers_refused;       /* the kernel would not register the slots: reads cost more CPU */
    uint64_t injected;          /* faults that io.faults brought on so far */
    char note[200];             /* what was chosen and why, for the start report */
};

/* Creates the backend the config names (auto: the first whose probe says 0), with the wrappers the
 * config asks for. `clock` is base_clock_real() except in simulation. */
int tier_io_create(struct tier_io **out, const struct tier_io_config *config,
                   struct base_clock *clock, struct base_err *err);
void tier_io_destroy(struct tier_io *io);
int tier_io_file_add(struct tier_io *io, const char *path, struct base_err *err);
/* Path of a handle, for messages; never NULL. */
const char *tier_io_file_path(const struct tier_io *io, uint32_t file);
/* Stamps submit_ns and takes 0..n requests. */
int tier_io_submit(struct tier_io *io, struct tier_io_req *const *reqs, unsigned n);
/* `min` above what is in flight means all of it. */
int tier_io_reap(struct tier_io *io, struct tier_io_req **done, unsigned max, unsigned min,
                 uint64_t deadline_ns);
/* Gives the disk what waits for room, without taking anything in: between two calls of reap that
 * are far apart. */
void tier_io_feed(struct tier_io *io);
/* Registers memory that reads land in, of a range of `reserve` >= bytes of addresses; only while
 * nothing is in flight. 0; -ENOTSUP where there is no need; another -errno when the kernel refused:
 * reads still work, `buffers_refused` is set and `note` says what to set. */
int tier_io_memory_add(struct tier_io *io, void *memory, size_t bytes, size_t reserve);
/* Part of that range goes out of service, so that its pages can go back to the system, or comes
 * into service. At any time; reads in flight to other parts go on. */
void tier_io_memory_change(struct tier_io *io, void *memory, size_t bytes, bool in_service);
/* Moves a prefetch request that has not started in front of the other prefetches: it is a demand
 * read from here on. */
void tier_io_promote(struct tier_io *io, struct tier_io_req *req);

extern const struct base_option tier_io_options[];
extern const size_t tier_io_option_count;

#endif
