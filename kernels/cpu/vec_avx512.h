/* Sixteen f32 lanes as one AVX-512 register: the vector type that simd.h is written in.
 * Needs -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vbmi2 -mavx512vnni -mgfni
 * -mfma -mf16c. Private to kernels/cpu.
 *
 * Invariant: each operation rounds exactly as its scalar twin in scalar.h does.
 */
#ifndef KERNELS_CPU_VEC_AVX512_H
#define KERNELS_CPU_VEC_AVX512_H

#include <immintrin.h>

#include "kernels/cpu/scalar.h"

#define VEC_INLINE static inline __attribute__((always_inline))

/* Loops over registers must vanish before registers are assigned. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#define UNROLL_LONG UNROLL
#else
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL_LONG _Pragma("GCC unroll 16")
#endif

/* Tiles of a register-blocked product: 4 x 6 outputs, 24 of 32 registers; with scales 3 x 4, sums
 * and totals. */
enum { VEC_TILE_M = 4, VEC_TILE_N = 6, VEC_SCALED_M = 3, VEC_SCALED_N = 4 };
enum { VEC_GEMV_ROWS = 4, VEC_TRANSPOSE = 8 };

/* Tiles of latent attention: scores of heads x tokens, 24 sums in 32 registers; values of heads x
 * registers of columns. */
enum { VEC_MLA_HEADS = 8, VEC_MLA_TOKENS = 3, VEC_MLA_COLUMNS = 2 };

#define VEC_X8_PRODUCTS "kernels/cpu/simd_x8_vnni.h"

/* Products of tiles (simd_x8_vnni.h): operand rows that share a load of weights, as many as have
 * room for their sums, the halves of a line that few of them take together, and the sums up to
 * which they do. */
enum { VEC_X8_ROWS_FAST = 8, VEC_X8_ROWS_FULL = 4, VEC_X8_ROWS_MOST = 8, VEC_X8_HALVES = 2 };
enum { VEC_X8_SUMS = 16 };
enum { VEC_X8_INT4_SUMS = 2 };  /* times as many of them: so many fewer rows */
enum { VEC_INT4_HIGH = 16 }; /* whole bytes are multiplied instead of high nibbles */

struct vec {
    __m512 all;
};

VEC_INLINE __mmask16 vec_mask(uint32_t n)
{
    return (__mmask16)((1u << n) - 1u);
}

VEC_INLINE struct vec vec_set1(float value)
{
    return (struct vec){ _mm512_set1_ps(value) };
}

VEC_INLINE struct vec vec_zero(void)
{
    return (struct vec){ _mm512_setzero_ps() };
}

VEC_INLINE struct vec vec_load(const float *from)
{
    return (struct vec){ _mm512_loadu_ps(from) };
}

/* The first n <= 16 lanes from memory, which is not touched beyond them; the others zero. */
VEC_INLINE struct vec vec_load_part(const float *from, uint32_t n)
{
    return (struct vec){ _mm512_maskz_loadu_ps(vec_mask(n), from) };
}

VEC_INLINE void vec_store(float *to, struct vec a)
{
    _mm512_storeu_ps(to, a.all);
}

VEC_INLINE void vec_store_part(float *to, struct vec a, uint32_t n)
{
    _mm512_mask_storeu_ps(to, vec_mask(n), a.all);
}

VEC_INLINE struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){ _mm512_fmadd_ps(a.all, b.all, c.all) };
}

VEC_INLINE struct vec vec_add(struct vec a, struct vec b)
{
    return (struct vec){ _mm512_add_ps(a.all, b.all) };
}

VEC_INLINE struct vec vec_sub(struct vec a, struct vec b)
{
    return (struct vec){ _mm512_sub_ps(a.all, b.all) };
}

VEC_INLINE struct vec vec_mul(struct vec a, struct vec b)
{
    return (struct vec){ _mm512_mul_ps(a.all, b.all) };
}

VEC_INLINE struct vec vec_div(struct vec a, struct vec b)
{
    return (struct vec){ _mm512_div_ps(a.all, b.all) };
}

/* a > b ? a : b, so b where either is a NaN. */
VEC_INLINE struct vec vec_max(struct vec a, struct vec b)
{
    return (struct vec){ _mm512_max_ps(a.all, b.all) };
}

/* a < b ? a : b. */
VEC_INLINE struct vec vec_min(struct vec a, struct vec b)
{
    return (struct vec){ _mm512_min_ps(a.all, b.all) };
}

/* The largest magnitude so far, lane by lane; a NaN is larger than all. */
struct vec_magnitude {
    __m512i all;
};

