#include "predictor/timed_run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "predictor/compose.h"
#include "predictor/feed.h"
#include "predictor/future.h"
#include "tiering/wave.h"

enum { PROGRESS_EVERY = 256 }; /* steps */

/* One acquire of a step, as all cases see it. */
struct group {
    uint32_t layer, count;
    enum tier_phase phase;
    const uint32_t *ids;
    uint32_t *rows; /* [experts] tokens that use it */
};

struct run {
    struct pred_trace_reader *reader;
    const struct pred_trace_header *header;
    const struct pred_machine *machine;
    const struct pred_timed_case *cases;
    struct pred_timed_result *results;
    uint32_t count;
    struct pred_timed **timed;
    uint64_t *expert_bytes, *read_bytes; /* [layers] */
    struct pred_union joined;
    uint32_t *rows, *pending, *place; /* [experts] */
    uint64_t *begin_ns;       /* [count] */
    struct pred_predictor *predictor;       /* NULL when nothing is hinted */
    struct pred_adviser *adviser;
    const struct tier_hint *hints;          /* that the running layer gives */
    uint32_t hint_count;
    struct pred_future *future;
    uint64_t steps_max;
    const struct pred_replay_progress *progress;
};

static bool wants_future(const struct pred_timed_case *c)
{
    return strncmp(c->policy, "belady", 6) == 0;
}

/* -- one layer of one case -------------------------------------------------------------------- */

static uint64_t expert_ns(const struct run *run, const struct pred_timed *t,
                          const struct group *g, uint32_t id)
{
    bool warm = pred_timed_in_place(t, g->layer, id);
    return pred_machine_compute_ns(run->machine, warm ? PRED_PART_WARM_EXPERT : PRED_PART_EXPERT,
                                   run->expert_bytes[g->layer], g->rows[id]);
}

static void hint(const struct run *run, uint32_t c)
{
    if (run->cases[c].hinted && run->hint_count > 0) {
        pred_timed_hint(run->timed[c], run->hints, run->hint_count);
    }
}

/* As they arrive, until those before `end` are done; what arrives during a piece of compute is in
 * the next piece. `left` experts of run->pending are held and not computed, in the order in which
 * they were granted; returns how many are then. */
static uint32_t serve_decode(struct run *run, struct pred_timed *t, const struct group *g,
                             uint32_t end, uint32_t left)
{
    while (left > 0 && run->place[run->pending[0]] < end) {
        uint32_t ready = 0, kept = 0;
        for (uint32_t i = 0; i < left; i++)
            ready += pred_timed_ready(t, g->layer, run->pending[i]);
        if (ready == 0) {
            pred_timed_wait(t, g->layer, run->pending, left);
            continue;
        }
        uint64_t ns = 0;
        for (uint32_t i = 0; i < left; i++) {
            uint32_t id = run->pending[i];
            if (pred_timed_ready(t, g->layer, id)) {
                ns += expert_ns(run, t, g, id);
            } else {
                run->pending[kept++] = id;
            }
        }
        left = kept;
        pred_timed_compute(t, g->layer, ns);
    }
    return left;
}

/* In order. */
static void serve_prefill(struct run *run, struct pred_timed *t, const struct group *g,
                          const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        while (!pred_timed_ready(t, g->layer, ids[i]))
            pred_timed_wait(t, g->layer, &ids[i], 1);
        pred_timed_compute(t, g->layer, expert_ns(run, t, g, ids[i]));
    }
}

/* `first`: the layer's first acquire, behind which its hints go out. */
static void serve(struct run *run, uint32_t c, const struct group *g, uint64_t shared_ns,
                  bool first)
{
    struct pred_timed *t = run->timed[c];
    uint32_t done = 0, held = 0, pending = 0;
    while (done < g->count || held > 0) {
        uint32_t k = 0;
        if (done < g->count) {
            k = pred_timed_acquire(t, g->layer, g->ids + done, g->count - done, g->phase);
            MUST(k > 0 || held > 0);
        }
        if (done == 0 && first) {
            hint(run, c);
            pred_timed_compute(t, g->layer, shared_ns);
        }
        const uint32_t *granted = g->ids + done;
        done += k;
        held += k;
        uint32_t goes = tier_wave_goes(g->phase, held, done < g->count), from = done - held;
        if (g->phase == TIER_DECODE) {
            for (uint32_t i = 0; i < k; i++) {
                run->place[granted[i]] = done - k + i;
                run->pending[pending++] = granted[i];
            }
            pending = serve_decode(run, t, g, from + goes, pending);
        } else {
            serve_prefill(run, t, g, granted, k);
        }
        pred_timed_release(t, g->layer, g->ids + from, goes);
        held -= goes;
    }
}

