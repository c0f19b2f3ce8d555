/* Sequences in the order in which they come up, and what text the two halves share. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "port/hash.h"
#include "predictor/import_out.h"
#include "predictor/tune_priv.h"

/* Windows are kept as bits by their hash: 8 MiB hold a million with 1.5% mistaken for known. */
enum { BITS = 1 << 26 };

/* The last tokens of a sequence, a ring. */
struct window {
    uint32_t tokens[PRED_TUNE_WINDOW];
    uint32_t seen;
};

struct reading {
    struct pred_tune_parts *parts;
    struct window *windows; /* [sequences], the second and third time */
    uint64_t *bits;
    uint64_t held_out, known; /* windows of the held-out half; found in the other */
};

static struct pred_positions *numbers_of(const struct pred_tune_parts *parts, uint32_t trace)
{
    return (struct pred_positions *)parts->numbers + trace;
}

uint32_t pred_tune_parts_number(const struct pred_tune_parts *parts, uint32_t trace, uint64_t seq)
{
    uint32_t number = 0;
    int rc = pred_positions_number(numbers_of(parts, trace), seq, 0, &number);
    MUST(rc == 0); /* it was met when the parts were made */
    return number;
}

/* True with the window's hash once the sequence has that many tokens. */
static bool window_add(struct window *w, uint32_t token, uint64_t *hash)
{
    uint32_t text[PRED_TUNE_WINDOW];
    if (token == PRED_NO_TOKEN) {
        w->seen = 0;
        return false;
    }
    w->tokens[w->seen++ % PRED_TUNE_WINDOW] = token;
    if (w->seen < PRED_TUNE_WINDOW) return false;
    for (uint32_t i = 0; i < PRED_TUNE_WINDOW; i++) {
        text[i] = w->tokens[(w->seen + i) % PRED_TUNE_WINDOW];
    }
    *hash = port_hash64(text, sizeof text);
    return true;
}

static int number_token(struct reading *r, const struct pred_step *step, uint32_t i, uint32_t trace)
{
    struct pred_tune_parts *parts = r->parts;
    uint32_t number;
    int rc =
        pred_positions_number(numbers_of(parts, trace), step->seqs[i], parts->sequences, &number);
    if (rc == 0 && number == parts->sequences) parts->sequences++;
    if (rc == 0) parts->tokens[number % 2]++;
    parts->prefill_tokens += step->phases[i] == TIER_PREFILL;
    return rc;
}

static void text_token(struct reading *r, const struct pred_step *step, uint32_t i, uint32_t trace,
                       enum pred_tune_part part)
{
    uint32_t number = pred_tune_parts_number(r->parts, trace, step->seqs[i]);
    uint64_t hash;
    if (number % 2 != (uint32_t)part) return;
    if (!window_add(&r->windows[number], step->tokens[i], &hash)) return;
    uint64_t *word = &r->bits[hash % BITS / 64], bit = UINT64_C(1) << hash % 64;
    if (part == PRED_TUNE_TUNED) {
        *word |= bit;
    } else {
        r->held_out++;
        r->known += (*word & bit) != 0;
    }
}

/* part < 0: numbers the sequences. */
static int read_all(struct reading *r, const struct pred_tune_args *args, int part,
                    struct base_err *err)
{
    struct pred_trace_item item;
    int rc = 0;
    for (uint32_t t = 0; rc == 0 && t < args->trace_count; t++) {
        while ((rc = pred_trace_reader_next(args->traces[t], PRED_WANT_STEPS, &item, err)) > 0) {
            for (uint32_t i = 0; rc >= 0 && i < item.step.token_count; i++) {
                if (part < 0) {
                    rc = number_token(r, &item.step, i, t);
                } else {
                    text_token(r, &item.step, i, t, (enum pred_tune_part)part);
                }
            }
            if (rc < 0) return base_err_set(err, rc, "no memory for the sequences of the trace");
        }
        if (rc == 0 && part < 0 && args->progress && args->progress->read) {
            args->progress->read(args->progress->context, t);
        }
        if (rc == 0) rc = pred_trace_reader_rewind(args->traces[t], err);
    }
    return rc;
}

int pred_tune_parts_init(struct pred_tune_parts *parts, const struct pred_tune_args *args,
                         struct base_err *err)
{
    struct reading r = { .parts = parts };
    *parts = (struct pred_tune_parts){ .trace_count = args->trace_count, .shared_text = -1 };
    parts->numbers = calloc(args->trace_count, sizeof(struct pred_positions));
    if (!parts->numbers) return base_err_set(err, -ENOMEM, "no memory to tune");
    int rc = read_all(&r, args, -1, err);
    if (rc < 0) return rc;
    r.windows = calloc(parts->sequences + 1, sizeof r.windows[0]);
    r.bits = calloc(BITS / 64, sizeof r.bits[0]);
    if (!r.windows || !r.bits) rc = base_err_set(err, -ENOMEM, "no memory to tune");
    if (rc == 0) rc = read_all(&r, args, PRED_TUNE_TUNED, err);
    if (rc == 0) rc = read_all(&r, args, PRED_TUNE_HELD_OUT, err);
    if (r.held_out > 0) parts->shared_text = (double)r.known / (double)r.held_out;
    free(r.windows);
    free(r.bits);
    return rc;
}

void pred_tune_parts_fini(struct pred_tune_parts *parts)
{
    for (uint32_t t = 0; parts->numbers && t < parts->trace_count; t++) {
        pred_positions_fini(numbers_of(parts, t));
    }
    free(parts->numbers);
    parts->numbers = NULL;
}
