/* What a whole step needs besides arithmetic of layers: rows of the embedding, sums with the
 * residual stream, columns dealt out to ranks, and the addresses of the paged latent cache. */
#include "kernels/cuda/math.cuh"

namespace
{

const unsigned THREADS = 256;

template <int DTYPE> __global__ void __launch_bounds__(THREADS) embed_rows(kern_cuda_embed_args a)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    if (i >= a.w.cols) return;
    const uint32_t token = a.tokens[row] - a.first;
    float *to = a.out + (size_t)row * a.w.cols + i;
    if (token >= a.w.rows) { /* another rank's */
        *to = 0;
        return;
    }
    *to = load_one<DTYPE>((const uint8_t *)a.w.data + token * row_bytes<DTYPE>(a.w.cols), i);
}

__global__ void __launch_bounds__(THREADS) add_all(kern_cuda_add_args a)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < a.n) a.to[i] = a.to[i] + a.from[i];
}

__global__ void __launch_bounds__(THREADS) columns_all(kern_cuda_columns_args a)
{
    const uint32_t i = blockIdx.y * THREADS + threadIdx.x, row = blockIdx.x;
    if (i >= a.width) return;
    const uint32_t first = i / a.each * a.each, left = a.width - first;
    const uint32_t columns = left < a.each ? left : a.each;
    float *whole = a.whole + (size_t)row * a.width + i;
    float *part = a.parts + (size_t)a.rows * first + (size_t)row * columns + (i - first);
    if (!a.join)
        *part = *whole;
    else
        *whole = a.add ? *whole + *part : *part;
}

__device__ __forceinline__ char *block_at(const kern_cuda_pages_args &a, uint32_t layer,
                                          uint32_t member, uint32_t block)
{
    const uint32_t id = a.ids[(size_t)member * a.blocks_per_seq + block];
    return a.memory + ((size_t)id * a.layers + layer) * a.layer_bytes;
}

__global__ void __launch_bounds__(THREADS) pages_all(kern_cuda_pages_args a)
{
    const uint32_t layer = blockIdx.y, tables = a.members * a.blocks;
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < tables) {
        const uint32_t member = i / a.blocks, block = i % a.blocks;
        a.tables[((size_t)layer * a.members + member) * a.blocks_per_seq + block] =
            block_at(a, layer, member, block);
        return;
    }
    const uint32_t row = i - tables;
    if (row >= a.rows) return;
    const uint32_t token = a.row_tokens[row] - 1;
    char *block = block_at(a, layer, a.row_member[row], token / a.block_tokens);
    a.places[(size_t)layer * a.rows + row] = block + token % a.block_tokens * a.token_bytes;
}

} // namespace

int kern_cuda_embed(const struct kern_cuda_embed_args *args, void *stream)
{
    const kern_cuda_embed_args a = *args;
    const dim3 blocks((a.w.cols + THREADS - 1) / THREADS, a.rows);
    if (a.rows == 0 || a.rows > 65535 || a.w.cols == 0) return -EINVAL;
    switch (a.w.dtype) {
    case KERN_F32:
        KERN_LAUNCH(embed_rows<KERN_F32>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a);
        break;
    case KERN_F16:
        KERN_LAUNCH(embed_rows<KERN_F16>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a);
        break;
    case KERN_BF16:
        KERN_LAUNCH(embed_rows<KERN_BF16>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a);
        break;
    default:
        return -EINVAL;
    }
    return kern_launched();
}

int kern_cuda_add(const struct kern_cuda_add_args *args, void *stream)
{
    const kern_cuda_add_args a = *args;
    const size_t blocks = (a.n + THREADS - 1) / THREADS;
    if (blocks == 0 || blocks > INT32_MAX) return -EINVAL;
    KERN_LAUNCH(add_all, dim3((unsigned)blocks), dim3(THREADS), 0, (cudaStream_t)stream, a);
    return kern_launched();
}

int kern_cuda_columns(const struct kern_cuda_columns_args *args, void *stream)
{
    const kern_cuda_columns_args a = *args;
    const dim3 blocks(a.rows, (a.width + THREADS - 1) / THREADS);
    if (a.rows == 0 || a.rows > INT32_MAX || a.width == 0 || blocks.y > 65535 || a.each == 0)
        return -EINVAL;
    KERN_LAUNCH(columns_all, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a);
    return kern_launched();
}

int kern_cuda_pages(const struct kern_cuda_pages_args *args, void *stream)
{
    const kern_cuda_pages_args a = *args;
    const uint64_t items = (uint64_t)a.members * a.blocks + a.rows;
    if (a.rows == 0 || a.layers == 0 || a.layers > 65535 || items > INT32_MAX) return -EINVAL;
    KERN_LAUNCH(pages_all, dim3((unsigned)((items + THREADS - 1) / THREADS), a.layers),
                dim3(THREADS), 0, (cudaStream_t)stream, a);
    return kern_launched();
}
