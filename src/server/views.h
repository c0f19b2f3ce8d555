/* The long parts of /tier/stats: every layer, and experts in an order. Any thread. */
#ifndef SERVER_VIEWS_H
#define SERVER_VIEWS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "engine/stack.h"

enum srv_views_order { SRV_HOT, SRV_COLD, SRV_MISSED, SRV_SLOW };

struct srv_view {
    bool layers, experts;
    uint64_t limit;             /* experts; 0 = all */
    enum srv_views_order order;
};

/* "hot" (most lookups first), "cold" (fewest), "missed" (most often found in no tier), "slow"
 * (longest median load). -EINVAL. */
int srv_views_order(const char *name, enum srv_views_order *order);

/* Append `,"layers":[...]` and `,"expert_count":N,"experts":[...]`. 0 or -ENOMEM. */
int srv_views_layers(struct base_buf *to, struct eng_stack *stack);
int srv_views_experts(struct base_buf *to, struct eng_stack *stack, const struct srv_view *view);

#endif
