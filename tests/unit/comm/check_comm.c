/* Collectives of any number of ranks give what their definition says, for random sizes and bytes.
 *
 * The ranks draw from one seed, so each knows what the others hold; run alone this is `self`, under
 * mpirun `mpi`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "comm/comm.h"

enum { ROUNDS = 120, BYTES_MAX = 40000 };

static struct comm *comm;
static unsigned failures;

static void expect(int is, const char *what, uint64_t seed)
{
    if (is) return;
    failures++;
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
    size_t sent[COMM_RANKS_MAX], got[COMM_RANKS_MAX], send_at = 0, recv_at = 0;
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

static void check_stats(void)
{
    struct comm_metrics stats[COMM_CALL_COUNT];
    comm_stats(comm, stats);
    expect(stats[COMM_BARRIER].calls == ROUNDS, "the number of barriers", 0);
    expect(stats[COMM_ALL_TO_ALL].calls == ROUNDS, "the number of all_to_alls", 0);
    expect((stats[COMM_ALL_GATHER].received_bytes > 0) == (comm->size > 1), "bytes received", 0);
    expect(comm_ns(comm) > 0, "the time", 0);
}

int main(int argc, char **argv)
{
    struct comm_config config;
    struct base_option_group group = { "ranks", comm_options, comm_option_count, &config };
    struct base_err err = { 0 };
    unsigned want = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    base_option_defaults(&group, 1);
    if (comm_open(&comm, &config, &err) < 0) {
        printf("%s\n", err.text);
        return EXIT_FAILURE;
    }
    expect(comm->size == want, "the number of ranks", 0);
    expect(comm->local_size == want && comm->local_rank == comm->rank, "ranks of this machine", 0);
    size_t room = (size_t)COMM_RANKS_MAX * (BYTES_MAX + 8);
    unsigned char *send = malloc(room), *have = malloc(room), *expected = malloc(room);
    for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
        check_gather(seed, send, have, expected);
        check_reduce(seed, send, have, expected);
        check_broadcast(seed, have, expected);
        check_all_to_all(seed, send, have, expected);
        comm_barrier(comm);
    }
    check_stats();
    /* Every rank learns whether all were right. */
    uint32_t sum = failures;
    comm_all_reduce(comm, &sum, 1);
    if (comm->rank == 0) printf("%s; %u wrong\n", comm->note, sum);
    free(send);
    free(have);
    free(expected);
    comm_close(comm);
    return sum ? EXIT_FAILURE : EXIT_SUCCESS;
}
