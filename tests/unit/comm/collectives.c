/* The ranks draw from one seed, so each knows what the others hold. */
#include "tests/unit/comm/collectives.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { BYTES_MAX = 40000 };

static struct comm *comm;
static unsigned failures;
static bool talk;

static void expect(int is, const char *what, uint64_t seed)
{
    if (is) return;
    failures++;
    if (!talk) return;
    printf("rank %u of %u: %s differs (seed %llu)\n", comm->rank, comm->size, what,
           (unsigned long long)seed);
}

/* The bytes that `from` sends to `to` in this round. */
static void fill(unsigned char *bytes, size_t count, uint64_t seed, unsigned from, unsigned to)
{
    struct base_rng rng;
    base_rng_init(&rng, seed * 1000003 + from * 1009 + to);
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (unsigned char)base_rng_u64(&rng);
    }
}

static size_t size_of(uint64_t seed, unsigned from, unsigned to)
{
    struct base_rng rng;
    base_rng_init(&rng, seed * 7919 + from * 131 + to + 1);
    size_t size = base_rng_u64(&rng) % (base_rng_u64(&rng) % 4 ? 300 : BYTES_MAX);
    return base_rng_u64(&rng) % 4 ? size / 4 * 4 : size;
}

static void check_gather(uint64_t seed, unsigned char *send, unsigned char *have,
                         unsigned char *want)
{
    size_t bytes = size_of(seed, 0, 0) + 1;
    fill(send, bytes, seed, comm->rank, 0);
    for (unsigned r = 0; r < comm->size; r++) {
        fill(want + r * bytes, bytes, seed, r, 0);
    }
    if (seed % 2) {             /* in place */
        memcpy(have + comm->rank * bytes, send, bytes);
        comm_all_gather(comm, have + comm->rank * bytes, have, bytes);
    } else {
        comm_all_gather(comm, send, have, bytes);
    }
    expect(memcmp(have, want, comm->size * bytes) == 0, "all_gather", seed);
}

static void check_reduce(uint64_t seed, unsigned char *send, unsigned char *have,
                         unsigned char *want)
{
    size_t count = size_of(seed, 1, 0) / 4 + 1;
    memset(want, 0, count * 4);
    for (unsigned r = 0; r < comm->size; r++) {
        fill(send, count * 4, seed, r, 1);
        for (size_t i = 0; i < count; i++) {
            ((uint32_t *)(void *)want)[i] += ((uint32_t *)(void *)send)[i];
        }
    }
    fill(have, count * 4, seed, comm->rank, 1);
    comm_all_reduce(comm, (uint32_t *)(void *)have, count);
    expect(memcmp(have, want, count * 4) == 0, "all_reduce", seed);
}

static void check_broadcast(uint64_t seed, unsigned char *have, unsigned char *want)
{
    unsigned root = (unsigned)(seed % comm->size);
    size_t bytes = size_of(seed, 2, 0) + 1;
    fill(want, bytes, seed, root, 2);
    fill(have, bytes, seed, comm->rank, 2);
    if (seed % 3) comm_broadcast(comm, have, bytes, root);
    else comm_listen(comm, have, bytes, root);
    expect(memcmp(have, want, bytes) == 0, "broadcast", seed);
}

static void check_all_to_all(uint64_t seed, unsigned char *send, unsigned char *have,
                             unsigned char *want)
{
    size_t sent[COMM_RANKS_MAX] = { 0 }, got[COMM_RANKS_MAX] = { 0 }, send_at = 0, recv_at = 0;
    for (unsigned r = 0; r < comm->size; r++) {
        sent[r] = size_of(seed, comm->rank, r);
        got[r] = size_of(seed, r, comm->rank);
        fill(send + send_at, sent[r], seed, comm->rank, r + 3);
        fill(want + recv_at, got[r], seed, r, comm->rank + 3);
        send_at += sent[r];
        recv_at += got[r];
    }
    comm_all_to_all(comm, send, sent, have, got);
    expect(memcmp(have, want, recv_at) == 0, "all_to_all", seed);
}

unsigned collectives_check(struct comm *of, unsigned rounds, bool say)
{
    size_t room = (size_t)of->size * (BYTES_MAX + 8);
    unsigned char *send = malloc(room), *have = malloc(room), *want = malloc(room);
    comm = of;
    talk = say;
    failures = 0;
    for (uint64_t seed = 1; seed <= rounds; seed++) {
        check_gather(seed, send, have, want);
        check_reduce(seed, send, have, want);
        check_broadcast(seed, have, want);
        check_all_to_all(seed, send, have, want);
        comm_barrier(comm);
    }
    free(send);
    free(have);
    free(want);
    return failures;
}