/* -- steps ------------------------------------------------------------------------------------ */

/* The distinct experts of a layer's tokens of one phase, and how many tokens use each. */
static bool group_make(struct run *run, const struct pred_step *step, uint32_t layer,
                       enum tier_phase phase, struct group *g)
{
    uint32_t top_k = run->header->top_k;
    *g = (struct group){ .layer = layer, .phase = phase, .rows = run->rows };
    g->count = pred_union_of(&run->joined, step, layer, phase);
    g->ids = run->joined.ids;
    if (g->count == 0) return false;
    memset(run->rows, 0, run->header->experts * sizeof run->rows[0]);
    for (uint32_t i = 0; i < step->token_count; i++) {
        const uint32_t *ids = step->expert_ids + ((size_t)layer * step->token_count + i) * top_k;
        if (step->phases[i] != phase || ids[0] == PRED_NO_EXPERT) continue;
        for (uint32_t k = 0; k < top_k; k++)
            run->rows[ids[k]]++;
    }
    return true;
}

static void step_layer(struct run *run, const struct pred_step *step, uint32_t layer)
{
    static const enum tier_phase order[] = { TIER_DECODE, TIER_PREFILL };
    const struct pred_machine *m = run->machine;
    uint64_t before_ns = pred_machine_compute_ns(m, PRED_PART_LAYER, 0, step->token_count);
    uint64_t shared_ns = pred_machine_compute_ns(m, PRED_PART_SHARED, 0, step->token_count);
    bool first = true;
    for (uint32_t c = 0; c < run->count; c++) pred_timed_compute(run->timed[c], layer, before_ns);
    if (run->adviser) {
        const uint32_t *ids =
            step->expert_ids + (size_t)layer * step->token_count * run->header->top_k;
        run->hint_count = pred_adviser_routed(run->adviser, layer, ids, &run->hints);
    }
    for (int p = 0; p < 2; p++) {
        struct group g;
        if (!group_make(run, step, layer, order[p], &g)) continue;
        if (run->future) pred_future_load(run->future, layer, g.ids, g.count);
        for (uint32_t c = 0; c < run->count; c++) serve(run, c, &g, shared_ns, first);
        first = false;
    }
    for (uint32_t c = 0; c < run->count && first; c++) {
        pred_timed_compute(run->timed[c], layer, shared_ns);
    }
}

static void step_count(struct pred_timed_result *r, const struct pred_step *step, uint64_t ns)
{
    uint64_t decode = 0;
    for (uint32_t i = 0; i < step->token_count; i++)
        decode += step->phases[i] == TIER_DECODE;
    r->steps++;
    r->decode_tokens += decode;
    r->prefill_tokens += step->token_count - decode;
    r->time_ns += ns;
    if (decode == step->token_count) {
        r->decode_steps_ns += ns;
        r->decode_steps_tokens += decode;
    }
}

static void step_run(struct run *run, const struct pred_step *step)
{
    uint64_t rest_ns = pred_machine_compute_ns(run->machine, PRED_PART_STEP, 0, step->token_count);
    bool prompt = memchr(step->phases, TIER_PREFILL, step->token_count) != NULL;
    for (uint32_t c = 0; c < run->count; c++) {
        run->begin_ns[c] = pred_timed_now(run->timed[c]);
        if (prompt) pred_timed_step_prompt(run->timed[c]);
    }
    if (run->adviser) {
        pred_adviser_foretell(run->adviser, step->expert_ids);
        run->hint_count = pred_adviser_begin(run->adviser, step->seqs, step->tokens, step->phases,
                                             step->token_count, &run->hints);
        for (uint32_t c = 0; c < run->count; c++) hint(run, c);
    }
    for (uint32_t l = 0; l < run->header->layers; l++) step_layer(run, step, l);
    if (run->adviser) pred_adviser_end(run->adviser, PRED_LEARN);
    for (uint32_t c = 0; c < run->count; c++) {
        pred_timed_compute(run->timed[c], UINT32_MAX, rest_ns);
        pred_timed_step_end(run->timed[c]);
        uint64_t ns = pred_timed_now(run->timed[c]) - run->begin_ns[c];
        step_count(&run->results[c], step, ns);
        if (run->cases[c].step_done) run->cases[c].step_done(run->cases[c].context, step, ns);
    }
}

