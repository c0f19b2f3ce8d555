#include "engine/work.h"

enum {
    ROW_UNIT = 8,               /* rows the kernels like to take together */
    CHUNKS_PER_THREAD = 4,
};

/* Multiply-adds that are worth a second thread: some 20 us of one core. */
static const uint64_t chunk_cost = 256 * 1024;

uint32_t eng_work_parts(const struct eng_work *work, uint32_t items, uint64_t cost, uint32_t rows)
{
    if (work->threads == 1 || items == 0) return 1;
    uint64_t total = cost * items;
    uint64_t chunks = total / chunk_cost;
    uint64_t most = (uint64_t)work->threads * CHUNKS_PER_THREAD;
    if (chunks > most) chunks = most;
    uint64_t parts = (chunks + items - 1) / items;
    uint64_t units = (rows + ROW_UNIT - 1) / ROW_UNIT;
    if (parts > units) parts = units;
    return parts < 1 ? 1 : (uint32_t)parts;
}

void eng_work_rows(uint32_t rows, uint32_t parts, uint32_t part, uint32_t *begin, uint32_t *end)
{
    uint64_t units = (rows + ROW_UNIT - 1) / ROW_UNIT;
    *begin = (uint32_t)(units * part / parts) * ROW_UNIT;
    *end = (uint32_t)(units * (part + 1) / parts) * ROW_UNIT;
    if (*end > rows) *end = rows;
}

void eng_work_run(const struct eng_work *work, uint32_t count, uint64_t cost,
                  void (*run)(void *context, uint32_t chunk, unsigned thread), void *context)
{
    if (work->threads > 1 && count > 1 && cost >= 2 * chunk_cost) {
        kern_par_run(work->par, count, run, context);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        run(context, i, 0);
    }
}

struct products {
    const struct eng_work *work;
    const struct kern_matmul *list;
    uint32_t parts;
};

static void product_run(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct products *p = context;
    const struct kern_matmul *product = &p->list[chunk / p->parts];
    uint32_t begin, end;
    eng_work_rows(product->w->rows, p->parts, chunk % p->parts, &begin, &end);
    if (begin < end) p->work->ops->matmul(product, begin, end);
}

void eng_work_products(const struct eng_work *work, const struct kern_matmul *products,
                       uint32_t count)
{
    uint64_t cost = 0;
    uint32_t rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct kern_matrix *w = products[i].w;
        cost += (uint64_t)w->rows * w->cols * products[i].m;
        if (w->rows > rows) rows = w->rows;
    }
    struct products p = { work, products, eng_work_parts(work, count, cost / count, rows) };
    eng_work_run(work, count * p.parts, cost, product_run, &p);
}
