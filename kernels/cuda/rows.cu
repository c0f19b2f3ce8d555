/* Products that are bound by reading weights: a warp a row, weights decoded in registers on their
 * way, straight from where the expert lies. Gate, up and SiLU are one pass. */
#include "kernels/cuda/math.cuh"

namespace
{

const unsigned THREADS = 256, WARPS = THREADS / WARP, TOKENS = 4;

/* One row of a stored matrix. */
struct row_of {
    const uint8_t *data;
    const uint8_t *scales; /* of this row, or NULL */
};

template <int DTYPE>
__device__ __forceinline__ row_of find_row(const void *data, const void *scales, uint32_t row,
                                           const kern_cuda_shape &shape)
{
    row_of r;
    r.data = (const uint8_t *)data + row * row_bytes<DTYPE>(shape.cols);
    r.scales = NULL;
    if (shape.scale_rows > 0) {
        const uint32_t stride = (shape.cols + shape.scale_cols - 1) / shape.scale_cols;
        const size_t size = grouped<DTYPE>() ? 2 : 4;
        r.scales = (const uint8_t *)scales + size * (row / shape.scale_rows) * stride;
    }
    return r;
}

/* Adds one chunk to a total, by the order of kern_cuda.h. */
template <int DTYPE>
__device__ __forceinline__ float chunk_add(const float (&w)[CHUNK], const float (&x)[CHUNK],
                                           const row_of &row, uint32_t k, uint32_t count,
                                           uint32_t scale_cols, float total)
{
    float part = 0;
    if (!row.scales) {
#pragma unroll
        for (unsigned j = 0; j < CHUNK; j++)
            part = fmaf(w[j], x[j], part);
        return total + part;
    }
    const uint32_t at = k / scale_cols;
    if ((k + count - 1) / scale_cols == at) {
#pragma unroll
        for (unsigned j = 0; j < CHUNK; j++)
            part = fmaf(w[j], x[j], part);
        return fmaf(part, load_scale<DTYPE>(row.scales, at), total);
    }
    uint32_t now = at;
#pragma unroll
    for (unsigned j = 0; j < CHUNK; j++) {
        const uint32_t next = (k + j) / scale_cols;
        if (next != now && j < count) {
            total = fmaf(part, load_scale<DTYPE>(row.scales, now), total);
            part = 0;
            now = next;
        }
        part = fmaf(w[j], x[j], part);
    }
    return fmaf(part, load_scale<DTYPE>(row.scales, now), total);
}

/* Dots of R rows with M operands over columns [k0, k1); all lanes get all of them. */
template <int DTYPE, unsigned R, unsigned M>
__device__ __forceinline__ void dots(float (&sum)[R][M], const row_of (&rows)[R],
                                     const float *const (&x)[M], uint32_t k0, uint32_t k1,
                                     uint32_t scale_cols)
{
#pragma unroll
    for (unsigned r = 0; r < R; r++)
#pragma unroll
        for (unsigned m = 0; m < M; m++)
            sum[r][m] = 0;
    for (uint32_t k = k0 + CHUNK * (threadIdx.x % WARP); k < k1; k += CHUNK * WARP) {
        const uint32_t left = k1 - k, count = left < CHUNK ? left : (uint32_t)CHUNK;
        float w[R][CHUNK];
#pragma unroll
        for (unsigned r = 0; r < R; r++)
            load_chunk<DTYPE>(w[r], rows[r].data, k, count);
#pragma unroll
        for (unsigned m = 0; m < M; m++) {
            float v[CHUNK];
            load_x(v, x[m] + k, count);
#pragma unroll
            for (unsigned r = 0; r < R; r++)
                sum[r][m] = chunk_add<DTYPE>(w[r], v, rows[r], k, count, scale_cols, sum[r][m]);
        }
    }
#pragma unroll
    for (unsigned r = 0; r < R; r++)
#pragma unroll
        for (unsigned m = 0; m < M; m++)
            sum[r][m] = warp_sum(sum[r][m]);
}

template <int DTYPE, unsigned M>
__device__ __forceinline__ void in_tokens(const kern_cuda_experts_in_args &a,
                                          const row_of (&rows)[2], uint32_t n, uint32_t first,
                                          uint32_t count)
{
    const float *x[M];
    float sum[2][M];
#pragma unroll
    for (unsigned m = 0; m < M; m++)
        x[m] = a.x + (size_t)a.pair_row[first + (m < count ? m : 0)] * a.shape.cols;
    dots<DTYPE, 2, M>(sum, rows, x, 0, a.shape.cols, a.shape.scale_cols);
#pragma unroll
    for (unsigned m = 0; m < M; m++)
        if (threadIdx.x % WARP == 0 && m < count)
            a.act[(size_t)(first + m) * a.shape.rows + n] = silu_same(sum[0][m]) * sum[1][m];
}

template <int DTYPE>
__global__ void __launch_bounds__(THREADS) experts_in_rows(const kern_cuda_experts_in_args a)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const kern_cuda_expert expert = a.table[run.expert];
    const uint32_t n = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (n >= a.shape.rows) return;
    const row_of rows[2] = { find_row<DTYPE>(expert.gate, expert.gate_scales, n, a.shape),
                             find_row<DTYPE>(expert.up, expert.up_scales, n, a.shape) };
    for (uint32_t i = 0; i < run.count; i += TOKENS) {
        const uint32_t left = run.count - i;
        if (left == 1)
            in_tokens<DTYPE, 1>(a, rows, n, run.first + i, 1);
        else
            in_tokens<DTYPE, TOKENS>(a, rows, n, run.first + i, left);
    }
}

