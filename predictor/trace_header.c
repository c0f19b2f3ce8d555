#include "predictor/trace_format.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { FLAG_INCLUSIVE = 1, FLAG_PREFETCH = 2, FLAG_STRICT = 4, FLAG_ADAPTIVE = 8,
       FLAG_WARM_COMPUTE = 16 };

int pred_header_check(const struct pred_trace_header *header, struct base_err *err)
{
    const struct tier_decide_config *decide = &header->decide;
    if (header->layers == 0 || header->layers > PRED_LAYERS_MAX) {
        return base_err_set(err, BASE_EFORMAT, "%" PRIu32 " moe layers, expected 1 to %d",
                            header->layers, PRED_LAYERS_MAX);
    }
    if (header->experts == 0 || header->experts > PRED_EXPERTS_MAX) {
        return base_err_set(err, BASE_EFORMAT, "%" PRIu32 " experts a layer, expected 1 to %d",
                            header->experts, PRED_EXPERTS_MAX);
    }
    if (header->top_k == 0 || header->top_k > PRED_TOP_K_MAX || header->top_k > header->experts) {
        return base_err_set(err, BASE_EFORMAT, "top-k of %" PRIu32 " with %" PRIu32
                            " experts, expected 1 to %d and no more than the experts",
                            header->top_k, header->experts, PRED_TOP_K_MAX);
    }
    if (!(header->sample > 0 && header->sample <= 1)) {
        return base_err_set(err, BASE_EFORMAT, "sample share %g, expected above 0 and up to 1",
                            header->sample);
    }
    if (decide->tier_count > TIER_RESIDENT_TIERS_MAX) {
        return base_err_set(err, BASE_EFORMAT, "%" PRIu32 " resident tiers, expected at most %d",
                            decide->tier_count, TIER_RESIDENT_TIERS_MAX);
    }
    if (!(decide->half_life_tokens >= 0 && isfinite(decide->half_life_tokens)) ||
        !(decide->prefill_share >= 0 && decide->prefill_share <= 1)) {
        return base_err_set(err, BASE_EFORMAT,
                            "half-life %g, prefill share %g: expected a number from 0 and a share",
                            decide->half_life_tokens, decide->prefill_share);
    }
    return 0;
}

int pred_header_encode(uint8_t *to, size_t size, const struct pred_trace_header *header)
{
    struct pred_out out = { .at = to, .end = to + size };
    pred_put_text(&out, header->model);
    pred_put_text(&out, header->source);
    pred_put_varint(&out, header->layers);
    pred_put_varint(&out, header->first_moe_layer);
    pred_put_varint(&out, header->experts);
    pred_put_varint(&out, header->top_k);
    pred_put_varint(&out, header->slot_bytes);
    pred_put_varint(&out, header->expert_bytes ? header->layers : 0);
    for (uint32_t i = 0; header->expert_bytes && i < header->layers; i++) {
        pred_put_varint(&out, header->expert_bytes[i]);
    }
    pred_put_u8(&out, (uint8_t)header->tokens);
    pred_put_u8(&out, (uint8_t)header->weights);
    pred_put_f64(&out, header->sample);
    const struct tier_decide_config *decide = &header->decide;
    pred_put_varint(&out, decide->tier_count);
    for (uint32_t t = 0; t < decide->tier_count; t++) {
        const struct tier_decide_tier *tier = &decide->tiers[t];
        pred_put_varint(&out, tier->slots);
        pred_put_text(&out, tier->policy);
        pred_put_varint(&out, tier->quotas ? header->layers : 0);
        for (uint32_t i = 0; tier->quotas && i < header->layers; i++) {
            pred_put_varint(&out, tier->quotas[i]);
        }
    }
    pred_put_u8(&out, (uint8_t)((decide->inclusive ? FLAG_INCLUSIVE : 0) |
                                (decide->prefetch ? FLAG_PREFETCH : 0) |
                                (decide->strict ? FLAG_STRICT : 0) |
                                (decide->adaptive ? FLAG_ADAPTIVE : 0) |
                                (decide->warm_compute ? FLAG_WARM_COMPUTE : 0)));
    pred_put_f64(&out, decide->half_life_tokens);
    pred_put_f64(&out, decide->prefill_share);
    pred_put_text(&out, header->yaml);
    return out.full ? -ENOSPC : (int)(out.at - to);
}

/* Text that fits its field, NUL included, and holds no NUL of its own. */
static void get_text(struct pred_in *in, char *to, size_t size)
{
    size_t length = pred_get_upto(in, size - 1);
    const uint8_t *bytes = pred_get(in, length);
    to[0] = '\0';
    if (!bytes) return;
    if (memchr(bytes, 0, length)) in->bad = true;
    memcpy(to, bytes, length);
    to[length] = '\0';
}

static char *get_long_text(struct pred_in *in, size_t max)
{
    size_t length = pred_get_upto(in, max);
    const uint8_t *bytes = pred_get(in, length);
    if (!bytes) return NULL;
    if (memchr(bytes, 0, length)) in->bad = true;
    char *text = malloc(length + 1);
    if (!text) return NULL;
    memcpy(text, bytes, length);
    text[length] = '\0';
    return text;
}

