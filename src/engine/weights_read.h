/* Reading dense weights with several threads: one reader gets a fraction of what NVMe or the page
 * cache give, and a large model has tens of gigabytes of them. Matrices are noted while the tensors
 * are walked, and read together afterwards, in pieces of some megabytes.
 *
 *     eng_reads_add ... eng_reads_add     eng_reads_run: threads take piece after piece
 *
 * One thread adds and runs; the readers are gone when run returns.
 */
#ifndef ENGINE_WEIGHTS_READ_H
#define ENGINE_WEIGHTS_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/safetensors.h"

/* Rows and columns of a matrix, of those that its tensor has. */
struct eng_part {
    uint32_t row, row_end, col, col_end;
};

struct eng_read {
    const struct model_tensor *tensor;  /* two dimensions, a type with whole bytes */
    struct eng_part part;
    char *to;                           /* its rows without gaps */
    bool weave;                         /* FP8: becomes KERN_FP8_WOVEN */
};

struct eng_reads {
    struct eng_read *at;                /* owned */
    uint32_t count, room;
};

/* Copied; `to` and the tensor stay the caller's and must live until run is over. -ENOMEM. */
int eng_reads_add(struct eng_reads *reads, const struct eng_read *read);
/* Reads all that was added and looks for FP8 codes that mean NaN, which are refused by name and
 * element. Of several failures the first in the order of adding is told. `name` is the model's. */
int eng_reads_run(const struct eng_reads *reads, const struct model_files *files, const char *name,
                  struct base_err *err);
void eng_reads_free(struct eng_reads *reads);

#endif