template <int DTYPE, unsigned M>
__device__ __forceinline__ void out_tokens(const kern_cuda_experts_out_args &a,
                                           const row_of (&rows)[1], uint32_t n, uint32_t first,
                                           uint32_t count)
{
    const float *x[M];
    float sum[1][M];
#pragma unroll
    for (unsigned m = 0; m < M; m++)
        x[m] = a.act + (size_t)(first + (m < count ? m : 0)) * a.shape.cols;
    dots<DTYPE, 1, M>(sum, rows, x, 0, a.shape.cols, a.shape.scale_cols);
#pragma unroll
    for (unsigned m = 0; m < M; m++)
        if (threadIdx.x % WARP == 0 && m < count)
            a.out[(size_t)(first + m) * a.shape.rows + n] = sum[0][m];
}

template <int DTYPE>
__global__ void __launch_bounds__(THREADS) experts_out_rows(const kern_cuda_experts_out_args a)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const kern_cuda_expert expert = a.table[run.expert];
    const uint32_t n = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (n >= a.shape.rows) return;
    const row_of rows[1] = { find_row<DTYPE>(expert.down, expert.down_scales, n, a.shape) };
    for (uint32_t i = 0; i < run.count; i += TOKENS) {
        const uint32_t left = run.count - i;
        if (left == 1)
            out_tokens<DTYPE, 1>(a, rows, n, run.first + i, 1);
        else
            out_tokens<DTYPE, TOKENS>(a, rows, n, run.first + i, left);
    }
}

/* As cpu_range_begin: groups stay whole. */
template <int DTYPE>
__device__ __forceinline__ uint32_t range_begin(uint32_t cols, uint32_t block, uint32_t blocks)
{
    const uint32_t begin = (uint32_t)((uint64_t)cols * block / blocks);
    return grouped<DTYPE>() && block < blocks ? begin / KERN_GROUP_LARGE * KERN_GROUP_LARGE : begin;
}

template <int DTYPE, unsigned M>
__device__ __forceinline__ void product_tokens(const kern_cuda_product_args &a,
                                               const row_of (&rows)[1], uint32_t n, uint32_t first,
                                               uint32_t count)
{
    const float *x[M];
    float total[M], sum[1][M];
#pragma unroll
    for (unsigned m = 0; m < M; m++)
        x[m] = a.x + (size_t)(first + (m < count ? m : 0)) * a.x_stride + n / a.group * a.x_group;
#pragma unroll
    for (unsigned m = 0; m < M; m++)
        total[m] = 0;
    for (uint32_t b = 0; b < a.k_blocks; b++) {
        const uint32_t k0 = range_begin<DTYPE>(a.w.cols, b, a.k_blocks);
        const uint32_t k1 = range_begin<DTYPE>(a.w.cols, b + 1, a.k_blocks);
        dots<DTYPE, 1, M>(sum, rows, x, k0, k1, a.w.scale_cols);
#pragma unroll
        for (unsigned m = 0; m < M; m++)
            total[m] = b ? total[m] + sum[0][m] : sum[0][m];
    }
#pragma unroll
    for (unsigned m = 0; m < M; m++)
        if (threadIdx.x % WARP == 0 && m < count)
            a.y[(size_t)(first + m) * a.y_stride + n] = total[m];
}

template <int DTYPE>
__global__ void __launch_bounds__(THREADS) product_rows(const kern_cuda_product_args a)
{
    const uint32_t n = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (n >= a.rows) return;
    const kern_cuda_shape shape = { a.w.dtype, a.w.rows, a.w.cols, a.w.scales ? a.w.scale_rows : 0,
                                    a.w.scale_cols };
    const uint32_t row = n / a.group * a.w_group + a.w_first + n % a.group;
    const row_of rows[1] = { find_row<DTYPE>(a.w.data, a.w.scales, row, shape) };
    for (uint32_t i = 0; i < a.m; i += TOKENS) {
        const uint32_t left = a.m - i;
        if (left == 1)
            product_tokens<DTYPE, 1>(a, rows, n, i, 1);
        else
            product_tokens<DTYPE, TOKENS>(a, rows, n, i, left);
    }
}