/* [layers] numbers up to `max`, or none. */
static int get_bytes_of_layers(struct pred_in *in, uint32_t layers, uint64_t **out)
{
    uint64_t count = pred_get_upto(in, layers);
    if (count == 0) return 0;
    if (count != layers) in->bad = true;
    if (in->bad) return 0;
    uint64_t *values = malloc(layers * sizeof *values);
    if (!values) return -ENOMEM;
    for (uint32_t i = 0; i < layers; i++) {
        values[i] = pred_get_upto(in, UINT64_C(1) << 40);
    }
    *out = values;
    return 0;
}

static int get_quotas(struct pred_in *in, uint32_t layers, const uint32_t **out)
{
    uint64_t count = pred_get_upto(in, layers);
    if (count == 0) return 0;
    if (count != layers) in->bad = true;
    if (in->bad) return 0;
    uint32_t *values = malloc(layers * sizeof *values);
    if (!values) return -ENOMEM;
    for (uint32_t i = 0; i < layers; i++) {
        values[i] = (uint32_t)pred_get_upto(in, PRED_EXPERTS_MAX);
    }
    *out = values;
    return 0;
}

static int get_decide(struct pred_in *in, struct pred_trace_header *header)
{
    struct tier_decide_config *decide = &header->decide;
    decide->layers = header->layers;
    decide->experts = header->experts;
    decide->top_k = header->top_k;
    decide->tier_count = (uint32_t)pred_get_upto(in, TIER_RESIDENT_TIERS_MAX);
    for (uint32_t t = 0; t < decide->tier_count; t++) {
        struct tier_decide_tier *tier = &decide->tiers[t];
        tier->slots = pred_get_upto(in, (uint64_t)PRED_LAYERS_MAX * PRED_EXPERTS_MAX);
        get_text(in, tier->policy, sizeof tier->policy);
        int rc = get_quotas(in, header->layers, &tier->quotas);
        if (rc < 0) return rc;
    }
    uint8_t flags = pred_get_u8(in);
    if (flags >= 2 * FLAG_WARM_COMPUTE) in->bad = true;
    decide->inclusive = flags & FLAG_INCLUSIVE;
    decide->prefetch = flags & FLAG_PREFETCH;
    decide->strict = flags & FLAG_STRICT;
    decide->adaptive = flags & FLAG_ADAPTIVE;
    decide->warm_compute = flags & FLAG_WARM_COMPUTE;
    decide->half_life_tokens = pred_get_f64(in);
    decide->prefill_share = pred_get_f64(in);
    return 0;
}

static int header_read(struct pred_trace_header *header, struct pred_in *in, struct base_err *err)
{
    get_text(in, header->model, sizeof header->model);
    get_text(in, header->source, sizeof header->source);
    header->layers = (uint32_t)pred_get_upto(in, UINT32_MAX);
    header->first_moe_layer = (uint32_t)pred_get_upto(in, UINT32_MAX);
    header->experts = (uint32_t)pred_get_upto(in, UINT32_MAX);
    header->top_k = (uint32_t)pred_get_upto(in, UINT32_MAX);
    header->slot_bytes = pred_get_upto(in, UINT64_C(1) << 40);
    header->sample = 1;
    if (in->bad) return 0;                  /* said by the caller */
    int rc = pred_header_check(header, err);
    if (rc < 0) return rc;
    uint64_t *expert_bytes = NULL;
    rc = get_bytes_of_layers(in, header->layers, &expert_bytes);
    header->expert_bytes = expert_bytes;
    if (rc < 0) return rc;
    uint8_t tokens = pred_get_u8(in), weights = pred_get_u8(in);
    if (tokens > PRED_TOKENS_NONE || weights > PRED_WEIGHTS_F32) in->bad = true;
    header->tokens = (enum pred_trace_tokens)tokens;
    header->weights = (enum pred_trace_weights)weights;
    header->sample = pred_get_f64(in);
    rc = get_decide(in, header);
    if (rc < 0 || in->bad) return rc;
    header->yaml = get_long_text(in, PRED_YAML_BYTES_MAX);
    if (in->bad) return 0;
    return header->yaml ? pred_header_check(header, err) : -ENOMEM;
}

int pred_header_decode(struct pred_trace_header **out, const uint8_t *bytes, size_t size,
                       struct base_err *err)
{
    struct pred_in in = { .at = bytes, .end = bytes + size };
    struct pred_trace_header *header = calloc(1, sizeof *header);
    if (!header) return -ENOMEM;
    int rc = header_read(header, &in, err);
    if (rc == 0 && (in.bad || in.at != in.end)) {
        rc = base_err_set(err, BASE_EFORMAT,
                          "the header record is cut short, too long or has a value out of range");
    }
    if (rc < 0) {
        pred_header_free(header);
        return rc;
    }
    *out = header;
    return 0;
}

void pred_header_free(struct pred_trace_header *header)
{
    if (!header) return;
    free((void *)header->expert_bytes);
    free((void *)header->yaml);
    for (uint32_t t = 0; t < TIER_RESIDENT_TIERS_MAX; t++) {
        free((void *)header->decide.tiers[t].quotas);
    }
    free(header);
}
