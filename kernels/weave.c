#include "kernels/weave.h"

#include <string.h>

#include "base/must.h"
#include "kernels/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <emmintrin.h>
#endif

bool kern_weave_takes(const struct kern_matrix *w)
{
    return w->dtype == KERN_FP8_E4M3 && w->cols > 0 && w->cols % KERN_WOVEN_CUT == 0 &&
           w->scale_rows > 0 && w->scale_cols == KERN_WOVEN_CUT;
}

#if defined(__x86_64__)
/* On Intel's cores a multiply-add with a subnormal operand is left to microcode. */
static bool takes_subnormals(void)
{
    unsigned eax, name[3];
    return __get_cpuid(0, &eax, &name[0], &name[2], &name[1]) &&
           !memcmp(name, "AuthenticAMD", sizeof name);
}

bool kern_weave_pays(const struct kern_ops *ops)
{
    return (ops == &kern_ops_avx512 || ops == &kern_ops_avx512_bf16) && takes_subnormals();
}

/* Upper nibbles of `high` and lower ones of `low`. */
static __m128i nibbles(__m128i high, __m128i low)
{
    const __m128i mask = _mm_set1_epi8(0x0f);
    return _mm_or_si128(_mm_andnot_si128(mask, high), _mm_and_si128(mask, low));
}

/* Sixteen times: low = emmm a, emmm b; high = sa, eee b, sb, eee a. */
static void weave_two(__m128i a, __m128i b, __m128i *low, __m128i *high)
{
    const __m128i signs = _mm_set1_epi8((char)0x88);
    const __m128i ab = nibbles(a, _mm_srli_epi16(b, 4)), ba = nibbles(b, _mm_srli_epi16(a, 4));
    *low = nibbles(_mm_slli_epi16(a, 4), b);
    *high = _mm_or_si128(_mm_and_si128(signs, ab), _mm_andnot_si128(signs, ba));
}

static void weave_piece(uint8_t *piece)
{
    __m128i *const at = (__m128i *)(void *)piece;
    const __m128i c0 = _mm_loadu_si128(at), c1 = _mm_loadu_si128(at + 1);
    const __m128i c2 = _mm_loadu_si128(at + 2), c3 = _mm_loadu_si128(at + 3);
    __m128i low02, high02, low13, high13;
    weave_two(c0, c2, &low02, &high02);
    weave_two(c1, c3, &low13, &high13);
    const __m128i upper[2] = { _mm_unpacklo_epi8(low02, high02), _mm_unpackhi_epi8(low02, high02) };
    const __m128i lower[2] = { _mm_unpacklo_epi8(low13, high13), _mm_unpackhi_epi8(low13, high13) };
    for (int i = 0; i < 2; i++) {
        _mm_storeu_si128(at + 2 * i, _mm_unpacklo_epi16(lower[i], upper[i]));
        _mm_storeu_si128(at + 2 * i + 1, _mm_unpackhi_epi16(lower[i], upper[i]));
    }
}
#else
bool kern_weave_pays(const struct kern_ops *ops)
{
    (void)ops;
    return false;
}

static void weave_two(uint8_t a, uint8_t b, uint8_t to[2])
{
    to[0] = (uint8_t)((a & 0x0f) << 4 | (b & 0x0f));
    to[1] = (uint8_t)((a & 0x80) | (b & 0x70) | (b & 0x80) >> 4 | (a & 0x70) >> 4);
}

static void weave_piece(uint8_t *piece)
{
    uint8_t from[KERN_WOVEN];
    memcpy(from, piece, sizeof from);
    for (int d = 0; d < KERN_WOVEN / 4; d++) {
        weave_two(from[16 + d], from[48 + d], piece + 4 * d);
        weave_two(from[d], from[32 + d], piece + 4 * d + 2);
    }
}
#endif

void kern_weave(void *codes, size_t bytes)
{
    uint8_t *const at = codes;
    MUST(bytes % KERN_WOVEN == 0);
    for (size_t i = 0; i < bytes; i += KERN_WOVEN)
        weave_piece(at + i);
}
