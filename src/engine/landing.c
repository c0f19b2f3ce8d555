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

size_t eng_landing_bytes(const struct tier_store *store, const struct model_shape *shape,
                         unsigned threads)
{
    struct eng_landing landing;
    learn(&landing, store, shape);
    return threads * landing.scratch_bytes;
}

int eng_landing_init(struct eng_landing *landing, const struct tier_store *store,
                     const struct model_shape *shape, unsigned threads, struct base_err *err)
{
    learn(landing, store, shape);
    landing->threads = threads;
    if (landing->scratch_bytes == 0) return 0;
    landing->scratch = base_mem_alloc(&landing_tag, threads * landing->scratch_bytes, 64);
    if (landing->scratch) return 0;
    return base_err_set(err, -ENOMEM, "no memory for %zu bytes in which experts are rearranged",
                        threads * landing->scratch_bytes);
}

void eng_landing_fini(struct eng_landing *landing)
{
    base_mem_free(&landing_tag, landing->scratch, landing->threads * landing->scratch_bytes);
    *landing = (struct eng_landing){ 0 };
}

void eng_landing_share(struct eng_landing *landing, const struct eng_work *work)
{
    MUST(!work || !landing->scratch || work->threads <= landing->threads);
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
    const struct kern_matrix *w = &landing->expert[m];
    uint32_t begin, end;
    if (!eng_landing_tiled(landing, m)) return;
    void *data = pass->parts[2 * m], *scales = pass->parts[2 * m + 1];
    MUST(data && scales);
    eng_work_rows(w->rows, KERN_TILE_ROWS, pass->cuts, chunk % pass->cuts, &begin, &end);
    kern_tile(w, data, scales, begin, end,
              (char *)landing->scratch + thread * landing->scratch_bytes);
}

static void land(void *context, uint32_t moe_layer, uint32_t expert, void *const parts[TIER_PARTS])
{
    const struct eng_landing *landing = context;
    const struct eng_work *work = landing->work;
    struct pass pass = { landing, parts, 1 };
    uint64_t cost = 0;          /* a byte takes about as long as a multiply-add */
    (void)moe_layer, (void)expert;      /* all are alike: the store has one kind of expert */
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct kern_matrix *w = &landing->expert[m];
        cost += w->rows * (uint64_t)kern_row_bytes(w->dtype, w->cols);
    }
    if (!work) {
        for (uint32_t m = 0; m < MODEL_MATRIX_COUNT; m++) land_rows(&pass, m, 0);
        return;
    }
    pass.cuts = eng_work_parts(work, MODEL_MATRIX_COUNT, cost / MODEL_MATRIX_COUNT,
                               landing->expert[0].rows, KERN_TILE_ROWS);
    eng_work_run(work, MODEL_MATRIX_COUNT * pass.cuts, cost, land_rows, &pass);
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
