#include "predictor/import.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "port/json.h"
#include "predictor/import_out.h"

struct jsonl {
    struct pred_text_in *in;
    struct pred_import_out out;
    struct pred_positions positions;
    struct pred_import_stats *stats;
    struct pred_trace_header header;
    uint64_t *expert_bytes;
    uint32_t skipped;               /* lists of dense layers that come before the others */
    bool weights;
    /* The step in the making: token by token, then turned to the layout of a step. */
    int64_t mark;                   /* the "step" of its lines; -1 = a line without one */
    uint32_t tokens, room;
    uint64_t *seqs;
    uint32_t *token_ids, *positions_of;
    uint8_t *phases;
    uint32_t *ids, *turned_ids;
    float *gate, *turned_gate;
};

static int parse(const struct jsonl *j, const char *line, size_t size, struct port_json **out,
                 struct base_err *err)
{
    char name[256];
    struct base_err inner = { 0 };
    int rc = port_json_parse(out, line, size, "", &inner);
    if (rc == 0) return 0;
    /* Each line is a document of its own, whose name is file and line. */
    snprintf(name, sizeof name, "%.200s:%" PRIu64, pred_text_in_path(j->in),
             pred_text_in_line(j->in));
    return base_err_set(err, rc, "%s%s", name, inner.text);
}

/* "expert_bytes": a number, or one for each moe layer. */
static int header_expert_bytes(struct jsonl *j, const struct port_json *value, struct base_err *err)
{
    uint32_t layers = j->header.layers;
    bool list = value && port_json_type(value) == PORT_JSON_ARRAY;
    if (!value) return 0;
    if (list && port_json_count(value) != layers) {
        return pred_import_bad(j->in, err, "expert_bytes has %zu numbers, expected %" PRIu32
                               " (one a moe layer)", port_json_count(value), layers);
    }
    j->expert_bytes = calloc(layers, sizeof j->expert_bytes[0]);
    if (!j->expert_bytes) return -ENOMEM;
    for (uint32_t l = 0; l < layers; l++) {
        int64_t bytes = port_json_as_i64(list ? port_json_at(value, l) : value);
        if (bytes <= 0 || bytes > INT64_C(1) << 40) {
            return pred_import_bad(j->in, err, "expert_bytes must be positive numbers below 2^40");
        }
        j->expert_bytes[l] = (uint64_t)bytes;
    }
    j->header.expert_bytes = j->expert_bytes;
    return 0;
}

static int read_header(struct jsonl *j, const struct port_json *doc, const char *where,
                       struct base_err *err)
{
    struct pred_trace_header *h = &j->header;
    int64_t version, layers, first, experts, top_k;
    const char *format = port_json_text(port_json_get(doc, "format"), NULL);
    const char *model = port_json_text(port_json_get(doc, "model"), NULL);
    if (!format || strcmp(format, "routing-jsonl") != 0) {
        return pred_import_bad(j->in, err, "not a routing header: the first line must be "
                               "{\"format\": \"routing-jsonl\", \"version\": 1, ...}");
    }
    int rc = port_json_i64(doc, "version", true, 1, 1, 0, &version, where, err);
    if (rc == 0) {
        rc = port_json_i64(doc, "layers", true, 1, PRED_LAYERS_MAX, 0, &layers, where, err);
    }
    if (rc == 0) {
        rc =
            port_json_i64(doc, "first_moe_layer", false, 0, PRED_LAYERS_MAX, 0, &first, where, err);
    }
    if (rc == 0) {
        rc = port_json_i64(doc, "experts", true, 1, PRED_EXPERTS_MAX, 0, &experts, where, err);
    }
    if (rc == 0) rc = port_json_i64(doc, "top_k", true, 1, PRED_TOP_K_MAX, 0, &top_k, where, err);
    if (rc < 0) return rc;
    if (top_k > experts) return pred_import_bad(j->in, err, "top_k is larger than experts");
    snprintf(h->model, sizeof h->model, "%.63s", model ? model : "");
    snprintf(h->source, sizeof h->source, "jsonl");
    h->layers = (uint32_t)layers;
    h->first_moe_layer = (uint32_t)first;
    h->experts = (uint32_t)experts;
    h->top_k = (uint32_t)top_k;
    return 0;
}

