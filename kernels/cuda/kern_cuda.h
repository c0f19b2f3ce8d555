/* Arithmetic on a CUDA device: whole steps over a batch, launched on a stream.
 *
 * All pointers are device memory unless a line says host, all matrices row-major. `stream` is a
 * cudaStream_t. A call launches and returns: 0; -EINVAL for a shape that the kernel does not take,
 * with nothing launched; BASE_EDEVICE when the launch was refused. Nothing allocates or waits. Any
 * thread, one at a time per stream.
 *
 * Same bits: each output element has one reduction order, fixed by its length alone, whatever the
 * batch, the launch shape and the arrival of other work:
 *
 *   whole units     matrices of BF16 with columns in 64s, of FP8, INT8 and INT4 in 128s, scales
 *                   none or for 128s of columns: on tensor cores, decode and prompts alike. x is
 *                   three BF16 (BF16), or two F16 of x / 2^e, e from the largest of a token's 128.
 *                   Units of so many columns ascending, total = fma(unit, scale, total), in four
 *                   ranges, those summed ascending. k_blocks = 8: the ranges of kern.h, where
 *                   columns come in 1024s.
 *   row products    other shapes: 32 lanes; lane l takes chunks of 16 columns, l, l + 32, ...
 *                   Within a chunk the sum starts at zero, columns ascending by fused
 *                   multiply-add, cut where the scale changes; then total = fma(chunk, scale,
 *                   total). Lanes meet in a tree of xor 16, 8, 4, 2, 1. k_blocks = 8: as above.
 *   tile products   other shapes, for prompts: x is split in two BF16 (about 16 bits), columns
 *                   ascending in steps of 16, a sum per scale cut, then fma with the scale.
 *   attention       tokens in tiles of 8, of V3's shape over a BF16 cache 64 (running maximum and
 *                   sum), folded at each split of KERN_CUDA_SPLIT tokens, splits ascending; decode
 *                   and prefill agree in each bit.
 *   the rest        as the scalar reference, bit for bit: rope, gate, combine, absorb, SiLU; norms
 *                   sum in an order of their own.
 *
 * So bits are the same for any batch, chunking and residency; they differ from the CPU sets' bits.
 */
#ifndef KERNELS_CUDA_KERN_CUDA_H
#define KERNELS_CUDA_KERN_CUDA_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kern.h"

enum {
    KERN_CUDA_SPLIT = 256,      /* tokens that one block of latent attention walks */
    KERN_CUDA_EXPERTS_MAX = 512,
    KERN_CUDA_LATENT_MAX = 512, /* lora */
    KERN_CUDA_WIDTH_MAX = 576,  /* lora + rope */
    KERN_CUDA_QUERIES = 8,      /* rows of one sequence that prefill takes together */
};

/* y[row] = x[row] * rsqrt(mean + eps) * weight; y may be x. */
struct kern_cuda_rmsnorm_args {
    uint32_t rows, n;
    const float *x, *weight;
    size_t x_stride, y_stride;
    float *y;
    float eps;
};

/* Rotates `heads` parts of each row in place: part h begins at x[row * row_stride + h *
 * head_stride]. */
struct kern_cuda_rope_args {
    uint32_t rows, heads, dims;
    float *x;
    size_t row_stride, head_stride;
    const float *cos, *sin;     /* [rows][dims / 2] */
    bool interleaved;
};

/* Puts a row's latent (normed) and key (rotated) where it belongs in the paged cache. */
struct kern_cuda_latent_args {
    uint32_t rows, lora, rope;
    const float *kv;            /* [rows][lora + rope], as projected */
    const float *weight;        /* [lora] */
    const float *cos, *sin;     /* [rows][rope / 2] */
    float eps;
    bool interleaved, bf16;
    void *const *places;        /* [rows]: where lora + rope values go, f32 or BF16 */
};

