/* Latent attention of DeepSeek-V3's shape over a BF16 cache, on tensor cores: a block takes 32
 * heads of one row, which all read the same latents, in tiles of 64 tokens.
 *
 *     scores   warp w: 16 heads x 64 tokens over a quarter of the 576 values; q in three BF16, two
 *              in registers, one in shared memory; the quarters meet in shared memory
 *     softmax  8 threads a head: running maximum and sum, p in two BF16
 *     values   warp w: 32 heads x latents 64 w .. 64 w + 63, summed in registers
 *
 * A row's splits are folded ascending, by the block that takes the whole row or by mla_fold: the
 * same operations, so decode and prefill agree in each bit. */
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/math.cuh"

namespace
{

const unsigned THREADS = 256, WARPS = THREADS / WARP, HEADS = 32, TILE = 64, DEPTH = 2;
const unsigned LORA = 512, WIDE = 576, QUARTERS = 4, STEPS = WIDE / QUARTERS / 16;
const unsigned ROW = WIDE / 2;    /* words of a token */
const unsigned SCORES = TILE + 8; /* words of a head's scores: no two in one bank */
const unsigned P_ROW = TILE / 2, P_ALL = HEADS * P_ROW; /* words of a head's p, of all */
const unsigned OUT_TILES = LORA / WARPS / 8;
static_assert(KERN_CUDA_SPLIT % TILE == 0, "a split is whole tiles");

/* Rows are 16-byte pieces whose place is crossed with the row: eight rows of one column lie in
 * different banks. */
__device__ __forceinline__ unsigned piece_at(unsigned row, unsigned piece, unsigned row_words)
{
    return row * row_words + (piece ^ (row & 7u)) * 4;
}

/* Asks for tokens [begin, begin + count), the rest of the tile is zero; one group of cp.async. */
__device__ __forceinline__ void tile_ask(const kern_cuda_mla &a, const void *const *blocks,
                                         uint32_t begin, uint32_t count,
                                         kern_shared_ptr<uint32_t> to)
{
    for (unsigned i = threadIdx.x; i < TILE * (ROW / 4); i += THREADS) {
        const unsigned t = i / (ROW / 4), p = i % (ROW / 4);
        if (t < count) {
            const uint32_t token = begin + t;
            const uint32_t *block = (const uint32_t *)blocks[token / a.block_tokens];
            kern_async_copy16(to + piece_at(t, p, ROW),
                              block + (size_t)(token % a.block_tokens) * ROW + 4 * p);
        } else {
            kern_shared_store2(to + piece_at(t, p, ROW), 0, 0);
            kern_shared_store2(to + (piece_at(t, p, ROW) + 2), 0, 0);
        }
    }
    kern_async_commit();
}

/* A warp's part of q: 16 heads, a quarter of the values, [step][high, low], and what is left of it
 * in `rest`, where each lane reads what it wrote. */
__device__ __forceinline__ void query_load(unsigned (&q)[STEPS][2][4],
                                           kern_shared_ptr<uint32_t> rest, const kern_cuda_mla &a,
                                           uint32_t row, uint32_t head0)
{
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        const uint32_t head = head0 + warp % 2 * 16 + g + 8 * half;
        const float *from = a.q +
                            ((size_t)row * a.heads + (head < a.heads ? head : a.heads - 1)) * WIDE +
                            warp / 2 * (STEPS * 16) + 2 * t;
#pragma unroll
        for (unsigned s = 0; s < STEPS; s++)
#pragma unroll
            for (unsigned e = 0; e < 2; e++) {
                const float x = from[s * 16 + e * 8], y = from[s * 16 + e * 8 + 1];
                const unsigned high = kern_bf16_pair(x, y);
                const float left_x = x - from_bf16(high & 0xffffu);
                const float left_y = y - __uint_as_float(high & 0xffff0000u);
                const unsigned low = kern_bf16_pair(left_x, left_y);
                q[s][0][half + 2 * e] = high;
                q[s][1][half + 2 * e] = low;
                rest[(s * THREADS + threadIdx.x) * 4 + half + 2 * e] = kern_bf16_pair(
                    left_x - from_bf16(low & 0xffffu), left_y - __uint_as_float(low & 0xffff0000u));
            }
    }
}

