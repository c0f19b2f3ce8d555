/* What rank 0 tells the others: which batch to compute, which rows to take to the head, that a step
 * is over, that it is still there, that it ends.
 *
 *     rank 0   schedule ──> lead_step ─ forward ─> lead_head ─ head ─ sample ──> lead_end
 *     others   listen: step ─ forward ─ listen: head ─ head ─ listen: end ─ listen ...
 *
 * The others have no requests, only the batch: tokens, positions and the KV blocks that rank 0 gave
 * out. They compute the same tensors in the same order. Engine thread; no allocation after init.
 */
#ifndef ENGINE_LEAD_H
#define ENGINE_LEAD_H

#include <stdint.h>

#include "comm/comm.h"
#include "engine/peers.h"
#include "engine/scheduler.h"

enum eng_order { ENG_DO_STEP, ENG_DO_HEAD, ENG_DO_END, ENG_DO_PING, ENG_DO_STOP };

struct eng_lead {
    struct comm *comm;          /* NULL: one rank, nothing below */
    struct eng_peers *peers;    /* whose counters rank 0 shows; NULL = nobody's */
    uint32_t *message;          /* of `words` */
    uint32_t words;
    uint64_t said_ns;           /* when rank 0 spoke last */
    /* Of a rank that follows. */
    struct eng_batch batch;
    struct eng_seq *seqs;       /* [members]: blocks, the prompt's length and errors alone */
    uint32_t *rows;             /* of the head */
    uint32_t row_count;
    uint64_t step;
    bool tell;                  /* rank 0 waits for this rank's counters */
};

int eng_lead_init(struct eng_lead *lead, struct comm *comm, uint32_t rows, uint32_t members,
                  uint32_t blocks_per_seq);
void eng_lead_fini(struct eng_lead *lead);

/* Rank 0; each does nothing when it is alone. */
void eng_lead_step(struct eng_lead *lead, const struct eng_batch *batch, uint64_t step);
void eng_lead_head(struct eng_lead *lead, const uint32_t *rows, uint32_t count);
void eng_lead_end(struct eng_lead *lead);
void eng_lead_stop(struct eng_lead *lead);
/* Says that it is there if it has not spoken for a while, and hears that the others are. Returns in
 * how many milliseconds it wants to be called again. */
uint32_t eng_lead_ping(struct eng_lead *lead);

/* The others, behind a step's end: their counters, if rank 0 has asked for them. */
void eng_lead_tell(struct eng_lead *lead);
/* The others: waits for the next order; batch, rows and step are filled. */
enum eng_order eng_lead_listen(struct eng_lead *lead);

#endif
