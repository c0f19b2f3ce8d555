#include "predictor/adviser.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "predictor/history.h"

enum {
    ROWS_LIMIT = 4096,
    BINS = 64,                  /* of log-odds, four to the unit */
    BIN_FULL = 4096,            /* hints of a bin after which its counts are halved */
};
#define BIN_BELIEF 24.0f        /* hints that a bin's own probability counts as */
/* Log-odds below which a row adds nothing worth the exponential: 0.1%. */
#define NOTHING (-7.0f)

/* The layer's own gate was asked; else by how many layers before it were not known yet: none, one,
 * two, more. Each knows less. */
enum { KIND_OWN, KIND_NEXT, KINDS = KIND_NEXT + 4 };

struct said {                   /* hints of one kind for one layer */
    uint32_t count;
    bool fresh;                 /* of the running step */
};

struct bin {
    float given, right;
};

struct pred_adviser {
    struct pred_predictor *predictor;
    struct pred_adviser_options options;
    uint32_t layers, experts, top_k;
    struct pred_history history;
    /* of the running step */
    uint32_t count, predicted;          /* followed; the first `predicted` are predicted */
    uint32_t rows;                      /* of the step */
    uint32_t *source;                   /* [rows_max] row of the step */
    struct pred_context *contexts;      /* [rows_max] */
    uint32_t *ids;                      /* [rows_max x layers x top_k] */
    uint32_t *future;                   /* the same, for who may know it; else NULL */
    const uint32_t *foretold;           /* of the next step, until it begins */
    uint32_t routed;                    /* layers that are through */
    struct said *said;                  /* [KINDS x layers] */
    struct tier_hint *kept;             /* [KINDS x layers x hints_max] */
    float *raw;                         /* the same: log-odds before calibration */
    struct tier_hint *out;              /* [layers x hints_max] */
    float *scores, *none;               /* [experts]: of a row; log of P(no row) */
    uint8_t *asked;                     /* [experts] */
    float *margins;                     /* [askings x rows_max x layers x experts] */
    void (*watch)(void *context, const struct pred_context *row, uint32_t layer,
                  const float *scores);
    void *watch_context;
    struct bin bins[KINDS][BINS];
    struct pred_adviser_stats stats;
};

/* ------------------------------------------------------------------------------- create -- */

static size_t askings_of(const struct pred_adviser *a)
{
    return a->options.ahead + a->options.own;
}

static int tables_create(struct pred_adviser *a)
{
    size_t rows = a->options.rows_max, layers = a->layers, hints = layers * a->options.hints_max;
    a->source = calloc(rows, sizeof a->source[0]);
    a->contexts = calloc(rows, sizeof a->contexts[0]);
    a->ids = calloc(rows * layers * a->top_k, sizeof a->ids[0]);
    bool seer = a->predictor->ops->replay_only;
    if (seer) a->future = calloc(rows * layers * a->top_k, sizeof a->future[0]);
    a->said = calloc(KINDS * layers, sizeof a->said[0]);
    a->kept = calloc(KINDS * hints, sizeof a->kept[0]);
    a->raw = calloc(KINDS * hints, sizeof a->raw[0]);
    a->out = calloc(hints, sizeof a->out[0]);
    a->scores = calloc(a->experts, sizeof a->scores[0]);
    a->none = calloc(a->experts, sizeof a->none[0]);
    a->asked = calloc(a->experts, sizeof a->asked[0]);
    a->margins = calloc(askings_of(a) * rows * layers * a->experts + 1, sizeof a->margins[0]);
    if (!a->source || !a->contexts || !a->ids || (seer && !a->future) || !a->said ||
        !a->kept || !a->raw || !a->out || !a->scores || !a->none || !a->asked || !a->margins) {
        return -ENOMEM;
    }
    return pred_history_init(&a->history, &a->predictor->shape);
}

int pred_adviser_create(struct pred_adviser **out, struct pred_predictor *predictor,
                        const struct pred_adviser_options *options)
{
    *out = NULL;
    if (options->lead == 0 || options->hints_max == 0 || options->rows_max == 0 ||
        options->rows_max > ROWS_LIMIT ||
        options->ahead > PRED_AHEAD_MAX || !(options->probability_min >= 0) ||
        options->probability_min > 1) {
        return -EINVAL;
    }
    struct pred_adviser *a = calloc(1, sizeof *a);
    if (!a) return -ENOMEM;
    a->predictor = predictor;
    a->options = *options;
    a->layers = predictor->shape.layers;
    a->experts = predictor->shape.experts;
    a->top_k = predictor->shape.top_k;
    if (a->options.hints_max > a->experts) a->options.hints_max = a->experts;
    if (a->options.lead > a->layers) a->options.lead = a->layers;
    if (tables_create(a) < 0) {
        pred_adviser_destroy(a);
        return -ENOMEM;
    }
    *out = a;
    return 0;
}

