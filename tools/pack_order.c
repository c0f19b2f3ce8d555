/* Packs whose experts lie as the CPU multiplies them: repack --order tiles, or woven. */
#include <errno.h>
#include <stdlib.h>

#include "engine/coding.h"
#include "kernels/tile.h"
#include "kernels/weave.h"
#include "tools/pack.h"

static int tile(const struct kern_matrix *w, void *data, void *scales)
{
    void *scratch = malloc(kern_tile_scratch(w));
    if (!scratch) return -ENOMEM;
    kern_tile(w, data, scales, scratch);
    free(scratch);
    return 0;
}

static int weave(const struct kern_matrix *w, void *data)
{
    void *scratch = malloc(kern_weave_scratch(w->cols));
    if (!scratch) return -ENOMEM;
    kern_weave(data, w->rows, w->cols, scratch);
    free(scratch);
    return 0;
}

static int arrange(void *context, void *const parts[TIER_PARTS])
{
    const struct pack_order *order = context;
    int rc = 0;
    for (int m = 0; m < MODEL_MATRIX_COUNT && rc == 0; m++) {
        const struct kern_matrix *w = &order->matrices[m];
        rc = order->order == TIER_ORDER_WOVEN ? weave(w, parts[2 * m])
                                              : tile(w, parts[2 * m], parts[2 * m + 1]);
    }
    return rc;
}

void pack_order(struct pack_order *made, struct tier_pack_options *options, enum tier_order order,
                const struct tier_store *source, const struct model_shape *shape)
{
    options->order = order;
    options->arrange = arrange;
    options->arrange_context = made;
    made->order = order;
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        made->matrices[m] = eng_coding_expert(source, shape, m);
    }
}
