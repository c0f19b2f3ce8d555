#include "tools/bench_routing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "predictor/trace.h"

/* So many of a trace's tokens are kept: more than a benchmark reaches. */
enum { TOKENS_MAX = 1 << 18 };

static int check_shape(const struct pred_trace_header *trace, const struct bench_routing *routing,
                       const char *path, struct base_err *err)
{
    if (trace->layers == routing->layers && trace->experts == routing->experts &&
        trace->top_k == routing->top_k) {
        return 0;
    }
    return base_err_set(err, BASE_EMISMATCH,
                        "--routing: %s has %u layers of %u experts, %u at work; the model has "
                        "%u of %u, %u at work", path, trace->layers, trace->experts, trace->top_k,
                        routing->layers, routing->experts, routing->top_k);
}

static bool token_known(const struct pred_step *step, uint32_t layers, uint32_t top_k, uint32_t i)
{
    for (uint32_t l = 0; l < layers; l++) {
        if (step->expert_ids[((size_t)l * step->token_count + i) * top_k] == PRED_NO_EXPERT) {
            return false;
        }
    }
    return true;
}

static int make_room(struct bench_routing *r)
{
    if (r->token_count < r->room) return 0;
    size_t room = r->room ? 2 * r->room : 4096;
    uint16_t *ids = realloc(r->ids, room * r->layers * r->top_k * sizeof *ids);
    if (ids) r->ids = ids;
    struct bench_routing_token *tokens = realloc(r->tokens, room * sizeof *tokens);
    if (tokens) r->tokens = tokens;
    if (!ids || !tokens) return -ENOMEM;
    r->room = room;
    return 0;
}

static void keep_token(struct bench_routing *r, const struct pred_step *step, uint32_t i)
{
    uint16_t *to = r->ids + r->token_count * r->layers * r->top_k;
    for (uint32_t l = 0; l < r->layers; l++) {
        const uint32_t *from =
            step->expert_ids + ((size_t)l * step->token_count + i) * r->top_k;
        for (uint32_t k = 0; k < r->top_k; k++) *to++ = (uint16_t)from[k];
    }
    r->tokens[r->token_count] = (struct bench_routing_token){
        .seq = step->seqs[i], .place = (uint32_t)r->token_count, .name = step->tokens[i],
    };
    r->token_count++;
}

static int ascending(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static int by_sequence(const void *left, const void *right)
{
    const struct bench_routing_token *a = left, *b = right;
    if (a->seq != b->seq) return a->seq > b->seq ? 1 : -1;
    return (a->place > b->place) - (a->place < b->place);
}

/* Puts the place among the trace's different tokens into the place of each; `names` is scratch. */
static void name_tokens(struct bench_routing *r, uint32_t *names)
{
    size_t count = 0;
    for (size_t i = 0; i < r->token_count; i++) names[i] = r->tokens[i].name;
    qsort(names, r->token_count, sizeof *names, ascending);
    for (size_t i = 0; i < r->token_count; i++) {
        if (count == 0 || names[i] != names[count - 1]) names[count++] = names[i];
    }
    for (size_t i = 0; i < r->token_count; i++) {
        uint32_t *name = &r->tokens[i].name;
        if (*name == PRED_NO_TOKEN) continue;
        const uint32_t *at = bsearch(name, names, count, sizeof *names, ascending);
        *name = (uint32_t)((size_t)(at - names) % r->vocab);
    }
}

static int put_in_order(struct bench_routing *r)
{
    uint32_t *names = malloc(r->token_count * sizeof *names);
    r->begins = malloc(r->token_count * sizeof *r->begins);
    if (names && r->begins) {
        name_tokens(r, names);
        /* Those of a batch lie mingled in its trace. */
        qsort(r->tokens, r->token_count, sizeof *r->tokens, by_sequence);
        for (uint32_t i = 0; i < r->token_count; i++) {
            bool first = i == 0 || r->tokens[i].seq != r->tokens[i - 1].seq;
            if (first) r->begins[r->begin_count++] = i;
        }
    }
    free(names);
    return r->begin_count > 0 ? 0 : -ENOMEM;
}

static int read_trace(struct bench_routing *r, const char *path, struct base_err *err)
{
    struct pred_trace_reader *reader;
    struct pred_trace_item item;
    int rc = pred_trace_reader_open(&reader, path, err);
    if (rc < 0) return rc;
    rc = check_shape(pred_trace_reader_header(reader), r, path, err);
    while (rc == 0 && r->token_count < TOKENS_MAX) {
        rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err);
        if (rc <= 0) break;
        rc = 0;
        for (uint32_t i = 0; i < item.step.token_count && rc == 0; i++) {
            if (!token_known(&item.step, r->layers, r->top_k, i)) continue;
            rc = make_room(r);
            if (rc == 0) keep_token(r, &item.step, i);
        }
    }
    if (rc == 0 && r->token_count == 0) {
        rc = base_err_set(err, BASE_EFORMAT, "--routing: %s has no tokens", path);
    } else if (rc == 0) {
        rc = put_in_order(r);
    }
    if (rc == -ENOMEM) base_err_set(err, rc, "--routing: no memory for %s", path);
    pred_trace_reader_close(reader);
    return rc;
}

