/* Kernels that only tests need: reading, copying, filling, spinning, and what the units can do. */
#include <cuda_bf16.h>
#include <mma.h>

#include "tests/gpu/card.h"

namespace
{

const unsigned THREADS = 512, AHEAD = 4;

__global__ void __launch_bounds__(THREADS) read_all(const uint4 *from, size_t n, uint4 *sink)
{
    const size_t step = (size_t)gridDim.x * THREADS;
    uint4 sum = make_uint4(0, 0, 0, 0);
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < n; i += AHEAD * step) {
        uint4 v[AHEAD];
#pragma unroll
        for (unsigned j = 0; j < AHEAD; j++)
            v[j] = i + j * step < n ? __ldcs(from + i + j * step) : sum;
#pragma unroll
        for (unsigned j = 0; j < AHEAD; j++)
            sum = make_uint4(sum.x ^ v[j].x, sum.y + v[j].y, sum.z ^ v[j].z, sum.w + v[j].w);
    }
    if (sum.x == 0x12345678u && sum.y == 0x9abcdef0u && sum.z == 0x13579bdfu && sum.w == 1u)
        *sink = sum;
}

__global__ void __launch_bounds__(THREADS) copy_all(uint4 *to, const uint4 *from, size_t n)
{
    const size_t step = (size_t)gridDim.x * THREADS;
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < n; i += AHEAD * step) {
        uint4 v[AHEAD];
#pragma unroll
        for (unsigned j = 0; j < AHEAD; j++)
            if (i + j * step < n) v[j] = __ldcs(from + i + j * step);
#pragma unroll
        for (unsigned j = 0; j < AHEAD; j++)
            if (i + j * step < n) __stcs(to + i + j * step, v[j]);
    }
}

__device__ __forceinline__ uint32_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)(x ^ x >> 31);
}

__global__ void __launch_bounds__(THREADS) fill_all(uint32_t *to, size_t n, int fill, uint32_t seed)
{
    const size_t step = (size_t)gridDim.x * THREADS;
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < n; i += step) {
        uint32_t v = mix((uint64_t)seed << 40 ^ i);
        if (fill == CARD_FILL_FP8) v &= 0xb7b7b7b7u; /* below 2 */
        if (fill == CARD_FILL_BF16) v = (v & 0x80ff80ffu) | 0x3f003f00u;
        if (fill == CARD_FILL_F32) v = (v & 0x80ffffffu) | 0x3f000000u;
        if (fill == CARD_FILL_SCALES) v = 0x3c103c10u; /* as f32 and as two BF16 about 0.009 */
        to[i] = v;
    }
}

__global__ void keep_slow(uint8_t *to, const uint8_t *from, size_t bytes, uint64_t spin_ns)
{
    uint64_t begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    do
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - begin < spin_ns);
    for (size_t i = threadIdx.x; i < bytes; i += blockDim.x)
        to[i] = from[i];
}

const unsigned ROUNDS = 2048, CHAINS = 8;

__global__ void __launch_bounds__(256) fma_all(float *sink, float a, float b)
{
    float v[CHAINS];
#pragma unroll
    for (unsigned i = 0; i < CHAINS; i++)
        v[i] = (float)(threadIdx.x + i);
    for (unsigned r = 0; r < ROUNDS; r++)
#pragma unroll
        for (unsigned i = 0; i < CHAINS; i++)
            v[i] = fmaf(v[i], a, b);
    float sum = 0;
#pragma unroll
    for (unsigned i = 0; i < CHAINS; i++)
        sum += v[i];
    if (sum == 1.2345f) *sink = sum;
}

const unsigned MMA_ROUNDS = 1024, MMA_CHAINS = 4;

__global__ void __launch_bounds__(256) mma_all(float *sink)
{
    using namespace nvcuda;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> b;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[MMA_CHAINS];
    wmma::fill_fragment(a, __ushort_as_bfloat16((unsigned short)(0x3f80u + threadIdx.x)));
    wmma::fill_fragment(b, __ushort_as_bfloat16((unsigned short)(0x3f00u + threadIdx.x)));
#pragma unroll
    for (unsigned i = 0; i < MMA_CHAINS; i++)
        wmma::fill_fragment(sum[i], 0.0f);
    for (unsigned r = 0; r < MMA_ROUNDS; r++)
#pragma unroll
        for (unsigned i = 0; i < MMA_CHAINS; i++)
            wmma::mma_sync(sum[i], a, b, sum[i]);
    float all = 0;
#pragma unroll
    for (unsigned i = 0; i < MMA_CHAINS; i++)
        for (int e = 0; e < sum[i].num_elements; e++)
            all += sum[i].x[e];
    if (all == 1.2345f) *sink = all;
}

unsigned blocks_all()
{
    int count = 0;
    CARD(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
    return (unsigned)count;
}

/* Best of five launches, seconds. */
template <class F> double best_of(cudaStream_t stream, F launch)
{
    cudaEvent_t begin, end;
    double best = 1e9;
    CARD(cudaEventCreate(&begin));
    CARD(cudaEventCreate(&end));
    for (int i = 0; i < 6; i++) {
        float ms;
        CARD(cudaEventRecord(begin, stream));
        launch();
        CARD(cudaGetLastError());
        CARD(cudaEventRecord(end, stream));
        CARD(cudaEventSynchronize(end));
        CARD(cudaEventElapsedTime(&ms, begin, end));
        if (i > 0 && ms * 1e-3 < best) best = ms * 1e-3;
    }
    CARD(cudaEventDestroy(begin));
    CARD(cudaEventDestroy(end));
    return best;
}

} // namespace

void card_read(const void *from, size_t bytes, void *sink, cudaStream_t stream)
{
    read_all<<<blocks_all() * 4, THREADS, 0, stream>>>((const uint4 *)from, bytes / 16,
                                                       (uint4 *)sink);
    CARD(cudaGetLastError());
}

void card_copy(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    copy_all<<<blocks_all() * 4, THREADS, 0, stream>>>((uint4 *)to, (const uint4 *)from,
                                                       bytes / 16);
    CARD(cudaGetLastError());
}

void card_fill(void *to, size_t bytes, enum card_fill fill, uint32_t seed, cudaStream_t stream)
{
    fill_all<<<blocks_all() * 4, THREADS, 0, stream>>>((uint32_t *)to, bytes / 4, (int)fill, seed);
    CARD(cudaGetLastError());
}

void card_keep(void *to, const void *from, size_t bytes, uint64_t spin_ns, cudaStream_t stream)
{
    keep_slow<<<1, 128, 0, stream>>>((uint8_t *)to, (const uint8_t *)from, bytes, spin_ns);
    CARD(cudaGetLastError());
}

double card_peak_f32(cudaStream_t stream)
{
    const unsigned blocks = blocks_all() * 8;
    float *sink;
    CARD(cudaMalloc((void **)&sink, sizeof *sink));
    const double s =
        best_of(stream, [&] { fma_all<<<blocks, 256, 0, stream>>>(sink, 1.0001f, 0.5f); });
    CARD(cudaFree(sink));
    return 2.0 * blocks * 256 * ROUNDS * CHAINS / s;
}

double card_peak_mma(cudaStream_t stream)
{
    const unsigned blocks = blocks_all() * 4;
    float *sink;
    CARD(cudaMalloc((void **)&sink, sizeof *sink));
    const double s = best_of(stream, [&] { mma_all<<<blocks, 256, 0, stream>>>(sink); });
    CARD(cudaFree(sink));
    return 2.0 * 4096 * blocks * 8 * MMA_ROUNDS * MMA_CHAINS / s;
}
