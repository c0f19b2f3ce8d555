/* Woven FP8 (kernels/weave.h) against up to WOVEN_M operand rows, which are made larger, for the
 * AVX2 set; against more: simd_woven_many.h. Part of simd.h.
 *
 * Sixteen registers hold no cut of x. Instead several groups share what is loaded of it, row by row
 * of a cut. They lie a part of the range apart: as many streams of memory, for the prefetcher draws
 * from one alone but two thirds of what DRAM gives a thread (README.md). Ranges that are no whole
 * cuts, and rows that make up no whole group, are left to product_few. */

enum { WOVEN_M = 4, WOVEN_STREAMS = 4, WOVEN_TOGETHER = 4 };
enum { WOVEN_HALF = 32, WOVEN_HALVES = KERN_WOVEN_CUT / WOVEN_HALF };

/* Of groups that are worked on together, the totals of their rows by operand row. */
struct woven_totals {
    float at[WOVEN_STREAMS][WOVEN_M][KERN_WOVEN_ROWS][KERN_LANES];
};

/* `streams` groups from row n on, each `apart` rows from the one before, against `count` operand
 * rows from m on. */
struct woven_shape {
    uint32_t streams, count;
};

struct woven_at {
    const struct kern_matmul *args;
    uint32_t n, apart, m;
};

/* The first or the second half of a piece: four codes in each of eight lanes. */
struct woven_bits {
    __m256i all, swapped;
};

VEC_INLINE struct woven_bits woven_bits(const uint8_t *from)
{
    const __m256i all = _mm256_loadu_si256((const void *)from);
    /* The nibbles of each byte swapped, as far as codes 2 and 3 are made of them. */
    const __m256i up = _mm256_set1_epi32((int)0x80f080f0), down = _mm256_set1_epi32(0x07000700);
    return (struct woven_bits){ all, _mm256_or_si256(
                                         _mm256_and_si256(_mm256_slli_epi32(all, 4), up),
                                         _mm256_and_si256(_mm256_srli_epi32(all, 4), down)) };
}

/* 2^-120 of the values of a code. */
VEC_INLINE __m256 woven_small(struct woven_bits bits, uint32_t code)
{
    const __m256i mask = _mm256_set1_epi32((int)KERN_WOVEN_MASK);
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    switch (code) {
    case 0: return _mm256_castsi256_ps(_mm256_and_si256(bits.all, mask));
    case 1: return _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(bits.all, 16), mask));
    case 2: return _mm256_castsi256_ps(_mm256_and_si256(bits.swapped, upper));
    default: return _mm256_castsi256_ps(_mm256_slli_epi32(bits.swapped, 16));
    }
}

/* The sums of one row of each group over a cut. */
struct woven_sums {
    __m256 at[WOVEN_STREAMS][WOVEN_TOGETHER][2];
};

VEC_INLINE void woven_half(const struct woven_shape s, uint32_t half,
                           const uint8_t *const line[WOVEN_STREAMS],
                           const float *const x[WOVEN_TOGETHER], struct woven_sums *sums)
{
    struct woven_bits bits[WOVEN_STREAMS];
    UNROLL for (uint32_t g = 0; g < s.streams; g++)
        bits[g] = woven_bits(line[g] + half * WOVEN_HALF);
    UNROLL for (uint32_t code = 0; code < 4; code++)
    {
        const uint32_t column = half / 2 * KERN_WOVEN + code * KERN_LANES + half % 2 * 8;
        __m256 value[WOVEN_TOGETHER];
        UNROLL for (uint32_t m = 0; m < s.count; m++) value[m] = _mm256_loadu_ps(x[m] + column);
        UNROLL for (uint32_t g = 0; g < s.streams; g++)
        {
            const __m256 weights = woven_small(bits[g], code);
            UNROLL for (uint32_t m = 0; m < s.count; m++)
            {
                __m256 *sum = &sums->at[g][m][half % 2];
                *sum = _mm256_fmadd_ps(weights, value[m], *sum);
            }
        }
    }
}

