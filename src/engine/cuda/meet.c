#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "comm/cards.h"
#include "engine/cuda/room.h"
#include "engine/exchange.h"

/* ------------------------------------------------------------------------------------- agree -- */

bool eng_cuda_goes_on(const struct eng_cuda *cuda)
{
    return cuda->rc == 0 || (cuda->core->ranks.count > 1 && !cuda->told);
}

void eng_cuda_say(const struct eng_cuda *cuda, char *to, size_t size)
{
    const struct dev *dev = cuda->dev;
    if (dev->lost)
        snprintf(to, size, "%s", dev->lost_why);
    else
        snprintf(to, size, "device cuda: %s%s failed in this step", dev->whose,
                 cuda->what ? cuda->what : "nothing");
}

/* Everybody learns what the first rank that failed says, and whose card is lost. */
static void tell(struct eng_cuda *cuda)
{
    struct eng_core *core = cuda->core;
    const struct eng_ranks *r = &core->ranks;
    struct eng_cuda_word own = { .rc = cuda->rc, .lost = cuda->dev->lost };
    eng_cuda_say(cuda, own.text, sizeof own.text);
    comm_all_gather(r->comm, &own, cuda->words, sizeof own);
    /* What fails where a card is lost follows from that. */
    const struct eng_cuda_word *first = NULL;
    for (uint32_t i = r->count; i-- > 0;) {
        const struct eng_cuda_word *word = &cuda->words[i];
        if (word->lost && !cuda->dev->lost)
            snprintf(core->lost, sizeof core->lost, "%s", word->text);
        if (word->rc < 0 && (!first || word->lost || !first->lost)) first = word;
    }
    MUST(first);
    cuda->rc = first->rc;
    snprintf(cuda->why, sizeof cuda->why, "%s", first->text);
    cuda->told = true;
}

bool eng_cuda_agree(struct eng_cuda *cuda, struct eng_cuda_failed *failed)
{
    struct comm *comm = cuda->core->ranks.comm;
    /* Only the device knows of a kernel's error whether anything can succeed after it; if not, this
     * rank's part of what the others wait for on their streams will not come. */
    if (cuda->rc < 0) dev_stream_settle(cuda->dev);
    if (cuda->dev->lost) comm_cards_alarm(comm);
    uint32_t counts[2] = { cuda->rc < 0, failed ? failed->count : 0 };
    comm_all_reduce(comm, counts, 2);
    if (counts[0] > 0) {
        tell(cuda);
        return false;
    }
    /* An expert is computed by one rank, so that the sum of bits is their union. */
    if (failed && counts[1] > 0) comm_all_reduce(comm, failed->experts, ENG_CUDA_FAILED_WORDS);
    if (failed) failed->count = counts[1];
    return true;
}

/* ------------------------------------------------------------------------------- collectives --
 *
 * Between cards on the compute stream, where there is such a thing, also of a rank whose step has
 * failed: the others' streams wait for it. Else by way of the hosts. */

static bool by_cards(const struct eng_cuda *cuda)
{
    return comm_has_cards(cuda->core->ranks.comm);
}

/* A call that is refused leaves the others waiting. A card that is lost is told of at the next
 * agreement; anything else is the end. */
static void asked(struct eng_cuda *cuda, int rc)
{
    if (rc == 0) return;
    if (rc != -ECANCELED) {
        dev_stream_settle(cuda->dev);
        if (!cuda->dev->lost) comm_cards_lose(cuda->core->ranks.comm, rc);
        comm_cards_alarm(cuda->core->ranks.comm);
    }
    eng_cuda_keep(cuda, BASE_EDEVICE, "an exchange");
}

static void copy(struct eng_cuda *cuda, enum dev_queue way, void *to, const void *from,
                 size_t bytes)
{
    if (cuda->rc == 0 && bytes > 0)
        eng_cuda_keep(cuda, dev_stream_copy(cuda->dev, way, to, from, bytes), "an exchange");
}

/* Down, so that the host has it. The copy up of the exchange before is over then, too. */
static void down(struct eng_cuda *cuda, const float *from, size_t bytes)
{
    copy(cuda, DEV_DOWN, cuda->core->plan.rank_send, from, bytes);
    if (cuda->rc == 0) eng_cuda_keep(cuda, dev_stream_note(cuda->dev), "waiting for an exchange");
    if (cuda->rc == 0) eng_cuda_keep(cuda, dev_stream_reach(cuda->dev), "waiting for an exchange");
}