void pred_adviser_destroy(struct pred_adviser *a)
{
    if (!a) return;
    pred_history_fini(&a->history);
    free(a->source);
    free(a->contexts);
    free(a->ids);
    free(a->future);
    free(a->said);
    free(a->kept);
    free(a->raw);
    free(a->out);
    free(a->scores);
    free(a->none);
    free(a->asked);
    free(a->margins);
    free(a);
}

size_t pred_adviser_bytes(const struct pred_adviser *a)
{
    size_t rows = a->options.rows_max, layers = a->layers, hints = layers * a->options.hints_max;
    return sizeof *a + rows * (sizeof a->source[0] + sizeof a->contexts[0]) +
           rows * layers * a->top_k * sizeof a->ids[0] * (a->future ? 2 : 1) +
           KINDS * (layers * sizeof a->said[0] + hints * (sizeof a->kept[0] + sizeof a->raw[0])) +
           hints * sizeof a->out[0] +
           a->experts * (2 * sizeof a->scores[0] + 1) +
           askings_of(a) * rows * layers * a->experts * sizeof a->margins[0] +
           PRED_HISTORY_PLACES * (sizeof a->history.last[0] + layers * a->top_k * 4);
}

/* -------------------------------------------------------------------------- calibration -- */

static uint32_t kind_of(const struct pred_adviser *a, uint32_t layer, uint32_t known)
{
    struct pred_context context = a->contexts[0];
    context.known = known;
    if (pred_context_asking(&context, &a->predictor->shape, layer) == PRED_OWN) return KIND_OWN;
    uint32_t kind = KIND_NEXT + layer - known;
    return kind < KINDS ? kind : KINDS - 1;
}

/* The latest hints for a layer know most; NULL: there are none. */
static const struct said *latest(const struct pred_adviser *a, uint32_t layer)
{
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        const struct said *said = &a->said[kind * a->layers + layer];
        if (said->fresh) return said;
    }
    return NULL;
}

static struct bin *bin_of(struct pred_adviser *a, uint32_t kind, float raw)
{
    const float beyond = (float)BINS;       /* of either end, and what an int holds */
    int at = (int)floorf((fminf(fmaxf(raw, -beyond), beyond) + BINS / 8.0f) * 4);
    return &a->bins[kind][at < 0 ? 0 : at >= BINS ? BINS - 1 : at];
}

static float calibrated(struct pred_adviser *a, uint32_t kind, float raw)
{
    const struct bin *bin = bin_of(a, kind, raw);
    float own = 1 / (1 + expf(-raw));
    return (bin->right + own * BIN_BELIEF) / (bin->given + BIN_BELIEF);
}

static void settle_bin(struct bin *bin, bool right)
{
    bin->given += 1;
    bin->right += right;
    if (bin->given < BIN_FULL) return;
    bin->given /= 2;
    bin->right /= 2;
}

/* What became of the hints for a layer, now that it is routed. The latest are counted. */
static void settle(struct pred_adviser *a, uint32_t layer, const uint32_t *ids)
{
    const struct said *counted = latest(a, layer);
    uint32_t asked = 0;
    if (!counted) return;
    memset(a->asked, 0, a->experts);
    for (uint32_t r = 0; r < a->predicted; r++) {
        const uint32_t *own = ids + (size_t)a->source[r] * a->top_k;
        if (own[0] == PRED_NO_EXPERT) continue;
        for (uint32_t k = 0; k < a->top_k; k++) {
            asked += !a->asked[own[k]];
            a->asked[own[k]] = 1;
        }
    }
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        size_t at = kind * a->layers + layer;
        struct said *said = &a->said[at];
        for (uint32_t i = 0; said->fresh && i < said->count; i++) {
            bool right = a->asked[a->kept[at * a->options.hints_max + i].expert];
            settle_bin(bin_of(a, kind, a->raw[at * a->options.hints_max + i]), right);
            if (said == counted) a->stats.right += right;
        }
        said->fresh = false;
    }
    a->stats.hints += counted->count;
    a->stats.asked += asked;
}

