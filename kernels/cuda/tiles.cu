/* Products of prompts on tensor cores: many tokens share one expert, so its weights are decoded
 * once a tile into BF16 (exact for FP8 and BF16) and met by x in two BF16 halves, which keep some
 * 16 bits of it.
 *
 * Block = 64 rows x 32 tokens, four warps of 16 rows. Columns go in steps of at most 32 that end
 * where the scale changes; fragments of one scale are summed apart, then added by fma with it. */
#include <cuda_bf16.h>
#include <mma.h>

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/slab_calls.cuh"

namespace
{

using namespace nvcuda;

const unsigned THREADS = 128, WARPS = 4, PIECE = 16, ROWS = WARPS * PIECE, TOKENS = 32, STEP = 32;
const unsigned STRIDE = STEP + 8; /* of staged columns: no two rows begin in one bank */
const unsigned OUT_STRIDE = TOKENS + 4;
const int HALVES = TOKENS / PIECE;

typedef wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> left_piece;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> right_piece;
typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum_piece;

/* One or two matrices of one shape. */
template <int R> struct sources {
    const void *data[R], *scales[R];
    kern_cuda_shape shape;
    uint32_t group, w_group, w_first, rows; /* as in kern_cuda_product */
};

/* Row of the matrix for output n; those past the end repeat the last. */
template <int R> __device__ __forceinline__ uint32_t source_row(const sources<R> &w, uint32_t n)
{
    n = n < w.rows ? n : w.rows - 1;
    return n / w.group * w.w_group + w.w_first + n % w.group;
}

template <int DTYPE>
__device__ __forceinline__ __nv_bfloat16 stage_weight(const void *data, size_t index)
{
    if (DTYPE == KERN_BF16) {
        const uint8_t *at = (const uint8_t *)data + 2 * index;
        return __ushort_as_bfloat16((unsigned short)(at[0] | at[1] << 8));
    }
    float first, second;
    kern_fp8_pair(((const uint8_t *)data)[index], &first, &second);
    return __ushort_as_bfloat16((unsigned short)(__float_as_uint(first) >> 16));
}

/* sums += weights x tokens over columns [k0, k1). `x` of token t is x_of(t), NULL past the last. */
template <int DTYPE, int R, class F>
__device__ __forceinline__ void range_sum(sum_piece (&total)[R][HALVES], const sources<R> &w,
                                          uint32_t n0, uint32_t k0, uint32_t k1, F x_of)
{
    KERN_SHARED(__nv_bfloat16, weights, R * ROWS * STRIDE);
    KERN_SHARED(__nv_bfloat16, high, TOKENS * STRIDE);
    KERN_SHARED(__nv_bfloat16, low, TOKENS * STRIDE);
    const uint32_t warp = threadIdx.x / WARP;
    const uint32_t scale_stride =
        w.shape.scale_rows ? (w.shape.cols + w.shape.scale_cols - 1) / w.shape.scale_cols : 0;
    sum_piece part[R][HALVES];
    for (uint32_t cut = k0; cut < k1;) {
        uint32_t cut_end = k1;
        if (w.shape.scale_rows) {
            const uint32_t change = (cut / w.shape.scale_cols + 1) * w.shape.scale_cols;
            cut_end = change < k1 ? change : k1;
        }
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int h = 0; h < HALVES; h++)
                wmma::fill_fragment(part[r][h], 0.0f);
        for (uint32_t k = cut; k < cut_end; k += STEP) {
#pragma unroll
            for (int r = 0; r < R; r++)
                for (uint32_t i = threadIdx.x; i < ROWS * STEP; i += THREADS) {
                    const uint32_t j = i % STEP, n = i / STEP;
                    const size_t at = (size_t)source_row(w, n0 + n) * w.shape.cols + k + j;
                    weights[(r * ROWS + n) * STRIDE + j] = k + j < cut_end
                                                               ? stage_weight<DTYPE>(w.data[r], at)
                                                               : __ushort_as_bfloat16(0);
                }
            for (uint32_t i = threadIdx.x; i < TOKENS * STEP; i += THREADS) {
                const uint32_t j = i % STEP, t = i / STEP;
                const float *x = x_of(t);
                const float value = x && k + j < cut_end ? x[k + j] : 0.0f;
                const uint16_t first = to_bf16(value);
                high[t * STRIDE + j] = __ushort_as_bfloat16(first);
                low[t * STRIDE + j] = __ushort_as_bfloat16(to_bf16(value - from_bf16(first)));
            }
            __syncthreads();
#pragma unroll
            for (uint32_t j = 0; j < STEP; j += PIECE) {
                left_piece a[R];
#pragma unroll
                for (int r = 0; r < R; r++)
                    wmma::load_matrix_sync(a[r], weights + ((r * ROWS + warp * PIECE) * STRIDE + j),
                                           STRIDE);
#pragma unroll
                for (int h = 0; h < HALVES; h++) {
                    right_piece b;
                    wmma::load_matrix_sync(b, high + (h * PIECE * STRIDE + j), STRIDE);
#pragma unroll
                    for (int r = 0; r < R; r++)
                        wmma::mma_sync(part[r][h], a[r], b, part[r][h]);
                    wmma::load_matrix_sync(b, low + (h * PIECE * STRIDE + j), STRIDE);
#pragma unroll
                    for (int r = 0; r < R; r++)
                        wmma::mma_sync(part[r][h], a[r], b, part[r][h]);
                }
            }
            __syncthreads(); /* nobody still reads what is staged next */
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            float scale = 1.0f;
            if (w.shape.scale_rows) {
                const uint32_t row = source_row(w, n0 + warp * PIECE);
                scale = load_f32((const uint8_t *)w.scales[r] +
                                 4 * ((size_t)(row / w.shape.scale_rows) * scale_stride +
                                      cut / w.shape.scale_cols));
            }
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int i = 0; i < sum_piece::num_elements; i++)
                    total[r][h].x[i] = fmaf(part[r][h].x[i], scale, total[r][h].x[i]);
        }
        cut = cut_end;
    }
}

