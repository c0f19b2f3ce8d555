/* Products on tensor cores for weights that are read once: a warp takes slabs of 16 rows. Weights
 * come by cp.async as they are stored, each lane waiting for its own bytes alone, become BF16 or
 * F16 in registers (exact for every type taken) and meet x in parts of that type that add up to it:
 *
 *     BF16               three BF16, all 24 bits of x
 *     FP8, INT8, INT4    two F16 of x / 2^e, 22 bits, e from the largest |x| of a token's 128
 *
 *     lane 4 g + t       rows g and g + 8 of each slab, columns by place_of()
 */
#ifndef KERNELS_CUDA_SLABS_CUH
#define KERNELS_CUDA_SLABS_CUH

#include "kernels/cuda/math.cuh"

static const unsigned SLAB_WARPS = 4, SLAB_THREADS = SLAB_WARPS * WARP, SLAB_ROWS = 16;
static const unsigned SLAB_TOKENS = 8;
static const float LOW_PART = 0x1p-11f; /* what the second F16 was multiplied by, undone */

/* Columns that a warp takes at a time: two loads of 16 bytes a row, one of INT4. */
template <int DTYPE> struct slab_unit {
    static const unsigned cols = DTYPE == KERN_BF16 ? 64 : 128, loads = DTYPE == KERN_INT4 ? 1 : 2;
    static const unsigned steps = cols / 16; /* matrix products of 16 columns */
    static const unsigned parts = DTYPE == KERN_BF16 ? 3 : 2;
    static const unsigned stage = 4 * loads * WARP * 4;       /* words of two slabs as stored */
    static const unsigned x = parts * (steps / 2) * WARP * 4; /* words of eight tokens */
    static const unsigned x_all = x + SLAB_TOKENS;            /* and their 2^e */
};

/* Where four columns 4 u .. 4 u + 3 of a unit meet: lanes 4 g + t, step. */
template <int DTYPE>
static __device__ __forceinline__ void place_of(unsigned u, unsigned *t, unsigned *step)
{
    if (DTYPE == KERN_BF16) {
        *t = u % 8 / 2;
        *step = u / 8 * 2 + u % 2;
    } else if (DTYPE == KERN_INT4) {
        *t = u / 16 * 2 + u % 8 / 4;
        *step = u % 4 * 2 + u % 16 / 8;
    } else {
        *t = u % 16 / 4;
        *step = u / 16 * 4 + u % 4;
    }
}