/* The first token tells whether `layers` counts dense layers too: then their lists are empty, or
 * missing. */
static int settle_layers(struct jsonl *j, const struct port_json *lists, struct base_err *err)
{
    struct pred_trace_header *h = &j->header;
    size_t count = port_json_count(lists);
    uint32_t dense = h->first_moe_layer;
    if (dense > 0 && dense < h->layers && count == h->layers - dense) {
        h->layers -= dense;
    } else if (dense > 0 && dense < h->layers && count == h->layers &&
               port_json_count(port_json_at(lists, 0)) == 0) {
        h->layers -= dense;
        j->skipped = dense;
    }
    if (count != h->layers + j->skipped) {
        return pred_import_bad(j->in, err,
                               "%zu lists of experts, the header says %" PRIu32 " layers", count,
                               h->layers);
    }
    return 0;
}

/* The token's weights; NULL where it has none, or null. */
static const struct port_json *weights_of(const struct port_json *token)
{
    const struct port_json *lists = port_json_get(token, "weights");
    return lists && port_json_type(lists) != PORT_JSON_NULL ? lists : NULL;
}

static int begin(struct jsonl *j, const struct port_json *token, const struct port_json *bytes,
                 const char *to, struct base_err *err)
{
    int rc = settle_layers(j, port_json_get(token, "experts"), err);
    if (rc < 0) return rc;
    rc = header_expert_bytes(j, bytes, err);
    if (rc < 0) return rc;
    j->weights = weights_of(token) != NULL;
    j->stats->layers = j->header.layers;
    j->stats->experts = j->header.experts;
    j->stats->top_k = j->header.top_k;
    return pred_import_out_begin(&j->out, to, &j->header, j->weights, err);
}

static bool grow(void *array, size_t count, size_t bytes)
{
    void **at = array, *larger = realloc(*at, count * bytes);
    if (larger) *at = larger;
    return larger != NULL;
}

static int reserve(struct jsonl *j)
{
    size_t room = j->room == 0 ? 16 : 2 * (size_t)j->room;
    size_t ids = room * j->header.layers * j->header.top_k;
    if (j->tokens < j->room) return 0;
    if (!grow(&j->seqs, room, sizeof j->seqs[0]) ||
        !grow(&j->token_ids, room, sizeof j->token_ids[0]) ||
        !grow(&j->positions_of, room, sizeof j->positions_of[0]) || !grow(&j->phases, room, 1) ||
        !grow(&j->ids, ids, sizeof j->ids[0]) || !grow(&j->gate, ids, sizeof j->gate[0]) ||
        !grow(&j->turned_ids, ids, sizeof j->ids[0]) ||
        !grow(&j->turned_gate, ids, sizeof j->gate[0])) {
        return -ENOMEM;
    }
    j->room = (uint32_t)room;
    return 0;
}

/* Writes the step in the making. Weights that are all zero are those of a step that had none. */
static void flush(struct jsonl *j)
{
    uint32_t layers = j->header.layers, top_k = j->header.top_k, n = j->tokens;
    size_t ids = (size_t)layers * n * top_k;
    bool weights = false;
    if (n == 0) return;
    for (size_t i = 0; j->weights && i < ids && !weights; i++) weights = j->gate[i] != 0;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t l = 0; l < layers; l++) {
            size_t from = ((size_t)t * layers + l) * top_k, to = ((size_t)l * n + t) * top_k;
            memcpy(j->turned_ids + to, j->ids + from, top_k * sizeof j->ids[0]);
            memcpy(j->turned_gate + to, j->gate + from, top_k * sizeof j->gate[0]);
        }
    }
    struct pred_step step = {
        .step = j->stats->steps, .token_count = n, .seqs = j->seqs, .tokens = j->token_ids,
        .positions = j->positions_of, .phases = j->phases, .expert_ids = j->turned_ids,
        .expert_weights = weights ? j->turned_gate : NULL,
    };
    pred_trace_writer_step(j->out.writer, &step);
    j->stats->steps++;
    j->stats->tokens += n;
    j->tokens = 0;
}

