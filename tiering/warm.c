#include "tiering/warm.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/must.h"
#include "base/str.h"
#include "tiering/policy.h"
#include "tiering/store_files.h"
#include "tiering/tiering_priv.h"

enum { DECAY_STEPS = 256, NOWHERE = 255 };

/* When an expert was used last, in tokens of its layer, and how often by then, decayed. */
struct use {
    uint32_t last;
    float count;
};

struct tier_warm {
    char path[BASE_OPTION_TEXT];
    uint32_t keys, experts;
    uint64_t model;
    struct use *uses;           /* [keys] */
    uint32_t *layer_tokens;     /* [layers] */
    float decay[DECAY_STEPS];   /* what is left of a use after so many tokens */
    float decay_end;            /* ... after more */
    _Atomic bool used;          /* anything since the last save that came off */
    uint64_t save_every_ns, next_save_ns;
    struct tier_warm_set saved; /* until it is restored */
    int saved_rc;               /* of reading it; why_cold when below 0 */
    struct base_err why_cold;
    /* Restored experts, hottest first; `fed` of them are read, under way, or no longer wanted. */
    uint32_t *list;
    uint32_t list_count, fed;
    uint64_t begin_ns;
    bool told;
    char note[200];
    bool refused;
    /* The writer's, while busy. */
    struct tier_warm_set set;
    void *bytes;
    _Atomic bool busy, stop;
    sem_t wake;
    bool wake_made, thread_runs;
    pthread_t thread;
    _Atomic uint64_t saves, save_errors, saved_experts, saved_at;
};

/* -- saving ----------------------------------------------------------------------------------- */

static int colder_first(const void *a, const void *b)
{
    const struct tier_warm_row *x = a, *y = b;
    if (x->age != y->age) return x->age > y->age ? -1 : 1;
    return x->key < y->key ? -1 : x->key > y->key;
}

static int save(struct tier_warm *w)
{
    struct base_err err = { 0 };
    qsort(w->set.rows, w->set.count, sizeof *w->set.rows, colder_first);
    w->set.saved_at = (uint64_t)time(NULL);
    tier_warm_file_encode(&w->set, w->bytes);
    int rc = tier_store_file_replace(w->path, w->bytes, tier_warm_file_bytes(w->set.count), &err);
    if (rc < 0) {
        atomic_store(&w->used, true);
        atomic_fetch_add(&w->save_errors, 1);
        base_log(BASE_LOG_WARN, "warm", "the resident set was not saved: %s: %s", w->path,
                 base_err_name(rc));
        return rc;
    }
    atomic_store(&w->saved_experts, w->set.count);
    atomic_store(&w->saved_at, w->set.saved_at);
    atomic_fetch_add(&w->saves, 1);
    return 0;
}

static void *write_sets(void *context)
{
    struct tier_warm *w = context;
    for (;;) {
        while (sem_wait(&w->wake) < 0) MUST(errno == EINTR);
        if (atomic_load(&w->busy)) {
            save(w);
            atomic_store(&w->busy, false);
        }
        if (atomic_load(&w->stop)) return NULL;
    }
}

static uint8_t quarters(const struct use *use)
{
    float q = use->count * 4 + 0.5f;
    return q >= 255 ? 255 : (uint8_t)q;
}

static void collect(struct tier *t)
{
    struct tier_warm *w = t->warm;
    uint8_t top = t->tiers == 2 ? 1 : 0;
    w->set.count = 0;
    for (uint32_t key = 0; key < w->keys; key++) {
        uint8_t in = t->expert_resident[key];
        if (!in) continue;
        const struct use *use = &w->uses[key];
        w->set.rows[w->set.count++] = (struct tier_warm_row){
            .key = key, .age = w->layer_tokens[key / w->experts] - use->last,
            .hbm = top && in & 1, .uses = quarters(use),
        };
    }
    atomic_store(&w->used, false);
}

