/* The rows of a block (a prompt, or one generated token) are gathered until the next block begins,
 * then written as one step. In a prompt the rows of all its tokens stand together layer by
 * layer. */
#include "predictor/import.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/import_out.h"

static const char columns[] =
    "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes";

struct row {
    uint64_t turn, step;
    uint32_t phase, layer, slot, expert;
    float weight;
};

struct csv {
    struct pred_text_in *in;
    struct pred_import_out out;
    struct pred_import_stats *stats;
    struct pred_trace_header header;
    const char *to;
    bool have_model, have_columns;
    uint64_t layer_bytes[PRED_LAYERS_MAX];      /* by the model's layer; 0 = no experts */
    uint64_t expert_bytes[PRED_LAYERS_MAX];     /* by moe layer */
    uint32_t model_layers;
    uint32_t first_moe_layer;                   /* by the model's line, where no size is known */
    uint64_t last_turn;
    /* the open block */
    uint32_t tokens, room;                      /* of the block */
    uint32_t latest;                            /* token of the latest row */
    uint32_t layer;                             /* of its latest row, as moe layer */
    struct row first;
    uint64_t rows;
    uint64_t step_last;                         /* the largest step number of its tokens */
    uint64_t *steps;                            /* [room] step number of each token */
    uint32_t *got;                              /* [room] rows of the running layer */
    uint32_t *ids;                              /* [layers x room x top_k] */
    float *weights;
};

/* --------------------------------------------------------------------------- comment lines -- */

/* The number after " key=", or -1. */
static int64_t comment_number(const char *line, const char *key)
{
    const char *at = strstr(line, key);
    if (!at) return -1;
    char *end;
    errno = 0;
    long long value = strtoll(at + strlen(key), &end, 10);
    bool good =
        errno == 0 && end != at + strlen(key) && (*end == ' ' || *end == '\0') && value >= 0;
    return good ? value : -1;
}

static int read_model(struct csv *c, const char *line, struct base_err *err)
{
    int64_t layers = comment_number(line, " n_layer=");
    int64_t experts = comment_number(line, " n_expert=");
    int64_t used = comment_number(line, " n_expert_used=");
    int64_t first = comment_number(line, " first_moe_layer=");
    if (layers < 1 || layers > PRED_LAYERS_MAX || experts < 1 || experts > PRED_EXPERTS_MAX ||
        used < 1 || used > experts || used > PRED_TOP_K_MAX || first >= layers) {
        return pred_import_bad(c->in, err, "expected n_layer=, n_expert= and n_expert_used= (and "
                               "perhaps first_moe_layer=) with numbers that make sense");
    }
    /* The model's name: the file name within its path, without .gguf. */
    const char *begin = strstr(line, "model=") + strlen("model=");
    size_t size = strcspn(begin, " ");
    for (size_t i = 0; i < size; i++) {
        if (begin[i] != '/') continue;
        begin += i + 1;
        size -= i + 1;
        i = (size_t)-1;
    }
    if (size > 5 && strncmp(begin + size - 5, ".gguf", 5) == 0) size -= 5;
    snprintf(c->header.model, sizeof c->header.model, "%.*s", size > 63 ? 63 : (int)size, begin);
    snprintf(c->header.source, sizeof c->header.source, "csv");
    c->model_layers = (uint32_t)layers;
    c->first_moe_layer = first > 0 ? (uint32_t)first : 0;
    c->header.experts = (uint32_t)experts;
    c->header.top_k = (uint32_t)used;
    c->have_model = true;
    return 0;
}

static int read_comment(struct csv *c, const char *line, struct base_err *err)
{
    if (c->have_columns) return 0;
    if (strncmp(line, "# model=", 8) == 0) return read_model(c, line, err);
    if (strncmp(line, "# layer=", 8) != 0) return 0;
    int64_t layer = comment_number(line, "# layer=");
    int64_t bytes = comment_number(line, " expert_bytes=");
    if (layer < 0 || layer >= PRED_LAYERS_MAX || bytes < 0 || bytes > INT64_C(1) << 40) {
        return pred_import_bad(c->in, err, "expected \"# layer=N expert_bytes=N ...\"");
    }
    c->layer_bytes[layer] = (uint64_t)bytes;
    return 0;
}

