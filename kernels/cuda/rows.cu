/* Products that are bound by reading weights: a warp a row, weights decoded in registers on their
 * way, straight from where the expert lies. Gate, up and SiLU are one pass. */
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/slab_calls.cuh"

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

/* The same for one to ABSORB_ROWS rows at a time, four columns a thread, `AHEAD` rows of the matrix
 * on their way. */
const unsigned ABSORB_THREADS = 128, ABSORB_ROWS = 4, ABSORB_NOPE = 256;

template <int DTYPE>
__device__ __forceinline__ void load_four(unsigned (&word)[2], const uint8_t *at)
{
    if (DTYPE == KERN_BF16) {
        const uint2 v = *(const uint2 *)(const void *)at;
        word[0] = v.x;
        word[1] = v.y;
    } else {
        word[0] = *(const unsigned *)(const void *)at;
    }
}

template <int DTYPE, unsigned M, unsigned AHEAD>
__global__ void __launch_bounds__(ABSORB_THREADS) absorb_four(const kern_cuda_absorb_args a)
{
    KERN_SHARED(float, query, M *ABSORB_NOPE);
    const uint32_t c = 4 * (blockIdx.x * ABSORB_THREADS + threadIdx.x), h = blockIdx.y;
    const uint32_t row0 = blockIdx.z * M, lora = a.w.cols, wide = a.nope + a.rope;
    const uint32_t count = a.rows - row0 < M ? a.rows - row0 : (uint32_t)M;
    for (uint32_t i = threadIdx.x; i < count * wide; i += ABSORB_THREADS) {
        const uint32_t m = i / wide, d = i % wide;
        const float value = a.q[((size_t)(row0 + m) * a.heads + h) * wide + d];
        if (d < a.nope)
            query[m * ABSORB_NOPE + d] = value;
        else if (blockIdx.x == 0)
            a.q_latent[((size_t)(row0 + m) * a.heads + h) * (lora + a.rope) + lora + d - a.nope] =
                value;
    }
    __syncthreads();
    if (c >= lora) return;
    const uint32_t w0 = h * a.w_head, scale_rows = a.w.scales ? a.w.scale_rows : 0;
    const uint32_t stride = scale_rows ? (lora + a.w.scale_cols - 1) / a.w.scale_cols : 0;
    const uint32_t scale_at = scale_rows ? c / a.w.scale_cols : 0;
    const uint8_t *data =
        (const uint8_t *)a.w.data + w0 * row_bytes<DTYPE>(lora) + column_at<DTYPE>(c);
    float sum[M][4];
#pragma unroll
    for (unsigned i = 0; i < M * 4; i++)
        sum[i / 4][i % 4] = 0;
    for (uint32_t d0 = 0; d0 < a.nope; d0 += AHEAD) {
        unsigned word[AHEAD][2];
        float scale[AHEAD];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const uint32_t d = d0 + i < a.nope ? d0 + i : a.nope - 1;
            load_four<DTYPE>(word[i], data + d * row_bytes<DTYPE>(lora));
        }
        /* Most often one scale has all these rows. */
        const uint32_t last = d0 + AHEAD < a.nope ? d0 + AHEAD - 1 : a.nope - 1;
        const uint32_t first_scale = scale_rows ? (w0 + d0) / scale_rows : 0;
        const bool one = scale_rows && first_scale == (w0 + last) / scale_rows;
        const float scale_all =
            one ? load_scale<DTYPE>((const uint8_t *)a.w.scales, first_scale * stride + scale_at)
                : 1.0f;
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const uint32_t d = d0 + i < a.nope ? d0 + i : a.nope - 1;
            scale[i] = one || !scale_rows
                           ? scale_all
                           : load_scale<DTYPE>((const uint8_t *)a.w.scales,
                                               (w0 + d) / scale_rows * stride + scale_at);
        }
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            float w[4];
            if (d0 + i >= a.nope) continue;
            decode_word<DTYPE>(word[i][0], 0, w);
            if (DTYPE == KERN_BF16) decode_word<DTYPE>(word[i][1], 0, w + 2);
#pragma unroll
            for (unsigned m = 0; m < M; m++) {
                if (m >= count) continue;
                const float q = query[m * ABSORB_NOPE + d0 + i];
                const float factor = scale_rows ? q * scale[i] : q;
#pragma unroll
                for (unsigned j = 0; j < 4; j++)
                    sum[m][j] = fmaf(w[j], factor, sum[m][j]);
            }
        }
    }