static void report(const struct run *run, const char *what)
{
    struct pred_trace_health health;
    if (!run->progress) return;
    pred_trace_reader_health(run->reader, &health);
    run->progress->report(run->progress->context, what, health.read_bytes, health.file_bytes);
}

static void step_recorded(struct pred_timed_summary *summary, const struct pred_step *step)
{
    for (uint32_t i = 0; i < step->token_count; i++) {
        if (step->phases[i] != TIER_DECODE) return;
    }
    if (step->step_ns == 0) return;
    summary->live_steps_ns += step->step_ns;
    summary->live_steps_tokens += step->token_count;
}

/* Reads all steps; with `learn` into the future, else through the cases. */
static int pass(struct run *run, bool future, struct pred_timed_summary *summary,
                struct base_err *err)
{
    const unsigned want = 1 << PRED_ITEM_STEP | 1 << PRED_ITEM_GAP;
    struct pred_trace_item item;
    uint64_t seen = 0;
    int rc;
    while ((rc = pred_trace_reader_next(run->reader, want, &item, err)) > 0) {
        if (run->steps_max > 0 && seen == run->steps_max) return 0;
        if (item.kind == PRED_ITEM_GAP) {
            summary->gaps += !future;
            continue;
        }
        if (!future) {
            step_run(run, &item.step);
            step_recorded(summary, &item.step);
        } else {
            static const enum tier_phase order[] = { TIER_DECODE, TIER_PREFILL };
            for (uint32_t i = 0; i < 2 * run->header->layers && rc >= 0; i++) {
                struct group g;
                if (!group_make(run, &item.step, i / 2, order[i % 2], &g)) continue;
                rc = pred_future_add(run->future, g.layer, g.ids, g.count, err);
            }
            if (rc < 0) return rc;
        }
        if (++seen % PROGRESS_EVERY == 0) report(run, future ? "looking ahead" : "replaying");
    }
    return rc;
}

/* -- set-up ----------------------------------------------------------------------------------- */

static int sizes_fill(struct run *run, struct base_err *err)
{
    const struct pred_trace_header *h = run->header;
    const struct pred_machine *m = run->machine;
    for (uint32_t l = 0; l < h->layers; l++) {
        uint64_t bytes = h->expert_bytes ? h->expert_bytes[l] : 0;
        if (bytes == 0) bytes = m->expert_bytes;
        if (bytes == 0) bytes = h->slot_bytes; /* a server's trace: with its pads */
        if (bytes == 0) {
            return base_err_set(err, BASE_ECONFIG,
                                "neither the trace nor the machine's "
                                "description says how many bytes an expert of layer %" PRIu32
                                " has: set model.expert_bytes",
                                h->first_moe_layer + l);
        }
        run->expert_bytes[l] = bytes;
        run->read_bytes[l] = m->read_bytes > 0 ? m->read_bytes : bytes;
    }
    return 0;
}

static int case_create(struct run *run, uint32_t i, struct base_err *err)
{
    const struct pred_timed_case *c = &run->cases[i];
    const struct pred_trace_header *h = run->header;
    struct pred_timed_config config = {
        .machine = run->machine,
        .decide = {
            .layers = h->layers, .experts = h->experts, .top_k = h->top_k,
            .tier_count = c->tier_count, .inclusive = c->inclusive, .adaptive = c->adaptive,
            .half_life_tokens = c->half_life_tokens, .prefill_share = c->prefill_share,
            .prefetch = c->prefetch, .warm_compute = c->warm_compute,
            .next_use = pred_future_next, .next_use_context = run->future,
        },
        .expert_bytes = run->expert_bytes, .read_bytes = run->read_bytes,
        .prefetch_inflight = c->prefetch_inflight, .prefetch_per_layer = c->prefetch_per_layer,
        .governor = c->governor,
        .start_full = c->start_full,
    };
    if (c->prefetch && c->slots[0] < (uint64_t)h->layers * (h->top_k + c->prefetch_per_layer)) {
        return base_err_set(err, BASE_ECONFIG, "prefetch of %" PRIu32 " experts a layer beside its "
                            "top_k %" PRIu32 " needs %" PRIu64 " slots, but there are %" PRIu64
                            ": set prefetch.experts_per_layer_max lower, or give it more",
                            c->prefetch_per_layer, h->top_k,
                            (uint64_t)h->layers * (h->top_k + c->prefetch_per_layer), c->slots[0]);
    }
    if (c->tier_count == 2 && run->machine->copy_bandwidth == 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "the machine has no device (copy.bandwidth is 0): "
                            "hbm cannot be tried there");
    }
    const struct pred_machine *m = run->machine;
    if (c->warm_compute && !m->cpu_bandwidth && m->cpu_rate <= 0 && !m->cpu_expert_time) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.warm_experts: compute cannot be tried: the machine's "
                            "description does not say what an expert takes on the CPU; set "
                            "cpu.bandwidth or cpu.expert_time");
    }
    for (uint32_t t = 0; t < c->tier_count; t++) {
        config.decide.tiers[t].slots = c->slots[t];
        snprintf(config.decide.tiers[t].policy, sizeof config.decide.tiers[t].policy, "%s",
                 t > 0 && c->policy_below[0] ? c->policy_below : c->policy);
    }
    return pred_timed_create(&run->timed[i], &config, err);
}

