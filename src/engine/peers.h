/* What every rank counts, at rank 0, which shows it (/metrics).
 *
 *     rank 0   lead_end ──────> gather <── tell ── the others, after the step's end
 *              any thread: read
 *
 * Gathered at the end of a step or while nothing happens, once a second at most, so that no step
 * waits for it: 8 KB a rank. Rank 0's own counters are read when they are asked for.
 */
#ifndef ENGINE_PEERS_H
#define ENGINE_PEERS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/ledger.h"
#include "base/metric.h"
#include "comm/comm.h"
#include "tiering/tiering.h"

struct eng_stack;

#define ENG_PEER_METRICS(M)                                                                       \
    M(compute_seconds, REAL, "seconds", "time of the rank's steps without the waits for experts") \
    M(collective_seconds, REAL, "seconds", "of it, time in collectives, waiting for other ranks " \
      "included")                                                                                 \
    M(collective_ratio, REAL, "", "collective_seconds of compute_seconds")                        \
    M(age_seconds, REAL, "seconds", "how old this rank's numbers are")

struct eng_peer_metrics {
    BASE_METRIC_STRUCT(ENG_PEER_METRICS)
};
extern const struct base_metric eng_peer_metrics[];
extern const size_t eng_peer_metric_count;

struct eng_peer_memory {
    uint64_t planned, used;
};

/* One rank. */
struct eng_peer {
    struct tier_snapshot tier;
    struct comm_metrics comm[COMM_CALL_COUNT];
    struct eng_peer_metrics time;
    struct eng_peer_memory host[BASE_LEDGER_COUNT], card[BASE_LEDGER_COUNT];
    bool on_card;
    uint64_t resident_bytes, allowed_bytes;
};

/* This rank's, as of now. Any thread. */
void eng_peer_take(struct eng_peer *out, struct eng_stack *stack);

struct eng_peers {
    struct eng_stack *stack;
    struct comm *comm;          /* NULL: one rank, nothing to gather */
    struct eng_peer own;        /* on its way */
    bool shows;                 /* rank 0, where it was asked for; with it [ranks] of each: */
    struct eng_peer *arriving, *shown;
    uint64_t gathered_ns;       /* 0: never */
    uint64_t shown_ns;
    bool stale;                 /* there were steps since */
    pthread_mutex_t lock;       /* of shown */
    bool lock_made;
};

/* Of several ranks, each; `shows` alone on rank 0, where somebody will read. */
int eng_peers_init(struct eng_peers *peers, struct eng_stack *stack, bool shows);
void eng_peers_fini(struct eng_peers *peers);

/* Rank 0's engine thread: whether the others are to tell now; `stepped`: a step has ended. */
bool eng_peers_due(struct eng_peers *peers, bool stepped);
/* In how many milliseconds it will be due without another step; UINT32_MAX: it will not. */
uint32_t eng_peers_wait_ms(const struct eng_peers *peers);
/* Collective: on every rank's engine thread, when rank 0 has said so. */
void eng_peers_gather(struct eng_peers *peers);

/* Rank 0, any thread: out[0] as of now, the others as they told last. Returns how many of `out`
 * are filled: 1 with one rank or before they told. */
uint32_t eng_peers_read(struct eng_peers *peers, struct eng_peer *out, uint32_t count);

#endif