/* Totals += a cut of all rows of the groups. */
VEC_INLINE void woven_cut(const struct woven_shape s, const struct woven_at *at, uint32_t cut,
                          struct woven_totals *totals)
{
    const struct kern_matmul *args = at->args;
    const uint8_t *line[WOVEN_STREAMS];
    const float *x[WOVEN_TOGETHER];
    __m256 scale[WOVEN_STREAMS];
    UNROLL for (uint32_t m = 0; m < s.count; m++)
        x[m] = args->x + (at->m + m) * args->x_stride + cut * KERN_WOVEN_CUT;
    UNROLL for (uint32_t g = 0; g < s.streams; g++)
    {
        const uint32_t n = at->n + g * at->apart;
        line[g] = kern_woven_row(args->w, n) + (size_t)cut * KERN_WOVEN_ROWS * KERN_WOVEN_CUT;
        scale[g] = _mm256_set1_ps(scalar_scale(KERN_FP8_WOVEN, scalar_scales(args->w, n), cut));
    }
    for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) {
        struct woven_sums sums;
        UNROLL for (uint32_t g = 0; g < s.streams; g++)
        {
            UNROLL for (uint32_t m = 0; m < s.count; m++)
                sums.at[g][m][0] = sums.at[g][m][1] = _mm256_setzero_ps();
        }
        UNROLL for (uint32_t half = 0; half < WOVEN_HALVES; half++)
            woven_half(s, half, line, x, &sums);
        UNROLL for (uint32_t g = 0; g < s.streams; g++)
        {
            UNROLL for (uint32_t m = 0; m < s.count; m++)
            {
                float *total = totals->at[g][at->m + m][r];
                UNROLL for (uint32_t i = 0; i < 2; i++)
                    _mm256_store_ps(total + 8 * i,
                                    _mm256_fmadd_ps(sums.at[g][m][i], scale[g],
                                                    _mm256_load_ps(total + 8 * i)));
            }
            line[g] += KERN_WOVEN_CUT;
        }
    }
}

/* Totals = cuts [cut, end) of groups that are worked on together. */
VEC_INLINE void woven_cuts(uint32_t streams, bool one, const struct kern_matmul *args, uint32_t n,
                           uint32_t apart, uint32_t cut, uint32_t end, struct woven_totals *totals)
{
    const uint32_t rows = one ? 1 : args->m;
    for (uint32_t g = 0; g < streams; g++)
        memset(totals->at[g], 0, rows * sizeof totals->at[g][0]);
    for (; cut < end; cut++) {
        struct woven_at at = { args, n, apart, 0 };
        for (; streams == 1 && rows - at.m >= 4; at.m += 4)
            woven_cut((struct woven_shape){ streams, 4 }, &at, cut, totals);
        for (; !one && rows - at.m >= 2; at.m += 2)
            woven_cut((struct woven_shape){ streams, 2 }, &at, cut, totals);
        if (one || at.m < rows)
            woven_cut((struct woven_shape){ streams, 1 }, &at, cut, totals);
    }
}

/* y of groups that are worked on together. */
VEC_INLINE void woven_groups(uint32_t streams, bool one, const struct kern_matmul *args, uint32_t n,
                             uint32_t apart)
{
    enum { EIGHT = 8 };
    _Alignas(64) struct woven_totals totals;
    for (uint32_t i = 0; i < args->k_blocks; i++) {
        woven_cuts(streams, one, args, n, apart,
                   cpu_range_begin(args->w, i, args->k_blocks) / KERN_WOVEN_CUT,
                   cpu_range_begin(args->w, i + 1, args->k_blocks) / KERN_WOVEN_CUT, &totals);
        for (uint32_t g = 0; g < streams; g++) {
            for (uint32_t m = 0; m < (one ? 1 : args->m); m++) {
                float part[KERN_WOVEN_ROWS];
                float *y = args->y + m * args->y_stride + n + g * apart;
                for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r += EIGHT)
                    vec_tree_eight(part + r, totals.at[g][m][r]);
                for (uint32_t r = 0; r < KERN_WOVEN_ROWS; r++) y[r] = i ? y[r] + part[r] : part[r];
            }
        }
    }
}

static __attribute__((noinline)) void woven_one(uint32_t streams, const struct kern_matmul *args,
                                                uint32_t n, uint32_t apart)
{
    if (streams == WOVEN_STREAMS) woven_groups(WOVEN_STREAMS, true, args, n, apart);
    else if (streams == 2) woven_groups(2, true, args, n, apart);
    else woven_groups(1, true, args, n, apart);
}

/* Two operand rows leave registers for two groups. */
static __attribute__((noinline)) void woven_few(uint32_t streams, const struct kern_matmul *args,
                                                uint32_t n, uint32_t apart)
{
    if (streams == 2) woven_groups(2, false, args, n, apart);
    else woven_groups(1, false, args, n, apart);
}

