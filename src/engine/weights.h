/* The weights that are always in memory: embeddings, attention, norms, gates, dense and shared
 * feed-forward parts, head. Routed experts are not among them; they belong to the tiers.
 *
 * Matrices stay in their stored type (FP8 with its block scales, or woven; INT8 in rows or tiles,
 * which those can be that are multiplied and nothing else: the projections of attention, dense and
 * shared parts, the head); norms and gate biases, a few kilobytes, are kept as f32. All of it lies
 * in one block of memory. Immutable after load.
 */
#ifndef ENGINE_WEIGHTS_H
#define ENGINE_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/kern.h"
#include "kernels/par.h"
#include "model/safetensors.h"
#include "model/shape.h"

/* Over several ranks (ranks.h) a matrix holds this rank's rows: of embeddings and head a share of
 * the vocabulary, of q_b and kv_b its heads, of gate and up a share of the width. What comes after
 * those is either `down` or `o`, this rank's share of their rows, or the blocks of columns. */
struct eng_mlp {
    uint32_t width;                     /* of all ranks together; 0 = there is none */
    struct kern_matrix gate, up, down;
    struct kern_matrix down_blocks[KERN_RANK_BLOCKS];   /* [0].rows 0: down */
};

struct eng_layer {
    const float *attention_norm, *ffn_norm;
    struct kern_matrix q_a, q_b;        /* q_a has no rows when the model has no q_lora: then q_b
                                         * is the plain q_proj */
    const float *q_a_norm;
    struct kern_matrix kv_a, kv_b, o;
    struct kern_matrix o_blocks[KERN_RANK_BLOCKS];      /* [0].rows 0: o */
    const float *kv_a_norm;
    int32_t moe_layer;                  /* -1: a dense layer */
    struct eng_mlp mlp;                 /* the dense part, or the shared experts (width 0 = none) */
    struct kern_matrix gate;
    const float *gate_bias;             /* NULL = none */
};

struct eng_weights {
    struct kern_matrix embed, head;     /* head is embed when they are tied */
    const float *norm;
    struct eng_layer *layers;
    uint32_t layer_count;
    void *memory;
    uint64_t bytes;
};

struct eng_ranks;

struct eng_weights_need {
    uint64_t bytes;             /* that load will take */
    uint32_t grouped;           /* matrices that are INT8 */
};

/* The order in memory of matrices that are multiplied and nothing else. */
struct eng_weights_order {
    bool weave;                 /* FP8 becomes KERN_FP8_WOVEN where it can (kernels/weave.h) */
    bool tile;                  /* INT8 becomes tiles (kernels/tile.h) */
    struct kern_par *par;       /* borrowed: rearranges them; NULL: the caller does */
};

/* Checks every tensor's presence, type and shape, and tells what load will take. `ranks` says which
 * part of them is this rank's; NULL = all. */
int eng_weights_plan(const struct model_shape *shape, const struct model_files *files,
                     const struct eng_ranks *ranks, struct eng_weights_need *need,
                     struct base_err *err);
/* Reads them. FP8 codes that mean NaN, and scales that are no finite numbers, are refused by
 * name. */
int eng_weights_load(struct eng_weights *weights, const struct model_shape *shape,
                     const struct model_files *files, const struct eng_ranks *ranks,
                     const struct eng_weights_order *order, struct base_err *err);
/* They have been copied to `to`, in the memory of a device: frees their host memory; all addresses
 * are the device's from here on. */
void eng_weights_moved(struct eng_weights *weights, void *to);
void eng_weights_free(struct eng_weights *weights);

/* The arithmetic's name of a stored type; KERN_DTYPE_COUNT for types that are no weights. I8 and U8
 * are INT8 and INT4. */
enum kern_dtype eng_weights_dtype(enum model_dtype dtype);

#endif