/* Routing: ids and weights [rows][top_k], strongest first. gate.bias is device memory. */
struct kern_cuda_gate_args {
    uint32_t rows;
    struct kern_gate gate;
    const float *logits;        /* [rows][experts] */
    uint32_t *ids;
    float *weights;
};

/* out[row] = sum over the row's pairs, ascending, of weight * pair_out; then + add[row]. */
struct kern_cuda_combine_args {
    uint32_t rows, hidden, top_k;
    const uint32_t *row_pairs, *row_pair_count;     /* [rows][top_k], [rows] */
    const float *pair_weight, *pair_out;            /* [pairs], [pairs][hidden] */
    const float *add;                               /* [rows][hidden], or NULL */
    float *out;
};

#define KERN_CUDA_NO_ID UINT32_MAX

/* ids[row] = the largest logit's, lower id of equals; KERN_CUDA_NO_ID for a row that is not all
 * finite numbers. */
struct kern_cuda_greedy_args {
    uint32_t rows, n;
    const float *logits;
    uint32_t *ids;
};

/* out[row] = row tokens[row] - first of w, an unscaled matrix (F32, F16, BF16), as f32; zeros where
 * w has no such row. */
struct kern_cuda_embed_args {
    struct kern_matrix w;       /* [vocab][cols], or a share of it */
    uint32_t rows, first;
    const uint32_t *tokens;
    float *out;                 /* [rows][cols] */
};

/* to[i] += from[i]. */
struct kern_cuda_add_args {
    size_t n;
    float *to;
    const float *from;
};

/* Columns of whole[rows][width] in parts of `each`, the last one fewer: part p is [rows][its
 * columns] and begins at parts + rows * each * p. Cut from the whole into the parts; or joined from
 * the parts, `add`: added to what the whole holds. */
struct kern_cuda_columns_args {
    uint32_t rows, width, each;
    float *whole, *parts;
    bool join, add;
};

/* Addresses in a latent cache [block id][layer][token], once a step for all layers: the tables of
 * blocks that attention walks, and where the rows' own latents go. */
struct kern_cuda_pages_args {
    uint32_t layers, members, rows;
    uint32_t blocks_per_seq, blocks;        /* room of a table; blocks that the longest one uses */
    uint32_t block_tokens;
    size_t layer_bytes, token_bytes;
    char *memory;
    const uint32_t *ids;                    /* [members][blocks_per_seq] */
    const uint32_t *row_member, *row_tokens;        /* a row is the token row_tokens - 1 */
    const void **tables;                    /* [layers][members][blocks_per_seq] */
    void **places;                          /* [layers][rows] */
};

/* What all experts of a layer have in common; scale_rows = 0: no scales. */
struct kern_cuda_shape {
    enum kern_dtype dtype;
    uint32_t rows, cols;
    uint32_t scale_rows, scale_cols;
};

/* Where one expert lies now. The table is written beside the copies, kernels read it when they
 * run: residency may change without anything being rebuilt. */
struct kern_cuda_expert {
    const void *gate, *gate_scales, *up, *up_scales, *down, *down_scales;
};

/* Pairs [first, first + count) go through table[expert]. */
struct kern_cuda_run {
    uint32_t expert, first, count;
};

/* act[pair] = silu(gate x) * up x, x = x[pair_row[pair]]; `shape` is gate's and up's. */
struct kern_cuda_experts_in_args {
    struct kern_cuda_shape shape;
    const struct kern_cuda_expert *table;
    const struct kern_cuda_run *runs;
    uint32_t run_count;
    uint32_t count_max;         /* no run has more pairs, or the rest is left out */
    const uint32_t *pair_row;
    const float *x;             /* [rows][cols] */
    float *act;                 /* [pairs][shape.rows] */
};

/* out[pair] = down act[pair]; `shape` is down's. */
struct kern_cuda_experts_out_args {
    struct kern_cuda_shape shape;
    const struct kern_cuda_expert *table;
    const struct kern_cuda_run *runs;
    uint32_t run_count, count_max;
    const float *act;           /* [pairs][cols] */
    float *out;                 /* [pairs][shape.rows] */
};

