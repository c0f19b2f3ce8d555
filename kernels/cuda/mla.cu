/* Latent attention of DeepSeek, absorbed: every head of a row reads the same latent cache, so a
 * block of threads brings a tile of tokens into shared memory once, two tiles deep by cp.async, and
 * eight warps use it: eight heads of one row (decode), or one head of eight rows of a sequence
 * (prefill). A warp keeps its query and its sums in registers.
 *
 * Both walk the same tiles and fold at the same splits, so a token's bits do not depend on whether
 * it came in a prompt. */
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/math.cuh"

namespace
{

const unsigned THREADS = 256, WARPS = THREADS / WARP, TILE = 8, DEPTH = 2;
static_assert((int)WARPS == (int)KERN_CUDA_QUERIES, "prefill takes a row a warp");
static_assert(KERN_CUDA_SPLIT % TILE == 0, "a split is whole tiles");

template <int A> struct sums {
    float highest, sum, acc[A];
};

template <int A> __device__ __forceinline__ void sums_clear(sums<A> &s)
{
    s.highest = -INFINITY;
    s.sum = 0;
#pragma unroll
    for (int i = 0; i < A; i++)
        s.acc[i] = 0;
}

/* Where a token's latent begins. */
template <class C>
__device__ __forceinline__ const C *token_at(const kern_cuda_mla &a, const void *const *blocks,
                                             uint32_t token)
{
    const C *block = (const C *)blocks[token / a.block_tokens];
    return block + (size_t)(token % a.block_tokens) * (a.lora + a.rope);
}

/* Asks for tile [begin, begin + count) into `to`; one group of cp.async. */
template <class C>
__device__ __forceinline__ void tile_ask(const kern_cuda_mla &a, const void *const *blocks,
                                         uint32_t begin, uint32_t count, kern_shared_ptr<C> to)
{
    const uint32_t width = a.lora + a.rope, pieces = width * (uint32_t)sizeof(C) / 16;
    const uint32_t step = 16 / (uint32_t)sizeof(C);
    for (uint32_t i = threadIdx.x; i < count * pieces; i += THREADS) {
        const uint32_t t = i / pieces, p = i % pieces;
        kern_async_copy16(to + (t * width + p * step),
                          token_at<C>(a, blocks, begin + t) + p * step);
    }
    kern_async_commit();
}

__device__ __forceinline__ float cached(float value)
{
    return value;
}

__device__ __forceinline__ float cached(uint16_t code)
{
    return from_bf16(code);
}

/* Takes `count` tokens of a tile into a warp's sums. */
template <class C, int Q, int A>
__device__ __forceinline__ void tile_attend(sums<A> &s, const float (&q)[Q],
                                            kern_shared_ptr<C> tile, uint32_t count,
                                            const kern_cuda_mla &a)
{
    const uint32_t lane = threadIdx.x % WARP, width = a.lora + a.rope;
    float score[TILE], next = s.highest;
#pragma unroll
    for (unsigned t = 0; t < TILE; t++) {
        score[t] = -INFINITY;
        if (t >= count) continue;
        float dot = 0;
#pragma unroll
        for (int i = 0; i < Q; i++) {
            const uint32_t c = lane + WARP * (uint32_t)i;
            if (c < width) dot = fmaf(q[i], cached((C)tile[t * width + c]), dot);
        }
        score[t] = warp_sum(dot) * a.scale;
        next = score[t] > next ? score[t] : next;
    }
    const float shrink = exp_same(s.highest - next);
    s.highest = next;
    s.sum = s.sum * shrink;
#pragma unroll
    for (int i = 0; i < A; i++)
        s.acc[i] = s.acc[i] * shrink;
#pragma unroll
    for (unsigned t = 0; t < TILE; t++) {
        if (t >= count) continue;
        const float p = exp_same(score[t] - next);
        s.sum = s.sum + p;
#pragma unroll
        for (int i = 0; i < A; i++) {
            const uint32_t c = lane + WARP * (uint32_t)i;
            if (c < a.lora) s.acc[i] = fmaf(p, cached((C)tile[t * width + c]), s.acc[i]);
        }
    }
}

/* What two ranges of tokens are worth against each other. */
__device__ __forceinline__ void fold_factors(float &highest, float part_highest, float &keep,
                                             float &take)
{
    const float next = part_highest > highest ? part_highest : highest;
    keep = exp_same(highest - next);
    take = exp_same(part_highest - next);
    highest = next;
}

template <class C, int Q>
__device__ __forceinline__ void query_load(float (&q)[Q], const kern_cuda_mla &a, uint32_t row,
                                           uint32_t head)
{
    const uint32_t width = a.lora + a.rope;
    const float *from = a.q + ((size_t)row * a.heads + head) * width;
#pragma unroll
    for (int i = 0; i < Q; i++) {
        const uint32_t c = threadIdx.x % WARP + WARP * (uint32_t)i;
        q[i] = c < width ? from[c] : 0.0f;
    }
}

/* Walks tokens [begin, end) of a sequence; the warp sees those before `seen`. */
template <class C, int Q, int A>
__device__ __forceinline__ void range_attend(sums<A> &s, const float (&q)[Q],
                                             const kern_cuda_mla &a, const void *const *blocks,
                                             uint32_t begin, uint32_t end, uint32_t seen)
{
    KERN_SHARED_DYNAMIC(C, tiles);
    const uint32_t tile_size = TILE * (a.lora + a.rope);
    uint32_t turn = 0;
    tile_ask<C>(a, blocks, begin, end - begin < TILE ? end - begin : TILE, tiles + 0);
    for (uint32_t at = begin; at < end; at += TILE, turn ^= 1u) {
        const uint32_t next = at + TILE;
        if (next < end) {
            tile_ask<C>(a, blocks, next, end - next < TILE ? end - next : TILE,
                        tiles + (turn ^ 1u) * tile_size);
            KERN_ASYNC_WAIT(1);
        } else {
            KERN_ASYNC_WAIT(0);
        }
        __syncthreads();
        if (at < seen) {
            const uint32_t most = end - at < TILE ? end - at : TILE;
            tile_attend<C, Q, A>(s, q, tiles + turn * tile_size,
                                 seen - at < most ? seen - at : most, a);
        }
        __syncthreads(); /* nobody still reads what is asked for next */
    }
}

/* Block = a split of one row, eight heads. Leaves maximum, sum and sums of values in `work`. */
template <class C, int Q, int A>
__global__ void __launch_bounds__(THREADS) mla_split(const kern_cuda_mla a)
{
    const uint32_t row = blockIdx.z, head = blockIdx.y * WARPS + threadIdx.x / WARP;
    const uint32_t tokens = a.row_tokens[row], begin = blockIdx.x * KERN_CUDA_SPLIT;
    if (begin >= tokens) return;
    const uint32_t end =
        tokens - begin < KERN_CUDA_SPLIT ? tokens : begin + (uint32_t)KERN_CUDA_SPLIT;
    const uint32_t used = head < a.heads ? head : a.heads - 1; /* warps must meet at barriers */
    const void *const *blocks = a.blocks + (size_t)a.row_member[row] * a.blocks_per_seq;
    float q[Q];
    sums<A> s;
    sums_clear(s);
    query_load<C, Q>(q, a, row, used);
    range_attend<C, Q, A>(s, q, a, blocks, begin, end, end);
    if (head >= a.heads) return;
    float *to = a.work + (((size_t)row * a.heads + head) * gridDim.x + blockIdx.x) * (a.lora + 2);
#pragma unroll
    for (int i = 0; i < A; i++) {
        const uint32_t c = threadIdx.x % WARP + WARP * (uint32_t)i;
        if (c < a.lora) to[2 + c] = s.acc[i];
    }
    if (threadIdx.x % WARP == 0) {
        to[0] = s.highest;
        to[1] = s.sum;
    }
}

/* Block = one head of one row: its splits, ascending. */
__global__ void __launch_bounds__(THREADS) mla_fold(const kern_cuda_mla a, uint32_t splits_max)
{
    const uint32_t head = blockIdx.x, row = blockIdx.y;
    const uint32_t splits = (a.row_tokens[row] + KERN_CUDA_SPLIT - 1) / KERN_CUDA_SPLIT;
    const float *from = a.work + ((size_t)row * a.heads + head) * splits_max * (a.lora + 2);
    for (uint32_t c = threadIdx.x; c < a.lora; c += THREADS) {
        float highest = -INFINITY, sum = 0, acc = 0, keep, take;
        for (uint32_t s = 0; s < splits; s++) {
            const float *part = from + (size_t)s * (a.lora + 2);
            fold_factors(highest, part[0], keep, take);
            sum = fmaf(part[1], take, sum * keep);
            acc = fmaf(part[2 + c], take, acc * keep);
        }
        a.out[((size_t)row * a.heads + head) * a.lora + c] = acc / sum;
    }
}

/* Block = one head of up to eight rows of one sequence; folds as it goes. */
template <class C, int Q, int A>
__global__ void __launch_bounds__(THREADS, 1) mla_tile(const kern_cuda_mla a)
{
    const kern_cuda_run tile = a.tiles[blockIdx.x];
    const uint32_t head = blockIdx.y, warp = threadIdx.x / WARP;
    const bool used = warp < tile.count;
    const uint32_t row = tile.first + (used ? warp : 0);
    const uint32_t seen = used ? a.row_tokens[row] : 0;
    const void *const *blocks = a.blocks + (size_t)a.row_member[tile.first] * a.blocks_per_seq;
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < tile.count; i++)
        tokens = a.row_tokens[tile.first + i] > tokens ? a.row_tokens[tile.first + i] : tokens;
    float q[Q];
    query_load<C, Q>(q, a, row, head);
    sums<A> all;
    sums_clear(all);
    for (uint32_t begin = 0; begin < tokens; begin += KERN_CUDA_SPLIT) {
        const uint32_t end =
            tokens - begin < KERN_CUDA_SPLIT ? tokens : begin + (uint32_t)KERN_CUDA_SPLIT;
        sums<A> s;
        sums_clear(s);
        range_attend<C, Q, A>(s, q, a, blocks, begin, end, seen);
        if (begin >= seen) continue;
        float keep, take;
        fold_factors(all.highest, s.highest, keep, take);
        all.sum = fmaf(s.sum, take, all.sum * keep);
#pragma unroll
        for (int i = 0; i < A; i++)
            all.acc[i] = fmaf(s.acc[i], take, all.acc[i] * keep);
    }
    if (!used) return;
#pragma unroll
    for (int i = 0; i < A; i++) {
        const uint32_t c = threadIdx.x % WARP + WARP * (uint32_t)i;
        if (c < a.lora) a.out[((size_t)row * a.heads + head) * a.lora + c] = all.acc[i] / all.sum;
    }
}

