/* Grouped expert products, dense products, the absorbing product: row kernels and tile kernels. */
#include <math.h>
#include <string.h>

#include "tests/cudahost/cases.h"
#include "tests/support/guard.h"

/* Experts of one layer and the pairs that go to them. */
struct layer {
    struct kern_cuda_shape in, out;
    struct kern_matrix gate[4], up[4], down[4];
    struct kern_cuda_expert *table;
    struct kern_cuda_run *runs;
    uint32_t run_count, count_max, pairs, rows;
    uint32_t *pair_row;
    const float *x;
};

static struct kern_cuda_shape shape_of(const struct kern_matrix *w)
{
    return (struct kern_cuda_shape){ w->dtype, w->rows, w->cols, w->scales ? w->scale_rows : 0,
                                     w->scale_cols };
}

static void layer_draw(struct cuda_case *c, struct layer *l, bool tiles)
{
    static const enum kern_dtype tile_dtypes[] = { KERN_FP8_E4M3, KERN_BF16 };
    /* Whole units of columns go another way than odd shapes. */
    const bool whole = case_below(c, 2);
    const uint32_t hidden =
        whole ? 64 * (1 + case_below(c, tiles ? 4 : 18)) : 1 + case_below(c, tiles ? 160 : 700);
    const uint32_t width =
        whole && case_below(c, 2) ? 64 * (1 + case_below(c, 2)) : 1 + case_below(c, 80);
    const enum kern_dtype dtype =
        tiles ? tile_dtypes[case_below(c, 2)] : (enum kern_dtype)case_below(c, KERN_STORED_COUNT);
    const uint32_t scale_rows = case_below(c, 4) == 0 ? 0 : 16u << case_below(c, 4);
    const uint32_t scale_cols = case_below(c, 2) ? 128 : 1 + case_below(c, 150);
    const uint32_t experts = 1 + case_below(c, 4);
    *l = (struct layer){ .rows = 1 + case_below(c, 5) };
    l->table = guard_get(experts * sizeof *l->table, 0);
    l->runs = guard_get(experts * sizeof *l->runs, 0);
    for (uint32_t e = 0; e < experts; e++) {
        l->gate[e] = case_matrix(c, dtype, width, hidden, scale_rows, scale_cols);
        l->up[e] = case_matrix(c, dtype, width, hidden, scale_rows, scale_cols);
        l->down[e] = case_matrix(c, dtype, hidden, width, scale_rows, scale_cols);
        l->table[e] =
            (struct kern_cuda_expert){ l->gate[e].data, l->gate[e].scales, l->up[e].data,
                                       l->up[e].scales, l->down[e].data,   l->down[e].scales };
        /* Some experts have no tokens: no run, or an empty one. */
        const uint32_t count = case_below(c, tiles || case_below(c, 8) == 0 ? 70 : 10);
        if (count == 0 && case_below(c, 2)) continue;
        l->runs[l->run_count++] = (struct kern_cuda_run){ e, l->pairs, count };
        l->pairs += count;
        l->count_max = count > l->count_max ? count : l->count_max;
    }
    if (l->pairs == 0) {
        l->runs[0] = (struct kern_cuda_run){ experts - 1, 0, 1 };
        l->run_count = l->pairs = l->count_max = 1;
    }
    l->in = shape_of(&l->gate[0]);
    l->out = shape_of(&l->down[0]);
    l->x = case_floats(c, (size_t)l->rows * hidden);
    l->pair_row = guard_get(l->pairs * sizeof *l->pair_row, 0);
    for (uint32_t i = 0; i < l->pairs; i++)
        l->pair_row[i] = case_below(c, l->rows);
}

static double dot_error(uint32_t cols, bool tiles)
{
    /* Both sums of `cols` terms; tile kernels also keep x to 2^-17 of itself. */
    return (cols / 8.0 + 40) * case_eps + (tiles ? 0x1p-16 : 0);
}