/* work.rank_send -> work.rank_recv. */
static void to_all(struct eng_cuda *cuda, const size_t *sent, const size_t *got)
{
    const struct eng_plan *plan = &cuda->core->plan;
    const struct eng_ranks *r = &cuda->core->ranks;
    size_t out = 0, in = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        out += sent[i];
        in += got[i];
    }
    if (by_cards(cuda)) {
        asked(cuda, comm_cards_all_to_all(r->comm, cuda->work.rank_send, sent, cuda->work.rank_recv,
                                          got, cuda->stream));
        return;
    }
    down(cuda, cuda->work.rank_send, out);
    comm_all_to_all(r->comm, plan->rank_send, sent, plan->rank_recv, got);
    copy(cuda, DEV_UP, cuda->work.rank_recv, plan->rank_recv, in);
}

/* `from` -> work.rank_recv. */
static void gather(struct eng_cuda *cuda, const float *from, size_t bytes)
{
    const struct eng_plan *plan = &cuda->core->plan;
    const struct eng_ranks *r = &cuda->core->ranks;
    if (by_cards(cuda)) {
        asked(cuda, comm_cards_all_gather(r->comm, from, cuda->work.rank_recv, bytes,
                                          cuda->stream));
        return;
    }
    down(cuda, from, bytes);
    comm_all_gather(r->comm, plan->rank_send, plan->rank_recv, bytes);
    copy(cuda, DEV_UP, cuda->work.rank_recv, plan->rank_recv, r->count * bytes);
}

static void columns(struct eng_cuda *cuda, const struct kern_cuda_columns_args *args)
{
    if (cuda->rc == 0 && args->rows > 0)
        eng_cuda_keep(cuda, kern_cuda_columns(args, cuda->stream), "an exchange's columns");
}

/* ------------------------------------------------------------------------------ dense layers -- */

void eng_cuda_gather(struct eng_cuda *cuda, const struct eng_cuda_gather *g)
{
    const uint32_t count = cuda->core->ranks.count, each = (g->units + count - 1) / count * g->unit;
    const struct kern_cuda_columns_args join = {
        .rows = g->rows, .width = g->units * g->unit, .each = each, .whole = g->whole,
        .parts = cuda->work.rank_recv, .join = true,
    };
    gather(cuda, g->part, (size_t)g->rows * each * sizeof(float));
    columns(cuda, &join);
}

void eng_cuda_joint_product(struct eng_cuda *cuda, const struct eng_cuda_joint *j)
{
    const uint32_t rows = cuda->step.batch->count;
    const struct eng_cuda_gather input = { j->x_part, cuda->work.rank_whole, rows, j->x_units,
                                           j->x_unit };
    const struct eng_cuda_product product = {
        .w = j->w, .x = cuda->work.rank_whole, .x_stride = j->w->cols, .y = cuda->work.rank_send,
        .y_stride = j->w->rows, .k_blocks = KERN_RANK_BLOCKS, .what = j->what,
    };
    const struct eng_cuda_gather output = { cuda->work.rank_send, j->y, rows, j->cols, 1 };
    eng_cuda_gather(cuda, &input);
    if (j->w->rows > 0) eng_cuda_product(cuda, &product);
    eng_cuda_gather(cuda, &output);
}

/* As integers they add up to its very bits. */
void eng_cuda_join_embeddings(struct eng_cuda *cuda)
{
    const struct eng_core *core = cuda->core;
    const size_t count = (size_t)cuda->step.batch->count * core->shape->hidden;
    if (by_cards(cuda)) {
        asked(cuda, comm_cards_all_reduce(core->ranks.comm, (uint32_t *)(void *)cuda->work.hidden,
                                          count, cuda->stream));
        return;
    }
    down(cuda, cuda->work.hidden, count * sizeof(float));
    comm_all_reduce(core->ranks.comm, (uint32_t *)(void *)core->plan.rank_send, count);
    copy(cuda, DEV_UP, cuda->work.hidden, core->plan.rank_send, count * sizeof(float));
}

/* ----------------------------------------------------------------------------------- experts -- */

static void end_requests(struct eng_cuda *cuda, const struct eng_cuda_exchange *x)
{
    if (x->failed->count == 0) return;
    for (uint32_t e = 0; e < cuda->core->shape->experts; e++) {
        if (x->failed->experts[e / 32] >> e % 32 & 1)
            eng_exchange_end_requests(cuda->core, x->layer, cuda->step.batch, e);
    }
}