/* `layer` is a moe layer; sentences have the model's number. */
static int read_layer(struct jsonl *j, const struct port_json *list, uint32_t layer,
                      struct base_err *err)
{
    uint32_t top_k = j->header.top_k, number = layer + j->header.first_moe_layer;
    uint32_t *ids = j->ids + ((size_t)j->tokens * j->header.layers + layer) * top_k;
    if (list && port_json_type(list) == PORT_JSON_NULL) {
        for (uint32_t k = 0; k < top_k; k++) ids[k] = PRED_NO_EXPERT;
        return 0;
    }
    if (!list || port_json_type(list) != PORT_JSON_ARRAY || port_json_count(list) != top_k) {
        return pred_import_bad(j->in, err, "layer %" PRIu32 ": expected a list of %" PRIu32
                               " experts", number, top_k);
    }
    for (uint32_t k = 0; k < top_k; k++) {
        const struct port_json *value = port_json_at(list, k);
        int64_t id = port_json_as_i64(value);
        if (port_json_type(value) != PORT_JSON_INT || id < 0 || id >= j->header.experts) {
            return pred_import_bad(
                j->in, err, "layer %" PRIu32 ": expert %" PRId64 " is not one of 0 to %" PRIu32,
                number, id, j->header.experts - 1);
        }
        ids[k] = (uint32_t)id;
        for (uint32_t i = 0; i < k; i++) {
            if (ids[i] == ids[k]) {
                return pred_import_bad(j->in, err, "layer %" PRIu32 ": expert %" PRId64
                                       " stands there twice", number, id);
            }
        }
    }
    return 0;
}

static bool is_weight(const struct port_json *value)
{
    double weight = port_json_as_double(value);
    enum port_json_type type = port_json_type(value);
    return (type == PORT_JSON_INT || type == PORT_JSON_REAL) &&
           weight >= -PRED_IMPORT_WEIGHT_MAX && weight <= PRED_IMPORT_WEIGHT_MAX;
}

/* All lines have weights or none. */
static int read_weights(struct jsonl *j, const struct port_json *lists, struct base_err *err)
{
    uint32_t top_k = j->header.top_k, first = j->header.first_moe_layer;
    float *gate = j->gate + (size_t)j->tokens * j->header.layers * top_k;
    if (!lists && !j->weights) return 0;
    if (!lists || !j->weights) {
        return pred_import_bad(j->in, err, "%s weights, and the first token has %s",
                               lists ? "this token has" : "this token has no",
                               lists ? "none" : "some");
    }
    for (uint32_t l = 0; l < j->header.layers; l++) {
        const struct port_json *list = port_json_at(lists, l + j->skipped);
        if (list && port_json_type(list) == PORT_JSON_NULL) {
            memset(gate + (size_t)l * top_k, 0, top_k * sizeof gate[0]);
            continue;
        }
        if (port_json_count(list) != top_k) {
            return pred_import_bad(j->in, err, "layer %" PRIu32 ": expected %" PRIu32 " weights",
                                   first + l, top_k);
        }
        for (uint32_t k = 0; k < top_k; k++) {
            const struct port_json *value = port_json_at(list, k);
            if (!is_weight(value)) {
                return pred_import_bad(j->in, err, "layer %" PRIu32 ": weight %" PRIu32 " is not a "
                                       "number of at most %g", first + l, k,
                                       PRED_IMPORT_WEIGHT_MAX);
            }
            gate[(size_t)l * top_k + k] = (float)port_json_as_double(value);
        }
    }
    return 0;
}

