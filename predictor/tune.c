#include "predictor/tune.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "base/rng.h"
#include "predictor/tune_priv.h"
#include "tiering/policy.h"
#include "tiering/tiering.h"

/* COARSE_STEPS: of each quarter, for rounds of many candidates. BEST: of them, tried on all. */
enum { SAMPLES = 4000, COARSE_STEPS = 1500, BEST = 5 };

static const double half_lives[] = { 0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512 };
static const double factors[] = { 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35, 1.6 };
static const double shares[] = { 0.1, 0.25, 0.5, 0.75, 1 };
static const uint32_t leads[] = { 1, 2, 3, 4 };
static const uint32_t per_layers[] = { 1, 2, 4, 8, 16 };
static const double bandwidth_shares[] = { 0.1, 0.3, 0.6, 1 };
static const uint32_t experts_inflight[] = { 1, 2, 4, 8, 16 };
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ----------------------------------------------------------------------------- the settings -- */

/* In the order in which the winner's are turned: what predicts first, since a policy that hears
 * hints is nothing without them. */
enum knob {
    KNOB_PREDICTOR,
    KNOB_POLICY,
    KNOB_QUOTAS,
    KNOB_HALF_LIFE,
    KNOB_PREFILL,
    KNOB_LEAD,
    KNOB_PER_LAYER,
    KNOB_BANDWIDTH,
    KNOB_INFLIGHT,
    KNOB_COUNT,
};
static const char *const knob_names[KNOB_COUNT] = {
    "predictor.kind", "policy.eviction", "policy.quotas", "policy.half_life",
    "policy.prefill_share", "predictor.lead", "prefetch.experts_per_layer_max",
    "prefetch.bandwidth_share", "prefetch.inflight",
};
_Static_assert(KNOB_COUNT + 1 == PRED_TUNE_PATH_MAX, "the base and every knob");

#define TURN(field)                                                                                \
    do {                                                                                           \
        if (memcmp(&s->field, &to->field, sizeof s->field) == 0) return false;                     \
        memcpy(&s->field, &to->field, sizeof s->field);                                            \
        return true;                                                                               \
    } while (0)

static bool turn_text(char *s, const char *to)
{
    if (strcmp(s, to) == 0) return false;
    snprintf(s, sizeof((struct pred_tune_setting *)0)->policy, "%s", to);
    return true;
}

/* Turns one knob of s to where `to` has it; false when it is there. */
static bool turn(struct pred_tune_setting *s, const struct pred_tune_setting *to, enum knob knob)
{
    bool hinted = to->predictor[0] != '\0';
    if (knob >= KNOB_LEAD && !hinted) return false;
    switch (knob) {
    case KNOB_PREDICTOR:
        return turn_text(s->predictor, to->predictor);
    case KNOB_POLICY:
        return turn_text(s->policy, to->policy);
    case KNOB_QUOTAS:
        TURN(adaptive);
    case KNOB_HALF_LIFE:
        TURN(half_life_tokens);
    case KNOB_PREFILL:
        TURN(prefill_share);
    case KNOB_LEAD:
        TURN(lead);
    case KNOB_PER_LAYER:
        TURN(per_layer);
    case KNOB_BANDWIDTH:
        TURN(bandwidth_share);
    case KNOB_INFLIGHT:
        TURN(inflight);
    case KNOB_COUNT:
        break;
    }
    return false;
}

static bool same(const struct pred_tune_setting *a, const struct pred_tune_setting *b)
{
    struct pred_tune_setting s = *a;
    for (int knob = 0; knob < KNOB_COUNT; knob++) {
        if (turn(&s, b, (enum knob)knob)) return false;
    }
    return true;
}

static bool decays(const struct pred_tune *t, const char *policy)
{
    const char *below = t->args->cache.policy_below;
    return tier_policy_find(policy)->decayed || (below[0] && tier_policy_find(below)->decayed);
}

/* What a server insists on where nothing counts uses. */
static double half_life_idle(void)
{
    for (size_t i = 0; i < tier_option_count; i++) {
        if (strcmp(tier_options[i].key, "policy.half_life") == 0) {
            return strtod(tier_options[i].initial, NULL);
        }
    }
    return 16;
}

