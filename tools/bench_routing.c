#include "tools/bench_routing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "predictor/trace.h"

/* So many of a trace's tokens are kept: more than a benchmark reaches. */
enum { TOKENS_MAX = 1 << 16 };

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

static void keep_token(struct bench_routing *r, const struct pred_step *step, uint32_t i)
{
    uint16_t *to = r->ids + r->tokens++ * r->layers * r->top_k;
    for (uint32_t l = 0; l < r->layers; l++) {
        const uint32_t *from =
            step->expert_ids + ((size_t)l * step->token_count + i) * r->top_k;
        for (uint32_t k = 0; k < r->top_k; k++) *to++ = (uint16_t)from[k];
    }
}

static int read_trace(struct bench_routing *r, const char *path, struct base_err *err)
{
    struct pred_trace_reader *reader;
    struct pred_trace_item item;
    int rc = pred_trace_reader_open(&reader, path, err);
    if (rc < 0) return rc;
    rc = check_shape(pred_trace_reader_header(reader), r, path, err);
    if (rc == 0) {
        r->ids = malloc((size_t)TOKENS_MAX * r->layers * r->top_k * sizeof *r->ids);
        if (!r->ids) rc = base_err_set(err, -ENOMEM, "--routing: no memory for %s", path);
    }
    while (rc == 0 && r->tokens < TOKENS_MAX) {
        rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err);
        if (rc <= 0) break;
        rc = 0;
        for (uint32_t i = 0; i < item.step.token_count && r->tokens < TOKENS_MAX; i++) {
            if (token_known(&item.step, r->layers, r->top_k, i)) keep_token(r, &item.step, i);
        }
    }
    if (rc == 0 && r->tokens == 0) {
        rc = base_err_set(err, BASE_EFORMAT, "--routing: %s has no tokens", path);
    }
    pred_trace_reader_close(reader);
    return rc;
}

int bench_routing_open(struct bench_routing *r, const char *what, const struct model_shape *shape,
                       uint64_t seed, struct base_err *err)
{
    *r = (struct bench_routing){ .layers = model_shape_moe_layers(shape),
                                 .experts = shape->experts,
                                 .top_k = shape->top_k,
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
    r->ids = NULL;
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

void bench_routing_choose(void *routing, uint32_t moe_layer, uint64_t seq, uint32_t position,
                          uint32_t *ids)
{
    const struct bench_routing *r = routing;
    struct base_rng rng;
    base_rng_init(&rng, r->seed * UINT64_C(0x9E3779B97F4A7C15) + seq);
    uint64_t start = base_rng_u64(&rng);
    if (!r->ids) {
        choose_uniform(r, start + (uint64_t)position * PRED_LAYERS_MAX + moe_layer, ids);
        return;
    }
    size_t token = (size_t)((start + position) % r->tokens);
    const uint16_t *from = r->ids + (token * r->layers + moe_layer) * r->top_k;
    for (uint32_t k = 0; k < r->top_k; k++) ids[k] = from[k];
}