static int predictor_make(struct pred_predictor **out, const struct pred_timed_advice *advice,
                          const struct pred_trace_header *h, struct base_err *err)
{
    struct pred_shape shape = { .layers = h->layers, .experts = h->experts, .top_k = h->top_k,
                                .tokens_max = advice->tokens_max };
    int rc = pred_predictor_create(out, advice->predictor, &shape);
    if (rc == -ENOENT) {
        return base_err_set(err, BASE_ECONFIG, "no predictor is called \"%s\"", advice->predictor);
    }
    if (rc == 0 && (*out)->ops->live_only) {
        return base_err_set(err, BASE_ECONFIG, "%s needs hidden states, which no trace holds: take "
                            "another predictor.kind, such as blend",
                            advice->predictor);
    }
    return rc < 0 ? base_err_set(err, rc, "cannot make the predictor: %s", base_err_name(rc)) : 0;
}

static int learn(struct pred_adviser *adviser, struct pred_trace_reader *from,
                 struct base_err *err)
{
    const struct pred_trace_header *h = pred_trace_reader_header(from);
    struct pred_trace_item item;
    const struct tier_hint *unused;
    int rc;
    while ((rc = pred_trace_reader_next(from, PRED_WANT_STEPS, &item, err)) > 0) {
        const struct pred_step *step = &item.step;
        pred_adviser_foretell(adviser, step->expert_ids);
        pred_adviser_begin(adviser, step->seqs, step->tokens, step->phases, step->token_count,
                           &unused);
        for (uint32_t l = 0; l < h->layers; l++) {
            pred_adviser_routed(adviser, l,
                                step->expert_ids + (size_t)l * step->token_count * h->top_k,
                                &unused);
        }
        pred_adviser_end(adviser, PRED_LEARN);
    }
    return rc;
}

int pred_timed_learn(struct pred_predictor **out, const struct pred_timed_advice *advice,
                     struct pred_trace_reader *const *traces, uint32_t trace_count,
                     struct base_err *err)
{
    struct pred_adviser *adviser = NULL;
    *out = NULL;
    int rc = predictor_make(out, advice, pred_trace_reader_header(traces[0]), err);
    if (rc == 0) rc = pred_adviser_create(&adviser, *out, &advice->options);
    for (uint32_t i = 0; rc == 0 && i < trace_count; i++) {
        rc = learn(adviser, traces[i], err);
        if (rc == 0) rc = pred_trace_reader_rewind(traces[i], err);
    }
    pred_adviser_destroy(adviser);
    if (rc == 0) return 0;
    pred_predictor_destroy(*out);
    *out = NULL;
    return base_err_set(err, rc, "cannot learn from the trace: %s", base_err_name(rc));
}

/* The predictor, with what it learns from the other trace. */
static int advice_prepare(struct run *run, const struct pred_timed_advice *advice,
                          struct base_err *err)
{
    const struct pred_trace_header *h = run->header;
    if (advice->predictor[0] == '\0') return 0;
    int rc = predictor_make(&run->predictor, advice, h, err);
    if (rc == 0 && advice->learned) {
        pred_predictor_copy(run->predictor, advice->learned);
    }
    if (rc == 0) rc = pred_adviser_create(&run->adviser, run->predictor, &advice->options);
    if (rc < 0) return base_err_set(err, rc, "cannot make the predictor: %s", base_err_name(rc));
    if (!advice->train) return 0;
    const struct pred_trace_header *t = pred_trace_reader_header(advice->train);
    if (t->layers != h->layers || t->experts != h->experts || t->top_k != h->top_k) {
        return base_err_set(err, BASE_EMISMATCH, "the trace to learn from is of another model");
    }
    return learn(run->adviser, advice->train, err);
}

