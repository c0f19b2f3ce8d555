/* Collectives between cards (comm/cards.h) over NCCL give what they are defined to give, keep the
 * rules of NCCL, and need the stream that they are on and each wait of the device: run against a
 * stand-in of NCCL and the emulated CUDA machine. It is no NCCL: nothing here shows how real cards
 * behave.
 *
 *   check_nccl [--mutate]      alone, or as several ranks */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm_nccl.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/include/nccl.h"
#include "tests/cudahost/nccl_stub.h"
#include "tests/support/card_collectives.h"

enum { SEEDS = 6, ROUNDS = 20, MUTATED_ROUNDS = 8 };

static struct comm *comm;
static unsigned sites;          /* that ran while collectives did */

/* What was wrong with a run of this seed, on any rank. */
static unsigned run(uint64_t seed, unsigned rounds, bool say)
{
    struct base_err err = { 0 };
    struct dev *dev;
    const char *const *names;
    cudahost_machine = (struct cudahost_machine){ .devices = 8, .memory_bytes = 64u << 20 };
    cudahost_seed(seed * 64 + comm->rank);
    nccl_stub_seed(seed * 77 + comm->rank);
    const struct dev_config config = { .memory_bytes = card_collectives_bytes(comm) + (1u << 20),
                                       .ordinal = comm->rank };
    if (dev_create(&dev, dev_find("cuda"), &config, base_clock_real(), &err) < 0) {
        printf("rank %u: %s\n", comm->rank, err.text);
        exit(EXIT_FAILURE);
    }
    unsigned wrong = card_collectives_check(comm, dev, cudahost_keep, rounds, say);
    if (sites == 0) sites = cudahost_sites(&names);
    dev_destroy(dev);
    const unsigned left = cudahost_reset();
    const char *failure = cudahost_failure();
    if (say && left > 0) printf("seed %llu: %u things are left\n", (unsigned long long)seed, left);
    if (say && failure)
        printf("seed %llu, rank %u: %s\n", (unsigned long long)seed, comm->rank, failure);
    uint32_t sum = wrong + left + (failure != NULL);
    comm_all_reduce(comm, &sum, 1);
    return sum;
}

static unsigned noticed(const char *without, bool side)
{
    unsigned seeds = 0;
    nccl_stub_side(side);
    if (!side) cudahost_site_mute(without);
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        seeds += run(seed, MUTATED_ROUNDS, false) > 0;
    cudahost_site_mute(NULL);
    nccl_stub_side(false);
    if (comm->rank == 0) printf("%s: %u of %d seeds go wrong\n", without, seeds, SEEDS);
    return seeds;
}

/* Another stream than the one that was given; each wait of the device in turn does nothing: every
 * such run must go wrong. */
static unsigned mutate(void)
{
    const char *const *names;
    static char own[CUDAHOST_SITES_MAX][64];
    cudahost_sites(&names);
    for (unsigned i = 0; i < sites; i++)
        snprintf(own[i], sizeof own[i], "%s", names[i]);
    unsigned harmless = noticed("collectives on another stream", true) == 0;
    for (unsigned i = 0; i < sites; i++)
        harmless += noticed(own[i], false) == 0;
    if (sites < 3) printf("%u sites: the device's waits are not there\n", sites);
    return harmless + (sites < 3);
}

/* ------------------------------------------------------ the stand-in itself, on one rank -- */

static ncclComm_t stub;
static cudaStream_t stream;
static char *card;

static unsigned breach(const char *says)
{
    cudaDeviceSynchronize();
    const char *failure = cudahost_failure();
    if (failure && strstr(failure, says)) return 0;
    printf("the stand-in says '%s', not '%s'\n", failure ? failure : "nothing", says);
    return 1;
}