/* lru_with_prediction without predictions is refused by a server. */
static bool serves(const struct pred_tune *t, const struct pred_tune_setting *s)
{
    bool hints = s->predictor[0] != '\0' && t->args->advice.prefetch != PRED_TUNE_NEVER;
    return hints || strcmp(s->policy, "lru_with_prediction") != 0;
}

static void candidate_add(struct pred_tune *t, struct pred_tune_setting s)
{
    if (t->count > 0 && !serves(t, &s)) return;
    if (t->count > 0 && !decays(t, s.policy)) s.half_life_tokens = half_life_idle();
    for (uint32_t c = 0; c < t->count; c++) {
        if (same(&t->tries[c].setting, &s)) return;
    }
    MUST(t->count < PRED_TUNE_CANDIDATES_MAX);
    t->tries[t->count++].setting = s;
}

/* -------------------------------------------------------------------------------- the rounds -- */

/* What a round takes, in the units of the progress. */
static double work_of(const struct pred_tune *t, enum pred_tune_part part, uint64_t steps_max,
                      uint32_t cases, uint32_t predictors)
{
    if (!t->args->machine) return cases;
    return pred_tune_clock_work(t, part, steps_max, cases, predictors);
}

static bool is_long(const struct pred_tune *t)
{
    uint64_t steps = t->steps[PRED_TUNE_QUARTER_0] + t->steps[PRED_TUNE_QUARTER_1];
    return t->args->machine && steps > 3 * COARSE_STEPS;
}

static int compare_tries(const void *a, const void *b)
{
    const struct pred_tune_try *const *x = a, *const *y = b;
    if ((*x)->sum.cost != (*y)->sum.cost) return (*x)->sum.cost < (*y)->sum.cost ? -1 : 1;
    return *x < *y ? -1 : *x > *y;
}

/* Leaves the first candidate and the best of the others by their first steps. */
static int shortlist(struct pred_tune *t, const char *what, struct base_err *err)
{
    struct pred_tune_try *order[PRED_TUNE_CANDIDATES_MAX];
    struct pred_tune_setting best[BEST + 1];
    uint32_t n = 0;
    if (!is_long(t) || t->count <= BEST + 1) return 0;
    int rc = pred_tune_evaluate(t, PRED_TUNE_TUNED, COARSE_STEPS, what, err);
    best[0] = t->tries[0].setting;
    for (uint32_t c = 1; c < t->count; c++) {
        if (t->tries[c].decide) order[n++] = &t->tries[c];
    }
    if (n > 0) qsort(order, n, sizeof(struct pred_tune_try *), compare_tries);
    if (n > BEST) n = BEST;
    for (uint32_t i = 0; i < n; i++) best[i + 1] = order[i]->setting;
    t->result->candidates += t->count;
    pred_tune_tries_end(t);
    t->count = 0;
    for (uint32_t i = 0; i <= n; i++) candidate_add(t, best[i]);
    return rc;
}

/* Tries what was added and leaves the one in `best` that costs least; of equals the one added
 * first, so that nothing is changed for nothing. */
static int choose(struct pred_tune *t, struct pred_tune_setting *best, const char *what,
                  struct base_err *err)
{
    uint32_t winner = 0;
    uint64_t listed = t->result->candidates;
    int rc = shortlist(t, what, err);
    if (rc == 0) rc = pred_tune_evaluate(t, PRED_TUNE_TUNED, 0, what, err);
    for (uint32_t c = 1; rc == 0 && c < t->count; c++) {
        const struct pred_tune_try *try = &t->tries[c];
        if (try->decide && try->sum.cost < t->tries[winner].sum.cost) winner = c;
    }
    if (rc == 0) *best = t->tries[winner].setting;
    if (t->result->candidates == listed) t->result->candidates += t->count;
    pred_tune_tries_end(t);
    t->count = 0;
    return rc;
}

/* -- what each tries beside the best so far ---------------------------------------------------- */

