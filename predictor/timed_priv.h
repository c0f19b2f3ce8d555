/* Inside of a cache in time, shared by timed.c (what happens) and timed_create.c (its tables). */
#ifndef PREDICTOR_TIMED_PRIV_H
#define PREDICTOR_TIMED_PRIV_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/timed.h"
#include "tiering/span.h"

enum { NO_KEY = UINT32_MAX };

/* Bits of an expert's flags; the first two are the core's view. */
enum {
    WANT_HBM = 1,
    WANT_DRAM = 2,
    DEMAND = 4, /* somebody waits for it */
    LATE = 8,   /* that began after its prefetch had */
    LINE_DRAM = 16,
    LINE_HBM = 32, /* waits for a slot */
    HINTED = 64,   /* a hint brought it, nobody looked it up since */
    COPY_AHEAD = 128,           /* its copy up was begun for nobody */
};

enum seat_state { SEAT_NONE, SEAT_QUEUED, SEAT_READING, SEAT_READY };
enum moving { STILL, MOVING_UP, MOVING_DOWN };

struct seat {
    uint8_t state, moving;
    bool prefetch; /* fetched for nobody, and nobody has asked since */
    bool asked;    /* a read under way that somebody waits for */
};

struct node {
    uint32_t prev, next;
};

struct list {
    uint32_t head, tail;
    struct node *nodes; /* [keys] */
};

struct flight {
    uint64_t arrival_ns;
    uint32_t key;
};

/* What is under way on a link, in the order of arrival. */
struct link {
    struct flight *ring;
    uint32_t size, first, count;
    uint64_t free_ns;
};

struct pred_timed {
    struct pred_timed_config config;
    const struct pred_machine *machine;
    struct tier_decide *decide;
    uint32_t tiers, layers, experts, keys;
    uint64_t now;
    uint8_t *flags;          /* [keys] */
    struct seat *dram, *hbm; /* [keys] */
    struct seat *top;
    uint32_t dram_free, hbm_free;
    struct list demand, prefetch; /* QUEUED, sharing nodes */
    struct list dram_line, hbm_line;
    struct link reads, up, down;
    uint32_t reads_in_flight;
    uint32_t copies_ahead;      /* on their way up for nobody, or begun so */
    uint32_t prefetch_open, prefetch_open_max;
    uint32_t *hinted; /* [layers] admitted since the layer's last acquire */
    struct tier_governor governor;
    struct tier_governor copy_pace;     /* pace of the lane up; else unused */
    uint32_t asked_reads;       /* under way, and somebody waits for them */
    uint64_t asked_since_ns;
    /* Of the running step: acquires, those that asked for no read, those that found all they use
     * where it is used; the time of the first one, the time while reads that somebody waits for
     * were under way, the time waited. */
    uint64_t step_acquires, step_quiet, step_still;
    uint64_t step_began_ns, step_asked_ns, step_wait_ns;
    uint64_t copies, copy_ns;   /* up, under transfer */
    uint64_t earned_ns;         /* when the governor's credit was last earned */
    struct tier_span busy;      /* any read under way */
    uint64_t busy_bytes;        /* that came back meanwhile */
    struct pred_timed_stats marks;                  /* as of the last step's end */
    struct tier_found *found;
    struct pred_timed_stats stats;
    struct pred_timed_layer *layer_stats;
};

#endif
