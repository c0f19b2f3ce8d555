/* Writing a checkpoint with quantised weights: what `tier-pack quantize` does before it reports. */
#ifndef TOOLS_PACK_QUANTIZE_H
#define TOOLS_PACK_QUANTIZE_H

#include "kernels/par.h"
#include "kernels/quant.h"
#include "model/expert.h"
#include "model/safetensors.h"
#include "model/shape.h"
#include "tiering/store.h"

struct quantize {
    const char *from, *to; /* folders; `to` must not exist */
    enum kern_dtype dtype; /* of the experts: KERN_INT8, KERN_INT4; KERN_DTYPE_COUNT: as they are */
    bool dense;            /* dense matrices that are multiplied and nothing else become INT8 */
    uint32_t group;
    bool allow_larger; /* also where the new weights are not smaller: FP8 that becomes INT8 */
    unsigned threads;
    const struct tier_store_progress *progress; /* NULL: nobody hears of it */

    /* Found and filled by quantize_run. */
    struct model_shape shape;
    struct model_files *files;
    struct kern_par *par;
    uint64_t expert_bytes_before, expert_bytes;
    struct kern_quant_error *errors; /* [moe layers][MODEL_MATRIX_COUNT] */
    uint64_t dense_bytes_before, dense_bytes;
    struct kern_quant_error *dense_errors; /* [layers][QUANTIZE_PART_COUNT], of the head the last */
};

/* Dense matrices. */
enum quantize_part {
    QUANTIZE_Q_A, QUANTIZE_Q_B, QUANTIZE_KV_A, QUANTIZE_O,
    QUANTIZE_GATE, QUANTIZE_UP, QUANTIZE_DOWN, /* of a dense layer, or the shared experts */
    QUANTIZE_PART_COUNT,
    QUANTIZE_HEAD = QUANTIZE_PART_COUNT,
};

/* Writes `to` whole or not at all: a folder beside it, every file synced, indexed, renamed. That is
 * `to`.part, locked; what a killed run left there is thrown away. What is quantised belongs to the
 * layers that the engine runs: routed experts, and with `dense` those of the matrices above that
 * are F32, F16 or BF16 (with `allow_larger` FP8, too); every other tensor is copied byte for byte.
 * 0, or a code with a sentence: BASE_EMISMATCH when nothing would get smaller, -EBUSY when another
 * process writes it. */
int quantize_run(struct quantize *q, struct base_err *err);
void quantize_fini(struct quantize *q);

/* A tensor of a routed expert that is to be quantised, or its scales. */
struct quantize_name {
    uint32_t moe_layer, expert;
    enum model_matrix matrix;
    bool scales;
};
bool quantize_name_of(const struct model_shape *shape, const char *tensor,
                      struct quantize_name *name);

/* A dense matrix that becomes INT8, and which it is; or the scales that it had. */
struct quantize_dense {
    uint32_t layer;
    enum quantize_part part;
    bool scales;
};
bool quantize_dense_of(const struct quantize *q, const struct model_tensor *tensor,
                       struct quantize_dense *dense);
const char *quantize_part_name(enum quantize_part part);
struct kern_quant_error *quantize_dense_error(const struct quantize *q,
                                              const struct quantize_dense *dense);

/* One matrix into codes of `dtype` (kern_row_bytes of each row) and scales, with its error. */
int quantize_matrix(struct quantize *q, const struct model_tensor *tensor, enum kern_dtype dtype,
                    uint8_t *codes, uint8_t *scales, struct kern_quant_error *error,
                    struct base_err *err);
uint64_t quantize_code_bytes(enum kern_dtype dtype, const struct model_tensor *tensor);
uint64_t quantize_scale_bytes(const struct quantize *q, const struct model_tensor *tensor);

#endif