bool mla_taken(const kern_cuda_mla &a)
{
    return a.rows > 0 && a.rows <= 65535 && a.heads > 0 && a.heads <= 65535 && a.lora > 0 &&
           a.lora <= KERN_CUDA_LATENT_MAX && a.lora + a.rope <= KERN_CUDA_WIDTH_MAX &&
           (a.lora + a.rope) % 8 == 0 && a.block_tokens > 0 && a.tokens_max > 0;
}

int fold_launch(const kern_cuda_mla &args, cudaStream_t stream)
{
    const kern_cuda_mla a = args;
    const uint32_t splits = (a.tokens_max + KERN_CUDA_SPLIT - 1) / KERN_CUDA_SPLIT;
    KERN_LAUNCH(mla_fold, dim3(a.heads, a.rows), dim3(THREADS), 0, stream, a, splits);
    return kern_launched();
}

template <class C, int Q, int A> int decode_launch(const kern_cuda_mla &args, cudaStream_t stream)
{
    const kern_cuda_mla a = args;
    const uint32_t splits = (a.tokens_max + KERN_CUDA_SPLIT - 1) / KERN_CUDA_SPLIT;
    const size_t bytes = DEPTH * TILE * (a.lora + a.rope) * sizeof(C);
    void (*split)(kern_cuda_mla) = mla_split<C, Q, A>;
    KERN_LAUNCH(split, dim3(splits, (a.heads + WARPS - 1) / WARPS, a.rows), dim3(THREADS), bytes,
                stream, a);
    return fold_launch(a, stream);
}

