#include "engine/advice.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/must.h"
#include "base/str.h"
#include "engine/ranks.h"
#include "predictor/adviser.h"

enum { ADVICE_MAGIC = 0xadf1ce00, KIND_NONE = 0, AHEAD_MAX = 4, AHEAD_AUTO };
_Static_assert((int)AHEAD_MAX <= (int)PRED_AHEAD_MAX, "the adviser takes as many");

#define BASE_OPTION_OWNER struct eng_advice_config
const struct base_option eng_advice_options[] = { ENG_ADVICE_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t eng_advice_option_count = sizeof eng_advice_options / sizeof eng_advice_options[0];

#define BASE_METRIC_OWNER struct eng_advice_metrics
const struct base_metric eng_advice_metrics[] = { ENG_ADVICE_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t eng_advice_metric_count = sizeof eng_advice_metrics / sizeof eng_advice_metrics[0];

struct eng_advice {
    uint32_t magic;
    struct eng_advice_config config;
    struct tier *tier;
    const struct eng_placement *placement;      /* NULL: this rank holds every expert */
    uint32_t rank;
    struct tier_hint *own;              /* [layers x hints_max]: of those given, this rank's */
    struct pred_predictor *predictor;
    struct pred_adviser *adviser;
    char note[400];
    struct eng_lookahead_room room;
    bool rests;                         /* in this step: there is nothing to gain */
    uint64_t predict_ns, learn_ns, step_ns, ahead_ns;
    /* The saver: sleeps until `wanted`, and owns the predictor's state and `unsaved` while
     * `saving`. */
    pthread_t saver;
    sem_t wanted;
    bool saver_runs;
    atomic_bool saving, ending;
    atomic_ullong saves, failed_saves;
    uint64_t saved_ns;
    bool unsaved;                       /* learned since the last save that came off */
    /* For other threads. */
    pthread_mutex_t published_lock;
    struct eng_advice_metrics published;
};

/* -------------------------------------------------------------------------------- settings -- */

static void kind_name(const struct eng_advice_config *config, char *to, size_t size)
{
    for (size_t i = 0; i < eng_advice_option_count; i++) {
        if (strcmp(eng_advice_options[i].key, "predictor.kind") != 0) continue;
        base_option_choice(&eng_advice_options[i], config->kind, to, size);
    }
}

static bool hears_gates(const char *kind)
{
    return strcmp(kind, "lookahead") == 0 || strcmp(kind, "blend") == 0;
}

uint32_t eng_advice_ahead(const struct eng_advice_config *config, bool card)
{
    char kind[32];
    if (config->ahead != AHEAD_AUTO) return (uint32_t)config->ahead;
    kind_name(config, kind, sizeof kind);
    return hears_gates(kind) && !card ? 1 : 0;
}

static int check_ahead(const struct eng_advice_config *config, struct base_err *err)
{
    char kind[32];
    kind_name(config, kind, sizeof kind);
    bool asks = config->ahead > 0 && config->ahead != AHEAD_AUTO;
    if (strcmp(kind, "lookahead") == 0 && config->ahead == 0 && !config->ahead_own) {
        return base_err_set(err, BASE_ECONFIG, "predictor.kind: lookahead cannot take effect: "
                            "predictor.lookahead is 0 and predictor.lookahead_own false, so no "
                            "gate is asked; set the one to auto, or the other to true");
    }
    if ((asks || config->ahead_own) && !hears_gates(kind)) {
        return base_err_set(err, BASE_ECONFIG, "%s cannot take effect: predictor.kind %s does not "
                            "hear it; take lookahead or blend", asks ?
                            "predictor.lookahead" : "predictor.lookahead_own", kind);
    }
    if (asks && (uint64_t)config->ahead > config->lead) {
        return base_err_set(err, BASE_ECONFIG, "predictor.lookahead: %d cannot take effect: "
                            "hints reach predictor.lead %llu layers", config->ahead,
                            (unsigned long long)config->lead);
    }
    if (config->ahead_shared && eng_advice_ahead(config, false) == 0) {
        return base_err_set(err, BASE_ECONFIG, "predictor.lookahead_shared has no effect while "
                            "no gate is asked ahead of its layer (predictor.lookahead)");
    }
    return 0;
}

int eng_advice_check(const struct eng_advice_config *config,
                     const struct base_option_group *groups, size_t count, struct base_err *err)
{
    char value[BASE_OPTION_TEXT], initial[BASE_OPTION_TEXT];
    static const struct {
        const struct base_option *options;
        const size_t *count;
    } tables[] = { { eng_advice_options, &eng_advice_option_count },
                   { tier_prefetch_options, &tier_prefetch_option_count } };
    /* Also asked while the server runs, by whoever offers other settings; too large for a stack. */
    static _Thread_local struct eng_advice_config own;
    static _Thread_local struct tier_config tier;
    struct base_option_group plain[] = {
        { "predictor", eng_advice_options, eng_advice_option_count, &own },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &tier },
    };
    if (config->kind == KIND_NONE) base_option_defaults(plain, 2);
    for (size_t t = 0; config->kind == KIND_NONE && t < 2; t++) {
        for (size_t i = 0; i < *tables[t].count; i++) {
            const char *key = tables[t].options[i].key;
            if (strcmp(key, "predictor.kind") == 0) continue;
            MUST(base_option_get(groups, count, key, value, sizeof value) >= 0);
            MUST(base_option_get(plain, 2, key, initial, sizeof initial) >= 0);
            if (strcmp(value, initial) == 0 || strcmp(value, "false") == 0) continue;
            return base_err_set(err, BASE_ECONFIG, "%s: %s cannot take effect: predictor.kind is "
                                "none, so there are no predictions; set predictor.kind to blend, "
                                "or leave it at %s", key, value, initial[0] ? initial : "nothing");
        }
    }
    if (config->kind != KIND_NONE && !config->learn && config->path[0] == '\0') {
        return base_err_set(err, BASE_ECONFIG, "predictor.learn: false cannot take effect: "
                            "predictor.path is empty, so nothing would ever be learned; name the "
                            "file of a predictor that has learned");
    }
    return config->kind != KIND_NONE ? check_ahead(config, err) : 0;
}

static int create(const struct eng_advice_config *config, bool card,
                  const struct model_shape *shape,
                  uint32_t moe_layers, uint64_t weights, struct pred_predictor **predictor,
                  struct pred_adviser **adviser)
{
    struct pred_shape own = {
        .layers = moe_layers, .experts = shape->experts, .top_k = shape->top_k,
        .tokens_max = (uint32_t)config->tokens, .weights = weights,
    };
    struct pred_adviser_options options = {
        .lead = (uint32_t)config->lead, .hints_max = (uint32_t)config->hints,
        .probability_min = config->probability, .rows_max = (uint32_t)config->rows,
        .whole_pass = config->whole_pass, .ahead = eng_advice_ahead(config, card),
        .own = config->ahead_own,
    };
    char kind[32];
    _Static_assert(sizeof own.model == sizeof shape->name, "names fit");
    memcpy(own.model, shape->name, sizeof own.model);
    kind_name(config, kind, sizeof kind);
    *adviser = NULL;
    int rc = pred_predictor_create(predictor, kind, &own);
    return rc < 0 ? rc : pred_adviser_create(adviser, *predictor, &options);
}

/* Most hints that the adviser gives at once. */
static size_t hints_most(const struct eng_advice_config *config, const struct model_shape *shape,
                         uint32_t moe_layers)
{
    return (size_t)moe_layers *
           (config->hints < shape->experts ? (size_t)config->hints : shape->experts);
}

static bool asks_gates(const struct eng_advice_config *config, bool card)
{
    return eng_advice_ahead(config, card) > 0 || config->ahead_own;
}

/* Rows of gates that are asked ahead of their layers. */
static uint64_t room_bytes(const struct eng_advice_config *config, bool card,
                           const struct model_shape *shape)
{
    uint64_t row = ((uint64_t)shape->hidden + shape->experts) * sizeof(float);
    return asks_gates(config, card) ? config->rows * row : 0;
}

static int room_make(struct eng_advice *a, bool card, const struct model_shape *shape)
{
    struct eng_lookahead_room *room = &a->room;
    if (!asks_gates(&a->config, card)) return 0;
    room->layers = eng_advice_ahead(&a->config, card);
    room->shared = a->config.ahead_shared;
    room->own = a->config.ahead_own;
    room->normed = calloc(a->config.rows * shape->hidden, sizeof room->normed[0]);
    room->margins = calloc(a->config.rows * shape->experts, sizeof room->margins[0]);
    return room->normed && room->margins ? 0 : -ENOMEM;
}

uint64_t eng_advice_footprint(const struct eng_advice_config *config, bool card,
                              const struct model_shape *shape, uint32_t moe_layers)
{
    struct pred_predictor *predictor = NULL;
    struct pred_adviser *adviser = NULL;
    uint64_t bytes = 0;
    if (config->kind == KIND_NONE) return 0;
    if (create(config, card, shape, moe_layers, 0, &predictor, &adviser) == 0) {
        bytes = pred_predictor_bytes(predictor) + pred_adviser_bytes(adviser) +
                room_bytes(config, card, shape) +
                hints_most(config, shape, moe_layers) * sizeof(struct tier_hint);
    }
    pred_adviser_destroy(adviser);
    pred_predictor_destroy(predictor);
    return bytes;
}

/* ------------------------------------------------------------------------------- save, load -- */

static void save(struct eng_advice *a)
{
    struct base_err err = { 0 };
    int rc = pred_predictor_save(a->predictor, a->config.path, &err);
    if (rc < 0) base_log(BASE_LOG_WARN, "predictor", "%s", err.text);
    atomic_fetch_add(rc < 0 ? &a->failed_saves : &a->saves, 1);
    a->unsaved = rc < 0;
}

static void *saver(void *context)
{
    struct eng_advice *a = context;
    for (;;) {
        while (sem_wait(&a->wanted) < 0) continue;
        if (atomic_load(&a->ending)) return NULL;
        save(a);
        atomic_store_explicit(&a->saving, false, memory_order_release);
    }
}

static int load(struct eng_advice *a, const char *kind, struct base_err *err)
{
    char size[16], from[sizeof a->config.path + 16] = "nothing learned yet";
    /* Told now, not when the server ends and what it learned is lost. */
    int rc = a->config.path[0] != '\0' && a->config.learn
                 ? base_file_place_check(a->config.path, err) : 0;
    if (rc < 0) return base_err_prefix(err, "predictor.path"), rc;
    if (a->config.path[0] != '\0' && access(a->config.path, F_OK) == 0) {
        rc = pred_predictor_load(a->predictor, a->config.path, err);
        if (rc < 0) return base_err_prefix(err, "predictor.path"), rc;
        snprintf(from, sizeof from, "read from %s", a->config.path);
    } else if (!a->config.learn) {
        return base_err_set(err, -ENOENT, "predictor.path: %s is not there, and predictor.learn is "
                            "false: nothing would ever be learned", a->config.path);
    }
    char ahead[40] = "";
    if (a->room.layers > 0) {
        snprintf(ahead, sizeof ahead, "%" PRIu32 " ahead%s", a->room.layers,
                 a->room.own ? " and " : "");
    }
    snprintf(a->note, sizeof a->note, "%s, %s, %s%s%s%s", kind,
             base_str_bytes(size, sizeof size, pred_predictor_bytes(a->predictor) +
                                                   pred_adviser_bytes(a->adviser)), from,
             a->room.normed ? ", gates asked " : "", ahead,
             a->room.own ? "right before their layer" : "");
    return 0;
}

/* ------------------------------------------------------------------------------ open, close -- */

int eng_advice_open(struct eng_advice **out, const struct eng_advice_config *config, bool card,
                    const struct model_shape *shape, const struct tier_store *store,
                    struct tier *tier, const struct eng_ranks *ranks, struct base_err *err)
{
    char kind[32];
    *out = NULL;
    if (config->kind == KIND_NONE) return 0;
    kind_name(config, kind, sizeof kind);
    struct eng_advice *a = calloc(1, sizeof *a);
    if (!a) return base_err_set(err, -ENOMEM, "no memory for the predictor");
    a->magic = ADVICE_MAGIC;
    a->config = *config;
    a->tier = tier;
    if (ranks) {
        a->placement = ranks->placement;
        a->rank = ranks->rank;
    }
    a->saved_ns = base_now_ns();
    pthread_mutex_init(&a->published_lock, NULL);
    sem_init(&a->wanted, 0, 0);
    int rc = create(config, card, shape, tier_store_layers(store),
                    tier_store_weights_hash(store), &a->predictor, &a->adviser);
    if (rc == 0) rc = room_make(a, card, shape);
    if (rc == 0 && a->placement) {
        a->own = calloc(hints_most(config, shape, tier_store_layers(store)), sizeof a->own[0]);
        if (!a->own) rc = -ENOMEM;
    }
    if (rc < 0) {
        base_err_set(err, rc, "predictor.kind: %s: no memory for its tables "
                     "(predictor.tokens_max)", kind);
        goto fail;
    }
    rc = load(a, kind, err);
    if (rc < 0) goto fail;
    pred_predictor_settle(a->predictor);
    if (config->path[0] != '\0' && config->learn) {
        rc = -pthread_create(&a->saver, NULL, saver, a);
        a->saver_runs = rc == 0;
        if (rc < 0) base_err_set(err, rc, "cannot start the thread that saves the predictor");
        if (rc < 0) goto fail;
    }
    *out = a;
    return 0;
fail:
    a->config.learn = false;            /* nothing to save */
    eng_advice_close(a);
    return rc;
}

void eng_advice_close(struct eng_advice *a)
{
    if (!a) return;
    MUST(a->magic == ADVICE_MAGIC);
    if (a->saver_runs) {
        atomic_store(&a->ending, true);
        sem_post(&a->wanted);
        pthread_join(a->saver, NULL);
        if (a->unsaved) save(a);
    }
    pred_adviser_destroy(a->adviser);
    pred_predictor_destroy(a->predictor);
    free(a->own);
    free(a->room.normed);
    free(a->room.margins);
    pthread_mutex_destroy(&a->published_lock);
    sem_destroy(&a->wanted);
    a->magic = 0;
    free(a);
}

/* ----------------------------------------------------------------------------------- steps -- */

/* Other ranks see to theirs. All of this one's go together: the tiers hear of what is there before
 * they let anything in. */
static void give(struct eng_advice *a, const struct tier_hint *hints, uint32_t n)
{
    if (!a->placement) {
        tier_hint(a->tier, hints, n);
        return;
    }
    uint32_t own = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct tier_hint *h = &hints[i];
        if (eng_placement_held(a->placement, h->layer, h->expert, a->rank)) a->own[own++] = *h;
    }
    tier_hint(a->tier, a->own, own);
}

