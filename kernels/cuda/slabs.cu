/* Expert and dense products of few tokens, and which shapes they take; see slabs.cuh. */
#include "kernels/cuda/slabs.cuh"

#include "kernels/cuda/slab_calls.cuh"

namespace
{

const unsigned ROWS = 2 * SLAB_ROWS;
#ifndef SLAB_BLOCKS
#define SLAB_BLOCKS 4 /* on one multiprocessor: as shared memory allows */
#endif
#ifndef PROMPT_BLOCKS
#define PROMPT_BLOCKS 2
#endif

template <int DTYPE>
__device__ __forceinline__ void row_set(slab_rows &rows, unsigned slab, unsigned half, uint32_t row,
                                        const kern_cuda_shape &shape)
{
    rows.row[slab][half] = row * (uint32_t)(row_bytes<DTYPE>(shape.cols) / 16);
    rows.scale_row[slab][half] =
        shape.scale_rows == 0
            ? 0
            : row / shape.scale_rows * ((shape.cols + shape.scale_cols - 1) / shape.scale_cols);
}

template <int DTYPE>
__device__ __forceinline__ void rows_finish(slab_rows &rows, const kern_cuda_shape &shape,
                                            const void *a, const void *b, const void *a_scales,
                                            const void *b_scales)
{
    const bool scaled = shape.scale_rows > 0;
    rows.data[0] = (const uint8_t *)a;
    rows.data[1] = (const uint8_t *)b;
    rows.scales[0] = scaled ? (const uint8_t *)a_scales : NULL;
    rows.scales[1] = scaled ? (const uint8_t *)b_scales : NULL;
    rows.scale_cols = scaled ? shape.scale_cols : 128;
    rows.aligned = (((uintptr_t)a | (uintptr_t)b) & 15u) == 0;
    rows.scales_aligned =
        (((uintptr_t)a_scales | (uintptr_t)b_scales) & (grouped<DTYPE>() ? 1u : 3u)) == 0;
}

/* Slab 0 is gate, slab 1 up, of the same 16 rows. */
template <int DTYPE>
__device__ __forceinline__ void rows_in(slab_rows &rows, const kern_cuda_expert &e, uint32_t n0,
                                        const kern_cuda_shape &shape)
{
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        const uint32_t n = n0 + threadIdx.x % WARP / 4 + 8 * half;
        const uint32_t row = n < shape.rows ? n : shape.rows - 1;
        row_set<DTYPE>(rows, 0, half, row, shape);
        row_set<DTYPE>(rows, 1, half, row, shape);
    }
    rows_finish<DTYPE>(rows, shape, e.gate, e.up, e.gate_scales, e.up_scales);
}

template <int DTYPE>
__device__ __forceinline__ void rows_out(slab_rows &rows, const kern_cuda_expert &e, uint32_t n0,
                                         const kern_cuda_shape &shape)
{
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const uint32_t n = n0 + threadIdx.x % WARP / 4 + 8 * i;
        row_set<DTYPE>(rows, i / 2, i % 2, n < shape.rows ? n : shape.rows - 1, shape);
    }
    rows_finish<DTYPE>(rows, shape, e.down, e.down, e.down_scales, e.down_scales);
}

template <int DTYPE>
__device__ __forceinline__ void rows_product(slab_rows &rows, const kern_cuda_product_args &a,
                                             uint32_t n0, const kern_cuda_shape &shape)
{
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const uint32_t at = n0 + threadIdx.x % WARP / 4 + 8 * i, n = at < a.rows ? at : a.rows - 1;
        row_set<DTYPE>(rows, i / 2, i % 2, n / a.group * a.w_group + a.w_first + n % a.group,
                       shape);
    }
    rows_finish<DTYPE>(rows, shape, a.w.data, a.w.data, a.w.scales, a.w.scales);
}

__device__ __forceinline__ kern_cuda_shape shape_of(const kern_matrix &w)
{
    return kern_cuda_shape{ w.dtype, w.rows, w.cols, w.scales ? w.scale_rows : 0, w.scale_cols };
}