VEC_INLINE struct vec_magnitude vec_magnitude_zero(void)
{
    return (struct vec_magnitude){ _mm512_setzero_si512() };
}

VEC_INLINE struct vec_magnitude vec_magnitude_most(struct vec_magnitude most, struct vec a)
{
    const __m512i bits =
        _mm512_and_si512(_mm512_castps_si512(a.all), _mm512_set1_epi32(0x7fffffff));
    return (struct vec_magnitude){ _mm512_max_epu32(most.all, bits) };
}

VEC_INLINE bool vec_magnitude_below(struct vec_magnitude most, float bound)
{
    return _mm512_reduce_max_epu32(most.all) < scalar_to_bits(bound);
}

VEC_INLINE struct vec vec_negate(struct vec a)
{
    return (struct vec){ _mm512_xor_ps(a.all, _mm512_set1_ps(-0.0f)) };
}

/* The sum of the lanes by the tree of kern.h. */
VEC_INLINE float vec_tree(struct vec a)
{
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.all), 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.all), upper);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* a * 2^n, where the bits of `shifted` are n above those of EXP_ROUND (scalar_exp's last step). */
VEC_INLINE struct vec vec_scale(struct vec a, struct vec shifted)
{
    const __m512i bias = _mm512_set1_epi32(127);
    const __m512i whole = _mm512_sub_epi32(_mm512_castps_si512(shifted.all),
                                           _mm512_castps_si512(_mm512_set1_ps(EXP_ROUND)));
    const __m512i half = _mm512_srai_epi32(whole, 1);
    const __m512i rest = _mm512_sub_epi32(whole, half);
    const __m512i scale_a = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    const __m512i scale_b = _mm512_slli_epi32(_mm512_add_epi32(rest, bias), 23);
    const __m512 once = _mm512_mul_ps(a.all, _mm512_castsi512_ps(scale_a));
    return (struct vec){ _mm512_mul_ps(once, _mm512_castsi512_ps(scale_b)) };
}

VEC_INLINE struct vec vec_from_f16(const void *from)
{
    return (struct vec){ _mm512_cvtph_ps(_mm256_loadu_si256(from)) };
}

VEC_INLINE struct vec vec_from_bf16(const void *from)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from));
    return (struct vec){ _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)) };
}

/* Of sixteen pairs all the first or all the second. */
VEC_INLINE struct vec vec_from_bf16_pairs(const void *from, uint32_t second)
{
    const __m512i pairs = _mm512_loadu_si512(from);
    return (struct vec){ _mm512_castsi512_ps(
        second ? _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000))
               : _mm512_slli_epi32(pairs, 16)) };
}

/* Codes as halves: sign to bit 15, the seven others to bits 7..13; all ones where the code is a
 * NaN, so that the half is one too. The half is the value / 256. */
VEC_INLINE struct vec vec_from_fp8(const void *from)
{
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(from));
    const __m256i shifted = _mm256_slli_epi16(wide, 7);
    const __m256i magnitude = _mm256_and_si256(shifted, _mm256_set1_epi16(0x3f80));
    const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80));
    const __m256i half = _mm256_or_si256(
        nan, _mm256_and_si256(shifted, _mm256_set1_epi16((short)0xbfff)));
    return (struct vec){ _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f)) };
}

/* FP8 by tables of 128 bytes: the lower and the upper byte of the BF16 that each code is exactly,
 * without its sign. */
#define VEC_FP8_TABLES 1

#define FP8_LOW_EVEN 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
#define FP8_LOW_ODD 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0
#define FP8_LOW_PAIR FP8_LOW_EVEN, FP8_LOW_ODD
#define FP8_HIGH(byte) byte, byte, byte, byte, byte, byte, byte, byte
#define FP8_HIGH_PAIR(byte) FP8_HIGH(byte), FP8_HIGH(byte)

/* The order in which 64 codes enter, so that unpacking leaves them ascending. */
#define FP8_ORDER_PAIR(i) i, (i) + 16, (i) + 1, (i) + 17, (i) + 2, (i) + 18, (i) + 3, (i) + 19
#define FP8_ORDER(i) FP8_ORDER_PAIR(i), FP8_ORDER_PAIR((i) + 32)

struct vec_fp8 {
    __m512i low[2], high[2], order;
};

