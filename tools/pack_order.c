/* Packs whose experts lie as the CPU multiplies them: repack --order tiles. */
#include <errno.h>
#include <stdlib.h>

#include "engine/coding.h"
#include "kernels/tile.h"
#include "tools/pack.h"

static int arrange(void *context, void *const parts[TIER_PARTS])
{
    const struct pack_order *order = context;
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct kern_matrix *w = &order->matrices[m];
        void *scratch = malloc(kern_tile_scratch(w));
        if (!scratch) return -ENOMEM;
        kern_tile(w, parts[2 * m], parts[2 * m + 1], scratch);
        free(scratch);
    }
    return 0;
}

void pack_order(struct pack_order *made, struct tier_pack_options *options, enum tier_order order,
                const struct tier_store *source, const struct model_shape *shape)
{
    options->order = order;
    options->arrange = arrange;
    options->arrange_context = made;
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        made->matrices[m] = eng_coding_expert(source, shape, m);
    }
}
