/* Routing that a benchmark imposes on the model's gates: uniform, or a recorded trace's.
 *
 * A token of a sequence gets the experts of one token of the trace in all layers, and the next
 * token those of the next of the same sequence of the trace, so that what it has of locality is
 * kept. Each sequence begins where one of the trace's begins, drawn for it; behind the end of that
 * one comes the next. The tokens are the trace's, too, since predictors go by them: its ids, or
 * hashes, are dealt out over the vocabulary in ascending order. Uniform: top_k different experts
 * drawn anew for each token and layer; tokens stay as they are.
 * Deterministic: the same seed, sequence and position give the same experts and token.
 */
#ifndef TOOLS_BENCH_ROUTING_H
#define TOOLS_BENCH_ROUTING_H

#include "base/err.h"
#include "model/shape.h"

struct bench_routing_token {
    uint64_t seq;               /* of the trace */
    uint32_t place;             /* in the order of the trace: of its experts */
    uint32_t name;              /* in the vocabulary; UINT32_MAX: the trace does not know it */
};

struct bench_routing {
    uint32_t layers, experts, top_k, vocab;
    uint64_t seed;
    uint16_t *ids;              /* [place][layers][top_k]; NULL: uniform */
    struct bench_routing_token *tokens; /* sequence by sequence */
    size_t token_count, room;
    uint32_t *begins;           /* of each sequence, in `tokens` */
    size_t begin_count;
};

/* `what`: "uniform" or a trace's path. 0 or a negative code with a sentence: a trace must have the
 * model's layers, experts and top-k. */
int bench_routing_open(struct bench_routing *routing, const char *what,
                       const struct model_shape *shape, uint64_t seed, struct base_err *err);
void bench_routing_close(struct bench_routing *routing);

/* eng_hooks.route and eng_hooks.token; context is the routing. Any thread. */
void bench_routing_choose(void *routing, uint32_t moe_layer, uint64_t seq, uint32_t position,
                          uint32_t *ids);
uint32_t bench_routing_token(void *routing, uint64_t seq, uint32_t position, uint32_t token);

#endif
