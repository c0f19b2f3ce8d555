#include "kernels/weave.h"

#include <stdatomic.h>
#include <string.h>

#include "base/must.h"
#include "kernels/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

bool kern_weave_takes(const struct kern_matrix *w)
{
    return w->dtype == KERN_FP8_E4M3 && w->cols > 0 && w->cols % KERN_WOVEN_CUT == 0 &&
           w->scale_rows > 0 && w->scale_cols == KERN_WOVEN_CUT;
}

static void weave_two(uint8_t a, uint8_t b, uint8_t to[2])
{
    to[0] = (uint8_t)((a & 0x0f) << 4 | (b & 0x0f));
    to[1] = (uint8_t)((a & 0x80) | (b & 0x70) | (b & 0x80) >> 4 | (a & 0x70) >> 4);
}

static void weave_piece(uint8_t *to, const uint8_t *at)
{
    uint8_t from[KERN_WOVEN];
    memcpy(from, at, sizeof from);
    for (int d = 0; d < KERN_WOVEN / 4; d++) {
        weave_two(from[16 + d], from[48 + d], to + 4 * d);
        weave_two(from[d], from[32 + d], to + 4 * d + 2);
    }
}

/* `rows` rows as a group. */
static void weave_group(uint8_t *to, const uint8_t *from, uint32_t rows, uint32_t cols)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t k = 0; k < cols; k += KERN_WOVEN, from += KERN_WOVEN)
            weave_piece(to + kern_woven_at((size_t)rows * KERN_WOVEN_CUT, k) + r * KERN_WOVEN_CUT,
                        from);
    }
}

#if defined(__x86_64__)
/* On Intel's cores a multiply-add with a subnormal operand is left to microcode. Products ask, and
 * in a virtual machine cpuid costs microseconds: it is asked once. */
static bool takes_subnormals(void)
{
    enum { UNKNOWN, TAKES, LEAVES };
    static _Atomic int known = UNKNOWN;
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (answer == UNKNOWN) {
        unsigned eax, name[3];
        const bool amd = __get_cpuid(0, &eax, &name[0], &name[2], &name[1]) &&
                         !memcmp(name, "AuthenticAMD", sizeof name);
        answer = amd ? TAKES : LEAVES;
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return answer == TAKES;
}

bool kern_weave_pays(const struct kern_ops *ops)
{
    return ops != kern_ops_variant(KERN_CPU_REFERENCE) && takes_subnormals();
}

/* weave_group where products of woven weights pay. Bytes a of codes 0, 1 and b of codes 2, 3 become
 * both of weave_two's by matrices of bits, low ones in the lower half: a row of a matrix has the
 * bits that are added up for one of the result, the highest first in the lowest byte. The rows of
 * the next group are prefetched. */
__attribute__((target("avx512f,avx512bw,avx512vbmi,gfni"))) static void
weave_group_avx512(uint8_t *to, const uint8_t *from, uint32_t rows, uint32_t cols)
{
    const long long low_a = 0x0000000001020408, high_a = 0x1020400000000080;
    const long long low_b = 0x0102040800000000, high_b = 0x0000008010204000;
    const __m512i a = _mm512_setr_epi64(low_a, low_a, low_a, low_a, high_a, high_a, high_a, high_a);
    const __m512i b = _mm512_setr_epi64(low_b, low_b, low_b, low_b, high_b, high_b, high_b, high_b);
    const size_t group = (size_t)rows * cols, step = (size_t)rows * KERN_WOVEN_CUT;
    uint8_t order[KERN_WOVEN];
    for (uint8_t d = 0; d < KERN_WOVEN / 4; d++) {
        order[4 * d] = 16 + d;          /* low, then high of codes 1 and 3 */
        order[4 * d + 1] = 48 + d;
        order[4 * d + 2] = d;           /* of codes 0 and 2 */
        order[4 * d + 3] = 32 + d;
    }
    const __m512i by_dword = _mm512_loadu_si512(order);
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t *cut = to + (size_t)r * KERN_WOVEN_CUT;
        for (uint32_t k = 0; k < cols; k += KERN_WOVEN_CUT, cut += step) {
            for (uint32_t i = 0; i < KERN_WOVEN_CUT; i += KERN_WOVEN, from += KERN_WOVEN) {
                const __m256i c01 = _mm256_loadu_si256((const void *)from);
                const __m256i c23 = _mm256_loadu_si256((const void *)(from + KERN_WOVEN / 2));
                __builtin_prefetch(from + group, 1, 2);
                const __m512i bytes = _mm512_xor_si512(
                    _mm512_gf2p8affine_epi64_epi8(_mm512_broadcast_i64x4(c01), a, 0),
                    _mm512_gf2p8affine_epi64_epi8(_mm512_broadcast_i64x4(c23), b, 0));
                _mm512_storeu_si512(cut + i, _mm512_permutexvar_epi8(by_dword, bytes));
            }
        }
    }
}

