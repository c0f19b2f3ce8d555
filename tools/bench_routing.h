/* Routing that a benchmark imposes on the model's gates: uniform, or a recorded trace's.
 *
 * A token of a sequence gets the experts of one token of the trace in all layers, and the next
 * token those of the next, so that what the trace has of locality is kept; each sequence begins at
 * a place of its own. Uniform: top_k different experts drawn anew for each token and layer.
 * Deterministic: the same seed, sequence and position give the same experts.
 */
#ifndef TOOLS_BENCH_ROUTING_H
#define TOOLS_BENCH_ROUTING_H

#include "base/err.h"
#include "model/shape.h"

struct bench_routing {
    uint32_t layers, experts, top_k;
    uint64_t seed;
    uint16_t *ids;              /* [tokens][layers][top_k]; NULL: uniform */
    size_t tokens;
};

/* `what`: "uniform" or a trace's path. 0 or a negative code with a sentence: a trace must have the
 * model's layers, experts and top-k. */
int bench_routing_open(struct bench_routing *routing, const char *what,
                       const struct model_shape *shape, uint64_t seed, struct base_err *err);
void bench_routing_close(struct bench_routing *routing);

/* eng_hooks.route; context is the routing. Any thread. */
void bench_routing_choose(void *routing, uint32_t moe_layer, uint64_t seq, uint32_t position,
                          uint32_t *ids);

#endif