/* Scores of a warp's heads and quarter, into `scores`. */
__device__ __forceinline__ void tile_scores(const unsigned (&q)[STEPS][2][4],
                                            kern_shared_ptr<uint32_t> rest,
                                            kern_shared_ptr<uint32_t> tile,
                                            kern_shared_ptr<uint32_t> scores)
{
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quarter = warp / 2;
    const unsigned mat = lane / 8, token = mat / 2 * 8 + lane % 8;
    float s[TILE / 8][4];
#pragma unroll
    for (unsigned i = 0; i < TILE / 8 * 4; i++)
        s[i / 4][i % 4] = 0;
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
        const uint4 left = kern_shared_load4(rest + (k * THREADS + threadIdx.x) * 4);
        const unsigned third[4] = { left.x, left.y, left.z, left.w };
#pragma unroll
        for (unsigned n = 0; n < TILE / 8; n += 2) {
            unsigned b[4];
            kern_matrices(b,
                          tile + piece_at(n * 8 + token, (quarter * STEPS + k) * 2 + mat % 2, ROW));
#pragma unroll
            for (unsigned part = 0; part < 2; part++) {
                kern_mma(s[n], q[k][part], b[0], b[1]);
                kern_mma(s[n + 1], q[k][part], b[2], b[3]);
            }
            kern_mma(s[n], third, b[0], b[1]);
            kern_mma(s[n + 1], third, b[2], b[3]);
        }
    }
    const unsigned row = (quarter * HEADS + warp % 2 * 16 + lane / 4) * SCORES + lane % 4 * 2;
#pragma unroll
    for (unsigned n = 0; n < TILE / 8; n++) {
        kern_shared_store2(scores + (row + n * 8), __float_as_uint(s[n][0]),
                           __float_as_uint(s[n][1]));
        kern_shared_store2(scores + (row + n * 8 + 8 * SCORES), __float_as_uint(s[n][2]),
                           __float_as_uint(s[n][3]));
    }
}

/* Eight tokens of a thread's head: p into `p`, what the sums shrink by into `shrink`. */
__device__ __forceinline__ void tile_softmax(float &highest, float &sum, uint32_t count,
                                             float scale, kern_shared_ptr<uint32_t> scores,
                                             kern_shared_ptr<uint32_t> p,
                                             kern_shared_ptr<float> shrink)
{
    const unsigned head = threadIdx.x / 8, part = threadIdx.x % 8;
    float score[8], next = highest, mine = 0;
#pragma unroll
    for (unsigned i = 0; i < 8; i += 4) {
        float four[4];
#pragma unroll
        for (unsigned quarter = 0; quarter < QUARTERS; quarter++) {
            const uint4 v =
                kern_shared_load4(scores + ((quarter * HEADS + head) * SCORES + part * 8 + i));
#pragma unroll
            for (unsigned j = 0; j < 4; j++) {
                const float value = __uint_as_float(j == 0   ? v.x
                                                    : j == 1 ? v.y
                                                    : j == 2 ? v.z
                                                             : v.w);
                four[j] = quarter ? four[j] + value : value;
            }
        }
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            score[i + j] = part * 8 + i + j < count ? four[j] * scale : -INFINITY;
            next = score[i + j] > next ? score[i + j] : next;
        }
    }
#pragma unroll
    for (int with = 4; with > 0; with /= 2) {
        const float other = __shfl_xor_sync(FULL, next, with);
        next = other > next ? other : next;
    }
    unsigned high[4], low[4];
#pragma unroll
    for (unsigned i = 0; i < 8; i += 2) {
        const float x = part * 8 + i < count ? exp_same(score[i] - next) : 0.0f;
        const float y = part * 8 + i + 1 < count ? exp_same(score[i + 1] - next) : 0.0f;
        mine = mine + x;
        mine = mine + y;
        high[i / 2] = kern_bf16_pair(x, y);
        low[i / 2] = kern_bf16_pair(x - from_bf16(high[i / 2] & 0xffffu),
                                    y - __uint_as_float(high[i / 2] & 0xffff0000u));
    }