/* A thread a column: rows ascending, as matmul_t of the reference. */
template <int DTYPE>
__global__ void __launch_bounds__(THREADS) absorb_rows(const kern_cuda_absorb_args a)
{
    const uint32_t c = blockIdx.x * THREADS + threadIdx.x, h = blockIdx.y, row = blockIdx.z;
    const uint32_t lora = a.w.cols;
    if (c >= lora + a.rope) return;
    const float *q = a.q + ((size_t)row * a.heads + h) * (a.nope + a.rope);
    float *to = a.q_latent + ((size_t)row * a.heads + h) * (lora + a.rope);
    if (c >= lora) {
        to[c] = q[a.nope + c - lora];
        return;
    }
    const kern_cuda_shape shape = { a.w.dtype, a.w.rows, lora, a.w.scales ? a.w.scale_rows : 0,
                                    a.w.scale_cols };
    float sum = 0;
    for (uint32_t d = 0; d < a.nope; d++) {
        const row_of w = find_row<DTYPE>(a.w.data, a.w.scales, h * a.w_head + d, shape);
        float factor = q[d];
        if (w.scales) factor = factor * load_scale<DTYPE>(w.scales, c / a.w.scale_cols);
        sum = fmaf(load_one<DTYPE>(w.data, c), factor, sum);
    }
    to[c] = sum;
}

bool shape_taken(const kern_cuda_shape &shape)
{
    const bool small = shape.scale_cols == KERN_GROUP_SMALL;
    if (kern_dtype_grouped(shape.dtype) &&
        (shape.scale_rows != 1 || (!small && shape.scale_cols != KERN_GROUP_LARGE)))
        return false;
    return shape.rows > 0 && shape.cols > 0 && shape.cols <= INT32_MAX / 2 &&
           (shape.scale_rows == 0 || shape.scale_cols > 0);
}

kern_cuda_shape shape_of(const kern_matrix &w)
{
    return kern_cuda_shape{ w.dtype, w.rows, w.cols, w.scales ? w.scale_rows : 0, w.scale_cols };
}

/* Runs `kernel` of the right stored type. */
#define BY_DTYPE(dtype, kernel, blocks, stream, a) \
    switch (dtype) { \
    case KERN_F32: \
        KERN_LAUNCH(kernel<KERN_F32>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
        break; \
    case KERN_F16: \
        KERN_LAUNCH(kernel<KERN_F16>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
        break; \
    case KERN_BF16: \
        KERN_LAUNCH(kernel<KERN_BF16>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
        break; \
    case KERN_FP8_E4M3: \
        KERN_LAUNCH(kernel<KERN_FP8_E4M3>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
        break; \
    case KERN_INT8: \
        KERN_LAUNCH(kernel<KERN_INT8>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
        break; \
    case KERN_INT4: \
        KERN_LAUNCH(kernel<KERN_INT4>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
        break; \
    default: \
        return -EINVAL; \
    }

} // namespace

int kern_cuda_experts_in(const struct kern_cuda_experts_in_args *args, void *stream)
{
    const kern_cuda_experts_in_args a = *args;
    const dim3 blocks((a.shape.rows + WARPS - 1) / WARPS, a.run_count);
    if (!shape_taken(a.shape) || a.run_count == 0 || a.run_count > 65535) return -EINVAL;
    BY_DTYPE(a.shape.dtype, experts_in_rows, blocks, stream, a)
    return kern_launched();
}

int kern_cuda_experts_out(const struct kern_cuda_experts_out_args *args, void *stream)
{
    const kern_cuda_experts_out_args a = *args;
    const dim3 blocks((a.shape.rows + WARPS - 1) / WARPS, a.run_count);
    if (!shape_taken(a.shape) || a.run_count == 0 || a.run_count > 65535) return -EINVAL;
    BY_DTYPE(a.shape.dtype, experts_out_rows, blocks, stream, a)
    return kern_launched();
}

int kern_cuda_product(const struct kern_cuda_product_args *args, void *stream)
{
    const kern_cuda_product_args a = *args;
    const bool whole = a.k_blocks == 1 || a.k_blocks == KERN_RANK_BLOCKS;
    if (!shape_taken(shape_of(a.w)) || a.m == 0 || a.rows == 0 || a.group == 0 || !whole)
        return -EINVAL;
    BY_DTYPE(a.w.dtype, product_rows, dim3((a.rows + WARPS - 1) / WARPS), stream, a)
    return kern_launched();
}

int kern_cuda_absorb(const struct kern_cuda_absorb_args *args, void *stream)
{
    const kern_cuda_absorb_args a = *args;
    const dim3 blocks((a.w.cols + a.rope + THREADS - 1) / THREADS, a.heads, a.rows);
    if (a.rows == 0 || a.rows > 65535 || a.heads == 0 || a.heads > 65535) return -EINVAL;
    if (!shape_taken(shape_of(a.w))) return -EINVAL;
    BY_DTYPE(a.w.dtype, absorb_rows, blocks, stream, a)
    return kern_launched();
}
