/* Arithmetic: one table of operations, filled by the scalar reference and overwritten upward by
 * what the processor can do (AVX2, AVX-512; CUDA fills its own).
 *
 * Invariant (same bits): each output element has ONE reduction order, fixed by K alone, the same in
 * every CPU op set, for every M, row range, thread count and alignment:
 *
 *   dot(w, x, k0, k1)   KERN_LANES = 16 partial sums; lane j takes k0+j, k0+j+16, ... by fused
 *                       multiply-add in ascending k; a lane past k1 adds fma(0, 0, lane). Then the
 *                       tree: lane j += lane j+8, j+4, j+2, j+1.
 *   block-scaled types  the range is cut where the scale changes (every `scale_cols` columns,
 *                       counted from column 0). Within a cut the 16 lanes start at zero; then
 *                       total_lane = fma(block_lane, scale, total_lane); the tree comes once, at
 *                       the end, over the totals.
 *   matmul              y = dot over [0, K), or, with k_blocks = 8 (row-parallel products), the sum
 *                       in ascending order of dots over [K*i/8, K*(i+1)/8), i = 0..7, starting
 *                       from the first: any of 1, 2, 4, 8 ranks can hold whole blocks. INT8 and
 *                       INT4: bounds rounded down to multiples of 128, so that groups stay whole.
 *   matmul_x8           INT8 or INT4 weights in tiles against activations as integers of one or
 *                       three digits. The products of a group of columns are summed as integers by
 *                       digit (exact in any order). One digit: value = sum. Three: value =
 *                       fma(sum_0, 254^2, fma(sum_1, 254, sum_2)). Then total = fma(value, weight
 *                       scale * activation scale, total), groups ascending, from zero.
 *   matmul_t            y[c] = sum over rows d ascending of fma(w[d][c], x[d] * scale(d, c), y[c]).
 *   exp, silu           kern_exp: one polynomial in fused multiply-adds, the same in every op set.
 *
 * So all CPU op sets agree bit for bit, and the tests demand equality, not a tolerance; only the
 * sign and payload of a NaN are left open, the hardware picks them by operand order. Sources are
 * compiled with -ffp-contract=off; fused operations are written out.
 *
 * Weights stay in their stored type and are decoded in registers. Pointers to weights need 1-byte
 * alignment for FP8, INT8 and INT4 and 2-byte for BF16/F16; scales may lie anywhere (loaded
 * bytewise).
 * Nothing here allocates, locks or starts threads; any thread, disjoint outputs.
 */
#ifndef KERNELS_KERN_H
#define KERNELS_KERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KERN_LANES = 16, KERN_RANK_BLOCKS = 8, KERN_MLA_BLOCK_MAX = 256,
       KERN_MLA_RUN = 64 };

enum kern_dtype {
    KERN_F32,
    KERN_F16,
    KERN_BF16,
    KERN_FP8_E4M3,
    KERN_INT8,
    KERN_INT4,
    KERN_FP8_WOVEN,             /* FP8 as kern_weave left it (kernels/weave.h); no file has it */
    KERN_DTYPE_COUNT,
    KERN_STORED_COUNT = KERN_FP8_WOVEN  /* types that files have */
};

/* A weight matrix [rows][cols], row-major and dense, with block scales: element (n, k) is
 * decode(data[n][k]) * scales[n / scale_rows][k / scale_cols]. FP8 codes 0x7f and 0xff (NaN) decode
 * as NaN.
 *
 * F32, F16, BF16, FP8: scales are f32, or NULL. INT8, INT4: scales are bf16, there is one for each
 * group of 32 or 128 columns of a row (scale_rows 1, scale_cols 32 or 128), and they must be there.
 * INT8 is two's complement. INT4 is two's complement nibbles, -8..7; a row is padded to whole
 * blocks of 64 columns in 32 bytes: byte b of a block holds column b in its low nibble and column
 * 32 + b in its high one. The pad's codes do not matter.
 *
 * FP8 woven: for matmul alone; whole cuts of 128 columns with scales, no NaN. Not row-major:
 * kernels/weave.h.
 *
 * `tiled`: INT8 or INT4 as kern_tile left it (kernels/tile.h); for matmul_x8 alone. */
struct kern_matrix {
    enum kern_dtype dtype;
    bool tiled;
    uint32_t rows, cols;
    const void *data;
    const void *scales; /* ceil(rows/scale_rows) x ceil(cols/scale_cols), or NULL */
    uint32_t scale_rows, scale_cols;
};

