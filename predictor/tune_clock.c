/* Candidates on the virtual clock of a machine, with the hints of their predictors. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/must.h"
#include "base/temp.h"
#include "predictor/timed_run.h"
#include "predictor/tune_priv.h"

/* Predicting and learning, in steps of one case: gpt-oss-20b's blend takes 150 us a token, a case
 * 30 us (for the time that is left only). */
enum { PREDICTOR_WORK = 5 };

/* -- the pieces ------------------------------------------------------------------------------- */

static int rows_reserve(uint64_t **seqs, uint32_t **positions, uint32_t count)
{
    uint64_t *more = realloc(*seqs, (count + 1) * sizeof *more);
    if (more) *seqs = more;
    uint32_t *zero = realloc(*positions, (count + 1) * sizeof *zero);
    if (zero) *positions = zero;
    return more && zero ? 0 : -ENOMEM;
}

/* The tokens of a piece as a trace whose sequences have the numbers of the parts. */
static int piece_write(struct pred_tune *t, enum pred_tune_piece piece, const char *path,
                       struct base_err *err)
{
    struct pred_trace_config config;
    struct base_option_group group = { "trace", pred_trace_options, pred_trace_option_count,
                                       &config };
    struct pred_trace_header header = *t->header;
    struct pred_trace_writer *writer;
    struct pred_trace_item item;
    struct pred_step step;
    uint64_t *seqs = NULL;
    uint32_t *positions = NULL;
    base_option_defaults(&group, 1);
    snprintf(config.path, sizeof config.path, "%.*s", (int)sizeof config.path - 1, path);
    config.weights = PRED_WEIGHTS_F32;
    header.decide.tier_count = 0;
    header.yaml = NULL;
    int rc = pred_trace_writer_open(&writer, &config, &header, false, err);
    if (rc < 0) return rc;
    pred_trace_writer_patient(writer);
    for (uint32_t i = 0; rc >= 0 && i < t->args->trace_count; i++) {
        struct pred_trace_reader *reader = t->args->traces[i];
        while ((rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err)) > 0) {
            rc = pred_tune_step_take(t, &item.step, i, 1U << piece, &step);
            if (rc == 0) rc = rows_reserve(&seqs, &positions, step.token_count);
            if (rc < 0) break;
            if (step.token_count == 0) continue;
            for (uint32_t k = 0; k < step.token_count; k++) {
                seqs[k] = t->numbers[k];
                positions[k] = 0;
            }
            step.seqs = seqs;
            step.positions = positions;
            step.step = t->steps[piece]++;
            pred_trace_writer_step(writer, &step);
        }
        if (rc == 0) rc = pred_trace_reader_rewind(reader, err);
    }
    free(seqs);
    free(positions);
    struct base_err closing = { 0 };
    int end = pred_trace_writer_close(writer, &closing);
    if (rc < 0) return base_err_set(err, rc, "cannot keep a part of the trace");
    return end < 0 ? base_err_set(err, end, "%s", closing.text) : 0;
}

void pred_tune_clock_end(struct pred_tune *t)
{
    for (int piece = 0; piece < PRED_TUNE_PIECES; piece++) {
        pred_predictor_destroy(t->learned[piece]);
        pred_trace_reader_close(t->pieces[piece]);
        if (!t->folder[0]) continue;
        unlink(t->paths[piece]);
        base_temp_drop(t->paths[piece]);
    }
    if (!t->folder[0]) return;
    rmdir(t->folder);
    base_temp_drop(t->folder);
}

int pred_tune_clock_begin(struct pred_tune *t, struct base_err *err)
{
    const char *dir = base_temp_folder();
    int length = snprintf(t->folder, sizeof t->folder, "%s/expertier-tune-XXXXXX", dir);
    if (length >= (int)sizeof t->folder) {
        t->folder[0] = '\0';
        return base_err_set(err, -ENAMETOOLONG, "TMPDIR: %.80s...: this path is too long", dir);
    }
    if (!mkdtemp(t->folder)) {
        int rc = base_err_set(err, -errno, "%s: no temporary folder can be made there: %s",
                              t->folder, strerror(errno));
        t->folder[0] = '\0';
        return rc;
    }
    base_temp_add(t->folder);
    for (int piece = 0; piece < PRED_TUNE_PIECES; piece++) {
        snprintf(t->paths[piece], sizeof t->paths[piece], "%s/piece-%d", t->folder, piece);
        base_temp_add(t->paths[piece]);
    }
    int rc = 0;
    for (int piece = 0; piece < PRED_TUNE_PIECES && rc == 0; piece++) {
        rc = piece_write(t, (enum pred_tune_piece)piece, t->paths[piece], err);
        if (rc == 0) rc = pred_trace_reader_open(&t->pieces[piece], t->paths[piece], err);
    }
    return rc;
}

