/* Latent attention on tensor cores (heads.cu), called by mla.cu for the shape it takes; C++ within
 * kernels/cuda. */
#ifndef KERNELS_CUDA_HEADS_CUH
#define KERNELS_CUDA_HEADS_CUH

#include <cuda_runtime.h>

#include "kernels/cuda/kern_cuda.h"

/* By shape alone: which kernel runs decides the order of a sum. */
bool kern_heads_takes(const kern_cuda_mla &args);
/* `folded`: the result is in `out`; else mla_fold has to follow. */
int kern_heads_decode(const kern_cuda_mla &args, cudaStream_t stream, bool *folded);
int kern_heads_prefill(const kern_cuda_mla &args, cudaStream_t stream);

#endif