enum { KERN_GROUP_SMALL = 32, KERN_GROUP_LARGE = 128, KERN_INT4_BLOCK = 64 };

/* Bytes of one weight; not of INT4, which has whole bytes only in rows. */
size_t kern_dtype_bytes(enum kern_dtype dtype);
/* Bytes of a row of `cols` weights. */
size_t kern_row_bytes(enum kern_dtype dtype, uint32_t cols);
/* INT8 and INT4: scales per group of columns of one row. */
static inline bool kern_dtype_grouped(enum kern_dtype dtype)
{
    return dtype == KERN_INT8 || dtype == KERN_INT4;
}

/* y[m][n] for n in [row_begin, row_end), all m. Strides in elements. Ranges of a multiple of 12
 * rows (at m <= 2, of 4; of tiles, of 32; of woven rows, of 16) are the fastest; the bits do
 * not depend on them. */
struct kern_matmul {
    const struct kern_matrix *w;
    const float *x;             /* [m][cols], stride x_stride */
    float *y;                   /* [m][rows], stride y_stride; element n is y[m * y_stride + n] */
    uint32_t m;
    size_t x_stride, y_stride;
    uint32_t k_blocks;          /* 1, or KERN_RANK_BLOCKS */
    const void *x8;             /* of matmul_x8 alone: [m] rows made by to_x8 in groups of
                                 * w->scale_cols for w->dtype, one each x8_stride bytes */
    size_t x8_stride;
    uint32_t x8_digits;         /* of those rows */
    const uint16_t *x16;        /* of matmul_x16 alone: [m] rows made by to_x16 */
    size_t x16_stride;
};

/* A row of activations as integers of one digit (INT8) or of three, d0 * 254^2 + d1 * 254 + d2,
 * each in -127..127, which keep 24 bits of a group's largest. The row is a record for each span of
 * 128 columns, the last filled up with zeros: for each digit the codes of the span; for each group
 * of the span and each digit -128 (for INT8) or -8 (for INT4) times the sum of its codes, i32; all
 * of these once more, 17 times as large (what both nibbles of a byte of INT4 are moved up by); the
 * scale of each group, f32; in groups of 128 the room of the three other groups is zero. Rows
 * begin at a multiple of 4, best of 64. */
enum { KERN_X8_FAST = 1, KERN_X8_FULL = 3, KERN_X8_SPAN = KERN_GROUP_LARGE, KERN_X8_BOTH = 17 };

static inline size_t kern_x8_span_bytes(uint32_t digits)
{
    const uint32_t groups = KERN_X8_SPAN / KERN_GROUP_SMALL;
    return digits * (size_t)(KERN_X8_SPAN + 2 * 4 * groups) + 4 * groups;
}

static inline size_t kern_x8_bytes(uint32_t cols, uint32_t digits)
{
    return ((size_t)cols + KERN_X8_SPAN - 1) / KERN_X8_SPAN * kern_x8_span_bytes(digits);
}

/* One query token of absorbed latent attention over the paged latent cache.
 *
 *   s[t] = dot(c[t], q, 0, lora + rope) * scale                                t in [0, tokens)
 *   out  = sum_t softmax(s)[t] * c[t][:lora]
 *
 * Runs of KERN_MLA_RUN tokens in order, counted from the first whatever the blocks are, running
 * maximum and sum rescaled at each run (flash style): m' = max(m, max(s)); r = exp(m - m');
 * l = l*r, then l += exp(s-m') ascending t; acc = acc*r, then acc = fma(p_t, c[t], acc) ascending
 * t; out = acc / l. */
struct kern_mla {
    uint32_t heads;
    uint32_t lora, rope;        /* kv_lora_rank, qk_rope_dim */
    const float *q;             /* [heads][lora + rope] */
    const void *const *blocks;  /* ceil(tokens / block_tokens) of [block_tokens][lora + rope] */
    bool blocks_bf16;           /* else f32 */
    uint32_t block_tokens;      /* 1..KERN_MLA_BLOCK_MAX */
    uint32_t tokens;            /* >= 1; the query sees these */
    float scale;
    float *out;                 /* [heads][lora] */
};

/* Routing of one token from its router logits (MODEL.md, "Gate"). */
struct kern_gate {
    uint32_t experts, top_k, groups, top_groups;    /* groups <= 64, dividing experts */
    bool sigmoid;               /* else softmax over all experts */
    enum { KERN_GATE_GREEDY, KERN_GATE_GROUP_MAX, KERN_GATE_NOAUX } method;
    bool normalize;             /* weights / (their sum + 1e-20) */
    float scaling;
    const float *bias;          /* [experts], NOAUX only; may be NULL */
};