/* -- learning --------------------------------------------------------------------------------- */

static void advice_fill(const struct pred_tune *t, const struct pred_tune_setting *s,
                        struct pred_timed_advice *to)
{
    const struct pred_tune_advice *a = &t->args->advice;
    *to = (struct pred_timed_advice){
        .tokens_max = a->tokens_max,
        .options = { .lead = s->lead, .hints_max = a->hints_max,
                     .probability_min = a->probability_min, .rows_max = a->rows_max,
                     .whole_pass = a->whole_pass },
    };
    memcpy(to->predictor, s->predictor, sizeof to->predictor);
}

/* What may be learned before a piece is run: never of itself. */
static uint32_t others_of(const struct pred_tune *t, enum pred_tune_piece piece,
                          struct pred_trace_reader **others)
{
    uint32_t n = 0;
    for (int other = PRED_TUNE_QUARTER_0; other <= PRED_TUNE_QUARTER_1; other++) {
        if (other != (int)piece) others[n++] = t->pieces[other];
    }
    return n;
}

/* One predictor a piece is kept, the last one asked for. */
static int learn(struct pred_tune *t, const struct pred_timed_advice *advice,
                 enum pred_tune_piece piece, struct base_err *err)
{
    struct pred_predictor **kept = &t->learned[piece];
    struct pred_trace_reader *others[2];
    if (*kept && strcmp((*kept)->ops->name, advice->predictor) == 0) return 0;
    pred_predictor_destroy(*kept);
    return pred_timed_learn(kept, advice, others, others_of(t, piece, others), err);
}

/* -- running ---------------------------------------------------------------------------------- */

static void step_done(void *context, const struct pred_step *step, uint64_t ns)
{
    struct pred_tune_try *try = context;
    for (uint32_t i = 0; i < step->token_count; i++) {
        try->cost[step->seqs[i]] += (double)ns / step->token_count;
    }
}

static void case_fill(struct pred_tune *t, struct pred_tune_try *try, struct pred_timed_case *to)
{
    const struct pred_tune_cache *cache = &t->args->cache;
    const struct pred_tune_advice *advice = &t->args->advice;
    const struct pred_tune_setting *s = &try->setting;
    uint64_t keys = (uint64_t)t->header->layers * t->header->experts;
    *to = (struct pred_timed_case){
        .tier_count = cache->tier_count, .inclusive = cache->inclusive,
        .warm_compute = cache->warm_compute,
        .slots = { cache->slots[0], cache->slots[1] },
        .prefill_share = s->prefill_share, .half_life_tokens = s->half_life_tokens,
        .adaptive = s->adaptive,
        .step_done = step_done, .context = try,
        .hinted = s->predictor[0] != '\0',
        .prefetch_inflight = s->inflight,
        .governor = { .share = s->bandwidth_share > 0 ? s->bandwidth_share : 1,
                      .waste_max = advice->waste_max,
                      .probability_min = advice->prefetch_probability_min,
                      .fixed = advice->fixed },
    };
    to->start_full = pred_timed_holds_all(to, keys);
    pred_tune_per_layer(t, s, &to->prefetch_per_layer);
    to->prefetch = to->prefetch_per_layer > 0;
    memcpy(to->policy_below, cache->policy_below, sizeof to->policy_below);
    memcpy(to->policy, s->policy, sizeof to->policy);
}

/* Of a run over one piece. */
static void sum_add(const struct pred_tune *t, const struct pred_timed_result *r,
                    struct pred_tune_sum *sum)
{
    const struct pred_timed_stats *stats = &r->stats;
    bool below = t->args->cache.tier_count == 2;
    for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
        sum->lookups += (double)stats->cells[cell].lookups;
        sum->hits += (double)stats->cells[cell].hits;
        if (!below) sum->reads += (double)stats->cells[cell].misses;
    }
    if (below) sum->reads += (double)(stats->below_lookups - stats->below_hits);
    sum->bytes += (double)(stats->demand_bytes + stats->prefetch_bytes +
                           stats->copy_up_bytes);
    sum->cost += (double)r->time_ns;
}