VEC_INLINE struct vec_fp8 vec_fp8_tables(void)
{
    static const uint8_t low[128] __attribute__((aligned(64))) = {
        0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60, /* zero and subnormals */
        FP8_LOW_ODD, FP8_LOW_PAIR, FP8_LOW_PAIR, FP8_LOW_PAIR, FP8_LOW_PAIR, FP8_LOW_PAIR,
        FP8_LOW_PAIR, FP8_LOW_EVEN, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xc0
    };
    static const uint8_t high[128] __attribute__((aligned(64))) = {
        0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, /* zero and subnormals */
        FP8_HIGH(0x3c), FP8_HIGH_PAIR(0x3d), FP8_HIGH_PAIR(0x3e), FP8_HIGH_PAIR(0x3f),
        FP8_HIGH_PAIR(0x40), FP8_HIGH_PAIR(0x41), FP8_HIGH_PAIR(0x42), FP8_HIGH(0x43),
        0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x7f
    };
    static const uint8_t order[64] __attribute__((aligned(64))) = { FP8_ORDER(0), FP8_ORDER(4),
                                                                    FP8_ORDER(8), FP8_ORDER(12) };
    return (struct vec_fp8){ { _mm512_load_si512(low), _mm512_load_si512(low + 64) },
                             { _mm512_load_si512(high), _mm512_load_si512(high + 64) },
                             _mm512_load_si512(order) };
}

VEC_INLINE void vec_fp8_decode(const struct vec_fp8 *t, __m512i from, struct vec to[4])
{
    enum { OR_OF_AND = 0xf8 }; /* a | (b & c) */
    const __m512i codes = _mm512_permutexvar_epi8(t->order, from);
    const __m512i low = _mm512_permutex2var_epi8(t->low[0], codes, t->low[1]);
    const __m512i high = _mm512_ternarylogic_epi32(
        _mm512_permutex2var_epi8(t->high[0], codes, t->high[1]), codes,
        _mm512_set1_epi8((char)0x80), OR_OF_AND);
    const __m512i first = _mm512_unpacklo_epi8(low, high), second = _mm512_unpackhi_epi8(low, high);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    to[0].all = _mm512_castsi512_ps(_mm512_slli_epi32(first, 16));
    to[1].all = _mm512_castsi512_ps(_mm512_and_si512(first, upper));
    to[2].all = _mm512_castsi512_ps(_mm512_slli_epi32(second, 16));
    to[3].all = _mm512_castsi512_ps(_mm512_and_si512(second, upper));
}

/* 64 codes as four vectors; any code. */
VEC_INLINE void vec_from_fp8_table(const struct vec_fp8 *t, const uint8_t *from, struct vec to[4])
{
    vec_fp8_decode(t, _mm512_loadu_si512(from), to);
}

/* The first n < 64 codes, the other lanes zero; nothing beyond them is touched. */
VEC_INLINE void vec_from_fp8_table_part(const struct vec_fp8 *t, const uint8_t *from, uint32_t n,
                                        struct vec to[4])
{
    vec_fp8_decode(t, _mm512_maskz_loadu_epi8(((__mmask64)1 << n) - 1, from), to);
}

/* The nibbles of each byte swapped. */
VEC_INLINE __m512i vec_woven_swap(__m512i bits)
{
    return _mm512_gf2p8affine_epi64_epi8(bits, _mm512_set1_epi64(0x1020408001020408), 0);
}

/* A piece of woven FP8 (kernels/weave.h) and its codes 2 and 3 by vec_woven_swap, as four vectors,
 * 2^-120 of their values. */
VEC_INLINE void vec_woven_decode(__m512i bits, __m512i swapped, struct vec to[4])
{
    const __m512i mask = _mm512_set1_epi32((int)KERN_WOVEN_MASK);
    to[0].all = _mm512_castsi512_ps(_mm512_and_si512(bits, mask));
    to[1].all = _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(bits, 16), mask));
    to[2].all = _mm512_castsi512_ps(_mm512_and_si512(swapped, mask));
    to[3].all = _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(swapped, 16), mask));
}

/* 64 codes, loaded once and in the order in which these calls stand: the processor's prefetcher
 * follows that. */
VEC_INLINE void vec_from_woven_once(const uint8_t *piece, struct vec to[4])
{
    const char(*const line)[64] = (const void *)piece;
    __m512i bits;
    __asm__ volatile("vmovdqu64 %1, %0" : "=v"(bits) : "m"(*line));
    vec_woven_decode(bits, vec_woven_swap(bits), to);
}

/* The same where few lines are under way. */
VEC_INLINE void vec_from_woven_small(const uint8_t *piece, struct vec to[4])
{
    /* Loaded twice, which the empty statement hides from the compiler: of lines that come from DRAM
     * Zen 4 then keeps more under way (README.md). */
    const uint8_t *again = piece;
    __asm__("" : "+r"(again));
    __m512i bits = _mm512_loadu_si512(piece), swapped = _mm512_loadu_si512(again);
    __asm__("" : "+v"(bits));
    __asm__("" : "+v"(swapped));
    vec_woven_decode(bits, vec_woven_swap(swapped), to);
}

