/* Sixteen f32 lanes as two AVX2 registers: the vector type that simd.h is written in.
 * Needs -mavx2 -mfma -mf16c. Private to kernels/cpu.
 *
 * Invariant: each operation rounds exactly as its scalar twin in scalar.h does.
 */
#ifndef KERNELS_CPU_VEC_AVX2_H
#define KERNELS_CPU_VEC_AVX2_H

#include <immintrin.h>

#include "kernels/cpu/scalar.h"

#define VEC_INLINE static inline __attribute__((always_inline))

/* Loops over registers must vanish before registers are assigned. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* Tile of a register-blocked product (simd_halves.h): 3 x 2 outputs of two registers, or half of
 * the lanes of 3 x 3. */
#define VEC_TILE_HALVES 1
enum { VEC_TILE_M = 3, VEC_TILE_N = 2, VEC_SCALED_M = 3, VEC_SCALED_N = 3 };
enum { VEC_GEMV_ROWS = 4, VEC_TRANSPOSE = 4 };

/* Tiles of latent attention: scores of heads x tokens, 12 sums in 16 registers; values of heads x
 * registers of columns. */
enum { VEC_MLA_HEADS = 4, VEC_MLA_TOKENS = 3, VEC_MLA_COLUMNS = 2 };

#define VEC_X8_PRODUCTS "kernels/cpu/simd_x8_avx2.h"

struct vec {
    __m256 low, high;
};

/* Lanes [0, 8) and [8, 16) of a mask that is true below n. */
VEC_INLINE __m256i vec_mask_half(uint32_t n, int first)
{
    const __m256i index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                           _mm256_set1_epi32(first));
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), index);
}

VEC_INLINE struct vec vec_set1(float value)
{
    return (struct vec){ _mm256_set1_ps(value), _mm256_set1_ps(value) };
}

VEC_INLINE struct vec vec_zero(void)
{
    return (struct vec){ _mm256_setzero_ps(), _mm256_setzero_ps() };
}

VEC_INLINE struct vec vec_load(const float *from)
{
    return (struct vec){ _mm256_loadu_ps(from), _mm256_loadu_ps(from + 8) };
}

/* The first n <= 16 lanes from memory, which is not touched beyond them; the others zero. */
VEC_INLINE struct vec vec_load_part(const float *from, uint32_t n)
{
    const __m256 low = _mm256_maskload_ps(from, vec_mask_half(n, 0));
    if (n <= 8)
        return (struct vec){ low, _mm256_setzero_ps() };
    return (struct vec){ low, _mm256_maskload_ps(from + 8, vec_mask_half(n, 8)) };
}

VEC_INLINE void vec_store(float *to, struct vec a)
{
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}

VEC_INLINE void vec_store_part(float *to, struct vec a, uint32_t n)
{
    _mm256_maskstore_ps(to, vec_mask_half(n, 0), a.low);
    if (n > 8)
        _mm256_maskstore_ps(to + 8, vec_mask_half(n, 8), a.high);
}

VEC_INLINE struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){ _mm256_fmadd_ps(a.low, b.low, c.low),
                         _mm256_fmadd_ps(a.high, b.high, c.high) };
}

VEC_INLINE struct vec vec_add(struct vec a, struct vec b)
{
    return (struct vec){ _mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high) };
}

VEC_INLINE struct vec vec_sub(struct vec a, struct vec b)
{
    return (struct vec){ _mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high) };
}

VEC_INLINE struct vec vec_mul(struct vec a, struct vec b)
{
    return (struct vec){ _mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high) };
}

VEC_INLINE struct vec vec_div(struct vec a, struct vec b)
{
    return (struct vec){ _mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high) };
}

/* a > b ? a : b, so b where either is a NaN. */
VEC_INLINE struct vec vec_max(struct vec a, struct vec b)
{
    return (struct vec){ _mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high) };
}

/* a < b ? a : b. */
VEC_INLINE struct vec vec_min(struct vec a, struct vec b)
{
    return (struct vec){ _mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high) };
}

VEC_INLINE struct vec vec_negate(struct vec a)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (struct vec){ _mm256_xor_ps(a.low, sign), _mm256_xor_ps(a.high, sign) };
}

/* The sum of the lanes by the tree of kern.h. */
VEC_INLINE float vec_tree(struct vec a)
{
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* a * 2^n, where the bits of `shifted` are n above those of EXP_ROUND (scalar_exp's last step). */
VEC_INLINE __m256 vec_scale_half(__m256 a, __m256 shifted)
{
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i whole = _mm256_sub_epi32(_mm256_castps_si256(shifted),
                                           _mm256_castps_si256(_mm256_set1_ps(EXP_ROUND)));
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const __m256i rest = _mm256_sub_epi32(whole, half);
    const __m256i scale_a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i scale_b = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(scale_a)),
                         _mm256_castsi256_ps(scale_b));
}