void eng_advice_begin(struct eng_advice *a, const struct eng_batch *batch)
{
    a->rests = tier_holds_all(a->tier) && !pred_adviser_watched(a->adviser);
    if (a->rests) return;
    uint64_t begin_ns = base_now_ns();
    const struct tier_hint *hints;
    if (memchr(batch->phases, TIER_PREFILL, batch->count)) tier_step_prompt(a->tier);
    uint32_t n = pred_adviser_begin(a->adviser, batch->seqs, batch->tokens, batch->phases,
                                    batch->count, &hints);
    give(a, hints, n);
    a->step_ns = base_now_ns() - begin_ns;
}

void eng_advice_routed(struct eng_advice *a, uint32_t moe_layer, const uint32_t *ids)
{
    if (a->rests) return;
    uint64_t begin_ns = base_now_ns();
    const struct tier_hint *hints;
    uint32_t n = pred_adviser_routed(a->adviser, moe_layer, ids, &hints);
    give(a, hints, n);
    a->step_ns += base_now_ns() - begin_ns;
}

bool eng_advice_looks_ahead(struct eng_advice *a, struct eng_lookahead_room *room)
{
    if (!a || a->rests || !pred_adviser_wants(a->adviser)) return false;
    *room = a->room;
    return true;
}

bool eng_advice_after_shared(const struct eng_advice *a)
{
    return a && !a->rests && a->room.shared && pred_adviser_wants(a->adviser);
}