/* One of the four, its values. */
VEC_INLINE struct vec vec_from_woven(const uint8_t *piece, uint32_t code)
{
    struct vec all[4];
    vec_from_woven_small(piece, all);
    return vec_mul(all[code], vec_set1(KERN_WOVEN_UP));
}

VEC_INLINE struct vec vec_from_int8(const uint8_t *from)
{
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from));
    return (struct vec){ _mm512_cvtepi32_ps(wide) };
}

/* Sixteen bytes, one a lane, whose two nibbles the next two functions give. */
struct vec_pairs {
    __m512i all;
};

VEC_INLINE struct vec_pairs vec_int4_pairs(const uint8_t *from)
{
    return (struct vec_pairs){ _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)from)) };
}

/* The value by the lowest four bits of each lane: the lookup sees no others. */
VEC_INLINE struct vec vec_int4_low(struct vec_pairs a)
{
    const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return (struct vec){ _mm512_permutexvar_ps(a.all, values) };
}

VEC_INLINE struct vec vec_int4_high(struct vec_pairs a)
{
    return vec_int4_low((struct vec_pairs){ _mm512_srli_epi32(a.all, 4) });
}

/* True when each of 32 codes at row[r] + k is a normal number: neither zero, subnormal nor NaN. */
VEC_INLINE bool vec_fp8_usual(const uint8_t *const *row, uint32_t rows, size_t k)
{
    __m256i highest = _mm256_setzero_si256();
    UNROLL for (uint32_t r = 0; r < rows; r++) {
        const __m256i codes = _mm256_loadu_si256((const void *)(row[r] + k));
        const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi8(0x7f));
        /* Below the least normal number (8) this wraps round to the top. */
        const __m256i above = _mm256_sub_epi8(magnitude, _mm256_set1_epi8(8));
        highest = _mm256_max_epu8(highest, above);
    }
    const __m256i beyond = _mm256_subs_epu8(highest, _mm256_set1_epi8(0x7e - 8));
    return _mm256_testz_si256(beyond, beyond);
}

/* vec_from_fp8 for usual codes: sign and the other seven bits in place, exponent rebiased. */
VEC_INLINE struct vec vec_from_fp8_usual(const uint8_t *from)
{
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from));
    const __m512i placed = _mm512_and_si512(_mm512_slli_epi32(wide, 20),
                                            _mm512_set1_epi32((int)0x87f00000));
    return (struct vec){ _mm512_castsi512_ps(
        _mm512_add_epi32(placed, _mm512_set1_epi32(120 << 23))) };
}

/* Sixteen i32 lanes: sums of four products of bytes. */
struct ivec {
    __m512i all;
};

/* What a group's sums start with: weights are moved up so that they are not negative. */
VEC_INLINE struct ivec ivec_start(enum kern_dtype dtype, const uint8_t *start)
{
    int32_t value;
    (void)dtype;
    memcpy(&value, start, sizeof value);
    return (struct ivec){ _mm512_set1_epi32(value) };
}

/* 64 INT8 weights, moved up by 128. */
VEC_INLINE struct ivec ivec_int8(const uint8_t *from)
{
    return (struct ivec){ _mm512_xor_si512(_mm512_loadu_si512(from),
                                           _mm512_set1_epi8((char)0x80)) };
}

/* Of 64 bytes the low nibbles and what ivec_int4_high needs beside them: the bytes as they are. */
VEC_INLINE void ivec_int4(const uint8_t *from, struct ivec *low, struct ivec *whole)
{
    whole->all = _mm512_loadu_si512(from);
    low->all = _mm512_and_si512(whole->all, _mm512_set1_epi8(15));
}

/* Sums of high nibbles, VEC_INT4_HIGH times as large, of those of both. */
VEC_INLINE struct ivec ivec_int4_high(struct ivec low, struct ivec whole)
{
    return (struct ivec){ _mm512_sub_epi32(whole.all, low.all) };
}

/* Such a sum divided by VEC_INT4_HIGH. */
VEC_INLINE struct ivec ivec_int4_lowered(struct ivec a)
{
    return (struct ivec){ _mm512_srai_epi32(a.all, 4) };
}

/* Four codes, the same in every lane. */
VEC_INLINE struct ivec ivec_four(const uint8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return (struct ivec){ _mm512_set1_epi32(four) };
}