#pragma unroll
    for (unsigned m = 0; m < M; m++) {
        if (m >= count) continue;
        float *to = a.q_latent + ((size_t)(row0 + m) * a.heads + h) * (lora + a.rope) + c;
#pragma unroll
        for (unsigned j = 0; j < 4; j++)
            to[j] = sum[m][j];
    }
}

template <int DTYPE> void absorb_launch(const kern_cuda_absorb_args &args, cudaStream_t stream)
{
    const kern_cuda_absorb_args a = args;
    const uint32_t many = a.rows > 1 ? ABSORB_ROWS : 1;
    const dim3 blocks((a.w.cols + 4 * ABSORB_THREADS - 1) / (4 * ABSORB_THREADS), a.heads,
                      (a.rows + many - 1) / many);
    void (*kernel)(kern_cuda_absorb_args) =
        many == 1 ? absorb_four<DTYPE, 1, 32> : absorb_four<DTYPE, ABSORB_ROWS, 16>;
    KERN_LAUNCH(kernel, blocks, dim3(ABSORB_THREADS), 0, stream, a);
}

/* The bits are those of absorb_rows, so where the matrix lies may decide. */
bool absorb_four_taken(const kern_cuda_absorb_args &a)
{
    const bool bf16 = a.w.dtype == KERN_BF16;
    return (bf16 || a.w.dtype == KERN_FP8_E4M3 || a.w.dtype == KERN_INT8) && a.w.cols % 4 == 0 &&
           ((uintptr_t)a.w.data & (bf16 ? 7u : 3u)) == 0 && a.nope <= ABSORB_NOPE && a.nope > 0 &&
           (!a.w.scales || a.w.scale_cols % 4 == 0);
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
    if (kern_slab_takes(a.shape, 1)) return kern_slab_experts_in(a, (cudaStream_t)stream);
    BY_DTYPE(a.shape.dtype, experts_in_rows, blocks, stream, a)
    return kern_launched();
}

int kern_cuda_experts_out(const struct kern_cuda_experts_out_args *args, void *stream)
{
    const kern_cuda_experts_out_args a = *args;
    const dim3 blocks((a.shape.rows + WARPS - 1) / WARPS, a.run_count);
    if (!shape_taken(a.shape) || a.run_count == 0 || a.run_count > 65535) return -EINVAL;
    if (kern_slab_takes(a.shape, 1)) return kern_slab_experts_out(a, (cudaStream_t)stream);
    BY_DTYPE(a.shape.dtype, experts_out_rows, blocks, stream, a)
    return kern_launched();
}

int kern_cuda_product(const struct kern_cuda_product_args *args, void *stream)
{
    const kern_cuda_product_args a = *args;
    const bool whole = a.k_blocks == 1 || a.k_blocks == KERN_RANK_BLOCKS;
    if (!shape_taken(shape_of(a.w)) || a.m == 0 || a.rows == 0 || a.group == 0 || !whole)
        return -EINVAL;
    /* A block's 32 rows must have one x. */
    if (kern_slab_takes(shape_of(a.w), a.k_blocks) && (a.group >= a.rows || a.group % 32 == 0))
        return kern_slab_product(a, (cudaStream_t)stream);
    BY_DTYPE(a.w.dtype, product_rows, dim3((a.rows + WARPS - 1) / WARPS), stream, a)
    return kern_launched();
}

int kern_cuda_absorb(const struct kern_cuda_absorb_args *args, void *stream)
{
    const kern_cuda_absorb_args a = *args;
    const dim3 blocks((a.w.cols + a.rope + THREADS - 1) / THREADS, a.heads, a.rows);
    if (a.rows == 0 || a.rows > 65535 || a.heads == 0 || a.heads > 65535) return -EINVAL;
    if (!shape_taken(shape_of(a.w))) return -EINVAL;
    if (absorb_four_taken(a)) {
        if (a.w.dtype == KERN_BF16)
            absorb_launch<KERN_BF16>(a, (cudaStream_t)stream);
        else if (a.w.dtype == KERN_INT8)
            absorb_launch<KERN_INT8>(a, (cudaStream_t)stream);
        else
            absorb_launch<KERN_FP8_E4M3>(a, (cudaStream_t)stream);
        return kern_launched();
    }
    BY_DTYPE(a.w.dtype, absorb_rows, blocks, stream, a)
    return kern_launched();
}
