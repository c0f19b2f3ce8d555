/* Writing a checkpoint with quantised experts: what `tier-pack quantize` does before it reports. */
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
    enum kern_dtype dtype; /* KERN_INT8 or KERN_INT4 */
    uint32_t group;
    bool allow_larger; /* also where the new experts are not smaller */
    unsigned threads;
    const struct tier_store_progress *progress;

    /* Found and filled by quantize_run. */
    struct model_shape shape;
    struct model_files *files;
    struct kern_par *par;
    uint64_t expert_bytes_before, expert_bytes;
    struct kern_quant_error *errors; /* [moe layers][MODEL_MATRIX_COUNT] */
};

/* Writes `to` whole or not at all: a folder beside it, every file synced, indexed, renamed. Routed
 * experts of the layers that the engine runs are quantised; every other tensor is copied byte for
 * byte. 0, or a code with a sentence: BASE_EMISMATCH when the rung would not be smaller. */
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

/* One expert matrix into codes (kern_row_bytes of each row) and scales, with its error. */
int quantize_matrix(struct quantize *q, const struct model_tensor *tensor, uint8_t *codes,
                    uint8_t *scales, struct kern_quant_error *error, struct base_err *err);
uint64_t quantize_code_bytes(const struct quantize *q, const struct model_tensor *tensor);
uint64_t quantize_scale_bytes(const struct quantize *q, const struct model_tensor *tensor);

#endif