static int prepare(struct run *run, struct pred_timed_summary *summary, struct base_err *err)
{
    const struct pred_trace_header *h = run->header;
    int rc = 0;
    run->timed = calloc(run->count, sizeof run->timed[0]);
    run->begin_ns = calloc(run->count, sizeof run->begin_ns[0]);
    run->expert_bytes = calloc(h->layers, sizeof run->expert_bytes[0]);
    run->read_bytes = calloc(h->layers, sizeof run->read_bytes[0]);
    run->rows = calloc(h->experts, sizeof run->rows[0]);
    run->pending = calloc(h->experts, sizeof run->pending[0]);
    run->place = calloc(h->experts, sizeof run->place[0]);
    if (!run->timed || !run->begin_ns || !run->expert_bytes || !run->read_bytes || !run->rows ||
        !run->pending || !run->place || pred_union_init(&run->joined, h->experts, h->top_k) < 0) {
        return base_err_set(err, -ENOMEM, "no memory to replay in time");
    }
    rc = sizes_fill(run, err);
    for (uint32_t i = 0; i < run->count && rc >= 0; i++) {
        if (!wants_future(&run->cases[i]) || run->future) continue;
        rc = pred_future_create(&run->future, h->layers, h->experts, err);
    }
    for (uint32_t i = 0; i < run->count && rc >= 0; i++)
        rc = case_create(run, i, err);
    if (rc < 0 || !run->future) return rc;
    rc = pass(run, true, summary, err);
    if (rc >= 0) rc = pred_trace_reader_rewind(run->reader, err);
    pred_future_begin(run->future);
    return rc;
}

static int finish(struct run *run)
{
    for (uint32_t i = 0; i < run->count; i++) {
        struct pred_timed_result *r = &run->results[i];
        size_t bytes = run->header->layers * sizeof r->layers[0];
        r->stats = *pred_timed_stats_get(run->timed[i]);
        r->layers = malloc(bytes);
        if (!r->layers) return -ENOMEM;
        memcpy(r->layers, pred_timed_layers(run->timed[i]), bytes);
    }
    return 0;
}

int pred_timed_run(const struct pred_timed_args *args, struct pred_timed_result *results,
                   struct pred_timed_summary *summary, struct base_err *err)
{
    struct run run = { .reader = args->reader,
                       .header = pred_trace_reader_header(args->reader),
                       .machine = args->machine,
                       .cases = args->cases,
                       .results = results,
                       .count = args->count,
                       .steps_max = args->steps_max,
                       .progress = args->progress };
    memset(results, 0, run.count * sizeof results[0]);
    *summary = (struct pred_timed_summary){
        .composed = pred_trace_composed(run.header),
        .sampled = run.header->sample < 1,
    };
    int rc = prepare(&run, summary, err);
    if (rc >= 0) rc = advice_prepare(&run, &args->advice, err);
    if (rc >= 0) rc = pass(&run, false, summary, err);
    if (rc >= 0) rc = finish(&run);
    for (uint32_t i = 0; run.timed && i < run.count; i++) pred_timed_destroy(run.timed[i]);
    pred_adviser_destroy(run.adviser);
    pred_predictor_destroy(run.predictor);
    free(run.timed);
    free(run.begin_ns);
    free(run.expert_bytes);
    free(run.read_bytes);
    free(run.rows);
    free(run.pending);
    free(run.place);
    pred_union_fini(&run.joined);
    pred_future_destroy(run.future);
    if (rc < 0) base_err_set(err, rc, "cannot replay in time: %s", base_err_name(rc));
    return rc < 0 ? rc : 0;
}

void pred_timed_results_fini(struct pred_timed_result *results, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        free(results[i].layers);
        results[i].layers = NULL;
    }
}

uint64_t pred_timed_bound_ns(const struct pred_machine *m, const struct pred_timed_result *r)
{
    const struct pred_timed_stats *s = &r->stats;
    double read = (double)(s->demand_bytes + s->prefetch_bytes) * 1e9 / (double)m->nvme_bandwidth;
    double copy =
        m->copy_bandwidth ? (double)s->copy_up_bytes * 1e9 / (double)m->copy_bandwidth : 0;
    uint64_t longest = (uint64_t)(read > copy ? read : copy);
    return longest > s->compute_ns ? longest : s->compute_ns;
}