static __device__ __forceinline__ unsigned word_of(const uint4 &v, unsigned i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* The four weights of a row that a lane has in step i of a load, in two words. The codes' order is
 * 0, 1 | 2, 3 of the four columns, of INT8 and INT4 0, 2 | 1, 3. */
template <int DTYPE>
static __device__ __forceinline__ void step_weights(const uint4 &raw, unsigned i, unsigned *first,
                                                    unsigned *second)
{
    const unsigned one = 0x3c003c00u, sixteenth = 0x2c002c00u;
    if (DTYPE == KERN_BF16) {
        *first = word_of(raw, 2 * i);
        *second = word_of(raw, 2 * i + 1);
    } else if (DTYPE == KERN_FP8_E4M3) {
        *first = kern_fp8_halves(word_of(raw, i) & 0xffffu);
        *second = kern_fp8_halves(word_of(raw, i) >> 16);
    } else if (DTYPE == KERN_INT8) {
        /* The code above -128 as the last bits of 1024 + it, less 1152. */
        const unsigned even = word_of(raw, i), odd = even >> 8, less = 0xe480e480u;
        *first = kern_f16_fma((even & 0x00ff00ffu) ^ 0x64806480u, one, less);
        *second = kern_f16_fma((odd & 0x00ff00ffu) ^ 0x64806480u, one, less);
    } else if (i % 2 == 0) {
        /* The code above -8, less 1032. */
        const unsigned even = word_of(raw, i / 2), odd = even >> 8, less = 0xe408e408u;
        *first = kern_f16_fma((even & 0x000f000fu) ^ 0x64086408u, one, less);
        *second = kern_f16_fma((odd & 0x000f000fu) ^ 0x64086408u, one, less);
    } else {
        /* Sixteen times it; 64 + it, less 72. */
        const unsigned even = word_of(raw, i / 2), odd = even >> 8, less = 0xd480d480u;
        *first = kern_f16_fma((even & 0x00f000f0u) ^ 0x64806480u, sixteenth, less);
        *second = kern_f16_fma((odd & 0x00f000f0u) ^ 0x64806480u, sixteenth, less);
    }
}

/* The rows of a lane: [slab][row g or g + 8]; where they begin, in 16 bytes and in scales. */
struct slab_rows {
    const uint8_t *data[2], *scales[2];
    uint32_t row[2][2], scale_row[2][2];
    uint32_t scale_cols;
    bool aligned, scales_aligned; /* the same for the whole block */
};

static __device__ __forceinline__ const uint8_t *row_at(const slab_rows &rows, unsigned slab,
                                                        unsigned half)
{
    return rows.data[slab] + (size_t)rows.row[slab][half] * 16;
}

/* Asks for a unit of a warp's rows; one group of cp.async. */
template <int DTYPE>
static __device__ __forceinline__ void unit_ask(kern_shared_ptr<uint32_t> to, const slab_rows &rows,
                                                uint32_t unit)
{
    const unsigned loads = slab_unit<DTYPE>::loads, lane = threadIdx.x % WARP;
    const size_t at = row_bytes<DTYPE>(unit * slab_unit<DTYPE>::cols) + lane % 4 * 16;
    if (rows.aligned) {
#pragma unroll
        for (unsigned i = 0; i < 4 * loads; i++)
            kern_async_copy16(
                to + (i * WARP + lane) * 4,
                (const uint32_t *)(const void *)(row_at(rows, i / loads / 2, i / loads % 2) + at +
                                                 i % loads * 64));
    } else {
#pragma unroll
        for (unsigned i = 0; i < 4 * loads; i++) {
            const uint8_t *from = row_at(rows, i / loads / 2, i / loads % 2) + at + i % loads * 64;
#pragma unroll 1
            for (unsigned w = 0; w < 4; w++, from += 4)
                to[(i * WARP + lane) * 4 + w] = (unsigned)from[0] | (unsigned)from[1] << 8 |
                                                (unsigned)from[2] << 16 | (unsigned)from[3] << 24;
        }
    }
    kern_async_commit();
}

template <int DTYPE>
static __device__ __forceinline__ void scales_load(float (&scale)[2][2], const slab_rows &rows,
                                                   uint32_t unit)
{
    const uint32_t per = rows.scale_cols / slab_unit<DTYPE>::cols;
    const uint32_t at = per == 1 ? unit : per == 2 ? unit / 2 : unit / per;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *from = rows.scales[i / 2];
        const uint32_t index = rows.scale_row[i / 2][i % 2] + at;
        if (!rows.scales[0])
            scale[i / 2][i % 2] = 1.0f;
        else if (!rows.scales_aligned)
            scale[i / 2][i % 2] = load_scale<DTYPE>(from, index);
        else if (grouped<DTYPE>())
            scale[i / 2][i % 2] = from_bf16(((const uint16_t *)(const void *)from)[index]);
        else
            scale[i / 2][i % 2] = ((const float *)(const void *)from)[index];
    }
}

/* One value after another in parts: what is left of it becomes the next. */
template <int DTYPE>
static __device__ __forceinline__ unsigned part_take(float &first, float &second)
{
    float a, b;
    unsigned pair;
    if (DTYPE == KERN_BF16) {
        pair = kern_bf16_pair(first, second);
        first = first - from_bf16(pair & 0xffffu);
        second = second - __uint_as_float(pair & 0xffff0000u);
    } else {
        pair = kern_f16_pair(first, second);
        kern_f16_floats(pair, &a, &b);
        first = (first - a) * 0x1p11f;
        second = (second - b) * 0x1p11f;
    }
    return pair;
}

