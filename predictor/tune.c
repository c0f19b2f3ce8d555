#include "predictor/tune.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/must.h"
#include "base/rng.h"
#include "predictor/feed.h"
#include "predictor/timed_run.h"
#include "tiering/policy.h"

enum { CANDIDATES_MAX = 128, SAMPLES = 4000, PROGRESS_EVERY = 1024 };

static const double half_lives[] = { 0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512 };
static const double factors[] = { 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35, 1.6 };
static const double shares[] = { 0.1, 0.25, 0.5, 0.75, 1 };
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* One candidate while it runs, and what it cost. */
struct run {
    struct pred_tune_setting setting;
    struct tier_decide *decide; /* NULL: a server would refuse it */
    double *cost;               /* [sequences] */
    struct pred_tune_sum sum;
};

struct tune {
    const struct pred_tune_args *args;
    const struct pred_trace_header *header; /* of the first trace */
    struct pred_tune_result *result;
    struct pred_tune_parts parts;
    struct pred_union joined;
    struct tier_found *found;
    struct pred_step step;   /* the part's tokens of the running step */
    uint32_t room, *numbers; /* [room] */
    char folder[160];           /* on the clock: where the halves are; \"\" = nowhere */
    struct pred_trace_reader *halves[2];
    double tokens[2];           /* of each half */
    struct run runs[CANDIDATES_MAX];
    uint32_t count;
};

static bool same(const struct pred_tune_setting *a, const struct pred_tune_setting *b)
{
    return strcmp(a->policy, b->policy) == 0 && a->half_life_tokens == b->half_life_tokens &&
           a->prefill_share == b->prefill_share && a->adaptive == b->adaptive;
}

static double expert_bytes(const struct tune *t, uint32_t layer)
{
    const struct pred_trace_header *h = t->header;
    uint64_t bytes = h->expert_bytes ? h->expert_bytes[layer] : h->slot_bytes;
    return bytes > 0 ? (double)bytes : 1;
}

/* ------------------------------------------------------------------------------ one reading -- */

static int step_reserve(struct tune *t, uint32_t tokens)
{
    size_t ids = (size_t)tokens * t->header->layers * t->header->top_k;
    if (tokens <= t->room) return 0;
    free((void *)t->step.phases);
    free((void *)t->step.expert_ids);
    free((void *)t->step.expert_weights);
    free(t->numbers);
    t->step.phases = calloc(tokens, 1);
    t->step.expert_ids = calloc(ids, sizeof(uint32_t));
    t->step.expert_weights = calloc(ids, sizeof(float));
    t->numbers = calloc(tokens, sizeof t->numbers[0]);
    t->room = tokens;
    bool all = t->step.phases && t->step.expert_ids && t->step.expert_weights && t->numbers;
    return all ? 0 : -ENOMEM;
}

/* Copies the tokens of the part; `to` is t->step, without weights where there are none. */
static int step_take(struct tune *t, const struct pred_step *from, uint32_t trace,
                     enum pred_tune_part part, struct pred_step *to)
{
    uint32_t n = 0, top_k = t->header->top_k;
    int rc = step_reserve(t, from->token_count);
    if (rc < 0) return rc;
    uint8_t *phases = (uint8_t *)t->step.phases;
    uint32_t *ids = (uint32_t *)t->step.expert_ids;
    float *weights = (float *)t->step.expert_weights;
    for (uint32_t i = 0; i < from->token_count; i++) {
        uint32_t number = pred_tune_parts_number(&t->parts, trace, from->seqs[i]);
        if (number % 2 == (uint32_t)part) n++;
    }
    for (uint32_t i = 0, at = 0; n > 0 && i < from->token_count; i++) {
        uint32_t number = pred_tune_parts_number(&t->parts, trace, from->seqs[i]);
        if (number % 2 != (uint32_t)part) continue;
        for (uint32_t l = 0; l < t->header->layers; l++) {
            size_t source = ((size_t)l * from->token_count + i) * top_k,
                   target = ((size_t)l * n + at) * top_k;
            memcpy(ids + target, from->expert_ids + source, top_k * sizeof ids[0]);
            if (!from->expert_weights) continue;
            memcpy(weights + target, from->expert_weights + source, top_k * sizeof weights[0]);
        }
        t->numbers[at] = number;
        phases[at++] = from->phases[i];
    }
    *to = t->step;
    to->token_count = n;
    if (!from->expert_weights) to->expert_weights = NULL;
    return 0;
}