#pragma unroll
    for (int with = 4; with > 0; with /= 2)
        mine = mine + __shfl_xor_sync(FULL, mine, with);
    const float less = exp_same(highest - next);
    sum = sum * less + mine;
    highest = next;
    const unsigned at = piece_at(head, part, P_ROW);
    kern_shared_store2(p + at, high[0], high[1]);
    kern_shared_store2(p + (at + 2), high[2], high[3]);
    kern_shared_store2(p + (P_ALL + at), low[0], low[1]);
    kern_shared_store2(p + (P_ALL + at + 2), low[2], low[3]);
    if (part == 0) shrink[head] = less;
}

/* o = o * shrink + p x latents. */
__device__ __forceinline__ void tile_values(float (&o)[2][OUT_TILES][4],
                                            kern_shared_ptr<uint32_t> tile,
                                            kern_shared_ptr<uint32_t> p,
                                            kern_shared_ptr<float> shrink)
{
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, mat = lane / 8;
#pragma unroll
    for (unsigned m = 0; m < 2; m++) {
        const float low = shrink[m * 16 + lane / 4], high = shrink[m * 16 + lane / 4 + 8];
#pragma unroll
        for (unsigned i = 0; i < OUT_TILES * 4; i++)
            o[m][i / 4][i % 4] = o[m][i / 4][i % 4] * (i % 4 < 2 ? low : high);
    }
#pragma unroll
    for (unsigned k = 0; k < TILE / 16; k++) {
        unsigned a[2][2][4]; /* [16 heads][high, low] */
#pragma unroll
        for (unsigned i = 0; i < 4; i++)
            kern_matrices(a[i / 2][i % 2],
                          p + (i % 2 * P_ALL + piece_at(i / 2 * 16 + mat % 2 * 8 + lane % 8,
                                                        k * 2 + mat / 2, P_ROW)));
#pragma unroll
        for (unsigned n = 0; n < OUT_TILES; n += 2) {
            unsigned b[4];
            kern_matrices_turned(b, tile + piece_at(k * 16 + mat % 2 * 8 + lane % 8,
                                                    warp * OUT_TILES + n + mat / 2, ROW));
#pragma unroll
            for (unsigned m = 0; m < 2; m++)
#pragma unroll
                for (unsigned part = 0; part < 2; part++) {
                    kern_mma(o[m][n], a[m][part], b[0], b[1]);
                    kern_mma(o[m][n + 1], a[m][part], b[2], b[3]);
                }
        }
    }
}

/* Calls each(value, head of the block, latent) for what a thread holds of o. */
template <class F> __device__ __forceinline__ void each_value(float (&o)[2][OUT_TILES][4], F each)
{
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (unsigned i = 0; i < 2 * OUT_TILES * 4; i++) {
        const unsigned m = i / (OUT_TILES * 4), n = i / 4 % OUT_TILES, e = i % 4;
        each(o[m][n][e], m * 16 + lane / 4 + e / 2 * 8,
             (warp * OUT_TILES + n) * 8 + lane % 4 * 2 + e % 2);
    }
}

/* What a thread holds of o, by one pointer that walks the heads: an address each would not fit
 * into the registers of sm_100. */
__device__ __forceinline__ void split_store(const float (&o)[2][OUT_TILES][4], float *to,
                                            size_t stride, uint32_t heads)
{
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *place = to + lane / 4 * stride + (warp * OUT_TILES * 8 + lane % 4 * 2);
#pragma unroll
    for (unsigned h = 0; h < 4; h++, place += 8 * stride) {
        if (lane / 4 + 8 * h >= heads) return;
#pragma unroll
        for (unsigned n = 0; n < OUT_TILES; n++) {
            place[n * 8] = o[h / 2][n][h % 2 * 2];
            place[n * 8 + 1] = o[h / 2][n][h % 2 * 2 + 1];
        }
    }
}