VEC_INLINE struct vec vec_scale(struct vec a, struct vec shifted)
{
    return (struct vec){ vec_scale_half(a.low, shifted.low), vec_scale_half(a.high, shifted.high) };
}

VEC_INLINE struct vec vec_from_f16(const void *from)
{
    const __m256i codes = _mm256_loadu_si256(from);
    return (struct vec){ _mm256_cvtph_ps(_mm256_castsi256_si128(codes)),
                         _mm256_cvtph_ps(_mm256_extracti128_si256(codes, 1)) };
}

VEC_INLINE struct vec vec_from_bf16(const void *from)
{
    const __m128i *codes = from;
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(codes));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(codes + 1));
    return (struct vec){ _mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                         _mm256_castsi256_ps(_mm256_slli_epi32(high, 16)) };
}

/* Of sixteen pairs all the first or all the second. */
VEC_INLINE struct vec vec_from_bf16_pairs(const void *from, uint32_t second)
{
    const __m256i *pairs = from;
    const __m256i low = _mm256_loadu_si256(pairs), high = _mm256_loadu_si256(pairs + 1);
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    if (second)
        return (struct vec){ _mm256_castsi256_ps(_mm256_and_si256(low, upper)),
                             _mm256_castsi256_ps(_mm256_and_si256(high, upper)) };
    return (struct vec){ _mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                         _mm256_castsi256_ps(_mm256_slli_epi32(high, 16)) };
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
    const struct vec units = { _mm256_cvtph_ps(_mm256_castsi256_si128(half)),
                               _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)) };
    return vec_mul(units, vec_set1(256.0f));
}

/* Codes `code` of the sixteen dwords of a piece of woven FP8 (kernels/weave.h). */
VEC_INLINE __m256 vec_woven_half(const uint8_t *piece, uint32_t code)
{
    const __m256i low = _mm256_set1_epi8(0x0f);
    __m256i bits = _mm256_loadu_si256((const void *)piece);
    if (code >= 2) {
        bits = _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(bits, low), 4),
                               _mm256_and_si256(_mm256_srli_epi32(bits, 4), low));
    }
    if (code % 2) bits = _mm256_slli_epi32(bits, 16);
    bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)KERN_WOVEN_MASK));
    return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(KERN_WOVEN_UP));
}

VEC_INLINE struct vec vec_from_woven(const uint8_t *piece, uint32_t code)
{
    return (struct vec){ vec_woven_half(piece, code), vec_woven_half(piece + 32, code) };
}

VEC_INLINE struct vec vec_from_int8(const uint8_t *from)
{
    const __m256i low = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from));
    const __m256i high = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(from + 8)));
    return (struct vec){ _mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high) };
}

/* Sixteen bytes, one a lane, whose two nibbles the next two functions give. */
struct vec_pairs {
    __m256i low, high;
};

VEC_INLINE struct vec_pairs vec_int4_pairs(const uint8_t *from)
{
    return (struct vec_pairs){ _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)),
                               _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(from + 8))) };
}

VEC_INLINE struct vec vec_int4_low(struct vec_pairs a)
{
    const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(a.low, 28), 28);
    const __m256i high = _mm256_srai_epi32(_mm256_slli_epi32(a.high, 28), 28);
    return (struct vec){ _mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high) };
}

VEC_INLINE struct vec vec_int4_high(struct vec_pairs a)
{
    return (struct vec){ _mm256_cvtepi32_ps(_mm256_srai_epi32(a.low, 4)),
                         _mm256_cvtepi32_ps(_mm256_srai_epi32(a.high, 4)) };
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
VEC_INLINE __m256 vec_fp8_usual_half(const void *from)
{
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from));
    const __m256i placed = _mm256_and_si256(_mm256_slli_epi32(wide, 20),
                                            _mm256_set1_epi32((int)0x87f00000));
    return _mm256_castsi256_ps(_mm256_add_epi32(placed, _mm256_set1_epi32(120 << 23)));
}

VEC_INLINE struct vec vec_from_fp8_usual(const uint8_t *from)
{
    return (struct vec){ vec_fp8_usual_half(from), vec_fp8_usual_half(from + 8) };
}

/* True when none of 64 codes is a NaN. */
VEC_INLINE bool vec_fp8_numbers(const uint8_t *from)
{
    const __m256i sign = _mm256_set1_epi8((char)0x80), nan = _mm256_set1_epi8((char)0xff);
    const __m256i low = _mm256_or_si256(_mm256_loadu_si256((const void *)from), sign);
    const __m256i high = _mm256_or_si256(_mm256_loadu_si256((const void *)(from + 32)), sign);
    const __m256i highest = _mm256_cmpeq_epi8(_mm256_max_epu8(low, high), nan);
    return _mm256_testz_si256(highest, highest);
}