template <int DTYPE>
__global__ void __launch_bounds__(SLAB_THREADS, SLAB_BLOCKS)
    experts_in_slab(const kern_cuda_experts_in_args a, unsigned ranges)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const uint32_t i = blockIdx.z * SLAB_TOKENS;
    if (i >= run.count) return;
    const uint32_t n0 = blockIdx.x * SLAB_ROWS, units = a.shape.cols / slab_unit<DTYPE>::cols;
    slab_rows rows;
    rows_in<DTYPE>(rows, a.table[run.expert], n0, a.shape);
    const uint32_t left = run.count - i, first = run.first + i;
    slab_product<DTYPE>(
        rows, left < SLAB_TOKENS ? left : (uint32_t)SLAB_TOKENS, ranges,
        [&](unsigned r) { return units * r / ranges; },
        [&](uint32_t t) { return a.x + (size_t)a.pair_row[first + t] * a.shape.cols; },
        [&](unsigned r, uint32_t t, const float(&v)[2]) {
            if (n0 + r < a.shape.rows)
                a.act[(size_t)(first + t) * a.shape.rows + n0 + r] = silu_same(v[0]) * v[1];
        });
}

template <int DTYPE>
__global__ void __launch_bounds__(SLAB_THREADS, SLAB_BLOCKS)
    experts_out_slab(const kern_cuda_experts_out_args a, unsigned ranges)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const uint32_t i = blockIdx.z * SLAB_TOKENS;
    if (i >= run.count) return;
    const uint32_t n0 = blockIdx.x * ROWS, units = a.shape.cols / slab_unit<DTYPE>::cols;
    slab_rows rows;
    rows_out<DTYPE>(rows, a.table[run.expert], n0, a.shape);
    const uint32_t left = run.count - i, first = run.first + i;
    slab_product<DTYPE>(
        rows, left < SLAB_TOKENS ? left : (uint32_t)SLAB_TOKENS, ranges,
        [&](unsigned r) { return units * r / ranges; },
        [&](uint32_t t) { return a.act + (size_t)(first + t) * a.shape.cols; },
        [&](unsigned r, uint32_t t, const float(&v)[2]) {
#pragma unroll
            for (unsigned s = 0; s < 2; s++) {
                const uint32_t n = n0 + s * SLAB_ROWS + r;
                if (n < a.shape.rows) a.out[(size_t)(first + t) * a.shape.rows + n] = v[s];
            }
        });
}

/* A block's rows lie in one group, or there is one. */
template <int DTYPE>
__global__ void __launch_bounds__(SLAB_THREADS, SLAB_BLOCKS)
    product_slab(const kern_cuda_product_args a, unsigned ranges)
{
    const kern_cuda_shape shape = shape_of(a.w);
    const uint32_t n0 = blockIdx.x * ROWS, units = shape.cols / slab_unit<DTYPE>::cols;
    slab_rows rows;
    rows_product<DTYPE>(rows, a, n0, shape);
    const float *x = a.x + n0 / a.group * a.x_group;
    const uint32_t i = blockIdx.z * SLAB_TOKENS;
    const uint32_t left = a.m - i;
    slab_product<DTYPE>(
        rows, left < SLAB_TOKENS ? left : (uint32_t)SLAB_TOKENS, ranges,
        [&](unsigned r) { return units * r / ranges; },
        [&](uint32_t t) { return x + (size_t)(i + t) * a.x_stride; },
        [&](unsigned r, uint32_t t, const float(&v)[2]) {
#pragma unroll
            for (unsigned s = 0; s < 2; s++) {
                const uint32_t n = n0 + s * SLAB_ROWS + r;
                if (n < a.rows) a.y[(size_t)(i + t) * a.y_stride + n] = v[s];
            }
        });
}

/* ---- the same for prompts: 32 tokens, four warps with slabs of their own ---- */

const unsigned TILE_TOKENS = SLAB_WARPS * SLAB_TOKENS;