/* The line of column names: from here on the shape is known. */
static int read_columns(struct csv *c, const char *line, struct base_err *err)
{
    if (strcmp(line, columns) != 0) {
        return pred_import_bad(c->in, err, "expected the columns %s", columns);
    }
    if (!c->have_model) {
        return pred_import_bad(c->in, err, "no line \"# model=... n_layer=N n_expert=N "
                               "n_expert_used=N\" stands before the columns");
    }
    uint32_t first = 0;
    while (first < c->model_layers && c->layer_bytes[first] == 0) first++;
    if (first == c->model_layers) first = c->first_moe_layer;   /* no sizes */
    for (uint32_t l = first; l < c->model_layers; l++) {
        if (c->layer_bytes[l] == 0 && c->layer_bytes[first] != 0) {
            return pred_import_bad(c->in, err,
                                   "layer %" PRIu32 " has no experts, but layer %" PRIu32
                                   " has: such a mixture is not known here",
                                   l, first);
        }
        c->expert_bytes[l - first] = c->layer_bytes[l];
    }
    c->header.first_moe_layer = first;
    c->header.layers = c->model_layers - first;
    c->header.expert_bytes = c->expert_bytes[0] > 0 ? c->expert_bytes : NULL;
    c->stats->layers = c->header.layers;
    c->stats->experts = c->header.experts;
    c->stats->top_k = c->header.top_k;
    c->have_columns = true;
    return pred_import_out_begin(&c->out, c->to, &c->header, true, err);
}

/* ------------------------------------------------------------------------------------ rows -- */

static int parse_row(struct csv *c, char *line, struct row *row, struct base_err *err)
{
    double values[9];
    char *at = line;
    for (int i = 0; i < 9; i++) {
        char *end;
        values[i] = strtod(at, &end);
        char want = i < 8 ? ',' : '\0';
        bool whole = i == 6 || (values[i] >= 0 && values[i] <= 1e15 &&
                                values[i] == (double)(uint64_t)values[i]);
        bool sane =
            values[i] >= -PRED_IMPORT_WEIGHT_MAX && values[i] <= PRED_IMPORT_WEIGHT_MAX;
        if (end == at || *end != want || !whole || !sane) {
            return pred_import_bad(c->in, err, "column %d is not the number it should be", i + 1);
        }
        at = end + 1;
    }
    if (values[1] > 1) {
        return pred_import_bad(c->in, err, "phase must be 0 (prefill) or 1 (decode)");
    }
    if (values[3] < c->header.first_moe_layer || values[3] >= c->model_layers) {
        return pred_import_bad(c->in, err, "layer %.0f has no experts by the file's head",
                               values[3]);
    }
    if (values[4] >= c->header.top_k || values[5] >= c->header.experts) {
        return pred_import_bad(c->in, err,
                               "slot %.0f, expert %.0f: the model has top-%" PRIu32 " of %" PRIu32
                               " experts",
                               values[4], values[5], c->header.top_k, c->header.experts);
    }
    *row = (struct row){
        .turn = (uint64_t)values[0], .phase = (uint32_t)values[1], .step = (uint64_t)values[2],
        .layer = (uint32_t)values[3] - c->header.first_moe_layer, .slot = (uint32_t)values[4],
        .expert = (uint32_t)values[5], .weight = (float)values[6],
    };
    return 0;
}

/* Every token of the layer must have all its rows before the next layer or block begins, or
 * none. */
static int layer_end(struct csv *c, struct base_err *err)
{
    for (uint32_t t = 0; t < c->tokens; t++) {
        if (c->got[t] == 0) {
            size_t at = ((size_t)c->layer * c->room + t) * c->header.top_k;
            for (uint32_t k = 0; k < c->header.top_k; k++) c->ids[at + k] = PRED_NO_EXPERT;
        } else if (c->got[t] != c->header.top_k) {
            return pred_import_bad(c->in, err,
                                   "step %" PRIu64 " of the rows before this line has %" PRIu32
                                   " of %" PRIu32 " experts in layer %" PRIu32,
                                   c->steps[t], c->got[t], c->header.top_k,
                                   c->layer + c->header.first_moe_layer);
        }
        c->got[t] = 0;
    }
    return 0;
}

/* Ids lie [layer][room][top_k] while the block grows, and are closed up to
 * [layer][tokens][top_k]. */
