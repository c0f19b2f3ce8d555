/* A program as it is, on the emulated machine: its main is called from here, between what the
 * environment says of the machine and what the machine has to say at the end.
 *
 *   CUDAHOST_SEED=N         orders of streams, blocks and threads (default 1)
 *   CUDAHOST_MEMORY=N       MiB of each card (default 64)
 *   CUDAHOST_DEVICES=N      cards (default 1)
 *   CUDAHOST_FAIL=CODE@N    the N-th call from the first kernel on gives this cudaError_t;
 *                           CODE@kernel:N, CODE@copy:N the N-th launch, the N-th copy of a step
 *   CUDAHOST_MUTE=FILE:LINE the wait, event or barrier there does nothing
 *
 * At the end a line on stderr says what ran and hashes what came down to the host from kernels; a
 * breach of CUDA's rules, or something that was not given back, is told and ends with 70. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/cudahost/cudahost.h"

int cudahost_program_main(int count, char **arguments);

enum { EXIT_BREACH = 70 };

static uint64_t number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

/* False if it is neither. */
static bool read_failure(const char *text)
{
    struct cudahost_machine *m = &cudahost_machine;
    m->fail_waits = true;
    m->fail_of = CUDAHOST_KERNELS;
    if (sscanf(text, "%d@kernel:%u", &m->fail_code, &m->fail_at) == 2) return true;
    m->fail_of = CUDAHOST_COPIES;
    if (sscanf(text, "%d@copy:%u", &m->fail_code, &m->fail_at) == 2) return true;
    m->fail_of = CUDAHOST_ALL;
    return sscanf(text, "%d@%u", &m->fail_code, &m->fail_at) == 2;
}

int main(int count, char **arguments)
{
    const char *fail = getenv("CUDAHOST_FAIL");
    cudahost_seed(number("CUDAHOST_SEED", 1));
    cudahost_machine.memory_bytes = number("CUDAHOST_MEMORY", 64) << 20;
    cudahost_machine.devices = (int)number("CUDAHOST_DEVICES", 1);
    cudahost_site_mute(getenv("CUDAHOST_MUTE"));
    if (fail && !read_failure(fail)) {
        fprintf(stderr, "CUDAHOST_FAIL=%s: CODE@N, CODE@kernel:N, CODE@copy:N are known\n",
                fail);
        return EXIT_BREACH;
    }
    const int code = cudahost_program_main(count, arguments);
    const uint64_t kernels = cudahost_kernels(), hash = cudahost_down_hash();
    const unsigned left = cudahost_reset();
    const char *failure = cudahost_failure();
    fprintf(stderr,
            "emulated machine: %" PRIu64 " kernels, %" PRIu64 " operations, down %016" PRIx64
            ", %s\n", kernels, cudahost_operations(), hash,
            failure ? failure : left ? "something was not given back" : "nothing to complain of");
    return failure || left ? EXIT_BREACH : code;
}
