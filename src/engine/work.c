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

/* Products may have matrices of several kinds: what suits all. */
static uint32_t unit_of(const struct kern_matmul *products, uint32_t count)
{
    uint32_t unit = ENG_ROW_UNIT;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t own = eng_work_unit(products[i].w);
        if (own > unit) unit = own;
    }
    return unit;
}

static void product_run(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct products *p = context;
    const struct kern_matmul *product = &p->list[chunk / p->parts];
    uint32_t begin, end;
    eng_work_rows(product->w->rows, eng_work_unit(product->w), p->parts, chunk % p->parts, &begin,
                  &end);
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

static void row_to_x8(void *context, uint32_t row, unsigned thread)
{
    (void)thread;
    const struct products *p = context;
    const struct kern_matmul *product = p->list;
    const struct kern_matrix *w = product->w;
    char *room = p->work->x8;
    room += (const char *)product->x8 - room;
    p->work->ops->to_x8(room + row * product->x8_stride, product->x + row * product->x_stride,
                        w->cols, w->dtype, w->scale_cols, product->x8_digits);
}

static bool same_inputs(const struct kern_matmul *a, const struct kern_matmul *b)
{
    return a->x == b->x && a->x_stride == b->x_stride && a->m == b->m;
}

static bool same_x16(const struct kern_matmul *a, const struct kern_matmul *b)
{
    return a->x16 && same_inputs(a, b) && a->k_blocks == 1 && b->k_blocks == 1 &&
           kern_x16_same(a->w, b->w);
}

static bool same_x8(const struct kern_matmul *a, const struct kern_matmul *b)
{
    return a->x8 && same_inputs(a, b) && a->w->dtype == b->w->dtype && a->w->cols == b->w->cols &&
           a->w->scale_cols == b->w->scale_cols;
}

static void code_rows(const struct eng_work *work, struct kern_matmul *product,
                      void (*row)(void *context, uint32_t row, unsigned thread))
{
    struct products p = { work, product, 1 };
    eng_work_run(work, product->m, (uint64_t)product->m * product->w->cols * ENG_CODE_COST, row,
                 &p);
}

/* Rounds the inputs of those that take bf16, once where two have the same. */
static void round_inputs(const struct eng_work *work, struct kern_matmul *products, uint32_t count)
{
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct kern_matmul *product = &products[i];
        if (!kern_x16_takes(product->w)) continue;
        if (i > 0 && same_x16(&products[i - 1], product)) {
            product->x16 = products[i - 1].x16;
            product->x16_stride = products[i - 1].x16_stride;
            continue;
        }
        product->x16 = work->x16 + used;
        product->x16_stride = kern_x16_elements(product->w->cols, product->k_blocks);
        used += product->m * product->x16_stride;
        MUST(used <= work->x16_elements);
        code_rows(work, product, row_to_x16);
    }
}

/* Likewise as integers of those with tiles. */
static void code_inputs(const struct eng_work *work, struct kern_matmul *products, uint32_t count)
{
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct kern_matmul *product = &products[i];
        if (!product->w->tiled) continue;
        product->k_blocks = 1;
        product->x8_digits = work->x8_digits;
        product->x8_stride = kern_x8_bytes(product->w->cols, work->x8_digits);
        if (i > 0 && same_x8(&products[i - 1], product)) {
            product->x8 = products[i - 1].x8;
            continue;
        }
        product->x8 = (const char *)work->x8 + used;
        used += product->m * product->x8_stride;
        MUST(used <= work->x8_bytes);
        code_rows(work, product, row_to_x8);
    }
}

void eng_work_products(const struct eng_work *work, const struct kern_matmul *products,
                       uint32_t count)
{
    struct kern_matmul coded[ENG_PRODUCTS_MAX];
    uint64_t cost = 0;
    uint32_t rows = 0;
    if (work->x16 || work->x8) {
        MUST(count <= ENG_PRODUCTS_MAX);
        for (uint32_t i = 0; i < count; i++) coded[i] = products[i];
        if (work->x16) round_inputs(work, coded, count);
        if (work->x8) code_inputs(work, coded, count);
        products = coded;
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct kern_matrix *w = products[i].w;
        cost += (uint64_t)w->rows * w->cols * products[i].m;
        if (w->rows > rows) rows = w->rows;
    }
    struct products p = { work, products, eng_work_parts(work, count, cost / count, rows,
                                                         unit_of(products, count)) };
    eng_work_run(work, count * p.parts, cost, product_run, &p);
}