static void close_up(struct csv *c)
{
    size_t from_row = (size_t)c->room * c->header.top_k,
           to_row = (size_t)c->tokens * c->header.top_k;
    for (uint32_t l = 1; l < c->header.layers && from_row != to_row; l++) {
        memmove(c->ids + l * to_row, c->ids + l * from_row, to_row * sizeof c->ids[0]);
        memmove(c->weights + l * to_row, c->weights + l * from_row, to_row * sizeof c->weights[0]);
    }
}

static int block_end(struct csv *c, struct base_err *err)
{
    if (c->rows == 0) return 0;
    int rc = layer_end(c, err);
    if (rc < 0) return rc;
    if (c->layer + 1 != c->header.layers) {
        return pred_import_bad(c->in, err,
                               "the rows before this line end at layer %" PRIu32 " of %" PRIu32,
                               c->layer + c->header.first_moe_layer, c->model_layers);
    }
    uint64_t *seqs = calloc(c->tokens, sizeof seqs[0]);
    uint32_t *positions = calloc(c->tokens, sizeof positions[0]);
    uint8_t *phases = calloc(c->tokens, 1);
    if (seqs && positions && phases) {
        for (uint32_t t = 0; t < c->tokens; t++) {
            seqs[t] = c->first.turn;
            positions[t] = (uint32_t)c->steps[t];
            phases[t] = c->first.phase ? TIER_DECODE : TIER_PREFILL;
        }
        close_up(c);
        /* Weights that are all zero are those of a recording that had none. */
        bool weights = false;
        size_t ids = (size_t)c->tokens * c->header.layers * c->header.top_k;
        for (size_t i = 0; i < ids && !weights; i++) {
            weights = c->ids[i] != PRED_NO_EXPERT && c->weights[i] != 0;
        }
        struct pred_step step = {
            .step = c->stats->steps, .token_count = c->tokens, .seqs = seqs, .positions = positions,
            .phases = phases, .expert_ids = c->ids, .expert_weights = weights ? c->weights : NULL,
        };
        pred_trace_writer_step(c->out.writer, &step);
        c->stats->steps++;
        c->stats->tokens += c->tokens;
        if (c->stats->sequences == 0 || c->first.turn != c->last_turn) c->stats->sequences++;
        c->last_turn = c->first.turn;
    } else {
        rc = -ENOMEM;
    }
    free(seqs);
    free(positions);
    free(phases);
    c->rows = c->tokens = 0;
    return rc;
}

/* Place for one more token in a block; only a block's first layer adds tokens, so nothing has to be
 * moved. */
static int token_add(struct csv *c, uint64_t step, struct base_err *err)
{
    uint32_t most = pred_import_step_tokens_max(&c->header);
    if (c->tokens == most) {
        return pred_import_bad(c->in, err, "a prompt of more than %" PRIu32 " tokens, the most "
                               "that a step of %" PRIu32 " layers and top-%" PRIu32 " can hold",
                               most, c->header.layers, c->header.top_k);
    }
    if (c->tokens == c->room) {
        uint32_t room = c->room ? c->room * 2 : 64;
        size_t ids = (size_t)room * c->header.layers * c->header.top_k;
        uint64_t *steps = realloc(c->steps, room * sizeof steps[0]);
        if (steps) c->steps = steps;
        uint32_t *got = realloc(c->got, room * sizeof got[0]);
        if (got) c->got = got;
        uint32_t *id_room = realloc(c->ids, ids * sizeof id_room[0]);
        if (id_room) c->ids = id_room;
        float *weight_room = realloc(c->weights, ids * sizeof weight_room[0]);
        if (weight_room) c->weights = weight_room;
        if (!steps || !got || !id_room || !weight_room) return -ENOMEM;
        c->room = room;
    }
    if (c->tokens == 0 || step > c->step_last) c->step_last = step;
    c->steps[c->tokens] = step;
    c->got[c->tokens++] = 0;
    return 0;
}

static bool begins_block(const struct csv *c, const struct row *row)
{
    if (c->rows == 0 || row->turn != c->first.turn || row->phase != c->first.phase) return true;
    if (row->phase == 1) return row->step != c->first.step;
    return row->layer < c->layer;
}

/* Tokens come in the same order in every layer: it is nearly always the latest one, the next, or
 * one that goes on counting. c->tokens for a new one. */