/* Lookups of the acquire that nobody in memory could serve. */
static uint32_t reads_of(struct tune *t, struct tier_decide *decide, uint32_t layer, uint32_t n,
                         enum tier_phase phase)
{
    const uint32_t *ids = t->joined.ids;
    uint32_t done = 0, reads = 0;
    while (done < n) {
        uint32_t k = tier_decide_acquire(decide, layer, ids + done, n - done, phase, t->found);
        MUST(k > 0); /* nothing is leased between two waves */
        for (uint32_t i = 0; i < k; i++)
            reads += t->found[i].from == t->args->cache.tier_count;
        tier_decide_release(decide, layer, ids + done, k);
        done += k;
    }
    return reads;
}

/* What an acquire costs is shared by the tokens that asked. */
static void acquire(struct tune *t, const struct pred_step *step, uint32_t layer,
                    enum tier_phase phase)
{
    uint32_t n = pred_union_of(&t->joined, step, layer, phase), tokens = 0;
    if (n == 0) return;
    for (uint32_t i = 0; i < step->token_count; i++)
        tokens += step->phases[i] == phase;
    double each = expert_bytes(t, layer);
    for (uint32_t c = 0; c < t->count; c++) {
        struct run *run = &t->runs[c];
        if (!run->decide) continue;
        uint32_t reads = reads_of(t, run->decide, layer, n, phase);
        run->sum.lookups += n;
        run->sum.reads += reads;
        run->sum.cost += reads * each;
        for (uint32_t i = 0; reads > 0 && i < step->token_count; i++) {
            if (step->phases[i] == phase) run->cost[t->numbers[i]] += reads * each / tokens;
        }
    }
}

static int run_create(struct tune *t, struct run *run, struct base_err *err)
{
    const struct pred_tune_cache *cache = &t->args->cache;
    struct tier_decide_config config = {
        .layers = t->header->layers,
        .experts = t->header->experts,
        .top_k = t->header->top_k,
        .tier_count = cache->tier_count,
        .inclusive = cache->inclusive, .adaptive = run->setting.adaptive,
        .half_life_tokens = run->setting.half_life_tokens,
        .prefill_share = run->setting.prefill_share,
        .strict = true,
    };
    for (uint32_t i = 0; i < cache->tier_count; i++) {
        config.tiers[i].slots = cache->slots[i];
        bool own = i > 0 && cache->policy_below[0];
        memcpy(config.tiers[i].policy, own ? cache->policy_below : run->setting.policy,
               sizeof config.tiers[i].policy);
    }
    run->sum = (struct pred_tune_sum){ 0 };
    if (!run->cost) run->cost = calloc(t->parts.sequences, sizeof run->cost[0]);
    if (!run->cost) return base_err_set(err, -ENOMEM, "no memory for a candidate");
    memset(run->cost, 0, t->parts.sequences * sizeof run->cost[0]);
    return tier_decide_create(&run->decide, &config, err);
}

/* A candidate that a server would refuse keeps its core NULL; the first one is somebody's
 * configuration and must do. */
static int runs_create(struct tune *t, struct base_err *err)
{
    for (uint32_t c = 0; c < t->count; c++) {
        struct base_err refused = { 0 };
        int rc = run_create(t, &t->runs[c], &refused);
        if (rc < 0 && (c == 0 || (rc != BASE_EBUDGET && rc != BASE_ECONFIG))) {
            return base_err_set(err, rc, "%s", refused.text);
        }
    }
    return 0;
}