uint32_t tier_warm_tick(struct tier *t, uint64_t now)
{
    struct tier_warm *w = t->warm;
    if (!atomic_load(&w->used) || w->save_every_ns == 0) return UINT32_MAX;
    if (now >= w->next_save_ns && !atomic_load(&w->busy)) {
        collect(t);
        w->next_save_ns = now + w->save_every_ns;
        atomic_store(&w->busy, true);
        sem_post(&w->wake);
        return UINT32_MAX;
    }
    uint64_t left = now < w->next_save_ns ? w->next_save_ns - now : 0;
    return left / 1000000 < 1000 ? (uint32_t)(left / 1000000) + 1 : 1000;
}

static void stop_thread(struct tier_warm *w)
{
    if (!w->thread_runs) return;
    atomic_store(&w->stop, true);
    sem_post(&w->wake);
    pthread_join(w->thread, NULL);
    w->thread_runs = false;
}

void tier_warm_save(struct tier *t)
{
    struct tier_warm *w = t->warm;
    if (!w) return;
    stop_thread(w);
    if (!atomic_load(&w->used)) return;
    collect(t);
    if (save(w) == 0) {
        base_log(BASE_LOG_INFO, "warm", "resident set saved: %" PRIu32 " experts in %s",
                 w->set.count, w->path);
    }
}

/* -- what is used ----------------------------------------------------------------------------- */

void tier_warm_used(struct tier_warm *w, uint32_t layer, const uint32_t *ids, uint32_t n)
{
    uint32_t now = ++w->layer_tokens[layer];
    atomic_store_explicit(&w->used, true, memory_order_relaxed);
    for (uint32_t i = 0; i < n; i++) {
        struct use *use = &w->uses[layer * w->experts + ids[i]];
        uint32_t age = now - use->last;
        use->count = use->count * (age < DECAY_STEPS ? w->decay[age] : w->decay_end) + 1;
        use->last = now;
    }
}

/* -- restoring -------------------------------------------------------------------------------- */

/* Gives every row a tier, the hottest the top one, as far as there are slots. */
static void assign(const struct tier *t, const struct tier_warm_set *set, uint8_t *to,
                   uint32_t *room)
{
    bool inclusive = t->tiers == 2 && t->config.inclusion == 1;
    for (uint32_t i = set->count; i-- > 0;) {
        uint32_t layer = set->rows[i].key / t->experts;
        to[i] = NOWHERE;
        for (uint32_t tier = 0; tier < t->tiers && to[i] == NOWHERE; tier++) {
            bool global = tier_policy_find(tier_decide_config_of(t)->tiers[tier].policy)->global;
            uint32_t *left = &room[tier * t->layers + (global ? 0 : layer)];
            if (*left == 0) continue;
            --*left;
            to[i] = (uint8_t)tier;
            if (tier > 0 || !inclusive) continue;
            global = tier_policy_find(tier_decide_config_of(t)->tiers[1].policy)->global;
            left = &room[t->layers + (global ? 0 : layer)];
            if (*left > 0) --*left;
        }
    }
}

static void admit(struct tier *t, const struct tier_warm_set *set, const uint8_t *to)
{
    struct tier_warm *w = t->warm;
    for (uint32_t i = 0; i < set->count; i++) {
        const struct tier_warm_row *row = &set->rows[i];
        uint32_t layer = row->key / t->experts, expert = row->key % t->experts;
        if (to[i] == NOWHERE) continue;
        if (tier_decide_restore(t->decide, to[i], layer, &expert, &row->uses, 1) == 0) continue;
        tier_carry_out(t, false, false);
        tier_observe(t, &(struct tier_event){
            .kind = TIER_EVENT_RESTORE, .tier = to[i], .layer = layer, .count = 1, .ids = &expert,
            .uses = &row->uses,
        });
        w->uses[row->key] = (struct use){ 0 - row->age, (float)row->uses / 4 };
        w->list[w->list_count++] = row->key;
    }
    for (uint32_t i = 0; i < w->list_count / 2; i++) {
        uint32_t key = w->list[i];
        w->list[i] = w->list[w->list_count - 1 - i];
        w->list[w->list_count - 1 - i] = key;
    }
}

static int warmer_last(const void *a, const void *b)
{
    const struct tier_warm_row *x = a, *y = b;
    if (x->uses != y->uses) return x->uses < y->uses ? -1 : 1;
    return colder_first(a, b);
}