/* vec_from_fp8 for codes that are no NaN: the bits in place, 2^-120 of the value, made as large as
 * that. */
VEC_INLINE __m256 vec_fp8_number_half(const void *from)
{
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from));
    const __m256i placed = _mm256_and_si256(_mm256_slli_epi32(wide, 20),
                                            _mm256_set1_epi32((int)KERN_WOVEN_MASK));
    return _mm256_mul_ps(_mm256_castsi256_ps(placed), _mm256_set1_ps(KERN_WOVEN_UP));
}

VEC_INLINE struct vec vec_from_fp8_number(const uint8_t *from)
{
    return (struct vec){ vec_fp8_number_half(from), vec_fp8_number_half(from + 8) };
}

/* Eight floats in a register: without the empty statement the compiler would rather read memory
 * once for each use, and a tile is bound by its loads. */
VEC_INLINE __m256 vec_half_once(const float *from)
{
    __m256 value = _mm256_loadu_ps(from);
    __asm__("" : "+x"(value));
    return value;
}

/* One register: half of the lanes. */
enum { REG_LANES = 8 };

struct reg {
    __m256 all;
};

VEC_INLINE struct reg reg_zero(void)
{
    return (struct reg){ _mm256_setzero_ps() };
}

/* In a register of its own. */
VEC_INLINE struct reg reg_once(struct reg a)
{
    __asm__("" : "+x"(a.all));
    return a;
}

/* In a register, as in vec_half_once. */
VEC_INLINE struct reg reg_load(const float *from)
{
    return (struct reg){ vec_half_once(from) };
}

/* Where memory may stay an operand. */
VEC_INLINE struct reg reg_peek(const float *from)
{
    return (struct reg){ _mm256_loadu_ps(from) };
}

VEC_INLINE struct reg reg_set1(const float *from)
{
    struct reg value = { _mm256_broadcast_ss(from) };
    __asm__("" : "+x"(value.all));
    return value;
}

VEC_INLINE struct reg reg_from_bf16(const void *from)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
    return (struct reg){ _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)) };
}

VEC_INLINE void reg_store(float *to, struct reg a)
{
    _mm256_storeu_ps(to, a.all);
}

VEC_INLINE struct reg reg_fma(struct reg a, struct reg b, struct reg c)
{
    return (struct reg){ _mm256_fmadd_ps(a.all, b.all, c.all) };
}

VEC_INLINE struct reg reg_mul(struct reg a, struct reg b)
{
    return (struct reg){ _mm256_mul_ps(a.all, b.all) };
}

/* Of eights: lanes j and j + 4 of a, then of b, added. */
VEC_INLINE __m256 tree_four(__m256 a, __m256 b)
{
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/* Of fours: lanes j and j + 2, then j + 1. */
VEC_INLINE __m256 tree_one(__m256 a, __m256 b)
{
    const __m256 low = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a),
                                                           _mm256_castps_pd(b)));
    const __m256 high = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a),
                                                            _mm256_castps_pd(b)));
    const __m256 two = _mm256_add_ps(low, high);
    return _mm256_add_ps(two, _mm256_movehdup_ps(two));
}

/* vec_tree of eight vectors at once. */
VEC_INLINE void vec_tree_eight(float *to, const float *from)
{
    __m256 v[8];
    UNROLL for (uint32_t i = 0; i < 8; i++)
        v[i] = _mm256_add_ps(_mm256_loadu_ps(from + i * 16), _mm256_loadu_ps(from + i * 16 + 8));
    /* Lanes 0, 2, 4, 6: vectors 0, 2, 1, 3; 4, 6, 5, 7. */
    const __m256 a = tree_one(tree_four(v[0], v[1]), tree_four(v[2], v[3]));
    const __m256 b = tree_one(tree_four(v[4], v[5]), tree_four(v[6], v[7]));
    const __m256 sums = _mm256_shuffle_ps(a, b, 0x88);  /* 0, 2, 4, 6, 1, 3, 5, 7 */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(sums, order));
}

VEC_INLINE __m256i vec_bf16_half(__m256 a)
{
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    return _mm256_srli_epi32(_mm256_blendv_epi8(sum, quiet, _mm256_castps_si256(is_nan)), 16);
}

/* Sixteen codes, rounded to nearest even. */
VEC_INLINE void vec_to_bf16(uint16_t *to, struct vec a)
{
    const __m256i packed = _mm256_packus_epi32(vec_bf16_half(a.low), vec_bf16_half(a.high));
    _mm256_storeu_si256((void *)to, _mm256_permute4x64_epi64(packed, 0xd8));
}

#endif