static int evaluate_bytes(struct tune *t, enum pred_tune_part part, const char *what,
                          struct base_err *err)
{
    static const enum tier_phase order[] = { TIER_DECODE, TIER_PREFILL };
    const struct pred_replay_progress *progress = t->args->progress;
    struct pred_trace_item item;
    struct pred_step step;
    uint64_t steps = 0;
    int rc = 0;
    for (uint32_t i = 0; rc >= 0 && i < t->args->trace_count; i++) {
        struct pred_trace_reader *reader = t->args->traces[i];
        while ((rc = pred_trace_reader_next(reader, PRED_WANT_STEPS, &item, err)) > 0) {
            rc = step_take(t, &item.step, i, part, &step);
            if (rc < 0) return base_err_set(err, rc, "no memory for a step");
            for (uint32_t l = 0; step.token_count > 0 && l < t->header->layers; l++) {
                for (int p = 0; p < 2; p++)
                    acquire(t, &step, l, order[p]);
            }
            if (progress && ++steps % PROGRESS_EVERY == 0) {
                struct pred_trace_health health;
                pred_trace_reader_health(reader, &health);
                progress->report(progress->context, what, health.read_bytes, health.file_bytes);
            }
        }
        if (rc == 0) rc = pred_trace_reader_rewind(reader, err);
    }
    return rc;
}

/* What an engine would take for the part: cases on the clock of the machine. */
static void step_done(void *context, const struct pred_step *step, uint64_t ns)
{
    struct run *run = context;
    for (uint32_t i = 0; i < step->token_count; i++) {
        run->cost[step->seqs[i]] += (double)ns / step->token_count;
    }
}

static int evaluate_clock(struct tune *t, enum pred_tune_part part, const char *what,
                          struct base_err *err)
{
    static struct pred_timed_case cases[CANDIDATES_MAX];
    static struct pred_timed_result results[CANDIDATES_MAX];
    const struct pred_tune_cache *cache = &t->args->cache;
    struct pred_timed_summary summary;
    uint32_t count = 0, of[CANDIDATES_MAX];
    (void)what;
    for (uint32_t c = 0; c < t->count; c++) {
        struct run *run = &t->runs[c];
        if (!run->decide) continue;
        of[count] = c;
        cases[count] = (struct pred_timed_case){
            .tier_count = cache->tier_count, .inclusive = cache->inclusive,
            .slots = { cache->slots[0], cache->slots[1] },
            .prefill_share = run->setting.prefill_share,
            .half_life_tokens = run->setting.half_life_tokens, .adaptive = run->setting.adaptive,
            .step_done = step_done, .context = run,
        };
        memcpy(cases[count].policy_below, cache->policy_below, sizeof cases[0].policy_below);
        memcpy(cases[count++].policy, run->setting.policy, sizeof cases[0].policy);
    }
    const struct pred_timed_args args = {
        .reader = t->halves[part], .machine = t->args->machine, .cases = cases, .count = count,
        .progress = t->args->progress,
    };
    int rc = pred_timed_run(&args, results, &summary, err);
    for (uint32_t i = 0; rc >= 0 && i < count; i++) {
        const struct pred_timed_stats *stats = &results[i].stats;
        struct pred_tune_sum *sum = &t->runs[of[i]].sum;
        for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
            sum->lookups += (double)stats->cells[cell].lookups;
            sum->reads += (double)stats->cells[cell].misses;
        }
        if (cache->tier_count == 2) {
            sum->reads = (double)(stats->below_lookups - stats->below_hits);
        }
        sum->cost = (double)results[i].time_ns;
    }
    pred_timed_results_fini(results, count);
    return rc < 0 ? rc : pred_trace_reader_rewind(t->halves[part], err);
}

/* All candidates over one part, by what counts. */
static int evaluate(struct tune *t, enum pred_tune_part part, const char *what,
                    struct base_err *err)
{
    int rc = runs_create(t, err);
    if (rc < 0) return rc;
    rc = (t->args->machine ? evaluate_clock : evaluate_bytes)(t, part, what, err);
    for (uint32_t c = 0; c < t->count; c++) t->runs[c].sum.tokens = t->tokens[part];
    return rc;
}

