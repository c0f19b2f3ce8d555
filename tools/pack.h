/* What the sub-commands of tier-pack share. */
#ifndef TOOLS_PACK_H
#define TOOLS_PACK_H

#include "kernels/kern.h"
#include "model/expert.h"
#include "model/shape.h"
#include "tiering/store.h"
#include "tools/cli.h"

struct pack_flags {
    const char *index;
    uint64_t threads;
    uint64_t sync_bytes;
    const char *mode, *order;
    struct cli_list to;
    bool quiet, json, restart;
    const char *rung, *text; /* quantize */
    uint64_t group;
    bool allow_larger, dense;
};
extern struct pack_flags pack_flags;

/* Opens MODEL's store as the flags say. */
int pack_open(struct tier_store **store, const char *dir, struct base_err *err);

/* Progress on stderr that an interrupt stops cleanly. */
struct tier_store_progress pack_progress(struct cli_progress *progress, const char *what);

unsigned pack_threads(void);

/* Takes the slashes at a folder's end away. */
void pack_trim(char *path);

/* The matrices of an expert, which are rearranged as they are packed (pack_order.c). */
struct pack_order {
    enum tier_order order;
    struct kern_matrix matrices[MODEL_MATRIX_COUNT];
};
/* Has `options` pack the experts of `source` in this order; borrows `made`. */
void pack_order(struct pack_order *made, struct tier_pack_options *options, enum tier_order order,
                const struct tier_store *source, const struct model_shape *shape);

/* The sub-command quantize (pack_quantize.c). */
int pack_quantize(int count, char **arguments);

#endif
