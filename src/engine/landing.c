#include "engine/landing.h"

#include <errno.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/coding.h"
#include "kernels/tile.h"
#include "kernels/weave.h"

static struct base_mem_tag landing_tag = { .name = "landing" };

bool eng_landing_weaves(const struct eng_config *config)
{
    return config->activations == ENG_ACTIVATIONS_F32 &&
           kern_weave_pays(kern_ops_cpu((enum kern_cpu)config->cpu_mask));
}

static void learn(struct eng_landing *landing, const struct tier_store *store,
                  const struct model_shape *shape, const struct eng_config *config)
{
    *landing = (struct eng_landing){ .threads = eng_limits_threads(config) };
    if (shape->experts == 0) return;
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct kern_matrix stored = eng_coding_expert(store, shape, m);
        struct kern_matrix *landed = &landing->landed[m];
        landing->stored[m] = *landed = stored;
        if (kern_dtype_grouped(stored.dtype)) {
            size_t bytes = kern_tile_scratch(&stored);
            if (bytes > landing->scratch_bytes) landing->scratch_bytes = bytes;
            landed->tiled = landing->needed = true;
        } else if (eng_landing_weaves(config) && kern_weave_takes(&stored)) {
            landed->dtype = KERN_FP8_WOVEN;
            landing->needed = true;
        }
    }
}

size_t eng_landing_bytes(const struct tier_store *store, const struct model_shape *shape,
                         const struct eng_config *config)
{
    struct eng_landing landing;
    learn(&landing, store, shape, config);
    return landing.threads * landing.scratch_bytes;
}

int eng_landing_init(struct eng_landing *landing, const struct tier_store *store,
                     const struct model_shape *shape, const struct eng_config *config,
                     struct base_err *err)
{
    learn(landing, store, shape, config);
    if (landing->scratch_bytes == 0) return 0;
    landing->scratch = base_mem_alloc(&landing_tag, landing->threads * landing->scratch_bytes, 64);
    if (landing->scratch) return 0;
    return base_err_set(err, -ENOMEM, "no memory for %zu bytes in which experts are rearranged",
                        landing->threads * landing->scratch_bytes);
}

void eng_landing_fini(struct eng_landing *landing)
{
    base_mem_free(&landing_tag, landing->scratch, landing->threads * landing->scratch_bytes);
    *landing = (struct eng_landing){ 0 };
}

void eng_landing_share(struct eng_landing *landing, const struct eng_work *work)
{
    MUST(!work || !landing->needed || work->threads <= landing->threads);
    landing->work = work;
}

struct pass {
    const struct eng_landing *landing;
    void *const *parts;
    uint32_t cuts;              /* of each matrix's rows */
};

/* Chunk = some rows of one matrix. */
static void land_rows(void *context, uint32_t chunk, unsigned thread)
{
    const struct pass *pass = context;
    const struct eng_landing *landing = pass->landing;
    enum model_matrix m = (enum model_matrix)(chunk / pass->cuts);
    const struct kern_matrix *stored = &landing->stored[m], *landed = &landing->landed[m];
    uint32_t begin, end;
    if (!landed->tiled && landed->dtype != KERN_FP8_WOVEN) return;
    char *data = pass->parts[2 * m], *scales = pass->parts[2 * m + 1];
    MUST(data && scales);
    eng_work_rows(stored->rows, KERN_TILE_ROWS, pass->cuts, chunk % pass->cuts, &begin, &end);
    if (landed->tiled) {
        kern_tile(stored, data, scales, begin, end,
                  (char *)landing->scratch + thread * landing->scratch_bytes);
    } else {
        kern_weave(data + (size_t)begin * stored->cols, (size_t)(end - begin) * stored->cols);
    }
}

static void land(void *context, uint32_t moe_layer, uint32_t expert, void *const parts[TIER_PARTS])
{
    const struct eng_landing *landing = context;
    const struct eng_work *work = landing->work;
    struct pass pass = { landing, parts, 1 };
    uint64_t cost = 0;          /* a byte takes about as long as a multiply-add */
    (void)moe_layer, (void)expert;      /* all are alike: the store has one kind of expert */
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct kern_matrix *w = &landing->stored[m];
        cost += w->rows * (uint64_t)kern_row_bytes(w->dtype, w->cols);
    }
    if (!work) {
        for (uint32_t m = 0; m < MODEL_MATRIX_COUNT; m++) land_rows(&pass, m, 0);
        return;
    }
    pass.cuts = eng_work_parts(work, MODEL_MATRIX_COUNT, cost / MODEL_MATRIX_COUNT,
                               landing->stored[0].rows, KERN_TILE_ROWS);
    eng_work_run(work, MODEL_MATRIX_COUNT * pass.cuts, cost, land_rows, &pass);
}

struct tier_landing eng_landing_hook(struct eng_landing *landing)
{
    if (!landing->needed) return (struct tier_landing){ 0 };
    return (struct tier_landing){ land, landing };
}
