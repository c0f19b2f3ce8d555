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

/* Rows [begin, end) of a part of matrix m. */
static void part_rows(const struct eng_landing *landing, uint32_t m, uint32_t part, uint32_t *begin,
                      uint32_t *end)
{
    const struct kern_matrix *landed = &landing->landed[m];
    eng_work_rows(landed->rows, eng_work_unit(landed), landing->cuts, part, begin, end);
}

static void learn(struct eng_landing *landing, const struct tier_store *store,
                  const struct model_shape *shape, const struct eng_config *config)
{
    size_t at = 0;
    *landing = (struct eng_landing){ .threads = eng_limits_threads(config) };
    landing->cuts = landing->threads < ENG_LANDING_CUTS ? landing->threads : ENG_LANDING_CUTS;
    if (shape->experts == 0) return;
    for (uint32_t m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct kern_matrix stored = eng_coding_expert(store, shape, (enum model_matrix)m);
        struct kern_matrix *landed = &landing->landed[m];
        landing->stored[m] = *landed = stored;
        if (stored.tiled || stored.dtype == KERN_FP8_WOVEN) {
            /* A pack that has them as they run. */
        } else if (kern_dtype_grouped(stored.dtype)) {
            const size_t bytes = kern_tile_part_scratch(&stored);
            if (bytes > landing->thread_bytes) landing->thread_bytes = bytes;
            landed->tiled = landing->needed = landing->saves = true;
        } else if (eng_landing_weaves(config) && kern_weave_takes(&stored)) {
            const size_t bytes = kern_weave_scratch(stored.cols);
            if (bytes > landing->thread_bytes) landing->thread_bytes = bytes;
            landed->dtype = KERN_FP8_WOVEN;
            landing->needed = true;
        }
        for (uint32_t part = 0; part < landing->cuts; part++) {
            uint32_t begin, end;
            part_rows(landing, m, part, &begin, &end);
            landing->saved_at[m][part] = at;
            if (landed->tiled && !stored.tiled) at += kern_tile_saved(&stored, begin, end);
        }
        landing->saved_at[m][landing->cuts] = at;
    }
}

static size_t scratch_bytes(const struct eng_landing *landing)
{
    return landing->saved_at[MODEL_MATRIX_COUNT - 1][landing->cuts] +
           landing->threads * landing->thread_bytes;
}

size_t eng_landing_bytes(const struct tier_store *store, const struct model_shape *shape,
                         const struct eng_config *config)
{
    struct eng_landing landing;
    learn(&landing, store, shape, config);
    return scratch_bytes(&landing);
}

int eng_landing_init(struct eng_landing *landing, const struct tier_store *store,
                     const struct model_shape *shape, const struct eng_config *config,
                     struct base_err *err)
{
    learn(landing, store, shape, config);
    const size_t bytes = scratch_bytes(landing);
    if (bytes == 0) return 0;
    landing->scratch = base_mem_alloc(&landing_tag, bytes, 64);
    if (landing->scratch) return 0;
    return base_err_set(err, -ENOMEM, "no memory for %zu bytes in which experts are rearranged",
                        bytes);
}

void eng_landing_fini(struct eng_landing *landing)
{
    base_mem_free(&landing_tag, landing->scratch, scratch_bytes(landing));
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
};

/* Chunk = a part of one matrix. */
static void save_part(void *context, uint32_t chunk, unsigned thread)
{
    const struct pass *pass = context;
    const struct eng_landing *landing = pass->landing;
    const uint32_t m = chunk / landing->cuts, part = chunk % landing->cuts;
    uint32_t begin, end;
    (void)thread;
    if (!landing->landed[m].tiled) return;
    part_rows(landing, m, part, &begin, &end);
    kern_tile_save(&landing->stored[m], pass->parts[2 * m], pass->parts[2 * m + 1], begin, end,
                   (char *)landing->scratch + landing->saved_at[m][part]);
}

static void land_part(void *context, uint32_t chunk, unsigned thread)
{
    const struct pass *pass = context;
    const struct eng_landing *landing = pass->landing;
    const uint32_t m = chunk / landing->cuts, part = chunk % landing->cuts;
    const struct kern_matrix *stored = &landing->stored[m], *landed = &landing->landed[m];
    uint32_t begin, end;
    if (landed->tiled == stored->tiled && landed->dtype == stored->dtype) return;
    char *data = pass->parts[2 * m], *scales = pass->parts[2 * m + 1];
    MUST(data && scales);
    part_rows(landing, m, part, &begin, &end);
    char *own = (char *)landing->scratch +
                landing->saved_at[MODEL_MATRIX_COUNT - 1][landing->cuts] +
                thread * landing->thread_bytes;
    if (landed->tiled) {
        kern_tile_part(stored, data, scales, begin, end,
                       (char *)landing->scratch + landing->saved_at[m][part], own);
    } else {
        kern_weave(data + (size_t)begin * stored->cols, end - begin, stored->cols, own);
    }
}

static void land(void *context, uint32_t moe_layer, uint32_t expert, void *const parts[TIER_PARTS])
{
    const struct eng_landing *landing = context;
    const struct eng_work *work = landing->work;
    struct pass pass = { landing, parts };
    const uint32_t chunks = MODEL_MATRIX_COUNT * landing->cuts;
    uint64_t cost = 0;          /* a byte takes about as long as a multiply-add */
    (void)moe_layer, (void)expert;      /* all are alike: the store has one kind of expert */
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct kern_matrix *w = &landing->stored[m];
        cost += w->rows * (uint64_t)kern_row_bytes(w->dtype, w->cols);
    }
    if (!work) {
        for (uint32_t i = 0; i < chunks; i++) save_part(&pass, i, 0);
        for (uint32_t i = 0; i < chunks; i++) land_part(&pass, i, 0);
        return;
    }
    if (landing->saves) eng_work_run(work, chunks, cost, save_part, &pass);
    eng_work_run(work, chunks, cost, land_part, &pass);
}

struct shared {
    void (*run)(void *work, uint32_t piece, bool here);
    void *work;
};

static void run_shared(void *context, uint32_t chunk, unsigned thread)
{
    const struct shared *shared = context;
    shared->run(shared->work, chunk, thread == 0);
}

static void share(void *context, uint32_t count, uint64_t bytes,
                  void (*run)(void *work, uint32_t piece, bool here), void *work)
{
    const struct eng_landing *landing = context;
    struct shared shared = { run, work };
    if (landing->work) {
        eng_work_run(landing->work, count, bytes, run_shared, &shared);
        return;
    }
    for (uint32_t i = 0; i < count; i++) run(work, i, true);
}

struct tier_landing eng_landing_hook(struct eng_landing *landing)
{
    return (struct tier_landing){ landing->needed ? land : NULL, share, landing };
}