/* One row: splits [first, first + most) into `work`, or (WHOLE) all of them, folded, into `out`. */
template <bool WHOLE>
__device__ __forceinline__ void row_attend(const kern_cuda_mla &a, uint32_t row, uint32_t head0,
                                           uint32_t first, uint32_t most, uint32_t splits_max)
{
    KERN_SHARED_DYNAMIC(uint32_t, tiles);
    KERN_SHARED(uint32_t, scores, QUARTERS * HEADS * SCORES);
    KERN_SHARED(uint32_t, p, 2 * P_ALL);
    KERN_SHARED(float, shrink, HEADS);
    KERN_SHARED(float, fold, 3 * HEADS); /* keep, take, sum */
    const uint32_t tokens = a.row_tokens[row];
    const uint32_t begin = first * KERN_CUDA_SPLIT;
    if (begin >= tokens) return;
    const uint32_t end =
        WHOLE || tokens - begin < most * KERN_CUDA_SPLIT ? tokens : begin + most * KERN_CUDA_SPLIT;
    const void *const *blocks = a.blocks + (size_t)a.row_member[row] * a.blocks_per_seq;
    const unsigned my_head = threadIdx.x / 8;
    unsigned q[STEPS][2][4];
    float o[2][OUT_TILES][4], highest = -INFINITY, sum = 0, all_highest = -INFINITY, all_sum = 0;
    tile_ask(a, blocks, begin, end - begin < TILE ? end - begin : (uint32_t)TILE, tiles + 0);
    const kern_shared_ptr<uint32_t> rest = tiles + DEPTH * (TILE * ROW);
    query_load(q, rest, a, row, head0);
    uint32_t turn = 0;
    for (uint32_t at = begin; at < end; at += TILE, turn ^= 1u) {
        const uint32_t next = at + TILE, count = end - at < TILE ? end - at : (uint32_t)TILE;
        const kern_shared_ptr<uint32_t> tile = tiles + turn * (TILE * ROW);
        if (at % KERN_CUDA_SPLIT == 0) {
            highest = -INFINITY;
            sum = 0;
            each_value(o, [](float &value, unsigned, unsigned) { value = 0; });
        }
        KERN_ASYNC_WAIT(0);
        __syncthreads(); /* the tile is here, and nobody still reads the other one */
        if (next < end)
            tile_ask(a, blocks, next, end - next < TILE ? end - next : (uint32_t)TILE,
                     tiles + (turn ^ 1u) * (TILE * ROW));
        tile_scores(q, rest, tile, scores + 0);
        __syncthreads();
        tile_softmax(highest, sum, count, a.scale, scores + 0, p + 0, shrink + 0);
        __syncthreads();
        tile_values(o, tile, p + 0, shrink + 0);
        if (next < end && next % KERN_CUDA_SPLIT) continue;
        if (!WHOLE) {
            const uint32_t split = at / KERN_CUDA_SPLIT;
            const size_t stride = (size_t)splits_max * (LORA + 2); /* of a head */
            float *to = a.work + ((size_t)row * a.heads + head0) * stride +
                        (size_t)split * (LORA + 2);
            split_store(o, to + 2, stride, a.heads - head0);
            if (threadIdx.x % 8 == 0 && head0 + my_head < a.heads) {
                to[my_head * stride] = highest;
                to[my_head * stride + 1] = sum;
            }
            continue;
        }
        const float both = highest > all_highest ? highest : all_highest;
        const float keep = exp_same(all_highest - both), take = exp_same(highest - both);
        all_highest = both;
        all_sum = fmaf(sum, take, all_sum * keep);
        if (threadIdx.x % 8 == 0) {
            fold[my_head] = keep;
            fold[HEADS + my_head] = take;
            fold[2 * HEADS + my_head] = all_sum;
        }
        __syncthreads();
        float *to = a.out + ((size_t)row * a.heads + head0) * LORA;
        const bool only = at < KERN_CUDA_SPLIT, last = next >= end;
        each_value(o, [&](float &value, unsigned head, unsigned c) {
            if (head0 + head >= a.heads) return;
            float *place = to + (size_t)head * LORA + c;
            const float before = only ? 0.0f : *place;
            const float now = fmaf(value, fold[HEADS + head], before * fold[head]);
            *place = last ? now / fold[2 * HEADS + head] : now;
        });
    }
}