void eng_advice_gate(struct eng_advice *a, int32_t moe_layer, uint32_t later, uint64_t begin_ns)
{
    pred_adviser_gate(a->adviser, moe_layer, later, a->room.margins);
    uint64_t ns = base_now_ns() - begin_ns;
    a->step_ns += ns;
    a->ahead_ns += ns;
}

void eng_advice_before(struct eng_advice *a)
{
    uint64_t begin_ns = base_now_ns();
    const struct tier_hint *hints;
    uint32_t n = pred_adviser_before(a->adviser, &hints);
    give(a, hints, n);
    a->step_ns += base_now_ns() - begin_ns;
}

void eng_advice_own(struct eng_advice *a, uint32_t moe_layer, uint64_t begin_ns)
{
    const struct tier_hint *hints;
    a->ahead_ns += base_now_ns() - begin_ns;
    uint32_t n = pred_adviser_own(a->adviser, moe_layer, a->room.margins, &hints);
    give(a, hints, n);
    a->step_ns += base_now_ns() - begin_ns;
}

struct pred_adviser *eng_advice_adviser(struct eng_advice *a)
{
    return a ? a->adviser : NULL;
}

static void publish(struct eng_advice *a)
{
    const struct pred_adviser_stats *stats = pred_adviser_stats(a->adviser);
    struct eng_advice_metrics m = {
        .hints = stats->hints, .right = stats->right, .asked = stats->asked,
        .learned_tokens = stats->learned_rows,
        .predict_seconds = (double)a->predict_ns / 1e9, .learn_seconds = (double)a->learn_ns / 1e9,
        .lookahead_seconds = (double)a->ahead_ns / 1e9,
        .table_bytes = pred_predictor_bytes(a->predictor) + pred_adviser_bytes(a->adviser),
        .saves = atomic_load(&a->saves), .failed_saves = atomic_load(&a->failed_saves),
    };
    if (pthread_mutex_trylock(&a->published_lock) != 0) return;
    a->published = m;
    pthread_mutex_unlock(&a->published_lock);
}

