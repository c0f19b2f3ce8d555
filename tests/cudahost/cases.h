/* The CUDA kernels on random shapes beside their scalar twins, one case a seed. */
#ifndef TESTS_CUDAHOST_CASES_H
#define TESTS_CUDAHOST_CASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/rng.h"
#include "kernels/cuda/kern_cuda.h"
#include "kernels/kern.h"

/* One case: what it draws from, and what went wrong. */
struct cuda_case {
    struct base_rng rng;
    const struct kern_ops *reference;
    bool failed;
    double worst;               /* largest error as a share of what is allowed */
    char what[384];
};

struct cuda_kernel {
    const char *name;
    void (*run)(struct cuda_case *c);
};

extern const struct cuda_kernel cuda_kernels[];
extern const size_t cuda_kernel_count;

/* ---- for the files of cases ---- */

uint32_t case_below(struct cuda_case *c, uint32_t bound);
/* Standard normal values, in a guarded buffer. */
float *case_floats(struct cuda_case *c, size_t n);
/* The same memory filled with what no result is. */
float *case_room(struct cuda_case *c, size_t n);
/* INT8 and INT4: groups of 32 or 128, whichever is nearer to scale_cols. */
struct kern_matrix case_matrix(struct cuda_case *c, enum kern_dtype dtype, uint32_t rows,
                               uint32_t cols, uint32_t scale_rows, uint32_t scale_cols);
/* sum |w x| over columns: what the error of a dot is measured by. */
double case_weight_sum(const struct kern_matrix *w, uint32_t row, const float *x);

/* Runs all that was launched; a launch must have given 0. */
void case_finish(struct cuda_case *c, int rc);
void case_fail(struct cuda_case *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Element `at` of `name` may differ from `wanted` by `allowed`. */
void case_near(struct cuda_case *c, const char *name, size_t at, double got, double wanted,
               double allowed);
/* Every bit equal, a NaN to any NaN. */
void case_same(struct cuda_case *c, const char *name, const float *got, const float *wanted,
               size_t n);

extern const double case_eps;   /* 2^-24 */

void case_rmsnorm(struct cuda_case *c);
void case_rope(struct cuda_case *c);
void case_latent(struct cuda_case *c);
void case_gate(struct cuda_case *c);
void case_combine(struct cuda_case *c);
void case_greedy(struct cuda_case *c);
void case_experts(struct cuda_case *c);
void case_experts_tiles(struct cuda_case *c);
void case_product(struct cuda_case *c);
void case_product_tiles(struct cuda_case *c);
void case_absorb(struct cuda_case *c);
void case_mla(struct cuda_case *c);
void case_embed(struct cuda_case *c);
void case_add(struct cuda_case *c);
void case_columns(struct cuda_case *c);
void case_pages(struct cuda_case *c);

#endif
