/* wmma 16 x 16 x 16, BF16 into f32, in plain code. Lane l holds elements 8 l .. 8 l + 7 of each
 * fragment, row-major; a product sums k ascending. A card sums in an order of its own, so only
 * closeness may be asked of results, never equal bits between here and there. */
#ifndef CUDAHOST_MMA_H
#define CUDAHOST_MMA_H

#include "cuda_bf16.h"
#include "cuda_runtime.h"

namespace nvcuda
{
namespace wmma
{
struct matrix_a {
};
struct matrix_b {
};
struct accumulator {
};
struct row_major {
};
struct col_major {
};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static const int num_elements = 8;
    T x[num_elements];
};

template <class F, class T> static inline void fill_fragment(F &f, T value)
{
    for (int i = 0; i < 8; i++)
        f.x[i] = value;
}

/* (row, column) of a lane's element. */
static inline void place(int i, unsigned *row, unsigned *col)
{
    const unsigned at = cudahost_self->lane * 8 + (unsigned)i;
    *row = at / 16;
    *col = at % 16;
}

template <class Use, class T, class Pointer>
static inline void load_matrix_sync(fragment<Use, 16, 16, 16, T, row_major> &f, Pointer from,
                                    unsigned stride)
{
    for (int i = 0; i < 8; i++) {
        unsigned row, col;
        place(i, &row, &col);
        f.x[i] = (T)from[(size_t)row * stride + col];
    }
    cudahost_exchange("load_matrix_sync", 0xffffffffu, 0);
}

template <class Use, class T, class Pointer>
static inline void load_matrix_sync(fragment<Use, 16, 16, 16, T, col_major> &f, Pointer from,
                                    unsigned stride)
{
    for (int i = 0; i < 8; i++) {
        unsigned row, col;
        place(i, &row, &col);
        f.x[i] = (T)from[(size_t)col * stride + row];
    }
    cudahost_exchange("load_matrix_sync", 0xffffffffu, 0);
}

static inline float from_bf16(__nv_bfloat16 value)
{
    return __uint_as_float((unsigned)value.bits << 16);
}

template <class A, class B, class C>
static inline void mma_sync(C &d, const A &a, const B &b, const C &c)
{
    static float left[32][256], right[32][256]; /* of each warp of the block */
    float *l = left[cudahost_self->warp], *r = right[cudahost_self->warp];
    for (int i = 0; i < 8; i++) {
        l[cudahost_self->lane * 8 + (unsigned)i] = from_bf16(a.x[i]);
        r[cudahost_self->lane * 8 + (unsigned)i] = from_bf16(b.x[i]);
    }
    cudahost_exchange("mma_sync", 0xffffffffu, 0);
    /* A lane's elements are neighbours of one row: each of them sums k ascending. */
    unsigned row, col;
    place(0, &row, &col);
    float sum[8];
    for (int i = 0; i < 8; i++)
        sum[i] = c.x[i];
    for (unsigned k = 0; k < 16; k++) {
        const float left_k = l[row * 16 + k], *right_k = r + k * 16 + col;
        for (int i = 0; i < 8; i++)
            sum[i] = fmaf(left_k, right_k[i], sum[i]);
    }
    for (int i = 0; i < 8; i++)
        d.x[i] = sum[i];
    cudahost_exchange("mma_sync", 0xffffffffu, 1);
}

template <class T, class Pointer>
static inline void store_matrix_sync(Pointer to, const fragment<accumulator, 16, 16, 16, T> &f,
                                     unsigned stride, layout_t layout)
{
    for (int i = 0; i < 8; i++) {
        unsigned row, col;
        place(i, &row, &col);
        to[layout == mem_row_major ? (size_t)row * stride + col : (size_t)col * stride + row] =
            f.x[i];
    }
    cudahost_exchange("store_matrix_sync", 0xffffffffu, 0);
}
} // namespace wmma
} // namespace nvcuda

#endif