/* ------------------------------------------------------------------------------ predict -- */

/* a->none[e] = log of the probability that no predicted row wants expert e, 0 where nobody
 * does. With one row, a->scores is kept instead: its log-odds are what is asked for. */
static void rows_combine(struct pred_adviser *a, uint32_t layer, uint32_t known)
{
    if (a->predicted > 1) memset(a->none, 0, a->experts * sizeof a->none[0]);
    for (uint32_t r = 0; r < a->predicted; r++) {
        struct pred_context *context = &a->contexts[r];
        context->known = known;
        pred_predictor_predict(a->predictor, context, layer, a->scores);
        if (a->watch) a->watch(a->watch_context, context, layer, a->scores);
        if (a->predicted == 1) return;
        for (uint32_t e = 0; e < a->experts; e++) {
            if (a->scores[e] > NOTHING) a->none[e] -= log1pf(expf(a->scores[e]));
        }
    }
    /* Back to log-odds: P = 1 - exp(none), P / (1 - P) = exp(-none) - 1; of many rows that is more
     * than a float holds. */
    for (uint32_t e = 0; e < a->experts; e++) {
        a->scores[e] = a->none[e] < -20      ? -a->none[e]
                       : a->none[e] < -1e-6f ? logf(expm1f(-a->none[e]))
                                             : -20;
    }
}

/* Fills the layer's list with the likeliest experts, in falling order, ties by id. */
static void predict(struct pred_adviser *a, uint32_t layer, uint32_t known)
{
    uint32_t kind = kind_of(a, layer, known), n = 0, max = a->options.hints_max;
    size_t place = kind * a->layers + layer;
    struct tier_hint *hints = a->kept + place * max;
    float *raw = a->raw + place * max, least = NOTHING;
    rows_combine(a, layer, known);
    for (uint32_t e = 0; e < a->experts; e++) {
        float score = a->scores[e];
        if (!(score > least)) continue;
        uint32_t at = n < max ? n++ : max - 1;
        for (; at > 0 && raw[at - 1] < score; at--) {
            raw[at] = raw[at - 1];
            hints[at].expert = hints[at - 1].expert;
        }
        raw[at] = score;
        hints[at].expert = e;
        if (n == max) least = raw[max - 1];
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        float p = calibrated(a, kind, raw[i]);
        if (p < (float)a->options.probability_min) continue;
        raw[kept] = raw[i];
        hints[kept++] = (struct tier_hint){ .layer = layer, .expert = hints[i].expert,
                                            .probability = p };
    }
    a->said[place] = (struct said){ .count = kept, .fresh = true };
}

static bool worth_more(const struct tier_hint *x, const struct tier_hint *y)
{
    if (x->probability != y->probability) return x->probability > y->probability;
    if (x->layer != y->layer) return x->layer < y->layer;
    return x->expert < y->expert;
}

/* Shell's sort: in place, and good enough for a few hundred; qsort may allocate. */
static void hints_sort(struct tier_hint *hints, uint32_t n)
{
    static const uint32_t gaps[] = { 701, 301, 132, 57, 23, 10, 4, 1 };
    for (size_t g = 0; g < sizeof gaps / sizeof gaps[0]; g++) {
        for (uint32_t i = gaps[g]; i < n; i++) {
            struct tier_hint one = hints[i];
            uint32_t at = i;
            for (; at >= gaps[g] && worth_more(&one, &hints[at - gaps[g]]); at -= gaps[g]) {
                hints[at] = hints[at - gaps[g]];
            }
            hints[at] = one;
        }
    }
}

/* Gathers the lists of layers [from, to) as hints seen from layer `here` (-1 = before the pass). */
static uint32_t gather(struct pred_adviser *a, uint32_t from, uint32_t to, int64_t here,
                       const struct tier_hint **hints)
{
    uint32_t n = 0;
    for (uint32_t l = from; l < to; l++) {
        const struct said *said = latest(a, l);
        if (!said) continue;
        const struct tier_hint *own = a->kept + (size_t)(said - a->said) * a->options.hints_max;
        for (uint32_t i = 0; i < said->count; i++) {
            a->out[n] = own[i];
            a->out[n++].distance = (uint32_t)((int64_t)l - here);
        }
    }
    hints_sort(a->out, n);
    *hints = a->out;
    return n;
}

