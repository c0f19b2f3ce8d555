/* The real libnccl of this machine has every call that src/comm makes of it. No card is needed, and
 * none is used. */
#include <errno.h>
#include <stdio.h>

#ifdef EXPERTIER_NCCL
#include "comm/comm_nccl.h"

int main(void)
{
    struct base_err err = { 0 };
    int version = comm_nccl_version(&err);
    if (version < 0) {
        printf("skip: %s\n", err.text);
        return 77;
    }
    printf("libnccl %d.%d.%d has what is needed\n", version / 10000, version / 100 % 100,
           version % 100);
    return version >= 21400 ? 0 : 1;
}
#else
int main(void)
{
    printf("skip: this build has no NCCL (nccl.h, the CUDA toolkit and Open MPI make one)\n");
    return 77;
}
#endif