template <class C, int Q, int A> int prefill_launch(const kern_cuda_mla &args, cudaStream_t stream)
{
    const kern_cuda_mla a = args;
    const size_t bytes = DEPTH * TILE * (a.lora + a.rope) * sizeof(C);
    void (*tile)(kern_cuda_mla) = mla_tile<C, Q, A>;
    KERN_LAUNCH(tile, dim3(a.tile_count, a.heads), dim3(THREADS), bytes, stream, a);
    return kern_launched();
}

/* Registers for a small model and for one of V3's size: 4 x 32 and 18 x 32 values. */
const uint32_t SMALL = 4 * WARP;

} // namespace

size_t kern_cuda_mla_work(const struct kern_cuda_mla *args)
{
    const size_t splits = (args->tokens_max + KERN_CUDA_SPLIT - 1) / KERN_CUDA_SPLIT;
    return (size_t)args->rows * args->heads * splits * (args->lora + 2);
}

int kern_cuda_mla_decode(const struct kern_cuda_mla *args, void *stream)
{
    cudaStream_t on = (cudaStream_t)stream;
    if (!mla_taken(*args)) return -EINVAL;
    if (kern_heads_takes(*args)) {
        bool folded;
        const int rc = kern_heads_decode(*args, on, &folded);
        return rc < 0 || folded ? rc : fold_launch(*args, on);
    }
    if (args->lora + args->rope <= SMALL)
        return args->bf16 ? decode_launch<uint16_t, 4, 4>(*args, on)
                          : decode_launch<float, 4, 4>(*args, on);
    return args->bf16 ? decode_launch<uint16_t, 18, 16>(*args, on)
                      : decode_launch<float, 18, 16>(*args, on);
}

int kern_cuda_mla_prefill(const struct kern_cuda_mla *args, void *stream)
{
    cudaStream_t on = (cudaStream_t)stream;
    if (!mla_taken(*args) || args->tile_count == 0) return -EINVAL;
    if (kern_heads_takes(*args)) return kern_heads_prefill(*args, on);
    if (args->lora + args->rope <= SMALL)
        return args->bf16 ? prefill_launch<uint16_t, 4, 4>(*args, on)
                          : prefill_launch<float, 4, 4>(*args, on);
    return args->bf16 ? prefill_launch<uint16_t, 18, 16>(*args, on)
                      : prefill_launch<float, 18, 16>(*args, on);
}
