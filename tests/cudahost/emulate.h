/* Shared by the two halves of the emulated machine; private to tests/cudahost. */
#ifndef CUDAHOST_EMULATE_H
#define CUDAHOST_EMULATE_H

#include "tests/cudahost/cudahost.h"
#include "tests/cudahost/include/cuda_runtime.h"

/* One generator for every order there is. */
uint64_t cudahost_random(uint64_t bound);

/* One launch as the stream executes it: all its blocks, to the end. */
struct cudahost_grid {
    const char *name;
    dim3 blocks, threads;
    size_t dynamic_bytes;
    void (*run)(void *context);
    void *context;
};
void cudahost_grid_run(const cudahost_grid &grid);

#endif