static void begin(int blocking)
{
    ncclUniqueId id;
    ncclConfig_t settings = NCCL_CONFIG_INITIALIZER;
    ncclResult_t state;
    settings.blocking = blocking;
    nccl_stub_seed(1);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMalloc((void **)&card, 4096);
    ncclGetUniqueId(&id);
    ncclCommInitRankConfig(&stub, 1, id, 0, &settings);
    do ncclCommGetAsyncError(stub, &state); while (state != ncclSuccess);
}

static void finish(bool aborts)
{
    if (aborts) ncclCommAbort(stub);
    cudaDeviceSynchronize();
    cudaFree(card);
    cudaStreamDestroy(stream);
    cudahost_reset();
    cudahost_failure();
}

/* That it tells of what is not allowed, else the runs above would show nothing. */
static unsigned breaches(void)
{
    static char host[64];
    unsigned missed = 0;
    begin(1);
    ncclSend(card, 8, ncclUint8, 0, stub, stream);
    missed += breach("outside a group");
    ncclAllGather(host, card, 8, ncclUint8, stub, stream);
    missed += breach("not the card's");
    ncclAllGather(card, card + 64, 8, ncclUint8, stub, (cudaStream_t)(void *)host);
    missed += breach("no stream");
    ncclAllGather(card, card + 4, 8, ncclUint8, stub, stream);
    missed += breach("overlaps");
    ncclGroupEnd();
    missed += breach("without a start");
    ncclGroupStart();
    ncclSend(card, 8, ncclUint8, 0, stub, stream);
    ncclRecv(card + 64, 16, ncclUint8, 0, stub, stream);
    ncclGroupEnd();
    missed += breach("which receives 16");
    ncclAllReduce(card, card, 2, ncclUint32, ncclSum, stub, stream);
    ncclCommFinalize(stub);
    ncclAllReduce(card, card + 64, 2, ncclUint32, ncclSum, stub, stream);
    missed += breach("after ncclCommFinalize");
    finish(true);
    begin(1);
    for (int i = 0; i < 20; i++)
        ncclAllReduce(card, card, 2, ncclUint32, ncclSum, stub, stream);
    ncclCommFinalize(stub);
    ncclCommDestroy(stub);
    missed += breach("with work under way");
    finish(false);
    begin(0);
    const unsigned before = nccl_stub_late();
    while (nccl_stub_late() == before)
        ncclAllReduce(card, card + 64, 2, ncclUint32, ncclSum, stub, stream);
    ncclAllReduce(card, card + 64, 2, ncclUint32, ncclSum, stub, stream);
    missed += breach("in progress");
    finish(true);
    begin(1);
    nccl_stub_end();
    missed += breach("communicators are left");
    finish(true);
    return missed;
}

/* Ranks of two machines. */
static unsigned elsewhere(void)
{
    struct comm two = { .size = 4, .local_size = 2 };
    struct base_err err = { 0 };
    if (comm_nccl_attach(&two, &err) == BASE_ECONFIG && strstr(err.text, "take mpi")) return 0;
    printf("ranks of two machines are not refused: %s\n", err.text);
    return 1;
}

int main(int argc, char **argv)
{
    struct comm_config config;
    struct base_option_group group = { "ranks", comm_options, comm_option_count, &config };
    struct base_err err = { 0 };
    base_option_defaults(&group, 1);
    config.kind = COMM_NCCL;
    if (comm_open(&comm, &config, &err) < 0) {
        printf("%s\n", err.text);
        return EXIT_FAILURE;
    }
    unsigned wrong = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        wrong += run(seed, ROUNDS, true);
    if (nccl_stub_late() == 0) {
        printf("no call was ever in progress\n");
        wrong++;
    }
    if (argc > 1 && strcmp(argv[1], "--mutate") == 0) wrong += mutate();
    if (comm->size == 1) wrong += breaches() + elsewhere();
    if (comm->rank == 0)
        printf("nccl over a stand-in, %u ranks: %u calls in progress, %u wrong\n", comm->size,
               nccl_stub_late(), wrong);
    comm_close(comm);
    return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