/* --------------------------------------------------------------------------------- steps -- */

/* The step's rows, as the caller gave them. */
struct rows {
    const uint64_t *seqs;
    const uint32_t *tokens;
    const uint8_t *phases;
    uint32_t count;
};

static uint32_t token_of(const struct rows *rows, uint32_t row)
{
    return rows->tokens ? rows->tokens[row] : PRED_NO_TOKEN;
}

static float *margins_of(struct pred_adviser *a, uint32_t asking, uint32_t r, uint32_t layer)
{
    size_t place = asking == PRED_OWN ? a->options.ahead : asking;
    size_t row = place * a->options.rows_max + r;
    return a->margins + (row * a->layers + layer) * a->experts;
}

/* The routing of a row that was foretold, layer by layer as a context has it. */
static const uint32_t *future_of(struct pred_adviser *a, const struct rows *rows, uint32_t row,
                                 uint32_t r)
{
    if (!a->future || !a->foretold) return NULL;
    uint32_t *to = a->future + (size_t)r * a->layers * a->top_k;
    for (uint32_t l = 0; l < a->layers; l++) {
        memcpy(to + l * a->top_k, a->foretold + ((size_t)l * rows->count + row) * a->top_k,
               a->top_k * sizeof to[0]);
    }
    return to;
}

static void follow(struct pred_adviser *a, const struct rows *rows, uint32_t row)
{
    uint32_t r = a->count++, token;
    const uint32_t *previous = pred_history_find(&a->history, rows->seqs[row], &token);
    a->source[r] = row;
    a->contexts[r] = (struct pred_context){
        .seq = rows->seqs[row], .token = token_of(rows, row),
        .previous_token = previous ? token : PRED_NO_TOKEN, .previous = previous,
        .ids = a->ids + (size_t)r * a->layers * a->top_k,
        .future = future_of(a, rows, row, r),
    };
    for (uint32_t d = 0; d < PRED_ASKINGS; d++) {
        if (d == PRED_OWN ? !a->options.own : d >= a->options.ahead) continue;
        a->contexts[r].gates[d] = margins_of(a, d, r, 0);
        for (uint32_t l = 0; l < a->layers; l++) margins_of(a, d, r, l)[0] = NAN;
    }
    /* Within a prompt the token before runs beside this one: its routing is not past yet. */
    if (row > 0 && rows->seqs[row - 1] == rows->seqs[row]) {
        a->contexts[r].previous_token = token_of(rows, row - 1);
        a->contexts[r].previous = NULL;
    }
}

static void rows_choose(struct pred_adviser *a, const struct rows *rows)
{
    uint32_t max = a->options.rows_max, prefill = 0;
    a->count = 0;
    a->rows = rows->count;
    for (uint32_t i = 0; i < rows->count; i++) {
        if (rows->phases[i] != TIER_DECODE) prefill++;
        else if (a->count < max) follow(a, rows, i);
    }
    a->predicted = rows->count <= max ? rows->count : a->count;
    uint32_t room = max - a->count, taken = prefill < room ? prefill : room, seen = 0, got = 0;
    for (uint32_t i = 0; i < rows->count && got < taken; i++) {
        if (rows->phases[i] == TIER_DECODE) continue;
        /* Of `prefill` rows the last of each of `taken` equal parts. */
        seen++;
        if ((uint64_t)seen * taken / prefill == got) continue;
        got++;
        follow(a, rows, i);
    }
    MUST(a->predicted <= a->count);
}

void pred_adviser_foretell(struct pred_adviser *a, const uint32_t *ids)
{
    a->foretold = ids;
}

/* Of layers before `to`, none of which is routed. */
static uint32_t predict_first(struct pred_adviser *a, uint32_t to, const struct tier_hint **hints)
{
    *hints = a->out;
    if (a->predicted == 0) return 0;
    for (uint32_t l = 0; l < to; l++) predict(a, l, 0);
    return gather(a, 0, to, -1, hints);
}

uint32_t pred_adviser_begin(struct pred_adviser *a, const uint64_t *seqs, const uint32_t *tokens,
                            const uint8_t *phases, uint32_t count, const struct tier_hint **hints)
{
    struct rows rows = { seqs, tokens, phases, count };
    rows_choose(a, &rows);
    a->foretold = NULL;
    for (uint32_t i = 0; i < KINDS * a->layers; i++) a->said[i].fresh = false;
    a->routed = 0;
    a->stats.steps++;
    a->stats.rows += count;
    return predict_first(a, a->options.whole_pass ? a->layers : a->options.lead, hints);
}