__global__ void __launch_bounds__(THREADS, 1)
    mla_heads_split(const kern_cuda_mla a, uint32_t per_block, uint32_t splits_max)
{
    row_attend<false>(a, blockIdx.z, blockIdx.y * HEADS, blockIdx.x * per_block, per_block,
                      splits_max);
}

__global__ void __launch_bounds__(THREADS, 1) mla_heads_row(const kern_cuda_mla a)
{
    row_attend<true>(a, blockIdx.z, blockIdx.y * HEADS, 0, 0, 0);
}

__global__ void __launch_bounds__(THREADS, 1) mla_heads_tile(const kern_cuda_mla a)
{
    const kern_cuda_run tile = a.tiles[blockIdx.z];
    if (blockIdx.x >= tile.count) return;
    row_attend<true>(a, tile.first + blockIdx.x, blockIdx.y * HEADS, 0, 0, 0);
}

/* Tiles, then the third part of q. */
const size_t ROOM_BYTES = (DEPTH * TILE * ROW + STEPS * THREADS * 4) * sizeof(uint32_t);
const uint32_t BLOCKS_WANTED = 120; /* fewer leave much of a card without work */

} // namespace

bool kern_heads_takes(const kern_cuda_mla &a)
{
    if (!a.bf16 || a.lora != LORA || a.lora + a.rope != WIDE) return false;
    /* A card with less shared memory (sm_80) takes the other way, for decode and prefill alike. */
    if (KERN_DYNAMIC_LIMIT(mla_heads_row, ROOM_BYTES) == cudaSuccess) return true;
    cudaGetLastError();
    return false;
}

int kern_heads_prefill(const kern_cuda_mla &a, cudaStream_t stream)
{
    if (KERN_DYNAMIC_LIMIT(mla_heads_tile, ROOM_BYTES) != cudaSuccess) return BASE_EDEVICE;
    if (a.tile_count > 65535) return -EINVAL;
    KERN_LAUNCH(mla_heads_tile,
                dim3(KERN_CUDA_QUERIES, (a.heads + HEADS - 1) / HEADS, a.tile_count), dim3(THREADS),
                ROOM_BYTES, stream, a);
    return kern_launched();
}

int kern_heads_decode(const kern_cuda_mla &a, cudaStream_t stream, bool *folded)
{
    const uint32_t splits = (a.tokens_max + KERN_CUDA_SPLIT - 1) / KERN_CUDA_SPLIT;
    const uint32_t parts = (a.heads + HEADS - 1) / HEADS;
    *folded = splits == 1 || (uint64_t)parts * a.rows >= BLOCKS_WANTED;
    if (*folded) {
        if (KERN_DYNAMIC_LIMIT(mla_heads_row, ROOM_BYTES) != cudaSuccess) return BASE_EDEVICE;
        KERN_LAUNCH(mla_heads_row, dim3(1, parts, a.rows), dim3(THREADS), ROOM_BYTES, stream, a);
        return kern_launched();
    }
    uint32_t per_block = 16;
    while (per_block > 1 &&
           (uint64_t)parts * a.rows * ((splits + per_block - 1) / per_block) < BLOCKS_WANTED)
        per_block /= 2;
    if (KERN_DYNAMIC_LIMIT(mla_heads_split, ROOM_BYTES) != cudaSuccess) return BASE_EDEVICE;
    KERN_LAUNCH(mla_heads_split, dim3((splits + per_block - 1) / per_block, parts, a.rows),
                dim3(THREADS), ROOM_BYTES, stream, a, per_block, splits);
    return kern_launched();
}