/* x of up to eight tokens over a unit, in parts, where unit_multiply() reads it. By one warp. */
template <int DTYPE, class F>
static __device__ __forceinline__ void unit_stage(kern_shared_ptr<uint32_t> to, uint32_t unit,
                                                  uint32_t count, F x_of)
{
    const unsigned per = slab_unit<DTYPE>::cols / 4, steps = slab_unit<DTYPE>::steps;
    const unsigned lane = threadIdx.x % WARP, u = lane % per, AHEAD = 2, wide = WARP / per;
    unsigned t, step;
    place_of<DTYPE>(u, &t, &step);
#pragma unroll 1
    for (unsigned first = 0; first < count; first += AHEAD * wide) {
        float v[AHEAD][4];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const unsigned n = first + i * wide + lane / per;
            if (first + i * wide >= count) continue;
            const float *x =
                x_of(n < count ? n : count - 1) + unit * slab_unit<DTYPE>::cols + 4 * u;
            if (((uintptr_t)x & 15u) == 0) {
                const float4 four = *(const float4 *)(const void *)x;
                v[i][0] = four.x;
                v[i][1] = four.y;
                v[i][2] = four.z;
                v[i][3] = four.w;
            } else {
#pragma unroll
                for (unsigned j = 0; j < 4; j++)
                    v[i][j] = x[j];
            }
        }
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const unsigned n = first + i * wide + lane / per;
            if (first + i * wide >= count) continue;
            if (DTYPE != KERN_BF16) {
                /* The largest gets 2^14 .. 2^15: both parts stay normal for 2^29 below it. */
                float most = fmaxf(fmaxf(fabsf(v[i][0]), fabsf(v[i][1])),
                                   fmaxf(fabsf(v[i][2]), fabsf(v[i][3])));
#pragma unroll
                for (int with = WARP / 2; with > 0; with /= 2)
                    most = fmaxf(most, __shfl_xor_sync(FULL, most, with));
                unsigned exponent = __float_as_uint(most) >> 23;
                exponent = exponent < 28 ? 28 : exponent;
                const float down = __uint_as_float((268 - exponent) << 23); /* 2^(141 - e) */
#pragma unroll
                for (unsigned j = 0; j < 4; j++)
                    v[i][j] = v[i][j] * down;
                if (lane == 0) to[slab_unit<DTYPE>::x + n] = (exponent - 14) << 23;
            }
            if (n >= count) continue;
            const bool crossed = DTYPE == KERN_INT8 || DTYPE == KERN_INT4;
            float a[2] = { v[i][0], v[i][crossed ? 2 : 1] };
            float b[2] = { v[i][crossed ? 1 : 2], v[i][3] };
#pragma unroll
            for (unsigned p = 0; p < slab_unit<DTYPE>::parts; p++) {
                const unsigned first_pair = part_take<DTYPE>(a[0], a[1]);
                const unsigned second_pair = part_take<DTYPE>(b[0], b[1]);
                kern_shared_store2(
                    to + (((p * (steps / 2) + step / 2) * WARP + n * 4 + t) * 4 + step % 2 * 2),
                    first_pair, second_pair);
            }
        }
    }
}

/* Sums of a unit: [first part or the others][slab][place of kern_mma]. */
struct unit_sums {
    float s[2][2][4];
};

static __device__ __forceinline__ void sums_zero(unit_sums &sums)
{
#pragma unroll
    for (unsigned i = 0; i < 16; i++)
        sums.s[i / 8][i / 4 % 2][i % 4] = 0;
}

/* Two steps of both slabs against eight tokens. */
template <int DTYPE>
static __device__ __forceinline__ void steps_multiply(unit_sums &sums, const unsigned (&even)[2][4],
                                                      const unsigned (&odd)[2][4], unsigned pair,
                                                      kern_shared_ptr<uint32_t> x, unsigned column)
{
#pragma unroll
    for (unsigned p = 0; p < slab_unit<DTYPE>::parts; p++) {
        const uint4 b =
            kern_shared_load4(x + ((p * (slab_unit<DTYPE>::steps / 2) + pair) * WARP + column) * 4);
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            if (DTYPE == KERN_BF16) {
                kern_mma(sums.s[p > 0][r], even[r], b.x, b.y);
                kern_mma(sums.s[p > 0][r], odd[r], b.z, b.w);
            } else {
                kern_mma_f16(sums.s[p > 0][r], even[r], b.x, b.y);
                kern_mma_f16(sums.s[p > 0][r], odd[r], b.z, b.w);
            }
        }
    }
}