/* The whole product of a block; give(n, t, values of R matrices) takes each element. */
template <int DTYPE, int R, class F, class G>
__device__ __forceinline__ void tile_product(const sources<R> &w, uint32_t k_blocks, F x_of, G give)
{
    KERN_SHARED(float, out, R *ROWS *OUT_STRIDE);
    const uint32_t n0 = blockIdx.x * ROWS, warp = threadIdx.x / WARP;
    sum_piece total[R][HALVES], sum[R][HALVES];
    for (uint32_t b = 0; b < k_blocks; b++) {
        const uint32_t k0 = (uint32_t)((uint64_t)w.shape.cols * b / k_blocks);
        const uint32_t k1 = (uint32_t)((uint64_t)w.shape.cols * (b + 1) / k_blocks);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int h = 0; h < HALVES; h++)
                wmma::fill_fragment(sum[r][h], 0.0f);
        range_sum<DTYPE, R>(sum, w, n0, k0, k1, x_of);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int i = 0; i < sum_piece::num_elements; i++)
                    total[r][h].x[i] = b ? total[r][h].x[i] + sum[r][h].x[i] : sum[r][h].x[i];
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int h = 0; h < HALVES; h++)
            wmma::store_matrix_sync(out + ((r * ROWS + warp * PIECE) * OUT_STRIDE + h * PIECE),
                                    total[r][h], OUT_STRIDE, wmma::mem_row_major);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < ROWS * TOKENS; i += THREADS) {
        const uint32_t n = i % ROWS, t = i / ROWS;
        float values[R];
#pragma unroll
        for (int r = 0; r < R; r++)
            values[r] = out[(r * ROWS + n) * OUT_STRIDE + t];
        if (n0 + n < w.rows) give(n0 + n, t, values);
    }
}

template <int DTYPE>
__global__ void __launch_bounds__(THREADS) experts_in_tile(const kern_cuda_experts_in_args a)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const uint32_t begin = blockIdx.z * TOKENS;
    if (begin >= run.count) return;
    const kern_cuda_expert e = a.table[run.expert];
    const sources<2> w = {
        { e.gate, e.up }, { e.gate_scales, e.up_scales }, a.shape, a.shape.rows, 0, 0, a.shape.rows
    };
    tile_product<DTYPE, 2>(
        w, 1,
        [&](uint32_t t) -> const float * {
            if (begin + t >= run.count) return NULL;
            return a.x + (size_t)a.pair_row[run.first + begin + t] * a.shape.cols;
        },
        [&](uint32_t n, uint32_t t, const float(&values)[2]) {
            if (begin + t >= run.count) return;
            a.act[(size_t)(run.first + begin + t) * a.shape.rows + n] =
                silu_same(values[0]) * values[1];
        });
}

template <int DTYPE>
__global__ void __launch_bounds__(THREADS) experts_out_tile(const kern_cuda_experts_out_args a)
{
    const kern_cuda_run run = a.runs[blockIdx.y];
    const uint32_t begin = blockIdx.z * TOKENS;
    if (begin >= run.count) return;
    const kern_cuda_expert e = a.table[run.expert];
    const sources<1> w = {
        { e.down }, { e.down_scales }, a.shape, a.shape.rows, 0, 0, a.shape.rows
    };
    tile_product<DTYPE, 1>(
        w, 1,
        [&](uint32_t t) -> const float * {
            if (begin + t >= run.count) return NULL;
            return a.act + (size_t)(run.first + begin + t) * a.shape.cols;
        },
        [&](uint32_t n, uint32_t t, const float(&values)[1]) {
            if (begin + t >= run.count) return;
            a.out[(size_t)(run.first + begin + t) * a.shape.rows + n] = values[0];
        });
}