static int read_token(struct jsonl *j, const struct port_json *doc, const char *where,
                      struct base_err *err)
{
    int64_t seq, token, mark;
    const char *phase_text = port_json_text(port_json_get(doc, "phase"), NULL);
    int rc = port_json_i64(doc, "seq", true, 0, INT64_MAX, 0, &seq, where, err);
    if (rc == 0) {
        rc = port_json_i64(doc, "token", false, -1, UINT32_MAX - 1, -1, &token, where, err);
    }
    if (rc == 0) rc = port_json_i64(doc, "step", false, 0, INT64_MAX, -1, &mark, where, err);
    if (rc < 0) return rc;
    if (mark < 0 || mark != j->mark) flush(j);
    j->mark = mark;
    uint32_t most = pred_import_step_tokens_max(&j->header);
    if (j->tokens == most) {
        return pred_import_bad(j->in, err, "step %" PRId64 " has more than %" PRIu32 " tokens, the "
                               "most that one of %" PRIu32 " layers and top-%" PRIu32 " can hold",
                               mark, most, j->header.layers, j->header.top_k);
    }
    rc = reserve(j);
    if (rc < 0) return rc;
    bool decode = phase_text && strcmp(phase_text, "decode") == 0;
    if (!decode && !(phase_text && strcmp(phase_text, "prefill") == 0)) {
        return pred_import_bad(j->in, err, "phase must be \"prefill\" or \"decode\"");
    }
    const struct port_json *lists = port_json_get(doc, "experts");
    if (port_json_count(lists) != j->header.layers + j->skipped) {
        return pred_import_bad(j->in, err, "%zu lists of experts, expected %" PRIu32,
                               port_json_count(lists), j->header.layers + j->skipped);
    }
    for (uint32_t l = 0; rc == 0 && l < j->header.layers; l++) {
        rc = read_layer(j, port_json_at(lists, l + j->skipped), l, err);
    }
    if (rc == 0) rc = read_weights(j, weights_of(doc), err);
    if (rc < 0) return rc;
    rc = pred_positions_next(&j->positions, (uint64_t)seq, &j->positions_of[j->tokens]);
    if (rc < 0) return rc;
    j->seqs[j->tokens] = (uint64_t)seq;
    j->token_ids[j->tokens] = token < 0 ? PRED_NO_TOKEN : (uint32_t)token;
    j->phases[j->tokens++] = decode ? TIER_DECODE : TIER_PREFILL;
    return 0;
}

static int read_lines(struct jsonl *j, const char *to, const struct pred_import_progress *progress,
                      struct base_err *err)
{
    struct port_json *head = NULL, *doc = NULL;
    char *line, where[256];
    size_t size;
    int rc;
    while ((rc = pred_text_in_next(j->in, &line, &size, err)) > 0) {
        if (size == 0) continue;
        port_json_free(doc);
        doc = NULL;
        rc = parse(j, line, size, &doc, err);
        if (rc < 0) break;
        snprintf(where, sizeof where, "%.200s:%" PRIu64, pred_text_in_path(j->in),
                 pred_text_in_line(j->in));
        if (!head) {
            rc = read_header(j, doc, where, err);
            head = doc;
            doc = NULL;
        } else {
            if (!j->out.writer) rc = begin(j, doc, port_json_get(head, "expert_bytes"), to, err);
            if (rc >= 0) rc = read_token(j, doc, where, err);
        }
        if (rc < 0) break;
        if (progress && (pred_text_in_line(j->in) & 1023) == 0) {
            progress->report(progress->context, pred_text_in_done_bytes(j->in),
                             pred_text_in_total_bytes(j->in));
        }
    }
    port_json_free(head);
    port_json_free(doc);
    if (rc == 0) flush(j);
    j->stats->lines = pred_text_in_line(j->in);
    j->stats->sequences = j->positions.map.count;
    if (rc == 0 && !j->out.writer) {
        rc = base_err_set(err, BASE_EFORMAT, "%s: no token lines in it", pred_text_in_path(j->in));
    }
    return rc;
}

int pred_import_jsonl(const char *from, const char *to, struct pred_import_stats *stats,
                      const struct pred_import_progress *progress, struct base_err *err)
{
    struct jsonl j = { .stats = stats, .mark = -1 };
    memset(stats, 0, sizeof *stats);
    int rc = pred_import_out_check(from, to, err);
    if (rc == 0) rc = pred_text_in_open(&j.in, from, err);
    if (rc < 0) return rc;
    rc = read_lines(&j, to, progress, err);
    rc = pred_import_out_end(&j.out, rc, err);
    if (rc < 0) base_err_set(err, rc, "%s: cannot import: %s", from, base_err_name(rc));
    pred_positions_fini(&j.positions);
    pred_text_in_close(j.in);
    free(j.expert_bytes);
    free(j.seqs);
    free(j.token_ids);
    free(j.positions_of);
    free(j.phases);
    free(j.ids);
    free(j.gate);
    free(j.turned_ids);
    free(j.turned_gate);
    return rc;
}