static void policy_add(struct pred_tune *t, const struct pred_tune_setting *best, const char *name)
{
    struct pred_tune_setting s = *best;
    turn_text(s.policy, name);
    candidate_add(t, s);
    for (size_t h = 0; tier_policy_find(name)->decayed && h < COUNT(half_lives); h++) {
        s.half_life_tokens = half_lives[h];
        candidate_add(t, s);
    }
}

/* The base's own first: where nobody hints some policies are one. */
static void policies_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    const char *name;
    policy_add(t, best, best->policy);
    for (size_t i = 0; (name = tier_policy_name(i)) != NULL; i++) {
        /* pinned keeps a saved set, and what is tried here begins empty. */
        if (tier_policy_find(name)->replay_only || strcmp(name, "pinned") == 0) continue;
        policy_add(t, best, name);
    }
}

static void quotas_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = *best;
    s.adaptive = !s.adaptive;
    candidate_add(t, s);
}

static void shares_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = *best;
    for (size_t i = 0; t->parts.prefill_tokens > 0 && i < COUNT(shares); i++) {
        s.prefill_share = shares[i];
        candidate_add(t, s);
    }
}

/* Each with the policy that was best, and with the one that was made for it. */
static void predictors_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    static const char *const policies[] = { "lru_with_prediction", "lfu" };
    const char *name;
    struct pred_tune_setting s = *best;
    if (!t->args->machine) return;
    for (size_t i = 0; (name = pred_predictor_name(i)) != NULL; i++) {
        const struct pred_predictor_ops *ops = pred_predictor_find(name);
        bool none = strcmp(name, "none") == 0;
        if (ops->replay_only || ops->live_only) continue;
        s = *best;
        turn_text(s.predictor, none ? "" : name);
        candidate_add(t, s);
        turn_text(s.policy, policies[none]);
        if (!decays(t, best->policy)) s.half_life_tokens = half_life_idle();
        candidate_add(t, s);
    }
}

static bool prefetches(const struct pred_tune *t, const struct pred_tune_setting *s)
{
    uint32_t per_layer;
    return pred_tune_per_layer(t, s, &per_layer) && per_layer > 0;
}

static void leads_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = *best;
    for (size_t i = 0; prefetches(t, best) && i < COUNT(leads); i++) {
        s.lead = leads[i];
        if (s.lead >= t->args->advice.lead_min && s.lead < t->header->layers) candidate_add(t, s);
    }
}

/* More than there are slots for is what there are slots for. */
static void depths_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = *best;
    uint32_t now, then;
    if (!pred_tune_per_layer(t, best, &now) || now == 0) return;
    for (size_t i = 0; i < COUNT(per_layers); i++) {
        s.per_layer = per_layers[i];
        if (pred_tune_per_layer(t, &s, &then) && then == s.per_layer && then != now) {
            candidate_add(t, s);
        }
    }
}

static void budgets_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = *best;
    for (size_t i = 0; prefetches(t, best) && i < COUNT(bandwidth_shares); i++) {
        s.bandwidth_share = bandwidth_shares[i];
        candidate_add(t, s);
    }
}

/* What a server counts as one expert under way. */
static uint64_t expert_room(const struct pred_tune *t)
{
    const struct pred_machine *m = t->args->machine;
    uint64_t most = t->header->slot_bytes;
    if (m->read_bytes > most) most = m->read_bytes;
    if (m->expert_bytes > most && !t->header->expert_bytes) most = m->expert_bytes;
    for (uint32_t l = 0; t->header->expert_bytes && l < t->header->layers; l++) {
        if (t->header->expert_bytes[l] > most) most = t->header->expert_bytes[l];
    }
    return most;
}

static void inflights_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = *best;
    uint64_t each = t->args->machine ? expert_room(t) : 0;
    for (size_t i = 0; prefetches(t, best) && i < COUNT(experts_inflight); i++) {
        s.inflight = experts_inflight[i] * each;
        if (each > 0 && s.inflight / each != best->inflight / each) candidate_add(t, s);
    }
}

static void finer_half_lives_add(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_setting s = *best;
    if (!tier_policy_find(best->policy)->decayed || best->half_life_tokens <= 0) return;
    for (size_t i = 0; i < COUNT(factors); i++) {
        s.half_life_tokens = fmax(1, round(best->half_life_tokens * factors[i]));
        candidate_add(t, s);
    }
}