/* sum += in each lane the products of four weights and four codes. */
VEC_INLINE struct ivec ivec_dot(enum kern_dtype dtype, struct ivec w, struct ivec x,
                                struct ivec sum)
{
    (void)dtype;
    return (struct ivec){ _mm512_dpbusd_epi32(sum.all, w.all, x.all) };
}

VEC_INLINE struct vec ivec_float(struct ivec a)
{
    return (struct vec){ _mm512_cvtepi32_ps(a.all) };
}

/* Sixteen floats in a register: without the empty statement the compiler would rather read memory
 * once for each use. */
VEC_INLINE __m512 vec_once(const float *from)
{
    __m512 value = _mm512_loadu_ps(from);
    __asm__("" : "+v"(value));
    return value;
}

/* One register: here all sixteen lanes. */
enum { REG_LANES = 16 };

struct reg {
    __m512 all;
};

VEC_INLINE struct reg reg_zero(void)
{
    return (struct reg){ _mm512_setzero_ps() };
}

/* In a register, as in vec_once. */
VEC_INLINE struct reg reg_load(const float *from)
{
    return (struct reg){ vec_once(from) };
}

VEC_INLINE struct reg reg_set1(const float *from)
{
    struct reg value = { _mm512_set1_ps(*from) };
    __asm__("" : "+v"(value.all));
    return value;
}

VEC_INLINE struct reg reg_from_bf16(const void *from)
{
    return (struct reg){ vec_from_bf16(from).all };
}

VEC_INLINE void reg_store(float *to, struct reg a)
{
    _mm512_storeu_ps(to, a.all);
}

VEC_INLINE struct reg reg_fma(struct reg a, struct reg b, struct reg c)
{
    return (struct reg){ _mm512_fmadd_ps(a.all, b.all, c.all) };
}

VEC_INLINE struct reg reg_mul(struct reg a, struct reg b)
{
    return (struct reg){ _mm512_mul_ps(a.all, b.all) };
}

/* Lanes j and j + 8 of a, then of b, added. */
VEC_INLINE __m512 tree_eight(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

/* Of eights: lanes j and j + 4. */
VEC_INLINE __m512 tree_four(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* Of fours: lanes j and j + 2, then j + 1. */
VEC_INLINE __m512 tree_one(__m512 a, __m512 b)
{
    const __m512 low = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a),
                                                           _mm512_castps_pd(b)));
    const __m512 high = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a),
                                                            _mm512_castps_pd(b)));
    const __m512 two = _mm512_add_ps(low, high);
    return _mm512_add_ps(two, _mm512_movehdup_ps(two));
}

/* vec_tree of eight vectors at once. */
VEC_INLINE void vec_tree_eight(float *to, const float *from)
{
    __m512 v[8];
    UNROLL for (uint32_t i = 0; i < 8; i++) v[i] = _mm512_loadu_ps(from + i * 16);
    /* Four lanes each: 0, 1, 2, 3 and 4, 5, 6, 7. */
    const __m512 a = tree_four(tree_eight(v[0], v[1]), tree_eight(v[2], v[3]));
    const __m512 b = tree_four(tree_eight(v[4], v[5]), tree_eight(v[6], v[7]));
    /* Lanes 4i and 4i + 2: i of a, i of b. */
    const __m512 sums = tree_one(a, b);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(to, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums)));
}

/* sum[m][n] = fma(w[n], x[m], sum[m][n]) for the first `cols` n. */
VEC_INLINE void vec_tile_step(uint32_t rows, uint32_t cols,
                              struct vec sum[VEC_TILE_M][VEC_TILE_N], const float *w,
                              const float *x, size_t x_stride)
{
    __m512 weight[VEC_TILE_N];
    UNROLL for (uint32_t n = 0; n < cols; n++)
        weight[n] = vec_once(w + n * 16);
    UNROLL for (uint32_t m = 0; m < rows; m++) {
        const __m512 value = vec_once(x + m * x_stride);
        UNROLL for (uint32_t n = 0; n < cols; n++)
            sum[m][n].all = _mm512_fmadd_ps(weight[n], value, sum[m][n].all);
    }
}

/* Sixteen codes, rounded to nearest even. */
VEC_INLINE void vec_to_bf16(uint16_t *to, struct vec a)
{
    const __m512i bits = _mm512_castps_si512(a.all);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a.all, a.all, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_srli_epi32(_mm512_mask_mov_epi32(sum, is_nan, quiet), 16);
    _mm256_storeu_si256((void *)to, _mm512_cvtepi32_epi16(rounded));
}

#endif