/* What came lies rank after rank, each one's pairs in the order of their places: the sums are told
 * where. */
static void put_sums(struct eng_cuda *cuda, const struct eng_cuda_exchange *x,
                     struct kern_cuda_combine_args *args)
{
    const struct eng_core *core = cuda->core;
    const struct eng_plan *plan = &core->plan;
    const struct eng_batch *batch = cuda->step.batch;
    const uint32_t top_k = core->shape->top_k, rows = x->end - x->begin;
    uint32_t first[COMM_RANKS_MAX], pairs = 0;
    const void *pairs_at, *counts_at, *weights_at;
    for (uint32_t r = 0; r < core->ranks.count; r++) {
        first[r] = pairs;
        pairs += plan->rank_pairs[r];
    }
    float *weight = eng_wire_take(&cuda->layer_wire, pairs * sizeof *weight, &weights_at);
    uint32_t *list = eng_wire_take(&cuda->layer_wire, (size_t)rows * top_k * sizeof *list,
                                   &pairs_at);
    uint32_t *count = eng_wire_take(&cuda->layer_wire, rows * sizeof *count, &counts_at);
    for (uint32_t e = 0; e < core->shape->experts; e++) {
        for (uint32_t i = 0; i < plan->expert_count[e]; i++) {
            const uint32_t at = first[plan->expert_rank[e]] + plan->expert_place[e] + i;
            plan->pair_at[plan->expert_first[e] + i] = at;
            weight[at] = plan->pair_weight[plan->expert_first[e] + i];
        }
    }
    for (uint32_t i = 0; i < rows; i++) {
        const struct eng_seq *seq = batch->members[batch->row_member[x->begin + i]];
        const uint32_t *from = plan->row_pairs + (size_t)(x->begin + i) * top_k;
        count[i] = seq->error.code < 0 ? 0 : plan->row_pair_count[x->begin + i];
        for (uint32_t k = 0; k < top_k; k++)
            list[(size_t)i * top_k + k] = k < count[i] ? (uint32_t)plan->pair_at[from[k]] : 0;
    }
    eng_wire_send(cuda, &cuda->layer_wire);
    args->row_pairs = pairs_at;
    args->row_pair_count = counts_at;
    args->pair_weight = weights_at;
}

void eng_cuda_exchange(struct eng_cuda *cuda, const struct eng_cuda_exchange *x)
{
    const struct eng_core *core = cuda->core;
    const struct eng_ranks *r = &core->ranks;
    const struct eng_plan *plan = &core->plan;
    const uint32_t hidden = core->shape->hidden, rows = x->end - x->begin;
    const struct eng_share own = eng_ranks_share_of(hidden, r->count, r->rank);
    size_t sent[COMM_RANKS_MAX], got[COMM_RANKS_MAX];
    if (!eng_cuda_agree(cuda, x->failed)) return;
    end_requests(cuda, x);
    for (uint32_t i = 0; i < r->count; i++) {
        const struct eng_share share = eng_ranks_share_of(hidden, r->count, i);
        sent[i] = (size_t)plan->rank_pairs[r->rank] * (share.end - share.begin) * sizeof(float);
        got[i] = (size_t)plan->rank_pairs[i] * (own.end - own.begin) * sizeof(float);
    }
    struct kern_cuda_columns_args cut = { .rows = plan->rank_pairs[r->rank], .width = hidden,
                                          .each = own.each, .whole = cuda->work.pair_out,
                                          .parts = cuda->work.rank_send };
    columns(cuda, &cut);
    to_all(cuda, sent, got);
    struct kern_cuda_combine_args sum = { .rows = rows, .hidden = own.end - own.begin,
                                          .top_k = core->shape->top_k,
                                          .pair_out = cuda->work.rank_recv,
                                          .out = cuda->work.rank_send };
    put_sums(cuda, x, &sum);
    if (cuda->rc == 0 && sum.hidden > 0)
        eng_cuda_keep(cuda, kern_cuda_combine(&sum, cuda->stream), "the sum of experts");
    gather(cuda, cuda->work.rank_send, (size_t)rows * own.each * sizeof(float));
    const struct kern_cuda_columns_args join = {
        .rows = rows, .width = hidden, .each = own.each, .parts = cuda->work.rank_recv,
        .whole = cuda->work.branch + (size_t)x->begin * hidden, .join = true, .add = x->add,
    };
    columns(cuda, &join);
}
