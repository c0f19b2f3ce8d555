#include "engine/ranks.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/must.h"
#include "base/str.h"
#include "engine/core.h"
#include "kernels/x16.h"

#define BASE_OPTION_OWNER struct eng_rank_config
const struct base_option eng_rank_options[] = { ENG_RANK_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t eng_rank_option_count = sizeof eng_rank_options / sizeof eng_rank_options[0];

/* ---------------------------------------------------------------------------------- settings -- */

int eng_ranks_check(const struct eng_rank_config *config, struct base_err *err)
{
    bool measured = strncmp(config->placement, "file:", 5) == 0;
    if (!measured && strcmp(config->placement, "round_robin") != 0) {
        return base_err_set(err, BASE_ECONFIG, "ranks.placement: \"%s\" is neither round_robin nor "
                            "file:PATH", config->placement);
    }
    if (config->replicas > 0 && !measured) {
        return base_err_set(err, BASE_ECONFIG, "ranks.replicas: %" PRIu64 " cannot take effect: "
                            "which experts are asked for most is not known without a measured "
                            "ranks.placement (file:PATH)", config->replicas);
    }
    if (config->tensor > 1 && config->expert > 1 && config->tensor != config->expert) {
        return base_err_set(err, BASE_ECONFIG, "parallel.tensor: %" PRIu64 " and parallel.expert: "
                            "%" PRIu64 ": each must be 1 or the number of ranks", config->tensor,
                            config->expert);
    }
    if (config->expert == 1 && (measured || config->replicas > 0)) {
        return base_err_set(err, BASE_ECONFIG, "ranks.placement: %s cannot take effect: with "
                            "parallel.expert: 1 every rank holds every expert", config->placement);
    }
    return 0;
}

static int share_of(const char *key, uint64_t wanted, uint32_t ranks, uint32_t *out,
                    struct base_err *err)
{
    *out = wanted == 0 ? ranks : (uint32_t)wanted;
    if (wanted <= 1 || wanted == ranks) return 0;
    if (ranks == 1) {
        return base_err_set(err, BASE_ECONFIG, "%s: %" PRIu64 " needs %" PRIu64 " ranks, and there "
                            "is one: start it with mpirun -n %" PRIu64 " (docs/ranks.md)", key,
                            wanted, wanted, wanted);
    }
    return base_err_set(err, BASE_ECONFIG, "%s: %" PRIu64 ", but %" PRIu32 " ranks were started: "
                        "it can be 1 or %" PRIu32, key, wanted, ranks, ranks);
}

int eng_ranks_init(struct eng_ranks *r, const struct eng_rank_config *config, struct comm *comm,
                   struct base_err *err)
{
    uint32_t count = comm ? comm->size : 1;
    *r = (struct eng_ranks){ .comm = count > 1 ? comm : NULL, .count = count,
                             .rank = comm ? comm->rank : 0 };
    int rc = eng_ranks_check(config, err);
    if (rc == 0) rc = share_of("parallel.tensor", config->tensor, count, &r->tensor, err);
    if (rc == 0) rc = share_of("parallel.expert", config->expert, count, &r->expert, err);
    if (rc < 0) return rc;
    if (count > 1 && r->tensor == 1 && r->expert == 1) {
        return base_err_set(err, BASE_ECONFIG, "parallel.tensor and parallel.expert are both 1: "
                            "%" PRIu32 " ranks would all do the same; start one, or share "
                            "something", count);
    }
    if (count == 1 && strcmp(config->placement, "round_robin") != 0) {
        return base_err_set(err, BASE_ECONFIG, "ranks.placement: %s cannot take effect: there is "
                            "one rank", config->placement);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------ shares -- */

struct eng_share eng_ranks_share_of(uint32_t all, uint32_t count, uint32_t rank)
{
    uint32_t each = (all + count - 1) / count;
    uint64_t begin = (uint64_t)each * rank, end = begin + each;
    return (struct eng_share){ begin < all ? (uint32_t)begin : all,
                               end < all ? (uint32_t)end : all, each };
}

struct eng_share eng_ranks_share(const struct eng_ranks *r, uint32_t all)
{
    if (!r || r->tensor <= 1) return (struct eng_share){ 0, all, all };
    return eng_ranks_share_of(all, r->tensor, r->rank);
}

bool eng_ranks_by_blocks(const struct eng_ranks *r, uint32_t rows, uint32_t cols,
                         uint32_t scale_cols, uint32_t units)
{
    if (!r || r->tensor <= 1 || r->rows_only) return false;
    if (KERN_RANK_BLOCKS % r->tensor != 0 || units % r->tensor != 0) return false;
    for (uint32_t b = 1; scale_cols > 0 && b < KERN_RANK_BLOCKS; b++) {
        if (eng_ranks_block_edge(cols, b) % scale_cols != 0) return false;
    }
    /* Received a token, but for (ranks - 1) / ranks, which both have: cols by rows; by blocks each
     * rank's share of the outputs from all blocks that others hold. */
    return (uint64_t)KERN_RANK_BLOCKS / r->tensor * rows < cols;
}

struct eng_share eng_ranks_blocks(const struct eng_ranks *r, uint32_t cols)
{
    uint32_t each = KERN_RANK_BLOCKS / r->tensor;
    return (struct eng_share){ eng_ranks_block_edge(cols, each * r->rank),
                               eng_ranks_block_edge(cols, each * (r->rank + 1)), each };
}

/* ------------------------------------------------------------------------------------- rooms -- */

static void most(size_t *to, size_t floats)
{
    if (floats > *to) *to = floats;
}

void eng_ranks_room(const struct eng_ranks *r, const struct model_shape *s,
                    const struct eng_plan_size *size, struct eng_rank_room *room)
{
    *room = (struct eng_rank_room){ 0 };
    if (!r || r->count == 1) return;
    size_t rows = size->rows, head_rows = (size_t)size->decode_rows + 1, n = r->count;
    size_t each = (s->hidden + n - 1) / n, vocab = (s->vocab + n - 1) / n;
    uint32_t shared = s->shared_experts * s->expert_width;
    uint32_t width = s->dense_width > shared ? s->dense_width : shared;
    size_t heads = (s->heads + n - 1) / n * s->v_dim, wide = (width + n - 1) / n;
    most(&room->part, rows * each);
    if (r->tensor > 1) {
        most(&room->part, head_rows * vocab);
        most(&room->whole, rows * (s->heads * s->v_dim > width ? s->heads * s->v_dim : width));
        size_t widest = heads > wide ? heads : wide;
        most(&room->send, rows * (widest > each ? widest : each));
        most(&room->send, head_rows * vocab);
        most(&room->recv, n * room->send);
        most(&room->send, rows * s->hidden);    /* cards: the sum of embeddings, where it is */
        /* By blocks: those of a rank for all outputs, all of them for a rank's outputs. */
        most(&room->send, KERN_RANK_BLOCKS / r->tensor * rows * n * each);
        most(&room->recv, KERN_RANK_BLOCKS * rows * each);
    }
    if (r->expert > 1) {
        size_t pairs = rows * s->top_k;
        most(&room->send, pairs * n * (each + 1));
        most(&room->recv, pairs * (each + 1));
        most(&room->send, rows * each);
        most(&room->recv, rows * n * each);
    }
}

/* ------------------------------------------------------------------------------- collectives -- */

void eng_ranks_gather(struct eng_core *core, const float *part, float *whole, uint32_t rows,
                      uint32_t units, uint32_t unit)
{
    const struct eng_ranks *r = &core->ranks;
    struct eng_plan *plan = &core->plan;
    uint32_t n = r->count;
    size_t each = (size_t)(units + n - 1) / n * unit, width = (size_t)units * unit;
    size_t bytes = rows * each * sizeof *part;
    if (rows == 1 && each * n == width) {
        comm_all_gather(r->comm, part, whole, bytes);
        return;
    }
    comm_all_gather(r->comm, part, plan->rank_recv, bytes);
    for (uint32_t from = 0; from < n; from++) {
        size_t begin = from * each, count = begin >= width ? 0
                                            : begin + each > width ? width - begin : each;
        for (uint32_t row = 0; row < rows && count > 0; row++) {
            memcpy(whole + row * width + begin, plan->rank_recv + (from * rows + row) * each,
                   count * sizeof *whole);
        }
    }
}

void eng_ranks_rows(struct eng_core *core, const struct kern_matrix *part, const float *x,
                    size_t x_stride, float *y, uint32_t rows, uint32_t cols)
{
    struct eng_share share = eng_ranks_share(&core->ranks, cols);
    struct kern_matmul product = eng_product(part, x, x_stride, core->plan.rank_part, share.each,
                                             rows, KERN_RANK_BLOCKS);
    MUST(part->rows == share.end - share.begin);
    if (part->rows > 0) eng_work_products(&core->work, &product, 1);
    eng_ranks_gather(core, core->plan.rank_part, y, rows, cols, 1);
}

struct blocks {
    struct eng_core *core;
    const struct kern_matrix *list;
    uint32_t cols, count;       /* of the whole matrix; blocks of this rank */
    const float *x;
    size_t x_stride;
    uint32_t rows, parts;
};

/* Where block `own` of this rank begins in its inputs. */
static uint32_t block_column(const struct blocks *b, uint32_t own)
{
    uint32_t first_block = b->core->ranks.rank * b->count;
    return eng_ranks_block_edge(b->cols, first_block + own) -
           eng_ranks_block_edge(b->cols, first_block);
}

/* The inputs of block `own`, of all rows, as bf16; NULL: they stay f32. Blocks lie one after the
 * other. */
static uint16_t *block_x16(const struct blocks *b, uint32_t own, size_t *stride)
{
    const struct eng_work *work = &b->core->work;
    uint16_t *at = work->x16;
    if (!at || !kern_x16_takes(&b->list[own])) return NULL;
    for (uint32_t i = 0; i <= own; i++) {
        *stride = kern_x16_elements(b->list[i].cols, 1);
        if (i < own) at += b->rows * *stride;
    }
    return at;
}

/* Chunk = one row of inputs of one block. */
static void block_row_round(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct blocks *b = context;
    uint32_t own = chunk / b->rows, row = chunk % b->rows;
    size_t stride;
    uint16_t *to = block_x16(b, own, &stride);
    if (!to) return;
    MUST((size_t)(to - b->core->work.x16) + b->rows * stride <= b->core->work.x16_elements);
    b->core->work.ops->to_x16(to + row * stride, b->x + block_column(b, own) + row * b->x_stride,
                              &b->list[own], 1);
}

/* Chunk = one block, some of the outputs: each goes where the rank that adds it up expects it. */
static void block_run(void *context, uint32_t chunk, unsigned thread)
{
    (void)thread;
    const struct blocks *b = context;
    const struct eng_core *core = b->core;
    uint32_t hidden = core->shape->hidden, n = core->ranks.count, own = chunk / b->parts;
    uint32_t column = block_column(b, own), begin, end;
    size_t x16_stride = 0;
    const uint16_t *x16 = block_x16(b, own, &x16_stride);
    eng_work_rows(hidden, eng_work_unit(&b->list[own]), b->parts, chunk % b->parts, &begin, &end);
    for (uint32_t to = 0; to < n; to++) {
        struct eng_share share = eng_ranks_share_of(hidden, n, to);
        uint32_t from = begin > share.begin ? begin : share.begin;
        uint32_t till = end < share.end ? end : share.end;
        if (from >= till) continue;
        float *at = core->plan.rank_send + ((size_t)to * b->count + own) * b->rows * share.each;
        struct kern_matmul product = eng_product(&b->list[own], b->x + column, b->x_stride,
                                                 at - share.begin, share.each, b->rows, 1);
        product.x16 = x16;
        product.x16_stride = x16_stride;
        eng_multiply(&core->work, &product, from, till);
    }
}

void eng_ranks_blocks_sum(struct eng_core *core, const struct kern_matrix *list, uint32_t cols,
                          const float *x, size_t x_stride, float *y, uint32_t rows)
{
    const struct eng_ranks *r = &core->ranks;
    struct eng_plan *plan = &core->plan;
    uint32_t hidden = core->shape->hidden, count = KERN_RANK_BLOCKS / r->count;
    struct eng_share own = eng_ranks_share(r, hidden), held = eng_ranks_blocks(r, cols);
    size_t bytes[COMM_RANKS_MAX], block = (size_t)rows * own.each;
    uint64_t cost = (uint64_t)rows * hidden * (held.end - held.begin);
    struct blocks b = { core, list, cols, count, x, x_stride, rows,
                        eng_work_parts(&core->work, count, cost / count, hidden,
                                       ENG_ROW_UNIT) };
    if (core->work.x16) {
        eng_work_run(&core->work, count * rows,
                     (uint64_t)rows * (held.end - held.begin) * ENG_CODE_COST, block_row_round, &b);
    }
    eng_work_run(&core->work, count * b.parts, cost, block_run, &b);
    for (uint32_t to = 0; to < r->count; to++) {
        bytes[to] = count * block * sizeof *x;
    }
    comm_all_to_all(r->comm, plan->rank_send, bytes, plan->rank_recv, bytes);
    /* Ranks hold ascending blocks: what came lies in their order. */
    memcpy(plan->rank_part, plan->rank_recv, block * sizeof *x);
    for (uint32_t i = 1; i < KERN_RANK_BLOCKS; i++) {
        core->work.ops->add(plan->rank_part, plan->rank_recv + i * block, (uint32_t)block);
    }
    eng_ranks_gather(core, plan->rank_part, y, rows, hidden, 1);
}

/* ------------------------------------------------------------------------------------ launch -- */

struct place {
    char host[64];
    cpu_set_t cores;
};

void eng_ranks_cores(struct comm *comm, uint32_t *first, uint32_t *count)
{
    static struct place all[COMM_RANKS_MAX];
    struct place own = { 0 };
    uint32_t before = 0, sharing = 0;
    gethostname(own.host, sizeof own.host - 1);
    if (sched_getaffinity(0, sizeof own.cores, &own.cores) < 0) CPU_SET(0, &own.cores);
    *first = 0;
    *count = (uint32_t)CPU_COUNT(&own.cores);
    if (!comm || comm->size == 1) return;
    comm_all_gather(comm, &own, all, sizeof own);
    for (unsigned r = 0; r < comm->size; r++) {
        if (memcmp(&all[r], &own, sizeof own) != 0) continue;
        sharing++;
        before += r < comm->rank;
    }
    uint32_t each = *count / sharing;
    *count = each > 0 ? each : 1;
    *first = before * *count;
}

int eng_ranks_agree(struct comm *comm, const char *what, uint64_t hash, struct base_err *err)
{
    uint64_t all[COMM_RANKS_MAX];
    if (!comm || comm->size == 1) return 0;
    comm_all_gather(comm, &hash, all, sizeof hash);
    for (unsigned r = 1; r < comm->size; r++) {
        if (all[r] == all[0]) continue;
        return base_err_set(err, BASE_EMISMATCH, "rank %u was started with another %s than rank 0: "
                            "all ranks need the same", r, what);
    }
    return 0;
}

int eng_ranks_path(const struct eng_ranks *r, char path[BASE_OPTION_TEXT], struct base_err *err)
{
    size_t used = strlen(path);
    if (r->count == 1 || used == 0) return 0;
    if (base_str_format(path + used, BASE_OPTION_TEXT - used, ".rank%" PRIu32, r->rank) < 0) {
        return base_err_set(err, -ENAMETOOLONG, "%s: the path is too long for a rank's number "
                            "behind it", path);
    }
    return 0;
}