/* total += the unit's sums times their scales. `here` tokens are staged. */
template <int DTYPE>
static __device__ __forceinline__ void unit_add(float (&total)[2][4], const unit_sums &sums,
                                                const float (&scale)[2][2],
                                                kern_shared_ptr<uint32_t> x, uint32_t here)
{
    float up[2] = { 1.0f, 1.0f };
    if (DTYPE != KERN_BF16) {
        const unsigned token = threadIdx.x % 4 * 2;
#pragma unroll
        for (unsigned i = 0; i < 2; i++)
            up[i] =
                __uint_as_float(x[slab_unit<DTYPE>::x + (token + i < here ? token + i : here - 1)]);
    }
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        const unsigned r = i / 4, e = i % 4;
        float value;
        if (DTYPE == KERN_BF16)
            value = sums.s[1][r][e] + sums.s[0][r][e];
        else
            value = fmaf(sums.s[1][r][e], LOW_PART, sums.s[0][r][e]) * up[e % 2];
        total[r][e] = fmaf(value, scale[r][e / 2], total[r][e]);
    }
}

/* A lane's weights of load c, decoded: [step of the load][slab], as kern_mma takes them. */
template <int DTYPE>
static __device__ __forceinline__ void
load_decode(unsigned (&a)[slab_unit<DTYPE>::steps / slab_unit<DTYPE>::loads][2][4],
            kern_shared_ptr<uint32_t> stage, unsigned c)
{
    const unsigned loads = slab_unit<DTYPE>::loads, lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const uint4 raw = kern_shared_load4(stage + ((i * loads + c) * WARP + lane) * 4);
#pragma unroll
        for (unsigned s = 0; s < slab_unit<DTYPE>::steps / loads; s++)
            step_weights<DTYPE>(raw, s, &a[s][i / 2][i % 2], &a[s][i / 2][i % 2 + 2]);
    }
}

/* ---- few tokens: a block's warps share the columns of two slabs ---- */

#ifndef SLAB_DEPTH
#define SLAB_DEPTH 2
#endif

template <int DTYPE> struct slab_room {
    static const unsigned depth = SLAB_DEPTH * 2 / slab_unit<DTYPE>::loads;
    static const unsigned warp = depth * slab_unit<DTYPE>::stage + slab_unit<DTYPE>::x_all;
    static const unsigned sums = 2 * SLAB_ROWS * SLAB_TOKENS; /* of a range */
    static size_t bytes(unsigned ranges)
    {
        return 4 * (size_t)(SLAB_WARPS * warp + ranges * sums);
    }
};

/* Sums of a warp over units [unit, end) in kern_mma's places. */
template <int DTYPE, unsigned DEPTH, class F>
static __device__ __forceinline__ void range_sum(float (&total)[2][4], const slab_rows &rows,
                                                 kern_shared_ptr<uint32_t> room, uint32_t unit,
                                                 uint32_t end, uint32_t count, F x_of)
{
    const unsigned stage = slab_unit<DTYPE>::stage, loads = slab_unit<DTYPE>::loads;
    const unsigned lane = threadIdx.x % WARP, per = slab_unit<DTYPE>::steps / loads;
    const kern_shared_ptr<uint32_t> x = room + DEPTH * stage;
    /* Tokens that are not there repeat the first; nobody asks for their sums. */
    const unsigned column = lane / 4 < count ? lane : lane % 4;
    float scale[2][2];
#pragma unroll
    for (unsigned i = 0; i < 8; i++)
        total[i / 4][i % 4] = 0;
#pragma unroll
    for (unsigned i = 0; i + 1 < DEPTH; i++) {
        if (unit + i < end)
            unit_ask<DTYPE>(room + i * stage, rows, unit + i);
        else
            kern_async_commit(); /* groups are counted */
    }
    if (unit < end) scales_load<DTYPE>(scale, rows, unit);
#pragma unroll 1
    for (unsigned turn = 0, ahead = DEPTH - 1; unit < end; unit++) {
        if (unit + DEPTH - 1 < end)
            unit_ask<DTYPE>(room + ahead * stage, rows, unit + DEPTH - 1);
        else
            kern_async_commit();
        float scale_next[2][2] = { { 0, 0 }, { 0, 0 } };
        if (unit + 1 < end) scales_load<DTYPE>(scale_next, rows, unit + 1);
        unit_stage<DTYPE>(x, unit, count, x_of);
        KERN_ASYNC_WAIT(DEPTH - 1);
        __syncwarp();
        unit_sums sums;
        sums_zero(sums);
#pragma unroll
        for (unsigned c = 0; c < loads; c++) {
            uint4 raw[4];
#pragma unroll
            for (unsigned i = 0; i < 4; i++)
                raw[i] =
                    kern_shared_load4(room + (turn * stage + ((i * loads + c) * WARP + lane) * 4));
#pragma unroll
            for (unsigned s = 0; s < per; s += 2) {
                unsigned a[2][2][4];
#pragma unroll
                for (unsigned i = 0; i < 8; i++)
                    step_weights<DTYPE>(raw[i / 2], s + i % 2, &a[i % 2][i / 4][i / 2 % 2],
                                        &a[i % 2][i / 4][i / 2 % 2 + 2]);
                steps_multiply<DTYPE>(sums, a[0], a[1], (c * per + s) / 2, x, column);
            }
        }
        unit_add<DTYPE>(total, sums, scale, x, count);
        __syncwarp(); /* nobody still reads what is staged next */
#pragma unroll
        for (unsigned i = 0; i < 4; i++)
            scale[i / 2][i % 2] = scale_next[i / 2][i % 2];
        turn = turn + 1 == DEPTH ? 0 : turn + 1;
        ahead = ahead + 1 == DEPTH ? 0 : ahead + 1;
    }
}

