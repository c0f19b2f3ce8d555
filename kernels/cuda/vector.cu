/* Norms, rotation, the latent cache's writer, the sum of expert outputs, greedy sampling. */
#include "kernels/cuda/math.cuh"

namespace
{

const unsigned THREADS = 256, WARPS = THREADS / WARP;
const uint32_t EXPONENT = 0x7f800000; /* all set: infinite or NaN */

/* 1 / sqrt(mean of squares + eps) of a row, the same bits in every thread of the block. */
__device__ __forceinline__ float inverse_norm(const float *x, uint32_t n, float eps)
{
    KERN_SHARED(float, sums, WARPS);
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        sum = fmaf(x[i], x[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (unsigned w = 0; w < WARPS; w++)
        total = total + sums[w];
    return 1.0f / sqrtf(total / (float)n + eps);
}

__global__ void __launch_bounds__(THREADS) rmsnorm_rows(const kern_cuda_rmsnorm_args a)
{
    const float *x = a.x + blockIdx.x * a.x_stride;
    float *y = a.y + blockIdx.x * a.y_stride;
    const float inverse = inverse_norm(x, a.n, a.eps);
    for (uint32_t i = threadIdx.x; i < a.n; i += THREADS)
        y[i] = x[i] * inverse * a.weight[i];
}

__device__ __forceinline__ void rotate(float *first, float *second, float c, float s)
{
    const float a = *first * c - *second * s, b = *second * c + *first * s;
    *first = a;
    *second = b;
}

__global__ void __launch_bounds__(THREADS) rope_rows(const kern_cuda_rope_args a)
{
    const uint32_t pairs = a.dims / 2;
    const uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    const uint64_t row = at / ((uint64_t)a.heads * pairs);
    if (row >= a.rows) return;
    const uint32_t head = (uint32_t)(at / pairs % a.heads), i = (uint32_t)(at % pairs);
    float *x = a.x + row * a.row_stride + head * a.head_stride;
    const uint32_t low = a.interleaved ? 2 * i : i, high = a.interleaved ? 2 * i + 1 : i + pairs;
    rotate(&x[low], &x[high], a.cos[row * pairs + i], a.sin[row * pairs + i]);
}

__device__ __forceinline__ void keep(const kern_cuda_latent_args &a, void *to, uint32_t i,
                                     float value)
{
    if (a.bf16)
        ((uint16_t *)to)[i] = to_bf16(value);
    else
        ((float *)to)[i] = value;
}

__global__ void __launch_bounds__(THREADS) latent_rows(const kern_cuda_latent_args a)
{
    const uint32_t row = blockIdx.x, half = a.rope / 2;
    const float *x = a.kv + (size_t)row * (a.lora + a.rope), *key = x + a.lora;
    void *to = a.places[row];
    const float inverse = inverse_norm(x, a.lora, a.eps);
    for (uint32_t i = threadIdx.x; i < a.lora; i += THREADS)
        keep(a, to, i, x[i] * inverse * a.weight[i]);
    for (uint32_t i = threadIdx.x; i < half; i += THREADS) {
        const uint32_t low = a.interleaved ? 2 * i : i, high = a.interleaved ? 2 * i + 1 : i + half;
        float first = key[low], second = key[high];
        rotate(&first, &second, a.cos[(size_t)row * half + i], a.sin[(size_t)row * half + i]);
        keep(a, to, a.lora + low, first);
        keep(a, to, a.lora + high, second);
    }
}

__global__ void __launch_bounds__(THREADS) combine_rows(const kern_cuda_combine_args a)
{
    const uint32_t row = blockIdx.y, i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.hidden) return;
    const uint32_t count = a.row_pair_count[row];
    float sum = 0;
    for (uint32_t p = 0; p < count; p++) {
        const uint32_t pair = a.row_pairs[(size_t)row * a.top_k + p];
        sum = fmaf(a.pair_weight[pair], a.pair_out[(size_t)pair * a.hidden + i], sum);
    }
    if (a.add) sum = sum + a.add[(size_t)row * a.hidden + i];
    a.out[(size_t)row * a.hidden + i] = sum;
}

__device__ __forceinline__ bool beats(float value, uint32_t id, float other, uint32_t other_id)
{
    return value > other || (value == other && id < other_id);
}

__global__ void __launch_bounds__(THREADS) greedy_rows(const kern_cuda_greedy_args a)
{
    KERN_SHARED(float, values, WARPS);
    KERN_SHARED(uint32_t, winners, WARPS);
    KERN_SHARED(uint32_t, finite, WARPS);
    const float *logits = a.logits + (size_t)blockIdx.x * a.n;
    float best = -INFINITY;
    uint32_t id = KERN_CUDA_NO_ID;
    bool numbers = true;
    for (uint32_t i = threadIdx.x; i < a.n; i += THREADS) {
        const float logit = logits[i];
        if (beats(logit, i, best, id)) best = logit, id = i;
        numbers = numbers && (__float_as_uint(logit) & EXPONENT) != EXPONENT;
    }
#pragma unroll
    for (int with = WARP / 2; with > 0; with /= 2) {
        const float other = __shfl_xor_sync(FULL, best, with);
        const uint32_t other_id = __shfl_xor_sync(FULL, id, with);
        if (beats(other, other_id, best, id)) best = other, id = other_id;
    }
    numbers = __ballot_sync(FULL, numbers) == FULL;
    if (threadIdx.x % WARP == 0) {
        values[threadIdx.x / WARP] = best;
        winners[threadIdx.x / WARP] = id;
        finite[threadIdx.x / WARP] = numbers;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (unsigned w = 1; w < WARPS; w++) {
        const float other = values[w];
        const uint32_t other_id = winners[w];
        if (beats(other, other_id, best, id)) best = other, id = other_id;
        numbers = numbers && finite[w];
    }
    a.ids[blockIdx.x] = numbers ? id : KERN_CUDA_NO_ID;
}

} // namespace

int kern_cuda_rmsnorm(const struct kern_cuda_rmsnorm_args *args, void *stream)
{
    const kern_cuda_rmsnorm_args a = *args;
    if (a.rows == 0 || a.n == 0) return -EINVAL;
    KERN_LAUNCH(rmsnorm_rows, dim3(a.rows), dim3(THREADS), 0, (cudaStream_t)stream, a);
    return kern_launched();
}

int kern_cuda_rope(const struct kern_cuda_rope_args *args, void *stream)
{
    const kern_cuda_rope_args a = *args;
    const uint64_t items = (uint64_t)a.rows * a.heads * (a.dims / 2);
    const uint64_t blocks = (items + THREADS - 1) / THREADS;
    if (items == 0 || a.dims % 2 || blocks > INT32_MAX) return -EINVAL;
    KERN_LAUNCH(rope_rows, dim3((unsigned)blocks), dim3(THREADS), 0, (cudaStream_t)stream, a);
    return kern_launched();
}

int kern_cuda_latent(const struct kern_cuda_latent_args *args, void *stream)
{
    const kern_cuda_latent_args a = *args;
    if (a.rows == 0 || a.lora == 0 || a.rope % 2) return -EINVAL;
    KERN_LAUNCH(latent_rows, dim3(a.rows), dim3(THREADS), 0, (cudaStream_t)stream, a);
    return kern_launched();
}

int kern_cuda_combine(const struct kern_cuda_combine_args *args, void *stream)
{
    const kern_cuda_combine_args a = *args;
    if (a.rows == 0 || a.rows > 65535 || a.hidden == 0) return -EINVAL;
    KERN_LAUNCH(combine_rows, dim3((a.hidden + THREADS - 1) / THREADS, a.rows), dim3(THREADS), 0,
                (cudaStream_t)stream, a);
    return kern_launched();
}

int kern_cuda_greedy(const struct kern_cuda_greedy_args *args, void *stream)
{
    const kern_cuda_greedy_args a = *args;
    if (a.rows == 0 || a.n == 0) return -EINVAL;
    KERN_LAUNCH(greedy_rows, dim3(a.rows), dim3(THREADS), 0, (cudaStream_t)stream, a);
    return kern_launched();
}