/* Groups of rows [n, end), which each have the same scales. */
static void woven_range(const struct kern_matmul *args, uint32_t n, uint32_t end)
{
    uint32_t streams = args->m == 1 ? WOVEN_STREAMS : args->m < 4 ? 2 : 1;
    for (; streams > 0; streams /= 2) {
        const uint32_t apart = (end - n) / KERN_WOVEN_ROWS / streams * KERN_WOVEN_ROWS;
        for (uint32_t i = 0; i < apart; i += KERN_WOVEN_ROWS) {
            if (args->m == 1) woven_one(streams, args, n + i, apart);
            else woven_few(streams, args, n + i, apart);
        }
        n += streams * apart;
    }
}

/* x times 2^120, exactly; false where it would not be a float or is none. */
VEC_INLINE bool woven_enlarge(float *to, const float *x, uint32_t n)
{
    __m256i most = _mm256_setzero_si256(); /* magnitudes as integers: a NaN is larger than all */
    for (uint32_t k = 0; k < n; k += 8) {
        const __m256 value = _mm256_loadu_ps(x + k);
        const __m256i bits = _mm256_and_si256(_mm256_castps_si256(value),
                                              _mm256_set1_epi32(0x7fffffff));
        most = _mm256_max_epi32(most, bits);
        _mm256_store_ps(to + k, _mm256_mul_ps(value, _mm256_set1_ps(KERN_WOVEN_UP)));
    }
    const __m256i beyond = _mm256_cmpgt_epi32(
        most, _mm256_set1_epi32((int)scalar_to_bits(0x1p8f) - 1));
    return _mm256_testz_si256(beyond, beyond);
}

/* Whether ranges of columns are whole cuts. */
VEC_INLINE bool woven_by_cuts(const struct kern_matmul *args)
{
    bool by_cuts = true;
    for (uint32_t i = 1; i < args->k_blocks; i++)
        by_cuts &= cpu_range_begin(args->w, i, args->k_blocks) % KERN_WOVEN_CUT == 0;
    return by_cuts;
}

VEC_INLINE bool woven_whole(const struct kern_matmul *args, uint32_t n)
{
    return scalar_scales(args->w, n) == scalar_scales(args->w, n + KERN_WOVEN_ROWS - 1);
}

enum { WOVEN_ROOM = 65536 }; /* floats for which there is room on a stack */

/* The end of whole groups from row n on, which each have the same scales; n where there is none. */
VEC_INLINE uint32_t woven_groups_end(const struct kern_matmul *args, uint32_t n, uint32_t row_end)
{
    while (n % KERN_WOVEN_ROWS == 0 && n + KERN_WOVEN_ROWS <= row_end && woven_whole(args, n))
        n += KERN_WOVEN_ROWS;
    return n;
}

/* The end of rows from n on that make up no such group. */
VEC_INLINE uint32_t woven_rest_end(uint32_t n, uint32_t row_end)
{
    const uint32_t next = n / KERN_WOVEN_ROWS * KERN_WOVEN_ROWS + KERN_WOVEN_ROWS;
    return next < row_end ? next : row_end;
}

/* Woven weights come out 2^-120 too small: against an x that is 2^120 as large each multiply-add
 * gives the bits that the values give. */
static __attribute__((noinline)) void woven_product(const struct kern_matmul *args,
                                                    uint32_t row_begin, uint32_t row_end)
{
    _Alignas(64) float x[WOVEN_ROOM];
    const struct kern_matrix *w = args->w;
    struct kern_matmul enlarged = *args;
    enlarged.x = x;
    enlarged.x_stride = w->cols;
    bool fits = (size_t)args->m * w->cols <= WOVEN_ROOM && woven_by_cuts(args);
    for (uint32_t m = 0; fits && m < args->m; m++)
        fits = woven_enlarge(x + (size_t)m * w->cols, args->x + m * args->x_stride, w->cols);
    if (!fits) {
        product_few(args, KERN_FP8_WOVEN, true, row_begin, row_end);
        return;
    }
    for (uint32_t n = row_begin, next; n < row_end; n = next) {
        next = woven_groups_end(args, n, row_end);
        if (next > n) {
            woven_range(&enlarged, n, next);
            continue;
        }
        next = woven_rest_end(n, row_end);
        product_few(args, KERN_FP8_WOVEN, true, n, next);
    }
}

#include "kernels/cpu/simd_woven_many.h"
