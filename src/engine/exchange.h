/* Routed experts that lie over ranks: who computes what, and how the outputs come together.
 *
 *     deal     each wanted expert to one of the ranks that hold it
 *     outputs  of this rank's pairs, cut by columns, one part a rank ──> all-to-all
 *     sum      each rank its columns of every row, a row's experts in ascending id ──> all-gather
 *
 * A pair carries one word more than its outputs: not 0 = its expert could not be read. So every
 * rank ends the same requests. Engine thread; called by every rank alike. Where cards compute, deal
 * and end_requests alone are used: the rest is cuda/meet.c.
 */
#ifndef ENGINE_EXCHANGE_H
#define ENGINE_EXCHANGE_H

#include "engine/core.h"

/* After eng_gate_group: assigns the experts it listed, and keeps those of this rank in plan.wanted.
 * Returns how many. */
uint32_t eng_exchange_deal(struct eng_core *core, const struct eng_layer *layer, uint32_t wanted);
/* Before the first output is written; other collectives use the same memory until then. */
void eng_exchange_begin(struct eng_core *core);

/* Where the outputs of this rank's pair go that rank `to` adds up; stride eng_exchange_stride. */
float *eng_exchange_place(const struct eng_core *core, uint32_t expert, uint32_t to);
uint32_t eng_exchange_stride(const struct eng_core *core);

/* An expert of this rank could not be read. */
void eng_exchange_failed(struct eng_core *core, uint32_t expert);

/* The requests whose rows chose this expert get their error: the rank that has it could not read
 * it. */
void eng_exchange_end_requests(struct eng_core *core, const struct eng_layer *layer,
                               const struct eng_batch *batch, uint32_t expert);

/* Sums the outputs into plan.routed of rows [begin, end), which are 0 before. Requests whose
 * experts failed somewhere get their error. */
void eng_exchange_sum(struct eng_core *core, const struct eng_layer *layer,
                      const struct eng_batch *batch, uint32_t begin, uint32_t end);

#endif