bool pred_adviser_wants(const struct pred_adviser *a)
{
    return askings_of(a) > 0 && a->count > 0 && a->predicted == a->rows;
}

static void keep_margins(struct pred_adviser *a, uint32_t asking, uint32_t layer,
                         const float *margins)
{
    for (uint32_t r = 0; r < a->count; r++) {
        memcpy(margins_of(a, asking, r, layer), margins + (size_t)a->source[r] * a->experts,
               a->experts * sizeof margins[0]);
    }
}

void pred_adviser_gate(struct pred_adviser *a, int32_t layer, uint32_t later, const float *margins)
{
    uint32_t next = (uint32_t)(layer + 1);
    MUST(layer >= -1 && later >= next && later < a->layers && later - next < a->options.ahead);
    keep_margins(a, later - next, later, margins);
}

uint32_t pred_adviser_before(struct pred_adviser *a, const struct tier_hint **hints)
{
    MUST(a->routed == 0);
    uint32_t asked = a->options.ahead < a->layers ? a->options.ahead : a->layers;
    return predict_first(a, asked, hints);
}

uint32_t pred_adviser_own(struct pred_adviser *a, uint32_t layer, const float *margins,
                          const struct tier_hint **hints)
{
    MUST(a->options.own && layer == a->routed && layer < a->layers);
    keep_margins(a, PRED_OWN, layer, margins);
    *hints = a->out;
    if (a->predicted == 0) return 0;
    predict(a, layer, layer);
    return gather(a, layer, layer + 1, (int64_t)layer - 1, hints);
}

bool pred_adviser_watched(const struct pred_adviser *a)
{
    return a->watch != NULL;
}

void pred_adviser_watch(struct pred_adviser *a,
                        void (*watch)(void *context, const struct pred_context *row,
                                      uint32_t layer, const float *scores), void *context)
{
    a->watch = watch;
    a->watch_context = context;
}

uint32_t pred_adviser_routed(struct pred_adviser *a, uint32_t layer, const uint32_t *ids,
                             const struct tier_hint **hints)
{
    MUST(layer < a->layers && layer >= a->routed);
    /* Layers that were passed over were not routed: nobody knows them. */
    for (; a->routed < layer; a->routed++) {
        for (uint32_t r = 0; r < a->count; r++) {
            a->ids[((size_t)r * a->layers + a->routed) * a->top_k] = PRED_NO_EXPERT;
        }
    }
    for (uint32_t r = 0; r < a->count; r++) {
        memcpy(a->ids + ((size_t)r * a->layers + layer) * a->top_k,
               ids + (size_t)a->source[r] * a->top_k, a->top_k * sizeof ids[0]);
    }
    settle(a, layer, ids);
    a->routed = layer + 1;
    *hints = a->out;
    uint32_t end = layer + a->options.lead + 1;
    if (a->predicted == 0) return 0;
    if (end > a->layers) end = a->layers;
    for (uint32_t l = layer + 1; l < end; l++) predict(a, l, layer + 1);
    return gather(a, layer + 1, end, layer, hints);
}

void pred_adviser_end(struct pred_adviser *a, enum pred_adviser_end how)
{
    for (; a->routed < a->layers; a->routed++) {
        for (uint32_t r = 0; r < a->count; r++) {
            a->ids[((size_t)r * a->layers + a->routed) * a->top_k] = PRED_NO_EXPERT;
        }
    }
    for (uint32_t l = 0; how != PRED_STAND_STILL && l < a->layers; l++) {
        for (uint32_t r = 0; r < a->count; r++) {
            struct pred_context *context = &a->contexts[r];
            const uint32_t *ids = context->ids + (size_t)l * a->top_k;
            if (ids[0] == PRED_NO_EXPERT) continue;
            context->known = l;
            pred_predictor_observe(a->predictor, context, l, ids, how == PRED_LEARN);
        }
    }
    if (how == PRED_LEARN) a->stats.learned_rows += a->count;
    for (uint32_t r = 0; r < a->count; r++) {
        pred_history_keep(&a->history, a->contexts[r].seq, a->contexts[r].token,
                          a->contexts[r].ids);
    }
}

const struct pred_adviser_stats *pred_adviser_stats(const struct pred_adviser *a)
{
    return &a->stats;
}