static float dot(struct cuda_case *c, const struct kern_matrix *w, uint32_t row, const float *x,
                 uint32_t k_blocks)
{
    float y[1];
    struct kern_matmul product = { .w = w, .x = x, .y = y - row, .m = 1, .k_blocks = k_blocks };
    c->reference->matmul(&product, row, row + 1);
    return y[0];
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static void in_compare(struct cuda_case *c, const struct layer *l, const float *act, bool tiles)
{
    const double share = dot_error(l->in.cols, tiles);
    for (uint32_t r = 0; r < l->run_count; r++) {
        const struct kern_cuda_run *run = &l->runs[r];
        for (uint32_t i = 0; i < run->count; i++) {
            const float *x = l->x + (size_t)l->pair_row[run->first + i] * l->in.cols;
            for (uint32_t n = 0; n < l->in.rows; n++) {
                const double gate = dot(c, &l->gate[run->expert], n, x, 1);
                const double up = dot(c, &l->up[run->expert], n, x, 1);
                const double gate_off = share * case_weight_sum(&l->gate[run->expert], n, x);
                const double up_off = share * case_weight_sum(&l->up[run->expert], n, x);
                const double wanted = silu(gate) * up;
                /* SiLU's slope is below 1.1. */
                const double allowed = 1.1 * gate_off * (fabs(up) + up_off) +
                                       (fabs(silu(gate)) + gate_off) * up_off +
                                       16 * case_eps * fabs(wanted);
                const size_t at = (size_t)(run->first + i) * l->in.rows + n;
                case_near(c, "act", at, act[at], wanted, allowed);
            }
        }
    }
}

static void out_compare(struct cuda_case *c, const struct layer *l, const float *act,
                        const float *out, bool tiles)
{
    const double share = dot_error(l->out.cols, tiles);
    for (uint32_t r = 0; r < l->run_count; r++) {
        const struct kern_cuda_run *run = &l->runs[r];
        for (uint32_t i = 0; i < run->count; i++) {
            const float *x = act + (size_t)(run->first + i) * l->out.cols;
            for (uint32_t n = 0; n < l->out.rows; n++) {
                const size_t at = (size_t)(run->first + i) * l->out.rows + n;
                case_near(c, "out", at, out[at], dot(c, &l->down[run->expert], n, x, 1),
                          share * case_weight_sum(&l->down[run->expert], n, x));
            }
        }
    }
}

/* The same pairs again, one launch each: no bit may depend on the company. */
static void alone_compare(struct cuda_case *c, const struct layer *l, const float *act,
                          const float *out, bool tiles)
{
    struct kern_cuda_run *run = guard_get(sizeof *run, 0);
    float *act_alone = case_room(c, (size_t)l->pairs * l->in.rows);
    float *out_alone = case_room(c, (size_t)l->pairs * l->out.rows);
    for (uint32_t r = 0; r < l->run_count; r++) {
        if (l->runs[r].count == 0) continue;
        const uint32_t pair = l->runs[r].first + case_below(c, l->runs[r].count);
        const struct kern_cuda_experts_in_args in = {
            l->in, l->table, run, 1, 1, l->pair_row, l->x, act_alone,
        };
        const struct kern_cuda_experts_out_args down = {
            l->out, l->table, run, 1, 1, act, out_alone,
        };
        *run = (struct kern_cuda_run){ l->runs[r].expert, pair, 1 };
        case_finish(c, tiles ? kern_cuda_experts_in_tiles(&in, NULL)
                             : kern_cuda_experts_in(&in, NULL));
        case_finish(c, tiles ? kern_cuda_experts_out_tiles(&down, NULL)
                             : kern_cuda_experts_out(&down, NULL));
        case_same(c, "act alone", act_alone + (size_t)pair * l->in.rows,
                  act + (size_t)pair * l->in.rows, l->in.rows);
        case_same(c, "out alone", out_alone + (size_t)pair * l->out.rows,
                  out + (size_t)pair * l->out.rows, l->out.rows);
    }
}

static void experts(struct cuda_case *c, bool tiles)
{
    struct layer l;
    layer_draw(c, &l, tiles);
    float *act = case_room(c, (size_t)l.pairs * l.in.rows);
    float *out = case_room(c, (size_t)l.pairs * l.out.rows);
    const struct kern_cuda_experts_in_args in = {
        l.in, l.table, l.runs, l.run_count, l.count_max, l.pair_row, l.x, act,
    };
    const struct kern_cuda_experts_out_args down = {
        l.out, l.table, l.runs, l.run_count, l.count_max, act, out,
    };
    case_finish(c, tiles ? kern_cuda_experts_in_tiles(&in, NULL) : kern_cuda_experts_in(&in, NULL));
    case_finish(c, tiles ? kern_cuda_experts_out_tiles(&down, NULL)
                         : kern_cuda_experts_out(&down, NULL));
    in_compare(c, &l, act, tiles);
    out_compare(c, &l, act, out, tiles);
    alone_compare(c, &l, act, out, tiles);
}

void case_experts(struct cuda_case *c)
{
    experts(c, false);
}

void case_experts_tiles(struct cuda_case *c)
{
    experts(c, true);
}

/* A product of all rows of a matrix, or of some rows of each of its groups. */
static void product(struct cuda_case *c, bool tiles)
{
    static const enum kern_dtype tile_dtypes[] = { KERN_FP8_E4M3, KERN_BF16 };
    const enum kern_dtype dtype =
        tiles ? tile_dtypes[case_below(c, 2)] : (enum kern_dtype)case_below(c, KERN_STORED_COUNT);
    const bool grouped = case_below(c, 2);
    const uint32_t groups = grouped ? 1 + case_below(c, 3) : 1;
    const bool whole = case_below(c, 2);
    const uint32_t group = grouped && (tiles || whole) ? 64 : 1 + case_below(c, 70);
    const uint32_t first = grouped ? 16 * case_below(c, 3) : 0;
    const uint32_t w_group = grouped ? (first + group + 15) / 16 * 16 : group;
    const uint32_t cols = !whole             ? 8 + case_below(c, tiles ? 200 : 900)
                          : case_below(c, 3) ? 64 * (1 + case_below(c, tiles ? 3 : 14))
                                             : 1024 * (1 + case_below(c, 2));
    struct kern_cuda_product_args a = {
        .w = case_matrix(c, dtype, groups * w_group, cols,
                         case_below(c, 3) ? 16u << case_below(c, 4) : 0,
                         case_below(c, 2) ? 128 : 1 + case_below(c, 150)),
        .m = 1 + case_below(c, tiles || case_below(c, 4) == 0 ? 40 : 9),
        .rows = groups * group,
        .k_blocks = case_below(c, 2) ? 1 : KERN_RANK_BLOCKS,
        .group = group,
        .w_group = w_group,
        .w_first = first,
        .x_group = grouped ? cols : 0,
    };
    a.x_stride = groups * a.x_group + cols + case_below(c, 5);
    a.y_stride = a.rows + case_below(c, 5);
    a.x = case_floats(c, a.m * a.x_stride);
    const size_t n_all = (a.m - 1) * a.y_stride + a.rows;
    float *y = a.y = case_room(c, n_all);
    case_finish(c, tiles ? kern_cuda_product_tiles(&a, NULL) : kern_cuda_product(&a, NULL));
    const double share = dot_error(cols, tiles);
    for (uint32_t m = 0; m < a.m; m++) {
        for (uint32_t n = 0; n < a.rows; n++) {
            const uint32_t row = n / group * w_group + first + n % group;
            const float *x = a.x + m * a.x_stride + n / group * a.x_group;
            case_near(c, "y", m * a.y_stride + n, y[m * a.y_stride + n],
                      dot(c, &a.w, row, x, a.k_blocks), share * case_weight_sum(&a.w, row, x));
        }
    }
    /* Alone. */
    const uint32_t m = case_below(c, a.m);
    a.y = case_room(c, a.rows);
    a.x += m * a.x_stride;
    a.m = 1;
    case_finish(c, tiles ? kern_cuda_product_tiles(&a, NULL) : kern_cuda_product(&a, NULL));
    case_same(c, "y alone", a.y, y + m * a.y_stride, a.rows);
}

void case_product(struct cuda_case *c)
{
    product(c, false);
}

void case_product_tiles(struct cuda_case *c)
{
    product(c, true);
}

void case_absorb(struct cuda_case *c)
{
    struct kern_cuda_absorb_args a = { .rows = 1 + case_below(c, 6),
                                       .heads = 1 + case_below(c, 3),
                                       .nope = 1 + case_below(c, 40),
                                       .rope = case_below(c, 20) };
    const uint32_t lora = case_below(c, 2) ? 1 + case_below(c, 300) : 4 * (1 + case_below(c, 140));
    const uint32_t head = a.nope + a.rope, width = lora + a.rope;
    a.w_head = a.nope + case_below(c, 20);
    const enum kern_dtype dtype = (enum kern_dtype)case_below(c, KERN_STORED_COUNT);
    a.w = case_matrix(c, dtype, a.heads * a.w_head, lora,
                      case_below(c, 2) ? 1 + case_below(c, 40) : 0,
                      case_below(c, 2) ? 4 * (1 + case_below(c, 40)) : 1 + case_below(c, 150));
    a.q = case_floats(c, (size_t)a.rows * a.heads * head);
    a.q_latent = case_room(c, (size_t)a.rows * a.heads * width);
    case_finish(c, kern_cuda_absorb(&a, NULL));
    float *wanted = case_room(c, width);
    for (uint32_t i = 0; i < a.rows * a.heads; i++) {
        const float *q = a.q + (size_t)i * head;
        const uint32_t first = i % a.heads * a.w_head;
        c->reference->matmul_t(&a.w, first, first + a.nope, q, wanted);
        memcpy(wanted + lora, q + a.nope, a.rope * sizeof *q);
        case_same(c, "q_latent", a.q_latent + (size_t)i * width, wanted, width);
    }
}
