/* Scalar arithmetic of the kernels: decoding of stored types, exp, SiLU, sums over a warp or a
 * block. exp and SiLU are those of cpu/scalar.h, operation by operation. */
#ifndef KERNELS_CUDA_MATH_CUH
#define KERNELS_CUDA_MATH_CUH

#include "kernels/cuda/port.cuh"

static const unsigned WARP = 32, CHUNK = 16;
static const unsigned FULL = 0xffffffffu; /* all lanes */

static __device__ __forceinline__ float from_bf16(unsigned code)
{
    return __uint_as_float(code << 16);
}

/* Round to nearest even; a NaN stays one. */
static __device__ __forceinline__ uint16_t to_bf16(float value)
{
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static __device__ __forceinline__ float from_f16(unsigned code)
{
    const unsigned sign = (code & 0x8000u) << 16, magnitude = code & 0x7fffu;
    if (magnitude >= 0x7c00u)
        return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return __uint_as_float(sign | magnitude << 13) * 0x1p112f;
}

static __device__ __forceinline__ float load_f32(const void *at)
{
    const uint8_t *b = (const uint8_t *)at;
    if (((uintptr_t)at & 3u) == 0) return *(const float *)at;
    return __uint_as_float((unsigned)b[0] | (unsigned)b[1] << 8 | (unsigned)b[2] << 16 |
                           (unsigned)b[3] << 24);
}

template <int DTYPE> struct stored;
template <> struct stored<KERN_F32> {
    static const unsigned bytes = 4;
};
template <> struct stored<KERN_F16> {
    static const unsigned bytes = 2;
};
template <> struct stored<KERN_BF16> {
    static const unsigned bytes = 2;
};
template <> struct stored<KERN_FP8_E4M3> {
    static const unsigned bytes = 1;
};

template <> struct stored<KERN_INT8> {
    static const unsigned bytes = 1;
};
template <> struct stored<KERN_INT4> {
    static const unsigned bytes = 1; /* of the two columns that share one */
};

/* INT8 and INT4 have BF16 scales for groups of columns of each row. */
template <int DTYPE> static __device__ __forceinline__ bool grouped()
{
    return DTYPE == KERN_INT8 || DTYPE == KERN_INT4;
}

/* Where column k of a row lies; kern_row_bytes and kern.h's layout. */
template <int DTYPE> static __device__ __forceinline__ size_t column_at(uint32_t k)
{
    if (DTYPE == KERN_INT4)
        return (size_t)(k / KERN_INT4_BLOCK) * (KERN_INT4_BLOCK / 2) + k % (KERN_INT4_BLOCK / 2);
    return (size_t)k * stored<DTYPE>::bytes;
}

template <int DTYPE> static __device__ __forceinline__ size_t row_bytes(uint32_t cols)
{
    if (DTYPE == KERN_INT4)
        return (size_t)((cols + KERN_INT4_BLOCK - 1) / KERN_INT4_BLOCK) * (KERN_INT4_BLOCK / 2);
    return (size_t)cols * stored<DTYPE>::bytes;
}

/* The weights in 32 bits of a row: four, two or one. `k` is the first one's column: of INT4 codes
 * those of the upper half of a block are the high nibbles. */
template <int DTYPE>
static __device__ __forceinline__ void decode_word(unsigned word, uint32_t k, float *w)
{
    if (DTYPE == KERN_FP8_E4M3) {
        kern_fp8_pair(word, &w[0], &w[1]);
        kern_fp8_pair(word >> 16, &w[2], &w[3]);
    } else if (DTYPE == KERN_BF16) {
        w[0] = from_bf16(word & 0xffffu);
        w[1] = __uint_as_float(word & 0xffff0000u);
    } else if (DTYPE == KERN_F16) {
        w[0] = from_f16(word & 0xffffu);
        w[1] = from_f16(word >> 16);
    } else if (DTYPE == KERN_F32) {
        w[0] = __uint_as_float(word);
    } else if (DTYPE == KERN_INT8) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++)
            w[i] = (float)(int8_t)(word >> 8 * i);
    } else {
        const unsigned shift = k % KERN_INT4_BLOCK < KERN_INT4_BLOCK / 2 ? 0 : 4;
#pragma unroll
        for (unsigned i = 0; i < 4; i++)
            w[i] = (float)((int)((word >> (8 * i + shift) & 15u) ^ 8u) - 8);
    }
}