/* The same where there are but 32 bytes to a register: codes 0 and 2 in the lower half, 1 and 3 in
 * the upper one, until each dword has both. */
__attribute__((target("avx2"))) static void weave_piece_avx2(uint8_t *to, const uint8_t *from)
{
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i a = _mm256_loadu_si256((const void *)from);
    const __m256i b = _mm256_loadu_si256((const void *)(from + KERN_WOVEN / 2));
    const __m256i low = _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(a, nibble), 4),
                                        _mm256_and_si256(b, nibble));
    const __m256i high = _mm256_or_si256(
        _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi8((char)0x80)),
                        _mm256_and_si256(b, _mm256_set1_epi8(0x70))),
        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), _mm256_set1_epi8(0x08)),
                        _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(0x07))));
    /* Of the first and the last eight dwords: their upper halves, then their lower ones. */
    const __m256i first = _mm256_unpacklo_epi8(low, high), last = _mm256_unpackhi_epi8(low, high);
    const __m256i upper = _mm256_permute2x128_si256(first, last, 0x20);
    const __m256i lower = _mm256_permute2x128_si256(first, last, 0x31);
    const __m256i even = _mm256_unpacklo_epi16(lower, upper);
    const __m256i odd = _mm256_unpackhi_epi16(lower, upper);
    _mm256_storeu_si256((void *)to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256((void *)(to + KERN_WOVEN / 2),
                        _mm256_permute2x128_si256(even, odd, 0x31));
}

__attribute__((target("avx2"))) static void weave_group_avx2(uint8_t *to, const uint8_t *from,
                                                             uint32_t rows, uint32_t cols)
{
    const size_t group = (size_t)rows * cols, step = (size_t)rows * KERN_WOVEN_CUT;
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t *cut = to + (size_t)r * KERN_WOVEN_CUT;
        for (uint32_t k = 0; k < cols; k += KERN_WOVEN_CUT, cut += step) {
            for (uint32_t i = 0; i < KERN_WOVEN_CUT; i += KERN_WOVEN, from += KERN_WOVEN) {
                __builtin_prefetch(from + group, 1, 2);
                weave_piece_avx2(cut + i, from);
            }
        }
    }
}

typedef void weave_fn(uint8_t *to, const uint8_t *from, uint32_t rows, uint32_t cols);

static weave_fn *fastest(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni"))
        return weave_group_avx512;
    return __builtin_cpu_supports("avx2") ? weave_group_avx2 : weave_group;
}
#else
bool kern_weave_pays(const struct kern_ops *ops)
{
    (void)ops;
    return false;
}

typedef void weave_fn(uint8_t *to, const uint8_t *from, uint32_t rows, uint32_t cols);

static weave_fn *fastest(void)
{
    return weave_group;
}
#endif

void kern_weave(void *codes, uint32_t rows, uint32_t cols, void *scratch)
{
    weave_fn *const group = fastest();
    uint8_t *at = codes;
    MUST(cols % KERN_WOVEN_CUT == 0);
    for (uint32_t n = 0; n < rows; n += KERN_WOVEN_ROWS) {
        const uint32_t count = rows - n < KERN_WOVEN_ROWS ? rows - n : KERN_WOVEN_ROWS;
        const size_t bytes = (size_t)count * cols;
        group(scratch, at, count, cols);
        memcpy(at, scratch, bytes);
        at += bytes;
    }
}
