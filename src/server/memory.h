/* The account of memory as the server shows it: /metrics and the "memory" of /tier/stats. */
#ifndef SERVER_MEMORY_H
#define SERVER_MEMORY_H

#include "base/buf.h"
#include "engine/stack.h"

void srv_memory_metrics(struct base_buf *to, struct eng_stack *stack);
void srv_memory_json(struct base_buf *to, struct eng_stack *stack);
void srv_memory_reference(struct base_buf *to);

#endif