struct kern_ops {
    const char *name;           /* "reference", "avx2", "avx512" */
    void (*matmul)(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);
    /* y[c] over columns, from rows [row_begin, row_end) of w and x[row_end - row_begin]. */
    void (*matmul_t)(const struct kern_matrix *w, uint32_t row_begin, uint32_t row_end,
                     const float *x, float *y);
    /* y = x * rsqrt(mean(x^2) + eps) * weight; mean by the dot order; y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *weight, uint32_t n, float eps);
    /* y[i] = silu(gate[i]) * up[i]; y may be gate. */
    void (*swiglu)(float *y, const float *gate, const float *up, uint32_t n);
    /* Rotates pairs (2i, 2i+1) of x[dims] by cos[i], sin[i] in place; `interleaved` false: pairs
     * (i, i + dims/2). */
    void (*rope)(float *x, const float *cos, const float *sin, uint32_t dims, bool interleaved);
    void (*mla)(const struct kern_mla *args, uint32_t head_begin, uint32_t head_end);
    /* y[i] = fma(a, x[i], y[i]) */
    void (*axpy)(float *y, float a, const float *x, uint32_t n);
    void (*add)(float *y, const float *x, uint32_t n);
    /* Chooses experts: ids in descending order of choice score (strongest first, lower id wins
     * ties), weights in the same order, unbiased. `scratch` holds 2 x experts floats. */
    void (*gate)(const struct kern_gate *gate, const float *logits, uint32_t *ids, float *weights,
                 float *scratch);
    /* Element-wise conversions; n weights of one row, unscaled. */
    void (*to_f32)(float *y, const void *x, enum kern_dtype dtype, size_t n);
    void (*to_bf16)(uint16_t *y, const float *x, size_t n);     /* round to nearest even */
    /* matmul of tiles with activations as integers. */
    void (*matmul_x8)(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);
    /* x[n] in groups of 32 or 128 into kern_x8_bytes(n, digits) for weights of `dtype`, one digit
     * or three: scale = max|x| / most, code = x * most / max|x| rounded to nearest even, most =
     * 127 or 127 * 254^2. A group below 2^-100 becomes zeros; one with an infinity or a NaN gets
     * zeros and a scale of NaN, so that products with it are NaN. */
    void (*to_x8)(void *row, const float *x, uint32_t n, enum kern_dtype dtype, uint32_t group,
                  uint32_t digits);
    /* The largest of x[n], n > 0; -0 counts as 0. A NaN where any of them is not finite. */
    float (*highest)(const float *x, uint32_t n);
    /* y[i] = exp((x[i] - base) * scale), of which sums[b] adds up those of elements b *
     * KERN_SHARE_BLOCK on, fewer in the last block: lane i % 16, ascending, then the tree above. y
     * may be x. */
    void (*shares)(float *y, const float *x, uint32_t n, float base, float scale, float *sums);
    /* matmul with activations in bf16, of what kern_x16_takes (kernels/x16.h). */
    void (*matmul_x16)(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);
    /* x[w->cols] rounded to nearest even, as products with w in so many blocks take them, into
     * kern_x16_elements(w->cols, k_blocks). Of w its type, columns and cuts count. */
    void (*to_x16)(uint16_t *row, const float *x, const struct kern_matrix *w, uint32_t k_blocks);
};

/* Shares that are added up together: few enough for a sum in f32. */
#define KERN_SHARE_BLOCK 512

enum kern_cpu { KERN_CPU_REFERENCE, KERN_CPU_AVX2, KERN_CPU_AVX512, KERN_CPU_BEST };

/* The best table this machine can run, at most `cap` (option engine.cpu_mask). Static storage. */
const struct kern_ops *kern_ops_cpu(enum kern_cpu cap);
/* A given table, or NULL if this machine (or build) cannot run it: for tests and benchmarks. */
const struct kern_ops *kern_ops_variant(enum kern_cpu variant);

/* Whether bf16 activations are multiplied by vdpbf16ps; else by as many multiply-adds as f32. */
bool kern_ops_has_dot_bf16(const struct kern_ops *ops);

/* exp of x with the polynomial that every op set uses; about 1 ulp. */
float kern_exp(float x);

#endif
