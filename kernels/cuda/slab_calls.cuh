/* Products on tensor cores for few tokens (slabs.cu), called by the row products of rows.cu for the
 * shapes they take; C++ within kernels/cuda. */
#ifndef KERNELS_CUDA_SLAB_CALLS_CUH
#define KERNELS_CUDA_SLAB_CALLS_CUH

#include <cuda_runtime.h>

#include "kernels/cuda/kern_cuda.h"

/* Whole units of columns, scales of whole units. By shape alone: which kernel runs decides the
 * order of a sum. */
bool kern_slab_takes(const kern_cuda_shape &shape, uint32_t k_blocks);
int kern_slab_experts_in(const kern_cuda_experts_in_args &args, cudaStream_t stream);
int kern_slab_experts_out(const kern_cuda_experts_out_args &args, cudaStream_t stream);
int kern_slab_product(const kern_cuda_product_args &args, cudaStream_t stream);
/* The same bits for prompts; of a product a block's 128 rows must have one x. */
int kern_slab_experts_in_prompt(const kern_cuda_experts_in_args &args, cudaStream_t stream);
int kern_slab_experts_out_prompt(const kern_cuda_experts_out_args &args, cudaStream_t stream);
int kern_slab_product_prompt(const kern_cuda_product_args &args, cudaStream_t stream);

#endif
