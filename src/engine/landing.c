#include "engine/landing.h"

#include <errno.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/coding.h"
#include "kernels/tile.h"

static struct base_mem_tag landing_tag = { .name = "landing" };

static void learn(struct eng_landing *landing, const struct tier_store *store,
                  const struct model_shape *shape)
{
    *landing = (struct eng_landing){ 0 };
    if (shape->experts == 0) return;
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct kern_matrix *w = &landing->expert[m];
        landing->expert[m] = eng_coding_expert(store, shape, m);
        if (!kern_dtype_grouped(w->dtype)) continue;
        size_t bytes = kern_tile_scratch(w);
        if (bytes > landing->scratch_bytes) landing->scratch_bytes = bytes;
    }
}

size_t eng_landing_bytes(const struct tier_store *store, const struct model_shape *shape)
{
    struct eng_landing landing;
    learn(&landing, store, shape);
    return landing.scratch_bytes;
}

int eng_landing_init(struct eng_landing *landing, const struct tier_store *store,
                     const struct model_shape *shape, struct base_err *err)
{
    learn(landing, store, shape);
    if (landing->scratch_bytes == 0) return 0;
    landing->scratch = base_mem_alloc(&landing_tag, landing->scratch_bytes, 64);
    if (landing->scratch) return 0;
    return base_err_set(err, -ENOMEM, "no memory for %zu bytes in which experts are rearranged",
                        landing->scratch_bytes);
}

void eng_landing_fini(struct eng_landing *landing)
{
    base_mem_free(&landing_tag, landing->scratch, landing->scratch_bytes);
    *landing = (struct eng_landing){ 0 };
}

static void land(void *context, uint32_t moe_layer, uint32_t expert, void *const parts[TIER_PARTS])
{
    struct eng_landing *landing = context;
    (void)moe_layer, (void)expert;      /* all are alike: the store has one kind of expert */
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        if (!eng_landing_tiled(landing, m)) continue;
        void *data = parts[2 * m], *scales = parts[2 * m + 1];
        MUST(data && scales);
        kern_tile(&landing->expert[m], data, scales, landing->scratch);
    }
}

struct tier_landing eng_landing_hook(struct eng_landing *landing)
{
    if (!landing->scratch) return (struct tier_landing){ 0 };
    return (struct tier_landing){ land, landing };
}

bool eng_landing_tiled(const struct eng_landing *landing, enum model_matrix matrix)
{
    return landing->scratch && kern_dtype_grouped(landing->expert[matrix].dtype);
}