template <int DTYPE>
__global__ void __launch_bounds__(THREADS) product_tile(const kern_cuda_product_args a)
{
    const uint32_t begin = blockIdx.y * TOKENS, n0 = blockIdx.x * ROWS;
    const kern_cuda_shape shape = { a.w.dtype, a.w.rows, a.w.cols, a.w.scales ? a.w.scale_rows : 0,
                                    a.w.scale_cols };
    const sources<1> w = { { a.w.data }, { a.w.scales }, shape, a.group,
                           a.w_group,    a.w_first,      a.rows };
    const size_t part = n0 / a.group * a.x_group;
    tile_product<DTYPE, 1>(
        w, a.k_blocks,
        [&](uint32_t t) -> const float * {
            return begin + t < a.m ? a.x + (size_t)(begin + t) * a.x_stride + part : NULL;
        },
        [&](uint32_t n, uint32_t t, const float(&values)[1]) {
            if (begin + t < a.m) a.y[(size_t)(begin + t) * a.y_stride + n] = values[0];
        });
}

bool tiles_taken(const kern_cuda_shape &shape)
{
    return shape.rows > 0 && shape.cols > 0 && shape.cols <= INT32_MAX / 2 &&
           (shape.dtype == KERN_FP8_E4M3 || shape.dtype == KERN_BF16) &&
           (shape.scale_rows == 0 || (shape.scale_cols > 0 && shape.scale_rows % PIECE == 0));
}

#define BY_DTYPE(dtype, kernel, blocks, stream, a) \
    if (dtype == KERN_FP8_E4M3) { \
        KERN_LAUNCH(kernel<KERN_FP8_E4M3>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
    } else { \
        KERN_LAUNCH(kernel<KERN_BF16>, blocks, dim3(THREADS), 0, (cudaStream_t)stream, a); \
    }

} // namespace

int kern_cuda_experts_in_tiles(const struct kern_cuda_experts_in_args *args, void *stream)
{
    const kern_cuda_experts_in_args a = *args;
    const dim3 blocks((a.shape.rows + ROWS - 1) / ROWS, a.run_count,
                      (a.count_max + TOKENS - 1) / TOKENS);
    if (a.run_count == 0 || a.run_count > 65535 || a.count_max == 0 || blocks.z > 65535)
        return -EINVAL;
    if (kern_slab_takes(a.shape, 1)) return kern_slab_experts_in_prompt(a, (cudaStream_t)stream);
    if (!tiles_taken(a.shape)) return -EINVAL;
    BY_DTYPE(a.shape.dtype, experts_in_tile, blocks, stream, a)
    return kern_launched();
}

int kern_cuda_experts_out_tiles(const struct kern_cuda_experts_out_args *args, void *stream)
{
    const kern_cuda_experts_out_args a = *args;
    const dim3 blocks((a.shape.rows + ROWS - 1) / ROWS, a.run_count,
                      (a.count_max + TOKENS - 1) / TOKENS);
    if (a.run_count == 0 || a.run_count > 65535 || a.count_max == 0 || blocks.z > 65535)
        return -EINVAL;
    if (kern_slab_takes(a.shape, 1)) return kern_slab_experts_out_prompt(a, (cudaStream_t)stream);
    if (!tiles_taken(a.shape)) return -EINVAL;
    BY_DTYPE(a.shape.dtype, experts_out_tile, blocks, stream, a)
    return kern_launched();
}

int kern_cuda_product_tiles(const struct kern_cuda_product_args *args, void *stream)
{
    const kern_cuda_product_args a = *args;
    const kern_cuda_shape shape = { a.w.dtype, a.w.rows, a.w.cols, a.w.scales ? a.w.scale_rows : 0,
                                    a.w.scale_cols };
    const dim3 blocks((a.rows + ROWS - 1) / ROWS, (a.m + TOKENS - 1) / TOKENS);
    const bool whole = a.k_blocks == 1 || a.k_blocks == KERN_RANK_BLOCKS;
    /* A block's rows must lie in one group, and a warp's in one row of scales. */
    const bool grouped = a.group < a.rows;
    if (a.m == 0 || a.rows == 0 || !whole || a.group == 0 || blocks.y > 65535) return -EINVAL;
    if (kern_slab_takes(shape, a.k_blocks) && (!grouped || a.group % 128 == 0))
        return kern_slab_product_prompt(a, (cudaStream_t)stream);
    if (!tiles_taken(shape)) return -EINVAL;
    if (grouped && a.group % ROWS) return -EINVAL;
    if (shape.scale_rows && (a.w_first % PIECE || (grouped && a.w_group % PIECE))) return -EINVAL;
    BY_DTYPE(a.w.dtype, product_tile, blocks, stream, a)
    return kern_launched();
}