/* All of a block: `ranges` (4 or 8) of columns, range r being [range_of(r), range_of(r + 1))
 * units; their sums ascending; give(row, token, the two slabs' sums) takes each of `count` tokens,
 * count <= SLAB_TOKENS. */
template <int DTYPE, class R, class F, class G>
static __device__ __forceinline__ void slab_product(const slab_rows &rows, uint32_t count,
                                                    unsigned ranges, R range_of, F x_of, G give)
{
    typedef slab_room<DTYPE> room;
    KERN_SHARED_DYNAMIC(uint32_t, memory);
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const kern_shared_ptr<uint32_t> sums = memory + SLAB_WARPS * room::warp;
#pragma unroll 1
    for (unsigned i = 0; i < ranges / SLAB_WARPS; i++) {
        const unsigned range = warp * (ranges / SLAB_WARPS) + i;
        float total[2][4];
        range_sum<DTYPE, room::depth>(total, rows, memory + warp * room::warp, range_of(range),
                                      range_of(range + 1), count, x_of);
#pragma unroll
        for (unsigned r = 0; r < 2; r++)
#pragma unroll
            for (unsigned j = 0; j < 4; j += 2)
                kern_shared_store2(
                    sums + (((range * 2 + r) * SLAB_ROWS + g + j / 2 * 8) * SLAB_TOKENS + 2 * t),
                    __float_as_uint(total[r][j]), __float_as_uint(total[r][j + 1]));
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < SLAB_ROWS * count; i += SLAB_THREADS) {
        const unsigned row = i % SLAB_ROWS, token = i / SLAB_ROWS;
        float values[2];
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            float sum = 0;
            for (unsigned range = 0; range < ranges; range++) {
                const float part = __uint_as_float(
                    sums[((range * 2 + r) * SLAB_ROWS + row) * SLAB_TOKENS + token]);
                sum = range ? sum + part : part;
            }
            values[r] = sum;
        }
        give(row, token, values);
    }
}

/* ---- prompts: a block's warps have slabs of their own, share 32 tokens, take all columns ---- */

template <int DTYPE> struct prompt_room {
    static const unsigned depth = 2 * 2 / slab_unit<DTYPE>::loads;
    static const unsigned warp = depth * slab_unit<DTYPE>::stage;
    static const unsigned tile = slab_unit<DTYPE>::x_all;
    static size_t bytes(unsigned)
    {
        return 4 * (size_t)(SLAB_WARPS * warp + 2 * SLAB_WARPS * tile);
    }
};

