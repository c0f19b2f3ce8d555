#include "engine/work.h"

#include "base/must.h"
#include "kernels/x16.h"

enum { CHUNKS_PER_THREAD = 4 };

/* Multiply-adds that are worth a second thread: some 20 us of one core. */
static const uint64_t chunk_cost = 256 * 1024;

uint32_t eng_work_parts(const struct eng_work *work, uint32_t items, uint64_t cost, uint32_t rows,
                        uint32_t unit)
{
    if (work->threads == 1 || items == 0) return 1;
    uint64_t total = cost * items;
    uint64_t chunks = total / chunk_cost;
    uint64_t most = (uint64_t)work->threads * CHUNKS_PER_THREAD;
    if (chunks > most) chunks = most;
    uint64_t parts = (chunks + items - 1) / items;
    uint64_t units = (rows + unit - 1) / unit;
    if (parts > units) parts = units;
    return parts < 1 ? 1 : (uint32_t)parts;
}

void eng_work_rows(uint32_t rows, uint32_t unit, uint32_t parts, uint32_t part, uint32_t *begin,
                   uint32_t *end)
{
    uint64_t units = (rows + unit - 1) / unit;
    *begin = (uint32_t)(units * part / parts) * unit;
    *end = (uint32_t)(units * (part + 1) / parts) * unit;
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
    eng_work_rows(product->w->rows, ENG_ROW_UNIT, p->parts, chunk % p->parts, &begin, &end);
    if (begin < end) eng_multiply(p->work, product, begin, end);
}

/* Chunk = one row of inputs. */
static void row_to_x16(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct products *p = context;
    const struct kern_matmul *product = p->list;
    uint16_t *to = p->work->x16 + (product->x16 - p->work->x16) + row * product->x16_stride;
    p->work->ops->to_x16(to, product->x + row * product->x_stride, product->w, product->k_blocks);
}

static bool same_inputs(const struct kern_matmul *a, const struct kern_matmul *b)
{
    return a->x16 && a->x == b->x && a->x_stride == b->x_stride && a->m == b->m &&
           a->k_blocks == 1 && b->k_blocks == 1 && kern_x16_same(a->w, b->w);
}

/* Rounds the inputs of those that take bf16, once where two have the same. */
static void round_inputs(const struct eng_work *work, struct kern_matmul *products, uint32_t count)
{
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct kern_matmul *product = &products[i];
        if (!kern_x16_takes(product->w)) continue;
        if (i > 0 && same_inputs(&products[i - 1], product)) {
            product->x16 = products[i - 1].x16;
            product->x16_stride = products[i - 1].x16_stride;
            continue;
        }
        product->x16 = work->x16 + used;
        product->x16_stride = kern_x16_elements(product->w->cols, product->k_blocks);
        used += product->m * product->x16_stride;
        MUST(used <= work->x16_elements);
        struct products p = { work, product, 1 };
        eng_work_run(work, product->m, (uint64_t)product->m * product->w->cols * ENG_X16_COST,
                     row_to_x16, &p);
    }
}

void eng_work_products(const struct eng_work *work, const struct kern_matmul *products,
                       uint32_t count)
{
    struct kern_matmul rounded[ENG_PRODUCTS_MAX];
    uint64_t cost = 0;
    uint32_t rows = 0;
    if (work->x16) {
        MUST(count <= ENG_PRODUCTS_MAX);
        for (uint32_t i = 0; i < count; i++) rounded[i] = products[i];
        round_inputs(work, rounded, count);
        products = rounded;
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct kern_matrix *w = products[i].w;
        cost += (uint64_t)w->rows * w->cols * products[i].m;
        if (w->rows > rows) rows = w->rows;
    }
    struct products p = { work, products,
                          eng_work_parts(work, count, cost / count, rows, ENG_ROW_UNIT) };
    eng_work_run(work, count * p.parts, cost, product_run, &p);
}