static void runs_end(struct tune *t)
{
    for (uint32_t c = 0; c < t->count; c++) {
        tier_decide_destroy(t->runs[c].decide);
        t->runs[c].decide = NULL;
    }
}

/* --------------------------------------------------------------------------------- searching -- */

static void candidate_add(struct tune *t, struct pred_tune_setting setting)
{
    for (uint32_t c = 0; c < t->count; c++) {
        if (same(&t->runs[c].setting, &setting)) return;
    }
    MUST(t->count < CANDIDATES_MAX);
    t->runs[t->count++].setting = setting;
}

/* Tries what was added beside `best` and leaves the one in it that reads least; of equals the one
 * added first, so that nothing is changed for nothing. */
static int choose(struct tune *t, struct pred_tune_setting *best, const char *what,
                  struct base_err *err)
{
    uint32_t winner = 0;
    int rc = evaluate(t, PRED_TUNE_TUNED, what, err);
    for (uint32_t c = 1; rc == 0 && c < t->count; c++) {
        const struct run *run = &t->runs[c];
        if (run->decide && run->sum.cost < t->runs[winner].sum.cost) winner = c;
    }
    if (rc == 0) *best = t->runs[winner].setting;
    t->result->candidates += t->count;
    runs_end(t);
    t->count = 0;
    return rc;
}

static bool decays(const char *policy)
{
    return tier_policy_find(policy)->decayed;
}

static int search(struct tune *t, struct pred_tune_setting *best, struct base_err *err)
{
    const char *name;
    *best = t->args->base;
    candidate_add(t, *best);
    for (size_t i = 0; (name = tier_policy_name(i)) != NULL; i++) {
        struct pred_tune_setting s = t->args->base;
        /* pinned takes a list that no server has an option for. */
        if (tier_policy_find(name)->replay_only || strcmp(name, "pinned") == 0) continue;
        snprintf(s.policy, sizeof s.policy, "%s", name);
        candidate_add(t, s);
        for (size_t h = 0; decays(name) && h < COUNT(half_lives); h++) {
            s.half_life_tokens = half_lives[h];
            candidate_add(t, s);
        }
    }
    int rc = choose(t, best, "trying policies", err);
    if (rc == 0) {
        struct pred_tune_setting s = *best;
        candidate_add(t, *best);
        s.adaptive = !s.adaptive;
        candidate_add(t, s);
        rc = choose(t, best, "trying quotas", err);
    }
    if (rc == 0 && t->parts.prefill_tokens > 0) {
        struct pred_tune_setting s = *best;
        candidate_add(t, *best);
        for (size_t i = 0; i < COUNT(shares); i++) {
            s.prefill_share = shares[i];
            candidate_add(t, s);
        }
        rc = choose(t, best, "trying prefill shares", err);
    }
    if (rc == 0 && decays(best->policy) && best->half_life_tokens > 0) {
        struct pred_tune_setting s = *best;
        candidate_add(t, *best);
        for (size_t i = 0; i < COUNT(factors); i++) {
            s.half_life_tokens = fmax(1, round(best->half_life_tokens * factors[i]));
            candidate_add(t, s);
        }
        rc = choose(t, best, "trying half-lives", err);
    }
    return rc;
}

/* ------------------------------------------------------------------------------ the judgement --
 */

static void path_add(struct pred_tune_result *r, const char *knob,
                     const struct pred_tune_setting *setting)
{
    r->path[r->path_count++] = (struct pred_tune_step){ .knob = knob, .setting = *setting };
}

