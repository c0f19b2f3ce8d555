/* Collectives of any number of ranks give what their definition says, for random sizes and bytes.
 * Run alone this is `self`, under mpirun `mpi`. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/comm/collectives.h"

enum { ROUNDS = 120 };

static unsigned failures;

static void expect(bool is, const char *what)
{
    failures += !is;
    if (!is) printf("%s is wrong\n", what);
}

static void check_stats(const struct comm *comm)
{
    struct comm_metrics stats[COMM_CALL_COUNT];
    comm_stats(comm, stats);
    expect(stats[COMM_BARRIER].calls == ROUNDS, "the number of barriers");
    expect(stats[COMM_ALL_TO_ALL].calls == ROUNDS, "the number of all_to_alls");
    expect((stats[COMM_ALL_GATHER].received_bytes > 0) == (comm->size > 1), "bytes received");
    expect(comm_ns(comm) > 0, "the time");
}

int main(int argc, char **argv)
{
    struct comm_config config;
    struct base_option_group group = { "ranks", comm_options, comm_option_count, &config };
    struct base_err err = { 0 };
    struct comm *comm;
    unsigned want = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    base_option_defaults(&group, 1);
    if (comm_open(&comm, &config, &err) < 0) {
        printf("%s\n", err.text);
        return EXIT_FAILURE;
    }
    expect(comm->size == want, "the number of ranks");
    expect(comm->local_size == want && comm->local_rank == comm->rank, "ranks of this machine");
    failures += collectives_check(comm, ROUNDS, true);
    check_stats(comm);
    /* Every rank learns whether all were right. */
    uint32_t sum = failures;
    comm_all_reduce(comm, &sum, 1);
    if (comm->rank == 0) printf("%s; %u wrong\n", comm->note, sum);
    comm_close(comm);
    return sum ? EXIT_FAILURE : EXIT_SUCCESS;
}