void eng_advice_end(struct eng_advice *a)
{
    if (a->rests) return;
    uint64_t begin_ns = base_now_ns();
    bool still = atomic_load_explicit(&a->saving, memory_order_acquire);
    bool learn = a->config.learn && !still;
    pred_adviser_end(a->adviser, still ? PRED_STAND_STILL : learn ? PRED_LEARN : PRED_FOLLOW);
    if (learn) a->unsaved = true;
    uint64_t now_ns = base_now_ns();
    a->predict_ns += a->step_ns;
    a->learn_ns += now_ns - begin_ns;
    if (a->saver_runs && !still && a->unsaved && now_ns - a->saved_ns >= a->config.save_every) {
        a->saved_ns = now_ns;
        atomic_store_explicit(&a->saving, true, memory_order_release);
        sem_post(&a->wanted);
    }
    publish(a);
}

void eng_advice_snapshot(struct eng_advice *a, struct eng_advice_metrics *out)
{
    *out = (struct eng_advice_metrics){ 0 };
    if (!a) return;
    pthread_mutex_lock(&a->published_lock);
    *out = a->published;
    pthread_mutex_unlock(&a->published_lock);
}

const char *eng_advice_note(const struct eng_advice *a)
{
    return a ? a->note : "predictor.kind is none";
}
