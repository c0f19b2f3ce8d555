/* The storage type of BF16, for wmma fragments. */
#ifndef CUDAHOST_CUDA_BF16_H
#define CUDAHOST_CUDA_BF16_H

#include <stdint.h>

struct __nv_bfloat16 {
    uint16_t bits;
};

static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits)
{
    return __nv_bfloat16{ bits };
}

#endif