/* One weight of a row. */
template <int DTYPE>
static __device__ __forceinline__ float load_one(const uint8_t *row, uint32_t k)
{
    const uint8_t *at = row + column_at<DTYPE>(k);
    unsigned word = 0;
    float w[4];
#pragma unroll
    for (unsigned b = 0; b < stored<DTYPE>::bytes; b++)
        word |= (unsigned)at[b] << (8 * b);
    decode_word<DTYPE>(word, k, w);
    return w[0];
}

/* A scale of a row: f32, or BF16 of a group. */
template <int DTYPE>
static __device__ __forceinline__ float load_scale(const uint8_t *scales, uint32_t index)
{
    if (!grouped<DTYPE>()) return load_f32(scales + 4 * (size_t)index);
    const uint8_t *at = scales + 2 * (size_t)index;
    return from_bf16((unsigned)at[0] | (unsigned)at[1] << 8);
}

/* CHUNK weights of a row from column k on, a multiple of CHUNK in a block; those from `count` on
 * are zero and not touched. */
template <int DTYPE>
static __device__ __forceinline__ void load_chunk(float (&w)[CHUNK], const uint8_t *row, uint32_t k,
                                                  uint32_t count)
{
    const unsigned bytes = stored<DTYPE>::bytes, per_word = 4 / bytes;
    const uint8_t *at = row + column_at<DTYPE>(k);
    if (count >= CHUNK && ((uintptr_t)at & 15u) == 0) {
#pragma unroll
        for (unsigned i = 0; i < bytes; i++) {
            const uint4 v = ((const uint4 *)at)[i];
            decode_word<DTYPE>(v.x, k, &w[4 * per_word * i]);
            decode_word<DTYPE>(v.y, k, &w[4 * per_word * i + per_word]);
            decode_word<DTYPE>(v.z, k, &w[4 * per_word * i + 2 * per_word]);
            decode_word<DTYPE>(v.w, k, &w[4 * per_word * i + 3 * per_word]);
        }
        return;
    }
#pragma unroll
    for (unsigned j = 0; j < CHUNK; j++)
        w[j] = j < count ? load_one<DTYPE>(row, k + j) : 0.0f;
}

static __device__ __forceinline__ void load_x(float (&v)[CHUNK], const float *x, uint32_t count)
{
    if (count >= CHUNK && ((uintptr_t)x & 15u) == 0) {
#pragma unroll
        for (unsigned i = 0; i < CHUNK / 4; i++) {
            const float4 four = ((const float4 *)x)[i];
            v[4 * i] = four.x;
            v[4 * i + 1] = four.y;
            v[4 * i + 2] = four.z;
            v[4 * i + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (unsigned j = 0; j < CHUNK; j++)
        v[j] = j < count ? x[j] : 0.0f;
}

static __device__ __forceinline__ float exp_same(float x)
{
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float shifted = fmaf(x, 0x1.715476p+0f, 0x1.8p23f);
    const float n = shifted - 0x1.8p23f;
    float r = fmaf(n, -0x1.62e400p-1f, x);
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float p = fmaf(0x1.6a23cep-10f, r, 0x1.123a20p-7f);
    p = fmaf(p, r, 0x1.5558f2p-5f);
    p = fmaf(p, r, 0x1.555492p-3f);
    p = fmaf(p, r, 0x1.fffffcp-2f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    const unsigned whole = __float_as_uint(shifted) - __float_as_uint(0x1.8p23f);
    const unsigned half = (unsigned)((int)whole >> 1);
    return p * __uint_as_float((half + 127u) << 23) * __uint_as_float((whole - half + 127u) << 23);
}

static __device__ __forceinline__ float silu_same(float x)
{
    return x / (1.0f + exp_same(-x));
}

/* Every lane gets the sum, the same bits. */
static __device__ __forceinline__ float warp_sum(float value)
{
#pragma unroll
    for (int with = WARP / 2; with > 0; with /= 2)
        value = value + __shfl_xor_sync(FULL, value, with);
    return value;
}

#endif