/* y[m][n] = dot(w[row(n)], x[m] + (n / group) * x_group), n in [0, rows).
 * row(n) = n / group * w_group + w_first + n % group: group = rows, x_group = 0 is a plain product;
 * otherwise each head of n takes its own rows of w and its own part of x. */
struct kern_cuda_product_args {
    struct kern_matrix w;
    uint32_t m, rows, k_blocks;
    uint32_t group, w_group, w_first;
    const float *x;
    size_t x_stride, x_group, y_stride;
    float *y;
};

/* q_latent[row][h][c] = sum over d ascending of w[h * w_head + d][c] * q[row][h][d]; the rope part
 * is copied behind. */
struct kern_cuda_absorb_args {
    struct kern_matrix w;       /* [heads * w_head][lora] */
    uint32_t rows, heads, nope, rope, w_head;
    const float *q;             /* [rows][heads][nope + rope] */
    float *q_latent;            /* [rows][heads][lora + rope] */
};

/* A row sees the first row_tokens[row] tokens of its sequence, whose blocks stand in a table of
 * blocks_per_seq pointers, 16-byte aligned. lora + rope is a multiple of 8. */
struct kern_cuda_mla {
    uint32_t rows, heads, lora, rope;
    const float *q;             /* [rows][heads][lora + rope] */
    const void *const *blocks;  /* [members][blocks_per_seq] */
    const uint32_t *row_member, *row_tokens;
    uint32_t blocks_per_seq, block_tokens;
    uint32_t tokens_max;        /* the largest of row_tokens */
    bool bf16;
    float scale;
    float *out;                 /* [rows][heads][lora] */
    float *work;                /* decode: kern_cuda_mla_work floats */
    const struct kern_cuda_run *tiles;  /* prefill: rows [first, first + count) of one member, */
    uint32_t tile_count;        /* count <= KERN_CUDA_QUERIES; .expert is not used */
};

#ifdef __cplusplus
extern "C" {
#endif

int kern_cuda_rmsnorm(const struct kern_cuda_rmsnorm_args *args, void *stream);
int kern_cuda_rope(const struct kern_cuda_rope_args *args, void *stream);
int kern_cuda_latent(const struct kern_cuda_latent_args *args, void *stream);
int kern_cuda_gate(const struct kern_cuda_gate_args *args, void *stream);
int kern_cuda_combine(const struct kern_cuda_combine_args *args, void *stream);
int kern_cuda_greedy(const struct kern_cuda_greedy_args *args, void *stream);
int kern_cuda_embed(const struct kern_cuda_embed_args *args, void *stream);
int kern_cuda_add(const struct kern_cuda_add_args *args, void *stream);
int kern_cuda_columns(const struct kern_cuda_columns_args *args, void *stream);
int kern_cuda_pages(const struct kern_cuda_pages_args *args, void *stream);
int kern_cuda_experts_in(const struct kern_cuda_experts_in_args *args, void *stream);
int kern_cuda_experts_out(const struct kern_cuda_experts_out_args *args, void *stream);
/* For prompts: the same bits where columns come in whole units; of other shapes FP8 and BF16, with
 * scale_rows a multiple of 16. */
int kern_cuda_experts_in_tiles(const struct kern_cuda_experts_in_args *args, void *stream);
int kern_cuda_experts_out_tiles(const struct kern_cuda_experts_out_args *args, void *stream);
int kern_cuda_product(const struct kern_cuda_product_args *args, void *stream);
int kern_cuda_product_tiles(const struct kern_cuda_product_args *args, void *stream);
int kern_cuda_absorb(const struct kern_cuda_absorb_args *args, void *stream);
size_t kern_cuda_mla_work(const struct kern_cuda_mla *args);
int kern_cuda_mla_decode(const struct kern_cuda_mla *args, void *stream);
int kern_cuda_mla_prefill(const struct kern_cuda_mla *args, void *stream);

#ifdef __cplusplus
}
#endif

#endif