static void refuse(struct tier_warm *w, const char *why)
{
    snprintf(w->note, sizeof w->note, "started cold: %.180s", why);
    w->refused = true;
    base_log(BASE_LOG_WARN, "warm", "started cold: %s", why);
}

static void begin(struct tier *t, struct tier_warm_set *set)
{
    struct tier_warm *w = t->warm;
    char bytes[16], age[24];
    uint8_t *to = calloc(set->count ? set->count : 1, 1);
    uint32_t *room = calloc((size_t)t->tiers * t->layers, sizeof *room);
    if (!to || !room) {
        refuse(w, "no memory to restore with");
        free(to);
        free(room);
        return;
    }
    for (uint32_t i = 0; i < t->tiers * t->layers; i++) {
        room[i] = tier_decide_slots_of_layer(t->decide, i / t->layers, i % t->layers);
    }
    /* In the order that the policy of the top tier goes by. */
    if (tier_policy_find(tier_decide_config_of(t)->tiers[0].policy)->decayed) {
        qsort(set->rows, set->count, sizeof *set->rows, warmer_last);
    }
    assign(t, set, to, room);
    admit(t, set, to);
    free(to);
    free(room);
    uint64_t now = (uint64_t)time(NULL), since = now > set->saved_at ? now - set->saved_at : 0;
    w->begin_ns = base_clock_now_ns(t->clock);
    base_str_bytes(bytes, sizeof bytes, w->list_count * t->expert_bytes);
    base_str_duration(age, sizeof age, (since > 0 ? since : 1) * 1000000000u);
    snprintf(w->note, sizeof w->note,
             "%" PRIu32 " of %" PRIu32 " saved experts fit, saved %s before", w->list_count,
             set->count, age);
    base_log(BASE_LOG_INFO, "warm",
             "restoring %" PRIu32 " of %" PRIu32 " saved experts (%s) in the background, saved %s "
             "ago in %s", w->list_count, set->count, bytes, age, w->path);
}

void tier_warm_restore(struct tier *t)
{
    struct tier_warm *w = t->warm;
    if (!w) return;
    if (w->saved_rc == -ENOENT) {
        snprintf(w->note, sizeof w->note, "started cold: nothing was saved yet");
        base_log(BASE_LOG_INFO, "warm", "%s is not there yet: starting cold", w->path);
    } else if (w->saved_rc < 0) {
        refuse(w, w->why_cold.text);
    } else {
        begin(t, &w->saved);
    }
    free(w->saved.rows);
    w->saved = (struct tier_warm_set){ 0 };
}

static void tell(struct tier *t)
{
    struct tier_warm *w = t->warm;
    char bytes[16], time_text[24];
    const struct tier_cache_stats *s = &t->cache.stats;
    base_str_bytes(bytes, sizeof bytes, s->restore_bytes);
    base_str_duration(time_text, sizeof time_text, base_clock_now_ns(t->clock) - w->begin_ns);
    base_log(BASE_LOG_INFO, "warm",
             "restored in %s: %" PRIu64 " experts (%s) read in idle time, the others came by "
             "demand or left", time_text, s->restore_reads, bytes);
    w->told = true;
}

bool tier_warm_feeding(const struct tier_warm *w)
{
    return w->fed < w->list_count;
}

void tier_warm_feed(struct tier *t)
{
    struct tier_warm *w = t->warm;
    if (w->told || w->list_count == 0) return;
    while (w->fed < w->list_count && tier_cache_restore(&t->cache, w->list[w->fed])) w->fed++;
    if (w->fed == w->list_count && t->cache.prefetch_open == 0) tell(t);
}

/* -- open, close ------------------------------------------------------------------------------ */

/* Whatever is there will be overwritten: it must be a set of these weights, or what is left of one.
 */