template <int DTYPE>
__global__ void __launch_bounds__(SLAB_THREADS, PROMPT_BLOCKS)
    experts_in_prompt(const kern_cuda_experts_in_args a, unsigned ranges)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const uint32_t begin = blockIdx.z * TILE_TOKENS, first = run.first + begin;
    if (begin >= run.count) return;
    const uint32_t left = run.count - begin, units = a.shape.cols / slab_unit<DTYPE>::cols;
    const uint32_t n0 = (blockIdx.x * SLAB_WARPS + threadIdx.x / WARP) * SLAB_ROWS;
    slab_rows rows;
    rows_in<DTYPE>(rows, a.table[run.expert], n0, a.shape);
    slab_tile<DTYPE>(
        rows, left < TILE_TOKENS ? left : (uint32_t)TILE_TOKENS, ranges,
        [&](unsigned r) { return units * r / ranges; },
        [&](uint32_t t) { return a.x + (size_t)a.pair_row[first + t] * a.shape.cols; },
        [&](unsigned r, uint32_t t, const float(&v)[2]) {
            if (n0 + r < a.shape.rows)
                a.act[(size_t)(first + t) * a.shape.rows + n0 + r] = silu_same(v[0]) * v[1];
        });
}

template <int DTYPE>
__global__ void __launch_bounds__(SLAB_THREADS, PROMPT_BLOCKS)
    experts_out_prompt(const kern_cuda_experts_out_args a, unsigned ranges)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const uint32_t begin = blockIdx.z * TILE_TOKENS, first = run.first + begin;
    if (begin >= run.count) return;
    const uint32_t left = run.count - begin, units = a.shape.cols / slab_unit<DTYPE>::cols;
    const uint32_t n0 = (blockIdx.x * SLAB_WARPS + threadIdx.x / WARP) * ROWS;
    slab_rows rows;
    rows_out<DTYPE>(rows, a.table[run.expert], n0, a.shape);
    slab_tile<DTYPE>(
        rows, left < TILE_TOKENS ? left : (uint32_t)TILE_TOKENS, ranges,
        [&](unsigned r) { return units * r / ranges; },
        [&](uint32_t t) { return a.act + (size_t)(first + t) * a.shape.cols; },
        [&](unsigned r, uint32_t t, const float(&v)[2]) {
#pragma unroll
            for (unsigned s = 0; s < 2; s++) {
                const uint32_t n = n0 + s * SLAB_ROWS + r;
                if (n < a.shape.rows) a.out[(size_t)(first + t) * a.shape.rows + n] = v[s];
            }
        });
}

template <int DTYPE>
__global__ void __launch_bounds__(SLAB_THREADS, PROMPT_BLOCKS)
    product_prompt(const kern_cuda_product_args a, unsigned ranges)
{
    const kern_cuda_shape shape = shape_of(a.w);
    const uint32_t begin = blockIdx.y * TILE_TOKENS, left = a.m - begin;
    const uint32_t units = shape.cols / slab_unit<DTYPE>::cols;
    const uint32_t n0 = (blockIdx.x * SLAB_WARPS + threadIdx.x / WARP) * ROWS;
    slab_rows rows;
    rows_product<DTYPE>(rows, a, n0, shape);
    const float *x = a.x + blockIdx.x * SLAB_WARPS * ROWS / a.group * a.x_group;
    slab_tile<DTYPE>(
        rows, left < TILE_TOKENS ? left : (uint32_t)TILE_TOKENS, ranges,
        [&](unsigned r) { return units * r / ranges; },
        [&](uint32_t t) { return x + (size_t)(begin + t) * a.x_stride; },
        [&](unsigned r, uint32_t t, const float(&v)[2]) {
#pragma unroll
            for (unsigned s = 0; s < 2; s++) {
                const uint32_t n = n0 + s * SLAB_ROWS + r;
                if (n < a.rows) a.y[(size_t)(begin + t) * a.y_stride + n] = v[s];
            }
        });
}

template <class A>
int launch(void (*kernel)(A, unsigned), size_t bytes, dim3 blocks, cudaStream_t stream,
           const A &args, unsigned ranges)
{
    const A a = args;
    if (KERN_DYNAMIC_LIMIT(kernel, bytes) != cudaSuccess) return BASE_EDEVICE;
    KERN_LAUNCH(kernel, blocks, dim3(SLAB_THREADS), bytes, stream, a, ranges);
    return kern_launched();
}

#define SLAB_LAUNCH(dtype, kernel, room, ranges, ...) \
    launch(kernel<dtype>, room<dtype>::bytes(ranges), __VA_ARGS__, ranges)