static void path_make(struct tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = t->args->base;
    path_add(t->result, NULL, &s);
    if (strcmp(s.policy, best->policy) != 0) {
        memcpy(s.policy, best->policy, sizeof s.policy);
        path_add(t->result, "policy.eviction", &s);
    }
    if (s.adaptive != best->adaptive) {
        s.adaptive = best->adaptive;
        path_add(t->result, "policy.quotas", &s);
    }
    if (s.half_life_tokens != best->half_life_tokens) {
        s.half_life_tokens = best->half_life_tokens;
        path_add(t->result, "policy.half_life", &s);
    }
    if (s.prefill_share != best->prefill_share) {
        s.prefill_share = best->prefill_share;
        path_add(t->result, "policy.prefill_share", &s);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Sequences drawn with replacement, the same ones for both settings. */
static int bootstrap(struct tune *t, const double *base, const double *won, struct base_err *err)
{
    struct pred_tune_result *r = t->result;
    double *samples = calloc(SAMPLES, sizeof samples[0]);
    struct base_rng rng;
    if (!samples) return base_err_set(err, -ENOMEM, "no memory for the bootstrap");
    base_rng_init(&rng, 1);
    for (uint32_t s = 0; s < SAMPLES; s++) {
        double before = 0, after = 0;
        for (uint64_t i = 0; i < r->held_out_sequences; i++) {
            uint64_t number = 2 * base_rng_below(&rng, r->held_out_sequences) + PRED_TUNE_HELD_OUT;
            before += base[number];
            after += won[number];
        }
        samples[s] = before > 0 ? 1 - after / before : 0;
    }
    qsort(samples, SAMPLES, sizeof samples[0], compare);
    r->saved_low = samples[SAMPLES / 40];
    r->saved_high = samples[SAMPLES - 1 - SAMPLES / 40];
    free(samples);
    return 0;
}

static int judge(struct tune *t, const struct pred_tune_setting *best, struct base_err *err)
{
    struct pred_tune_result *r = t->result;
    path_make(t, best);
    for (int part = PRED_TUNE_TUNED; part <= PRED_TUNE_HELD_OUT; part++) {
        t->count = r->path_count;
        for (uint32_t i = 0; i < t->count; i++)
            t->runs[i].setting = r->path[i].setting;
        int rc = evaluate(t, (enum pred_tune_part)part, "checking on the held-out half", err);
        runs_end(t);
        if (rc < 0) return rc;
        for (uint32_t i = 0; i < t->count; i++) {
            *(part == PRED_TUNE_TUNED ? &r->path[i].tuned : &r->path[i].held_out) = t->runs[i].sum;
        }
    }
    const struct run *base = &t->runs[0], *won = &t->runs[r->path_count - 1];
    if (base->sum.cost > 0) r->saved = 1 - won->sum.cost / base->sum.cost;
    int rc = bootstrap(t, base->cost, won->cost, err);
    r->better = rc == 0 && r->path_count > 1 && r->saved > 0 && r->saved_low > 0;
    return rc;
}

/* ------------------------------------------------------------------------------------ set-up -- */

/* The tokens of each half as a trace whose sequences have the numbers of the parts. */
static int half_write(struct tune *t, enum pred_tune_part part, const char *path,
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
            rc = step_take(t, &item.step, i, part, &step);
            if (rc < 0) break;
            uint64_t *more = realloc(seqs, (step.token_count + 1) * sizeof seqs[0]);
            if (more) seqs = more;
            uint32_t *zero = realloc(positions, (step.token_count + 1) * sizeof positions[0]);
            if (zero) positions = zero;
            if (!more || !zero) rc = -ENOMEM;
            if (rc < 0 || step.token_count == 0) continue;
            for (uint32_t k = 0; k < step.token_count; k++) {
                seqs[k] = t->numbers[k];
                positions[k] = 0;
            }
            step.seqs = seqs;
            step.positions = positions;
            pred_trace_writer_step(writer, &step);
        }
        if (rc == 0) rc = pred_trace_reader_rewind(reader, err);
    }
    free(seqs);
    free(positions);
    struct base_err closing = { 0 };
    int end = pred_trace_writer_close(writer, &closing);
    if (rc < 0) return base_err_set(err, rc, "cannot keep a half of the trace");
    return end < 0 ? base_err_set(err, end, "%s", closing.text) : 0;
}

static void half_path(const struct tune *t, int part, char *to, size_t size)
{
    snprintf(to, size, "%s/half-%d", t->folder, part);
}

