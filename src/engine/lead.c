#include "engine/lead.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/must.h"

/* What goes ahead of a message. */
struct order {
    uint32_t kind;
    uint32_t words;             /* that follow */
    uint32_t count, decode_count, member_count;
    uint32_t tell;              /* the counters of all ranks are gathered behind it */
    uint64_t step;
};

/* Member, token, position, phase, sequence; tokens of the prompt, blocks. */
enum { ROW_WORDS = 6, MEMBER_WORDS = 2 };

int eng_lead_init(struct eng_lead *l, struct comm *comm, uint32_t rows, uint32_t members,
                  uint32_t blocks_per_seq)
{
    *l = (struct eng_lead){ 0 };
    if (!comm || comm->size == 1) return 0;
    l->comm = comm;
    l->words = rows * ROW_WORDS + members * (MEMBER_WORDS + blocks_per_seq);
    l->message = calloc(l->words, sizeof *l->message);
    if (comm->rank > 0) {
        l->seqs = calloc(members, sizeof *l->seqs);
        l->rows = calloc(rows, sizeof *l->rows);
        l->batch.members = calloc(members, sizeof *l->batch.members);
        l->batch.phases = calloc(rows, sizeof *l->batch.phases);
        l->batch.seqs = calloc(rows, sizeof *l->batch.seqs);
        if (!l->seqs || !l->rows || !l->batch.members || !l->batch.phases || !l->batch.seqs) {
            return -ENOMEM;
        }
    }
    l->said_ns = base_now_ns();
    return l->message ? 0 : -ENOMEM;
}

void eng_lead_fini(struct eng_lead *l)
{
    free(l->message);
    free(l->seqs);
    free(l->rows);
    free(l->batch.members);
    free(l->batch.phases);
    free(l->batch.seqs);
    *l = (struct eng_lead){ 0 };
}

static void say(struct eng_lead *l, struct order order)
{
    MUST(l->comm->rank == 0 && order.words <= l->words);
    comm_broadcast(l->comm, &order, sizeof order, 0);
    if (order.words > 0) comm_broadcast(l->comm, l->message, order.words * sizeof *l->message, 0);
    l->said_ns = base_now_ns();
}

void eng_lead_step(struct eng_lead *l, const struct eng_batch *batch, uint64_t step)
{
    if (!l->comm) return;
    uint32_t *at = l->message, rows = batch->count;
    for (uint32_t i = 0; i < rows; i++) {
        at[i] = batch->row_member[i];
        at[rows + i] = batch->tokens[i];
        at[2 * rows + i] = batch->positions[i];
        at[3 * rows + i] = batch->phases[i];
        at[4 * rows + 2 * i] = (uint32_t)batch->seqs[i];
        at[4 * rows + 2 * i + 1] = (uint32_t)(batch->seqs[i] >> 32);
    }
    at += (size_t)rows * ROW_WORDS;
    for (uint32_t m = 0; m < batch->member_count; m++) {
        const struct eng_seq *seq = batch->members[m];
        *at++ = seq->prompt_count;
        *at++ = seq->block_count;
        memcpy(at, seq->blocks, seq->block_count * sizeof *at);
        at += seq->block_count;
    }
    say(l, (struct order){ .kind = ENG_DO_STEP, .words = (uint32_t)(at - l->message),
                           .count = rows, .decode_count = batch->decode_count,
                           .member_count = batch->member_count, .step = step });
}

void eng_lead_head(struct eng_lead *l, const uint32_t *rows, uint32_t count)
{
    if (!l->comm) return;
    memcpy(l->message, rows, count * sizeof *rows);
    say(l, (struct order){ .kind = ENG_DO_HEAD, .words = count, .count = count });
}

void eng_lead_end(struct eng_lead *l)
{
    if (!l->comm) return;
    bool tell = eng_peers_due(l->peers, true);
    say(l, (struct order){ .kind = ENG_DO_END, .tell = tell });
    if (tell) eng_peers_gather(l->peers);
}

void eng_lead_tell(struct eng_lead *l)
{
    if (l->tell) eng_peers_gather(l->peers);
    l->tell = false;
}

void eng_lead_stop(struct eng_lead *l)
{
    if (l->comm && l->comm->rank == 0) say(l, (struct order){ .kind = ENG_DO_STOP });
}

uint32_t eng_lead_ping(struct eng_lead *l)
{
    if (!l->comm) return UINT32_MAX;
    uint64_t every_ns = l->comm->timeout_ns / 4, quiet_ns = base_now_ns() - l->said_ns;
    bool tell = eng_peers_due(l->peers, false);
    if (tell || quiet_ns >= every_ns) {
        say(l, (struct order){ .kind = ENG_DO_PING, .tell = tell });
        comm_barrier(l->comm);
        if (tell) eng_peers_gather(l->peers);
        quiet_ns = 0;
    }
    uint32_t ping_ms = (uint32_t)((every_ns - quiet_ns) / 1000000 + 1);
    uint32_t tell_ms = eng_peers_wait_ms(l->peers);
    return ping_ms < tell_ms ? ping_ms : tell_ms;
}

static void take_batch(struct eng_lead *l, const struct order *order)
{
    struct eng_batch *batch = &l->batch;
    uint32_t rows = order->count, *at = l->message;
    batch->count = rows;
    batch->decode_count = order->decode_count;
    batch->member_count = order->member_count;
    batch->row_member = at;
    batch->tokens = at + rows;
    batch->positions = at + 2 * (size_t)rows;
    for (uint32_t i = 0; i < rows; i++) {
        batch->phases[i] = (uint8_t)at[3 * rows + i];
        batch->seqs[i] = at[4 * rows + 2 * i] | (uint64_t)at[4 * rows + 2 * i + 1] << 32;
    }
    at += (size_t)rows * ROW_WORDS;
    for (uint32_t m = 0; m < batch->member_count; m++) {
        l->seqs[m] = (struct eng_seq){ .prompt_count = at[0], .block_count = at[1],
                                       .blocks = at + MEMBER_WORDS };
        at += MEMBER_WORDS + at[1];
        batch->members[m] = &l->seqs[m];
    }
    MUST(at == l->message + order->words);
}

enum eng_order eng_lead_listen(struct eng_lead *l)
{
    struct order order;
    MUST(l->comm && l->comm->rank > 0);
    comm_listen(l->comm, &order, sizeof order, 0);
    MUST(order.words <= l->words);
    /* Rows of the head go elsewhere: the batch lives on in the message. */
    uint32_t *to = order.kind == ENG_DO_HEAD ? l->rows : l->message;
    if (order.words > 0) comm_broadcast(l->comm, to, order.words * sizeof *to, 0);
    l->tell = order.tell;
    switch ((enum eng_order)order.kind) {
    case ENG_DO_STEP:
        take_batch(l, &order);
        l->step = order.step;
        break;
    case ENG_DO_HEAD: l->row_count = order.count; break;
    case ENG_DO_PING:
        comm_barrier(l->comm);
        eng_lead_tell(l);
        break;
    case ENG_DO_END:
    case ENG_DO_STOP: break;
    }
    return (enum eng_order)order.kind;
}
