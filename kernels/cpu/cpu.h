/* What the CPU op sets share among themselves: the tables, the scalar twins that a faster set may
 * keep, and the cutting of a reduction range. Private to kernels/.
 *
 * Invariant: every function here is pure; the tables are filled at compile time.
 */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "base/must.h"
#include "kernels/kern.h"
#include "kernels/weave.h"

extern const struct kern_ops kern_ops_reference;
extern const struct kern_ops kern_ops_avx2;
extern const struct kern_ops kern_ops_avx512;
extern const struct kern_ops kern_ops_avx512_bf16; /* the same, and vdpbf16ps */

void kern_ref_matmul(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);
void kern_ref_matmul_t(const struct kern_matrix *w, uint32_t row_begin, uint32_t row_end,
                       const float *x, float *y);
void kern_ref_rmsnorm(float *y, const float *x, const float *weight, uint32_t n, float eps);
void kern_ref_swiglu(float *y, const float *gate, const float *up, uint32_t n);
void kern_ref_rope(float *x, const float *cos, const float *sin, uint32_t dims, bool interleaved);
void kern_ref_mla(const struct kern_mla *args, uint32_t head_begin, uint32_t head_end);
void kern_ref_axpy(float *y, float a, const float *x, uint32_t n);
void kern_ref_add(float *y, const float *x, uint32_t n);
void kern_ref_gate(const struct kern_gate *gate, const float *logits, uint32_t *ids, float *weights,
              float *scratch);
void kern_ref_to_f32(float *y, const void *x, enum kern_dtype dtype, size_t n);
float kern_ref_highest(const float *x, uint32_t n);
void kern_ref_shares(float *y, const float *x, uint32_t n, float base, float scale, float *sums);
void kern_ref_to_bf16(uint16_t *y, const float *x, size_t n);
void kern_ref_matmul_x8(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);
void kern_ref_to_x8(void *row, const float *x, uint32_t n, enum kern_dtype dtype, uint32_t group,
                    uint32_t digits);

void kern_ref_matmul_x16(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);
void kern_ref_to_x16(uint16_t *row, const float *x, const struct kern_matrix *w, uint32_t k_blocks);
void kern_avx2_matmul_x16(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);
void kern_avx2_to_x16(uint16_t *row, const float *x, const struct kern_matrix *w,
                      uint32_t k_blocks);
void kern_avx512_matmul_x16(const struct kern_matmul *args, uint32_t row_begin, uint32_t row_end);

/* One span of a row of integer activations. */
struct cpu_x8 {
    const int8_t *codes;        /* [digits][KERN_X8_SPAN] */
    const float *scales;        /* [groups] */
};

static inline struct cpu_x8 cpu_x8_span(const void *row, uint32_t span, uint32_t digits)
{
    const char *at = (const char *)row + span * kern_x8_span_bytes(digits);
    const char *end = at + kern_x8_span_bytes(digits);
    return (struct cpu_x8){ (const int8_t *)at,
                            (const void *)(end - 4 * KERN_X8_SPAN / KERN_GROUP_SMALL) };
}

/* Start of range `block` of `blocks` over the columns: the cut of row-parallel products. */
static inline uint32_t cpu_range_begin(const struct kern_matrix *w, uint32_t block, uint32_t blocks)
{
    const uint32_t begin = (uint32_t)((uint64_t)w->cols * block / blocks);
    return kern_dtype_grouped(w->dtype) && block < blocks
               ? begin / KERN_GROUP_LARGE * KERN_GROUP_LARGE
               : begin;
}

/* Where the latent and the key of token t lie. */
static inline const uint8_t *cpu_mla_row(const struct kern_mla *args, uint32_t t)
{
    const uint8_t *block = args->blocks[t / args->block_tokens];
    return block + (size_t)(t % args->block_tokens) * (args->lora + args->rope) *
                       (args->blocks_bf16 ? sizeof(uint16_t) : sizeof(float));
}

/* Groups are what the kernels are unrolled for. */
static inline void cpu_matrix_check(const struct kern_matrix *w)
{
    MUST(!kern_dtype_grouped(w->dtype) ||
         (w->scales && w->scale_rows == 1 &&
          (w->scale_cols == KERN_GROUP_SMALL || w->scale_cols == KERN_GROUP_LARGE)));
    MUST(w->dtype != KERN_FP8_WOVEN || (w->scales && w->scale_cols == KERN_WOVEN_CUT &&
                                        w->cols % KERN_WOVEN_CUT == 0));
}

static inline void cpu_x8_check(const struct kern_matmul *args, uint32_t row_begin,
                                uint32_t row_end)
{
    MUST(args->w->tiled && kern_dtype_grouped(args->w->dtype) && args->k_blocks == 1);
    MUST(row_begin <= row_end && row_end <= args->w->rows);
    MUST(args->x8_digits == KERN_X8_FAST || args->x8_digits == KERN_X8_FULL);
    MUST((uintptr_t)args->x8 % 4 == 0 && args->x8_stride % 4 == 0);
    cpu_matrix_check(args->w);
}

/* End of the cut that begins at k0: where the scale changes next, at most k1. */
static inline uint32_t cpu_cut_end(uint32_t k0, uint32_t k1, uint32_t scale_cols)
{
    const uint64_t end = ((uint64_t)k0 / scale_cols + 1) * scale_cols;
    return end < k1 ? (uint32_t)end : k1;
}

#endif