static void halves_end(struct tune *t)
{
    char path[200];
    for (int part = 0; part < 2; part++) {
        pred_trace_reader_close(t->halves[part]);
        if (!t->folder[0]) continue;
        half_path(t, part, path, sizeof path);
        unlink(path);
    }
    if (t->folder[0]) rmdir(t->folder);
}

static int halves_make(struct tune *t, struct base_err *err)
{
    const char *dir = getenv("TMPDIR");
    char path[200];
    if (!dir || !*dir) dir = "/tmp";
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
    for (int part = 0; part < 2; part++) {
        half_path(t, part, path, sizeof path);
        int rc = half_write(t, (enum pred_tune_part)part, path, err);
        if (rc == 0) rc = pred_trace_reader_open(&t->halves[part], path, err);
        if (rc < 0) return rc;
    }
    return 0;
}

static int prepare(struct tune *t, struct base_err *err)
{
    const struct pred_trace_header *h = t->header;
    for (uint32_t i = 1; i < t->args->trace_count; i++) {
        const struct pred_trace_header *o = pred_trace_reader_header(t->args->traces[i]);
        if (o->layers == h->layers && o->experts == h->experts && o->top_k == h->top_k) continue;
        return base_err_set(err, BASE_EMISMATCH,
                            "the traces are of different models: %" PRIu32 " layers of %" PRIu32
                            " experts, top-%" PRIu32 ", and %" PRIu32 " of %" PRIu32
                            ", top-%" PRIu32,
                            h->layers, h->experts, h->top_k, o->layers, o->experts, o->top_k);
    }
    if (!tier_policy_find(t->args->base.policy)) {
        return base_err_set(err, BASE_ECONFIG, "no policy is called \"%s\"", t->args->base.policy);
    }
    t->result->on_clock = t->args->machine != NULL;
    t->result->known_bytes = h->expert_bytes || h->slot_bytes > 0;
    t->found = calloc(h->experts, sizeof t->found[0]);
    if (!t->found) return base_err_set(err, -ENOMEM, "no memory to tune");
    int rc = pred_union_init(&t->joined, h->experts, h->top_k);
    if (rc < 0) return base_err_set(err, rc, "no memory to tune");
    rc = pred_tune_parts_init(&t->parts, t->args, err);
    if (rc < 0) return rc;
    t->result->sequences = t->parts.sequences;
    t->result->held_out_sequences = t->parts.sequences / 2;
    t->result->shared_text = t->parts.shared_text;
    t->tokens[0] = t->parts.tokens[0];
    t->tokens[1] = t->parts.tokens[1];
    if (t->parts.sequences >= 2) return t->args->machine ? halves_make(t, err) : 0;
    return base_err_set(err, BASE_ECONFIG,
                        "%" PRIu32 " sequence in all: at least 2 are needed, one to tune on and "
                        "one to hold out",
                        t->parts.sequences);
}

int pred_tune_run(const struct pred_tune_args *args, struct pred_tune_result *result,
                  struct base_err *err)
{
    struct pred_tune_setting best;
    struct tune *t = calloc(1, sizeof *t);
    if (!t) return base_err_set(err, -ENOMEM, "no memory to tune");
    memset(result, 0, sizeof *result);
    t->args = args;
    t->result = result;
    t->header = pred_trace_reader_header(args->traces[0]);
    int rc = prepare(t, err);
    if (rc == 0) rc = search(t, &best, err);
    if (rc == 0) rc = judge(t, &best, err);
    for (uint32_t c = 0; c < CANDIDATES_MAX; c++) {
        tier_decide_destroy(t->runs[c].decide);
        free(t->runs[c].cost);
    }
    halves_end(t);
    pred_union_fini(&t->joined);
    pred_tune_parts_fini(&t->parts);
    free(t->found);
    free((void *)t->step.phases);
    free((void *)t->step.expert_ids);
    free((void *)t->step.expert_weights);
    free(t->numbers);
    free(t);
    return rc;
}