/* cases, predictors: as many as there may be, for the plan. */
static const struct {
    void (*add)(struct pred_tune *t, const struct pred_tune_setting *best);
    const char *what;
    uint32_t cases, predictors;
    bool many, on_clock;
} rounds[] = {
    { policies_add, "trying policies", 46, 0, true, false },
    { quotas_add, "trying quotas", 2, 0, false, false },
    { shares_add, "trying prefill shares", 6, 0, false, false },
    { predictors_add, "trying predictors", 15, 6, true, true },
    { leads_add, "trying leads", 4, 4, false, true },
    { depths_add, "trying depths", 6, 1, false, true },
    { budgets_add, "trying budgets", 5, 1, false, true },
    { inflights_add, "trying bytes under way", 6, 1, false, true },
    { finer_half_lives_add, "trying half-lives", 9, 1, false, false },
};

static double round_work(const struct pred_tune *t, size_t i)
{
    uint32_t cases = rounds[i].cases, predictors = rounds[i].predictors;
    if (rounds[i].on_clock && !t->args->machine) return 0;
    if (!rounds[i].on_clock) predictors = t->args->base.predictor[0] || predictors > 0;
    if (!rounds[i].many || !is_long(t)) {
        return work_of(t, PRED_TUNE_TUNED, 0, cases, predictors);
    }
    return work_of(t, PRED_TUNE_TUNED, COARSE_STEPS, cases, predictors) +
           work_of(t, PRED_TUNE_TUNED, 0, BEST + 1, predictors < 3 ? predictors : 3);
}

static void plan(struct pred_tune *t)
{
    for (size_t i = 0; i < COUNT(rounds); i++) t->work_planned += round_work(t, i);
    for (int part = PRED_TUNE_TUNED; part <= PRED_TUNE_HELD_OUT; part++) {
        t->work_planned += work_of(t, (enum pred_tune_part)part, 0, 6, t->args->machine ? 2 : 0);
    }
}

static int search(struct pred_tune *t, struct pred_tune_setting *best, struct base_err *err)
{
    int rc = 0;
    *best = t->args->base;
    plan(t);
    for (size_t i = 0; rc == 0 && i < COUNT(rounds); i++) {
        double left = t->work_planned - t->work_done - round_work(t, i);
        candidate_add(t, *best);
        rounds[i].add(t, best);
        if (t->count > 1) rc = choose(t, best, rounds[i].what, err);
        t->count = 0;
        t->work_planned = t->work_done + left;
    }
    return rc;
}

/* ----------------------------------------------------------------------------- the judgement -- */