static int read_saved(struct tier_warm *w, const struct tier *t, struct base_err *err)
{
    struct tier_warm_set *set = &w->saved;
    int rc = w->saved_rc = tier_warm_file_load(set, w->path, &w->why_cold);
    if (rc == 0 && (set->layers != t->layers || set->experts != t->experts ||
                    set->model != w->model)) {
        return base_err_set(err, BASE_EMISMATCH, "tiers.warm.path: %s was saved for another model "
                            "or other weights and would be overwritten: name another file, or "
                            "remove this one", w->path);
    }
    if (rc == 0 || rc == -ENOENT || rc == BASE_ETORN || rc == BASE_ECHECKSUM ||
        rc == BASE_EVERSION) {
        return 0;
    }
    if (rc != BASE_EFORMAT) return base_err_set(err, rc, "tiers.warm.path: %s", w->why_cold.text);
    return base_err_set(err, rc, "tiers.warm.path: %s: and it would be overwritten: name another "
                        "file, or remove this one", w->why_cold.text);
}

static int start(struct tier_warm *w, struct base_err *err)
{
    if (sem_init(&w->wake, 0, 0) < 0) return base_err_set(err, -errno, "cannot make a semaphore");
    w->wake_made = true;
    int rc = -pthread_create(&w->thread, NULL, write_sets, w);
    if (rc < 0) return base_err_set(err, rc, "cannot start a thread: %s", strerror(-rc));
    w->thread_runs = true;
    pthread_setname_np(w->thread, "warm-save");
    return 0;
}

int tier_warm_open(struct tier_warm **out, struct tier *t, struct base_err *err)
{
    double half_life = (double)t->config.half_life;
    *out = NULL;
    if (t->config.warm_path[0] == '\0') return 0;
    /* A path that can never be written is told at start, not when the server ends. */
    int rc = base_file_place_check(t->config.warm_path, err);
    if (rc < 0) return base_err_prefix(err, "tiers.warm.path"), rc;
    struct tier_warm *w = calloc(1, sizeof *w);
    if (!w) return base_err_set(err, -ENOMEM, "no memory for the warm start");
    memcpy(w->path, t->config.warm_path, sizeof w->path);
    w->experts = t->experts;
    w->keys = t->layers * t->experts;
    w->model = tier_store_weights_hash(t->store);
    w->save_every_ns = t->config.warm_save_every;
    w->next_save_ns = base_clock_now_ns(t->clock) + w->save_every_ns;
    for (unsigned i = 0; i < DECAY_STEPS; i++) {
        w->decay[i] = half_life > 0 ? (float)exp2(-(double)i / half_life) : 1;
    }
    w->decay_end = half_life > 0 ? 0 : 1;
    w->uses = calloc(w->keys, sizeof *w->uses);
    w->layer_tokens = calloc(t->layers, sizeof *w->layer_tokens);
    w->list = calloc(w->keys, sizeof *w->list);
    w->set = (struct tier_warm_set){
        .model = w->model, .layers = t->layers, .experts = t->experts,
    };
    w->set.rows = calloc(w->keys, sizeof *w->set.rows);
    w->bytes = malloc(tier_warm_file_bytes(w->keys));
    rc = w->uses && w->layer_tokens && w->list && w->set.rows && w->bytes
             ? read_saved(w, t, err)
             : base_err_set(err, -ENOMEM, "no memory for the warm start of %" PRIu32 " experts",
                            w->keys);
    if (rc == 0) rc = start(w, err);
    if (rc < 0) {
        tier_warm_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

void tier_warm_close(struct tier_warm *w)
{
    if (!w) return;
    stop_thread(w);
    if (w->wake_made) sem_destroy(&w->wake);
    free(w->uses);
    free(w->layer_tokens);
    free(w->list);
    free(w->set.rows);
    free(w->saved.rows);
    free(w->bytes);
    free(w);
}

void tier_warm_stats(const struct tier_warm *w, struct tier_warm_metrics *m)
{
    m->saves = atomic_load(&w->saves);
    m->save_errors = atomic_load(&w->save_errors);
    m->saved_experts = atomic_load(&w->saved_experts);
    m->restore_experts = w->list_count;
    m->restore_left = w->list_count - w->fed;
}

bool tier_warm_refused(const struct tier_warm *w)
{
    return w->refused;
}

const char *tier_warm_note(const struct tier_warm *w)
{
    return w->note;
}
