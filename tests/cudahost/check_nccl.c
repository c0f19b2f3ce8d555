/* src/comm over NCCL gives what collectives are defined to give, keeps the rules of NCCL, and needs
 * each of its waits: run against a stand-in of NCCL and the emulated CUDA machine. It is no NCCL:
 * nothing here shows how real cards behave.
 *
 *   check_nccl [--mutate]      alone, or as several ranks */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm_nccl.h"
#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/include/nccl.h"
#include "tests/cudahost/nccl_stub.h"
#include "tests/unit/comm/collectives.h"

enum { SEEDS = 4, ROUNDS = 20, MUTATED_ROUNDS = 6 };

static struct comm *wire;
static struct comm_config config;

/* What was wrong with a run of this seed, on any rank. */
static unsigned run(uint64_t seed, unsigned rounds, bool say)
{
    struct comm *boot, *comm;
    struct base_err err = { 0 };
    cudahost_machine = (struct cudahost_machine){ .devices = 2, .memory_bytes = 256u << 20 };
    cudahost_seed(seed * 64 + wire->rank);
    nccl_stub_seed(seed * 77 + wire->rank);
    nccl_stub_wire(wire);
    config.kind = wire->size > 1 ? COMM_MPI : COMM_SELF;
    if (comm_open(&boot, &config, &err) < 0 || comm_nccl_open(&comm, boot, &config, &err) < 0) {
        printf("rank %u: %s\n", wire->rank, err.text);
        exit(EXIT_FAILURE);
    }
    comm->timeout_ns = comm->patience_ns = config.timeout;
    unsigned wrong = collectives_check(comm, rounds, say);
    /* A run without a wait leaves work behind, which the other ranks' needs. */
    cudaDeviceSynchronize();
    comm_close(comm);
    nccl_stub_wire(NULL);
    unsigned left = cudahost_reset();
    const char *failure = cudahost_failure();
    if (say && left > 0) printf("seed %llu: %u things are left\n", (unsigned long long)seed, left);
    if (say && failure) {
        printf("seed %llu, rank %u: %s\n", (unsigned long long)seed, wire->rank, failure);
    }
    uint32_t sum = wrong + left + (failure != NULL);
    comm_all_reduce(wire, &sum, 1);
    return sum;
}

/* Each wait and event of comm_nccl.c in turn does nothing: every such run must go wrong. */
static unsigned mutate(void)
{
    const char *const *names, *own[CUDAHOST_SITES_MAX];
    unsigned count = 0, harmless = 0, all = cudahost_sites(&names);
    for (unsigned i = 0; i < all; i++) {
        if (strstr(names[i], "comm_nccl.c")) own[count++] = names[i];
    }
    for (unsigned i = 0; i < count; i++) {
        unsigned seeds = 0;
        cudahost_site_mute(own[i]);
        for (uint64_t seed = 1; seed <= SEEDS; seed++) {
            seeds += run(seed, MUTATED_ROUNDS, false) > 0;
        }
        cudahost_site_mute(NULL);
        if (wire->rank == 0) {
            printf("without %s: %u of %d seeds go wrong\n", own[i], seeds, SEEDS);
        }
        harmless += seeds == 0;
    }
    if (count < 2) printf("%u sites: the device's waits are not there\n", count);
    return harmless + (count < 2);
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
    nccl_stub_wire(wire);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMalloc((void **)&card, 4096);
    ncclGetUniqueId(&id);
    ncclCommInitRankConfig(&stub, 1, id, 0, &settings);
    do ncclCommGetAsyncError(stub, &state); while (state != ncclSuccess);
}

static void finish(void)
{
    ncclCommAbort(stub);
    cudaDeviceSynchronize();
    cudaFree(card);
    cudaStreamDestroy(stream);
    nccl_stub_wire(NULL);
    cudahost_reset();
    cudahost_failure();
}

/* That it tells of what is not allowed, else the runs above would show nothing. */
static unsigned breaches(void)
{
    char host[64];
    unsigned missed = 0;
    begin(1);
    ncclSend(card, 8, ncclUint8, 0, stub, stream);
    missed += breach("outside a group");
    ncclAllGather(host, card, 8, ncclUint8, stub, stream);
    missed += breach("not the card's");
    ncclAllGather(card, card + 64, 8, ncclUint8, stub, (cudaStream_t)(void *)host);
    missed += breach("no stream");
    ncclBroadcast(card, card + 64, 8, ncclUint8, 3, stub, stream);
    missed += breach("from rank 3");
    ncclGroupEnd();
    missed += breach("without a start");
    ncclGroupStart();
    ncclSend(card, 8, ncclUint8, 0, stub, stream);
    ncclRecv(card + 64, 16, ncclUint8, 0, stub, stream);
    ncclGroupEnd();
    missed += breach("which receives 16");
    ncclCommFinalize(stub);
    ncclAllReduce(card, card + 64, 2, ncclUint32, ncclSum, stub, stream);
    missed += breach("after ncclCommFinalize");
    finish();
    begin(0);
    unsigned before = nccl_stub_late();
    while (nccl_stub_late() == before) {
        ncclAllReduce(card, card + 64, 2, ncclUint32, ncclSum, stub, stream);
    }
    ncclAllReduce(card, card + 64, 2, ncclUint32, ncclSum, stub, stream);
    missed += breach("in progress");
    finish();
    begin(1);
    nccl_stub_wire(NULL);
    missed += breach("communicators are left");
    nccl_stub_wire(wire);
    finish();
    return missed;
}

int main(int argc, char **argv)
{
    struct base_option_group group = { "ranks", comm_options, comm_option_count, &config };
    struct base_err err = { 0 };
    base_option_defaults(&group, 1);
    nccl_stub_seed(1);
    if (comm_open(&wire, &config, &err) < 0) {
        printf("%s\n", err.text);
        return EXIT_FAILURE;
    }
    unsigned wrong = wire->size == 1 ? breaches() : 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        wrong += run(seed, ROUNDS, true);
    }
    if (nccl_stub_late() == 0) {
        printf("no call was ever in progress\n");
        wrong++;
    }
    if (argc > 1 && strcmp(argv[1], "--mutate") == 0) wrong += mutate();
    if (wire->rank == 0) {
        printf("nccl over a stand-in, %u ranks: %u calls in progress, %u wrong\n", wire->size,
               nccl_stub_late(), wrong);
    }
    comm_close(wire);
    return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