static void path_make(struct pred_tune *t, const struct pred_tune_setting *best)
{
    struct pred_tune_result *r = t->result;
    struct pred_tune_setting s = t->args->base;
    r->path[r->path_count++] = (struct pred_tune_step){ .setting = s };
    for (int knob = 0; knob < KNOB_COUNT; knob++) {
        if (!turn(&s, best, (enum knob)knob)) continue;
        r->path[r->path_count++] = (struct pred_tune_step){ .knob = knob_names[knob],
                                                            .setting = s };
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Sequences drawn with replacement, the same ones for both settings. */
static int bootstrap(struct pred_tune *t, const double *base, const double *won,
                     struct base_err *err)
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

/* A step between that no server would take (adaptive quotas before a policy per layer) changes
 * nothing yet. */
static void path_fill(struct pred_tune *t, enum pred_tune_part part)
{
    struct pred_tune_result *r = t->result;
    for (uint32_t i = 0; i < r->path_count; i++) {
        struct pred_tune_try *try = &t->tries[i];
        if (i > 0 && !try->decide) try->sum = t->tries[i - 1].sum;
        *(part == PRED_TUNE_TUNED ? &r->path[i].tuned : &r->path[i].held_out) = try->sum;
    }
}

static int judge(struct pred_tune *t, const struct pred_tune_setting *best, struct base_err *err)
{
    struct pred_tune_result *r = t->result;
    path_make(t, best);
    for (int part = PRED_TUNE_TUNED; part <= PRED_TUNE_HELD_OUT; part++) {
        t->count = r->path_count;
        for (uint32_t i = 0; i < t->count; i++) t->tries[i].setting = r->path[i].setting;
        int rc = pred_tune_evaluate(t, (enum pred_tune_part)part, 0,
                                    part == PRED_TUNE_TUNED ? "checking on the tuned half"
                                                            : "checking on the held-out half",
                                    err);
        if (rc == 0) path_fill(t, (enum pred_tune_part)part);
        pred_tune_tries_end(t);
        if (rc < 0) return rc;
    }
    const struct pred_tune_try *base = &t->tries[0], *won = &t->tries[r->path_count - 1];
    if (base->sum.cost > 0) r->saved = 1 - won->sum.cost / base->sum.cost;
    int rc = bootstrap(t, base->cost, won->cost, err);
    r->better = rc == 0 && r->path_count > 1 && r->saved > 0 && r->saved_low > 0;
    return rc;
}

/* ------------------------------------------------------------------------------------ set-up -- */

static int base_check(const struct pred_tune *t, struct base_err *err)
{
    const struct pred_tune_setting *base = &t->args->base;
    if (!tier_policy_find(base->policy)) {
        return base_err_set(err, BASE_ECONFIG, "no policy is called \"%s\"", base->policy);
    }
    const struct pred_predictor_ops *ops =
        base->predictor[0] ? pred_predictor_find(base->predictor) : NULL;
    if (base->predictor[0] && (!ops || ops->replay_only)) {
        return base_err_set(err, BASE_ECONFIG, "no predictor is called \"%s\"", base->predictor);
    }
    if (ops && ops->live_only) {
        return base_err_set(err, BASE_ECONFIG, "predictor.kind: %s needs hidden states, which no "
                            "trace holds: begin with another one, blend or none", base->predictor);
    }
    return 0;
}

static int prepare(struct pred_tune *t, struct base_err *err)
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
    int rc = base_check(t, err);
    if (rc < 0) return rc;
    t->result->on_clock = t->args->machine != NULL;
    t->result->known_bytes = h->expert_bytes || h->slot_bytes > 0;
    t->found = calloc(h->experts, sizeof t->found[0]);
    if (!t->found) return base_err_set(err, -ENOMEM, "no memory to tune");
    rc = pred_union_init(&t->joined, h->experts, h->top_k);
    if (rc < 0) return base_err_set(err, rc, "no memory to tune");
    rc = pred_tune_parts_init(&t->parts, t->args, err);
    if (rc < 0) return rc;
    t->result->sequences = t->parts.sequences;
    t->result->held_out_sequences = t->parts.sequences / 2;
    t->result->shared_text = t->parts.shared_text;
    if (t->parts.sequences >= 2) return t->args->machine ? pred_tune_clock_begin(t, err) : 0;
    return base_err_set(err, BASE_ECONFIG,
                        "%" PRIu32 " sequence in all: at least 2 are needed, one to tune on and "
                        "one to hold out",
                        t->parts.sequences);
}

int pred_tune_run(const struct pred_tune_args *args, struct pred_tune_result *result,
                  struct base_err *err)
{
    struct pred_tune_setting best;
    struct pred_tune *t = calloc(1, sizeof *t);
    if (!t) return base_err_set(err, -ENOMEM, "no memory to tune");
    memset(result, 0, sizeof *result);
    t->args = args;
    t->result = result;
    t->header = pred_trace_reader_header(args->traces[0]);
    int rc = prepare(t, err);
    if (rc == 0) rc = search(t, &best, err);
    if (rc == 0) rc = judge(t, &best, err);
    for (uint32_t c = 0; c < PRED_TUNE_CANDIDATES_MAX; c++) {
        tier_decide_destroy(t->tries[c].decide);
        free(t->tries[c].cost);
    }
    pred_tune_clock_end(t);
    pred_union_fini(&t->joined);
    pred_tune_parts_fini(&t->parts);
    free(t->found);
    free((void *)t->step.phases);
    free((void *)t->step.tokens);
    free((void *)t->step.expert_ids);
    free((void *)t->step.expert_weights);
    free(t->numbers);
    free(t);
    return rc;
}