int bench_routing_open(struct bench_routing *r, const char *what, const struct model_shape *shape,
                       uint64_t seed, struct base_err *err)
{
    *r = (struct bench_routing){ .layers = model_shape_moe_layers(shape),
                                 .experts = shape->experts,
                                 .top_k = shape->top_k,
                                 .vocab = shape->vocab,
                                 .seed = seed };
    if (r->layers == 0) return base_err_set(err, BASE_ECONFIG, "--routing: there is no gate");
    if (strcmp(what, "uniform") == 0) return 0;
    int rc = read_trace(r, what, err);
    if (rc < 0) bench_routing_close(r);
    return rc;
}

void bench_routing_close(struct bench_routing *r)
{
    free(r->ids);
    free(r->tokens);
    free(r->begins);
    r->ids = NULL;
    r->tokens = NULL;
    r->begins = NULL;
}

static void choose_uniform(const struct bench_routing *r, uint64_t place, uint32_t *ids)
{
    struct base_rng rng;
    base_rng_init(&rng, place);
    for (uint32_t k = 0; k < r->top_k; k++) {
        bool taken = true;
        while (taken) {
            ids[k] = (uint32_t)base_rng_below(&rng, r->experts);
            taken = false;
            for (uint32_t before = 0; before < k; before++) taken |= ids[before] == ids[k];
        }
    }
}

static uint64_t start_of(const struct bench_routing *r, uint64_t seq)
{
    struct base_rng rng;
    base_rng_init(&rng, r->seed * UINT64_C(0x9E3779B97F4A7C15) + seq);
    return base_rng_u64(&rng);
}

static const struct bench_routing_token *token_at(const struct bench_routing *r, uint64_t seq,
                                                  uint32_t position)
{
    size_t begin = r->begins[start_of(r, seq) % r->begin_count];
    return &r->tokens[(begin + position) % r->token_count];
}

void bench_routing_choose(void *routing, uint32_t moe_layer, uint64_t seq, uint32_t position,
                          uint32_t *ids)
{
    const struct bench_routing *r = routing;
    if (!r->ids) {
        choose_uniform(r, start_of(r, seq) + (uint64_t)position * PRED_LAYERS_MAX + moe_layer, ids);
        return;
    }
    size_t place = token_at(r, seq, position)->place;
    const uint16_t *from = r->ids + (place * r->layers + moe_layer) * r->top_k;
    for (uint32_t k = 0; k < r->top_k; k++) ids[k] = from[k];
}

uint32_t bench_routing_token(void *routing, uint64_t seq, uint32_t position, uint32_t token)
{
    const struct bench_routing *r = routing;
    if (!r->ids) return token;
    uint32_t name = token_at(r, seq, position)->name;
    return name == PRED_NO_TOKEN ? token : name;
}