/* The sums of slab_product(), in the same order; give(row of a slab, token, the two sums). */
template <int DTYPE, class R, class F, class G>
static __device__ __forceinline__ void slab_tile(const slab_rows &rows, uint32_t count,
                                                 unsigned ranges, R range_of, F x_of, G give)
{
    typedef prompt_room<DTYPE> room;
    const unsigned T = SLAB_WARPS, DEPTH = room::depth, stage = slab_unit<DTYPE>::stage;
    const unsigned loads = slab_unit<DTYPE>::loads, per = slab_unit<DTYPE>::steps / loads;
    KERN_SHARED_DYNAMIC(uint32_t, memory);
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t units = range_of(ranges), mine = warp * SLAB_TOKENS;
    const uint32_t staged = count <= mine                ? 0
                            : count - mine < SLAB_TOKENS ? count - mine
                                                         : (uint32_t)SLAB_TOKENS;
    const kern_shared_ptr<uint32_t> own = memory + warp * room::warp;
    const kern_shared_ptr<uint32_t> tokens = memory + SLAB_WARPS * room::warp;
    float total[T][2][4], all[T][2][4], scale[2][2];
#pragma unroll
    for (unsigned i = 0; i < T * 8; i++)
        total[i / 8][i / 4 % 2][i % 4] = all[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
    for (unsigned i = 0; i + 1 < DEPTH; i++) {
        if (i < units)
            unit_ask<DTYPE>(own + i * stage, rows, i);
        else
            kern_async_commit();
    }
    scales_load<DTYPE>(scale, rows, 0);
    unit_stage<DTYPE>(tokens + warp * room::tile, 0, staged,
                      [&](uint32_t n) { return x_of(mine + n); });
    uint32_t range = 0, range_end = range_of(1);
#pragma unroll 1
    for (uint32_t unit = 0; unit < units; unit++) {
        /* A range is over, or more of them, when they are empty. */
        while (unit == range_end) {
#pragma unroll
            for (unsigned i = 0; i < T * 8; i++) {
                float &to = all[i / 8][i / 4 % 2][i % 4], &from = total[i / 8][i / 4 % 2][i % 4];
                to = range ? to + from : from;
                from = 0;
            }
            range++;
            range_end = range_of(range + 1);
        }
        __syncthreads(); /* this unit's x is there, nobody still reads the one before */
        if (unit + DEPTH - 1 < units)
            unit_ask<DTYPE>(own + (unit + DEPTH - 1) % DEPTH * stage, rows, unit + DEPTH - 1);
        else
            kern_async_commit();
        float scale_next[2][2] = { { 0, 0 }, { 0, 0 } };
        if (unit + 1 < units) {
            scales_load<DTYPE>(scale_next, rows, unit + 1);
            unit_stage<DTYPE>(tokens + ((unit + 1) % 2 * T + warp) * room::tile, unit + 1, staged,
                              [&](uint32_t n) { return x_of(mine + n); });
        }
        KERN_ASYNC_WAIT(DEPTH - 1);
        unsigned a[loads][per][2][4];
#pragma unroll
        for (unsigned c = 0; c < loads; c++)
            load_decode<DTYPE>(a[c], own + unit % DEPTH * stage, c);
#pragma unroll
        for (unsigned tile = 0; tile < T; tile++) {
            if (tile * SLAB_TOKENS >= count) break;
            const uint32_t here = count - tile * SLAB_TOKENS;
            const unsigned column = lane / 4 < here ? lane : lane % 4;
            const kern_shared_ptr<uint32_t> x = tokens + (unit % 2 * T + tile) * room::tile;
            unit_sums sums;
            sums_zero(sums);
#pragma unroll
            for (unsigned s = 0; s < loads * per; s += 2)
                steps_multiply<DTYPE>(sums, a[s / per][s % per], a[s / per][s % per + 1], s / 2, x,
                                      column);
            unit_add<DTYPE>(total[tile], sums, scale, x, here);
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++)
            scale[i / 2][i % 2] = scale_next[i / 2][i % 2];
    }
#pragma unroll
    for (unsigned i = 0; i < T * 4; i++) {
        const uint32_t token = i / 4 * SLAB_TOKENS + 2 * (lane % 4) + i % 2;
        float values[2];
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            const float sum = total[i / 4][r][i % 4];
            values[r] = range ? all[i / 4][r][i % 4] + sum : sum;
            /* Empty ranges behind it add their zero, as there. */
            if (range + 1 < ranges) values[r] = values[r] + 0.0f;
        }
        if (token < count) give(lane / 4 + i % 4 / 2 * 8, token, values);
    }
}

#endif