static uint32_t token_of(struct csv *c, uint64_t step)
{
    if (c->tokens > 0 && step > c->step_last) return c->latest = c->tokens;
    for (uint32_t i = 0; i < c->tokens; i++) {
        uint32_t t = (c->latest + i) % c->tokens;
        if (c->steps[t] == step) return c->latest = t;
    }
    return c->latest = c->tokens;
}

static int add_row(struct csv *c, const struct row *row, struct base_err *err)
{
    if (begins_block(c, row)) {
        int rc = block_end(c, err);
        if (rc < 0) return rc;
        c->first = *row;
        c->layer = 0;
        if (row->layer != 0) return pred_import_bad(c->in, err, "a token begins at layer %" PRIu32,
                                                    row->layer + c->header.first_moe_layer);
    }
    if (row->layer != c->layer) {
        int rc = layer_end(c, err);
        if (rc < 0) return rc;
        if (row->layer != c->layer + 1) {
            return pred_import_bad(c->in, err, "layer %" PRIu32 " follows layer %" PRIu32,
                                   row->layer + c->header.first_moe_layer,
                                   c->layer + c->header.first_moe_layer);
        }
        c->layer = row->layer;
    }
    uint32_t t = token_of(c, row->step);
    if (t == c->tokens) {
        if (c->layer > 0) {
            return pred_import_bad(c->in, err, "step %" PRIu64 " is new in layer %" PRIu32,
                                   row->step, row->layer + c->header.first_moe_layer);
        }
        int rc = token_add(c, row->step, err);
        if (rc < 0) return rc;
    }
    if (row->slot != c->got[t]) {
        return pred_import_bad(c->in, err, "slot %" PRIu32 " where slot %" PRIu32 " is due",
                               row->slot, c->got[t]);
    }
    size_t at = ((size_t)row->layer * c->room + t) * c->header.top_k;
    for (uint32_t k = 0; k < row->slot; k++) {
        if (c->ids[at + k] == row->expert) {
            return pred_import_bad(c->in, err, "expert %" PRIu32 " stands there twice",
                                   row->expert);
        }
    }
    c->ids[at + row->slot] = row->expert;
    c->weights[at + row->slot] = row->weight;
    c->got[t]++;
    c->rows++;
    return 0;
}

static int read_lines(struct csv *c, const struct pred_import_progress *progress,
                      struct base_err *err)
{
    char *line;
    size_t size;
    int rc;
    while ((rc = pred_text_in_next(c->in, &line, &size, err)) > 0) {
        struct row row;
        if (size == 0) continue;
        if (line[0] == '#') {
            rc = read_comment(c, line, err);
        } else if (!c->have_columns) {
            rc = read_columns(c, line, err);
        } else {
            rc = parse_row(c, line, &row, err);
            if (rc == 0) rc = add_row(c, &row, err);
        }
        if (rc < 0) return rc;
        if (progress && (pred_text_in_line(c->in) & 4095) == 0) {
            progress->report(progress->context, pred_text_in_done_bytes(c->in),
                             pred_text_in_total_bytes(c->in));
        }
    }
    if (rc < 0) return rc;
    rc = block_end(c, err);
    c->stats->lines = pred_text_in_line(c->in);
    if (rc == 0 && c->stats->steps == 0) {
        rc = base_err_set(err, BASE_EFORMAT, "%s: no rows in it", pred_text_in_path(c->in));
    }
    return rc;
}

int pred_import_csv(const char *from, const char *to, struct pred_import_stats *stats,
                    const struct pred_import_progress *progress, struct base_err *err)
{
    memset(stats, 0, sizeof *stats);
    struct csv *c = calloc(1, sizeof *c);
    if (!c) return -ENOMEM;
    c->stats = stats;
    c->to = to;
    int rc = pred_import_out_check(from, to, err);
    if (rc == 0) rc = pred_text_in_open(&c->in, from, err);
    if (rc == 0) rc = read_lines(c, progress, err);
    rc = pred_import_out_end(&c->out, rc, err);
    if (rc < 0) base_err_set(err, rc, "%s: cannot import: %s", from, base_err_name(rc));
    pred_text_in_close(c->in);
    free(c->steps);
    free(c->got);
    free(c->ids);
    free(c->weights);
    free(c);
    return rc;
}