struct reading {
    const struct pred_tune *t;
    double of;                  /* share of the piece's bytes that are read */
};

static void on_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    const struct reading *r = context;
    double share = total > 0 ? (double)done / (double)total / r->of : 0;
    (void)what;
    pred_tune_report(r->t, share < 1 ? share : 1);
}

static uint64_t steps_of(const struct pred_tune *t, int piece, uint64_t steps_max)
{
    return steps_max > 0 && steps_max < t->steps[piece] ? steps_max : t->steps[piece];
}

double pred_tune_clock_work(const struct pred_tune *t, enum pred_tune_part part,
                            uint64_t steps_max, uint32_t cases, uint32_t predictors)
{
    double work = 0;
    for (int piece = 0; piece < PRED_TUNE_PIECES; piece++) {
        if ((piece == PRED_TUNE_HELD) != (part == PRED_TUNE_HELD_OUT)) continue;
        work += (double)steps_of(t, piece, steps_max) * (cases + predictors * PREDICTOR_WORK);
    }
    return work;
}

/* The tries of one predictor with one lead, which hear the same hints, over one piece. */
static int group_run(struct pred_tune *t, const uint32_t *of, uint32_t count,
                     enum pred_tune_piece piece, uint64_t steps_max, struct base_err *err)
{
    static struct pred_timed_case cases[PRED_TUNE_CANDIDATES_MAX];
    static struct pred_timed_result results[PRED_TUNE_CANDIDATES_MAX];
    struct pred_timed_summary summary;
    struct reading reading = { .t = t, .of = 1 };
    struct pred_replay_progress progress = { on_progress, &reading };
    struct pred_timed_args args = {
        .reader = t->pieces[piece], .machine = t->args->machine, .cases = cases, .count = count,
        .steps_max = steps_max, .progress = &progress,
    };
    const struct pred_tune_setting *first = &t->tries[of[0]].setting;
    int rc = 0;
    if (t->steps[piece] == 0) return 0;
    reading.of = (double)steps_of(t, piece, steps_max) / (double)t->steps[piece];
    t->work_piece = (double)steps_of(t, piece, steps_max) * count;
    if (first->predictor[0] != '\0') {
        t->work_piece += (double)steps_of(t, piece, steps_max) * PREDICTOR_WORK;
        advice_fill(t, first, &args.advice);
        rc = learn(t, &args.advice, piece, err);
        args.advice.learned = t->learned[piece];
    }
    for (uint32_t i = 0; i < count; i++) case_fill(t, &t->tries[of[i]], &cases[i]);
    if (rc == 0) rc = pred_timed_run(&args, results, &summary, err);
    if (rc < 0) return rc;
    for (uint32_t i = 0; i < count; i++) sum_add(t, &results[i], &t->tries[of[i]].sum);
    pred_timed_results_fini(results, count);
    t->work_done += t->work_piece;
    return pred_trace_reader_rewind(t->pieces[piece], err);
}

static bool together(const struct pred_tune_setting *a, const struct pred_tune_setting *b)
{
    if (strcmp(a->predictor, b->predictor) != 0) return false;
    return a->predictor[0] == '\0' || a->lead == b->lead;
}

int pred_tune_clock_evaluate(struct pred_tune *t, enum pred_tune_part part, uint64_t steps_max,
                             struct base_err *err)
{
    bool done[PRED_TUNE_CANDIDATES_MAX] = { false };
    uint32_t of[PRED_TUNE_CANDIDATES_MAX];
    int rc = 0;
    for (uint32_t c = 0; c < t->count && rc == 0; c++) {
        uint32_t count = 0;
        if (done[c] || !t->tries[c].decide) continue;
        for (uint32_t o = c; o < t->count; o++) {
            if (!t->tries[o].decide || !together(&t->tries[c].setting, &t->tries[o].setting)) {
                continue;
            }
            done[o] = true;
            of[count++] = o;
        }
        for (int piece = 0; piece < PRED_TUNE_PIECES && rc == 0; piece++) {
            if ((piece == PRED_TUNE_HELD) != (part == PRED_TUNE_HELD_OUT)) continue;
            rc = group_run(t, of, count, (enum pred_tune_piece)piece, steps_max, err);
        }
    }
    return rc;
}