/* Runs `kernel` for the right stored type. */
#define BY_DTYPE(dtype, ...) \
    (dtype) == KERN_BF16       ? SLAB_LAUNCH(KERN_BF16, __VA_ARGS__) \
    : (dtype) == KERN_FP8_E4M3 ? SLAB_LAUNCH(KERN_FP8_E4M3, __VA_ARGS__) \
    : (dtype) == KERN_INT8     ? SLAB_LAUNCH(KERN_INT8, __VA_ARGS__) \
                               : SLAB_LAUNCH(KERN_INT4, __VA_ARGS__)

/* Four ranges, or those that ranks may hold. */
unsigned ranges_of(const kern_cuda_product_args &a)
{
    return a.k_blocks == 1 ? SLAB_WARPS : (unsigned)KERN_RANK_BLOCKS;
}

} // namespace

bool kern_slab_takes(const kern_cuda_shape &shape, uint32_t k_blocks)
{
    const uint32_t unit = shape.dtype == KERN_BF16 ? 64 : 128;
    if (shape.dtype != KERN_BF16 && shape.dtype != KERN_FP8_E4M3 && shape.dtype != KERN_INT8 &&
        shape.dtype != KERN_INT4)
        return false;
    if (shape.scale_rows && shape.scale_cols % 128) return false;
    return shape.cols % (k_blocks == 1 ? unit : KERN_RANK_BLOCKS * 128u) == 0;
}

int kern_slab_experts_in(const kern_cuda_experts_in_args &a, cudaStream_t stream)
{
    const dim3 blocks((a.shape.rows + SLAB_ROWS - 1) / SLAB_ROWS, a.run_count);
    if (a.count_max > SLAB_TOKENS) return kern_slab_experts_in_prompt(a, stream);
    return BY_DTYPE(a.shape.dtype, experts_in_slab, slab_room, SLAB_WARPS, blocks, stream, a);
}

int kern_slab_experts_out(const kern_cuda_experts_out_args &a, cudaStream_t stream)
{
    const dim3 blocks((a.shape.rows + ROWS - 1) / ROWS, a.run_count);
    if (a.count_max > SLAB_TOKENS) return kern_slab_experts_out_prompt(a, stream);
    return BY_DTYPE(a.shape.dtype, experts_out_slab, slab_room, SLAB_WARPS, blocks, stream, a);
}

int kern_slab_product(const kern_cuda_product_args &a, cudaStream_t stream)
{
    const dim3 blocks((a.rows + ROWS - 1) / ROWS, 1, (a.m + SLAB_TOKENS - 1) / SLAB_TOKENS);
    if (a.m > SLAB_TOKENS && (a.group >= a.rows || a.group % (SLAB_WARPS * ROWS) == 0))
        return kern_slab_product_prompt(a, stream);
    if (blocks.z > 65535) return -EINVAL;
    return BY_DTYPE(a.w.dtype, product_slab, slab_room, ranges_of(a), blocks, stream, a);
}

int kern_slab_experts_in_prompt(const kern_cuda_experts_in_args &a, cudaStream_t stream)
{
    const uint32_t rows = SLAB_WARPS * SLAB_ROWS;
    const dim3 blocks((a.shape.rows + rows - 1) / rows, a.run_count,
                      (a.count_max + TILE_TOKENS - 1) / TILE_TOKENS);
    return BY_DTYPE(a.shape.dtype, experts_in_prompt, prompt_room, SLAB_WARPS, blocks, stream, a);
}

int kern_slab_experts_out_prompt(const kern_cuda_experts_out_args &a, cudaStream_t stream)
{
    const uint32_t rows = SLAB_WARPS * ROWS;
    const dim3 blocks((a.shape.rows + rows - 1) / rows, a.run_count,
                      (a.count_max + TILE_TOKENS - 1) / TILE_TOKENS);
    return BY_DTYPE(a.shape.dtype, experts_out_prompt, prompt_room, SLAB_WARPS, blocks, stream, a);
}

int kern_slab_product_prompt(const kern_cuda_product_args &a, cudaStream_t stream)
{
    const uint32_t rows = SLAB_WARPS * ROWS;
    const dim3 blocks((a.rows + rows - 1) / rows, (a.m + TILE_TOKENS - 1) / TILE_TOKENS);
    return BY_DTYPE(a.w.dtype, product_prompt, prompt_room, ranges_of(a), blocks, stream, a);
}
