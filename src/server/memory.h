/* The account of memory as the server shows it: /metrics and the "memory" of /tier/stats. */
#ifndef SERVER_MEMORY_H
#define SERVER_MEMORY_H

#include "base/buf.h"
#include "engine/peers.h"
#include "engine/stack.h"
#include "server/family.h"

/* Of a rank: planned and used, of the host and of a card. */
enum { SRV_MEMORY_SAMPLES = 4 * BASE_LEDGER_COUNT };

/* `family` is empty and has room for so many of each rank. */
void srv_memory_metrics(struct base_buf *to, struct srv_family *family,
                        const struct eng_peer *peers, uint32_t count);
void srv_memory_json(struct base_buf *to, struct eng_stack *stack);
void srv_memory_reference(struct base_buf *to);

#endif
